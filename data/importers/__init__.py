"""Find the images people have, in the layout they have them, without reading them yet."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from data.dataset import INDEX_NAME
from data.errors import DataError
from data.importers import caltech256, folders, ir_mnist, mnist, mvtec, table, webdataset
from data.importers.files import is_image
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
        return table.items(Store(folder or "/"), options, table=name, **settings)
    store = Store(source)
    names: list[str] | None = None
    if format == "auto":
        names = store.list()
        format = _detect(store, names, options)
    if format in _LISTED:
        settings["names"] = names
    return _IMPORTERS[format](store, options, **settings)


def _detect(store: Store, names: Sequence[str], options: ImportOptions) -> str:
    """Return the format that the names show.

    Raises:
        DataError: if they show none, telling what was looked for, or shards beside another.
    """
    shards = [name for name in names if name.endswith((".tar", ".tar.gz", ".tgz"))]
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
