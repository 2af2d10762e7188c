"""IR-MNIST at 10 % contamination: pixel AUROC and AUPRO of AnoGAN and of the method.

`BLEMISH_IMAGES=../shared/images PYTHONPATH=. python tests/bench/inspect/ir_mnist.py` trains both on
the same puzzles of 11x11 digits, prints a table and writes
tests/bench/results/inspect_ir_mnist.json. `--rows method` does one row, `--set search.steps=0`
changes a setting of all; models are kept in outputs/ir_mnist.

A puzzle is 308 pixels wide and normal without digit 3; the cell of a 3 is a defect as a whole. The
demo's settings on tiles of 32 pixels that overlap by 4, with a black frame of 2 pixels around the
puzzle: so each tile has one cell in its middle. Of the training tiles a tenth shows a 3. All is
done by what `pack`, `train` and `inspect` call, in one process; a puzzle's map is put together from
those of its tiles.
"""

import os

# Before numpy is loaded: one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.assembly import assemble_images
from cluster.calibration import maps_of
from cluster.config import Config, load_config
from cluster.engine import Engine
from cluster.evaluate import evaluate_pixels, with_interval
from cluster.inspector import count_pixels
from cluster.model_store import Model
from data.importers.ir_mnist import items
from data.item import ImportOptions, Item
from data.preparation import Preparation
from data.sample import Image8, Label, Sample, Tile
from data.store import Store
from data.tiles import cut, grid, tile_labels
from gan.fusion import fit_fusion
from gan.objective import weights_for_contamination
from tests.bench.data.common import ROOT, skip_without_images, write_results
from tests.bench.resumable import Row, listed, setting
from tests.bench.surfaces.metrics import ALL, aurocs
from tests.bench.train.in_memory import TrainingImages, trained_model, trained_with
from tests.bench.train.tables import show

CONTAMINATION, GOAL = 0.1, 0.95
SIDE, OVERLAP, MIN_DEFECT_PIXELS = 32, 4, 392
"""Tiles in pixels; an abnormal one shows half a cell of a 3 at least."""
COUNTS: dict[str, Any] = {
    "num_train_normal": 100,
    "num_train_abnormal": 240,
    "num_validation": 12,
    "num_test": 24,
}
"""Puzzles of each split, 121 tiles each; an abnormal one shows a 3 in six or seven."""
FRAME = ((2, 2), (2, 2))
"""Pixels put around a puzzle, which make a tile's middle a cell's."""
NUM_KNOWN = 30
"""Puzzles of train-abnormal that are labelled; the others contaminate."""
ANOGAN: dict[str, Any] = {"objective.gamma": 1.0, "objective.alpha": 0.0}
FUSED: dict[str, Any] = {"search.steps": 0, "search.logit_in_map": True}
ROWS: dict[str, dict[str, Any]] = {
    "AnoGAN by L": ANOGAN | {"search.statistic": "mean"},
    "AnoGAN": ANOGAN | FUSED,
    "method by differences": FUSED | {"search.logit_in_map": False},
    "method": FUSED,
}
"""What differs from the demo's settings, by row; the demo's search takes 20 steps."""

Tiles = dict[str, list[Sample]]
"""By split; contaminants are among train-normal."""


def tiles() -> Tiles:
    """All tiles that training takes, that choose, and that are tested."""
    folder = Store(str(Path(os.environ["BLEMISH_IMAGES"]) / "mnist"))
    found: Tiles = {}
    contaminants: list[Sample] = []
    num_abnormal = 0
    for item in items(folder, ImportOptions(channels=1, seed=0), **COUNTS):
        split = str(item.split)
        num_abnormal += split == "train-abnormal"
        contaminates = split == "train-abnormal" and num_abnormal > NUM_KNOWN
        (contaminants if contaminates else found.setdefault(split, [])).extend(_cut(item))
    normal = found["train-normal"]
    count = round(CONTAMINATION / (1 - CONTAMINATION) * len(normal))
    assert len(contaminants) >= count, "more puzzles must contaminate"
    found["train-normal"] = normal + contaminants[:count]
    return found


def _cut(item: Item) -> Iterator[Sample]:
    """The tiles of a puzzle, as packing cuts them."""
    pixels, mask = item.read()
    assert mask is not None
    assert item.split is not None
    pixels, mask = np.pad(pixels, (*FRAME, (0, 0))), np.pad(mask, FRAME)
    height, width = mask.shape
    label: Label = "abnormal" if mask.any() else "normal"
    offsets = grid(height, width, SIDE, OVERLAP)
    labels = tile_labels(
        offsets,
        SIDE,
        mask,
        label,
        item.split,
        is_contaminant=False,
        min_defect_pixels=MIN_DEFECT_PIXELS,
    )
    for place, own in labels.items():
        yield Sample(
            f"{item.key}-{place.y}-{place.x}",
            cut(pixels, *place, SIDE),
            own,
            item.source,
            item.group,
            item.kind,
            item.split,
            cut(mask, *place, SIDE),
            Tile(item.key, *place, height, width, label),
        )


