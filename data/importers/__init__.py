"""Find the images people have, in the layout they have them, without reading them yet."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from data.dataset import INDEX_NAME
from data.errors import DataError
from data.importers import caltech256, folders, ir_mnist, mnist, mvtec, table, webdataset
from data.importers.files import is_hidden, is_image
from data.importers.mnist import contaminants_for, mnist_subset
from data.item import ImportOptions, Item
from data.store import Store

__all__ = ["FORMATS", "Format", "contaminants_for", "import_items", "mnist_subset"]

Format = Literal[
    "auto", "folders", "mvtec", "table", "webdataset", "mnist", "ir-mnist", "caltech256"
]
FORMATS: tuple[Format, ...] = get_args(Format)

_IMPORTERS: dict[str, Callable[..., list[Item]]] = {
    "folders": folders.items,
    "mvtec": mvtec.items,
    "webdataset": webdataset.items,
    "mnist": mnist.items,
    "ir-mnist": ir_mnist.items,
    "caltech256": caltech256.items,
}
_LISTED = {"folders", "mvtec", "webdataset", "caltech256"}
_KNOWS_NORMAL = {"mvtec", "ir-mnist", "caltech256"}
"""Formats that say themselves which images are normal."""
_log = logging.getLogger(__name__)
_SHOWN = 20
_LOOKED_FOR = (
    "*.tar (webdataset); train-images-idx3-ubyte[.gz] (mnist); train/good/ and test/ (mvtec); "
    "001.<category>/ and <number>.clutter/ (caltech256); normal/ or good/ or a folder of "
    "normal_kinds (folders); or name a .csv or .parquet file (table)"
)


def import_items(source: str, format: str, options: ImportOptions, **settings: Any) -> list[Item]:
    """Find the images of a source, of one format or of the one that its files show.

    Args:
        source: a folder, or the file of a table; a path or `s3://...`.
        format: one of `FORMATS`; `auto` looks at the names of the files. `ir-mnist` has the
            files of `mnist` and is never guessed.
        options: what all importers are told.
        **settings: keyword arguments of the format's `items` function.

    Raises:
        DataError: if nothing fits, or the importer finds something wrong.
    """
    if format not in FORMATS:
        raise DataError(f"format={format!r} is not one of {', '.join(FORMATS)}")
    if format == "table" or (format == "auto" and source.lower().endswith(table.SUFFIXES)):
        folder, _, name = Store(source).uri.rpartition("/")
        found = table.items(Store(folder or "/"), options, table=name, **settings)
        return _with_kinds(found, options, source)
    store = Store(source)
    names = store.list() if format == "auto" or format in _LISTED else []
    if format == "auto":
        format = _detect(store, names, options)
    if options.normal_kinds and format in _KNOWS_NORMAL:
        raise DataError(
            f"normal_kinds={list(options.normal_kinds)} has no meaning for the format {format}, "
            "which says itself what is normal; leave it out, or name another format"
        )
    if format in _LISTED:
        settings["names"] = names
    found = _IMPORTERS[format](store, options, **settings)
    if format in _LISTED - {"webdataset"}:
        _tell_of_others([name for name in names if not is_image(name)], source)
    return found if format == "mnist" else _with_kinds(found, options, source)


def _with_kinds(found: list[Item], options: ImportOptions, source: str) -> list[Item]:
    """The items, if every kind called normal is among them: one misspelt would train as a defect.

    Raises:
        DataError: naming one that is not.
    """
    kinds = {item.kind for item in found}
    unknown = next((kind for kind in options.normal_kinds if kind not in kinds), None)
    if unknown is not None:
        shown = ", ".join(sorted(kinds)[:_SHOWN])
        raise DataError(
            f"normal_kinds has {unknown!r}, of which {source} has no image; it has {shown}"
        )
    return found


def _tell_of_others(names: Sequence[str], source: str) -> None:
    """Say how many files are left out: of other names than images have, or hidden."""
    if names:
        _log.warning(
            "%d files of %s are hidden or no images by their names, such as %s: left out",
            len(names),
            source,
            names[0],
        )


def _detect(store: Store, names: Sequence[str], options: ImportOptions) -> str:
    """Return the format that the names show.

    Raises:
        DataError: if they show none, telling what was looked for, or shards beside another.
    """
    endings = (".tar", ".tar.gz", ".tgz")
    shards = [name for name in names if name.endswith(endings) and not is_hidden(name)]
    layout = _layout(names, options)
    if shards and layout and INDEX_NAME not in names:
        raise DataError(
            f"{store.uri} has shards ({shards[0]}) and the files of {layout}; set pack.format to "
            f"webdataset or {layout}"
        )
    if shards or layout:
        return "webdataset" if shards else layout
    if not names and not store.exists():
        raise DataError(f"there is nothing at {store.uri}; give the folder of the images")
    found = ", ".join(sorted(names)[:5]) or "nothing"
    raise DataError(f"{store.uri} is of no known format (found {found}); looked for {_LOOKED_FOR}")


def _layout(names: Sequence[str], options: ImportOptions) -> str:
    """Return the format of files that are no shards; empty where they are of none."""
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    if any(re.fullmatch(r"train-images[-.]idx3-ubyte(\.gz)?", name) for name in names):
        return "mnist"
    images = [name for name in names if is_image(name)]
    if "test" in tops and any(name.startswith("train/good/") for name in images):
        return "mvtec"
    if any(re.fullmatch(r"\d{3}\.clutter", top) for top in tops):
        return "caltech256"
    normal = tuple(f"{kind}/" for kind in options.normal_kinds or folders.NORMAL_FOLDERS)
    if any(name.removeprefix("images/").startswith(normal) for name in images):
        return "folders"
    return ""
