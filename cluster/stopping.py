"""A polite end: SIGTERM lets the workers write a checkpoint and stop, all at the same step."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import torch

from cluster.ranks import Ranks

_POLL_S = 1.0


@contextlib.contextmanager
def stop_on_sigterm(board: Any) -> Iterator[threading.Event]:
    """Pass on the first SIGTERM this process gets to the workers; a second one does what it did.

    Args:
        board: A `cluster.progress.ProgressBoard` actor.

    Yields:
        An event that is set once a stop was asked for. Outside the main thread, which alone can
        receive signals, it never is.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        asked.set()
        board.note.remote("asked to stop: the workers write a checkpoint first")
        board.stop.remote()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


class StopFlag:
    """Whether a stop was asked for, with the same answer on all ranks.

    Rank 0 asks the board about once a second without waiting for the answer.

    Args:
        board: A `cluster.progress.ProgressBoard` actor.
        ranks: This rank among all.
        device: Where collectives work.
    """

    def __init__(self, board: Any, ranks: Ranks, device: torch.device) -> None:
        self._board = board
        self._ranks = ranks
        self._device = device
        self._asked = False
        self._answer: Future[bool] | None = None
        self._next_s = 0.0

    def is_up(self) -> bool:
        """The answer; every rank must ask at the same step."""
        if self._ranks.rank == 0:
            self._look()
        flag = torch.tensor(self._asked, dtype=torch.uint8, device=self._device)
        if self._ranks.world_size > 1:
            torch.distributed.broadcast(flag, src=0)
        return bool(flag)

    def _look(self) -> None:
        if self._answer is None and time.monotonic() >= self._next_s:
            self._answer = self._board.stopping.remote().future()
            self._next_s = time.monotonic() + _POLL_S
        if self._answer is not None and self._answer.done():
            # A board that is lost must not end the run.
            self._asked |= self._answer.exception() is None and self._answer.result()
            self._answer = None
