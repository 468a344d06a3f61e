"""Other writers' journals, read as they grow: rows that are accepted but not flushed yet."""

import threading
from collections.abc import Container
from dataclasses import dataclass, field

import pyarrow as pa

from lakestore.buffer import Pinned
from lakestore.journal import JournalReader
from lakestore.layout import WRITER_NAME, SiteLayout, journal_name, parse_journal_name
from lakestore.snapshot import GenerationId


@dataclass
class _Tail:
    reader: JournalReader
    batches: list[pa.RecordBatch] = field(default_factory=list)


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
        """
        with self._lock:
            found = [id for id in self._list() if id.writer not in mine and id not in known]
            self._tails = {id: self._tails[id] for id in found if id in self._tails}
            for id in found:
                path = self._root / id.writer / journal_name(id.number)
                tail = self._tails.setdefault(id, _Tail(JournalReader(path)))
                try:
                    for entry in tail.reader.read():
                        tail.batches.extend(entry.batches)
                except FileNotFoundError:  # flushed and deleted: the catalog, read next, has it
                    del self._tails[id]
            return tuple(
                Pinned(id, False, tuple(tail.batches))
                for id, tail in self._tails.items()
                if tail.batches
            )

    def _list(self) -> list[GenerationId]:
        try:
            writers = sorted(path.name for path in self._root.iterdir())
        except FileNotFoundError:
            return []
        found = []
        for writer in writers:
            if not WRITER_NAME.fullmatch(writer):
                continue
            try:
                names = sorted(path.name for path in (self._root / writer).iterdir())
            except FileNotFoundError:
                continue
            numbers = (parse_journal_name(name) for name in names)
            found += [GenerationId(writer, n) for n in numbers if n is not None]
        return found
