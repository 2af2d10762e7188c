"""Batches: all that waits, each its own answer, nothing lost."""

import asyncio
import threading

import pytest

from cluster.batcher import Batcher


class Work:
    """Squares numbers, keeps the batches it saw, and waits until it may end."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_end = threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        assert self.may_end.wait(timeout=30)
        if -1 in items:
            raise ValueError("minus one")
        return [item * item for item in items]


async def _until_busy(work: Work, num_batches: int) -> None:
    async with asyncio.timeout(30):
        while len(work.batches) < num_batches:
            await asyncio.sleep(0.005)


def test_what_comes_while_one_batch_is_worked_on_is_the_next() -> None:
    """Far apart in time, much farther than an item would wait for others."""
    work = Work()

    async def run() -> list[int]:
        batcher = Batcher(work, max_batch=4, wait_s=0.0)
        tasks = [asyncio.create_task(batcher(0))]
        await _until_busy(work, 1)
        for item in range(1, 7):
            tasks.append(asyncio.create_task(batcher(item)))
            await asyncio.sleep(0.02)
        assert work.batches == [[0]]
        work.may_end.set()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(run()) == [0, 1, 4, 9, 16, 25, 36]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_an_item_waits_for_others_only_until_the_batch_is_full() -> None:
    work = Work()
    work.may_end.set()

    async def run() -> float:
        batcher = Batcher(work, max_batch=3, wait_s=20.0)
        started_s = asyncio.get_running_loop().time()
        assert await asyncio.gather(*map(batcher, (1, 2, 3))) == [1, 4, 9]
        return asyncio.get_running_loop().time() - started_s

    assert asyncio.run(run()) < 10
    assert work.batches == [[1, 2, 3]]


def test_those_that_come_within_the_time_are_taken_together() -> None:
    work = Work()
    work.may_end.set()

    async def run() -> None:
        batcher = Batcher(work, max_batch=9, wait_s=1.0)
        first = asyncio.create_task(batcher(1))
        await asyncio.sleep(0.05)
        assert await batcher(2) == 4
        assert await first == 1

    asyncio.run(run())
    assert work.batches == [[1, 2]]


def test_a_batch_that_fails_does_not_end_the_next() -> None:
    work = Work()
    work.may_end.set()

    async def run() -> list[object]:
        batcher = Batcher(work, max_batch=2, wait_s=0.05)
        failed = await asyncio.gather(*map(batcher, (-1, 1)), return_exceptions=True)
        return [*failed, await batcher(2)]

    first, second, third = asyncio.run(run())
    assert str(first) == str(second) == "minus one"
    assert third == 4


def test_who_has_gone_is_not_worked_for() -> None:
    work = Work()

    async def run() -> None:
        batcher = Batcher(work, max_batch=4, wait_s=0.0)
        first = asyncio.create_task(batcher(0))
        await _until_busy(work, 1)
        gone, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0.02)
        gone.cancel()
        work.may_end.set()
        assert (await first, await stays) == (0, 4)
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(run())
    assert work.batches == [[0], [2]]
