"""Magnetic tiles of $BLEMISH_IMAGES as crops: who is trained on, who chooses, who is tested.

Parts, not images, are split, by a fixed hash within each kind: a hash over all of them leaves some
split without any of the eight parts with fray. Photographs are halved, then cut into crops of 64
pixels that cover them. What a mask marks with fewer than `MIN_DEFECT_PIXELS` is neither normal nor
abnormal; such crops count only in whole images and maps.
"""

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.intensity import standardised
from data.sample import Image8, Mask
from data.tiles import cut, grid

GOOD = "good"
KINDS = ("blowhole", "break", "crack", "fray")
"""Kinds of defect. The data set's fifth, uneven, is no defect of a few pixels and is left out."""
SIDE, STRIDE = 64, 32
MIN_DEFECT_PIXELS = 8

Ints = NDArray[np.int64]
Split = Literal["train", "validation", "test"]
Intensity = Literal["none", "image"]
_ENDS: dict[Split, float] = {"train": 0.6, "validation": 0.72, "test": 1.0}


@dataclass(frozen=True, eq=False)
class Picture:
    """One photograph at half size, no side below `SIDE`.

    Attributes:
        name: its file below `images`.
        kind: `GOOD` or one of `KINDS`.
        part: the physical part shown.
        split: where that part belongs.
        pixels: [H, W] uint8, reflected at the lower and right edge where it was too small.
        mask: [H, W] bool, the defect pixels.
        height: of the photograph itself, pixels.
        width: of the photograph itself, pixels.
    """

    name: str
    kind: str
    part: str
    split: Split
    pixels: Image8
    mask: Mask
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Crops:
    """Crops, one row each.

    Attributes:
        pixels: [N, 64, 64] uint8.
        masks: [N, 64, 64] bool, the defect pixels.
        picture: [N] which picture they are of.
        y: [N] row of the corner in the picture, pixels.
        x: [N] column of the corner, pixels.
    """

    pixels: Image8
    masks: Mask
    picture: Ints
    y: Ints
    x: Ints

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: NDArray[Any] | slice) -> "Crops":
        """The crops at some places, or where a [N] bool is true."""
        return Crops(*(getattr(self, one.name)[rows] for one in fields(self)))

    @classmethod
    def join(cls, parts: "Sequence[Crops]") -> "Crops":
        """Some crops after others."""
        names = (one.name for one in fields(cls))
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def num_defect_pixels(self) -> Ints:
        """[N]."""
        return np.asarray(self.masks.sum(axis=(1, 2)))


def halved(pixels: Image8, mask: Mask) -> tuple[Image8, Mask]:
    """Area averages of 2x2 pixels, and where any of the four shows a defect."""
    small = np.asarray(Image.fromarray(pixels).reduce(2))
    height, width = small.shape
    even = np.pad(mask, [(0, 2 * height - mask.shape[0]), (0, 2 * width - mask.shape[1])])
    return small, np.asarray(even.reshape(height, 2, width, 2).any(axis=(1, 3)))


def splits_of(kinds_of_part: dict[str, set[str]]) -> dict[str, Split]:
    """Split of each part: 60, 12 and 28 % of the parts of each kind, in the order of their hashes.

    Args:
        kinds_of_part: what the pictures of each part show. A part counts as the kind that the
            fewest parts show.
    """
    everything = sorted(kind for kinds in kinds_of_part.values() for kind in kinds)
    by_kind: dict[str, list[str]] = {}
    for part, kinds in kinds_of_part.items():
        rarest = min(kinds, key=lambda kind: (everything.count(kind), kind))
        by_kind.setdefault(rarest, []).append(part)
    found: dict[str, Split] = {}
    for parts in by_kind.values():
        for place, part in enumerate(sorted(parts, key=hash_of)):
            share = (place + 0.5) / len(parts)
            found[part] = next(split for split, end in _ENDS.items() if share < end)
    return found


def hash_of(name: str) -> str:
    """Order of parts that says nothing about them."""
    return hashlib.sha256(name.encode()).hexdigest()


def load_pictures(intensity: Intensity = "image") -> list[Picture]:
    """All photographs of the study.

    Args:
        intensity: `image` standardises each by its own pixels.

    Raises:
        SystemExit: if $BLEMISH_IMAGES does not lead to them.
    """
    folder = Path(os.environ.get("BLEMISH_IMAGES", "")) / "magnetic_tile"
    if not (folder / "tiles.csv").exists():
        raise SystemExit(
            f"{folder}/tiles.csv is not there: set BLEMISH_IMAGES to the folder that holds the "
            "magnetic tiles of Huang, Qiu and Yuan (2020)"
        )
    with (folder / "tiles.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["class"] in (GOOD, *KINDS)]
    kinds: dict[str, set[str]] = {}
    for row in rows:
        kinds.setdefault(row["part"], set()).add(row["class"])
    splits = splits_of(kinds)
    return [_read(folder, row, splits[row["part"]], intensity) for row in rows]


def _read(folder: Path, row: dict[str, str], split: Split, intensity: Intensity) -> Picture:
    name, kind = row["image"], row["class"]
    pixels = _grey(folder / "images" / name)
    mask = np.zeros(pixels.shape, bool)
    if kind != GOOD:
        mask = _grey(folder / "masks" / Path(name).with_suffix(".png")) > 0
    return picture_of(name, kind, row["part"], split, pixels, mask, intensity)


def _grey(path: Path) -> Image8:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L"))


def picture_of(
    name: str,
    kind: str,
    part: str,
    split: Split,
    pixels: Image8,
    mask: Mask,
    intensity: Intensity,
) -> Picture:
    """A photograph [H, W] as the study sees it."""
    pixels, mask = halved(pixels, mask)
    pixels = standardised(pixels[:, :, None], intensity, None)[:, :, 0]
    height, width = pixels.shape
    missing = [(0, max(0, SIDE - length)) for length in pixels.shape]
    pixels, mask = np.pad(pixels, missing, mode="reflect"), np.pad(mask, missing)
    return Picture(name, kind, part, split, pixels, mask, height, width)


def cut_pictures(pictures: Sequence[Picture], stride: int = STRIDE) -> Crops:
    """All crops of the pictures, one picture after the other."""
    return _stacked(pictures, list(_places(pictures, range(len(pictures)), stride)))


def cut_between(pictures: Sequence[Picture], chosen: Sequence[int], stride: int) -> Crops:
    """Crops of some pictures at a smaller stride, without those at `STRIDE`."""
    usual = set(_places(pictures, chosen, STRIDE))
    places = [place for place in _places(pictures, chosen, stride) if place not in usual]
    return _stacked(pictures, places)


def _places(
    pictures: Sequence[Picture], chosen: Sequence[int], stride: int
) -> Iterator[tuple[int, int, int]]:
    for number in chosen:
        height, width = pictures[number].pixels.shape
        for y, x in grid(height, width, SIDE, SIDE - stride):
            yield number, y, x


def _stacked(pictures: Sequence[Picture], places: list[tuple[int, int, int]]) -> Crops:
    picture, y, x = np.array(places, np.int64).reshape(-1, 3).T
    shape = (len(places), SIDE, SIDE)
    pixels, masks = np.empty(shape, np.uint8), np.empty(shape, bool)
    for row, (number, top, left) in enumerate(places):
        pixels[row] = cut(pictures[number].pixels, top, left, SIDE)
        masks[row] = cut(pictures[number].mask, top, left, SIDE)
    return Crops(pixels, masks, picture, y, x)
