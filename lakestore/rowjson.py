"""A row that cannot become an event, as JSON: whatever it holds, it is shown as well as can be."""

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from lakestore.errors import SchemaError
from lakestore.mappings import check_depth
from lakestore.naming import target
from lakestore.schema import TableSchema


def row_json(row: Any, schema: TableSchema) -> str:
    """A row as JSON text.

    Times are ISO 8601, bytes are base64, and what JSON lacks is text. Of payload columns that are
    not kept whole, nothing is there: what a policy drops is never written.
    """
    if isinstance(row, Mapping):
        row = {name: value for name, value in row.items() if not _is_dropped(name, schema)}
    return to_json(row)


def drops_some(schema: TableSchema) -> bool:
    """Whether the table has columns that are not kept whole, and so text must not be shown."""
    return any(policy != "full" for policy in schema.payload.values())


def to_json(value: Any) -> str:
    """Any value as JSON text, which is valid UTF-8."""
    try:
        check_depth([value], "the row")
        text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    except (SchemaError, RecursionError):  # it nests so deeply that nobody could read it
        text = json.dumps("a value that nests too deeply")
    return text.encode("utf-8", "replace").decode()


def _is_dropped(name: object, schema: TableSchema) -> bool:
    column = target(name, schema) if isinstance(name, str) else None
    return column is not None and schema.payload.get(column.name, "full") != "full"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # NaN and infinities are no JSON
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    try:
        return str(value)
    except Exception:  # a caller's object may do anything
        return object.__repr__(value)
