"""Tables on the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows; lists are for the JSON file."""
    columns = dict.fromkeys(
        name for row in rows for name, value in row.items() if not isinstance(value, list)
    )
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    Console().print(table)
