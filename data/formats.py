"""Decode the image files people have: PNG, JPEG, TIFF, BMP and WebP, hostile ones included."""

import io
import warnings
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from data.errors import DataError
from data.item import ImportOptions
from data.picture_header import Format, Header, read_header
from data.sample import Image8, Mask

# `Image.open` would also parse the directory of multi-picture JPEGs, at any cost in memory.
_PLUGINS: dict[Format, type[ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
    "WebP": WebPImageFile,
}
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"}
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}

Raw = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixels as stored, upright: [H, W] or [H, W, 3]."""


def read_picture(payload: bytes, options: ImportOptions) -> Image8:
    """Decode an image file of a user.

    PNG, JPEG, TIFF, BMP or WebP; 1 to 8 or 16 bits a sample; grey, RGB, palette or CMYK.
    16-bit values are mapped so that `options.levels` become 0 and 255. Alpha is dropped, not
    blended: transparent pixels show the colour stored for them. Colour profiles are ignored.
    EXIF orientation, mirrored ones too, is applied. Files with several pages or frames, float
    samples, and images above `MAX_PIXELS` are refused before they are decoded.

    Args:
        payload: the file's bytes.
        options: `channels` and `levels` are used.

    Returns:
        [H, W, C] uint8; without `options.channels` C is 1 for grey files and 3 for all others.

    Raises:
        DataError: if the file cannot be used, with the reason.
    """
    raw = _decode(payload)
    pixels = _to_8_bit(raw, options.levels) if raw.dtype == np.uint16 else raw
    is_grey = pixels.ndim == 2 if options.channels is None else options.channels == 1
    if is_grey != (pixels.ndim == 2):
        pixels = np.asarray(Image.fromarray(pixels).convert("L" if is_grey else "RGB"))
    image: Image8 = np.ascontiguousarray(pixels, dtype=np.uint8)
    return image[:, :, None] if is_grey else image


def read_mask(payload: bytes, shape: tuple[int, int]) -> Mask:
    """Decode a defect mask: a pixel is True where any colour channel is not zero.

    Args:
        payload: bytes of an image file without losses, of any kind `read_picture` knows.
        shape: height and width of the image it belongs to, upright.

    Returns:
        [H, W] bool.

    Raises:
        DataError: if the file cannot be used or has another shape.
    """
    raw = _decode(payload, lossless=True)
    mask: Mask = raw != 0 if raw.ndim == 2 else (raw != 0).any(axis=2)
    if mask.shape != shape:
        raise DataError(f"the mask is {list(mask.shape)}, its image {list(shape)}; draw it anew")
    return mask


def _decode(payload: bytes, *, lossless: bool = False) -> Raw:
    header = read_header(payload)
    if lossless and header.format == "JPEG":
        raise DataError("a JPEG cannot be a mask, its black is not quite zero; save it as PNG")
    try:
        decode = _decode_16_bit if header.bits == 16 else _decode_8_bit
        pixels = decode(payload, header)
    # A lack of memory says nothing about the image; its size was checked.
    except (DataError, MemoryError):
        raise
    # Damaged bytes make the parsers raise almost anything.
    except Exception as error:
        raise DataError(f"not a readable image ({type(error).__name__}: {error})") from error
    return _upright(pixels, header.orientation)


def _decode_8_bit(payload: bytes, header: Header) -> Raw:
    with warnings.catch_warnings():
        # Of odd metadata, which is not used.
        warnings.simplefilter("ignore")
        with _PLUGINS[header.format](io.BytesIO(payload)) as opened:
            _check_size(opened.size, header)
            opened.load()
            mode = _PREMULTIPLIED.get(opened.mode, opened.mode)
            if mode not in _GREY_MODES | _COLOUR_MODES:
                raise DataError(f"pixel mode {mode} is not supported; save it as grey or RGB")
            # Each conversion is a copy, even one to the same mode.
            image: Image.Image = opened if mode == opened.mode else opened.convert(mode)
            wanted = "L" if mode in _GREY_MODES else "RGB"
            return np.asarray(image if mode == wanted else image.convert(wanted))


def _decode_16_bit(payload: bytes, header: Header) -> NDArray[np.uint16]:
    """Decode with OpenCV: Pillow reduces 16-bit colour to 8 bits without a word."""
    colour = cv2.IMREAD_GRAYSCALE if header.grey else cv2.IMREAD_COLOR
    flags = colour | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(payload, np.uint8), flags)
    if decoded is None or decoded.dtype != np.uint16:
        raise DataError("not a readable 16-bit image: damaged, or of an unusual kind")
    _check_size(decoded.shape[:2], header)
    pixels = cast(NDArray[np.uint16], decoded if header.grey else decoded[:, :, ::-1])
    return ~pixels if header.inverted else pixels


def _check_size(size: tuple[int, ...], header: Header) -> None:
    """Refuse what two parsers understand differently: its limits were checked in vain."""
    if sorted(size) != sorted((header.height, header.width)):
        raise DataError("its header contradicts itself: damaged")


def _to_8_bit(raw: Raw, levels: tuple[int, int]) -> Image8:
    low, high = levels
    if not 0 <= low < high <= 65535:
        raise DataError(f"levels={levels} are not two rising values in 0..65535")
    # A table of all values needs no copy of the image as float.
    scaled = np.floor((np.arange(65536) - low) * (255 / (high - low)) + 0.5)
    table: Image8 = np.clip(scaled, 0, 255).astype(np.uint8)
    return table[raw]


def _upright(pixels: Raw, orientation: int) -> Raw:
    """Undo EXIF orientation 1..8 of [H, W] or [H, W, 3]."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
