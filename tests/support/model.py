"""What a lake must hold: tables as plain counts of rows, for a test that takes any steps.

An event is a number and a day; which columns its row has a value in is the row's shape. A table's
model knows which rows are published and which each writer holds unflushed, which prunes can be
taken back, and what the table was at versions that somebody may go back to.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pyarrow as pa

import lakestore as ls

START = datetime(2025, 1, 1, tzinfo=UTC)
SHAPES = 3
"""So many columns may be added to a table."""
Event = tuple[int, int]  # its number, and a day: the same id on another day
Row = tuple[Event, int]  # and how many of the columns that were added it has a value in


def schema(scope: str) -> ls.TableSchema:
    return ls.TableSchema.from_toml(
        f"""
        event_id = "id"
        event_time = "at"
        dedup = "{scope}"
        [columns]
        id = "VARCHAR not null"
        at = "TIMESTAMPTZ not null"
        n = "INTEGER"
        """
    )


def at(event: Event) -> datetime:
    number, day = event
    return START + timedelta(days=number % 3 + 10 * day, minutes=number)


def added(shape: int) -> list[str]:
    """The columns that were added first, so many."""
    return [f"c{number}" for number in range(1, shape + 1)]


def values(event: Event, shape: int) -> dict[str, Any]:
    """A row, every value of which follows from its event and shape."""
    number = event[0]
    found = {"id": f"e{number}", "at": at(event), "n": number}
    return found | {name: place * 1000 + number for place, name in enumerate(added(shape), 1)}


def rows(events: list[Event], shape: int) -> pa.Table:
    types = {"id": pa.string(), "at": pa.timestamp("us", "UTC")}
    names = ["id", "at", "n", *added(shape)]
    fields = [(name, types.get(name, pa.int64())) for name in names]
    return pa.Table.from_pylist([values(e, shape) for e in events], pa.schema(fields))


def row(found: dict[str, Any], shape: int) -> Row:
    """The row that a lake shows of a table of that shape, which must be one that was made."""
    number = found["n"]
    event = (number, int(found["at"] != at((number, 0))))
    has = sum(found[name] is not None for name in added(shape))
    assert found == dict.fromkeys(added(shape)) | values(event, has)
    return event, has


@dataclass
class Held:
    """What one writer has of a table, beside what is published."""

    rows: Counter = field(default_factory=Counter)  # unflushed
    known: set = field(default_factory=set)  # what it tells from new ones, if they are still there
    unwritten: set = field(default_factory=set)  # of `rows`: level `memory`, a crash may take them


@dataclass
class Prune:
    """A prune that took rows, and whether it can be taken back."""

    version: int
    rows: Counter
    state: Literal["there", "undone", "gone", "purged"] = "there"


@dataclass
class Then:
    """What was sealed at a version."""

    version: int
    rows: Counter  # of `Row`s
    replaced: bool = False  # a file of it may be part of the table no more
    deleted: bool = False  # and may have been deleted
    purged: bool = False  # a row of it was

    @property
    def events(self) -> set[Event]:
        return {event for event, _ in self.rows}


@dataclass
class Model:
    """One table."""

    scope: str
    cold: str
    shape: int = 0  # so many columns were added
    widened: bool = False
    published: Counter = field(default_factory=Counter)
    sealed: Counter = field(default_factory=Counter)  # of them
    held: dict[str, Held] = field(default_factory=dict)  # by writer
    shapes: dict[Event, set[int]] = field(default_factory=dict)  # that a row of an event may have
    seq: int = -1  # the newest of the one producer, which sends now to one writer, now to another
    loads: dict[str, list[Event]] = field(default_factory=dict)  # what was loaded, by name
    prunes: list[Prune] = field(default_factory=list)
    versions: list[Then] = field(default_factory=list)

    def key(self, event: Event) -> object:
        return event[0] if self.scope == "table" else event

    def keys(self, events: Iterable[Event]) -> set:
        return {self.key(event) for event in events}

    def of(self, writer: str) -> Held:
        return self.held.setdefault(writer, Held())

    def hot(self) -> Counter:
        return self.published - self.sealed

    def most(self) -> Counter:
        """How often each event may be seen, at most."""
        return sum((held.rows for held in self.held.values()), Counter(self.published))

    def take(self, events: Iterable[Event], shape: int) -> None:
        """Rows of these events may be new."""
        for event in events:
            self.shapes.setdefault(event, set()).add(shape)

    def flush(self, writer: str) -> None:
        rows = self.of(writer).rows
        if self.scope == "none":
            self.published += rows
        else:
            self.published |= Counter(dict.fromkeys(rows, 1))
        self.of(writer).rows = Counter()
        self.of(writer).unwritten = set()

    def seal(self) -> None:
        """All that is published."""
        self.sealed = Counter(self.published)

    def leave(self, is_gone: Callable[[Event], bool]) -> Counter:
        """Sealed rows leave the table: those."""
        gone = Counter({event: n for event, n in self.sealed.items() if is_gone(event)})
        self.published -= gone
        self.sealed -= gone
        for then in self.versions:
            then.replaced |= not then.events.isdisjoint(gone)
        return gone

    def come_back(self, prune: Prune) -> None:
        self.published += prune.rows
        self.sealed += prune.rows
        prune.state = "undone"

    def purge(self, is_gone: Callable[[Event], bool]) -> Counter:
        """Rows are erased wherever they are."""
        gone = self.leave(is_gone)
        for event in [event for event in self.shapes if is_gone(event)]:
            del self.shapes[event]
        for prune in self.prunes:
            if prune.state == "there" and (self.cold == "delta" or any(map(is_gone, prune.rows))):
                prune.state = "purged"  # of a Delta log, all before the purge goes
        for then in self.versions:
            then.purged |= any(map(is_gone, then.events))
            then.replaced |= self.cold == "delta"
            then.deleted |= self.cold == "delta"
        return gone

    def replace(self) -> None:
        """Files were replaced by others with the same rows."""
        for then in self.versions:
            then.replaced = True

    def delete(self) -> None:
        """What was replaced is deleted."""
        for then in self.versions:
            then.deleted |= then.replaced
        for prune in self.prunes:
            if prune.state in ("there", "purged"):
                prune.state = "gone"
