"""Importers of folders of images, and which importer a source calls for."""

import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.importers import FORMATS, caltech256, folders, import_items, mvtec
from data.item import ImportOptions, Item
from data.sample import encode_png
from data.store import Store

PLAIN = ImportOptions()


def counts(items: list[Item], split: str) -> Counter[str]:
    return Counter(item.kind for item in items if item.split == split)


def grey(value: int, height: int = 20, width: int = 30) -> bytes:
    return encode_png(np.full((height, width, 1), value, np.uint8))


def written(root: Path, *names: str) -> Store:
    """A folder of images, each of its own grey."""
    store = Store(str(root))
    for number, name in enumerate(names):
        store.write_bytes(name, grey(number % 256))
    return store


# --- one folder per class ---


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    names = [f"{kind}/{number:03d}.png" for kind in ("good", "scratch") for number in range(4)]
    store = written(tmp_path, *names)
    store.write_bytes("notes.txt", b"not an image")
    return store


def test_class_folders_become_items(folder: Store) -> None:
    items = folders.items(folder, PLAIN)
    assert [item.key for item in items] == [
        f"{kind}-{number:03d}" for kind in ("good", "scratch") for number in range(4)
    ]
    assert {(item.kind, item.label) for item in items} == {
        ("good", "normal"),
        ("scratch", "abnormal"),
    }
    assert {item.split for item in items} == {None}
    assert items[5].group == "scratch/001"
    assert items[5].source.endswith("/scratch/001.png")
    image, mask = pickle.loads(pickle.dumps(items[5])).read()
    assert image.shape == (20, 30, 1)
    assert image.max() == image.min() == 5
    assert mask is None


def test_import_decodes_nothing(folder: Store) -> None:
    folder.write_bytes("good/bad.png", b"rubbish")
    items = folders.items(folder, PLAIN)
    bad = next(item for item in items if item.key == "good-bad")
    with pytest.raises(DataError, match="not a PNG"):
        bad.read()


def test_masks_find_their_image(folder: Store) -> None:
    mask = np.zeros((20, 30, 1), np.uint8)
    mask[3, 4] = 1
    folder.write_bytes("masks/scratch/002.png", encode_png(mask))
    found = {item.key: item.read()[1] for item in folders.items(folder, PLAIN)}
    (key,) = [key for key, value in found.items() if value is not None]
    assert key == "scratch-002"
    assert np.argwhere(found[key]).tolist() == [[3, 4]]
    folder.write_bytes("masks/scratch/003.png", grey(1, 9, 9))
    with pytest.raises(DataError, match=r"mask .*003\.png: the mask is \[9, 9\]"):
        folders.items(folder, PLAIN)[7].read()
    folder.write_bytes("masks/scratch/999.png", encode_png(mask))
    with pytest.raises(DataError, match=r"999\.png is the mask of no image"):
        folders.items(folder, PLAIN)


def test_normal_folders_may_have_any_name_and_lie_deeper(tmp_path: Path) -> None:
    store = written(tmp_path, "images/ok/1.png", "images/dent/1.jpg", "masks/dent/1.png")
    options = ImportOptions(normal_kinds=("ok",))
    items = import_items(store.uri, "auto", options)
    assert [(i.key, i.label) for i in items] == [("dent-1", "abnormal"), ("ok-1", "normal")]
    with pytest.raises(DataError, match=r"no images in normal/ or good/.*\['dent', 'ok'\]"):
        folders.items(store, PLAIN)


def test_a_misspelt_normal_kind_is_named(tmp_path: Path) -> None:
    """Its images would train as defects."""
    store = written(tmp_path, "ok/1.png", "fine/1.png", "dent/1.png")
    options = ImportOptions(normal_kinds=("ok", "Fine"))
    with pytest.raises(DataError, match=r"'Fine', of which .* has no image; it has dent, fine, ok"):
        import_items(store.uri, "auto", options)


def test_files_left_out_for_their_names_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = written(tmp_path, "good/1.png", "dent/1.png")
    import_items(store.uri, "auto", PLAIN)
    assert not caplog.records
    for name in ("dent/2.jp2", "good/2.gif"):
        store.write_bytes(name, b"")
    assert len(import_items(store.uri, "auto", PLAIN)) == 2
    assert "2 files of" in caplog.text
    assert "such as dent/2.jp2: left out" in caplog.text


