"""Bootstrap intervals of numbers that depend only on how many things of each sort there are."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]

NUM_REPLICATES = 1000
CONFIDENCE = 0.95


def resample_sorts(
    counts_K: Ints, stratum_K: Ints, rng: np.random.Generator
) -> Iterator[NDArray[Any]]:
    """Endless draws of as many things as there are, each stratum keeping its number.

    Drawing n things with replacement and counting them by sort is one multinomial draw over sorts,
    whose cost does not grow with n.

    Args:
        counts_K: Things of each of K sorts.
        stratum_K: Stratum of each sort.
        rng: Source of the draws.

    Yields:
        Things of each sort, int64 [K].
    """
    present = counts_K > 0
    members = [np.flatnonzero(present & (stratum_K == each)) for each in set(stratum_K[present])]
    while True:
        drawn = np.zeros_like(counts_K)
        for sorts in members:
            counts = counts_K[sorts]
            drawn[sorts] = rng.multinomial(counts.sum(), counts / counts.sum())
        yield drawn


def resample_groups(
    sort_N: Ints, group_N: Ints, stratum_G: Ints, num_sorts: int, rng: np.random.Generator
) -> Iterator[NDArray[Any]]:
    """Like `resample_sorts`, but things of one group are drawn together.

    Args:
        sort_N: Sort of each of N things.
        group_N: Group of each thing.
        stratum_G: Stratum of each group; as many groups of each are drawn as there are.
        num_sorts: K.
        rng: Source of the draws.

    Yields:
        Things of each sort, float64 [K].
    """
    members = [np.flatnonzero(stratum_G == each) for each in np.unique(stratum_G)]
    while True:
        drawn_G = np.zeros(len(stratum_G))
        for groups in members:
            picks = rng.integers(len(groups), size=len(groups))
            drawn_G[groups] = np.bincount(picks, minlength=len(groups))
        yield np.bincount(sort_N, weights=drawn_G[group_N], minlength=num_sorts)


def intervals(
    measure: Callable[[NDArray[Any]], Mapping[str, float]],
    draws: Iterator[NDArray[Any]],
    num_replicates: int = NUM_REPLICATES,
) -> dict[str, Interval]:
    """Percentile intervals (Efron and Tibshirani 1993, chapter 13) of everything measured.

    Args:
        measure: Numbers by name from one draw; NaN where a draw leaves one undefined.
        draws: See above.
        num_replicates: Draws to take.

    Returns:
        The middle 95 % of each number's values; without numbers that most draws leave undefined.
    """
    rows = [measure(next(draws)) for _ in range(num_replicates)]
    found = {name: percentiles(np.array([row[name] for row in rows])) for name in rows[0]}
    return {name: each for name, each in found.items() if each}


def percentiles(values_R: Floats) -> Interval | None:
    """The middle 95 % of a number's replicates; None if most of them are NaN."""
    defined = values_R[np.isfinite(values_R)]
    if 2 * len(defined) <= len(values_R):
        return None
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
