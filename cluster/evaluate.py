"""How well the scores of an inspection agree with the labels that came with the images."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score, roc_auc_score

from cluster.config import Config
from cluster.errors import UserError
from cluster.inspection_files import inspection_store, read_failed, read_manifest, read_scores
from cluster.tracking import log_results
from data.dataset import load_index
from data.store import Store

METRICS = "metrics.json"

EXPLANATIONS = {
    "auroc": "chance that an abnormal image scores above a normal one",
    "auroc_seen": "the same, for kinds of anomaly known in training",
    "auroc_unseen": "the same, for kinds nobody labelled for training",
    "average_precision": "precision averaged over recall",
    "best_f1": "F1 at the threshold that gave the best F1 on validation images",
    "f1": "F1 of the decisions, made for the false-positive rate on validation normals",
    "precision": "share of true anomalies among images decided abnormal",
    "recall": "share of anomalies that were decided abnormal",
    "false_positive_rate": "share of normal images that were decided abnormal",
    "num_normal": "normal images",
    "num_abnormal": "abnormal images",
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

    Kinds known in training are those of the train-abnormal split of data.uri.

    Returns:
        The numbers of `evaluate`, and `num_failed`.

    Raises:
        UserError: If the inspection has not finished, or lacks normal or abnormal images.
    """
    out = inspection_store(config)
    calibration = read_manifest(out)["calibration"] or {}
    seen_kinds = load_index(Store(config.data.uri)).kinds.get("train-abnormal", {})
    try:
        metrics = evaluate(read_scores(out), seen_kinds, calibration.get("f1_threshold"))
    except UserError as error:
        raise UserError(f"{out.uri}: {error}") from None
    metrics["num_failed"] = len(read_failed(out))
    out.write_bytes(METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
    split = config.inspect.split
    log_results(config, {f"{split}/{name}": value for name, value in numbers.items()})
    return metrics


def evaluate(
    table: pd.DataFrame, seen_kinds: Iterable[str], f1_threshold: float | None
) -> dict[str, Any]:
    """Compare scores and decisions with labels; images without a label are left out.

    Args:
        table: Scores, as `read_scores` gives them.
        seen_kinds: Kinds of anomaly that training knew.
        f1_threshold: Lowest score called abnormal at the best F1 on validation images, if known.

    Returns:
        The numbers of `EXPLANATIONS` except `num_failed`, and `auroc_by_kind`: the AUROC of the
        abnormal images of each kind against all normal ones. None stands where nothing can be said:
        no such kinds, no decisions, or (precision) nothing decided abnormal.

    Raises:
        UserError: If there are no normal or no abnormal images.
    """
    known = table[table["label"] != "unlabelled"]
    truth = (known["label"] == "abnormal").to_numpy()
    scores = known["score"].to_numpy()
    num_abnormal, num_normal = int(truth.sum()), int((~truth).sum())
    if not num_abnormal or not num_normal:
        raise UserError(
            f"labels are normal={num_normal}, abnormal={num_abnormal}, unlabelled="
            f"{len(table) - len(known)}; at least one normal and one abnormal image are needed"
        )
    kind = known["kind"].to_numpy()
    seen = np.isin(kind, list(seen_kinds))
    return {
        "auroc": _auroc(scores, truth, truth),
        "auroc_seen": _auroc(scores, truth, truth & seen),
        "auroc_unseen": _auroc(scores, truth, truth & ~seen),
        "average_precision": float(average_precision_score(truth, scores)),
        "best_f1": None if f1_threshold is None else _f1(scores >= f1_threshold, truth),
        **_decision_metrics(known["decision"], truth),
        "num_normal": num_normal,
        "num_abnormal": num_abnormal,
        "auroc_by_kind": {
            str(name): _auroc(scores, truth, truth & (kind == name))
            for name in sorted(set(kind[truth]))
        },
    }


def _auroc(
    scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any]
) -> float | None:
    """AUROC of the chosen abnormal images against all normal ones."""
    if not chosen.any():
        return None
    used = chosen | ~truth
    return float(roc_auc_score(truth[used], scores[used]))


def _f1(flagged: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    return 2 * int((flagged & truth).sum()) / (int(flagged.sum()) + int(truth.sum()))


def _decision_metrics(decision: pd.Series, truth: np.ndarray[Any, Any]) -> dict[str, float | None]:
    if decision.isna().any():
        return dict.fromkeys(("f1", "precision", "recall", "false_positive_rate"))
    flagged = (decision == "abnormal").to_numpy()
    hits, alarms = int((flagged & truth).sum()), int(flagged.sum())
    return {
        "f1": _f1(flagged, truth),
        "precision": hits / alarms if alarms else None,
        "recall": hits / int(truth.sum()),
        "false_positive_rate": int((flagged & ~truth).sum()) / int((~truth).sum()),
    }


def _print(metrics: dict[str, Any]) -> None:
    table = Table("metric", "value", "what it says")
    table.columns[1].justify = "right"
    rows = [(name, metrics[name], text) for name, text in EXPLANATIONS.items()]
    rows += [
        ("auroc", value, f"the same, for {kind}")
        for kind, value in metrics["auroc_by_kind"].items()
    ]
    for name, value, text in rows:
        table.add_row(name, _format(value), text)
    Console().print(table)


def _format(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
