"""The tables of an open lake, in this process: opened once the catalog lists them.

Order of effects, numbered as their failpoints are:

    create.1 listed in the catalog    .2 log begun    .3 empty file put    .4 document put
    .5 committed    .6 table opened
    drop.1 unlisted in the catalog    .2 committed    .3 buffer let go

A create or a drop is committed by its catalog transaction.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from lakestore import deadletters, retain, shell
from lakestore.adopt import adopt, drop_buried
from lakestore.append import Appender
from lakestore.buffer import Buffer
from lakestore.catalog.records import TableEntry
from lakestore.context import TableContext
from lakestore.duplicates import published
from lakestore.errors import ConflictError, InvalidInputError, SchemaError, StorageError
from lakestore.events import metrics
from lakestore.failpoint import reach
from lakestore.lakefile import is_delta
from lakestore.layout import check_table_name, schema_key
from lakestore.lineage import Lineage
from lakestore.opensite import SiteContext
from lakestore.recover import recover, take_over, unsealed_hashes
from lakestore.schema import TableSchema
from lakestore.table import Table
from lakestore.versions import lineage_of, take_up

log = logging.getLogger("lakestore")


class OpenTables:
    """Tables by their number in the catalog; any thread may ask."""

    def __init__(
        self,
        site: SiteContext,
        handle: Callable[[TableContext, Appender | None], Table],
        on_append: Callable[[Buffer], None],
    ) -> None:
        """No tables yet: `refresh` opens them.

        Args:
            handle: makes what the caller gets of a table.
            on_append: told of each append.
        """
        self._site = site
        self._handle = handle
        self._on_append = on_append
        self._lock = threading.RLock()  # guards the two below
        self._tables: dict[int, Table] = {}
        self._version = -1  # of the catalog, when it was last looked at

    def handles(self) -> list[Table]:
        """What callers have of each."""
        with self._lock:
            return list(self._tables.values())

    def contexts(self) -> list[TableContext]:
        """Each as the levels below see it."""
        return [table._context for table in self.handles()]

    def refresh(self) -> None:
        """Open tables that others created, let go those they dropped, and take up new schemas.

        Raises:
            CorruptionError: the catalog's schema of one is none, or a journal is damaged.
        """
        with self._lock:
            version = self._site.catalog.version()
            if version == self._version:
                return
            entries = {entry.id: entry for entry in self._site.catalog.tables()}
            for entry in entries.values():
                if entry.id in self._tables:
                    take_up(self._tables[entry.id]._context, entry.schema_version)
                else:
                    lineage = lineage_of(self._site, entry)
                    self._open(entry, TableContext.open(self._site, entry, lineage))
            for gone in self._tables.keys() - entries.keys():
                self._tables.pop(gone)._let_go()
            self._version = version

    def create(self, name: str, cold: str, schema: TableSchema) -> Table:
        """List a table and open it.

        Raises:
            InvalidInputError: the name is taken.
            SchemaError: the schema declares metrics that cannot be answered.
            ConflictError: another site makes it too.
            StorageError: the disk refused; there is no such table.
        """
        metrics.check(schema.stored)
        with self._lock:
            with self._site.catalog.commit() as commit:
                entry = commit.add_table(name, cold, schema.text, self._is_taken)
                reach("create.1")
                context = TableContext.open(self._site, entry, Lineage({1: schema}))
                context.cold.create()
                reach("create.2")
                shell.write_empty(context)
                reach("create.3")
                self._site.put_new(schema_key(entry.folder, 1), schema.text.encode())
                reach("create.4")
            reach("create.5")
            table = self._open(entry, context)
            reach("create.6")
        return table

    def dead_letters(self, name: str, cold: str) -> Table:
        """The table of that name for dead letters; one is made where there is none.

        Raises:
            InvalidInputError: that table has other columns, or the name is not allowed.
            StorageError: the disk refused.
        """
        table = self._find(name)
        if table is None:
            self.adopt()
            table = self._find(name)
        if table is None:
            try:
                table = self.create(check_table_name(name), cold, deadletters.schema())
            except (ConflictError, InvalidInputError):  # another process was first
                self.adopt()
                table = self._find(name)
                if table is None:
                    raise
        deadletters.check(name, table._context.accepts)
        return table

    def _find(self, name: str) -> Table | None:
        found = (t for t in self.handles() if t.name.casefold() == name.casefold())
        return next(found, None)

    def drop(self, table: Table) -> None:
        """Unlist a table and let its rows go; `retain` deletes its files later."""
        context = table._context
        with context.flushing, context.sealing, self._lock:
            with self._site.catalog.commit() as commit:
                commit.drop_table(context.entry.id)
                reach("drop.1")
            reach("drop.2")
            with suppress(StorageError):  # it is dropped: vacuum says so when there is room
                retain.bury(self._site, context.entry.folder)
            self._tables.pop(context.entry.id, None)
            table._let_go()
            reach("drop.3")

    def adopt(self) -> None:
        """Open tables that other sites made, and let go those they dropped.

        Raises:
            StorageError: the store does not answer.
        """
        drop_buried(self._site)
        adopt(self._site)
        self.refresh()

    def catch_up(self) -> None:
        """At open: finish what a crash in `drop` left undone, and see what other sites did."""
        with _unless_silent(self._site):
            for item in self._site.catalog.garbage() if self._site.writer else ():
                if item.kind == "table":
                    retain.bury(self._site, item.folder)
            self.adopt()

    def forget_sealed(self, context: TableContext) -> None:
        """After a seal: the appender need not know sealed ids, a flush looks them up."""
        for table in self.handles():
            if table._context.entry.id == context.entry.id and table._appender is not None:
                with context.flushing:  # no segment may come between reading and rebuilding
                    table._appender.forget_sealed(lambda: unsealed_hashes(context))

    def take_over(self, writers: Sequence[str]) -> None:
        """Hold the rows of writers that died while this lake is open."""
        for table in self.handles():
            if table._appender is not None:
                take_over(table._context, table._appender, writers)

    def save(self, flush: Callable[[TableContext], object] | None) -> list[Exception]:
        """Flush what is buffered, or have it on the disk; returns what failed."""
        failures: list[Exception] = []
        for context in self.contexts():
            try:
                if context.buffer is not None and flush is not None:
                    flush(context)  # first: it also saves what no fsync can
                elif context.buffer is not None:
                    context.buffer.sync_all()
            except Exception as error:  # one table must not cost another its rows
                failures.append(error)
        return failures

    def close(self) -> None:
        """Let every buffer go; what is in none but them is lost."""
        for context in self.contexts():
            if context.buffer is not None:
                context.buffer.close()
            context.partials.close()

    def _is_taken(self, folder: str) -> bool:
        """Whether a table, or a create that was cut short, left a schema in that folder."""
        keys = (schema_key(folder, 1), schema_key(folder, 1, "parquet"))
        taken = any(self._site.storage.size(key) is not None for key in keys)
        return taken or is_delta(self._site.storage, folder)

    def _open(self, entry: TableEntry, context: TableContext) -> Table:
        appender = None
        if context.buffer is not None:
            appender = Appender(
                entry.name,
                lambda: context.newest.lineage,
                context.buffer,
                self._site.settings,
                lambda ids: published(context, ids),
                context.highest_elsewhere,
                self._on_append,
            )
            recover(context, appender)
            with _unless_silent(self._site):  # what is sealed is not read twice meanwhile
                context.cold.settle()
                context.cold.join()
        table = self._handle(context, appender)
        self._tables[entry.id] = table
        return table


@contextmanager
def _unless_silent(site: SiteContext) -> Iterator[None]:
    """Leave for later what a store that does not answer keeps from being done.

    So with a log that another engine has made one that we cannot write to: rows are accepted, and
    wait until it is changed back.
    """
    try:
        yield
    except SchemaError as error:
        log.warning("nothing can be sealed: %s", error)
    except StorageError as error:
        if not site.storage.remote:
            raise
        log.warning("the store does not answer: %s", error)
