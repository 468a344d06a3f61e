"""Aggregate: answers of questions, from rollups where one keeps what is asked, else from rows.

A file's partial stands for its rows in every bucket that the filter's window holds whole: by days
as far as whole days are asked for, then by its own buckets. The ends of the window, buffered rows,
and files without a partial are read. What is published twice is in no snapshot twice, so nothing
is counted twice.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from lakestore.document import Rollup
from lakestore.events.filters import Filter
from lakestore.events.rolled import Span, Window, inside
from lakestore.events.statement import Part, Question, Rolled, Rows, statement
from lakestore.partials import Loaded
from lakestore.query.pin import TablePin
from lakestore.query.reader import EVENTS, Reader
from lakestore.resident import Source

_EDGES = "lakestore_edges"
"""What a statement calls the files whose partials it reads, where it reads their rows too."""


@dataclass(frozen=True)
class _Planned:
    """Where an answer comes from."""

    parts: Sequence[Part]
    views: Mapping[str, TablePin]


def aggregate(reader: Reader, question: Question) -> pa.Table:
    """The answer: columns `k0`, `k1`, … and `m0`, `m1`, … in the order of the question.

    Without keys it is one row; with keys, one for each that has an event.
    """
    return aggregate_all(reader, [question])[0]


def aggregate_all(reader: Reader, questions: Sequence[Question]) -> list[pa.Table]:
    """The answers of questions whose filters are one, or one without some of its tests.

    They are asked by one statement: to begin one takes longer than most answers from partials.
    """
    if not questions:
        return []
    with ExitStack() as loads:
        loaded: dict[str, Loaded] = {}

        def load(one: Rollup, pin: TablePin) -> Loaded:
            if one.name not in loaded:
                partials = pin.table.partials.load(one, pin.segments, pin.cold)
                loaded[one.name] = loads.enter_context(partials)
            return loaded[one.name]

        planned = [_planned(reader, question, load) for question in questions]
        return _fetch(reader, questions, planned)


def aggregate_rows(reader: Reader, question: Question, pin: TablePin) -> pa.Table:
    """The answer of rows alone."""
    return _fetch(reader, [question], [_of_rows(question, pin)])[0]


def _of_rows(question: Question, pin: TablePin) -> _Planned:
    return _Planned([Rows(EVENTS, question.filter.condition)], {EVENTS: pin})


def _planned(
    reader: Reader, question: Question, load: Callable[[Rollup, TablePin], Loaded]
) -> _Planned:
    pin = question.filter.restrict(reader.pin)
    for one in question.filter.schema.document.rollups:
        window = inside(question, one, reader)
        if window is not None:
            return _of_rollup(question, pin, load(one, pin), window)
    return _of_rows(question, pin)


def _of_rollup(question: Question, pin: TablePin, loaded: Loaded, window: Window) -> _Planned:
    """The answer of a rollup for whole buckets, and of rows for the rest."""
    filter, parts, views = question.filter, list[Part](), {}
    for partials, days in loaded.sources:
        if days is not None:
            parts += _rolled(filter, days, window.by_day)
        parts += _rolled(filter, partials, [window.buckets] if days is None else window.by_bucket)
    rest = _only(pin, lambda name: name in loaded.missing)
    if rest.buffered.num_rows or rest.segments or rest.cold:
        parts.append(Rows(EVENTS, filter.condition))
        views[EVENTS] = rest
    for start, end in window.edges(filter):
        parts.append(Rows(_EDGES, filter.within(start, end)))
        covered = _only(pin, lambda name: name not in loaded.missing)
        views[_EDGES] = replace(covered, buffered=pin.buffered.slice(0, 0))
    return _Planned(parts, views)


def _rolled(filter: Filter, source: Source, spans: Sequence[Span]) -> list[Part]:
    """What partials have of these spans."""
    if not spans:
        return []
    tests = [source.passing(name, test) for name, test in filter.tests.items()]
    within = " OR ".join(source.within(start, end) for start, end in spans)
    return [Rolled(source, " AND ".join([*tests, f"({within})"]))]


def _only(pin: TablePin, wanted: Callable[[str], bool]) -> TablePin:
    """The part of a snapshot with some of its files."""
    return replace(
        pin,
        segments=tuple(s for s in pin.segments if wanted(s.name)),
        cold=tuple(f for f in pin.cold if wanted(f.name)),
    )


def _fetch(
    reader: Reader, questions: Sequence[Question], planned: Sequence[_Planned]
) -> list[pa.Table]:
    """Run one statement for all, of whose files only those are read that can matter."""
    texts, views = [], {}
    for number, (question, plan) in enumerate(zip(questions, planned, strict=True)):
        own = {name: f"{name}_{number}" for name in plan.views}
        parts = [replace(p, source=own[p.source]) if isinstance(p, Rows) else p for p in plan.parts]
        for name, pin in plan.views.items():
            views[own[name]] = _pruned(reader, question, pin, parts, own[name])
        texts.append(statement(question, parts))
    filter = questions[0].filter
    if len(texts) == 1:
        return [reader.fetch(texts[0], filter.bound(texts[0]), views)]
    text = " UNION ALL BY NAME ".join(
        f"SELECT {i} AS question, {_columns(question, i)} {text}"
        for i, (question, text) in enumerate(zip(questions, texts, strict=True))
    )
    answers = reader.fetch(text, filter.bound(text), views)
    return [_answer(answers, question, i) for i, question in enumerate(questions)]


def _pruned(
    reader: Reader, question: Question, pin: TablePin, parts: Sequence[Part], name: str
) -> TablePin:
    """The part of a snapshot that the rows of a statement can be in."""
    if not pin.cold:
        return pin
    rows = [p for p in parts if isinstance(p, Rows) and p.source == name]
    scan = " UNION ALL ".join(f"SELECT 1 FROM {EVENTS} WHERE {p.condition}" for p in rows)
    kept = {file.name for file in reader.pruned(scan, question.filter.bound(scan))}
    return replace(pin, cold=tuple(f for f in pin.cold if f.name in kept))


def _names(question: Question) -> list[str]:
    return [*question.keys, *(f"m{i}" for i in range(len(question.measures)))]


def _columns(question: Question, number: int) -> str:
    """The columns of one of several answers: each has its own, for their types differ."""
    return ", ".join(f"{name} AS q{number}{name}" for name in _names(question))


def _answer(answers: pa.Table, question: Question, number: int) -> pa.Table:
    """One of several answers."""
    own = answers.filter(pc.equal(answers.column("question"), number))
    names = _names(question)
    return own.select([f"q{number}{name}" for name in names]).rename_columns(names)
