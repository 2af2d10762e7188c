"""Models in a run directory: a folder each, with `weights.safetensors` and `model.json`.

The finished model may have an encoder, in `encoder.safetensors` beside them: a file of its own,
because it comes later and a model must be whole all the time.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from torch import nn

from cluster import __version__
from cluster.config import ObjectiveConfig
from cluster.errors import UserError
from cluster.search_config import Search
from data.errors import DataError
from data.preparation import Preparation
from data.store import Store
from gan.encoder import Encoder
from gan.fusion import VERSION as FUSION_VERSION
from gan.fusion import Fusion
from gan.model import (
    AnyDiscriminator,
    Architecture,
    encoder_from_bytes,
    networks_from_bytes,
    weights_to_bytes,
)
from gan.networks import Generator
from gan.thresholds import Rule, Thresholds

SCHEMA_VERSION = 1
NORMALISATION = "x / 127.5 - 1"
MODEL = "model"
"""Folder of the finished model."""
CARD = f"{MODEL}/model.json"
_WEIGHTS = "weights.safetensors"
_ENCODER = "encoder.safetensors"


DECISION_FIELDS = ("false_positive_rate", "miss_rate", "rule", "thresholds")
"""Fields of a calibration that follow from its others and the rule asked for."""


class Calibration(BaseModel):
    """What turns a score into a decision; fitted on validation images only.

    It holds the scores it was fitted on, so that another rule needs no search (see
    `cluster.calibration`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    search: Search
    """Settings of the search that gave the scores."""
    seed: int
    """Seed of the starting latents."""
    normal_scores: tuple[float, ...]
    """Scores of the normal validation images, ascending."""
    abnormal_scores: tuple[float, ...]
    """Scores of the known abnormal validation images, ascending."""
    fusion: Fusion | None
    """How terms become the score `fused`; None where the score is another one."""
    map_scale: float
    """Map value shown as full scale: twice the peak that one in twenty normal validation images
    exceeds."""
    false_positive_rate: float
    """Share of normals that may be called abnormal."""
    miss_rate: float
    """Share of defects that a reject band may call normal; 0 stands for none of the known."""
    rule: Rule
    """Which thresholds decide."""
    thresholds: dict[Rule, Thresholds]
    """Those of every rule for which the validation images suffice."""

    @property
    def chosen(self) -> Thresholds:
        """The thresholds that decide."""
        return self.thresholds[self.rule]


class ModelCard(BaseModel):
    """Contents of model.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    code_version: str
    architecture: dict[str, int | str]
    normalisation: str
    preparation: Preparation | None = None
    objective: ObjectiveConfig
    images_seen: int
    weights_sha256: str
    calibration: Calibration | None
    validation_auroc: float | None = None
    validation_measure: str | None = None
    encoder_sha256: str | None = None

    @field_validator("calibration", mode="before")
    @classmethod
    def _forget_older_form(cls, value: Any) -> Any:
        """Without thresholds, or with a score of an older kind: whole, but not calibrated."""
        if not isinstance(value, dict):
            return value
        fusion = value.get("fusion", {})
        same_score = fusion is None or fusion.get("version") == FUSION_VERSION
        return value if same_score and "thresholds" in value else None


@dataclass(frozen=True)
class Model:
    """A trained model, ready for inspection.

    Attributes:
        card: What model.json says.
        generator: Frozen generator (its moving average).
        discriminator: Frozen discriminator.
        encoder: Frozen encoder, where the model has one.
    """

    card: ModelCard
    generator: Generator
    discriminator: AnyDiscriminator
    encoder: Encoder | None = None

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
    preparation: Preparation,
    objective: ObjectiveConfig,
    images_seen: int,
    folder: str = MODEL,
    validation_auroc: float | None = None,
    validation_measure: str | None = None,
) -> None:
    """Write weights, then model.json, so that a model with a card is whole."""
    weights = weights_to_bytes(generator=generator, discriminator=discriminator)
    run.write_bytes(f"{folder}/{_WEIGHTS}", weights)
    card = ModelCard(
        schema_version=SCHEMA_VERSION,
        code_version=__version__,
        architecture=architecture.to_dict(),
        normalisation=NORMALISATION,
        preparation=preparation,
        objective=objective,
        images_seen=images_seen,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        calibration=None,
        validation_auroc=validation_auroc,
        validation_measure=validation_measure,
    )
    save_card(run, card, folder)


def save_encoder(run: Store, encoder: nn.Module) -> None:
    """Give the finished model an encoder; what was calibrated without it no longer counts."""
    weights = weights_to_bytes(encoder=encoder)
    run.write_bytes(f"{MODEL}/{_ENCODER}", weights)
    added = {"encoder_sha256": hashlib.sha256(weights).hexdigest(), "calibration": None}
    save_card(run, load_card(run).model_copy(update=added))


def copy_model(run: Store, source: str, target: str) -> None:
    """Copy a model without encoder from one folder of a run directory to another, its card last."""
    run.write_bytes(f"{target}/{_WEIGHTS}", run.read_bytes(f"{source}/{_WEIGHTS}"))
    save_card(run, load_card(run, source), target)


def delete_model(run: Store, folder: str) -> None:
    """Delete a model, its card first: without that it counts as none."""
    run.delete(_card(folder))
    run.delete_folder(folder)


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
    encoder = None
    try:
        architecture = Architecture.from_dict(card.architecture)
        weights = _read_checked(run, f"{folder}/{_WEIGHTS}", card.weights_sha256)
        networks = networks_from_bytes(architecture, weights)
        if card.encoder_sha256:
            weights = _read_checked(run, f"{folder}/{_ENCODER}", card.encoder_sha256)
            encoder = encoder_from_bytes(architecture, weights)
    except (DataError, UserError):
        raise
    except ValueError as error:
        raise UserError(f"{run.uri}: {error}; train again") from None
    return Model(card, *networks, encoder)


def _read_checked(run: Store, path: str, sha256: str) -> bytes:
    payload = run.read_bytes(path)
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise UserError(f"{run.url(path)} does not match its sha256 in model.json; train again")
    return payload


def _card(folder: str) -> str:
    return f"{folder}/model.json"
