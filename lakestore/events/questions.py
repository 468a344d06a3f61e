"""Totals, series and facets: what is asked becomes a question, and its answer a value."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakestore.clock import from_micros
from lakestore.errors import InvalidInputError
from lakestore.events.aggregate import aggregate, aggregate_all
from lakestore.events.answers import Facets, Series, Totals
from lakestore.events.buckets import Buckets
from lakestore.events.filters import Filter
from lakestore.events.measures import Measure
from lakestore.events.statement import Question
from lakestore.query.reader import Reader

_POINTS_MAX = 1_000_000
_COUNT = Measure("count", "count", None)


def totals(reader: Reader, filter: Filter, measures: Sequence[Measure]) -> Totals:
    """The measures of all events that pass."""
    answer = aggregate(reader, Question(filter, tuple(measures)))
    return Totals.of(named(answer, [], measures))


@dataclass(frozen=True)
class Spans:
    """How a series divides time."""

    every: str | timedelta
    zone: str
    origin: datetime | None


def series(
    reader: Reader,
    filter: Filter,
    measures: Sequence[Measure],
    by: Sequence[str],
    spans: Spans,
) -> Series:
    """The measures by bucket and group, with a row for every bucket of the window.

    Raises:
        InvalidInputError: more than 10,000 buckets, or a million points; two columns of one name.
    """
    names = ["bucket", *by, *(measure.label for measure in measures)]
    if len(set(names)) < len(names):
        raise InvalidInputError(
            f"two columns of the series have one name: {', '.join(names)}; name a measure as in "
            "{'events': 'count'}"
        )
    buckets = Buckets.of(reader.cursor, spans.every, spans.zone, spans.origin)
    question = Question(filter, tuple(measures), tuple(by), buckets)
    found = aggregate(reader, question)
    window = _window(filter, found.column("k0"))
    starts = buckets.starts(reader.cursor, *window) if window else []
    table = named(_filled(reader, found, starts, question), ["bucket", *by], measures)
    moments = table.column("bucket").cast(pa.timestamp("us", "UTC"))
    return Series(
        table.set_column(0, "bucket", moments),
        str(spans.every),
        tuple(by),
        tuple(m.label for m in measures),
    )


def _window(filter: Filter, found: pa.ChunkedArray) -> tuple[datetime, datetime] | None:
    """From when to when buckets are wanted: the filter's, or where there are events."""
    span = pc.min_max(found).as_py()
    first, last = filter.start, filter.end
    if span["min"] is None and (first is None or last is None):
        return None
    first = first or from_micros(span["min"])
    if last is None:  # of the last bucket only the beginning is known, which may be before `first`
        last = max(first, from_micros(span["max"])) + timedelta(microseconds=1)
    return (first, last) if first < last else None


def _filled(reader: Reader, found: pa.Table, starts: Sequence[int], question: Question) -> pa.Table:
    """The answer with a row for every bucket of every group, by group and then time.

    Raises:
        InvalidInputError: more than a million points.
    """
    if not question.by:
        return _placed(found, starts, question)
    reader.cursor.register("starts", pa.table({"k0": pa.array(starts, pa.int64())}))
    reader.cursor.register("found", found)
    try:
        groups = question.keys[1:]
        if groups:
            distinct = f"(SELECT DISTINCT {', '.join(groups)} FROM found)"
            rows = reader.cursor.execute(f"SELECT count(*) FROM {distinct}").fetchall()
            if rows[0][0] * len(starts) > _POINTS_MAX:
                raise InvalidInputError(
                    f"{rows[0][0]:,} groups of {len(starts):,} buckets are too many points: ask "
                    "for wider buckets, or filter"
                )
        return reader.cursor.sql(_filling(question)).to_arrow_table()
    finally:
        reader.cursor.unregister("starts")
        reader.cursor.unregister("found")


def _placed(found: pa.Table, starts: Sequence[int], question: Question) -> pa.Table:
    """As `_filled`, without groups: no statement is needed."""
    times = pa.array(starts, pa.int64())
    at = pc.index_in(times, value_set=found.column("k0").combine_chunks())
    columns = [column.take(at) for column in found.columns[1:]]
    for i, measure in enumerate(question.measures):
        if measure.starts_at_zero:
            columns[i] = pc.fill_null(columns[i], 0)
    return pa.table([times, *columns], names=found.column_names)


def _filling(question: Question) -> str:
    """Every one of `starts` and of the groups in `found`, with what was found of both."""
    groups = question.keys[1:]
    cells = [
        f"coalesce(found.m{i}, 0) AS m{i}" if measure.starts_at_zero else f"found.m{i}"
        for i, measure in enumerate(question.measures)
    ]
    each = f"CROSS JOIN (SELECT DISTINCT {', '.join(groups)} FROM found) AS each" if groups else ""
    same = "".join(f" AND found.{k} IS NOT DISTINCT FROM each.{k}" for k in groups)
    order = ", ".join([*(f"each.{key}" for key in groups), "starts.k0"])
    columns = ", ".join(["starts.k0", *(f"each.{key}" for key in groups), *cells])
    return (
        f"SELECT {columns} FROM starts {each} "
        f"LEFT JOIN found ON found.k0 = starts.k0{same} ORDER BY {order}"
    )


def facets(reader: Reader, filter: Filter, columns: Sequence[str], limit: int) -> Facets:
    """The values of each column among the events that pass all other tests."""
    counts: dict[str, list[tuple[Any, int]]] = {}
    questions = [Question(filter.without(column), (_COUNT,), (column,)) for column in columns]
    for column, found in zip(columns, aggregate_all(reader, questions), strict=True):
        rows = list(
            zip(found.column("k0").to_pylist(), found.column("m0").to_pylist(), strict=True)
        )
        rows.sort(key=lambda row: (-row[1], row[0] is None, row[0] if row[0] is not None else 0))
        counts[column] = rows[:limit]
    return Facets(counts)


def named(answer: pa.Table, keys: Sequence[str], measures: Sequence[Measure]) -> pa.Table:
    """The answer with the labels of its measures, and integers as integers where they fit."""
    columns = list(answer.columns)
    for index, measure in enumerate(measures, len(keys)):
        if measure.kind == "sum" and measure.sum_type == "HUGEINT":
            columns[index] = _integers(columns[index])
    return pa.table(columns, names=[*keys, *(m.label for m in measures)])


def _integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond 64 bits: they stay decimals without a fraction
        return column
