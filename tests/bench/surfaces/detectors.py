"""What every row of the study is: fitted on a cell, it gives crops a score and a map."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.bench.surfaces.anomalib_memory import AnomalibPatchCore
from tests.bench.surfaces.cells import Cell, CellData
from tests.bench.surfaces.classifiers import forest, logistic
from tests.bench.surfaces.crops import Crops
from tests.bench.surfaces.gan_detector import ANOGAN, OWN, GanDetector
from tests.bench.surfaces.memory import PatchMemory
from tests.bench.surfaces.pca import PcaDetector

Scored = tuple[NDArray[np.floating], NDArray[np.floating]]


class Detector(Protocol):
    """One row.

    Attributes:
        told: what was chosen on validation, for the record.
    """

    told: dict[str, Any]

    def fit(self, data: CellData) -> None:
        """Train, and choose on validation."""

    def score(self, crops: Crops) -> Scored:
        """Score [N] and map [N, 64, 64] float32 of each crop on its own, high for abnormal."""


ANOMALIB = "anomalib PatchCore"
DETECTORS: dict[str, Callable[[Cell], Detector]] = {
    "PCA": PcaDetector,
    "patch memory": PatchMemory,
    ANOMALIB: AnomalibPatchCore,
    "logistic regression": logistic,
    "random forest": forest,
    "AnoGAN": partial(GanDetector, settings=OWN | ANOGAN),
    "method from scratch": partial(GanDetector, settings=OWN),
    "AnoGAN, pretrained D": partial(GanDetector, settings=ANOGAN),
    "method without masks": partial(GanDetector, settings={}, masks=False),
    "method": partial(GanDetector, settings={}),
}
"""How a row is made for a cell, by its name in the table."""
GANS = ("AnoGAN", "method from scratch", "AnoGAN, pretrained D", "method without masks", "method")
"""The rows that have settings."""
