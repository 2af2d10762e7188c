"""One way to reach files, whether they lie in a folder or in an S3 bucket."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from data.errors import DataError
from data.s3 import ATTEMPTS, FAILURES, client_options, endpoint_url, explain, object_chunks

_S3 = "s3://"
_FILE = "file://"
_TEMPORARY_PREFIX = ".blemish-"
_TEMPORARY_SUFFIX = ".part"
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Store:
    """A folder of objects, local or on S3.

    It holds only its address, so it may be pickled and sent to other processes; the connection
    is opened on first use in each process. S3 follows the standard AWS variables; every method
    raises `DataError` when the store cannot be reached or refuses.

    Attributes:
        uri: `s3://bucket/prefix`, `file:///folder` or a path. A path is made absolute.
    """

    uri: str

    def __post_init__(self) -> None:
        """Bring the address to its one normal form."""
        uri = self.uri.removeprefix(_FILE)
        if uri.startswith(_S3):
            uri = uri.rstrip("/")
            if not uri[len(_S3) :].partition("/")[0]:
                raise DataError(f"store {self.uri!r} names no bucket; write s3://bucket/prefix")
        elif not uri or "://" in uri:
            raise DataError(
                f"store {self.uri!r} is not supported; use s3://bucket/prefix or a path"
            )
        else:
            uri = os.path.abspath(os.path.expanduser(uri))
        object.__setattr__(self, "uri", uri)

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine's file system."""
        return not self.uri.startswith(_S3)

    def child(self, *parts: str) -> "Store":
        """Return the store of a sub-folder.

        Raises:
            DataError: if a part is absolute or climbs with `..`.
        """
        return Store(self.url("/".join(parts)))

    def url(self, path: str = "") -> str:
        """Return the full location of an object, as shown to people.

        Raises:
            DataError: if `path` is absolute or climbs with `..`, and so could leave the store.
        """
        if path.startswith("/") or ".." in path.split("/"):
            raise DataError(f"path {path!r} leaves the store {self.uri}; use a relative path")
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    def local_path(self, path: str = "") -> Path:
        """Return the location of an object as a path.

        Raises:
            DataError: if the store is not local.
        """
        if not self.is_local:
            raise DataError(f"store {self.uri} is not a local folder; give a path")
        return Path(self.url(path))

    def filesystem(self) -> tuple[Any, str]:
        """Return the fsspec file system and this store's root within it.

        fsspec keeps one instance per process and thread, so this is cheap after the first call.
        """
        if self.is_local:
            return fsspec.filesystem("file"), self.uri
        # Without the listing cache another process's new objects are seen at once.
        filesystem = fsspec.filesystem(
            "s3",
            endpoint_url=endpoint_url(),
            config_kwargs=client_options(),
            use_listings_cache=False,
        )
        filesystem.retries = ATTEMPTS
        return filesystem, self.uri.removeprefix(_S3)

    def read_bytes(self, path: str) -> bytes:
        """Return one whole object."""
        return b"".join(self.read_chunks(path))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from byte `start` on, fewer where it ends before."""
        return b"".join(self.read_chunks(path, start, length)) if length else b""

    def read_chunks(self, path: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield an object from byte `start` on in pieces, all of one version of the object.

        Args:
            path: the object.
            start: first byte.
            length: most bytes to read; None reads to the end.
        """
        with self._reaching("reading", path, connect=False) as (_, location):
            if self.is_local:
                yield from _file_chunks(Path(location), start, length)
            else:
                # One GET of our own: s3fs puts a large object together from several requests,
                # which may see different versions of it, and moves half as many bytes a second.
                yield from object_chunks(location, start, length)

    def write_bytes(self, path: str, payload: bytes) -> None:
        """Write one object atomically: a reader sees the old object or the whole new one."""
        with self._reaching("writing", path) as (filesystem, location):
            if self.is_local:
                _replace_file(Path(location), payload)
            else:
                filesystem.pipe_file(location, payload)

    def exists(self, path: str = "") -> bool:
        """Return whether there is an object or a folder at `path`."""
        with self._reaching("looking for", path) as (filesystem, location):
            try:
                filesystem.info(location)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def size(self, path: str) -> int:
        """Return the size of an object in bytes."""
        with self._reaching("looking for", path) as (filesystem, location):
            return int(filesystem.info(location)["size"])

    def sizes(self) -> dict[str, int]:
        """Return the sizes of all objects at any depth by their names, bytes."""
        with self._reaching("listing", "") as (filesystem, location):
            if self.is_local:
                paths = {name: Path(location, name) for name in self.list()}
                return {name: path.stat().st_size for name, path in paths.items() if path.exists()}
            found = filesystem.find(location, detail=True)
        return {
            str(name).removeprefix(location).lstrip("/"): int(row["size"])
            for name, row in found.items()
        }

    def list(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Return the sorted names, relative to the store, of all objects at any depth.

        Objects that are still being written are left out.

        Args:
            prefix: what a name starts with, such as `scores/` or `scores/part-`.
            suffix: what a name ends with, such as `.tar`.
        """
        folder = prefix.rpartition("/")[0]
        with self._reaching("listing", folder) as (filesystem, location):
            found = list(_files_below(location)) if self.is_local else filesystem.find(location)
        root = self.uri.removeprefix(_S3).rstrip("/") + "/"
        names = (str(name).removeprefix(root) for name in found if str(name).startswith(root))
        return sorted(
            name
            for name in names
            if name.startswith(prefix) and name.endswith(suffix) and not _is_temporary(name)
        )

    def delete(self, path: str) -> None:
        """Delete one object; one that is not there is no error."""
        with self._reaching("deleting", path) as (filesystem, location):
            try:
                filesystem.rm_file(location)
            except FileNotFoundError:
                return

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all that lies in it; one that is not there is no error."""
        with self._reaching("deleting", path) as (filesystem, location):
            try:
                filesystem.rm(location, recursive=True)
            except FileNotFoundError:
                return

    def delete_unfinished(self) -> None:
        """Delete what writers that were killed left in a local folder; nobody may be writing."""
        if self.is_local:
            leftovers = f"{_TEMPORARY_PREFIX}*{_TEMPORARY_SUFFIX}"
            for path in Path(self.uri).rglob(leftovers):
                path.unlink(missing_ok=True)

    @contextmanager
    def _reaching(
        self, action: str, path: str, *, connect: bool = True
    ) -> Iterator[tuple[Any, str]]:
        """Open the file system and turn its failures into one clear message."""
        url = self.url(path)
        try:
            yield self.filesystem()[0] if connect else None, url.removeprefix(_S3)
        except FAILURES as error:
            raise explain(action, url, error) from error


def _files_below(folder: str) -> Iterator[str]:
    """Yield all files at any depth, and those elsewhere that links lead to.

    Links that lead to what is listed anyway are left out, so that no image stands there twice.

    Raises:
        OSError: where a folder cannot be listed; one that is not there holds nothing.
    """
    yield from _walk(folder, [os.path.realpath(folder)], set(), set())


def _walk(folder: str, roots: list[str], entered: set[str], linked: set[str]) -> Iterator[str]:
    """Yield the files below a folder, without those below the roots that links lead to.

    Args:
        folder: where to look.
        roots: folders that are listed wholly; those that links lead to are added.
        entered: folders listed so far, none of which is a link.
        linked: files that links led to so far.
    """
    here = os.path.realpath(folder)
    entered.add(here)
    try:
        with os.scandir(folder) as listed:
            # What a link leads to may lie beside it.
            entries = sorted(listed, key=lambda entry: (entry.is_symlink(), entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        # Every disk has it at its root, and only root may look inside.
        if entry.name == "lost+found":
            continue
        is_folder, real = _is_folder(entry), os.path.join(here, entry.name)
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
        if real in linked:
            continue
        if entry.is_symlink() and os.path.exists(real):
            if any(f"{real}/".startswith(f"{root.rstrip('/')}/") for root in roots):
                continue
            if is_folder:
                roots.append(real)
            else:
                linked.add(real)
        if not is_folder:
            yield entry.path
        elif real not in entered:
            yield from _walk(entry.path, roots, entered, linked)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether there is a folder to enter."""
    try:
        return entry.is_dir()
    # A link that leads to itself, or to where nobody may look.
    except OSError:
        return False


def _file_chunks(path: Path, start: int, length: int | None) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        left = length
        while left is None or left > 0:
            piece = file.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
            if not piece:
                return
            yield piece
            left = None if left is None else left - len(piece)


def _is_temporary(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith(_TEMPORARY_PREFIX) and base.endswith(_TEMPORARY_SUFFIX)


def _replace_file(target: Path, payload: bytes) -> None:
    """Write beside the target, force it to disk, then rename over the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        dir=target.parent, prefix=_TEMPORARY_PREFIX, suffix=_TEMPORARY_SUFFIX
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; other users of a shared folder must be able to read ours.
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
