"""Brightness and contrast of a picture brought to a standard scale."""

import math

import numpy as np

from data.preparation import Intensity, Reference
from data.sample import Image8

_MIDDLE = 127.5
_STEP = 32.0
"""Grey levels that one spread becomes: four of them fit on either side of the middle."""
_SLICE = 2**20


def standardised(image: Image8, intensity: Intensity, reference: Reference | None) -> Image8:
    """Return 127.5 + 32 (x - centre) / spread, rounded half up and clipped to 0..255.

    Args:
        image: [H, W, C] uint8, a whole picture: neither resized nor cut.
        intensity: `image` takes the picture's own `centre_and_spread`, `dataset` the reference,
            `none` changes nothing.
        reference: centre and spread for `dataset`, on the scale 0..255.

    Returns:
        [H, W, C] uint8; a picture of one value, by its own scale, is 128 all over.
    """
    if intensity == "none":
        return image
    if intensity == "dataset":
        assert reference, "see data.intensity_fit.fitted"
        centre, spread = reference
    else:
        centre, spread = centre_and_spread(image)
    # Without a spread there is no value but the centre.
    scaled = _MIDDLE + _STEP * (np.arange(256) - centre) / (spread or 1.0)
    table: Image8 = np.clip(np.floor(scaled + 0.5), 0, 255).astype(np.uint8)
    return table[image]


def centre_and_spread(image: Image8) -> tuple[float, float]:
    """Return the median and the standard deviation of all values, channels together.

    Both follow from whole numbers, so they are the same on every machine.
    """
    values = image.reshape(-1)
    counts = np.zeros(256, np.int64)
    # In slices, because counting takes eight bytes a value.
    for start in range(0, values.size, _SLICE):
        counts += np.bincount(values[start : start + _SLICE], minlength=256)
    middle = [(values.size - 1) // 2, values.size // 2]
    lower, upper = np.searchsorted(np.cumsum(counts), middle, side="right")
    levels = np.arange(256)
    total, squares = int(counts @ levels), int(counts @ levels**2)
    spread = math.sqrt(values.size * squares - total**2) / values.size
    return float(lower + upper) / 2, spread
