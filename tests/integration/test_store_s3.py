"""The store and a packed data set on S3 servers."""

import multiprocessing
import pickle
import socket
import time
from collections.abc import Iterator

import pytest

from data.dataset import load_index
from data.errors import DataError
from data.store import Store
from tests.s3_server import BUCKET, moto_s3


@pytest.fixture(scope="module", params=["moto", "ceph"])
def server(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    if request.param == "ceph":
        yield request.getfixturevalue("ceph_server").env
        return
    with moto_s3() as env:
        yield env


# For tests that never get an answer from the server.
any_server = pytest.mark.parametrize("server", ["moto"], indirect=True)


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
    # A session of its own: the default one keeps the credentials it met first.
    client = boto3.Session().client("s3", endpoint_url=server["AWS_ENDPOINT_URL"])
    client.put_object(Bucket=BUCKET, Key="run/late/x", Body=b"x")
    assert store.list("late/") == ["late/x"]
    assert store.exists("late/x")


def test_store_can_be_sent_to_another_process(store: Store) -> None:
    store.write_bytes("pickled.txt", b"hello")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(pickle.dumps(store), results), daemon=True)
    child.start()
    try:
        assert results.get(timeout=60) == b"hello"
    finally:
        child.kill()
        child.join()


def test_missing_object_and_bucket_are_named(store: Store) -> None:
    with pytest.raises(DataError, match=r"reading s3://blemish/run/nope\.tar failed: no such"):
        store.read_bytes("nope.tar")
    with pytest.raises(DataError, match=r"writing s3://no-such-bucket/x failed: no such"):
        Store("s3://no-such-bucket").write_bytes("x", b"1")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/set/dataset\.json does not exist"):
        load_index(Store("s3://no-such-bucket/set"))


@any_server
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


@any_server
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


@any_server
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
