"""Tiles: pieces of an image at native scale, and maps of pieces put together again."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.sample import Image8, Label, Mask, Split

Float = NDArray[np.float32]
Cuttable = TypeVar("Cuttable", Image8, Mask)


class Offset(NamedTuple):
    """Upper left corner of a tile in its image, pixels."""

    y: int
    x: int


def grid(height: int, width: int, side: int, overlap: int) -> list[Offset]:
    """Return the tiles that cover an image, row by row.

    They lie `side - overlap` apart; the last row and column are shifted back into the image.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        side: of a tile, pixels.
        overlap: least overlap of neighbours, below `side`, pixels.

    Raises:
        DataError: if the image is smaller than a tile.
    """
    assert 0 <= overlap < side
    if min(height, width) < side:
        raise DataError(
            f"the image is {height}x{width}, smaller than a tile of {side}x{side}; lower "
            "networks.resolution or pack with mode whole"
        )
    columns = _starts(width, side, overlap)
    return [Offset(y, x) for y in _starts(height, side, overlap) for x in columns]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    return [*range(0, length - side, side - overlap), length - side]


def cut(array: Cuttable, y: int, x: int, side: int) -> Cuttable:
    """Return the view of one tile of an image [H, W, C] or mask [H, W]."""
    piece: Cuttable = array[y : y + side, x : x + side]
    return piece


def defect_pixels(mask: Mask, offsets: Iterable[Offset], side: int) -> list[int]:
    """Count the defect pixels of each tile."""
    return [int(np.count_nonzero(cut(mask, *offset, side))) for offset in offsets]


def tile_labels(
    offsets: list[Offset],
    side: int,
    mask: Mask | None,
    label: Label,
    split: Split,
    *,
    is_contaminant: bool,
    min_defect_pixels: int,
) -> dict[Offset, Label]:
    """Choose the tiles of one image that a split takes, each with its own label.

    Of abnormal training images, contaminants among them, only tiles with at least
    `min_defect_pixels` defect pixels are taken; all tiles where no mask tells, and all tiles of
    every other image. In validation and test a tile with fewer defect pixels than that, but some,
    is unlabelled: nobody could say what it shows.

    Args:
        offsets: the tiles of the image.
        side: of a tile, pixels.
        mask: [H, W] bool, or None where not known. An empty mask of an abnormal image says nothing.
        label: of the whole image.
        split: that the image belongs to.
        is_contaminant: whether it is an abnormal image that is called normal.
        min_defect_pixels: see above, at least 1.

    Raises:
        DataError: if no tile is left.
    """
    if mask is None or (not mask.any() and (label == "abnormal" or is_contaminant)):
        return dict.fromkeys(offsets, label)
    counts = dict(zip(offsets, defect_pixels(mask, offsets, side), strict=True))
    if split in ("validation", "test"):
        return {place: _own_label(num, min_defect_pixels) for place, num in counts.items()}
    if label == "normal" and not is_contaminant:
        return dict.fromkeys(offsets, label)
    chosen: dict[Offset, Label] = {
        p: label for p, num in counts.items() if num >= min_defect_pixels
    }
    if not chosen:
        raise DataError(
            f"no tile shows more than {max(counts.values())} defect pixels, "
            f"min_defect_pixels={min_defect_pixels} are needed; lower pack.min_defect_pixels"
        )
    return chosen


def _own_label(num_defect_pixels: int, min_defect_pixels: int) -> Label:
    if num_defect_pixels >= min_defect_pixels:
        return "abnormal"
    return "unlabelled" if num_defect_pixels else "normal"


def assemble(
    maps: Iterable[NDArray[np.floating]],
    offsets: Iterable[tuple[int, int]],
    height: int,
    width: int,
) -> Float:
    """Blend the overlapping maps of an image's tiles into one map, without seams.

    Each tile weighs most in its middle and next to nothing at its edges (a squared sine), so the
    map has no step where a tile ends.

    Args:
        maps: maps of equal square size [S, S].
        offsets: rows and columns of the tiles' corners in the image, pixels.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        [height, width] float32.

    Raises:
        DataError: if a tile lies outside the image, or a pixel in no tile.
    """
    # In float32 a pixel under hundreds of tiles would lose digits; this takes 16 bytes a pixel.
    total = np.zeros((height, width), dtype=np.float64)
    weights = np.zeros((height, width), dtype=np.float64)
    for part, (y, x) in zip(maps, offsets, strict=True):
        side = part.shape[0]
        if not (0 <= y <= height - side and 0 <= x <= width - side):
            raise DataError(f"tile {side}x{side} at y={y}, x={x} leaves the {height}x{width} image")
        window = _window(side)
        total[y : y + side, x : x + side] += window * part
        weights[y : y + side, x : x + side] += window
    if not weights.all():
        y, x = (int(axis[0]) for axis in np.nonzero(weights == 0))
        raise DataError(f"pixel y={y}, x={x} of the {height}x{width} image lies in no tile")
    total /= weights
    return total.astype(np.float32)


def _window(side: int) -> NDArray[np.float64]:
    """Return [side, side] weights, positive everywhere."""
    rise = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    return np.outer(rise, rise)
