"""One folder per class."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from data.errors import DataError
from data.importers.files import file_item, is_image, keys_for, stem_of
from data.item import ImportOptions, Item, unique_keys
from data.store import Store

NORMAL_FOLDERS = ("normal", "good")
_IMAGE_FOLDER = "images/"
_MASK_FOLDER = "masks/"


def items(
    store: Store, options: ImportOptions, *, names: Sequence[str] | None = None
) -> list[Item]:
    """Find the images of a folder with one sub-folder per class.

    `normal/` or `good/` (or the folders of `options.normal_kinds`) holds the normal images;
    every other folder is a kind of anomaly. `masks/<kind>/<stem>.png`, where there, marks the
    defect's pixels (non-zero). All class folders may lie in one folder `images/`. Other files
    are ignored. The splits are left open.

    Args:
        store: the folder.
        options: what all importers are told.
        names: the files in it, where they were listed before.

    Raises:
        DataError: if the layout is wrong.
    """
    found = [name for name in (store.list() if names is None else names) if is_image(name)]
    masks = {
        stem_of(name.removeprefix(_MASK_FOLDER)): name
        for name in found
        if name.startswith(_MASK_FOLDER)
    }
    nested = all(name.startswith((_IMAGE_FOLDER, _MASK_FOLDER)) for name in found)
    images = {
        name: name.removeprefix(_IMAGE_FOLDER) if nested else name
        for name in found
        if not name.startswith(_MASK_FOLDER)
    }
    normal_kinds = set(options.normal_kinds or NORMAL_FOLDERS)
    _check(store, images, masks, normal_kinds)
    result = []
    for (name, path), key in zip(images.items(), keys_for(list(images.values())), strict=True):
        kind = PurePosixPath(path).parts[0]
        mask = masks.get(stem_of(path))
        item = file_item(
            (store, name),
            options,
            key=key,
            label="normal" if kind in normal_kinds else "abnormal",
            kind=kind,
            mask=(store, mask) if mask else None,
            group=stem_of(path),
        )
        result.append(item)
    return unique_keys(result)


def _check(
    store: Store, images: dict[str, str], masks: dict[str, str], normal_kinds: set[str]
) -> None:
    stray = next((name for name, path in images.items() if "/" not in path), None)
    if stray:
        raise DataError(f"{store.url(stray)} lies in no class folder; move it into one")
    kinds = {PurePosixPath(path).parts[0] for path in images.values()}
    if not kinds & normal_kinds:
        wanted = " or ".join(f"{kind}/" for kind in sorted(normal_kinds, reverse=True))
        raise DataError(
            f"{store.uri} has no images in {wanted}; image folders found: {sorted(kinds) or 'none'}"
        )
    orphans = sorted(masks.keys() - {stem_of(path) for path in images.values()})
    if orphans:
        raise DataError(f"{store.url(masks[orphans[0]])} is the mask of no image; rename it")
