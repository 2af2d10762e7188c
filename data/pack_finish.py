"""From the records of all units to a data set: its index, its quarantine, its duplicates."""

from collections import Counter
from collections.abc import Iterable

from data.dataset import DatasetIndex, ShardInfo, save_index
from data.duplicates import Fingerprint, near_duplicates
from data.errors import DataError
from data.pack_records import (
    DUPLICATES_NAME,
    QUARANTINE_NAME,
    UnitRecord,
    drop_records,
    load_records,
    save_rows,
    sweep,
)
from data.plan import Plan
from data.pyramid import resolutions_to
from data.sample import SPLITS, Label, Split
from data.store import Store

_SHOWN = 5


def finish(store: Store, plan: Plan, *, max_bad_fraction: float) -> DatasetIndex:
    """Make the packed units a data set; the index comes last.

    quarantine.jsonl names every image that is in no shard, and why; duplicates.jsonl the
    near-duplicates in different splits and groups. The same plan gives the same bytes.

    Args:
        store: where all units of the plan are packed.
        plan: what was packed.
        max_bad_fraction: share of all images that may be in quarantine, 0..1. With more, the
            list is written and the units concerned are packed again by the next run.

    Raises:
        DataError: if too many images are bad, none is left or normal, their channels differ, or a
            shard is gone.
    """
    by_name = load_records(store, plan)
    if missing := [unit.name for unit in plan.units if unit.name not in by_name]:
        raise DataError(
            f"{len(missing)} of {len(plan.units)} units were packed, but {store.uri} does not hold "
            f"them (say {missing[0]}): another pack writes there, or the folder is not shared by "
            "all nodes; give data.uri a place that all nodes share, and run the same command again"
        )
    records = [by_name[unit.name] for unit in plan.units]
    _check_complete(plan, records)
    save_rows(store, QUARANTINE_NAME, [row.model_dump() for r in records for row in r.bad])
    _check_bad(store, plan, records, max_bad_fraction)
    try:
        channels, contamination = common_channels(records), _contamination(plan, records)
    except DataError:
        # People repair images where they lie, under the same names: the next run reads all anew.
        drop_records(store)
        raise
    save_rows(store, DUPLICATES_NAME, _duplicates(records))
    index = DatasetIndex(
        name=plan.settings.name,
        channels=1 if channels == 1 else 3,
        resolution=plan.settings.resolution,
        resolutions=resolutions_to(plan.settings.resolution),
        shards=tuple(_in_order(records)),
        labels=_counts_of_labels(records),
        images=_counts_of_images(records),
        kinds=_counts_of_kinds(records),
        seed=plan.settings.seed,
        contamination=contamination,
        source=plan.settings.source,
        mode=plan.settings.mode,
        tile_overlap=plan.settings.tile_overlap,
        levels=plan.settings.levels,
        intensity=plan.settings.intensity,
        intensity_reference=plan.settings.intensity_reference,
        num_quarantined=sum(len(record.bad) for record in records),
    )
    _check_shards(store, records)
    save_index(store, index)
    sweep(store, index)
    return index


def common_channels(records: Iterable[UnitRecord]) -> int | None:
    """Return the number of channels of all images; None if there are none.

    Raises:
        DataError: if they differ.
    """
    seen: dict[int, str] = {}
    for record in records:
        seen = {**record.channels, **seen}
    if len(seen) > 1:
        (one, first), (other, second) = sorted(seen.items())
        raise DataError(
            f"mixed channels: {first} has {one}, {second} has {other}; set pack.channels to 1 "
            "(grey) or 3 (RGB), which converts all images"
        )
    return next(iter(seen), None)


def _check_complete(plan: Plan, records: list[UnitRecord]) -> None:
    """Assert that every image is in a shard or in quarantine, once."""
    for unit, record in zip(plan.units, records, strict=True):
        told = [row.key for row in record.images] + [row.key for row in record.bad]
        assert sorted(told) == sorted(item.key for item in unit.items), record.name


