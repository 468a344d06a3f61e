"""Resident: partials of one rollup in memory, made for adding up.

DuckDB groups by small integers four times as fast as by texts or times. So texts are numbers of a
dictionary, and a bucket is a number of widths since 1970; a test of a text is made of its values
in the dictionary. Beside the partials are their sums by day: what is asked of whole days does not
read their hours.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakestore import quoting, rollup
from lakestore.clock import micros
from lakestore.document import BUCKET, DAY_US, FILE, Rollup
from lakestore.engine import ROLLUPS
from lakestore.schema import TableSchema

_CODE = "lakestore_code_"
"""Before the name of a column of texts, what the column of their numbers is called."""
_serial = itertools.count(1)
_NARROW = 18
"""Digits of sums that DuckDB adds up in half the time; a sum of more has its table made anew."""


class TooWideError(ValueError):
    """A sum has more digits than the resident holds."""


@dataclass(frozen=True)
class Source:
    """Partials of certain files, in memory."""

    rows: str
    """A subquery of them, with buckets and texts as numbers."""
    every_us: int
    """Width of the buckets."""
    dictionaries: Mapping[str, str]
    """By column of texts: the table that has their numbers and the column."""
    prefix: str = _CODE

    def key(self, column: str) -> str:
        """What stands for a column in `rows`, as an SQL identifier."""
        return quoting.identifier(self.prefix + column if column in self.dictionaries else column)

    def time(self, number: str) -> str:
        """The start of a bucket, from its number: SQL of a TIMESTAMPTZ."""
        return f"make_timestamptz({number} * {self.every_us})"

    def passing(self, column: str, test: str) -> str:
        """A test of a column as a test of `rows`."""
        if column not in self.dictionaries:
            return test
        key, texts = self.key(column), self.dictionaries[column]
        return f"{key} IN (SELECT {key} FROM {texts} WHERE {test})"

    def within(self, start: datetime | None, end: datetime | None) -> str:
        """A test of the bucket: it begins at or after `start`, which is one's, and before `end`."""
        moments = ((">=", start), ("<", end))
        tests = [f"{BUCKET} {sign} {micros(m) // self.every_us}" for sign, m in moments if m]
        return " AND ".join(tests) or "true"

    def with_texts(self, columns: Iterable[str]) -> str:
        """`rows` that also have these columns where they are numbers, which is slower to read."""
        texts = sorted(self.dictionaries.keys() & set(columns))
        if not texts:
            return self.rows
        joins = "".join(
            f" JOIN {self.dictionaries[name]} AS t{i} ON t{i}.{self.key(name)} = "
            f"coded.{self.key(name)}"
            for i, name in enumerate(texts)
        )
        chosen = "".join(f", t{i}.{quoting.identifier(name)}" for i, name in enumerate(texts))
        return f"(SELECT coded.*{chosen} FROM {self.rows} AS coded{joins})"


def in_files(one: Rollup, paths: Sequence[str]) -> Source:
    """Partials that are not in memory: of these files."""
    number = f"CAST(epoch_us({BUCKET}) // {one.every_us} AS BIGINT) AS {BUCKET}"
    files = f"read_parquet({quoting.literals(paths)}, hive_partitioning = false)"
    return Source(f"(SELECT * REPLACE ({number}) FROM {files})", one.every_us, {})


@dataclass
class Held:
    """A file whose partial a resident holds."""

    id: int
    rows: int
    bytes: int
    asked: int


