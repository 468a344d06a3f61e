"""Flush: buffered generations → one hot segment; and merge: neighbouring segments → one.

Order of effects, numbered as their failpoints are:

    flush.1 generations closed    .2 duplicates dropped    .3 files staged, checked and fsynced,
    payloads (`payload.1` and `.2`) first    .4 catalog transaction begun
    .5 files linked to their names, payloads (`payload.3`) first    .6 listed in the catalog
    .7 committed    .8 generations let go by the buffer
    merge.1 neighbours read    .2 staged    .3 linked    .4 listed    .5 committed

Partials of rollups follow the commit; without them, whoever asks makes them.

The catalog transaction is the commit point, and it gives the segment its number, so segments are
numbered in the order they become visible. A crash before it leaves staged files, which are swept,
and journals, which are flushed again. Rows that are all known give a segment of no rows: its
footer says that they were taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakestore import datafile, duplicates, hot, payload
from lakestore.buffer import ClosedGeneration
from lakestore.catalog.records import Sent
from lakestore.context import TableContext
from lakestore.failpoint import reach
from lakestore.policy import to_stored
from lakestore.settings import MIB, Settings
from lakestore.snapshot import GenerationId, Segment, TableState
from lakestore.storage.local import make_folder
from lakestore.versions import take_up

_ROWS_MAX = 1 << 18
_BYTES_MAX = 256 * MIB
"""A segment takes no more than this, unless one generation alone has more."""
_VANISHED = (FileNotFoundError, duckdb.IOException)
"""What reading a published file raises when another process took it away and deleted it."""


def is_due(rows: int, bytes: int, age_s: float, settings: Settings) -> bool:
    """Whether buffered rows are worth a flush now. Pure."""
    return rows > 0 and (
        rows >= settings.flush_rows
        or bytes >= settings.flush_bytes_now
        or age_s >= settings.flush_age_s
    )


def wants_duckdb(rows: int, backlog_bytes: int, settings: Settings) -> bool:
    """Whether a segment gets a DuckDB file beside its Parquet file. Pure.

    Not a small one, and not while rows pour in: the file takes as long as all the rest of a flush,
    and what arrives that fast is sealed soon. The backlog is what came since the flush began.
    """
    return rows >= settings.segment_duckdb_rows and backlog_bytes <= settings.buffer_bytes // 64


def flush(table: TableContext) -> list[Segment]:
    """Publish everything buffered as hot segments; the caller holds `table.flushing`.

    Raises:
        StorageError: the disk refused; the rows stay buffered and journaled.
    """
    assert table.buffer is not None
    generations = table.buffer.rotate()
    table = table.newest  # after it: what is closed is of no newer version
    assert table.buffer is not None
    reach("flush.1")
    segments = []
    for group in _groups(generations):
        segment = _flush_group(table, group)
        table.buffer.retire([g.id for g in group])
        reach("flush.8")
        if segment is not None:
            segments.append(segment)
    return segments


def _groups(generations: Sequence[ClosedGeneration]) -> list[list[ClosedGeneration]]:
    groups: list[list[ClosedGeneration]] = []
    rows = size = 0
    for generation in generations:
        rows, size = rows + generation.rows, size + generation.bytes
        if not groups or rows > _ROWS_MAX or size > _BYTES_MAX:
            groups.append([])
            rows, size = generation.rows, generation.bytes
        groups[-1].append(generation)
    return groups


def _flush_group(table: TableContext, group: Sequence[ClosedGeneration]) -> Segment | None:
    while True:
        state = table.state()
        try:
            taken = _take(table, [g for g in group if g.id not in state.flushed], state)
        except _VANISHED:
            if state.version == table.site.catalog.version():
                raise
            continue  # another process took away a file that may hold the same ids
        reach("flush.2")
        if not taken.covers:
            return None
        staged = _stage(table, taken, state)
        try:
            reach("flush.3")
            segment = _publish(table, taken, staged, state)
        finally:
            staged.discard()
        if segment is not None:
            # The appender knows the ids of what it accepted itself; recovered rows may repeat.
            if not taken.recovered:
                table.file_ids.checked.add(segment.name)
            table.partials.files.keep(segment, taken.rows)
            return segment


@dataclass(frozen=True)
class _Taken:
    """What a segment takes of closed generations: rows that no published file holds."""

    covers: Sequence[GenerationId]
    sent: frozenset[Sent]
    rows: pa.Table
    recovered: bool

    @property
    def producers(self) -> dict[str, int]:
        """The highest sequence number of each producer."""
        return dict(sorted(self.sent))


def _take(
    table: TableContext, generations: Sequence[ClosedGeneration], state: TableState
) -> _Taken:
    sent = {(mark.producer, mark.seq) for g in generations for mark in g.marks}
    known = table.site.catalog.sent(table.entry.id, sent)
    sent -= known
    parts = []
    for generation in generations:
        how = table.lineage.buffered(generation.schema_version)
        batches = how.batches(generation.batches)
        rows = pa.Table.from_batches(batches, schema=table.accepts.buffered.arrow)
        keep = np.ones(rows.num_rows, dtype=np.bool_)
        for mark in generation.marks:
            if (mark.producer, mark.seq) in known:
                keep[mark.start : mark.stop] = False
            known.add((mark.producer, mark.seq))
        parts.append(rows if keep.all() else rows.filter(pa.array(keep)))
    rows = pa.concat_tables(parts) if parts else table.accepts.buffered.arrow.empty_table()
    recovered = any(g.recovered for g in generations)
    rows = duplicates.drop_duplicates(table, rows, state, ask_all=recovered)
    return _Taken([g.id for g in generations], frozenset(sent), rows, recovered)


@dataclass(frozen=True)
class _Staged:
    """A segment, and the payload files that its rows refer to."""

    segment: hot.StagedSegment
    payload: payload.StagedPayload

    def discard(self) -> None:
        self.segment.discard()
        self.payload.discard()


def _stage(table: TableContext, taken: _Taken, state: TableState) -> _Staged:
    site, covers = table.site, [[g.writer, g.number] for g in taken.covers]
    footer = table.footer(
        tier="hot",
        covers=covers,
        producers=taken.producers,
        sent=sorted(taken.sent),
        sealed=state.sealed_through,
    )
    assert table.buffer is not None
    wanted = wants_duckdb(taken.rows.num_rows, table.buffer.bytes, site.settings)
    engine = site.engine if wanted else None
    files, references = payload.StagedPayload(), None
    if table.schema.has_references:
        facts = table.footer(generations=covers)
        files, references = payload.stage(site.staging, table.accepts, taken.rows, facts)
    try:
        rows = to_stored(taken.rows, table.accepts, references)
        segment = hot.stage(site.staging, uuid4().hex, table.schema, rows, footer, engine)
    except BaseException:
        files.discard()
        raise
    return _Staged(segment, files)


def _publish(
    table: TableContext, taken: _Taken, staged: _Staged, state: TableState
) -> Segment | None:
    """Publish and list a segment; None when what was published meanwhile holds some of its rows.

    Other processes flush too. What they published since is searched for the same ids, and only
    when it has any is the work done again: writers do not wait for each other.
    """
    make_folder(table.hot_folder)
    while True:
        segment = _commit(table, taken, staged, state)
        if segment is not None:
            return segment
        newer = table.state()
        if newer.flushed & set(taken.covers) or table.site.catalog.sent(table.entry.id, taken.sent):
            return None
        try:
            fresh = duplicates.drop_duplicates(table, taken.rows, newer, since=state)
            if fresh.num_rows < taken.rows.num_rows:
                return None
        except _VANISHED:
            return None
        state = newer


def _commit(
    table: TableContext, taken: _Taken, staged: _Staged, state: TableState
) -> Segment | None:
    """List a segment; None when another segment came first, or one that took the same batch."""
    newest = max((s.last for s in state.segments), default=state.sealed_through)
    id = table.entry.id
    with table.site.catalog.commit() as commit:
        reach("flush.4")
        number = commit.last_segment(id) + 1
        flushed = commit.flushed(id)
        if number - 1 > newest or flushed & set(taken.covers) or commit.sent(id, taken.sent):
            return None
        if commit.sealed_through(id) > state.sealed_through:  # a load may have put rows there
            return None
        payload.publish(staged.payload, table.payload_folder)
        name, has_duckdb = hot.publish(staged.segment, table.hot_folder, number, number)
        reach("flush.5")
        info, version = staged.segment.info, table.entry.schema_version
        segment = Segment(number, number, name, info, has_duckdb, commit.now, version)
        if not table.tails.unflushed({table.site.writer}, flushed.union(taken.covers)):
            # Whoever accepted one of these batches too, not having seen it published, had made
            # its journal file before it looked, and would be among the unflushed now.
            commit.forget_sent(id)
        commit.add_segment(id, segment, taken.covers, taken.sent)
        reach("flush.6")
    reach("flush.7")
    return segment


def merge_is_due(table: TableContext) -> bool:
    """Whether there are so many segments that some should be merged."""
    return bool(neighbours(table))


def neighbours(table: TableContext) -> Sequence[Segment]:
    """Segments worth merging, of those that no seal has begun to take."""
    state = table.state()
    free = [s for s in state.hot if s.first > state.sealing_through]
    return hot.choose_merge(free, table.site.settings.segments_max)


def merge(table: TableContext) -> Segment | None:
    """Merge neighbours when there are too many; the caller holds `table.sealing`.

    Raises:
        ConflictError: one of them was sealed meanwhile.
        CorruptionError: one of them is damaged.
        StorageError: the disk refused; the segments stay as they are.
    """
    chosen = neighbours(table)
    if not chosen:
        return None
    table = take_up(table, max(s.schema_version for s in chosen))
    with table.conflict_if_superseded(chosen):
        for segment in chosen:
            hot.check_intact(table.segment_path(segment), segment.info)
        parts = [_rows(table, segment) for segment in chosen]
        footers = [datafile.read_footer(table.segment_path(s)) for s in chosen]
    rows = pa.concat_tables(parts).cast(table.schema.arrow)
    reach("merge.1")
    footer = table.footer(
        tier="hot",
        replaces=[s.name for s in chosen],
        sealed=hot.compared_with(footers),
        **hot.taken(footers),
    )
    staged = hot.stage(
        table.site.staging, uuid4().hex, table.schema, rows, footer, table.site.engine
    )
    reach("merge.2")
    first, last = chosen[0].first, chosen[-1].last
    try:
        with table.site.catalog.commit() as commit:
            commit.check_listed(table.entry.id, chosen)
            name, has_duckdb = hot.publish(staged, table.hot_folder, first, last)
            reach("merge.3")
            since, version = chosen[0].committed_at, table.entry.schema_version
            segment = Segment(first, last, name, staged.info, has_duckdb, since, version)
            commit.replace_segments(table.entry.id, chosen, segment)
            reach("merge.4")
    finally:
        staged.discard()
    reach("merge.5")
    table.partials.files.keep(segment, rows, table.partials.files.of_files(chosen))
    if all(s.name in table.file_ids.checked for s in chosen):
        table.file_ids.checked.add(name)
    for old in chosen:
        table.file_ids.forget(old.name)
    return segment


def _rows(table: TableContext, segment: Segment) -> pa.Table:
    """A segment's rows, as the table's schema has them."""
    rows = pq.read_table(table.segment_path(segment), page_checksum_verification=True)
    return table.lineage.stored(segment.schema_version).table(rows)
