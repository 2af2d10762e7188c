"""Near-duplicates are found whatever was done to the copy; different pictures are not."""

import csv
import io
import os
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.duplicates import MAX_DISTANCE, Fingerprint, near_duplicates, perceptual_hash
from data.sample import Image8, Split
from data.synthetic import machined_surface

COPIES = {
    "half": lambda im: im.resize((im.width // 2, im.height // 2), Image.Resampling.BICUBIC),
    "double": lambda im: im.resize((im.width * 2, im.height * 2), Image.Resampling.BICUBIC),
    "jpeg": lambda im: _jpeg(im),
    "brighter": lambda im: im.point(lambda v: min(255, v * 1.05 + 4)),
    "colour": lambda im: im.convert("RGB"),
}


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("L")


def _pixels(image: Image.Image) -> Image8:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _distance(one: Image8, other: Image8) -> int:
    hashes = perceptual_hash(one), perceptual_hash(other)
    assert None not in hashes
    return (hashes[0] ^ hashes[1]).bit_count()  # type: ignore[operator]


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_surfaces_are_near_and_other_surfaces_far(how: str) -> None:
    surfaces = [machined_surface(key, 192, 256, defect=False)[0] for key in range(12)]
    for surface in surfaces:
        copy = _pixels(COPIES[how](Image.fromarray(surface[:, :, 0])))
        assert _distance(surface, copy) <= MAX_DISTANCE
    assert min(_distance(a, b) for a, b in combinations(surfaces, 2)) > MAX_DISTANCE


@pytest.mark.skipif(
    "BLEMISH_IMAGES" not in os.environ, reason="needs BLEMISH_IMAGES, a folder of real images"
)
@pytest.mark.parametrize("how", COPIES)
def test_copies_of_real_images_are_found_and_other_parts_are_not(how: str) -> None:
    root = Path(os.environ["BLEMISH_IMAGES"]) / "magnetic_tile"
    rows = list(csv.DictReader((root / "tiles.csv").open()))[::7]
    images = [Image.open(root / "images" / row["image"]).convert("L") for row in rows]
    hashes = [perceptual_hash(_pixels(image)) for image in images]
    near = [_distance(_pixels(im), _pixels(COPIES[how](im))) <= MAX_DISTANCE for im in images]
    assert np.mean(near) >= 0.95
    pairs = [
        (a ^ b).bit_count() <= MAX_DISTANCE  # type: ignore[operator]
        for (i, a), (j, b) in combinations(enumerate(hashes), 2)
        if rows[i]["part"] != rows[j]["part"]
    ]
    assert np.mean(pairs) < 0.002


def test_flat_images_have_no_hash() -> None:
    assert perceptual_hash(np.full((40, 40, 1), 7, np.uint8)) is None
    assert perceptual_hash(np.full((40, 40, 3), 7, np.uint8)) is None


def _prints(rows: list[tuple[Split, int]]) -> list[Fingerprint]:
    return [Fingerprint(f"k{i}", split, f"g{i}", bits) for i, (split, bits) in enumerate(rows)]


def _found(prints: list[Fingerprint]) -> set[tuple[str, str, int]]:
    return {(one.key, other.key, distance) for one, other, distance in near_duplicates(prints)}


def test_banding_finds_the_pairs_that_comparing_all_finds() -> None:
    rng = np.random.default_rng(0)
    splits: list[Split] = ["train-normal", "validation", "test"]
    rows = []
    for _ in range(60):
        base = int(rng.integers(0, 2**63))
        for split in splits:
            flipped = rng.choice(64, rng.integers(0, 9), replace=False)
            rows.append((split, base ^ sum(1 << int(bit) for bit in flipped)))
    prints = _prints(rows)
    expected = {
        (one.key, other.key, (one.bits ^ other.bits).bit_count())
        for one, other in combinations(sorted(prints, key=lambda p: splits.index(p.split)), 2)
        if one.split != other.split and (one.bits ^ other.bits).bit_count() <= MAX_DISTANCE
    }
    assert len(expected) > 50
    assert _found(prints) == expected
    assert near_duplicates(prints[::-1]) == near_duplicates(prints)


def test_same_split_and_same_group_are_no_news() -> None:
    one, other = _prints([("test", 5), ("test", 5)])
    assert _found([one, other]) == set()
    elsewhere = Fingerprint("k1", "train-normal", one.group, 5)
    assert _found([one, elsewhere]) == set()
    assert _found([one, Fingerprint("k1", "train-normal", "g1", 5)]) == {("k1", "k0", 0)}


def test_a_set_where_all_images_are_alike_costs_no_more_than_its_size() -> None:
    rows: list[tuple[Split, int]] = [
        ("test" if n % 2 else "train-normal", 9) for n in range(20_000)
    ]
    started_s = time.process_time()
    assert 0 < len(near_duplicates(_prints(rows))) <= 3 * len(rows)
    assert time.process_time() - started_s < 20
