"""What becomes of single images: quarantine, resizing, tiles, contamination, near-duplicates."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from data.dataset import INDEX_NAME
from data.errors import DataError, StoreError, StoreUnavailableError
from data.item import Item, Picture
from data.pack import pack_unit
from data.pack_finish import finish
from data.pack_records import load_records, open_plan, pending
from data.plan import PackSettings, Plan, make_plan
from data.sample import Label, Split
from data.shards import read_shard
from data.store import Store

SETTINGS = PackSettings(name="n", resolution=8, seed=0, shard_samples=4)


def _contents(store: Store) -> dict[str, bytes]:
    return {name: store.read_bytes(name) for name in store.list()}


def _run(store: Store, plan: Plan, *, max_bad_fraction: float = 0.0):
    """Pack as a driver does."""
    if index := open_plan(store, plan):
        return index
    for unit in pending(plan, load_records(store, plan)):
        pack_unit(unit, store, plan.settings, plan.digest)
    return finish(store, plan, max_bad_fraction=max_bad_fraction)


def _plan(items: list[Item], **changes: object) -> Plan:
    return make_plan(items, replace(SETTINGS, **changes))


def _noise(seed: int, height: int = 8, width: int = 8, channels: int = 1) -> Picture:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8), None


def _broken(error: type[Exception]) -> Picture:
    raise error("cut off in the middle")


def _item(number: int, read: Callable[[], Picture], split: Split = "test") -> Item:
    name = f"i{number:02d}"
    return Item(name, read, "normal", "good", name, f"bucket/{name}.png", split)


def _items(num: int, **bad: Callable[[], Picture]) -> list[Item]:
    reads = {f"i{n:02d}": partial(_noise, n) for n in range(num)} | bad
    return [_item(int(name[1:]), read) for name, read in reads.items()]


def test_bad_images_go_to_quarantine_and_the_others_are_packed(tmp_path) -> None:
    store = Store(str(tmp_path))
    bad = {"i03": partial(_broken, DataError), "i11": partial(_noise, 0, 8, 8, 3)}
    index = _run(store, _plan(_items(20, **bad), channels=1), max_bad_fraction=0.1)
    rows = [json.loads(line) for line in store.read_bytes("quarantine.jsonl").splitlines()]
    assert {row["key"]: row["reason"][:21] for row in rows} == {
        "i03": "cut off in the middle",
        "i11": "the image has 3 chann",
    }
    assert {row["source"] for row in rows} == {"bucket/i03.png", "bucket/i11.png"}
    assert {row["split"] for row in rows} == {"test"}
    assert (index.num_quarantined, index.num_samples("test")) == (2, 18)


def test_too_many_bad_images_are_one_error_after_the_list(tmp_path) -> None:
    store = Store(str(tmp_path))
    bad = {f"i{n:02d}": partial(_broken, DataError) for n in (3, 11, 12)}
    plan = _plan(_items(20, **bad))
    told = (
        r"3 of 20 images cannot be used, .*max_bad_fraction=0.1: .*i\d\d.png: cut off.*quarantine"
    )
    with pytest.raises(DataError, match=told):
        _run(store, plan, max_bad_fraction=0.1)
    assert len(store.read_bytes("quarantine.jsonl").splitlines()) == 3
    assert not store.exists(INDEX_NAME)
    # The user repairs one image, which the plan cannot see, and runs the same command again.
    read = partial(_noise, 3)
    units = [
        replace(u, items=tuple(replace(i, read=read) if i.key == "i03" else i for i in u.items))
        for u in plan.units
    ]
    index = _run(store, replace(plan, units=tuple(units)), max_bad_fraction=0.1)
    assert (index.num_quarantined, index.num_samples("test")) == (2, 18)


def test_nothing_but_bad_images_is_an_error_whatever_is_tolerated(tmp_path) -> None:
    bad = {f"i{n:02d}": partial(_broken, DataError) for n in range(5)}
    with pytest.raises(DataError, match="no samples: all 5 images are in quarantine"):
        _run(Store(str(tmp_path)), _plan(_items(5, **bad)), max_bad_fraction=1.0)


@pytest.mark.parametrize("failure", [StoreUnavailableError, StoreError])
def test_store_that_fails_is_no_bad_image(tmp_path, failure: type[StoreError]) -> None:
    plan = _plan(_items(5, i03=partial(_broken, failure)))
    with pytest.raises(failure):
        _run(Store(str(tmp_path)), plan, max_bad_fraction=1.0)


def test_a_lack_of_memory_is_told_with_the_image_and_is_no_bad_one(tmp_path) -> None:
    plan = _plan(_items(5, i03=partial(_broken, MemoryError)))
    with pytest.raises(StoreError, match=r"memory for bucket/i03\.png; .*cluster\.cpus_per_worker"):
        _run(Store(str(tmp_path)), plan, max_bad_fraction=1.0)


def test_mixed_channels_of_a_source_are_one_error(tmp_path) -> None:
    plan = _plan(_items(20, i07=partial(_noise, 7, 8, 8, 3)))
    with pytest.raises(
        DataError, match=r"mixed channels: i\d\d has 1, i07 has 3; set pack.channels"
    ):
        _run(Store(str(tmp_path)), plan, max_bad_fraction=1.0)


def test_whole_images_are_resized_and_so_are_masks(tmp_path) -> None:
    image, _ = _noise(1, 40, 60)
    mask = np.zeros((40, 60), bool)
    mask[39, 59] = True
    store = Store(str(tmp_path))
    index = _run(store, _plan([_item(0, partial(_pair, image, mask))]))
    (sample,) = read_shard(store.read_bytes(index.shards[0].path)).samples
    assert sample.image.shape == (8, 8, 1)
    assert sample.tile is None
    assert sample.mask.sum() == 1
    assert sample.mask[7, 7]


def _pair(image: np.ndarray, mask: np.ndarray | None) -> Picture:
    return image, mask


def _tiled(**changes: object) -> dict[str, object]:
    return {"mode": "tiles", "tile_overlap": 2, "shard_samples": 5} | changes


def test_tiles_keep_native_pixels_their_place_and_their_parent(tmp_path) -> None:
    store = Store(str(tmp_path))
    image, _ = _noise(5, 13, 20)
    mask = np.zeros((13, 20), bool)
    mask[:2, :2] = True
    item = replace(_item(5, partial(_pair, image, mask)), label="abnormal")
    index = _run(store, _plan([item], **_tiled()))
    assert (index.mode, index.tile_overlap) == ("tiles", 2)
    (shard,) = index.shards_of("test")
    samples = read_shard(store.read_bytes(shard.path), shard).samples
    places = [(y, x) for y in (0, 5) for x in (0, 6, 12)]
    assert [sample.key for sample in samples] == [f"i05-y{y:05d}-x{x:05d}" for y, x in places]
    for sample, (y, x) in zip(samples, places, strict=True):
        np.testing.assert_array_equal(sample.image, image[y : y + 8, x : x + 8])
        np.testing.assert_array_equal(sample.mask, mask[y : y + 8, x : x + 8])
        tile = sample.tile
        assert tile is not None
        assert (tile.parent, tile.y, tile.x, tile.height, tile.width) == ("i05", y, x, 13, 20)
        assert tile.label == "abnormal"
        assert sample.label == ("abnormal" if (y, x) == (0, 0) else "normal")
    assert index.labels == {"test": {"abnormal": 1, "normal": 5}}
    assert index.images == {"test": {"abnormal": 1}}


def test_tiles_of_one_image_stay_together_and_shards_are_bounded(tmp_path) -> None:
    store = Store(str(tmp_path))
    items = [_item(n, partial(_noise, n, 8, 8 * (n % 3 + 1)), "train-normal") for n in range(12)]
    index = _run(store, _plan(items, **_tiled(tile_overlap=0)))
    shards = index.shards_of("train-normal")
    assert [s.samples for s in shards] == [s.samples for s in index.shards_of("train-normal", 4)]
    where: dict[str, set[str]] = {}
    for shard in shards:
        assert shard.samples <= 4 + 3
        for sample in read_shard(store.read_bytes(shard.path)).samples:
            assert sample.tile is not None
            where.setdefault(sample.tile.parent, set()).add(shard.path)
    assert len(where) == 12
    assert all(len(paths) == 1 for paths in where.values())
    assert len(shards) > 3
    assert "train-normal/8/00000-001.tar" in {shard.path for shard in shards}


def test_image_smaller_than_a_tile_is_quarantined(tmp_path) -> None:
    store = Store(str(tmp_path))
    items = _items(10, i04=partial(_noise, 4, 7, 90))
    index = _run(store, _plan(items, **_tiled()), max_bad_fraction=0.1)
    (row,) = map(json.loads, store.read_bytes("quarantine.jsonl").splitlines())
    assert row["reason"].startswith("the image is 7x90, smaller than a tile of 8x8")
    assert index.num_quarantined == 1


def test_contamination_is_told_as_the_share_of_samples(tmp_path) -> None:
    image, _ = _noise(1, 8, 32)
    mask = np.zeros((8, 32), bool)
    mask[:4, :4] = True
    items = [_item(n, partial(_noise, n, 8, 32), "train-normal") for n in range(4)]
    items += [_item(9, partial(_pair, image, mask), "train-normal")]
    settings = replace(SETTINGS, **_tiled(tile_overlap=0))
    for mixed_in in ((), ["i09"]):
        store = Store(str(tmp_path / f"tiles-{len(mixed_in)}"))
        index = _run(store, make_plan(items, settings, contaminants=mixed_in))
        # 16 normal tiles, and of the abnormal image the one that shows its defect.
        assert index.contamination == pytest.approx(1 / 17)
    index = _run(Store(str(tmp_path / "whole")), make_plan(items, SETTINGS, ["i09"]))
    assert index.contamination == pytest.approx(1 / 5)
    index = _run(Store(str(tmp_path / "no-mask")), make_plan(items[:4], SETTINGS, ["i02"]))
    assert index.contamination == pytest.approx(1 / 4)
    index = _run(Store(str(tmp_path / "clean")), make_plan(items[:4], SETTINGS))
    assert index.contamination is None


def test_masks_that_call_all_of_train_normal_defective_are_refused(tmp_path) -> None:
    image, _ = _noise(1, 8, 8)
    items = [
        _item(n, partial(_pair, image, np.ones((8, 8), bool)), "train-normal") for n in range(3)
    ]
    with pytest.raises(DataError, match="in all 3 samples of train-normal; a mask is white"):
        _run(Store(str(tmp_path)), make_plan(items, SETTINGS))


def test_near_duplicates_in_different_splits_are_listed(tmp_path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 1), dtype=np.uint8) for _ in range(6)]
    splits: list[Split] = ["train-normal", "train-normal", "validation", "test", "test", "test"]
    items = [_item(n, partial(_pair, i, None), splits[n]) for n, i in enumerate(images)]
    items += [_item(10, partial(_pair, images[0], None), "test")]
    store = Store(str(tmp_path))
    _run(store, _plan(items))
    (row,) = map(json.loads, store.read_bytes("duplicates.jsonl").splitlines())
    assert row == {
        "key": "i00",
        "split": "train-normal",
        "other_key": "i10",
        "other_split": "test",
        "differing_bits": 0,
    }


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_import_order_changes_no_byte(tmp_path, mode: str) -> None:
    labels: list[Label] = ["normal", "abnormal"]
    items = [
        replace(_item(n, partial(_noise, n, 10, 12), split), label=labels[n % 2])
        for n, split in enumerate(["train-normal", "test", "validation", "train-abnormal"] * 6)
    ]
    items.append(_item(90, partial(_broken, DataError)))
    stores = [Store(str(tmp_path / name)) for name in "ab"]
    for store, order in zip(stores, (items, random.Random(3).sample(items, 25)), strict=True):
        _run(store, _plan(order, mode=mode), max_bad_fraction=0.5)
    assert _contents(stores[0]) == _contents(stores[1])
