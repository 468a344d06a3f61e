"""Prune: cold files whose every event has expired leave the table, in one commit.

Whole files go, and no file is cut: one that has newer events too waits for them. So days go that
are before the cutoff, because a cold file has the rows of one day. What is hot is sealed first, and
buffers are not touched. Order of effects, numbered as their failpoints are:

    prune.1 footers of the files say the same as the list    .2 committed (`swap` and `record`)
    .3 caches of their ids let go

The files stay until their grace is over, and `undo` brings them back until then.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any

from lakestore import coldmeta
from lakestore.clock import Clock
from lakestore.context import TableContext
from lakestore.errors import ConflictError, CorruptionError
from lakestore.failpoint import reach
from lakestore.horizon import Age, cutoff, doubt
from lakestore.layout import PayloadName, is_cold_name
from lakestore.replacement import Replacement
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, Segment, TableState
from lakestore.storage.s3 import S3Storage

_SHARE_MAX = 0.5
_SKEW_MAX_S = 86_400.0


@dataclass(frozen=True)
class Plan:
    """What would go."""

    cutoff: datetime
    files: tuple[ColdFile, ...]
    segments: tuple[Segment, ...]
    """Hot segments all of whose events have expired; they are sealed first."""
    payload: tuple[str, ...]
    """Payload files that no other cold file refers to."""
    live_rows: int
    """Of all published files."""

    @property
    def rows(self) -> int:
        """Rows of the files and segments."""
        return sum(f.info.rows for f in self.files) + sum(s.info.rows for s in self.segments)

    @property
    def bytes(self) -> int:
        """Of the files and segments."""
        return sum(f.info.bytes for f in self.files) + sum(s.info.bytes for s in self.segments)


@dataclass(frozen=True)
class Pruned:
    """What a prune did, or would."""

    cutoff: datetime
    """Files whose newest event is before it went."""
    files: int = 0
    rows: int = 0
    bytes: int = 0
    days: int = 0
    """Days that have no event any more, of those files."""
    segments: int = 0
    """Hot segments that expired as a whole, and were sealed for it."""
    payload_files: int = 0
    payload_bytes: int = 0
    rows_left: int = 0
    dry_run: bool = False
    refusal: str | None = None
    """Why it would not be done without `confirm`."""
    first_day: date | None = field(default=None)
    last_day: date | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values; times and days as ISO text."""
        data = asdict(self)
        for key in ("cutoff", "first_day", "last_day"):
            data[key] = data[key].isoformat() if data[key] else None
        return data

    def __str__(self) -> str:
        verb = "would take" if self.dry_run else "took"
        text = (
            f"{verb} {self.rows:,} rows in {self.files:,} files ({self.bytes:,} bytes) off the "
            f"table: events before {self.cutoff.isoformat(timespec='seconds')}"
        )
        if self.first_day is not None:
            text += f", days {self.first_day} to {self.last_day}"
        if self.segments:
            text += f"; {self.segments:,} hot segments of them are sealed first"
        if self.payload_files:
            text += f"; {self.payload_files:,} payload files ({self.payload_bytes:,} bytes)"
        text += f"; {self.rows_left:,} rows stay"
        return text + (f"\nnot without confirm: {self.refusal}" if self.refusal else "")


def choose(state: TableState, schema: TableSchema, cutoff: datetime) -> Plan:
    """What has expired: files and segments whose newest event is before the cutoff. Pure."""
    files = tuple(file for file in state.cold if _has_expired(file, schema, cutoff))
    hot = tuple(s for s in state.hot if s.info.rows and s.info.max_time < cutoff)
    names = {file.name for file in files}
    left = [file for file in state.cold if file.name not in names]
    payload = {name for file in files for name in file.info.payload}
    payload -= {name for one in left for name in one.info.payload}
    payload -= {name for one in state.hot for name in one.info.payload}
    if not all(is_cold_name(file.name) for file in left):
        payload = set()  # what another engine wrote may refer to any
    rows = sum(f.info.rows for f in state.cold) + sum(s.info.rows for s in state.hot)
    return Plan(cutoff, files, hot, tuple(sorted(payload)), rows)


def _has_expired(file: ColdFile, schema: TableSchema, cutoff: datetime) -> bool:
    """Whether all events of a file are before the cutoff, as far as its list says."""
    if is_cold_name(file.name):
        if not file.info.rows:  # kept for its footer alone, which the record of the prune keeps
            return file.day is not None and file.day < cutoff.date()
        return file.info.max_time < cutoff
    times = file.info.ranges.get(schema.event_time)
    told = times is not None and times.high is not None and times.nulls == 0
    return told and file.info.rows > 0 and file.info.max_time < cutoff


