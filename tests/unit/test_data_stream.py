"""Streams: exact resume, disjoint ranks, bounded memory, nothing skipped silently."""

import numpy as np
import pytest
import torch

from data import stream as stream_module
from data.dataset import DatasetIndex
from data.errors import DataError
from data.pack import pack
from data.sample import Sample, Split
from data.store import Store
from data.stream import BatchStream, SampleStream, normalise

NUM_NORMAL, NUM_ABNORMAL = 22, 7


def _sample(number: int, split: Split) -> Sample:
    """A flat image whose grey value names the sample at every resolution."""
    image = np.full((8, 8, 1), number, np.uint8)
    return Sample(f"s{number}", image, "normal", "unit test", f"g{number}", "good", split)


@pytest.fixture
def packed(tmp_path) -> tuple[Store, DatasetIndex]:
    samples = [_sample(n, "train-normal") for n in range(NUM_NORMAL)]
    samples += [_sample(100 + n, "train-abnormal") for n in range(NUM_ABNORMAL)]
    store = Store(str(tmp_path))
    return store, pack(samples, store, resolution=8, name="n", seed=0, shard_samples=4)


def _stream(packed, split: Split = "train-normal", resolution: int = 8, **options) -> SampleStream:
    options = {"world_size": 2, "rank": 0, "seed": 5, **options}
    return SampleStream(*packed, split, resolution, **options)


def _values(stream: SampleStream, count: int) -> list[int]:
    return [int(next(stream)[0, 0, 0]) for _ in range(count)]


def test_images_are_channel_first_at_the_asked_resolution(packed) -> None:
    image = next(_stream(packed, resolution=4))
    assert image.shape == (1, 4, 4)
    assert image.dtype == np.uint8


def test_resume_equals_the_straight_stream_at_every_position(packed) -> None:
    straight = _values(_stream(packed), 40)
    for position in range(40):
        resumed = _stream(packed)
        resumed.seek(position)
        assert _values(resumed, 40 - position) == straight[position:]
        assert resumed.position == 40


def test_resolution_does_not_change_the_order(packed) -> None:
    assert _values(_stream(packed, resolution=4), 40) == _values(_stream(packed), 40)


def test_ranks_share_each_pass_without_overlap(packed) -> None:
    per_rank = NUM_NORMAL // 2
    ranks = [_values(_stream(packed, rank=rank), 3 * per_rank) for rank in (0, 1)]
    for start in range(0, 3 * per_rank, per_rank):
        once = ranks[0][start : start + per_rank] + ranks[1][start : start + per_rank]
        assert sorted(once) == list(range(NUM_NORMAL))
    assert ranks[0][:per_rank] != ranks[0][per_rank : 2 * per_rank]


