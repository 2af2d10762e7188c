"""One inspection image with what is known about it, and its encoding."""

import io
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import DataError

Image8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Label = Literal["normal", "abnormal", "unlabelled"]
Split = Literal["train-normal", "train-abnormal", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# A dot ends the key in a WebDataset member name, and a slash would make a folder.
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"RGB", "RGBA", "P", "CMYK", "YCbCr"}


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


def encode_png(image: Image8) -> bytes:
    """Encode [H, W, C] uint8 (C = 1 or 3) losslessly as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()
