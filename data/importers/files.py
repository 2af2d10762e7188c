"""What the importers of single image files share: finding them, naming them, reading them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import get_args

from data.errors import DataError
from data.formats import read_mask, read_picture
from data.item import ImportOptions, Item, Picture, key_of
from data.sample import SPLITS, Label, Split
from data.store import Store

LABELS: tuple[Label, ...] = get_args(Label)
KINDS: dict[Label, str] = {"normal": "good", "abnormal": "defect", "unlabelled": "unknown"}
"""Kinds of images of which only the label is told."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})

_KEPT_BY_SYSTEMS = {"@eaDir", "#recycle", "lost+found"}

Location = tuple[Store, str]
"""An object: its store, and its path within it."""


def is_image(name: str) -> bool:
    """Return whether a file's name says that it is an image, and nothing that a system keeps."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Return whether a file or a folder it lies in is hidden, or what a NAS or disk keeps."""
    return any(part.startswith(".") or part in _KEPT_BY_SYSTEMS for part in name.split("/"))


def stem_of(path: str) -> str:
    """Return the path without the file's suffix."""
    return str(PurePosixPath(path).with_suffix(""))


def read_files(image: Location, mask: Location | None, options: ImportOptions) -> Picture:
    """Read an image and its mask, if it has one.

    Raises:
        DataError: if either cannot be used.
    """
    pixels = read_picture(image[0].read_bytes(image[1]), options)
    if mask is None:
        return pixels, None
    height, width, _ = pixels.shape
    payload = mask[0].read_bytes(mask[1])
    try:
        return pixels, read_mask(payload, (height, width))
    except DataError as error:
        raise DataError(f"mask {mask[0].url(mask[1])}: {error}") from error


def file_item(
    image: Location,
    options: ImportOptions,
    *,
    key: str,
    label: Label,
    kind: str,
    mask: Location | None = None,
    group: str | None = None,
    split: Split | None = None,
) -> Item:
    """Return the item of an image file; without a group it is its own.

    A bucket may list names that its store refuses, such as `/x.png`: then reading fails, no more.
    """
    return Item(
        key=key,
        read=partial(read_files, image, mask, options),
        label=label,
        kind=kind,
        group=group or stem_of(image[1]),
        source=f"{image[0].uri.rstrip('/')}/{image[1]}",
        split=split,
    )


def keys_for(paths: Sequence[str]) -> list[str]:
    """Return a key for each path: of its stem, and of the whole path where two share a stem."""
    stems = Counter(stem_of(path) for path in paths)
    return [key_of(stem_of(path) if stems[stem_of(path)] == 1 else path) for path in paths]


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Return the names in an order that depends on the seed and not on the order given."""

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()

    return sorted(names, key=place)


def split_named(told: object, label: Label, where: str) -> Split | None:
    """Return the split of this name, or of `train` what the label says; None for an empty name.

    Args:
        told: the name.
        label: of the image.
        where: the image, for people.

    Raises:
        DataError: if there is no such split, or an image with this label cannot be in it.
    """
    if told == "":
        return None
    if told == "train":
        return "train-abnormal" if label == "abnormal" else "train-normal"
    split = next((split for split in SPLITS if split == told), None)
    if split is None:
        raise DataError(f"{where}: split {told!r} is not one of train, {', '.join(SPLITS)}")
    if (split == "train-normal" and label == "abnormal") or (
        split == "train-abnormal" and label != "abnormal"
    ):
        raise DataError(f"{where}: an image labelled {label} cannot be in {split}; correct one")
    return split


def check_fraction(name: str, value: float) -> None:
    """Raise `DataError` unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise DataError(f"{name}={value} is not in 0..1; choose such as 0.2")
