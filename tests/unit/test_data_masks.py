"""Masks of known abnormal images: at every level, with their images in the stream, never silent."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.dataset import DatasetIndex
from data.errors import DataError
from data.pack import pack
from data.reader import SplitReader
from data.sample import Mask, Sample, encode_png
from data.shard_cache import ShardCache
from data.shard_file import ShardFile
from data.shards import read_shard
from data.store import Store
from data.stream import Batch, BatchStream, Share, read_images

SIDE = 16
NUM_MARKED = 9
NUM_ABNORMAL = NUM_MARKED + 2
ALL = ("flip_x", "flip_y", "rotate_90")
Packed = tuple[Store, DatasetIndex]


def _defect(number: int) -> Mask:
    """An L at another place for each number: no symmetry leaves it as it is."""
    mask = np.zeros((SIDE, SIDE), np.bool_)
    y, x = divmod(number, 4)
    mask[4 * y + 1 : 4 * y + 4, 4 * x + 1] = True
    mask[4 * y + 3, 4 * x + 2] = True
    return mask


def _sample(number: int) -> Sample:
    """White where the defect is and black elsewhere; without a marked defect grey all over."""
    mask: Mask | None = _defect(number)
    image = mask[:, :, None].astype(np.uint8) * 255
    if number >= NUM_MARKED:
        image = np.full_like(image, 100 + number)
        mask = None if number == NUM_MARKED else np.zeros((SIDE, SIDE), np.bool_)
    key = f"s{number}"
    return Sample(key, image, "abnormal", key, key, "dent", "train-abnormal", mask)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    samples = [_sample(number) for number in range(NUM_ABNORMAL)]
    samples += [
        replace(_sample(n), key=f"{split}-{n}", group=f"{split}-{n}", split=split)
        for split in ("train-normal", "test")
        for n in (0, 1, 2, NUM_MARKED)
    ]
    store = Store(str(tmp_path_factory.mktemp("packed")))
    return store, pack(samples, store, resolution=SIDE, name="n", seed=0, shard_samples=4)


def _reader(packed: Packed, resolution: int = SIDE, **options) -> SplitReader:
    options = {"lanes": 3, "seed": 5, "symmetries": ALL, "masks": True, **options}
    return SplitReader(ShardCache(packed[0]), packed[1], "train-abnormal", resolution, **options)


def _stream(packed: Packed, abnormal: SplitReader, at=None, **part: int) -> BatchStream:
    normal = SplitReader(ShardCache(packed[0]), packed[1], "train-normal", SIDE, lanes=2, seed=5)
    return BatchStream(normal, abnormal, batch=2, abnormal_batch=4, at=at, part=Share(**part))


def _take(stream: BatchStream, count: int) -> list[Batch]:
    batches = [stream.next_batch() for _ in range(count)]
    stream.close()
    return batches


def _shown(images: torch.Tensor) -> torch.Tensor:
    """Where images [N, 1, H, W] show a marked defect."""
    is_grey = (images > 0).all(dim=(1, 2, 3), keepdim=True)
    return (images > 0) & ~is_grey


def test_masks_lie_at_every_level_of_train_abnormal_and_elsewhere_at_the_native_one(packed) -> None:
    found = set()
    for shard in packed[1].shards:
        for sample in read_shard(packed[0].read_bytes(shard.path), shard).samples:
            has_defect = sample.key not in (f"s{NUM_MARKED}", f"s{NUM_MARKED + 1}")
            where = (shard.split, shard.resolution)
            found.add((*where, sample.mask is not None))
            if sample.mask is not None and has_defect:
                pooled = sample.image[:, :, 0] > 0
                assert np.array_equal(sample.mask, pooled), (sample.key, where)
    every = {("train-abnormal", side, known) for side in (4, 8, SIDE) for known in (True, False)}
    native = {(split, SIDE, known) for split in ("train-normal", "test") for known in (True, False)}
    assert found == every | native | {("train-normal", 4, False), ("train-normal", 8, False)}


@pytest.mark.parametrize("resolution", [4, 8, 16])
def test_a_mask_is_turned_as_its_image_under_all_symmetries(packed, resolution: int) -> None:
    batches = _take(_stream(packed, _reader(packed, resolution)), 250 if resolution == SIDE else 30)
    for batch in batches:
        assert batch.abnormal_mask is not None
        assert batch.abnormal_mask.dtype == torch.bool
        assert batch.abnormal_mask.shape == (4, 1, resolution, resolution)
        assert torch.equal(batch.abnormal_mask, _shown(batch.abnormal))
    seen = {m.numpy().tobytes() for batch in batches for m in batch.abnormal_mask}
    if resolution == SIDE:
        # Each L eight times, and nothing at all.
        assert len(seen) == 8 * NUM_MARKED + 1


def test_an_image_without_a_mask_or_with_an_empty_one_has_nothing_marked(packed) -> None:
    batches = _take(_stream(packed, _reader(packed)), 6)
    greys = {100 + NUM_MARKED: 0, 101 + NUM_MARKED: 0}
    for batch in batches:
        for image, mask in zip(batch.abnormal, batch.abnormal_mask, strict=True):
            grey = int(image[0, 0, 0])
            if grey in greys:
                greys[grey] += 1
                assert not mask.any()
    assert all(greys.values())


def test_masks_nobody_asks_for_are_not_read(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardFile, "mask", lambda *_: pytest.fail("read a mask"))
    (batch,) = _take(_stream(packed, _reader(packed, masks=False)), 1)
    assert batch.abnormal_mask is None
    assert batch.abnormal is not None
    stream = BatchStream(_reader(packed, masks=False), None, batch=2)
    assert _take(stream, 1)[0].abnormal_mask is None


def test_ranks_share_a_global_batch_and_a_resumed_stream_goes_on_with_the_next(packed) -> None:
    straight = _take(_stream(packed, _reader(packed)), 12)
    state, done = None, 0
    for count, world_size in ((3, 2), (4, 1), (5, 2)):
        parts = []
        for rank in range(world_size):
            part = {"world_size": world_size, "rank": rank, "num_threads": rank + 1}
            stream = _stream(packed, _reader(packed), state, **part)
            parts.append(_take(stream, count))
        for wanted, *shares in zip(straight[done : done + count], *parts, strict=True):
            for name in ("abnormal", "abnormal_mask"):
                whole = torch.cat([getattr(share, name) for share in shares])
                assert torch.equal(whole, getattr(wanted, name))
        state, done = stream.state(), done + count
    assert state == {"normal": 2 * 12, "abnormal": 4 * 12}


DAMAGED = {
    "no PNG": (b"no image", "not a PNG image"),
    "cut off": (encode_png(np.zeros((SIDE, SIDE, 1), np.uint8))[:-30], "not a readable PNG"),
    "another size": (encode_png(np.zeros((4, 4, 1), np.uint8)), "image is 4x4"),
    "in colour": (
        encode_png(np.zeros((SIDE, SIDE, 3), np.uint8)),
        "image is 16x16 with 8 bits, PNG colour type 2",
    ),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_an_image_with_a_damaged_mask_is_lost_and_the_next_comes_with_its_own(
    packed, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The shard is what was packed, so only a packer gone wrong can do this."""
    bad, reason = DAMAGED[how]
    spoiled = {encode_png(_sample(n).mask[:, :, None].astype(np.uint8) * 255) for n in (2, 7)}
    read = ShardFile.mask

    def damaged(self: ShardFile, sample: int) -> bytes | None:
        mask = read(self, sample)
        return bad if mask in spoiled else mask

    whole = _take(_stream(packed, _reader(packed)), 12)
    monkeypatch.setattr(ShardFile, "mask", damaged)
    runs = []
    for num_threads in (1, 3):
        reader = _reader(packed, max_bad_fraction=2 / NUM_ABNORMAL)
        runs.append(_take(_stream(packed, reader, num_threads=num_threads), 12))
        assert [loss.num_samples for loss in reader.losses] == [1, 1]
        assert all(f"its mask: {reason}" in loss.reason for loss in reader.losses), reader.losses
    for was, now, again in zip(whole, *runs, strict=True):
        assert torch.equal(now.abnormal, again.abnormal)
        assert torch.equal(now.abnormal_mask, again.abnormal_mask)
        assert torch.equal(now.abnormal_mask, _shown(now.abnormal))
        kept = (was.abnormal == now.abnormal).all(dim=(1, 2, 3))
        lost = [_number(image) in (2, 7) for image in was.abnormal]
        assert kept.tolist() == [not each for each in lost]
    with pytest.raises(DataError, match=rf"2 of {NUM_ABNORMAL} images .*its mask: {reason}"):
        _take(_stream(packed, _reader(packed, max_bad_fraction=0.1)), 12)
    _take(_stream(packed, _reader(packed, masks=False)), 12)


def _number(image: torch.Tensor) -> int | None:
    """Which sample an image shows, however it is turned; None without a marked defect."""
    picture = image[0].numpy()
    for number, turns in itertools.product(range(NUM_MARKED), range(4)):
        turned = np.rot90(_defect(number), turns).astype(np.uint8) * 255
        if np.array_equal(picture, turned) or np.array_equal(picture, turned[:, ::-1]):
            return number
    return None


def test_images_read_outside_a_stream_are_the_same_with_masks_and_without(packed) -> None:
    with_masks, without = (_reader(packed, masks=masks) for masks in (True, False))
    assert torch.equal(read_images(with_masks, range(9)), read_images(without, range(9)))
