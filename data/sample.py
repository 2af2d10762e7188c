"""One inspection image with what is known about it, and its encoding."""

import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray
from PIL import Image

from data.errors import DataError

Image8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Label = Literal["normal", "abnormal", "unlabelled"]
Split = Literal["train-normal", "train-abnormal", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
TRAINING = "train"

# A dot ends the key in a WebDataset member name, and a slash would make a folder.
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_GREY_MODES = {"1", "L", "LA"}
# Signature, then the length and name of the chunk that tells size, depth and colour.
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_HEADER_BYTES = 26
_PNG_COLOUR = {1: 0, 3: 2}
_PNG_MODE = {1: "mono", 3: "rgb"}
_COLOUR_MODES = {"RGB", "RGBA", "P", "CMYK", "YCbCr"}


def side_of(split: Split) -> str:
    """Training, validation or test: what must not share a physical part."""
    return TRAINING if split in ("train-normal", "train-abnormal") else split


@dataclass(frozen=True)
class Tile:
    """Where a sample was cut from a larger image, at native scale.

    Attributes:
        parent: key of the image.
        y: row of the sample's upper left corner in the image, pixels.
        x: column of that corner, pixels.
        height: height of the image, pixels.
        width: width of the image, pixels.
        label: label of the whole image; the sample's own says whether this tile shows a defect.
    """

    parent: str
    y: int
    x: int
    height: int
    width: int
    label: Label


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known about it.

    Attributes:
        key: unique name within the data set: 1-80 of `A-Za-z0-9_-`.
        image: [H, W, C] uint8, C = 1 (grey) or 3 (RGB).
        label: what the user believes, and so what training may use.
        source: where the image came from, for people.
        group: the physical part shown; a group never crosses splits.
        kind: free class name (`scratch`, `good`), for reports and studies only.
        split: the part of the data set it belongs to.
        mask: [H, W] bool, True on defect pixels, or None where not known.
        tile: where it was cut from a larger image; None for a whole image.

    Raises:
        DataError: if the key, the image or the mask breaks the rules above.
    """

    key: str
    image: Image8
    label: Label
    source: str
    group: str
    kind: str
    split: Split
    mask: Mask | None = None
    tile: Tile | None = None

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        if not _KEY.fullmatch(self.key):
            raise DataError(f"sample key {self.key!r} is not 1-80 characters of A-Za-z0-9_-")
        shape = self.image.shape
        if self.image.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3):
            raise DataError(
                f"sample {self.key}: image is {self.image.dtype} {list(shape)}, "
                "allowed is uint8 [H, W, 1 or 3]"
            )
        if self.mask is not None and self.mask.shape != shape[:2]:
            raise DataError(
                f"sample {self.key}: mask is {list(self.mask.shape)}, its image {list(shape[:2])}"
            )


def decode_image(payload: bytes, channels: int | None = None) -> Image8:
    """Decode any common 8-bit image file.

    Args:
        payload: the file's bytes.
        channels: 1 or 3 to convert; None gives 1 for grey files and 3 for all others.

    Returns:
        [H, W, C] uint8. Alpha is dropped.

    Raises:
        DataError: if the bytes are no readable image or have more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(payload)) as opened:
            mode = opened.mode
            is_grey = mode in _GREY_MODES if channels is None else channels == 1
            pixels = np.asarray(opened.convert("L" if is_grey else "RGB"))
    # Damaged bytes make Pillow's parsers raise almost anything.
    except Exception as error:
        raise DataError(f"not a readable image ({type(error).__name__}: {error})") from error
    if mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(f"pixel mode {mode} is not supported; convert to 8-bit grey or RGB")
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def decode_png(payload: bytes, shape: tuple[int, int, int]) -> Image8:
    """Decode an image of our own shards, whose size is known: more than twice as fast as any.

    Args:
        payload: an 8-bit PNG, grey or RGB.
        shape: its [H, W, C], C = 1 or 3.

    Returns:
        [H, W, C] uint8.

    Raises:
        DataError: if the bytes are no such image.
    """
    height, width, channels = shape
    header = _PNG_START + struct.pack(">IIBB", width, height, 8, _PNG_COLOUR[channels])
    # The decoder trusts the caller on size and kind: it makes room before it looks.
    if payload[: len(header)] != header:
        raise DataError(f"{_png_facts(payload)}, the data set has 8-bit images {list(shape)}")
    try:
        image: Image8 = decode_image_png_u8(payload, (height, width), _PNG_MODE[channels])
    except Exception as error:
        raise DataError(f"not a readable PNG image ({error})") from error
    return image


def _png_facts(payload: bytes) -> str:
    """What a PNG says of itself, for messages."""
    if not payload.startswith(_PNG_START) or len(payload) < _PNG_HEADER_BYTES:
        return "not a PNG image"
    width, height, depth, colour = struct.unpack_from(">IIBB", payload, len(_PNG_START))
    return f"image is {height}x{width} with {depth} bits, PNG colour type {colour}"


def encode_png(image: Image8) -> bytes:
    """Encode [H, W, C] uint8 (C = 1 or 3) losslessly as PNG."""
    buffer = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    # Run lengths alone make filtered pixels as small as level 6 does, at five times the speed.
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()
