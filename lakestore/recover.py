"""Recover: take over what dead writers left, when a table is opened.

It only reads, so it can be repeated: a dead writer's journals become closed generations of this
process's buffer, in the order of their numbers, and are flushed with its own. A crash before that
flush leaves the journals as they were.
"""

from pathlib import Path

import numpy as np

from lakestore.append import Appender
from lakestore.context import TableContext
from lakestore.errors import CorruptionError
from lakestore.fileids import read_hashes
from lakestore.idhash import Hashes, hash_batch
from lakestore.journal import JournalReader
from lakestore.layout import journal_name, parse_journal_name
from lakestore.snapshot import GenerationId
from lakestore.storage.local import storage_error


def recover(table: TableContext, appender: Appender) -> int:
    """Hold the rows that dead writers left unflushed; learn every unsealed id.

    Returns:
        The number of rows taken over.

    Raises:
        CorruptionError: a journal is damaged before its end, or is another lake's.
    """
    buffer = table.buffer
    assert buffer is not None
    state = table.state()
    buffer.producers.update(table.site.catalog.producers(table.entry.id))
    rows = 0
    for writer in (lock.name for lock in table.site.dead):
        folder = table.site.layout.writer(table.entry.folder, writer)
        for number in _journals(folder):
            id = GenerationId(writer, number)
            if id in state.flushed:
                continue
            reader = JournalReader(folder / journal_name(number))
            try:
                entries = reader.read()
            except OSError as error:
                raise storage_error(f"cannot read journal {str(reader.path)!r}", error) from error
            if reader.header is not None and reader.header.lake != table.site.catalog.lake:
                raise CorruptionError(f"journal {str(reader.path)!r} is of another lake")
            buffer.adopt(id, entries)
            rows += sum(batch.num_rows for entry in entries for batch in entry.batches)
    if table.schema.dedup != "none":
        appender.learn(unsealed_hashes(table))
        for batch in buffer.all_batches():
            appender.learn(hash_batch(batch, table.schema))
    return rows


def unsealed_hashes(table: TableContext) -> Hashes:
    """Id hashes of every row in the hot tier, read from its segments."""
    segments = table.state().hot
    parts = [read_hashes(table.segment_path(s), table.schema) for s in segments]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def _journals(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    numbers = (parse_journal_name(path.name) for path in folder.iterdir())
    return sorted(number for number in numbers if number is not None)
