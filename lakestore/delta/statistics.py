"""A file's statistics as the Delta log keeps them, and back: JSON of least and greatest values.

Other engines skip files by them, so a bound may be too wide and never too narrow. Spark and others
cut times to milliseconds and texts to 32 characters; what they call the greatest text is still
not less than any.
"""

import json
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from lakestore.columns import Column
from lakestore.schema import TableSchema
from lakestore.snapshot import ColumnRange, FileInfo

_MILLISECOND = timedelta(milliseconds=1)
_UNKNOWN = ColumnRange(None, None, -1)


def statistics_text(info: FileInfo, schema: TableSchema) -> str:
    """What the log says of a file of ours."""
    low: dict[str, str] = {}
    high: dict[str, str] = {}
    nulls: dict[str, str] = {}
    for name, found in info.ranges.items():
        kind = schema.column(name).arrow_type
        if found.nulls >= 0:
            nulls[name] = str(found.nulls)
        if found.low is not None and found.high is not None and not pa.types.is_boolean(kind):
            low[name], high[name] = _told(found.low, kind), _told(found.high, kind)
    parts = {"minValues": _joined(low), "maxValues": _joined(high), "nullCount": _joined(nulls)}
    return _joined({"numRecords": str(info.rows)} | parts)


class Ranges(Mapping[str, ColumnRange]):
    """Ranges of a file's columns, made of the log's text when somebody asks.

    The text is kept and not what it says: ten thousand files have millions of values.
    """

    def __init__(self, text: str, schema: TableSchema) -> None:
        self._text = text
        self._schema = schema

    def __getitem__(self, name: str) -> ColumnRange:
        return self.of([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.of(self._schema.names))

    def __len__(self) -> int:
        return len(self.of(self._schema.names))

    def items(self) -> ItemsView[str, ColumnRange]:
        """Every range there is."""
        return self.of(self._schema.names).items()

    def of(self, names: Iterable[str]) -> dict[str, ColumnRange]:
        """The ranges of some columns, those that there are."""
        return _ranges_of(self._text, [self._schema.column(name) for name in names])


def rows_of(text: str | None) -> int | None:
    """How many rows the statistics say a file has; None when they do not say.

    Raises:
        ValueError: they are no statistics.
    """
    rows = _parsed(text).get("numRecords") if text else None
    if rows is not None and (type(rows) is not int or rows < 0):
        raise ValueError(f"{rows!r} is no number of rows")
    return rows


def times_of(ranges: Mapping[str, ColumnRange], column: str) -> tuple[datetime, datetime]:
    """Least and greatest event time; all of time when they are not known."""
    found = ranges.get(column, _UNKNOWN)
    if found.low is None or found.high is None:
        return datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    low, high = (datetime.fromisoformat(bound) for bound in (found.low, found.high))
    return _utc(low), _utc(high)


def _ranges_of(text: str, columns: Iterable[Column]) -> dict[str, ColumnRange]:
    facts = _parsed(text)
    low, high = _object(facts, "minValues"), _object(facts, "maxValues")
    nulls = _object(facts, "nullCount")
    ranges = {}
    for column in columns:
        name, kind = column.name, column.arrow_type
        count = nulls.get(name)
        if pa.types.is_nested(kind) or pa.types.is_floating(kind) or pa.types.is_binary(kind):
            continue
        least, greatest = _bound(low.get(name), kind), _bound(high.get(name), kind, up=True)
        if least is None or greatest is None:
            least = greatest = None
        known = count if isinstance(count, int) and count >= 0 else -1
        if known >= 0 or least is not None:
            ranges[name] = ColumnRange(least, greatest, known)
    return ranges


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_float=Decimal)
    except RecursionError as error:
        raise ValueError("statistics are nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("statistics are no object")
    return found


def _object(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = facts.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no object")
    return found


def _joined(parts: Mapping[str, str]) -> str:
    """An object of parts that are JSON already: `json.dumps` would make a float of a decimal."""
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in parts.items()) + "}"


def _told(bound: str, kind: pa.DataType) -> str:
    """A bound of ours as JSON."""
    if pa.types.is_integer(kind):
        return bound
    if pa.types.is_decimal(kind):
        return format(Decimal(bound), "f")
    if pa.types.is_timestamp(kind):
        time = datetime.fromisoformat(bound).replace(tzinfo=None)
        bound = time.isoformat(timespec="microseconds") + ("Z" if kind.tz else "")
    return json.dumps(bound)


def _bound(value: Any, kind: pa.DataType, *, up: bool = False) -> str | None:
    """A bound in the log as SQL text; None for one that is not understood, which prunes nothing."""
    try:
        if pa.types.is_boolean(kind):
            return str(value) if isinstance(value, bool) else None
        if pa.types.is_integer(kind):
            return str(value) if type(value) is int else None
        if pa.types.is_decimal(kind):
            return str(value) if isinstance(value, int | Decimal) else None
        if not isinstance(value, str):
            return None
        if pa.types.is_timestamp(kind):
            time = datetime.fromisoformat(value)
            digits = value.partition(".")[2].rstrip("Z")
            if up and len(digits) < 6:
                time += _MILLISECOND
            return str(_utc(time) if kind.tz else time.replace(tzinfo=None))
        if pa.types.is_date(kind):
            return str(datetime.fromisoformat(value).date())
    except (ValueError, OverflowError):
        return None
    return value if pa.types.is_string(kind) else None


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
