"""Who reads which sample: a pure function of the seed, the pass and the world size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import DataError


@dataclass(frozen=True)
class Span:
    """Samples read one after another from one shard.

    Attributes:
        shard: position of the shard in `DatasetIndex.shards_of`.
        indices: positions of the samples within the shard, in reading order.
    """

    shard: int
    indices: tuple[int, ...]


def samples_per_rank(num_samples: int, world_size: int) -> int:
    """Return how many samples each rank reads in one pass: ceil(num_samples / world_size)."""
    return -(-num_samples // world_size)


def spans(
    samples_per_shard: Sequence[int],
    *,
    world_size: int,
    rank: int,
    num_loader_workers: int = 1,
    loader_worker: int = 0,
    seed: int,
    pass_index: int,
) -> list[Span]:
    """Return what one loader worker of one rank reads in one pass over a split.

    The shards, shuffled by (seed, pass), with the samples inside each shuffled by (seed, pass,
    shard), make one line of N samples. Every rank reads n = ceil(N / world_size) consecutive
    samples: rank r from r * n. Where that runs past the end of the line it goes on at its
    beginning, so the line's first n * world_size - N samples are read twice. Loader workers cut
    their rank's n samples by the same rule.

    Args:
        samples_per_shard: number of samples of each shard.
        world_size: number of ranks.
        rank: this rank, from 0.
        num_loader_workers: number of loader workers on each rank.
        loader_worker: this worker, from 0.
        seed: seed of all shuffles.
        pass_index: number of complete passes before this one.

    Returns:
        Spans in reading order, the same number of samples for every rank and worker.

    Raises:
        DataError: if there are fewer samples than readers.
    """
    assert 0 <= rank < world_size
    assert 0 <= loader_worker < num_loader_workers
    total = sum(samples_per_shard)
    if total < world_size * num_loader_workers:
        raise DataError(
            f"{total} samples are fewer than {world_size} ranks x {num_loader_workers} loader "
            "workers; add images or lower the number of workers"
        )
    of_rank = samples_per_rank(total, world_size)
    of_worker = samples_per_rank(of_rank, num_loader_workers)
    start = loader_worker * of_worker
    found = []
    for first, last in _wrapped(start, start + of_worker, of_rank):
        for piece in _wrapped(rank * of_rank + first, rank * of_rank + last, total):
            found += _cut(samples_per_shard, *piece, seed=seed, pass_index=pass_index)
    return found


def _wrapped(first: int, last: int, length: int) -> list[tuple[int, int]]:
    """Cut the positions [first, last) of an endlessly repeated line into runs within one copy."""
    runs = []
    while first < last:
        offset = first % length
        size = min(last - first, length - offset)
        runs.append((offset, offset + size))
        first += size
    return runs


def _cut(
    samples_per_shard: Sequence[int], first: int, last: int, *, seed: int, pass_index: int
) -> list[Span]:
    """Return the spans at positions [first, last) of the shuffled line."""
    # SeedSequence pads with zeros, so (seed, pass) alone would equal (seed, pass, shard 0).
    order = np.random.default_rng((seed, pass_index, 0)).permutation(len(samples_per_shard))
    found = []
    shard_start = 0
    for shard in map(int, order):
        size = samples_per_shard[shard]
        begin, end = max(first - shard_start, 0), min(last - shard_start, size)
        if begin < end:
            shuffled = np.random.default_rng((seed, pass_index, shard + 1)).permutation(size)
            found.append(Span(shard, tuple(map(int, shuffled[begin:end]))))
        shard_start += size
    return found
