"""A table of images: CSV or Parquet."""

import csv
import difflib
import io
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError
from data.importers.files import KINDS, LABELS, Location, file_item, keys_for, split_named, stem_of
from data.item import ImportOptions, Item, unique_keys
from data.sample import Label, Split, side_of
from data.store import Store

COLUMNS = ("image", "label", "mask", "group", "split", "kind")
SUFFIXES = (".csv", ".parquet")


_Row = dict[str, str]


def items(
    store: Store,
    options: ImportOptions,
    *,
    table: str,
    columns: Mapping[str, str] | None = None,
) -> list[Item]:
    """Find the images that a table lists.

    Only the column `image` is needed; an empty cell is as good as a missing column.

    - image: path relative to the table's folder, or a full location (`s3://...` or absolute).
    - label: normal, abnormal or unlabelled. Where it is not given, kinds in
      `options.normal_kinds` are normal and, if that names any, all other kinds abnormal.
    - mask: location of the defect mask, like `image`.
    - group: the physical part; its images must be in one split. Without it, each image is one.
    - split: train-normal, train-abnormal, validation, test; or train, which the label decides.
    - kind: free class name.

    Other columns are ignored, unless one looks like a misspelt one of these.

    Args:
        store: folder of the table.
        options: what all importers are told.
        table: name of the table in it, `.csv` (UTF-8, with a header) or `.parquet`.
        columns: names that the table has for our columns, such as `{"group": "part"}`.

    Raises:
        DataError: with the row, counted from 1 after the header, if a row cannot be used.
    """
    url = store.url(table)
    rows = list(_rows(store, table, dict(columns or {})))
    if not rows:
        raise DataError(f"{url} has no rows")
    images = _locations(store, url, rows, "image")
    _check_twice(url, [image for image in images if image])
    keys = keys_for([row["image"] for row in rows])
    masks = _locations(store, url, rows, "mask")
    result = []
    for number, row in enumerate(rows, start=1):
        label, kind = _label_and_kind(row, options, f"{url} row {number}")
        image = images[number - 1]
        assert image is not None
        item = file_item(
            image,
            options,
            key=keys[number - 1],
            label=label,
            kind=kind,
            mask=masks[number - 1],
            group=row.get("group") or stem_of(row["image"]),
            split=split_named(row.get("split", ""), label, f"{url} row {number}"),
        )
        result.append(item)
    _check_groups(url, result)
    return unique_keys(result)


def _rows(store: Store, table: str, columns: dict[str, str]) -> Iterator[_Row]:
    """Yield our columns of each row, without blanks around the values."""
    url = store.url(table)
    if not table.lower().endswith(SUFFIXES):
        raise DataError(f"{url} is no table; allowed are {' and '.join(SUFFIXES)}")
    payload = store.read_bytes(table)
    is_csv = table.lower().endswith(".csv")
    rows = _csv_rows(payload, url) if is_csv else _parquet_rows(payload, url)
    names = next(rows)
    places = _places([str(name).strip() for name in names], columns, url)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise DataError(
                f"{url} row {number} has {len(row)} values, the header {len(names)} columns"
            )
        yield {ours: _text(row[place]) for ours, place in places.items()}


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _csv_rows(payload: bytes, url: str) -> Iterator[list[object]]:
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{url} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    try:
        rows: Iterator[list[object]] = (
            list(row) for row in csv.reader(io.StringIO(text, newline="")) if row
        )
        first = next(rows, None)
        if first is None:
            raise DataError(f"{url} is empty; its first line must name the columns")
        yield first
        yield from rows
    except csv.Error as error:
        raise DataError(f"{url} is no readable CSV: {error}") from error


def _parquet_rows(payload: bytes, url: str) -> Iterator[list[object]]:
    try:
        file = pq.ParquetFile(io.BytesIO(payload))
        names = file.schema_arrow.names
        yield list(names)
        for batch in file.iter_batches():
            yield from ([row[name] for name in names] for row in batch.to_pylist())
    # A page that does not unpack is an OSError, a text in it that is no UTF-8 a ValueError.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{url} is no readable Parquet file: {error}") from error


def _places(names: list[str], columns: dict[str, str], url: str) -> dict[str, int]:
    """Return the place of each of our columns among the table's."""
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise DataError(f"columns has {unknown[0]!r}, allowed are {', '.join(COLUMNS)}")
    wanted = {ours: columns.get(ours, ours) for ours in COLUMNS}
    places = {ours: names.index(theirs) for ours, theirs in wanted.items() if theirs in names}
    missing = sorted((columns.keys() | {"image"}) - places.keys())
    if missing:
        raise DataError(
            f"{url} has no column {wanted[missing[0]]!r} for {missing[0]}; "
            f"it has {', '.join(names)}"
        )
    doubled = next((name for name in wanted.values() if names.count(name) > 1), None)
    if doubled:
        raise DataError(f"{url} has column {doubled!r} twice; rename one")
    for name in set(names) - set(wanted.values()):
        near = difflib.get_close_matches(name.lower(), wanted.keys() - places.keys(), 1, 0.75)
        if near:
            raise DataError(f"{url} has column {name!r}; if it is {near[0]}, rename it so")
    return places


def _locations(store: Store, url: str, rows: list[_Row], column: str) -> list[Location | None]:
    """Return where the files of one column lie; None where it is empty."""
    result: list[Location | None] = []
    for number, row in enumerate(rows, start=1):
        value = row.get(column, "")
        if not value and column == "image":
            raise DataError(f"{url} row {number} has no image; give its path")
        try:
            result.append(_location(store, value) if value else None)
        except DataError as error:
            raise DataError(f"{url} row {number}: {column}: {error}") from error
    return result


def _location(store: Store, value: str) -> Location:
    if "\0" in value:
        raise DataError(f"{value!r} holds a NUL, which no name can; correct the table")
    if value.rpartition("/")[2] in ("", ".", ".."):
        raise DataError(f"{value!r} is a folder; give the file")
    if "://" not in value and not value.startswith("/"):
        if ".." in value.split("/"):
            raise DataError(
                f"{value!r} goes up with `..`; put the table above all images, or give whole "
                "locations"
            )
        return store, str(PurePosixPath(value))
    folder, _, name = value.rpartition("/")
    return Store(folder or "/"), name


def _check_twice(url: str, images: list[Location]) -> None:
    seen: dict[str, int] = {}
    for number, (store, path) in enumerate(images, start=1):
        first = seen.setdefault(store.url(path), number)
        if first != number:
            raise DataError(f"{url} rows {first} and {number} have the same image; drop one")


def _label_and_kind(row: _Row, options: ImportOptions, where: str) -> tuple[Label, str]:
    told, kind = row.get("label", "").lower(), row.get("kind", "")
    if not told:
        label: Label = "unlabelled"
        if kind and options.normal_kinds:
            label = "normal" if kind in options.normal_kinds else "abnormal"
        return label, kind or KINDS[label]
    for known in LABELS:
        if known == told:
            return known, kind or KINDS[known]
    raise DataError(f"{where}: label {row['label']!r} is not one of {', '.join(LABELS)}")


def _check_groups(url: str, result: list[Item]) -> None:
    """Refuse a part in two splits; where only some of its rows have a split, the others join it."""
    seen: dict[str, tuple[int, Split]] = {}
    for number, item in enumerate(result, start=1):
        if item.split is None:
            continue
        row, split = seen.setdefault(item.group, (number, item.split))
        if side_of(split) != side_of(item.split):
            raise DataError(
                f"{url} rows {row} and {number}: group {item.group!r} is in {split} and in "
                f"{item.split}; keep all images of one part in one split"
            )
