"""An open lake: tables, queries over them, and their upkeep.

Order of effects, numbered as their failpoints are:

    open.1 lake made or known    .2 local folder made    .3 catalog opened    .4 writer locked
    .5 dead writers' locks taken    .6 their staging swept    .7 tables opened, rows recovered
    .8 `lake.duckdb` made

An open only adds, and sweeps what nothing names: a crash leaves work for the next one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import duckdb
import pyarrow as pa

from lakestore import coerce, exits, schema
from lakestore.append import Appender, Position, check_level
from lakestore.buffer import Buffer
from lakestore.clock import Clock
from lakestore.context import TableContext
from lakestore.deadletters import check_name
from lakestore.engine import troubles
from lakestore.errors import InvalidInputError, NotFoundError, StorageError
from lakestore.failpoint import reach
from lakestore.layout import SiteLayout, check_table_name
from lakestore.maintenance import Budget, Plan
from lakestore.opened import OpenTables
from lakestore.opensite import SiteContext
from lakestore.query.frames import of_caller
from lakestore.query.parameters import Parameters
from lakestore.query.payloads import readable
from lakestore.query.result import Result
from lakestore.query.run import Explanation, Queries
from lakestore.repair import Repaired, repair
from lakestore.retain import Vacuumed
from lakestore.schema import TableSchema
from lakestore.session import Session
from lakestore.settings import Settings
from lakestore.sites import Site, retire, sites
from lakestore.status import Status, table_status
from lakestore.storage import Storage
from lakestore.table import Table
from lakestore.upkeep import Upkeep
from lakestore.verify.report import Report as VerifyReport
from lakestore.verify.run import verify
from lakestore.watermark import watermark
from lakestore.worker import Report
from lakestore.writers import Recovery


class Lake:
    """An open lake; made by `lakestore.open`, and a context manager."""

    def __init__(
        self,
        storage: Storage,
        layout: SiteLayout,
        catalog: str | None,
        mode: Literal["rw", "r"],
        upkeep: Literal["auto", "manual"],
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.root = storage.root
        self.mode = mode
        # Who reads a folder or Postgres reads the list that writers keep, and adds nothing to it.
        self._sees_others = mode == "rw" or (storage.remote and catalog is None)
        self._auto = upkeep == "auto" and mode == "rw"
        self._site = SiteContext.open(storage, layout, catalog, settings, clock, write=mode == "rw")
        self._queries = Queries(self._site)
        self._session = Session(self.root, mode, self._queries)
        self._tables = OpenTables(self._site, self._handle, self._after_append)
        self._upkeep = Upkeep(
            self._site,
            self._known_tables,
            self._queries.in_use,
            self._tables.forget_sealed,
            self._tables.take_over,
            self._tables.adopt,
        )
        try:
            self._tables.refresh()
            reach("open.7")
            if self._sees_others:
                self._tables.catch_up()
            if mode == "rw":
                self._upkeep.publish()
                reach("open.8")
        except BaseException:
            self._release()  # or the locks of dead writers would stay taken, and their rows hidden
            raise
        if self._auto:
            self._upkeep.start()
        exits.remember(self, self._site.abandon)

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
                a `TableSchema`, a `pa.Schema`, types by column such as
                `{"id": "VARCHAR not null", "time": "TIMESTAMPTZ"}`, or a first batch whose
                columns are taken. The batch itself is not appended.
            cold: `parquet`, or `delta` for sealed files that are a Delta table, which other engines
                read by its log, and write to.
            exist_ok: return the table of that name if there is one, whatever its schema.
            roles: for a `pa.Schema`, types or a batch: `event_time=` (required), `event_id=`, and
                any other key of a schema document, such as `sort=` or `dedup=`.

        Raises:
            InvalidInputError: the name is taken or not allowed.
            SchemaError: the schema is wrong; says where.
            StorageError: the disk refused; there is no such table.
        """
        self._session.check_open(write=True)
        check_table_name(name)
        if cold not in ("parquet", "delta"):
            raise InvalidInputError(f"cold format {cold!r} is not known; use 'parquet' or 'delta'")
        self._tables.adopt()
        if exist_ok and name in self:
            return self[name]
        wanted = _schema_of(schema, roles)
        rejects = wanted.document.rejects
        check_name(name, rejects)
        if rejects is not None and name not in self:
            self._tables.dead_letters(rejects, cold)
        table = self._tables.create(name, cold, wanted)
        self._upkeep.publish()
        return table

    @troubles("cannot drop a table")
    def drop_table(self, name: str) -> None:
        """Unlist a table; its files are deleted by `vacuum` after the grace.

        Raises:
            NotFoundError: there is no such table.
        """
        self._session.check_open(write=True)
        self._tables.drop(self[name])
        self._upkeep.publish()

    @troubles("cannot look at the tables")
    def __getitem__(self, name: str) -> Table:
        """The table of that name; raises `NotFoundError`."""
        self._current()
        tables = {table.name: table for table in self._tables.handles()}
        if name not in tables and self._sees_others:  # another site may have made it by now
            self._tables.adopt()
            tables = {table.name: table for table in self._tables.handles()}
        if name in tables:
            return tables[name]
        known = ", ".join(tables) or "none yet"
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
        return sorted(context.entry.name for context in self._current())

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
            CorruptionError: a file of the lake is damaged or missing.
            StorageError: a file cannot be read, or memory was short.
        """
        contexts = self._current()
        frames = of_caller(query, sys._getframe(1), readable(contexts))
        return self._queries.sql(query, params, contexts, frames)

    def explain(self, query: str, params: Parameters = None) -> Explanation:
        """Which files of which tier `sql` would read, and which planning spares it."""
        contexts = self._current()
        frames = of_caller(query, sys._getframe(1), readable(contexts))
        return self._queries.explain(query, params, contexts, frames)

    @troubles("cannot make a connection")
    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection of your own with a view of each table as of now: the open door.

        It runs anything that DuckDB runs, and shares nothing with the lake but its files. Those
        are not held for it: past the grace of superseded files, take a new one.
        """
        return self._queries.connect(self._current())

    def wait(self, position: Position | None, level: str = "disk") -> None:
        """Return once everything up to an `Ack.position` is durable at `level`.

        Raises:
            StorageError: the disk refused; the rows were not made durable.
        """
        self._session.check_open(write=True)
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
        self._session.check_open(write=True)
        return sum(self._upkeep.flush(context) for context in self._tables.contexts())

    @troubles("cannot seal")
    def seal(self) -> int:
        """Seal every table; returns the rows moved."""
        self._session.check_open(write=True)
        return sum(self._upkeep.seal(context) for context in self._known_tables())

    @troubles("cannot vacuum")
    def vacuum(self, dry_run: bool = True) -> Vacuumed:
        """`table.vacuum()` of every table, and of those that were dropped."""
        self._session.check_open(write=True)
        return self._upkeep.vacuum(dry_run=dry_run)

    @troubles("cannot maintain the lake")
    def maintain(self, *, max_seconds: float | None = None, max_bytes: int | None = None) -> Report:
        """Do what is due, the most valuable first: flush, merge, seal, prune, vacuum, compact.

        Args:
            max_seconds: nothing is begun after so long.
            max_bytes: nothing is begun that would read more than is left of these.
        """
        self._session.check_open(write=True)
        self._upkeep.look()
        return self._upkeep.round(Budget(self._site.clock, max_seconds, max_bytes))

    @troubles("cannot look at the lake")
    def plan_maintenance(self) -> Plan:
        """What `maintain` would do now, in its order, with what each task costs in bytes."""
        self._session.check_open(write=True)
        return self._upkeep.plan()

    @troubles("cannot look at the lake")
    def status(self) -> Status:
        """Rows, bytes, files and lag of every tier of every table."""
        tables = tuple(table_status(context) for context in self._current())
        return Status(
            self.root,
            self._site.catalog.lake,
            self.mode,
            tables,
            self.open_report,
            len(self._site.catalog.garbage()),
            self._upkeep.problem,
        )

    @troubles("cannot look at the lake")
    def watermark(self) -> dict[str, datetime | None]:
        """Up to when all rows that any site accepted are in the cold tier, by table.

        Who reads sealed files alone misses nothing that was accepted before. It goes by the time
        of acceptance, on the clocks of the sites, and not by that of events. A site says it with
        each seal; one that is gone holds it back until it is retired. None while a site that
        seals never said.

        Raises:
            StorageError: the store or a journal cannot be read.
        """
        return {context.entry.name: watermark(context) for context in self._current()}

    @troubles("cannot look at the sites")
    def sites(self) -> list[Site]:
        """The hosts that have a part of the lake, this one first; raises as `watermark`."""
        return sites(self._site, self._current())

    @troubles("cannot retire the site")
    def retire(self, site: str) -> None:
        """No longer have the watermark wait for a host that is gone for good.

        What it accepted and never sealed is not waited for. Nothing is deleted: should it come
        back, it joins anew where the watermark is, which stays there until those rows are sealed.
        Who has read up to that watermark finds them in files that were sealed later.

        Args:
            site: its name, as `sites` tells.

        Raises:
            NotFoundError: there is no such site.
            InvalidInputError: it is this one.
            ConflictError: it was seen to do something not long ago, or no other site is left.
            StorageError: not every table was told; try again.
        """
        self._session.check_open(write=True)
        self._tables.adopt()
        retire(self._site, self._known_tables(), site)

    @troubles("cannot verify the lake")
    def verify(self) -> VerifyReport:
        """Re-check every promise against the bytes: names, sums, counts, ids, order, statistics.

        It reads every file of the lake, changes nothing, and trusts the catalog in nothing.
        Others may write meanwhile.
        """
        return verify(self._site, self._current())

    @troubles("cannot repair the lake")
    def repair(self, *, dry_run: bool = True) -> Repaired:
        """Verify, and say what is safe to do about it, or (`dry_run=False`) do it.

        Caches are made again, and what nothing reads is moved to `quarantine/`. It works in mode
        `r` too, so that damage which hinders an open to write does not hinder it.

        Raises:
            StorageError: the disk refused.
        """
        return repair(self._site, self._current(), dry_run=dry_run)

    @troubles("cannot close the lake")
    def close(self) -> None:
        """Close the lake; with upkeep `auto`, what is buffered is flushed first."""
        if self._session.closed:
            return
        self._session.closed = True
        exits.forget(self)
        if self._session.forked:
            return
        self._upkeep.stop()
        failures = self._tables.save(self._upkeep.flush if self._auto else None)
        try:
            if self._auto and not failures:
                self._upkeep.vacuum(dry_run=False)
        except StorageError:  # what a store keeps from being deleted, the next one deletes
            if not self._site.storage.remote:
                raise
        finally:
            self._upkeep.end_leases()
            self._release()
        if failures:
            raise failures[0]

    def _release(self) -> None:
        self._tables.close()
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

    def _current(self) -> list[TableContext]:
        """Every table of the lake as it is now; raises as `Session.check_open`."""
        self._session.check_open()
        return self._known_tables()

    def _known_tables(self) -> list[TableContext]:
        """Every table of the lake, those included that another process created by now."""
        if not self._session.closed:
            self._tables.refresh()
        return self._tables.contexts()

    def _handle(self, context: TableContext, appender: Appender | None) -> Table:
        return Table(self._session, self._upkeep, context, appender, self._dead_letters)

    def _dead_letters(self, name: str, table: TableContext) -> Table:
        return self._tables.dead_letters(name, table.entry.cold)

    def _after_append(self, buffer: Buffer) -> None:
        settings = self._site.settings
        if self._auto and (
            buffer.rows >= settings.flush_rows or buffer.bytes >= settings.flush_bytes_now
        ):
            self._upkeep.wake()


def _schema_of(source: Any, roles: dict[str, Any]) -> TableSchema:
    roles = {name: value for name, value in roles.items() if value is not None}
    is_schema = isinstance(source, TableSchema | pa.Schema | str | Path)
    if is_schema or schema.declares(source, roles):
        return schema.load(source, roles)
    return schema.load(coerce.infer(source, roles.get("event_time")), roles)
