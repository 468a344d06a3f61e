"""Recover: take over what dead writers left, when a table is opened and whenever a writer dies.

It only reads, so it can be repeated: a dead writer's journals become closed generations of this
process's buffer, in the order of their numbers, and are flushed with its own. A crash before that
flush leaves the journals as they were. Failpoints: recover.1 a journal read    .2 its rows held
.3 unsealed ids learned
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lakestore import hot
from lakestore.append import Appender
from lakestore.context import TableContext
from lakestore.errors import ConflictError, CorruptionError
from lakestore.failpoint import reach
from lakestore.fileids import read_hashes
from lakestore.idhash import Hashes, hash_batch
from lakestore.journal import JournalReader
from lakestore.layout import journal_name, parse_journal_name
from lakestore.schema import TableSchema
from lakestore.snapshot import GenerationId
from lakestore.storage.local import storage_error
from lakestore.versions import take_up


def recover(table: TableContext, appender: Appender) -> None:
    """Hold the rows that dead writers left unflushed; learn every unsealed id.

    Raises:
        CorruptionError: a journal is damaged before its end, or is another lake's.
    """
    buffer = table.buffer
    assert buffer is not None
    with buffer.lock:
        buffer.producers.update(table.site.catalog.producers(table.entry.id))
    if table.schema.dedup != "none":
        appender.learn(unsealed_hashes(table))
    take_over(table, appender, [lock.name for lock in table.site.dead])


def take_over(table: TableContext, appender: Appender, writers: Sequence[str]) -> None:
    """Hold the unflushed rows of dead writers, whose locks are held here; raises as `recover`."""
    buffer, site = table.buffer, table.site
    assert buffer is not None
    done = table.state().flushed | buffer.ids
    for writer in writers:
        folder = site.layout.writer(table.entry.folder, writer)
        for number in _journals(folder):
            id = GenerationId(writer, number)
            if id in done:
                continue
            reader = JournalReader(folder / journal_name(number))
            try:
                entries = reader.read()
            except FileNotFoundError:  # it was flushed, and is deleted by now
                continue
            except OSError as error:
                raise storage_error(f"cannot read journal {str(reader.path)!r}", error) from error
            if reader.header is not None and reader.header.lake != site.catalog.lake:
                raise CorruptionError(f"journal {str(reader.path)!r} is of another lake")
            reach("recover.1")
            batches = [batch for entry in entries for batch in entry.batches]
            version = reader.header.schema_version if reader.header is not None else 1
            take_up(table, version)  # first: a flush has to know what it takes
            with buffer.lock:
                buffer.adopt(id, entries, version)
                reach("recover.2")
                if table.schema.dedup != "none":
                    for batch in batches:
                        appender.learn(hash_batch(batch, table.schema))
            site.recovery.generations += 1
            site.recovery.rows += sum(batch.num_rows for batch in batches)
            site.recovery.torn_bytes += reader.path.stat().st_size - reader.offset
    reach("recover.3")


def unsealed_hashes(table: TableContext) -> Hashes:
    """Id hashes of every row in the hot tier, read from its segments.

    Raises:
        CorruptionError: a segment is missing or damaged.
        StorageError: the disk refused to read one.
    """
    while True:
        segments = table.state().hot
        try:
            with table.conflict_if_superseded(segments):
                parts = [_hashes(table.segment_path(s), table.schema) for s in segments]
        except ConflictError:  # another process merged or sealed them, and deleted the files
            continue
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def _hashes(path: Path, schema: TableSchema) -> Hashes:
    with hot.reading(path):
        return read_hashes(path, schema)


def _journals(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    numbers = (parse_journal_name(path.name) for path in folder.iterdir())
    return sorted(number for number in numbers if number is not None)
