"""From the bytes of an image file to what is said about it; for whoever asks image by image."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict

from cluster.assembly import Scored, assemble_images
from cluster.calibration import decide
from cluster.engine import Engine
from cluster.errors import UserError
from cluster.inspector import find_regions
from cluster.model_store import CARD, MODEL, Calibration, Model, ModelCard, load_model
from cluster.pictures import encode_map
from data.errors import DataError
from data.picture_header import MAX_PIXELS
from data.plain import prepare_picture
from data.preparation import Preparation
from data.sample import Sample
from data.store import Store


@dataclass(frozen=True)
class Picture:
    """An image to be examined.

    Attributes:
        payload: Bytes of an image file.
        key: Its key, 1-60 of `A-Za-z0-9_-`; random starts of the search depend on it.
        with_map: Whether its map is wanted.
    """

    payload: bytes
    key: str
    with_map: bool = False


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Region(_Answer):
    """A connected area of the map that stands out."""

    x: int
    """Left edge of its box, in pixels."""
    y: int
    """Upper edge of its box, in pixels."""
    width: int
    """Width of its box, in pixels."""
    height: int
    """Height of its box, in pixels."""
    area: int
    """Pixels that belong to it."""
    peak: float
    """Its strongest map value, as a share of the map's full scale."""


class Verdict(_Answer):
    """What is said about an image; numbers mean what the columns of an inspection's scores do."""

    key: str
    """Key of the image."""
    score: float
    """How abnormal it looks; higher is more so."""
    p_value: float
    """Share of normal validation images that look at least as abnormal (conformal)."""
    decision: str
    """normal, review or abnormal."""
    regions: tuple[Region, ...]
    """Areas that stand out, strongest first, in pixels of an image of this height and width."""
    residual: float
    """Mean difference of its pixels and those of the closest image the generator makes."""
    feature: float
    """Mean difference of their discriminator features."""
    logit: float
    """The discriminator's logit; lower is more abnormal."""
    height: int
    """Height of what was examined, in pixels: as sent for tiles, else the model's resolution."""
    width: int
    """Width of what was examined, in pixels."""
    tiles: int
    """Tiles it was cut into; 1 for a whole image."""
    model: str
    """Version of the model: sha256 of its weights."""
    map: str | None = None
    """If asked for: the map as a 16-bit grey PNG of that height and width, in base64."""


def preparation_of(card: ModelCard) -> Preparation:
    """How a model's images were prepared.

    Raises:
        UserError: If the model is older than that knowledge.
    """
    if card.preparation is None:
        raise UserError(
            f"{CARD} does not tell how images are prepared, it is of an older version; train again"
        )
    return card.preparation


class Examiner:
    """A calibrated model that is given image files.

    Args:
        model: A model that knows how its images were prepared.
        calibration: How it searches and decides.
        max_pixels: Most pixels an image may have, and those searched together beside it.
        device: What to compute on; None: a GPU if there is one.

    Raises:
        UserError: If the model is older than that knowledge.
    """

    def __init__(
        self,
        model: Model,
        calibration: Calibration,
        *,
        max_pixels: int = MAX_PIXELS,
        device: torch.device | None = None,
    ) -> None:
        self._preparation, self._max_pixels = preparation_of(model.card), max_pixels
        self._calibration, self._version = calibration, model.card.weights_sha256
        self._engine = Engine(
            model,
            calibration.search,
            seed=calibration.seed,
            fusion=calibration.fusion,
            device=device,
        )

    @classmethod
    def load(cls, run: Store, folder: str = MODEL) -> Self:
        """One that decides as the model's own calibration says.

        Raises:
            UserError: If there is no calibrated model.
        """
        model = load_model(run, folder)
        if model.card.calibration is None:
            raise UserError(f"the model in {run.url(folder)} is not calibrated")
        return cls(model, model.card.calibration)

    def examine(self, pictures: Sequence[Picture]) -> list[Verdict | DataError]:
        """Examine images; what is said of each depends on itself and its key alone.

        Images are searched together as long as their samples have no more than `max_pixels`
        pixels, so that memory does not grow with their number.

        Returns:
            For each image a verdict, or why it cannot be used.
        """
        answers: list[Verdict | DataError] = []
        part: list[tuple[Picture, list[Sample] | DataError]] = []
        num_pixels = 0
        for picture in pictures:
            found = self._prepare(picture)
            more = sum(s.image[..., 0].size for s in found) if isinstance(found, list) else 0
            if num_pixels + more > self._max_pixels:
                answers += self._examine(part)
                part, num_pixels = [], 0
            part.append((picture, found))
            num_pixels += more
        return answers + self._examine(part)

    def _examine(
        self, part: list[tuple[Picture, list[Sample] | DataError]]
    ) -> list[Verdict | DataError]:
        samples = [one for _, found in part if isinstance(found, list) for one in found]
        scored = iter(self._engine.score(samples))
        answers: list[Verdict | DataError] = []
        for picture, found in part:
            if isinstance(found, DataError):
                answers.append(found)
            else:
                # Apart from others: images of one key may stand side by side.
                (image,), _ = assemble_images(
                    [next(scored) for _ in found], self._preparation.tile_overlap
                )
                answers.append(self._verdict(image, with_map=picture.with_map))
        return answers

    def _prepare(self, picture: Picture) -> list[Sample] | DataError:
        try:
            return prepare_picture(
                picture.payload, picture.key, self._preparation, max_pixels=self._max_pixels
            )
        except DataError as error:
            return error

    def _verdict(self, image: Scored, *, with_map: bool) -> Verdict:
        scale, row = self._calibration.map_scale, image.row
        (decided,) = decide(self._calibration, [row["score"]])
        said: dict[str, Any] = row | decided
        said["regions"] = find_regions(image.map / scale)
        said["model"] = self._version
        if with_map:
            said["map"] = base64.b64encode(encode_map(image.map, scale)).decode()
        return Verdict.model_validate(said)
