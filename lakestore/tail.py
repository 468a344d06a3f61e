"""Other writers' journals, read as they grow: rows that are accepted but not flushed yet."""

import threading
from collections.abc import Container
from dataclasses import dataclass, field

import pyarrow as pa

from lakestore.buffer import Pinned
from lakestore.journal import JournalReader
from lakestore.layout import WRITER_NAME, SiteLayout, journal_name, parse_journal_name
from lakestore.snapshot import GenerationId
from lakestore.storage.local import refusals

_UNREADABLE = "cannot read the journals of other writers"


@dataclass
class _Tail:
    reader: JournalReader
    batches: list[pa.RecordBatch] = field(default_factory=list)
    highest: dict[str, int] = field(default_factory=dict)  # seq of each producer

    @property
    def schema_version(self) -> int:
        """Of its rows; 1 while there are none."""
        header = self.reader.header
        return header.schema_version if header is not None else 1

    def read(self) -> None:
        """Take in what was written since; raises as `JournalReader.read`."""
        for entry in self.reader.read():
            self.batches.extend(entry.batches)
            if entry.producer is not None and entry.seq is not None:
                known = self.highest.get(entry.producer, -1)
                self.highest[entry.producer] = max(known, entry.seq)


class JournalTails:
    """The journals of one table that this process does not write."""

    def __init__(self, site: SiteLayout, folder: str) -> None:
        self._root = site.journals(folder)
        self._lock = threading.Lock()  # guards _tails
        self._tails: dict[GenerationId, _Tail] = {}

    def pin(self, mine: Container[str], known: Container[GenerationId]) -> tuple[Pinned, ...]:
        """Rows that other writers' journals hold by now.

        Args:
            mine: writers whose rows this process has in its buffer.
            known: generations that a segment holds, or the buffer.

        Raises:
            StorageError: a journal cannot be read.
            CorruptionError: a journal is damaged before its end.
        """
        with self._lock, refusals(_UNREADABLE):
            self._follow(mine, known)
            return tuple(
                Pinned(id, False, tuple(tail.batches), tail.schema_version)
                for id, tail in self._tails.items()
                if tail.batches
            )

    def highest_seq(
        self, producer: str, mine: Container[str], known: Container[GenerationId]
    ) -> int:
        """The highest sequence number that other writers' journals hold of a producer, or -1."""
        with self._lock, refusals(_UNREADABLE):
            self._follow(mine, known)
            return max((t.highest.get(producer, -1) for t in self._tails.values()), default=-1)

    def unflushed(self, mine: Container[str], known: Container[GenerationId]) -> list[GenerationId]:
        """Journals of other writers that may hold rows in no segment."""
        with refusals(_UNREADABLE):
            return [id for id in self._list(mine) if id not in known]

    def _follow(self, mine: Container[str], known: Container[GenerationId]) -> None:
        found = [id for id in self._list(mine) if id not in known]
        self._tails = {id: self._tails[id] for id in found if id in self._tails}
        for id in found:
            path = self._root / id.writer / journal_name(id.number)
            tail = self._tails.setdefault(id, _Tail(JournalReader(path)))
            try:
                tail.read()
            except FileNotFoundError:  # flushed and deleted: the catalog, read next, has it
                del self._tails[id]

    def _list(self, mine: Container[str]) -> list[GenerationId]:
        try:
            writers = sorted(path.name for path in self._root.iterdir())
        except FileNotFoundError:
            return []
        found = []
        for writer in writers:
            if writer in mine or not WRITER_NAME.fullmatch(writer):
                continue
            try:
                names = sorted(path.name for path in (self._root / writer).iterdir())
            except (FileNotFoundError, NotADirectoryError):
                continue
            numbers = (parse_journal_name(name) for name in names)
            found += [GenerationId(writer, n) for n in numbers if n is not None]
        return found
