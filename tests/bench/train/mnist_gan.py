"""The method and AnoGAN in this process: trained on images in memory, judged by latent search."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.config import Config
from cluster.engine import Engine
from cluster.model_store import CARD, Model, load_model, save_model
from cluster.train_loop import schedule_of
from data.preparation import Preparation
from data.sample import Image8, Sample, Split
from data.store import Store
from data.stream import normalise
from gan.augment import AugmentSettings
from gan.evidence import map_names
from gan.fusion import fit_fusion
from gan.model import Architecture
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.step import Objective
from tests.bench.train.mnist_images import Parts, levels

CPU = torch.device("cpu")


def train(config: Config, normal: Image8, known: Image8) -> TrainingState:
    """Train one model as a single rank.

    Args:
        config: a run's settings, objective.gamma and alpha among them.
        normal: images called normal, [N, 32, 32, C] uint8.
        known: known abnormal images, [A, 32, 32, C] uint8, not used where alpha is 0.
    """
    state = TrainingState(
        architecture_of(config, channels=normal.shape[-1]),
        Rates(**config.optimizer.model_dump()),
        seed=config.run.seed,
        rank=0,
        device=CPU,
        augment=AugmentSettings(**config.augment.model_dump()),
    )
    feed = Feed(config, normal, known)
    objective = Objective(**config.objective.model_dump())
    batch = config.schedule.batch
    for phase in schedule_of(config):
        state.enter(phase, lambda network: network)
        while state.images_seen < phase.end:
            state.step(phase, *feed.batch(phase), objective, images=batch)
    return state


def architecture_of(config: Config, channels: int) -> Architecture:
    """What a configuration builds."""
    return config.networks.architecture(channels)


class Feed:
    """Batches of both kinds of training images, at the resolution that a phase asks for."""

    def __init__(self, config: Config, normal: Image8, known: Image8) -> None:
        schedule, seed = config.schedule, config.run.seed
        self._levels = [levels(normal), levels(known)]
        self._rows = [
            endless_rows(len(normal), schedule.batch, seed),
            endless_rows(len(known), schedule.abnormal_batch, seed + 1),
        ]
        self._alpha = config.objective.alpha

    def batch(self, phase: Phase) -> tuple[Tensor, Tensor | None]:
        """Float images in [-1, 1] called normal, and known abnormal ones where alpha is above 0."""
        real, abnormal = (
            normalise(torch.from_numpy(level[phase.resolution][next(rows)]))
            for level, rows in zip(self._levels, self._rows, strict=True)
        )
        return real, abnormal if self._alpha > 0 else None


def endless_rows(count: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield `size` rows at a time out of shuffled passes over `count`, one pass after the other."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    while True:
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:size]
        order = order[size:]


def trained_model(folder: Store, config: Config, parts: Parts) -> Model:
    """The model in a folder; trained first where there is none."""
    if not folder.exists(CARD):
        normal, known = parts["train-normal"][0], parts["train-abnormal"][0]
        state = train(config, normal, known)
        save_model(
            folder,
            architecture_of(config, channels=normal.shape[-1]),
            state.average,
            state.discriminator,
            preparation=Preparation(resolution=config.networks.resolution, channels=1),
            objective=config.objective,
            images_seen=state.images_seen,
        )
    return load_model(folder)


def gan_scores(config: Config, model: Model, parts: Parts, digit: int) -> NDArray[np.float64]:
    """Score each test image as an inspection does; all that is fitted is so on validation."""
    fusion, seed = None, config.run.seed
    if config.search.statistic == "fused":
        kinds = parts["validation"][1]
        found = Engine(model, config.search, seed=seed).score(samples(parts, "validation"))
        terms = [np.array(scored.row["terms"]) for scored in found]
        normal = [one for one, kind in zip(terms, kinds, strict=True) if kind == digit]
        abnormal = [one for one, kind in zip(terms, kinds, strict=True) if kind != digit]
        architecture = model.architecture
        names = map_names(architecture.num_levels(), architecture.num_heads)
        fusion = fit_fusion(names, normal, abnormal)
    engine = Engine(model, config.search, seed=seed, fusion=fusion)
    return np.array([scored.row["score"] for scored in engine.score(samples(parts, "test"))])


def samples(parts: Parts, split: Split) -> list[Sample]:
    """The images of a split, named by their numbers."""
    return [
        Sample(str(number), image, "unlabelled", "", "", "", split)
        for number, image in enumerate(parts[split][0])
    ]
