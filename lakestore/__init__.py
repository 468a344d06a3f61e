"""lakestore: what SQLite is to rows, for event data.

import lakestore as ls

with ls.open("lake") as lake:
    usage = lake.create_table("usage", "llm_usage", exist_ok=True)
    usage.append({...})                  # durable when it returns
    lake.sql("SELECT count(*) FROM usage").show()
"""

from lakestore.append import Ack, Position
from lakestore.errors import (
    BackpressureError,
    ClosedError,
    CommitUncertainError,
    ConflictError,
    CorruptionError,
    FormatTooNewError,
    InvalidInputError,
    LakestoreError,
    LockedError,
    NotFoundError,
    SchemaError,
    StorageError,
    UnsafeStoreError,
)
from lakestore.lake import Lake
from lakestore.opening import open
from lakestore.query.result import Result
from lakestore.schema import TableSchema
from lakestore.settings import Settings
from lakestore.table import Table

__all__ = [
    "Ack",
    "BackpressureError",
    "ClosedError",
    "CommitUncertainError",
    "ConflictError",
    "CorruptionError",
    "FormatTooNewError",
    "InvalidInputError",
    "Lake",
    "LakestoreError",
    "LockedError",
    "NotFoundError",
    "Position",
    "Result",
    "SchemaError",
    "Settings",
    "StorageError",
    "Table",
    "TableSchema",
    "UnsafeStoreError",
    "open",
]

__version__ = "0.1.0"