def test_what_is_hidden_or_kept_by_a_nas_is_no_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [".Trash/9.png", "good/@eaDir/1.png/thumb.jpg", "#recycle/9.png", "good/._1.png"]
    store = written(tmp_path, "good/1.png", "dent/1.png", "images/.cache/9.png", *names)
    store.write_bytes("._shards.tar", b"")
    items = import_items(store.uri, "auto", PLAIN)
    assert [item.source for item in items] == [store.url("dent/1.png"), store.url("good/1.png")]
    assert "6 files of" in caplog.text


def test_images_with_one_stem_get_keys_of_their_own(tmp_path: Path) -> None:
    store = written(tmp_path, "good/1.png", "good/1.bmp", "good/Teil 1 ä.png")
    items = folders.items(store, PLAIN)
    assert len({item.key for item in items}) == 3
    assert items[0].group == items[1].group == "good/1"


def test_a_stray_image_is_named(folder: Store) -> None:
    folder.write_bytes("stray.png", grey(1))
    with pytest.raises(DataError, match=r"stray\.png lies in no class folder"):
        folders.items(folder, PLAIN)


# --- MVTec ---


@pytest.fixture
def mvtec_store(tmp_path: Path) -> Store:
    names = [f"train/good/{n:03d}.png" for n in range(10)]
    names += [f"test/{kind}/{n:03d}.png" for kind in ("good", "cut", "hole") for n in range(6)]
    names += [f"ground_truth/{kind}/{n:03d}_mask.png" for kind in ("cut", "hole") for n in range(6)]
    return written(tmp_path, *names)


def test_mvtec_keeps_the_test_set_and_makes_a_validation_set(mvtec_store: Store) -> None:
    items = import_items(mvtec_store.uri, "auto", PLAIN)
    assert len(items) == len({item.key for item in items}) == 28
    assert counts(items, "train-normal") == {"good": 8}
    assert counts(items, "validation") == {"good": 2}
    assert counts(items, "test") == {"good": 6, "cut": 6, "hole": 6}
    assert all((item.label == "normal") == (item.kind == "good") for item in items)
    masked = {item.source for item in items if item.read()[1] is not None}
    assert masked == {item.source for item in items if item.label == "abnormal"}


def test_mvtec_gives_up_part_of_the_test_for_known_defects(mvtec_store: Store) -> None:
    settings = {"labelled_fraction": 0.5, "validation_fraction": 0.3}
    items = mvtec.items(mvtec_store, PLAIN, **settings)
    assert counts(items, "train-normal") == {"good": 7}
    assert counts(items, "train-abnormal") == {"cut": 2, "hole": 2}
    assert counts(items, "validation") == {"good": 3, "cut": 1, "hole": 1}
    assert counts(items, "test") == {"good": 6, "cut": 3, "hole": 3}
    assert len({item.source for item in items}) == 28
    splits = {
        seed: [
            item.split for item in mvtec.items(mvtec_store, ImportOptions(seed=seed), **settings)
        ]
        for seed in (0, 0, 1)
    }
    assert splits[0] == [item.split for item in items]
    assert splits[1] != splits[0]


def test_mvtec_refuses_what_it_cannot_place(mvtec_store: Store) -> None:
    with pytest.raises(DataError, match="labelled_fraction=2"):
        mvtec.items(mvtec_store, PLAIN, labelled_fraction=2)
    mvtec_store.write_bytes("ground_truth/cut/000.png", grey(1))
    with pytest.raises(DataError, match=r"cut/000\.png is the mask of no image"):
        mvtec.items(mvtec_store, PLAIN)
    mvtec_store.delete("ground_truth/cut/000.png")
    mvtec_store.write_bytes("train/cut/000.png", grey(1))
    with pytest.raises(DataError, match="only good images"):
        mvtec.items(mvtec_store, PLAIN)
    mvtec_store.delete("train/cut/000.png")
    mvtec_store.write_bytes("validation/good/000.png", grey(1))
    with pytest.raises(DataError, match=r"validation/good/000\.png is in none of train/good/"):
        mvtec.items(mvtec_store, PLAIN)
    mvtec_store.delete("validation/good/000.png")
    with pytest.raises(
        DataError, match=r"normal_kinds=\['cut'\] has no meaning for the format mvtec"
    ):
        import_items(mvtec_store.uri, "auto", ImportOptions(normal_kinds=("cut",)))


