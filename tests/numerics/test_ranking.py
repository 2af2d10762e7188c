"""Ranking metrics from counts against scikit-learn, on scores with and without ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from gan.ranking import auroc, average_precision, fpr_at_recall, tie_error

LABELLED = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def _counts(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, place = np.unique(scores, return_inverse=True)
    return np.bincount(place[~truth], minlength=place.max() + 1), np.bincount(
        place[truth], minlength=place.max() + 1
    )


def _check(scores: np.ndarray, truth: np.ndarray) -> None:
    normal, abnormal = _counts(scores, truth)
    assert auroc(normal, abnormal) == pytest.approx(roc_auc_score(truth, scores))
    expected = average_precision_score(truth, scores)
    assert average_precision(normal, abnormal) == pytest.approx(expected)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for recall in (0.3, 0.5, 0.95, 1.0):
        expected = fpr[tpr >= recall - 1e-12].min()
        assert fpr_at_recall(normal, abnormal, recall) == pytest.approx(expected)


@given(LABELLED)
def test_agrees_with_scikit_learn_where_most_scores_are_equal(
    rows: list[tuple[int, bool]],
) -> None:
    _check(np.array([score for score, _ in rows]), np.array([label for _, label in rows]))


def test_agrees_with_scikit_learn_on_many_scores() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(5000) < 0.05
    _check(rng.normal(truth * 1.5), truth)


def test_rows_are_measured_apart() -> None:
    rng = np.random.default_rng(1)
    normal, abnormal = rng.integers(0, 5, (2, 3, 17))
    for metric in (auroc, average_precision, lambda n, a: fpr_at_recall(n, a, 0.8)):
        each = [metric(n, a) for n, a in zip(normal, abnormal, strict=True)]
        np.testing.assert_allclose(metric(normal, abnormal), each)


@given(LABELLED)
def test_places_joined_move_auroc_by_no_more_than_the_tie_error(
    rows: list[tuple[int, bool]],
) -> None:
    scores = np.array([score for score, _ in rows]) + np.linspace(0, 0.5, len(rows))
    truth = np.array([label for _, label in rows])
    joined = _counts(scores // 3, truth)
    assert abs(auroc(*joined) - roc_auc_score(truth, scores)) <= tie_error(*joined) + 1e-12


@pytest.mark.parametrize(("normal", "abnormal"), [([2, 1], [0, 0]), ([0, 0], [1, 3])])
def test_undefined_without_both_labels(normal: list[int], abnormal: list[int]) -> None:
    counts = np.array(normal), np.array(abnormal)
    assert np.isnan(auroc(*counts))
    assert np.isnan(fpr_at_recall(*counts, 0.95))
