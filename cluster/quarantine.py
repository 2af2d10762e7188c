"""The list of training images that could not be read, and why: RUN/quarantine/*.jsonl."""

import dataclasses
import json
from collections.abc import Iterable

from data.reader import Loss
from data.store import Store


class Quarantine:
    """What one rank met, kept over restarts.

    Args:
        run: Run directory.
        rank: This rank; each has a file of its own.
    """

    def __init__(self, run: Store, rank: int) -> None:
        self._run = run
        self._path = f"quarantine/rank-{rank:05d}.jsonl"
        lines = run.read_bytes(self._path).decode().splitlines() if run.exists(self._path) else []
        self._losses = {Loss(**json.loads(line)): None for line in lines}

    @property
    def num_images(self) -> int:
        """Images lost; one in several resolutions counts once for each."""
        return sum(loss.num_samples for loss in self._losses)

    def note(self, losses: Iterable[Loss]) -> None:
        """Add what is new and write the list, whole, if there is anything new."""
        known = len(self._losses)
        self._losses |= dict.fromkeys(losses)
        if len(self._losses) > known:
            lines = (json.dumps(dataclasses.asdict(loss)) + "\n" for loss in self._losses)
            self._run.write_bytes(self._path, "".join(lines).encode())