def test_cached_shards_are_decoded_once_and_a_small_cache_changes_nothing(
    packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    read = stream_module.read_shard

    def counted(payload, shard):
        loads.append(shard.path)
        return read(payload, shard)

    monkeypatch.setattr(stream_module, "read_shard", counted)
    cached = _values(_stream(packed, world_size=1), 5 * NUM_NORMAL)
    assert sorted(loads) == sorted(s.path for s in packed[1].shards_of("train-normal"))
    loads.clear()
    # Room for two shards of four 8x8 images.
    tight = _stream(packed, world_size=1, cache_bytes=2 * 4 * 64)
    assert _values(tight, 5 * NUM_NORMAL) == cached
    assert len(loads) > 6
    assert tight._cache._used_bytes <= 2 * 4 * 64


def test_the_shard_used_longest_ago_is_dropped_first() -> None:
    cache = stream_module._ShardCache(limit_bytes=2)
    images = [np.zeros(1, np.uint8)]
    cache.put(0, images)
    cache.put(1, images)
    cache.get(0)
    cache.put(2, images)
    assert [cache.get(shard) is not None for shard in (0, 1, 2)] == [True, False, True]


def _damage(packed, path: str, start: int, content: bytes) -> None:
    store = packed[0]
    payload = bytearray(store.read_bytes(path))
    payload[start : start + len(content)] = content
    store.write_bytes(path, bytes(payload))


def test_damaged_shard_is_an_error_that_names_it(packed) -> None:
    _damage(packed, "train-normal/8/00001.tar", 0, bytes(512))
    with pytest.raises(
        DataError, match=r"train-normal/8/00001\.tar is damaged.*json member is missing"
    ):
        _values(_stream(packed), 40)


def test_changed_bytes_that_still_decode_are_an_error_too(packed) -> None:
    # The tar end marker: no sample is touched, only the digest changes.
    payload = packed[0].read_bytes("train-normal/8/00001.tar")
    _damage(packed, "train-normal/8/00001.tar", len(payload) - 1, b"x")
    with pytest.raises(DataError, match="sha256 differs"):
        _values(_stream(packed), 40)


def test_allowed_damage_is_replaced_recorded_and_resumable(packed) -> None:
    _damage(packed, "train-normal/8/00001.tar", 0, bytes(512))
    options = {"world_size": 1, "max_bad_fraction": 0.25}
    stream = _stream(packed, **options, cache_bytes=1)
    straight = _values(stream, 3 * NUM_NORMAL)
    assert len(set(straight)) == NUM_NORMAL - 1
    assert [row.reason for row in stream.damage] == [
        "its json member is missing",
        "sha256 differs from dataset.json",
    ]
    resumed = _stream(packed, **options)
    resumed.seek(30)
    assert _values(resumed, 20) == straight[30:50]
    with pytest.raises(DataError, match=r"25\.0%.*max_bad_fraction=0\.2\)"):
        _values(_stream(packed, world_size=1, max_bad_fraction=0.2), NUM_NORMAL)


def test_missing_shard_split_and_resolution_are_named(packed) -> None:
    packed[0].delete("train-normal/8/00002.tar")
    with pytest.raises(DataError, match=r"00002\.tar failed: no such object"):
        _values(_stream(packed), 40)
    with pytest.raises(DataError, match=r"validation has no shards"):
        _stream(packed, "validation")
    with pytest.raises(DataError, match=r"resolution=16; packed are \[4, 8\]"):
        _stream(packed, resolution=16)
    with pytest.raises(DataError, match="7 samples are fewer than 8 ranks"):
        _stream(packed, "train-abnormal", world_size=8)


def _batches(packed, prefetch: int, at: tuple[int, int] = (0, 0)) -> BatchStream:
    normal, abnormal = _stream(packed), _stream(packed, "train-abnormal")
    normal.seek(at[0])
    abnormal.seek(at[1])
    return BatchStream(normal, abnormal, batch=3, abnormal_batch=2, prefetch=prefetch)


def test_prefetch_changes_neither_batches_nor_state(packed) -> None:
    runs = []
    for prefetch in (0, 1, 3):
        batches = _batches(packed, prefetch)
        run = []
        for _ in range(12):
            batch = batches.next_batch()
            run.append((batch.normal.tolist(), batch.abnormal.tolist(), batches.state()))
        assert batch.normal.shape == (3, 1, 8, 8)
        assert batch.abnormal.dtype == torch.uint8
        assert batch.wait_s >= 0
        batches.close()
        runs.append(run)
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][-1][2] == {"normal": 36, "abnormal": 24}


def test_batches_resume_from_their_state(packed) -> None:
    batches = _batches(packed, prefetch=2)
    for _ in range(5):
        batches.next_batch()
    state = batches.state()
    wanted = [batches.next_batch().normal.tolist() for _ in range(5)]
    resumed = _batches(packed, 2, (state["normal"], state["abnormal"]))
    assert resumed.state() == state
    assert [resumed.next_batch().normal.tolist() for _ in range(5)] == wanted
    batches.close()
    resumed.close()


def test_without_abnormal_images_there_are_none(packed) -> None:
    batches = BatchStream(_stream(packed), None, batch=2)
    assert batches.next_batch().abnormal is None
    assert batches.state() == {"normal": 2, "abnormal": 0}
    batches.close()
    with pytest.raises(RuntimeError, match="closed"):
        batches.next_batch()


def test_error_while_reading_ahead_surfaces_at_its_batch_and_stays(packed) -> None:
    bad_position = next(
        position
        for position, (shard, _) in enumerate(_stream(packed)._order)
        if shard == _stream(packed)._order[-1][0]
    )
    last = packed[1].shards_of("train-normal")[_stream(packed)._order[-1][0]]
    packed[0].delete(last.path)
    batches = _batches(packed, prefetch=2)
    for _ in range(bad_position // 3):
        batches.next_batch()
    state = batches.state()
    for _ in range(2):
        with pytest.raises(DataError, match="no such object"):
            batches.next_batch()
    assert batches.state() == state


def test_normalise_maps_bytes_to_minus_one_and_one() -> None:
    images = normalise(torch.tensor([0, 255], dtype=torch.uint8))
    assert images.dtype == torch.float32
    assert images.tolist() == [-1.0, 1.0]
