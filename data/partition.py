"""Who reads which sample: a pure function of the seed, the position and nothing else.

A pass over a split reads every sample once. Its *line* is the shards shuffled by (seed, pass), with
the samples inside each shuffled by (seed, pass, shard). The line is cut into `lanes` runs of equal
length, and reading goes round the lanes, one sample from each:

    line, 3 lanes    a b c d | e f g h | i j k
    reading order    a e i b f j c g k d h

So neighbours in a batch come from different shards, while each lane reads its shards one after
another. With as many lanes as the batch has places, a rank that always takes the same places reads
its own run of the line and touches few shards of the others.

The reading order never ends: number n is number n mod N of pass n // N. Batch t holds the numbers
from t * batch on, and a rank its share of them. A position is therefore one number, the same on all
ranks, and what has been read before it does not depend on how many ranks there were.
"""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEPT_LINES = 4
_KEPT_SHUFFLES = 1024


class ReadingOrder:
    """The endless reading order of one split.

    Args:
        samples_per_shard: number of samples of each shard, at least one in all.
        lanes: number of places a reader goes round, normally the global batch size.
        seed: seed of all shuffles.
    """

    def __init__(self, samples_per_shard: Sequence[int], *, lanes: int, seed: int) -> None:
        """See the class."""
        self._sizes = list(samples_per_shard)
        self.num_samples = sum(self._sizes)
        assert self.num_samples > 0
        assert lanes > 0
        self._lanes = lanes
        self._seed = seed
        self._lines: dict[int, tuple[list[int], list[int]]] = {}
        self._shuffles: dict[tuple[int, int], NDArray[np.int64]] = {}

    def locate(self, number: int) -> tuple[int, int]:
        """Return the shard and the place within it of sample `number`, counted from 0."""
        pass_index, within = divmod(number, self.num_samples)
        lane, step = within % self._lanes, within // self._lanes
        each, longer = divmod(self.num_samples, self._lanes)
        return self._at(pass_index, lane * each + min(lane, longer) + step)

    def _at(self, pass_index: int, place: int) -> tuple[int, int]:
        """Return shard and sample at a place of a pass's line."""
        order, ends = self._line_of(pass_index)
        rank = bisect_right(ends, place)
        shard = order[rank]
        begin = ends[rank] - self._sizes[shard]
        return shard, int(self._shuffle_of(pass_index, shard)[place - begin])

    def _line_of(self, pass_index: int) -> tuple[list[int], list[int]]:
        """Return the shards in the order of the line, and where each ends in it."""
        if pass_index not in self._lines:
            # SeedSequence pads with zeros, so (seed, pass) alone would equal (seed, pass, shard 0).
            source = np.random.default_rng((self._seed, pass_index, 0))
            order = source.permutation(len(self._sizes)).tolist()
            _make_room(self._lines, _KEPT_LINES)
            ends = list(itertools.accumulate(self._sizes[shard] for shard in order))
            self._lines[pass_index] = order, ends
        return self._lines[pass_index]

    def _shuffle_of(self, pass_index: int, shard: int) -> NDArray[np.int64]:
        if (pass_index, shard) not in self._shuffles:
            source = np.random.default_rng((self._seed, pass_index, shard + 1))
            _make_room(self._shuffles, _KEPT_SHUFFLES)
            self._shuffles[(pass_index, shard)] = source.permutation(self._sizes[shard])
        return self._shuffles[(pass_index, shard)]


def _make_room(kept: dict[Any, Any], limit: int) -> None:
    if len(kept) >= limit:
        del kept[next(iter(kept))]


def share(position: int, batch: int, *, world_size: int, rank: int) -> range:
    """Return the numbers one rank reads of the global batch that begins at `position`.

    Args:
        position: number of samples all ranks together have read.
        batch: samples of a batch over all ranks, a multiple of `world_size`.
        world_size: number of ranks.
        rank: this rank, from 0.
    """
    assert 0 <= rank < world_size
    assert batch % world_size == 0
    each = batch // world_size
    return range(position + rank * each, position + (rank + 1) * each)
