"""Pixel metrics from added-up histograms against slow ones that look at every pixel at once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from cluster.pixel_metrics import (
    NUM_BINS,
    NUM_BLOCKS,
    PixelCounts,
    aupro,
    bin_of,
    pixel_metrics,
)

Image = tuple[np.ndarray, np.ndarray]


def _images(seed: int, num: int = 12, side: int = 24) -> list[Image]:
    """Skewed maps with a weak defect of one or two regions in every second image."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(num):
        level, mask = rng.gamma(2.0, 0.05, (side, side)), np.zeros((side, side), bool)
        for _ in range(rng.integers(1, 3) if i % 2 else 0):
            y, x = rng.integers(0, side - 6, 2)
            mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
        level += mask * rng.gamma(2.0, 0.05, (side, side))
        images.append((level.astype(np.float32), mask))
    return images


def _counts(images: list[Image]) -> PixelCounts:
    counts = PixelCounts()
    for i, (level, mask) in enumerate(images):
        counts.add(level, mask, f"part-{i}")
    return counts


def _slow_aupro(images: list[Image], limit: float = 0.3) -> float:
    """Every value is a threshold; regions are looked at one by one."""
    levels = np.concatenate([level.ravel() for level, _ in images])
    normal = np.concatenate([level[~mask] for level, mask in images])
    regions = []
    for level, mask in images:
        labelled, num = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [level[labelled == i] for i in range(1, num + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(levels)[::-1]:
        pro = np.mean([(region >= threshold).mean() for region in regions])
        points.append(((normal >= threshold).mean(), pro))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            return (area + (limit - x0) * (y0 + y1) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def _slow_auroc(images: list[Image]) -> float:
    truth = np.concatenate([mask.ravel() for _, mask in images])
    return float(roc_auc_score(truth, np.concatenate([level.ravel() for level, _ in images])))


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_slow_reference_within_the_error_it_states(seed: int) -> None:
    images = _images(seed)
    found, _ = pixel_metrics(_counts(images), seed=0)
    assert found["pixel_resolution"] < 0.002
    assert abs(found["aupro"] - _slow_aupro(images)) <= found["pixel_resolution"]
    assert abs(found["pixel_auroc"] - _slow_auroc(images)) <= found["pixel_resolution"]
    assert 0.3 < found["aupro"] < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_reference_on_values_that_are_bins(seed: int) -> None:
    """Few distinct values: ties everywhere, and no two of them in one bin."""
    images = [((level * 16).round() / 16, mask) for level, mask in _images(seed)]
    found, _ = pixel_metrics(_counts(images), seed=0)
    assert found["aupro"] == pytest.approx(_slow_aupro(images), abs=1e-12)
    assert found["pixel_auroc"] == pytest.approx(_slow_auroc(images), abs=1e-12)


def test_small_region_counts_as_much_as_a_large_one() -> None:
    """Two regions that touch at a corner are one; a lone pixel is one as well."""
    mask = np.zeros((8, 8), bool)
    mask[0:2, 0:2] = mask[2:4, 2:4] = mask[6, 6] = True
    level = np.where(mask, 0.9, 0.1)
    level[6, 6] = 0.01
    found, _ = pixel_metrics(_counts([(level, mask)]), seed=0)
    # All 8 pixels of one region are found before any normal pixel, the other region after all.
    assert found["aupro"] == pytest.approx(0.5)
    assert found["pixel_auroc"] == pytest.approx(8 / 9)


def test_the_curve_ends_where_the_limit_cuts_a_step() -> None:
    # One bin holds everything: PRO rises straight from 0 to 1.
    assert aupro(np.array([10]), np.array([2.0])) == pytest.approx(0.15)
    assert aupro(np.array([10]), np.array([2.0]), limit=1.0) == pytest.approx(0.5)
    assert np.isnan(aupro(np.array([10]), np.array([0.0])))


@given(st.lists(st.floats(2.0**-12, 15.875, width=32), min_size=2, max_size=50))
def test_bins_keep_the_order_and_are_narrow(values: list[float]) -> None:
    ascending = np.sort(np.array(values, np.float32))
    bins = bin_of(ascending)
    assert (np.diff(bins) >= 0).all()
    same = np.diff(bins) == 0
    assert (np.diff(ascending)[same] <= ascending[:-1][same] / 256).all()


def test_values_outside_fall_into_the_first_and_last_bin() -> None:
    assert bin_of(np.array([0.0, 1e-9, 2.0**-12, 15.99, 16.0, 1e30])).tolist() == [
        *(0, 0, 0),
        *[NUM_BINS - 1] * 3,
    ]


@settings(max_examples=20)
@given(st.permutations(range(12)), st.integers(1, 5))
def test_units_add_up_in_any_order(order: list[int], num_units: int) -> None:
    images = _images(0)
    whole, parts = _counts(images), PixelCounts()
    for unit in range(num_units):
        counts = PixelCounts(num_without_mask=unit)
        for i in order[unit::num_units]:
            counts.add(*images[i], f"part-{i}")
        parts.add_bytes(counts.to_bytes())
    for name in ("normal", "abnormal", "overlap"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    assert parts.num_images == 12
    assert parts.num_without_mask == sum(range(num_units))


def test_the_same_counts_are_the_same_bytes_and_small() -> None:
    payload = _counts(_images(0)).to_bytes()
    assert payload == _counts(_images(0)).to_bytes()
    assert len(payload) < 60_000


@pytest.mark.parametrize("payload", [b"", b"no zip file", b"PK\x05\x06" + bytes(18)])
def test_damaged_bytes_are_one_clear_error_and_add_nothing(payload: bytes) -> None:
    counts = _counts(_images(0))
    before = counts.to_bytes()
    with pytest.raises(ValueError, match="no counts of pixels"):
        counts.add_bytes(payload)
    assert counts.to_bytes() == before


def test_interval_is_that_of_drawing_images_anew() -> None:
    """With every image in a block of its own, blocks are images."""
    images = _images(5, num=40, side=16)
    counts = PixelCounts()
    taken: set[int] = set()
    for level, mask in images:
        # The first name whose block is free.
        for name in map(str, range(10_000)):
            trial = PixelCounts()
            trial.add(level, mask, name)
            (block,) = np.flatnonzero(trial.normal.any(axis=1))
            if block not in taken:
                taken.add(int(block))
                counts.add(level, mask, name)
                break
    rng, values = np.random.default_rng(0), []
    for _ in range(400):
        picks = [*rng.integers(0, 20, 20) * 2, *rng.integers(0, 20, 20) * 2 + 1]
        values.append(_slow_auroc([images[i] for i in picks]))
    _, found = pixel_metrics(counts, seed=0)
    assert len(taken) == 40 < NUM_BLOCKS
    np.testing.assert_allclose(
        found["pixel_auroc"], np.quantile(values, [0.025, 0.975]), atol=0.006
    )
    assert found["aupro"][0] < pixel_metrics(counts, seed=0)[0]["aupro"] < found["aupro"][1]


def test_nothing_to_compare_is_undefined_and_has_no_interval() -> None:
    normal_only = [(level, np.zeros_like(mask)) for level, mask in _images(0)]
    for counts in (PixelCounts(), _counts(normal_only), _counts(_images(0)[:2])):
        metrics, found = pixel_metrics(counts, seed=0)
        assert found == {}
        assert np.isnan(metrics["aupro"]) == (not counts.abnormal.any())
