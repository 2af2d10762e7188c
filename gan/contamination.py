"""How large a fraction c of the training images is abnormal, told from one number an image.

The numbers of the training images are drawn from the mixture F_t = (1 - c) F_n + c F_a, those of
validation normals from F_n, those of known abnormal images from F_a. Only their order matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[np.float64]
Counts = NDArray[np.int64]
Float = NDArray[np.float64]

COVERAGE = 0.9
"""Chance that the interval holds the true contamination."""

_NUM_CELLS = 64
_NUM_RESAMPLES = 1000
# Squared distance of F_a from F_n in multiples of what chance alone gives. In sets as large as the
# demo's, equal ones exceed it twice in a thousand.
_MIN_SEPARATION = 6.0
# The lower bound looks at training images that score as this share of the normal ones does, and
# takes their ratio this many of its standard errors higher: it is wrong about once in twenty sets.
_NORMAL_SHARE = 0.9
_BOUND_ERRORS = 2.0


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """What is known of the fraction c of abnormal training images.

    Attributes:
        estimate: c, if the known abnormal images are like those that contaminate; None where there
            are none, or their numbers do not stand apart from those of normal images.
        low: lower end of the interval that holds c with chance `COVERAGE`.
        high: upper end of it, 1 where there is no estimate.
        at_least: lower bound of c whatever kind of image contaminates, near 0 for small sets.
    """

    estimate: float | None
    low: float
    high: float
    at_least: float


def estimate_contamination(
    training: Numbers, normal: Numbers, abnormal: Numbers, *, seed: int
) -> Contamination:
    """Estimate c by minimum distance, with an interval by resampling images of all three sets.

    Args:
        training: Numbers of the training images called normal, higher for more abnormal.
        normal: Numbers of at least two validation normals.
        abnormal: Numbers of known abnormal images; with fewer than two only the bound is told.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there are no training images or fewer than two validation normals.
    """
    if not len(training) or len(normal) < 2:
        raise ValueError(
            f"{len(training)} training images and {len(normal)} validation normals: at least 1 and "
            "2 are needed to estimate the contamination"
        )
    at_least = novelty_bound(training, normal)
    nothing = Contamination(estimate=None, low=at_least, high=1.0, at_least=at_least)
    if len(abnormal) < 2:
        return nothing
    counts = _cell_counts(training, normal, abnormal)
    estimate, apart = _minimum_distance(*counts)
    if not apart:
        return nothing
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(num.sum(), num / num.sum(), size=_NUM_RESAMPLES) for num in counts]
    tail = (1.0 - COVERAGE) / 2
    resampled, _ = _minimum_distance(*drawn)
    low, high = np.quantile(resampled, [tail, 1.0 - tail]).clip(0.0, 1.0)
    return Contamination(
        estimate=float(estimate.clip(0.0, 1.0)),
        low=float(low),
        high=float(high),
        at_least=at_least,
    )


def novelty_bound(training: Numbers, normal: Numbers) -> float:
    """A lower bound of c that needs no abnormal images.

    Of the training images at most F_t(t) / F_n(t) are normal, wherever t lies. Blanchard et al.
    2010 (section 4) take the smallest such ratio, with a confidence term that must hold for all t
    at once; on some dozens of normals nothing is left of it. One fixed t needs only its own.

    Args:
        training: Numbers of the training images.
        normal: Numbers of validation normals.
    """
    t = np.quantile(np.asarray(normal), _NORMAL_SHARE, method="lower")
    # Half a count more, so that an empty tail is not taken for certain.
    F_t, F_n = ((np.sum(np.asarray(x) <= t) + 0.5) / (len(x) + 1.0) for x in (training, normal))
    error = np.sqrt((1 - F_t) / (F_t * len(training)) + (1 - F_n) / (F_n * len(normal)))
    return float(max(0.0, 1.0 - F_t / F_n * np.exp(_BOUND_ERRORS * error)))


def _cell_counts(*sets: Numbers) -> list[Counts]:
    """Numbers of each set in cells that share out all sets evenly, each set weighing the same."""
    shares = np.linspace(0.0, 1.0, _NUM_CELLS + 1)
    pooled = np.concatenate([np.quantile(np.asarray(x), shares) for x in sets])
    edges = np.unique(np.quantile(pooled, shares[1:-1]))
    places = (np.searchsorted(edges, np.asarray(x)) for x in sets)
    return [np.bincount(place, minlength=len(edges) + 1) for place in places]


def _minimum_distance(
    training: Counts, normal: Counts, abnormal: Counts
) -> tuple[Float, NDArray[np.bool_]]:
    """The c at which (1 - c) F_n + c F_a comes closest to F_t in weighted least squares.

    c = sum w (F_t - F_n)(F_a - F_n) / sum w (F_a - F_n)^2 over cells (the least-squares form, by
    Macdonald 1971, of Choi & Bulgren 1968). The weight w is one over the variance of F_t - F_n in
    a cell: where few normals score so high, little noise stands against the same difference.

    Args:
        training: Integer [..., cells], as the others.
        normal: Counts of validation normals.
        abnormal: Counts of known abnormal images.

    Returns:
        c, float [...], not yet cut to [0, 1]; and whether F_a stands apart from F_n at all.
    """
    F_t, F_n, F_a = map(_cumulative, (training, normal, abnormal))
    var_t, var_n, var_a = (
        F * (1 - F) / x.sum(-1, keepdims=True)
        for F, x in ((F_t, training), (F_n, normal), (F_a, abnormal))
    )
    weight = 1.0 / (var_t + var_n)
    above = (weight * (F_t - F_n) * (F_a - F_n)).sum(-1)
    below = (weight * (F_a - F_n) ** 2).sum(-1)
    chance = (weight * (var_n + var_a)).sum(-1)
    return above / np.maximum(below, chance), below > _MIN_SEPARATION * chance


def _cumulative(counts: Counts) -> Float:
    """Distribution function at the upper end of each cell but the last, where it is one.

    Half a count more, so that an empty tail is not taken for certain.
    """
    share: Float = (np.cumsum(counts, -1)[..., :-1] + 0.5) / (counts.sum(-1, keepdims=True) + 1.0)
    return share
