"""A patch memory in the manner of PatchCore (Roth et al. 2022) on features of EfficientNet-lite0.

As there: patches of middle levels averaged with their neighbours, a subsample of them kept, and the
distance to the nearest one as the map. Otherwise: another network, and crops enlarged to 128
pixels; two choices are left to validation. The subsample is random or a greedy coreset of random
candidates, because a coreset seeks out what is rare, contaminants too. The score is the largest
distance or the strongest 3x3 window of distances; it is not weighed by the neighbourhood of the
nearest patch. The map is not blurred.
"""

import functools
import hashlib
import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from data.sample import Image8
from gan.evidence import strongest_window
from tests.bench.surfaces.cells import Cell, CellData
from tests.bench.surfaces.choice import best_by_auroc
from tests.bench.surfaces.crops import SIDE, Crops
from tests.bench.surfaces.pretrained import GRID, OUTPUTS, patch_width, patches
from tests.bench.surfaces.stored import Stored

NUM_KEPT = 4096
_NUM_CANDIDATES = 32_768
_PROJECTED = 64
_WINDOWS = (1, 3)
_CHUNK = 8192


class PatchMemory:
    """Distance of each patch to the nearest one kept of the training crops.

    Args:
        cell: its seed draws the patches.
    """

    def __init__(self, cell: Cell) -> None:
        self.told: dict[str, Any] = {}
        self._seed = cell.seed

    def fit(self, data: CellData) -> None:
        """Draw the patches, choose how they are kept and what of the distances is the score."""
        candidates = drawn_patches(data.normal, _NUM_CANDIDATES, self._seed)
        ways = {
            "random": candidates[:NUM_KEPT],
            "coreset": candidates[coreset(candidates, NUM_KEPT, self._seed)],
        }
        memories = {name: stored_distances(kept) for name, kept in ways.items()}

        def scores(choice: tuple[str, int]) -> NDArray[np.floating]:
            self._distances, self._window = memories[choice[0]], choice[1]
            return self.score(data.validation)[0]

        choices = list(itertools.product(ways, _WINDOWS))
        name, self._window = best_by_auroc(choices, scores, data.validation_abnormal, self.told)
        self._distances = memories[name]

    def score(self, crops: Crops) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """The strongest distances, and all of them brought to the size of the crop bilinearly."""
        distance = torch.from_numpy(self._distances(crops.pixels))
        maps = nnf.interpolate(distance[:, None], (SIDE, SIDE), mode="bilinear")[:, 0]
        return strongest_window(distance, self._window).numpy(), maps.numpy()


def drawn_patches(crops: Crops, count: int, seed: int) -> Tensor:
    """Random patches of random crops, [count, K] float32, a few of each crop."""
    rng = np.random.default_rng(seed)
    each = -(-count // len(crops))
    places = rng.integers(GRID * GRID, size=(len(crops), each))
    found = []
    for start in range(0, len(crops), _CHUNK // 16):
        rows = slice(start, start + _CHUNK // 16)
        flat = patches(crops.pixels[rows]).reshape(-1, GRID * GRID, patch_width())
        found.append(np.take_along_axis(flat, places[rows, :, None], axis=1))
    stacked = np.concatenate(found).reshape(-1, patch_width())
    return torch.from_numpy(stacked[rng.permutation(len(stacked))[:count]])


def coreset(candidates: Tensor, count: int, seed: int) -> Tensor:
    """Rows that leave no candidate far away: greedy k-centre on random projections."""
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(candidates.shape[1], _PROJECTED, generator=generator)
    points = candidates @ projection
    chosen = torch.zeros(min(count, len(points)), dtype=torch.int64)
    distance = (points - points[0]).square().sum(dim=1)
    for place in range(1, len(chosen)):
        chosen[place] = distance.argmax()
        distance = torch.minimum(distance, (points - points[chosen[place]]).square().sum(dim=1))
    return chosen


def stored_distances(kept: Tensor) -> Stored:
    """Distance of each patch of crops to the nearest row; the same for every setting of a cell."""
    digest = hashlib.sha256(kept.numpy().tobytes()).hexdigest()[:12]
    compute = functools.partial(_distances, kept)
    return Stored(OUTPUTS / "memory" / digest, (GRID, GRID), np.float32, compute)


def _distances(kept: Tensor, pixels: Image8) -> NDArray[np.floating]:
    flat = torch.from_numpy(patches(pixels)).flatten(0, 2)
    found = [_nearest(part, kept) for part in flat.split(_CHUNK)]
    return torch.cat(found).reshape(-1, GRID, GRID).numpy()


def _nearest(patch_NK: Tensor, kept_MK: Tensor) -> Tensor:
    """Euclidean distance [N] to the nearest row."""
    squared = kept_MK.square().sum(dim=1) - 2 * patch_NK @ kept_MK.T
    return (squared.amin(dim=1) + patch_NK.square().sum(dim=1)).clamp(min=0).sqrt()
