"""Pages: events in order of time, from a cursor that stays exact while data comes and moves."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import pyarrow as pa

from lakestore import quoting
from lakestore.columns import queried_type
from lakestore.errors import InvalidInputError
from lakestore.events.answers import Page
from lakestore.events.filters import Filter
from lakestore.events.measures import default
from lakestore.events.questions import totals
from lakestore.query.reader import EVENTS, Reader
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile

Order = Literal["newest", "oldest"]
PAGE_MAX = 10_000
_FILES_FIRST = 4
_DAMAGED = "the cursor is not one that a page of this table gave"


@dataclass(frozen=True)
class Place:
    """Where a page ended: the event's time and id, and how many events with both were shown."""

    micros: int
    id: str
    shown: int

    def encode(self, asked: str) -> str:
        """The place as a text for callers, good for the same question alone."""
        text = json.dumps([self.micros, self.id, self.shown, asked], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, cursor: str, asked: str) -> "Place":
        """The inverse of `encode`; raises `InvalidInputError`."""
        try:
            text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            micros, id, shown, of = json.loads(text)
            place = cls(int(micros), str(id), int(shown))
        except (ValueError, TypeError) as error:
            raise InvalidInputError(f"{_DAMAGED}: {cursor!r}") from error
        if of != asked:
            raise InvalidInputError("the cursor is of a page with another filter or order")
        return place


@dataclass(frozen=True)
class Asked:
    """What a caller wants of a page."""

    filter: Filter
    order: Order
    limit: int
    offset: int
    cursor: str | None
    totals: bool

    def __post_init__(self) -> None:
        if self.order not in ("newest", "oldest"):
            raise InvalidInputError(f"order {self.order!r} is neither 'newest' nor 'oldest'")
        if not isinstance(self.limit, int) or not 0 <= self.limit <= PAGE_MAX:
            raise InvalidInputError(f"limit {self.limit!r} is not from 0 to {PAGE_MAX:,}")
        if not isinstance(self.offset, int) or self.offset < 0:
            raise InvalidInputError(f"offset {self.offset!r} is not 0 or more")
        if self.cursor is not None and self.offset:
            raise InvalidInputError("a page begins at a cursor or at an offset, not at both")

    @property
    def after(self) -> Place | None:
        """Where the page begins; raises `InvalidInputError` for a cursor of something else."""
        return None if self.cursor is None else Place.decode(self.cursor, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Eight hex digits of what is asked, but for where the page begins and ends."""
        filter = self.filter
        told = [sorted(filter.tests.items()), filter.source, str(filter.start), str(filter.end)]
        values = {name: repr(value) for name, value in filter.values.items()}
        text = json.dumps([told, values, self.order])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def page(reader: Reader, asked: Asked) -> Page:
    """The page, and the totals of the same snapshot."""
    after = asked.after
    schema = asked.filter.schema
    known = totals(reader, asked.filter, default(schema)) if asked.totals else None
    if not asked.limit:
        empty = schema.arrow.empty_table()
        return Page([], None, known["count"] if known else None, known, empty)
    found = _events(reader, replace(asked, limit=asked.limit + 1), after)
    table = found.slice(0, asked.limit)
    cursor = None
    if found.num_rows > asked.limit:
        cursor = _place_of(reader, table, schema, after).encode(asked.fingerprint)
    return Page(table.to_pylist(), cursor, known["count"] if known else None, known, table)


def _events(reader: Reader, asked: Asked, after: Place | None) -> pa.Table:
    """Up to `limit` events past the place, or past the first `offset`.

    Cold files are read in the order of their times, and no more of them than can hold an event
    of the page.
    """
    filter, order = asked.filter, asked.order
    statement = _statement(asked, after)
    values = filter.bound(statement) | ({"at_id": after.id} if after is not None else {})
    pin = filter.restrict(reader.pin)
    files = _in_order(reader.pruned(statement, values) if pin.cold else (), order)
    count = _FILES_FIRST
    while True:
        found = reader.fetch(statement, values, {EVENTS: replace(pin, cold=tuple(files[:count]))})
        if count >= len(files):
            return found
        if found.num_rows == asked.limit:
            last = found.column(filter.schema.event_time)[-1].as_py()
            if not any(_reaches(file, last, order) for file in files[count:]):
                return found
        count *= 2


def _place_of(reader: Reader, found: pa.Table, schema: TableSchema, before: Place | None) -> Place:
    """Where a page ends that is not empty."""
    reader.cursor.register("lakestore_page", found)
    try:
        time, id = quoting.identifier(schema.event_time), quoting.identifier(schema.event_id)
        keys = reader.cursor.sql(
            f"SELECT epoch_us({time}), CAST({id} AS VARCHAR) FROM lakestore_page"
        ).fetchall()
    finally:
        reader.cursor.unregister("lakestore_page")
    last = keys[-1]
    shown = keys.count(last)
    if shown == len(keys) and before is not None and (before.micros, before.id) == last:
        shown += before.shown
    return Place(last[0], last[1], shown)


def _statement(asked: Asked, after: Place | None) -> str:
    filter, schema, offset = asked.filter, asked.filter.schema, asked.offset
    time, id = quoting.identifier(schema.event_time), quoting.identifier(schema.event_id)
    way, beyond = ("DESC", "<") if asked.order == "newest" else ("ASC", ">")
    tests = [filter.condition]
    if after is not None:
        kind = queried_type(schema.column(schema.event_id).sql_type)
        moment = f"make_timestamptz({after.micros})"
        if schema.column(schema.event_time).sql_type == "TIMESTAMP":
            moment = f"make_timestamp({after.micros})"
        value = f"CAST($at_id AS {kind})"
        tests.append(f"{time} {beyond}= {moment}")
        tests.append(f"({time} {beyond} {moment} OR {id} {beyond}= {value})")
        offset = after.shown
    return (
        f"SELECT * FROM {EVENTS} WHERE {' AND '.join(tests)} "
        f"ORDER BY {time} {way}, {id} {way} LIMIT {asked.limit} OFFSET {offset}"
    )


def _in_order(files: Sequence[ColdFile], order: Order) -> list[ColdFile]:
    if order == "newest":
        return sorted(files, key=lambda file: file.info.max_time, reverse=True)
    return sorted(files, key=lambda file: file.info.min_time)


def _reaches(file: ColdFile, last: datetime, order: Order) -> bool:
    """Whether a file can hold an event that comes before or beside the last of a page."""
    last = last if last.tzinfo else last.replace(tzinfo=file.info.max_time.tzinfo)
    return file.info.max_time >= last if order == "newest" else file.info.min_time <= last
