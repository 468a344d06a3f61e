"""Measures: what is counted, added up or ranked, from the text that callers and schemas write.

count                          events
count(column)                  events that have a value there
sum(column)  or  column        0 when there is nothing to add
avg(column)  min(column)  max(column)
distinct(column)               different values
p50(column)  p99.9(column)     percentile by nearest rank, within 1 % of the exact value
… if status_code >= 500        of those events alone
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import sqlglot
from sqlglot import expressions as exp

from lakestore import quoting
from lakestore.columns import Column
from lakestore.document import count_of
from lakestore.errors import InvalidInputError
from lakestore.schema import TableSchema

Kind = Literal["count", "sum", "avg", "min", "max", "distinct", "percentile"]
Measures = str | Sequence[str] | Mapping[str, str] | None

_CALL = re.compile(r"(?i)(count|sum|avg|min|max|distinct|p(\d{1,2}(?:\.\d{1,6})?|100))\((.+)\)")
_IF = re.compile(r"(?i)\s+if\s+")
_ALLOWED = (
    exp.And, exp.Or, exp.Not, exp.Paren, exp.Is, exp.In, exp.Between, exp.EQ, exp.NEQ, exp.GT,
    exp.GTE, exp.LT, exp.LTE, exp.Column, exp.Identifier, exp.Literal, exp.Null, exp.Boolean,
    exp.Neg,
)  # fmt: skip
"""What a condition may be made of: comparisons of columns with constants."""


@dataclass(frozen=True)
class Measure:
    """One number of an answer."""

    label: str
    kind: Kind
    column: Column | None
    quantile: float = 0.0
    test: str | None = None
    """SQL condition of the events that count."""
    tested: frozenset[str] = frozenset()
    """Columns that the test looks at."""

    @property
    def name(self) -> str:
        """The measured column as an SQL identifier."""
        assert self.column is not None
        return quoting.identifier(self.column.name)

    def kept(self, state: str) -> str:
        """What partials call a state of the column, as an SQL identifier."""
        assert self.column is not None
        if state == "n":
            return quoting.identifier(count_of(self.column))
        return quoting.identifier(f"{state}_{self.column.name}")

    @property
    def filter(self) -> str:
        """The FILTER clause of an aggregate."""
        return f" FILTER ({self.test})" if self.test else ""

    @property
    def starts_at_zero(self) -> bool:
        """Whether no event makes it 0, and not null."""
        return self.kind in ("count", "sum", "distinct")

    @property
    def sum_type(self) -> str:
        """The SQL type in which values are added up: exact, but for floats."""
        assert self.column is not None
        arrow = self.column.arrow_type
        if pa.types.is_floating(arrow):
            return "DOUBLE"
        return f"DECIMAL(38,{arrow.scale})" if pa.types.is_decimal(arrow) else "HUGEINT"


def parse(measures: Measures, schema: TableSchema) -> tuple[Measure, ...]:
    """The measures that a caller or a schema names; by default `default`.

    Args:
        measures: one text, several, or label → text.

    Raises:
        InvalidInputError: not a measure; says which are.
        NotFoundError: no such column.
    """
    if measures is None:
        return default(schema)
    if isinstance(measures, str):
        measures = [measures]
    labelled = measures.items() if isinstance(measures, Mapping) else ((m, m) for m in measures)
    found = tuple(_parse(label, text, schema) for label, text in labelled)
    labels = [measure.label for measure in found]
    if not found or len(set(labels)) < len(labels):
        raise InvalidInputError(f"measures must be some, and each named once: {labels}")
    return found


def default(schema: TableSchema) -> tuple[Measure, ...]:
    """The number of events, and the sums that the schema's first rollup with sums keeps.

    Those of several would be in none of them, and every question that names no measure a scan.
    """
    sums = next((one.sums for one in schema.document.rollups if one.sums), ())
    return (
        Measure("count", "count", None),
        *(Measure(name, "sum", schema.column(name)) for name in sums if name != "count"),
    )


def columns_of(schema: TableSchema, names: str | Sequence[str]) -> tuple[str, ...]:
    """Columns to group events by.

    Raises:
        NotFoundError: no such column.
        InvalidInputError: a nested one, or one twice.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if pa.types.is_nested(schema.column(name).arrow_type):
            raise InvalidInputError(f"column {name!r} is nested: group by a plain one")
    if len(set(names)) < len(names):
        raise InvalidInputError(f"columns are named twice: {', '.join(names)}")
    return names


def _parse(label: str, text: Any, schema: TableSchema) -> Measure:
    if not isinstance(text, str):
        raise InvalidInputError(f"{text!r} is not a measure such as 'count' or 'sum(column)'")
    text = text.strip()
    plain = _plain(label, text, schema)
    if plain is not None:  # whole: a column's name may have an "if" in it
        return plain
    call, *conditions = _IF.split(text, maxsplit=1)
    measure = _plain(label, call, schema)
    if measure is None:
        match = _CALL.fullmatch(call)
        if match is not None:
            schema.column(match[3])  # says which columns there are
        raise InvalidInputError(
            f"{text!r} is not a measure: use count, or sum, avg, min, max, distinct or p95 of a "
            "column, as in 'sum(tokens)', then optionally 'if column = value'"
        )
    test, tested = _condition(conditions[0], schema)
    return replace(measure, test=test, tested=tested)


def _plain(label: str, text: str, schema: TableSchema) -> Measure | None:
    """The measure that a text without a condition names; None when it names none."""
    if text.lower() == "count":
        return Measure(label, "count", None)
    if text in schema.names:
        return _checked(Measure(label, "sum", schema.column(text)), text)
    match = _CALL.fullmatch(text)
    if match is None or match[3] not in schema.names:
        return None
    word, quantile = match[1].lower(), match[2]
    kind: Any = "percentile" if quantile else word
    level = float(quantile) / 100 if quantile else 0.0
    return _checked(Measure(label, kind, schema.column(match[3]), level), text)


def _checked(measure: Measure, text: str) -> Measure:
    """The measure, if its column has such values."""
    column = measure.column
    assert column is not None
    arrow = column.arrow_type
    numeric = pa.types.is_integer(arrow) or pa.types.is_floating(arrow)
    if measure.kind in ("sum", "avg", "percentile") and not (numeric or pa.types.is_decimal(arrow)):
        raise InvalidInputError(f"{text!r}: column {column.name!r} is {column.sql_type}, no number")
    if pa.types.is_nested(arrow) and measure.kind != "count":
        raise InvalidInputError(f"{text!r}: column {column.name!r} is {column.sql_type}")
    return measure


def _condition(text: str, schema: TableSchema) -> tuple[str, frozenset[str]]:
    """A condition as SQL that compares columns with constants and does nothing else."""
    try:
        tree = sqlglot.parse_one(text, read="duckdb")
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        raise InvalidInputError(f"'if {text}' is not a condition: {error}") from error
    for node in tree.walk():
        if not isinstance(node, _ALLOWED) or (isinstance(node, exp.In) and node.args.get("query")):
            raise InvalidInputError(
                f"'if {text}': {node.sql(dialect='duckdb')!r} is not allowed; compare columns with "
                "constants by =, <, in, between, is null, and, or, not"
            )
    columns = list(tree.find_all(exp.Column))
    for column in columns:
        if column.table:
            raise InvalidInputError(f"'if {text}': {column.sql()!r} is no column of the table")
        column.set("this", exp.to_identifier(schema.column(column.name).name, quoted=True))
    return tree.sql(dialect="duckdb", comments=False), frozenset(column.name for column in columns)
