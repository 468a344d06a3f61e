"""Run: a statement over pinned tables, on a cursor of its own."""

import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import pyarrow as pa

from lakestore import quoting, spill
from lakestore.context import TableContext
from lakestore.engine import troubles
from lakestore.errors import InvalidInputError, LakestoreError, NotFoundError
from lakestore.httpfs import give_access
from lakestore.instances import interrupts, start
from lakestore.opensite import SiteContext
from lakestore.query import parameters as bound
from lakestore.query import plan
from lakestore.query.failures import FAILURES, may_be_damage, names_a_file, translated
from lakestore.query.mount import Mounts
from lakestore.query.parameters import Parameters
from lakestore.query.payloads import make_view, views_of
from lakestore.query.pin import FilesInUse, PinnedRows, TablePin, pin
from lakestore.query.reader import Reader
from lakestore.query.reads import Reading, reading
from lakestore.query.result import Result
from lakestore.query.scan import scanned
from lakestore.snapshot import ColdFile

if TYPE_CHECKING:
    import polars as pl

Answer = TypeVar("Answer")

_PLAIN = re.compile(r"[A-Za-z_]\w*")
_QUOTED = re.compile(r'"((?:[^"]|"")+)"')
_ATTEMPTS = 5
_LISTS = {"show", "information_schema", "duckdb_views", "duckdb_columns", "pg_catalog"}
"""Words of statements that list tables without naming them."""
_READINGS_MAX = 512
_READING_CHARS = 10_000


@dataclass(frozen=True)
class TierPlan:
    """What a query reads of one tier of one table."""

    table: str
    tier: str
    files: int
    files_kept: int
    bytes: int
    bytes_kept: int
    rows: int


