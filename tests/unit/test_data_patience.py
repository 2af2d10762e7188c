"""A store that does not answer is asked again, for as long as was agreed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data import patience
from data.errors import DataError, LostDataError, StoreUnavailableError
from data.patience import Patience, PatientStore
from data.store import Store


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.001)


def _fail(monkeypatch: pytest.MonkeyPatch, method: str, error: DataError, times: int) -> list[int]:
    """Make a method of every store fail so many times; returns a list that grows by each call."""
    real: Callable[..., Any] = getattr(Store, method)
    calls: list[int] = []

    def flaky(self: Store, *args: Any) -> Any:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return real(self, *args)

    monkeypatch.setattr(Store, method, flaky)
    return calls


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "write_bytes": lambda store: store.write_bytes("a/b", b"new"),
    "exists": lambda store: store.exists("a/b"),
    "list": lambda store: store.list("a/"),
    "delete": lambda store: store.delete("a/b"),
    "delete_folder": lambda store: store.delete_folder("a"),
    "read_chunks": lambda store: store.read_bytes("a/b"),
}


@pytest.mark.parametrize("method", OPERATIONS)
def test_an_outage_is_sat_out(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PatientStore(str(tmp_path), 5.0)
    store.write_bytes("a/b", b"old")
    expected = OPERATIONS[method](Store(store.uri))
    store.write_bytes("a/b", b"old")
    calls = _fail(monkeypatch, method, StoreUnavailableError("no answer"), times=3)
    assert OPERATIONS[method](store) == expected
    assert len(calls) == 4


@pytest.mark.parametrize("method", OPERATIONS)
def test_patience_ends(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PatientStore(str(tmp_path), 0.01)
    _fail(monkeypatch, method, StoreUnavailableError("no answer"), times=1000)
    with pytest.raises(StoreUnavailableError):
        OPERATIONS[method](store)


def test_a_loss_is_no_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _fail(monkeypatch, "write_bytes", LostDataError("gone"), times=1)
    with pytest.raises(LostDataError):
        PatientStore(str(tmp_path)).write_bytes("a", b"")
    assert len(calls) == 1


def test_reading_goes_on_where_it_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PatientStore(str(tmp_path), 5.0)
    content = bytes(range(200))
    store.write_bytes("a", content)
    starts = []

    def broken(
        self: Store, path: str, start: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        starts.append(start)
        end = len(content) if length is None else start + length
        yield content[start : min(start + 70, end)]
        if start + 70 < end:
            raise StoreUnavailableError("connection lost")

    monkeypatch.setattr(Store, "read_chunks", broken)
    assert store.read_bytes("a") == content
    assert starts == [0, 70, 140]
    assert store.read_range("a", 20, 100) == content[20:120]


def test_success_renews_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience.time, "sleep", lambda pause_s: None)
    kept = Patience(10.0)
    assert kept.wait()
    now[0] += 9
    assert kept.wait()
    kept.renew()
    now[0] += 9
    assert kept.wait()
    now[0] += 11
    assert not kept.wait()


def test_folders_inherit_patience(tmp_path: Path) -> None:
    child = PatientStore(str(tmp_path), 7.0).child("checkpoints")
    assert isinstance(child, PatientStore)
    assert (child.retry_s, child.uri) == (7.0, f"{tmp_path}/checkpoints")
