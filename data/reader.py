"""The images of one split by number, whatever happened to some of them."""

import contextlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.augment import Symmetry, turned
from data.dataset import DatasetIndex
from data.errors import DataError, LostDataError
from data.partition import ReadingOrder
from data.sample import Image8, Mask, Split, decode_png
from data.shard_cache import ShardCache
from data.shard_file import ShardFile

_MOST_OPEN = 512
_DELETED_SHARE = 8
"""Of the cache's limit, so many parts may lie in shards that it deleted and a reader has open."""


@dataclass(frozen=True)
class Loss:
    """Training images that could not be read; others took their places.

    Attributes:
        path: the shard, relative to the data set.
        sample: place of the image in the shard; None if the whole shard is lost.
        num_samples: how many images that is.
        reason: what is wrong, for people.
    """

    path: str
    sample: int | None
    num_samples: int
    reason: str


class Encoded(NamedTuple):
    """A training image as it lies in its shard.

    Attributes:
        image: a PNG.
        mask: a PNG of the same size, where there is one and masks are read; else None.
        place: the shard it came from and its place there.
    """

    image: bytes
    mask: bytes | None
    place: tuple[int, int]


class SplitReader:
    """The images of one split at one resolution, by their number in the endless reading order.

    A shard whose bytes are not those of `dataset.json` is lost as a whole. The place of a lost
    image is taken by the next one in its shard that can be read, or, where the whole shard is lost,
    by the one at the same place of the next shard: the same on every rank and after every restart.
    An image whose mask is asked for and damaged is lost, too.

    Args:
        cache: opens the shards.
        index: index of the data set.
        split: which split to read.
        resolution: image side, one of `index.resolutions`, pixels.
        lanes: see `data.partition`; must stay the same for as long as positions are to mean
            the same.
        seed: seed of the order and of the augmentation.
        symmetries: what an image may be turned into, see `data.augment`.
        max_bad_fraction: share of the split's samples that may be lost, 0..1.
        masks: whether the masks of the images are read, too.

    Raises:
        DataError: if the split is empty at this resolution; while reading, once more than
            `max_bad_fraction` is lost or the store does not answer.
    """

    def __init__(
        self,
        cache: ShardCache,
        index: DatasetIndex,
        split: Split,
        resolution: int,
        *,
        lanes: int,
        seed: int,
        symmetries: tuple[Symmetry, ...] = (),
        max_bad_fraction: float = 0.0,
        masks: bool = False,
    ) -> None:
        """See the class."""
        self.shards = index.shards_of(split, resolution)
        if not self.shards:
            raise DataError(
                f"{cache.store.uri}: split {split} has no shards at resolution={resolution}; "
                f"packed are {list(index.resolutions)}"
            )
        self.shape = (index.channels, resolution, resolution)
        self.masks = masks
        self.losses: list[Loss] = []
        self.order = ReadingOrder([s.samples for s in self.shards], lanes=lanes, seed=seed)
        num_bytes = sum(s.bytes for s in self.shards)
        self.num_kept = cache.limit_bytes * self.order.num_samples // num_bytes
        """About how many images the cache holds."""
        self._cache = cache
        self._seed, self._symmetries = seed, symmetries
        self._max_bad_fraction = max_bad_fraction
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._lost: set[tuple[int, int]] = set()
        self._lost_shards: set[int] = set()
        self._most_deleted_bytes = cache.limit_bytes // _DELETED_SHARE

    def fetch(self, shard: int) -> None:
        """Bring a shard to this machine; what is wrong with it is told when it is read."""
        with contextlib.suppress(DataError):
            self._cache.open(self.shards[shard]).close()

    def payloads(self, numbers: range) -> list[tuple[int, Encoded]]:
        """Return each number with its image, undecoded."""
        places = [self.order.locate(number) for number in numbers]
        for shard, sample in places:
            if shard in self._open:
                self._open[shard].expect(sample)
        return [(n, self._payload(*place)) for n, place in zip(numbers, places, strict=True)]

    def decode(self, number: int, payload: Encoded) -> Image8:
        """Return the image of a number, [H, W, C], augmented.

        Raises:
            DataError: if the bytes are no image of the right size.
        """
        channels, height, width = self.shape
        image = decode_png(payload.image, (height, width, channels))
        return turned(image, self._symmetries, seed=self._seed, number=number)

    def decode_mask(self, number: int, payload: Encoded) -> Mask:
        """Return the mask of a number, [H, W], turned as its image; all False without one.

        Raises:
            DataError: if the bytes are no mask of the right size.
        """
        _, height, width = self.shape
        if payload.mask is None:
            return np.zeros((height, width), np.bool_)
        try:
            pixels = decode_png(payload.mask, (height, width, 1))
        except DataError as error:
            raise DataError(f"its mask: {error}") from error
        mask: Mask = turned(pixels, self._symmetries, seed=self._seed, number=number)[:, :, 0] > 127
        return mask

    def replace(self, damaged: Encoded, reason: str) -> Encoded:
        """Note that an image or its mask does not decode; returns what takes its place."""
        if damaged.place not in self._lost:
            self._lose(*damaged.place, reason)
        return self._payload(*damaged.place)

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()

    def _payload(self, shard: int, sample: int) -> Encoded:
        while True:
            while (shard, sample) in self._lost:
                shard, sample = self._next(shard, sample)
            file = self._file(shard)
            if file is None:
                continue
            try:
                mask = file.mask(sample) if self.masks else None
                return Encoded(file.payload(sample), mask, (shard, sample))
            except LostDataError as error:
                self._lose(shard, sample, str(error))

    def _next(self, shard: int, sample: int) -> tuple[int, int]:
        following = (shard + 1) % len(self.shards)
        if shard in self._lost_shards:
            # Spread over the next shard: its first image must not stand for them all.
            return following, sample % self.shards[following].samples
        if sample + 1 < self.shards[shard].samples:
            return shard, sample + 1
        return following, 0

    def _file(self, shard: int) -> ShardFile | None:
        """Open a shard, or note that it is lost."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        info = self.shards[shard]
        try:
            file = ShardFile(self._cache.open(info), info)
        except LostDataError as error:
            self._lose(shard, None, str(error))
            return None
        self._close_unused()
        self._open[shard] = file
        return file

    def _close_unused(self) -> None:
        """Make room for one more open file, and free the space of those the cache has deleted."""
        while len(self._open) >= _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        deleted = [shard for shard, file in self._open.items() if file.is_deleted]
        num_bytes = sum(self.shards[shard].bytes for shard in deleted)
        for shard in deleted:
            if num_bytes <= self._most_deleted_bytes:
                return
            self._open.pop(shard).close()
            num_bytes -= self.shards[shard].bytes

    def _lose(self, shard: int, sample: int | None, reason: str) -> None:
        info = self.shards[shard]
        places = range(info.samples) if sample is None else (sample,)
        if sample is None:
            self._lost_shards.add(shard)
        self._lost.update((shard, place) for place in places)
        self.losses.append(Loss(info.path, sample, len(places), reason))
        lost, total = len(self._lost), self.order.num_samples
        if lost > self._max_bad_fraction * total or lost == total:
            shown = "; ".join(f"{loss.path}: {loss.reason}" for loss in self.losses[:5])
            raise DataError(
                f"{lost} of {total} images of {self._cache.store.uri} ({info.split}) are damaged, "
                f"more than data.max_bad_fraction={self._max_bad_fraction} allows: {shown}; "
                "pack the data again, or raise the limit"
            )
