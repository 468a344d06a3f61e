"""Schema documents as they are written: roles, columns, payloads, rollups, metrics.

What a document says is checked here as far as one key tells; whether its roles fit the columns is
for the schema that it becomes.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from lakestore.columns import Column, check_unique, interval_micros
from lakestore.errors import SchemaError
from lakestore.kept import Policy

Dedup = Literal["day", "table", "none"]
OnNewColumn = Literal["add", "reject", "ignore"]
BUCKET = "bucket"
COUNT = "n"
FILE = "file"
"""What a loaded partial also has: the number of its file."""
DAY_US = 86_400_000_000
HISTOGRAM = pa.list_(
    pa.field("element", pa.struct([pa.field("bin", pa.int32()), pa.field("n", pa.int64())]))
)


class Rollup(BaseModel):
    """Partial aggregates kept per file: one `[[rollups]]` of a schema document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    every: str = Field(
        "1h", description="bucket width, a DuckDB interval that divides a day, such as '1h'"
    )
    by: tuple[str, ...] = ()
    sums: tuple[str, ...] = Field((), description="integer or decimal columns: sum and average")
    max: tuple[str, ...] = ()
    histograms: tuple[str, ...] = Field((), description="numeric columns: percentiles, to 1 %")

    @property
    def every_us(self) -> int:
        """Bucket width in microseconds; raises `SchemaError` when it does not divide a day."""
        micros = _micros(self.every)
        if micros is None or DAY_US % micros:
            raise SchemaError(f"{self.every!r} does not divide a day, as '1h' or '5m' do")
        return micros

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns of the table that it reads, beside the event time."""
        return tuple(dict.fromkeys((*self.by, *self.sums, *self.max, *self.histograms)))

    def fields(self, columns: Mapping[str, Column]) -> list[pa.Field]:
        """The columns of a partial, in order, twins and all."""
        found = [pa.field(BUCKET, pa.timestamp("us", "UTC"))]
        found += [pa.field(name, columns[name].arrow_type) for name in self.by]
        found.append(pa.field(COUNT, pa.int64()))
        for name in self.sums:
            found.append(pa.field(f"sum_{name}", sum_of(columns[name])))
            if columns[name].nullable:
                found.append(pa.field(count_of(columns[name]), pa.int64()))
        found += [pa.field(f"max_{name}", columns[name].arrow_type) for name in self.max]
        found += [pa.field(f"hist_{name}", HISTOGRAM) for name in self.histograms]
        return found


_micros = cache(interval_micros)


def count_of(column: Column) -> str:
    """What partials call the number of a column's values; of one that is never null, of rows."""
    return f"n_{column.name}" if column.nullable else COUNT


def sum_of(column: Column) -> pa.DataType:
    """The type in which partials have the sum of a column: of as many digits as there are."""
    return pa.decimal128(38, getattr(column.arrow_type, "scale", 0))


def check_rollups(rollups: Sequence[Rollup], columns: Mapping[str, Column], source: str) -> None:
    """Refuse rollups whose partials could not be merged exactly; all columns are known.

    Raises:
        SchemaError: says which rollup, which column, and why.
    """
    names = [rollup.name for rollup in rollups]
    if len(set(names)) < len(names):
        raise SchemaError(f"{source}: two rollups have one name: {', '.join(names)}")
    for rollup in rollups:
        where = f"{source}: rollups.{rollup.name}"
        try:
            assert rollup.every_us
        except SchemaError as error:
            raise SchemaError(f"{where}.every: {error}") from error
        for role, refused, why in (
            ("by", _cannot_group, "cannot be grouped by exactly"),
            ("sums", _cannot_add, "has no exact sum; declare it an integer or a DECIMAL"),
            ("max", pa.types.is_nested, "has no greatest value"),
            ("histograms", _cannot_bin, "is no number"),
        ):
            for name in getattr(rollup, role):
                if refused(columns[name].arrow_type):
                    kind = columns[name].sql_type
                    raise SchemaError(f"{where}.{role}: {name!r} is {kind}, which {why}")
        made = [field.name for field in rollup.fields(columns)]
        check_unique([FILE, *made], f"{where}, in its partials")


