"""Columns and their types: what DuckDB says a declaration means, and what Arrow makes of it."""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from lakestore import quoting
from lakestore.errors import SchemaError
from lakestore.instances import start

_TEXT_TYPES = re.compile(r"\b(UUID|JSON)\b")
_CONSTANT = re.compile(r"'(?:[^']|'')*'|\b(?:CAST|DECIMAL|STRUCT|MAP)\(")
_PROBE = "lakestore_probe"


@dataclass(frozen=True)
class Column:
    """One column: its declared SQL type, its Arrow type, and what replaces a missing value."""

    name: str
    sql_type: str
    arrow_type: pa.DataType
    nullable: bool
    default: Any = None


def resolve(declared: Mapping[str, str], source: str) -> tuple[Column, ...]:
    """The columns that `declared` (name → `TYPE [NOT NULL] [DEFAULT constant]`) describes.

    Raises:
        SchemaError: a type DuckDB does not know or not every tier keeps; twins among the names.
    """
    check_unique(list(declared), source)
    with _resolver() as con:
        try:
            return _resolve_all(con, declared)
        except (duckdb.Error, SchemaError):
            for name, declaration in declared.items():  # one by one, to name the culprit
                try:
                    _resolve_all(con, {name: declaration})
                except (duckdb.Error, SchemaError) as error:
                    reason = str(error).strip().split("\n", 1)[0]
                    raise SchemaError(
                        f"{source}: column {name!r}: {declaration!r}: {reason}"
                    ) from error
            raise


def queried_type(sql_type: str) -> str:
    """The type that SQL sees of a column: UUID and JSON are kept as text."""
    return _TEXT_TYPES.sub("VARCHAR", sql_type)


def declare(schema: pa.Schema) -> dict[str, str]:
    """Declarations of the columns of an Arrow schema, as `resolve` reads them."""
    plain = [(name, plain_type(schema.field(name).type)) for name in schema.names]
    for name, arrow in plain:
        if _contains(arrow, pa.types.is_null):
            raise SchemaError(f"column {name!r} holds only nulls: declare its type")
        if not _is_storable(arrow):
            raise SchemaError(f"column {name!r}: {arrow} is not the same in every tier")
    with _resolver() as con:
        sql_types = _sql_types(con, pa.schema(plain))
    return {
        name: sql_type if schema.field(name).nullable else f"{sql_type} not null"
        for (name, _), sql_type in zip(plain, sql_types, strict=True)
    }


def check_unique(names: Sequence[str], source: str) -> None:
    """Raises `SchemaError` when two names differ in case at most: SQL cannot tell them apart."""
    seen: dict[str, str] = {}
    for name in names:
        if name.casefold() in seen:
            raise SchemaError(
                f"{source}: columns {seen[name.casefold()]!r} and {name!r} have one name in SQL"
            )
        seen[name.casefold()] = name


def is_positive_interval(text: str) -> bool:
    """Whether DuckDB reads `text` as an interval longer than nothing."""
    with _resolver() as con:
        try:
            query = "SELECT CAST(? AS INTERVAL) > INTERVAL 0 DAY"
            return con.execute(query, [text]).fetchall() == [(True,)]
        except duckdb.Error:
            return False


def interval_micros(text: str) -> int | None:
    """Microseconds of what DuckDB reads as a positive interval; None when it is none.

    A month counts as 30 days, as in DuckDB's comparisons.
    """
    with _resolver() as con:
        try:
            query = "SELECT epoch_us(CAST(? AS INTERVAL))"
            micros = int(con.execute(query, [text]).fetchall()[0][0])
        except (duckdb.Error, TypeError):
            return None
    return micros if micros > 0 else None


def plain_type(arrow: pa.DataType) -> pa.DataType:
    """The type without its encoding: no dictionary, view or large variant; times in µs, UTC."""
    types = pa.types
    if types.is_dictionary(arrow):
        return plain_type(arrow.value_type)
    if types.is_large_string(arrow) or types.is_string_view(arrow):
        return pa.string()
    if (
        types.is_large_binary(arrow)
        or types.is_binary_view(arrow)
        or types.is_fixed_size_binary(arrow)
    ):
        return pa.binary()
    if types.is_timestamp(arrow):
        return pa.timestamp("us", "UTC" if arrow.tz else None)
    if types.is_time(arrow):
        return pa.time64("us")
    if types.is_date64(arrow):
        return pa.date32()
    if types.is_float16(arrow):
        return pa.float32()
    if types.is_decimal(arrow):
        return pa.decimal128(min(arrow.precision, 38), arrow.scale)
    if types.is_map(arrow):
        return pa.map_(plain_type(arrow.key_type), plain_type(arrow.item_type))
    if types.is_struct(arrow):
        return pa.struct([pa.field(f.name, plain_type(f.type)) for f in _children(arrow)])
    if hasattr(arrow, "value_type"):  # every kind of list
        return pa.list_(pa.field("element", plain_type(arrow.value_type)))
    return arrow


