"""What an importer finds: images known by name, label and split, but not read yet."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from data.errors import DataError
from data.sample import Image8, Label, Mask, Split

Picture = tuple[Image8, Mask | None]
"""An image [H, W, C] uint8 (C = 1 or 3) and its defect mask [H, W] bool, where there is one."""

_KEY_CHARACTERS = 60


@dataclass(frozen=True)
class Item:
    """One source image, cheap to hold by the hundred thousand and to send to other processes.

    Attributes:
        key: unique name within the data set: 1-60 of `A-Za-z0-9_-`, see `key_of`.
        read: reads the image; a `functools.partial` of a module's function, so that it pickles.
            Raises `DataError` if the image cannot be used.
        label: what the user believes, and so what training may use.
        kind: free class name (`scratch`, `good`).
        group: the physical part shown; a group never crosses splits.
        source: where the image lies, for people and for the quarantine list.
        split: the part of the data set it belongs to; None until `data.plan.assign_splits`.
    """

    key: str
    read: Callable[[], Picture]
    label: Label
    kind: str
    group: str
    source: str
    split: Split | None = None

    def __post_init__(self) -> None:
        """Make the texts such as any index can hold."""
        for name in ("kind", "group", "source"):
            object.__setattr__(self, name, as_utf8(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What all importers are told.

    Attributes:
        seed: seed of every choice an importer makes.
        channels: 1 or 3 to convert all images; None keeps grey grey and colour colour.
        levels: raw values of a 16-bit image that become 0 and 255.
        normal_kinds: classes that are normal; empty where the format itself says so.
    """

    seed: int = 0
    channels: int | None = None
    levels: tuple[int, int] = (0, 65535)
    normal_kinds: tuple[str, ...] = ()


def as_utf8(text: str) -> str:
    """The text, with bytes of a name that is no UTF-8 spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def key_of(name: str) -> str:
    """A key for any name: unlike names get unlike keys.

    The name itself where it is short and plain; else a readable part of it and a digest.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    if plain == name.replace("/", "-") and "-" not in name and 0 < len(plain) <= _KEY_CHARACTERS:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return f"{plain[: _KEY_CHARACTERS - 11]}-{digest}"


def unique_keys(items: list[Item]) -> list[Item]:
    """The items, if no key stands twice.

    Raises:
        DataError: naming a key that does.
    """
    seen: dict[str, str] = {}
    for item in items:
        if item.key in seen:
            raise DataError(
                f"{item.source} and {seen[item.key]} both have key {item.key}; "
                "give each image its own name"
            )
        seen[item.key] = item.source
    return items
