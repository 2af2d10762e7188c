"""Ranking metrics from counts against scikit-learn, on scores with and without ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from gan.ranking import auroc, auroc_error, average_precision, fpr_at_recall, tie_error

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
    for metric in (auroc, auroc_error, average_precision, lambda n, a: fpr_at_recall(n, a, 0.8)):
        each = [metric(n, a) for n, a in zip(normal, abnormal, strict=True)]
        np.testing.assert_allclose(metric(normal, abnormal), each)


def test_the_error_of_auroc_is_its_spread_over_samples() -> None:
    rng = np.random.default_rng(2)
    found, errors = [], []
    for _ in range(2000):
        scores = np.concatenate([rng.normal(size=60), rng.normal(1.2, 1.5, size=25)]).round(1)
        counts = _counts(scores, np.arange(85) >= 60)
        found.append(float(auroc(*counts)))
        errors.append(float(auroc_error(*counts)))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.05)


def test_the_error_is_that_of_pairs_compared_one_by_one() -> None:
    rng = np.random.default_rng(3)
    normal, abnormal = rng.integers(0, 6, 40), rng.integers(2, 8, 15)
    wins = (abnormal[:, None] > normal) + 0.5 * (abnormal[:, None] == normal)
    expected = wins.mean(axis=1).var() / 15 + wins.mean(axis=0).var() / 40
    counts = _counts(np.concatenate([normal, abnormal]), np.arange(55) >= 40)
    assert auroc_error(*counts) == pytest.approx(expected**0.5)
    assert auroc_error(np.array([5, 2, 0]), np.array([0, 0, 4])) == 0.0


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
    assert np.isnan(auroc_error(*counts))
    assert np.isnan(fpr_at_recall(*counts, 0.95))
