"""Synthetic surfaces."""

from collections import Counter

import numpy as np
import pytest

from data.importers.surfaces import synthetic_surfaces
from data.synthetic import MIN_CONTRAST, machined_surface


def test_same_key_gives_the_same_bytes_and_others_differ() -> None:
    one, other = machined_surface(3, 40, 56, defect=True), machined_surface(4, 40, 56, defect=True)
    again = machined_surface(3, 40, 56, defect=True)
    assert one[0].shape == (40, 56, 1)
    assert one[1].shape == (40, 56)
    assert np.array_equal(one[0], again[0])
    assert np.array_equal(one[1], again[1])
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize("kind", ["scratch", "pit"])
@pytest.mark.parametrize("side", [16, 64, 200])
def test_mask_is_exactly_what_the_defect_changed(kind, side: int) -> None:
    for key in range(25):
        clean, nothing = machined_surface(key, side, side, defect=False)
        damaged, mask = machined_surface(key, side, side, defect=True, kinds=[kind])
        change = np.abs(damaged.astype(int) - clean)[:, :, 0]
        assert np.array_equal(mask, change > 0)
        assert mask.any()
        assert not nothing.any()
        assert change[mask].min() >= MIN_CONTRAST
        assert mask.mean() < (0.5 if side == 16 else 0.1)


def test_surface_is_brushed_along_one_direction() -> None:
    image = machined_surface(0, 256, 256, defect=False)[0][:, :, 0].astype(float)
    along, across = np.abs(np.diff(image, axis=1)).mean(), np.abs(np.diff(image, axis=0)).mean()
    assert across > 1.5 * along
    assert 60 < image.mean() < 200
    assert image.std() > 5


def test_data_set_has_the_asked_sizes_and_contamination() -> None:
    counts = {"num_train_normal": 12, "num_train_abnormal": 4, "num_validation": 6, "num_test": 8}
    items = synthetic_surfaces(resolution=16, seed=0, contamination=0.25, **counts)
    assert Counter(item.split for item in items) == {
        "train-normal": 16,
        "train-abnormal": 4,
        "validation": 6,
        "test": 8,
    }
    pictures = [item.read() for item in items]
    assert len({image.tobytes() for image, _ in pictures}) == len(items)
    for item, (_, mask) in zip(items, pictures, strict=True):
        assert mask is not None
        assert mask.any() == (item.kind != "good")
        believed = "abnormal" if item.kind != "good" and item.split != "train-normal" else "normal"
        assert item.label == believed
    assert {item.kind for item in items if item.split == "test"} == {"good", "scratch", "pit"}
    assert sum(item.kind != "good" for item in items if item.split == "train-normal") == 4
