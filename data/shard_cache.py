"""Shards as local files: read in place where they are local, fetched and kept where they are not.

The cache folder is shared by all processes of a machine. A shard's file is named by its sha256 and
appears whole, by a rename, after its digest was checked; it is checked once more by each process
that finds it there. A lock file lets one process fetch a shard while the others wait for it. When
the folder or its disk is full, the files used longest ago go first; whoever has one open reads on
undisturbed.
Files of other names are left alone.
"""

import errno
import fcntl
import functools
import hashlib
import math
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data.dataset import ShardInfo
from data.errors import DataError, LostDataError, StoreError, StoreUnavailableError, disk_error
from data.patience import resumed
from data.store import Store

_HASH_BYTES = 2**20
_NAME_CHARACTERS = 64
_UNFINISHED = ".blemish-"
_SAME_OUTAGE_S = 5.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class ShardCache:
    """Opens the shards of one data set as local files.

    Args:
        store: where the data set lies.
        folder: cache folder for shards of a remote store; empty means a folder of this user's in
            the system's temporary one.
        limit_bytes: most bytes the folder holds, not counting shards being fetched.
        retry_s: how long a store that does not answer is asked again before giving up, seconds.
    """

    def __init__(
        self, store: Store, *, folder: str = "", limit_bytes: int = 2**34, retry_s: float = 120.0
    ) -> None:
        """See the class."""
        self.store = store
        self.limit_bytes = limit_bytes
        self._retry_s = retry_s
        self._given_up_s = -math.inf
        self._verified: set[str] = set()
        self._folder = None if store.is_local else _own_folder(folder)

    def open(self, shard: ShardInfo) -> BinaryIO:
        """Open a shard whose bytes are those the packer wrote, fetching it first if need be.

        Raises:
            LostDataError: if it is missing or has another size or sha256 than dataset.json says.
            StoreError: if the store cannot be reached, or the cache's disk refuses.
            DataError: if the shard is larger than the cache.
        """
        if self._folder is None:
            return self._open_local(self.store.local_path(shard.path), shard)
        # Another process may delete the file between the look and the opening.
        for _ in range(3):
            target = self._folder / f"{shard.sha256}.tar"
            try:
                # Somebody may have cleared the folder away, too.
                _own_folder(str(self._folder))
                return (
                    self._open_kept(target, shard)
                    if target.exists()
                    else self._fetch(target, shard)
                )
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreError(
                    f"keeping {shard.path} in the cache {self._folder} failed: {error}; free space "
                    "there, or set data.cache_dir and data.cache_gib"
                ) from error
        raise DataError(f"{target} vanishes as soon as it is written; raise data.cache_gib")

    def _open_local(self, path: Path, shard: ShardInfo) -> BinaryIO:
        try:
            file = path.open("rb", buffering=0)
            try:
                self._verify(file, shard)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise disk_error(f"reading {path}", error) from error
        return file

    def _open_kept(self, target: Path, shard: ShardInfo) -> BinaryIO:
        file = target.open("rb", buffering=0)
        try:
            self._verify(file, shard)
        except LostDataError:
            # Torn by a power cut, or damaged on this disk: the store has it whole.
            file.close()
            target.unlink(missing_ok=True)
            raise FileNotFoundError(target) from None
        os.utime(file.fileno())
        return file

    def _verify(self, file: BinaryIO, shard: ShardInfo) -> None:
        if shard.sha256 in self._verified:
            return
        digest, size = hashlib.sha256(), 0
        buffer = bytearray(_HASH_BYTES)
        while count := os.preadv(file.fileno(), [buffer], size):
            digest.update(memoryview(buffer)[:count])
            size += count
        self._accept(shard, digest.hexdigest(), size)

    def _accept(self, shard: ShardInfo, digest: str, size: int) -> None:
        url = self.store.url(shard.path)
        if size != shard.bytes:
            raise LostDataError(f"{url} has {size} bytes, dataset.json says {shard.bytes}")
        if digest != shard.sha256:
            raise LostDataError(f"{url} has another sha256 than dataset.json says")
        self._verified.add(shard.sha256)

    def _fetch(self, target: Path, shard: ShardInfo) -> BinaryIO:
        """Fetch and open a shard, unless another process has just fetched it."""
        assert self._folder
        bucket = shard.sha256[:2]
        with _locked(self._folder / f"{bucket}.lock"):
            if target.exists():
                return self._open_kept(target, shard)
            # Whoever wrote these held the lock, so they belong to a process that is gone.
            for orphan in self._folder.glob(f"{_UNFINISHED}{bucket}-*.part"):
                orphan.unlink(missing_ok=True)
            while True:
                try:
                    return self._download(target, shard)
                except OSError as error:
                    # Others fill the disk, too.
                    if error.errno not in _NO_SPACE or not self._give_up(shard.bytes):
                        raise

    def _download(self, target: Path, shard: ShardInfo) -> BinaryIO:
        assert self._folder
        if shard.bytes > self.limit_bytes:
            raise DataError(
                f"a shard of {shard.bytes} bytes does not fit into the cache of "
                f"{self.limit_bytes} bytes; raise data.cache_gib or pack smaller shards"
            )
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f"{_UNFINISHED}{shard.sha256[:2]}-", suffix=".part"
        )
        try:
            # Buffered: a plain write to a disk that is nearly full may keep a part and say nothing.
            with os.fdopen(handle, "wb") as file:
                digest, size = hashlib.sha256(), 0
                for chunk in self._chunks(shard.path):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    if size > shard.bytes:
                        break
            self._accept(shard, digest.hexdigest(), size)
            # In one step: downloads that end together must not count on the same room, nor delete
            # what another has not opened yet.
            with _locked(self._folder / "room.lock"):
                self._make_room(size)
                os.replace(name, target)
                return target.open("rb", buffering=0)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _chunks(self, path: str) -> Iterator[bytes]:
        """Read an object in spite of an outage; many that wait for the same one wait once."""
        read, start = functools.partial(self.store.read_chunks, path), 0
        try:
            if time.monotonic() - self._given_up_s < _SAME_OUTAGE_S:
                # Somebody has just waited in vain: whoever comes next asks once.
                for chunk in read(0):
                    start += len(chunk)
                    yield chunk
                    break
            yield from resumed(read, start=start, retry_s=self._retry_s)
        except StoreUnavailableError:
            self._given_up_s = time.monotonic()
            raise

    def _make_room(self, incoming_bytes: int) -> None:
        """Delete the files used longest ago until `incoming_bytes` more fit."""
        used = sum(size for _, size, _ in self._kept())
        self._delete_oldest(used + incoming_bytes - self.limit_bytes)

    def _give_up(self, num_bytes: int) -> bool:
        """Delete the files used longest ago, `num_bytes` of them; returns whether there was one."""
        assert self._folder
        with _locked(self._folder / "room.lock"):
            return self._delete_oldest(num_bytes)

    def _delete_oldest(self, num_bytes: int) -> bool:
        freed = 0
        for _, size, path in self._kept():
            if freed >= num_bytes:
                break
            path.unlink(missing_ok=True)
            freed += size
        return freed > 0

    def _kept(self) -> list[tuple[int, int, Path]]:
        """When each file was last used, its size and its place; the one used longest ago first."""
        assert self._folder
        kept = []
        for path in self._folder.glob(f"{'[0-9a-f]' * _NAME_CHARACTERS}.tar"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            kept.append((facts.st_mtime_ns, facts.st_size, path))
        return sorted(kept)


_LOCKS: dict[Path, threading.Lock] = {}
_LOCKS_GUARD = threading.Lock()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock against the threads of this process and against other processes.

    The system frees the lock of a process that dies.
    """
    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(path, threading.Lock())
    with lock, path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _own_folder(folder: str) -> Path:
    """Make the cache folder, and refuse one that somebody else could write to."""
    path = Path(folder or Path(tempfile.gettempdir()) / f"blemish-shards-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.stat()
    except OSError as error:
        raise DataError(f"data.cache_dir={path} cannot be made: {error.strerror}") from error
    if facts.st_uid != os.getuid() or facts.st_mode & stat.S_IWOTH:
        raise DataError(
            f"data.cache_dir={path} belongs to another user or is open to all; choose another"
        )
    return path
