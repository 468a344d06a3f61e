"""Pin a snapshot: the rows of several tables as of one instant.

The hot side first, then the published side, then drop from the hot side what was published in
between. The other order could miss rows. All buffers of a lake are pinned under one lock, so a
row that was acknowledged before another, in any table, is never missing beside it.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from lakestore.buffer import Pinned
from lakestore.context import TableContext, with_cold
from lakestore.opensite import SiteContext
from lakestore.policy import to_stored
from lakestore.snapshot import ColdFile, Segment, TableState
from lakestore.versions import take_up


@dataclass(frozen=True)
class TablePin:
    """One table's part of a snapshot."""

    table: TableContext
    held: pa.Table
    """Rows that are not flushed yet, as they are held: with their payloads."""
    buffered: pa.Table
    """The same, as a query of the table sees them."""
    segments: tuple[Segment, ...]
    cold: tuple[ColdFile, ...]
    unflushed: tuple[Pinned, ...] = ()
    """What `buffered` is made of, by generation."""
    version: tuple[int, int] = (0, 0)
    """Of the catalog, and of the cold tier: the same files are published while it is the same."""


class PinnedRows(ABC):
    """Rows of a snapshot that is known already, whatever the table has become."""

    pin: TablePin

    @abstractmethod
    def check(self) -> None:
        """Raise `NotFoundError` when files of it are deleted by now."""


class FilesInUse:
    """Names of published files that running queries of this process read; `vacuum` asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _users
        self._users: Counter[str] = Counter()
        self._left: deque[Sequence[str]] = deque()

    def __contains__(self, name: object) -> bool:
        with self._lock:
            self._settle()
            return self._users[str(name)] > 0

    def add(self, names: Sequence[str]) -> None:
        """Count one more user of each."""
        with self._lock:
            self._settle()
            self._users.update(names)

    def remove(self, names: Sequence[str]) -> None:
        """Count one user less of each.

        Without the lock: a finalizer calls it, perhaps of a thread that holds the lock.
        """
        self._left.append(names)

    def _settle(self) -> None:
        while self._left:
            self._users.subtract(self._left.popleft())
        self._users += Counter()  # drops those nobody uses


def pin(site: SiteContext, tables: Sequence[TableContext]) -> list[TablePin]:
    """The rows of `tables` as of now.

    Raises:
        StorageError, CorruptionError: the catalog or another writer's journal cannot be read.
    """
    tables = [table.newest for table in tables]
    ids = [table.entry.id for table in tables]
    listed = site.catalog.states(ids)
    while True:
        before = listed
        pinned = pin_unflushed(tables, before, site.visibility)
        listed = site.catalog.states(ids)
        if any(before[id].version != listed[id].version for id in ids):
            # Something was published in between: what is pinned may be in a segment by now, with
            # rows newer than those pinned of other tables. Only a new pin is one instant.
            continue
        published = with_cold(listed, tables)
        # A row is of no newer version than those that were listed when it was accepted.
        newest = [take_up(t, published[t.entry.id].schema_version) for t in tables]
        if all(new is old for new, old in zip(newest, tables, strict=True)):
            break
        tables = newest
    result = []
    for table in tables:
        state = published[table.entry.id]
        held = [p for p in pinned[table.entry.id] if p.id not in state.flushed]
        rows = buffered_rows(table, held)
        stored = to_stored(rows, table.accepts)
        version = (state.version, state.cold_version)
        result.append(TablePin(table, rows, stored, state.hot, state.cold, tuple(held), version))
    return result


def pin_version(table: TableContext, version: int, files: tuple[ColdFile, ...]) -> TablePin:
    """The sealed rows of a version alone."""
    held = buffered_rows(table, ())
    stored = to_stored(held, table.accepts)
    return TablePin(table, held, stored, (), files, version=(0, version))


def buffered_rows(table: TableContext, pinned: Sequence[Pinned]) -> pa.Table:
    """The rows of pinned generations, payloads and all."""
    batches = [
        batch
        for one in pinned
        for batch in table.lineage.buffered(one.schema_version).batches(one.batches)
    ]
    return pa.Table.from_batches(batches, schema=table.accepts.buffered.arrow)


def pin_unflushed(
    tables: Sequence[TableContext],
    states: dict[int, TableState],
    visibility: threading.Lock,
) -> dict[int, list[Pinned]]:
    """Generations of each table that no segment has, as far as they are visible."""
    pinned: dict[int, list[Pinned]] = {}
    with visibility:
        for table in tables:
            pinned[table.entry.id] = list(table.buffer.pin()) if table.buffer else []
    for table in tables:
        # What is pinned of the buffer, and not what it holds by now: a dead writer's journal that
        # it takes over in between would be in neither.
        held = {p.id for p in pinned[table.entry.id]}
        others = table.tails.pin({table.site.writer}, states[table.entry.id].flushed | held)
        pinned[table.entry.id] += others
    return pinned
