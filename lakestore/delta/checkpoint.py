"""Checkpoints: all that a version of the log adds up to, as one Parquet file.

Any reader begins with the newest instead of with version 0. A checkpoint can be made again from the
log, so one that is missing or damaged costs time and nothing else.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lakestore.delta.actions import (
    Action,
    Add,
    Metadata,
    Protocol,
    Remove,
    Transaction,
    add_of,
    encoded,
    metadata_of,
    protocol_of,
    remove_of,
)

_STRINGS = pa.map_(pa.string(), pa.string())
_KINDS = {
    "txn": pa.struct(
        [("appId", pa.string()), ("version", pa.int64()), ("lastUpdated", pa.int64())]
    ),
    "add": pa.struct(
        [
            ("path", pa.string()),
            ("partitionValues", _STRINGS),
            ("size", pa.int64()),
            ("modificationTime", pa.int64()),
            ("dataChange", pa.bool_()),
            ("stats", pa.string()),
            ("tags", _STRINGS),
        ]
    ),
    "remove": pa.struct(
        [("path", pa.string()), ("deletionTimestamp", pa.int64()), ("dataChange", pa.bool_())]
    ),
    "metaData": pa.struct(
        [
            ("id", pa.string()),
            ("format", pa.struct([("provider", pa.string()), ("options", _STRINGS)])),
            ("schemaString", pa.string()),
            ("partitionColumns", pa.list_(pa.string())),
            ("configuration", _STRINGS),
            ("createdTime", pa.int64()),
        ]
    ),
    "protocol": pa.struct(
        [
            ("minReaderVersion", pa.int32()),
            ("minWriterVersion", pa.int32()),
            ("readerFeatures", pa.list_(pa.string())),
            ("writerFeatures", pa.list_(pa.string())),
        ]
    ),
}
SCHEMA = pa.schema(list(_KINDS.items()))


def write(actions: Iterable[Action]) -> tuple[bytes, int]:
    """A checkpoint's bytes, and how many actions it has."""
    rows = [_row(action) for action in actions]
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue(), len(rows)


def hint(version: int, actions: int, size: int, files: int) -> bytes:
    """What `_last_checkpoint` says of a checkpoint."""
    facts = {"version": version, "size": actions, "sizeInBytes": size, "numOfAddFiles": files}
    return json.dumps(facts).encode()


def hinted(data: bytes) -> tuple[int, int]:
    """The version that `_last_checkpoint` names, and of how many files it is (0: of one).

    Raises:
        ValueError, LookupError, TypeError: it names none.
    """
    facts = json.loads(data)
    version, parts = facts["version"], facts.get("parts") or 0
    if type(version) is not int or version < 0 or type(parts) is not int or not 0 <= parts < 10_000:
        raise ValueError(f"{facts!r} names no checkpoint")
    return version, parts


def read(data: bytes) -> list[Action]:
    """The actions of one file of a checkpoint.

    Raises:
        ValueError, LookupError, TypeError, OSError, pa.ArrowException: it is none.
    """
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        table = file.read(columns=list(_KINDS))  # others we do not know
    actions: list[Action] = []
    for body in _bodies(table, "protocol"):
        actions.append(protocol_of(body))
    for body in _bodies(table, "metaData"):
        actions.append(metadata_of(body))
    for body in _bodies(table, "txn"):
        actions.append(Transaction(body["appId"], body["version"]))
    for body in _bodies(table, "add"):
        actions.append(add_of(body))
    for body in _bodies(table, "remove"):
        actions.append(remove_of(body))
    return actions


def _bodies(table: pa.Table, kind: str) -> list[dict[str, Any]]:
    if kind not in table.column_names:
        return []
    column = table.column(kind).drop_null()
    bodies: list[dict[str, Any]] = column.to_pylist()
    return bodies


def _row(action: Action) -> Mapping[str, Any]:
    match action:
        case Add():
            return {
                "add": {
                    "path": encoded(action.path),
                    "partitionValues": list(action.partition.items()),
                    "size": action.size,
                    "modificationTime": action.modified_ms,
                    "dataChange": False,
                    "stats": action.stats,
                    "tags": list(action.tags.items()),
                }
            }
        case Remove():
            facts = {"path": encoded(action.path), "deletionTimestamp": action.deleted_ms}
            return {"remove": facts | {"dataChange": False}}
        case Metadata():
            body = action.body()
            lists: dict[str, Sequence[Any]] = {"configuration": list(action.configuration.items())}
            return {"metaData": body | lists | {"format": {"provider": "parquet", "options": []}}}
        case Protocol():
            return {"protocol": action.body()}
        case Transaction():
            return {"txn": {"appId": action.app, "version": action.version, "lastUpdated": None}}
