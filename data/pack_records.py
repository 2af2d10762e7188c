"""What packing leaves behind on its way: the plan, one record per finished unit, and the lists."""

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from data.dataset import INDEX_NAME, DatasetIndex, ShardInfo, load_index
from data.errors import DataError, StoreError
from data.plan import Plan, Unit
from data.sample import SPLITS, Label, Split
from data.store import Store

PLAN_NAME = "plan.json"
QUARANTINE_NAME = "quarantine.jsonl"
DUPLICATES_NAME = "duplicates.jsonl"

_RECORDS = "units/"
INTENSITY_NAME = f"{_RECORDS}intensity.json"
"""Lies among the records, so that it goes when they go."""
_SHARD = re.compile(rf"({'|'.join(SPLITS)})/\d+/\d{{5,}}(-\d{{3,}})?\.tar")


class BadImage(BaseModel):
    """An image that could not be packed, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    key: str
    split: Split
    reason: str


class PackedImage(BaseModel):
    """An image that was packed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    label: Label
    group: str
    bits: int | None
    """Perceptual hash; None for a flat image."""


class UnitRecord(BaseModel):
    """What became of each image of a unit; it is written when all the unit's shards are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: str
    name: str
    split: Split
    shards: tuple[ShardInfo, ...]
    images: tuple[PackedImage, ...]
    bad: tuple[BadImage, ...]
    labels: dict[Label, NonNegativeInt]
    kinds: dict[str, NonNegativeInt]
    num_contaminants: NonNegativeInt
    """Samples that show a defect though train-normal calls them normal, as far as is known."""
    channels: dict[int, str]
    """Numbers of channels met, each with the first image that has it."""


def save_record(store: Store, record: UnitRecord) -> None:
    """Write a unit's record, which makes the unit finished."""
    store.write_bytes(_record_path(record.name), (record.model_dump_json() + "\n").encode())


def load_records(store: Store, plan: Plan) -> dict[str, UnitRecord]:
    """Return the records of this plan's finished units by name; what else lies there is ignored."""
    present = set(store.list(_RECORDS, ".json"))
    found = {}
    for unit in plan.units:
        if _record_path(unit.name) not in present:
            continue
        try:
            record = UnitRecord.model_validate_json(store.read_bytes(_record_path(unit.name)))
        except ValidationError:
            continue
        if record.plan == plan.digest:
            found[unit.name] = record
    return found


def drop_records(store: Store, names: Iterable[str] | None = None) -> None:
    """Delete the records of these units, or all; those units are packed again."""
    paths = store.list(_RECORDS, ".json") if names is None else map(_record_path, names)
    for path in paths:
        store.delete(path)


def open_plan(store: Store, plan: Plan) -> DatasetIndex | None:
    """Make `store` the place of this plan; returns the index if it is packed there already.

    The same plan, unfinished, stays as it is and can be continued. Whatever else was packed or
    begun there loses its index and its records before anything is overwritten.
    """
    if index := packed_index(store, plan):
        # A run that ended between the index and the clearing up left them.
        drop_records(store)
        return index
    if _digest_in(store) == plan.digest and not store.exists(INDEX_NAME):
        return None
    store.delete(INDEX_NAME)
    drop_records(store)
    save_json(
        store,
        PLAN_NAME,
        {
            "digest": plan.digest,
            "images": plan.num_items,
            "units": len(plan.units),
            "name": plan.settings.name,
            "source": plan.settings.source,
        },
    )
    return None


def check_free(store: Store, plan: Plan) -> None:
    """Refuse a place where another finished data set lies; `open_plan` would take its index.

    Raises:
        DataError: if there is one.
    """
    if _digest_in(store) == plan.digest or not store.exists(INDEX_NAME):
        return
    found = "one that this version cannot read"
    if index := _index_in(store):
        num_samples = sum(sum(labels.values()) for labels in index.labels.values())
        found = f"{index.name} ({num_samples} samples, packed from {index.source or 'elsewhere'})"
    raise DataError(
        f"{store.uri} holds another data set, {found}, or this one with other images or settings; "
        "give another place, or pack over it with pack.replace=true"
    )


def packed_index(store: Store, plan: Plan) -> DatasetIndex | None:
    """Return the index if just this plan is packed in `store`, with every shard in its place."""
    if _digest_in(store) != plan.digest:
        return None
    index = _index_in(store)
    return index if index and _is_whole(store, index) else None


def pending(plan: Plan, finished: Iterable[str]) -> list[Unit]:
    """Return the units that are still to be packed."""
    done = set(finished)
    return [unit for unit in plan.units if unit.name not in done]


def save_json(store: Store, path: str, content: dict[str, Any]) -> None:
    """Write one JSON object."""
    store.write_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def save_rows(store: Store, path: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSON objects, one a line."""
    lines = (json.dumps(row, sort_keys=True) + "\n" for row in rows)
    store.write_bytes(path, "".join(lines).encode())


def sweep(store: Store, index: DatasetIndex) -> None:
    """Delete shards of earlier data sets that the index does not list, leftovers, all records."""
    listed = {shard.path for shard in index.shards}
    for split in SPLITS:
        for path in store.list(f"{split}/", ".tar"):
            if path not in listed and _SHARD.fullmatch(path):
                store.delete(path)
    drop_records(store)
    store.delete_unfinished()
    if store.is_local:
        with contextlib.suppress(OSError):
            store.local_path(_RECORDS).rmdir()


def _record_path(unit: str) -> str:
    return f"{_RECORDS}{unit}.json"


def _digest_in(store: Store) -> str | None:
    if not store.exists(PLAN_NAME):
        return None
    try:
        content = json.loads(store.read_bytes(PLAN_NAME))
        return str(content["digest"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        return None


def _index_in(store: Store) -> DatasetIndex | None:
    """Return the index, if there is one that can be read."""
    try:
        return load_index(store)
    except StoreError:
        raise
    except DataError:
        return None


def _is_whole(store: Store, index: DatasetIndex) -> bool:
    """Whether every shard is there with its size; one listing, no shard is read."""
    sizes = store.sizes()
    return all(sizes.get(shard.path) == shard.bytes for shard in index.shards)
