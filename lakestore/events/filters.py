"""Filters: which events a question is about, as a value that SQL is made of."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, Literal, Self

import pyarrow as pa

from lakestore import quoting
from lakestore.errors import InvalidInputError, NotFoundError
from lakestore.query.pin import TablePin
from lakestore.schema import TableSchema

Source = Literal["all", "hot", "cold"]
Where = Mapping[str, Any] | None
Moment = datetime | date | str | None

_OPERATORS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=", "like", "not like", "in", "not in")
_PARAMETER = re.compile(r"""'[^']*'|"[^"]*"|\$(lakestore_w\d+)\b""")
"""A parameter, outside of quotes: a quote in a text is two, which ends one and begins another."""


@dataclass(frozen=True)
class Filter:
    """Tests of columns, all of which hold, and a window of event time."""

    schema: TableSchema
    tests: Mapping[str, str]
    """SQL by column, with `$lakestore_w0`, `$lakestore_w1`, … for values."""
    values: Mapping[str, Any]
    start: datetime | None
    end: datetime | None
    source: Source
    equal: Mapping[str, list[Any]] = field(default_factory=dict)
    """The values that are asked for, of columns that are tested for being one of some."""

    @classmethod
    def of(
        cls,
        schema: TableSchema,
        where: Where = None,
        start: Moment = None,
        end: Moment = None,
        source: Source = "all",
        shown: Callable[[str], str] = quoting.identifier,
    ) -> Self:
        """The filter that a caller describes.

        Args:
            where: column → value (equal), None (null), a list (any of), `(operator, value)`, or a
                tuple of such pairs, which all hold.
            start: event time at or after this; naive times are UTC.
            end: event time before this.
            shown: SQL that a column is tested by.
            source: `hot` (buffers and segments), `cold` (sealed files), or `all`.

        Raises:
            NotFoundError: no such column.
            InvalidInputError: an unknown operator, source, or time.
        """
        if source not in ("all", "hot", "cold"):
            raise InvalidInputError(f"source {source!r} is not known; use 'all', 'hot' or 'cold'")
        values: dict[str, Any] = {}

        def bind(value: Any) -> str:
            values[f"lakestore_w{len(values)}"] = value
            return f"$lakestore_w{len(values) - 1}"

        tests = {}
        for name, wanted in (where or {}).items():
            if name not in schema.names:
                raise NotFoundError(f"no column {name!r}; the table has {', '.join(schema.names)}")
            column = shown(name)
            tests[name] = " AND ".join(
                _test(name, column, operator, value, bind) for operator, value in _pairs(wanted)
            )
        equal = {name: some for name, one in (where or {}).items() if (some := _any_in(one))}
        return cls(schema, tests, values, moment(start), moment(end), source, equal)

    def equal_to(self, column: str) -> list[Any] | None:
        """The values that a column may have, when its test says so."""
        return self.equal.get(column)

    def without(self, column: str) -> "Filter":
        """The filter without its test of a column."""
        tests = {name: test for name, test in self.tests.items() if name != column}
        return replace(self, tests=tests)

    @property
    def condition(self) -> str:
        """All tests, and the window, as an SQL condition."""
        return self.within(self.start, self.end)

    def within(self, start: datetime | None, end: datetime | None) -> str:
        """All tests, and another window of the event time."""
        schema = self.schema
        zoned = schema.column(schema.event_time).arrow_type == pa.timestamp("us", "UTC")
        window = _window(quoting.identifier(schema.event_time), start, end, zoned=zoned)
        return " AND ".join(["true", *self.tests.values(), *window])

    def bound(self, statement: str) -> dict[str, Any]:
        """The values that a statement mentions: DuckDB refuses others."""
        names = set(_PARAMETER.findall(statement)) - {""}
        return {name: self.values[name] for name in names}

    def restrict(self, pin: TablePin) -> TablePin:
        """The part of a snapshot that is of the source."""
        if self.source == "hot":
            return replace(pin, cold=())
        if self.source == "cold":
            return replace(pin, buffered=pin.buffered.slice(0, 0), segments=())
        return pin


def _window(
    time: str, start: datetime | None, end: datetime | None, *, zoned: bool
) -> Iterator[str]:
    """SQL tests of a time: at or after `start`, before `end`.

    Args:
        zoned: whether it is a TIMESTAMPTZ; of another type, statistics could not be compared.
    """
    for sign, moment in ((">=", start), ("<", end)):
        if moment is not None:
            naive = moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")
            yield f"{time} {sign} " + (
                f"TIMESTAMPTZ '{naive}+00'" if zoned else f"TIMESTAMP '{naive}'"
            )


def _pairs(wanted: Any) -> list[tuple[str, Any]]:
    if not isinstance(wanted, tuple):
        return [("in" if isinstance(wanted, list | set | frozenset) else "=", wanted)]
    pairs = [wanted] if wanted and isinstance(wanted[0], str) else list(wanted)
    if not pairs or any(not isinstance(pair, tuple) or len(pair) != 2 for pair in pairs):
        raise InvalidInputError(f"{wanted!r} is not (operator, value), nor a tuple of those")
    return pairs


def _any_in(wanted: Any) -> list[Any]:
    """The values of a test for being one of some, none of them null; else nothing."""
    for operator, value in _pairs(wanted):
        some = list(value) if operator == "in" else [value]
        if operator in ("=", "==", "in") and not any(one is None for one in some):
            return some
    return []


def _test(name: str, column: str, operator: str, value: Any, bind: Callable[[Any], str]) -> str:
    operator = str(operator).lower()
    if operator not in _OPERATORS:
        raise InvalidInputError(
            f"where[{name!r}] has the operator {operator!r}; use one of {', '.join(_OPERATORS)}"
        )
    if operator in ("in", "not in"):
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise InvalidInputError(f"where[{name!r}]: {operator!r} takes a list, not {value!r}")
        test = _any_of(column, list(value), bind)
        return test if operator == "in" else f"NOT coalesce({test}, false)"
    if value is None:
        if operator in ("=", "=="):
            return f"{column} IS NULL"
        if operator in ("!=", "<>"):
            return f"{column} IS NOT NULL"
        raise InvalidInputError(f"where[{name!r}]: nothing is {operator} None")
    return f"{column} {operator} {bind(value)}"


def _any_of(column: str, values: list[Any], bind: Callable[[Any], str]) -> str:
    some = [value for value in values if value is not None]
    parts = [f"{column} IN ({', '.join(bind(value) for value in some)})"] if some else []
    parts += [f"{column} IS NULL"] if len(some) < len(values) else []
    return "(" + (" OR ".join(parts) or "false") + ")"


def moment(value: Moment) -> datetime | None:
    """A caller's time as one in UTC; raises `InvalidInputError`."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidInputError(f"{value!r} is not an ISO time such as 2026-11-22") from error
    if value is None:
        return None
    if not isinstance(value, datetime):
        if not isinstance(value, date):
            raise InvalidInputError(f"{value!r} is no time")
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
