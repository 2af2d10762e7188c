"""Intervals of counts against the plain bootstrap, and against how numbers really vary."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cluster.image_metrics import Known, image_metrics
from gan.bootstrap import intervals, percentiles, resample_groups, resample_sorts
from gan.ranking import auroc


def _known(scores: np.ndarray, truth: np.ndarray, group: np.ndarray | None = None) -> Known:
    return Known(
        scores=scores,
        abnormal=truth,
        seen=np.zeros_like(truth),
        decision=np.where(scores > 1.0, 2, 0),
        at_best_f1=scores >= 0.7,
        kind=np.where(truth, "pit", "good"),
        group=np.arange(len(scores)) if group is None else group,
    )


def test_draws_keep_each_stratum_and_vary_as_a_multinomial() -> None:
    counts, strata = np.array([6, 3, 0, 5, 1]), np.array([0, 0, 0, 1, 1])
    draws = resample_sorts(counts, strata, np.random.default_rng(0))
    drawn = np.array(list(itertools.islice(draws, 20_000)))
    assert set(drawn[:, :3].sum(axis=1)) == {9}
    assert set(drawn[:, 3:].sum(axis=1)) == {6}
    np.testing.assert_allclose(drawn.mean(axis=0), counts, atol=0.05)
    # n p (1 - p)
    np.testing.assert_allclose(drawn.var(axis=0), [2, 2, 0, 5 / 6, 5 / 6], rtol=0.05)


def test_groups_are_drawn_whole() -> None:
    sort, group = np.array([0, 0, 1, 1, 2, 0]), np.array([0, 0, 1, 1, 1, 2])
    draws = resample_groups(sort, group, np.array([0, 1, 0]), 3, np.random.default_rng(0))
    drawn = np.array(list(itertools.islice(draws, 4000)))
    # Group 1 is alone in its stratum; the other two hold 2 and 1 images of sort 0.
    assert set(map(tuple, drawn)) == {(2, 2, 1), (3, 2, 1), (4, 2, 1)}
    assert drawn[:, 0].mean() == pytest.approx(3, abs=0.05)


def test_intervals_are_those_of_the_plain_bootstrap() -> None:
    """Images drawn one by one and judged by scikit-learn, in the same strata."""
    rng = np.random.default_rng(0)
    truth = np.arange(240) < 60
    scores = rng.normal(truth * 1.2).round(1)
    rows = []
    for _ in range(600):
        picked = np.concatenate([rng.integers(0, 60, 60), rng.integers(60, 240, 180)])
        flagged, is_hit = scores[picked] > 1.0, truth[picked]
        rows.append(
            {
                "auroc": roc_auc_score(is_hit, scores[picked]),
                "average_precision": average_precision_score(is_hit, scores[picked]),
                "f1": 2 * (flagged & is_hit).sum() / (flagged.sum() + 60),
                "false_positive_rate": flagged[60:].mean(),
            }
        )
    metrics, found = image_metrics(_known(scores, truth), seed=0)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    for name in rows[0]:
        plain = np.quantile([row[name] for row in rows], [0.025, 0.975])
        np.testing.assert_allclose(found[name], plain, atol=0.015, err_msg=name)
        assert found[name][0] < metrics[name] < found[name][1]


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Normal scores N(0, 1), abnormal N(1, 1): the AUROC is P(N(1, 2) > 0) = 0.7602."""
    rng, held = np.random.default_rng(1), []
    for _ in range(400):
        truth = np.arange(160) < 60
        order = np.argsort(rng.normal(truth * 1.0))

        def measure(counts: np.ndarray, order: np.ndarray = order) -> dict[str, float]:
            ascending = counts[order]
            is_hit = np.arange(160)[order] < 60
            return {"auroc": float(auroc(ascending * ~is_hit, ascending * is_hit))}

        draws = resample_sorts(np.ones(160, np.int64), truth.astype(np.int64), rng)
        low, high = intervals(measure, draws, 300)["auroc"]
        held.append(low <= 0.76025 <= high)
    # Percentile intervals of so few images hold it a little less often than they say.
    assert 0.95 - 0.035 <= np.mean(held) <= 0.95 + 0.035


def test_images_of_one_part_make_wider_intervals() -> None:
    rng = np.random.default_rng(2)
    parts = np.repeat(np.arange(40), 10)
    truth = parts < 20
    scores = rng.normal(truth[::10] * 1.0)[parts] + 0.01 * rng.normal(size=400)
    apart = image_metrics(_known(scores, truth), seed=0)[1]["auroc"]
    together = image_metrics(_known(scores, truth, parts), seed=0)[1]["auroc"]
    widths = np.diff([apart, together])[:, 0]
    # Ten copies of each part tell no more than one: the interval is wider by the root of ten.
    assert 2.2 < widths[1] / widths[0] < 4.2


def test_joined_places_hardly_move_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(4000) < 0.5
    known = _known(rng.normal(truth * 1.0), truth)
    metrics, exact = image_metrics(known, seed=0)
    monkeypatch.setattr("cluster.image_metrics._MAX_PLACES", 256)
    same, joined = image_metrics(known, seed=0)
    np.testing.assert_equal(same, metrics)
    for name, interval in exact.items():
        np.testing.assert_allclose(joined[name], interval, atol=0.015, err_msg=name)


@pytest.mark.parametrize("few", [True, False])
def test_no_interval_from_one_image_of_a_label(few: bool) -> None:
    truth = np.array([few, not few, not few, not few])
    metrics, found = image_metrics(_known(np.array([0.1, 0.2, 0.3, 0.4]), truth), seed=0)
    assert found == {}
    assert metrics["auroc"] == (0.0 if few else 1.0)


def test_undefined_draws_are_left_out_unless_they_are_most() -> None:
    values = np.arange(101.0)
    assert percentiles(values) == pytest.approx((2.5, 97.5))
    values[60:] = np.nan
    assert percentiles(values) == pytest.approx((59 * 0.025, 59 * 0.975))
    values[40:] = np.nan
    assert percentiles(values) is None
    draws = iter(values)
    assert intervals(lambda value: {"x": value, "y": np.nan}, draws, 40).keys() == {"x"}
