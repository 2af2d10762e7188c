"""IR-MNIST at 10 % contamination: pixel AUROC and AUPRO of AnoGAN and of the method.

`BLEMISH_IMAGES=../shared/images PYTHONPATH=. python tests/bench/inspect/ir_mnist.py` trains and
judges both on the same puzzles of digits, prints a table and writes
tests/bench/results/inspect_ir_mnist.json; `--rows method` does one, models are kept in outputs.

A puzzle is 308 pixels wide and normal without digit 3; the cell of a 3 is a defect as a whole.
Puzzles are cut, and crops judged and put together again, as photographs are in the study of
surfaces, whose settings, rows and measures these are; a crop of 64 pixels shows five digits or so.
Of the training crops a tenth shows a 3. AnoGAN searches 20 steps from the nearest of 256
candidates, the method none. Scores and maps of both are fused, which is kinder to AnoGAN than its
own.
"""

import os

# Before numpy is loaded: each row has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.importers.ir_mnist import items
from data.item import ImportOptions
from data.sample import Split
from data.store import Store
from tests.bench.data.common import write_results
from tests.bench.resumable import Row, listed
from tests.bench.surfaces.cells import Cell, CellData
from tests.bench.surfaces.crops import GOOD, MIN_DEFECT_PIXELS, Crops, Picture, cut_pictures
from tests.bench.surfaces.detectors import DETECTORS
from tests.bench.surfaces.metrics import ALL, measure
from tests.bench.surfaces.surfaces import score_all
from tests.bench.train.tables import show

COMMAND = "PYTHONPATH=. python tests/bench/inspect/ir_mnist.py"
CONTAMINATION, GOAL = 0.1, 0.95
COUNTS = {"num_train_normal": 100, "num_train_abnormal": 42, "num_validation": 12, "num_test": 24}
"""Puzzles of each split, 81 crops each."""
NUM_CONTAMINATING = 28
"""Puzzles of train-abnormal that contaminate; the others are known."""
OWN: dict[str, Any] = {"schedule.final_kimg": 7, "search.local_contrast": 0}
SETTINGS = {"AnoGAN": OWN | {"search.steps": 20}, "method": OWN}
"""What differs from the study of surfaces, by row."""
LEVELS = ("crop", "image", "pixel_auroc", "aupro")


def puzzles() -> tuple[list[Picture], list[Split | None]]:
    """All puzzles with their splits, those of train-normal first."""
    folder = Store(str(Path(os.environ["BLEMISH_IMAGES"]) / "mnist"))
    found = items(folder, ImportOptions(channels=1, seed=0), **COUNTS)
    pictures = []
    for item in found:
        pixels, mask = item.read()
        assert mask is not None
        height, width = mask.shape
        facts = (item.key, item.kind, item.group, "train")
        pictures.append(Picture(*facts, pixels[:, :, 0], mask, height, width))
    return pictures, [item.split for item in found]


def data_of(pictures: Sequence[Picture], splits: Sequence[Split | None]) -> CellData:
    """What the rows are trained, fitted and tested on."""
    crops = cut_pictures(pictures)
    split = np.array(splits)[crops.picture]
    good = np.array([one.kind == GOOD for one in pictures])[crops.picture]
    shows = crops.num_defect_pixels >= MIN_DEFECT_PIXELS
    first_abnormal = splits.index("train-abnormal")
    contaminating = crops.picture < first_abnormal + NUM_CONTAMINATING
    normal = crops.take(split == "train-normal")
    added = crops.take((split == "train-abnormal") & shows & contaminating)
    added = added.take(slice(round(CONTAMINATION / (1 - CONTAMINATION) * len(normal))))
    validation = crops.take((split == "validation") & (good | shows))
    return CellData(
        normal=Crops.join([normal, added]),
        is_contaminant=np.repeat([False, True], [len(normal), len(added)]),
        known=crops.take((split == "train-abnormal") & shows & ~contaminating),
        validation=validation,
        validation_kinds=np.array([one.kind for one in pictures])[validation.picture],
        test=crops.take(split == "test"),
    )


def run_row(name: str, pictures: Sequence[Picture], data: CellData) -> Row:
    """Train, fit and judge one row."""
    detector = DETECTORS[name](Cell(name, CONTAMINATION, "ir-mnist", 0, "none", SETTINGS[name]))
    started_s = time.perf_counter()
    detector.fit(data)
    fitted_s = time.perf_counter()
    scores, maps = score_all(detector, data.test)
    speed = len(data.test) / (time.perf_counter() - fitted_s)
    found = measure(pictures, data.test, scores, maps)
    row: Row = {"row": name} | {level: _text(found[level][ALL]) for level in LEVELS}
    row |= {"goal_met": (found["pixel_auroc"][ALL][0] or 0.0) >= GOAL}
    row |= {"fit_s": round(fitted_s - started_s), "crops_per_s": round(speed, 1)}
    return row | {"chosen": [detector.told]}


def _text(ends: Sequence[float | None]) -> str:
    return f"{ends[0]} ({ends[1]}-{ends[2]})"


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=listed(str), default=list(SETTINGS))
    options = parser.parse_args()
    if "BLEMISH_IMAGES" not in os.environ:
        raise SystemExit("set BLEMISH_IMAGES to the folder that holds mnist/")
    pictures, splits = puzzles()
    data = data_of(pictures, splits)
    names = ("normal", "is_contaminant", "known", "validation", "test")
    counts = {name: len(getattr(data, name)) for name in names}
    counts["is_contaminant"] = int(data.is_contaminant.sum())
    print(counts, flush=True)
    rows = [run_row(name, pictures, data) for name in options.rows]
    show(f"IR-MNIST, {CONTAMINATION:.0%} contamination, 95 % intervals by puzzle", rows)
    record = {"options": vars(options), "puzzles": COUNTS, "crops": counts, "rows": rows}
    write_results("inspect_ir_mnist", COMMAND, record)


if __name__ == "__main__":
    main()
