"""Streams: exact position in any world, nothing skipped silently, errors where they belong."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.augment import turned
from data.dataset import DatasetIndex
from data.errors import DataError, StoreUnavailableError
from data.pack import pack
from data.reader import Encoded, Loss, SplitReader
from data.sample import Sample, Split, encode_png
from data.shard_cache import ShardCache
from data.store import Store
from data.stream import BatchStream, Share, normalise, read_images

NUM_NORMAL, NUM_ABNORMAL = 22, 7
Packed = tuple[Store, DatasetIndex]


def _sample(number: int, split: Split) -> Sample:
    """A flat image whose grey value names the sample at every resolution."""
    image = np.full((8, 8, 1), number, np.uint8)
    return Sample(f"s{number}", image, "normal", "unit test", f"g{number}", "good", split)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    samples = [_sample(n, "train-normal") for n in range(NUM_NORMAL)]
    samples += [_sample(100 + n, "train-abnormal") for n in range(NUM_ABNORMAL)]
    store = Store(str(tmp_path_factory.mktemp("packed")))
    return store, pack(samples, store, resolution=8, name="n", seed=0, shard_samples=4)


@pytest.fixture
def packed(untouched: Packed, tmp_path) -> Packed:
    """A copy that a test may damage."""
    store = Store(str(tmp_path))
    for path in untouched[0].list():
        store.write_bytes(path, untouched[0].read_bytes(path))
    return store, untouched[1]


def _reader(packed: Packed, split: Split = "train-normal", resolution: int = 8, **options):
    options = {"lanes": 4, "seed": 5, **options}
    return SplitReader(ShardCache(packed[0]), packed[1], split, resolution, **options)


def _values(reader: SplitReader, numbers: range) -> list[int]:
    return [int(reader.decode(n, p)[0, 0, 0]) for n, p in reader.payloads(numbers)]


def _stream(packed: Packed, at: dict[str, int] | None = None, **part: int) -> BatchStream:
    normal, abnormal = _reader(packed), _reader(packed, "train-abnormal", lanes=2)
    return BatchStream(normal, abnormal, batch=4, abnormal_batch=2, at=at, part=Share(**part))


def _take(stream: BatchStream, count: int) -> list[tuple[list[int], list[int]]]:
    """The grey values of `count` batches; closes the stream."""
    batches = [stream.next_batch() for _ in range(count)]
    stream.close()
    return [
        (batch.normal[:, 0, 0, 0].tolist(), batch.abnormal[:, 0, 0, 0].tolist())
        for batch in batches
    ]


def test_images_have_the_asked_resolution_and_its_order_is_that_of_the_others(untouched) -> None:
    reader = _reader(untouched, resolution=4)
    ((number, payload),) = reader.payloads(range(1))
    assert reader.decode(number, payload).shape == (4, 4, 1)
    numbers = range(3 * NUM_NORMAL)
    assert _values(reader, numbers) == _values(_reader(untouched), numbers)


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_killed_and_resumed_by_other_ranks_equals_the_straight_run(untouched, data) -> None:
    """Kill points, world sizes, threads and read-ahead at random: the same global batches."""
    straight = _take(_stream(untouched), 24)
    state, done = None, 0
    while done < 24:
        world_size = data.draw(st.sampled_from([1, 2]))
        count = data.draw(st.integers(1, 24 - done))
        ranks = []
        for rank in range(world_size):
            part = {
                "num_threads": data.draw(st.integers(1, 3)),
                "prefetch": data.draw(st.integers(0, 3)),
            }
            stream = _stream(untouched, state, world_size=world_size, rank=rank, **part)
            ranks.append(_take(stream, count))
        for wanted, *parts in zip(straight[done : done + count], *ranks, strict=True):
            normal = list(itertools.chain.from_iterable(part[0] for part in parts))
            abnormal = list(itertools.chain.from_iterable(part[1] for part in parts))
            assert (normal, abnormal) == wanted
        state, done = stream.state(), done + count
        assert state == {"normal": 4 * done, "abnormal": 2 * done}


def test_each_kind_is_read_once_a_pass_at_its_own_rate(untouched) -> None:
    batches = _take(_stream(untouched), 11)
    normal = [value for batch in batches for value in batch[0]]
    abnormal = [value for batch in batches for value in batch[1]]
    for line, first, size in ((normal, 0, NUM_NORMAL), (abnormal, 100, NUM_ABNORMAL)):
        passes = [line[i : i + size] for i in range(0, len(line) - size + 1, size)]
        assert len(passes) >= 2
        for one in passes:
            assert sorted(one) == list(range(first, first + size))
        assert passes[0] != passes[1]


def _shard_of(packed: Packed, number: int = 0) -> str:
    reader = _reader(packed)
    return reader.shards[reader.order.locate(number)[0]].path


def _damage(packed: Packed, path: str, start: int, content: bytes) -> None:
    payload = bytearray(packed[0].read_bytes(path))
    payload[start : start + len(content)] = content
    packed[0].write_bytes(path, bytes(payload))


def test_lost_shard_is_an_error_that_names_it_and_the_limit(packed) -> None:
    path = _shard_of(packed)
    _damage(packed, path, 0, bytes(512))
    message = rf"of 22 images .*train-normal.*max_bad_fraction=0\.0 .*{path} has another sha256"
    with pytest.raises(DataError, match=message):
        _values(_reader(packed), range(NUM_NORMAL))


@pytest.mark.parametrize("how", ["missing", "truncated", "one byte", "longer"])
def test_tolerated_loss_is_listed_replaced_and_the_same_after_a_resume(packed, how: str) -> None:
    path = _shard_of(packed, 3)
    payload = packed[0].read_bytes(path)
    changed = {"truncated": payload[:-512], "longer": payload + bytes(512)}
    # In the end marker, where no sample is touched and a tar reader would not even look.
    changed["one byte"] = payload[:-1] + b"x"
    packed[0].delete(path) if how == "missing" else packed[0].write_bytes(path, changed[how])
    lost = next(s.samples for s in packed[1].shards if s.path == path)
    options = {"max_bad_fraction": lost / NUM_NORMAL}
    reader = _reader(packed, **options)
    straight = _values(reader, range(3 * NUM_NORMAL))
    assert len(set(straight)) == NUM_NORMAL - lost
    # Others stand in for them one each, and not one for all.
    counts = np.unique(straight[:NUM_NORMAL], return_counts=True)[1]
    assert sorted(counts) == [1] * (NUM_NORMAL - 2 * lost) + [2] * lost
    ((loss_path, sample, count, reason),) = [
        (row.path, row.sample, row.num_samples, row.reason) for row in reader.losses
    ]
    assert (loss_path, sample, count) == (path, None, lost)
    expected = {"missing": "No such file", "truncated": "bytes", "longer": "bytes"}
    assert expected.get(how, "sha256") in reason
    assert _values(_reader(packed, **options), range(30, 50)) == straight[30:50]
    with pytest.raises(DataError, match="are damaged"):
        _values(_reader(packed, max_bad_fraction=(lost - 1) / NUM_NORMAL), range(NUM_NORMAL))


def test_image_of_the_wrong_size_or_no_image_gives_way_to_the_next(
    untouched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard is what was packed, so only a packer gone wrong can do this."""
    straight = _take(_stream(untouched), 8)
    bad = {straight[2][0][1]: b"no image", straight[5][0][3]: encode_png(np.zeros((4, 4, 1), "u1"))}
    names = {encode_png(np.full((8, 8, 1), value, np.uint8)): value for value in range(256)}
    decode = SplitReader.decode

    def spoiled(self, number: int, payload: Encoded):
        image = bad.get(names[payload.image], payload.image)
        return decode(self, number, payload._replace(image=image))

    monkeypatch.setattr(SplitReader, "decode", spoiled)

    def run() -> tuple[list[int], list[Loss]]:
        reader = _reader(untouched, max_bad_fraction=0.1)
        stream = BatchStream(reader, None, batch=4)
        values = [v for _ in range(8) for v in stream.next_batch().normal[:, 0, 0, 0].tolist()]
        stream.close()
        return values, stream.losses

    values, losses = run()
    wanted = [value for batch in straight for value in batch[0]]
    differing = [was for was, now in zip(wanted, values, strict=True) if was != now]
    assert set(differing) == set(bad)
    assert not set(bad) & set(values)
    assert {loss.num_samples for loss in losses} == {1}
    assert any("not a PNG image" in loss.reason for loss in losses)
    assert any("image is 4x4" in loss.reason for loss in losses)
    assert run() == (values, losses)


