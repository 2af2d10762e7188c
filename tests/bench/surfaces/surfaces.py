"""Magnetic tiles: the method beside what an engineer would otherwise use.

`BLEMISH_IMAGES=../shared/images PYTHONPATH=. python tests/bench/surfaces/surfaces.py` judges each
row on the same crops for each contamination, setting and seed and prints tables. Those of all that
was ever run go to tests/bench/results/surfaces.json.

A cell is one line of tests/bench/results/surfaces_cells.jsonl; cells that stand there are not run
again, so the command may be stopped and goes on where it was. Scores and maps of the test pictures
are kept in outputs/surfaces/judged for page.py. A part: `--rows PCA,"random forest"
--contaminations 0.1 --settings seen,unseen:fray --seeds 0`; `--set path=value` changes a setting of
rows that have any, `--intensity none` leaves the photographs as they are.
"""

import os

# Before numpy is loaded: each cell has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from data.store import Store
from tests.bench.data.common import RESULTS, skip_without_images, write_results
from tests.bench.resumable import Row, listed, load_rows, row_of, run_missing, setting
from tests.bench.surfaces.cells import SETTINGS, Cell, Surfaces
from tests.bench.surfaces.crops import Crops, Intensity
from tests.bench.surfaces.detectors import ANOMALIB, DETECTORS, GANS, Detector, Scored
from tests.bench.surfaces.metrics import LEVELS, MEAN, Judged, judged, measure
from tests.bench.surfaces.pretrained import OUTPUTS
from tests.bench.surfaces.summary import by_kind, show, summary
from tests.bench.train.in_memory import RESULT_VERSION

CELLS = "surfaces_cells.jsonl"
CONTAMINATIONS = (0.0, 0.05, 0.1, 0.2)
SEEDS = (0, 1, 2)
DEFAULT = tuple(name for name in DETECTORS if name != ANOMALIB or "BLEMISH_ANOMALIB" in os.environ)
"""Rows without --rows: that of anomalib only where there is one."""
_CHUNK = 256


@functools.lru_cache(maxsize=1)
def surfaces(intensity: Intensity) -> Surfaces:
    """The photographs, read once."""
    return Surfaces.load(intensity)


def run_cell(cell: Cell) -> Row:
    """Fit and judge one detector; returns the cell with its numbers."""
    study = surfaces(cell.intensity)
    data, detector = study.data(cell), DETECTORS[cell.row](cell)
    started_s = time.perf_counter()
    detector.fit(data)
    fitted_s = time.perf_counter()
    scores, maps = score_all(detector, data.test)
    scored_s = time.perf_counter()
    keep(cell, judged(study.pictures, data.test, scores, maps))
    counts = {
        "num_normal": len(data.normal),
        "num_known": len(data.known),
        "num_validation": len(data.validation),
        "num_test": len(data.test),
    }
    times = {
        "fit_s": round(fitted_s - started_s, 1),
        "crops_per_s": round(len(data.test) / (scored_s - fitted_s), 1),
    }
    found = measure(study.pictures, data.test, scores, maps)
    return asdict(cell) | counts | detector.told | times | found


def score_all(detector: Detector, crops: Crops) -> Scored:
    """Score crops, some at a time."""
    starts = range(0, len(crops), _CHUNK)
    found = [detector.score(crops.take(slice(start, start + _CHUNK))) for start in starts]
    scores, maps = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(maps)


def kept_at(cell: Cell) -> Path:
    """Where scores and maps of a cell's test pictures lie."""
    digest = hashlib.sha256(json.dumps(asdict(cell), sort_keys=True).encode()).hexdigest()[:12]
    return OUTPUTS / "judged" / f"{cell.row.replace(' ', '-')}-{digest}.npz"


def keep(cell: Cell, found: Judged) -> None:
    """Write scores and maps of the test pictures."""
    path = kept_at(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    maps = {one.name: each for one, each in zip(found.pictures, found.maps, strict=True)}
    shown = {name: each.astype(np.float32) for name, each in maps.items()}
    with path.open("wb") as file:
        # numpy's types take the mapping for its other, named argument.
        np.savez(file, scores=found.scores, **shown)  # type: ignore[arg-type]


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """All cells that are asked for."""
    return [
        Cell(
            row,
            contamination,
            setting,
            seed,
            options.intensity,
            dict(options.set) if row in GANS else {},
            RESULT_VERSION if row in GANS else 0,
        )
        for seed in options.seeds
        for row in options.rows
        for contamination in options.contaminations
        for setting in options.settings
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=listed(str), default=list(DEFAULT))
    parser.add_argument("--contaminations", type=listed(float), default=list(CONTAMINATIONS))
    parser.add_argument("--settings", type=listed(str), default=list(SETTINGS))
    parser.add_argument("--seeds", type=listed(int), default=list(SEEDS))
    parser.add_argument("--intensity", choices=("image", "none"), default="image")
    parser.add_argument("--set", type=setting, action="append", default=[])
    options = parser.parse_args(words)
    for name, allowed in (("rows", DETECTORS), ("settings", SETTINGS)):
        if unknown := set(getattr(options, name)) - set(allowed):
            parser.error(f"--{name} has {', '.join(unknown)}; there are {', '.join(allowed)}")
    return options


def _run_all(cells: list[Cell]) -> Iterator[Row]:
    return map(run_cell, cells)


def main() -> None:
    """Run what is missing, print, write."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    options = parse()
    skip_without_images()
    cells, store = cells_of(options), Store(str(RESULTS))
    for row in run_missing(cells, store, CELLS, _run_all):
        numbers = " ".join(f"{level} {row[level][MEAN][0]:.3f}" for level in LEVELS)
        head = f"{row['row']}, {row['contamination']:.0%}, {row['setting']}, seed {row['seed']}"
        print(f"{head}: {numbers} ({row['fit_s']} s, {row['crops_per_s']} crops/s)", flush=True)
    rows = load_rows(store, CELLS)
    asked = [found for cell in cells if (found := row_of(cell, rows))]
    show(summary(asked), by_kind(asked))
    write_results("surfaces", {"rows": summary(rows), "kinds": by_kind(rows)})


if __name__ == "__main__":
    main()
