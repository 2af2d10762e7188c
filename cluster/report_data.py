"""The report's data files: every image and every failed input, as scripts beside the page.

A page opened from disk may load scripts but not fetch files, so each file is one call of a function
of the page. It holds columns rather than rows, and words that repeat as numbers.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cluster.inspection_files import each_failed, each_scores
from data.store import Store

FOLDER = "report/"
ROWS_PER_FILE = 10_000
MAX_BOXES = 50
"""Regions of an image that the page shows, at most: the strongest."""
MAX_PICTURED = 500
"""Images whose pictures go to MLflow with the report, at most."""

_KEPT = ["score", "label", "kind", "decision", "outcome"]
_CHOSEN = ["unit", "key", "pictures", "score", "outcome"]
_TEXT, _WORDS = ("key", "source", "group"), ("unit", "label", "kind", "decision", "outcome")
_NUMBERS = {"score": 6, "residual": 6, "feature": 6, "peak": 6, "p_value": 3}
_WHOLE = ("height", "width", "tiles", "best_step")
_FAILED = ["key", "source", "reason"]


@dataclass
class ReportData:
    """What was written, and what the page itself needs of it.

    Attributes:
        images: Score, label, kind, decision and outcome of every image.
        pictured: Unit, key, pictures, score and outcome of the images whose pictures go to MLflow.
        num_failed: Inputs that could not be scored.
        row_files: Scripts with the rows of the gallery.
        failed_files: Scripts with the failed inputs.
    """

    images: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictured: pd.DataFrame = field(default_factory=pd.DataFrame)
    num_failed: int = 0
    row_files: list[str] = field(default_factory=list)
    failed_files: list[str] = field(default_factory=list)


def write_data(out: Store) -> ReportData:
    """Write the data files of the inspection in `out`, and remove those of an earlier report.

    Of most columns it holds one file's rows at a time.

    Raises:
        UserError: If nothing was scored.
    """
    data, kept = ReportData(), list[pd.DataFrame]()

    def scores() -> Iterator[pd.DataFrame]:
        for scored in each_scores(out):
            table = scored.assign(outcome=outcomes(scored))
            kept.append(table[_KEPT])
            # Without the regions: each row's lie in one array with all others of the unit.
            new = table[_CHOSEN]
            candidates = [t for t in (data.pictured, new) if len(t)] or [new]
            data.pictured = choose(pd.concat(candidates, ignore_index=True), MAX_PICTURED)
            yield table

    def failures() -> Iterator[pd.DataFrame]:
        for rows in each_failed(out):
            data.num_failed += len(rows)
            # Names of files may hold half a character, which only Python's own strings can.
            yield pd.DataFrame(rows, columns=_FAILED, dtype=object)

    data.row_files = _write_files(out, "rows", "addRows", scores(), row_columns)
    data.failed_files = _write_files(out, "failed", "addFailed", failures(), failed_columns)
    data.images = pd.concat([t for t in kept if len(t)] or kept[:1], ignore_index=True)
    for path in set(out.list(FOLDER, ".js")) - {*data.row_files, *data.failed_files}:
        out.delete(path)
    return data


def outcomes(table: pd.DataFrame) -> "pd.Series[str]":
    """Each image: `missed`, `false alarm`, or the empty text (decided right, or nothing known)."""
    label, decision = table["label"], table["decision"]
    missed = (label == "abnormal") & (decision == "normal")
    alarm = (label == "normal") & (decision == "abnormal")
    outcome = np.select([missed, alarm], ["missed", "false alarm"], "")
    return pd.Series(outcome, index=table.index, dtype="str")


def choose(table: pd.DataFrame, limit: int) -> pd.DataFrame:
    """The rows most worth a look, highest score first.

    Missed anomalies score low, so up to half of the places are theirs; the highest scores get the
    others. Choosing again among chosen and new rows gives what choosing once among all does.
    """
    missed = table[table["outcome"] == "missed"].nlargest(limit // 2, "score")
    others = table.drop(missed.index).nlargest(limit - len(missed), "score")
    return pd.concat([missed, others]).sort_values("score", ascending=False, kind="stable")


def row_columns(table: pd.DataFrame) -> dict[str, Any]:
    """Rows of the gallery by column, as the page's `addRows` takes them."""
    regions = [list(found) for found in table["regions"]]
    return {
        **{name: table[name].tolist() for name in _TEXT},
        **{name: _coded(table[name]) for name in (*_WORDS, *_WHOLE)},
        **{name: _rounded(table[name], digits) for name, digits in _NUMBERS.items()},
        "pictures": table["pictures"].astype(int).tolist(),
        "num_regions": [len(found) for found in regions],
        "largest_area": [max((each["area"] for each in found), default=0) for found in regions],
        "regions": [_flat(found[:MAX_BOXES]) for found in regions],
    }


def failed_columns(table: pd.DataFrame) -> dict[str, Any]:
    """Failed inputs by column, as the page's `addFailed` takes them."""
    return {
        "key": table["key"].tolist(),
        "source": table["source"].tolist(),
        "reason": _coded(table["reason"]),
    }


def script(function: str, data: Any) -> bytes:
    """A script that calls a function of the page with `data`; ASCII, whatever the data hold.

    JSON in a string is read several times as fast as the same written as JavaScript.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"inspection.{function}(JSON.parse('{quoted}'));\n".encode("ascii")


def rechunk(tables: Iterable[pd.DataFrame], size: int) -> Iterator[pd.DataFrame]:
    """The same rows in tables of `size`, the last one shorter; empty ones are left out."""
    waiting, num_waiting = list[pd.DataFrame](), 0
    for table in tables:
        if not len(table):
            continue
        waiting, num_waiting = [*waiting, table], num_waiting + len(table)
        if num_waiting >= size:
            joined = pd.concat(waiting, ignore_index=True)
            for start in range(0, num_waiting - size + 1, size):
                yield joined.iloc[start : start + size]
            rest = num_waiting % size
            waiting, num_waiting = [joined.iloc[len(joined) - rest :]] if rest else [], rest
    if waiting:
        yield pd.concat(waiting, ignore_index=True)


def _write_files(
    out: Store,
    name: str,
    function: str,
    tables: Iterable[pd.DataFrame],
    columns: Callable[[pd.DataFrame], dict[str, Any]],
) -> list[str]:
    paths = []
    for number, table in enumerate(rechunk(tables, ROWS_PER_FILE)):
        paths.append(f"{FOLDER}{name}-{number:05d}.js")
        out.write_bytes(paths[-1], script(function, columns(table)))
    return paths


def _coded(column: pd.Series) -> dict[str, Any]:
    """Each value's place among the different ones, in the order of their first appearance."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return {
        "values": [None if pd.isna(value) else value for value in values.tolist()],
        "codes": codes.tolist(),
    }


def _rounded(column: pd.Series, digits: int) -> list[float | None]:
    return [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in column.astype(float)]


def _flat(regions: list[dict[str, float]]) -> list[float]:
    """Six numbers for each region: x, y, width, height, area in pixels, peak as a share."""
    return [
        value
        for each in regions
        for value in (
            *(int(each[name]) for name in ("x", "y", "width", "height", "area")),
            round(float(each["peak"]), 3),
        )
    ]
