"""From tiles to the images they were cut from: one row, one map at native size for each image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.sample import Image8, Mask, Sample
from data.tiles import assemble, grid


@dataclass(frozen=True)
class Scored:
    """One scored image or tile.

    Attributes:
        sample: What was scored.
        reconstruction: [H, W, C] uint8, G at the best latent.
        map: [H, W] float32.
        row: Its row of the scores.
    """

    sample: Sample
    reconstruction: Image8
    map: NDArray[np.float32]
    row: dict[str, Any]


def assemble_images(
    scored: Sequence[Scored], tile_overlap: int
) -> tuple[list[Scored], list[dict[str, str]]]:
    """Put the tiles of each image together; whole images pass unchanged.

    An image scores as its most suspicious tile. An image of which a tile is missing is not scored
    at all, because the defect may lie there.

    Args:
        scored: What one shard held; all tiles of an image lie in one shard.
        tile_overlap: Least overlap that the tiles were cut with, pixels.

    Returns:
        The images, and for each tile of an image that is not whole why it counts as failed.
    """
    images, failed = [], []
    for _, group in groupby(scored, key=_image_of):
        tiles = list(group)
        if tiles[0].sample.tile is None:
            images += tiles
            continue
        try:
            _check_whole(tiles, tile_overlap)
            images.append(_assembled(tiles))
        except DataError as error:
            reason = f"another tile of its image could not be read: {error}"
            failed += [
                {"key": tile.sample.key, "source": tile.sample.source, "reason": reason}
                for tile in tiles
            ]
    return images, failed


def _image_of(scored: Scored) -> str:
    """The key of the image; whole images and tiles cannot share one, because '/' is in no key."""
    tile = scored.sample.tile
    return f"tiles/{tile.parent}" if tile else scored.sample.key


def _check_whole(tiles: list[Scored], overlap: int) -> None:
    """Refuse an image that lacks a tile, also where its neighbours cover that.

    Raises:
        DataError: If one is missing.
    """
    places = [tile.sample.tile for tile in tiles if tile.sample.tile]
    side = tiles[0].sample.image.shape[0]
    expected = grid(places[0].height, places[0].width, side, overlap)
    missing = set(expected) - {(place.y, place.x) for place in places}
    if missing:
        y, x = min(missing)
        raise DataError(f"the tile at y={y}, x={x} is missing, {len(missing)} of {len(expected)}")


def _assembled(tiles: list[Scored]) -> Scored:
    strongest = max(tiles, key=lambda tile: float(tile.row["score"]))
    place = strongest.sample.tile
    assert place
    joined = _Canvas(tiles, place.height, place.width)
    pixels = joined.blend([tile.map for tile in tiles])
    sample = replace(
        strongest.sample,
        key=place.parent,
        image=joined.picture([tile.sample.image for tile in tiles]),
        label=place.label,
        mask=joined.mask([tile.sample.mask for tile in tiles]),
        tile=None,
    )
    row = strongest.row | {
        "key": place.parent,
        "label": place.label,
        "height": place.height,
        "width": place.width,
        "peak": float(pixels.max()),
        "terms": [terms for tile in tiles for terms in tile.row["terms"]],
        "tiles": len(tiles),
    }
    return Scored(sample, joined.picture([tile.reconstruction for tile in tiles]), pixels, row)


class _Canvas:
    """The places of an image's tiles in it."""

    def __init__(self, tiles: list[Scored], height: int, width: int) -> None:
        places = [tile.sample.tile for tile in tiles]
        self._offsets = [(place.y, place.x) for place in places if place]
        self._height, self._width = height, width

    def blend(self, parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return assemble(parts, self._offsets, self._height, self._width)

    def mask(self, parts: list[Mask | None]) -> Mask | None:
        """What the masks of the tiles say together; None where one of them is not known."""
        if any(part is None for part in parts):
            return None
        whole = np.zeros((self._height, self._width), dtype=bool)
        for part, (y, x) in zip(parts, self._offsets, strict=True):
            assert part is not None
            height, width = part.shape
            whole[y : y + height, x : x + width] = part
        return whole

    def picture(self, parts: list[Image8]) -> Image8:
        channels = range(parts[0].shape[2])
        blended = [
            self.blend([part[:, :, c].astype(np.float32) for part in parts]) for c in channels
        ]
        return np.round(np.stack(blended, axis=-1)).astype(np.uint8)
