"""Names and contents of the files an inspection leaves behind; docs/operations.md lists them.

A unit of work is one shard. Its pictures and failed inputs are written first and its scores last,
so files of a unit without scores do not count: they belong to a job that was stopped.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from cluster.config import Config
from cluster.errors import UserError
from data.dataset import ShardInfo
from data.item import as_utf8
from data.patience import PatientStore
from data.store import Store

MANIFEST = "manifest.json"
PLAIN = "images"
"""Folder of an inspection of plain images."""
CLAIM = "job.json"
METRICS = "metrics.json"
REGIONS = "regions.json"
REPORT = "report.html"

_BOX = ("x", "y", "width", "height", "area")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "source", "label", "kind", "group")),
        *((name, pa.int32()) for name in ("height", "width")),
        *((name, pa.float64()) for name in ("score", "residual", "feature", "logit", "peak")),
        ("terms", pa.list_(pa.list_(pa.float64()))),
        *((name, pa.int32()) for name in ("steps", "best_step", "tiles")),
        ("p_value", pa.float64()),
        ("decision", pa.string()),
        ("pictures", pa.bool_()),
        (
            "regions",
            pa.list_(pa.struct([*((name, pa.int32()) for name in _BOX), ("peak", pa.float64())])),
        ),
    ]
)
"""Columns of every scores file; docs/operations.md explains each."""


@dataclass(frozen=True)
class StoredFiles(Mapping[str, bytes]):
    """Files of a store, under a prefix, each read when it is asked for."""

    store: Store
    prefix: str
    paths: list[str]

    def __getitem__(self, name: str) -> bytes:
        return self.store.read_bytes(name.removeprefix(self.prefix))

    def __iter__(self) -> Iterator[str]:
        return (f"{self.prefix}{path}" for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def inspection_store(config: Config) -> Store:
    """Where an inspection writes: inspect.dir, else <run.dir>/inspection/<split or `images`>."""
    inspect, retry_s = config.inspect, config.data.retry_s
    if inspect.dir:
        return PatientStore(inspect.dir, retry_s)
    return PatientStore(config.run.dir, retry_s).child("inspection", inspection_folder(config))


def inspection_folder(config: Config) -> str:
    """Name of the folder an inspection writes to, with the characters that MLflow takes."""
    if config.inspect.dir:
        return re.sub(r"[^A-Za-z0-9_. -]", "-", Store(config.inspect.dir).uri.rpartition("/")[2])
    return PLAIN if config.inspect.source else config.inspect.split


def unit_name(shard: ShardInfo) -> str:
    """Name of the unit of work that a shard is."""
    return shard.path.removesuffix(".tar").replace("/", "-")


def scores_path(unit: str) -> str:
    """File whose existence makes a unit finished."""
    return f"scores/{unit}.parquet"


def failed_path(unit: str) -> str:
    """File with the inputs of a unit that could not be scored."""
    return f"failed/{unit}.jsonl"


def damaged_path(unit: str) -> str:
    """Mark of a unit whose shard is not the one that was packed."""
    return f"failed/{unit}.damaged"


def pixels_path(unit: str) -> str:
    """Counts of map values of a unit, see `cluster.pixel_metrics`."""
    return f"pixels/{unit}.npz"


def picture_path(unit: str, key: str, what: str) -> str:
    """Picture of an image: `image`, `reconstruction`, `overlay`, or `map` (16 bit)."""
    return f"maps/{unit}/{key}.{what}.png"


def finished_units(out: Store) -> list[str]:
    """Names of all finished units."""
    names = out.list("scores/", ".parquet")
    return [name.removeprefix("scores/").removesuffix(".parquet") for name in names]


def write_unit(
    out: Store,
    unit: str,
    rows: list[dict[str, Any]],
    failed: list[dict[str, str]],
    *,
    intact: bool = True,
    pixels: bytes | None = None,
) -> None:
    """Write what failed and what was counted, then the scores, which make the unit finished.

    Args:
        out: Where the inspection writes.
        unit: Name of the unit.
        rows: Scored images, with the columns of `SCHEMA`.
        failed: Inputs that could not be scored: key, source, reason.
        intact: Whether the shard is the one that was packed.
        pixels: Counts of map values, where there is something to compare them with.
    """
    lines = "".join(f"{json.dumps(row)}\n" for row in failed)
    beside = {
        failed_path(unit): lines.encode(),
        damaged_path(unit): b"" if intact else unit.encode(),
        pixels_path(unit): pixels or b"",
    }
    for path, content in beside.items():
        # An earlier attempt that was stopped may have left a file that is no longer true.
        if content:
            out.write_bytes(path, content)
        else:
            out.delete(path)
    _write_rows(out, unit, rows)


def update_rows(
    out: Store, columns: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    """Change columns of every scored image; each file changes as a whole.

    Args:
        out: Where the inspection writes.
        columns: New values of some columns, for the rows of a unit.
    """
    for unit in finished_units(out):
        rows = pa.parquet.read_table(io.BytesIO(out.read_bytes(scores_path(unit)))).to_pylist()
        changed = [row | new for row, new in zip(rows, columns(rows), strict=True)]
        _write_rows(out, unit, changed)


def _write_rows(out: Store, unit: str, rows: list[dict[str, Any]]) -> None:
    buffer = io.BytesIO()
    # Names of old file systems may hold bytes that are no UTF-8, which Parquet cannot.
    shown = [row | {name: as_utf8(row[name]) for name in ("source", "group")} for row in rows]
    pa.parquet.write_table(pa.Table.from_pylist(shown, schema=SCHEMA), buffer)
    out.write_bytes(scores_path(unit), buffer.getvalue())


def each_scores(out: Store, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """Scores of the finished units, one table at a time, with a column `unit`.

    Args:
        out: Where the inspection writes.
        columns: Columns of `SCHEMA` wanted beside `key`; None is all.

    Raises:
        UserError: If there are none.
    """
    units = finished_units(out)
    if not units:
        raise UserError(f"{out.uri} holds no scores; run `python -m cluster inspect` first")
    wanted = None if columns is None else ["key", *columns]
    for unit in units:
        content = io.BytesIO(out.read_bytes(scores_path(unit)))
        yield pd.read_parquet(content, columns=wanted).assign(unit=unit)


def read_scores(out: Store, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Scores of all finished units, sorted by key, with a column `unit`.

    Args:
        out: Where the inspection writes.
        columns: Columns of `SCHEMA` wanted beside `key`, of which fewer take less memory; None is
            all.

    Raises:
        UserError: If there are none or an image was scored twice.
    """
    tables = list(each_scores(out, columns))
    table = pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
    twice = table["key"][table["key"].duplicated()]
    if len(twice):
        raise UserError(f"{out.uri} scores image {twice.iloc[0]!r} twice; keys must be unique")
    return table.sort_values("key", ignore_index=True)


