"""Pictures made of arrays: heat overlays, 16-bit maps, grids of images."""

import io

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_HEAT = (matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
_LUMA = np.array([0.299, 0.587, 0.114])
_GRID_GAP = 2
_GRID_GREY = 128


def to_uint8(image_BCHW: Tensor) -> NDArray[np.uint8]:
    """Images in [-1, 1] as uint8 [B, H, W, C]; values outside are clipped."""
    scaled = (image_BCHW.clamp(-1, 1) + 1) * 127.5
    array: NDArray[np.uint8] = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def overlay(image_HWC: NDArray[np.uint8], level_HW: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Lay a map over its image: the stronger the map, the more of its colour covers the image.

    The image is shown in grey, so that every colour is heat; the colours are matplotlib's inferno,
    whose lightness grows evenly with the level.

    Args:
        image_HWC: Image with 1 or 3 channels, 0..255.
        level_HW: Map as a share of its full scale; values outside [0, 1] are clipped.

    Returns:
        RGB image [H, W, 3].
    """
    assert image_HWC.shape[:2] == level_HW.shape, "image and map differ in size"
    level = np.clip(level_HW, 0.0, 1.0)[..., None]
    grey = image_HWC @ _LUMA if image_HWC.shape[2] == 3 else image_HWC[:, :, 0]
    heat = _HEAT[np.rint(level[..., 0] * 255).astype(np.uint8)]
    mixed = (1.0 - level) * grey[..., None] + level * heat
    colored: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return colored


def encode_map(map_HW: NDArray[np.floating], scale: float) -> bytes:
    """Encode a map as a 16-bit grey PNG.

    Args:
        map_HW: Values, at least 0.
        scale: Value that becomes 65535; higher ones are clipped to it.
    """
    assert scale > 0, "the full scale of a map is positive"
    level = np.clip(map_HW / scale, 0.0, 1.0)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(level * 65535).astype(np.uint16)).save(buffer, format="PNG")
    return buffer.getvalue()


def grid(image_NHWC: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Arrange images row by row in one picture, with thin grey lines between them.

    Args:
        image_NHWC: At least one image, 1 or 3 channels, 0..255.
        columns: Images in a row; places the last row leaves empty stay grey.

    Returns:
        Picture [H', W', C].
    """
    num, height, width, channels = image_NHWC.shape
    assert num, "a grid needs an image"
    assert columns > 0, "a grid needs a column"
    columns = min(columns, num)
    rows = -(-num // columns)
    cell_H, cell_W = height + _GRID_GAP, width + _GRID_GAP
    canvas = np.full((rows * cell_H, columns * cell_W, channels), _GRID_GREY, dtype=np.uint8)
    for i, image in enumerate(image_NHWC):
        top, left = i // columns * cell_H, i % columns * cell_W
        canvas[top : top + height, left : left + width] = image
    return canvas[:-_GRID_GAP, :-_GRID_GAP]
