"""Whether a statement only reads: looked for in DuckDB's own parse of it, before it is bound.

The instance that answers is shared by every lake of the process, so nothing that a caller sends
may write, attach, load, or change what later statements see. Binding alone would be too late:
some table functions act, or open a database, while they are bound.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import duckdb

from lakestore.errors import InvalidInputError
from lakestore.quoting import UNSPEAKABLE

_OPEN_DOOR = "lake.connect() gives a DuckDB connection that runs anything"
# Only blanks, so that what follows is lexed by DuckDB alone, from a clean state: to skip a comment
# here would be to have an opinion on where it ends.
_EXPLAIN = re.compile(r"(?i)[ \t\r\n]*EXPLAIN\b(?:[ \t\r\n]*\([\w ,']*\)|[ \t\r\n]+ANALYZE\b)?")
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?', re.DOTALL)
_RESERVED = re.compile(r"(?i)lakestore_|segment_\d+$|building_\d+$")
_DATABASE = re.compile(r"(?i).*\.(duckdb|ddb|db)", re.DOTALL)
_QUERIES = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
_ACTING = frozenset(("nextval", "setval", "write_log"))
_READING = frozenset(
    (
        "duckdb_columns",
        "duckdb_constraints",
        "duckdb_databases",
        "duckdb_extensions",
        "duckdb_functions",
        "duckdb_indexes",
        "duckdb_keywords",
        "duckdb_logs",
        "duckdb_memory",
        "duckdb_optimizers",
        "duckdb_schemas",
        "duckdb_secrets",
        "duckdb_settings",
        "duckdb_tables",
        "duckdb_temporary_files",
        "duckdb_types",
        "duckdb_variables",
        "duckdb_views",
        "generate_series",
        "glob",
        "icu_calendar_names",
        "json_each",
        "json_tree",
        "parquet_bloom_probe",
        "parquet_file_metadata",
        "parquet_full_metadata",
        "parquet_kv_metadata",
        "parquet_metadata",
        "parquet_page_index",
        "parquet_scan",
        "parquet_schema",
        "pg_timezone_names",
        "pragma_collations",
        "pragma_database_size",
        "pragma_platform",
        "pragma_show",
        "pragma_table_info",
        "pragma_user_agent",
        "pragma_version",
        "range",
        "read_blob",
        "read_csv",
        "read_csv_auto",
        "read_json",
        "read_json_auto",
        "read_json_objects",
        "read_json_objects_auto",
        "read_ndjson",
        "read_ndjson_auto",
        "read_ndjson_objects",
        "read_parquet",
        "read_text",
        "repeat",
        "repeat_row",
        "sniff_csv",
        "summary",
        "test_all_types",
        "test_vector_types",
        "unnest",
        "which_secret",
    )
)
"""Table functions that read, and whose arguments are no names or statements of their own."""


@dataclass(frozen=True)
class Reading:
    """One statement that reads, and the names of lakestore's own that it uses."""

    text: str
    reserved: frozenset[str]


def reading(cursor: duckdb.DuckDBPyConnection, statement: str) -> Reading:
    """The statement, when it is exactly one and it only reads.

    Raises:
        InvalidInputError: it is none, several, wrong SQL, or one that does more than read.
    """
    if not isinstance(statement, str) or UNSPEAKABLE.search(statement):
        raise InvalidInputError("a statement is text without NUL: pass such values as parameters")
    explain = _EXPLAIN.match(statement)
    tree, error, count = cursor.execute(
        "SELECT tree, tree ->> 'error_message', json_array_length(tree, 'statements') "
        "FROM (SELECT json_serialize_sql(?) AS tree)",
        [statement[explain.end() :] if explain else statement],
    ).fetchall()[0]
    if error is not None or count != 1:
        raise _refused(cursor, statement, error)
    reserved = set()
    for what, name in _nodes(tree):
        if what == "does" or (what == "makes rows by" and name.casefold() not in _READING):
            raise InvalidInputError(f"sql() only reads, and this {what} {name}; {_OPEN_DOOR}")
        if what == "calls" and name.casefold() in _ACTING:
            raise InvalidInputError(f"sql() only reads, and this {what} {name}; {_OPEN_DOOR}")
        if what == "reads" and _DATABASE.fullmatch(name):
            raise InvalidInputError(
                f"sql() attaches no database, and {name!r} is one; {_OPEN_DOOR}"
            )
        if what in ("reads", "reads in") and _RESERVED.match(name):
            reserved.add(name)
    (only,) = cursor.extract_statements(statement)
    return Reading(str(only.query).strip().rstrip(";"), frozenset(reserved))


def _refused(
    cursor: duckdb.DuckDBPyConnection, statement: str, error: str | None
) -> InvalidInputError:
    """Why a statement is not one that reads."""
    kind = (statement.split(None, 1) or [""])[0].upper()
    if kind not in ("PRAGMA", "IMPORT"):  # DuckDB 1.5 runs half of these when it parses them
        try:
            statements = cursor.extract_statements(statement)
        except duckdb.Error as wrong:
            return InvalidInputError(str(wrong).strip())
        if len(statements) != 1:
            return InvalidInputError(
                f"sql() takes one statement, this has {len(statements)}; {_OPEN_DOOR}"
            )
        with suppress(ValueError):  # newer than the Python package's list of kinds
            kind = statements[0].type.name
    if kind == "EXPLAIN":
        kind = "EXPLAIN, not at the start of a SELECT"
    elif kind == "SELECT":
        kind = f"not understood ({error})"
    return InvalidInputError(f"sql() only reads, and this is {kind}; {_OPEN_DOOR}")


def _nodes(tree: str) -> Iterator[tuple[str, str]]:
    """What the statement does, and to what: from the JSON, token by token.

    Not parsed, because SQL nests deeper than Python's parser goes. The only strings before a
    colon are keys, and those are DuckDB's.
    """
    key, kind = "", ""
    for match in _STRING.finditer(tree):
        text = match[1]
        if match[2]:
            key = text
            continue
        if key == "type" and text in ("BASE_TABLE", "TABLE_FUNCTION"):
            kind = text
        elif key == "type" and text.endswith("_NODE") and text not in _QUERIES:
            yield "does", text.removesuffix("_NODE").removesuffix("_QUERY")
        elif key == "function_name":
            yield "makes rows by" if kind == "TABLE_FUNCTION" else "calls", _decoded(text)
            kind = ""
        elif kind == "BASE_TABLE" and key == "table_name":
            yield "reads", _decoded(text)
        elif key in ("schema_name", "catalog_name"):
            yield "reads in", _decoded(text)
        key = ""


def _decoded(text: str) -> str:
    return str(json.loads(f'"{text}"', strict=False))
