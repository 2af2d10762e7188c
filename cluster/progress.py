"""Progress bars on the terminal of the person who waits, also for work on other machines."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.train import UserCallback
from tqdm import tqdm

from cluster.errors import UserError

_POLL_S = 0.5
_LOG_INTERVAL_S = 10.0


def progress_bar(description: str, *, total: int | None, unit: str) -> "tqdm[Any]":
    """A progress bar on standard error; a line every ten seconds where that is a file.

    Args:
        description: What is being done.
        total: Units of the whole work, if known.
        unit: Name of one unit.
    """
    interval_s = 0.1 if sys.stderr.isatty() else _LOG_INTERVAL_S
    return tqdm(total=total, desc=description, unit=unit, mininterval=interval_s, unit_scale=True)


class ProgressBoard:
    """Actor on which a remote worker writes how far it is."""

    def __init__(self) -> None:
        self._done = 0
        self._text = ""
        self._notes: list[str] = []
        self._stopping = False

    def update(self, done: int, text: str) -> None:
        """Say how much is done, and what is being done."""
        self._done, self._text = done, text

    def note(self, text: str) -> None:
        """Leave a line for the person who waits."""
        self._notes.append(text)

    def read(self) -> tuple[int, str, list[str]]:
        """Amount done, text, and the notes not read before."""
        notes, self._notes = self._notes, []
        return self._done, self._text, notes

    def stop(self) -> None:
        """Ask the worker to stop."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether it was asked to."""
        return self._stopping


class FailureNotes(UserCallback):
    """Tells the person who waits about each worker failure that Ray Train recovers from.

    Args:
        board: The actor to write on.
    """

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train on its controller, whenever workers fail.

        Raises:
            UserError: If a worker did, because Ray Train ends a run at once when a callback fails.
        """
        for rank, error in worker_exceptions.items():
            if isinstance(error, UserError):
                raise error
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            self._board.note.remote(f"worker {rank} failed: {reason[0]}")


@contextlib.contextmanager
def remote_progress(description: str, *, total: int, unit: str) -> Iterator[Any]:
    """Show what workers write on a board for as long as the block lasts.

    Yields:
        Handle of a `ProgressBoard` actor, to be passed to the workers.
    """
    board: Any = ray.remote(num_cpus=0)(ProgressBoard).remote()
    stop = threading.Event()
    with progress_bar(description, total=total, unit=unit) as bar:
        thread = threading.Thread(target=_show, args=(board, bar, stop), daemon=True)
        thread.start()
        try:
            yield board
        finally:
            stop.set()
            thread.join()
            ray.kill(board)


def _show(board: Any, bar: "tqdm[Any]", stop: threading.Event) -> None:
    last = False
    while not last:
        # Once more after the end: the last update may have come since the last look.
        last = stop.wait(_POLL_S)
        try:
            done, text, notes = ray.get(board.read.remote(), timeout=10)
        except ray.exceptions.RayError:
            continue
        for note in notes:
            tqdm.write(note, file=sys.stderr)
        if text:
            bar.set_description(text, refresh=False)
        bar.update(done - bar.n)
