"""What is packed where: pure functions of the items, the seed and the settings."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data.errors import DataError
from data.item import Item
from data.preparation import ALL_LEVELS, Intensity, Mode, Reference
from data.pyramid import resolutions_to
from data.sample import SPLITS, TRAINING, Split, side_of

Fractions = tuple[float, float, float]
"""Train, validation and test fraction; their sum is 1."""

FOUND = "found"
"""Kind of an image called normal until somebody looked."""

_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """What decides about the bytes of a packed data set, beside its items.

    Attributes:
        name: name of the data set.
        resolution: side of the samples, a power of two in 4..1024, pixels.
        seed: seed of the order.
        mode: `whole` resizes each image, `tiles` cuts it at native scale.
        tile_overlap: least overlap of neighbouring tiles, pixels.
        min_defect_pixels: least number of defect pixels that make a tile abnormal.
        shard_samples: images in a unit of work; a shard of tiles is closed at the first image
            boundary at or after this number of samples.
        channels: 1 or 3 where all images must have that; None takes what the images have, which
            must then be the same for all.
        source: where the images come from, for people.
        contamination: true abnormal fraction of train-normal where the source itself knows it;
            None counts contaminants.
        levels: values of a 16-bit image that become 0 and 255.
        intensity: whose brightness and contrast become the standard ones, see `data.intensity`.
        intensity_reference: centre and spread of the data set for intensity `dataset`; None until
            `data.intensity_fit.fitted`.
        reading: how else pixels are read, so that other settings pack anew.
    """

    name: str
    resolution: int
    seed: int
    mode: Mode = "whole"
    tile_overlap: int = 0
    min_defect_pixels: int = 4
    shard_samples: int = 64
    channels: int | None = None
    source: str = ""
    contamination: float | None = None
    levels: tuple[int, int] = ALL_LEVELS
    intensity: Intensity = "none"
    intensity_reference: Reference | None = None
    reading: str = ""

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        if self.shard_samples < 1:
            raise DataError(f"shard_samples={self.shard_samples} is below 1; give at least 1")
        if self.resolution not in resolutions_to(1024):
            raise DataError(
                f"resolution={self.resolution} is not a power of two in 4..1024; choose one"
            )
        if not 0 <= self.tile_overlap < self.resolution:
            raise DataError(
                f"tile_overlap={self.tile_overlap} is not in 0..{self.resolution - 1}; "
                "neighbouring tiles must differ"
            )
        if self.min_defect_pixels < 1:
            raise DataError(f"min_defect_pixels={self.min_defect_pixels} is below 1")


@dataclass(frozen=True)
class Unit:
    """One unit of work: a run of the shuffled images of one split.

    Attributes:
        name: `<split>-<5-digit number>`.
        split: the split all its items belong to.
        number: its place within the split, from 0.
        items: the images, in the order of the data set.
        contaminants: keys of abnormal images that are called normal on purpose.
    """

    name: str
    split: Split
    number: int
    items: tuple[Item, ...]
    contaminants: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """A whole data set before any image is read.

    Attributes:
        settings: how it is packed.
        units: all the work, in the order of the index.
        digest: of everything above; equal plans give equal bytes.
    """

    settings: PackSettings
    units: tuple[Unit, ...]
    digest: str

    @property
    def num_items(self) -> int:
        """Number of images."""
        return sum(len(unit.items) for unit in self.units)


def make_plan(
    items: Iterable[Item], settings: PackSettings, contaminants: Iterable[str] = ()
) -> Plan:
    """Return the plan of a data set; it does not depend on the order of the items.

    Args:
        items: the images, each with its split.
        settings: how to pack them.
        contaminants: keys of abnormal images that are called normal on purpose.

    Raises:
        DataError: if there are no items, a key stands twice or a group crosses splits.
    """
    ordered = sorted(items, key=lambda item: item.key)
    mixed_in = frozenset(contaminants)
    _check(ordered)
    cut = units(ordered, settings.seed, settings.shard_samples)
    named = [replace(unit, contaminants=mixed_in & {i.key for i in unit.items}) for unit in cut]
    return Plan(settings, tuple(named), _digest(ordered, settings, mixed_in))


def units(items: Sequence[Item], seed: int, shard_samples: int) -> list[Unit]:
    """Cut each split, in the order of sha256(seed/key), into runs of `shard_samples` images."""
    found = []
    for split in SPLITS:
        part = [item for item in items if item.split == split]
        part.sort(key=lambda item: (_hash(seed, item.key), item.key))
        for number, start in enumerate(range(0, len(part), shard_samples)):
            run = tuple(part[start : start + shard_samples])
            found.append(Unit(f"{split}-{number:05d}", split, number, run))
    return found


def assign_splits(items: Iterable[Item], seed: int, fractions: Fractions) -> list[Item]:
    """Give each item without a split one, by a hash of its group.

    A group lies wholly in training, in validation or in test, and images added later move no
    others. A group that holds an abnormal image goes to training with half the train fraction, to
    validation with the validation fraction, and else to test. In training its normal images are
    train-normal, the abnormal ones train-abnormal. A group with unlabelled images goes to test.
    Where some images of a group already have a split, the others join them.

    Args:
        items: images in any order, which is kept.
        seed: seed of the choice.
        fractions: train, validation and test fraction.

    Raises:
        DataError: if the fractions are wrong or a group is already in more than one split.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"fractions={fractions} must be non-negative and sum to 1")
    listed = list(items)
    labels: dict[str, set[str]] = {}
    for item in listed:
        labels.setdefault(item.group, set()).add(item.label)
    sides = _sides(listed)
    for group, found in labels.items():
        sides.setdefault(group, _side_of(group, found, seed, fractions))
    return [
        item if item.split else replace(item, split=_split_on(sides[item.group], item))
        for item in listed
    ]


