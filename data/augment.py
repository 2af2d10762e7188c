"""Augmentation that invents nothing: the symmetries of the square, drawn by position alone."""

import hashlib
from typing import Literal

import numpy as np

from data.sample import Image8

Symmetry = Literal["flip_x", "flip_y", "rotate_90"]


def turned(image: Image8, symmetries: tuple[Symmetry, ...], *, seed: int, number: int) -> Image8:
    """Apply each symmetry or not, by a fair coin of its own.

    The coins follow from the seed and the image's number in the reading order, so that an image is
    turned the same way whoever reads it and however often training was resumed.

    Args:
        image: [H, W, C] uint8, square.
        symmetries: what this product looks the same under: `flip_x` left to right, `flip_y` upside
            down, `rotate_90` by a quarter.
        seed: seed of the coins.
        number: number of the image.

    Returns:
        A view of the image.
    """
    if not symmetries:
        return image
    coins = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=1).digest()[0]
    if "flip_x" in symmetries and coins & 1:
        image = image[:, ::-1]
    if "flip_y" in symmetries and coins & 2:
        image = image[::-1]
    if "rotate_90" in symmetries and coins & 4:
        image = np.rot90(image)
    return image
