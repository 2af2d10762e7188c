"""The estimate of the contamination on sets whose contamination is known.

Numbers of normal images are N(0, 1), those of abnormal ones N(separation, 1); the sets are as large
as the demo's.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from gan import contamination
from gan.contamination import (
    COVERAGE,
    MIN_KNOWN,
    Contamination,
    estimate_contamination,
    novelty_bound,
)

SHARES = [0.0, 0.1, 0.2, 0.3, 0.4]
NUM_DRAWS = 60
Numbers = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "_NUM_RESAMPLES", 200)


def _draw(
    seed: int, share: float, *, known: float, hidden: float | None = None, scale: int = 1
) -> tuple[Numbers, Numbers, Numbers]:
    """Training images, validation normals and known abnormal ones.

    `known` and `hidden` are the separations of known abnormal images and of those that contaminate.
    """
    rng = np.random.default_rng(seed)
    num_hidden = rng.binomial(350 * scale, share)
    at = known if hidden is None else hidden
    training = rng.normal(0, 1, 350 * scale), rng.normal(at, 1, num_hidden)
    normal, abnormal = rng.normal(0, 1, 80 * scale), rng.normal(known, 1, 200 * scale)
    return np.concatenate([training[0][num_hidden:], training[1]]), normal, abnormal


def _estimates(share: float, *, known: float, hidden: float | None = None) -> list[Contamination]:
    draws = (_draw(seed, share, known=known, hidden=hidden) for seed in range(NUM_DRAWS))
    return [estimate_contamination(*draw, seed=0) for draw in draws]


def _points(found: list[Contamination]) -> Numbers:
    return np.array([np.nan if one.estimate is None else one.estimate for one in found])


@pytest.mark.parametrize(("separation", "typical_error"), [(4.0, 0.04), (2.0, 0.06), (1.0, 0.12)])
@pytest.mark.parametrize("share", SHARES)
def test_estimate_is_near_and_its_interval_covers(
    share: float, separation: float, typical_error: float
) -> None:
    found = _estimates(share, known=separation)
    errors = _points(found) - share
    assert np.sqrt(np.mean(errors**2)) < typical_error
    # Cut off at zero the estimate can only be too high there.
    assert share == 0.0 or abs(errors.mean()) < typical_error / 2
    covered = np.mean([one.low <= share <= one.high for one in found])
    # Three standard errors of a rate told by so few draws.
    assert covered > COVERAGE - 3 * np.sqrt(COVERAGE * (1 - COVERAGE) / NUM_DRAWS)
    # 3.3 standard deviations where nothing is cut off; a wide enough interval would always cover.
    assert np.mean([one.high - one.low for one in found]) < 4.4 * errors.std()


def test_clean_set_gives_about_zero_where_the_scores_tell_apart() -> None:
    points = _points(_estimates(0.0, known=4.0))
    assert np.quantile(points, 0.9) < 0.01


@pytest.mark.parametrize("share", SHARES)
def test_estimate_tends_to_the_truth(share: float) -> None:
    training, normal, abnormal = _draw(0, 0.0, known=1.5, scale=60)
    num_hidden = round(share * len(training))
    hidden = np.random.default_rng(1).normal(1.5, 1, num_hidden)
    mixed = np.concatenate([training[num_hidden:], hidden])
    found = estimate_contamination(mixed, normal, abnormal, seed=0)
    assert found.estimate == pytest.approx(share, abs=0.02)
    assert found.high - found.low < 0.06


def test_scores_that_do_not_tell_apart_give_no_estimate() -> None:
    found = _estimates(0.2, known=0.0)
    assert np.mean([(one.estimate, one.high) == (None, 1.0) for one in found]) > 0.95


def test_without_known_abnormal_images_only_the_bound_is_told() -> None:
    training, normal, _ = _draw(0, 0.3, known=4.0)
    found = estimate_contamination(training, normal, [], seed=0)
    bound = novelty_bound(training, normal)
    assert found == Contamination(estimate=None, low=bound, high=1.0, at_least=bound)
    assert 0.1 < bound < 0.3


def _draw_parts(seed: int, *, alike: float) -> tuple[list[Numbers], list[Numbers], float]:
    """Ten images of each part, whose numbers have correlation `alike`; the groups; the true c."""
    rng = np.random.default_rng(seed)
    sets, groups = [], []
    wrong = rng.random((35, 10)) < 0.2
    for at in (2.0 * wrong, np.zeros((8, 10)), np.full((20, 10), 2.0)):
        part = rng.normal(0, np.sqrt(alike), (len(at), 1))
        sets.append((at + part + rng.normal(0, np.sqrt(1 - alike), at.shape)).ravel())
        groups.append(np.repeat(np.arange(len(at)), 10))
    return sets, groups, float(wrong.mean())


@pytest.mark.parametrize("num_known", [MIN_KNOWN - 1, MIN_KNOWN])
def test_a_few_known_images_that_are_far_away_are_enough(num_known: int) -> None:
    rng = np.random.default_rng(0)
    training = [*rng.normal(0, 1, 400), *rng.normal(50, 1, 100)]
    found = estimate_contamination(
        training, rng.normal(0, 1, 100), rng.normal(50, 1, num_known), seed=0
    )
    if num_known < MIN_KNOWN:
        assert found.estimate is None
    else:
        assert found.estimate == pytest.approx(0.2, abs=0.08)


def test_images_of_one_part_tell_less_than_as_many_of_different_ones() -> None:
    held, bound = {True: 0, False: 0}, {True: 0, False: 0}
    for seed in range(NUM_DRAWS):
        sets, groups, share = _draw_parts(seed, alike=0.5)
        for by_part in held:
            told = groups if by_part else None
            found = estimate_contamination(*sets, groups=told, seed=0)
            held[by_part] += found.low <= share <= found.high
            bound[by_part] += found.at_least <= share
    # With eight normal parts a bootstrap is still a little narrow.
    assert held[True] / NUM_DRAWS > 0.75 > held[False] / NUM_DRAWS
    assert bound[True] / NUM_DRAWS > 0.9 > bound[False] / NUM_DRAWS


def test_parts_of_one_image_are_images() -> None:
    sets = _draw(4, 0.2, known=2.0)
    names = [[f"part {number}" for number in range(len(each))] for each in sets]
    assert estimate_contamination(*sets, groups=names, seed=0) == estimate_contamination(
        *sets, seed=0
    )


def test_defects_that_score_below_normal_images_do_not_stand_apart() -> None:
    training, normal, abnormal = _draw(0, 0.2, known=-2.0)
    assert estimate_contamination(training, normal, abnormal, seed=0).estimate is None


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("hidden", [1.0, 4.0])
def test_lower_bound_holds_for_kinds_nobody_knows(share: float, hidden: float) -> None:
    bounds = []
    for seed in range(300):
        training, normal, _ = _draw(seed, share, known=2.0, hidden=hidden)
        bounds.append(novelty_bound(training, normal))
    assert np.mean(np.array(bounds) > share) < 0.08
    if share == 0.4 and hidden == 4.0:
        assert np.mean(bounds) > 0.25, "a bound of nothing would hold as well"


def test_only_the_order_of_the_numbers_matters() -> None:
    sets = _draw(3, 0.2, known=2.0)
    stretched = [np.exp(numbers) for numbers in sets]
    found, again = (estimate_contamination(*each, seed=0) for each in (sets, stretched))
    # Edges of cells lie between two numbers, at other places after stretching.
    assert again.estimate == pytest.approx(found.estimate, abs=0.01)


def test_same_seed_same_interval_whatever_the_order_of_the_images() -> None:
    training, normal, abnormal = _draw(4, 0.2, known=2.0)
    found = estimate_contamination(training, normal, abnormal, seed=7)
    assert estimate_contamination(training[::-1], normal, abnormal, seed=7) == found
    assert estimate_contamination(training, normal, abnormal, seed=8).low != found.low


def test_equal_numbers_everywhere_give_no_estimate() -> None:
    found = estimate_contamination([1.0] * 50, [1.0] * 20, [1.0] * 20, seed=0)
    assert found.estimate is None


@pytest.mark.parametrize(("training", "normal"), [([], [0.1, 0.2]), ([0.1], [0.2])])
def test_too_few_images_are_an_error(training: list[float], normal: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 1 and 2 are needed"):
        estimate_contamination(training, normal, [0.5, 0.6], seed=0)
