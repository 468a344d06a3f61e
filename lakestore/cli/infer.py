"""The columns of a file, as the schema of a table that is made for it."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from lakestore.errors import SchemaError
from lakestore.files import arrow, csv, ndjson
from lakestore.files.mapping import Options
from lakestore.files.source import Source, open_source


def schema_of_file(path: Path, event_time: str, nulls: Sequence[str]) -> pa.Schema:
    """Names and types of a file's columns; `event_time` as a time."""
    with open_source(str(path), None) as source:
        return schema_of(source, event_time, Options({}, tuple(nulls)))


def schema_of(source: Source, event_time: str, options: Options) -> pa.Schema:
    """Names, after --map, and types of a source's columns.

    Raises:
        SchemaError: no column of that name, or one that is no time.
    """
    if source.format == "csv":
        found = csv.infer(source, options)
    elif source.format == "ndjson":
        found = ndjson.infer(source)
    else:
        found = arrow.infer(source)
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
