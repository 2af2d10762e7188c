"""Packing: reproducible bytes, restarts, quarantine, tiles, and the index."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from data.dataset import INDEX_NAME, load_index
from data.errors import DataError
from data.item import Item, Picture
from data.pack import as_item, pack, pack_unit
from data.pack_finish import finish
from data.pack_records import load_records, open_plan, pending
from data.plan import PackSettings, Plan, make_plan
from data.sample import Sample, Split
from data.shards import read_shard
from data.store import Store


def _sample(number: int, split: Split = "train-normal") -> Sample:
    image = np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    return Sample(f"s{number}", image, "normal", "unit test", f"g{number}", "good", split)


SAMPLES = [_sample(n) for n in range(10)] + [_sample(n, "test") for n in range(10, 15)]
SETTINGS = PackSettings(name="n", resolution=8, seed=0, shard_samples=4)


def _pack(samples: list[Sample], store: Store, resolution: int = 8, seed: int = 0):
    return pack(samples, store, resolution=resolution, name="n", seed=seed, shard_samples=4)


def _contents(store: Store) -> dict[str, bytes]:
    return {name: store.read_bytes(name) for name in store.list()}


def _run(store: Store, plan: Plan, *, max_bad_fraction: float = 0.0, limit: int | None = None):
    """Pack as a driver does; with a limit, stop after so many units."""
    if index := open_plan(store, plan):
        return index
    for unit in pending(plan, load_records(store, plan))[:limit]:
        pack_unit(unit, store, plan.settings, plan.digest)
    return None if limit is not None else finish(store, plan, max_bad_fraction=max_bad_fraction)


def _plan(items: list[Item], **changes: object) -> Plan:
    return make_plan(items, replace(SETTINGS, **changes))


def test_same_samples_and_seed_give_the_same_bytes(tmp_path) -> None:
    stores = [Store(str(tmp_path / name)) for name in "abc"]
    index = _pack(SAMPLES, stores[0])
    _pack(SAMPLES[::-1], stores[1])
    _pack(SAMPLES, stores[2], seed=1)
    assert _contents(stores[0]) == _contents(stores[1])
    first = "train-normal/8/00000-000.tar"
    assert stores[0].read_bytes(first) != stores[2].read_bytes(first)
    assert load_index(stores[0]) == index


def test_index_says_what_the_shards_hold(tmp_path) -> None:
    store = Store(str(tmp_path))
    index = _pack(SAMPLES, store)
    assert index.resolutions == (4, 8)
    assert index.num_samples("train-normal") == 10
    assert index.num_samples("validation") == 0
    assert index.labels == {"train-normal": {"normal": 10}, "test": {"normal": 5}}
    assert index.kinds["test"] == {"good": 5}
    assert [shard.path for shard in index.shards_of("test")] == [
        "test/8/00000-000.tar",
        "test/8/00001-000.tar",
    ]
    assert index.shards_of("test", 4) == ()
    lists = {"plan.json", "quarantine.jsonl", "duplicates.jsonl"}
    assert set(store.list()) == {shard.path for shard in index.shards} | {INDEX_NAME} | lists
    keys = []
    for shard in index.shards:
        contents = read_shard(store.read_bytes(shard.path), shard)
        assert contents.checksum_ok
        assert len(contents.samples) == shard.samples
        assert {s.image.shape[0] for s in contents.samples} == {shard.resolution}
        if shard.resolution == 8:
            keys += [sample.key for sample in contents.samples]
    assert sorted(keys) == sorted(sample.key for sample in SAMPLES)


def test_shard_holds_the_same_samples_at_every_resolution(tmp_path) -> None:
    store = Store(str(tmp_path))
    index = _pack(SAMPLES, store)
    for low, high in zip(
        index.shards_of("train-normal", 4), index.shards_of("train-normal", 8), strict=True
    ):
        keys = [
            [sample.key for sample in read_shard(store.read_bytes(shard.path)).samples]
            for shard in (low, high)
        ]
        assert keys[0] == keys[1]


def test_no_index_while_shards_are_replaced_and_none_of_the_old_remain(tmp_path) -> None:
    store, fresh = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    _pack([*SAMPLES, *(_sample(n, "validation") for n in range(20, 26))], store)
    foreign = {"notes/0.tar": b"mine", "test/8/notes.tar": b"mine"}
    for name, payload in foreign.items():
        store.write_bytes(name, payload)
    seen = []
    pack(
        SAMPLES,
        store,
        resolution=8,
        name="n",
        seed=1,
        shard_samples=4,
        progress=lambda done, total: seen.append((done, total, store.exists(INDEX_NAME))),
    )
    assert seen == [(done, 15, False) for done in (4, 8, 10, 14, 15)]
    _pack(SAMPLES, fresh, seed=1)
    assert _contents(store) == _contents(fresh) | foreign


def test_restart_packs_only_what_is_missing_and_gives_the_same_bytes(tmp_path) -> None:
    plan = _plan([as_item(sample) for sample in SAMPLES])
    straight = Store(str(tmp_path / "straight"))
    _run(straight, plan)
    for stop in range(len(plan.units) + 1):
        store = Store(str(tmp_path / f"stopped-{stop}"))
        _run(store, plan, limit=stop)
        assert not store.exists(INDEX_NAME)
        reads: list[str] = []
        items = [
            replace(i, read=_Counting(i.read, i.key, reads)) for u in plan.units for i in u.items
        ]
        again = make_plan(items, plan.settings)
        assert again.digest == plan.digest
        _run(store, again)
        finished = [item.key for unit in plan.units[:stop] for item in unit.items]
        assert sorted(reads) == sorted({item.key for item in items} - set(finished))
        assert _contents(store) == _contents(straight)


class _Counting:
    """A reader that notes each call and looks like the one it wraps."""

    def __init__(self, read: Callable[[], Picture], key: str, reads: list[str]) -> None:
        self._read, self._key, self._reads = read, key, reads

    def __call__(self) -> Picture:
        self._reads.append(self._key)
        return self._read()

    def __repr__(self) -> str:
        return repr(self._read)


def test_units_that_others_wrote_elsewhere_are_told(tmp_path) -> None:
    """As by nodes that have a folder of this name each."""
    store, plan = Store(str(tmp_path)), _plan([as_item(sample) for sample in SAMPLES])
    _run(store, plan, limit=2)
    with pytest.raises(DataError, match=r"3 of 5 units were packed, but .* a place that all nodes"):
        finish(store, plan, max_bad_fraction=0.0)


def test_a_shard_that_is_gone_before_the_end_is_packed_again(tmp_path) -> None:
    store, fresh = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    plan = _plan([as_item(sample) for sample in SAMPLES])
    _run(store, plan, limit=len(plan.units))
    store.delete("test/8/00001-000.tar")
    store.write_bytes("train-normal/4/00000-000.tar", b"cut off")
    with pytest.raises(DataError, match=r"2 of the shards .*test/8/00001-000\.tar; run the same"):
        finish(store, plan, max_bad_fraction=0.0)
    assert not store.exists(INDEX_NAME)
    left = {unit.name for unit in pending(plan, load_records(store, plan))}
    assert left == {"test-00001", "train-normal-00000"}
    _run(store, plan)
    _run(fresh, plan)
    assert _contents(store) == _contents(fresh)


def test_finished_plan_is_left_alone_unless_a_file_is_gone_or_cut_off(tmp_path) -> None:
    store = Store(str(tmp_path))
    _pack(SAMPLES, store)
    before = _contents(store)
    (tmp_path / "test/8/00000-000.tar").touch()
    stamp = (tmp_path / INDEX_NAME).stat().st_mtime_ns
    _pack(SAMPLES, store)
    assert (tmp_path / INDEX_NAME).stat().st_mtime_ns == stamp
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-512])):
        for name in ("test/8/00000-000.tar", INDEX_NAME):
            damage(tmp_path / name)
            _pack(SAMPLES, store)
            assert _contents(store) == before


def test_records_of_another_plan_are_dropped(tmp_path) -> None:
    store, fresh = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    items = [as_item(sample) for sample in SAMPLES]
    _run(store, _plan(items, seed=1), limit=3)
    stale = store.read_bytes("units/train-normal-00001.json")
    plan = _plan(items)
    assert open_plan(store, plan) is None
    assert store.list("units/") == []
    # A worker of the old job may still have been writing.
    store.write_bytes("units/train-normal-00001.json", stale)
    assert load_records(store, plan) == {}
    _run(store, plan)
    _run(fresh, plan)
    assert _contents(store) == _contents(fresh)


@pytest.mark.parametrize(
    ("samples", "resolution", "message"),
    [
        ([], 8, "data set is empty"),
        (SAMPLES, 12, "resolution=12 is not a power of two"),
        (SAMPLES, 2048, "resolution=2048"),
        (SAMPLES, 16, "is 8x8, resolution=16"),
        ([*SAMPLES, SAMPLES[0]], 8, "key s0 appears twice"),
        ([*SAMPLES, replace(_sample(99, "test"), group="g0")], 8, "group g0 is in two splits"),
        (
            [_sample(0), replace(_sample(1), image=np.zeros((8, 8, 3), np.uint8))],
            8,
            r"mixed channels: s\d has [13], s\d has [13]",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path, samples: list[Sample], resolution: int, message: str
) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match=message):
        _pack(samples, store, resolution)
    assert store.list() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"colour": "red"}, "colour"),
        ({"channels": 2}, "channels"),
    ],
)
def test_foreign_index_is_refused(tmp_path, change: dict[str, object], message: str) -> None:
    store = Store(str(tmp_path))
    _pack(SAMPLES, store)
    fields = json.loads(store.read_bytes(INDEX_NAME)) | change
    store.write_bytes(INDEX_NAME, json.dumps(fields).encode())
    with pytest.raises(DataError, match=rf"dataset\.json is not .*{message}"):
        load_index(store)


def test_missing_and_broken_index_are_named(tmp_path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match=r"dataset\.json does not exist"):
        load_index(store)
    store.write_bytes(INDEX_NAME, b"{")
    with pytest.raises(DataError, match="Invalid JSON"):
        load_index(store)
