"""The parts of an open table, as the verbs take them.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lakestore.buffer import Buffer
from lakestore.catalog.records import TableEntry
from lakestore.clock import micros
from lakestore.cold import ColdTable
from lakestore.cold.delta import DeltaCold
from lakestore.cold.entries import cold_file
from lakestore.cold.keeper import RecordKeeper
from lakestore.cold.logwriter import DeltaTable
from lakestore.cold.parquet import ParquetCold
from lakestore.delta.log import DeltaLog
from lakestore.errors import ConflictError, LakestoreError
from lakestore.filecache import Wanted
from lakestore.fileids import FileIds
from lakestore.frames import JournalHeader
from lakestore.journal import JournalWriter
from lakestore.layout import data_prefix, log_prefix, payload_key
from lakestore.lineage import Lineage
from lakestore.opensite import SiteContext
from lakestore.partials import Partials
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, GenerationId, Segment, TableState
from lakestore.tail import JournalTails


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