def _check_shards(store: Store, records: list[UnitRecord]) -> None:
    """Refuse shards that are gone or cut off since they were written; their units are left over.

    Raises:
        DataError: if there are any.
    """
    sizes = store.sizes()
    lost = {
        shard.path: record.name
        for record in records
        for shard in record.shards
        if sizes.get(shard.path) != shard.bytes
    }
    if lost:
        drop_records(store, lost.values())
        raise DataError(
            f"{len(lost)} of the shards written are no longer whole in {store.uri}, such as "
            f"{min(lost)}; run the same command again, which packs only the images of these anew"
        )


def _check_bad(
    store: Store, plan: Plan, records: list[UnitRecord], max_bad_fraction: float
) -> None:
    bad = [row for record in records for row in record.bad]
    if len(bad) > max_bad_fraction * plan.num_items:
        # Repaired images must be read anew by the next run.
        drop_records(store, [record.name for record in records if record.bad])
        shown = "; ".join(f"{row.source}: {row.reason}" for row in bad[:_SHOWN])
        raise DataError(
            f"{len(bad)} of {plan.num_items} images cannot be used, allowed is "
            f"data.max_bad_fraction={max_bad_fraction}: {shown}; all are listed in "
            f"{store.url(QUARANTINE_NAME)}; repair or remove them, or raise the limit, and run "
            "the same command again"
        )
    if not any(record.shards for record in records):
        drop_records(store)
        raise DataError(
            f"no samples: all {plan.num_items} images are in quarantine, see "
            f"{store.url(QUARANTINE_NAME)}"
        )


def _duplicates(records: list[UnitRecord]) -> list[dict[str, object]]:
    prints = [
        Fingerprint(row.key, record.split, row.group, row.bits)
        for record in records
        for row in record.images
        if row.bits is not None
    ]
    return [
        {
            "key": one.key,
            "split": one.split,
            "other_key": other.key,
            "other_split": other.split,
            "differing_bits": distance,
        }
        for one, other, distance in near_duplicates(prints)
    ]


def _in_order(records: list[UnitRecord]) -> list[ShardInfo]:
    """Return all shards, by split, resolution, unit and part."""
    shards = [shard for record in records for shard in record.shards]
    # A stable sort: units and parts stay in the order of the plan.
    return sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.resolution))


def _counts_of_labels(records: list[UnitRecord]) -> dict[Split, dict[Label, int]]:
    total: dict[Split, Counter[Label]] = {}
    for record in records:
        total.setdefault(record.split, Counter()).update(record.labels)
    return {split: dict(sorted(count.items())) for split, count in total.items() if count}


def _counts_of_images(records: list[UnitRecord]) -> dict[Split, dict[Label, int]]:
    total: dict[Split, Counter[Label]] = {}
    for record in records:
        total.setdefault(record.split, Counter()).update(row.label for row in record.images)
    return {split: dict(sorted(count.items())) for split, count in total.items() if count}


def _counts_of_kinds(records: list[UnitRecord]) -> dict[Split, dict[str, int]]:
    total: dict[Split, Counter[str]] = {}
    for record in records:
        total.setdefault(record.split, Counter()).update(record.kinds)
    return {split: dict(sorted(count.items())) for split, count in total.items() if count}


def _contamination(plan: Plan, records: list[UnitRecord]) -> float | None:
    """Return the abnormal share of the samples of train-normal, where it is known.

    Raises:
        DataError: if all of them are abnormal.
    """
    if plan.settings.contamination is not None:
        return plan.settings.contamination
    normal = [record for record in records if record.split == "train-normal"]
    num_samples = sum(sum(record.labels.values()) for record in normal)
    num_contaminants = sum(record.num_contaminants for record in normal)
    if num_contaminants and num_contaminants == num_samples:
        raise DataError(
            f"nothing normal to train on: masks mark defects in all {num_samples} samples of "
            "train-normal; a mask is white where the defect is, look whether these are inverted"
        )
    return num_contaminants / num_samples if num_contaminants else None
