"""One table of an open lake: what a caller does with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lakestore import quoting
from lakestore.append import Ack, Appender
from lakestore.context import TableContext
from lakestore.engine import troubles
from lakestore.errors import ClosedError, InvalidInputError, NotFoundError
from lakestore.retain import Vacuumed
from lakestore.schema import TableSchema
from lakestore.session import Session
from lakestore.upkeep import Upkeep

if TYPE_CHECKING:
    import polars as pl

_OPERATORS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=", "like", "not like")


class Table:
    """A table; made by `lake.create_table` or `lake[name]`, good as long as the lake is open."""

    def __init__(
        self, session: Session, upkeep: Upkeep, context: TableContext, appender: Appender | None
    ) -> None:
        self._session = session
        self._upkeep = upkeep
        self._context = context
        self._appender = appender
        self._dropped = False

    @property
    def name(self) -> str:
        """The table's name."""
        return self._context.entry.name

    @property
    def schema(self) -> TableSchema:
        """Columns and roles; `.schema.arrow` is the Arrow schema."""
        return self._context.schema

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

        Raises:
            SchemaError: a value does not fit; names row, column and value.
            BackpressureError: the buffer stayed full for `append_timeout_s`.
            StorageError: the disk refused; nothing was accepted.
        """
        return self._writable().append(data, producer, seq, level)

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
        where: Mapping[str, Any] | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> pa.Table:
        """Rows of every tier as of now, as one Arrow table.

        Args:
            columns: which columns, in this order; all by default.
            where: column → value, list of values (in), None (is null), or (operator, value).
            start: event time at or after this; naive times are UTC.
            end: event time before this.
        """
        self._session.check_open()
        for name in columns or ():
            self.schema.column(name)
        chosen = quoting.identifiers(self.schema.names if columns is None else columns)
        condition, parameters = _condition(self.schema, where or {}, start, end)
        statement = f"SELECT {chosen} FROM {quoting.identifier(self.name)} WHERE {condition}"
        queries = self._session.queries
        result = queries.sql(statement, parameters, [self._context], {}).to_arrow()
        names = self.schema.names if columns is None else columns
        fields = [self.schema.arrow.field(n).with_nullable(True) for n in names]
        return result.cast(pa.schema(fields))

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


def _condition(
    schema: TableSchema,
    where: Mapping[str, Any],
    start: datetime | None,
    end: datetime | None,
) -> tuple[str, list[Any]]:
    """A WHERE condition with `?` for each value, and the values."""
    tests, values = ["true"], []
    for name, wanted in where.items():
        if name not in schema.names:
            raise NotFoundError(f"no column {name!r}; the table has {', '.join(schema.names)}")
        column = quoting.identifier(name)
        if wanted is None:
            tests.append(f"{column} IS NULL")
        elif isinstance(wanted, tuple):
            if len(wanted) != 2 or str(wanted[0]).lower() not in _OPERATORS:
                raise InvalidInputError(
                    f"where[{name!r}] is {wanted!r}; a tuple is (operator, value), with an "
                    f"operator of {', '.join(_OPERATORS)}"
                )
            tests.append(f"{column} {wanted[0]} ?")
            values.append(wanted[1])
        elif isinstance(wanted, list | set | frozenset):
            some = [value for value in wanted if value is not None]
            marks = ", ".join("?" for _ in some)
            parts = [f"{column} IN ({marks})"] if some else []
            parts += [f"{column} IS NULL"] if len(some) < len(wanted) else []
            tests.append("(" + (" OR ".join(parts) or "false") + ")")
            values += some
        else:
            tests.append(f"{column} = ?")
            values.append(wanted)
    time = quoting.identifier(schema.event_time)
    for test, bound in ((">=", start), ("<", end)):
        if bound is not None:
            tests.append(f"{time} {test} ?")
            values.append(bound)
    return " AND ".join(tests), values
