"""The method and AnoGAN in this process: trained on images in memory, judged by latent search."""

import hashlib
import io

import numpy as np
from numpy.typing import NDArray

from cluster.assembly import Scored
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
    config: Config,
    model: Model,
    parts: Parts,
    digit: int,
    split: Split = "test",
    kept: Store | None = None,
) -> NDArray[np.float64]:
    """Score each image of a split as an inspection does; what is fitted is so on validation.

    Args:
        config: settings of the search.
        model: what is judged.
        parts: images of all splits.
        digit: the normal class.
        split: whose images are scored.
        kept: where the model lies, and the terms of all images, so that they are searched once.
    """
    if config.search.statistic != "fused":
        return np.array([scored.row["score"] for scored in _scored(config, model, parts, split)])
    normal = parts["validation"][1] == digit
    fitted = _terms(config, model, parts, "validation", kept)
    fusion = fit_fusion(
        maps_of(model.card, config.search),
        [*fitted[normal]],
        [*fitted[~normal]],
        alpha=config.objective.alpha,
    )
    return fusion.image_scores([*_terms(config, model, parts, split, kept)])


def _terms(
    config: Config, model: Model, parts: Parts, split: Split, kept: Store | None
) -> NDArray[np.float64]:
    """[N, 1, K]."""
    told = config.search.model_dump_json() + str(config.run.seed)
    name = f"terms/{split}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.npy"
    if kept and kept.exists(name):
        return np.asarray(np.load(io.BytesIO(kept.read_bytes(name))), dtype=np.float64)
    found = np.array([scored.row["terms"] for scored in _scored(config, model, parts, split)])
    if kept:
        payload = io.BytesIO()
        np.save(payload, found)
        kept.write_bytes(name, payload.getvalue())
    return found


def _scored(config: Config, model: Model, parts: Parts, split: Split) -> list[Scored]:
    return Engine(model, config.search, seed=config.run.seed).score(samples(parts, split))


def samples(parts: Parts, split: Split) -> list[Sample]:
    """The images of a split, named by their numbers."""
    return [
        Sample(str(number), image, "unlabelled", "", "", "", split)
        for number, image in enumerate(parts[split][0])
    ]
