"""Single images and masks out of a shard on this machine, without reading the rest of it."""

import os
from collections.abc import Iterator
from typing import BinaryIO

from data.dataset import ShardInfo
from data.errors import DataError, LostDataError, disk_error

_IMAGE_MEMBER = "png"
_FACTS_MEMBER = "json"
_MASK_MEMBER = "mask.png"
_MOST_MEMBERS = 3
"""Members of one sample: image, facts, mask."""
_BLOCK_BYTES = 512
_PLAIN_FILE = b"0"

Place = tuple[int, int]
"""Offset and size of a member's content, bytes."""


class ShardFile:
    """Random access to the images and masks of one shard.

    Args:
        file: the shard, opened unbuffered; this object closes it.
        shard: what the index says about it.

    Raises:
        LostDataError: if the file does not hold the samples the index promises.
    """

    def __init__(self, file: BinaryIO, shard: ShardInfo) -> None:
        """See the class."""
        self._file = file
        self._shard = shard
        try:
            self._places = _sample_places(file, shard)
        except BaseException:
            file.close()
            raise

    def expect(self, sample: int) -> None:
        """Tell the system that a sample will be asked for soon, so that disks seek in parallel."""
        (offset, size), _ = self._places[sample]
        os.posix_fadvise(self._file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)

    def payload(self, sample: int) -> bytes:
        """Return the encoded image of a sample, counted in the shard's order.

        Raises:
            DataError: if the disk refuses; a `LostDataError` where it is broken there.
        """
        image, _ = self._places[sample]
        return self._read(image)

    def mask(self, sample: int) -> bytes | None:
        """Return the encoded mask of a sample; None where there is none.

        Raises:
            DataError: if the disk refuses; a `LostDataError` where it is broken there.
        """
        _, mask = self._places[sample]
        return self._read(mask) if mask else None

    @property
    def is_deleted(self) -> bool:
        """Whether the file has no name any more and only keeps its space."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, place: Place) -> bytes:
        offset, size = place
        try:
            return os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise disk_error(f"reading byte {offset} of {self._shard.path}", error) from error


def _sample_places(file: BinaryIO, shard: ShardInfo) -> list[tuple[Place, Place | None]]:
    """Return where each sample's image lies, and its mask if it has one."""
    found: dict[str, dict[str, Place]] = {}
    most = _MOST_MEMBERS * shard.samples
    try:
        for count, (name, offset, size) in enumerate(_members(file), start=1):
            key, _, extension = name.partition(".")
            if count > most or extension in found.get(key, {}):
                raise LostDataError(f"{shard.path} holds an unexpected member {name!r}")
            found.setdefault(key, {})[extension] = (offset, size)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise LostDataError(f"{shard.path} is not a readable tar file: {error}") from error
    for key, members in found.items():
        for wanted in (_IMAGE_MEMBER, _FACTS_MEMBER):
            if wanted not in members:
                raise LostDataError(f"{shard.path}: the {wanted} member of {key} is missing")
    if len(found) != shard.samples:
        raise LostDataError(
            f"{shard.path} holds {len(found)} samples, dataset.json says {shard.samples}"
        )
    return [(members[_IMAGE_MEMBER], members.get(_MASK_MEMBER)) for members in found.values()]


def _members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each plain file; tarfile takes several times as long.

    The sums in the headers are not looked at: the shard's sha256 covers them.

    Raises:
        ValueError: at a header that cannot be read or is of another kind, or at data cut off.
    """
    handle, begin = file.fileno(), 0
    end = os.fstat(handle).st_size
    while header := os.pread(handle, _BLOCK_BYTES, begin).rstrip(b"\0"):
        name, size = header[:100].rstrip(b"\0").decode(), int(header[124:136].strip(b"\0 "), 8)
        offset = begin + _BLOCK_BYTES
        if header[156:157] != _PLAIN_FILE or not 0 <= size <= end - offset:
            raise ValueError(f"{name!r} is not a whole file")
        yield name, offset, size
        begin = offset + -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
