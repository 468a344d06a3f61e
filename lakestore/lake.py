"""An open lake: tables, queries over them, and their upkeep.

Order of effects, numbered as their failpoints are:

    open.1 lake made or known    .2 local folder made    .3 catalog opened    .4 writer locked
    .5 dead writers' locks taken    .6 their staging swept    .7 tables opened, rows recovered
    .8 `lake.duckdb` made
    create.1 listed in the catalog    .2 empty file put    .3 document put    .4 committed
    .5 table opened
    drop.1 unlisted in the catalog    .2 committed    .3 buffer let go

A create or a drop is committed by its catalog transaction. An open only adds, and sweeps what
nothing names: a crash leaves work for the next one.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import duckdb
import pyarrow as pa

from lakestore import coerce, retain, schema, shell
from lakestore.append import Appender, Position, check_level
from lakestore.buffer import Buffer
from lakestore.catalog.commit import TableEntry
from lakestore.clock import Clock, SystemClock
from lakestore.context import Recovery, SiteContext, TableContext
from lakestore.engine import troubles
from lakestore.errors import (
    ClosedError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    SchemaError,
    StorageError,
)
from lakestore.failpoint import reach
from lakestore.layout import check_table_name, schema_key
from lakestore.query.frames import of_caller
from lakestore.query.parameters import Parameters
from lakestore.query.result import Result
from lakestore.query.run import Explanation, Queries
from lakestore.quoting import UNSPEAKABLE, identifier, identifiers
from lakestore.recover import recover, take_over, unsealed_hashes
from lakestore.repair import Repaired, repair
from lakestore.schema import TableSchema
from lakestore.settings import Settings
from lakestore.snapshot import GenerationId
from lakestore.status import Status, table_status
from lakestore.table import Table
from lakestore.upkeep import Report, Upkeep
from lakestore.verify.report import Report as VerifyReport
from lakestore.verify.run import verify


@troubles("cannot open the lake")
def open(
    root: str | os.PathLike[str],
    *,
    local: str | os.PathLike[str] | None = None,
    mode: Literal["rw", "r"] = "rw",
    upkeep: Literal["auto", "manual"] = "auto",
    settings: Settings | dict[str, object] | None = None,
    clock: Clock | None = None,
) -> Lake:
    """Open the lake in the folder `root`; in mode `rw` a new one is made when there is none.

    Args:
        root: a folder.
        local: where this host keeps journals, hot segments and the catalog; default
            `<root>/_site`.
        mode: `rw` to write too, `r` to read only.
        upkeep: `auto` flushes, seals and vacuums in threads of its own; `manual` leaves it to
            the caller's `flush()`, `seal()` and `maintain()`.
        settings: numbers that differ from the defaults.
        clock: the time, for tests.

    Raises:
        InvalidInputError: `root` is a file, or an argument is none of those above.
        NotFoundError: mode `r`, and there is no lake.
        FormatTooNewError: a newer lakestore wrote the lake.
        CorruptionError: bytes of the lake break a promise.
    """
    if mode not in ("rw", "r"):
        raise InvalidInputError(f"mode {mode!r} is neither 'rw' nor 'r'")
    if upkeep not in ("auto", "manual"):
        raise InvalidInputError(f"upkeep {upkeep!r} is neither 'auto' nor 'manual'")
    if "://" in str(root):
        raise InvalidInputError(f"{str(root)!r}: a lake is a folder of this machine")
    for folder in (root, local or ""):
        if UNSPEAKABLE.search(str(folder)):
            raise InvalidInputError(f"{str(folder)!r} is no path of UTF-8 text, as DuckDB needs it")
        if set(str(folder)) & set("*?[\\"):
            raise InvalidInputError(
                f"{str(folder)!r}: DuckDB takes '*', '?', '[' and backslashes in a path for "
                "something else; name the folder without them"
            )
    return Lake(
        Path(root).absolute(),
        Path(local).absolute() if local is not None else None,
        mode,
        upkeep,
        Settings.of(settings),
        clock or SystemClock(),
    )


class Lake:
    """An open lake; made by `lakestore.open`, and a context manager."""

    def __init__(
        self,
        root: Path,
        local: Path | None,
        mode: Literal["rw", "r"],
        upkeep: Literal["auto", "manual"],
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.root = str(root)
        self.mode = mode
        self._pid = os.getpid()
        self._closed = False
        self._auto = upkeep == "auto" and mode == "rw"
        self._opening = threading.RLock()  # guards _tables and _known_version
        self._tables: dict[int, Table] = {}
        self._known_version = -1
        self._site = SiteContext.open(
            root, local or root / "_site", settings, clock, write=mode == "rw"
        )
        self._queries = Queries(self._site)
        self._upkeep = Upkeep(
            self._site,
            self._known_tables,
            self._queries.in_use,
            self._forget_sealed,
            self._take_over,
        )
        try:
            self._refresh()
            reach("open.7")
            if mode == "rw":
                self._bury_dropped()
                self._upkeep.publish()
                reach("open.8")
        except BaseException:
            self._release()  # or the locks of dead writers would stay taken, and their rows hidden
            raise
        if self._auto:
            self._upkeep.start()
        _open_lakes.add(self)

    @troubles("cannot create a table")
    def create_table(
        self,
        name: str,
        schema: Any,
        *,
        cold: str = "parquet",
        exist_ok: bool = False,
        **roles: Any,
    ) -> Table:
        """Create a table.

        Args:
            name: a letter, then at most 62 letters, digits or underscores.
            schema: the name of a shipped schema (`llm_usage`), the path of a document (`.toml`),
                a `TableSchema`, a `pa.Schema`, or a first batch whose columns are taken. The
                batch itself is not appended.
            cold: format of sealed files; `parquet`.
            exist_ok: return the table of that name if there is one, whatever its schema.
            roles: for a `pa.Schema` or a batch: `event_time=` (required), `event_id=`, and any
                other key of a schema document, such as `sort=` or `dedup=`.

        Raises:
            InvalidInputError: the name is taken or not allowed.
            SchemaError: the schema is wrong; says where.
            StorageError: the disk refused; there is no such table.
        """
        self._check_open(write=True)
        check_table_name(name)
        if cold != "parquet":
            raise InvalidInputError(f"cold format {cold!r} is not known; use 'parquet'")
        if exist_ok and name in self:
            return self[name]
        resolved = _schema_of(schema, roles)
        with self._opening:
            with self._site.catalog.commit() as commit:
                entry = commit.add_table(name, cold, resolved.text, self._is_taken)
                reach("create.1")
                context = TableContext.open(self._site, entry, resolved)
                shell.write_empty(context)
                reach("create.2")
                self._site.put_text(schema_key(entry.folder, 1), resolved.text)
                reach("create.3")
            reach("create.4")
            table = self._open_table(entry, context)
            reach("create.5")
        self._upkeep.publish()
        return table

    def _is_taken(self, folder: str) -> bool:
        """Whether a table, or a create that was cut short, left a schema in that folder."""
        keys = (schema_key(folder, 1), schema_key(folder, 1, "parquet"))
        return any(self._site.storage.size(key) is not None for key in keys)

    @troubles("cannot drop a table")
    def drop_table(self, name: str) -> None:
        """Unlist a table; its files are deleted by `vacuum` after the grace.

        Raises:
            NotFoundError: there is no such table.
        """
        self._check_open(write=True)
        table = self[name]
        with table._context.flushing, table._context.sealing, self._opening:
            with self._site.catalog.commit() as commit:
                commit.drop_table(table._context.entry.id)
                reach("drop.1")
            reach("drop.2")
            with suppress(StorageError):  # it is dropped: vacuum says so when there is room
                retain.bury(self._site, table._context.entry.folder)
            self._tables.pop(table._context.entry.id, None)
            if table._context.buffer is not None:
                table._context.buffer.close()
            reach("drop.3")
        self._upkeep.publish()

    def _bury_dropped(self) -> None:
        """Finish what a crash in `drop_table` left undone."""
        for item in self._site.catalog.garbage():
            if item.kind == "table":
                retain.bury(self._site, item.folder)

    @troubles("cannot look at the tables")
    def __getitem__(self, name: str) -> Table:
        """The table of that name; raises `NotFoundError`."""
        self._check_open()
        self._refresh()
        for table in self._opened():
            if table.name == name:
                return table
        known = ", ".join(t.name for t in self._opened()) or "none yet"
        raise NotFoundError(f"no table {name!r} in {self.root!r}; its tables: {known}")

    def __contains__(self, name: object) -> bool:
        """Whether there is a table of that name."""
        return name in self.tables()

    def __iter__(self) -> Iterator[str]:
        """Names of the tables."""
        return iter(self.tables())

    @troubles("cannot look at the tables")
    def tables(self) -> list[str]:
        """Names of the tables, in order."""
        self._check_open()
        self._refresh()
        return sorted(table.name for table in self._opened())

    def sql(self, query: str, params: Parameters = None) -> Result:
        """Run one statement that reads, over every tier of the tables it names, as of now.

        The caller's own data can be joined by its variable's name: Arrow, Polars, pandas, or a
        DuckDB relation. So can files of this machine, by path or by `read_csv` and its like.
        Nothing else: what writes, attaches a database, loads an extension, runs SQL out of text
        (`query()`), or changes what later statements see is refused before DuckDB binds it, also
        inside EXPLAIN ANALYZE and WITH. It guards against mistakes and injected text; whoever may
        send any SQL may still read what this process may read, and use its memory and time.

        Args:
            query: DuckDB SQL; `$name` or `?` where a parameter goes.
            params: a mapping for `$name`, a sequence for `?`.

        Raises:
            InvalidInputError: wrong SQL, or a statement that does not read.
            NotFoundError: no such table.
            StorageError: a file cannot be read.
        """
        self._check_open()
        self._refresh()
        names = {table.name.casefold() for table in self._opened()}
        frames = of_caller(query, sys._getframe(1), names)
        return self._queries.sql(query, params, self._contexts(), frames)

    def explain(self, query: str, params: Parameters = None) -> Explanation:
        """Which files of which tier `sql` would read, and which planning spares it."""
        self._check_open()
        self._refresh()
        names = {table.name.casefold() for table in self._opened()}
        frames = of_caller(query, sys._getframe(1), names)
        return self._queries.explain(query, params, self._contexts(), frames)

    @troubles("cannot make a connection")
    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection of your own with a view of each table as of now: the open door.

        It runs anything that DuckDB runs, and shares nothing with the lake but its files. Those
        are not held for it: past the grace of superseded files, take a new one.
        """
        self._check_open()
        self._refresh()
        return self._queries.connect(self._contexts())

    def wait(self, position: Position | None, level: str = "disk") -> None:
        """Return once everything up to an `Ack.position` is durable at `level`.

        Raises:
            StorageError: the disk refused; the rows were not made durable.
        """
        self._check_open(write=True)
        wanted = check_level(level)
        if position is None or wanted == "memory":
            return
        buffer = self[position.table]._context.buffer
        assert buffer is not None
        generation = buffer.find(position.generation)
        if generation is not None:  # else a segment holds it
            buffer.sync(generation, position.offset)

    @property
    def open_report(self) -> Recovery:
        """What was taken over from writers that died: at open, and since."""
        return replace(self._site.recovery)

    @troubles("cannot flush")
    def flush(self) -> int:
        """Flush every table; returns the rows published."""
        self._check_open(write=True)
        return sum(self._upkeep.flush(context) for context in self._contexts())

    @troubles("cannot seal")
    def seal(self) -> int:
        """Seal every table; returns the rows moved."""
        self._check_open(write=True)
        return sum(self._upkeep.seal(context) for context in self._contexts())

    @troubles("cannot maintain the lake")
    def maintain(self) -> Report:
        """Do every maintenance job that is due, once: flush, merge, seal, vacuum."""
        self._check_open(write=True)
        self._upkeep.look()
        return self._upkeep.round()

    @troubles("cannot look at the lake")
    def status(self) -> Status:
        """Rows, bytes, files and lag of every tier of every table."""
        self._check_open()
        self._refresh()
        tables = []
        for context in self._contexts():
            rows = size = 0
            for pinned in context.tails.pin({context.site.writer}, self._held(context)):
                rows += sum(batch.num_rows for batch in pinned.batches)
                size += sum(batch.nbytes for batch in pinned.batches)
            if context.buffer is not None:
                rows, size = rows + context.buffer.rows, size + context.buffer.bytes
            tables.append(table_status(context, rows, size))
        return Status(
            self.root,
            self._site.catalog.lake,
            self.mode,
            tuple(tables),
            self.open_report,
            len(self._site.catalog.garbage()),
            self._upkeep.problem,
        )

    @troubles("cannot verify the lake")
    def verify(self) -> VerifyReport:
        """Re-check every promise against the bytes: names, sums, counts, ids, order, statistics.

        It reads every file of the lake, changes nothing, and trusts the catalog in nothing.
        Others may write meanwhile.
        """
        self._check_open()
        self._refresh()
        return verify(self._site, Path(self.root), self._contexts())

    @troubles("cannot repair the lake")
    def repair(self, *, dry_run: bool = True) -> Repaired:
        """Verify, and say what is safe to do about it, or (`dry_run=False`) do it.

        Caches are made again, and what nothing reads is moved to `quarantine/`. It works in mode
        `r` too, so that damage which hinders an open to write does not hinder it.

        Raises:
            StorageError: the disk refused.
        """
        self._check_open()
        self._refresh()
        return repair(self._site, Path(self.root), self._contexts(), dry_run=dry_run)

    @troubles("cannot close the lake")
    def close(self) -> None:
        """Close the lake; with upkeep `auto`, what is buffered is flushed first."""
        if self._closed:
            return
        self._closed = True
        _open_lakes.discard(self)
        if self._pid != os.getpid():
            return
        self._upkeep.stop()
        failures: list[Exception] = []
        for context in self._contexts():
            try:
                if context.buffer is not None and self._auto:
                    self._upkeep.flush(context)  # first: it also saves what no fsync can
                elif context.buffer is not None:
                    context.buffer.sync_all()
            except Exception as error:  # one table must not cost another its rows
                failures.append(error)
        try:
            if self._auto and not failures:
                self._upkeep.vacuum(dry_run=False)
        finally:
            self._release()
        if failures:
            raise failures[0]

    def _release(self) -> None:
        for context in self._contexts():
            if context.buffer is not None:
                context.buffer.close()
        self._site.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<lakestore lake at {self.root!r}, mode {self.mode!r}>"

    def _check_open(self, *, write: bool = False) -> None:
        if self._pid != os.getpid():
            raise ClosedError("this lake was opened before a fork: open it again in this process")
        if self._closed:
            raise ClosedError(f"the lake at {self.root!r} is closed: open it again")
        if write and self.mode == "r":
            raise InvalidInputError('the lake is open with mode="r": reopen it to write')

    def _opened(self) -> list[Table]:
        with self._opening:
            return list(self._tables.values())

    def _contexts(self) -> list[TableContext]:
        return [table._context for table in self._opened()]

    def _forget_sealed(self, context: TableContext) -> None:
        """After a seal: the appender need not know sealed ids, a flush looks them up."""
        for table in self._opened():
            if table._context is context and table._appender is not None:
                with context.flushing:  # no segment may come between reading and rebuilding
                    table._appender.forget_sealed(lambda: unsealed_hashes(context))

    def _take_over(self, writers: Sequence[str]) -> None:
        """Hold the rows of writers that died while this lake is open."""
        for table in self._opened():
            if table._appender is not None:
                take_over(table._context, table._appender, writers)

    def _known_tables(self) -> list[TableContext]:
        """Every table of the lake, those included that another process created by now."""
        if not self._closed:
            self._refresh()
        return self._contexts()

    def _held(self, context: TableContext) -> frozenset[GenerationId]:
        held = context.buffer.ids if context.buffer else frozenset()
        return context.state().flushed | held

    def _refresh(self) -> None:
        """Open tables that another process created, and let go those it dropped."""
        with self._opening:
            version = self._site.catalog.version()
            if version == self._known_version:
                return
            entries = {entry.id: entry for entry in self._site.catalog.tables()}
            for entry in entries.values():
                if entry.id not in self._tables:
                    resolved = _listed_schema(entry)
                    self._open_table(entry, TableContext.open(self._site, entry, resolved))
            for gone in self._tables.keys() - entries.keys():
                dropped = self._tables.pop(gone)._context.buffer
                if dropped is not None:
                    dropped.close()
            self._known_version = version

    def _open_table(self, entry: TableEntry, context: TableContext) -> Table:
        appender = None
        if context.buffer is not None:
            appender = Appender(
                entry.name,
                context.schema,
                context.buffer,
                self._site.settings,
                lambda ids: _published_ids(self._queries, context, ids),
                context.highest_elsewhere,
                self._after_append,
            )
            recover(context, appender)
        table = Table(self, context, appender)
        self._tables[entry.id] = table
        return table

    def _after_append(self, buffer: Buffer) -> None:
        settings = self._site.settings
        if self._auto and (
            buffer.rows >= settings.flush_rows or buffer.bytes >= settings.flush_bytes_now
        ):
            self._upkeep.wake()


