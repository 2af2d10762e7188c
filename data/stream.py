"""Endless, seeded, exactly resumable streams of training images."""

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from data.dataset import DatasetIndex, ShardInfo
from data.errors import DataError
from data.partition import samples_per_rank, spans
from data.sample import Image8, Split
from data.shards import Damage, ShardContents, read_shard
from data.store import Store


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 0..255 to float32 -1..1, any shape."""
    return images.to(torch.float32) / 127.5 - 1.0


class SampleStream(Iterator[Image8]):
    """One rank's endless stream of the images of one split, [C, H, W] uint8.

    Its whole state is `position`, the number of images yielded so far: a new stream with
    `seek(position)` goes on exactly where the old one stood. The order does not depend on the
    resolution, so a later training stage seeks to the position of the one before.

    Args:
        store: where the data set lies.
        index: its index.
        split: which split to read.
        resolution: image side, one of `index.resolutions`, pixels.
        world_size: number of ranks that share the split.
        rank: this rank, from 0.
        seed: seed of the order.
        cache_bytes: most decoded images kept in memory; the shard being read is always kept.
        max_bad_fraction: share of a shard's samples that may be damaged, 0..1. The place of a
            damaged sample is taken by another one of its shard, and `damage` tells.

    Raises:
        DataError: if the split is empty at this resolution or has fewer samples than ranks;
            while reading, if a shard is missing or more damaged than allowed.
    """

    def __init__(
        self,
        store: Store,
        index: DatasetIndex,
        split: Split,
        resolution: int,
        *,
        world_size: int,
        rank: int,
        seed: int,
        cache_bytes: int = 256 * 2**20,
        max_bad_fraction: float = 0.0,
    ) -> None:
        """See the class."""
        self._store = store
        self._shape = (resolution, resolution, index.channels)
        self._shards = index.shards_of(split, resolution)
        if not self._shards:
            raise DataError(
                f"{store.uri}: split {split} has no shards at resolution={resolution}; "
                f"packed are {list(index.resolutions)}"
            )
        self._world_size, self._rank, self._seed = world_size, rank, seed
        self._max_bad_fraction = max_bad_fraction
        self._cache = _ShardCache(cache_bytes)
        self._sizes = [shard.samples for shard in self._shards]
        self._pass_length = samples_per_rank(sum(self._sizes), world_size)
        self._pass_index = 0
        self._order = self._order_of(0)
        self.position = 0
        self.damage: list[Damage] = []

    def seek(self, position: int) -> None:
        """Go to where a stream is that has yielded `position` images."""
        assert position >= 0
        self.position = position

    def __next__(self) -> Image8:
        """Return the next image, [C, H, W] uint8; the stream never ends."""
        pass_index, offset = divmod(self.position, self._pass_length)
        if pass_index != self._pass_index:
            self._order, self._pass_index = self._order_of(pass_index), pass_index
        shard, sample = self._order[offset]
        images = self._cache.get(shard)
        if images is None:
            images = self._load(self._shards[shard])
            self._cache.put(shard, images)
        self.position += 1
        # Only a damaged shard, read with max_bad_fraction > 0, has fewer images than indexed.
        return images[sample % len(images)]

    def _order_of(self, pass_index: int) -> list[tuple[int, int]]:
        found = spans(
            self._sizes,
            world_size=self._world_size,
            rank=self._rank,
            seed=self._seed,
            pass_index=pass_index,
        )
        return [(span.shard, sample) for span in found for sample in span.indices]

    def _load(self, shard: ShardInfo) -> list[Image8]:
        contents = read_shard(self._store.read_bytes(shard.path), shard)
        good = [sample for sample in contents.samples if sample.image.shape == self._shape]
        damage = self._damage_of(contents, shard)
        bad_fraction = 1 - len(good) / shard.samples
        is_allowed = self._max_bad_fraction > 0 and bad_fraction <= self._max_bad_fraction
        if not good or (damage and not is_allowed):
            shown = "; ".join(f"{row.key}: {row.reason}" for row in damage[:5])
            raise DataError(
                f"{self._store.url(shard.path)} is damaged, {bad_fraction:.1%} of its "
                f"{shard.samples} samples (allowed max_bad_fraction={self._max_bad_fraction}): "
                f"{shown}; pack the data again"
            )
        known = set(self.damage)
        self.damage += [row for row in damage if row not in known]
        return [np.ascontiguousarray(sample.image.transpose(2, 0, 1)) for sample in good]

    def _damage_of(self, contents: ShardContents, shard: ShardInfo) -> list[Damage]:
        damage = list(contents.damage)
        if not contents.checksum_ok:
            damage.append(Damage(shard.path, "sha256 differs from dataset.json"))
        for sample in contents.samples:
            if sample.image.shape != self._shape:
                got, wanted = list(sample.image.shape), list(self._shape)
                damage.append(Damage(sample.key, f"image is {got}, the data set has {wanted}"))
        return damage


class _ShardCache:
    """The most recently used decoded shards, up to a number of bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._shards: OrderedDict[int, list[Image8]] = OrderedDict()

    def get(self, shard: int) -> list[Image8] | None:
        if shard in self._shards:
            self._shards.move_to_end(shard)
        return self._shards.get(shard)

    def put(self, shard: int, images: list[Image8]) -> None:
        self._shards[shard] = images
        self._used_bytes += _size_bytes(images)
        while self._used_bytes > self._limit_bytes and len(self._shards) > 1:
            _, dropped = self._shards.popitem(last=False)
            self._used_bytes -= _size_bytes(dropped)


