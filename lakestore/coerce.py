"""Whatever a caller appends → record batches of the table's schema, or an error that says where.

Accepted: anything with the Arrow PyCapsule interface (pyarrow, Polars, pandas, DuckDB), a Polars
LazyFrame, a pyarrow dataset or scanner, one event as a mapping, or an iterable of mappings.
Casts are safe ones only (`casts.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakestore import idhash
from lakestore.casts import cast, cast_all, fits
from lakestore.columns import Column, check_unique, plain_type
from lakestore.derive import derive
from lakestore.errors import InvalidInputError, SchemaError
from lakestore.mappings import check_depth, from_mappings, from_values
from lakestore.naming import named
from lakestore.newids import make_ids
from lakestore.schema import TableSchema
from lakestore.settings import MIB

MIN_TIME = datetime(1678, 1, 1, tzinfo=UTC)
MAX_TIME = datetime(2262, 1, 1, tzinfo=UTC)
"""Event times that a 64-bit count of nanoseconds can hold, so that every engine can read them."""

FRAME_ROWS = 65_536
FRAME_BYTES = 16 * MIB
_SMALL_ROWS = 4_096
_MIN_US = int(MIN_TIME.timestamp()) * 1_000_000
_MAX_US = int(MAX_TIME.timestamp()) * 1_000_000


def to_batches(data: Any, schema: TableSchema) -> list[pa.RecordBatch]:
    """All of `data` as record batches of the table's schema; empty when there are no rows.

    A batch has at most 65,536 rows and about 16 MiB, the size of a journal frame.

    Raises:
        NewColumnsError: a column is unknown, and the schema does not say to leave it out.
        SchemaError: a column is missing, doubled or of another type; a value does not
            fit, is null where it must not be, or is no possible time. Names row, column, value.
        InvalidInputError: `data` is nothing that events come in.
    """
    if isinstance(data, pa.RecordBatch) and 0 < data.num_rows <= _SMALL_ROWS:
        batch = _as_it_is(data, schema)
        if batch is not None:
            return [batch]
    table = _to_table(data, schema)
    check_unique(table.schema.names, "the batch")
    if not set(table.schema.names) <= set(schema.names):
        table = named(table, schema)
    _validate(table)
    if table.schema.names != list(schema.names) or table.schema.types != schema.arrow.types:
        table = _as_stored(table, schema)
    else:
        table = pa.table(_filled(table, schema), schema=schema.arrow)
    _check_required(table, schema.columns)
    _check_times(table.column(schema.event_time), schema)
    return _frames(table)


def rows_of(data: Any) -> pa.Table | pa.RecordBatch | list[Any]:
    """Whatever a caller appends in a form that can be looked at again; raises as `to_batches`."""
    if isinstance(data, pa.RecordBatch):
        return data
    if isinstance(data, Mapping):
        return [data]
    columnar = ("__arrow_c_stream__", "__arrow_c_array__", "collect_schema", "to_table")
    is_rows = isinstance(data, Iterable) and not isinstance(data, str | bytes)
    if is_rows and not any(hasattr(data, name) for name in columnar):
        return list(data)
    return _to_table(data, None)


def check_readable(rows: pa.Table | list[Any]) -> None:
    """Raise for what cannot be looked at row by row.

    Raises:
        InvalidInputError: a row is no mapping.
        SchemaError: Arrow data is so damaged that to read it would crash.
    """
    if isinstance(rows, list):
        for at, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise InvalidInputError(f"row {at} is {type(row).__name__}, not a mapping")
    else:
        try:
            _validate(rows)
        except SchemaError as error:
            if "UTF" not in str(error):
                raise


def misfits(
    values: pa.ChunkedArray | list[Any], column: Column, schema: TableSchema
) -> dict[int, SchemaError]:
    """Which values do not fit a column, each looked at without the others, and why."""
    found: dict[int, SchemaError] = {}
    parts = [(0, len(values))]
    while parts:
        start, end = parts.pop()
        try:
            _check_values(values[start:end], column, schema)
        except SchemaError as error:
            if end - start == 1:
                found[start] = error
                continue
            middle = (start + end) // 2
            parts += [(start, middle), (middle, end)]
    return found


def _check_values(values: pa.ChunkedArray | list[Any], column: Column, schema: TableSchema) -> None:
    if isinstance(values, list):
        values = pa.chunked_array([from_values(values, column.name, column.arrow_type)])
    else:
        _validate(pa.table({column.name: values}))
    if not values.type.equals(column.arrow_type):
        if len(values) > 1 and not fits(values, column):
            raise SchemaError(f"column {column.name!r}: not all values fit")
        values = cast(values, column)
    values = _fill(values, column)
    _check_required(pa.table({column.name: values}), [column])
    if column.name == schema.event_time:
        _check_times(values, schema)


def _as_it_is(batch: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch | None:
    """The batch itself when nothing about it needs a change or an error: the fast path."""
    if not batch.schema.equals(schema.arrow):
        return None
    try:
        batch.validate(full=True)
    except pa.ArrowException:
        return None
    if any(batch.column(name).null_count for name in schema.required):
        return None
    micros = idhash.micros(batch.column(schema.event_time))
    if micros.min() < _MIN_US or micros.max() >= _MAX_US:
        return None
    return _cut_out(batch)


def _frames(table: pa.Table) -> list[pa.RecordBatch]:
    if table.num_rows == 0:
        return []
    rows = max(1, min(FRAME_ROWS, FRAME_BYTES * table.num_rows // max(1, table.nbytes)))
    chunks = table.column(0).num_chunks
    if chunks > 1 and table.num_rows < chunks * rows // 2:
        table = table.combine_chunks()  # or ten thousand tiny chunks would be as many frames
    return [_cut_out(batch) for batch in table.to_batches(max_chunksize=rows) if batch.num_rows]


def _cut_out(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without what its nested columns share with rows that are not in it.

    Arrow's IPC writes all texts of a list column for a slice of it that holds only null lists.
    """
    for index, field in enumerate(batch.schema):
        values = batch.column(index)
        if (
            pa.types.is_nested(field.type)
            and values.get_total_buffer_size() > 2 * values.nbytes + 4096
        ):
            batch = batch.set_column(index, field, pa.concat_arrays([values]))
    return batch


