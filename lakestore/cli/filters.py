"""Which events a command is about: its options, and what the library takes in their place."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import pyarrow as pa
import typer

from lakestore.casts import cast_all
from lakestore.clock import SystemClock
from lakestore.columns import Column
from lakestore.errors import InvalidInputError, NotFoundError
from lakestore.events.filters import moment
from lakestore.schema import TableSchema

_OPERATOR = re.compile(r"!=|!~|>=|<=|==?|<|>|~")
_OPERATORS = {"==": "=", "~": "like", "!~": "not like"}
_AGO = re.compile(r"(\d{1,9}) ?([smhdw])(?: ago)?")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_QUOTED = re.compile(r'"(.*)"', re.DOTALL)


def at(text: str, now: datetime | None = None) -> datetime:
    """An ISO time, or how long ago it was: `2026-11-22`, `1h`, `7d ago`, `now`.

    Raises:
        InvalidInputError: neither.
    """
    now = now or SystemClock().now()
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            return now - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        found = now if text.strip() == "now" else moment(text.strip())
    except (InvalidInputError, OverflowError) as error:
        raise InvalidInputError(
            f"{text!r} is no time: use ISO, such as 2026-11-22T10:00, or 1h, 7d for so long ago"
        ) from error
    assert found is not None
    return found


def _time(text: str) -> datetime:
    try:
        return at(text)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error


def _test(text: str) -> str:
    if _OPERATOR.search(text, 1) is None:
        raise typer.BadParameter(f"{text!r} is not COLUMN=VALUE, nor with != < <= > >= ~ !~")
    return text


Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        parser=_test,
        metavar="TEST",
        help="COLUMN=VALUE, or with != < <= > >=, or ~ (like, with % for any text) and !~; null "
        "is no value. All hold; several = of a column mean any of them (repeatable).",
    ),
]
Start = Annotated[
    datetime | None,
    typer.Option(parser=_time, metavar="TIME", help="At or after: ISO, or 1h, 7d for so long ago."),
]
End = Annotated[datetime | None, typer.Option(parser=_time, metavar="TIME", help="Before.")]
Tier = Annotated[Literal["all", "hot", "cold"], typer.Option(help="Which tiers.")]


def selection(
    schema: TableSchema,
    where: Sequence[str] | None,
    start: datetime | None,
    end: datetime | None,
    source: str,
) -> dict[str, Any]:
    """The options of a command, as `where`, `start`, `end` and `source` of a table's questions."""
    return {"where": conditions(schema, where or ()), "start": start, "end": end, "source": source}


def conditions(schema: TableSchema, texts: Sequence[str]) -> dict[str, Any]:
    """Tests as they are typed, as the library takes them, values by the types of their columns.

    Raises:
        NotFoundError: no such column.
        InvalidInputError: a value that is none of its column.
    """
    equal: dict[str, list[Any]] = {}
    others: dict[str, list[tuple[str, Any]]] = {}
    for text in texts:
        column, operator, written = _split(schema, text)
        value = _value(column, operator, written)
        if operator == "=":
            equal.setdefault(column.name, []).append(value)
        else:
            others.setdefault(column.name, []).append((operator, value))
    return {
        name: (*([("in", equal[name])] if name in equal else []), *others.get(name, []))
        for name in [*equal, *(name for name in others if name not in equal)]
    }


def chosen(schema: TableSchema, written: Sequence[str] | None) -> list[str]:
    """The columns of `--columns`; a name that holds a comma is one name."""
    names: list[str] = []
    for one in written or ():
        names += [one] if one in schema.names else [part.strip() for part in one.split(",")]
    return [schema.column(name).name for name in names]


def _split(schema: TableSchema, text: str) -> tuple[Column, str, str]:
    """Column, operator and value; of names that hold an operator, the longest that fits."""
    for name in sorted(schema.names, key=len, reverse=True):
        rest = text[len(name) :].lstrip()
        sign = _OPERATOR.match(rest)
        if text.startswith(name) and sign is not None:
            value = rest[sign.end() :].strip()
            return schema.column(name), _OPERATORS.get(sign[0], sign[0]), value
    sign = _OPERATOR.search(text, 1)
    name = text if sign is None else text[: sign.start()].strip()
    raise NotFoundError(f"no column {name!r}; the table has {', '.join(schema.names)}")


def _value(column: Column, operator: str, text: str) -> Any:
    if text == "null":
        return None
    if operator in ("like", "not like") and not pa.types.is_string(column.arrow_type):
        raise InvalidInputError(
            f"column {column.name!r} is {column.sql_type}: ~ and !~ are for text"
        )
    return value_of(column, text)


def value_of(column: Column, text: str) -> Any:
    """A value of a column, from its text; raises `InvalidInputError`."""
    kind = column.arrow_type
    if pa.types.is_nested(kind):
        raise InvalidInputError(f"column {column.name!r} is {column.sql_type}: name a plain one")
    if pa.types.is_timestamp(kind):
        found = at(text)
        return found if kind.tz else found.astimezone(UTC).replace(tzinfo=None)
    if pa.types.is_string(kind):
        quoted = _QUOTED.fullmatch(text)  # so that "null" is a text too
        return text if quoted is None else quoted[1]
    try:
        return cast_all(pa.chunked_array([[text]], pa.string()), kind)[0].as_py()
    except pa.ArrowException as error:
        raise InvalidInputError(
            f"column {column.name!r} is {column.sql_type}: {text!r} is no value of it"
        ) from error
