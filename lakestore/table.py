"""One table of an open lake: what a caller does with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from lakestore import quoting
from lakestore.append import Ack, Appender
from lakestore.compact import Compacted
from lakestore.context import TableContext
from lakestore.engine import troubles
from lakestore.errors import ClosedError, InvalidInputError
from lakestore.events.answers import Facets, Metrics, Page, Series, Totals
from lakestore.events.counters import Counters, Running
from lakestore.events.counters import check as check_counted
from lakestore.events.filters import Filter, Moment, Source, Where, moment
from lakestore.events.lookup import ids_of, lookup
from lakestore.events.measures import Measure, Measures, columns_of, parse
from lakestore.events.metrics import check as check_metrics
from lakestore.events.metrics import metrics, view
from lakestore.events.pages import Asked, Order, page
from lakestore.events.questions import Spans, facets, series, totals
from lakestore.evolution import Change, difference, edited
from lakestore.evolve import check, evolve
from lakestore.export import Exported, Target, Wanted, export
from lakestore.files.mapping import Options
from lakestore.horizon import Age
from lakestore.load.files import Reading
from lakestore.load.run import Loaded, Progress, load
from lakestore.load.sources import sources_of
from lakestore.maintenance import Budget
from lakestore.naming import NewColumnsError
from lakestore.prune import Pruned
from lakestore.query.attach import attach
from lakestore.query.reader import EVENTS, Reader
from lakestore.retain import Vacuumed
from lakestore.schema import TableSchema
from lakestore.schema import load as schema_from
from lakestore.session import Session
from lakestore.undo import Undone
from lakestore.upkeep import Upkeep

if TYPE_CHECKING:
    import polars as pl

Answer = TypeVar("Answer")


class Table:
    """A table; made by `lake.create_table` or `lake[name]`, good as long as the lake is open."""

    def __init__(
        self, session: Session, upkeep: Upkeep, context: TableContext, appender: Appender | None
    ) -> None:
        self._session = session
        self._upkeep = upkeep
        self._opened = context
        self._appender = appender
        self._dropped = False
        self._running: dict[tuple[str, tuple[Measure, ...]], Running] = {}

    @property
    def name(self) -> str:
        """The table's name."""
        return self._context.entry.name

    @property
    def schema(self) -> TableSchema:
        """Columns and roles as an append takes them; `.schema.stored` as queries see them."""
        return self._context.accepts

    @property
    def schemas(self) -> Mapping[int, TableSchema]:
        """Every version of its schema by number, the newest last; as `schema`."""
        return self._context.lineage.versions

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
        while True:
            try:
                return appender.append(data, producer, seq, level)
            except NewColumnsError as error:
                if self.schema.document.on_new_column != "add":
                    raise
                self._add(error.declared())
                data = error.rows

    def _add(self, declared: Mapping[str, str]) -> None:
        """Add columns, those that no other process has added meanwhile."""

        def make(newest: TableSchema) -> TableSchema:
            fresh = {name: d for name, d in declared.items() if name not in newest.names}
            return edited(newest, fresh, {}, {})

        evolve(self._context, make)
        self._upkeep.publish()

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
            return made

        before = self._context
        if dry_run:
            return check(before, make(before.accepts))
        evolved = evolve(before, make)
        self._upkeep.publish()
        return difference(before.accepts, evolved.accepts)

    @troubles("cannot flush")
    def flush(self) -> int:
        """Publish buffered rows as a hot segment, for every engine to read; returns the rows."""
        self._writable()
        return self._upkeep.flush(self._context)

    @troubles("cannot seal")
    def seal(self) -> int:
        """Flush, then move every hot segment to cold files; returns the rows moved."""
        self._writable()
        return self._upkeep.seal(self._context)

    @troubles("cannot compact")
    def compact(
        self,
        *,
        today: bool = False,
        max_seconds: float | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> Compacted:
        """Merge small cold files of each day to files of the target size; no answer changes.

        The files that are replaced stay for `cold_grace_s`, and then vacuum deletes them.

        Args:
            today: the day that has not ended too; its seals will make small files again.
            max_seconds, max_bytes: as in `Lake.maintain`.
            dry_run: say what would be done, and do nothing.

        Raises:
            CorruptionError: a file is not what was published.
            StorageError: the disk refused; what was compacted before stays so.
        """
        self._writable()
        budget = Budget(self._context.site.clock, max_seconds, max_bytes)
        return self._upkeep.compact(self._context, budget, today=today, dry_run=dry_run)

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
        sources = sources_of(source, load_id, Reading(self.schema, options, format))
        try:
            return load(
                self._context,
                sources,
                lambda: self._upkeep.turn(self._context),
                progress or (lambda _: None),
                dry_run=dry_run,
            )
        finally:
            self._upkeep.show_sealed(self._context)

    @troubles("cannot prune")
    def prune(
        self,
        older_than: Age | None = None,
        before: Moment = None,
        *,
        dry_run: bool = False,
        confirm: bool = False,
    ) -> Pruned:
        """Take cold files off the table whose every event has expired; `undo` brings them back.

        A file that has newer events too waits for them, and hot segments that have expired are
        sealed first. The files stay for `cold_grace_s`, and then vacuum deletes them.

        Args:
            older_than: a timedelta, a number of days, or text such as `90 days`; by default the
                retention that the schema document declares.
            before: events before this have expired, whatever the clock says; instead of the other.
            dry_run: only say what would go.
            confirm: though it is more than half of the rows, or the clock may be wrong.

        Raises:
            InvalidInputError: no retention is said or declared, or it needs `confirm`.
            CorruptionError: a file's footer says other times than the list; nothing was done.
            StorageError: the disk refused; nothing was committed.
        """
        self._writable()
        if older_than is not None and before is not None:
            raise InvalidInputError("say one of older_than= and before=")
        done = self._upkeep.prune(
            self._context, older_than, moment(before), dry_run=dry_run, confirm=confirm
        )
        if done.refusal is not None and not dry_run:
            raise InvalidInputError(
                f"not pruned: {done.refusal}. Look at it with dry_run=True, and say confirm=True "
                "if they are to go"
            )
        return done

    @troubles("cannot undo")
    def undo(self, version: int | None = None) -> Undone:
        """Bring back what a prune took off the table, as long as its files are there.

        Args:
            version: of the prune; by default the newest one that was not taken back.

        Raises:
            NotFoundError: there is none, or its files are deleted.
            ConflictError: some of its events were appended again since.
            StorageError: the disk refused; nothing was committed.
        """
        self._writable()
        return self._upkeep.undo(self._context, version)

    @troubles("cannot vacuum")
    def vacuum(self, dry_run: bool = True) -> Vacuumed:
        """Say which superseded files would be deleted, or (`dry_run=False`) delete them."""
        self._writable()
        return self._upkeep.vacuum(dry_run=dry_run, table=self._context)

    def scan(self) -> pl.LazyFrame:
        """A Polars LazyFrame over every tier as of now; filters and columns are pushed down."""
        self._session.check_open()
        return self._session.queries.scan(self._context)

    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        where: Where = None,
        start: Moment = None,
        end: Moment = None,
    ) -> pa.Table:
        """Rows of every tier as of now, as one Arrow table.

        Args:
            columns: which columns, in this order; all by default.
            where, start, end: as in `totals`.
        """

        def rows(reader: Reader) -> pa.Table:
            schema = reader.schema
            names = schema.names if columns is None else columns
            fields = [schema.arrow.field(schema.column(name).name) for name in names]
            wanted = Filter.of(schema, where, start, end)
            chosen = quoting.identifiers(names)
            statement = f"SELECT {chosen} FROM {EVENTS} WHERE {wanted.condition}"
            return reader.fetch(statement, wanted.bound(statement)).cast(pa.schema(fields))

        return self._ask(rows)

    def export(
        self,
        path: str | Path,
        where: Where = None,
        *,
        start: Moment = None,
        end: Moment = None,
        columns: Sequence[str] | None = None,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Exported:
        """Write rows of every tier, of one snapshot, to a file: all of them, or no file.

        Memory is bounded whatever their number. Payload columns are not among them.

        Args:
            path: `.parquet`, `.csv`, `.tsv`, `.ndjson` or `.arrow`; without a suffix it becomes a
                folder of Parquet files, one for each UTC day.
            where, start, end: as in `totals`.
            columns: which columns, in this order; all by default.
            overwrite: replace a file that is there.
            progress: told how many rows are written.

        Raises:
            InvalidInputError: there is something at the path, or its suffix tells no format.
            NotFoundError: no such column.
            StorageError: the disk refused; what was at the path still is.
        """
        target = Target(Path(path), overwrite)
        target.check()

        def write(reader: Reader) -> Exported:
            schema = reader.schema
            names = schema.names if columns is None else [schema.column(n).name for n in columns]
            wanted = Wanted(target, Filter.of(schema, where, start, end), tuple(names))
            return export(reader, wanted, progress or (lambda _: None))

        return self._ask(write)

    def get(self, event_id: Any, *, payload: bool = True) -> dict[str, Any] | None:
        """The event of that id, or None; of several days' events of one id, the newest.

        Only files that can hold it are opened: hashes of ids tell. Where its payload file is gone,
        the payload columns are None, and `payload_missing` is True.

        Args:
            payload: with the payload columns, where the schema has some.

        Raises:
            InvalidInputError: an id of another type.
            CorruptionError: the payload is not what was written.
        """
        return self.get_many([event_id], payload=payload)[0]

    def get_many(
        self, event_ids: Iterable[Any], *, payload: bool = True
    ) -> list[dict[str, Any] | None]:
        """The events of some ids, in their order, None for those that are not there; as `get`."""
        ids = list(event_ids)
        if not ids:
            self._session.check_open()
            return []
        wanted = ids_of(ids, self._context)
        found = self._ask(lambda reader: lookup(reader, wanted)).to_pylist()
        newest = {event[self._context.schema.event_id]: event for event in reversed(found)}
        if payload and self._context.schema.has_references:
            attach(self._session.queries, self._context, list(newest.values()))
        return [newest.get(id) for id in wanted.to_pylist()]  # a caller's may be written otherwise

    def page(
        self,
        where: Where = None,
        *,
        start: Moment = None,
        end: Moment = None,
        limit: int = 50,
        cursor: str | None = None,
        offset: int = 0,
        order: Order = "newest",
        source: Source = "all",
        totals: bool = True,
    ) -> Page:
        """Events in order of event time and id, and the totals of all that pass the filter.

        Pages that follow each other by `next_cursor` show each event once, while rows come and
        tiers change; an event that comes late, before the place of the cursor, is not shown.

        Args:
            where, start, end, source: as in `totals`.
            limit: events of the page, at most 10,000; 0 asks for totals alone.
            cursor: `next_cursor` of the page before, of the same filter and order.
            offset: events to pass over; for menus of pages. It cannot be used with a cursor.
            order: `newest` or `oldest` first.
            totals: whether `total` and `totals` are wanted; they are None without.

        Raises:
            InvalidInputError: a limit, offset or cursor that cannot be.
        """

        def asked(reader: Reader) -> Page:
            wanted = Filter.of(reader.schema, where, start, end, source)
            return page(reader, Asked(wanted, order, limit, offset, cursor, totals))

        return self._ask(asked)

    def totals(
        self,
        measures: Measures = None,
        *,
        where: Where = None,
        start: Moment = None,
        end: Moment = None,
        source: Source = "all",
    ) -> Totals:
        """Measures of all events that pass a filter.

        Args:
            measures: as `"count"`, `"sum(tokens)"`, `"p95(latency_ms) if status = 200"`, some of
                these, or label → measure; by default the number of events and the sums that the
                schema's first rollup with sums keeps.
            where: column → value, list of values (any of), None (null), `(operator, value)`, or
                several such pairs in a tuple, all of which hold.
            start: event time at or after this; naive times are UTC.
            end: event time before this.
            source: `hot`, `cold` or `all` tiers.

        Raises:
            InvalidInputError: not a measure, not a filter; says why.
            NotFoundError: no such column.
        """

        def asked(reader: Reader) -> Totals:
            wanted = Filter.of(reader.schema, where, start, end, source)
            return totals(reader, wanted, parse(measures, reader.schema))

        return self._ask(asked)

    def series(
        self,
        measures: Measures = "count",
        *,
        every: str | timedelta = "1h",
        by: str | Sequence[str] = (),
        where: Where = None,
        start: Moment = None,
        end: Moment = None,
        tz: str = "UTC",
        origin: Moment = None,
        source: Source = "all",
    ) -> Series:
        """Measures by bucket of time: every bucket of the window, with zeros where there is none.

        Args:
            measures, where, start, end, source: as in `totals`.
            every: width, such as `15m`, `1h`, `1 day` or `1 month`.
            by: columns; each of their combinations that occurs is a group.
            tz: whose calendar buckets of more than an hour follow.
            origin: buckets begin here and there after equal spans, instead of by the calendar.

        Raises:
            InvalidInputError: as `totals`; more than 10,000 buckets, or a million points.
        """

        def asked(reader: Reader) -> Series:
            wanted = Filter.of(reader.schema, where, start, end, source)
            chosen, keys = parse(measures, reader.schema), columns_of(reader.schema, by)
            return series(reader, wanted, chosen, keys, Spans(every, tz, moment(origin)))

        return self._ask(asked)

    def facets(
        self,
        columns: str | Sequence[str] | None = None,
        *,
        where: Where = None,
        start: Moment = None,
        end: Moment = None,
        source: Source = "all",
        limit: int = 1_000,
    ) -> Facets:
        """The values of columns with their numbers of events, the most frequent first.

        A column's own test is left out of its menu, so that another value can be chosen.

        Args:
            columns: by default the schema's `facets`.
            where, start, end, source: as in `totals`.
            limit: values of each column.
        """

        def asked(reader: Reader) -> Facets:
            wanted = Filter.of(reader.schema, where, start, end, source)
            chosen = reader.schema.document.facets if columns is None else columns
            return facets(reader, wanted, columns_of(reader.schema, chosen), limit)

        return self._ask(asked)

    def metrics(
        self,
        name: str | None = None,
        *,
        where: Where = None,
        start: Moment = None,
        end: Moment = None,
        source: Source = "all",
        top: int = 10,
    ) -> Metrics:
        """A summary, the same measures by group, and lists of the groups that lead.

        Args:
            name: of a view that the schema declares under `[metrics.<name>]`; by default the first,
                or one of the schema's facets.
            where, start, end, source: as in `totals`.
            top: length of the lists.
        """

        def asked(reader: Reader) -> Metrics:
            wanted = Filter.of(reader.schema, where, start, end, source)
            return metrics(reader, wanted, view(reader.schema, name), max(1, top))

        return self._ask(asked)

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

    def _ask(self, question: Callable[[Reader], Answer]) -> Answer:
        self._session.check_open()
        return self._session.queries.ask(self._context, question)

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
