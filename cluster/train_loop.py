"""What each training worker does, top to bottom."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from cluster.best_model import finish_with_best
from cluster.checkpoint import (
    Progress,
    check_finite,
    identity_of,
    note_measured,
    restore_checkpoint,
    save_checkpoint,
)
from cluster.checkpoint_store import CheckpointStore
from cluster.config import Config
from cluster.errors import UserError, lasting_as_user_error
from cluster.feature_weights import FeatureWeights, pretrained_of
from cluster.model_store import save_model
from cluster.quarantine import Quarantine
from cluster.rank_meter import RankMeter, due
from cluster.ranks import Ranks, wrap_network
from cluster.rollback import RATE_CUT, check_second, rollback_note
from cluster.schedule_config import Stage
from cluster.stopping import StopFlag
from cluster.training_data import dataset_store, open_cache, open_split, run_store
from data.dataset import DatasetIndex, load_index
from data.errors import DataError
from data.reader import SplitReader
from data.sample import Split
from data.stream import BatchStream, Share, normalise
from gan.augment import AugmentSettings
from gan.determinism import make_deterministic
from gan.model import Architecture
from gan.schedule import Phase, phase_at, phases
from gan.state import Rates, TrainingState
from gan.step import Execution, NonFiniteError, Objective

if TYPE_CHECKING:
    from cluster.observer import Observer


def train_worker(job: Mapping[str, Any]) -> None:
    """Train as one rank of a Ray Train worker group.

    Args:
        job: `config` and `tracking` (plain values of `Config` and `cluster.tracking.RunRef`) and
            `board` (a `cluster.progress.ProgressBoard` actor).
    """
    with lasting_as_user_error():
        _train(Worker(Config.model_validate(job["config"]), job["board"]), job["tracking"])


def _train(worker: "Worker", tracking: Mapping[str, Any]) -> None:
    worker.observe(tracking)
    try:
        worker.measure_saved()
        while phase := phase_at(worker.schedule, worker.state.images_seen):
            try:
                if not worker.train_phase(phase):
                    worker.stop()
                    return
            except NonFiniteError as error:
                worker.roll_back(error)
        worker.finish()
    except (UserError, DataError):
        worker.leave()
        raise


class Worker:
    """One rank of a training run: state, data, and when to do what.

    Args:
        config: Configuration of the run.
        board: Actor that shows progress, a `cluster.progress.ProgressBoard`.
    """

    def __init__(self, config: Config, board: Any) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.ranks = Ranks(self.rank, self.world_size)
        self.board = board
        if config.cluster.deterministic:
            make_deterministic()
        self.device = ray.train.torch.get_device()
        # Ray sets one thread for each worker; use what was reserved.
        torch.set_num_threads(config.cluster.num_threads)
        self.dtype = getattr(torch, config.cluster.precision)
        self.config = config
        self.run, dataset = run_store(config), dataset_store(config)
        self.index, self.cache = load_index(dataset), open_cache(config)
        self.quarantine = Quarantine(self.run, self.rank)
        self.pretrained = pretrained_of(config)
        self.architecture = architecture_of(config, self.index, self.pretrained)
        self.stages, self.schedule = config.stages(self.world_size), schedule_of(config)
        self.stage_ends = {phase.stage: phase.end for phase in self.schedule}
        self.objective = Objective(**config.objective.model_dump())
        self.checkpoints = CheckpointStore(
            self.run,
            keep=config.cluster.keep_checkpoints,
            identity=identity_of(config, self.architecture, dataset),
        )
        self.state, self.progress = self.restore()
        self.saved_at = self.state.images_seen
        self.stop_flag = StopFlag(board, self.ranks, self.device)
        self.meter = RankMeter(self.device, self.world_size, self.state.images_seen)
        self.observer: Observer | None = None

    def restore(self) -> tuple[TrainingState, Progress]:
        """The run as its newest checkpoint has it, or as it begins."""
        seed = self.config.run.seed
        state = TrainingState(
            self.architecture,
            Rates(**self.config.optimizer.model_dump()),
            seed=seed,
            rank=self.rank,
            device=self.device,
            augment=AugmentSettings(**self.config.augment.model_dump()),
            pretrained=self.pretrained.tensors if self.pretrained else None,
        )
        return state, restore_checkpoint(
            self.checkpoints, state, ranks=self.ranks, seed=seed, note=self.note
        )

    def note(self, text: str) -> None:
        """Leave a line for the person who waits."""
        self.board.note.remote(text)

    def observe(self, tracking: Mapping[str, Any]) -> None:
        """Start watching, on rank 0 only."""
        if self.rank > 0:
            return
        # Here, because what they need takes seconds to load and no other process uses it.
        from cluster.assessment import Assessor
        from cluster.observer import Observer
        from cluster.tracking import RunRef, Tracker

        assessor = Assessor(
            self.config,
            self.index,
            self.architecture,
            self.device,
            lambda resolution: self.open_split("train-normal", resolution, lanes=1),
        )
        tracker = Tracker(RunRef(**tracking), self.run, self.note)
        self.observer = Observer(self.config, self.run, tracker, self.board, self.state, assessor)

    def train_phase(self, phase: Phase) -> bool:
        """Train until the phase ends, from wherever in it the state stands.

        Returns:
            Whether it has ended; otherwise somebody asked to stop.
        """
        stage = self.stages[phase.stage]
        self.state.enter(
            phase,
            lambda net: wrap_network(net, self.world_size, self.device),
            lr_factor=stage.lr_factor,
            execution=Execution(num_parts=stage.num_parts, dtype=self.dtype),
        )
        stream = self.open_stream(stage)
        try:
            while self.state.images_seen < phase.end:
                if self.stop_flag.is_up():
                    return False
                self.train_batch(phase, stream)
        finally:
            stream.close()
        return True

    def train_batch(self, phase: Phase, stream: BatchStream) -> None:
        """One step, what is to be said about it, and a checkpoint when one is due."""
        try:
            batch = stream.next_batch()
        finally:
            self.quarantine.note(stream.losses)
        real = normalise(batch.normal.to(self.device))
        abnormal = None if batch.abnormal is None else normalise(batch.abnormal.to(self.device))
        mask = None if batch.abnormal_mask is None else batch.abnormal_mask.to(self.device)
        images = self.stages[phase.stage].batch
        stats = self.state.step(
            phase, real, abnormal, self.objective, images=images, abnormal_mask=mask
        )
        self.progress.position = stream.state()
        self.watch(phase, stats, wait_s=batch.wait_s)
        seen = self.state.images_seen
        if due(self.config.cluster.checkpoint_kimg, seen, images) or seen >= self.schedule[-1].end:
            self.checkpoint(phase)
        elif seen >= self.stage_ends[phase.stage]:
            self.assess(phase)

    def watch(self, phase: Phase, stats: dict[str, Tensor], *, wait_s: float) -> None:
        """Tell rank 0's observer of a step; all ranks meet where it writes a row."""
        self.meter.note(wait_s, stats)
        seen, images, measured = self.state.images_seen, self.stages[phase.stage].batch, None
        if due(self.config.tracking.log_kimg, seen, images):
            lost = {"data/lost_images": float(self.quarantine.num_images)}
            measured = self.meter.measure(seen) | lost
        if self.observer:
            self.observer.after_step(phase, measured, images=images)

    def assess(self, phase: Phase) -> dict[str, float]:
        """Measure how good the model is, on rank 0; elsewhere there are no metrics."""
        # All ranks look, so that they go back together.
        check_finite(self.state)
        return self.observer.assess(phase) if self.observer else {}

    def checkpoint(self, phase: Phase) -> None:
        """Make everything so far durable, on all ranks, and only then measure the model."""
        self.progress.pending = self.schedule.index(phase)
        self.save({})
        self.measure_saved()

    def measure_saved(self) -> None:
        """Measure the model of the last checkpoint where that was not done, on all ranks."""
        if self.progress.pending is None:
            return
        metrics = self.assess(self.schedule[self.progress.pending])
        metrics, self.progress.pending = metrics | {"images_seen": self.state.images_seen}, None
        if self.observer:
            self.observer.save()
            note_measured(self.checkpoints, self.state, self.progress, metrics)
        # Where the others wait for rank 0.
        ray.train.report(metrics)

    def save(self, metrics: dict[str, float]) -> None:
        """Write a checkpoint, and the rows of metrics up to it."""
        if self.observer:
            self.observer.save()
        save_checkpoint(
            self.checkpoints,
            self.state,
            self.progress,
            metrics | {"images_seen": self.state.images_seen},
            ranks=self.ranks,
            note=self.note,
        )
        self.saved_at = self.state.images_seen

    def stop(self) -> None:
        """Leave a checkpoint to go on from."""
        if self.state.images_seen != self.saved_at:
            self.save({})
        if self.observer:
            self.observer.close()

    def leave(self) -> None:
        """Keep the rows that led to an error which only a person can mend."""
        if self.observer:
            with contextlib.suppress(Exception):  # That error counts more.
                self.observer.close()

    def roll_back(self, error: NonFiniteError) -> None:
        """Go on from the last checkpoint with lower learning rates; all ranks call it alike.

        Raises:
            UserError: If that was done just before.
        """
        failed_at = self.state.images_seen
        check_second(
            error,
            images_seen=failed_at,
            last_cut=self.progress.last_cut,
            interval=round(self.config.cluster.checkpoint_kimg * 1000),
        )
        self.state, self.progress = self.restore()
        self.state.scale_rates(RATE_CUT)
        self.progress.num_cuts += 1
        self.progress.last_cut = self.state.images_seen
        self.meter = RankMeter(self.device, self.world_size, self.state.images_seen)
        factor = self.state.lr_factor
        if self.observer:
            self.observer.rewind(self.state)
            self.observer.log({"train/lr_factor": factor})
            self.note(
                rollback_note(
                    error, images_seen=failed_at, back_to=self.state.images_seen, factor=factor
                )
            )
        # At once, so that a run stopped now goes on with the lower rates.
        self.save({"lr_factor": factor})

    def finish(self) -> None:
        """Write the model, on rank 0 only."""
        if self.observer is None:
            return
        if not (self.config.tracking.keep_best and finish_with_best(self.run)):
            save_model(
                self.run,
                self.architecture,
                self.state.average,
                self.state.judge,
                preparation=self.index.preparation,
                objective=self.config.objective,
                images_seen=self.state.images_seen,
            )
        self.observer.close()

    def open_stream(self, stage: Stage) -> BatchStream:
        """This rank's share of the training images, from the current position on."""
        # The same lanes at every stage: they decide in which order a pass reads its images.
        schedule, abnormal = self.config.schedule, self.objective.alpha > 0
        return BatchStream(
            self.open_split("train-normal", stage.resolution, lanes=schedule.batch),
            self.open_split(
                "train-abnormal",
                stage.resolution,
                lanes=schedule.abnormal_batch,
                masks=self.architecture.judges_patches,
            )
            if abnormal
            else None,
            batch=stage.batch,
            abnormal_batch=stage.abnormal_batch,
            at=self.progress.position,
            part=Share(
                world_size=self.world_size,
                rank=self.rank,
                num_threads=self.config.data.loader_threads,
            ),
        )

    def open_split(
        self, split: Split, resolution: int, *, lanes: int, masks: bool = False
    ) -> SplitReader:
        """The images of one split, see `cluster.training_data.open_split`."""
        return open_split(
            self.config, self.cache, self.index, split, resolution, lanes=lanes, masks=masks
        )


def architecture_of(
    config: Config, index: DatasetIndex, pretrained: FeatureWeights | None = None
) -> Architecture:
    """The networks of a run on a data set."""
    digest = pretrained.sha256 if pretrained else ""
    return config.networks.architecture(index.channels, features_sha256=digest)


def schedule_of(config: Config) -> tuple[Phase, ...]:
    """The phases of a run."""
    return phases([(stage.fade_kimg, stage.steady_kimg) for stage in config.stages()])
