"""Images in a plain folder: all are found once, prepared as packing does, and none is lost."""

from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest

from data.dataset import load_index
from data.errors import DataError, StoreError, StoreUnavailableError
from data.importers import import_items
from data.item import ImportOptions
from data.pack import pack
from data.plain import plain_units, prepare_picture, read_plain
from data.plan import assign_splits
from data.preparation import Intensity, Preparation
from data.sample import Image8, encode_png
from data.shards import read_shard
from data.store import Store

WHOLE = Preparation(resolution=16, channels=1)
TILES = Preparation(resolution=16, channels=1, mode="tiles", tile_overlap=4)


def _image(number: int, height: int = 40, width: int = 24) -> Image8:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (height, width, 1), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, a file that claims to be one and one that does not."""
    for number in range(10):
        path = tmp_path / f"line-{number % 2}" / f"part-{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(_image(number)))
    (tmp_path / "line-0" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "shift.txt").write_text("night")
    return tmp_path


def test_every_image_is_in_one_unit_and_other_files_are_told(folder: Path) -> None:
    units, others = plain_units(Store(str(folder)), WHOLE, unit_images=4)
    assert [len(unit.items) for unit in units] == [4, 4, 3]
    sources = [item.source for unit in units for item in unit.items]
    assert len(set(sources)) == 11
    assert others == ["shift.txt"]
    hidden = [".trash/part-1.png", "line-0/._part-2.png", "line-1/@eaDir/part-1.png/thumb.jpg"]
    for name in hidden:
        Store(str(folder)).write_bytes(name, encode_png(_image(0)))
    again, others = plain_units(Store(str(folder)), WHOLE, unit_images=4)
    assert [item.source for unit in again for item in unit.items] == sources
    assert others == [*hidden, "shift.txt"]


def test_units_do_not_depend_on_where_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    keys = [
        i.key for u in plain_units(Store(str(folder)), WHOLE, unit_images=4)[0] for i in u.items
    ]
    moved = folder.rename(tmp_path.with_name("elsewhere"))
    again = [
        i.key for u in plain_units(Store(str(moved)), WHOLE, unit_images=4)[0] for i in u.items
    ]
    assert keys == again


def test_a_broken_image_is_accounted_for(folder: Path) -> None:
    units, _ = plain_units(Store(str(folder)), WHOLE, unit_images=100)
    contents = read_plain(units[0], WHOLE)
    assert len(contents.samples) == 10
    (damage,) = contents.damage
    assert damage.source.endswith("line-0/broken.jpg")
    assert damage.reason.startswith("not a PNG")
    assert {sample.label for sample in contents.samples} == {"unlabelled"}


@pytest.mark.parametrize("intensity", ["none", "image", "dataset"])
@pytest.mark.parametrize("preparation", [WHOLE, TILES], ids=["whole", "tiles"])
def test_images_are_prepared_as_packing_prepares_them(
    tmp_path: Path, preparation: Preparation, intensity: Intensity
) -> None:
    """16-bit levels, intensity, size, tiles: an inspection sees what the network was trained on."""
    source = tmp_path / "source"
    for kind, number in (("good", 1), ("good", 2), ("bad", 3)):
        pixels = _image(number)[:, :, 0].astype(np.uint16) * 40
        (source / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(source / kind / f"{number}.png"), pixels)
    preparation = preparation.model_copy(update={"levels": (100, 9000)})
    options = ImportOptions(channels=1, levels=preparation.levels)
    found = import_items(str(source), "folders", options)
    store = Store(str(tmp_path / "packed"))
    settings = preparation.model_dump(include={"resolution", "mode", "tile_overlap"})
    splits = assign_splits(found, 0, (1, 0, 0))
    index = pack(splits, store, name="x", seed=0, intensity=intensity, **settings)
    assert index.preparation.intensity == intensity
    preparation = index.preparation.model_copy(update={"levels": preparation.levels})
    shards = [shard for shard in index.shards if shard.resolution == 16]
    packed = [s for shard in shards for s in read_shard(store.read_bytes(shard.path)).samples]
    units, _ = plain_units(Store(str(source)), preparation, unit_images=9)
    plain = read_plain(units[0], preparation).samples
    assert len(packed) == len(plain) > 0
    by_key = {sample.key: sample for sample in packed}
    if intensity != "none":
        assert 100 < np.median([sample.image for sample in plain]) < 156
    alone = [
        each
        for item in units[0].items
        for each in prepare_picture(Path(item.source).read_bytes(), item.key, preparation)
    ]
    for sample in [*plain, *alone]:
        assert np.array_equal(sample.image, by_key[sample.key].image)
        assert sample.tile is None or sample.tile.y == getattr(by_key[sample.key].tile, "y", None)


def test_the_index_tells_how_images_were_prepared(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    source = tmp_path / "source"
    (source / "good").mkdir(parents=True)
    (source / "good" / "1.png").write_bytes(encode_png(_image(1)))
    found = assign_splits(import_items(str(source), "folders", ImportOptions()), 0, (0, 0, 1))
    pack(found, store, name="x", seed=0, resolution=16, mode="tiles", tile_overlap=4)
    assert load_index(store).preparation == TILES


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"no image by its name \(found notes.txt\)"):
        plain_units(Store(str(tmp_path)), WHOLE, unit_images=4)


@pytest.mark.parametrize(
    "failure", [StoreUnavailableError("silent"), StoreError("expired"), MemoryError()]
)
def test_a_store_that_fails_says_nothing_about_an_image(folder: Path, failure: Exception) -> None:
    units, _ = plain_units(Store(str(folder)), WHOLE, unit_images=100)
    with patch.object(Store, "read_bytes", side_effect=failure), pytest.raises(StoreError):
        read_plain(units[0], WHOLE)