def _to_table(data: Any, schema: TableSchema | None) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if isinstance(data, pa.StructArray | pa.ChunkedArray):
        raise InvalidInputError("events come as a table, not as one array")
    if schema is not None and isinstance(data, Mapping):
        return from_mappings([data], schema)
    if hasattr(data, "collect") and hasattr(data, "collect_schema"):  # a Polars LazyFrame
        data = data.collect()
    if hasattr(data, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(data).read_all()
    if hasattr(data, "__arrow_c_array__"):
        return pa.Table.from_batches([pa.record_batch(data)])
    if hasattr(data, "to_table"):  # a pyarrow dataset or scanner
        return data.to_table()
    if schema is not None and isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return from_mappings(data, schema)
    raise InvalidInputError(
        f"cannot append {type(data).__name__}: pass Arrow data (pyarrow, Polars, pandas, DuckDB), "
        "a mapping, or an iterable of mappings"
    )


def _validate(table: pa.Table) -> None:
    """Check foreign Arrow data in full: unchecked, damaged data crashes the process."""
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        for name, column in zip(table.schema.names, table.columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowException as problem:
                raise SchemaError(
                    f"column {name!r} is not valid Arrow data: {problem}"
                ) from problem
        raise SchemaError(f"the batch is not valid Arrow data: {error}") from error


def _as_stored(table: pa.Table, schema: TableSchema) -> pa.Table:
    """The table with every column of the schema: cast, filled, made, or derived from these."""
    derived = {n: e for n, e in schema.document.derived.items() if n not in table.schema.names}
    columns = {c.name: _column(table, c, schema) for c in schema.columns if c.name not in derived}
    made = derive(pa.table(columns), derived, schema) if derived and table.num_rows else table
    columns |= {name: _column(made, schema.column(name), schema) for name in derived}
    return pa.table([columns[name] for name in schema.names], schema=schema.arrow)


def _column(table: pa.Table, column: Column, schema: TableSchema) -> pa.ChunkedArray | pa.Array:
    """One column of the table's schema: made, filled or cast."""
    if column.name in table.schema.names:
        values = table.column(column.name)
        if not values.type.equals(column.arrow_type):
            values = cast(values, column)
        return _fill(values, column)
    if schema.made_id and column.name == schema.event_id:
        return make_ids(table.num_rows)
    if column.default is not None:
        return pa.repeat(pa.scalar(column.default, column.arrow_type), table.num_rows)
    if not column.nullable and table.num_rows:
        raise SchemaError(f"column {column.name!r} is missing; it is required and has no default")
    return pa.nulls(table.num_rows, column.arrow_type)


def _filled(table: pa.Table, schema: TableSchema) -> list[pa.ChunkedArray]:
    return [_fill(v, c) for v, c in zip(table.columns, schema.columns, strict=True)]


def _fill(values: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    if column.nullable or column.default is None or not values.null_count:
        return values
    return pc.fill_null(values, pa.scalar(column.default, column.arrow_type))


def _check_required(table: pa.Table, columns: Sequence[Column]) -> None:
    for column, values in zip(columns, table.columns, strict=True):
        if not column.nullable and values.null_count:
            row = pc.index(pc.is_null(values), True).as_py()
            raise SchemaError(f"row {row}: column {column.name!r} is null, and it is required")


def _check_times(times: pa.ChunkedArray, schema: TableSchema) -> None:
    if len(times) == 0:
        return
    span = pc.min_max(pc.cast(times, pa.int64())).as_py()
    if span["min"] >= _MIN_US and span["max"] < _MAX_US:
        return
    micros = pc.cast(times, pa.int64()).to_numpy()
    row = int(np.flatnonzero((micros < _MIN_US) | (micros >= _MAX_US))[0])
    raise SchemaError(
        f"row {row}: column {schema.event_time!r}: {micros[row]} µs since 1970 is not between "
        f"the years {MIN_TIME.year} and {MAX_TIME.year}; "
        "were seconds, milliseconds or nanoseconds taken for microseconds?"
    )


def infer(data: Any, event_time: str | None = None) -> pa.Schema:
    """The Arrow schema of a first batch, in any form that can be appended.

    A column `event_time` of ISO 8601 text becomes a time, as an append would read it.

    Raises:
        InvalidInputError: `data` is nothing that events come in.
    """
    if isinstance(data, Mapping):
        data = [data]
    if isinstance(data, list | tuple):
        check_depth(data, "no schema can be inferred")
        try:
            table = pa.Table.from_pylist(list(data))
        except (pa.ArrowException, TypeError, AttributeError, ValueError) as error:
            raise SchemaError(f"no schema can be inferred: {error}") from error
    else:
        table = _to_table(data, None)
    if event_time in table.schema.names:
        index = table.schema.get_field_index(event_time)
        if pa.types.is_string(plain_type(table.schema.field(index).type)):
            zoned = pa.timestamp("us", "UTC")
            with suppress(pa.ArrowException):  # no times: from_arrow says what is wrong
                cast_all(table.column(index), zoned)
                return table.schema.set(index, pa.field(event_time, zoned))
    return table.schema