def _cannot_group(arrow: pa.DataType) -> bool:
    return bool(pa.types.is_nested(arrow) or pa.types.is_floating(arrow))


def _cannot_add(arrow: pa.DataType) -> bool:
    return not bool(pa.types.is_integer(arrow) or pa.types.is_decimal(arrow))


def _cannot_bin(arrow: pa.DataType) -> bool:
    return _cannot_add(arrow) and not bool(pa.types.is_floating(arrow))


class MetricsDocument(BaseModel):
    """One view of metrics: `[metrics.<name>]` of a schema document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measures: dict[str, str] = Field(
        min_length=1, description="label → measure, as in 'count if status_code >= 500'"
    )
    groups: dict[str, str] = Field(
        default_factory=dict, description="name of a grouping → its column"
    )
    top: dict[str, str] = Field(
        default_factory=dict, description="list of leaders → label of the measure that ranks it"
    )


class TableDocument(BaseModel):
    """A schema document, as written: the roles of columns, then the columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1, 2] = Field(
        1, description="version of this document's format; `payload` is acted on from 2 on"
    )
    description: str = ""
    event_time: str = Field(description="TIMESTAMPTZ or TIMESTAMP column; its UTC date is the day")
    event_id: str | None = Field(
        None, description="column that identifies an event; without it, ids are made (UUIDv7)"
    )
    sort: tuple[str, ...] = Field((), description="default: event_time, event_id")
    partition: Literal["day"] = "day"
    dedup: Dedup = Field(
        "day", description="one row per id and day, per id in the table, or no check"
    )
    retention: str | None = Field(None, description="a DuckDB interval, such as '90 days'")
    bloom: tuple[str, ...] = Field((), description="more id columns that get bloom filters")
    facets: tuple[str, ...] = Field((), description="columns offered as filter menus")
    columns: dict[str, str] = Field(
        min_length=1, description="column → DuckDB type, then optionally NOT NULL and DEFAULT"
    )
    derived: dict[str, str] = Field(
        default_factory=dict,
        description="column → SQL over the input's columns, used when the input lacks the column",
    )
    renamed: dict[str, str] = Field(
        default_factory=dict,
        description="column → the name it had before, which an append may still call it",
    )
    on_new_column: OnNewColumn = Field(
        "reject",
        description="what an append does with columns the table has not: add, reject or ignore",
    )
    rejects: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$",
        description="table that rows which do not fit are put into, instead of an error",
    )
    payload: dict[str, Policy] = Field(
        default_factory=dict, description="heavy columns, and what is kept of each"
    )
    rollups: tuple[Rollup, ...] = ()
    metrics: dict[str, MetricsDocument] = Field(
        default_factory=dict, description="views of metrics, by name"
    )


_TABLES = ("columns", "derived", "renamed", "payload")
"""Keys that hold a table of TOML each."""


def to_toml(document: TableDocument) -> str:
    """A document as TOML text: the inverse of reading it."""
    data = document.model_dump(exclude_defaults=True)
    data = {"format": document.format, **data}
    tables = {key: data.pop(key) for key in _TABLES if key in data}
    rollups, metrics = data.pop("rollups", ()), data.pop("metrics", {})
    lines = [f"{key} = {_toml_value(value)}" for key, value in data.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{_toml_value(key)} = {_toml_value(value)}" for key, value in table.items()]
    for rollup in rollups:
        lines += ["", "[[rollups]]"]
        lines += [f"{key} = {_toml_value(value)}" for key, value in rollup.items()]
    for name, view in metrics.items():
        for key, table in view.items():
            lines += ["", f"[metrics.{_toml_value(name)}.{key}]"]
            lines += [f"{_toml_value(k)} = {_toml_value(value)}" for k, value in table.items()]
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema of the document format, for editors; shipped as `schemas/table.schema.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TableDocument.model_json_schema(),
        "title": "lakestore table schema, formats 1 and 2",
    }


def _toml_value(value: object) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    # TOML's basic strings are JSON's, but for DEL, which TOML wants escaped, and for characters
    # beyond U+FFFF, which JSON escapes as two halves that TOML refuses.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
