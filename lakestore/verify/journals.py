"""Verify journals: every frame that was written before the tail, of every writer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from lakestore.buffer import Buffer
from lakestore.errors import CorruptionError, FormatTooNewError
from lakestore.frames import HEADER_MAX, is_torn, parse_header
from lakestore.journal import JournalReader
from lakestore.layout import WRITER_NAME, SiteLayout, parse_journal_name
from lakestore.lineage import Lineage
from lakestore.snapshot import GenerationId
from lakestore.storage.local import open_to_read, raise_refusal
from lakestore.verify.report import REBUILD, Problem

_KEEP = "restore the file from a copy: the rows in it are in no other place"


@dataclass(frozen=True)
class JournalFile:
    """A journal file on the disk."""

    id: GenerationId
    path: Path


def list_journals(layout: SiteLayout, folder: str) -> list[JournalFile]:
    """A table's journal files, by writer and number."""
    found = []
    for path in layout.journals(folder).glob("*/*"):
        number = parse_journal_name(path.name)
        if number is not None and WRITER_NAME.fullmatch(path.parent.name):
            found.append(JournalFile(GenerationId(path.parent.name, number), path))
    return sorted(found, key=lambda journal: journal.id)


def schema_version_of(path: Path) -> int | None:
    """Of which version of its table's schema a journal says its rows are; None if it does not."""
    try:
        with open_to_read(path) as file:
            parsed = parse_header(path, memoryview(file.read(HEADER_MAX)))
    except (OSError, CorruptionError, FormatTooNewError):  # who reads its rows says so
        return None
    return parsed[0].schema_version if parsed is not None else None


@dataclass(frozen=True)
class JournalRead:
    """What a journal holds, and what is wrong with it."""

    rows: int = 0
    problem: Problem | None = None


class JournalCheck:
    """Checks the journals of one table that no segment has taken."""

    def __init__(self, lake: str, table: str, lineage: Lineage, buffer: Buffer | None) -> None:
        self._lake = lake
        self._table = table
        self._lineage = lineage
        self._buffer = buffer

    def check(self, journal: JournalFile, *, writing: bool) -> JournalRead:
        """Read a journal to its end.

        Args:
            writing: its writer lives: what is not whole at the end is being written.
        """
        synced = self._synced(journal.id)
        reader = JournalReader(journal.path)
        try:
            size = journal.path.stat().st_size
            entries = reader.read()
        except FileNotFoundError:  # flushed and deleted meanwhile
            return JournalRead()
        except FormatTooNewError as error:
            return JournalRead(0, self._problem(journal, str(error)))
        except CorruptionError as error:
            return JournalRead(0, self._problem(journal, str(error)))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise_refusal(f"cannot read journal {str(journal.path)!r}", error)
            return JournalRead(0, self._problem(journal, f"it cannot be read: {error!r}"))
        rows = sum(batch.num_rows for entry in entries for batch in entry.batches)
        wrong = self._wrong(journal, reader, entries_end=reader.offset, synced=synced)
        if wrong is not None:
            return JournalRead(rows, self._problem(journal, wrong))
        torn = size - reader.offset
        if not writing and (torn > 0 or reader.header is None):
            return JournalRead(rows, self._tail(journal, reader, torn, rows))
        return JournalRead(rows)

    def _synced(self, id: GenerationId) -> int:
        """How much of it this process knows to be on the disk."""
        generation = self._buffer.find(id) if self._buffer is not None else None
        return 0 if generation is None or generation.journal is None else generation.journal.synced

    def _wrong(
        self, journal: JournalFile, reader: JournalReader, entries_end: int, synced: int
    ) -> str | None:
        header = reader.header
        if header is not None:
            if (header.lake, header.table) != (self._lake, self._table):
                return f"it is of table {header.table!r} of lake {header.lake}"
            if header.id != journal.id:
                return f"it says that it is journal {header.id.writer}/{header.id.number}"
            if header.schema_version not in self._lineage:
                return f"the catalog lists no schema version {header.schema_version}"
            held = self._lineage.accepts(header.schema_version).buffered
            if not header.schema.equals(held.arrow):
                return "its columns are not those of the table"
        if entries_end < synced:
            return f"{synced:,} bytes of it were on the disk, and only {entries_end:,} can be read"
        return None

    def _problem(self, journal: JournalFile, what: str) -> Problem:
        return Problem("journal", "damage", self._table, journal.path, what, _KEEP)

    def _tail(self, journal: JournalFile, reader: JournalReader, torn: int, rows: int) -> Problem:
        """Bytes at the end that are no frame: of an append that was cut short, or damaged."""
        with journal.path.open("rb") as file:
            file.seek(reader.offset)
            rest = memoryview(file.read())
        stopped = reader.header is not None and is_torn(rest, reader.header)
        what = f"its last {torn:,} bytes are no whole frame, after {rows:,} rows in whole ones"
        if stopped:
            help = "a write that was stopped leaves that; it was not acknowledged"
            return Problem("tail", "leftover", self._table, journal.path, what, help)
        help = (
            "a power loss before they were acknowledged leaves that, and so does damage: without "
            "the former, restore the file from a copy before it is flushed"
        )
        return Problem("tail", "doubt", self._table, journal.path, what, help)


def check_flushed(
    table: str,
    catalog: Path,
    journals: Sequence[JournalFile],
    flushed: frozenset[GenerationId],
    covered: Sequence[GenerationId],
) -> list[Problem]:
    """Hold what the catalog says is flushed against what the files' footers say they took.

    Args:
        journals: those on the disk, listed before the catalog was read.
        covered: from the footers of every listed file.
    """
    problems = []
    took = set(covered)
    twice = {id for id in took if covered.count(id) > 1} if len(took) < len(covered) else set()
    for id in sorted(twice):
        what = f"two published files hold the rows of journal {id.writer}/{id.number}"
        problems.append(Problem("covers", "damage", table, catalog, what, REBUILD))
    for journal in journals:
        if (journal.id in flushed) == (journal.id in took) or not journal.path.exists():
            continue
        what = (
            "the catalog says that a segment holds its rows, and no published file does"
            if journal.id in flushed
            else "a published file holds its rows, and the catalog would read them twice"
        )
        problems.append(Problem("covers", "damage", table, journal.path, what, REBUILD))
    return problems
