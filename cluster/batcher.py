"""Requests that come one by one, worked on together.

`ray.serve.batch` forms batches while another is worked on, of what comes within its waiting time:
under load they stay small. Here a batch is formed when the last one is done, of all that waits.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    answer: asyncio.Future[Answer]
    since_s: float


class Batcher(Generic[Item, Answer]):
    """Calls a function with one batch at a time, in a thread, and hands out its answers.

    Args:
        work: Gives an answer for each item, in order.
        max_batch: Most items of a batch.
        wait_s: How long an item waits for others while there is nothing to do.
    """

    def __init__(
        self, work: Callable[[list[Item]], list[Answer]], *, max_batch: int, wait_s: float
    ) -> None:
        self._work, self._max_batch, self._wait_s = work, max_batch, wait_s
        self._queue: asyncio.Queue[_Waiting[Item, Answer]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Answer:
        """The answer for an item; an exception of its batch's is raised for each item of it."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run())
        waiting = _Waiting[Item, Answer](item, loop.create_future(), loop.time())
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def _run(self) -> None:
        while True:
            # Who asked may have gone in the meantime.
            batch = [one for one in await self._take() if not one.answer.done()]
            if not batch:
                continue
            try:
                answers = await asyncio.to_thread(self._work, [one.item for one in batch])
            except Exception as error:
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
            else:
                for one, answer in zip(batch, answers, strict=True):
                    if not one.answer.done():
                        one.answer.set_result(answer)

    async def _take(self) -> list[_Waiting[Item, Answer]]:
        """What waits; the first item waits for others no longer than it should."""
        batch = [await self._queue.get()]
        until_s = batch[0].since_s + self._wait_s
        while len(batch) < self._max_batch:
            try:
                # Past the time as well, what waits is taken: that needs no waiting.
                async with asyncio.timeout_at(until_s):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch
