"""What an event row keeps of its payload columns, once their values have left it.

Policies: full keeps values whole in payload files; preview keeps their first characters; hash
their sha256; none nothing. Of each the row keeps the size.
"""

from typing import Literal

import pyarrow as pa

from lakestore.columns import Column

Policy = Literal["full", "preview", "hash", "none"]
REFERENCE = "payload_ref"
"""Name of the column that says where an event's payload is: a payload file, `#`, a row of it."""
SAME_AS = "same_as"
"""In a payload file: of an event whose payload another row has, the number of that row."""


def size_name(column: str) -> str:
    """What the column with the size of a payload column's values is called."""
    return f"{column}_bytes"


def preview_name(column: str) -> str:
    """What the column with the beginnings of a payload column's values is called."""
    return f"{column}_preview"


def sha256_name(column: str) -> str:
    """What the column with the sha256 of a payload column's values is called."""
    return f"{column}_sha256"


def in_place_of(name: str, policy: Policy) -> list[Column]:
    """The columns of the event row that take the place of a payload column."""
    kept = [Column(size_name(name), "BIGINT", pa.int64(), True)]
    if policy == "preview":
        kept.append(Column(preview_name(name), "VARCHAR", pa.string(), True))
    if policy == "hash":
        kept.append(Column(sha256_name(name), "VARCHAR", pa.string(), True))
    return kept


def reference() -> Column:
    """The column that says where an event's payload is; null where it has none."""
    return Column(REFERENCE, "VARCHAR", pa.string(), True)


def why_no_payload(column: Column, policy: Policy) -> str | None:
    """Why a column's values cannot be payloads; None when they can."""
    arrow = column.arrow_type
    if pa.types.is_string(arrow) or (pa.types.is_binary(arrow) and policy != "preview"):
        return None
    wanted = "VARCHAR" if policy == "preview" else "VARCHAR or BLOB"
    return f"it is {column.sql_type}; with {policy!r} it must be {wanted}"
