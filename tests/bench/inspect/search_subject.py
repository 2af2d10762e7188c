"""What search.py searches with: one model of the demo's settings, its encoder, digits to test."""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.config import Config, load_config
from data.stream import normalise
from gan.encoder import Encoder, EncoderTraining
from gan.model import (
    AnyDiscriminator,
    encoder_from_bytes,
    networks_from_bytes,
    place,
    weights_to_bytes,
)
from gan.networks import Generator, num_stages
from gan.search import SearchResult, latent_search
from gan.search_loss import SearchLoss, SearchSettings
from gan.starts import Starts
from tests.bench.data.common import ROOT
from tests.bench.train.in_memory import TrainingImages, train
from tests.bench.train.mnist_images import Parts, cell_images

CPU = torch.device("cpu")
DIGIT, CONTAMINATION, SEED = 0, 0.2, 0


@dataclass(frozen=True)
class Subject:
    """What is searched with, and for what.

    Attributes:
        config: settings.
        generator: frozen.
        discriminator: frozen.
        encoder: frozen.
        images: float [N, 1, 32, 32], test digits.
        abnormal: bool [N].
    """

    config: Config
    generator: Generator
    discriminator: AnyDiscriminator
    encoder: Encoder
    images: Tensor
    abnormal: NDArray[np.bool_]

    @property
    def stage(self) -> int:
        return num_stages(self.config.networks.resolution) - 1

    def starts(self, settings: SearchSettings, kind: str, restarts: int = 1) -> Starts:
        """Where a search starts: "random", "nearest", "encoder" or "both"."""
        return Starts(
            SearchLoss(self.generator, self.discriminator.features, settings, self.stage),
            restarts=restarts,
            candidates=256 if kind in ("nearest", "both") else 0,
            seed=SEED,
            encoder=self.encoder if kind in ("encoder", "both") else None,
        )

    def search(self, settings: SearchSettings, starts: Starts, images: Tensor) -> SearchResult:
        """Starts and search of some images."""
        latents = starts([str(number) for number in range(len(images))], images)
        features = self.discriminator.features
        return latent_search(self.generator, features, images, latents, settings, stage=self.stage)


def prepare(options: argparse.Namespace) -> Subject:
    """Train what is not in the file of weights yet, and choose the test digits."""
    chosen = {"objective.gamma": 0.7, "objective.alpha": 0.3}
    config = load_config(str(ROOT / "cluster/demo.yaml"), chosen)
    parts = cell_images(DIGIT, CONTAMINATION, 0, SEED)
    normal, known = parts["train-normal"][0], parts["train-abnormal"][0]
    architecture = config.networks.architecture(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(options.weights or f"{folder}/gan.safetensors")
        if not weights.exists():
            state = train(config, TrainingImages(normal, known))
            payload = weights_to_bytes(generator=state.average, discriminator=state.discriminator)
            weights.write_bytes(payload)
        generator, discriminator = networks_from_bytes(architecture, weights.read_bytes())
        place(generator, CPU)
        place(discriminator, CPU)
        file = weights.with_suffix(f".encoder{options.kimg:g}")
        if not file.exists():
            encoder = train_encoder(config, generator, discriminator, parts, options)
            file.write_bytes(weights_to_bytes(encoder=encoder))
        encoder = place(encoder_from_bytes(architecture, file.read_bytes()), CPU)
    digits, kinds = parts["test"]
    rows = np.random.default_rng(SEED).permutation(len(digits))[: options.images]
    images = normalise(torch.from_numpy(digits[rows].transpose(0, 3, 1, 2).copy()))
    return Subject(config, generator, discriminator, encoder, images, kinds[rows] != DIGIT)


def train_encoder(
    config: Config,
    generator: Generator,
    discriminator: AnyDiscriminator,
    parts: Parts,
    options: argparse.Namespace,
) -> Encoder:
    """Train the encoder as cluster/encoder_job.py does, on images in memory."""
    torch.manual_seed(SEED)
    architecture = config.networks.architecture(1)
    encoder = place(architecture.encoder(), CPU)
    settings, stage = config.encoder, num_stages(config.networks.resolution) - 1
    num_steps = round(options.kimg * 1000 / settings.batch)
    training = EncoderTraining(
        encoder,
        generator,
        discriminator.features,
        lr=settings.lr,
        feature_weight=settings.feature_weight,
        num_steps=num_steps,
        seed=SEED,
        stage=stage,
    )
    images = normalise(torch.from_numpy(parts["train-normal"][0].transpose(0, 3, 1, 2).copy()))
    draw = torch.Generator().manual_seed(SEED)
    started_s = time.perf_counter()
    for step in range(num_steps):
        rows = torch.randint(len(images), (settings.batch,), generator=draw)
        terms = training.step(images[rows])
        if step % 100 == 0 or step == num_steps - 1:
            numbers = " ".join(f"{name} {float(term):.3f}" for name, term in terms.items())
            print(f"encoder step {step}: {numbers} ({time.perf_counter() - started_s:.0f} s)")
    return encoder
