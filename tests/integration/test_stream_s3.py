"""Training batches out of a bucket: the same as from disk, whatever happens to the server."""

import threading
import time
from pathlib import Path

import pytest
import torch

from data import patience
from data.dataset import load_index
from data.errors import DataError, StoreUnavailableError
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.reader import SplitReader
from data.shard_cache import ShardCache
from data.store import Store
from data.stream import BatchStream, Share
from tests.ceph_server import BUCKET, CephServer

BATCH, ABNORMAL = 4, 2
NUM_BATCHES = 16


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Store:
    counts = {"num_train_normal": 24, "num_train_abnormal": 6, "num_validation": 2, "num_test": 2}
    store = Store(str(tmp_path_factory.mktemp("local")))
    samples = synthetic_surfaces(resolution=32, seed=1, **counts)
    pack(samples, store, resolution=32, name="metal", seed=0, shard_samples=4)
    return store


@pytest.fixture
def remote(local: Store, ceph: CephServer) -> Store:
    store = Store(f"s3://{BUCKET}/packed")
    for path in local.list():
        store.write_bytes(path, local.read_bytes(path))
    return store


def _stream(
    store: Store, cache: Path, at: dict[str, int] | None = None, *, retry_s: float = 30, **part: int
) -> BatchStream:
    index = load_index(store)
    opened = ShardCache(store, folder=str(cache), retry_s=retry_s)
    readers = [
        SplitReader(opened, index, split, 32, lanes=lanes, seed=3)
        for split, lanes in (("train-normal", BATCH), ("train-abnormal", ABNORMAL))
    ]
    sizes = {"batch": BATCH, "abnormal_batch": ABNORMAL}
    return BatchStream(*readers, **sizes, at=at, part=Share(prefetch=0, **part))


def _take(stream: BatchStream, count: int) -> list[torch.Tensor]:
    batches = [stream.next_batch() for _ in range(count)]
    return [torch.cat([batch.normal, batch.abnormal]) for batch in batches]


@pytest.fixture
def no_look_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are fetched when their images are due, so that a kill leaves some to be fetched."""
    monkeypatch.setattr("data.stream._LOOK_AHEAD", 0)


@pytest.fixture(scope="module")
def wanted(local: Store) -> list[torch.Tensor]:
    stream = _stream(local, Path("unused"))
    batches = _take(stream, NUM_BATCHES)
    stream.close()
    return batches


def _same(batches: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(batches, wanted, strict=True))


def test_stream_resumed_in_the_middle_of_a_shard_equals_the_one_from_disk(
    remote: Store, wanted: list[torch.Tensor], tmp_path: Path
) -> None:
    first = _stream(remote, tmp_path / "a")
    assert _same(_take(first, 5), wanted[:5])
    state = first.state()
    first.close()
    # On another machine: another cache. And by two ranks.
    halves = []
    for rank in (0, 1):
        stream = _stream(remote, tmp_path / "b", state, world_size=2, rank=rank)
        halves.append([stream.next_batch().normal for _ in range(NUM_BATCHES - 5)])
        stream.close()
    joined = [torch.cat(pair) for pair in zip(*halves, strict=True)]
    assert _same(joined, [batch[:BATCH] for batch in wanted[5:]])


@pytest.mark.usefixtures("no_look_ahead")
def test_server_killed_and_restarted_in_the_middle_of_a_stream(
    ceph: CephServer,
    remote: Store,
    wanted: list[torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.05)
    stream = _stream(remote, tmp_path / "cache")
    batches = _take(stream, 1)
    ceph.stop_gateway()
    restart = threading.Timer(4.0, ceph.start_gateway)
    restart.start()
    started_s = time.monotonic()
    try:
        batches += _take(stream, NUM_BATCHES - 1)
    finally:
        restart.join()
    assert time.monotonic() - started_s > 3, "the server was not missed"
    assert _same(batches, wanted)
    assert stream.losses == []
    stream.close()


@pytest.mark.usefixtures("no_look_ahead")
def test_server_that_stays_away_is_an_error_and_the_position_stands(
    ceph: CephServer, remote: Store, wanted: list[torch.Tensor], tmp_path: Path
) -> None:
    stream = _stream(remote, tmp_path / "cache", retry_s=0.5)
    _take(stream, 1)
    ceph.stop_gateway()
    with pytest.raises(StoreUnavailableError, match="check that the server is up"):
        _take(stream, NUM_BATCHES)
    state = stream.state()
    done = state["normal"] // BATCH
    assert state == {"normal": done * BATCH, "abnormal": done * ABNORMAL}
    ceph.start_gateway()
    resumed = _stream(remote, tmp_path / "cache", state)
    assert _same(_take(resumed, NUM_BATCHES - done), wanted[done:])
    resumed.close()


def test_credentials_that_are_refused_are_no_lost_images(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = _stream(remote, tmp_path / "cache", retry_s=60)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    started_s = time.monotonic()
    with pytest.raises(DataError, match="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
        _take(stream, NUM_BATCHES)
    assert time.monotonic() - started_s < 30
    assert stream.losses == []


def test_shard_changed_in_the_bucket_is_told_by_name(remote: Store, tmp_path: Path) -> None:
    path = next(s.path for s in load_index(remote).shards_of("train-normal", 32))
    remote.write_bytes(path, remote.read_bytes(path)[:-512])
    stream = _stream(remote, tmp_path / "cache")
    with pytest.raises(DataError, match=f"{path} has .* bytes, dataset.json says"):
        _take(stream, NUM_BATCHES)
