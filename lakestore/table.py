"""One table of an open lake: what a caller does with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lakestore.append import Ack, Appender
from lakestore.coerce import rows_of
from lakestore.context import TableContext
from lakestore.deadletters import Origin, Sending, append_fitting, check_name, letters
from lakestore.engine import troubles
from lakestore.erasure import Purged, among_letters, erase
from lakestore.errors import ClosedError, InvalidInputError, SchemaError
from lakestore.events.counters import Counters, Running
from lakestore.events.counters import check as check_counted
from lakestore.events.filters import Filter, Moment, Where
from lakestore.events.measures import Measure, Measures, columns_of, parse
from lakestore.events.metrics import check as check_metrics
from lakestore.evolution import Change, difference, edited
from lakestore.evolve import check, evolve
from lakestore.files.mapping import Options
from lakestore.files.rejects import Reject
from lakestore.load.chunks import Target
from lakestore.load.files import Reading
from lakestore.load.run import Loaded, Progress, load
from lakestore.load.sources import sources_of
from lakestore.naming import NewColumnsError
from lakestore.past import Version
from lakestore.query.reader import Reader
from lakestore.schema import TableSchema
from lakestore.schema import load as schema_from
from lakestore.session import Session
from lakestore.tableshape import TableShape
from lakestore.travel import TableVersion, as_of, history
from lakestore.upkeep import Upkeep


class Table(TableShape):
    """A table; made by `lake.create_table` or `lake[name]`, good as long as the lake is open."""

    def __init__(
        self,
        session: Session,
        upkeep: Upkeep,
        context: TableContext,
        appender: Appender | None,
        dead_letters: Callable[[str, TableContext], Table],
    ) -> None:
        super().__init__(session, upkeep)
        self._dead_letters = dead_letters
        self._opened = context
        self._appender = appender
        self._dropped = False
        self._running: dict[tuple[str, tuple[Measure, ...]], Running] = {}

    def __repr__(self) -> str:
        return f"<lakestore table {self.name!r} of {self._session.root!r}>"

    def append(
        self,
        data: Any,
        *,
        producer: str | None = None,
        seq: int | None = None,
        level: str = "disk",
    ) -> Ack:
        """Accept events: all of them, durable at `level`, or none and an error.

        Where the schema names a table of `rejects`, rows that do not fit are put there, on the
        disk, before the others are accepted; `Ack.rejected` says how many.

        Args:
            data: anything with the Arrow PyCapsule interface (pyarrow, Polars, pandas, DuckDB
                results), a Polars LazyFrame, one mapping, or an iterable of mappings.
            producer: who sends, together with `seq`: a pair is accepted once, for ever.
            seq: ascending number of this batch for this producer; one that is not above the
                highest seen is a duplicate, and nothing of it is accepted again.
            level: `memory` (in this process), `os` (survives kill -9) or `disk` (survives a
                power loss, the default).

        Columns that the table lacks are refused, left out or added, as the schema's
        `on_new_column` says; of one that was renamed the old name will do.

        Raises:
            SchemaError: a value does not fit; names row, column and value.
            BackpressureError: the buffer stayed full for `append_timeout_s`.
            StorageError: the disk refused; nothing was accepted.
        """
        appender = self._writable()
        keeps = self._context.accepts.document.rejects is not None
        if keeps:
            data = rows_of(data)
        while True:
            try:
                return appender.append(data, producer, seq, level)
            except NewColumnsError as error:
                if keeps:
                    break
                if self.schema.document.on_new_column != "add":
                    raise
                self._add(error.declared())
                data = error.rows
            except SchemaError:
                if not keeps:
                    raise
                break
        rows = pa.Table.from_batches([data]) if isinstance(data, pa.RecordBatch) else data
        sending = Sending(appender, producer, seq, level)
        return append_fitting(self._context, rows, sending, self._keep, self._add)

    def _keep(self, rejects: Sequence[Reject], origin: Origin) -> int:
        """Have rejected rows on the disk, in the table that the schema names.

        Returns:
            How many were not there yet.
        """
        name = self._context.accepts.document.rejects
        assert name is not None
        now = self._context.site.clock.now()
        return self._dead_letters(name, self._context).append(letters(rejects, origin, now)).rows

    def _add(self, declared: Mapping[str, str]) -> TableContext:
        """Add columns, those that no other process has added meanwhile."""

        def make(newest: TableSchema) -> TableSchema:
            fresh = {name: d for name, d in declared.items() if name not in newest.names}
            return edited(newest, fresh, {}, {})

        evolved = evolve(self._context, make)
        self._upkeep.publish()
        return evolved

    def _add_between(self, declared: Mapping[str, str]) -> TableContext:
        """Add columns while no chunk is committed, which would be a conflict to it."""
        with self._upkeep.turn(self._context):
            return self._add(declared)

    @troubles("cannot evolve the schema")
    def evolve(
        self,
        schema: TableSchema | str | Path | None = None,
        *,
        add: Mapping[str, str] | None = None,
        widen: Mapping[str, str] | None = None,
        rename: Mapping[str, str] | None = None,
        dry_run: bool = False,
    ) -> Change:
        """Give the table the next version of its schema; no file is rewritten.

        Rows of older versions are read as the newest has them: null in columns that were added,
        values in the wider type, columns under their new names. Whoever has the table open, in
        this process or another, goes on, and takes the new version up when it next looks.

        Args:
            schema: the whole of it, as `create_table` takes it; or, in its place, only changes:
            add: declarations of new columns, such as `{"tokens": "BIGINT"}`; they may be null.
            widen: types that hold every value of the column's: `{"n": "BIGINT"}`.
            rename: new names by old ones; appends may go on using the old.
            dry_run: only say what would change.

        Returns:
            What is changed: `print(*change.lines(), sep="\n")`.

        Raises:
            SchemaError: older rows would be lost, or have no meaning; says each reason.
            StorageError: nothing was changed.
        """
        changes = (add or {}, widen or {}, rename or {})
        if (schema is None) != any(changes):
            raise InvalidInputError("pass a schema, or what of it to add, widen and rename")
        if not dry_run:
            self._writable()
        self._session.check_open()
        whole = None if schema is None else schema_from(schema, {})

        def make(newest: TableSchema) -> TableSchema:
            made = edited(newest, *changes) if whole is None else whole
            check_metrics(made.stored)
            check_name(self.name, made.document.rejects)
            return made

        before = self._context
        made = make(before.accepts)
        change = check(before, made)  # before a table is made for what it rejects
        if dry_run:
            return change
        if made.document.rejects is not None:
            self._dead_letters(made.document.rejects, before)
        evolved = evolve(before, make)
        self._upkeep.publish()
        return difference(before.accepts, evolved.accepts)

    @troubles("cannot load")
    def load(
        self,
        source: Any,
        *,
        load_id: str | None = None,
        progress: Callable[[Progress], None] | None = None,
        format: str | None = None,
        renames: Mapping[str, str] | None = None,
        nulls: Sequence[str] = (),
        delimiter: str | None = None,
        ignore_unknown: bool = False,
        dry_run: bool = False,
    ) -> Loaded:
        """Put rows straight into cold files, chunk by chunk, each row exactly once.

        Memory is bounded whatever the size of the source. A chunk is durable and visible once it
        is committed; appends and queries go on meanwhile. Duplicates are left out as the schema's
        `dedup` says: the first row that was durable wins, and within the load the first one.
        Rows that do not fit go where the schema says `rejects`, before their chunk is committed.
        Columns that the table lacks are dealt with as `append` does; where they are added, each
        file or piece of a stream adds those that it brings.

        Args:
            source: Parquet, CSV, NDJSON or Arrow files, as a path, a folder, a glob, or a list of
                these; an Arrow stream, table or dataset; a Polars frame (lazy ones are streamed);
                or an iterable of batches or mappings.
            load_id: names the source, which must give the same rows in the same order whenever it
                is loaded under that name: what a former load had committed is passed over, even if
                that was killed. Files need none: each is known by its path, size and time of
                change, and loaded once.
            progress: told after each chunk.
            format: of files whose names do not tell: `parquet`, `csv`, `ndjson` or `arrow`.
            renames: column of a file → column of the table.
            nulls: texts that mean null in CSV, beside none at all.
            delimiter: of CSV; else the header's most frequent of , tab ; |
            ignore_unknown: drop columns of files that the table lacks.
            dry_run: load nothing; the report's `sources` say what there is to load.

        Raises:
            SchemaError: a value does not fit; names source, row, column and value. What was loaded
                before stays, as after every other error.
            InvalidInputError: `source` is nothing that events come in, or cannot be read.
            NotFoundError: there is no such file.
            StorageError: the disk or the store refused.
            ConflictError: another process is loading the same source.
        """
        self._writable()
        options = Options(dict(renames or {}), tuple(nulls), delimiter, ignore_unknown)
        target = Target(self._context, self._add_between, self._keep)
        sources = sources_of(source, load_id, Reading(target, options, format))
        try:
            return load(
                target,
                sources,
                lambda: self._upkeep.turn(self._context),
                progress or (lambda _: None),
                dry_run=dry_run,
            )
        finally:
            self._upkeep.show_sealed(self._context)

    @troubles("cannot purge")
    def purge(self, where: Where, *, dry_run: bool = False) -> Purged:
        """Erase events from every tier, and every copy of them that is within reach.

        The files that can hold some are written anew; those that went, and other copies, are
        deleted after `vacuum_grace_s`, by vacuum or the next call, which says whether it is
        complete. Nobody can go back to them. Other processes' buffered rows are waited for. So
        with dead letters of the table, by what of the rejected rows can be read as its columns.

        Args:
            where: as in `totals`; it may not be empty.
            dry_run: only say what there is to erase.

        Raises:
            InvalidInputError: an empty `where`, or one that is no filter.
            ConflictError: other processes replaced the files all the while: try again.
            CorruptionError: a file is not what was published.
            StorageError: the disk refused; what was erased before stays so.
        """
        self._writable()
        table, upkeep, queries = self._context, self._upkeep, self._session.queries
        done = erase(upkeep, queries, table, Filter.of(table.schema, where), dry_run=dry_run)
        name = table.accepts.document.rejects
        listed = {entry.name.casefold() for entry in table.site.catalog.tables()}
        if name is None or name.casefold() not in listed:  # it was dropped
            return done
        rejected = self._dead_letters(name, table)._context
        of_these = among_letters(table, where)
        return done.with_rejects(erase(upkeep, queries, rejected, of_these, dry_run=dry_run))

    def counters(self, by: str, measures: Measures = None) -> Counters:
        """Exact sums by key, of every event that is acknowledged by now.

        Made for quotas: an ask costs what was appended since the one before, and one pass over
        the rollups after a flush.

        Args:
            by: the column of keys.
            measures: of `count`, `count(column)` and `sum(column)`; by default as `totals`.

        Raises:
            InvalidInputError: a measure that cannot be kept up to date by addition.
        """

        def asked(reader: Reader) -> Counters:
            chosen = parse(measures, reader.schema)
            check_counted(chosen)
            (key,) = columns_of(reader.schema, by)
            return self._running.setdefault((key, chosen), Running(key, chosen)).ask(reader)

        return self._ask(asked)

    @property
    def _context(self) -> TableContext:
        """The table in the newest version of its schema that this process has taken up."""
        return self._opened.newest

    @troubles("cannot look at the history")
    def history(self, limit: int | None = None) -> list[Version]:
        """What changed the sealed rows, version by version, the newest first.

        Versions of plain Parquet are those of the lake, and so skip those that changed other
        tables. Those of a Delta table are its log's, other engines' too, as long as it has them.

        Args:
            limit: so many of the newest.

        Raises:
            StorageError: the store does not answer.
        """
        self._session.check_open()
        return history(self._context, limit)

    @troubles("cannot look at the history")
    def at(self, version: int | Moment) -> TableVersion:
        """The sealed rows as of a version, or of the newest one that was committed by a time.

        Rows that were in the hot tier then are not in it. It can be asked as a table can, and its
        files are kept from this process's vacuum as long as it, or what it streams, is referred to.

        Args:
            version: its number, as `history` tells, or a time; naive times are UTC.

        Raises:
            NotFoundError: there was none yet, or files of it are deleted: those that were replaced
                stay for `cold_grace_s`.
            StorageError: the store does not answer.
        """
        self._session.check_open()
        return TableVersion(self._session, *as_of(self._context, version))

    def _let_go(self) -> None:
        """The table was dropped: its rows go, and it takes no more."""
        self._dropped = True
        if self._context.buffer is not None:
            self._context.buffer.close()
        self._context.partials.close()

    def _writable(self) -> Appender:
        self._session.check_open(write=True)
        if self._dropped:
            raise ClosedError(f"table {self.name!r} was dropped")
        assert self._appender is not None
        return self._appender
