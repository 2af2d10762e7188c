"""The store on a server that checks signatures, splits objects and can be killed."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from data import s3
from data.dataset import load_index
from data.errors import DataError
from data.importers.surfaces import synthetic_surfaces
from data.pack import pack
from data.store import Store
from tests.ceph_server import BUCKET, CephServer

MIB = 2**20
# What `Store` promises: two attempts of botocore times two of s3fs.
GIVES_UP_S = 20


@pytest.fixture
def store(ceph: CephServer, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://{BUCKET}/{request.node.name}")


def _random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def _sha256_in_bucket(ceph: CephServer, store: Store, name: str) -> str:
    """Digest of what lies there, read without our code."""
    key = store.url(name).removeprefix(f"s3://{BUCKET}/")
    body = ceph.client().get_object(Bucket=BUCKET, Key=key)["Body"]
    return hashlib.sha256(body.read()).hexdigest()


def test_large_object_comes_back_whole_and_by_ranges(ceph: CephServer, store: Store) -> None:
    payload = _random_bytes(40 * MIB)
    store.write_bytes("large.bin", payload)
    digest = hashlib.sha256(payload).hexdigest()
    assert _sha256_in_bucket(ceph, store, "large.bin") == digest
    assert hashlib.sha256(store.read_bytes("large.bin")).hexdigest() == digest
    assert store.size("large.bin") == len(payload)

    # Ceph splits at 4 MiB: inside a piece, over seams, at the end, past it.
    for start, end in ((0, 1), (4 * MIB - 3, 8 * MIB + 5), (40 * MIB - 7, 40 * MIB + 9)):
        assert store.read_range("large.bin", start, end - start) == payload[start:end]


def test_multipart_object_comes_back_whole(ceph: CephServer, store: Store) -> None:
    payload = _random_bytes(40 * MIB, seed=1)
    filesystem, root = store.filesystem()
    # The store itself writes in parts only from 100 MiB on.
    filesystem.pipe_file(f"{root}/parts.bin", payload, chunksize=8 * MIB)
    etag = ceph.client().head_object(Bucket=BUCKET, Key=f"{root}/parts.bin".partition("/")[2])
    assert etag["ETag"].endswith('-5"')
    assert (
        hashlib.sha256(store.read_bytes("parts.bin")).digest() == hashlib.sha256(payload).digest()
    )


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_refused_and_named(
    ceph: CephServer, store: Store, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    store.write_bytes("secret.txt", b"x")
    monkeypatch.setenv(wrong, "wrong")
    with _fresh_connections():
        for use in (
            lambda: store.read_bytes("secret.txt"),
            lambda: store.write_bytes("new.txt", b"1"),
            lambda: store.exists("secret.txt"),
            lambda: store.list(),
            lambda: store.delete("secret.txt"),
        ):
            with pytest.raises(DataError, match="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
                use()
    objects = ceph.client().list_objects_v2(
        Bucket=BUCKET, Prefix=f"{store.uri.rpartition('/')[2]}/"
    )
    assert [item["Key"].rpartition("/")[2] for item in objects["Contents"]] == ["secret.txt"]


def test_killed_server_is_an_error_in_bounded_time_and_objects_survive(
    ceph: CephServer, store: Store
) -> None:
    payload = _random_bytes(5 * MIB)
    store.write_bytes("kept.bin", payload)
    ceph.stop_gateway()
    for use in (
        lambda: store.read_bytes("kept.bin"),
        lambda: store.write_bytes("kept.bin", b"other"),
        lambda: store.exists("kept.bin"),
        lambda: store.list(),
    ):
        started_s = time.monotonic()
        with pytest.raises(DataError, match=r"AWS_ENDPOINT_URL, now http://127\.0\.0\.1"):
            use()
        assert time.monotonic() - started_s < GIVES_UP_S
    ceph.start_gateway()
    # The same store object, over connections that the kill broke.
    assert store.read_bytes("kept.bin") == payload
    store.write_bytes("kept.bin", b"other")
    assert store.read_bytes("kept.bin") == b"other"


def test_read_cut_off_by_a_kill_is_an_error_never_a_part(ceph: CephServer, store: Store) -> None:
    payload = _random_bytes(45 * MIB)
    store.write_bytes("long.bin", payload)
    digests: list[bytes] = []
    errors: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                digests.append(hashlib.sha256(store.read_bytes("long.bin")).digest())
            except DataError as error:
                errors.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for kill in range(3):
            num_read = len(digests)
            _wait_until(lambda n=num_read: len(digests) > n)
            time.sleep(0.03 * kill)
            num_errors = len(errors)
            ceph.stop_gateway()
            _wait_until(lambda n=num_errors: len(errors) > n)
            ceph.start_gateway()
    finally:
        stop.set()
        reader.join(GIVES_UP_S)
    assert set(digests) == {hashlib.sha256(payload).digest()}
    assert all("reading s3://blemish/" in error for error in errors)
    assert store.read_bytes("long.bin") == payload


def test_silent_server_is_an_error_in_bounded_time(
    ceph: CephServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_bytes("x", b"1")
    monkeypatch.setattr(s3, "_READ_TIMEOUT_S", 1)
    s3._client.cache_clear()
    os.kill(ceph.gateway_pid, signal.SIGSTOP)
    try:
        started_s = time.monotonic()
        with pytest.raises(DataError, match="AWS_ENDPOINT_URL"):
            store.read_bytes("x")
        assert time.monotonic() - started_s < GIVES_UP_S
    finally:
        os.kill(ceph.gateway_pid, signal.SIGCONT)
    assert store.read_bytes("x") == b"1"
    s3._client.cache_clear()


def test_reader_sees_one_whole_version_while_two_processes_write(
    ceph: CephServer, store: Store
) -> None:
    # Both longer than Ceph's pieces of 4 MiB, and of different lengths.
    versions = {b"a": 6 * MIB, b"b": 5 * MIB + 1}
    store.write_bytes("contended.bin", b"a" * versions[b"a"])
    fork = multiprocessing.get_context("fork")
    writers = [
        fork.Process(target=_write_forever, args=(store, letter * size), daemon=True)
        for letter, size in versions.items()
    ]
    for writer in writers:
        writer.start()
    seen: list[bytes] = []

    def read() -> bool:
        payload = store.read_bytes("contended.bin")
        assert payload[:1] in versions
        assert payload == payload[:1] * versions[payload[:1]]
        seen.append(payload[:1])
        return len(seen) >= 20 and set(seen) == set(versions)

    try:
        _wait_until(read)
        assert all(writer.is_alive() for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.join()


def test_packed_set_in_the_bucket_has_the_digests_of_its_index(
    ceph: CephServer, store: Store
) -> None:
    samples = synthetic_surfaces(
        resolution=16,
        seed=1,
        num_train_normal=8,
        num_train_abnormal=4,
        num_validation=2,
        num_test=2,
    )
    pack(samples, store, resolution=16, name="metal", seed=0, shard_samples=3)
    index = load_index(store)
    in_bucket = {name for name in store.list() if name.endswith(".tar")}
    assert in_bucket == {shard.path for shard in index.shards}
    for shard in index.shards:
        assert _sha256_in_bucket(ceph, store, shard.path) == shard.sha256
        assert store.size(shard.path) == shard.bytes


def _write_forever(store: Store, payload: bytes) -> None:
    while True:
        store.write_bytes("contended.bin", payload)


def _wait_until(done: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@contextmanager
def _fresh_connections() -> Iterator[None]:
    """s3fs keeps connections by their settings, of which the environment is none."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        S3FileSystem.clear_instance_cache()