def _stacked(samples: Sequence[Sample]) -> Image8:
    return np.stack([sample.image for sample in samples])


def model_of(config: Config, found: Tiles) -> Model:
    """The model of a configuration; trained first where there is none."""
    told = json.dumps(trained_with(config), sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:12]
    images = TrainingImages(_stacked(found["train-normal"]), _stacked(found["train-abnormal"]))
    preparation = Preparation(resolution=SIDE, channels=1, mode="tiles", tile_overlap=OVERLAP)
    folder = Store(str(ROOT / "outputs")).child("ir_mnist", digest)
    return trained_model(folder, config, images, preparation)


def engine_of(config: Config, model: Model, validation: Sequence[Sample]) -> tuple[Engine, Row]:
    """What scores as an inspection does, fitted on validation; and what was chosen there."""
    engine = Engine(model, config.search, seed=config.run.seed)
    if config.search.statistic != "fused":
        return engine, {}
    scored = engine.score(list(validation))
    normal, abnormal = (
        [np.array(one.row["terms"]) for one in scored if one.sample.label == label]
        for label in ("normal", "abnormal")
    )
    maps, alpha = maps_of(model.card, config.search), model.card.objective.alpha
    fusion = fit_fusion(maps, normal, abnormal, alpha=alpha)
    weights = zip(fusion.names, fusion.weight, strict=True)
    chosen = {name: round(weight, 4) for name, weight in weights if weight}
    fitted = Engine(model, config.search, seed=config.run.seed, fusion=fusion)
    return fitted, {"chosen": [chosen]}


def run_row(config: Config, found: Tiles) -> Row:
    """Train and judge one row."""
    started_s = time.process_time()
    model = model_of(config, found)
    trained_s = time.process_time()
    engine, told = engine_of(config, model, found["validation"])
    fitted_s = time.process_time()
    scored = engine.score(found["test"])
    searched_s = time.process_time() - fitted_s
    known = [one for one in scored if one.sample.label != "unlabelled"]
    scores = np.array([one.row["score"] for one in known])
    labels = np.array(["good" if one.sample.label == "normal" else "3" for one in known])
    groups = np.array([one.sample.group for one in known])
    whole, failed = assemble_images(scored, OVERLAP)
    assert not failed
    scale = float(np.median([one.row["peak"] for one in whole]))
    pixels = evaluate_pixels(count_pixels(whole, scale))
    by_tile, low, high = aurocs(scores, labels, groups)[ALL]
    row: Row = {"tile_auroc": with_interval(by_tile, [low or 0.0, high or 0.0])}
    for metric in ("pixel_auroc", "aupro"):
        row[metric] = with_interval(pixels[metric], pixels["intervals"].get(metric))
    row |= {"goal_met": pixels["pixel_auroc"] >= GOAL}
    row |= {"train_s": round(trained_s - started_s)}
    return row | {"tiles_per_cpu_s": round(len(scored) / searched_s, 1)} | told


def config_of(name: str, chosen: dict[str, Any]) -> Config:
    """The demo's settings, with gamma and alpha by the rule or those of AnoGAN."""
    gamma, alpha = weights_for_contamination(CONTAMINATION)
    weights = {"objective.gamma": gamma, "objective.alpha": alpha}
    return load_config(str(ROOT / "cluster/demo.yaml"), weights | ROWS[name] | chosen)


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=listed(str), default=list(ROWS))
    parser.add_argument("--set", type=setting, action="append", default=[])
    options = parser.parse_args()
    skip_without_images()
    found = tiles()
    counts = {split: len(samples) for split, samples in found.items()}
    print(counts, flush=True)
    rows = []
    for name in options.rows:
        rows.append({"row": name} | run_row(config_of(name, dict(options.set)), found))
        print(json.dumps(rows[-1]), flush=True)
    show(f"IR-MNIST, {CONTAMINATION:.0%} contamination, 95 % intervals by puzzle", rows)
    record = {"options": vars(options), "puzzles": COUNTS, "tiles": counts, "rows": rows}
    write_results("inspect_ir_mnist", record)


if __name__ == "__main__":
    main()
