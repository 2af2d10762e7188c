"""Pack samples into shards, a resolution pyramid and an index."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from data.dataset import INDEX_NAME, DatasetIndex, ShardInfo, save_index
from data.errors import DataError
from data.pyramid import pyramid, resolutions_to
from data.sample import SPLITS, Sample, Split
from data.shards import write_shard
from data.store import Store

Progress = Callable[[int, int], None]


def pack(
    samples: Iterable[Sample],
    store: Store,
    *,
    resolution: int,
    name: str,
    seed: int,
    shard_samples: int = 64,
    contamination: float | None = None,
    source: str = "",
    progress: Progress | None = None,
) -> DatasetIndex:
    """Write a packed data set; the same samples and seed give the same bytes.

    Each split is shuffled over its shards, `<split>/<resolution>/<5-digit number>.tar`. The
    train splits get every resolution from 4 up, without masks below the native one; validation
    and test get the native one only. The samples are held in memory.

    Args:
        samples: square images of side `resolution`, in any order.
        store: where to write; an index already there is deleted before its shards are replaced.
        resolution: image side, a power of two in 4..1024, pixels.
        name: name of the data set.
        seed: seed of the shuffle.
        shard_samples: most samples in a shard.
        contamination: true abnormal fraction of train-normal, where a study knows it.
        source: where the images come from, for people.
        progress: called with (shards written, shards in all) after each shard.

    Raises:
        DataError: if the samples do not make a data set, or the store fails.
    """
    if shard_samples < 1:
        raise DataError(f"shard_samples={shard_samples} is below 1; give at least 1")
    if resolution not in resolutions_to(1024):
        raise DataError(f"resolution={resolution} is not a power of two in 4..1024; choose one")
    ordered = sorted(samples, key=lambda sample: (_rank(sample, seed), sample.key))
    _check(ordered, resolution)
    store.delete(INDEX_NAME)
    index = DatasetIndex(
        name=name,
        channels=1 if ordered[0].image.shape[2] == 1 else 3,
        resolution=resolution,
        resolutions=resolutions_to(resolution),
        shards=tuple(_write_shards(ordered, store, resolution, shard_samples, progress)),
        labels={s: dict(Counter(x.label for x in xs)) for s, xs in _by_split(ordered).items()},
        kinds={s: dict(Counter(x.kind for x in xs)) for s, xs in _by_split(ordered).items()},
        seed=seed,
        contamination=contamination,
        source=source,
    )
    save_index(store, index)
    return index


def _rank(sample: Sample, seed: int) -> bytes:
    """Return the sample's place in the shuffle; it depends on nothing but seed and key."""
    return hashlib.sha256(f"{seed}/{sample.key}".encode()).digest()


def _by_split(samples: Sequence[Sample]) -> dict[Split, list[Sample]]:
    parts = {split: [sample for sample in samples if sample.split == split] for split in SPLITS}
    return {split: part for split, part in parts.items() if part}


def _write_shards(
    ordered: Sequence[Sample],
    store: Store,
    resolution: int,
    shard_samples: int,
    progress: Progress | None,
) -> Iterator[ShardInfo]:
    chunks = [
        (split, number, part[start : start + shard_samples])
        for split, part in _by_split(ordered).items()
        for number, start in enumerate(range(0, len(part), shard_samples))
    ]
    for done, (split, number, chunk) in enumerate(chunks, start=1):
        for side, level in _levels(chunk, split, resolution).items():
            payload = write_shard(level)
            path = f"{split}/{side}/{number:05d}.tar"
            store.write_bytes(path, payload)
            yield ShardInfo(
                path=path,
                split=split,
                resolution=side,
                samples=len(level),
                bytes=len(payload),
                sha256=hashlib.sha256(payload).hexdigest(),
            )
        if progress:
            progress(done, len(chunks))


def _levels(chunk: list[Sample], split: Split, resolution: int) -> dict[int, list[Sample]]:
    """Return the chunk at every resolution its split needs."""
    if split in ("validation", "test"):
        return {resolution: chunk}
    levels: dict[int, list[Sample]] = {side: [] for side in resolutions_to(resolution)}
    for sample in chunk:
        for side, image in pyramid(sample.image, resolution).items():
            mask = sample.mask if side == resolution else None
            levels[side].append(replace(sample, image=image, mask=mask))
    return levels


def _check(samples: Sequence[Sample], resolution: int) -> None:
    """Raise `DataError` unless the samples make one data set."""
    if not samples:
        raise DataError("the data set is empty: no samples to pack; check the source folder")
    keys: set[str] = set()
    split_of: dict[str, Split] = {}
    first = samples[0]
    for sample in samples:
        height, width, channels = sample.image.shape
        if channels != first.image.shape[2]:
            raise DataError(
                f"mixed channels: {first.key} has {first.image.shape[2]}, {sample.key} has "
                f"{channels}; convert all images to grey (1) or all to RGB (3)"
            )
        if (height, width) != (resolution, resolution):
            raise DataError(
                f"sample {sample.key} is {height}x{width}, resolution={resolution}; "
                "resize it before packing"
            )
        if sample.key in keys:
            raise DataError(f"key {sample.key} appears twice; give each image its own name")
        keys.add(sample.key)
        known = split_of.setdefault(sample.group, sample.split)
        if known != sample.split:
            raise DataError(
                f"group {sample.group} is in two splits, {known} and {sample.split}; "
                "keep all images of one part in one split"
            )
