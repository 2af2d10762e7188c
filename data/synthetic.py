"""Seeded images of machined metal with micro-scratches and pits, and their exact masks."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.sample import Image8, Mask

Float = NDArray[np.float32]
Defect = Literal["scratch", "pit"]

MIN_CONTRAST = 4
"""Least change, in grey levels of 255, of every pixel in a defect mask."""

_ANGLE_DEG = 14.0


def machined_surface(
    key: int,
    height: int,
    width: int,
    *,
    defect: bool,
    kinds: Sequence[Defect] = ("scratch", "pit"),
) -> tuple[Image8, Mask]:
    """Render a brushed and milled metal surface, with or without defects.

    The same key gives the same bytes, and the same surface with and without defects. Defects
    are scratches (1-2 pixels wide, curved, brighter or darker than the surface) and pits (dark,
    1-2.5 pixels in radius), up to 3 of each kind per image.

    Args:
        key: the seed of this image.
        height: pixels.
        width: pixels.
        defect: whether the surface is defective.
        kinds: which kinds of defects a defective one has.

    Returns:
        Image [height, width, 1] uint8, and mask [height, width] bool: exactly the pixels the
        defects changed, each by at least `MIN_CONTRAST` grey levels.
    """
    surface = _surface(np.random.default_rng((key, 0)), height, width)
    image = _to_uint8(surface)
    mask = np.zeros((height, width), dtype=np.bool_)
    if defect:
        rng = np.random.default_rng((key, 1))
        relief = np.zeros((height, width), dtype=np.float32)
        for kind in kinds:
            for _ in range(rng.integers(1, 4)):
                _SCRIBES[kind](rng, relief)
        damaged = _to_uint8(surface + relief)
        mask = np.abs(damaged.astype(np.int16) - image) >= MIN_CONTRAST
        image = np.where(mask, damaged, image)
    return image[:, :, None], mask


def _to_uint8(values: Float) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
    return rounded


def _surface(rng: np.random.Generator, height: int, width: int) -> Float:
    """Return grey values [height, width]: brushed streaks, tool marks and uneven light."""
    side = int(np.ceil(np.hypot(height, width))) + 8
    angle = np.deg2rad(_ANGLE_DEG + rng.normal(0, 1.5))
    texture = _streaks(rng, side) + _tool_marks(rng, side)
    turned = _rotated(texture, angle, height, width)
    grain = rng.normal(0, 1.6, (height, width)).astype(np.float32)
    return (turned + grain + 128.0) * _illumination(rng, height, width)


def _stretched(noise: Float, height: int, width: int) -> Float:
    """Interpolate noise [h, w] smoothly to [height, width]."""
    enlarged = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, dtype=np.float32)


def _noise(rng: np.random.Generator, height: int, width: int) -> Float:
    return rng.standard_normal((max(height, 2), max(width, 2)), dtype=np.float32)


def _streaks(rng: np.random.Generator, side: int) -> Float:
    """Return brushing [side, side]: noise fine across and long along the brush direction."""
    total = np.zeros((side, side), dtype=np.float32)
    for across, along, strength in ((1, 24, 5.0), (1, 90, 5.5), (2, 400, 5.0), (9, 700, 3.0)):
        total += strength * _stretched(_noise(rng, side // across, side // along), side, side)
    return total


def _tool_marks(rng: np.random.Generator, side: int) -> Float:
    """Return milling ridges [side, side] whose pitch varies slowly and which fade in places."""
    pitch = rng.uniform(9.0, 11.0) * (1 + 0.12 * _stretched(_noise(rng, side // 150, 2), side, 1))
    phase = 2 * np.pi * np.cumsum(1 / np.maximum(pitch, 5.0), axis=0)
    # A tool leaves a steep and a flat flank: a second harmonic makes the ridge lopsided.
    ridge = np.sin(phase) + 0.4 * np.sin(2 * phase + 0.9)
    presence = 7.5 + 2.0 * _stretched(_noise(rng, side // 120, side // 500), side, side)
    marks: Float = (ridge * presence).astype(np.float32)
    return marks


def _rotated(texture: Float, angle: float, height: int, width: int) -> Float:
    """Return the middle [height, width] of a square texture turned by `angle` radians."""
    cos, sin, middle = np.cos(angle), np.sin(angle), texture.shape[0] / 2
    matrix = (
        *(cos, sin, middle - cos * width / 2 - sin * height / 2),
        *(-sin, cos, middle + sin * width / 2 - cos * height / 2),
    )
    image = Image.fromarray(texture)
    turned = image.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(turned, dtype=np.float32)


def _illumination(rng: np.random.Generator, height: int, width: int) -> Float:
    """Return a smooth factor [height, width] around 1: a slope and broad patches of light."""
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    right = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope_down, slope_right = rng.normal(0, 0.06, 2)
    patches = _stretched(_noise(rng, 3, 4), height, width)
    light = 1 + slope_down * down + slope_right * right + 0.03 * patches
    factor: Float = (light - 0.08 * (down**2 + right**2)).astype(np.float32)
    return factor


def _scratch(rng: np.random.Generator, relief: Float) -> None:
    """Add one scratch, an arc that fades towards its ends."""
    height, width = relief.shape
    length = min(rng.uniform(12, 90), 0.8 * min(height, width))
    steps = np.linspace(0, 1, max(int(3 * length), 8))
    heading = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.5) * (steps - 0.5)
    start = rng.uniform(0.15, 0.85, 2) * (height, width)
    stride = length / len(steps)
    rows = start[0] + np.cumsum(np.sin(heading)) * stride
    columns = start[1] + np.cumsum(np.cos(heading)) * stride
    contrast = rng.choice((-1, 1)) * rng.uniform(18, 42)
    fade = np.minimum(1, 4 * np.minimum(steps, 1 - steps) + 0.3)
    _stamp(relief, rows, columns, radius=rng.uniform(0.5, 1.0), strength=contrast * fade)


def _pit(rng: np.random.Generator, relief: Float) -> None:
    """Add one dark pit with the bright rim that metal throws up around it."""
    row, column = rng.uniform(0.1, 0.9, 2) * relief.shape
    radius, depth = rng.uniform(1.0, 2.5), rng.uniform(30, 60)
    middle = np.array([row]), np.array([column])
    _stamp(relief, *middle, radius=radius + 0.8, strength=np.array([0.35 * depth]))
    _stamp(relief, *middle, radius=radius, strength=np.array([-1.35 * depth]))


_SCRIBES = {"scratch": _scratch, "pit": _pit}


def _stamp(
    relief: Float,
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    *,
    radius: float,
    strength: NDArray[np.float64],
) -> None:
    """Draw anti-aliased discs; where discs of one call overlap, the strongest counts.

    Args:
        relief: [H, W], changed in place.
        rows: [N] centres, pixels; those outside the image are cut off.
        columns: [N] centres, pixels.
        radius: of all discs, pixels.
        strength: [N] grey levels, all of one sign.
    """
    height, width = relief.shape
    reach = int(np.ceil(radius + 0.5))
    offsets = np.arange(-reach, reach + 1)
    cell_rows = np.floor(rows).astype(int)[:, None, None] + offsets[:, None]
    cell_columns = np.floor(columns).astype(int)[:, None, None] + offsets
    away = np.hypot(cell_rows - rows[:, None, None], cell_columns - columns[:, None, None])
    cover = np.clip(radius + 0.5 - away, 0, 1) * np.abs(strength)[:, None, None]
    inside = (cell_rows >= 0) & (cell_rows < height) & (cell_columns >= 0) & (cell_columns < width)
    cells = cell_rows * width + cell_columns
    layer = np.zeros(height * width, dtype=np.float32)
    np.maximum.at(layer, cells[inside], cover[inside].astype(np.float32))
    relief += np.sign(strength[0]) * layer.reshape(height, width)
