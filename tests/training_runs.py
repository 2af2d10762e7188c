"""What tests read of a training run while it goes on, and afterwards."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

TOTAL = 3840
"""Images that a run with the settings `tests.jobs.FADING` sees."""


def saved(run: Path) -> dict[int, int]:
    """Workers that wrote each whole checkpoint, by images seen."""
    read = [json.loads(path.read_text()) for path in run.glob("checkpoints/*/checkpoint.json")]
    return {told["images_seen"]: told["world_size"] for told in read}


def images_saved(run: Path) -> list[int]:
    """Images seen at each whole checkpoint, the oldest first; opens none: they may go."""
    whole = sorted(run.glob("checkpoints/checkpoint_*/checkpoint.json"))
    return [int(path.parent.name.rpartition("_")[2]) for path in whole]


def wait_for(
    process: subprocess.Popen[str], condition: Callable[[], bool], timeout_s: float = 600
) -> None:
    """Wait until a run has come to something; fail with what it printed if it ends before."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def wait_for_images(process: subprocess.Popen[str], run: Path, images_seen: int) -> None:
    """Wait until a running command has a whole checkpoint with so many images seen."""
    wait_for(process, lambda: max(images_saved(run), default=0) >= images_seen)


def rows_of(run: Path) -> list[dict[str, float]]:
    """All rows of metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rows_of_steps(run: Path) -> list[dict[str, float]]:
    """Rows of steps; assessments have rows of their own."""
    return [row for row in rows_of(run) if "train/loss_d" in row]


def workers_of(rows: Sequence[dict[str, float]]) -> list[float]:
    """Number of workers at first and after each change."""
    workers = [row["ranks/num_workers"] for row in rows]
    return [workers[0], *(b for a, b in pairwise(workers) if a != b)]
