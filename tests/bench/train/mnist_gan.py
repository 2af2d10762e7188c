"""The method and AnoGAN in this process: trained on images in memory, judged by latent search."""

import numpy as np
from numpy.typing import NDArray

from cluster.calibration import maps_of
from cluster.config import Config
from cluster.engine import Engine
from cluster.model_store import Model
from data.preparation import Preparation
from data.sample import Sample, Split
from data.store import Store
from gan.fusion import fit_fusion
from tests.bench.train.in_memory import TrainingImages, trained_model
from tests.bench.train.mnist_images import Parts


def trained_on(folder: Store, config: Config, parts: Parts) -> Model:
    """The model in a folder; trained first where there is none."""
    images = TrainingImages(parts["train-normal"][0], parts["train-abnormal"][0])
    preparation = Preparation(resolution=config.networks.resolution, channels=1)
    return trained_model(folder, config, images, preparation)


def gan_scores(
    config: Config, model: Model, parts: Parts, digit: int, split: Split = "test"
) -> NDArray[np.float64]:
    """Score each image of a split as an inspection does; what is fitted is so on validation."""
    fusion, seed = None, config.run.seed
    if config.search.statistic == "fused":
        kinds = parts["validation"][1]
        found = Engine(model, config.search, seed=seed).score(samples(parts, "validation"))
        terms = [np.array(scored.row["terms"]) for scored in found]
        normal = [one for one, kind in zip(terms, kinds, strict=True) if kind == digit]
        abnormal = [one for one, kind in zip(terms, kinds, strict=True) if kind != digit]
        fusion = fit_fusion(maps_of(model.card, config.search), normal, abnormal)
    engine = Engine(model, config.search, seed=seed, fusion=fusion)
    return np.array([scored.row["score"] for scored in engine.score(samples(parts, split))])


def samples(parts: Parts, split: Split) -> list[Sample]:
    """The images of a split, named by their numbers."""
    return [
        Sample(str(number), image, "unlabelled", "", "", "", split)
        for number, image in enumerate(parts[split][0])
    ]
