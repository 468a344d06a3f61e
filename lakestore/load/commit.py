"""One chunk of a load → cold files, in one commit.

Order of effects, numbered as their failpoints are:

    load.1 hot segments sealed    .2 duplicates dropped    .3 an empty segment linked
    .4 listed: its number is the chunk's    .5 files staged and checked, payloads
    (`payload.1` and `.2`) first    .6 payloads put in the root (`payload.4`)    .7 a file published
    .8 all of them    .9 committed (before: `seal.6`, or `delta.1` and `.2`)
    .10 caches of ids brought up to date

A chunk is a seal of an empty segment, whose rows come from elsewhere: so the order of segments, a
rebuild and the log know nothing new. Its commit is that of a seal, and says in the same transaction
how many rows of each source are loaded. A crash before it leaves files that nothing names, and an
empty segment for the next seal.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa

from lakestore import coldfiles, hot, payload
from lakestore.cold import Load
from lakestore.coldfiles import Written
from lakestore.context import TableContext
from lakestore.errors import ConflictError, LakestoreError
from lakestore.failpoint import reach
from lakestore.load.chunks import Chunk
from lakestore.load.fresh import Fresh
from lakestore.load.ordering import by_file, order
from lakestore.policy import to_stored
from lakestore.seal import seal, taken
from lakestore.snapshot import ColdFile, Segment
from lakestore.storage.local import make_folder
from lakestore.versions import take_up
from lakestore.watermark import Promise, promise

_FILES = 2
"""Files of a chunk whose rows are of one day: so many are written at a time."""


class _OvertakenError(Exception):
    """Some of the rows are published or acknowledged by now; `left` are the others."""

    def __init__(self, left: Fresh) -> None:
        super().__init__(f"{left.rows.num_rows:,} rows are left")
        self.left = left


def compare(chunk: Chunk) -> None:
    """Look for the rows of a chunk in what is published, while those before it are written.

    What is published meanwhile is left for `load_chunk`, and all of it when this fails.
    """
    with suppress(LakestoreError, OSError, duckdb.Error):
        table = _newest(chunk)
        chunk.fresh = Fresh.unseen(table, _rows(chunk, table)).still(table)


def _newest(chunk: Chunk) -> TableContext:
    """The table in the newest version of its schema."""
    table = chunk.table
    return take_up(table.newest, table.state(newest=True).schema_version)


def _rows(chunk: Chunk, table: TableContext) -> pa.Table:
    """All of a chunk, as the table has it."""
    version = chunk.table.entry.schema_version
    batches = table.lineage.buffered(version).batches(chunk.batches)
    return pa.Table.from_batches(batches, schema=table.accepts.buffered.arrow)


def load_chunk(chunk: Chunk) -> list[ColdFile]:
    """Move the rows that are new to the cold tier; the caller holds the table's `sealing`.

    Returns:
        The files; none when no row was new, and then nothing was committed.

    Raises:
        AcceptedError: another process has loaded them meanwhile.
        ConflictError: another process sealed, or evolved the schema, meanwhile: try again.
        StorageError: the disk or the store refused; nothing of the chunk was committed.
    """
    table = _newest(chunk)
    promised = promise(table)
    seal(table)
    reach("load.1")
    fresh = chunk.fresh
    if fresh is None or fresh.schema_version != table.entry.schema_version:
        fresh = Fresh.unseen(table, _rows(chunk, table))
    fresh = fresh.still(table)
    reach("load.2")
    if not fresh.rows.num_rows:
        return []
    segments = _place(table)
    with coldfiles.workplace(table, "load") as folder:
        while fresh.rows.num_rows:
            try:
                return _publish(folder, table, fresh, segments, promised, chunk)
            except _OvertakenError as error:
                fresh = error.left
    return []


def _place(table: TableContext) -> Sequence[Segment]:
    """An empty segment, whose number is the chunk's, after those that are hot: all are empty."""
    while True:
        _append_segment(table)
        segments = table.state().hot
        last = max((at for at, s in enumerate(segments) if not s.info.rows), default=-1)
        segments = segments[: last + 1]
        if segments and not any(segment.info.rows for segment in segments):
            table.cold.claim(segments, segments[-1].last)
            return segments
        seal(table)  # another process flushed in between


