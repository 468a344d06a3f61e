"""Derived columns: what a schema makes of a batch's other columns, where the batch lacks them."""

import os
import threading
from collections.abc import Mapping

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from lakestore import quoting
from lakestore.casts import cast
from lakestore.errors import SchemaError
from lakestore.instances import Instance, start
from lakestore.schema import TableSchema


def derive(table: pa.Table, missing: Mapping[str, str], schema: TableSchema) -> pa.Table:
    """The columns that are missing, made of a table that has all others as they will be stored.

    Args:
        missing: SQL by column; it may use those that stand before it in the document.

    Raises:
        SchemaError: the SQL fails on this batch, or gives no value where there must be one.
    """
    exprs = ", ".join(f"({sql}) AS {quoting.identifier(name)}" for name, sql in missing.items())
    with _cursor() as cursor:
        cursor.register("batch", table)
        try:
            made = cursor.sql(f"SELECT {exprs} FROM batch").to_arrow_table()
        except duckdb.Error as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise SchemaError(
                f"cannot derive {', '.join(missing)} from this batch: {reason}"
            ) from error
    columns = [schema.column(name) for name in missing]
    for column, values in zip(columns, made.columns, strict=True):
        if values.null_count and not column.nullable and column.default is None:
            row = pc.index(pc.is_null(values), True).as_py()
            raise SchemaError(
                f"row {row}: cannot derive {column.name} from this batch: what it is made of is "
                f"null there: {missing[column.name]}"
            )
    return pa.table({c.name: cast(made.column(c.name), c) for c in columns})


def _cursor() -> duckdb.DuckDBPyConnection:
    """A connection to a DuckDB that is kept: to start one takes ten times as long as to ask it."""
    global _instance
    with _lock:
        if _instance is None:
            _instance = Instance(_start, threading.RLock())
        return _instance.cursor()


def _start() -> duckdb.DuckDBPyConnection:
    con = start(threads=1, python_enable_replacements=False)
    con.execute("SET GLOBAL TimeZone = 'UTC'")
    return con


_instance: Instance | None = None
_lock = threading.Lock()  # guards _instance


def _in_child() -> None:
    """The parent's instance is of no use here, and who held the lock may not be here."""
    global _instance, _lock
    _instance, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_in_child)
