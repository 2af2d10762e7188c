"""What an inspection reads, in units of work: the shards of a packed split, or plain images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.claims import check_apart
from cluster.config import Config
from cluster.errors import UserError
from cluster.inspection_files import unit_name
from cluster.model_store import CARD, ModelCard
from data.dataset import INDEX_NAME, DatasetIndex, ShardInfo, load_index
from data.errors import DataError, StoreError
from data.patience import PatientStore
from data.plain import plain_units, read_plain
from data.plan import Unit
from data.preparation import Preparation
from data.shards import Damage, ShardContents, read_shard
from data.store import Store


class Inputs(Protocol):
    """One unit of work; its outputs appear once and whole."""

    @property
    def name(self) -> str:
        """Name of the unit, unique within the job."""

    @property
    def source(self) -> str:
        """Where it lies, for people."""

    @property
    def num_inputs(self) -> int:
        """How many inputs must end in scores or in failed."""

    def read(self) -> ShardContents:
        """All samples, and a row for each input that is none."""


@dataclass(frozen=True)
class ShardInputs:
    """A shard of a packed data set."""

    dataset: Store
    shard: ShardInfo

    @property
    def name(self) -> str:
        """See `Inputs`."""
        return unit_name(self.shard)

    @property
    def source(self) -> str:
        """See `Inputs`."""
        return self.shard.path

    @property
    def num_inputs(self) -> int:
        """Samples that the index promises."""
        return self.shard.samples

    def read(self) -> ShardContents:
        """See `Inputs`."""
        path = self.shard.path
        try:
            # An absent shard reads as an empty one: each of its samples is accounted for as lost.
            payload = self.dataset.read_bytes(path) if self.dataset.exists(path) else b""
        except StoreError:
            raise
        # A disk that is broken there, or a file that nobody may read, takes no other shard along.
        except DataError as error:
            lost = [Damage(f"{path}#{n}", str(error)) for n in range(self.shard.samples)]
            return ShardContents([], lost, checksum_ok=False)
        return read_shard(payload, self.shard)


@dataclass(frozen=True)
class PlainInputs:
    """Some images of a folder or bucket."""

    unit: Unit
    preparation: Preparation

    @property
    def name(self) -> str:
        """See `Inputs`."""
        return self.unit.name

    @property
    def source(self) -> str:
        """See `Inputs`."""
        return self.unit.items[0].source

    @property
    def num_inputs(self) -> int:
        """Images, each with one tile at least."""
        return len(self.unit.items)

    def read(self) -> ShardContents:
        """See `Inputs`."""
        return read_plain(self.unit, self.preparation)


@dataclass(frozen=True)
class Inspected:
    """All that an inspection is about.

    Attributes:
        uri: Data set or folder.
        split: Split of the data set; empty for a folder.
        sha256: Digest of what says which inputs there are.
        units: All units of work.
        ignored: Files of a folder that are hidden or no images by their names.
        unit_images: Images of a folder in one unit; None for a data set, whose shards are units.
        tile_overlap: Least overlap of the tiles of an image, pixels; 0 for whole images.
    """

    uri: str
    split: str
    sha256: str
    units: tuple[Inputs, ...]
    ignored: tuple[str, ...] = ()
    unit_images: int | None = None
    tile_overlap: int = 0


def find_inputs(config: Config, card: ModelCard) -> Inspected:
    """Find what is to be inspected; reads no image.

    Raises:
        UserError: If model and images do not go together.
    """
    if config.inspect.source:
        return _plain_images(config, card)
    store = PatientStore(config.data.uri, config.data.retry_s)
    index, split = load_index(store), config.inspect.split
    for name in ("resolution", "channels"):
        packed, wanted = getattr(index, name), card.architecture[name]
        if packed != wanted:
            raise UserError(
                f"{config.data.uri} has {name}={packed}, the model in {config.run.dir} takes "
                f"{wanted}; pack the images as the model needs them"
            )
    _check_preparation(config, index, card)
    shards = index.shards_of(split)
    if not shards:
        raise UserError(f"{config.data.uri} has no images in split {split}")
    digest = hashlib.sha256(store.read_bytes(INDEX_NAME)).hexdigest()
    inputs = tuple(ShardInputs(store, shard) for shard in shards)
    return Inspected(store.uri, split, digest, inputs, tile_overlap=index.tile_overlap)


def _check_preparation(config: Config, index: DatasetIndex, card: ModelCard) -> None:
    """Refuse images at another scale, of size or of intensity, than those of the training.

    Raises:
        UserError: If they are.
    """
    if card.preparation is None:
        return
    for name in ("mode", "levels", "intensity", "intensity_reference"):
        packed, wanted = getattr(index.preparation, name), getattr(card.preparation, name)
        if packed != wanted:
            raise UserError(
                f"{config.data.uri} was packed with {name}={packed}, the images of the model in "
                f"{config.run.dir} with {wanted}; inspect the images as they lie (inspect.source), "
                "which prepares them as the model needs, or the data set the model was trained on"
            )


def _plain_images(config: Config, card: ModelCard) -> Inspected:
    preparation = card.preparation
    if preparation is None:
        raise UserError(
            f"{Store(config.run.dir).url(CARD)} does not tell how images are prepared, it is of an "
            "older version; train again, or pack the images and leave inspect.source empty"
        )
    # Else the pictures of one attempt would be inspected by the next.
    for field, place in (("run.dir", config.run.dir), ("inspect.dir", config.inspect.dir)):
        if place:
            check_apart(field, place, "inspect.source", config.inspect.source)
    store = PatientStore(config.inspect.source, config.data.retry_s)
    unit_images = config.inspect.unit_images
    units, others = plain_units(store, preparation, unit_images=unit_images)
    names = "\n".join(item.source for unit in units for item in unit.items)
    digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    inputs = tuple(PlainInputs(unit, preparation) for unit in units)
    return Inspected(
        store.uri,
        "",
        digest,
        inputs,
        ignored=tuple(others),
        unit_images=unit_images,
        tile_overlap=preparation.tile_overlap,
    )


def first_units(units: Sequence[Inputs], limit: int) -> list[Inputs]:
    """The first units, until they hold `limit` inputs; all of them for 0."""
    chosen, num_inputs = list[Inputs](), 0
    for unit in units:
        if limit and num_inputs >= limit:
            break
        chosen.append(unit)
        num_inputs += unit.num_inputs
    return chosen
