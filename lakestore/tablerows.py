"""The rows of one table, as something is asked of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from lakestore import quoting
from lakestore.context import TableContext
from lakestore.events.answers import Facets, Metrics, Page, Series, Totals
from lakestore.events.filters import Filter, Moment, Source, Where, moment
from lakestore.events.lookup import ids_of, lookup
from lakestore.events.measures import Measures, columns_of, parse
from lakestore.events.metrics import metrics, view
from lakestore.events.pages import Asked, Order, page
from lakestore.events.questions import Spans, facets, series, totals
from lakestore.export import Exported, Target, Wanted, export
from lakestore.query.attach import attach
from lakestore.query.pin import PinnedRows
from lakestore.query.reader import EVENTS, Reader
from lakestore.schema import TableSchema
from lakestore.session import Session

if TYPE_CHECKING:
    import polars as pl

Answer = TypeVar("Answer")


class TableRows(ABC):
    """What a table and a version of it have in common: their rows can be read."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    @abstractmethod
    def _context(self) -> TableContext:
        """Whose rows they are."""

    @property
    def _source(self) -> TableContext | PinnedRows:
        """What is read: the table as it is at each call, or what is pinned already."""
        return self._context

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

    def scan(self) -> pl.LazyFrame:
        """A Polars LazyFrame over the rows; filters and columns are pushed down."""
        self._session.check_open()
        return self._session.queries.scan(self._source)

    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        where: Where = None,
        start: Moment = None,
        end: Moment = None,
    ) -> pa.Table:
        """The rows as one Arrow table.

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
        """Write the rows, of one snapshot, to a file: all of them, or no file.

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

    def _ask(self, question: Callable[[Reader], Answer]) -> Answer:
        self._session.check_open()
        return self._session.queries.ask(self._source, question)
