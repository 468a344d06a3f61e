"""Payloads as a query's cursor sees them: those of unflushed rows, and the files of all tiers."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import duckdb

from lakestore import quoting
from lakestore.context import TableContext
from lakestore.engine import buffered_source
from lakestore.filecache import Wanted
from lakestore.layout import PayloadName
from lakestore.payloadview import hot_paths, payload_names, select, view_name
from lakestore.query.pin import TablePin
from lakestore.storage.local import require_file


def views_of(tables: Sequence[TableContext]) -> dict[str, TableContext]:
    """Tables by the names of their payloads' views, in lower case; a table of a name hides one."""
    names = {table.entry.name.casefold() for table in tables}
    views = {
        view_name(table.entry.name).casefold(): table
        for table in tables
        if table.schema.has_references
    }
    return {name: table for name, table in views.items() if name not in names}


def readable(tables: Sequence[TableContext]) -> set[str]:
    """What a statement may read of a lake, in lower case."""
    return {table.entry.name.casefold() for table in tables} | views_of(tables).keys()


def wanted_payload(table: TableContext, name: str) -> Wanted:
    """A sealed payload file, as the cache fetches it."""
    parsed = PayloadName.parse(name)
    return Wanted(table.payload_key(name), parsed.bytes, parsed.sha12)


def make_view(
    cursor: duckdb.DuckDBPyConnection,
    one: TablePin,
    sources: Callable[[Sequence[Wanted]], Collection[str]],
) -> None:
    """Make the view of a pinned table's payloads on a cursor.

    Args:
        sources: what DuckDB opens for sealed files.
    """
    table = one.table
    schema, name = table.accepts, quoting.identifier(view_name(table.entry.name))
    shown = quoting.identifiers(schema.payload_view.names)
    filled = " OR ".join(f"{quoting.identifier(c)} IS NOT NULL" for c in schema.buffered.payload)
    buffered = f"lakestore_payload_{table.entry.id}"
    cursor.register(buffered, one.held.select(list(schema.payload_view.names)))
    parts = [f"SELECT {shown} FROM {buffered_source(buffered)} WHERE {filled}"]
    paths = [*hot_paths(table, one.segments)]
    paths += sources([wanted_payload(table, n) for n in payload_names(one.cold)])
    for path in paths:
        if not path.startswith("s3://"):
            require_file(Path(path))
    if paths:
        parts.append(f"({select(schema, paths)})")
    cursor.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {' UNION ALL '.join(parts)}")
