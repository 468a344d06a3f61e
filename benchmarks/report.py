"""How figures are printed: the machine, then a table a question."""

import os
import platform
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

console = Console(width=120)


def machine() -> None:
    """One line that says what the figures were measured on."""
    names = ("duckdb", "pyarrow", "polars", "deltalake")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    console.print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}", highlight=False
    )


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table of figures; all but the first column aligned right."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
