"""Tables of the study: mean over the seeds, and for unseen kinds over the four runs."""

from collections.abc import Sequence

import numpy as np

from tests.bench.resumable import Row, grouped
from tests.bench.surfaces.cells import SEEN
from tests.bench.surfaces.crops import KINDS
from tests.bench.surfaces.metrics import ALL, LEVELS, MEAN
from tests.bench.train import tables

_HEAD = ("row", "contamination", "intensity", "settings", "version")
_UNSEEN = {kind: f"unseen:{kind}" for kind in KINDS}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Every level by row and contamination: seen kinds together, their mean, the mean of unseen."""
    result = []
    for head, found in grouped(rows, _HEAD):
        seen = [row for row in found if row["setting"] == SEEN]
        unseen = [row for row in found if row["setting"] != SEEN]
        for kinds, chosen, name in (
            ("seen, together", seen, ALL),
            ("seen, mean", seen, MEAN),
            ("unseen, mean", unseen, MEAN),
        ):
            values = {level: _mean([row[level][name][0] for row in chosen]) for level in LEVELS}
            result.append(head | {"kinds": kinds, "cells": len(chosen)} | values)
    return result


def by_kind(rows: Sequence[Row]) -> list[Row]:
    """Every level of each kind, seen and unseen, with the mean ends of its interval."""
    result = []
    for head, found in grouped(rows, _HEAD):
        for name, settings in (("seen", dict.fromkeys(KINDS, SEEN)), ("unseen", _UNSEEN)):
            for level in LEVELS:
                line = head | {"level": level, "kinds": name}
                for kind in KINDS:
                    told = [row[level][kind] for row in found if row["setting"] == settings[kind]]
                    line[kind] = [_mean([each[i] for each in told]) for i in range(3)]
                result.append(line)
    return result


def show(levels: Sequence[Row], kinds: Sequence[Row]) -> None:
    """Print both, of the kinds the crops only; the rest is in the JSON file."""
    tables.show("AUROC of crops, images and pixels, and AUPRO", levels)
    crops = [row | {kind: _text(row[kind]) for kind in KINDS} for row in kinds]
    tables.show(
        "AUROC of crops by kind, 95 % intervals by part",
        [row for row in crops if row["level"] == "crop"],
    )


def _text(ends: Sequence[float | None]) -> str:
    return "-" if ends[0] is None else f"{ends[0]} ({ends[1]}-{ends[2]})"


def _mean(told: Sequence[float | None]) -> float | None:
    values = [each for each in told if each is not None]
    return round(float(np.mean(values)), 3) if values else None
