"""The shard cache: whole or absent, bounded, shared by processes, patient with the store."""

import dataclasses
import errno
import hashlib
import io
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data import patience, shard_cache
from data.dataset import ShardInfo
from data.errors import DataError, LostDataError, StoreError, StoreUnavailableError
from data.pack import pack
from data.reader import SplitReader
from data.sample import Sample
from data.shard_cache import ShardCache
from data.store import Store


@dataclasses.dataclass(frozen=True)
class Remote(Store):
    """A store whose objects lie in a folder but which is not local to its readers."""

    requests: list[int] = dataclasses.field(default_factory=list, compare=False)
    faults: list[tuple[int, Exception]] = dataclasses.field(default_factory=list, compare=False)

    @property
    def is_local(self) -> bool:
        return False

    def read_chunks(self, path: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield pieces of 700 bytes; a fault is how many come first, and what then goes wrong."""
        self.requests.append(start)
        payload = Path(self.uri, path).read_bytes()[start:]
        pieces = [payload[i : i + 700] for i in range(0, len(payload), 700)]
        if self.faults:
            count, failure = self.faults.pop(0)
            yield from pieces[:count]
            raise failure
        yield from pieces


def _shard(folder: Path, number: int, size: int = 2000) -> ShardInfo:
    payload = hashlib.shake_128(bytes([number])).digest(size)
    path = folder / f"{number}.tar"
    path.write_bytes(payload)
    return ShardInfo(
        path=path.name,
        split="train-normal",
        resolution=4,
        samples=1,
        bytes=size,
        sha256=hashlib.sha256(payload).hexdigest(),
    )


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    (tmp_path / "store").mkdir()
    return Remote(str(tmp_path / "store"))


def _cache(remote: Store, tmp_path: Path, **options) -> ShardCache:
    return ShardCache(remote, folder=str(tmp_path / "cache"), **options)


def _kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").glob("*.tar"))


def test_a_shard_is_fetched_once_and_read_from_the_cache_by_others(remote, tmp_path) -> None:
    shard = _shard(Path(remote.uri), 1)
    for _ in range(2):
        with _cache(remote, tmp_path).open(shard) as file:
            assert file.read() == Path(remote.uri, shard.path).read_bytes()
    assert remote.requests == [0]
    assert _kept(tmp_path) == [f"{shard.sha256}.tar"]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_broken_transfer_goes_on_where_it_broke_off(remote, tmp_path) -> None:
    shard = _shard(Path(remote.uri), 1)
    remote.faults.extend((count, StoreUnavailableError("reset")) for count in (0, 1, 0, 1))
    _cache(remote, tmp_path).open(shard).close()
    assert remote.requests == [0, 0, 700, 700, 1400]


def test_patience_ends_and_leaves_nothing_behind(remote, tmp_path) -> None:
    shard = _shard(Path(remote.uri), 1)
    remote.faults.extend([(0, StoreUnavailableError("down"))] * 1000)
    with pytest.raises(StoreUnavailableError, match="down"):
        _cache(remote, tmp_path, retry_s=0.1).open(shard)
    assert len(remote.requests) > 1
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix in {".tar", ".part"}]
    remote.faults.clear()
    _cache(remote, tmp_path).open(shard).close()


def test_what_cannot_pass_is_not_asked_for_again(remote, tmp_path) -> None:
    shard = _shard(Path(remote.uri), 1)
    remote.faults.append((0, DataError("access denied")))
    with pytest.raises(DataError, match="access denied"):
        _cache(remote, tmp_path).open(shard)
    assert len(remote.requests) == 1


@pytest.mark.parametrize("change", [b"", b"x" * 2000, b"x" * 1999])
def test_other_bytes_than_the_index_says_are_lost_and_not_kept(remote, tmp_path, change) -> None:
    shard = _shard(Path(remote.uri), 1)
    Path(remote.uri, shard.path).write_bytes(change)
    expected = "another sha256" if len(change) == shard.bytes else f"{len(change)} bytes"
    with pytest.raises(LostDataError, match=expected):
        _cache(remote, tmp_path).open(shard)
    assert _kept(tmp_path) == []
    local = Store(remote.uri)
    with pytest.raises(LostDataError, match=expected):
        ShardCache(local).open(shard)


def test_a_torn_file_in_the_cache_is_fetched_anew(remote, tmp_path) -> None:
    shard = _shard(Path(remote.uri), 1)
    cache = _cache(remote, tmp_path)
    (tmp_path / "cache" / f"{shard.sha256}.tar").write_bytes(b"torn by a power cut")
    with cache.open(shard) as file:
        assert hashlib.sha256(file.read()).hexdigest() == shard.sha256


def test_the_file_used_longest_ago_goes_first_and_open_ones_are_read_on(remote, tmp_path) -> None:
    shards = [_shard(Path(remote.uri), n) for n in range(4)]
    cache = _cache(remote, tmp_path, limit_bytes=3 * 2000)
    files = [cache.open(shard) for shard in shards[:3]]
    for age, shard in enumerate((shards[1], shards[2], shards[0])):
        os.utime(tmp_path / "cache" / f"{shard.sha256}.tar", ns=(age, age))
    cache.open(shards[3]).close()
    names = {f"{shard.sha256}.tar" for shard in (shards[0], shards[2], shards[3])}
    assert set(_kept(tmp_path)) == names
    assert files[1].read() == Path(remote.uri, shards[1].path).read_bytes()
    for file in files:
        file.close()


def test_files_of_somebody_else_are_left_alone(remote, tmp_path) -> None:
    shard = _shard(Path(remote.uri), 1)
    cache = _cache(remote, tmp_path, limit_bytes=2000)
    names = ("backup.tar", f"{shard.sha256[:2]}-notes.part", f"{shard.sha256[:-1]}G.tar")
    for name in names:
        (tmp_path / "cache" / name).write_bytes(b"mine" * 1000)
    cache.open(shard).close()
    cache.open(_shard(Path(remote.uri), 2)).close()
    assert {path.name for path in (tmp_path / "cache").iterdir()} > set(names)
    assert not (tmp_path / "cache" / f"{shard.sha256}.tar").exists()


def test_deleted_shards_do_not_keep_their_space(remote, tmp_path) -> None:
    shape, split = (4, 4, 1), "train-normal"
    images = [np.full(shape, number, np.uint8) for number in range(9)]
    samples = [Sample(f"{n}", i, "normal", "", f"{n}", "", split) for n, i in enumerate(images)]
    index = pack(samples, Store(remote.uri), resolution=4, name="n", seed=0, shard_samples=1)
    cache = _cache(remote, tmp_path, limit_bytes=max(shard.bytes for shard in index.shards))
    reader = SplitReader(cache, index, split, 4, lanes=1, seed=0)
    assert len(reader.payloads(range(9))) == 9
    opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    reader.close()
    # The last one, and the one before it, which is closed when another shard is opened.
    assert len([path for path in opened if path.is_relative_to(tmp_path / "cache")]) <= 2


def test_opening_counts_as_use(remote, tmp_path) -> None:
    shards = [_shard(Path(remote.uri), n) for n in range(3)]
    cache = _cache(remote, tmp_path, limit_bytes=2 * 2000)
    for age, shard in enumerate(shards[:2]):
        cache.open(shard).close()
        os.utime(tmp_path / "cache" / f"{shard.sha256}.tar", ns=(age, age))
    cache.open(shards[0]).close()
    cache.open(shards[2]).close()
    assert f"{shards[0].sha256}.tar" in _kept(tmp_path)


def test_a_shard_larger_than_the_cache_is_refused(remote, tmp_path) -> None:
    shard = _shard(Path(remote.uri), 1)
    with pytest.raises(DataError, match=r"2000 bytes does not fit .*data\.cache_gib"):
        _cache(remote, tmp_path, limit_bytes=1999).open(shard)


def test_many_readers_fetch_a_shard_once_and_a_tiny_cache_serves_them_all(remote, tmp_path) -> None:
    shards = [_shard(Path(remote.uri), n) for n in range(6)]
    caches = [_cache(remote, tmp_path, limit_bytes=2 * 2000) for _ in range(3)]
    barrier = threading.Barrier(8)

    def read(worker: int) -> None:
        barrier.wait()
        for turn in range(30):
            shard = shards[(worker + turn) % len(shards)]
            with caches[worker % 3].open(shard) as file:
                assert hashlib.sha256(file.read()).hexdigest() == shard.sha256

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    used = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    assert used <= 2 * 2000
    remote.requests.clear()
    other = _cache(remote, tmp_path / "other")
    barrier = threading.Barrier(8)

    def same(_: int) -> None:
        barrier.wait()
        other.open(shards[0]).close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(same, range(8)))
    assert remote.requests == [0]


def test_downloads_that_end_together_do_not_share_the_same_room(remote, tmp_path) -> None:
    shards = [_shard(Path(remote.uri), n) for n in range(3)]
    assert len({shard.sha256[:2] for shard in shards}) == 3, "they would wait for one lock"
    under_way = threading.Barrier(3, timeout=20)

    class Together(Remote):
        def read_chunks(self, path: str, start: int = 0, length: int | None = None):
            under_way.wait()
            yield from super().read_chunks(path, start, length)

    cache = _cache(Together(remote.uri), tmp_path, limit_bytes=2000)
    with ThreadPoolExecutor(3) as pool:
        for shard, file in zip(shards, pool.map(cache.open, shards), strict=True):
            with file:
                assert hashlib.sha256(file.read()).hexdigest() == shard.sha256
    assert len(_kept(tmp_path)) == 1


def test_leftovers_of_a_killed_process_are_removed(remote, tmp_path) -> None:
    shard = _shard(Path(remote.uri), 1)
    cache = _cache(remote, tmp_path)
    orphan = tmp_path / "cache" / f".blemish-{shard.sha256[:2]}-killed.part"
    orphan.write_bytes(b"half")
    cache.open(shard).close()
    assert not orphan.exists()


def test_a_full_disk_is_one_clear_message(remote, tmp_path, monkeypatch) -> None:
    shard = _shard(Path(remote.uri), 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_cache.os, "replace", full)
    with pytest.raises(StoreError, match=r"No space left on device; free space there"):
        _cache(remote, tmp_path).open(shard)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_folder_others_can_write_to_is_refused(remote, tmp_path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(DataError, match="open to all"):
        _cache(remote, tmp_path)


def test_local_shards_are_read_in_place_and_checked_once(tmp_path, monkeypatch) -> None:
    shard = _shard(tmp_path, 1)
    cache = ShardCache(Store(str(tmp_path)), folder=str(tmp_path / "cache"))
    cache.open(shard).close()
    monkeypatch.setattr(shard_cache.hashlib, "sha256", None)
    cache.open(shard).close()
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_takes_older_shards_before_it_is_told(remote, tmp_path, monkeypatch) -> None:
    shards, write = [_shard(Path(remote.uri), n) for n in range(3)], os.write
    room, cache = 3500, _cache(remote, tmp_path)

    class Disk(io.FileIO):
        """Keeps a part of a write, as a disk does that is nearly full."""

        def write(self, payload) -> int:
            left = room - sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
            if left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self.fileno(), bytes(payload)[:left])

    def opened(handle: int, mode: str, buffering: int = -1):
        raw = Disk(handle, mode)
        return raw if buffering == 0 else io.BufferedWriter(raw)

    monkeypatch.setattr(shard_cache.os, "fdopen", opened)
    for shard in shards[:2]:
        cache.open(shard).close()
        assert _kept(tmp_path) == [f"{shard.sha256}.tar"]
    room = 1500
    with pytest.raises(StoreError, match=r"No space left.*free space"):
        cache.open(shards[2])
    assert not _kept(tmp_path)


def test_a_cache_folder_cleared_away_is_made_again(remote, tmp_path) -> None:
    cache = _cache(remote, tmp_path)
    cache.open(_shard(Path(remote.uri), 1)).close()
    shutil.rmtree(tmp_path / "cache")
    other = _shard(Path(remote.uri), 2)
    cache.open(other).close()
    assert _kept(tmp_path) == [f"{other.sha256}.tar"]


def test_an_outage_is_waited_for_once_by_all(remote, tmp_path, monkeypatch) -> None:
    shards = [_shard(Path(remote.uri), number) for number in range(3)]
    cache = _cache(remote, tmp_path, retry_s=0.5)
    remote.faults.extend([(0, StoreUnavailableError("down"))] * 1000)
    with pytest.raises(StoreUnavailableError):
        cache.open(shards[0])
    num_requests = len(remote.requests)
    for shard in shards[1:]:
        with pytest.raises(StoreUnavailableError):
            cache.open(shard)
    assert len(remote.requests) == num_requests + 2
    # It is back: what breaks off now is gone on with as ever.
    remote.faults[:] = [(0, StoreUnavailableError("reset"))] * 2
    monkeypatch.setattr(shard_cache, "_SAME_OUTAGE_S", 0.0)
    cache.open(shards[0]).close()
    monkeypatch.setattr(shard_cache, "_SAME_OUTAGE_S", 60.0)
    remote.faults[:] = [(2, StoreUnavailableError("reset"))]
    cache.open(shards[1]).close()


@pytest.mark.parametrize(
    ("number", "lost"), [(errno.ENOENT, True), (errno.EIO, True), (errno.EMFILE, False)]
)
def test_only_what_is_about_a_local_shard_makes_it_lost(
    tmp_path, monkeypatch, number: int, lost: bool
) -> None:
    shard = _shard(tmp_path, 1)

    def refusing(*words, **settings):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=os.strerror(number)) as caught:
        ShardCache(Store(str(tmp_path))).open(shard)
    assert isinstance(caught.value, LostDataError) == lost
