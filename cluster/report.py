"""The page a quality engineer reads: what was found, how surely, and what failed.

`report.html` holds numbers, charts and the code of the gallery; its data lie beside it in `report/`
(see `cluster.report_data`), its pictures in `maps/`. It opens from disk.
"""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cluster.charts import precision_recall_chart, roc_chart, score_histogram
from cluster.config import Config
from cluster.evaluate import EXPLANATIONS
from cluster.inspection_files import (
    MANIFEST,
    METRICS,
    REGIONS,
    REPORT,
    StoredFiles,
    inspection_folder,
    inspection_store,
    picture_path,
    read_manifest,
)
from cluster.page import fill
from cluster.report_data import MAX_BOXES, ReportData, write_data
from cluster.tracking import log_results
from data.store import Store

_PICTURES = ("image", "reconstruction", "overlay", "map")
_LABELS, _DECISIONS = ("normal", "abnormal", "unlabelled"), ("normal", "review", "abnormal")
_TILES = {
    "auroc": "AUROC",
    "auroc_seen": "AUROC, seen kinds",
    "auroc_unseen": "AUROC, unseen kinds",
    "average_precision": "average precision",
    "fpr_at_95_recall": "false positives at 95 % recall",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "best_f1": "best F1",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false-positive rate",
    "escape_rate": "escapes",
    "review_rate": "left for review",
}
"""Metrics that are shown where they are known, in this order."""


def write_report(config: Config) -> int:
    """Write report.html of a finished inspection and add it to the run in MLflow.

    Raises:
        UserError: If the inspection has not finished.
    """
    out = inspection_store(config)
    data = build_report(out)
    prefix = f"inspection/{inspection_folder(config)}/"
    print(f"report: {out.url(REPORT)}")
    log_results(config, {}, StoredFiles(out, prefix, _paths_to_log(out, data)))
    return 0


def build_report(out: Store) -> ReportData:
    """Write the report of the inspection in `out`: its data files, then the page.

    Raises:
        UserError: If the inspection has not finished.
    """
    manifest = read_manifest(out)
    data = write_data(out)
    metrics = json.loads(out.read_bytes(METRICS)) if out.exists(METRICS) else {}
    out.write_bytes(REPORT, render(manifest, metrics, data).encode())
    return data


def render(manifest: dict[str, Any], metrics: dict[str, Any], data: ReportData) -> str:
    """The page as HTML; data and pictures are linked relative to it.

    Args:
        manifest: Of the inspection.
        metrics: Contents of metrics.json, empty where nothing was evaluated.
        data: What was written beside the page.
    """
    images, calibration = data.images, manifest["calibration"] or {}
    thresholds = threshold_lines(calibration)
    charts = []
    if len(images):
        found = (
            score_histogram(images, thresholds),
            roc_chart(images),
            precision_recall_chart(images),
        )
        charts = [chart for chart in found if chart]
    return fill(
        "report.html",
        manifest=manifest,
        thresholds=thresholds,
        decision=manifest.get("decision"),
        counts=_counts(images),
        tiles=_tiles(metrics),
        kinds=_kinds(images, metrics.get("auroc_by_kind", {})),
        confusion=confusion(images),
        charts=charts,
        data=data,
        max_boxes=MAX_BOXES,
    )


def threshold_lines(calibration: Mapping[str, Any]) -> dict[str, float]:
    """Scores at which the decision changes, by what they mean; empty without a calibration."""
    if "threshold" in calibration:
        return {"abnormal above": calibration["threshold"]}
    if "thresholds" not in calibration:
        return {}
    low, high = (calibration["thresholds"][calibration["rule"]][side] for side in ("low", "high"))
    return ({"review from": low} if low < high else {}) | {"abnormal from": high}


def confusion(images: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Number of images by label, then by decision; empty unless all images were decided."""
    if not len(images) or images["decision"].isna().any():
        return {}
    pairs = images.groupby(["label", "decision"]).size()
    # Whoever has nobody to review needs no column for it.
    used = [each for each in _DECISIONS if each != "review" or (images["decision"] == each).any()]
    return {
        label: {decision: int(pairs.get((label, decision), 0)) for decision in used}
        for label in _LABELS
        if (images["label"] == label).any()
    }


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Title, value, interval (empty where none is known) and explanation of each known metric."""
    intervals, tiles = metrics.get("intervals", {}), []
    for name, title in _TILES.items():
        if metrics.get(name) is None:
            continue
        bounds = intervals.get(name)
        interval = f"{bounds[0]:.3f}–{bounds[1]:.3f}" if bounds else ""
        text = EXPLANATIONS.get(name, "")
        tiles.append(
            {"title": title, "value": f"{metrics[name]:.3f}", "interval": interval, "text": text}
        )
    return tiles


def _kinds(images: pd.DataFrame, by_kind: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Kinds of anomaly with their number of images, how many were missed, and their AUROC."""
    if not len(images):
        return []
    abnormal = images[images["label"] == "abnormal"]
    return [
        {
            "kind": kind,
            "images": len(rows),
            "missed": int((rows["outcome"] == "missed").sum()),
            "auroc": by_kind.get(kind),
        }
        for kind, rows in abnormal.groupby("kind")
    ]


def _counts(images: pd.DataFrame) -> dict[str, int]:
    return {
        "images": len(images),
        "labelled": int((images["label"] != "unlabelled").sum()),
        "decided": int(images["decision"].notna().sum()),
        "review": int((images["decision"] == "review").sum()),
        "abnormal": int((images["decision"] == "abnormal").sum()),
        "missed": int((images["outcome"] == "missed").sum()),
        "false_alarms": int((images["outcome"] == "false alarm").sum()),
    }


def _paths_to_log(out: Store, data: ReportData) -> list[str]:
    pictured = data.pictured[data.pictured["pictures"]]
    # People delete maps, which take most of the space.
    there = set(out.list("maps/")) if len(pictured) else set()
    pictures = [
        path
        for unit, key in zip(pictured["unit"], pictured["key"], strict=True)
        for what in _PICTURES
        if (path := picture_path(unit, key, what)) in there
    ]
    tables = out.list("scores/", ".parquet") + out.list("failed/", ".jsonl")
    regions = [REGIONS] if out.exists(REGIONS) else []
    return [REPORT, MANIFEST, *regions, *data.row_files, *data.failed_files, *tables, *pictures]
