"""Plan: which cold files can hold a row that a statement asks for.

DuckDB itself says which predicates reach each scan: the statement is explained against stub
tables of the same names, which hold a row of least values, one of greatest and one of nulls, so
that statistics decide nothing. Casts, parameters, `now()`, CTEs and joins arrive folded into
plain comparisons, which are tested against the files' statistics, again by DuckDB. A predicate
that is not understood keeps every file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import expressions as exp

from lakestore import quoting
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, ColumnRange

_LOW_HIGH = {
    "bool": ("false", "true"),
    "string": ("''", "chr(1114111)"),
    "date32[day]": ("DATE '0001-01-01'", "DATE '9999-12-31'"),
    "time64[us]": ("TIME '00:00:00'", "TIME '23:59:59.999999'"),
    "timestamp[us, tz=UTC]": (
        "TIMESTAMPTZ '0001-01-01 00:00:00+00'",
        "TIMESTAMPTZ '9999-12-31 00:00:00+00'",
    ),
    "timestamp[us]": ("TIMESTAMP '0001-01-01'", "TIMESTAMP '9999-12-31'"),
    "float": ("-3e38", "3e38"),
    "double": ("-1e308", "1e308"),
}
Parameters = Sequence[Any] | Mapping[str, Any] | None


@dataclass(frozen=True)
class Statistics:
    """Ranges of a table's cold files in a DuckDB table of that name, a row a file."""

    files: tuple[ColdFile, ...]
    columns: tuple[str, ...]
    name: str


def load_statistics(
    cursor: duckdb.DuckDBPyConnection,
    files: tuple[ColdFile, ...],
    schema: TableSchema,
    name: str,
) -> Statistics:
    """Put the ranges of `files` into the table `name`, each column in its own type."""
    present = {column for f in files for column in f.info.ranges}
    columns = tuple(column for column in schema.names if column in present)
    data = {"file": pa.array(range(len(files)), pa.int64())}
    typed = ["file"]
    for index, column in enumerate(columns):
        ranges = [f.info.ranges.get(column) or ColumnRange(None, None, -1) for f in files]
        rows = [f.info.rows for f in files]
        data[f"low_{index}"] = pa.array([r.low for r in ranges], pa.string())
        data[f"high_{index}"] = pa.array([r.high for r in ranges], pa.string())
        data[f"nulls_{index}"] = pa.array([r.nulls != 0 for r in ranges])
        data[f"filled_{index}"] = pa.array(
            [r.nulls != n for r, n in zip(ranges, rows, strict=True)]
        )
        sql_type = queried_type(schema.column(column).sql_type)
        typed += [f"CAST({end}_{index} AS {sql_type}) AS {end}_{index}" for end in ("low", "high")]
        typed += [f"nulls_{index}", f"filled_{index}"]
    cursor.register("lakestore_ranges", pa.table(data))
    try:
        cursor.execute(
            f"CREATE OR REPLACE TABLE {name} AS SELECT {', '.join(typed)} FROM lakestore_ranges"
        )
    finally:
        cursor.unregister("lakestore_ranges")
    return Statistics(files, columns, name)


def queried_type(sql_type: str) -> str:
    """The type that SQL sees of a column: UUID and JSON are kept as text."""
    return "VARCHAR" if sql_type in ("UUID", "JSON") else sql_type


def stub(schema: TableSchema, name: str) -> str:
    """SQL that creates the stub of a table: extreme rows of its schema."""
    columns = ", ".join(
        f"{quoting.identifier(c.name)} {queried_type(c.sql_type)}" for c in schema.columns
    )
    lows, highs = [], []
    for column in schema.columns:
        low, high = _extremes(column.arrow_type)
        lows.append(low)
        highs.append(high)
    nulls = ", ".join("NULL" for _ in schema.columns)
    return (
        f"CREATE OR REPLACE TABLE {name} ({columns}); INSERT INTO {name} VALUES "
        f"({', '.join(lows)}), ({', '.join(highs)}), ({nulls})"
    )


def _extremes(arrow: pa.DataType) -> tuple[str, str]:
    if pa.types.is_integer(arrow):
        bits, signed = arrow.bit_width, pa.types.is_signed_integer(arrow)
        low = -(2 ** (bits - 1)) if signed else 0
        return str(low), str(low + 2**bits - 1)
    if pa.types.is_decimal(arrow):
        greatest = f"{'9' * (arrow.precision - arrow.scale) or '0'}.{'9' * arrow.scale}"
        greatest = greatest.rstrip(".")
        return f"'-{greatest}'", f"'{greatest}'"
    return _LOW_HIGH.get(str(arrow), ("NULL", "NULL"))


