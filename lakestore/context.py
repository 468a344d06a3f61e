"""The parts of an open lake and of each of its tables, as the verbs take them.

Locks of a process, in the order in which they may be taken; each may be skipped:

    TableContext.flushing, then sealing      one flush, and one merge or seal, of a table
    views.lock (a file)                      one `lake.duckdb` is made at a time
    Lake._opening                            the tables of the open lake
    Buffer.lock                              one append or rotation of a table
    a catalog commit (SQLite's write lock)
    SiteContext.visibility                   pointers and counters only
"""

import secrets
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from lakestore.buffer import Buffer
from lakestore.catalog import Catalog
from lakestore.catalog.commit import TableEntry
from lakestore.clock import Clock
from lakestore.cold import ColdTable
from lakestore.cold.parquet import ParquetCold
from lakestore.engine import Engine, engine
from lakestore.errors import ConflictError, CorruptionError, LockedError
from lakestore.failpoint import reach
from lakestore.fileids import FileIds
from lakestore.frames import JournalHeader
from lakestore.journal import JournalWriter
from lakestore.lakefile import is_filled, lake_id
from lakestore.layout import LAKE_FILE, SiteLayout, data_prefix
from lakestore.locks import ProcessLock
from lakestore.schema import TableSchema
from lakestore.settings import Settings
from lakestore.snapshot import ColdFile, GenerationId, Segment, TableState
from lakestore.storage import Storage
from lakestore.storage.local import LocalStorage, make_folder, refusals
from lakestore.tail import JournalTails
from lakestore.writers import sweep_staging, take_over_dead, writers_with_journals


@dataclass
class Recovery:
    """What this process took over from dead writers since it opened the lake."""

    writers: int = 0
    generations: int = 0
    rows: int = 0
    torn_bytes: int = 0
    """Cut off the ends of journals: of appends that were not acknowledged."""
    staged_files: int = 0
    """Unpublished files that were swept."""

    def __bool__(self) -> bool:
        return bool(self.writers)


@dataclass(frozen=True)
class SiteContext:
    """What every table of an open lake shares in this process."""

    layout: SiteLayout
    storage: Storage
    catalog: Catalog
    engine: Engine
    settings: Settings
    clock: Clock
    lock: ProcessLock | None  # None: opened for reading only
    dead: list[ProcessLock]
    """Locks of dead writers whose rows this process has taken over."""
    recovery: Recovery
    visibility: threading.Lock = field(default_factory=threading.Lock)
    """Guards what of the buffers is visible, so that all of them are pinned at one instant."""
    _deaths: threading.Lock = field(default_factory=threading.Lock)  # guards dead

    @classmethod
    def open(
        cls, root: Path, local: Path, settings: Settings, clock: Clock, *, write: bool
    ) -> "SiteContext":
        """Open the site of the lake in `root`; with `write`, make what is missing.

        Raises: as `lakestore.open`; LockedError: a rebuild was at it.
        """
        storage, layout = LocalStorage(root), SiteLayout(local)
        lake = lake_id(storage, root, create=write)
        reach("open.1")
        if write:
            make_folder(local)
        reach("open.2")
        catalog = Catalog(
            layout.catalog,
            clock,
            create=(lake, secrets.token_hex(4)) if write else None,
            is_filled=lambda: is_filled(storage, layout),
        )
        with ExitStack() as undo:  # locks that stayed taken would hide rows from the next attempt
            undo.callback(catalog.close)
            if catalog.lake != lake:
                raise CorruptionError(
                    f"{str(layout.catalog)!r} belongs to lake {catalog.lake}, and "
                    f"{str(root / LAKE_FILE)!r} says {lake}: pass the right local= folder, or "
                    "restore what is damaged"
                )
            reach("open.3")
            lock = None
            if write:
                lock = ProcessLock.create(layout.writers)
                undo.callback(lock.abandon)
                if not catalog.is_in_place():  # from the lock on, a rebuild is refused
                    raise LockedError("the catalog was made again meanwhile: open the lake again")
                make_folder(layout.staging_of(lock.name))
                reach("open.4")
            dead: list[ProcessLock] = []
            undo.callback(_abandon, dead)
            instance = engine(settings.memory_bytes)
            site = cls(layout, storage, catalog, instance, settings, clock, lock, dead, Recovery())
            if write:
                site.take_over()
            undo.pop_all()
        return site

    def put_text(self, key: str, text: str) -> None:
        """Publish a text as `key`, unless there is one; raises `StorageError`."""
        staged = self.staging / uuid4().hex
        try:
            with refusals(f"cannot write {str(staged)!r}"):
                staged.write_text(text, encoding="utf-8")
            self.storage.put_new(key, staged)
        finally:
            staged.unlink(missing_ok=True)

    def take_over(self) -> None:
        """Take the locks of writers that are dead by now, and sweep what they had staged."""
        with self._deaths:
            found = take_over_dead(self.layout, self.writers)
            self.dead.extend(found)
        reach("open.5")
        if found:
            self.catalog.end_leases([lock.name for lock in found])
        self.recovery.writers += len(found)
        self.recovery.staged_files += sweep_staging(self.layout, found)
        reach("open.6")

    def forget_dead(self) -> None:
        """Let go of dead writers that have no journal left."""
        with self._deaths:
            left = writers_with_journals(self.layout)
            for lock in [lock for lock in self.dead if lock.name not in left]:
                self.dead.remove(lock)
                lock.release(forget=True)

    def close(self) -> None:
        """Let go of locks and files; a writer that left no journal is forgotten."""
        left: Container[str] = self.writers
        with suppress(OSError):  # a writer that is not forgotten is taken over in vain
            left = writers_with_journals(self.layout)
        for lock in self._locks:
            lock.release(forget=lock.name not in left)
        if self.lock is not None:
            with suppress(OSError):  # it is swept once this writer is dead
                self.staging.rmdir()
        self.catalog.close()

    def abandon(self) -> None:
        """In a forked child: the locks are the parent's, and must end with it."""
        for lock in self._locks:
            lock.abandon()

    @property
    def writer(self) -> str:
        """This process's name among the writers; empty when it only reads."""
        return self.lock.name if self.lock is not None else ""

    @property
    def writers(self) -> frozenset[str]:
        """This process's name and those of the dead writers that it took over."""
        return frozenset(lock.name for lock in self._locks)

    @property
    def staging(self) -> Path:
        """Where this process stages files."""
        return self.layout.staging_of(self.writer)

    @property
    def _locks(self) -> list[ProcessLock]:
        return [*self.dead, *([self.lock] if self.lock is not None else [])]


