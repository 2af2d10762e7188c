"""How large a fraction c of the training images is abnormal, told from one number an image.

The numbers of the training images are drawn from the mixture F_t = (1 - c) F_n + c F_a, those of
validation normals from F_n, those of known abnormal images from F_a. Only their order matters.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan.bootstrap import resample_groups

Numbers = Sequence[float] | NDArray[np.float64]
Names = Sequence[Hashable] | NDArray[Any]
Counts = NDArray[Any]
Ints = NDArray[np.int64]
Float = NDArray[np.float64]

COVERAGE = 0.9
"""Chance that the interval holds the true contamination."""

MIN_KNOWN = 6
"""Known abnormal images from which on there may be an estimate: of fewer the distribution function
is so uncertain that none could stand apart from that of normal images."""

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
            are fewer than `MIN_KNOWN`, or their numbers do not stand apart from those of normal
            images.
        low: lower end of the interval that holds c with chance `COVERAGE`.
        high: upper end of it, 1 where there is no estimate.
        at_least: lower bound of c whatever kind of image contaminates, near 0 for small sets.
    """

    estimate: float | None
    low: float
    high: float
    at_least: float


def estimate_contamination(
    training: Numbers,
    normal: Numbers,
    abnormal: Numbers,
    *,
    groups: Sequence[Names] | None = None,
    seed: int,
) -> Contamination:
    """Estimate c by minimum distance, with an interval by resampling the parts of all three sets.

    Args:
        training: Numbers of the training images called normal, higher for more abnormal.
        normal: Numbers of at least two validation normals.
        abnormal: Numbers of known abnormal images; below `MIN_KNOWN` only the bound is told.
        groups: The part that each image of the three sets shows. Images of one part are alike and
            tell less than as many of different ones. None: each image shows its own.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there are no training images or fewer than two validation normals.
    """
    if not len(training) or len(normal) < 2:
        raise ValueError(
            f"{len(training)} training images and {len(normal)} validation normals: at least 1 and "
            "2 are needed to estimate the contamination"
        )
    sets = training, normal, abnormal
    parts = [_numbered(names) for names in groups or [range(len(x)) for x in sets]]
    at_least = novelty_bound(training, normal, groups=parts[:2])
    nothing = Contamination(estimate=None, low=at_least, high=1.0, at_least=at_least)
    if len(abnormal) < MIN_KNOWN:
        return nothing
    places, num_cells = _cells(*sets)
    counts = (np.bincount(place, minlength=num_cells) for place in places)
    estimate, apart = _minimum_distance(*counts)
    if not apart:
        return nothing
    rng = np.random.default_rng(seed)
    drawn = [_resampled(*each, num_cells, rng) for each in zip(places, parts, strict=True)]
    tail = (1.0 - COVERAGE) / 2
    resampled, _ = _minimum_distance(*drawn)
    low, high = np.quantile(resampled, [tail, 1.0 - tail]).clip(0.0, 1.0)
    return Contamination(
        estimate=float(estimate.clip(0.0, 1.0)),
        low=float(low),
        high=float(high),
        at_least=at_least,
    )


def novelty_bound(
    training: Numbers, normal: Numbers, *, groups: Sequence[Names] | None = None
) -> float:
    """A lower bound of c that needs no abnormal images.

    Of the training images at most F_t(t) / F_n(t) are normal, wherever t lies. Blanchard et al.
    2010 (section 4) take the smallest such ratio, with a confidence term that must hold for all t
    at once; on some dozens of normals nothing is left of it. One fixed t needs only its own.

    Args:
        training: Numbers of the training images.
        normal: Numbers of validation normals.
        groups: The part that each image of both sets shows; None: each its own.
    """
    t = np.quantile(np.asarray(normal), _NORMAL_SHARE, method="lower")
    sets = training, normal
    variance, F = 0.0, []
    for x, names in zip(sets, groups or [range(len(x)) for x in sets], strict=True):
        below = np.asarray(x) <= t
        # Half a count more, so that an empty tail is not taken for certain.
        F.append((below.sum() + 0.5) / (len(below) + 1.0))
        alone = (1 - F[-1]) / (F[-1] * len(below))
        variance += alone * _design_effect(below, _numbered(names))
    F_t, F_n = F
    return float(max(0.0, 1.0 - F_t / F_n * np.exp(_BOUND_ERRORS * np.sqrt(variance))))


def _design_effect(below_N: NDArray[np.bool_], part_N: Ints) -> float:
    """How many times as large the variance of a share is because images of a part are alike.

    The design effect of Kish 1965 ("Survey Sampling"): the variance over parts by that of as many
    independent images; at least 1, and the size of a part where the share is 0 or 1 and tells
    nothing.
    """
    num, num_parts, share = len(part_N), int(part_N.max()) + 1, below_N.mean()
    if num_parts == num:
        return 1.0
    if num_parts == 1 or share in (0, 1):
        return num / num_parts
    deviation = np.bincount(part_N, weights=below_N - share)
    between = np.sum(deviation**2) * num_parts / (num_parts - 1)
    return float(max(1.0, between / (num * share * (1 - share))))


def _numbered(names: Names) -> Ints:
    """Parts as numbers from 0 on."""
    return np.unique(np.asarray(names), return_inverse=True)[1].astype(np.int64)


def _resampled(place_N: Ints, part_N: Ints, num_cells: int, rng: np.random.Generator) -> Counts:
    """Images in each cell, [resamples, cells], where as many parts are drawn as there are."""
    if len(np.unique(part_N)) == len(part_N):
        counts = np.bincount(place_N, minlength=num_cells)
        return rng.multinomial(counts.sum(), counts / counts.sum(), size=_NUM_RESAMPLES)
    one_stratum = np.zeros(int(part_N.max()) + 1, dtype=np.int64)
    draws = resample_groups(place_N, part_N, one_stratum, num_cells, rng)
    return np.stack([next(draws) for _ in range(_NUM_RESAMPLES)])


def _cells(*sets: Numbers) -> tuple[list[Ints], int]:
    """The cell of each number, where cells share out all sets evenly; and how many cells there are.

    Each set weighs the same.
    """
    shares = np.linspace(0.0, 1.0, _NUM_CELLS + 1)
    pooled = np.concatenate([np.quantile(np.asarray(x), shares) for x in sets])
    edges = np.unique(np.quantile(pooled, shares[1:-1]))
    return [np.searchsorted(edges, np.asarray(x)) for x in sets], len(edges) + 1


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
        c, float [...], not yet cut to [0, 1]; and whether F_a stands apart from F_n, and above it.
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
    higher = (weight * (F_n - F_a)).sum(-1) > 0
    return above / np.maximum(below, chance), higher & (below > _MIN_SEPARATION * chance)


def _cumulative(counts: Counts) -> Float:
    """Distribution function at the upper end of each cell but the last, where it is one.

    Half a count more, so that an empty tail is not taken for certain.
    """
    share: Float = (np.cumsum(counts, -1)[..., :-1] + 0.5) / (counts.sum(-1, keepdims=True) + 1.0)
    return share
