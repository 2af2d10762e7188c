"""Training as a single rank on images in memory, for studies of many small models."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.config import Config
from cluster.feature_weights import pretrained_of
from cluster.model_store import CARD, Model, load_model, save_model
from cluster.train_loop import schedule_of
from data.augment import turned
from data.preparation import Preparation
from data.pyramid import mask_to_square, pyramid
from data.sample import Image8, Mask
from data.store import Store
from data.stream import normalise
from gan.augment import AugmentSettings
from gan.model import Architecture
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Objective

CPU = torch.device("cpu")
VERSION = 2
"""Raised when the same settings train another model than before, so that no older one
is taken for it. 1: while a stage faded in, training images were not."""
RESULT_VERSION = 3
"""Raised with the other, and when the same model is judged otherwise, so that no older row is taken
for it. 2: a logit counted for an image as well as against it, and got the share that did best."""


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """What a model is trained on.

    Attributes:
        normal: images called normal, [N, R, R, C] uint8.
        known: known abnormal images, [A, R, R, C] uint8, not used where alpha is 0.
        masks: [A, R, R] bool, where their defects are; None where that is not known.
    """

    normal: Image8
    known: Image8
    masks: Mask | None = None


def trained_with(config: Config) -> dict[str, Any]:
    """What decides a model but its images: sections of the configuration, seed and version."""
    sections = ("networks", "objective", "schedule", "optimizer", "augment")
    told: dict[str, Any] = {
        name: getattr(config, name).model_dump(mode="json") for name in sections
    }
    return told | {
        "seed": config.run.seed,
        "symmetries": config.data.symmetries,
        "version": VERSION,
    }


def train(config: Config, images: TrainingImages) -> TrainingState:
    """Train one model.

    Args:
        config: a run's settings, objective.gamma and alpha among them.
        images: what to train on.
    """
    state = new_state(config, images)
    feed = Feed(config, images, masks=architecture_of(config, images).judges_patches)
    objective = Objective(**config.objective.model_dump())
    batch = config.schedule.batch
    for phase in schedule_of(config):
        state.enter(phase, lambda network: network)
        while state.images_seen < phase.end:
            real, abnormal, mask = feed.batch(phase)
            state.step(phase, real, abnormal, objective, images=batch, abnormal_mask=mask)
    return state


Training = Callable[[Config, TrainingImages], TrainingState]
"""Trains one model."""


def new_state(config: Config, images: TrainingImages) -> TrainingState:
    """A training state before its first step."""
    pretrained = pretrained_of(config)
    return TrainingState(
        architecture_of(config, images),
        Rates(**config.optimizer.model_dump()),
        seed=config.run.seed,
        rank=0,
        device=CPU,
        augment=AugmentSettings(**config.augment.model_dump()),
        pretrained=pretrained.tensors if pretrained else None,
    )


def architecture_of(config: Config, images: TrainingImages) -> Architecture:
    """What a configuration builds for these images."""
    pretrained = pretrained_of(config)
    return config.networks.architecture(
        images.normal.shape[-1], features_sha256=pretrained.sha256 if pretrained else ""
    )


class Feed:
    """Batches of both kinds of training images, at the resolution that a phase asks for."""

    def __init__(self, config: Config, images: TrainingImages, *, masks: bool = False) -> None:
        schedule, seed = config.schedule, config.run.seed
        self._normal, self._known = _levels(images.normal), _levels(images.known)
        self._masks = None
        if masks and images.masks is not None:
            self._masks = _mask_levels(images.masks)
        self._rows = [
            endless_rows(len(images.normal), schedule.batch, seed),
            endless_rows(len(images.known), schedule.abnormal_batch, seed + 1),
        ]
        self._alpha, self._symmetries, self._seed = (
            config.objective.alpha,
            config.data.symmetries,
            seed,
        )
        self._drawn = 0

    def batch(self, phase: Phase) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Float images in [-1, 1] called normal; known abnormal ones and their masks, or None."""
        normal, known = (next(rows) for rows in self._rows)
        real = self._stacked(self._normal[phase.resolution], normal, self._drawn)
        first = self._drawn + len(normal)
        self._drawn = first + len(known)
        if not self._alpha:
            return normalise(real), None, None
        abnormal = normalise(self._stacked(self._known[phase.resolution], known, first))
        if self._masks is None:
            return normalise(real), abnormal, None
        return normalise(real), abnormal, self._stacked(self._masks[phase.resolution], known, first)

    def _stacked(self, level: NDArray[np.generic], rows: NDArray[np.int64], first: int) -> Tensor:
        """Rows of a level, each turned as its number says, [B, C, R, R]."""
        images = [
            turned(level[row], self._symmetries, seed=self._seed, number=first + place)
            for place, row in enumerate(rows)
        ]
        return torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in images]))


def _levels(images: Image8) -> dict[int, Image8]:
    """The images at each resolution of training, [N, r, r, C] uint8."""
    pyramids = [pyramid(image, images.shape[1]) for image in images]
    return {side: np.stack([one[side] for one in pyramids]) for side in pyramids[0]}


def _mask_levels(masks: Mask) -> dict[int, Mask]:
    """The masks at each resolution of training, [A, r, r, 1] bool."""
    sides = [masks.shape[1] >> step for step in range((masks.shape[1] // 4).bit_length())]
    return {
        side: np.stack([mask_to_square(mask, side)[..., None] for mask in masks]) for side in sides
    }


def endless_rows(count: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield `size` rows at a time out of shuffled passes over `count`, one pass after the other."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    while True:
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:size]
        order = order[size:]


def trained_model(
    folder: Store,
    config: Config,
    images: TrainingImages,
    preparation: Preparation,
    training: Training = train,
) -> Model:
    """The model in a folder; trained first where there is none."""
    if not folder.exists(CARD):
        state = training(config, images)
        save_model(
            folder,
            architecture_of(config, images),
            state.average,
            state.judge,
            preparation=preparation,
            objective=config.objective,
            images_seen=state.images_seen,
        )
    return load_model(folder)
