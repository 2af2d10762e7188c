"""The store and a packed data set on a real S3 server."""

import multiprocessing
import pickle
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from data.dataset import load_index
from data.errors import DataError
from data.pack import pack
from data.store import Store
from data.stream import SampleStream
from data.synthetic import synthetic_surfaces
from tests.s3_server import BUCKET, moto_s3


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with moto_s3() as env:
        yield env


@pytest.fixture
def store(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    return Store(f"s3://{BUCKET}/run")


def _read_in_child(payload: bytes, results: "multiprocessing.Queue[bytes]") -> None:
    results.put(pickle.loads(payload).read_bytes("pickled.txt"))


def test_objects_are_written_listed_sized_and_deleted(store: Store) -> None:
    store.write_bytes("a/one.txt", b"1")
    store.write_bytes("a/two.txt", b"22")
    store.child("b").write_bytes("three.tar", b"333")
    # A sibling whose name starts the same must not be listed.
    Store(f"s3://{BUCKET}/run2").write_bytes("other.txt", b"x")

    assert store.list("a/") == ["a/one.txt", "a/two.txt"]
    assert store.list("a/t") == ["a/two.txt"]
    assert store.list(suffix=".tar") == ["b/three.tar"]
    assert not any(name.endswith("other.txt") for name in store.list())
    assert store.list("nothing/here/") == []
    assert store.size("a/two.txt") == 2
    assert store.read_bytes("a/two.txt") == b"22"
    store.write_bytes("a/two.txt", b"new")
    assert store.read_bytes("a/two.txt") == b"new"
    store.delete("a/one.txt")
    store.delete("a/one.txt")
    assert not store.exists("a/one.txt")
    assert store.exists("a/two.txt")
    assert store.exists("a")


def test_writes_of_another_client_are_seen_at_once(store: Store, server: dict[str, str]) -> None:
    import boto3

    assert store.list("late/") == []
    assert not store.exists("late/x")
    client = boto3.client("s3", endpoint_url=server["AWS_ENDPOINT_URL"])
    client.put_object(Bucket=BUCKET, Key="run/late/x", Body=b"x")
    assert store.list("late/") == ["late/x"]
    assert store.exists("late/x")


def test_store_can_be_sent_to_another_process(store: Store) -> None:
    store.write_bytes("pickled.txt", b"hello")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(pickle.dumps(store), results))
    child.start()
    assert results.get(timeout=60) == b"hello"
    child.join()


def test_packed_set_streams_the_same_from_s3_as_from_disk(store: Store, tmp_path) -> None:
    counts = {"num_train_normal": 8, "num_train_abnormal": 4, "num_validation": 2, "num_test": 2}
    samples = synthetic_surfaces(resolution=16, seed=1, **counts)
    remote, local = store.child("packed"), Store(str(tmp_path))
    for target in (remote, local):
        pack(samples, target, resolution=16, name="metal", seed=0, shard_samples=3)

    assert load_index(remote) == load_index(local)
    assert remote.list() == local.list()
    streams = [
        SampleStream(s, load_index(s), "train-normal", 8, world_size=2, rank=1, seed=0)
        for s in (remote, local)
    ]
    for _ in range(12):
        np.testing.assert_array_equal(*(next(stream) for stream in streams))


def test_missing_object_and_bucket_are_named(store: Store) -> None:
    with pytest.raises(DataError, match=r"reading s3://blemish/run/nope\.tar failed: no such"):
        store.read_bytes("nope.tar")
    with pytest.raises(DataError, match=r"writing s3://no-such-bucket/x failed: no such"):
        Store("s3://no-such-bucket").write_bytes("x", b"1")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/set/dataset\.json does not exist"):
        load_index(Store("s3://no-such-bucket/set"))


def test_missing_credentials_are_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(DataError, match="check AWS_ACCESS_KEY_ID"):
        store.read_bytes("x")
    S3FileSystem.clear_instance_cache()


def test_closed_port_fails_fast_and_names_the_variable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    started_s = time.monotonic()
    for use in (lambda: store.read_bytes("x"), lambda: store.exists("x"), lambda: store.list()):
        with pytest.raises(DataError, match=f"AWS_ENDPOINT_URL, now {endpoint}"):
            use()
    assert time.monotonic() - started_s < 30


def test_silent_host_fails_within_its_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # A full backlog drops connection attempts, like a host behind a firewall.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        started_s = time.monotonic()
        with pytest.raises(DataError, match="AWS_ENDPOINT_URL"):
            store.read_bytes("x")
        for filler in fillers:
            filler.close()
    assert time.monotonic() - started_s < 25
