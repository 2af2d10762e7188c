"""The index of a packed data set: `dataset.json`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from data.errors import DataError
from data.preparation import (
    ALL_LEVELS,
    Intensity,
    Level,
    Mode,
    Preparation,
    Reference,
    Resolution,
)
from data.sample import Label, Split
from data.store import Store

INDEX_NAME = "dataset.json"


class ShardInfo(BaseModel):
    """What the packer knows about one shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="location relative to dataset.json")
    split: Split
    resolution: Resolution = Field(description="image side, pixels")
    samples: PositiveInt = Field(description="number of samples")
    bytes: PositiveInt = Field(description="size, bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="digest of the whole shard")


class DatasetIndex(BaseModel):
    """What is in a packed data set, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    channels: Literal[1, 3] = Field(description="1 grey, 3 RGB")
    resolution: Resolution = Field(description="native packed image side, pixels")
    resolutions: tuple[Resolution, ...] = Field(description="the pyramid, ascending, pixels")
    shards: tuple[ShardInfo, ...]
    labels: dict[Split, dict[Label, NonNegativeInt]] = Field(
        description="samples by believed label"
    )
    images: dict[Split, dict[Label, NonNegativeInt]] | None = Field(
        default=None, description="images, not tiles, by believed label; older indexes have none"
    )
    kinds: dict[Split, dict[str, NonNegativeInt]] = Field(description="samples by kind")
    seed: NonNegativeInt
    contamination: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="true abnormal fraction of train-normal, where a study knows it"
    )
    source: str = ""
    mode: Mode = "whole"
    tile_overlap: NonNegativeInt = 0
    levels: tuple[Level, Level] = ALL_LEVELS
    intensity: Intensity = "none"
    intensity_reference: Reference | None = None
    num_quarantined: NonNegativeInt = Field(
        default=0, description="images left out because they could not be used: quarantine.jsonl"
    )

    @property
    def preparation(self) -> Preparation:
        """How the pictures were prepared."""
        return Preparation(**{name: getattr(self, name) for name in Preparation.model_fields})

    def shards_of(self, split: Split, resolution: int | None = None) -> tuple[ShardInfo, ...]:
        """Return a split's shards, in order, at one resolution (None: the native one).

        Shard i holds the same samples in the same order at every resolution.
        """
        wanted = self.resolution if resolution is None else resolution
        return tuple(s for s in self.shards if s.split == split and s.resolution == wanted)

    def num_samples(self, split: Split) -> int:
        """Return the number of samples in a split."""
        return sum(shard.samples for shard in self.shards_of(split))


def load_index(store: Store) -> DatasetIndex:
    """Read the index of the data set packed in `store`.

    Raises:
        DataError: if there is none, or it is not one this version understands.
    """
    url = store.url(INDEX_NAME)
    if not store.exists(INDEX_NAME):
        raise DataError(f"{url} does not exist; check the location or pack a data set there first")
    payload = store.read_bytes(INDEX_NAME)
    try:
        return DatasetIndex.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{url} is not a data set index of schema_version=1: {field}: {first['msg']}; "
            "pack the data again with this version"
        ) from error


def save_index(store: Store, index: DatasetIndex) -> None:
    """Write the index; until then the shards around it are no data set."""
    store.write_bytes(INDEX_NAME, (index.model_dump_json(indent=1) + "\n").encode())
