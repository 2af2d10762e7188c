"""Shards: WebDataset tar files, written reproducibly and read without losing anything silently."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from webdataset.writer import TarWriter

from data.dataset import ShardInfo
from data.errors import DataError
from data.sample import Image8, Label, Mask, Sample, Split, Tile, decode_image, encode_png

_BLOCK_BYTES = 512
_IMAGE_MEMBERS = ("png", "jpg", "jpeg", "webp")
_MASK_MEMBER = "mask.png"


class _Facts(BaseModel):
    """The json member of a sample."""

    model_config = ConfigDict(frozen=True)

    label: Label
    source: str
    height: int
    width: int
    channels: int
    group: str
    kind: str
    split: Split
    has_mask: bool
    tile: Tile | None = None


@dataclass(frozen=True)
class Damage:
    """A sample that could not be read.

    Attributes:
        key: the sample's key, or `<shard path>#<ordinal>` where even the key is lost.
        reason: what is wrong, for people.
        source: where the image came from, where that is known.
    """

    key: str
    reason: str
    source: str = ""


@dataclass(frozen=True)
class ShardContents:
    """All that is in a shard.

    Attributes:
        samples: every sample that decodes, in the shard's order.
        damage: one row for every sample that does not.
        checksum_ok: False if the bytes are not those the packer wrote.
    """

    samples: list[Sample]
    damage: list[Damage]
    checksum_ok: bool


@dataclass
class _Members:
    """The members found for one key, by extension, and the first thing wrong with them."""

    payloads: dict[str, bytes] = field(default_factory=dict)
    fault: str | None = None


class ShardWriter:
    """A shard that grows sample by sample, held in memory only as it is encoded.

    It is a tar file of `<key>.png`, `<key>.json` and, where known, `<key>.mask.png`. The same
    samples in the same order give the same bytes.
    """

    def __init__(self) -> None:
        """See the class."""
        self.num_samples = 0
        self._buffer = io.BytesIO()
        self._writer = TarWriter(
            self._buffer, encoder=False, user="", group="", mode=0o444, mtime=0
        )

    def add(self, sample: Sample) -> None:
        """Encode a sample and append it."""
        self._writer.write({"__key__": sample.key, **_encode(sample)})
        self.num_samples += 1

    def close(self) -> bytes:
        """Return the whole shard; nothing can be added afterwards."""
        self._writer.close()
        return self._buffer.getvalue()


def write_shard(samples: Iterable[Sample]) -> bytes:
    """Return the shard of these samples, see `ShardWriter`."""
    writer = ShardWriter()
    for sample in samples:
        writer.add(sample)
    return writer.close()


def read_shard(payload: bytes, expected: ShardInfo | None = None) -> ShardContents:
    """Read every readable sample of a shard and account for all others.

    With `expected`, samples and damage together are never fewer than `expected.samples`,
    whatever happened to the bytes; they are more only if the shard is not the one indexed, and
    then `checksum_ok` is False.

    Args:
        payload: the tar file.
        expected: what the data set's index says about it.
    """
    samples, damage = [], []
    for key, members in _group(payload).items():
        try:
            samples.append(_decode(key, members))
        except DataError as error:
            damage.append(Damage(re.sub(r"[^A-Za-z0-9_-]", "_", key), str(error)))
    if expected is None:
        return ShardContents(samples, damage, checksum_ok=True)
    reason = f"lost: the shard holds fewer samples than the {expected.samples} of dataset.json"
    lost = range(len(samples) + len(damage), expected.samples)
    damage += [Damage(f"{expected.path}#{ordinal}", reason) for ordinal in lost]
    checksum_ok = hashlib.sha256(payload).hexdigest() == expected.sha256
    return ShardContents(samples, damage, checksum_ok)


def _encode(sample: Sample) -> dict[str, bytes]:
    """Return the members of a sample by extension."""
    height, width, channels = sample.image.shape
    # What `_Facts` reads back.
    facts = {
        "label": sample.label,
        "source": sample.source,
        "height": height,
        "width": width,
        "channels": channels,
        "group": sample.group,
        "kind": sample.kind,
        "split": sample.split,
        "has_mask": sample.mask is not None,
    }
    if sample.tile:
        facts["tile"] = vars(sample.tile)
    members = {
        "json": json.dumps(facts, sort_keys=True).encode(),
        "png": encode_png(sample.image),
    }
    if sample.mask is not None:
        members[_MASK_MEMBER] = encode_png(sample.mask[:, :, None].astype(np.uint8) * 255)
    return members


def _group(payload: bytes) -> dict[str, _Members]:
    """Collect the members of each key, keeping the order of the keys in the tar file."""
    groups: dict[str, _Members] = {}
    for info, content in _walk(payload):
        folder, slash, base = info.name.rpartition("/")
        stem, _, extension = base.partition(".")
        members = groups.setdefault(folder + slash + stem, _Members())
        if not info.isreg():
            members.fault = members.fault or f"member {info.name!r} is not a file"
        elif extension in members.payloads:
            members.fault = members.fault or f"member {info.name!r} appears twice"
        elif len(content) < info.size:
            members.fault = members.fault or f"member {info.name!r} is cut off"
        members.payloads[extension] = content
    return groups


def _walk(payload: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield each member's header and content.

    The readers of tarfile and webdataset take a broken header for the end of the archive and
    drop what follows. This one goes on to the next block that is a header.
    """
    offset = 0
    while offset + _BLOCK_BYTES <= len(payload):
        block = payload[offset : offset + _BLOCK_BYTES]
        offset += _BLOCK_BYTES
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            continue
        if info.size < 0:
            continue
        yield info, payload[offset : offset + info.size]
        offset += -(-info.size // _BLOCK_BYTES) * _BLOCK_BYTES


def _decode(key: str, members: _Members) -> Sample:
    """Build the sample, or raise `DataError` with what is wrong."""
    if members.fault:
        raise DataError(members.fault)
    payloads = members.payloads
    if "json" not in payloads:
        raise DataError("its json member is missing")
    try:
        facts = _Facts.model_validate_json(payloads["json"])
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"its json member is invalid: {field_name}: {first['msg']}") from error
    image_member = next((name for name in _IMAGE_MEMBERS if name in payloads), None)
    if image_member is None:
        raise DataError("its image member is missing")
    image = decode_image(payloads[image_member])
    told = (facts.height, facts.width, facts.channels)
    if image.shape != told:
        raise DataError(f"image is {list(image.shape)}, its json says {list(told)}")
    return Sample(
        key=key,
        image=image,
        label=facts.label,
        source=facts.source,
        group=facts.group,
        kind=facts.kind,
        split=facts.split,
        mask=_decode_mask(payloads, facts, image),
        tile=facts.tile,
    )


def _decode_mask(payloads: dict[str, bytes], facts: _Facts, image: Image8) -> Mask | None:
    if not facts.has_mask:
        return None
    if _MASK_MEMBER not in payloads:
        raise DataError("its mask member is missing")
    mask: Mask = decode_image(payloads[_MASK_MEMBER])[:, :, 0] > 127
    if mask.shape != image.shape[:2]:
        raise DataError(f"mask is {list(mask.shape)}, its image {list(image.shape[:2])}")
    return mask
