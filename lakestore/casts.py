"""Safe casts: what keeps its value, and nothing else.

Numbers that keep their value, text to times and decimals, times to other units and zones. A float
becomes the nearest decimal; a time without a zone is UTC.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakestore.columns import Column, plain_type
from lakestore.errors import SchemaError


def cast(values: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    """Values as a column's type; raises `SchemaError` with the first that does not fit."""
    if _may_cast(plain_type(values.type), column.arrow_type):
        try:
            return cast_all(values, column.arrow_type)
        except pa.ArrowException as error:
            row = _first_failure(values, column.arrow_type)
            value = values[row].as_py()
            raise SchemaError(
                mismatch(row, column.name, value, column.arrow_type, column.sql_type)
            ) from error
    bad = next((i for i, v in enumerate(values) if v.is_valid), None)
    if bad is None:
        return pa.chunked_array([pa.nulls(len(values), column.arrow_type)])
    raise SchemaError(
        mismatch(bad, column.name, values[bad].as_py(), column.arrow_type, column.sql_type)
    )


def fits(values: pa.ChunkedArray, column: Column) -> bool:
    """Whether all values do: as `cast`, without looking for the one that does not."""
    if not _may_cast(plain_type(values.type), column.arrow_type):
        return bool(values.null_count == len(values))
    try:
        cast_all(values, column.arrow_type)
    except pa.ArrowException:
        return False
    return True


def cast_all(values: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """As `cast`, but for Arrow's own error."""
    source = plain_type(values.type)
    if not values.type.equals(source) and not pa.types.is_timestamp(values.type):
        values = pc.cast(values, source)
    if pa.types.is_timestamp(target) and pa.types.is_string(source):
        try:
            return _parse_times(values, target)
        except pa.ArrowException:  # digits beyond microseconds are cut, as DuckDB cuts them
            cut = pc.replace_substring_regex(values, r"(\.\d{6})\d+", r"\1")
            return _parse_times(cut, target)
    if pa.types.is_decimal(target) and pa.types.is_floating(source):
        values = pc.cast(values, pa.float64())
    result = pc.cast(values, target, safe=True)
    if pa.types.is_float32(target) and pa.types.is_floating(source):
        grew = pc.and_(pc.is_inf(result), pc.invert(pc.is_inf(values)))
        if pc.any(grew).as_py():
            raise pa.ArrowInvalid("too large for a FLOAT")
    return result


def _parse_times(values: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """ISO 8601 text as times; without a zone it is UTC."""
    zoned = pc.match_substring_regex(values, r"(?:[Zz]|:\d{2}(?:\.\d+)? ?[+-]\d{2}(?::?\d{2})?)$")
    nothing = pa.scalar(None, pa.string())
    with_zone = pc.cast(pc.if_else(zoned, values, nothing), pa.timestamp("us", "UTC"))
    without = pc.cast(pc.if_else(zoned, nothing, values), pa.timestamp("us"))
    return pc.cast(pc.coalesce(with_zone, pc.cast(without, with_zone.type)), target)


def _may_cast(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether values of one type may become another's, if each of them fits."""
    types = pa.types
    if source.equals(target) or types.is_null(source):
        return True
    if types.is_integer(target) or types.is_floating(target):
        return bool(
            types.is_integer(source) or types.is_floating(source) or types.is_decimal(source)
        )
    if types.is_decimal(target):
        return bool(
            types.is_integer(source)
            or types.is_floating(source)
            or types.is_decimal(source)
            or types.is_string(source)
        )
    if types.is_timestamp(target):
        return bool(types.is_timestamp(source) or types.is_date(source) or types.is_string(source))
    if types.is_date(target) or types.is_time(target):
        return bool(types.is_string(source) or source.id == target.id)
    if types.is_struct(target) and types.is_struct(source):
        have = {source.field(i).name: source.field(i).type for i in range(source.num_fields)}
        want = {target.field(i).name: target.field(i).type for i in range(target.num_fields)}
        return have.keys() <= want.keys() and all(_may_cast(have[n], want[n]) for n in have)
    if types.is_map(target):
        return bool(types.is_map(source)) and (
            _may_cast(source.key_type, target.key_type)
            and _may_cast(source.item_type, target.item_type)
        )
    if types.is_list(target):
        return bool(types.is_list(source)) and _may_cast(source.value_type, target.value_type)
    return False


def _first_failure(values: pa.ChunkedArray, target: pa.DataType) -> int:
    """Index of the first value that does not cast, by bisection."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            cast_all(values.slice(low, middle - low), target)
            low = middle
        except pa.ArrowException:
            high = middle
    return low


def mismatch(
    row: int, name: str, value: Any, target: pa.DataType | None, sql_type: str | None = None
) -> str:
    """What is wrong with a value, and where it is."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "…"
    return f"row {row}: column {name!r}: {shown} does not fit {sql_type or target}"
