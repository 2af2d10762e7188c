"""Models in a run directory: a folder each, with `weights.safetensors` and `model.json`."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from cluster import __version__
from cluster.config import ObjectiveConfig, Search
from cluster.errors import UserError
from data.errors import DataError
from data.store import Store
from gan.model import Architecture, networks_from_bytes, weights_to_bytes
from gan.networks import Discriminator, Generator

SCHEMA_VERSION = 1
NORMALISATION = "x / 127.5 - 1"
MODEL = "model"
"""Folder of the finished model."""
CARD = f"{MODEL}/model.json"
_WEIGHTS = "weights.safetensors"


class Calibration(BaseModel):
    """What turns a score into a decision; fitted on validation images only."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    search: Search
    """Settings of the search that gave the scores."""
    seed: int
    """Seed of the starting latents."""
    normal_scores: tuple[float, ...]
    """Scores of the normal validation images, ascending."""
    map_scale: float
    """Map value shown as full scale: twice the peak that the false-positive rate's share of normal
    validation images exceeds."""
    false_positive_rate: float
    """Share of normals that may be called abnormal."""
    threshold: float
    """Scores above it have a conformal p-value of at most the false-positive rate."""
    f1_threshold: float | None
    """Scores from it on are abnormal at the best F1 on labelled validation images, if any."""


class ModelCard(BaseModel):
    """Contents of model.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    code_version: str
    architecture: dict[str, int]
    normalisation: str
    objective: ObjectiveConfig
    images_seen: int
    weights_sha256: str
    calibration: Calibration | None
    validation_auroc: float | None = None


@dataclass(frozen=True)
class Model:
    """A trained model, ready for inspection.

    Attributes:
        card: What model.json says.
        generator: Frozen generator (its moving average).
        discriminator: Frozen discriminator.
    """

    card: ModelCard
    generator: Generator
    discriminator: Discriminator

    @property
    def architecture(self) -> Architecture:
        """What was built."""
        return Architecture.from_dict(self.card.architecture)

    def calibrated(self, calibration: Calibration) -> Self:
        """The same model with another calibration."""
        return replace(self, card=self.card.model_copy(update={"calibration": calibration}))


def save_model(
    run: Store,
    architecture: Architecture,
    generator: nn.Module,
    discriminator: nn.Module,
    *,
    objective: ObjectiveConfig,
    images_seen: int,
    folder: str = MODEL,
    validation_auroc: float | None = None,
) -> None:
    """Write weights, then model.json, so that a model with a card is whole."""
    weights = weights_to_bytes(generator, discriminator)
    run.write_bytes(f"{folder}/{_WEIGHTS}", weights)
    card = ModelCard(
        schema_version=SCHEMA_VERSION,
        code_version=__version__,
        architecture=architecture.to_dict(),
        normalisation=NORMALISATION,
        objective=objective,
        images_seen=images_seen,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        calibration=None,
        validation_auroc=validation_auroc,
    )
    save_card(run, card, folder)


def copy_model(run: Store, source: str, target: str) -> None:
    """Copy the model in one folder of a run directory to another one, its card last."""
    run.write_bytes(f"{target}/{_WEIGHTS}", run.read_bytes(f"{source}/{_WEIGHTS}"))
    save_card(run, load_card(run, source), target)


def save_card(run: Store, card: ModelCard, folder: str = MODEL) -> None:
    """Write model.json."""
    run.write_bytes(_card(folder), card.model_dump_json(indent=1).encode())


def load_card(run: Store, folder: str = MODEL) -> ModelCard:
    """Read model.json.

    Raises:
        UserError: If it is missing, damaged, or from a newer version.
    """
    path = _card(folder)
    if not run.exists(path):
        raise UserError(
            f"{run.uri} holds no trained model; run `python -m cluster train` with this run.dir"
        )
    try:
        content: dict[str, Any] = json.loads(run.read_bytes(path))
        if content.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{run.url(path)} has schema_version={content.get('schema_version')}, "
                f"this version reads {SCHEMA_VERSION}; use the version that wrote it"
            )
        return ModelCard.model_validate(content)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, ValidationError) as error:
        raise UserError(f"{run.url(path)} is damaged ({error}); train again") from None


def load_model(run: Store, folder: str = MODEL) -> Model:
    """Read a model.

    Raises:
        UserError: If it is missing, damaged, or from a newer version.
    """
    card = load_card(run, folder)
    path = f"{folder}/{_WEIGHTS}"
    try:
        weights = run.read_bytes(path)
        if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
            raise UserError(f"{run.url(path)} does not match its sha256 in model.json; train again")
        networks = networks_from_bytes(Architecture.from_dict(card.architecture), weights)
    except (DataError, UserError):
        raise
    except ValueError as error:
        raise UserError(f"{run.uri}: {error}; train again") from None
    return Model(card, *networks)


def _card(folder: str) -> str:
    return f"{folder}/model.json"
