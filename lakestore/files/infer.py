"""The columns of a file: as the schema of a table that is made for it, or those that one lacks."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from lakestore import columns
from lakestore.errors import SchemaError
from lakestore.files import arrow, csv, ndjson
from lakestore.files.mapping import Options, table_name
from lakestore.files.source import Source, open_source
from lakestore.schema import TableSchema


def schema_of_file(path: Path, event_time: str, nulls: Sequence[str]) -> pa.Schema:
    """Names and types of a file's columns; `event_time` as a time."""
    with open_source(str(path), None) as source:
        return schema_of(source, event_time, Options({}, tuple(nulls)))


def schema_of(source: Source, event_time: str, options: Options) -> pa.Schema:
    """Names, after --map, and types of a source's columns.

    Raises:
        SchemaError: no column of that name, or one that is no time.
    """
    found = _columns_of(source, options)
    names = [options.renames.get(name, name) for name in found.names]
    if event_time not in names:
        raise SchemaError(
            f"{source.name}: no column {event_time!r} for the event time; "
            f"its columns: {', '.join(names)}"
        )
    types = dict(zip(names, found.types, strict=True))
    if len(types) < len(names):
        raise SchemaError(f"{source.name}: --map gives a column that is there already")
    kind = types[event_time]
    if pa.types.is_date(kind):
        types[event_time] = pa.timestamp("us")
    elif pa.types.is_string(kind) and source.format == "ndjson":
        types[event_time] = pa.timestamp("us", "UTC")
    return pa.schema(list(types.items()))


def new_columns(source: Source, schema: TableSchema, options: Options) -> dict[str, str]:
    """Declarations of the columns, after --map, that a table has not got.

    Raises:
        SchemaError: one that no table can have.
        InvalidInputError: the file cannot be read.
    """
    names = csv.header(source, options) if source.format == "csv" else []
    if names and all(table_name(name, schema, options) in schema.names for name in names):
        return {}  # and its values need not be looked at
    found = _columns_of(source, options)
    new = {
        name: kind
        for field, kind in zip(found.names, found.types, strict=True)
        if (name := table_name(field, schema, options)) not in schema.names
        and not pa.types.is_null(kind)
    }
    return columns.declare(pa.schema(list(new.items()))) if new else {}


def _columns_of(source: Source, options: Options) -> pa.Schema:
    if source.format == "csv":
        return csv.infer(source, options)
    return ndjson.infer(source) if source.format == "ndjson" else arrow.infer(source)
