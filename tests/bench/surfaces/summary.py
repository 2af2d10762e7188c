"""Tables of the study: mean over the seeds, and for unseen kinds over the four runs."""

from collections.abc import Iterator, Sequence

import numpy as np

from tests.bench.resumable import Row, row_of
from tests.bench.surfaces.cells import SEEN, Cell
from tests.bench.surfaces.crops import KINDS
from tests.bench.surfaces.metrics import ALL, LEVELS, MEAN
from tests.bench.train import tables


def summary(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Row]:
    """Every level by row and contamination: seen kinds together and their mean, unseen mean."""
    result = []
    for head, found in _groups(cells, rows):
        line = head | {"cells": len(found)}
        for level in LEVELS:
            seen = [row[level] for row in found if row["setting"] == SEEN]
            unseen = [row[level][MEAN] for row in found if row["setting"] != SEEN]
            line[f"{level} seen"] = _mean([each[ALL] for each in seen])
            line[f"{level} seen, mean of kinds"] = _mean([each[MEAN] for each in seen])
            line[f"{level} unseen"] = _mean(unseen)
        result.append(line)
    return result


def by_kind(cells: Sequence[Cell], rows: Sequence[Row], level: str = "crop") -> list[Row]:
    """One level of each kind, seen and unseen, with the mean ends of its interval."""
    result = []
    for head, found in _groups(cells, rows):
        line = dict(head)
        for kind in KINDS:
            for name, setting in (("seen", SEEN), ("unseen", f"unseen:{kind}")):
                told = [row[level][kind] for row in found if row["setting"] == setting]
                ends = [_mean([[each[i]] for each in told]) for i in range(3)]
                line[f"{kind} {name}"] = f"{ends[0]} ({ends[1]} to {ends[2]})" if told else None
        result.append(line)
    return result


def show(levels: Sequence[Row], kinds: Sequence[Row]) -> None:
    """Print both."""
    for level in LEVELS:
        names = [name for name in (levels[0] if levels else {}) if name.startswith(f"{level} ")]
        head = ("row", "contamination", "cells")
        picked = [{name: row[name] for name in (*head, *names)} for row in levels]
        tables.show(level, picked)
    tables.show("crop AUROC by kind, with 95 % intervals by part", kinds)


def _groups(cells: Sequence[Cell], rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    for name, contamination in dict.fromkeys((cell.row, cell.contamination) for cell in cells):
        wanted = [c for c in cells if (c.row, c.contamination) == (name, contamination)]
        found = [row for cell in wanted if (row := row_of(cell, rows))]
        if found:
            yield {"row": name, "contamination": contamination}, found


def _mean(told: Sequence[Sequence[float | None]]) -> float | None:
    values = [each[0] for each in told if each[0] is not None]
    return round(float(np.mean(values)), 3) if values else None
