"""Names and contents of the files an inspection leaves behind; docs/operations.md lists them.

A unit of work is one shard. Its pictures and failed inputs are written first and its scores last,
so files of a unit without scores do not count: they belong to a job that was stopped.
"""

import io
import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from cluster.config import Config
from cluster.errors import UserError
from data.dataset import ShardInfo
from data.store import Store

MANIFEST = "manifest.json"
CLAIM = "job.json"


def inspection_store(config: Config) -> Store:
    """Where an inspection writes: inspect.dir, else <run.dir>/inspection/<split>."""
    if config.inspect.dir:
        return Store(config.inspect.dir)
    return Store(config.run.dir).child("inspection", config.inspect.split)


def unit_name(shard: ShardInfo) -> str:
    """Name of the unit of work that a shard is."""
    return shard.path.removesuffix(".tar").replace("/", "-")


def scores_path(unit: str) -> str:
    """File whose existence makes a unit finished."""
    return f"scores/{unit}.parquet"


def failed_path(unit: str) -> str:
    """File with the inputs of a unit that could not be scored."""
    return f"failed/{unit}.jsonl"


def picture_path(unit: str, key: str, what: str) -> str:
    """Picture of an image: `image`, `reconstruction`, `overlay`, or `map` (16 bit)."""
    return f"maps/{unit}/{key}.{what}.png"


def finished_units(out: Store) -> list[str]:
    """Names of all finished units."""
    names = out.list("scores/", ".parquet")
    return [name.removeprefix("scores/").removesuffix(".parquet") for name in names]


def write_unit(out: Store, unit: str, rows: pd.DataFrame, failed: list[dict[str, str]]) -> None:
    """Write what failed, then the scores, which make the unit finished."""
    if failed:
        lines = "".join(f"{json.dumps(row)}\n" for row in failed)
        out.write_bytes(failed_path(unit), lines.encode())
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    out.write_bytes(scores_path(unit), buffer.getvalue())


def read_scores(out: Store) -> pd.DataFrame:
    """Scores of all finished units, sorted by key, with a column `unit`.

    Raises:
        UserError: If there are none or an image was scored twice.
    """
    units = finished_units(out)
    if not units:
        raise UserError(f"{out.uri} holds no scores; run `python -m cluster inspect` first")
    tables = [
        pd.read_parquet(io.BytesIO(out.read_bytes(scores_path(unit)))).assign(unit=unit)
        for unit in units
    ]
    table = pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
    twice = table["key"][table["key"].duplicated()]
    if len(twice):
        raise UserError(f"{out.uri} scores image {twice.iloc[0]!r} twice; keys must be unique")
    return table.sort_values("key", ignore_index=True)


def read_failed(out: Store) -> list[dict[str, str]]:
    """Inputs of finished units that could not be scored: key, source, reason."""
    units: Iterable[str] = finished_units(out)
    paths = set(out.list("failed/", ".jsonl"))
    lines: list[str] = []
    for path in map(failed_path, units):
        if path in paths:
            lines += out.read_bytes(path).decode().splitlines()
    return [json.loads(line) for line in lines]


def read_manifest(out: Store) -> dict[str, Any]:
    """The manifest of a finished inspection.

    Raises:
        UserError: If the inspection has not finished.
    """
    if not out.exists(MANIFEST):
        raise UserError(f"{out.uri} is not a finished inspection; run `python -m cluster inspect`")
    manifest: dict[str, Any] = json.loads(out.read_bytes(MANIFEST))
    return manifest
