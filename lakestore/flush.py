"""Flush: buffered generations → one hot segment; and merge: neighbouring segments → one.

Order of effects, numbered as their failpoints are:

    flush.1 generations closed    .2 duplicates dropped    .3 files staged, checked and fsynced
    .4 catalog transaction begun    .5 files linked to their names    .6 listed in the catalog
    .7 committed    .8 generations let go by the buffer
    merge.1 neighbours read    .2 staged    .3 linked    .4 listed    .5 committed

The catalog transaction is the commit point, and it gives the segment its number, so segments are
numbered in the order they become visible. A crash before it leaves staged files, which are swept,
and journals, which are flushed again.
"""

from collections.abc import Iterable, Sequence
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lakestore import datafile, hot, quoting
from lakestore.buffer import ClosedGeneration
from lakestore.context import TableContext
from lakestore.failpoint import reach
from lakestore.idhash import hash_batch, identities, in_sorted, twins
from lakestore.settings import MIB, Settings
from lakestore.snapshot import GenerationId, Segment, TableState
from lakestore.storage.local import make_folder

_ROWS_MAX = 1 << 18
_BYTES_MAX = 256 * MIB
"""A segment takes no more than this, unless one generation alone has more."""


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
        fresh = [g for g in group if g.id not in state.flushed]
        batches = [batch for g in fresh for batch in g.batches]
        rows = pa.Table.from_batches(batches, schema=table.schema.arrow)
        assert rows.num_rows == sum(g.rows for g in fresh)
        rows = drop_duplicates(table, rows, state)
        reach("flush.2")
        covers = [g.id for g in fresh]
        marks = _highest(mark for g in fresh for mark in g.producers.items())
        if rows.num_rows == 0:
            if covers:
                with table.site.catalog.commit() as commit:
                    commit.add_flushed(table.entry.id, covers, marks)
            return None
        staged = _stage(table, rows, covers, marks)
        reach("flush.3")
        segment = _commit(table, staged, covers, marks, state)
        if segment is not None:
            # The appender knows the ids of what it accepted itself; recovered rows may repeat.
            if not any(g.recovered for g in fresh):
                table.file_ids.checked.add(segment.name)
            return segment
        staged.discard()  # somebody flushed meanwhile: look for duplicates in that too


