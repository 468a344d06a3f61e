"""A reader of one table's snapshot: any number of statements, all of the same rows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa

from lakestore.query import parameters as bound
from lakestore.query.mount import Mounts
from lakestore.query.pin import TablePin
from lakestore.query.plan import Planner
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, Segment

EVENTS = "lakestore_events"
"""What a statement calls the rows of the snapshot that it reads."""


@dataclass(frozen=True)
class Reader:
    """Reads a pinned table, or parts of it."""

    cursor: duckdb.DuckDBPyConnection
    pin: TablePin
    planner: Planner
    mounts: Mounts
    parquet_only: bool

    @property
    def schema(self) -> TableSchema:
        """Of the rows of the snapshot: of the newest version that there is."""
        return self.pin.table.schema

    def pruned(self, statement: str, values: Mapping[str, Any]) -> tuple[ColdFile, ...]:
        """Cold files in which a statement over `EVENTS` can find a row."""
        bound.check(values)
        kept, _ = self.planner.choose(statement, values or None, {EVENTS: self.pin}, {})
        return kept[EVENTS]

    def fetch(
        self,
        statement: str,
        values: Mapping[str, Any],
        views: Mapping[str, TablePin] | None = None,
    ) -> pa.Table:
        """The answer of a statement.

        Args:
            values: of its parameters, by name.
            views: what it reads by which name; by default `EVENTS`, pruned.

        Raises:
            InvalidInputError: a value that DuckDB cannot bind.
        """
        bound.check(values)
        if views is None:
            views = {EVENTS: replace(self.pin, cold=self.pruned(statement, values))}
        sources = self.mounts.sources(self.cursor, views, parquet_only=self.parquet_only)
        with sources as selects:  # not as views, which DuckDB binds twice, opening every file
            named = [f"{name} AS NOT MATERIALIZED ({sql})" for name, sql in selects.items()]
            text = f"WITH {', '.join(named)} {statement}" if named else statement
            return self.cursor.sql(text, params=dict(values) or None).to_arrow_table()

    @contextmanager
    def stream(
        self, statement: str, values: Mapping[str, Any], rows: int
    ) -> Iterator[pa.RecordBatchReader]:
        """The answer of a statement over `EVENTS`, batch by batch; raises as `fetch`.

        Args:
            rows: of a batch, about.
        """
        bound.check(values)
        views = {EVENTS: replace(self.pin, cold=self.pruned(statement, values))}
        sources = self.mounts.sources(self.cursor, views, parquet_only=self.parquet_only)
        with sources as selects:
            named = [f"{name} AS NOT MATERIALIZED ({sql})" for name, sql in selects.items()]
            text = f"WITH {', '.join(named)} {statement}"
            yield self.cursor.sql(text, params=dict(values) or None).to_arrow_reader(rows)

    def rows(self, test: str, values: Mapping[str, Any], one: TablePin) -> pa.Table:
        """Rows of a pin, or of parts of it, that pass a test: few, of few files.

        As a statement over `EVENTS` would say, but that DuckDB spends 1 ms less on one SELECT
        than on two, one in the other, and is not asked for columns without a value: to open one
        takes it 40 us, and half of an event's 71 columns may be empty.

        Args:
            test: an expression with parameters.
            values: of its parameters, by name.

        Raises:
            InvalidInputError: a value that DuckDB cannot bind.
        """
        bound.check(values)
        if not (one.buffered.num_rows or one.segments or one.cold):  # nothing to put a test to
            return pa.Table.from_batches([], schema=one.table.schema.arrow)
        schema = one.table.schema
        names = filled(one)
        sources = self.mounts.sources(
            self.cursor, {EVENTS: one}, test=test, columns=names, parquet_only=self.parquet_only
        )
        with sources as selects:
            found = self.cursor.sql(selects[EVENTS], params=dict(values)).to_arrow_table()
        made = {name: found.column(name) for name in names}
        for field in schema.arrow:
            if field.name not in made:
                made[field.name] = pa.nulls(found.num_rows, field.type)
        return pa.table([made[name] for name in schema.names], names=schema.names)


def filled(one: TablePin) -> list[str]:
    """The columns that have a value in any of the files, as far as these say."""
    lineage = one.table.lineage
    files: list[Segment | ColdFile] = [*one.segments, *one.cold]
    infos = [(file.info, lineage.stored(file.schema_version).names) for file in files]
    names = []
    for name in one.table.schema.names:
        # In files of a version that has not got the column it is empty.
        there = [(info, called[name]) for info, called in infos if name in called]
        ranges = [(info.ranges.get(source), info.rows) for info, source in there]
        # Of a file that does not say how many rows it has, nothing is known.
        empty = all(found is not None and 0 < rows == found.nulls for found, rows in ranges)
        if one.buffered.num_rows or not empty:
            names.append(name)
    return names
