"""Pack images into shards, a resolution pyramid and an index.

The work is cut into units (`data.plan`). `pack_unit` packs one, anywhere and in any order, and
`finish` makes a data set of all of them; the bytes depend on neither.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from data.dataset import DatasetIndex
from data.duplicates import perceptual_hash
from data.errors import DataError, StoreError, memory_error
from data.intensity import standardised
from data.intensity_fit import fitted
from data.item import Item, Picture, as_utf8
from data.pack_finish import common_channels, finish
from data.pack_records import (
    BadImage,
    PackedImage,
    UnitRecord,
    load_records,
    open_plan,
    pending,
    save_record,
)
from data.pack_shards import UnitShards
from data.plan import PackSettings, Unit, make_plan
from data.preparation import Intensity, Mode
from data.pyramid import mask_to_square, to_square
from data.sample import Label, Mask, Sample, Tile
from data.store import Store
from data.tiles import cut, grid, tile_labels

Progress = Callable[[int, int], None]


def pack(
    samples: Iterable[Sample | Item],
    store: Store,
    *,
    resolution: int,
    name: str,
    seed: int,
    shard_samples: int = 64,
    contamination: float | None = None,
    source: str = "",
    mode: Mode = "whole",
    tile_overlap: int = 0,
    intensity: Intensity = "none",
    max_bad_fraction: float = 0.0,
    progress: Progress | None = None,
) -> DatasetIndex:
    """Write a packed data set in this process; the same images and seed give the same bytes.

    Args:
        samples: what to pack, in any order; samples are square, of side `resolution`.
        store: where to write.
        resolution: see `PackSettings`, as all up to `intensity`.
        name: name of the data set.
        seed: seed of the order.
        shard_samples: images in a unit.
        contamination: true abnormal fraction of train-normal, where it is known.
        source: where the images come from, for people.
        mode: whole images or tiles.
        tile_overlap: least overlap of tiles, pixels.
        intensity: whose brightness and contrast become the standard ones.
        max_bad_fraction: see `finish`.
        progress: called with (images done, images in all) after each unit.

    Raises:
        DataError: if the samples do not make a data set, or the store fails.
    """
    settings = PackSettings(
        name=name,
        resolution=resolution,
        seed=seed,
        mode=mode,
        tile_overlap=tile_overlap,
        intensity=intensity,
        shard_samples=shard_samples,
        source=source,
        contamination=contamination,
    )
    listed = list(samples)
    _check_samples([each for each in listed if isinstance(each, Sample)], resolution)
    plan = make_plan(map(as_item, listed), settings)
    if index := open_plan(store, plan):
        return index
    plan = fitted(plan, store)
    records = load_records(store, plan)
    done = sum(len(unit.items) for unit in plan.units if unit.name in records)
    seen = [*records.values()]
    for unit in pending(plan, records):
        record = pack_unit(unit, store, plan.settings, plan.digest)
        common_channels([*seen, record])
        # One stands for all that agree with it.
        seen = [record] if record.channels else seen
        done += len(unit.items)
        if progress:
            progress(done, plan.num_items)
    return finish(store, plan, max_bad_fraction=max_bad_fraction)


def _check_samples(samples: Sequence[Sample], resolution: int) -> None:
    """Refuse at once what is already in memory and cannot be packed."""
    for sample in samples:
        height, width, channels = sample.image.shape
        if channels != samples[0].image.shape[2]:
            raise DataError(
                f"mixed channels: {samples[0].key} has {samples[0].image.shape[2]}, {sample.key} "
                f"has {channels}; convert all images to grey (1) or all to RGB (3)"
            )
        if (height, width) != (resolution, resolution):
            raise DataError(
                f"sample {sample.key} is {height}x{width}, resolution={resolution}; "
                "resize it before packing"
            )


@dataclass(frozen=True)
class _Held:
    """Reader of a sample that is in memory; its text says what it holds, as a digest needs."""

    sample: Sample

    def __call__(self) -> Picture:
        return self.sample.image, self.sample.mask

    def __repr__(self) -> str:
        parts = [part for part in self() if part is not None]
        digests = [hashlib.sha256(part.tobytes()).hexdigest() for part in parts]
        return f"{[part.shape for part in parts]} {digests}"


def as_item(sample: Sample | Item) -> Item:
    """Return an item that reads a sample from memory; an item is returned as it is."""
    if isinstance(sample, Item):
        return sample
    return Item(
        key=sample.key,
        read=_Held(sample),
        label=sample.label,
        kind=sample.kind,
        group=sample.group,
        source=sample.source,
        split=sample.split,
    )


def cut_picture(
    item: Item, picture: Picture, settings: PackSettings, *, is_contaminant: bool = False
) -> list[Sample]:
    """Return the samples of one image: itself, resized, or its tiles, of standard intensity.

    Args:
        item: what is known about the image.
        picture: the image, as it came, and its mask.
        settings: how to pack it.
        is_contaminant: whether it is abnormal though called normal.

    Raises:
        DataError: if the image cannot be used.
    """
    image, mask = picture
    if settings.channels not in (None, image.shape[2]):
        raise DataError(
            f"the image has {image.shape[2]} channels, the data set {settings.channels}; "
            "set pack.channels"
        )
    side = settings.resolution
    height, width = image.shape[:2]
    assert item.split
    image = standardised(image, settings.intensity, settings.intensity_reference)
    whole = Sample(
        item.key, image, item.label, item.source, item.group, item.kind, item.split, mask
    )
    if settings.mode == "whole":
        small = None if mask is None else mask_to_square(mask, side)
        return [replace(whole, image=to_square(image, side), mask=small)]
    labels = tile_labels(
        grid(height, width, side, settings.tile_overlap),
        side,
        mask,
        item.label,
        item.split,
        is_contaminant=is_contaminant,
        min_defect_pixels=settings.min_defect_pixels,
    )
    return [_tile(whole, y, x, side, label) for (y, x), label in labels.items()]


def _tile(whole: Sample, y: int, x: int, side: int, label: Label) -> Sample:
    height, width = whole.image.shape[:2]
    return replace(
        whole,
        key=f"{whole.key}-y{y:05d}-x{x:05d}",
        image=cut(whole.image, y, x, side),
        mask=None if whole.mask is None else cut(whole.mask, y, x, side),
        label=label,
        tile=Tile(whole.key, y, x, height, width, whole.label),
    )


def pack_unit(unit: Unit, store: Store, settings: PackSettings, plan: str) -> UnitRecord:
    """Read each image of a unit once, write its shards, and its record last.

    An image that cannot be used becomes a row of the record. The images are held in memory one
    at a time, the samples of one shard only as they are encoded.

    Args:
        unit: what to pack.
        store: where to write.
        settings: how to pack.
        plan: digest of the plan the unit belongs to.

    Raises:
        StoreError: if the source or the destination cannot be reached or refuses.
    """
    shards = UnitShards(unit, store, settings)
    images, bad = [], []
    channels: dict[int, str] = {}
    for item in unit.items:
        try:
            picture = item.read()
            contaminates = is_contaminant(item, picture[1], unit)
            samples = cut_picture(item, picture, settings, is_contaminant=contaminates)
        # That a store does not answer or refuses says nothing about the image.
        except StoreError:
            raise
        except MemoryError as error:
            raise memory_error(item.source) from error
        except DataError as error:
            # It may name a file, as `source` does.
            reason = as_utf8(str(error))
            row = BadImage(source=item.source, key=item.key, split=unit.split, reason=reason)
            bad.append(row)
            continue
        shards.add(samples, contaminates=contaminates)
        bits = perceptual_hash(picture[0])
        images.append(PackedImage(key=item.key, label=item.label, group=item.group, bits=bits))
        channels.setdefault(picture[0].shape[2], item.key)
    shards.close()
    record = UnitRecord(
        plan=plan,
        name=unit.name,
        split=unit.split,
        shards=tuple(shards.written),
        images=tuple(images),
        bad=tuple(bad),
        labels=dict(sorted(shards.labels.items())),
        kinds=dict(sorted(shards.kinds.items())),
        num_contaminants=shards.num_contaminants,
        channels=channels,
    )
    save_record(store, record)
    return record


def is_contaminant(item: Item, mask: Mask | None, unit: Unit) -> bool:
    """Whether an image is abnormal though called normal: it was mixed in, or its mask tells."""
    called_normal = unit.split == "train-normal"
    return called_normal and (
        item.key in unit.contaminants or (mask is not None and bool(mask.any()))
    )
