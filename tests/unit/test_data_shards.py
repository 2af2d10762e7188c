"""Shards: reproducible bytes, and nothing lost silently."""

import hashlib
import io
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest

from data.dataset import ShardInfo
from data.errors import DataError
from data.sample import Sample, decode_image, encode_png
from data.shards import Damage, read_shard, write_shard


def _sample(key: str, *, mask: bool = False, channels: int = 1) -> Sample:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4])
    image = np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    return Sample(
        key=key,
        image=image,
        label="abnormal",
        source=f"camera 1, {key}",
        group=f"part-{key}",
        kind="scratch",
        split="test",
        mask=image[:, :, 0] > 128 if mask else None,
    )


def _info(payload: bytes, samples: int) -> ShardInfo:
    return ShardInfo(
        path="test/8/00000.tar",
        split="test",
        resolution=8,
        samples=samples,
        bytes=len(payload),
        sha256=hashlib.sha256(payload).hexdigest(),
    )


SAMPLES = [_sample("a", mask=True), _sample("b", channels=3), _sample("c"), _sample("d", mask=True)]
SHARD = write_shard(SAMPLES)
INFO = _info(SHARD, len(SAMPLES))


def _tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _members() -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(SHARD)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr] # regular files


def _is_same(got: Sample, want: Sample) -> bool:
    facts = ("key", "label", "source", "group", "kind", "split")
    return (
        all(getattr(got, name) == getattr(want, name) for name in facts)
        and np.array_equal(got.image, want.image)
        and (got.mask is None) == (want.mask is None)
        and (want.mask is None or np.array_equal(got.mask, want.mask))
    )


def test_round_trip_keeps_everything() -> None:
    contents = read_shard(SHARD, INFO)
    assert contents.damage == []
    assert contents.checksum_ok
    assert len(contents.samples) == len(SAMPLES)
    assert all(map(_is_same, contents.samples, SAMPLES))


def test_bytes_do_not_depend_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert write_shard(SAMPLES) == SHARD


def test_webdataset_reads_our_shards(tmp_path) -> None:
    import webdataset as wds

    (tmp_path / "s.tar").write_bytes(SHARD)
    found = list(wds.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    assert [row["__key__"] for row in found] == ["a", "b", "c", "d"]
    assert set(found[0]) >= {"png", "json", "mask.png"}


@pytest.mark.parametrize("cut", range(0, len(SHARD), 512))
def test_truncation_is_accounted_for(cut: int) -> None:
    contents = read_shard(SHARD[:cut], INFO)
    assert len(contents.samples) + len(contents.damage) == INFO.samples
    assert not contents.checksum_ok
    assert all(map(_is_same, contents.samples, SAMPLES))
    assert len({row.key for row in contents.damage}) == len(contents.damage)


@pytest.mark.parametrize("fill", [b"\0", b"\xaa"])
@pytest.mark.parametrize("block", range(0, len(SHARD), 512))
def test_broken_block_costs_at_most_its_own_sample(block: int, fill: bytes) -> None:
    broken = SHARD[:block] + fill * 512 + SHARD[block + 512 :]
    if broken == SHARD:
        return
    contents = read_shard(broken, INFO)
    assert len(contents.samples) + len(contents.damage) == INFO.samples
    assert len(contents.damage) <= 1
    assert not contents.checksum_ok
    wanted = {sample.key: sample for sample in SAMPLES}
    assert all(got.mask is not None for got in contents.samples if wanted[got.key].mask is not None)


def test_member_cut_within_its_last_bytes_is_told_as_such() -> None:
    members = _members()
    shard = _tar(("c.json", members["c.json"]), ("c.png", members["c.png"]))
    # Without its last 4 bytes, the closing checksum, the image would still decode.
    end = shard.index(members["c.png"]) + len(members["c.png"]) - 4
    (row,) = read_shard(shard[:end], _info(shard, 1)).damage
    assert row == Damage("c", "member 'c.png' is cut off")


def test_header_with_a_negative_size_does_not_turn_the_reader_back() -> None:
    info = tarfile.TarInfo("evil.png")
    info.size = -512
    contents = read_shard(info.tobuf(tarfile.GNU_FORMAT) + SHARD, INFO)
    assert len(contents.samples) == INFO.samples


def test_random_garbage_is_accounted_for() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(SHARD)
        for place in rng.integers(0, len(SHARD), 20):
            broken[place] = rng.integers(256)
        contents = read_shard(bytes(broken), INFO)
        assert len(contents.samples) + len(contents.damage) == INFO.samples


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"c.png": b"not a png"}, "not a readable image"),
        ({"c.png": None}, "image member is missing"),
        ({"c.json": None}, "json member is missing"),
        ({"c.json": b"{}"}, "json member is invalid: label"),
        ({"c.json": b"\xff"}, "json member is invalid"),
        ({"c.png": encode_png(np.zeros((8, 9, 1), np.uint8))}, r"image is \[8, 9, 1\]"),
        ({"c.png": encode_png(np.zeros((8, 8, 3), np.uint8))}, r"image is \[8, 8, 3\]"),
        ({"d.mask.png": None}, "mask member is missing"),
        ({"d.mask.png": encode_png(np.zeros((4, 4, 1), np.uint8))}, r"mask is \[4, 4\]"),
    ],
)
def test_damage_names_the_sample_and_the_reason(
    change: dict[str, bytes | None], reason: str
) -> None:
    members = {**_members(), **change}
    shard = _tar(*((name, content) for name, content in members.items() if content is not None))
    contents = read_shard(shard, INFO)
    assert len(contents.samples) == 3
    (row,) = contents.damage
    assert row.key == next(iter(change))[0]
    with pytest.raises(DataError, match=reason):
        raise DataError(row.reason)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "sub/evil"])
def test_hostile_names_are_damage(name: str) -> None:
    members = _members()
    shard = _tar((f"{name}.json", members["c.json"]), (f"{name}.png", members["c.png"]))
    contents = read_shard(shard, _info(shard, 1))
    assert contents.samples == []
    (row,) = contents.damage
    assert "/" not in row.key
    assert ".." not in row.key


def test_links_are_damage() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    shard = _tar(("c.json", _members()["c.json"]))
    contents = read_shard(buffer.getvalue() + shard, None)
    assert contents.samples == []
    assert "is not a file" in contents.damage[0].reason


def test_extra_samples_are_kept_and_the_checksum_tells() -> None:
    contents = read_shard(SHARD, replace_samples(INFO, 2))
    assert len(contents.samples) == 4
    assert not read_shard(write_shard(SAMPLES[:2]), INFO).checksum_ok


def replace_samples(info: ShardInfo, samples: int) -> ShardInfo:
    return info.model_copy(update={"samples": samples})


def test_sample_refuses_bad_keys_images_and_masks() -> None:
    good = SAMPLES[0]
    for key in ("", "a.b", "a/b", "ü", "x" * 81):
        with pytest.raises(DataError, match="key"):
            replace(good, key=key)
    with pytest.raises(DataError, match=r"uint8 \[8, 8\]"):
        replace(good, image=good.image[:, :, 0])
    with pytest.raises(DataError, match="float32"):
        replace(good, image=good.image.astype(np.float32))
    with pytest.raises(DataError, match="mask is"):
        replace(good, mask=np.zeros((2, 2), np.bool_))


def test_sixteen_bit_images_are_refused() -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, format="PNG")
    with pytest.raises(DataError, match="8-bit"):
        decode_image(buffer.getvalue())
