"""The local store."""

import errno
import os
import pickle
import threading
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from data.errors import DataError, StoreError, StoreUnavailableError
from data.s3 import explain
from data.store import Store


def test_reads_lists_sizes_and_deletes(tmp_path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("a/one.txt", b"1")
    store.child("a", "b").write_bytes("two.tar", b"22")
    assert store.list() == ["a/b/two.tar", "a/one.txt"]
    assert store.list("a/o") == ["a/one.txt"]
    assert store.list(suffix=".tar") == ["a/b/two.tar"]
    assert store.list("missing/") == []
    assert store.size("a/b/two.tar") == 2
    assert store.exists()
    assert store.exists("a")
    assert not store.exists("a/one.txt/x")
    store.delete("a/one.txt")
    store.delete("a/one.txt")
    assert not store.exists("a/one.txt")
    assert store.local_path("a") == tmp_path / "a"


def test_address_is_normal_and_picklable(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("x") == Store(f"file://{tmp_path}/x/") == Store(str(tmp_path)).child("x")
    assert pickle.loads(pickle.dumps(Store("x"))) == Store("x")
    bucket = Store("s3://bucket/prefix/")
    assert bucket.child("a").url("b") == "s3://bucket/prefix/a/b"
    assert not bucket.is_local
    with pytest.raises(DataError, match="not a local folder"):
        bucket.local_path()


@pytest.mark.parametrize("uri", ["s3://", "ftp://x/y", ""])
def test_unusable_address_is_refused(uri: str) -> None:
    with pytest.raises(DataError, match="bucket"):
        Store(uri)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd"])
def test_path_cannot_leave_the_store(tmp_path, path: str) -> None:
    with pytest.raises(DataError, match="leaves the store"):
        Store(str(tmp_path)).read_bytes(path)


def test_missing_object_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match=rf"reading {tmp_path}/no\.tar failed: no such object"):
        Store(str(tmp_path)).read_bytes("no.tar")


def test_reader_never_sees_part_of_a_write(tmp_path) -> None:
    store = Store(str(tmp_path))
    payloads = [bytes([value]) * 2_000_000 for value in (1, 2)]
    store.write_bytes("x", payloads[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(30):
            store.write_bytes("x", payloads[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert store.read_bytes("x") in payloads
    writer.join()


def test_failed_write_leaves_the_old_object_and_no_rubbish(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("x", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        store.write_bytes("x", b"new")
    assert store.read_bytes("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_killed_write_leaves_no_object(tmp_path) -> None:
    child = os.fork()
    if child == 0:
        os.replace = lambda *_: os._exit(9)  # type: ignore[assignment] # dies just before the rename
        try:
            Store(str(tmp_path)).write_bytes("x", b"new")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    store = Store(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    assert not store.exists("x")
    assert store.list() == []


def test_linked_folders_are_listed_and_links_back_up_are_not_followed(tmp_path) -> None:
    store = Store(str(tmp_path / "set"))
    store.write_bytes("good/a.png", b"1")
    Store(str(tmp_path / "elsewhere")).write_bytes("lot/b.png", b"2")
    (tmp_path / "set/dent").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/lot/back").symlink_to(tmp_path / "set")
    (tmp_path / "set/good/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/good/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "set/latest").symlink_to("good")
    (tmp_path / "set/good/itself.png").symlink_to("itself.png")
    (tmp_path / "set/lost+found").mkdir()
    assert store.list() == ["dent/lot/b.png", "good/a.png", "good/gone.png", "good/itself.png"]


def test_no_file_is_listed_twice_because_of_links(tmp_path) -> None:
    store, elsewhere = Store(str(tmp_path / "set")), Store(str(tmp_path / "elsewhere"))
    store.write_bytes("good/a.png", b"1")
    elsewhere.write_bytes("lot/a/b.png", b"2")
    elsewhere.write_bytes("single.png", b"3")
    (tmp_path / "set/dent").symlink_to(tmp_path / "elsewhere/lot")
    (tmp_path / "elsewhere/lot/c").symlink_to(tmp_path / "elsewhere/lot/a")
    (tmp_path / "set/good/again.png").symlink_to("a.png")
    for name in ("good/single.png", "good/twin.png", "other.png"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere/single.png")
    (tmp_path / "set/whole").symlink_to(tmp_path)
    listed = store.list()
    assert listed[:3] == ["dent/a/b.png", "good/a.png", "good/single.png"]
    assert not [name for name in listed if name.startswith("whole/set/")]
    assert [name for name in listed if Path(store.url(name)).read_bytes() == b"3"] == [listed[2]]


def test_sizes_by_name(tmp_path) -> None:
    store = Store(str(tmp_path / "set"))
    assert store.sizes() == {}
    store.write_bytes("a/one.png", b"1")
    store.write_bytes("two.png", b"22")
    Store(str(tmp_path / "elsewhere")).write_bytes("three.png", b"333")
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/gone.png").symlink_to(tmp_path / "nowhere")
    assert store.sizes() == {"a/one.png": 1, "b/three.png": 3, "two.png": 2}


@pytest.mark.parametrize(
    ("number", "of_all"), [(errno.EMFILE, True), (errno.ESTALE, True), (errno.EACCES, False)]
)
def test_what_a_disk_says_of_one_file_is_told_from_what_it_says_of_all(
    tmp_path, monkeypatch: pytest.MonkeyPatch, number: int, of_all: bool
) -> None:
    def refusing(*words, **settings):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=os.strerror(number)) as caught:
        Store(str(tmp_path)).read_bytes("x")
    assert isinstance(caught.value, StoreError) == of_all


@pytest.mark.parametrize(
    ("code", "status", "fix"),
    [
        ("ExpiredToken", 400, "renew the credentials"),
        ("AccessDenied", 403, "check AWS_ACCESS_KEY_ID"),
        ("PermanentRedirect", 301, "AWS_DEFAULT_REGION"),
    ],
)
def test_a_bucket_that_refuses_says_nothing_about_an_object(
    code: str, status: int, fix: str
) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = explain("reading", "s3://bucket/a.png", ClientError(answer, "GetObject"))
    assert isinstance(error, StoreError)
    assert not isinstance(error, StoreUnavailableError)
    assert fix in str(error)


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("a/one.png", b"1")
    store.write_bytes("b/two.png", b"2")
    scandir = os.scandir

    def refusing(folder):
        if os.fspath(folder).endswith("/b"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"listing .* failed"):
        store.list()
