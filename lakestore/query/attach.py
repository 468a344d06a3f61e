"""Attach: the payloads of events that a query has found, read from wherever they are by now.

A row that was not flushed yet has no reference: its payload is in a buffer, or in another writer's
journal, and is looked for there by the event's id. A flush may come in between; then a query finds
the event again, with a reference.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakestore import payload, quoting
from lakestore.context import TableContext
from lakestore.errors import NotFoundError
from lakestore.kept import REFERENCE, size_name
from lakestore.layout import PayloadReference
from lakestore.policy import to_stored
from lakestore.query.payloads import wanted_payload
from lakestore.query.pin import buffered_rows, pin_unflushed
from lakestore.query.run import Queries
from lakestore.versions import take_up

MISSING = "payload_missing"
"""Key that an event has whose payload file is gone."""
_ATTEMPTS = 5

Row = dict[str, Any]


def attach(queries: Queries, table: TableContext, rows: Sequence[Row]) -> None:
    """Give events their payload columns: the values, or None where there were none.

    Where a payload file is gone they are None too, and `payload_missing` is True.

    Args:
        rows: events as a query of the table has them, with all of its columns.

    Raises:
        CorruptionError: a payload is not what was written.
        StorageError: it cannot be read for now.
    """
    names = list(table.accepts.buffered.payload)
    for row in rows:
        row.update(dict.fromkeys(names))
    left = [row for row in rows if _has_payload(row, names)]
    for _ in range(_ATTEMPTS):
        unflushed = [row for row in left if row[REFERENCE] is None]
        if not unflushed:
            break
        lost = _attach_unflushed(table, unflushed, names)
        left = [row for row in left if row[REFERENCE] is not None] + lost
        _find_again(queries, table, lost)
    values = read(table, [row[REFERENCE] for row in left if row[REFERENCE] is not None])
    for row in left:
        found = values.get(row[REFERENCE])
        row.update(found if found is not None else {MISSING: True})


def read(table: TableContext, references: Iterable[str]) -> dict[str, Row | None]:
    """Payloads by reference; None for those whose file is gone.

    Raises: as `attach`.
    """
    by_file: dict[str, dict[int, str]] = defaultdict(dict)
    for text in references:
        reference = PayloadReference.parse(text)
        by_file[str(reference.name)][reference.row] = text
    found: dict[str, Row | None] = {}
    for name, numbers in by_file.items():
        rows = _read_file(table, name, list(numbers))
        found |= {text: None if rows is None else rows[row] for row, text in numbers.items()}
    return found


def _read_file(table: TableContext, name: str, rows: Sequence[int]) -> Mapping[int, Row] | None:
    """Rows of a payload file beside the segments, or, once those are sealed, in the root."""
    columns = list(table.accepts.buffered.payload)
    try:
        return payload.read_rows(table.payload_folder / name, columns, rows)
    except FileNotFoundError:
        pass
    try:
        path = table.site.files.path(wanted_payload(table, name))
        return payload.read_rows(path, columns, rows)
    except (FileNotFoundError, NotFoundError):
        return None


def _has_payload(row: Row, names: Sequence[str]) -> bool:
    return any(row[size_name(name)] is not None for name in names)


def _key(row: Mapping[str, Any], table: TableContext) -> tuple[Any, ...]:
    """What tells an event from others: with its payloads' sizes, for an id may be there twice."""
    sizes = (row[size_name(name)] for name in table.accepts.buffered.payload)
    return row[table.schema.event_id], row[table.schema.event_time], *sizes


def _attach_unflushed(table: TableContext, rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Give events the payloads that buffers hold; returns those that no buffer has."""
    site, id = table.site, table.schema.event_id
    states = site.catalog.states([table.entry.id])
    pinned = pin_unflushed([table], states, site.visibility)[table.entry.id]
    table = take_up(table, max((one.schema_version for one in pinned), default=1))
    held = buffered_rows(table, pinned)
    wanted = pa.array([row[id] for row in rows], held.column(id).type)
    found = held.filter(pc.is_in(held.column(id), value_set=wanted))
    events = to_stored(found, table.accepts).to_pylist()
    values = found.select(names).to_pylist()
    payloads = {_key(e, table): value for e, value in zip(events, values, strict=True)}
    for row in rows:
        row.update(payloads.get(_key(row, table), {}))
    return [row for row in rows if _key(row, table) not in payloads]


def _find_again(queries: Queries, table: TableContext, rows: Sequence[Row]) -> None:
    """Look up the references that events have by now."""
    if not rows:
        return
    schema, sizes = table.schema, [size_name(name) for name in table.accepts.buffered.payload]
    columns = quoting.identifiers([schema.event_id, schema.event_time, REFERENCE, *sizes])
    id, time = quoting.identifier(schema.event_id), quoting.identifier(schema.event_time)
    marks = ", ".join("?" for _ in rows)
    statement = (
        f"SELECT {columns} FROM {quoting.identifier(table.entry.name)} "
        f"WHERE {id} IN ({marks}) AND {time} BETWEEN ? AND ?"
    )
    times = [row[schema.event_time] for row in rows]
    values = [*(row[schema.event_id] for row in rows), min(times), max(times)]
    found = queries.sql(statement, values, [table], {}).to_arrow().to_pylist()
    references = {_key(event, table): event[REFERENCE] for event in found}
    for row in rows:
        row[REFERENCE] = references.get(_key(row, table))
