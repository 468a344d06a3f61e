"""A table's columns as the Delta protocol names them.

A Delta table has one column more than ours: the day, by which it is partitioned. Its values are in
the log, not in the data files.
"""

import json
from typing import Any

import pyarrow as pa

from lakestore.errors import SchemaError
from lakestore.layout import PARTITIONS
from lakestore.schema import TableSchema

_PLAIN = {
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.int8(): "byte",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.binary(): "binary",
    pa.date32(): "date",
    pa.timestamp("us", "UTC"): "timestamp",
    pa.timestamp("us"): "timestamp_ntz",
}
_INSTEAD = {
    pa.uint8(): "SMALLINT",
    pa.uint16(): "INTEGER",
    pa.uint32(): "BIGINT",
    pa.uint64(): "DECIMAL(20,0)",
    pa.time64("us"): "BIGINT microseconds",
    pa.timestamp("ns"): "TIMESTAMP",
}
NO_ZONE = "timestampNtz"
"""The feature that a table with times of no zone has to name."""


def partition_column(schema: TableSchema) -> str:
    """The name of the partition column: `day`, unless the table has a column of that name.

    Folders are called so too: Polars reads them, and refuses a table where they differ.
    """
    taken = {name.casefold() for name in schema.names}
    return next(name for name in PARTITIONS if name not in taken)


def schema_string(schema: TableSchema) -> str:
    """The table's schema, as the log keeps it.

    Raises:
        SchemaError: Delta has no such type.
    """
    fields = [_field(c.name, _type(c.arrow_type, c.name)) for c in schema.columns]
    fields.append(_field(partition_column(schema), "date"))
    return json.dumps({"type": "struct", "fields": fields})


def extended(schema: TableSchema, text: str) -> str:
    """A schema in the log, with the columns of the table that it lacks.

    Raises:
        SchemaError: Delta has no such type, or another engine has made a column of that name.
    """
    told = json.loads(text)
    names = {field["name"] for field in told["fields"]}
    wanted = json.loads(schema_string(schema))["fields"]
    told["fields"] += [field for field in wanted if field["name"] not in names]
    made = json.dumps(told)
    if other := missing_columns(schema, made):
        raise SchemaError(f"the Delta table has other columns of these names: {', '.join(other)}")
    return made


def has_times_of_no_zone(schema: TableSchema) -> bool:
    """Whether a column of the table, or within one, is a TIMESTAMP."""
    return '"timestamp_ntz"' in schema_string(schema)


def missing_columns(schema: TableSchema, text: str) -> list[str]:
    """What of the table's columns a schema in the log lacks, or has as another type.

    Raises:
        ValueError, LookupError, TypeError: it is no schema.
    """
    told = {f["name"]: f["type"] for f in json.loads(text)["fields"]}
    wanted = {f["name"]: f["type"] for f in json.loads(schema_string(schema))["fields"]}
    return [
        f"{name} ({_shown(told[name])}, not {_shown(kind)})" if name in told else name
        for name, kind in wanted.items()
        if not _same(told.get(name), kind)
    ]


def _same(told: Any, wanted: Any) -> bool:
    """Whether two types hold the same values; who may be null is not a matter of reading."""
    if not isinstance(told, dict) or not isinstance(wanted, dict):
        return bool(told == wanted)
    if told.get("type") != wanted["type"]:
        return False
    if wanted["type"] == "struct":
        fields = {f["name"]: f["type"] for f in told["fields"]}
        return all(_same(fields.get(f["name"]), f["type"]) for f in wanted["fields"])
    parts = ("elementType",) if wanted["type"] == "array" else ("keyType", "valueType")
    return all(_same(told[part], wanted[part]) for part in parts)


def _shown(kind: Any) -> str:
    return str(kind if isinstance(kind, str) else kind["type"])


def _field(name: str, kind: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": True, "metadata": {}}


def _type(arrow: pa.DataType, column: str) -> Any:
    if arrow in _PLAIN:
        return _PLAIN[arrow]
    if pa.types.is_decimal(arrow):
        return f"decimal({arrow.precision},{arrow.scale})"
    if pa.types.is_struct(arrow):
        children = (arrow.field(i) for i in range(arrow.num_fields))
        fields = [_field(child.name, _type(child.type, column)) for child in children]
        return {"type": "struct", "fields": fields}
    if pa.types.is_map(arrow):
        kinds = {"keyType": arrow.key_type, "valueType": arrow.item_type}
        types = {name: _type(kind, column) for name, kind in kinds.items()}
        return {"type": "map", **types, "valueContainsNull": True}
    if pa.types.is_list(arrow):
        kind = _type(arrow.value_type, column)
        return {"type": "array", "elementType": kind, "containsNull": True}
    instead = _INSTEAD.get(arrow)
    advice = f"use {instead}" if instead else 'use cold="parquet"'
    raise SchemaError(f"column {column!r}: Delta has no type for {arrow}: {advice}")
