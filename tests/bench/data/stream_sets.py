"""Packed data sets, readers and fair timing for the benchmarks of streaming."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.dataset import DatasetIndex, ShardInfo, load_index, save_index
from data.pack import pack
from data.reader import SplitReader
from data.sample import Sample, Split
from data.shard_cache import ShardCache
from data.store import Store
from tests.bench.data.common import Image8, synthetic_images

SPLIT: Split = "train-normal"
_NUM_SURFACES = 12


def pack_surfaces(folder: Path, side: int, channels: int, count: int) -> Store:
    """Pack `count` images of machined surfaces, shifted copies of a few, in shards of 64."""
    surfaces = synthetic_images(side, channels, min(_NUM_SURFACES, count))
    samples = [_sample(surfaces[number % len(surfaces)], number) for number in range(count)]
    store = Store(str(folder))
    pack(samples, store, resolution=side, name="bench", seed=0)
    os.sync()
    return store


def _sample(surface: Image8, number: int) -> Sample:
    shift = (37 * number % len(surface), 91 * number % len(surface))
    image = np.roll(surface, shift, (0, 1)).reshape(*surface.shape[:2], -1)
    key = f"{number:06d}"
    return Sample(key, image, "normal", "bench", key, "good", SPLIT)


def write_noise(folder: Path, side: int, shard_bytes: int, num_shards: int) -> None:
    """Write shards of about `shard_bytes` of colour noise, without holding one in memory."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG", compress_level=0)
    payload = buffer.getvalue()
    num_samples = max(1, shard_bytes // len(payload))
    shards = [_noise_shard(folder, n, side, payload, num_samples) for n in range(num_shards)]
    total = num_samples * num_shards
    index = DatasetIndex(
        name="noise",
        channels=3,
        resolution=side,
        resolutions=(side,),
        shards=tuple(shards),
        labels={SPLIT: {"normal": total}},
        kinds={SPLIT: {"good": total}},
        seed=0,
    )
    save_index(Store(str(folder)), index)


def _noise_shard(
    folder: Path, number: int, side: int, payload: bytes, num_samples: int
) -> ShardInfo:
    path = folder / f"{number}.tar"
    with tarfile.open(path, "w") as archive:
        for sample in range(num_samples):
            for extension, content in (("json", b"{}"), ("png", payload)):
                member = tarfile.TarInfo(f"{number}-{sample}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardInfo(
        path=path.name,
        split=SPLIT,
        resolution=side,
        samples=num_samples,
        bytes=path.stat().st_size,
        sha256=digest,
    )


def reader_of(store: Store, resolution: int, batch: int, **options: Any) -> SplitReader:
    """A reader of a packed set that has checked nothing yet."""
    index = load_index(store)
    return SplitReader(ShardCache(store), index, SPLIT, resolution, lanes=batch, seed=0, **options)
