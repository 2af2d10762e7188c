"""An untrained, calibrated model in a run directory, in milliseconds, and images for it."""

import numpy as np
import pandas as pd
import torch

from cluster.calibration import fit_calibration
from cluster.config import Config, load_config
from cluster.model_store import Model, load_model, save_card, save_model
from data.preparation import Mode, Preparation
from data.sample import encode_png
from data.store import Store
from data.synthetic import machined_surface

SIDE, NATIVE = 16, 40


def model_config(run_dir: str) -> Config:
    """Settings of the model; the same words for the command line are `SETTINGS`."""
    return load_config(None, SETTINGS | {"run.dir": run_dir})


SETTINGS: dict[str, object] = {
    "inspect.false_positive_rate": 0.3,
    "search.steps": 2,
    "search.batch": 4,
    "search.statistic": "mean",
    "networks.resolution": SIDE,
    "networks.latent_dim": 8,
    "networks.fmap_base": 16,
    "networks.fmap_max": 8,
    "networks.group_size": 2,
}


AT_32_PIXELS: dict[str, object] = {
    "networks.resolution": 32,
    "networks.latent_dim": 16,
    "networks.fmap_base": 64,
    "networks.fmap_max": 16,
    "inspect.false_positive_rate": 0.3,
    "search.statistic": "mean",
    "search.batch": 8,
}
"""Settings of a larger one, for what is measured of jobs and servers."""


def calibrated_model(config: Config, mode: Mode = "whole") -> Model:
    """Make a model of the sizes in `config` and save it as that of the run."""
    torch.manual_seed(0)
    architecture = config.networks.architecture(1)
    run = Store(config.run.dir)
    overlap = 4 if mode == "tiles" else 0
    save_model(
        run,
        architecture,
        architecture.generator(),
        architecture.discriminator(),
        preparation=Preparation(
            resolution=architecture.resolution, channels=1, mode=mode, tile_overlap=overlap
        ),
        objective=config.objective,
        images_seen=0,
    )
    model = load_model(run)
    scores = np.linspace(0.05, 0.9, 18)
    table = pd.DataFrame({"label": "normal", "score": scores, "peak": scores, "terms": None})
    model = model.calibrated(fit_calibration(config, table))
    save_card(run, model.card)
    return model


def image_file(number: int, side: int = NATIVE) -> bytes:
    """A PNG; even numbers show a defect."""
    return encode_png(machined_surface(number, side, side, defect=number % 2 == 0)[0])
