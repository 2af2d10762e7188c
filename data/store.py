"""One way to reach files, whether they lie in a folder or in an S3 bucket."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)

from data.errors import DataError

_S3 = "s3://"
_FILE = "file://"
_TEMPORARY_PREFIX = ".blemish-"
_TEMPORARY_SUFFIX = ".part"

# Each request is tried twice by botocore and twice by s3fs: a silent host costs about 4 * 3 s.
_CONNECT_TIMEOUT_S = 3
_READ_TIMEOUT_S = 15
_ATTEMPTS = 2

_FAILURES = (OSError, BotoCoreError, ClientError, aiohttp.ClientError)
_UNREACHABLE = (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError, TimeoutError)
_REFUSED = (PermissionError, NoCredentialsError, PartialCredentialsError)


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
        endpoint_url = _endpoint_url()
        config = {
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
            "retries": {"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        }
        if endpoint_url:
            # Many S3-compatible servers reject botocore's trailing checksums or store them as data.
            config["request_checksum_calculation"] = "when_required"
        # Without the listing cache another process's new objects are seen at once.
        filesystem = fsspec.filesystem(
            "s3", endpoint_url=endpoint_url, config_kwargs=config, use_listings_cache=False
        )
        filesystem.retries = _ATTEMPTS
        return filesystem, self.uri.removeprefix(_S3)

    def read_bytes(self, path: str) -> bytes:
        """Return one whole object."""
        with self._reaching("reading", path) as (filesystem, location):
            return bytes(filesystem.cat_file(location))

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

    def list(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Return the sorted names, relative to the store, of all objects at any depth.

        Objects that are still being written are left out.

        Args:
            prefix: what a name starts with, such as `scores/` or `scores/part-`.
            suffix: what a name ends with, such as `.tar`.
        """
        folder = prefix.rpartition("/")[0]
        with self._reaching("listing", folder) as (filesystem, location):
            found = filesystem.find(location)
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

    @contextmanager
    def _reaching(self, action: str, path: str) -> Iterator[tuple[Any, str]]:
        """Open the file system and turn its failures into one clear message."""
        url = self.url(path)
        try:
            yield self.filesystem()[0], url.removeprefix(_S3)
        except _FAILURES as error:
            raise DataError(_explain(action, url, error)) from error


def _endpoint_url() -> str | None:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if url and not url.startswith(("http://", "https://")):
        raise DataError(f"AWS_ENDPOINT_URL={url!r} has no scheme; write http://{url} or https://")
    return url


def _explain(action: str, url: str, error: BaseException) -> str:
    """Say what failed, why, and what to look at."""
    if isinstance(error, FileNotFoundError):
        return f"{action} {url} failed: no such object, folder or bucket; check the location"
    reason = " ".join(str(error).split()) or type(error).__name__
    is_s3 = url.startswith(_S3)
    if is_s3 and isinstance(error, _UNREACHABLE):
        endpoint = _endpoint_url() or "not set (AWS itself)"
        fix = f"check that the server is up and AWS_ENDPOINT_URL, now {endpoint}"
    elif is_s3 and isinstance(error, _REFUSED):
        fix = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    elif is_s3:
        fix = "check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the bucket"
    else:
        fix = "check the path, its permissions and the free space"
    return f"{action} {url} failed: {reason}; {fix}"


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