def each_failed(out: Store) -> Iterator[list[dict[str, str]]]:
    """Inputs that could not be scored: for each finished unit with any, key, source, reason."""
    paths = set(out.list("failed/", ".jsonl"))
    for path in map(failed_path, finished_units(out)):
        if path in paths:
            yield [json.loads(line) for line in out.read_bytes(path).decode().splitlines()]


def read_failed(out: Store) -> list[dict[str, str]]:
    """Inputs of finished units that could not be scored: key, source, reason."""
    return [row for rows in each_failed(out) for row in rows]


def read_damaged(out: Store) -> list[str]:
    """Finished units whose shards are not the ones that were packed."""
    units = set(finished_units(out))
    names = out.list("failed/", ".damaged")
    found = (name.removeprefix("failed/").removesuffix(".damaged") for name in names)
    return [unit for unit in found if unit in units]


def drop_summary(out: Store) -> None:
    """Delete what was told of the images scored so far: the manifest, metrics and report."""
    for path in (MANIFEST, METRICS, REPORT):
        out.delete(path)


def read_manifest(out: Store) -> dict[str, Any]:
    """The manifest of a finished inspection.

    Raises:
        UserError: If the inspection has not finished.
    """
    if not out.exists(MANIFEST):
        raise UserError(f"{out.uri} is not a finished inspection; run `python -m cluster inspect`")
    manifest: dict[str, Any] = json.loads(out.read_bytes(MANIFEST))
    return manifest
