"""How good the average of G is, measured at checkpoints and at the end of every stage."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cluster.best_model import BestModel
from cluster.config import Config
from cluster.training_data import run_store
from data.dataset import DatasetIndex
from data.reader import SplitReader
from data.stream import normalise, read_images
from gan.model import Architecture
from gan.schedule import Phase
from gan.state import TrainingState
from gan.swd import SlicedWasserstein

if TYPE_CHECKING:
    from cluster.validation import Validator

_BLOCK = 32
"""Images held at a time, at most; never more than a training pass, for which there is memory."""

OpenReader = Callable[[int], SplitReader]


class Assessor:
    """All that is measured of a model in training.

    Args:
        config: Configuration of the run.
        index: Index of its data set.
        architecture: What is trained.
        device: Where to measure.
        open_reader: Opens the images called normal at a resolution, apart from those in training.
    """

    def __init__(
        self,
        config: Config,
        index: DatasetIndex,
        architecture: Architecture,
        device: torch.device,
        open_reader: OpenReader,
    ) -> None:
        self._distance: TrainingDistance | None = None
        self._validator: Validator | None = None
        if config.tracking.swd_images:
            self._distance = TrainingDistance(config, index, device, open_reader)
        if config.tracking.validation_images:
            # Here, because it takes seconds to load.
            from cluster import validation

            self._validator = validation.Validator(config, index, architecture, device)
            self._best = BestModel(
                run_store(config),
                architecture,
                index.preparation,
                config.objective,
                measure=self._validator.measure,
            )
        self._resolution = config.networks.resolution

    def measure(self, state: TrainingState, phase: Phase) -> dict[str, float]:
        """Measure the model as it is now, and keep it if it is the best.

        Returns:
            What the configuration asks for: swd and swd_<resolution of the level>;
            validation_auroc, and once the last block is faded in best_auroc.
        """
        found = self._distance.measure(state, phase) if self._distance else {}
        if self._validator:
            auroc = self._validator.auroc(state, phase)
            found["validation_auroc"] = auroc
            if phase.resolution == self._resolution and fade_of(state, phase) == 1:
                found["best_auroc"] = self._best.offer(state, auroc)
        return found


class TrainingDistance:
    """Sliced Wasserstein distance of generated to training images, the same ones every time.

    Args:
        config: Configuration of the run.
        index: Index of its data set.
        device: Where to measure.
        open_reader: Opens the images called normal at a resolution.
    """

    def __init__(
        self, config: Config, index: DatasetIndex, device: torch.device, open_reader: OpenReader
    ) -> None:
        self._count = min(config.tracking.swd_images, index.num_samples("train-normal"))
        self._seed, self._device, self._open = config.run.seed, device, open_reader
        source = torch.Generator().manual_seed(config.run.seed)
        self._latents = torch.randn(self._count, config.networks.latent_dim, generator=source)
        self._blocks = [min(_BLOCK, stage.pass_images) for stage in config.stages()]
        # Of one resolution only: earlier ones do not come back.
        self._reference: tuple[int, SlicedWasserstein] | None = None

    def measure(self, state: TrainingState, phase: Phase) -> dict[str, float]:
        """The mean over all levels as `swd`, and each level as `swd_<its resolution>`."""
        if self._reference is None or self._reference[0] != phase.resolution:
            real = SlicedWasserstein(self._training_images(phase), seed=self._seed)
            self._reference = phase.resolution, real
        levels = self._reference[1].distances(self._generated_images(state, phase))
        mean = sum(levels.values()) / len(levels)
        return {"swd": mean} | {f"swd_{side}": value for side, value in levels.items()}

    def _training_images(self, phase: Phase) -> Iterator[Tensor]:
        reader, block = self._open(phase.resolution), self._blocks[phase.stage]
        try:
            for start in range(0, self._count, block):
                numbers = range(start, min(start + block, self._count))
                yield normalise(read_images(reader, numbers).to(self._device))
        finally:
            reader.close()

    def _generated_images(self, state: TrainingState, phase: Phase) -> Iterator[Tensor]:
        for latents in self._latents.split(self._blocks[phase.stage]):
            images = state.average(latents.to(self._device), phase.stage, fade_of(state, phase))
            yield images.clamp(-1, 1)


def fade_of(state: TrainingState, phase: Phase) -> float:
    """Weight of the newest block now; a step's last images may lie beyond the end of its phase."""
    return phase.fade(min(state.images_seen, phase.end))
