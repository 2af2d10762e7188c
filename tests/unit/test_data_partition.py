"""The partition, over random worlds."""

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.partition import spans

Read = list[tuple[int, int]]


def _read(shards: list[int], world_size: int, rank: int, **options: int) -> Read:
    options = {"seed": 0, "pass_index": 0, **options}
    found = spans(shards, world_size=world_size, rank=rank, **options)
    return [(span.shard, index) for span in found for index in span.indices]


@settings(max_examples=200, deadline=None)
@given(
    shards=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    world_size=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    pass_index=st.integers(0, 50),
)
def test_ranks_cover_all_samples_in_equal_shares(
    shards: list[int], world_size: int, seed: int, pass_index: int
) -> None:
    total = sum(shards)
    options = {"seed": seed, "pass_index": pass_index}
    if total < world_size:
        with pytest.raises(DataError, match=f"{total} samples are fewer than {world_size} ranks"):
            _read(shards, world_size, 0, **options)
        return
    ranks = [_read(shards, world_size, rank, **options) for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {-(-total // world_size)}
    line = list(chain.from_iterable(ranks))
    assert set(line) == {(s, i) for s, size in enumerate(shards) for i in range(size)}
    # The only duplicates are the line's beginning, read again at its end.
    assert len(set(line[:total])) == total
    assert line[total:] == line[: len(line) - total]
    assert ranks == [_read(shards, world_size, rank, **options) for rank in range(world_size)]


@settings(max_examples=100, deadline=None)
@given(
    shards=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    world_size=st.integers(1, 4),
    num_loader_workers=st.integers(1, 5),
)
def test_loader_workers_cover_their_rank_in_equal_shares(
    shards: list[int], world_size: int, num_loader_workers: int
) -> None:
    if sum(shards) < world_size * num_loader_workers:
        return
    for rank in range(world_size):
        whole = _read(shards, world_size, rank)
        parts = [
            _read(shards, world_size, rank, num_loader_workers=num_loader_workers, loader_worker=w)
            for w in range(num_loader_workers)
        ]
        assert {len(part) for part in parts} == {-(-len(whole) // num_loader_workers)}
        line = list(chain.from_iterable(parts))
        assert line[: len(whole)] == whole
        assert line[len(whole) :] == whole[: len(line) - len(whole)]


def test_order_changes_with_seed_and_pass_and_mixes_shards_and_samples() -> None:
    shards = [16] * 8
    orders = [_read(shards, 1, 0, seed=s, pass_index=p) for s, p in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    shard_orders = {tuple(dict.fromkeys(shard for shard, _ in order)) for order in orders}
    assert len(shard_orders) == 3
    assert tuple(range(8)) not in shard_orders
    inside = Counter(tuple(i for s, i in orders[0] if s == shard) for shard in range(8))
    assert len(inside) == 8
    assert tuple(range(16)) not in inside
