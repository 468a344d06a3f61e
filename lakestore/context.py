"""The parts of an open lake and of each of its tables, as the verbs take them.

Locks of a process, in the order in which they may be taken; each may be skipped:

    TableContext.flushing, then sealing      one flush, and one merge or seal, of a table
    views.lock (a file)                      one `lake.duckdb` is made at a time
    Lake._opening                            the tables of the open lake
    Newest.lock                              one change of a table's schema, in this process
    Buffer.lock                              one append or rotation of a table
    a catalog commit (the database's own lock)
    SiteContext.visibility                   pointers and counters only
"""

import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

from lakestore.buffer import Buffer
from lakestore.catalog import Catalog
from lakestore.catalog.records import TableEntry
from lakestore.clock import Clock, micros
from lakestore.cold import ColdTable
from lakestore.cold.delta import DeltaCold
from lakestore.cold.entries import cold_file
from lakestore.cold.keeper import RecordKeeper
from lakestore.cold.logwriter import DeltaTable
from lakestore.cold.parquet import ParquetCold
from lakestore.delta.log import DeltaLog
from lakestore.engine import Engine, engine
from lakestore.errors import (
    ConflictError,
    LakestoreError,
    LockedError,
)
from lakestore.failpoint import reach
from lakestore.filecache import FileCache, Wanted
from lakestore.fileids import FileIds
from lakestore.frames import JournalHeader
from lakestore.journal import JournalWriter
from lakestore.layout import SiteLayout, data_prefix, log_prefix, payload_key
from lakestore.lineage import Lineage
from lakestore.locks import ProcessLock
from lakestore.partialfiles import PartialFiles
from lakestore.partials import Partials
from lakestore.schema import TableSchema
from lakestore.settings import Settings
from lakestore.siting import known_lake, open_catalog
from lakestore.snapshot import ColdFile, GenerationId, Segment, TableState
from lakestore.storage import Storage
from lakestore.storage.local import make_folder, refusals
from lakestore.tail import JournalTails
from lakestore.writers import Recovery, sweep_staging, take_over_dead, writers_with_journals