@dataclass(frozen=True)
class Explanation:
    """Files and bytes that a query reads, and those that planning spared it, per tier."""

    tiers: tuple[TierPlan, ...]
    filters: Mapping[str, Sequence[Sequence[str]]] = field(repr=False)

    def to_arrow(self) -> pa.Table:
        """One row a table and tier."""
        return pa.Table.from_pylist([vars(tier) for tier in self.tiers])

    def __str__(self) -> str:
        lines = [f"{'table':16} {'tier':7} {'files read':>14} {'MB read':>18} {'rows held':>14}"]
        lines += [
            f"{t.table:16} {t.tier:7} {f'{t.files_kept:,} of {t.files:,}':>14} "
            f"{f'{t.bytes_kept / 1e6:,.1f} of {t.bytes / 1e6:,.1f}':>18} {t.rows:>14,}"
            for t in self.tiers
        ]
        for table, scans in self.filters.items():
            for filters in scans:
                lines.append(f"scan of {table}: {' AND '.join(filters) or 'no filter'}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Chosen:
    pins: Mapping[str, TablePin]
    kept: Mapping[str, tuple[ColdFile, ...]]
    filters: plan.Filters


class Queries:
    """Queries of one open lake."""

    def __init__(self, site: SiteContext) -> None:
        self._site = site
        self._engine = site.engine
        self._planner = plan.Planner()
        self._readings: dict[str, Reading] = {}  # statements seen before: checking takes 1 ms
        self.in_use = FilesInUse()
        self._mounts = Mounts(site, self.in_use)

    @interrupts()
    def sql(
        self,
        statement: str,
        parameters: Parameters,
        tables: Sequence[TableContext],
        frames: Mapping[str, Any],
    ) -> Result:
        """The answer of one statement that reads.

        Args:
            tables: the lake's tables; those the statement names are pinned.
            frames: the caller's own data, by name; what is pinned already stays so.

        Raises:
            InvalidInputError: not one statement, not one that reads, or wrong SQL.
            CorruptionError: a file of the lake is damaged or missing.
            StorageError: a file cannot be read, or memory was short.
        """
        statement = self._check(statement, frames)
        bound.check(parameters)
        named = _named(statement, tables)
        pinned = self._pinned(frames)

        def answer(parquet_only: bool) -> Result:
            with self._prepared(
                statement, parameters, named, frames, parquet_only=parquet_only
            ) as (cursor, _):
                return Result(_fetch(cursor, statement, parameters))

        return self._attempts(answer, named, tables, pinned)

    @interrupts()
    def ask(
        self, source: TableContext | PinnedRows, question: Callable[[Reader], Answer]
    ) -> Answer:
        """What a function makes of one snapshot of a table; it is asked again of another one
        when a file vanished meanwhile, unless it is pinned already.

        Raises: as `sql`.
        """
        table, pinned = _parts(source)

        def answer(parquet_only: bool) -> Answer:
            with self._engine.cursor() as cursor:
                one = self._pin(source)
                return question(Reader(cursor, one, self._planner, self._mounts, parquet_only))

        return self._attempts(answer, [table], [table], pinned)

    def _pin(self, source: TableContext | PinnedRows) -> TablePin:
        return source.pin if isinstance(source, PinnedRows) else pin(self._site, [source])[0]

    def _pinned(self, frames: Mapping[str, Any]) -> list[PinnedRows]:
        """Those of the frames that are pinned; raises `InvalidInputError` for another lake's."""
        pinned = [frame for frame in frames.values() if isinstance(frame, PinnedRows)]
        if any(one.pin.table.site is not self._site for one in pinned):
            raise InvalidInputError("a table's version is asked by the lake that it is of")
        return pinned

    def _attempts(
        self,
        answer: Callable[[bool], Answer],
        named: Sequence[TableContext],
        tables: Sequence[TableContext],
        pinned: Sequence[PinnedRows],
    ) -> Answer:
        """The first answer that comes without a failure that another attempt may mend.

        Args:
            answer: told whether it is to read Parquet alone.
            pinned: what it reads that is the same at every attempt.
        """
        try:
            return self._attempted(answer, named, tables, pinned)
        except LakestoreError as error:
            told = _told(error, pinned)
            if told is error:
                raise
            raise told from error

    def _attempted(
        self,
        answer: Callable[[bool], Answer],
        named: Sequence[TableContext],
        tables: Sequence[TableContext],
        pinned: Sequence[PinnedRows],
    ) -> Answer:
        parquet_only = False
        for attempt in range(_ATTEMPTS):
            try:
                return answer(parquet_only)
            except LakestoreError:
                raise
            except FAILURES as error:
                last = attempt == _ATTEMPTS - 1
                if "No files found" in str(error) and not last:
                    continue  # another process sealed and vacuumed a file: look again
                suspect = may_be_damage(error) or names_a_file(str(error), named)
                if suspect and not last and self._drop_damaged_copies(named, pinned):
                    continue  # it is fetched again
                if may_be_damage(error) and not parquet_only and not last:
                    parquet_only = True  # a segment's DuckDB file is expendable, its twin is not
                    self._engine.detach_idle()  # as if there were too many open files
                    continue
                raise translated(error, tables) from error
        raise AssertionError("unreachable")

    @interrupts()
    def explain(
        self,
        statement: str,
        parameters: Parameters,
        tables: Sequence[TableContext],
        frames: Mapping[str, Any],
    ) -> Explanation:
        """What `sql` would read; raises as it does."""
        statement = self._check(statement, frames)
        bound.check(parameters)
        named = _named(statement, tables)
        self._pinned(frames)
        try:
            with self._prepared(statement, parameters, named, frames) as (cursor, chosen):
                cursor.execute(f"EXPLAIN {statement}", parameters).fetchall()
                return Explanation(_tiers(chosen), chosen.filters)
        except LakestoreError:
            raise
        except FAILURES as error:
            raise translated(error, tables) from error

    @interrupts()
    def scan(self, source: TableContext | PinnedRows) -> "pl.LazyFrame":
        """The table as of now, on a cursor of its own; its files are held until it is gone.

        From Parquet alone: once rows were handed out, a DuckDB file that turns out to be damaged
        could not be left for its twin.
        """
        table, pinned = _parts(source)

        def told(error: Exception) -> Exception:
            return _told(translated(error, [table]), pinned)

        try:
            cursor = self._engine.cursor()
            one = self._pin(source)
            release = self._mounts.mount(cursor, {table.entry.name: one}, parquet_only=True)
            try:
                relation = cursor.sql(f"FROM {quoting.identifier(table.entry.name)}")
                frame = scanned(relation, told)
            except BaseException:
                release()
                raise
        except LakestoreError:
            raise
        except FAILURES as error:
            raise told(error) from error
        weakref.finalize(relation, release)
        return frame

    @interrupts()
    def connect(self, tables: Sequence[TableContext]) -> duckdb.DuckDBPyConnection:
        """A DuckDB of the caller's own, with views of the tables as of now, over Parquet.

        The files are not held: one that lives past the grace fails with "No files found".
        """
        con = start(autoinstall_known_extensions=False, temp_directory=str(spill.folder()))
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        give_access(con, self._site.storage)
        pins = pin(self._site, tables)
        for table in views_of(tables).values():
            with troubles(f"cannot make a view of payloads of {table.entry.name!r}"):
                make_view(con, next(one for one in pins if one.table is table), self._mounts.files)
        for one in pins:
            table = one.table
            buffered = f"lakestore_buffer_{table.entry.id}" if one.buffered.num_rows else None
            if buffered:
                con.register(buffered, one.buffered)
            view = self._mounts.parquet_view(one, buffered)
            with troubles(f"cannot make a view of {table.entry.name!r}"):
                con.execute(f"CREATE TEMP VIEW {quoting.identifier(table.entry.name)} AS {view}")
        return con

    @contextmanager
    def _prepared(
        self,
        statement: str,
        parameters: Parameters,
        tables: Sequence[TableContext],
        frames: Mapping[str, Any],
        *,
        parquet_only: bool = False,
    ) -> Iterator[tuple[duckdb.DuckDBPyConnection, "_Chosen"]]:
        """A cursor on which the statement can run: tables pinned, pruned and mounted."""
        cursor = self._engine.cursor()
        release = None
        try:
            fixed = {n: one.pin for n, one in frames.items() if isinstance(one, PinnedRows)}
            rows = {n: _registrable(frame) for n, frame in frames.items() if n not in fixed}
            for name, frame in rows.items():
                cursor.register(name, frame)
            others = [table for table in tables if table.entry.name not in fixed]
            pins = {one.table.entry.name: one for one in pin(self._site, others)} | fixed
            kept, filters = self._planner.choose(statement, parameters, pins, rows)
            chosen = {name: replace(one, cold=kept[name]) for name, one in pins.items()}
            views, names = views_of(tables), mentioned(statement)
            wanted = [table for name, table in views.items() if name in names]
            own = [one for name, one in pins.items() if name == one.table.entry.name]
            heavy = [one for one in own if one.table in wanted]
            release = self._mounts.mount(cursor, chosen, heavy, parquet_only=parquet_only)
            yield cursor, _Chosen(pins, kept, filters)
        finally:
            cursor.close()
            if release is not None:
                release()

    def _drop_damaged_copies(
        self, tables: Sequence[TableContext], pinned: Sequence[PinnedRows]
    ) -> bool:
        wanted = [table.wanted(file) for table in tables for file in table.state().cold]
        wanted += [one.pin.table.wanted(file) for one in pinned for file in one.pin.cold]
        return self._site.files.drop_damaged(wanted)

    def _check(self, statement: str, frames: Mapping[str, Any]) -> str:
        """The statement, when it is exactly one and it reads."""
        known = self._readings.get(statement)
        if known is None:
            with self._engine.cursor() as cursor:
                known = reading(cursor, statement)
            if len(self._readings) >= _READINGS_MAX:
                self._readings.clear()
            if len(statement) <= _READING_CHARS:
                self._readings[statement] = known
        for name in known.reserved - frames.keys():
            raise NotFoundError(f"{name!r} is lakestore's own: query the lake's tables")
        return known.text


def _parts(source: TableContext | PinnedRows) -> tuple[TableContext, Sequence[PinnedRows]]:
    """Which table is read, and what of it is pinned already."""
    if isinstance(source, PinnedRows):
        return source.pin.table, [source]
    return source, ()


def _told(error: Exception, pinned: Sequence[PinnedRows]) -> Exception:
    """What to say of a failure: that files were deleted of what is pinned, if so."""
    try:
        for one in pinned:
            one.check()
    except NotFoundError as deleted:
        return deleted
    except LakestoreError:  # the first one says more
        pass
    return error


def _fetch(cursor: duckdb.DuckDBPyConnection, statement: str, parameters: Parameters) -> pa.Table:
    relation = cursor.sql(statement, params=parameters)
    return relation.to_arrow_table()


def mentioned(statement: str) -> set[str]:
    """Every name that a statement may refer to, in lower case, and some that it does not."""
    quoted = (name.replace('""', '"') for name in _QUOTED.findall(statement))
    return {name.casefold() for name in (*quoted, *_PLAIN.findall(statement))}


def _named(statement: str, tables: Sequence[TableContext]) -> list[TableContext]:
    names = mentioned(statement)
    heavy = [table for name, table in views_of(tables).items() if name in names]
    return [t for t in tables if t.entry.name.casefold() in names or t in heavy or names & _LISTS]


def _tiers(chosen: _Chosen) -> tuple[TierPlan, ...]:
    tiers = []
    for name, one in chosen.pins.items():
        cold = chosen.kept[name]
        rows, size = one.buffered.num_rows, one.buffered.nbytes
        tiers.append(TierPlan(name, "buffer", 0, 0, size, size, rows))
        size = sum(s.info.bytes for s in one.segments)
        rows, count = sum(s.info.rows for s in one.segments), len(one.segments)
        tiers.append(TierPlan(name, "hot", count, count, size, size, rows))
        tiers.append(
            TierPlan(
                name,
                "cold",
                len(one.cold),
                len(cold),
                sum(f.info.bytes for f in one.cold),
                sum(f.info.bytes for f in cold),
                sum(f.info.rows for f in one.cold),
            )
        )
    return tuple(tiers)


def _registrable(frame: Any) -> Any:
    if hasattr(frame, "collect") and hasattr(frame, "collect_schema"):  # a Polars LazyFrame
        frame = frame.collect()
    if hasattr(frame, "__arrow_c_stream__") and not isinstance(frame, pa.Table):
        return pa.RecordBatchReader.from_stream(frame).read_all()
    return frame
