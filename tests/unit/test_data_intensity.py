"""Intensity: the formula against plain numpy, what it does not see, where the scale comes from."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from pydantic import ValidationError

from data import intensity as intensity_module
from data.dataset import DatasetIndex, load_index
from data.errors import DataError, StoreUnavailableError
from data.intensity import centre_and_spread, standardised
from data.intensity_fit import MOST_PICTURES, fitted
from data.item import Item, Picture
from data.pack import cut_picture, pack_unit
from data.pack_finish import finish
from data.pack_records import load_records, open_plan, pending
from data.plan import PackSettings, Plan, make_plan
from data.preparation import Preparation
from data.pyramid import to_square
from data.sample import Image8, Split
from data.store import Store

SETTINGS = PackSettings(name="n", resolution=8, seed=0, shard_samples=4)
MODES = ("none", "image", "dataset")


def _image(seed: int, *shape: int, low: int = 0, high: int = 256) -> Image8:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def _plain(image: Image8, centre: float, spread: float) -> Image8:
    """The formula as it is written, rounded half up."""
    values = 127.5 + 32 * (image.astype(np.float64) - centre) / spread
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


PICTURES = {
    "odd": _image(0, 5, 7, 1),
    "even": _image(1, 6, 4, 1, high=3),
    "two halves": np.repeat(np.array([10, 201], np.uint8), 32).reshape(8, 8, 1),
    "colour": _image(2, 9, 11, 3, low=90, high=110),
    "turned": np.rot90(_image(3, 9, 6, 3)),
    "almost flat": np.where(np.arange(400).reshape(20, 20, 1) == 7, 200, 30).astype(np.uint8),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_s_own_scale_is_that_of_plain_numpy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intensity_module, "_SLICE", 10)
    image = PICTURES[name]
    centre, spread = centre_and_spread(image)
    assert centre == np.median(image)
    assert spread == pytest.approx(np.std(image, dtype=np.float64), rel=1e-12)
    made = standardised(image, "image", None)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, _plain(image, centre, spread))


def test_the_scale_of_a_data_set_is_one_map_for_all_values() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    made = standardised(image, "dataset", (100.0, 20.0))
    np.testing.assert_array_equal(made, _plain(image, 100.0, 20.0))
    assert made.reshape(-1)[[20, 100, 120, 180]].tolist() == [0, 128, 160, 255]
    assert standardised(image, "none", None) is image


def test_brightness_and_contrast_of_a_picture_change_nothing_in_mode_image() -> None:
    image = _image(5, 12, 10, 3, low=20, high=100)
    wanted = standardised(image, "image", None)
    for factor, offset in ((1, 13), (1, -20), (2, 0), (2, 40)):
        other = (image.astype(int) * factor + offset).astype(np.uint8)
        np.testing.assert_array_equal(standardised(other, "image", None), wanted)
    assert not np.array_equal(standardised(image, "dataset", (60.0, 20.0)), wanted)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_picture_becomes_the_middle(value: int) -> None:
    image = np.full((4, 6, 3), value, np.uint8)
    with np.errstate(all="raise"):
        made = standardised(image, "image", None)
    assert np.unique(made).tolist() == [128]


def _held(image: Image8) -> Picture:
    return image, None


def _broken(error: type[Exception]) -> Picture:
    raise error("cut off in the middle")


def _item(number: int, read: Callable[[], Picture], split: Split = "test") -> Item:
    name = f"i{number:03d}"
    return Item(name, read, "normal", "good", name, f"bucket/{name}.png", split)


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_the_scale_is_that_of_the_whole_picture_before_it_is_cut_or_resized(mode: str) -> None:
    image = _image(4, 21, 30, 1, high=60)
    image[:, 15:] += 150
    settings = replace(SETTINGS, mode=mode, intensity="image")
    samples = cut_picture(_item(0, partial(_held, image)), (image, None), settings)
    whole = _plain(image, float(np.median(image)), float(np.std(image)))
    for sample in samples:
        y, x = (sample.tile.y, sample.tile.x) if sample.tile else (0, 0)
        wanted = whole[y : y + 8, x : x + 8] if mode == "tiles" else to_square(whole, 8)
        np.testing.assert_array_equal(sample.image, wanted)
    assert len(samples) == (12 if mode == "tiles" else 1)


def _items(changed: dict[int, Callable[[], Picture]] | None = None) -> list[Item]:
    """Twelve of train-normal, each with its own brightness and contrast, four more of each."""
    splits: list[Split] = ["train-normal"] * 12
    splits += [s for s in ("train-abnormal", "validation", "test") for _ in range(4)]
    reads = {
        n: partial(_held, _image(n, 10, 12, 1, low=5 * n, high=5 * n + 20 + 3 * n))
        for n in range(len(splits))
    }
    reads.update(changed or {})
    return [_item(n, reads[n], split) for n, split in enumerate(splits)]


def _plan(items: list[Item], intensity: str = "dataset", **changes: object) -> Plan:
    return make_plan(items, replace(SETTINGS, intensity=intensity, **changes))


def _run(
    store: Store, plan: Plan, *, limit: int | None = None, backwards: bool = False
) -> DatasetIndex | None:
    """Pack as a driver does; with a limit, stop after so many units."""
    if index := open_plan(store, plan):
        return index
    plan = fitted(plan, store)
    todo = pending(plan, load_records(store, plan))[:limit]
    for unit in todo[::-1] if backwards else todo:
        pack_unit(unit, store, plan.settings, plan.digest)
    return None if limit is not None else finish(store, plan, max_bad_fraction=0.1)


def _contents(store: Store) -> dict[str, bytes]:
    return {name: store.read_bytes(name) for name in store.list()}


def _normal_scales(items: list[Item]) -> list[tuple[float, float]]:
    images = [item.read()[0] for item in items if item.split == "train-normal"]
    return [(float(np.median(image)), float(np.std(image))) for image in images]


def test_the_scale_of_a_data_set_is_the_median_over_train_normal_alone(tmp_path) -> None:
    stores = [Store(str(tmp_path / name)) for name in "ab"]
    index = _run(stores[0], _plan(_items()))
    assert index.intensity == "dataset"
    wanted = np.median(_normal_scales(_items()), axis=0)
    assert index.intensity_reference == pytest.approx(tuple(wanted), rel=1e-12)
    assert load_index(stores[0]) == index
    # Whatever is in the other splits.
    white = partial(_held, np.tile(np.array([0, 255], np.uint8), 60).reshape(10, 12, 1))
    other = _run(stores[1], _plan(_items(dict.fromkeys(range(12, 24), white))))
    assert other.intensity_reference == index.intensity_reference
    for before, after in zip(index.shards, other.shards, strict=True):
        assert (before.sha256 == after.sha256) == (before.split == "train-normal")


def test_a_minority_of_odd_pictures_hardly_moves_the_scale() -> None:
    clean = [_image(n, 20, 20, 1, high=100) for n in range(10)]
    odd = [np.full((20, 20, 1), 255, np.uint8)] * 4
    alone, mixed = (
        fitted(_plan([_item(n, partial(_held, i), "train-normal") for n, i in enumerate(images)]))
        for images in (clean, clean + odd)
    )
    assert alone.settings.intensity_reference is not None
    wanted = pytest.approx(alone.settings.intensity_reference, abs=4)
    assert mixed.settings.intensity_reference == wanted


def test_many_pictures_are_sampled_and_neither_order_nor_unit_size_matters() -> None:
    reads: list[int] = []

    def read(number: int) -> Picture:
        reads.append(number)
        return np.array([[[number % 200], [number % 200 + 9]]], np.uint8), None

    items = [_item(n, partial(read, n), "train-normal") for n in range(MOST_PICTURES + 99)]
    plans = [_plan(items), _plan(items[::-1]), _plan(items, shard_samples=7)]
    found = []
    for plan in plans:
        reads.clear()
        found.append((fitted(plan).settings.intensity_reference, sorted(reads)))
    assert found[0] == found[1] == found[2]
    assert len(found[0][1]) == MOST_PICTURES
    assert found[0][1] != list(range(MOST_PICTURES))


@pytest.mark.parametrize("mode", MODES)
def test_a_continued_packing_gives_the_same_bytes_in_any_order_of_units(
    tmp_path, mode: str
) -> None:
    straight = Store(str(tmp_path / "straight"))
    _run(straight, _plan(_items(), mode))
    for stop in (0, 2, 5):
        store = Store(str(tmp_path / f"stopped-{stop}"))
        _run(store, _plan(_items(), mode), limit=stop)
        _run(store, _plan(_items()[::-1], mode), backwards=True)
        assert _contents(store) == _contents(straight)


def test_a_continued_packing_keeps_its_scale_and_finds_it_but_once(tmp_path) -> None:
    store = Store(str(tmp_path))
    plan = _plan(_items())
    _run(store, plan, limit=2)
    broken = partial(_broken, DataError)
    units = [replace(u, items=tuple(replace(i, read=broken) for i in u.items)) for u in plan.units]
    unreadable = replace(plan, units=tuple(units))
    assert fitted(unreadable, store).settings == fitted(plan).settings
    with pytest.raises(DataError, match="none that can be read"):
        fitted(unreadable)


@pytest.mark.parametrize(("first", "second"), [("image", "none"), ("none", "dataset")])
def test_a_packing_begun_in_another_mode_is_begun_anew(tmp_path, first: str, second: str) -> None:
    store, fresh = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    _run(store, _plan(_items(), first), limit=3)
    _run(store, _plan(_items(), second))
    _run(fresh, _plan(_items(), second))
    assert _contents(store) == _contents(fresh)


def test_a_scale_left_by_another_plan_is_not_taken(tmp_path) -> None:
    store = Store(str(tmp_path))
    _run(store, _plan(_items()), limit=1)
    other = _plan(_items()[:6])
    assert fitted(other, store).settings == fitted(other).settings


def test_pictures_that_cannot_be_read_are_left_out_of_the_scale_and_quarantined(tmp_path) -> None:
    items = _items({3: partial(_broken, DataError)})
    index = _run(Store(str(tmp_path)), _plan(items))
    assert index.num_quarantined == 1
    wanted = np.median(_normal_scales([item for item in items if item.key != "i003"]), axis=0)
    assert index.intensity_reference == pytest.approx(tuple(wanted), rel=1e-12)


def test_no_scale_without_normal_training_pictures_or_without_contrast() -> None:
    with pytest.raises(DataError, match=r"fitted on normal training pictures, .*intensity=image"):
        fitted(_plan([item for item in _items() if item.split != "train-normal"]))
    flat = partial(_held, np.full((9, 9, 1), 9, np.uint8))
    with pytest.raises(DataError, match=r"most of 12 normal training pictures have one value"):
        fitted(_plan(_items(dict.fromkeys(range(7), flat))))
    silent = partial(_broken, StoreUnavailableError)
    with pytest.raises(StoreUnavailableError):
        fitted(_plan(_items({5: silent})))


def test_near_duplicates_are_looked_for_in_the_pictures_as_they_came(tmp_path) -> None:
    found = []
    for mode in MODES:
        plan = fitted(_plan(_items(), mode))
        store = Store(str(tmp_path / mode))
        records = [pack_unit(u, store, plan.settings, plan.digest) for u in plan.units]
        found.append([image for record in records for image in record.images])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("given", [("dataset", None), ("image", (1.0, 2.0)), ("dataset", (1.0, 0))])
def test_a_preparation_that_contradicts_itself_is_refused(given: tuple[str, object]) -> None:
    with pytest.raises(ValidationError, match="intensity"):
        Preparation(resolution=8, channels=1, intensity=given[0], intensity_reference=given[1])
