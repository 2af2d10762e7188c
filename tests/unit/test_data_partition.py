"""The reading order, over random worlds."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.partition import ReadingOrder, share

SHARDS = st.lists(st.integers(1, 20), min_size=1, max_size=8)
Read = list[tuple[int, int]]


def _read(shards: list[int], numbers: range, *, lanes: int = 4, seed: int = 0) -> Read:
    order = ReadingOrder(shards, lanes=lanes, seed=seed)
    return [order.locate(number) for number in numbers]


def _all(shards: list[int]) -> set[tuple[int, int]]:
    return {(shard, i) for shard, size in enumerate(shards) for i in range(size)}


@settings(max_examples=200)
@given(SHARDS, st.integers(1, 50), st.integers(0, 2**31), st.integers(0, 50))
def test_each_pass_reads_every_sample_once(
    shards: list[int], lanes: int, seed: int, pass_index: int
) -> None:
    total = sum(shards)
    numbers = range(pass_index * total, (pass_index + 1) * total)
    once = _read(shards, numbers, lanes=lanes, seed=seed)
    assert len(once) == len(set(once)) == total
    assert set(once) == _all(shards)


@settings(max_examples=200)
@given(st.data())
def test_any_change_of_the_world_reads_each_sample_of_the_pass_once(data: st.DataObject) -> None:
    """Batches of random size by a random number of ranks, changed at random points."""
    shards = data.draw(SHARDS)
    order = ReadingOrder(shards, lanes=data.draw(st.integers(1, 24)), seed=1)
    position, read = 0, Counter[tuple[int, int]]()
    while position < order.num_samples:
        world_size = data.draw(st.integers(1, 5))
        batch = world_size * data.draw(st.integers(1, 4))
        for _ in range(data.draw(st.integers(1, 3))):
            parts = [
                share(position, batch, world_size=world_size, rank=rank)
                for rank in range(world_size)
            ]
            assert {len(part) for part in parts} == {batch // world_size}
            for part in parts:
                first_pass = [n for n in part if n < order.num_samples]
                read.update(order.locate(number) for number in first_pass)
            position += batch
    assert set(read) == _all(shards)
    assert set(read.values()) == {1}


@given(SHARDS, st.integers(1, 9), st.integers(0, 500))
def test_a_number_is_found_without_reading_those_before_it(
    shards: list[int], lanes: int, number: int
) -> None:
    straight = _read(shards, range(number + 3), lanes=lanes)
    assert _read(shards, range(number, number + 3), lanes=lanes) == straight[number:]


def test_reading_goes_round_the_lanes_of_the_line() -> None:
    line = _read([5, 3, 3], range(11), lanes=1)
    a, b, c, d, e, f, g, h, i, j, k = line
    assert _read([5, 3, 3], range(11), lanes=3) == [a, e, i, b, f, j, c, g, k, d, h]


def test_a_rank_keeps_to_its_own_shards() -> None:
    """What a rank reads over the network does not grow with the number of ranks."""
    shards, batch, world_size = [16] * 64, 32, 8
    order = ReadingOrder(shards, lanes=batch, seed=3)
    touched = []
    for rank in range(world_size):
        numbers = [
            number
            for position in range(0, order.num_samples, batch)
            for number in share(position, batch, world_size=world_size, rank=rank)
        ]
        touched.append(len({order.locate(number)[0] for number in numbers}))
    assert max(touched) <= len(shards) // world_size + 1


def test_a_batch_comes_from_many_shards() -> None:
    order = ReadingOrder([16] * 64, lanes=32, seed=3)
    for position in range(0, order.num_samples, 32):
        shards = Counter(order.locate(n)[0] for n in range(position, position + 32))
        assert len(shards) == 32


def test_order_changes_with_seed_and_pass_and_mixes_shards_and_samples() -> None:
    shards = [16] * 8
    runs = [
        _read(shards, range(128), lanes=1),
        _read(shards, range(128, 256), lanes=1),
        _read(shards, range(128), lanes=1, seed=1),
    ]
    assert len({tuple(run) for run in runs}) == 3
    shard_orders = {tuple(dict.fromkeys(shard for shard, _ in run)) for run in runs}
    assert len(shard_orders) == 3
    assert tuple(range(8)) not in shard_orders
    inside = Counter(tuple(i for s, i in runs[0] if s == shard) for shard in range(8))
    assert len(inside) == 8
    assert tuple(range(16)) not in inside


def test_what_is_kept_does_not_grow_and_forgetting_changes_nothing() -> None:
    order = ReadingOrder([2] * 600, lanes=7, seed=0)
    first = [order.locate(number) for number in range(1200)]
    for number in range(1200, 12_000, 5):
        order.locate(number)
    assert len(order._shuffles) <= 1024
    assert len(order._lines) <= 4
    assert [order.locate(number) for number in range(1200)] == first


def test_shares_are_refused_where_they_cannot_be_equal() -> None:
    with pytest.raises(AssertionError):
        share(0, 7, world_size=2, rank=0)
