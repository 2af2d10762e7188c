"""Endless, seeded batches of training images with an exact position."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.errors import DataError
from data.partition import share
from data.reader import Loss, SplitReader

_LOOK_AHEAD = 64
"""Most batches by which shards are fetched before their images are decoded: the images of a shard
as packed by default, so that the next shard of each lane arrives while the one before is read."""
_SHARE_OF_CACHE = 4
"""One part in how many of the cache may be filled ahead, so that nothing goes before it is read."""
_NUM_FETCHERS = 4
_REMEMBERED = 4096

Decoded = tuple[torch.Tensor, torch.Tensor | None]
"""Images [N, C, H, W] uint8 and their masks [N, 1, H, W] bool, where those are read."""


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 0..255 to float32 -1..1, any shape."""
    return images.to(torch.float32) / 127.5 - 1.0


@dataclass(frozen=True)
class Batch:
    """What one training step of one rank reads.

    Attributes:
        normal: [B, C, H, W] uint8, images called normal.
        abnormal: [A, C, H, W] uint8, known abnormal images, or None without them.
        wait_s: how long the caller waited for it, seconds.
        abnormal_mask: [A, 1, H, W] bool, True on the defect pixels of the abnormal images and
            nowhere in one whose defect nobody marked; None where their reader reads no masks.
    """

    normal: torch.Tensor
    abnormal: torch.Tensor | None
    wait_s: float
    abnormal_mask: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of each global batch is read here, and how.

    Attributes:
        world_size: number of ranks; global batches are multiples of it.
        rank: this one, from 0.
        num_threads: loader workers of this rank, threads that each decode a part of its share.
        prefetch: batches decoded ahead.
    """

    world_size: int = 1
    rank: int = 0
    num_threads: int = 1
    prefetch: int = 2


class BatchStream:
    """Normal and known abnormal images side by side, each at its own rate, read ahead by threads.

    `state()` counts the images handed out on all ranks together, not those read ahead. It is the
    same on every rank: streams opened at it, by any number of ranks, go on with exactly the next
    global batch. The readers belong to this object while it lives.

    Args:
        normal: reader of the images called normal.
        abnormal: reader of the known abnormal images, or None.
        batch: normal images of a global batch.
        abnormal_batch: abnormal images of a global batch.
        at: state to begin at.
        part: what to read here.
    """

    def __init__(
        self,
        normal: SplitReader,
        abnormal: SplitReader | None,
        *,
        batch: int,
        abnormal_batch: int = 0,
        at: dict[str, int] | None = None,
        part: Share = Share(),
    ) -> None:
        """See the class."""
        self._state = dict(at or {"normal": 0, "abnormal": 0})
        self._sources = {"normal": (normal, batch)}
        if abnormal:
            self._sources["abnormal"] = (abnormal, abnormal_batch)
        self._part = part
        self._next = dict(self._state)
        self._looked = dict(self._state)
        self._fetched: dict[tuple[str, int, int], None] = {}
        self._failure: Exception | None = None
        # One thread reads and keeps the books; the others fetch ahead of it or decode.
        self._reader = ThreadPoolExecutor(1, "read")
        self._fetchers = ThreadPoolExecutor(_NUM_FETCHERS, "fetch")
        self._decoders = ThreadPoolExecutor(part.num_threads, "decode")
        self._ahead: deque[Future[dict[str, Decoded]]] = deque()
        for _ in range(1 + part.prefetch):
            self._ahead.append(self._reader.submit(self._read))

    def next_batch(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: whatever the readers raised, at the batch where it happened and ever after.
        """
        if self._failure:
            raise self._failure
        started_s = time.perf_counter()
        try:
            decoded = self._ahead.popleft().result()
        except Exception as failure:
            # The readers stand somewhere inside the failed batch: going on would skip images.
            self._failure = failure
            self.close()
            raise
        self._ahead.append(self._reader.submit(self._read))
        for name, (_, batch) in self._sources.items():
            self._state[name] += batch
        wait_s = time.perf_counter() - started_s
        normal, _ = decoded["normal"]
        abnormal, abnormal_mask = decoded.get("abnormal", (None, None))
        return Batch(normal, abnormal, wait_s, abnormal_mask)

    def state(self) -> dict[str, int]:
        """Return how many images of each kind all ranks have been handed."""
        return dict(self._state)

    @property
    def losses(self) -> list[Loss]:
        """Images that could not be read so far; other images took their places."""
        return [loss for reader, _ in self._sources.values() for loss in reader.losses]

    def close(self) -> None:
        """Stop reading; no batch can be read afterwards."""
        self._failure = self._failure or RuntimeError("the batch stream is closed")
        for pool in (self._reader, self._fetchers, self._decoders):
            pool.shutdown(wait=True, cancel_futures=True)
        for reader, _ in self._sources.values():
            reader.close()

    def _read(self) -> dict[str, Decoded]:
        decoded = {}
        for name, (reader, batch) in self._sources.items():
            position = self._next[name]
            self._fetch_ahead(name, position)
            decoded[name] = self._decode(reader, self._share(position, batch))
            self._next[name] += batch
        return decoded

    def _share(self, position: int, batch: int) -> range:
        part = self._part
        return share(position, batch, world_size=part.world_size, rank=part.rank)

    def _fetch_ahead(self, name: str, position: int) -> None:
        """Ask for the shards of the coming batches, each once a pass: the cache may drop them."""
        reader, batch = self._sources[name]
        ahead = min(_LOOK_AHEAD, reader.num_kept // (_SHARE_OF_CACHE * batch))
        end = position + (1 + ahead) * batch
        for start in range(self._looked[name], end, batch):
            for number in self._share(start, batch):
                shard = reader.order.locate(number)[0]
                wanted = (name, number // reader.order.num_samples, shard)
                if wanted not in self._fetched:
                    self._fetchers.submit(reader.fetch, shard)
                    self._fetched[wanted] = None
        self._looked[name] = end
        while len(self._fetched) > _REMEMBERED:
            del self._fetched[next(iter(self._fetched))]

    def _decode(self, reader: SplitReader, numbers: range) -> Decoded:
        rows = _Rows(reader, numbers)
        each = -(-len(numbers) // self._part.num_threads)
        parts = [range(i, min(i + each, len(numbers))) for i in range(0, len(numbers), each)]
        for bad in self._decoders.map(rows.fill, parts):
            rows.replace(bad)
        return rows.decoded()


class _Rows:
    """The images of some numbers, one a row, and their masks where the reader reads them.

    Threads may fill different rows at the same time; only the thread that reads may replace any.

    Args:
        reader: reads and decodes.
        numbers: of the images.
    """

    def __init__(self, reader: SplitReader, numbers: range) -> None:
        self._reader = reader
        self._payloads = reader.payloads(numbers)
        size, (_, height, width) = len(numbers), reader.shape
        self._images: NDArray[np.uint8] = np.empty((size, *reader.shape), np.uint8)
        self._masks: NDArray[np.bool_] | None = None
        if reader.masks:
            self._masks = np.empty((size, 1, height, width), np.bool_)

    def decoded(self) -> Decoded:
        """Return what was filled in; the encoded bytes need not be kept for it."""
        masks = None if self._masks is None else torch.from_numpy(self._masks)
        return torch.from_numpy(self._images), masks

    def fill(self, rows: range) -> list[tuple[int, DataError]]:
        """Decode some rows; returns those that cannot be decoded, and why."""
        return [(row, error) for row in rows if (error := self._fill(row)) is not None]

    def replace(self, bad: list[tuple[int, DataError]]) -> None:
        """Note rows that cannot be decoded, and put the next images that can in their places.

        Raises:
            DataError: what the reader raises.
        """
        for row, first_error in bad:
            error: DataError | None = first_error
            while error is not None:
                number, damaged = self._payloads[row]
                self._payloads[row] = number, self._reader.replace(damaged, str(error))
                error = self._fill(row)

    def _fill(self, row: int) -> DataError | None:
        payload = self._payloads[row]
        try:
            self._images[row] = self._reader.decode(*payload).transpose(2, 0, 1)
            if self._masks is not None:
                self._masks[row, 0] = self._reader.decode_mask(*payload)
        except DataError as error:
            return error
        return None


def read_images(reader: SplitReader, numbers: range) -> torch.Tensor:
    """Read images outside any stream, [N, C, H, W] uint8; others replace what cannot be read.

    Raises:
        DataError: what the reader raises.
    """
    rows = _Rows(reader, numbers)
    rows.replace(rows.fill(range(len(numbers))))
    images, _ = rows.decoded()
    return images
