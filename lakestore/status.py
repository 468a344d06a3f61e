"""How a lake is: rows, bytes and files of each tier, and how far behind each is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from lakestore.context import TableContext
from lakestore.errors import StorageError
from lakestore.layout import PayloadName
from lakestore.snapshot import ColdFile, GenerationId, Segment, TableState
from lakestore.writers import Recovery


@dataclass(frozen=True)
class TierStatus:
    """One tier of one table."""

    tier: str
    rows: int
    bytes: int
    files: int
    lag_s: float | None
    """Age of its oldest row that should move on."""
    payload_bytes: int = 0
    """Size of the payload files that its rows refer to; those of the buffer are in `bytes`."""
    payload_files: int = 0

    def __str__(self) -> str:
        text = f"{self.tier:6} {self.rows:>12,} rows {self.bytes:>14,} bytes {self.files:>6,} files"
        if self.payload_files:
            text += f" {self.payload_bytes:>14,} bytes of payloads"
        return text


@dataclass(frozen=True)
class TableStatus:
    """One table: its tiers, and the event times it spans."""

    name: str
    rows: int
    tiers: tuple[TierStatus, ...]
    sealed_through: int
    first_event: datetime | None
    last_event: datetime | None
    rejects: str | None = None
    """The table that rows go to which do not fit."""


@dataclass(frozen=True)
class Status:
    """A lake: its tables, superseded files that wait for `vacuum`, the last upkeep problem."""

    root: str
    lake: str
    mode: str
    tables: tuple[TableStatus, ...]
    recovery: Recovery
    superseded_files: int
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists; times as ISO text."""
        data = asdict(self)
        for table in data["tables"]:
            for key in ("first_event", "last_event"):
                table[key] = table[key].isoformat() if table[key] else None
        return data

    def __str__(self) -> str:
        lines = [f"{self.root} ({self.mode})"]
        for table in self.tables:
            lines.append(f"{table.name}: {table.rows:,} rows")
            lines += [f"  {tier}" for tier in table.tiers]
        if self.problem:
            lines.append(f"upkeep: {self.problem}")
        return "\n".join(lines)


def table_status(table: TableContext) -> TableStatus:
    """The status of one table: its catalog state, and what is not flushed yet by any writer."""
    state = _state(table)
    unflushed_rows, unflushed_bytes = _unflushed(table, state.flushed)
    now = table.site.clock.now()
    began = table.buffer.began if table.buffer else None
    oldest = min((s.committed_at for s in state.hot), default=None)
    journals = len(table.buffer.ids) if table.buffer else 0
    infos = [s.info for s in state.hot] + [f.info for f in state.cold]
    lag = None if began is None else table.site.clock.monotonic() - began
    hot_lag = None if oldest is None else (now - oldest).total_seconds()
    return TableStatus(
        table.entry.name,
        unflushed_rows + sum(info.rows for info in infos),
        (
            TierStatus("buffer", unflushed_rows, unflushed_bytes, journals, lag),
            _published("hot", state.hot, hot_lag),
            _published("cold", state.cold, None),
        ),
        state.sealed_through,
        min((i.min_time for i in infos if i.rows), default=None),
        max((i.max_time for i in infos if i.rows), default=None),
        table.accepts.document.rejects,
    )


def _published(tier: str, files: Sequence[Segment | ColdFile], lag_s: float | None) -> TierStatus:
    payload = {name for file in files for name in file.info.payload}
    return TierStatus(
        tier,
        sum(file.info.rows for file in files),
        sum(file.info.bytes for file in files),
        len(files),
        lag_s,
        sum(PayloadName.parse(name).bytes for name in payload),
        len(payload),
    )


def _state(table: TableContext) -> TableState:
    """The newest state, or of a store that does not answer what is known: the backlog shows."""
    if table.site.storage.answers:
        try:
            return table.state(newest=True)
        except StorageError:
            if not table.site.storage.remote:
                raise
    return table.state()


def _unflushed(table: TableContext, flushed: frozenset[GenerationId]) -> tuple[int, int]:
    """Rows and Arrow bytes in this process's buffer and in others' journals."""
    held = table.buffer.ids if table.buffer else frozenset()
    rows = size = 0
    for pinned in table.tails.pin({table.site.writer}, flushed | held):
        rows += sum(batch.num_rows for batch in pinned.batches)
        size += sum(batch.nbytes for batch in pinned.batches)
    if table.buffer is not None:
        rows, size = rows + table.buffer.rows, size + table.buffer.bytes
    return rows, size
