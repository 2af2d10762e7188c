"""Near-duplicates: the same picture twice, perhaps resized, re-encoded or a little brighter."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.sample import SPLITS, Image8, Split

MAX_DISTANCE = 6
"""Most differing bits of 64 in a pair. On photographs of magnetic tiles 99 % of the copies resized
to a half, saved as JPEG of quality 60 or made 8 % brighter differ by no more, and so do 0.03 % of
the pairs that show different parts."""

_SIDE = 32
_BANDS = [
    np.bitwise_or.reduce(np.uint64(1) << part)
    for part in np.array_split(np.arange(64, dtype=np.uint64), MAX_DISTANCE + 1)
]
_MIN_CONTRAST = 1.0
_WINDOW = 2048
_MAX_PARTNERS = 3


@dataclass(frozen=True)
class Fingerprint:
    """What is needed to find an image's near-duplicates.

    Attributes:
        key: of the image.
        split: of the image.
        group: of the image; pairs within a group are no news.
        bits: its perceptual hash.
    """

    key: str
    split: Split
    group: str
    bits: int


def _basis() -> NDArray[np.int64]:
    """Return frequencies 1..8 of a 32-point cosine transform, [8, 32], times 4096.

    Whole numbers, so that every machine finds the same bits.
    """
    angles = np.pi * np.outer(np.arange(1, 9), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE)
    basis: NDArray[np.int64] = np.rint(4096 * np.cos(angles)).astype(np.int64)
    return basis


_BASIS = _basis()


def perceptual_hash(image: Image8) -> int | None:
    """Return the signs of 64 low frequencies of an image [H, W, C], shrunk to 32x32.

    The mean and the frequencies along one axis alone are left out: uneven light, which all images
    of one camera share, lies there.

    Returns:
        64 bits, or None for an image too flat to tell it from another.
    """
    # 8 pixels a side of each of the 32 are enough to average, however large the image.
    step = max(1, min(image.shape[:2]) // (8 * _SIDE))
    sampled = image[::step, ::step]
    grey = np.ascontiguousarray(sampled[:, :, 0])
    if image.shape[2] == 3:
        grey = sampled.mean(axis=2).astype(np.uint8)
    small = Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int64)
    if pixels.std() < _MIN_CONTRAST:
        return None
    waves = _BASIS @ pixels @ _BASIS.T
    return int.from_bytes(np.packbits(waves.ravel() > 0).tobytes())


def near_duplicates(prints: Sequence[Fingerprint]) -> list[tuple[Fingerprint, Fingerprint, int]]:
    """Find pairs of near-duplicates in different splits and different groups.

    Two hashes that differ in at most `MAX_DISTANCE` bits are equal in at least one of
    `MAX_DISTANCE + 1` bands of bits, so only images equal in a band are compared. Where thousands
    are, each is compared with its 2,048 neighbours in the order of the hashes only, and no image
    ends more than 3 pairs: time and result grow with the images, not with their pairs, even if all
    images are alike.

    Returns:
        Rows of two images, the one of the earlier split first, and the number of differing bits,
        sorted.
    """
    # Where hashes are equal, the order mixes the splits: partners are near even in a large bucket.
    ordered = sorted(prints, key=lambda item: (item.bits, zlib.crc32(item.key.encode()), item.key))
    columns = _Columns(
        bits=np.array([item.bits for item in ordered], dtype=np.uint64),
        split=_numbered([item.split for item in ordered]),
        group=_numbered([item.group for item in ordered]),
        num_pairs=np.zeros(len(ordered), dtype=np.int64),
    )
    pairs = []
    for band in range(len(_BANDS)):
        for i, j, distance in _pairs_of(columns, band):
            first, second = sorted((ordered[i], ordered[j]), key=_place)
            pairs.append((first, second, distance))
    return sorted(pairs, key=lambda pair: (_place(pair[0]), _place(pair[1])))


@dataclass(frozen=True)
class _Columns:
    """The fingerprints as columns, and the number of pairs that each one ends so far."""

    bits: NDArray[np.uint64]
    split: NDArray[np.int64]
    group: NDArray[np.int64]
    num_pairs: NDArray[np.int64]


def _place(item: Fingerprint) -> tuple[int, str]:
    return SPLITS.index(item.split), item.key


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _pairs_of(columns: _Columns, band: int) -> Iterator[tuple[int, int, int]]:
    """Yield the pairs that are equal in this band and in none before it."""
    order = np.argsort(columns.bits & _BANDS[band], kind="stable")
    earlier = np.arange(len(order))
    for step in range(1, _WINDOW + 1):
        # Sorted by band, an image that has left its bucket at this step has left it for good.
        earlier = earlier[earlier + step < len(order)]
        one, other = order[earlier], order[earlier + step]
        differing = columns.bits[one] ^ columns.bits[other]
        alike = (differing & _BANDS[band]) == 0
        earlier = earlier[alike]
        if (columns.num_pairs[other[alike]] >= _MAX_PARTNERS).all():
            return
        one, other, differing = one[alike], other[alike], differing[alike]
        distance = np.bitwise_count(differing)
        hit = (distance <= MAX_DISTANCE) & (columns.num_pairs[other] < _MAX_PARTNERS)
        hit &= columns.split[one] != columns.split[other]
        hit &= columns.group[one] != columns.group[other]
        for mask in _BANDS[:band]:
            hit &= (differing & mask) != 0
        columns.num_pairs[other[hit]] += 1
        yield from zip(one[hit].tolist(), other[hit].tolist(), distance[hit].tolist(), strict=True)