def _highest(marks: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The highest sequence number of each producer."""
    highest: dict[str, int] = {}
    for producer, seq in marks:
        highest[producer] = max(seq, highest.get(producer, seq))
    return highest


def _stage(
    table: TableContext, rows: pa.Table, covers: Sequence[GenerationId], marks: dict[str, int]
) -> hot.StagedSegment:
    footer = table.footer(
        tier="hot", covers=[[g.writer, g.number] for g in covers], producers=marks
    )
    assert table.buffer is not None
    wanted = wants_duckdb(rows.num_rows, table.buffer.bytes, table.site.settings)
    engine = table.site.engine if wanted else None
    return hot.stage(table.site.staging, uuid4().hex, table.schema, rows, footer, engine)


def _commit(
    table: TableContext,
    staged: hot.StagedSegment,
    covers: Sequence[GenerationId],
    marks: dict[str, int],
    state: TableState,
) -> Segment | None:
    """Publish and list a segment; None when another segment came first."""
    newest = max((s.last for s in state.segments), default=state.sealed_through)
    make_folder(table.hot_folder)
    with table.site.catalog.commit() as commit:
        reach("flush.4")
        number = commit.last_segment(table.entry.id) + 1
        if number - 1 > newest or commit.flushed(table.entry.id) & set(covers):
            return None
        name, has_duckdb = hot.publish(staged, table.hot_folder, number, number)
        reach("flush.5")
        segment = Segment(number, number, name, staged.info, has_duckdb, commit.now)
        commit.add_segment(table.entry.id, segment, covers, marks)
        reach("flush.6")
    reach("flush.7")
    return segment


def drop_duplicates(table: TableContext, rows: pa.Table, state: TableState) -> pa.Table:
    """The rows without those whose id a published file holds, or an earlier row.

    Hashes nominate, ids decide; files are chosen by their times in scope `day`.
    """
    schema = table.schema
    if schema.dedup == "none" or rows.num_rows == 0:
        return rows
    hashes = hash_batch(rows, schema)
    order = np.argsort(hashes)  # sorted probes stay in the cache: a third of the time
    twice = twins(hashes[order])
    suspects = in_sorted(twice, hashes) if len(twice) else np.zeros(rows.num_rows, np.bool_)
    known: set[object] = set()
    for name, path in _files_to_ask(table, rows, state):
        hit = np.zeros(rows.num_rows, dtype=np.bool_)
        hit[order] = table.file_ids.contains(name, path, hashes[order])
        if hit.any():
            suspects |= hit
            known |= _published(table, path, rows.filter(pa.array(hit)))
    if not suspects.any():
        return rows
    return rows.filter(pa.array(_first_of_each(rows, suspects, known, table)))


def _files_to_ask(table: TableContext, rows: pa.Table, state: TableState) -> list[tuple[str, str]]:
    """Published files that may hold an id of these rows, as (name, path)."""
    times = rows.column(table.schema.event_time)
    checked = table.file_ids.checked
    asked = [(s.name, str(table.segment_path(s))) for s in state.hot if s.name not in checked]
    if table.schema.dedup == "table":
        return asked + [(f.name, table.cold_url(f)) for f in state.cold]
    present = {str(day) for day in np.unique(np.asarray(times).astype("datetime64[D]"))}
    return asked + [(f.name, table.cold_url(f)) for f in state.cold if f.day.isoformat() in present]


def _published(table: TableContext, path: str, suspects: pa.Table) -> set[object]:
    """What identifies the events of a file that have the ids of `suspects`."""
    schema = table.schema
    cursor = table.site.engine.cursor()
    try:
        cursor.register("suspects", suspects.select([schema.event_id]))
        found = cursor.sql(
            f"SELECT {quoting.identifiers([schema.event_id, schema.event_time])} "
            f"FROM read_parquet({quoting.literals([path])}, hive_partitioning = false) "
            f"SEMI JOIN suspects USING ({quoting.identifier(schema.event_id)})"
        ).to_arrow_table()
    finally:
        cursor.close()
    return set(identities(found, schema))


def _first_of_each(
    rows: pa.Table, suspects: npt.NDArray[np.bool_], known: set[object], table: TableContext
) -> npt.NDArray[np.bool_]:
    keep = np.ones(rows.num_rows, dtype=np.bool_)
    suspected = identities(rows.filter(pa.array(suspects)), table.schema)
    for row, identity in zip(np.flatnonzero(suspects), suspected, strict=True):
        keep[row] = identity not in known
        known.add(identity)
    return keep


def merge(table: TableContext) -> Segment | None:
    """Merge neighbours when there are too many; the caller holds `table.sealing`.

    Raises:
        ConflictError: one of them was sealed meanwhile.
        StorageError: the disk refused; the segments stay as they are.
    """
    chosen = hot.choose_merge(table.state().hot, table.site.settings.segments_max)
    if not chosen:
        return None
    parts = [pq.read_table(table.segment_path(s), page_checksum_verification=True) for s in chosen]
    rows = pa.concat_tables(parts).cast(table.schema.arrow)
    reach("merge.1")
    footers = [datafile.read_footer(table.segment_path(s)) for s in chosen]
    footer = table.footer(
        tier="hot",
        replaces=[s.name for s in chosen],
        covers=[pair for f in footers for pair in f.get("covers", [])],
        producers=_highest(pair for f in footers for pair in f.get("producers", {}).items()),
    )
    staged = hot.stage(
        table.site.staging, uuid4().hex, table.schema, rows, footer, table.site.engine
    )
    reach("merge.2")
    first, last = chosen[0].first, chosen[-1].last
    with table.site.catalog.commit() as commit:
        name, has_duckdb = hot.publish(staged, table.hot_folder, first, last)
        reach("merge.3")
        segment = Segment(first, last, name, staged.info, has_duckdb, chosen[0].committed_at)
        commit.replace_segments(table.entry.id, chosen, segment)
        reach("merge.4")
    reach("merge.5")
    if all(s.name in table.file_ids.checked for s in chosen):
        table.file_ids.checked.add(name)
    for old in chosen:
        table.file_ids.forget(old.name)
    return segment
