"""Checkpoint folders: only whole ones of this run are used, and enough of them are kept."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.checkpoint_store import (
    MANIFEST,
    CheckpointStore,
    RefusedError,
    checkpoint_name,
    last_metrics,
)
from cluster.errors import UserError
from data.errors import StoreError, StoreUnavailableError
from data.store import Store

IDENTITY = {"seed": 0, "levels": (1, 2)}


def _name(images_seen: int, num_cuts: int = 0) -> str:
    return checkpoint_name(num_cuts=num_cuts, images_seen=images_seen)


def _open(run: Path, *, keep: int = 3, **identity: object) -> CheckpointStore:
    return CheckpointStore(Store(str(run)), keep=keep, identity=IDENTITY | identity)


def _finish(store: CheckpointStore, images_seen: int, num_cuts: int = 0) -> None:
    name = _name(images_seen, num_cuts)
    files = {
        file: store.write(name, file, f"{file} {images_seen}".encode() * 9)
        for file in ("state.pt", "rank-00000.pt", "rank-00001.pt")
    }
    about = {"images_seen": images_seen, "world_size": 2, "metrics": {"auroc": 0.5}}
    store.finish(name, files, **about)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints after 400 and 800 images."""
    store = _open(tmp_path)
    for images_seen in (400, 800):
        _finish(store, images_seen)
    return tmp_path


def _newest(store: CheckpointStore) -> tuple[str | None, list[str]]:
    notes: list[str] = []
    found = store.newest(notes.append)
    return found[0] if found else None, notes


def test_newest_is_used_without_a_word(run: Path) -> None:
    store = _open(run)
    assert _newest(store) == (_name(800), [])
    manifest = store.verify(_name(800))
    assert (manifest.images_seen, manifest.world_size) == (800, 2)
    assert last_metrics(Store(str(run))) == {"auroc": 0.5}


def test_new_run_has_none(tmp_path: Path) -> None:
    assert _newest(_open(tmp_path)) == (None, [])
    assert last_metrics(Store(str(tmp_path))) == {}


def _truncate(folder: Path) -> None:
    path = folder / "state.pt"
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(folder: Path) -> None:
    path = folder / "rank-00001.pt"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(bytes(content))


def _remove_a_file(folder: Path) -> None:
    (folder / "rank-00000.pt").unlink()


def _leave_unfinished(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def _tear_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes()[:-20])


def _make_manifest_no_object(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


def _come_from_the_future(folder: Path) -> None:
    tree = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(tree | {"schema_version": 99, "files": []}))


def _come_from_another_run(folder: Path) -> None:
    tree = json.loads((folder / MANIFEST).read_text())
    tree["identity"]["seed"] = 7
    (folder / MANIFEST).write_text(json.dumps(tree))


DAMAGES = [
    (_truncate, "state.pt has 107 bytes, not 108"),
    (_flip_a_bit, "rank-00001.pt has another sha256"),
    (_remove_a_file, "rank-00000.pt failed: no such object"),
    (_leave_unfinished, "never finished"),
    (_tear_manifest, "is damaged"),
    (_make_manifest_no_object, "is damaged"),
    (_come_from_the_future, "schema_version=99, this version of the program reads 2"),
    (_come_from_another_run, "of another run, with seed=7, not 0"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_one_that_cannot_be_used_is_named_and_the_one_before_is_taken(
    run: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(run / "checkpoints" / _name(800))
    name, notes = _newest(_open(run))
    assert name == _name(400)
    assert len(notes) == 2
    assert _name(800) in notes[0]
    assert told in notes[0]
    assert _name(400) in notes[1]


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_none_left_is_an_error_rather_than_a_fresh_start(
    run: Path, damage: Callable[[Path], None], told: str
) -> None:
    for images_seen in (400, 800):
        damage(run / "checkpoints" / _name(images_seen))
    with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* can be used"):
        _open(run).newest(lambda _: None)


def test_first_one_cut_off_while_it_was_written_is_a_fresh_start(tmp_path: Path) -> None:
    _open(tmp_path).write(_name(400), "state.pt", b"half")
    name, notes = _newest(_open(tmp_path))
    assert name is None
    assert "never finished" in notes[0]


def test_only_one_and_damaged_is_an_error(tmp_path: Path) -> None:
    _finish(_open(tmp_path), 400)
    _truncate(tmp_path / "checkpoints" / _name(400))
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        _open(tmp_path).newest(lambda _: None)


@pytest.mark.parametrize("failure", [StoreUnavailableError, StoreError])
@pytest.mark.parametrize("file", ["rank-00001.pt", MANIFEST])
def test_store_that_fails_is_no_reason_to_refuse(
    run: Path, monkeypatch: pytest.MonkeyPatch, file: str, failure: type[StoreError]
) -> None:
    read = Store.read_chunks

    def fail(self: Store, path: str) -> Iterator[bytes]:
        if path.endswith(file):
            raise failure("no answer")
        return read(self, path)

    store = _open(run)
    monkeypatch.setattr(Store, "read_chunks", fail)
    with pytest.raises(failure):
        store.newest(lambda _: None)


def test_what_the_store_did_not_keep_is_not_declared_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write_bytes

    def lose_the_end(self: Store, path: str, payload: bytes) -> None:
        write(self, path, payload[:-1] if path.endswith("rank-00001.pt") else payload)

    store = _open(run, keep=1)
    monkeypatch.setattr(Store, "write_bytes", lose_the_end)
    with pytest.raises(RefusedError, match=r"rank-00001\.pt has 1\d\d bytes, not"):
        _finish(store, 1200)
    assert _newest(store)[0] == _name(800)


def test_only_the_last_few_are_kept(tmp_path: Path) -> None:
    store = _open(tmp_path, keep=2)
    for images_seen in (400, 800, 1200, 1600):
        _finish(store, images_seen)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [_name(1200), _name(1600)]


def test_refused_ones_do_not_count_among_those_kept(run: Path) -> None:
    _truncate(run / "checkpoints" / _name(800))
    store = _open(run, keep=2)
    _newest(store)
    _finish(store, 1200)
    assert _name(400) in store.names()
    shutil.rmtree(run / "checkpoints" / _name(1200))
    assert _newest(_open(run))[0] == _name(400)


def test_one_written_again_counts_again(run: Path) -> None:
    _truncate(run / "checkpoints" / _name(800))
    store = _open(run, keep=1)
    _newest(store)
    _finish(store, 800)
    assert store.names() == [_name(800)]
    assert _newest(store)[0] == _name(800)


def test_one_after_a_rate_cut_is_newer_whatever_came_before(run: Path) -> None:
    store = _open(run)
    _finish(store, 400, num_cuts=1)
    assert _newest(store)[0] == _name(400, num_cuts=1)


def test_metrics_are_those_of_the_last_that_can_be_read(run: Path) -> None:
    before = last_metrics(Store(str(run)))
    assert before
    later = run / "checkpoints" / _name(400, num_cuts=1)
    later.mkdir()
    (later / MANIFEST).write_text("{")
    assert last_metrics(Store(str(run))) == before
