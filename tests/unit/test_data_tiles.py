"""Tiles: they cover the image, the right ones are taken, and maps go together again."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from data.sample import Label, Split
from data.tiles import assemble, grid, tile_labels

SIDES = st.integers(1, 24)


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[int, int, int, int]:
    side = draw(SIDES)
    overlap = draw(st.integers(0, side - 1))
    return side + draw(st.integers(0, 60)), side + draw(st.integers(0, 60)), side, overlap


@given(_layouts())
def test_tiles_cover_the_image_lie_inside_and_overlap(layout: tuple[int, int, int, int]) -> None:
    height, width, side, overlap = layout
    offsets = grid(height, width, side, overlap)
    covered = np.zeros((height, width), bool)
    for y, x in offsets:
        assert 0 <= y <= height - side
        assert 0 <= x <= width - side
        covered[y : y + side, x : x + side] = True
    assert covered.all()
    assert len(set(offsets)) == len(offsets)
    rows = sorted({y for y, _ in offsets})
    assert all(upper + side - lower >= overlap for upper, lower in pairwise(rows))


def test_last_row_and_column_are_shifted_inside() -> None:
    offsets = grid(20, 10, 8, 2)
    assert offsets == [(0, 0), (0, 2), (6, 0), (6, 2), (12, 0), (12, 2)]
    assert grid(8, 8, 8, 2) == [(0, 0)]


def test_image_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(DataError, match="the image is 7x20, smaller than a tile of 8x8"):
        grid(7, 20, 8, 0)


OFFSETS = grid(8, 24, 8, 0)
MASK = np.zeros((8, 24), bool)
MASK[0, 8] = True
MASK[:4, 16] = True


def _labels(
    label: Label, split: Split, mask: np.ndarray | None = MASK, *, contaminant: bool = False
) -> dict[int, Label]:
    found = tile_labels(
        OFFSETS, 8, mask, label, split, is_contaminant=contaminant, min_defect_pixels=4
    )
    return {offset.x: tile for offset, tile in found.items()}


def test_training_takes_the_tiles_that_show_the_defect() -> None:
    assert _labels("abnormal", "train-abnormal") == {16: "abnormal"}
    assert _labels("normal", "train-normal", contaminant=True) == {16: "normal"}


def test_normal_images_give_all_their_tiles() -> None:
    everywhere = {0: "normal", 8: "normal", 16: "normal"}
    assert _labels("normal", "train-normal", None) == everywhere
    assert _labels("normal", "train-normal", np.zeros_like(MASK)) == everywhere


@pytest.mark.parametrize("split", ["validation", "test"])
def test_judging_takes_all_tiles_each_with_its_own_label(split: Split) -> None:
    own = {0: "normal", 8: "unlabelled", 16: "abnormal"}
    assert _labels("abnormal", split) == own


def test_without_a_mask_all_tiles_have_the_label_of_the_image() -> None:
    for mask in (None, np.zeros_like(MASK)):
        for split in ("train-abnormal", "test"):
            assert set(_labels("abnormal", split, mask).values()) == {"abnormal"}
            assert len(_labels("abnormal", split, mask)) == 3
    assert set(_labels("unlabelled", "test", None).values()) == {"unlabelled"}


def test_defect_too_small_for_any_tile_is_told() -> None:
    with pytest.raises(DataError, match=r"more than 3 defect pixels, min_defect_pixels=4"):
        _labels("abnormal", "train-abnormal", MASK & (np.arange(8) < 3)[:, None])


def _cut(image: np.ndarray, side: int, overlap: int) -> tuple[list[np.ndarray], list]:
    offsets = grid(*image.shape, side, overlap)
    return [image[y : y + side, x : x + side] for y, x in offsets], offsets


@given(_layouts())
def test_tiles_of_a_map_go_together_to_the_map(layout: tuple[int, int, int, int]) -> None:
    height, width, side, overlap = layout
    ramp = np.add.outer(np.linspace(0, 0.6, height), np.linspace(0, 0.4, width))
    whole = assemble(*_cut(ramp, side, overlap), height, width)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, ramp, rtol=0, atol=1e-6)
    constant = assemble(*_cut(np.full((height, width), 0.7), side, overlap), height, width)
    np.testing.assert_allclose(constant, 0.7, rtol=0, atol=1e-6)


def test_there_is_no_seam_between_tiles_that_disagree() -> None:
    offsets = grid(32, 64, 32, 16)
    maps = [np.full((32, 32), value) for value in (0.0, 1.0, 0.0)]
    row = assemble(maps, offsets, 32, 64)[16]
    assert row[0] == 0
    assert row.max() > 0.99
    # A plain mean jumps by 0.5 where a tile begins.
    assert np.abs(np.diff(row)).max() < 0.12


def test_missing_and_outlying_tiles_are_told() -> None:
    with pytest.raises(DataError, match="pixel y=0, x=8 of the 8x16 image lies in no tile"):
        assemble([np.zeros((8, 8))], [(0, 0)], 8, 16)
    with pytest.raises(DataError, match="y=1, x=0 leaves the 8x8 image"):
        assemble([np.zeros((8, 8))], [(1, 0)], 8, 8)
    with pytest.raises(ValueError, match="longer than"):
        assemble([np.zeros((8, 8))], [(0, 0), (0, 8)], 8, 16)