@dataclass(frozen=True)
class SiteContext:
    """What every table of an open lake shares in this process."""

    layout: SiteLayout
    storage: Storage
    files: FileCache
    reads_store: bool
    """Whether DuckDB opens the store's objects by their URLs."""
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
        cls,
        storage: Storage,
        layout: SiteLayout,
        catalog_url: str | None,
        settings: Settings,
        clock: Clock,
        *,
        write: bool,
    ) -> "SiteContext":
        """Open the site of a lake; with `write`, make what is missing.

        Raises: as `lakestore.open`; LockedError: a rebuild was at it.
        """
        lake = known_lake(storage, layout, write=write)
        reach("open.1")
        if write or storage.remote:
            make_folder(layout.local)
        reach("open.2")
        catalog = open_catalog(storage, layout, lake, catalog_url, clock, write=write)
        with ExitStack() as undo:  # locks that stayed taken would hide rows from the next attempt
            undo.callback(catalog.close)
            reach("open.3")
            lock = None
            if write:
                lock = ProcessLock.create(layout.writers)
                undo.callback(lock.abandon)
                if not catalog.database.is_in_place():  # from the lock on, a rebuild is refused
                    raise LockedError("the catalog was made again meanwhile: open the lake again")
                make_folder(layout.staging_of(lock.name))
                reach("open.4")
            dead: list[ProcessLock] = []
            undo.callback(_abandon, dead)
            instance = engine(settings.memory_bytes)
            files = FileCache(storage, layout.files, settings.cache_bytes)
            found = Recovery()
            direct = instance.reads(storage)
            site = cls(
                layout,
                storage,
                files,
                direct,
                catalog,
                instance,
                settings,
                clock,
                lock,
                dead,
                found,
            )
            if write:
                site.take_over()
            undo.pop_all()
        return site

    def partials_of(self, folder: str, lineage: Lineage) -> Partials:
        """The partials of the table in a folder; nothing of them was read yet."""
        files = PartialFiles(
            lineage,
            folder,
            self.layout.rollups(folder),
            self.layout.hot(folder),
            self.storage,
            self.files,
            self.engine,
            reads_store=self.reads_store,
            writes=self.lock is not None,
        )
        return Partials(files, self.engine, self.settings.memory_bytes // 2)

    def put_new(self, key: str, data: bytes) -> bool:
        """Publish bytes as `key`; False when there is one. Raises `StorageError`."""
        with self._staged(data) as staged:
            return self.storage.put_new(key, staged)

    def replace_with(self, key: str, data: bytes) -> None:
        """Put bytes in the place of `key`, which is a cache; raises `StorageError`."""
        with self._staged(data) as staged:
            self.storage.replace(key, staged)

    @contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        staged = self.staging / uuid4().hex
        try:
            with refusals(f"cannot write {str(staged)!r}"):
                staged.write_bytes(data)
            yield staged
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


@dataclass
class Newest:
    """The one thing of an open table that changes: its context, with each new schema version."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    context: "TableContext | None" = None


@dataclass(frozen=True)
class TableContext:
    """One table's schema, its state in this process, and where its bytes are."""

    entry: TableEntry
    schema: TableSchema
    """Of what segments and cold files hold, and queries see."""
    accepts: TableSchema
    """Of what an append takes."""
    lineage: Lineage
    """The versions of the schema up to this one: how rows of older files are read."""
    site: SiteContext
    cold: ColdTable
    buffer: Buffer | None  # None: opened for reading only
    tails: JournalTails
    file_ids: FileIds
    partials: Partials
    _newest: Newest
    flushing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one thread of this process that flushes the table."""
    sealing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one that merges or seals it; taken after `flushing`, never before."""
    compacting: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one that replaces its cold files."""

    @classmethod
    def open(cls, site: SiteContext, entry: TableEntry, lineage: Lineage) -> "TableContext":
        """The parts of a table, its buffer empty."""
        newest, schema = Newest(), lineage.schema

        def open_journal(number: int, before: int) -> JournalWriter:
            assert newest.context is not None
            id = GenerationId(site.writer, number)
            header = JournalHeader(
                site.catalog.lake,
                entry.name,
                id,
                newest.context.entry.schema_version,
                newest.context.accepts.buffered.arrow,
                before,
                micros(site.clock.now()),
            )
            return JournalWriter(site.layout.writer(entry.folder, site.writer), header)

        buffer = None
        if site.writer:
            buffer = Buffer(open_journal, site.visibility, site.settings, site.clock)
        newest.context = cls(
            entry=entry,
            schema=schema.stored,
            accepts=schema,
            lineage=lineage,
            site=site,
            cold=cold_table(site, entry, schema.stored),
            buffer=buffer,
            tails=JournalTails(site.layout, entry.folder),
            file_ids=FileIds(site.layout.ids(entry.folder), schema.stored),
            partials=site.partials_of(entry.folder, lineage),
            _newest=newest,
        )
        return newest.context

    @property
    def newest(self) -> "TableContext":
        """The same table in the newest version of its schema that this process has taken up."""
        assert self._newest.context is not None
        return self._newest.context

    def evolved(self, entry: TableEntry, lineage: Lineage) -> "TableContext":
        """The table as a newer version of its schema has it: for whoever asks for it next."""
        with self._newest.lock:
            old = self.newest
            if old.entry.schema_version >= entry.schema_version:
                return old
            schema = lineage.schema
            fresh = replace(
                old,
                entry=entry,
                schema=schema.stored,
                accepts=schema,
                lineage=lineage,
                cold=cold_table(self.site, entry, schema.stored),
                partials=self.site.partials_of(entry.folder, lineage),
            )

            def swap() -> None:
                self._newest.context = fresh

            if self.buffer is None:
                swap()
            else:
                self.buffer.turn_over(swap)
            old.partials.close()
            return fresh

    @property
    def hot_folder(self) -> Path:
        """Where the table's segments are."""
        return self.site.layout.hot(self.entry.folder)

    def highest_elsewhere(self, producer: str) -> int:
        """The highest seq of a producer that other writers' journals or a segment hold, or -1."""
        known = self.state().flushed | (self.buffer.ids if self.buffer else frozenset())
        unflushed = self.tails.highest_seq(producer, {self.site.writer}, known)
        return max(unflushed, self.site.catalog.highest_seq(self.entry.id, producer))

    def state(self, *, newest: bool = False) -> TableState:
        """What is published; of a cold tier in a store, what is known of it, or the `newest`."""
        listed = self.site.catalog.states([self.entry.id])[self.entry.id]
        return self.cold.current(listed, newest=newest)

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
            try:
                left = {s.name for s in self.state().hot}
            except LakestoreError:  # the first one says more
                raise error from error.__cause__
            if {s.name for s in segments} <= left:
                raise
            raise ConflictError(
                f"segments of {self.entry.name!r} were merged or sealed meanwhile; "
                "that result stands"
            ) from error

    def segment_path(self, segment: Segment) -> Path:
        """A segment's Parquet file."""
        return self.hot_folder / segment.name

    @property
    def payload_folder(self) -> Path:
        """Where the payload files of the table's segments are."""
        return self.site.layout.payload(self.entry.folder)

    def payload_key(self, name: str) -> str:
        """A payload file's key in the storage, once it is sealed."""
        return payload_key(self.entry.folder, name)

    def cold_key(self, file: ColdFile) -> str:
        """A cold file's key in the storage."""
        return data_prefix(self.entry.folder) + file.name

    def cold_url(self, file: ColdFile) -> str:
        """What other engines open for a cold file."""
        return self.site.storage.url(self.cold_key(file))

    def wanted(self, file: ColdFile) -> Wanted:
        """A cold file, as the cache fetches it."""
        return Wanted(self.cold_key(file), file.info.bytes, file.info.sha256)

    def cold_path(self, file: ColdFile) -> Path:
        """A cold file's bytes on this machine, fetched when they are not here.

        Raises:
            NotFoundError, CorruptionError, StorageError: as `FileCache.paths`.
        """
        return self.site.files.path(self.wanted(file))

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


def states(site: SiteContext, tables: Sequence[TableContext]) -> dict[int, TableState]:
    """What is published of several tables: the hot side of one version, then the cold versions."""
    return with_cold(site.catalog.states([table.entry.id for table in tables]), tables)


def with_cold(
    listed: Mapping[int, TableState], tables: Sequence[TableContext]
) -> dict[int, TableState]:
    """What the catalog lists of several tables, and after it the newest versions that are cold."""
    return {
        table.entry.id: table.cold.current(listed[table.entry.id], newest=True) for table in tables
    }


def cold_table(site: SiteContext, entry: TableEntry, schema: TableSchema) -> ColdTable:
    """What lists a table's sealed files, of rows as they are stored; nothing was read yet."""
    records = RecordKeeper(site.catalog, entry.id, entry.folder, site.storage, site.put_new)
    if entry.cold == "parquet":
        return ParquetCold(site.catalog, entry.id, records)
    log = DeltaLog(
        site.storage,
        log_prefix(entry.folder),
        site.catalog.lake,
        lambda add: cold_file(add, schema),
        site.put_new,
        site.replace_with,
    )
    table = DeltaTable(
        entry.id, schema, entry.schema_version, site.storage.url(data_prefix(entry.folder)[:-1])
    )
    return DeltaCold(log, table, site.catalog, records, site.clock, site.settings.commit_timeout_s)


def _abandon(locks: Sequence[ProcessLock]) -> None:
    for lock in locks:
        lock.abandon()
