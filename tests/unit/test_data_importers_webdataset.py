"""Shards that others wrote, whole, damaged and hostile."""

import io
import json
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.writer import TarWriter

from data.errors import DataError
from data.importers import import_items, tar_headers, webdataset
from data.importers.tar_headers import MAX_MEMBERS
from data.item import ImportOptions, Item
from data.sample import encode_png
from data.store import Store

PLAIN = ImportOptions()


def grey(value: int) -> bytes:
    return encode_png(np.full((4, 6, 1), value, np.uint8))


def tar(*files: tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def imported(root: Path, payload: bytes, options: ImportOptions = PLAIN) -> list[Item]:
    store = Store(str(root))
    store.write_bytes("a/00.tar", payload)
    return webdataset.items(store, options)


def test_samples_of_all_kinds_become_items(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    mask = encode_png(np.eye(4, 6, dtype=np.uint8)[:, :, None])
    facts = {"label": "abnormal", "kind": "dent", "group": 7, "split": "train"}
    with TarWriter(str(tmp_path / "00.tar"), encoder=False) as writer:
        writer.write({"__key__": "x", "png": grey(1), "json": json.dumps(facts).encode(),
                      "mask.png": mask})  # fmt: skip
        writer.write({"__key__": "y", "png": grey(2), "cls": b"3"})
        writer.write({"__key__": "z", "png": grey(3), "json": b'{"label": "cat"}'})
    store.write_bytes("01.tar", tar(("x.png", grey(4)), ("./sub/x.png", grey(5))))
    store.write_bytes("@eaDir/01.tar", tar(("w.png", grey(6))))
    items = import_items(store.uri, "auto", PLAIN)
    assert [(i.label, i.kind, i.split) for i in items] == [
        ("abnormal", "dent", "train-abnormal"),
        ("unlabelled", "3", None),
        ("unlabelled", "cat", None),
        ("unlabelled", "unknown", None),
        ("unlabelled", "unknown", None),
    ]
    assert items[0].group == "7"
    assert items[0].source.endswith("/00.tar#x")
    assert len({item.key for item in items}) == 5
    pictures = [pickle.loads(pickle.dumps(item)).read() for item in items]
    assert [int(image.max()) for image, _ in pictures] == [1, 2, 3, 4, 5]
    assert (pictures[0][1] == np.eye(4, 6, dtype=bool)).all()
    labelled = import_items(store.uri, "webdataset", ImportOptions(normal_kinds=("3",)))
    assert [item.label for item in labelled[:3]] == ["abnormal", "normal", "abnormal"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_keep_their_end(tmp_path: Path, format: int) -> None:
    name = "d/" * 80 + "ä" * 30
    payload = tar((f"{name}.png", grey(1)), ("b.png", grey(2)), format=format)
    items = imported(tmp_path, payload)
    assert items[0].source.endswith(f"#{name}")
    assert items[1].source.endswith("#b")
    assert [int(item.read()[0].max()) for item in items] == [1, 2]


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("0.tar", tar(*((f"{n}.png", bytes(2**22)) for n in range(8))))
    read, original = [], Store.read_range

    def counted(self: Store, path: str, start: int, length: int) -> bytes:
        read.append(length)
        return original(self, path, start, length)

    monkeypatch.setattr(Store, "read_range", counted)
    assert len(webdataset.items(store, PLAIN)) == 8
    assert sum(read) < 10 * 2**18


def test_damaged_samples_become_items_that_say_so(tmp_path: Path) -> None:
    payload = tar(
        ("a.json", b"{"), ("a.png", grey(1)),
        ("b.json", b"{}"),
        ("c.png", grey(2)), ("c.jpg", grey(2)),
        ("d.png", grey(3)), ("d.png", grey(3)),
        ("e.json", b"[" * 60000), ("e.png", grey(4)),
        ("f.json", bytes(10**5)), ("f.png", grey(4)),
        ("good.png", grey(5)),
    )  # fmt: skip
    items = imported(tmp_path, payload)
    reasons = {}
    for item in items:
        try:
            item.read()
        except DataError as error:
            reasons[item.source[-1]] = str(error)
    assert set(reasons) == set("abcdef")
    for key, reason in {
        "a": "json member is no valid JSON",
        "b": "0 image members among",
        "c": "2 image members",
        "d": "appears twice",
        "e": "json member is no valid JSON",
        "f": "has 100000 bytes",
    }.items():
        assert reason in reasons[key]


def lost(items: list[Item]) -> int:
    count = 0
    for item in items:
        try:
            item.read()
        except DataError:
            count += 1
    return count


def test_a_zeroed_header_and_every_cut_lose_nothing_silently(tmp_path: Path) -> None:
    payload = tar(*((f"{n}.png", grey(n)) for n in range(5)))
    for content in (bytes(512), b"\xff" * 512):
        broken = payload[:2048] + content + payload[2560:]
        items = imported(tmp_path, broken)
        assert (len(items), lost(items)) == (5, 1)
    for end in range(512, 5 * 1024, 256):
        items = imported(tmp_path, payload[:end])
        assert lost(items) >= 1
        whole = sum(end >= 1024 * n + 512 + len(grey(n)) for n in range(5))
        assert len(items) - lost(items) == whole


def member(name: str, type: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = type
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "absolute": (lambda: tar(("/etc/x.png", b"")), "leaves the folder"),
    "climbing": (lambda: tar(("a/../../x.png", b"")), "leaves the folder"),
    "backslash": (lambda: tar(("..\\x.png", b"")), "leaves the folder"),
    "long climbing": (lambda: tar(("../" * 60 + "x.png", b"")), "leaves the folder"),
    "symlink": (lambda: member("x.png", tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "hard link": (lambda: member("x.png", tarfile.LNKTYPE, linkname="y.png"), "is a link"),
    "device": (lambda: member("x.png", tarfile.CHRTYPE), "is a link, a device"),
    "fifo": (lambda: member("x.png", tarfile.FIFOTYPE), "is a link, a device"),
    "sparse": (lambda: member("x.png", tarfile.GNUTYPE_SPARSE), "unsafe kind"),
    "huge": (lambda: member("x.png", size=2**40), "says it has 1099511627776 bytes"),
    "huge name": (lambda: member("x", tarfile.GNUTYPE_LONGNAME, size=2**30), "says it has"),
    "huge pax": (lambda: member("x", tarfile.XHDTYPE, size=2**30), "says it has"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    make, reason = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=reason):
            imported(tmp_path, make())
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_too_many_tiny_members_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(member("x.png") * (MAX_MEMBERS + 1000))
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match="more than 200000 members; split it"):
        webdataset.items(store, PLAIN)


@pytest.mark.parametrize("type", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.DIRTYPE])
def test_headers_take_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type: bytes
) -> None:
    monkeypatch.setattr(tar_headers, "MAX_MEMBERS", 2000)
    (tmp_path / "0.tar").write_bytes(member("x.png", type) * 20_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 2000 members"):
            for _ in tar_headers.members(tar_headers.TarFile(Store(str(tmp_path)), "0.tar")):
                pass
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_what_cannot_be_imported_is_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match=r"has no \.tar files"):
        webdataset.items(store, PLAIN)
    store.write_bytes("0.tar", tar())
    with pytest.raises(DataError, match="hold no samples"):
        webdataset.items(store, PLAIN)
    store.write_bytes("0.tar", tar(("a.png", grey(1)), ("a.json", b'{"split": "holdout"}')))
    with pytest.raises(DataError, match=r"0\.tar#a: split 'holdout' is not one of train"):
        webdataset.items(store, PLAIN)
    store.write_bytes("1.tar.gz", b"")
    with pytest.raises(DataError, match=r"1\.tar\.gz is compressed .*unpack"):
        import_items(store.uri, "auto", PLAIN)


WHOLE = tar(
    *((f"{n}.{kind}", grey(n) if kind == "png" else b'{"label": "normal"}')
      for n in range(4) for kind in ("png", "json")),
    ("n" * 150 + ".png", grey(9)),
)  # fmt: skip


@settings(max_examples=200)
@given(data=st.data())
def test_mutated_shards_are_imported_or_refused(tmp_path_factory, data: st.DataObject) -> None:
    payload = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload) - 1))
        content = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(bytes(512))))
        payload[place : place + len(content)] = content
    del payload[data.draw(st.integers(512, len(payload))) :]
    root = tmp_path_factory.mktemp("shards")
    try:
        items = imported(root, bytes(payload))
    except DataError:
        return
    lost(items)
    # Five samples, or something that stands for those that are gone.
    assert items
    assert len(items) >= 5 or lost(items)


def test_zero_is_a_group_and_a_kind(tmp_path: Path) -> None:
    facts = [{"group": 0, "label": "abnormal", "kind": 0}, {"group": 0}, {"group": ""}]
    files = [(f"{n}.json", json.dumps(fact).encode()) for n, fact in enumerate(facts)]
    items = imported(tmp_path, tar(*files, *((f"{n}.png", grey(n)) for n in range(3))))
    assert [item.group for item in items] == ["0", "0", "a/00.tar/2"]
    assert [item.kind for item in items] == ["0", "unknown", "unknown"]


def test_a_split_that_the_label_forbids_is_refused(tmp_path: Path) -> None:
    facts = json.dumps({"label": "abnormal", "split": "train-normal"}).encode()
    with pytest.raises(DataError, match="labelled abnormal cannot be in train-normal"):
        imported(tmp_path, tar(("x.png", grey(1)), ("x.json", facts)))