def _append_segment(table: TableContext) -> None:
    site, id = table.site, table.entry.id
    footer = table.footer(tier="hot", covers=[], producers={}, sent=[], sealed=0)
    rows = table.schema.arrow.empty_table()
    make_folder(table.hot_folder)
    staged = hot.stage(site.staging, uuid4().hex, table.schema, rows, footer, None)
    try:
        with site.catalog.commit() as commit:
            number = commit.last_segment(id) + 1
            name, _ = hot.publish(staged, table.hot_folder, number, number)
            reach("load.3")
            version = table.entry.schema_version
            segment = Segment(number, number, name, staged.info, False, commit.now, version)
            commit.add_segment(id, segment, (), ())
        reach("load.4")
    finally:
        staged.discard()


def _publish(
    folder: Path,
    table: TableContext,
    fresh: Fresh,
    segments: Sequence[Segment],
    promised: Promise,
    chunk: Chunk,
) -> list[ColdFile]:
    """Commit the rows; raises `_OvertakenError`."""
    first, last = segments[0].first, segments[-1].last
    staged = payload.StagedPayload()
    try:
        written = _write(folder, table, fresh, segments, staged, chunk)
        reach("load.5")
        load = Load(chunk.sent)
        examine = _Examination(table, fresh, load)
        state = table.state()  # before the files are there for good
        examine(state.cold)
        if not {s.name for s in segments} <= {s.name for s in state.hot}:
            raise ConflictError("another process sealed meanwhile; its result stands")
        payload.put_staged(table.site.storage, staged, table.payload_key)
    finally:
        staged.discard()
    reach("load.6")
    named = [(coldfiles.named(table, w, first, last, part), w) for part, w in enumerate(written)]
    coldfiles.publish(table, named, folder, {}, lambda: reach("load.7"))
    reach("load.8")
    files = [file for file, _ in named]
    complete = promised.moment if last >= promised.last else None
    table.cold.publish(segments, files, last, complete, examine, load)
    reach("load.9")
    for file, one in named:
        table.file_ids.remember(file.name, one.hashes)
    for segment in segments:
        table.file_ids.forget(segment.name)
    reach("load.10")
    return files


def _write(
    folder: Path,
    table: TableContext,
    fresh: Fresh,
    segments: Sequence[Segment],
    staged: payload.StagedPayload,
    chunk: Chunk,
) -> list[Written]:
    """Write the files, and those of payloads; their footers say what they took."""
    first, last, rows = segments[0].first, segments[-1].last, fresh.rows
    references = None
    if table.schema.has_references:
        # Whose number it is, and so a name that no other payload file gets.
        facts = table.footer(generations=[], chunk=last)
        made, references = payload.stage(table.site.staging, table.accepts, rows, facts)
        staged.files.update(made.files)
    stored, hashes = to_stored(rows, table.accepts, references), fresh.hashes
    if (numbers := order(stored, table.schema)) is not None:
        stored, hashes = stored.combine_chunks().take(numbers), hashes[np.asarray(numbers)]
    footer = table.footer(tier="cold", seal=uuid4().hex, first=first, last=last)
    took = taken(table, segments)
    took["producers"] = hot.highest([*took["producers"].items(), *chunk.sent.items()])
    parts = list(by_file(stored, table.schema, hashes, _FILES))
    return coldfiles.write_parts(folder, table.schema, footer, parts, took)


class _Examination:
    """Looks for rows of a chunk in what was published or acknowledged since they were compared."""

    def __init__(self, table: TableContext, fresh: Fresh, load: Load) -> None:
        self._table = table
        self._fresh = fresh
        self._load = load

    def __call__(self, cold: Sequence[ColdFile]) -> None:
        """Look again; raises `_OvertakenError`."""
        before = self._fresh
        after = before.still(self._table)
        if after.rows.num_rows < before.rows.num_rows:
            raise _OvertakenError(after)
        self._fresh = after
        state = after.state
        assert state is not None  # they were compared with it
        self._load.newest = max((s.last for s in state.segments), default=state.sealed_through)