@dataclass
class Resident:
    """Tables of partials in memory, which only grow."""

    name: str
    rollup: Rollup
    schema: TableSchema
    started: int
    """The DuckDB instance, by number, in whose memory it is."""
    wide: bool
    files: dict[str, Held] = field(default_factory=dict)
    users: int = 0
    _codes: dict[str, dict[Any, int]] = field(default_factory=dict)
    """By column of texts: the number of each that its dictionary has."""

    @classmethod
    def create(
        cls,
        cursor: duckdb.DuckDBPyConnection,
        one: Rollup,
        schema: TableSchema,
        started: int,
        *,
        wide: bool,
    ) -> Self:
        """An empty one."""
        new = cls(f"{ROLLUPS}.main.partials_{next(_serial)}", one, schema, started, wide)
        types = rollup.arrow_schema(one, schema)
        new._codes = {name: {} for name in one.by if pa.types.is_string(types.field(name).type)}
        with _transaction(cursor):
            for name, table in new._dictionaries.items():
                number, text = map(quoting.identifier, (new._number(name), name))
                cursor.execute(f"CREATE TABLE {table} ({number} INTEGER, {text} VARCHAR)")
            rows = _numbered([types.empty_table()], 0)
            for table, made in new._levels(cursor, new._coded(rows, {})).items():
                cursor.register("lakestore_empty", made)
                cursor.execute(f"CREATE TABLE {table} AS FROM lakestore_empty")
        return new

    @property
    def rows(self) -> int:
        """How many rows of partials it holds."""
        return sum(held.rows for held in self.files.values())

    @property
    def bytes(self) -> int:
        """How large they are in Arrow."""
        return sum(held.bytes for held in self.files.values())

    def sources(self, names: Sequence[str]) -> tuple[Source, Source | None]:
        """The partials of some of its files; and those of days, unless its buckets are days."""
        rows = f"(SELECT * EXCLUDE ({FILE}) FROM {{}} WHERE {self._among(names)})"
        days = None
        if self._days:
            days = Source(rows.format(self._days), DAY_US, self._dictionaries, self._prefix)
        every = self.rollup.every_us
        return Source(rows.format(self.name), every, self._dictionaries, self._prefix), days

    def add(
        self,
        cursor: duckdb.DuckDBPyConnection,
        made: Sequence[tuple[str, pa.Table]],
        asked: int,
    ) -> None:
        """Take in the partials of files; all of them or, when it raises, none.

        Raises:
            TooWideError: a sum has too many digits.
        """
        rows = _numbered([partial for _, partial in made], len(self.files))
        fresh = {name: self._unknown(name, rows.column(name)) for name in self._codes}
        coded = self._coded(rows, fresh)
        levels = self._levels(cursor, coded)
        with _transaction(cursor):
            for name, codes in fresh.items():
                if codes:
                    numbers = pa.array(codes.values(), pa.int32())
                    texts = {self._number(name): numbers, name: [*codes]}
                    cursor.register("lakestore_fresh", pa.table(texts))
                    cursor.execute(f"INSERT INTO {self._dictionaries[name]} FROM lakestore_fresh")
            for table, part in levels.items():
                cursor.register("lakestore_partials", part)
                cursor.execute(f"INSERT INTO {table} FROM lakestore_partials")
        for name, codes in fresh.items():
            self._codes[name] |= codes
        for file, partial in made:
            number = len(self.files)
            self.files[file] = Held(number, partial.num_rows, partial.nbytes, asked)

    def copy(self, cursor: duckdb.DuckDBPyConnection, old: Self, kept: Sequence[str]) -> None:
        """Take over some files of another, into an empty one."""
        ids = {old.files[name].id: i for i, name in enumerate(kept)}
        cursor.register("lakestore_ids", pa.table({"old": list(ids), "new": list(ids.values())}))
        with _transaction(cursor):
            for source, target in ((old.name, self.name), (old._days, self._days)):
                if source:
                    cursor.execute(
                        f"INSERT INTO {target} SELECT ids.new, p.* EXCLUDE ({FILE}) "
                        f"FROM {source} AS p JOIN lakestore_ids AS ids ON p.{FILE} = ids.old "
                        f"ORDER BY ids.new, {BUCKET}"
                    )
            for name, table in self._dictionaries.items():
                number = quoting.identifier(self._number(name))
                cursor.execute(
                    f"INSERT INTO {table} FROM {old._dictionaries[name]} "
                    f"WHERE {number} IN (SELECT {number} FROM {self.name})"
                )
        for name, table in self._dictionaries.items():
            texts = cursor.execute(f"FROM {table}").fetchall()
            self._codes[name] = {text: code for code, text in texts}
        for i, name in enumerate(kept):
            held = old.files[name]
            self.files[name] = Held(i, held.rows, held.bytes, held.asked)

    def drop(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Let the memory go."""
        for table in (self.name, self._days, *self._dictionaries.values()):
            if table:
                cursor.execute(f"DROP TABLE IF EXISTS {table}")

    @property
    def _days(self) -> str:
        """The table of days; empty where the buckets are days themselves."""
        return f"{self.name}_days" if self.rollup.every_us < DAY_US else ""

    @property
    def _prefix(self) -> str:
        """What no key begins with: before the name of a column of texts, it is that of no other."""
        prefix = _CODE
        while any(name.casefold().startswith(prefix) for name in self.rollup.by):
            prefix += "_"
        return prefix

    def _number(self, name: str) -> str:
        """What a column of numbers is called, of the column of texts."""
        return self._prefix + name

    @property
    def _dictionaries(self) -> dict[str, str]:
        return {name: f"{self.name}_texts_{i}" for i, name in enumerate(self._codes)}

    def _among(self, names: Sequence[str]) -> str:
        """A test of the file; cheap when they are most of what there is."""
        ids = {self.files[name].id for name in names}
        others = sorted(held.id for held in self.files.values() if held.id not in ids)
        if len(others) > len(ids):
            return f"{FILE} IN ({', '.join(map(str, sorted(ids)))})" if ids else "false"
        test = f"{FILE} < {len(self.files)}"
        return test + (f" AND {FILE} NOT IN ({', '.join(map(str, others))})" if others else "")

    def _unknown(self, name: str, texts: pa.ChunkedArray) -> dict[Any, int]:
        """The numbers that texts get which the dictionary lacks."""
        known = self._codes[name]
        fresh = [text for text in pc.unique(texts).to_pylist() if text not in known]
        first = max(known.values(), default=-1) + 1
        return {text: first + i for i, text in enumerate(fresh)}

    def _coded(self, rows: pa.Table, fresh: Mapping[str, Mapping[Any, int]]) -> pa.Table:
        """Partials as they are held, but for the digits of sums."""
        index = rows.schema.get_field_index(BUCKET)
        moments = rows.column(index).cast(pa.int64())
        rows = rows.set_column(index, BUCKET, pc.divide(moments, self.rollup.every_us))
        for name, known in self._codes.items():
            index = rows.schema.get_field_index(name)
            codes = _encoded(rows.column(index), {**known, **fresh.get(name, {})})
            rows = rows.set_column(index, self._number(name), codes)
        return rows

    def _levels(self, cursor: duckdb.DuckDBPyConnection, coded: pa.Table) -> dict[str, pa.Table]:
        """What goes into which table."""
        levels = {self.name: coded}
        if self._days:
            cursor.register("lakestore_coded", coded)
            levels[self._days] = cursor.sql(self._by_day()).to_arrow_table()
        return {table: rows if self.wide else _narrowed(rows) for table, rows in levels.items()}

    def _by_day(self) -> str:
        """A SELECT of the coded partials' sums by day, without histograms."""
        one = self.rollup
        day = f"CAST(floor({BUCKET} / {DAY_US // one.every_us}) AS BIGINT)"
        keys = [quoting.identifier(self._number(c) if c in self._codes else c) for c in one.by]
        columns = [FILE, f"{day} AS {BUCKET}", *keys]
        group = ", ".join(str(i + 1) for i in range(len(columns)))
        greatest = {f"max_{name}" for name in one.max}
        for item in rollup.arrow_schema(one, self.schema):
            name = quoting.identifier(item.name)
            if item.name in greatest:
                columns.append(f"max({name}) AS {name}")
            elif pa.types.is_decimal(item.type) and item.name not in one.by:
                columns.append(f"CAST(sum({name}) AS DECIMAL(38, {item.type.scale})) AS {name}")
            elif item.name not in (BUCKET, *one.by) and not pa.types.is_list(item.type):
                columns.append(f"CAST(sum({name}) AS BIGINT) AS {name}")
        return f"SELECT {', '.join(columns)} FROM lakestore_coded GROUP BY {group} ORDER BY {group}"


@contextmanager
def _transaction(cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    cursor.execute("BEGIN TRANSACTION")
    try:
        yield
        cursor.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # an instance that is lost has nothing to take back
            cursor.execute("ROLLBACK")
        raise


def _numbered(partials: Sequence[pa.Table], first: int) -> pa.Table:
    """All rows, each with the number of its partial; in one piece, for 10,000 take 1 s more."""
    numbers = np.arange(first, first + len(partials), dtype=np.int32)
    column = pa.array(numbers.repeat([partial.num_rows for partial in partials]))
    return pa.concat_tables(partials).combine_chunks().add_column(0, FILE, column)


def _encoded(texts: pa.ChunkedArray, codes: Mapping[Any, int]) -> pa.ChunkedArray:
    """Texts as their numbers."""
    found = pc.dictionary_encode(texts.combine_chunks(), null_encoding="encode")
    numbers = pa.array([codes[text] for text in found.dictionary.to_pylist()], pa.int32())
    return pa.chunked_array([numbers.take(found.indices)], pa.int32())


def _narrowed(rows: pa.Table) -> pa.Table:
    """The rows with sums of few digits; raises `TooWideError` when some need more."""
    fields = []
    for item in rows.schema:
        is_sum = item.name.startswith("sum_") and pa.types.is_decimal(item.type)
        scale = item.type.scale if is_sum else 0
        fits = is_sum and 0 <= scale <= _NARROW
        fields.append(pa.field(item.name, pa.decimal128(_NARROW, scale)) if fits else item)
    try:
        return rows.cast(pa.schema(fields))
    except pa.ArrowInvalid as error:
        raise TooWideError(f"a sum of more than {_NARROW} digits") from error
