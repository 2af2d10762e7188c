"""IDX files, the format in which MNIST is published, read once per process."""

import math
import struct
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.store import Store

MAX_BYTES = 2**30
"""Most bytes that an IDX file may hold, uncompressed."""

PARTS = {"train": "train", "test": "t10k"}

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


def find_idx(store: Store, part: str) -> tuple[str, str]:
    """Return the names of the image and the label file of `train` or `test`.

    Raises:
        DataError: if either is missing, naming what was looked for.
    """
    return _find(store, part, "images", 3), _find(store, part, "labels", 1)


def _find(store: Store, part: str, content: str, rank: int) -> str:
    wanted = [
        f"{PARTS[part]}-{content}{separator}idx{rank}-ubyte{suffix}"
        for separator in "-."
        for suffix in ("", ".gz")
    ]
    for name in wanted:
        if store.exists(name):
            return name
    raise DataError(f"{store.uri} has no {part} {content}; looked for {', '.join(wanted)}")


@lru_cache(maxsize=4)
def load_part(store: Store, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images [N, H, W] and their classes [N] of `train` or `test`, both read-only.

    Raises:
        DataError: if the files are missing, damaged or do not belong together.
    """
    image_name, label_name = find_idx(store, part)
    images = parse_idx(store.read_bytes(image_name), 3, store.url(image_name))
    labels = parse_idx(store.read_bytes(label_name), 1, store.url(label_name))
    if len(images) != len(labels):
        raise DataError(
            f"{store.url(image_name)} has {len(images)} images, {label_name} {len(labels)} labels"
        )
    return images, labels


def parse_idx(payload: bytes, rank: int, source: str) -> NDArray[np.uint8]:
    """Return the array of an IDX file, which may be gzipped.

    Args:
        payload: the file's bytes.
        rank: number of dimensions it must have.
        source: name of the file, for messages.

    Raises:
        DataError: if the file is anything else, or larger than `MAX_BYTES`.
    """
    start = 4 + 4 * rank
    head = _inflated(payload, start, source)
    if len(head) < start or head[:4] != bytes([0, 0, _UNSIGNED_BYTE, rank]):
        raise DataError(f"{source} is no IDX file of unsigned bytes with {rank} dimensions")
    shape = struct.unpack(f">{rank}I", head[4:])
    size = math.prod(shape)
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"{source} says it is {list(shape)}; allowed are 1 to {MAX_BYTES} bytes")
    content = _inflated(payload, start + size + 1, source)
    if len(content) != start + size:
        told = "more" if len(content) > start + size else "less"
        raise DataError(f"{source} holds {told} than the {list(shape)} its header says: damaged")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _inflated(payload: bytes, most: int, source: str) -> bytes:
    """Return at most `most` bytes of the file, uncompressed."""
    if not payload.startswith(_GZIP_MAGIC):
        return payload[:most]
    try:
        return zlib.decompressobj(wbits=31).decompress(payload, most)
    except zlib.error as error:
        raise DataError(f"{source} is a damaged gzip file: {error}") from error