def pushed_filters(
    cursor: duckdb.DuckDBPyConnection, statement: str, parameters: Parameters, schema: str
) -> dict[str, list[list[str]]] | None:
    """The filters of every scan of a stub in the schema `schema`, by table.

    None when DuckDB cannot explain the statement; its own run then says why.
    """
    try:
        rows = cursor.execute(f"EXPLAIN (FORMAT json) {statement}", parameters).fetchall()
    except (duckdb.Error, ValueError):
        return None
    scans: dict[str, list[list[str]]] = {}
    for node in _nodes(json.loads(rows[-1][1])):
        info = node.get("extra_info") or {}
        table = info.get("Table")
        if isinstance(table, str):
            database_schema, _, name = table.rpartition(".")
            if database_schema.endswith(f".{schema}"):
                filters = info.get("Filters", [])
                filters = [filters] if isinstance(filters, str) else filters
                scans.setdefault(name.strip('"'), []).append(list(filters))
    return scans


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, list):
        for item in tree:
            yield from _nodes(item)
    elif isinstance(tree, dict):
        yield tree
        yield from _nodes(tree.get("children", []))


def keep(
    cursor: duckdb.DuckDBPyConnection,
    statistics: Statistics,
    scans: Sequence[Sequence[str]],
) -> tuple[ColdFile, ...]:
    """The files that at least one of the scans may find a row in."""
    tests = []
    for filters in scans:
        parts = [test for text in filters if (test := file_test(text, statistics.columns))]
        if not parts:
            return statistics.files
        tests.append(" AND ".join(f"({part})" for part in parts))
    if not tests:
        return statistics.files
    condition = " OR ".join(f"({test})" for test in tests)
    try:
        rows = cursor.execute(
            f"SELECT file FROM {statistics.name} WHERE coalesce({condition}, true) ORDER BY file"
        ).fetchall()
    except duckdb.Error:
        return statistics.files
    return tuple(statistics.files[row[0]] for row in rows)


def file_test(text: str, columns: Sequence[str]) -> str | None:
    """A pushed filter as a test of a file's statistics, or None when it is not understood.

    The test is false only for files in which no row passes the filter.
    """
    try:
        tree = sqlglot.parse_one(text.replace("optional: ", ""), read="duckdb")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return None
    return _test(tree, columns)


def _test(node: exp.Expr, columns: Sequence[str]) -> str | None:
    node = node.unnest()
    if isinstance(node, exp.And):
        parts = [p for p in (_test(node.left, columns), _test(node.right, columns)) if p]
        return " AND ".join(f"({p})" for p in parts) or None
    if isinstance(node, exp.Or):
        left, right = _test(node.left, columns), _test(node.right, columns)
        return f"({left}) OR ({right})" if left and right else None
    if isinstance(node, exp.In) and not node.args.get("query"):
        tests = [_compare(node.this, exp.EQ, value, columns) for value in node.expressions]
        return " OR ".join(f"({t})" for t in tests if t) if tests and all(tests) else None
    if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
        index = _index(node.this, columns)
        return None if index is None else f"nulls_{index}"
    if isinstance(node, exp.Not) and isinstance(node.this, exp.Is):
        index = _index(node.this.this, columns)
        return None if index is None else f"filled_{index}"
    if isinstance(node, exp.EQ | exp.GT | exp.GTE | exp.LT | exp.LTE):
        return _compare(node.left, type(node), node.right, columns)
    return None


def _compare(
    column: exp.Expr,
    operator: type[exp.Binary],
    value: exp.Expr,
    columns: Sequence[str],
) -> str | None:
    index = _index(column, columns)
    if index is None or not _is_constant(value):
        return None
    constant = value.sql(dialect="duckdb")
    low, high = f"low_{index}", f"high_{index}"
    test = {
        exp.EQ: f"{low} <= {constant} AND {high} >= {constant}",
        exp.GT: f"{high} > {constant}",
        exp.GTE: f"{high} >= {constant}",
        exp.LT: f"{low} < {constant}",
        exp.LTE: f"{low} <= {constant}",
    }[operator]
    return f"filled_{index} AND coalesce({test}, true)"


def _index(node: exp.Expr, columns: Sequence[str]) -> int | None:
    if isinstance(node, exp.Column) and not node.table and node.name in columns:
        return columns.index(node.name)
    return None


def _is_constant(node: exp.Expr) -> bool:
    allowed = (
        exp.Literal,
        exp.Cast,
        exp.DataType,
        exp.DataTypeParam,
        exp.Neg,
        exp.Boolean,
        exp.Paren,
    )
    return all(isinstance(part, allowed) for part in node.walk())
