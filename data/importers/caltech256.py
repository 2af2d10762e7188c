"""Caltech-256 (Griffin et al. 2007) by the outlier protocol of Sabokrou et al. 2018."""

import re
from collections.abc import Iterator, Sequence

from data.errors import DataError
from data.importers.files import check_fraction, file_item, is_image, keys_for, shuffled
from data.item import ImportOptions, Item, unique_keys
from data.sample import Label, Split
from data.store import Store

_CATEGORY = re.compile(r"(\d{3}\.[^/]+)/[^/]+")
_CLUTTER = "clutter"
_ALLOWED_INLIERS = (1, 3, 5)
_FIRST_IMAGES = 150

_Place = tuple[str, Label, Split]


def items(
    store: Store,
    options: ImportOptions,
    *,
    num_inliers: int = 1,
    outlier_fraction: float = 0.5,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    num_known_outliers: int = 0,
    names: Sequence[str] | None = None,
) -> list[Item]:
    """Find the images of one experiment among folders `001.ak47/` to `257.clutter/`.

    `num_inliers` categories are drawn by `options.seed`, and the first 150 images of each are
    the inliers. Outliers are drawn from the clutter category, so many that they are the
    fraction `outlier_fraction` of the test set, as far as there are enough. The paper repeats
    each experiment with three draws: use three seeds. It does not say how it splits the inliers
    into training and test; `fractions` does. The known outliers are an addition for training
    with known anomalies; they are never in the test set.

    Args:
        store: the folder that holds the category folders.
        options: what all importers are told.
        num_inliers: number of inlier categories: 1, 3 or 5.
        outlier_fraction: fraction of the test set that is outliers, 0..0.5.
        fractions: train, validation and test fraction of the inliers; their sum is 1.
        num_known_outliers: clutter images for train-abnormal, and as many for validation.
        names: the files in it, where they were listed before.

    Raises:
        DataError: if the folders or numbers do not allow the experiment.
    """
    if num_inliers not in _ALLOWED_INLIERS:
        raise DataError(f"num_inliers={num_inliers} is not one of {list(_ALLOWED_INLIERS)}")
    check_fraction("outlier_fraction", outlier_fraction)
    if outlier_fraction > 0.5 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"outlier_fraction={outlier_fraction} must be at most 0.5, and fractions={fractions} "
            "must be non-negative and sum to 1"
        )
    categories, clutter = _categories(store, store.list() if names is None else names)
    if len(categories) < num_inliers:
        raise DataError(f"{store.uri} has {len(categories)} categories, {num_inliers} are needed")
    chosen = shuffled(categories, options.seed)[:num_inliers]
    places = list(_inliers([categories[name] for name in chosen], options.seed, fractions))
    num_test = sum(split == "test" for _, _, split in places)
    num_outliers = round(outlier_fraction / (1 - outlier_fraction) * num_test)
    drawn = shuffled(clutter, options.seed)
    places += _outliers(drawn, num_known_outliers, num_outliers)
    paths = [path for path, _, _ in places]
    return unique_keys(
        [
            file_item(
                (store, path), options, key=key, label=label, kind=path.split("/")[0], split=split
            )
            for (path, label, split), key in zip(places, keys_for(paths), strict=True)
        ]
    )


def _categories(store: Store, names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the images of each category in their order, and those of the clutter."""
    categories: dict[str, list[str]] = {}
    for name in sorted(names):
        match = _CATEGORY.fullmatch(name)
        if match and is_image(name):
            categories.setdefault(match[1], []).append(name)
    clutter = [name for name in categories if name.split(".", 1)[1] == _CLUTTER]
    if len(clutter) != 1:
        raise DataError(f"{store.uri} has {len(clutter)} folders <number>.clutter, not one")
    return categories, categories.pop(clutter[0])


def _inliers(
    categories: list[list[str]], seed: int, fractions: tuple[float, float, float]
) -> Iterator[_Place]:
    for images in categories:
        drawn = shuffled(images[:_FIRST_IMAGES], seed)
        train = round(fractions[0] * len(drawn))
        validation = train + round(fractions[1] * len(drawn))
        yield from ((path, "normal", "train-normal") for path in drawn[:train])
        yield from ((path, "normal", "validation") for path in drawn[train:validation])
        yield from ((path, "normal", "test") for path in drawn[validation:])


def _outliers(drawn: list[str], num_known: int, num_test: int) -> Iterator[_Place]:
    if num_known < 0 or 2 * num_known > len(drawn):
        raise DataError(
            f"num_known_outliers={num_known} is not in 0..{len(drawn) // 2}: half of the clutter"
        )
    yield from ((path, "abnormal", "train-abnormal") for path in drawn[:num_known])
    yield from ((path, "abnormal", "validation") for path in drawn[num_known : 2 * num_known])
    tested = drawn[2 * num_known : 2 * num_known + num_test]
    yield from ((path, "abnormal", "test") for path in tested)
