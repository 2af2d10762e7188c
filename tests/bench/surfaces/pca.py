"""Principal components of the training crops; the score is the strongest window of the residual."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from gan.evidence import strongest_window
from tests.bench.surfaces.cells import Cell, CellData
from tests.bench.surfaces.choice import best_by_auroc
from tests.bench.surfaces.crops import SIDE, Crops

_COMPONENTS = (4, 8, 16, 32, 64, 128, 256)
_WINDOW = 9
_FIT_CROPS = 4000


class PcaDetector:
    """Absolute residual of the projection, averaged over windows of 9 pixels.

    How many components are kept is chosen on validation. Components are fitted on at most 4,000
    crops, drawn at random.

    Args:
        cell: its seed draws the crops.
    """

    def __init__(self, cell: Cell) -> None:
        self.told: dict[str, Any] = {}
        self._seed = cell.seed

    def fit(self, data: CellData) -> None:
        """Fit the components and choose how many are kept."""
        order = np.random.default_rng(self._seed).permutation(len(data.normal))[:_FIT_CROPS]
        flat = _flat(data.normal.take(order))
        self._pca = PCA(
            min(max(_COMPONENTS), *flat.shape), svd_solver="randomized", random_state=self._seed
        ).fit(flat)

        def scores(components: int) -> NDArray[np.floating]:
            self._components = components
            return self.score(data.validation)[0]

        self._components = best_by_auroc(_COMPONENTS, scores, data.validation_abnormal, self.told)

    def score(self, crops: Crops) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Strongest window, and the mean of the window around each pixel."""
        flat = _flat(crops) - self._pca.mean_.astype(np.float32)
        basis = self._pca.components_[: self._components].astype(np.float32)
        residual = np.abs(flat - (flat @ basis.T) @ basis).reshape(-1, SIDE, SIDE)
        residual_BHW = torch.from_numpy(residual)
        around = nnf.avg_pool2d(
            residual_BHW[:, None], _WINDOW, 1, _WINDOW // 2, count_include_pad=False
        )
        return strongest_window(residual_BHW, _WINDOW).numpy(), around[:, 0].numpy()


def _flat(crops: Crops) -> NDArray[np.float32]:
    return (crops.pixels.reshape(len(crops), -1) / 255).astype(np.float32)
