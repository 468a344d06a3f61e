"""The caller's own data: variables that a statement names and that hold rows."""

from collections.abc import Mapping
from types import FrameType
from typing import Any

import duckdb
import sqlglot
from sqlglot import expressions as exp

from lakestore.query.pin import PinnedRows
from lakestore.query.run import mentioned


def of_caller(statement: str, caller: FrameType | None, tables: set[str]) -> Mapping[str, Any]:
    """Variables of `caller`, local before global, that `statement` may mean.

    Args:
        tables: names of the lake's tables, case-folded; they come before any variable.
    """
    if caller is None:
        return {}
    names = mentioned(statement) - tables
    found = {
        name: value
        for scope in (caller.f_globals, caller.f_locals)
        for name, value in scope.items()
        if name.casefold() in names
        and not name.casefold().startswith("lakestore_")  # lakestore's own
        and _holds_rows(value)
    }
    if not found:
        return {}
    # A reader is used up by being read: one that merely shares an alias's name is not touched.
    read = _tables_read(statement)
    return {name: value for name, value in found.items() if name.casefold() in read}


def _tables_read(statement: str) -> set[str]:
    """Names that stand where a table does; every name when the statement cannot be parsed."""
    try:
        tree = sqlglot.parse_one(statement, read="duckdb")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return mentioned(statement)
    return {table.name.casefold() for table in tree.find_all(exp.Table)}


def _holds_rows(value: Any) -> bool:
    return (
        hasattr(value, "__arrow_c_stream__")
        or hasattr(value, "__arrow_c_array__")
        or isinstance(value, duckdb.DuckDBPyRelation | PinnedRows)
        or (hasattr(value, "collect") and hasattr(value, "collect_schema"))
    ) and not isinstance(value, type)