def _spoil_first(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let the first image not decode any more; returns what it holds."""
    decode = SplitReader.decode

    def spoiled(self: SplitReader, number: int, payload: Encoded):
        image = decode(self, number, payload)
        if image[0, 0, 0] == lost:
            raise DataError("spoiled")
        return image

    lost = _values(_reader(packed), range(1))[0]
    monkeypatch.setattr(SplitReader, "decode", spoiled)
    return lost


def test_images_read_outside_a_stream_are_those_of_the_stream_losses_replaced(
    untouched, monkeypatch
) -> None:
    _spoil_first(untouched, monkeypatch)
    reader = _reader(untouched, max_bad_fraction=0.5)
    images = read_images(reader, range(8))
    stream = BatchStream(_reader(untouched, max_bad_fraction=0.5), None, batch=8)
    assert torch.equal(images, stream.next_batch().normal)
    stream.close()
    assert images.shape == (8, 1, 8, 8)
    assert [loss.reason for loss in reader.losses] == ["spoiled"]


def test_a_store_that_does_not_answer_is_no_loss(untouched, monkeypatch) -> None:
    def silent(self, shard):
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(ShardCache, "open", silent)
    reader = _reader(untouched, max_bad_fraction=1.0)
    with pytest.raises(StoreUnavailableError):
        reader.payloads(range(1))
    assert reader.losses == []


def test_everything_lost_is_an_error_whatever_is_tolerated(packed) -> None:
    for shard in packed[1].shards_of("train-normal"):
        packed[0].delete(shard.path)
    with pytest.raises(DataError, match="22 of 22 images"):
        _values(_reader(packed, max_bad_fraction=1.0), range(1))


def test_missing_split_and_resolution_are_named(untouched) -> None:
    with pytest.raises(DataError, match=r"validation has no shards"):
        _reader(untouched, "validation")
    with pytest.raises(DataError, match=r"resolution=16; packed are \[4, 8\]"):
        _reader(untouched, resolution=16)


def test_error_while_reading_ahead_surfaces_at_its_batch_and_stays(packed) -> None:
    order = _reader(packed).order
    first = next(n for n in range(8, NUM_NORMAL) if order.locate(n)[0] not in _touched(order, n))
    packed[0].delete(_shard_of(packed, first))
    stream = BatchStream(_reader(packed), None, batch=4, part=Share(prefetch=3))
    for _ in range(first // 4):
        stream.next_batch()
    state = stream.state()
    for _ in range(2):
        with pytest.raises(DataError, match="No such file"):
            stream.next_batch()
    assert stream.state() == state


@pytest.mark.parametrize(("kept_batches", "ahead"), [(1000, 3), (8, 2), (3, 0)])
def test_shards_are_fetched_ahead_once_a_pass_as_far_as_the_cache_keeps_them(
    untouched, monkeypatch, kept_batches: int, ahead: int
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("data.stream._LOOK_AHEAD", 3)
    monkeypatch.setattr(SplitReader, "fetch", lambda s, shard: fetched.append(s.shards[shard].path))
    wanted = []
    readers = [_reader(untouched), _reader(untouched, "train-abnormal", lanes=2)]
    for reader, batch in zip(readers, (4, 2), strict=True):
        reader.num_kept = kept_batches * batch
        # 20 batches handed out, one more read.
        numbers = range((21 + ahead) * batch)
        places = {(n // reader.order.num_samples, reader.order.locate(n)[0]) for n in numbers}
        wanted += [reader.shards[shard].path for _, shard in places]
    stream = BatchStream(*readers, batch=4, abnormal_batch=2, part=Share(prefetch=0))
    for _ in range(20):
        stream.next_batch()
    deadline_s = time.monotonic() + 10
    while len(fetched) < len(wanted) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    stream.close()
    assert sorted(fetched) == sorted(wanted)


def test_what_the_cache_keeps_is_counted_in_images(untouched) -> None:
    num_bytes = sum(s.bytes for s in untouched[1].shards_of("train-normal", 8))
    cache = ShardCache(untouched[0], limit_bytes=3 * num_bytes)
    reader = SplitReader(cache, untouched[1], "train-normal", 8, lanes=4, seed=0)
    assert reader.num_kept == 3 * NUM_NORMAL


def _touched(order, number: int) -> set[int]:
    """Shards of the batches of four before that of `number`."""
    return {order.locate(n)[0] for n in range(number // 4 * 4)}


def test_without_abnormal_images_there_are_none_and_a_closed_stream_says_so(untouched) -> None:
    stream = BatchStream(_reader(untouched), None, batch=2)
    batch = stream.next_batch()
    assert batch.abnormal is None
    assert batch.normal.dtype == torch.uint8
    assert batch.normal.shape == (2, 1, 8, 8)
    assert batch.wait_s >= 0
    assert stream.state() == {"normal": 2, "abnormal": 0}
    stream.close()
    with pytest.raises(RuntimeError, match="closed"):
        stream.next_batch()


def test_symmetries_are_drawn_by_number_alone_and_each_appears() -> None:
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    drawn = [turned(image, ("flip_x", "rotate_90"), seed=1, number=n).tobytes() for n in range(99)]
    again = [turned(image, ("flip_x", "rotate_90"), seed=1, number=n).tobytes() for n in range(99)]
    assert drawn == again
    flipped = image[:, ::-1]
    four = {image.tobytes(), flipped.tobytes(), np.rot90(image).tobytes()}
    four.add(np.rot90(flipped).tobytes())
    assert set(drawn) == four
    every = [turned(image, ("flip_x", "flip_y", "rotate_90"), seed=1, number=n) for n in range(200)]
    assert len({view.tobytes() for view in every}) == 8
    assert turned(image, (), seed=1, number=5) is image


def test_normalise_maps_bytes_to_minus_one_and_one() -> None:
    images = normalise(torch.tensor([0, 255], dtype=torch.uint8))
    assert images.dtype == torch.float32
    assert images.tolist() == [-1.0, 1.0]


def test_a_damaged_image_met_twice_in_a_batch_costs_no_other_one(untouched, monkeypatch) -> None:
    lost = _spoil_first(untouched, monkeypatch)
    reader = _reader(untouched, max_bad_fraction=0.5)
    values = read_images(reader, range(2 * NUM_NORMAL))[:, 0, 0, 0].tolist()
    assert [loss.num_samples for loss in reader.losses] == [1]
    assert set(values) == set(range(NUM_NORMAL)) - {lost}
