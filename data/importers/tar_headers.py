"""The members of a tar file in a store, found by reading little more than the headers."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from data.errors import DataError
from data.store import Store

MAX_MEMBERS = 200_000
"""Most members of one tar file."""

MAX_MEMBER_BYTES = 2**30
"""Most bytes of one member."""

_BLOCK_BYTES = 512
_WINDOW_BYTES = 2**18
_MAX_NAME_BYTES = 2**16
_ZEROS = bytes(_BLOCK_BYTES)


@dataclass(frozen=True)
class Member:
    """A file within a tar file, or a place where something is lost.

    Attributes:
        name: path within the tar file; empty where the header is lost.
        start: byte of the tar file at which the content starts.
        size: bytes of content.
        damage: what is wrong, or an empty string.
    """

    name: str
    start: int
    size: int
    damage: str = ""


class TarFile:
    """A tar file of which windows are read as they are asked for, one held at a time.

    Args:
        store: where it lies.
        path: its name there.
    """

    def __init__(self, store: Store, path: str) -> None:
        self.url = store.url(path)
        self.size = store.size(path)
        self._store, self._path = store, path
        self._start, self._window = 0, b""

    def read(self, start: int, length: int) -> bytes:
        """Return bytes of the file, fewer where it ends."""
        offset = start - self._start
        if not 0 <= offset <= offset + length <= len(self._window):
            if start >= self.size:
                return b""
            wanted = max(length, _WINDOW_BYTES)
            self._window = self._store.read_range(self._path, start, wanted)
            self._start = start
            offset = 0
        return self._window[offset : offset + length]


def members(tar: TarFile) -> Iterator[Member]:
    """Yield the files of a tar file in their order, and each place where one is lost.

    Readers of tar files take a broken header for the end; this one goes on to the next block
    that is a header. Memory does not grow with the file.

    Raises:
        DataError: if the file is hostile: links, devices, names that leave the folder, more
            than `MAX_MEMBERS` members, or a member above `MAX_MEMBER_BYTES`.
    """
    for count, member in enumerate(_walk(tar)):
        if count >= MAX_MEMBERS:
            raise DataError(f"{tar.url} has more than {MAX_MEMBERS} members; split it")
        yield member


def _walk(tar: TarFile) -> Iterator[Member]:
    offset, num_headers, lost_at, is_garbage, long_name = 0, 0, -1, False, ""
    while offset < tar.size:
        block = tar.read(offset, _BLOCK_BYTES)
        info = _header(block)
        if info is None:
            lost_at = offset if lost_at < 0 else lost_at
            is_garbage = is_garbage or block != _ZEROS
            offset += _BLOCK_BYTES
            continue
        if lost_at >= 0:
            yield Member("", lost_at, offset - lost_at, f"the tar header at byte {lost_at} is lost")
        lost_at, is_garbage, start = -1, False, offset + _BLOCK_BYTES
        num_headers += 1
        # Headers that name others make no member, so they need a limit of their own.
        if num_headers > 3 * MAX_MEMBERS:
            raise DataError(f"{tar.url} has more than {MAX_MEMBERS} members; split it")
        _check_kind(tar, info)
        if info.type in _NAMING:
            long_name = _long_name(tar, info, start) or long_name
        elif info.isreg():
            yield _member(tar, long_name or info.name, start, info.size)
        long_name = long_name if info.type in _NAMING else ""
        offset = start + -(-info.size // _BLOCK_BYTES) * _BLOCK_BYTES
    if lost_at < 0:
        yield Member("", offset, 0, "the tar file has no end mark: it is cut off")
    elif is_garbage:
        yield Member("", lost_at, tar.size - lost_at, f"the tar header at byte {lost_at} is lost")


_NAMING = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.SOLARIS_XHDTYPE)


def _header(block: bytes) -> tarfile.TarInfo | None:
    if block == _ZEROS:
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return info if info.size >= 0 else None


def _check_kind(tar: TarFile, info: tarfile.TarInfo) -> None:
    if not (info.isreg() or info.isdir() or info.type in _NAMING) or info.type == b"S":
        raise DataError(
            f"{tar.url}: {info.name!r} is a link, a device or of another unsafe kind "
            f"(type {info.type!r}); pack plain files only"
        )
    limit = _MAX_NAME_BYTES if info.type in _NAMING else MAX_MEMBER_BYTES
    if info.size > limit:
        raise DataError(f"{tar.url}: {info.name!r} says it has {info.size} bytes, allowed: {limit}")


def _long_name(tar: TarFile, info: tarfile.TarInfo, start: int) -> str:
    """Return the name that a GNU or pax header gives to the member after it."""
    content = tar.read(start, info.size)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    if info.type == tarfile.XGLTYPE:
        return ""
    name = ""
    while content:
        length, space, _ = content.partition(b" ")
        if not space or not length.isdigit() or len(length) > 5 or int(length) <= len(length) + 1:
            break
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size" or key.startswith(b"GNU.sparse"):
            raise DataError(f"{tar.url}: sparse files and members above 8 GiB are not supported")
    return name


def _member(tar: TarFile, name: str, start: int, size: int) -> Member:
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise DataError(f"{tar.url}: member {name!r} leaves the folder; use plain relative names")
    # Names that are no UTF-8 could not be written into any index.
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    damage = f"member {name!r} is cut off" if start + size > tar.size else ""
    return Member(name.removeprefix("./"), start, size, damage)
