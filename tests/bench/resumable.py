"""Cells of a study, one line each in a JSON-lines file: what stands there is not run again.

And how a command line names the cells that are wanted.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import yaml

from data.store import Store

Row = dict[str, Any]
Value = TypeVar("Value")
Cell = Any
"""A dataclass of what decides a result."""


def load_rows(store: Store, name: str) -> list[Row]:
    """The rows of earlier cells."""
    if not store.exists(name):
        return []
    return [json.loads(line) for line in store.read_bytes(name).decode().splitlines()]


def row_of(cell: Cell, rows: Sequence[Row]) -> Row | None:
    """The row of a cell, if it has run."""
    wanted = asdict(cell)
    return next((row for row in rows if wanted.items() <= row.items()), None)


def run_missing(
    cells: Sequence[Cell],
    store: Store,
    name: str,
    run_all: Callable[[list[Cell]], Iterable[Row]],
) -> Iterator[Row]:
    """Run the cells without a row; each row is stored before it is given out.

    Args:
        cells: all that are wanted.
        store: where the file lies.
        name: of the file.
        run_all: runs cells and gives their rows, in any order.
    """
    rows = load_rows(store, name)
    for row in run_all([cell for cell in cells if row_of(cell, rows) is None]):
        # Read anew: another process may have added its own.
        rows = [*load_rows(store, name), row]
        store.write_bytes(name, "".join(f"{json.dumps(one)}\n" for one in rows).encode())
        yield row


def grouped(rows: Iterable[Row], names: Sequence[str]) -> list[tuple[Row, list[Row]]]:
    """Rows that share some columns, with what they share."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row[name] for name in names]), []).append(row)
    return [({name: found[0][name] for name in names}, found) for found in groups.values()]


def listed(kind: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """Reader of an option's values, parted by commas."""
    return lambda text: [kind(word) for word in text.split(",")]


def setting(text: str) -> tuple[str, Any]:
    """Dotted path and value of `path=value`."""
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)
