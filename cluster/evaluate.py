"""How well the scores of an inspection agree with the labels that came with the images."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from cluster.config import Config
from cluster.errors import UserError
from cluster.image_metrics import Known, auroc_by_kind, image_metrics
from cluster.inspection_files import (
    METRICS,
    finished_units,
    inspection_folder,
    inspection_store,
    pixels_path,
    read_failed,
    read_manifest,
    read_scores,
)
from cluster.pixel_metrics import PixelCounts, pixel_metrics
from cluster.tracking import log_results
from data.dataset import INDEX_NAME, load_index
from data.store import Store
from gan.bootstrap import Interval

COLUMNS = ("label", "kind", "group", "score", "decision")
"""Columns of the scores that are read."""

EXPLANATIONS = {
    "auroc": "chance that an abnormal image scores above a normal one",
    "auroc_seen": "the same, for kinds of anomaly known in training",
    "auroc_unseen": "the same, for kinds nobody labelled for training",
    "average_precision": "precision averaged over recall",
    "fpr_at_95_recall": "share of normal images that must be flagged to flag 95 % of anomalies",
    "pixel_auroc": "chance that a defect pixel of the maps is stronger than a normal pixel",
    "aupro": "share of each defect region that the maps find, averaged up to 30 % false pixels",
    "best_f1": "F1 at the threshold that gave the best F1 on validation images",
    "f1": "F1 of the images decided abnormal",
    "precision": "share of true anomalies among images decided abnormal",
    "recall": "share of anomalies that were decided abnormal",
    "false_positive_rate": "share of normal images that were decided abnormal",
    "escape_rate": "share of anomalies that were decided normal",
    "review_rate": "share of labelled images left for review",
    "num_normal": "normal images",
    "num_abnormal": "abnormal images",
    "num_pixel_images": "images in pixel_auroc and aupro: normal, and abnormal with a mask",
    "num_without_mask": "abnormal images not in them, because no mask shows the defect",
    "pixel_resolution": "most that either can be off, because map values are counted in bins",
    "num_failed": "inputs that could not be scored, in no other number here",
}
"""What each number of metrics.json says, in the order in which people read them."""


def evaluate_inspection(config: Config) -> int:
    """Evaluate a finished inspection and print the numbers; the command `evaluate`."""
    _print(evaluate_run(config))
    print(f"metrics: {inspection_store(config).url(METRICS)}")
    return 0


def evaluate_run(config: Config) -> dict[str, Any]:
    """Evaluate a finished inspection and write its metrics.json.

    Kinds known in training are those of the train-abnormal split that the run was trained on; of
    a model that came without it, those of data.uri.

    Returns:
        The numbers of `evaluate` and of `evaluate_pixels`, and `num_failed`.

    Raises:
        UserError: If the inspection has not finished, or lacks normal or abnormal images.
    """
    out = inspection_store(config)
    thresholds = (read_manifest(out)["calibration"] or {}).get("thresholds", {})
    trained_on = Store(config.run.dir)
    if not trained_on.exists(INDEX_NAME):
        trained_on = Store(config.data.uri)
    seen_kinds = load_index(trained_on).kinds.get("train-abnormal", {})
    try:
        metrics = evaluate(
            read_scores(out, COLUMNS), seen_kinds, thresholds.get("best_f1", {}).get("high")
        )
    except UserError as error:
        raise UserError(f"{out.uri}: {error}") from None
    of_pixels = evaluate_pixels(read_pixels(out))
    metrics["intervals"] |= of_pixels.pop("intervals")
    metrics |= of_pixels | {"num_failed": len(read_failed(out))}
    out.write_bytes(METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
    log_results(
        config, {f"{inspection_folder(config)}/{name}": value for name, value in _numbers(metrics)}
    )
    return metrics


def evaluate(
    table: pd.DataFrame, seen_kinds: Iterable[str], f1_threshold: float | None, *, seed: int = 0
) -> dict[str, Any]:
    """Compare scores and decisions with labels; images without a label are left out.

    Args:
        table: Scores, as `read_scores` gives them, with the columns `COLUMNS`.
        seen_kinds: Kinds of anomaly that training knew.
        f1_threshold: Lowest score called abnormal at the best F1 on validation images, if known.
        seed: Seed of the intervals.

    Returns:
        The numbers of `EXPLANATIONS` except those of pixels and `num_failed`; `intervals`, 95 %
        bootstrap intervals [low, high] by name; and `auroc_by_kind`: the AUROC of the abnormal
        images of each kind against all normal ones. None stands where nothing can be said:
        no such kinds, no decisions, or (precision) nothing decided abnormal.

    Raises:
        UserError: If there are no normal or no abnormal images.
    """
    known = Known.from_table(table[table["label"] != "unlabelled"], seen_kinds, f1_threshold)
    num_abnormal = int(known.abnormal.sum())
    num_normal = len(known.abnormal) - num_abnormal
    if not num_abnormal or not num_normal:
        raise UserError(
            f"labels are normal={num_normal}, abnormal={num_abnormal}, unlabelled="
            f"{len(table) - len(known.abnormal)}; at least one normal and one abnormal image are "
            "needed"
        )
    metrics, intervals = image_metrics(known, seed)
    return _defined(metrics) | {
        "num_normal": num_normal,
        "num_abnormal": num_abnormal,
        "intervals": _listed(intervals),
        "auroc_by_kind": auroc_by_kind(known),
    }


def read_pixels(out: Store) -> PixelCounts:
    """Counts of map values of all finished units, in the memory that one unit takes.

    Raises:
        UserError: If a file is damaged.
    """
    counts, present = PixelCounts(), set(out.list("pixels/", ".npz"))
    for path in map(pixels_path, finished_units(out)):
        if path not in present:
            continue
        try:
            counts.add_bytes(out.read_bytes(path))
        except ValueError as error:
            raise UserError(f"{out.url(path)} is damaged ({error}); inspect again") from None
    return counts


def evaluate_pixels(counts: PixelCounts, *, seed: int = 0) -> dict[str, Any]:
    """Compare maps with masks.

    Returns:
        The numbers of `EXPLANATIONS` that are about pixels, and their `intervals`; None stands
        where no map was compared with a mask.
    """
    metrics, intervals = pixel_metrics(counts, seed)
    return _defined(metrics) | {
        "num_pixel_images": counts.num_images,
        "num_without_mask": counts.num_without_mask,
        "intervals": _listed(intervals),
    }


def with_interval(value: float | None, interval: list[float] | None) -> str:
    """A number as people read it: `0.912 (0.887–0.934)`."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" + (f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else "")


def _numbers(metrics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """All that is one number, the ends of intervals as `<name>_low` and `<name>_high`."""
    for name, value in metrics.items():
        if isinstance(value, int | float):
            yield name, float(value)
    for name, (low, high) in metrics["intervals"].items():
        yield f"{name}_low", low
        yield f"{name}_high", high


def _defined(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in metrics.items()}


def _listed(intervals: dict[str, Interval]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in intervals.items()}


def _print(metrics: dict[str, Any]) -> None:
    table = Table("metric", "value (95 % interval)", "what it says")
    table.columns[1].justify = "right"
    for name, text in EXPLANATIONS.items():
        table.add_row(name, with_interval(metrics[name], metrics["intervals"].get(name)), text)
    for kind, value in metrics["auroc_by_kind"].items():
        table.add_row("auroc", with_interval(value, None), f"the same, for {kind}")
    Console().print(table)
