"""Fair timing: candidates take turns, and only ratios count."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
Taken = dict[str, list[float]]
"""Seconds of each candidate, one number a turn."""


def in_turns(functions: Mapping[str, Callable[[], object]], repeats: int) -> Taken:
    """Seconds of each call; the functions take turns, and the first turn is not counted.

    A function may return the seconds itself, as a float.
    """
    taken: Taken = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            started_s = time.perf_counter()
            told = function()
            spent_s = time.perf_counter() - started_s
            if turn:
                taken[name].append(told if isinstance(told, float) else spent_s)
    return taken


def ratio(taken: Taken, name: str, base: str) -> float:
    """Median over the turns of how many times as fast as `base` something is."""
    pairs = zip(taken[base], taken[name], strict=True)
    return statistics.median(one / other for one, other in pairs)


def rate(seconds: list[float], amount: float = 1.0) -> float:
    """Amount per second, by the median."""
    return round(amount / statistics.median(seconds), 1)


def against_bar(value: float, bar: float) -> Row:
    """How a ratio compares with what it should be at least."""
    return {"ratio": round(value, 2), "bar": bar, "met": bool(value >= bar)}