def contaminate(items: Sequence[Item], fraction: float, seed: int) -> list[Item]:
    """Call some known abnormal training images normal, on purpose.

    Whole groups of train-abnormal, in a seeded order, become train-normal, until they are as near
    to `fraction` of train-normal as groups allow. Their label becomes normal, their kind stays.

    Args:
        items: images with their splits; their order is kept.
        fraction: wanted abnormal fraction of train-normal, 0 <= fraction < 1.
        seed: seed of the choice.

    Returns:
        All items; those moved are the ones whose split differs from before.

    Raises:
        DataError: if the fraction is out of range or train-abnormal has too few images.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"contamination={fraction} is not in [0, 1); choose such as 0.2")
    num_normal = sum(item.split == "train-normal" for item in items)
    wanted = round(fraction / (1 - fraction) * num_normal)
    sizes: dict[str, int] = {}
    for item in items:
        if item.split == "train-abnormal":
            sizes[item.group] = sizes.get(item.group, 0) + 1
    if wanted > sum(sizes.values()):
        raise DataError(
            f"contamination={fraction} of {num_normal} normal training images needs {wanted} "
            f"abnormal ones, train-abnormal has {sum(sizes.values())}; lower it or add images"
        )
    moved = _nearest(sizes, wanted, seed)
    return [
        replace(item, split="train-normal", label="normal")
        if item.split == "train-abnormal" and item.group in moved
        else item
        for item in items
    ]


def call_abnormal(items: Sequence[Item], sources: Collection[str]) -> list[Item]:
    """Call images abnormal that somebody has found to be so, whatever their source says.

    Each stays on its side: in training it becomes train-abnormal, elsewhere its label changes.

    Args:
        items: images with their splits; their order is kept.
        sources: where the images found lie, as `Item.source` tells it.

    Returns:
        All items.

    Raises:
        DataError: if no image lies where one was found.
    """
    wanted = set(sources)
    if unknown := sorted(wanted - {item.source for item in items}):
        raise DataError(
            f"{len(unknown)} of the {len(wanted)} images found abnormal are not among the "
            f"{len(items)} of the source, such as {unknown[0]}"
        )
    kinds = {item.kind for item in items if item.label == "abnormal"}
    return [_abnormal(item, kinds) if item.source in wanted else item for item in items]


def _abnormal(item: Item, kinds: Collection[str]) -> Item:
    """The image called abnormal; its kind stays if it is one of those."""
    if item.label == "abnormal":
        return item
    split: Split | None = "train-abnormal" if item.split == "train-normal" else item.split
    kind = item.kind if item.kind in kinds else FOUND
    return replace(item, label="abnormal", kind=kind, split=split)


def _nearest(sizes: dict[str, int], wanted: int, seed: int) -> set[str]:
    """Return groups whose images together are about `wanted`."""
    moved: set[str] = set()
    total = 0
    for group in sorted(sizes, key=lambda name: (_hash(seed, f"contaminate/{name}"), name)):
        if abs(wanted - total - sizes[group]) < abs(wanted - total):
            moved.add(group)
            total += sizes[group]
    return moved


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def _sides(items: Iterable[Item]) -> dict[str, str]:
    """Return each group's side, as far as splits are given."""
    known: dict[str, Item] = {}
    for item in items:
        if not item.split:
            continue
        first = known.setdefault(item.group, item)
        assert first.split
        if side_of(first.split) != side_of(item.split):
            raise DataError(
                f"group {item.group} is in two splits, {first.split} ({first.source}) and "
                f"{item.split} ({item.source}); keep all images of one part in one split"
            )
    return {group: side_of(item.split) for group, item in known.items() if item.split}


def _side_of(group: str, labels: set[str], seed: int, fractions: Fractions) -> str:
    if "unlabelled" in labels:
        return "test"
    place = int.from_bytes(_hash(seed, group)[:8]) / 2**64
    train, validation, _ = fractions
    if place < (train / 2 if "abnormal" in labels else train):
        return TRAINING
    return "validation" if train <= place < train + validation else "test"


def _split_on(side: str, item: Item) -> Split:
    if side == TRAINING:
        return "train-abnormal" if item.label == "abnormal" else "train-normal"
    return "validation" if side == "validation" else "test"


def _check(items: Sequence[Item]) -> None:
    if not items:
        raise DataError("the data set is empty: no samples to pack; check the source folder")
    for one, other in itertools.pairwise(items):
        if one.key == other.key:
            raise DataError(f"key {one.key} appears twice; give each image its own name")
    without = next((item for item in items if item.split is None), None)
    assert without is None, f"{without} has no split; see assign_splits"
    _sides(items)


def _digest(items: Sequence[Item], settings: PackSettings, contaminants: frozenset[str]) -> str:
    total = hashlib.sha256(f"{_FORMAT} {sorted(asdict(settings).items())!r}".encode())
    for item in items:
        facts = (item.key, item.label, item.kind, item.group, item.source, item.split)
        row = (*facts, item.key in contaminants, _described(item.read))
        total.update(repr(row).encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _described(read: Callable[[], Any]) -> str:
    """Say what a reader reads, the same in every process."""
    if isinstance(read, functools.partial):
        name = f"{read.func.__module__}.{getattr(read.func, '__qualname__', read.func)}"
        return f"{name}{read.args!r}{sorted(read.keywords.items())!r}"
    return repr(read)