_open_lakes: weakref.WeakSet[Lake] = weakref.WeakSet()


def _let_locks_go() -> None:
    for lake in list(_open_lakes):
        lake._site.abandon()
        _open_lakes.discard(lake)  # or a grandchild would close the same numbers again


os.register_at_fork(after_in_child=_let_locks_go)


@atexit.register
def _close_all() -> None:
    """Close what the caller did not, before DuckDB and the threads go."""
    for lake in list(_open_lakes):
        lake.close()


def _listed_schema(entry: TableEntry) -> TableSchema:
    try:
        return TableSchema.from_toml(entry.schema_text)
    except SchemaError as error:
        raise CorruptionError(
            f"the catalog's schema of table {entry.name!r} is none: {error}; `lakestore rebuild` "
            "makes the catalog again from the lake's files"
        ) from error


def _schema_of(source: Any, roles: dict[str, Any]) -> TableSchema:
    roles = {name: value for name, value in roles.items() if value is not None}
    if isinstance(source, TableSchema | pa.Schema | str | Path):
        return schema.load(source, roles)
    return schema.load(coerce.infer(source, roles.get("event_time")), roles)


def _published_ids(queries: Queries, context: TableContext, ids: pa.Array) -> pa.Table:
    """Id and event time of published events that have one of these ids."""
    event_id, event_time = context.schema.event_id, context.schema.event_time
    statement = (
        f"SELECT {identifiers([event_id, event_time])} FROM {identifier(context.entry.name)} "
        f"SEMI JOIN lakestore_wanted USING ({identifier(event_id)})"
    )
    wanted = pa.table({event_id: ids})
    return queries.sql(statement, None, [context], {"lakestore_wanted": wanted}).to_arrow()
