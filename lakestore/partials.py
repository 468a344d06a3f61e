"""Partials in memory: what answers a question without opening a file.

Those of a table's segments and those of its cold files are in one table of memory each, for each
rollup. Rows only ever come: a table of which much is not asked for any more is copied without that,
and dropped once no query reads it. So a query that was told which files it sees, sees those,
whatever is loaded meanwhile.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from lakestore import rollup
from lakestore.document import BUCKET, FILE, Rollup
from lakestore.engine import ROLLUPS, Engine
from lakestore.errors import LakestoreError
from lakestore.instances import LOST
from lakestore.partialfiles import DataFile, PartialFiles
from lakestore.snapshot import ColdFile, Segment

_serial = itertools.count(1)
_NARROW = 18
"""Digits of sums that DuckDB adds up in half the time; a sum of more has its table made anew."""
_STALE_LOADS = 64
_STALE_ROWS = 50_000


@dataclass(frozen=True)
class Loaded:
    """Partials of certain files, ready to be read until the `load` ends."""

    relation: str
    """What stands after FROM: a subquery of the partials of exactly these files."""
    missing: frozenset[str]
    """Names of files whose partials could not be had: their rows are not in it."""


@dataclass
class _Held:
    id: int
    rows: int
    bytes: int
    asked: int


@dataclass
class _Resident:
    """A table of partials in memory."""

    name: str
    started: int
    wide: bool
    files: dict[str, _Held] = field(default_factory=dict)
    users: int = 0

    @property
    def rows(self) -> int:
        return sum(held.rows for held in self.files.values())

    @property
    def bytes(self) -> int:
        return sum(held.bytes for held in self.files.values())

    def select(self, names: Sequence[str]) -> str:
        """The rows of some of its files; cheap when they are most of it."""
        ids = {self.files[name].id for name in names}
        others = sorted(held.id for held in self.files.values() if held.id not in ids)
        if len(others) <= len(ids):
            test = f"{FILE} < {len(self.files)}"
            test += f" AND {FILE} NOT IN ({', '.join(map(str, others))})" if others else ""
        else:
            test = f"{FILE} IN ({', '.join(map(str, sorted(ids)))})" if ids else "false"
        return f"SELECT * EXCLUDE ({FILE}) FROM {self.name} WHERE {test}"


class Partials:
    """The partials of one open table: in files, and of those that were asked for, in memory."""

    def __init__(self, files: PartialFiles, engine: Engine, bytes_max: int) -> None:
        """Nothing is loaded yet.

        Args:
            bytes_max: how much of a rollup is held of segments, and of cold files; what is beyond
                is `missing`.
        """
        self.files = files
        self._engine = engine
        self._bytes_max = bytes_max
        self._lock = threading.Lock()  # guards the three below, and what they hold
        self._residents: dict[tuple[str, bool], _Resident] = {}
        self._retired: list[_Resident] = []
        self._loads = 0

    @contextmanager
    def load(
        self, one: Rollup, segments: Sequence[Segment], cold: Sequence[ColdFile]
    ) -> Iterator[Loaded]:
        """The partials of these files, to be queried on a cursor of the engine within the `with`.

        Whoever holds it sees no other file's rows, and goes on seeing these.
        """
        used: list[_Resident] = []
        parts, missing = [], set[str]()
        try:
            for is_cold, files in ((True, cold), (False, segments)):
                if files or is_cold:
                    with self._lock:
                        resident, found = self._with(one, is_cold, files)
                        resident.users += 1
                        used.append(resident)
                        parts.append(resident.select(found))
                    missing |= {file.name for file in files} - set(found)
            yield Loaded(f"({' UNION ALL '.join(parts)})", frozenset(missing))
        finally:
            with self._lock:
                for resident in used:
                    resident.users -= 1
                self._drop_retired()

    def close(self) -> None:
        """Let the memory go; what is read at the moment, when it is read."""
        with self._lock:
            for key in list(self._residents):
                self._retire(key)
            self._drop_retired()

    def _with(
        self, one: Rollup, is_cold: bool, files: Sequence[DataFile]
    ) -> tuple[_Resident, list[str]]:
        """A resident that holds the files, and the names of those that it could take."""
        self._loads += 1
        try:
            return self._filled(one, is_cold, files)
        except LOST:
            return self._filled(one, is_cold, files)  # in the memory of the next instance

    def _filled(
        self, one: Rollup, is_cold: bool, files: Sequence[DataFile]
    ) -> tuple[_Resident, list[str]]:
        with self._engine.cursor() as cursor:
            key = (one.name, is_cold)
            resident = self._residents.get(key)
            if resident is None or resident.started != self._engine.started:
                resident = self._renewed(cursor, one, key, (), wide=False)
            for file in files:
                if file.name in resident.files:
                    resident.files[file.name].asked = self._loads
            with suppress(duckdb.OutOfMemoryException):  # then what there is has to do
                self._without_stale(cursor, one, key, resident)
                self._grow(cursor, one, key, files)
            resident = self._residents[key]
        return resident, [file.name for file in files if file.name in resident.files]

    def _without_stale(
        self, cursor: duckdb.DuckDBPyConnection, one: Rollup, key: tuple[str, bool], old: _Resident
    ) -> None:
        """Copy what was asked for of late, when the rest has become much."""
        kept = [n for n, held in old.files.items() if self._loads - held.asked < _STALE_LOADS]
        rows = sum(old.files[name].rows for name in kept)
        if old.rows - rows > max(rows, _STALE_ROWS):
            self._renewed(cursor, one, key, kept, wide=old.wide)

    def _grow(
        self,
        cursor: duckdb.DuckDBPyConnection,
        one: Rollup,
        key: tuple[str, bool],
        files: Sequence[DataFile],
    ) -> None:
        """Take in files, as far as there is room and their partials can be had."""
        resident = self._residents[key]
        new = [file for file in files if file.name not in resident.files]
        made: list[tuple[str, pa.Table]] = []
        for file, read in zip(new, self.files.read_all(one, new), strict=True):
            partial = read if read is not None else self.files.make(one, file)
            made += [(file.name, partial)] if partial is not None else []
        if resident.bytes + sum(partial.nbytes for _, partial in made) > self._bytes_max:
            asked = [n for n, held in resident.files.items() if held.asked == self._loads]
            resident = self._renewed(cursor, one, key, asked, wide=resident.wide)
        sizes = itertools.accumulate((p.nbytes for _, p in made), initial=resident.bytes)
        taken = [m for m, size in zip(made, [*sizes][1:], strict=True) if size <= self._bytes_max]
        if not taken:
            return
        rows = _numbered([partial for _, partial in taken], len(resident.files))
        if not resident.wide and (narrow := _narrowed(rows)) is None:
            resident = self._renewed(cursor, one, key, list(resident.files), wide=True)
        elif not resident.wide:
            rows = narrow
        cursor.register("lakestore_partials", rows)
        cursor.execute(f"INSERT INTO {resident.name} FROM lakestore_partials")
        for name, partial in taken:
            number = len(resident.files)
            resident.files[name] = _Held(number, partial.num_rows, partial.nbytes, self._loads)

    def _renewed(
        self,
        cursor: duckdb.DuckDBPyConnection,
        one: Rollup,
        key: tuple[str, bool],
        kept: Sequence[str],
        *,
        wide: bool,
    ) -> _Resident:
        """A resident in the place of the one there is, with the rows of some of its files."""
        old = self._residents.get(key)
        new = _Resident(f"{ROLLUPS}.main.partials_{next(_serial)}", self._engine.started, wide)
        empty = _numbered([rollup.arrow_schema(one, self.files.schema).empty_table()], 0)
        cursor.register("lakestore_empty", empty if wide else _narrowed(empty))
        cursor.execute(f"CREATE TABLE {new.name} AS FROM lakestore_empty")
        if old is not None:
            try:
                _copy(cursor, old, new, kept)
            except BaseException:
                self._retired.append(new)
                raise
            self._retire(key)
        self._residents[key] = new
        return new

    def _retire(self, key: tuple[str, bool]) -> None:
        self._retired.append(self._residents.pop(key))

    def _drop_retired(self) -> None:
        """Drop what no query reads any more; what an older instance held is gone already."""
        idle = [r for r in self._retired if not r.users]
        self._retired = [r for r in self._retired if r.users]
        for resident in idle:
            if resident.started == self._engine.started:
                with suppress(duckdb.Error, LakestoreError), self._engine.cursor() as cursor:
                    cursor.execute(f"DROP TABLE IF EXISTS {resident.name}")


def _copy(
    cursor: duckdb.DuckDBPyConnection, old: _Resident, new: _Resident, kept: Sequence[str]
) -> None:
    """Fill a new resident with the rows of some files of another."""
    if not kept:
        return
    ids = {old.files[name].id: i for i, name in enumerate(kept)}
    cursor.register("lakestore_ids", pa.table({"old": list(ids), "new": list(ids.values())}))
    cursor.execute(
        f"INSERT INTO {new.name} SELECT ids.new, p.* EXCLUDE ({FILE}) FROM {old.name} AS p "
        f"JOIN lakestore_ids AS ids ON p.{FILE} = ids.old ORDER BY ids.new, {BUCKET}"
    )
    for i, name in enumerate(kept):
        held = old.files[name]
        new.files[name] = _Held(i, held.rows, held.bytes, held.asked)


def _numbered(partials: Sequence[pa.Table], first: int) -> pa.Table:
    """All rows, each with the number of its partial."""
    numbers = [
        pa.repeat(pa.scalar(first + i, pa.int32()), partial.num_rows)
        for i, partial in enumerate(partials)
    ]
    return pa.concat_tables(partials).add_column(0, FILE, pa.chunked_array(numbers, pa.int32()))


def _narrowed(rows: pa.Table) -> pa.Table | None:
    """The rows with sums of few digits; None when some need more."""
    fields = []
    for item in rows.schema:
        is_sum = item.name.startswith("sum_") and pa.types.is_decimal(item.type)
        scale = item.type.scale if is_sum else 0
        fits = is_sum and 0 <= scale <= _NARROW
        fields.append(pa.field(item.name, pa.decimal128(_NARROW, scale)) if fits else item)
    try:
        return rows.cast(pa.schema(fields))
    except pa.ArrowInvalid:
        return None
