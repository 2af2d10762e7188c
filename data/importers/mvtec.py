"""Folders laid out as the MVTec anomaly detection data set (Bergmann et al. 2019)."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from data.errors import DataError
from data.importers.files import check_fraction, file_item, is_image, keys_for, shuffled, stem_of
from data.item import ImportOptions, Item, unique_keys
from data.sample import Split
from data.store import Store

_GOOD = "good"
_TRAIN, _TEST, _MASKS = "train/good/", "test/", "ground_truth/"


def items(
    store: Store,
    options: ImportOptions,
    *,
    validation_fraction: float = 0.2,
    labelled_fraction: float = 0.0,
    names: Sequence[str] | None = None,
) -> list[Item]:
    """Find the images of `train/good/`, `test/good/` and `test/<defect>/`.

    `ground_truth/<defect>/<stem>_mask.png` is the mask of `test/<defect>/<stem>.*`.

    The data set as published has no validation images and no known defects. Thresholds must not
    be fitted on test images, so a share of `train/good` becomes validation. With
    `labelled_fraction`, that share of each defect's test images is taken out of the test and
    goes in turn to train-abnormal and validation. Both choices follow `options.seed`; no image
    is in two splits. Results on a test set thinned this way do not compare with published ones.

    Args:
        store: the folder of one object category.
        options: what all importers are told.
        validation_fraction: share of `train/good` that becomes validation, 0..1.
        labelled_fraction: share of the defects that is known before the test, 0..1.
        names: the files in it, where they were listed before.

    Raises:
        DataError: if the layout is wrong or a fraction is out of range.
    """
    check_fraction("validation_fraction", validation_fraction)
    check_fraction("labelled_fraction", labelled_fraction)
    found = [name for name in (store.list() if names is None else names) if is_image(name)]
    images = [name for name in found if name.startswith((_TRAIN, _TEST))]
    masks = {name for name in found if name.startswith(_MASKS)}
    _check(store, found, images, masks)
    splits = dict(_splits(images, options.seed, validation_fraction, labelled_fraction))
    result = []
    for name, key in zip(images, keys_for(images), strict=True):
        kind, mask = _kind_of(name), _mask_of(name)
        item = file_item(
            (store, name),
            options,
            key=key,
            label="normal" if kind == _GOOD else "abnormal",
            kind=kind,
            mask=(store, mask) if mask in masks else None,
            split=splits[name],
        )
        result.append(item)
    return unique_keys(result)


def _kind_of(name: str) -> str:
    return PurePosixPath(name).parts[1]


def _mask_of(name: str) -> str:
    return f"{stem_of(name).replace(_TEST, _MASKS, 1)}_mask.png"


def _splits(
    images: Sequence[str], seed: int, validation_fraction: float, labelled_fraction: float
) -> Iterator[tuple[str, Split]]:
    """Yield the split of every image."""
    train = shuffled((name for name in images if name.startswith(_TRAIN)), seed)
    num_validation = round(validation_fraction * len(train))
    yield from ((name, "validation") for name in train[:num_validation])
    yield from ((name, "train-normal") for name in train[num_validation:])
    test = [name for name in images if name.startswith(_TEST)]
    for kind in sorted({_kind_of(name) for name in test}):
        part = shuffled((name for name in test if _kind_of(name) == kind), seed)
        known = 0 if kind == _GOOD else round(labelled_fraction * len(part))
        yield from ((name, "train-abnormal") for name in part[:known:2])
        yield from ((name, "validation") for name in part[1:known:2])
        yield from ((name, "test") for name in part[known:])


def _check(store: Store, found: list[str], images: list[str], masks: set[str]) -> None:
    if not any(name.startswith(_TRAIN) for name in images):
        raise DataError(f"{store.uri} has no images in {_TRAIN}; give one object category's folder")
    strange = next((name for name in images if len(PurePosixPath(name).parts) != 3), None)
    if strange:
        raise DataError(f"{store.url(strange)} lies in no defect's folder; move it into one")
    unknown = min(set(found) - set(images) - masks, default=None)
    if unknown:
        raise DataError(
            f"{store.url(unknown)} is in none of {_TRAIN}, {_TEST} and {_MASKS}; only good images "
            "are trained on, and validation is drawn from them: move it or take it out"
        )
    orphans = sorted(masks - {_mask_of(name) for name in images})
    if orphans:
        raise DataError(
            f"{store.url(orphans[0])} is the mask of no image; "
            "name it ground_truth/<defect>/<stem>_mask.png"
        )
