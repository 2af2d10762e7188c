"""Progress bars on the terminal of the person who waits, also for work on other machines."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
import torch
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
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
        self._start: int | None = None
        self._text = ("", "")
        self._notes: list[str] = []
        self._stopping = False

    def start(self, done: int) -> None:
        """Say how much was done before, at the first start and after each failure."""
        self._done = self._start = done

    def update(self, done: int, text: str, numbers: str) -> None:
        """Say how much is done, what is being done, and how it goes."""
        self._done, self._text = done, (text, numbers)

    def note(self, text: str) -> None:
        """Leave a line for the person who waits."""
        self._notes.append(text)

    def read(self) -> tuple[int, int | None, tuple[str, str], list[str]]:
        """Amount done, text and numbers; a start and notes if they were not read before."""
        start, self._start = self._start, None
        notes, self._notes = self._notes, []
        return self._done, start, self._text, notes

    def stop(self) -> None:
        """Ask the worker to stop."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether it was asked to."""
        return self._stopping


def summary(row: Mapping[str, float], quality: Mapping[str, float]) -> tuple[str, str]:
    """What a progress line says of training: what is being done, and how it goes.

    Args:
        row: Newest row of metrics.
        quality: Newest results of assessments by name; those that were never made are left out.
    """
    text = f"train {row['train/resolution']:.0f}px fade {row['train/fade']:.2f}"
    parts = {
        "loss_d": f"{row['train/loss_d']:.2f}",
        "D(real)": f"{row['train/logit_real']:+.2f}",
        "D(fake)": f"{row['train/logit_fake']:+.2f}",
    }
    if "swd" in quality:
        parts["swd"] = f"{quality['swd']:.0f}"
    if "validation_auroc" in quality:
        parts["auroc"] = f"{quality['validation_auroc']:.3f}"
    return text, " ".join(f"{name} {value}" for name, value in parts.items())


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
            UserError: If a worker did, or has no GPU memory left, which the next one would not have
                either. Ray Train ends a run at once when a callback fails.
        """
        for rank, error in worker_exceptions.items():
            if isinstance(error, UserError):
                raise error
            if isinstance(error, torch.OutOfMemoryError):
                raise UserError(
                    f"the GPU of worker {rank} is full ({str(error).splitlines()[0]}); lower "
                    "cluster.images_per_pass (0 is all of a batch) or, if it was searching, "
                    "search.batch; the same command then goes on from the last checkpoint"
                ) from error
            self._board.note.remote(f"worker {rank} failed: {last_line(error)}")


def last_line(error: Exception) -> str:
    """The last line of an error's text, where a traceback says what happened."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


@contextlib.contextmanager
def remote_progress(description: str, *, total: int, unit: str) -> Iterator[Any]:
    """Show what workers write on a board for as long as the block lasts.

    Yields:
        Handle of a `ProgressBoard` actor, to be passed to the workers.
    """
    # Beside the command itself, so that no other machine can take it along when it is lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(ProgressBoard)
    board = actor.options(scheduling_strategy=here).remote()
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
            done, start, text, notes = ray.get(board.read.remote(), timeout=10)
        except ray.exceptions.RayError:
            continue
        for note in notes:
            tqdm.write(note, file=sys.stderr)
        show(bar, done, start, text)


def show(bar: "tqdm[Any]", done: int, start: int | None, text: tuple[str, str]) -> None:
    """Bring a bar up to date; speed and time left count only what was done since the start.

    Args:
        bar: The bar.
        done: Amount done.
        start: Amount done before, if work has started, or started again, since the last call.
        text: What is being done, and how it goes; empty if nobody has said so yet.
    """
    if start is not None:
        bar.initial = bar.n = bar.last_print_n = start
        bar.last_print_t = time.time()
    if text[0]:
        bar.set_description(text[0], refresh=False)
        bar.set_postfix_str(text[1], refresh=False)
    bar.update(done - bar.n)


def duration(seconds: float) -> str:
    """A time to wait, in the unit people would use."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min"
