"""IR-MNIST (Sabokrou et al. 2018, used by Kimura and Yanagihara 2018): puzzles of digits."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.importers.idx import find_idx, load_part
from data.item import ImportOptions, Item, Picture
from data.sample import Label, Split
from data.store import Store

CELLS = 11
CELL_PIXELS = 28
ABNORMAL_DIGIT = 3

# One training digit in so many is kept for the puzzles of validation.
_VALIDATION_STRIDE = 7
_SPLITS: tuple[Split, ...] = ("train-normal", "train-abnormal", "validation", "test")


def items(
    store: Store,
    options: ImportOptions,
    *,
    num_train_normal: int = 5000,
    num_train_abnormal: int = 200,
    num_validation: int = 400,
    num_test: int = 1000,
    abnormal_cells: tuple[int, int] = (1, 12),
) -> list[Item]:
    """Build puzzles of 11x11 random digits, 308x308 pixels, from the IDX files of MNIST.

    A normal puzzle has no digit 3. An abnormal one has as many as `abnormal_cells` says, each
    at a random place, and its mask is the 28x28 cell of each. Half of the validation and of the
    test puzzles are abnormal. Digits may stand in several puzzles, but those of the test come
    from MNIST's test file only, and those of training and validation are different ones of its
    training file. Each puzzle follows from `options.seed`, its split and its number alone.

    Args:
        store: folder of the IDX files.
        options: what all importers are told.
        num_train_normal: number of puzzles (the paper that made the set: 5000).
        num_train_abnormal: number of known abnormal puzzles.
        num_validation: number of puzzles.
        num_test: number of puzzles (the paper that made the set: 1000).
        abnormal_cells: least and most digits 3 in an abnormal puzzle, each number as likely.

    Raises:
        DataError: if a file is missing or a number out of range.
    """
    counts = (num_train_normal, num_train_abnormal, num_validation, num_test)
    if min(counts) < 0:
        raise DataError(f"numbers of puzzles {counts} must not be negative")
    if not 1 <= abnormal_cells[0] <= abnormal_cells[1] <= CELLS**2:
        raise DataError(f"abnormal_cells={abnormal_cells} are not two rising numbers in 1..121")
    for part in ("train", "test"):
        find_idx(store, part)
    return list(_items(store, options, counts, abnormal_cells))


def _items(
    store: Store, options: ImportOptions, counts: tuple[int, ...], abnormal_cells: tuple[int, int]
) -> Iterator[Item]:
    abnormal_share = {"train-normal": 0.0, "train-abnormal": 1.0}
    for split, count in zip(_SPLITS, counts, strict=True):
        num_abnormal = int(abnormal_share.get(split, 0.5) * count)
        for number in range(count):
            is_abnormal = number < num_abnormal
            cells = abnormal_cells if is_abnormal else (0, 0)
            label: Label = "abnormal" if is_abnormal else "normal"
            name = f"ir-mnist-{split}-{number:06d}"
            yield Item(
                key=name,
                read=partial(
                    read_puzzle, store, options.channels, split, number, options.seed, cells
                ),
                label=label,
                kind=f"digit-{ABNORMAL_DIGIT}" if is_abnormal else "good",
                group=name,
                source=f"IR-MNIST of {store.uri}, seed {options.seed}, {split} {number}",
                split=split,
            )


def read_puzzle(
    store: Store,
    channels: int | None,
    split: Split,
    number: int,
    seed: int,
    abnormal_cells: tuple[int, int],
) -> Picture:
    """Build one puzzle [308, 308, 1 or 3] and the mask of its abnormal cells [308, 308]."""
    images, pools = _pools(store, split)
    rng = np.random.default_rng((seed, _SPLITS.index(split), number))
    rows = rng.choice(pools[0], CELLS**2)
    is_abnormal = np.zeros(CELLS**2, np.bool_)
    num_abnormal = int(rng.integers(abnormal_cells[0], abnormal_cells[1], endpoint=True))
    is_abnormal[rng.choice(CELLS**2, num_abnormal, replace=False)] = True
    rows[is_abnormal] = rng.choice(pools[1], num_abnormal)
    grid = images[rows].reshape(CELLS, CELLS, CELL_PIXELS, CELL_PIXELS)
    side = CELLS * CELL_PIXELS
    image = grid.transpose(0, 2, 1, 3).reshape(side, side, 1)
    cells = is_abnormal.reshape(CELLS, CELLS)
    mask = np.kron(cells, np.ones((CELL_PIXELS, CELL_PIXELS), np.bool_)).astype(np.bool_)
    return np.repeat(image, channels or 1, axis=2), mask


def _pools(
    store: Store, split: Split
) -> tuple[NDArray[np.uint8], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the images a split draws from, and the rows of its normal and abnormal digits."""
    images, labels = load_part(store, "test" if split == "test" else "train")
    if images.shape[1:] != (CELL_PIXELS, CELL_PIXELS):
        raise DataError(f"images in {store.uri} are {list(images.shape[1:])}, not 28x28")
    rows = np.arange(len(labels))
    kept = rows % _VALIDATION_STRIDE == 0
    allowed = rows >= 0 if split == "test" else kept if split == "validation" else ~kept
    abnormal = labels == ABNORMAL_DIGIT
    pools = np.flatnonzero(allowed & ~abnormal), np.flatnonzero(allowed & abnormal)
    if not len(pools[0]) or not len(pools[1]):
        raise DataError(f"{store.uri} has no digit 3, or nothing else, for {split}")
    return images, pools
