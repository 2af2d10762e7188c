"""Endless batches of flipped images from our stream and from other libraries, side by side.

All read the same PNG bytes with two workers: webdataset our own shards, mosaicml-streaming and
litdata what their own writers make of the bytes. An image becomes uint8 [C, H, W], flipped left to
right or not; a batch is a uint8 tensor [B, C, H, W].
"""

import importlib
import importlib.util
import io
import itertools
import random
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.dataset import load_index
from data.reader import SplitReader
from data.sample import decode_png
from data.shard_cache import ShardCache
from data.store import Store
from data.stream import BatchStream, Share
from tests.bench.data.common import ROOT, Image8
from tests.bench.data.stream_sets import SPLIT, reader_of

NUM_WORKERS = 2
BATCH = 32
# Explicit, because litdata's writer changes the default for the whole process.
WORKERS: dict[str, Any] = {
    "num_workers": NUM_WORKERS,
    "persistent_workers": True,
    "multiprocessing_context": "fork",
}

Decode = Callable[[bytes], Image8]
Batches = Iterator[torch.Tensor]


def by_pillow(payload: bytes) -> Image8:
    """[H, W] or [H, W, 3], as a user of any of these libraries decodes."""
    with Image.open(io.BytesIO(payload)) as opened:
        return np.array(opened)


def by_ours(payload: bytes) -> Image8:
    """[H, W, C] by our own decoder, so that only the loaders differ."""
    width, height = (int.from_bytes(payload[i : i + 4], "big") for i in (16, 20))
    return decode_png(bytes(payload), (height, width, 3 if payload[25] else 1))


def prepare(payload: bytes, decode: Decode) -> torch.Tensor:
    """Decode, and flip with probability 1/2."""
    image = decode(payload)
    image = image[:, :, None] if image.ndim == 2 else image
    image = image[:, ::-1] if random.random() < 0.5 else image
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class Payloads:
    """The PNG bytes of a packed set, one after another; pickles, for writers with processes."""

    def __init__(self, folder: Path, resolution: int) -> None:
        """Read all."""
        store = Store(str(folder))
        reader = SplitReader(
            ShardCache(store), load_index(store), SPLIT, resolution, lanes=1, seed=0
        )
        numbers = range(reader.order.num_samples)
        self.payloads = [payload.image for _, payload in reader.payloads(numbers)]
        reader.close()

    def __call__(self, number: int) -> bytes:
        return self.payloads[number]


def ours(folder: Path, resolution: int, work: Path, decode: Decode) -> Batches:
    """Our stream."""
    reader = reader_of(Store(str(folder)), resolution, BATCH, symmetries=("flip_x",))
    stream = BatchStream(reader, None, batch=BATCH, part=Share(num_threads=NUM_WORKERS))
    try:
        while True:
            yield stream.next_batch().normal
    finally:
        stream.close()


def webdataset(folder: Path, resolution: int, work: Path, decode: Decode) -> Batches:
    """Plain webdataset on our shards."""
    import webdataset as wds

    shards = load_index(Store(str(folder))).shards_of(SPLIT, resolution)
    urls = [str(folder / shard.path) for shard in shards]
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(100)
        .to_tuple("png")
        .map(lambda members: prepare(members[0], decode))
        .batched(BATCH, collation_fn=torch.stack)
    )
    loader = wds.WebLoader(dataset, batch_size=None, **WORKERS)
    while True:
        yield from loader


def mosaic(folder: Path, resolution: int, work: Path, decode: Decode) -> Batches:
    """mosaicml-streaming on MDS files."""
    for name in ("streaming", "streaming.base"):
        _without_init(name)
    base: Any = importlib.import_module("streaming.base.dataset").StreamingDataset
    writer_of: Any = importlib.import_module("streaming.base.format.mds.writer").MDSWriter

    with writer_of(out=str(work), columns={"png": "bytes"}, size_limit=2**23) as writer:
        for payload in Payloads(folder, resolution).payloads:
            writer.write({"png": payload})

    class Images(base):  # type: ignore[misc]
        def __getitem__(self, number: Any) -> torch.Tensor:
            return prepare(super().__getitem__(number)["png"], decode)

    dataset = Images(local=str(work), shuffle=True, batch_size=BATCH)
    loader: DataLoader[torch.Tensor] = DataLoader(dataset, batch_size=BATCH, **WORKERS)
    while True:
        yield from loader


def litdata(folder: Path, resolution: int, work: Path, decode: Decode) -> Batches:
    """Litdata on its chunks."""
    litdata: Any = importlib.import_module("litdata")

    payloads = Payloads(folder, resolution)
    numbers = list(range(len(payloads.payloads)))
    litdata.optimize(payloads, numbers, str(work), chunk_bytes="8MB", num_workers=1, verbose=False)
    dataset = litdata.StreamingDataset(
        str(work), shuffle=True, transform=partial(prepare, decode=decode)
    )
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, **WORKERS)
    while True:
        yield from loader


def _without_init(name: str) -> None:
    """Make a package importable whose own start would import half of the hubs and clouds."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {name}")
    package = types.ModuleType(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package


# Ours comes last: the others fork, and no thread should run when they do.
LOADERS = {"webdataset": webdataset, "mosaicml": mosaic, "litdata": litdata, "ours": ours}


def open_all(
    folder: Path, resolution: int, work: Path
) -> tuple[dict[str, Batches], dict[str, str]]:
    """Start every loader that is installed, with Pillow and with our decoder.

    Args:
        folder: a packed data set.
        resolution: which level to read, pixels.
        work: folder for what the other libraries write.

    Returns:
        Name -> batches, and name -> why it cannot be measured.
    """
    sys.path.append(str(ROOT / "build/loaders"))
    found: dict[str, Batches] = {}
    missing = {}
    for (name, make), decode in itertools.product(LOADERS.items(), (by_pillow, by_ours)):
        if name == "ours" and decode is by_pillow:
            continue
        title = name if name == "ours" or decode is by_pillow else f"{name}, our decoder"
        own = work / title.replace(", ", "-").replace(" ", "-")
        try:
            batches = make(folder, resolution, own, decode)
            first = next(batches)
        except Exception as error:
            missing[title] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        assert first.dtype == torch.uint8
        assert first.shape[1:] == (first.shape[1], resolution, resolution)
        found[title] = batches
    return found, missing
