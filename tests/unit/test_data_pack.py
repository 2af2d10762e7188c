"""Packing and the index."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data.dataset import INDEX_NAME, load_index
from data.errors import DataError
from data.pack import pack
from data.sample import Sample, Split
from data.shards import read_shard
from data.store import Store


def _sample(number: int, split: Split = "train-normal") -> Sample:
    image = np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    return Sample(f"s{number}", image, "normal", "unit test", f"g{number}", "good", split)


SAMPLES = [_sample(n) for n in range(10)] + [_sample(n, "test") for n in range(10, 15)]


def _pack(samples: list[Sample], store: Store, resolution: int = 8, seed: int = 0):
    return pack(samples, store, resolution=resolution, name="n", seed=seed, shard_samples=4)


def _contents(store: Store) -> dict[str, bytes]:
    return {name: store.read_bytes(name) for name in store.list()}


def test_same_samples_and_seed_give_the_same_bytes(tmp_path) -> None:
    stores = [Store(str(tmp_path / name)) for name in "abc"]
    index = _pack(SAMPLES, stores[0])
    _pack(SAMPLES[::-1], stores[1])
    _pack(SAMPLES, stores[2], seed=1)
    assert _contents(stores[0]) == _contents(stores[1])
    first = "train-normal/8/00000.tar"
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
        "test/8/00000.tar",
        "test/8/00001.tar",
    ]
    assert index.shards_of("test", 4) == ()
    assert set(store.list()) == {shard.path for shard in index.shards} | {INDEX_NAME}
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


def test_no_index_while_shards_are_replaced(tmp_path) -> None:
    store = Store(str(tmp_path))
    _pack(SAMPLES, store)
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
    assert seen == [(done, 5, False) for done in range(1, 6)]


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
