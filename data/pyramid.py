"""Images at every resolution of progressive training."""

import numpy as np
from PIL import Image

from data.sample import Image8, Mask

SMALLEST = 4
_MOST_IN_UINT16 = 128
"""Pixels of 255 whose sum, and half their number, surely fit."""


def resolutions_to(resolution: int) -> tuple[int, ...]:
    """Return 4, 8, 16, ... up to `resolution`, a power of two."""
    return tuple(2**i for i in range(2, resolution.bit_length()))


def pyramid(image: Image8, resolution: int) -> dict[int, Image8]:
    """Shrink an image by 2x2 box averages, down to 4x4.

    Each level is an exact average of the image, rounded half up once, so rounding errors do not
    pile up.

    Args:
        image: [resolution, resolution, C] uint8.
        resolution: a power of two, at least 4.

    Returns:
        Ascending resolution r -> [r, r, C] uint8.
    """
    levels = {resolution: image}
    total = image
    for side in reversed(resolutions_to(resolution)[:-1]):
        num_pixels = (resolution // side) ** 2
        # Whole numbers are exact, and added in slices faster than averaged over two axes.
        dtype = np.uint16 if num_pixels <= _MOST_IN_UINT16 else np.uint32
        rows = np.add(total[0::2], total[1::2], dtype=dtype)
        total = rows[:, 0::2] + rows[:, 1::2]
        levels[side] = ((total + dtype(num_pixels // 2)) // dtype(num_pixels)).astype(np.uint8)
    return dict(sorted(levels.items()))


def to_square(image: Image8, resolution: int) -> Image8:
    """Resize a whole image to a square, not keeping its aspect ratio.

    Shrinking averages over the covered area (Pillow's BOX filter); if a side must grow, both
    sides use BILINEAR, as BOX would only repeat pixels.

    Args:
        image: [H, W, C] uint8.
        resolution: side of the result, pixels.

    Returns:
        [resolution, resolution, C] uint8.
    """
    if image.shape[:2] == (resolution, resolution):
        return image
    shrinks = resolution <= min(image.shape[:2])
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    resized = np.asarray(Image.fromarray(pixels).resize((resolution, resolution), method))
    return resized.reshape(resolution, resolution, -1)


def mask_to_square(mask: Mask, resolution: int) -> Mask:
    """Resize a defect mask so that a pixel is True if any defect pixel falls into it.

    Args:
        mask: [H, W] bool.
        resolution: side of the result, pixels.

    Returns:
        [resolution, resolution] bool.
    """
    # In float a single defect pixel stays above zero, however large the area it is averaged over.
    coverage = Image.fromarray(mask.astype(np.float32))
    resized = coverage.resize((resolution, resolution), Image.Resampling.BOX)
    return np.asarray(resized) > 0