_lock = threading.Lock()  # guards _con: one connection, used by one thread at a time
_con: duckdb.DuckDBPyConnection | None = None


def _in_child() -> None:
    """The parent's connection, and a lock that a thread of the parent may hold, stay its own."""
    global _con, _lock
    _con, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_in_child)


@contextmanager
def _resolver() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty DuckDB that only ever sees types; connecting anew would cost 20 ms a time."""
    global _con
    with _lock:
        if _con is None:
            _con = start(threads=1)
            _con.execute("SET GLOBAL TimeZone = 'UTC'")
        yield _con


def _resolve_all(con: duckdb.DuckDBPyConnection, declared: Mapping[str, str]) -> tuple[Column, ...]:
    lines = (f"{quoting.identifier(name)} {spec}\n" for name, spec in declared.items())
    statement = f"CREATE OR REPLACE TEMP TABLE t ({', '.join(lines)})"
    if len(con.extract_statements(statement)) != 1:
        raise SchemaError("this is more than a type")
    con.execute(statement)
    described = con.execute("DESCRIBE t").fetchall()
    constraints = con.execute(
        "SELECT 1 FROM duckdb_constraints() WHERE constraint_type != 'NOT NULL'"
    ).fetchall()
    if [row[0] for row in described] != list(declared) or constraints:
        raise SchemaError("only a type, NOT NULL and DEFAULT can be declared")
    schema = con.sql("FROM t").to_arrow_table().schema
    columns = []
    for name, sql_type, null, _, default, _ in described:
        arrow = schema.field(name).type
        if not _is_storable(arrow):
            raise SchemaError(f"type {sql_type} {_why_not(sql_type)}")
        arrow = plain_type(arrow) if pa.types.is_nested(arrow) else arrow
        value = None if default is None else _constant(con, default, sql_type)
        columns.append(Column(name, sql_type, arrow, null == "YES", value))
    stored = _sql_types(con, pa.schema([(c.name, c.arrow_type) for c in columns]))
    for column, seen in zip(columns, stored, strict=True):
        if seen != queried_type(column.sql_type):
            raise SchemaError(f"type {column.sql_type} {_why_not(column.sql_type)}")
    return tuple(columns)


def _constant(con: duckdb.DuckDBPyConnection, default: str, sql_type: str) -> Any:
    if "(" in _CONSTANT.sub("", default):
        raise SchemaError(f"default {default} is not a constant")
    return con.sql(f"SELECT CAST({default} AS {sql_type}) AS d").to_arrow_table()[0][0].as_py()


def _sql_types(con: duckdb.DuckDBPyConnection, schema: pa.Schema) -> list[str]:
    """The types DuckDB sees in Arrow data of this schema."""
    con.register(_PROBE, schema.empty_table())
    try:
        return [str(row[1]) for row in con.execute(f"DESCRIBE FROM {_PROBE}").fetchall()]
    finally:
        con.unregister(_PROBE)


def _is_storable(arrow: pa.DataType) -> bool:
    """Whether a type is the same in Arrow, in a DuckDB file and in Parquet."""
    types = pa.types
    return not _contains(
        arrow,
        lambda t: (
            types.is_dictionary(t)
            or types.is_interval(t)
            or types.is_duration(t)
            or types.is_union(t)
            or types.is_fixed_size_list(t)
            or (types.is_timestamp(t) and t.unit in ("s", "ms"))
        ),
    )


def _contains(arrow: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    return test(arrow) or any(_contains(child.type, test) for child in _children(arrow))


def _children(arrow: pa.DataType) -> list[pa.Field]:
    if not pa.types.is_nested(arrow):
        return []
    return [arrow.field(i) for i in range(arrow.num_fields)]


def _why_not(sql_type: str) -> str:
    advice = {
        "ENUM": "cannot grow with the data: use VARCHAR",
        "HUGEINT": "does not fit Parquet: use DECIMAL(38,0)",
        "UHUGEINT": "does not fit Parquet: use DECIMAL(38,0)",
        "INTERVAL": "is not a Parquet type: use BIGINT microseconds",
        "TIMESTAMP_": "is not kept by Parquet: use TIMESTAMP or TIMESTAMPTZ (microseconds)",
    }
    for prefix, reason in advice.items():
        if sql_type.startswith(prefix):
            return reason
    return "is not the same in Arrow, DuckDB and Parquet: use LIST, STRUCT, MAP or a plain type"
