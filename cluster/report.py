"""The static page a quality engineer reads: what was found, how surely, and what failed."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd

from cluster.charts import roc_chart, score_histogram
from cluster.config import Config
from cluster.evaluate import EXPLANATIONS, METRICS
from cluster.inspection_files import (
    MANIFEST,
    inspection_store,
    picture_path,
    read_failed,
    read_manifest,
    read_scores,
)
from cluster.page import fill
from cluster.tracking import log_results
from data.store import Store

REPORT = "report.html"
MAX_IMAGES = 500
"""Images in the gallery, and rows in the table of failed inputs, at most."""

_PICTURES = ("image", "reconstruction", "overlay")
_TILES = {
    "auroc": "AUROC",
    "auroc_seen": "AUROC, seen kinds",
    "auroc_unseen": "AUROC, unseen kinds",
    "average_precision": "average precision",
    "best_f1": "best F1",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false-positive rate",
}


def write_report(config: Config) -> int:
    """Write report.html of a finished inspection and add it to the run in MLflow.

    Raises:
        UserError: If the inspection has not finished.
    """
    out = inspection_store(config)
    html = render(out)
    out.write_bytes(REPORT, html.encode())
    linked = re.findall(r'(?:src|href)="(maps/[^"]+)"', html)
    tables = out.list("scores/", ".parquet") + out.list("failed/", ".jsonl")
    files = sorted({REPORT, MANIFEST, *tables, *linked})
    folder = f"inspection/{config.inspect.split}"
    log_results(config, {}, {f"{folder}/{path}": out.read_bytes(path) for path in files})
    print(f"report: {out.url(REPORT)}")
    return 0


def render(out: Store) -> str:
    """The report of the inspection in `out` as HTML; pictures are linked relative to it.

    Raises:
        UserError: If the inspection has not finished.
    """
    manifest = read_manifest(out)
    table = read_scores(out)
    table["outcome"] = outcomes(table)
    failed = read_failed(out)
    calibration = manifest["calibration"] or {}
    shown = choose(table, MAX_IMAGES)
    return fill(
        "report.html",
        manifest=manifest,
        threshold=calibration.get("threshold"),
        rate=calibration.get("false_positive_rate"),
        counts=_counts(table),
        tiles=_tiles(out),
        by_kind=_read_metrics(out).get("auroc_by_kind", {}),
        histogram=score_histogram(table, calibration.get("threshold")) if len(table) else None,
        roc=roc_chart(table),
        cards=_cards(shown),
        failed=failed[:MAX_IMAGES],
        num_failed=len(failed),
    )


def outcomes(table: pd.DataFrame) -> "pd.Series[str]":
    """Each image: `missed`, `false alarm`, or the empty text (decided right, or nothing known)."""
    label, decision = table["label"], table["decision"]
    missed = (label == "abnormal") & (decision == "normal")
    alarm = (label == "normal") & (decision == "abnormal")
    outcome = np.select([missed, alarm], ["missed", "false alarm"], "")
    return pd.Series(outcome, index=table.index, dtype="str")


def choose(table: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Rows for the gallery, highest score first.

    Missed anomalies score low, so up to half of the places are theirs; the highest scores get the
    others.
    """
    missed = table[table["outcome"] == "missed"].nlargest(limit // 2, "score")
    others = table.drop(missed.index).nlargest(limit - len(missed), "score")
    return pd.concat([missed, others]).sort_values("score", ascending=False, kind="stable")


def _counts(table: pd.DataFrame) -> dict[str, int]:
    return {
        "images": len(table),
        "labelled": int((table["label"] != "unlabelled").sum()),
        "decided": int(table["decision"].notna().sum()),
        "abnormal": int((table["decision"] == "abnormal").sum()),
        "missed": int((table["outcome"] == "missed").sum()),
        "false_alarms": int((table["outcome"] == "false alarm").sum()),
    }


def _read_metrics(out: Store) -> dict[str, Any]:
    if not out.exists(METRICS):
        return {}
    metrics: dict[str, Any] = json.loads(out.read_bytes(METRICS))
    return metrics


def _tiles(out: Store) -> list[dict[str, str]]:
    metrics = _read_metrics(out)
    return [
        {"title": title, "value": f"{metrics[name]:.3f}", "text": EXPLANATIONS[name]}
        for name, title in _TILES.items()
        if metrics.get(name) is not None
    ]


def _cards(shown: pd.DataFrame) -> list[dict[str, Any]]:
    cards = []
    for row in shown.to_dict("records"):
        card = {str(name): value for name, value in row.items()}
        card["p_value"] = None if pd.isna(row["p_value"]) else row["p_value"]
        card["decision"] = None if pd.isna(row["decision"]) else row["decision"]
        card["pictures"] = {}
        if row["pictures"]:
            unit, key = row["unit"], row["key"]
            card["pictures"] = {what: picture_path(unit, key, what) for what in _PICTURES}
            card["map"] = picture_path(unit, key, "map")
        cards.append(card)
    return cards