@dataclass(frozen=True)
class TableContext:
    """One table's schema, its state in this process, and where its bytes are."""

    entry: TableEntry
    schema: TableSchema
    site: SiteContext
    cold: ColdTable
    buffer: Buffer | None  # None: opened for reading only
    tails: JournalTails
    file_ids: FileIds
    flushing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one thread of this process that flushes the table."""
    sealing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one that merges or seals it; taken after `flushing`, never before."""

    @classmethod
    def open(cls, site: SiteContext, entry: TableEntry, schema: TableSchema) -> "TableContext":
        """The parts of a table, its buffer empty."""

        def open_journal(number: int, before: int) -> JournalWriter:
            id = GenerationId(site.writer, number)
            header = JournalHeader(
                site.catalog.lake, entry.name, id, entry.schema_version, schema.arrow, before
            )
            return JournalWriter(site.layout.writer(entry.folder, site.writer), header)

        buffer = None
        if site.writer:
            buffer = Buffer(open_journal, site.visibility, site.settings, site.clock)
        return cls(
            entry=entry,
            schema=schema,
            site=site,
            cold=ParquetCold(site.catalog, entry.id),
            buffer=buffer,
            tails=JournalTails(site.layout, entry.folder),
            file_ids=FileIds(site.layout.ids(entry.folder), schema),
        )

    @property
    def hot_folder(self) -> Path:
        """Where the table's segments are."""
        return self.site.layout.hot(self.entry.folder)

    def highest_elsewhere(self, producer: str) -> int:
        """The highest seq of a producer that other writers' journals or a segment hold, or -1."""
        known = self.state().flushed | (self.buffer.ids if self.buffer else frozenset())
        unflushed = self.tails.highest_seq(producer, {self.site.writer}, known)
        return max(unflushed, self.site.catalog.highest_seq(self.entry.id, producer))

    def state(self) -> TableState:
        """What is published now."""
        return self.site.catalog.states([self.entry.id])[self.entry.id]

    @contextmanager
    def conflict_if_superseded(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Raise `ConflictError` for what fails because another process took segments away.

        It may have merged or sealed them, and their files may be deleted by now.
        """
        try:
            yield
        except ConflictError:
            raise
        except Exception as error:
            if {s.name for s in segments} <= {s.name for s in self.state().segments}:
                raise
            raise ConflictError(
                f"segments of {self.entry.name!r} were merged or sealed meanwhile; "
                "that result stands"
            ) from error

    def segment_path(self, segment: Segment) -> Path:
        """A segment's Parquet file."""
        return self.hot_folder / segment.name

    def cold_key(self, file: ColdFile) -> str:
        """A cold file's key in the storage."""
        return data_prefix(self.entry.folder) + file.name

    def cold_url(self, file: ColdFile) -> str:
        """What DuckDB opens for a cold file."""
        return self.site.storage.url(self.cold_key(file))

    def footer(self, **facts: object) -> dict[str, object]:
        """What every data file of the table says of itself in its footer."""
        return {
            "format": 1,
            "lake": self.site.catalog.lake,
            "table": self.entry.name,
            "site": self.site.catalog.site,
            "schema_version": self.entry.schema_version,
            **facts,
        }


def _abandon(locks: Sequence[ProcessLock]) -> None:
    for lock in locks:
        lock.abandon()
