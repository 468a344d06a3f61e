"""Aggregate: the answer of a question, from rollups where one keeps what is asked, else from rows.

A file's partial stands for its rows in every bucket that the filter's window holds whole. The hours
at the ends of the window, buffered rows, and files without a partial are read. What is published
twice is in no snapshot twice, so nothing is counted twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from lakestore.document import Rollup
from lakestore.events.rolled import Window, inside
from lakestore.events.statement import Part, Question, statement
from lakestore.query.pin import TablePin
from lakestore.query.reader import EVENTS, Reader

_EDGES = "lakestore_edges"
"""What a statement calls the files whose partials it reads, where it reads their rows too."""


def aggregate(reader: Reader, question: Question) -> pa.Table:
    """The answer: columns `k0`, `k1`, … and `m0`, `m1`, … in the order of the question.

    Without keys it is one row; with keys, one for each that has an event.
    """
    pin = question.filter.restrict(reader.pin)
    for one in question.filter.schema.document.rollups:
        window = inside(question, one, reader)
        if window is not None:
            return _from_rollup(reader, question, pin, one, window)
    return aggregate_rows(reader, question, pin)


def aggregate_rows(reader: Reader, question: Question, pin: TablePin) -> pa.Table:
    """The answer of rows alone."""
    return _fetch(reader, question, [Part(EVENTS, question.filter.condition)], {EVENTS: pin})


def _from_rollup(
    reader: Reader, question: Question, pin: TablePin, one: Rollup, window: Window
) -> pa.Table:
    """The answer of a rollup for whole buckets, and of rows for the rest."""
    filter = question.filter
    with pin.table.partials.load(one, pin.segments, pin.cold) as loaded:
        parts = [Part(loaded.relation, filter.also(window.of_partials()), one)]
        views = {}
        rest = _only(pin, lambda name: name in loaded.missing)
        if rest.buffered.num_rows or rest.segments or rest.cold:
            parts.append(Part(EVENTS, filter.condition))
            views[EVENTS] = rest
        for start, end in window.edges(filter):
            parts.append(Part(_EDGES, filter.within(start, end)))
            covered = _only(pin, lambda name: name not in loaded.missing)
            views[_EDGES] = replace(covered, buffered=pin.buffered.slice(0, 0))
        return _fetch(reader, question, parts, views)


def _only(pin: TablePin, wanted: Callable[[str], bool]) -> TablePin:
    """The part of a snapshot with some of its files."""
    return replace(
        pin,
        segments=tuple(s for s in pin.segments if wanted(s.name)),
        cold=tuple(f for f in pin.cold if wanted(f.name)),
    )


def _fetch(
    reader: Reader, question: Question, parts: Sequence[Part], views: Mapping[str, TablePin]
) -> pa.Table:
    """Run the statement over the parts, of whose files only those are read that can matter."""
    filter, chosen = question.filter, dict(views)
    for name, pin in views.items():
        if pin.cold:
            scans = [
                f"SELECT 1 FROM {EVENTS} WHERE {p.condition}" for p in parts if p.source == name
            ]
            scan = " UNION ALL ".join(scans)
            kept = {file.name for file in reader.pruned(scan, filter.bound(scan))}
            chosen[name] = replace(pin, cold=tuple(f for f in pin.cold if f.name in kept))
    text = statement(question, parts)
    return reader.fetch(text, filter.bound(text), chosen)