def refusal(plan: Plan, doubt: str | None) -> str | None:
    """Why a plan is not to be carried out unless somebody confirms it. Pure."""
    if not plan.rows:
        return None
    if doubt is not None:
        return doubt
    share = plan.rows / max(1, plan.live_rows)
    if share > _SHARE_MAX:
        return (
            f"{plan.rows:,} of {plan.live_rows:,} rows ({share:.0%}) are before "
            f"{plan.cutoff.isoformat(timespec='seconds')}, more than {_SHARE_MAX:.0%} at once"
        )
    return None


@dataclass(frozen=True)
class Order:
    """Up to when events are to go, and why that may be wrong."""

    cutoff: datetime
    doubt: str | None = None


def order(table: TableContext, older_than: Age | None, before: datetime | None) -> Order:
    """What a caller has asked for.

    Raises:
        InvalidInputError: no retention is said or declared.
        Others: as `clock_doubt`.
    """
    if before is not None:
        return Order(before)
    clock = table.site.clock
    return Order(cutoff(table.schema, clock.now(), older_than), clock_doubt(table, clock))


def clock_doubt(table: TableContext, clock: Clock) -> str | None:
    """Why not to believe the clock, which a store's clock may confirm; None when it is believed.

    Raises:
        StorageError, CorruptionError: what was committed cannot be read.
    """
    now = clock.now()
    found = doubt(table.cold.moments(), now)
    storage = table.site.storage
    if found is None or not isinstance(storage, S3Storage):
        return found
    ahead = now.timestamp() - (time.time() + storage.skew_s())
    return found if ahead > _SKEW_MAX_S else None


def due(table: TableContext, state: TableState) -> Plan | None:
    """What has expired by the table's own retention and may go without a word; None when nothing.

    Raises: as `order`.
    """
    if table.schema.document.retention is None:
        return None
    said = order(table, None, None)
    plan = choose(state, table.schema, said.cutoff)
    return plan if plan.rows and refusal(plan, said.doubt) is None else None


def report(plan: Plan, *, dry_run: bool, segments: int = 0, refused: str | None = None) -> Pruned:
    """What a plan takes off the table. Pure.

    Args:
        segments: that were sealed before it was made.
    """
    days = sorted({file.day for file in plan.files if file.day is not None})
    return Pruned(
        plan.cutoff,
        len(plan.files),
        plan.rows,
        plan.bytes,
        len(days),
        segments + len(plan.segments),
        len(plan.payload),
        sum(PayloadName.parse(name).bytes for name in plan.payload),
        plan.live_rows - plan.rows,
        dry_run,
        refused,
        days[0] if days else None,
        days[-1] if days else None,
    )


def carry_out(table: TableContext, cutoff: datetime) -> Plan:
    """Prune what has expired by now, whoever else replaces files; raises as `prune`."""
    while True:
        plan = choose(table.state(newest=True), table.schema, cutoff)
        try:
            prune(table, plan)
            return plan
        except ConflictError:  # what is left is for us
            if plan == choose(table.state(newest=True), table.schema, cutoff):
                raise


def prune(table: TableContext, plan: Plan) -> None:
    """Take the files of a plan off the table.

    Raises:
        ConflictError: another process replaced one of them; its result stands.
        CorruptionError: a file's footer says other times than the list; nothing was done.
        StorageError: the disk refused; nothing was committed.
    """
    if not plan.files:
        return
    footers = _footers(table, plan)
    reach("prune.1")
    table.cold.replace(Replacement("prune", plan.files, (), footers))
    reach("prune.2")
    for file in plan.files:
        table.file_ids.forget(file.name)
    reach("prune.3")


def _footers(table: TableContext, plan: Plan) -> Mapping[str, Mapping[str, Any]]:
    """What the files say of themselves, held against what is listed of their times."""
    footers = {}
    for file, metadata in zip(plan.files, coldmeta.metadata(table, plan.files), strict=True):
        newest = coldmeta.newest_time(metadata, table.schema)
        if newest is None or newest >= plan.cutoff or metadata.num_rows != file.info.rows:
            raise CorruptionError(
                f"{table.cold_url(file)!r} is listed with {file.info.rows:,} rows up to "
                f"{file.info.max_time}, and its footer says {metadata.num_rows:,} up to {newest}: "
                "run `lakestore verify`; nothing was pruned"
            )
        footers[file.name] = coldmeta.told_footer(metadata)
    return footers
