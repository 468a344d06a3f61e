"""A query's answer, whole and in memory, in whatever form the caller wants it."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lakestore.instances import start

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_SHOWN_ROWS = 20


class Result:
    """The rows of one query, as Arrow; it can be read any number of times.

    Anything that speaks the Arrow PyCapsule interface takes it as it is: `pa.table(result)`,
    `pl.DataFrame(result)`, `duckdb.sql("FROM result")`.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def columns(self) -> list[str]:
        """Column names."""
        return list(self._table.schema.names)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Rows as tuples."""
        return iter(self.fetchall())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The rows as an Arrow stream capsule."""
        return self._table.__arrow_c_stream__(requested_schema)

    def to_arrow(self) -> pa.Table:
        """The rows as a pyarrow table."""
        return self._table

    def to_polars(self) -> pl.DataFrame:
        """The rows as a Polars frame."""
        import polars as pl

        frame = pl.from_arrow(self._table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas frame; pandas must be installed."""
        return self._table.to_pandas()

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Rows as Python tuples."""
        columns = [column.to_pylist() for column in self._table.columns]
        return list(zip(*columns, strict=True))

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row, or None."""
        return next(iter(Result(self._table.slice(0, 1)).fetchall()), None)

    def show(self, rows: int = _SHOWN_ROWS) -> None:
        """Print the first rows as a table."""
        print(self._text(rows))

    def __repr__(self) -> str:
        return self._text(_SHOWN_ROWS)

    def _repr_html_(self) -> str:
        shown = self._table.slice(0, _SHOWN_ROWS).to_pylist()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row.values()) + "</tr>"
            for row in shown
        )
        note = f"<caption>{len(self):,} rows, {len(self.columns)} columns</caption>"
        return f"<table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _text(self, rows: int) -> str:
        if not self.columns:
            return "(no columns)"
        with start(python_enable_replacements=False) as con:
            con.execute("SET GLOBAL TimeZone = 'UTC'")
            shown = con.from_arrow(self._table.slice(0, rows))
            text = str(shown).rstrip()
        more = len(self) - rows
        return text if more <= 0 else f"{text}\n… and {more:,} more rows"
