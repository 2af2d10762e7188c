"""Thresholds against their definitions, and their promises against simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from gan.thresholds import (
    RULES,
    Thresholds,
    conformal_p_values,
    conformal_threshold,
    escape_threshold,
    fit_thresholds,
)

NUM_TRIALS = 20_000
# Few distinct values, so that ties are the rule.
SCORES = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=40)
RATES = {"false_positive_rate": 0.2, "miss_rate": 0.0}
Draw = Callable[[np.random.Generator, int], np.ndarray]
DRAWS = [
    pytest.param(lambda rng, n: rng.gamma(2.0, size=(NUM_TRIALS, n)), id="continuous"),
    pytest.param(lambda rng, n: rng.poisson(1.5, size=(NUM_TRIALS, n)) * 1.0, id="ties"),
    # Exchangeable, but far from independent: all images of a trial share one offset.
    pytest.param(
        lambda rng, n: rng.normal(size=(NUM_TRIALS, n)) + rng.normal(size=(NUM_TRIALS, 1)) * 9,
        id="shared-offset",
    ),
]


def test_p_value_is_its_definition() -> None:
    normal = [1.0, 2.0, 2.0, 3.0]
    expected = [(1 + sum(n >= s for n in normal)) / 5 for s in (0.0, 2.0, 2.5, 3.0, 9.0)]
    np.testing.assert_allclose(conformal_p_values([0.0, 2.0, 2.5, 3.0, 9.0], normal), expected)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    ("num", "rate"), [(9, 0.1), (9, 0.3), (19, 0.05), (19, 0.1), (40, 0.05), (40, 0.1), (40, 0.3)]
)
def test_false_positive_rate_holds_for_exchangeable_normals(
    draw: Draw, num: int, rate: float
) -> None:
    """P(a new normal is called abnormal) <= rate, over the draw of validation and new image."""
    values = draw(np.random.default_rng(num), num + 1)
    alarms = np.array([new > conformal_threshold(old, rate) for new, *old in values.tolist()])
    expected = np.floor(rate * (num + 1) + 1e-9) / (num + 1)
    margin = 4 * np.sqrt(expected / NUM_TRIALS)
    assert alarms.mean() <= expected + margin
    if len(np.unique(values)) == values.size:
        assert alarms.mean() >= expected - margin, "without ties the bound is reached exactly"


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("num", "rate", "bound"), [(9, 0.0, 1 / 10), (24, 0.1, 2 / 25)])
def test_miss_rate_holds_for_exchangeable_defects(
    draw: Draw, num: int, rate: float, bound: float
) -> None:
    values = draw(np.random.default_rng(num), num + 1)
    missed = np.array([new < escape_threshold(old, rate) for new, *old in values.tolist()])
    margin = 4 * np.sqrt(bound / NUM_TRIALS)
    assert missed.mean() <= bound + margin
    if len(np.unique(values)) == values.size:
        assert missed.mean() >= bound - margin


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_threshold_and_p_value_say_the_same(rate: float) -> None:
    rng = np.random.default_rng(1)
    normal, scores = rng.normal(size=39).round(1), rng.normal(size=500).round(1)
    chosen = fit_thresholds(
        "false_positive_rate", normal, [], false_positive_rate=rate, miss_rate=0.0
    )
    by_p_value = conformal_p_values(scores, normal) <= rate
    assert [text == "abnormal" for text in chosen.decide(scores)] == by_p_value.tolist()
    assert 0 < by_p_value.sum() < len(scores)


@given(SCORES, SCORES)
def test_no_threshold_has_a_better_f1(normal: list[float], abnormal: list[float]) -> None:
    chosen = fit_thresholds("best_f1", normal, abnormal, **RATES)
    scores, truth = np.array(normal + abnormal), [0] * len(normal) + [1] * len(abnormal)
    by_threshold = {t: f1_score(truth, scores >= t) for t in np.unique(scores)}
    best = max(by_threshold.values())
    assert by_threshold[chosen.high] == pytest.approx(best)
    assert chosen.high == min(t for t, f1 in by_threshold.items() if f1 > best - 1e-12)
    assert chosen.low == chosen.high


@given(SCORES, SCORES)
def test_zero_escape_is_the_highest_threshold_that_misses_none(
    normal: list[float], abnormal: list[float]
) -> None:
    chosen = fit_thresholds("zero_escape", normal, abnormal, **RATES)
    assert set(chosen.decide(abnormal)) == {"abnormal"}
    higher = Thresholds(*[np.nextafter(chosen.high, np.inf)] * 2)
    assert "normal" in higher.decide(abnormal)


@given(st.lists(st.floats(0, 9), min_size=4, max_size=40), SCORES, SCORES)
def test_reject_band_decides_where_one_label_alone_fits(
    normal: list[float], abnormal: list[float], scores: list[float]
) -> None:
    chosen = fit_thresholds("reject_band", normal, abnormal, **RATES)
    p_values = conformal_p_values(scores, normal)
    for score, p_value, decision in zip(scores, p_values, chosen.decide(scores), strict=True):
        like_normal, like_defect = p_value > 0.2, score >= min(abnormal)
        if like_normal == like_defect:
            assert decision == "review"
        else:
            assert decision == ("normal" if like_normal else "abnormal")


@pytest.mark.parametrize("rule", RULES)
def test_defects_are_only_needed_where_a_rule_is_about_them(rule: str) -> None:
    if rule == "false_positive_rate":
        assert fit_thresholds(rule, range(9), [], **RATES).high > 7
        return
    with pytest.raises(ValueError, match=f"{rule} needs known.*only the rule false_positive_rate"):
        fit_thresholds(rule, range(9), [], **RATES)


@pytest.mark.parametrize(("num_normal", "rate"), [(18, 0.05), (8, 0.1), (0, 0.5)])
def test_too_few_normals_are_refused(num_normal: int, rate: float) -> None:
    with pytest.raises(ValueError, match=f"needs at least {num_normal + 1} normal.*{num_normal}$"):
        conformal_threshold([0.0] * num_normal, rate)
    assert conformal_threshold([0.0] * (num_normal + 1), rate) == 0.0


def test_too_few_defects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"miss_rate=0\.05 needs at least 19 abnormal.*are 18;"):
        escape_threshold([0.0] * 18, 0.05)
    assert escape_threshold([1.0] * 19, 0.05) == 1.0
