"""What rank 0 tells the world while it trains: metrics, sample grids, a progress line."""

import json
import math
import time
from typing import Any

import numpy as np
import torch

from cluster.assessment import Assessor, fade_of
from cluster.config import Config
from cluster.errors import UserError
from cluster.metrics import Gauges
from cluster.pictures import grid, to_uint8
from cluster.progress import summary
from cluster.rank_meter import due
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
        # A run killed after it was measured, but before that was noted, measures the same again.
        if self._rows and self._rows[-1] | {"time_ms": row["time_ms"]} == row:
            return self._rows[-1]
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
        assessor: Measures how good the model is.
    """

    def __init__(
        self,
        config: Config,
        run: Store,
        tracker: Tracker,
        board: Any,
        state: TrainingState,
        assessor: Assessor,
    ) -> None:
        self._config = config
        self._run = run
        self._tracker = tracker
        self._assessor = assessor
        self._quality: dict[str, float] = {}
        self._gauges = Gauges(run.uri)
        source = torch.Generator().manual_seed(config.run.seed)
        self._latents = torch.randn(_NUM_SAMPLES, config.networks.latent_dim, generator=source)
        self._pass_images = [stage.pass_images for stage in config.stages()]
        self._board = board
        self.rewind(state)

    def rewind(self, state: TrainingState) -> None:
        """Go on from a state; rows of what came after it are dropped."""
        self._state = state
        self._log = MetricsLog(self._run, state.images_seen)
        self._board.start.remote(state.images_seen)

    def after_step(
        self,
        phase: Phase,
        measured: dict[str, float] | None,
        *,
        images: int,
    ) -> None:
        """Log a row and draw a grid when due after a step.

        Args:
            phase: Current phase.
            measured: Metrics by name where a row is due, else None.
            images: Training images of the step over all ranks.
        """
        if measured is not None:
            self._write_row(phase, measured)
        seen = self._state.images_seen
        if due(self._config.tracking.sample_kimg, seen, images) or seen >= phase.end:
            self._draw(phase)

    def assess(self, phase: Phase) -> dict[str, float]:
        """Measure the model as it is now and log a row of that; returns the metrics by name.

        Raises:
            UserError: If one of them is not finite.
        """
        found = self._assessor.measure(self._state, phase)
        self._quality |= found
        row = {f"train/{name}": value for name, value in found.items()}
        _check_finite(row, self._state.images_seen)
        if row:
            self.log(row)
        return found

    def _write_row(self, phase: Phase, measured: dict[str, float]) -> None:
        seen = self._state.images_seen
        row = measured | {
            "train/kimg": seen / 1000,
            "train/resolution": float(phase.resolution),
            "train/fade": fade_of(self._state, phase),
            "train/lr_factor": self._state.lr_factor,
        }
        self.log(row)
        self._board.update.remote(seen, *summary(row, self._quality))

    def log(self, row: dict[str, float]) -> None:
        """Add a row of metrics by name."""
        self._tracker.row(self._log.append(self._state.images_seen, row))
        self._gauges.set(row)

    @torch.no_grad()
    def _draw(self, phase: Phase) -> None:
        fade, parts = fade_of(self._state, phase), []
        # As many at once as a training pass computes, for which there is memory.
        for latents in self._latents.split(self._pass_images[phase.stage]):
            images = self._state.average(latents.to(self._state.device), phase.stage, fade)
            parts.append(to_uint8(images))
        path = f"{SAMPLES}{self._state.images_seen / 1000:07.1f}-kimg-{phase.resolution}px.png"
        self._run.write_bytes(path, encode_png(grid(np.concatenate(parts), _SAMPLE_COLUMNS)))
        self._tracker.picture(path)

    def save(self) -> None:
        """Make all rows so far durable."""
        self._log.save()

    def close(self) -> None:
        """Save and send what is left."""
        self._log.save()
        self._gauges.close()
        self._tracker.close(timeout_s=10.0)


def _check_finite(row: dict[str, float], images_seen: int) -> None:
    wrong = [name for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise UserError(
            f"training diverged: {', '.join(wrong)} not finite at {images_seen / 1000:g} kimg; "
            "lower optimizer.generator_lr and discriminator_lr, or raise objective.r1_weight"
        )