# --- Caltech-256 ---


@pytest.fixture
def caltech_store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    for number, (name, count) in enumerate(
        [("ak47", 160), ("bat", 80), ("bear", 90), ("dog", 100), ("ewer", 155), ("clutter", 70)], 1
    ):
        for image in range(1, count + 1):
            store.write_bytes(f"{number:03d}.{name}/{number:03d}_{image:04d}.jpg", b"")
    return store


def test_caltech_experiments_have_half_outliers_in_the_test(caltech_store: Store) -> None:
    for num_inliers in (1, 3, 5):
        items = import_items(caltech_store.uri, "auto", PLAIN, num_inliers=num_inliers)
        assert len({item.key for item in items}) == len(items)
        inliers = [item for item in items if item.label == "normal"]
        kinds = Counter(item.kind for item in inliers)
        assert len(kinds) == num_inliers
        sizes = {"001.ak47": 150, "005.ewer": 150, "002.bat": 80, "003.bear": 90, "004.dog": 100}
        assert all(sizes[kind] == count for kind, count in kinds.items())
        tested = [item for item in items if item.split == "test"]
        outliers = [item for item in items if item.label == "abnormal"]
        assert {item.kind for item in outliers} == {"006.clutter"}
        assert set(outliers) <= set(tested)
        assert len(outliers) == min(70, len(tested) - len(outliers))


def test_caltech_takes_the_first_150_images_and_follows_the_seed(caltech_store: Store) -> None:
    seen = set()
    for seed in range(12):
        items = caltech256.items(caltech_store, ImportOptions(seed=seed), num_known_outliers=5)
        (kind,) = {item.kind for item in items if item.label == "normal"}
        seen.add(kind)
        if kind == "001.ak47":
            last = max(item.source for item in items if item.kind == kind)
            assert last.endswith("_0150.jpg")
        abnormal = Counter(item.split for item in items if item.label == "abnormal")
        assert abnormal["train-abnormal"] == abnormal["validation"] == 5
    assert len(seen) > 2
    with pytest.raises(DataError, match="num_inliers=2"):
        caltech256.items(caltech_store, PLAIN, num_inliers=2)


# --- which importer ---


def test_what_fits_nothing_is_told_what_was_looked_for(tmp_path: Path) -> None:
    store = written(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(DataError, match=r"found a/1\.png, b/1\.png.*train/good/.*\.parquet"):
        import_items(store.uri, "auto", PLAIN)
    with pytest.raises(DataError, match=r"there is nothing at .*/none"):
        import_items(str(tmp_path / "none"), "auto", PLAIN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found nothing"):
        import_items(str(tmp_path / "empty"), "auto", PLAIN)
    with pytest.raises(DataError, match="format='zip' is not one of auto, folders"):
        import_items(store.uri, "zip", PLAIN)
    assert "ir-mnist" in FORMATS


def test_shards_beside_class_folders_are_not_taken_for_the_whole(tmp_path: Path) -> None:
    store = written(tmp_path, "good/1.png", "dent/1.png")
    store.write_bytes("old/backup.tar", b"")
    with pytest.raises(DataError, match=r"old/backup\.tar.*set pack\.format to webdataset or fold"):
        import_items(store.uri, "auto", PLAIN)
    assert len(import_items(store.uri, "folders", PLAIN)) == 2


# --- real images, where there are some ---

REAL = os.environ.get("BLEMISH_IMAGES", "")
needs_images = pytest.mark.skipif(not REAL, reason="BLEMISH_IMAGES names no folder of images")


@needs_images
def test_real_tiles_decode_with_their_masks() -> None:
    items = import_items(f"{REAL}/magnetic_tile", "auto", PLAIN)
    assert len(items) == 1055
    assert Counter(item.kind for item in items)["good"] == 663
    defects = [item for item in items if item.label == "abnormal"]
    assert all(item.read()[1] is not None for item in defects[::20])
