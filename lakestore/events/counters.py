"""Counters: exact sums by key, flushed or not, cheap enough to ask with every request.

What is published changes with a flush and is added up then. What is buffered since is added up
once, as it comes: an ask looks at the rows that came after the one before.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from lakestore.buffer import Pinned
from lakestore.errors import InvalidInputError
from lakestore.events.aggregate import aggregate, aggregate_rows
from lakestore.events.filters import Filter
from lakestore.events.measures import Measure
from lakestore.events.questions import named
from lakestore.events.statement import Question
from lakestore.policy import to_stored
from lakestore.query.reader import Reader
from lakestore.snapshot import GenerationId

Sums = tuple[Any, ...]
_FEW_ROWS = 512
"""So many rows are added up one by one; DuckDB is faster with more."""


class Counters(Mapping[Any, dict[str, Any]]):
    """Sums by key as of one instant: `counters["key-1"]["count"]`.

    A key without events has zeros; `in` tells whether it has any.
    """

    def __init__(self, labels: Sequence[str], parts: Sequence[Mapping[Any, Sums]]) -> None:
        self._labels = tuple(labels)
        self._parts = tuple(parts)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        sums: Sums = (0,) * len(self._labels)
        for part in self._parts:
            sums = _added(sums, part.get(key, sums)) if key in part else sums
        return dict(zip(self._labels, sums, strict=True))

    def __contains__(self, key: object) -> bool:
        return any(key in part for part in self._parts)

    def __iter__(self) -> Iterator[Any]:
        return iter(dict.fromkeys(key for part in self._parts for key in part))

    def __len__(self) -> int:
        return len(set().union(*self._parts))

    def __repr__(self) -> str:
        return f"<counters of {len(self):,} keys: {', '.join(self._labels)}>"

    def to_arrow(self) -> pa.Table:
        """One row a key: `key`, then a column a measure."""
        names = ("key", *self._labels)
        rows = [dict(zip(names, (key, *self[key].values()), strict=True)) for key in self]
        return pa.Table.from_pylist(rows) if rows else pa.table({name: [] for name in names})


@dataclass
class Running:
    """Counters of one column, kept up to date from ask to ask."""

    by: str
    measures: tuple[Measure, ...]
    _lock: threading.Lock = field(default_factory=threading.Lock)  # guards those below
    _version: tuple[int, int] | None = None
    _published: Mapping[Any, Sums] = field(default_factory=dict)
    _buffered: dict[GenerationId, tuple[int, Mapping[Any, Sums]]] = field(default_factory=dict)
    """By generation: how many of its rows were added up, and their sums."""

    def ask(self, reader: Reader) -> Counters:
        """The counters of a snapshot."""
        pin = reader.pin
        with self._lock:
            if self._version != pin.version:
                self._published = self._publish(reader)
                self._version = pin.version
            self._buffered = {held.id: self._more(reader, held) for held in pin.unflushed}
            parts = [self._published, *(sums for _, sums in self._buffered.values())]
        return Counters([m.label for m in self.measures], parts)

    def _publish(self, reader: Reader) -> Mapping[Any, Sums]:
        """Sums of what is published."""
        pin = reader.pin
        published = replace(reader, pin=replace(pin, buffered=pin.buffered.slice(0, 0)))
        everything = Filter.of(pin.table.schema)
        answer = aggregate(published, Question(everything, self.measures, (self.by,)))
        return _by_key(named(answer, ["key"], self.measures))

    def _more(self, reader: Reader, held: Pinned) -> tuple[int, Mapping[Any, Sums]]:
        """Sums of a generation: those known, and of the rows that came since."""
        done, known = self._buffered.get(held.id, (0, {}))
        fresh, seen = list[pa.RecordBatch](), 0
        for batch in held.batches:
            if seen + batch.num_rows > done:
                fresh.append(batch.slice(max(0, done - seen)))
            seen += batch.num_rows
        if not fresh:
            return done, known
        sums = dict(known)
        known_as = reader.pin.table.lineage.buffered(held.schema_version)
        rows = pa.Table.from_batches(known_as.batches(fresh))
        for key, more in self._added_up(reader, rows).items():
            sums[key] = _added(sums[key], more) if key in sums else more
        return seen, sums

    def _added_up(self, reader: Reader, rows: pa.Table) -> Mapping[Any, Sums]:
        if rows.num_rows > _FEW_ROWS:
            stored = to_stored(rows, reader.pin.table.accepts)
            part = replace(reader.pin, segments=(), cold=(), buffered=stored)
            question = Question(Filter.of(reader.pin.table.schema), self.measures, (self.by,))
            return _by_key(named(aggregate_rows(reader, question, part), ["key"], self.measures))
        columns = {self.by, *(m.column.name for m in self.measures if m.column is not None)}
        values = {name: rows.column(name).to_pylist() for name in columns}
        sums: dict[Any, Sums] = {}
        for row, key in enumerate(values[self.by]):
            more = tuple(
                1 if m.column is None else _counted(m, values[m.column.name][row])
                for m in self.measures
            )
            sums[key] = _added(sums[key], more) if key in sums else more
        return sums


def _counted(measure: Measure, value: Any) -> Any:
    if measure.kind == "count":
        return int(value is not None)
    return 0 if value is None else value


def _by_key(answer: pa.Table) -> Mapping[Any, Sums]:
    keys, *columns = (column.to_pylist() for column in answer.columns)
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


def check(measures: Sequence[Measure]) -> None:
    """Refuse what cannot be added up; raises `InvalidInputError`."""
    for measure in measures:
        if measure.kind not in ("count", "sum") or measure.test:
            raise InvalidInputError(
                f"counters count and add up: {measure.label!r} is neither 'count' nor 'sum(column)'"
            )


def _added(one: Sums, other: Sums) -> Sums:
    return tuple(a + b for a, b in zip(one, other, strict=True))
