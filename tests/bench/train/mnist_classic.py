"""Textbook detectors on the very images and labels that the GAN is given.

Each may choose one number out of a few by its AUROC on the validation split, as the GAN's settings
were chosen once. PCA, nearest neighbours and isolation forest know only the images called normal;
support vector machine and random forest tell those from the known abnormal ones.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from tests.bench.train.mnist_images import Parts

Rows = NDArray[np.float32]
Score = Callable[[Rows], NDArray[np.float64]]
Fit = Callable[[Rows, Rows, float], Score]
_SEED = 0
_NUM_TREES = 500


def _pca(normal: Rows, known: Rows, components: float) -> Score:
    """Mean squared distance to the subspace of the training images."""
    model = PCA(int(components), random_state=_SEED).fit(normal)

    def score(rows: Rows) -> NDArray[np.float64]:
        made = model.inverse_transform(model.transform(rows))
        return np.asarray(np.square(rows - made).mean(axis=1), np.float64)

    return score


def _neighbours(normal: Rows, known: Rows, count: float) -> Score:
    """Mean distance to the nearest training images."""
    model = NearestNeighbors(n_neighbors=int(count)).fit(normal)
    return lambda rows: np.asarray(model.kneighbors(rows)[0].mean(axis=1), np.float64)


def _isolation(normal: Rows, known: Rows, max_samples: float) -> Score:
    model = IsolationForest(
        n_estimators=_NUM_TREES, max_samples=max_samples, random_state=_SEED
    ).fit(normal)
    return lambda rows: np.asarray(-model.score_samples(rows), np.float64)


def _svm(normal: Rows, known: Rows, penalty: float) -> Score:
    model = SVC(C=penalty, class_weight="balanced").fit(*_labelled(normal, known))
    return lambda rows: np.asarray(model.decision_function(rows), np.float64)


def _forest(normal: Rows, known: Rows, leaf: float) -> Score:
    model = RandomForestClassifier(
        _NUM_TREES, min_samples_leaf=int(leaf), class_weight="balanced", random_state=_SEED
    ).fit(*_labelled(normal, known))
    return lambda rows: np.asarray(model.predict_proba(rows)[:, 1], np.float64)


def _labelled(normal: Rows, known: Rows) -> tuple[Rows, NDArray[np.int64]]:
    return np.concatenate([normal, known]), np.repeat([0, 1], [len(normal), len(known)])


MODELS: dict[str, tuple[Fit, tuple[float, ...]]] = {
    "PCA": (_pca, (8, 16, 32, 64, 128)),
    "nearest neighbours": (_neighbours, (1, 3, 10, 30)),
    "isolation forest": (_isolation, (0.25, 0.5, 1.0)),
    "SVM": (_svm, (0.3, 1, 3, 10)),
    "random forest": (_forest, (1, 3, 10)),
}
"""How each is fitted, and the numbers it may choose from."""


def classic_scores(name: str, parts: Parts, normal_digit: int) -> tuple[NDArray[np.float64], float]:
    """Scores of the test images, and the number chosen on the validation split."""
    rows = {split: _flat(images) for split, (images, _) in parts.items()}
    wrong = parts["validation"][1] != normal_digit
    fit, choices = MODELS[name]
    best: tuple[float, float, Score] | None = None
    for choice in choices:
        score = fit(rows["train-normal"], rows["train-abnormal"], choice)
        auroc = float(roc_auc_score(wrong, score(rows["validation"])))
        if best is None or auroc > best[0]:
            best = auroc, choice, score
    assert best
    return best[2](rows["test"]), best[1]


def _flat(images: NDArray[np.uint8]) -> Rows:
    return (images.reshape(len(images), -1) / 255).astype(np.float32)
