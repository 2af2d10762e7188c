"""The report's charts: SVG that takes the colours of its page, so it reads in light and in dark."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

_NUM_BINS = 40
_SIZE_INCHES = (5.2, 2.9)
# Colours that stand apart for colour-blind readers and on light and dark pages alike.
_COLORS = {
    "normal": "#3b82c4",
    "abnormal": "#e07b1f",
    "unlabelled": "#808890",
    "training": "#808890",
    "known abnormal": "#e07b1f",
}
_LINES = ("--", ":")
# matplotlib knows no `currentColor`: this stands for it until the SVG is written.
_INK = "#010203"
# matplotlib types its settings as a union of hundreds of literals.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "blemish",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
}


def score_histogram(table: pd.DataFrame, thresholds: Mapping[str, float]) -> str:
    """Scores by label, each label's bars adding up to one, with a line at each threshold.

    Args:
        table: Columns `label` and `score`, at least one row.
        thresholds: Score by name.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        edges = np.histogram_bin_edges(table["score"], bins=_NUM_BINS).tolist()
        for label, scores in _by_label(table).items():
            axes.hist(
                scores,
                bins=edges,
                weights=np.full(len(scores), 1 / len(scores)),
                color=_COLORS[label],
                alpha=0.65,
                label=f"{label} ({len(scores):,})",
            )
        for (name, score), style in zip(thresholds.items(), _LINES, strict=False):
            axes.axvline(score, color=_INK, linestyle=style, linewidth=1, label=name)
        axes.set(xlabel="score", ylabel="share of the label's images")
        _place_legend(figure, axes)
        return _to_svg(figure, "Histogram of scores by label")


def roc_chart(table: pd.DataFrame) -> str | None:
    """ROC curve of the scores, with the decisions as dots; None without both labels."""
    known, truth = _with_label(table)
    if truth.all() or not truth.any():
        return None
    false_rate, true_rate, _ = roc_curve(truth, known["score"])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.plot([0, 1], [0, 1], color=_COLORS["unlabelled"], linewidth=1, linestyle=":")
        axes.plot(
            false_rate, true_rate, color=_COLORS["abnormal"], linewidth=2, label="all thresholds"
        )
        for name, flagged, marker in _flagged(known):
            point = (flagged[~truth].mean(), flagged[truth].mean())
            axes.plot(*point, marker, color=_INK, markersize=6, label=name)
        axes.set(xlabel="false alarms, share of normal", ylabel="found, share of abnormal")
        _place_legend(figure, axes)
        return _to_svg(figure, "ROC curve")


def precision_recall_chart(table: pd.DataFrame) -> str | None:
    """Precision over recall, with the decisions as dots; None without both labels."""
    known, truth = _with_label(table)
    if truth.all() or not truth.any():
        return None
    precision, recall, _ = precision_recall_curve(truth, known["score"])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        # Whoever calls everything abnormal is right as often as there are abnormal images.
        axes.axhline(truth.mean(), color=_COLORS["unlabelled"], linewidth=1, linestyle=":")
        axes.step(
            *(recall, precision),
            where="post",
            color=_COLORS["abnormal"],
            linewidth=2,
            label="all thresholds",
        )
        for name, flagged, marker in _flagged(known):
            if flagged.any():
                point = (flagged[truth].mean(), truth[flagged].mean())
                axes.plot(*point, marker, color=_INK, markersize=6, label=name)
        axes.set(
            xlabel="recall: found, share of abnormal",
            ylabel="precision: true, share of found",
            ylim=(-0.03, 1.03),
        )
        _place_legend(figure, axes)
        return _to_svg(figure, "Precision over recall")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(_SIZE_INCHES, layout="constrained")
    return figure, figure.subplots()


def _with_label(table: pd.DataFrame) -> "tuple[pd.DataFrame, pd.Series[bool]]":
    known = table[table["label"] != "unlabelled"]
    return known, known["label"] == "abnormal"


def _flagged(known: pd.DataFrame) -> "Iterator[tuple[str, pd.Series[bool], str]]":
    """What was decided, as name, images and marker; those for review count in and out."""
    if known["decision"].isna().any():
        return
    abnormal, review = known["decision"] == "abnormal", known["decision"] == "review"
    yield "decided abnormal", abnormal, "o"
    if review.any():
        yield "abnormal or review", abnormal | review, "D"


def _by_label(table: pd.DataFrame) -> Mapping[str, pd.Series]:
    groups = {label: table.loc[table["label"] == label, "score"] for label in _COLORS}
    return {label: scores for label, scores in groups.items() if len(scores)}


def _place_legend(figure: Figure, axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    # More than three side by side are wider than the chart.
    columns = len(handles) if len(handles) <= 3 else 2
    figure.legend(loc="outside upper left", ncols=columns, frameon=False)


def _to_svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    # The declaration before <svg> belongs to a file of its own, not inside a page.
    svg = text[text.index("<svg ") :].replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
