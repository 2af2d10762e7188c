"""The shards of one unit of work, at all levels of the pyramid."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from data.dataset import ShardInfo
from data.plan import PackSettings, Unit
from data.pyramid import mask_to_square, pyramid
from data.sample import Label, Sample
from data.shards import ShardWriter
from data.store import Store


class UnitShards:
    """The shards of a unit, one after another, at all levels of the pyramid.

    Args:
        unit: what is packed.
        store: where the shards are written.
        settings: how the unit is packed.

    Attributes:
        written: the shards so far.
        labels: samples by label.
        kinds: samples by kind.
        num_contaminants: samples of abnormal images that are called normal.
    """

    def __init__(self, unit: Unit, store: Store, settings: PackSettings) -> None:
        """See the class."""
        self._unit, self._store, self._settings = unit, store, settings
        self._part = 0
        self._writers: dict[int, ShardWriter] = {}
        self.written: list[ShardInfo] = []
        self.labels: Counter[Label] = Counter()
        self.kinds: Counter[str] = Counter()
        self.num_contaminants = 0

    def add(self, samples: Sequence[Sample], *, contaminates: bool) -> None:
        """Append the samples of one image; they stay in one shard."""
        for sample in samples:
            for side, level in self._levels(sample).items():
                self._writers.setdefault(side, ShardWriter()).add(level)
            self.labels[sample.label] += 1
            self.kinds[sample.kind] += 1
        self.num_contaminants += contaminates * len(samples)
        if self._writers[self._settings.resolution].num_samples >= self._settings.shard_samples:
            self.close()

    def close(self) -> None:
        """Write the shards that are open."""
        for side, writer in sorted(self._writers.items()):
            payload = writer.close()
            path = f"{self._unit.split}/{side}/{self._unit.number:05d}-{self._part:03d}.tar"
            self._store.write_bytes(path, payload)
            self.written.append(
                ShardInfo(
                    path=path,
                    split=self._unit.split,
                    resolution=side,
                    samples=writer.num_samples,
                    bytes=len(payload),
                    sha256=hashlib.sha256(payload).hexdigest(),
                )
            )
        self._writers = {}
        self._part += 1

    def _levels(self, sample: Sample) -> dict[int, Sample]:
        """Return a sample at every resolution its split needs."""
        side = self._settings.resolution
        if self._unit.split in ("validation", "test"):
            return {side: sample}
        # Training asks only where the known defects are.
        mask = sample.mask if self._unit.split == "train-abnormal" else None
        smaller = {
            r: replace(sample, image=image, mask=None if mask is None else mask_to_square(mask, r))
            for r, image in pyramid(sample.image, side).items()
            if r != side
        }
        return {**smaller, side: sample}
