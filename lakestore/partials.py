"""Partials in memory: what answers a question without opening a file.

Those of a table's segments and those of its cold files are in one resident each, for each rollup.
Rows only ever come: a resident of which much is not asked for any more is copied without that, and
dropped once no query reads it. So a query that was told which files it sees, sees those, whatever
is loaded meanwhile.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from lakestore.document import Rollup
from lakestore.engine import Engine
from lakestore.errors import LakestoreError
from lakestore.instances import LOST
from lakestore.partialfiles import DataFile, PartialFiles
from lakestore.resident import Resident, Source, TooWideError, in_files
from lakestore.snapshot import ColdFile, Segment

_MANY_FILES = 16
"""To load so many partials takes longer than to read what one question needs of them."""
_STALE_LOADS = 64
_STALE_ROWS = 50_000
_NO_ROOM = (duckdb.OutOfMemoryException, duckdb.OutOfRangeException, duckdb.ConversionException)
"""Too little memory, or sums by day of more digits than there are."""


@dataclass(frozen=True)
class Loaded:
    """Partials of certain files, ready to be read until the `load` ends."""

    sources: tuple[tuple[Source, Source | None], ...]
    """Together, exactly those of these files: partials, and their sums by day if there are any."""
    missing: frozenset[str]
    """Names of files whose partials could not be had: their rows are in none."""


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
        self._lock = threading.Lock()  # guards the five below, and what they hold
        self._residents: dict[tuple[str, bool], Resident] = {}
        self._retired: list[Resident] = []
        self._asked: set[tuple[str, bool]] = set()
        self._loads = 0
        self._closed = False

    @contextmanager
    def load(
        self, one: Rollup, segments: Sequence[Segment], cold: Sequence[ColdFile]
    ) -> Iterator[Loaded]:
        """The partials of these files, to be queried on a cursor of the engine within the `with`.

        Whoever holds it sees no other file's rows, and goes on seeing these.
        """
        used: list[Resident] = []
        sources, missing = list[tuple[Source, Source | None]](), set[str]()
        try:
            for is_cold, files in ((True, cold), (False, segments)):
                if (source := self._in_files(one, is_cold, files)) is not None:
                    sources.append((source, None))
                elif files or is_cold:
                    with self._lock:
                        resident, found = self._with(one, is_cold, files)
                        resident.users += 1
                        used.append(resident)
                        sources.append(resident.sources(found))
                    missing |= {file.name for file in files} - set(found)
            yield Loaded(tuple(sources), frozenset(missing))
        finally:
            with self._lock:
                for resident in used:
                    resident.users -= 1
                if self._closed:  # a dropped table may be asked still, and nobody closes again
                    self._retire_all()
                self._drop_retired()

    def close(self) -> None:
        """Let the memory go; what is read at the moment, when it is read."""
        with self._lock:
            self._closed = True
            self._retire_all()
            self._drop_retired()

    def _in_files(self, one: Rollup, is_cold: bool, files: Sequence[DataFile]) -> Source | None:
        """The partials as they lie in files: for the first question, which may be the only one.

        None for the next, and where they are few, or some would have to be fetched or made.
        """
        with self._lock:
            first = (one.name, is_cold) not in self._asked
            self._asked.add((one.name, is_cold))
        if not first or len(files) < _MANY_FILES:
            return None
        paths = [self.files.intact(one, file) for file in files]
        whole = [str(path) for path in paths if path is not None]
        return in_files(one, whole) if len(whole) == len(files) else None

    def _with(
        self, one: Rollup, is_cold: bool, files: Sequence[DataFile]
    ) -> tuple[Resident, list[str]]:
        """A resident that holds the files, and the names of those that it could take."""
        self._loads += 1
        try:
            return self._filled(one, is_cold, files)
        except LOST:
            return self._filled(one, is_cold, files)  # in the memory of the next instance

    def _filled(
        self, one: Rollup, is_cold: bool, files: Sequence[DataFile]
    ) -> tuple[Resident, list[str]]:
        with self._engine.cursor() as cursor:
            key = (one.name, is_cold)
            resident = self._residents.get(key)
            if resident is None or resident.started != self._engine.started:
                resident = self._renewed(cursor, one, key, (), wide=False)
            for file in files:
                if file.name in resident.files:
                    resident.files[file.name].asked = self._loads
            with suppress(*_NO_ROOM):  # then what there is has to do
                self._without_stale(cursor, one, key, resident)
                self._grow(cursor, one, key, files)
            resident = self._residents[key]
        return resident, [file.name for file in files if file.name in resident.files]

    def _without_stale(
        self, cursor: duckdb.DuckDBPyConnection, one: Rollup, key: tuple[str, bool], old: Resident
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
        try:
            resident.add(cursor, taken, self._loads)
        except TooWideError:
            resident = self._renewed(cursor, one, key, list(resident.files), wide=True)
            resident.add(cursor, taken, self._loads)
        except _NO_ROOM:
            raise
        except BaseException:  # such as an interrupt: rows may be in it that it does not know of
            self._retire(key)
            raise

    def _renewed(
        self,
        cursor: duckdb.DuckDBPyConnection,
        one: Rollup,
        key: tuple[str, bool],
        kept: Sequence[str],
        *,
        wide: bool,
    ) -> Resident:
        """A resident in the place of the one there is, with the rows of some of its files."""
        old = self._residents.get(key)
        new = Resident.create(cursor, one, self.files.schema, self._engine.started, wide=wide)
        if old is not None:
            try:
                if kept:
                    new.copy(cursor, old, kept)
            except BaseException:
                self._retired.append(new)
                raise
            self._retire(key)
        self._residents[key] = new
        return new

    def _retire(self, key: tuple[str, bool]) -> None:
        self._retired.append(self._residents.pop(key))

    def _retire_all(self) -> None:
        for key in list(self._residents):
            self._retire(key)

    def _drop_retired(self) -> None:
        """Drop what no query reads any more; what an older instance held is gone already."""
        idle = [r for r in self._retired if not r.users]
        self._retired = [r for r in self._retired if r.users]
        for resident in idle:
            if resident.started == self._engine.started:
                with suppress(duckdb.Error, LakestoreError), self._engine.cursor() as cursor:
                    resident.drop(cursor)
