"""Tiles put together again: maps at native size, one row an image, nothing half inspected."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.assembly import Scored, assemble_images
from data.sample import Sample, Tile
from data.tiles import assemble, cut, grid

HEIGHT, WIDTH, SIDE, OVERLAP = 40, 56, 16, 4
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
RAMP = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.float32)


def _tiles(
    parent: str = "part", defect_at: tuple[int, int] = (20, 30), overlap: int = OVERLAP
) -> list[Scored]:
    """Tiles of one abnormal image; those that show the defect are abnormal and score high."""
    scored = []
    for y, x in grid(HEIGHT, WIDTH, SIDE, overlap):
        shows = 0 <= defect_at[0] - y < SIDE and 0 <= defect_at[1] - x < SIDE
        label = "abnormal" if shows else "normal"
        image = np.ascontiguousarray(cut(IMAGE, y, x, SIDE))
        place = Tile(parent, y, x, HEIGHT, WIDTH, "abnormal")
        key = f"{parent}-y{y:05d}-x{x:05d}"
        sample = Sample(key, image, label, "p.png", "g", "scratch", "test", tile=place)
        score = 0.8 + y / 1000 if shows else 0.1
        row = {"key": key, "label": label, "height": SIDE, "width": SIDE, "score": score}
        row |= {"peak": float(cut(RAMP, y, x, SIDE).max()), "tiles": 1, "best_step": y}
        row |= {"terms": [[score, float(x)]]}
        scored.append(Scored(sample, 255 - image, cut(RAMP, y, x, SIDE), row))
    return scored


def test_one_row_at_native_size_scores_as_the_most_suspicious_tile() -> None:
    tiles = _tiles()
    (image,), failed = assemble_images(tiles, OVERLAP)
    assert failed == []
    np.testing.assert_array_equal(image.sample.image, IMAGE)
    np.testing.assert_array_equal(image.reconstruction, 255 - IMAGE)
    np.testing.assert_allclose(image.map, RAMP, atol=1e-4)
    assert image.sample.tile is None
    strongest = max(tiles, key=lambda tile: tile.row["score"])
    assert image.row == strongest.row | {
        "key": "part",
        "label": "abnormal",
        "height": HEIGHT,
        "width": WIDTH,
        "peak": pytest.approx(RAMP.max(), rel=1e-5),
        "tiles": len(tiles),
        "terms": [terms for tile in tiles for terms in tile.row["terms"]],
    }


@pytest.mark.parametrize("missing", [0, 7, -1])
def test_an_image_with_a_hole_fails_and_takes_no_other_with_it(missing: int) -> None:
    broken, sound = _tiles("broken"), _tiles("sound")
    del broken[missing]
    images, failed = assemble_images([*broken, *sound], OVERLAP)
    assert [image.row["key"] for image in images] == ["sound"]
    assert [row["key"] for row in failed] == [tile.sample.key for tile in broken]
    assert all("another tile of its image could not be read" in row["reason"] for row in failed)


@pytest.mark.parametrize("lost", [range(7, 8), range(6, 12), range(1, 24, 6)])
def test_a_tile_is_missed_where_its_neighbours_cover_it(lost: range) -> None:
    """One tile, a whole row of the grid, a whole column."""
    overlap = 8
    tiles = [tile for place, tile in enumerate(_tiles(overlap=overlap)) if place not in lost]
    assemble(
        [tile.map for tile in tiles],
        [(tile.sample.tile.y, tile.sample.tile.x) for tile in tiles if tile.sample.tile],
        HEIGHT,
        WIDTH,
    )
    images, failed = assemble_images(tiles, overlap)
    assert images == []
    assert len(failed) == len(tiles)
    assert f" is missing, {len(lost)} of {len(lost) + len(tiles)}" in failed[0]["reason"]


def _masked(tiles: list[Scored], mask: np.ndarray) -> list[Scored]:
    masked = []
    for tile in tiles:
        place = tile.sample.tile
        assert place
        part = np.ascontiguousarray(cut(mask, place.y, place.x, SIDE))
        masked.append(replace(tile, sample=replace(tile.sample, mask=part)))
    return masked


def test_masks_of_the_tiles_make_the_mask_of_the_image() -> None:
    mask = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.05
    tiles = _masked(_tiles(), mask)
    (image,), _ = assemble_images(tiles, OVERLAP)
    np.testing.assert_array_equal(image.sample.mask, mask)
    unknown = replace(tiles[3], sample=replace(tiles[3].sample, mask=None))
    (image,), _ = assemble_images([*tiles[:3], unknown, *tiles[4:]], OVERLAP)
    assert image.sample.mask is None


def test_whole_images_pass_unchanged_also_when_named_like_an_image_of_tiles() -> None:
    tile = _tiles()[0]
    whole = Scored(
        Sample("part", tile.sample.image, "normal", "p.png", "g", "good", "test"),
        tile.reconstruction,
        tile.map,
        {"key": "part", "score": 0.2},
    )
    images, failed = assemble_images([whole, *_tiles()], OVERLAP)
    assert images[0] is whole
    assert len(images) == 2
    assert failed == []
