"""Classifiers that tell the known defects from what is called normal, by pretrained features.

Their score says nothing of where in a crop a defect lies: it fills the map of the crop, and only
the overlap of crops makes the map of a picture finer.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.bench.surfaces.cells import Cell, CellData
from tests.bench.surfaces.choice import best_by_auroc
from tests.bench.surfaces.crops import SIDE, Crops
from tests.bench.surfaces.pretrained import pooled

_NUM_TREES = 300

Make = Callable[[float, int], ClassifierMixin]


class Classifier:
    """Probability of a known defect.

    Args:
        make: makes the classifier with one number and a seed.
        choices: the numbers to choose from on validation.
        cell: its seed is the classifier's.
    """

    def __init__(self, make: Make, choices: tuple[float, ...], cell: Cell) -> None:
        self.told: dict[str, Any] = {}
        self._make, self._choices, self._seed = make, choices, cell.seed

    def fit(self, data: CellData) -> None:
        """Fit one classifier for each number and keep the best."""
        rows = np.concatenate([pooled(data.normal.pixels), pooled(data.known.pixels)])
        labels = np.repeat([0, 1], [len(data.normal), len(data.known)])
        fitted = {one: self._make(one, self._seed).fit(rows, labels) for one in self._choices}

        def scores(choice: float) -> NDArray[np.floating]:
            self._model = fitted[choice]
            return self.score(data.validation)[0]

        chosen = best_by_auroc(self._choices, scores, data.validation_abnormal, self.told)
        self._model = fitted[chosen]

    def score(self, crops: Crops) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """The probability, and a map that has it everywhere."""
        found = self._model.predict_proba(pooled(crops.pixels))[:, 1].astype(np.float32)
        return found, np.broadcast_to(found[:, None, None], (len(crops), SIDE, SIDE))


def logistic(cell: Cell) -> Classifier:
    """Logistic regression on standardised features; the inverse of its penalty is chosen."""

    def make(inverse_penalty: float, seed: int) -> ClassifierMixin:
        return make_pipeline(
            StandardScaler(),
            LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=1000),
        )

    return Classifier(make, (1e-6, 1e-5, 0.0001, 0.001, 0.01), cell)


def forest(cell: Cell) -> Classifier:
    """Random forest of 300 trees; the least number of crops in a leaf is chosen."""

    def make(leaf: float, seed: int) -> ClassifierMixin:
        return RandomForestClassifier(
            _NUM_TREES, min_samples_leaf=int(leaf), class_weight="balanced", random_state=seed
        )

    return Classifier(make, (1, 5), cell)
