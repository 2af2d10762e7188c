"""What rank 0 tells the world while it trains: metrics, sample grids, a progress line."""

import json
import math
import time
from typing import Any

import torch
from torch import Tensor

from cluster.config import Config
from cluster.errors import UserError
from cluster.pictures import grid, to_uint8
from cluster.tracking import METRICS, SAMPLES, Tracker
from data.sample import encode_png
from data.store import Store
from gan.schedule import Phase
from gan.state import TrainingState

_NUM_SAMPLES = 64
_SAMPLE_COLUMNS = 8


class MetricsLog:
    """metrics.jsonl of a run: one row per `log_kimg`, saved with every checkpoint.

    Rows after the checkpoint a run resumes from are dropped, since the run makes them again.

    Args:
        run: Run directory.
        images_seen: Images seen at the checkpoint.
    """

    def __init__(self, run: Store, images_seen: int) -> None:
        self._run = run
        old = run.read_bytes(METRICS).decode().splitlines() if run.exists(METRICS) else []
        rows = [json.loads(line) for line in old]
        self._rows: list[dict[str, Any]] = [r for r in rows if r["images_seen"] <= images_seen]

    def append(self, images_seen: int, values: dict[str, float]) -> dict[str, Any]:
        """Add a row and return it as it is stored, with the time in milliseconds."""
        row = {"images_seen": images_seen, "time_ms": int(time.time() * 1000)} | values
        self._rows.append(row)
        return row

    def save(self) -> None:
        """Write all rows so far."""
        lines = "".join(f"{json.dumps(row)}\n" for row in self._rows)
        self._run.write_bytes(METRICS, lines.encode())


class Observer:
    """Collects the statistics of rank 0.

    Args:
        config: Configuration of the run.
        run: Run directory.
        tracker: Where metrics and pictures go besides.
        board: Actor that shows progress, a `cluster.progress.ProgressBoard`.
        state: Training state of rank 0.
    """

    def __init__(
        self, config: Config, run: Store, tracker: Tracker, board: Any, state: TrainingState
    ) -> None:
        self._config = config
        self._run = run
        self._tracker = tracker
        self._num_lost = 0
        self.rewind(state)
        source = torch.Generator().manual_seed(config.run.seed)
        self._latents = torch.randn(_NUM_SAMPLES, config.networks.latent_dim, generator=source)
        self._board = board

    def rewind(self, state: TrainingState) -> None:
        """Go on from a state; rows of what came after it are dropped."""
        self._state = state
        self._log = MetricsLog(self._run, state.images_seen)
        self._sums: dict[str, list[Tensor]] = {}
        self._wait_s = 0.0
        self._since = (time.monotonic(), state.images_seen)
        self._seen_before = state.images_seen

    def after_step(
        self, phase: Phase, stats: dict[str, Tensor], *, wait_s: float, num_lost: int
    ) -> None:
        """Note one step; log a row and draw a grid when due.

        Args:
            phase: Current phase.
            stats: Statistics of the step.
            wait_s: How long it waited for its data, in seconds.
            num_lost: Images this rank could not read so far.

        Raises:
            UserError: If a statistic is no longer finite.
        """
        self._num_lost = num_lost
        for name, value in stats.items():
            self._sums.setdefault(name, []).append(value)
        self._wait_s += wait_s
        if self._due(self._config.tracking.log_kimg):
            self._write_row(phase)
        if self._due(self._config.tracking.sample_kimg) or self._state.images_seen >= phase.end:
            self._draw(phase)
        self._seen_before = self._state.images_seen

    def _due(self, interval_kimg: float) -> bool:
        interval = max(1, round(interval_kimg * 1000))
        seen = self._state.images_seen
        return seen // interval > self._seen_before // interval

    def _write_row(self, phase: Phase) -> None:
        now, seen = time.monotonic(), self._state.images_seen
        elapsed_s = max(now - self._since[0], 1e-9)
        row = {f"train/{k}": float(torch.stack(v).mean()) for k, v in self._sums.items()}
        row |= {
            "train/kimg": seen / 1000,
            "train/resolution": float(phase.resolution),
            "train/fade": phase.fade(min(seen, phase.end)),
            "train/lr_factor": self._state.lr_factor,
            "train/images_per_s": (seen - self._since[1]) / elapsed_s,
            "data/wait_s": self._wait_s,
            "data/wait_share": self._wait_s / elapsed_s,
            "data/lost_images": float(self._num_lost),
        }
        _check_finite(row, seen)
        self._tracker.row(self._log.append(seen, row))
        text = f"train {phase.resolution}px fade {row['train/fade']:.2f}"
        self._board.update.remote(seen, text)
        self._sums, self._wait_s, self._since = {}, 0.0, (now, seen)

    @torch.no_grad()
    def _draw(self, phase: Phase) -> None:
        fade = phase.fade(min(self._state.images_seen, phase.end))
        latents = self._latents.to(self._state.device)
        images = self._state.average(latents, phase.stage, fade)
        path = f"{SAMPLES}{self._state.images_seen / 1000:07.1f}-kimg-{phase.resolution}px.png"
        picture = encode_png(grid(to_uint8(images), _SAMPLE_COLUMNS))
        self._run.write_bytes(path, picture)
        self._tracker.picture(path, picture)

    def save(self, metrics: dict[str, float]) -> None:
        """Note the metrics of a checkpoint and make all rows so far durable."""
        if metrics:
            row = {f"train/{name}": value for name, value in metrics.items()}
            self._tracker.row(self._log.append(self._state.images_seen, row))
        self._log.save()

    def close(self) -> None:
        """Save and send what is left."""
        self._log.save()
        self._tracker.close(timeout_s=10.0)


def _check_finite(row: dict[str, float], images_seen: int) -> None:
    wrong = [name for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise UserError(
            f"training diverged: {', '.join(wrong)} not finite at {images_seen / 1000:g} kimg; "
            "lower optimizer.generator_lr and discriminator_lr, or raise objective.r1_weight"
        )
