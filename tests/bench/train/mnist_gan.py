"""The method and AnoGAN in this process: trained on images in memory, judged by latent search."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.config import Config
from cluster.inspector import search_settings, statistic
from cluster.train_loop import schedule_of
from data.sample import Image8
from data.stream import normalise
from gan.augment import AugmentSettings
from gan.model import Architecture
from gan.networks import num_stages
from gan.schedule import Phase
from gan.scores import anomaly_map
from gan.search import initial_latents, latent_search
from gan.starts import draw_candidates, nearest_starts
from gan.state import Rates, TrainingState
from gan.step import Objective
from tests.bench.train.mnist_images import levels

CPU = torch.device("cpu")


def train(config: Config, normal: Image8, known: Image8) -> TrainingState:
    """Train one model as a single rank.

    Args:
        config: a run's settings, objective.gamma and alpha among them.
        normal: images called normal, [N, 32, 32, C] uint8.
        known: known abnormal images, [A, 32, 32, C] uint8, not used where alpha is 0.
    """
    state = TrainingState(
        Architecture(**config.networks.model_dump(), channels=normal.shape[-1]),
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


def search_scores(config: Config, state: TrainingState, images: Image8) -> NDArray[np.float32]:
    """Score each image by latent search, as an inspection does."""
    settings, stage = search_settings(config.search), num_stages(config.networks.resolution) - 1
    generator = state.average
    features = state.discriminator.requires_grad_(False).features
    seed = config.run.seed
    candidates = draw_candidates(
        generator, features, settings, count=config.search.candidates, seed=seed, stage=stage
    )
    queries = normalise(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    keys = [str(number) for number in range(len(queries))]
    starts = initial_latents(keys, config.networks.latent_dim, seed=seed)
    if candidates:
        starts = nearest_starts(features, queries, candidates, settings, stage=stage)
    found = latent_search(generator, features, queries, starts, settings, stage=stage)
    maps = anomaly_map(features, queries, found, settings, stage=stage)
    return np.asarray(statistic(found, maps, config.search))
