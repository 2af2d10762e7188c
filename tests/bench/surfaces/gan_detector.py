"""The method and AnoGAN: trained on crops in memory, judged by the engine of an inspection."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.calibration import maps_of
from cluster.config import load_config
from cluster.engine import Engine
from data.preparation import Preparation
from data.sample import Sample
from data.store import Store
from gan.fusion import fit_fusion
from gan.objective import weights_for_contamination
from tests.bench.data.common import ROOT
from tests.bench.surfaces.cells import Cell, CellData
from tests.bench.surfaces.crops import SIDE, Crops
from tests.bench.train.in_memory import TrainingImages, trained_model, trained_with

SETTINGS = ROOT / "tests/bench/surfaces/gan.yaml"
ASSUMED = 0.1
"""What a user without any idea of the contamination may assume; used where there is none."""
ANOGAN: dict[str, Any] = {"objective.gamma": 1.0, "objective.alpha": 0.0}
OWN: dict[str, Any] = {
    "networks.features": "own",
    "networks.feature_weights": "",
    "objective.r1_weight": 0.03,
    "search.feature_levels": (0, 1),
}
"""What is different from scratch: D has its own levels."""


class GanDetector:
    """A pair of networks; the fused score and map of an inspection, fitted on validation.

    Args:
        cell: its contamination decides gamma and alpha by the rule, its seed everything drawn.
        settings: what differs from gan.yaml, by dotted path.
        masks: whether the masks of the known defects are used.
    """

    def __init__(self, cell: Cell, settings: dict[str, Any], *, masks: bool = True) -> None:
        gamma, alpha = weights_for_contamination(cell.contamination or ASSUMED)
        chosen = {"objective.gamma": gamma, "objective.alpha": alpha, "run.seed": cell.seed}
        self._config = load_config(str(SETTINGS), chosen | settings | cell.settings)
        self._cell, self._masks = cell, masks
        self.told: dict[str, Any] = {}

    def fit(self, data: CellData) -> None:
        """Train, unless the model is there, and fit score and map on validation."""
        images = TrainingImages(
            data.normal.pixels[..., None],
            data.known.pixels[..., None],
            data.known.masks if self._masks else None,
        )
        preparation = Preparation(resolution=SIDE, channels=1, mode="tiles")
        model = trained_model(self._folder(), self._config, images, preparation)
        search, seed = self._config.search, self._config.run.seed
        found = Engine(model, search, seed=seed).score(_samples(data.validation))
        terms = [np.array(scored.row["terms"]) for scored in found]
        fusion = fit_fusion(
            maps_of(model.card, search),
            [one for one, wrong in zip(terms, data.validation_abnormal, strict=True) if not wrong],
            [one for one, wrong in zip(terms, data.validation_abnormal, strict=True) if wrong],
            alpha=self._config.objective.alpha,
        )
        parts = zip(fusion.names, fusion.weight, strict=True)
        self.told["chosen"] = {name: round(weight, 4) for name, weight in parts if weight}
        self._engine = Engine(model, search, seed=seed, fusion=fusion)

    def score(self, crops: Crops) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Fused score and fused map."""
        found = self._engine.score(_samples(crops))
        scores = np.array([scored.row["score"] for scored in found])
        return scores, np.stack([scored.map for scored in found])

    def _folder(self) -> Store:
        """Where the model is kept: by all that decides how it was trained."""
        told = trained_with(self._config) | {
            "contamination": self._cell.contamination,
            "setting": self._cell.setting,
            "intensity": self._cell.intensity,
            "masks": self._masks,
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        return Store(str(ROOT / "outputs")).child("surfaces", f"models/{digest}")


def _samples(crops: Crops) -> list[Sample]:
    """Crops as an inspection gets them, named by picture and place."""
    return [
        Sample(f"{picture}-{y}-{x}", pixels[..., None], "unlabelled", "", "", "", "test")
        for pixels, picture, y, x in zip(crops.pixels, crops.picture, crops.y, crops.x, strict=True)
    ]