def _size_bytes(images: list[Image8]) -> int:
    return sum(image.nbytes for image in images)


@dataclass(frozen=True)
class Batch:
    """What one training step reads.

    Attributes:
        normal: [B, C, H, W] uint8, images called normal.
        abnormal: [A, C, H, W] uint8, known abnormal images, or None without them.
        wait_s: how long the caller waited for it, seconds.
    """

    normal: torch.Tensor
    abnormal: torch.Tensor | None
    wait_s: float


class BatchStream:
    """Normal and known abnormal images side by side, read ahead in a background thread.

    `state()` counts the batches handed out, not those read ahead: streams sought to it and
    wrapped anew go on with exactly the next batch. The two streams belong to this object while
    it lives.

    Args:
        normal: stream of the images called normal.
        abnormal: stream of the known abnormal images, or None.
        batch: number of normal images in a batch.
        abnormal_batch: number of abnormal images in a batch.
        prefetch: number of batches read ahead; 0 reads in the caller's thread.
    """

    def __init__(
        self,
        normal: SampleStream,
        abnormal: SampleStream | None,
        *,
        batch: int,
        abnormal_batch: int = 0,
        prefetch: int = 2,
    ) -> None:
        """See the class."""
        self._normal = normal
        self._abnormal = abnormal if abnormal_batch else None
        self._batch, self._abnormal_batch = batch, abnormal_batch
        self._state = {"normal": normal.position, "abnormal": abnormal.position if abnormal else 0}
        self._failure: Exception | None = None
        self._reader = ThreadPoolExecutor(1, "prefetch") if prefetch else None
        self._ahead: deque[Future[tuple[torch.Tensor, torch.Tensor | None]]] = deque()
        for _ in range(prefetch):
            self._read_ahead()

    def next_batch(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: whatever the streams raised, at the batch where it happened and ever after.
        """
        if self._failure:
            raise self._failure
        started_s = time.perf_counter()
        try:
            normal, abnormal = self._ahead.popleft().result() if self._reader else self._read()
        except Exception as failure:
            # The streams stand somewhere inside the failed batch: going on would skip images.
            self._failure = failure
            self.close()
            raise
        if self._reader:
            self._read_ahead()
        self._state["normal"] += len(normal)
        self._state["abnormal"] += 0 if abnormal is None else len(abnormal)
        return Batch(normal, abnormal, wait_s=time.perf_counter() - started_s)

    def state(self) -> dict[str, int]:
        """Return both streams' positions after the last batch handed out."""
        return dict(self._state)

    @property
    def num_damaged(self) -> int:
        """Samples of the shards read so far that were damaged and are replaced by others."""
        streams = (self._normal, self._abnormal)
        return sum(len(stream.damage) for stream in streams if stream)

    def close(self) -> None:
        """Stop reading ahead; no batch can be read afterwards."""
        self._failure = self._failure or RuntimeError("the batch stream is closed")
        if self._reader:
            self._reader.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> None:
        assert self._reader
        self._ahead.append(self._reader.submit(self._read))

    def _read(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        normal = _stack(self._normal, self._batch)
        return normal, _stack(self._abnormal, self._abnormal_batch) if self._abnormal else None


def _stack(stream: SampleStream, count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([next(stream) for _ in range(count)]))
