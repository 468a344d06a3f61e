"""The DuckDB instance of this process: one, shared by every open lake.

Owns the instance and the hot segments attached to it. Each query takes a cursor of its own,
because a second query on a connection silently cuts an open Arrow stream short (DuckDB 1.5.5).
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from lakestore import quoting, spill
from lakestore.errors import ClosedError, StorageError
from lakestore.httpfs import give_access, pretend
from lakestore.instances import QUIET, Instance, interrupts, start
from lakestore.settings import MIB
from lakestore.storage import Storage
from lakestore.storage.local import descriptors, refusal, require_file, storage_error

STORAGE_VERSION = "v1.2.0"
"""Files that DuckDB 1.4, 1.5 and 2.0 all read; 2.0's own default is refused by older shells."""

ROLLUPS = "lakestore_rollups"
"""A database of tables in memory, for partials; no statement of a caller reaches it."""
_IDLE_MAX = 64
_DUCKDB_2 = int(duckdb.__version__.split(".")[0]) >= 2
SORT_BYTES = 128 * MIB


@dataclass
class _Attached:
    alias: str
    users: int = 0
    doomed: bool = False


def buffered_source(name: str) -> str:
    """A registered Arrow table as SQL may read it.

    DuckDB 1.5 hands filters to pyarrow, which loses NaN (SQL's greatest number); an OFFSET keeps
    them back. 2.0 is right by itself.
    """
    return name if _DUCKDB_2 else f"(FROM {name} OFFSET 0)"


class Engine:
    """An in-memory DuckDB with attached segments, counted by the snapshots that use them."""

    def __init__(self, memory_bytes: int) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # guards the three below, and who starts an instance anew
        self._attached: dict[Path, _Attached] = {}  # least recently used first
        self._serial = 0
        self._memory_bytes = memory_bytes
        self._stores: dict[str, Storage] = {}
        self.started = 0
        """How many instances there were: what was in the memory of an older one is lost."""
        self._queries = Instance(self._start, self._lock)
        self._builder = Instance(_start_builder, self._lock)

    def _start(self) -> duckdb.DuckDBPyConnection:
        self._attached.clear()
        self.started += 1
        con = start(
            autoinstall_known_extensions=False,
            autoload_known_extensions=False,  # a caller's statement must load nothing
            temp_directory=str(spill.folder()),
        )
        # GLOBAL, or cursors would not see them; the zone, or days would follow the machine.
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        con.execute("SET GLOBAL python_enable_replacements = false")
        con.execute("SET GLOBAL parquet_metadata_cache = true")
        if not _DUCKDB_2:  # pyarrow cannot take the filters that 1.5 makes of joins, and raises
            con.execute("SET GLOBAL disabled_optimizers = 'join_filter_pushdown'")
        con.execute(f"SET GLOBAL memory_limit = '{self._memory_bytes}B'")
        con.execute(f"ATTACH ':memory:' AS {ROLLUPS}")
        for storage in self._stores.values():
            give_access(con, storage)
        return con

    def reads(self, storage: Storage) -> bool:
        """Have DuckDB read a store's objects by their URLs; False when it cannot."""
        with self._lock, self.cursor() as cursor:
            if not give_access(cursor, storage):
                return False
            self._stores[storage.root] = storage
            return True

    def limit_memory(self, memory_bytes: int) -> None:
        """Let DuckDB use so much memory; beyond it, it spills to the disk."""
        self._memory_bytes = memory_bytes
        with self.cursor() as cursor:
            cursor.execute(f"SET GLOBAL memory_limit = '{memory_bytes}B'")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the instance; to a new one, if an error has ended it.

        Raises:
            StorageError: no new one can be started.
        """
        if self._pid != os.getpid():
            raise ClosedError("DuckDB does not survive a fork: open the lake again in this process")
        return self._queries.cursor()

    def attach(self, path: Path) -> str:
        """The alias of a segment's DuckDB file, attached read-only; `release` when done.

        A file stays attached when nobody uses it, because attaching costs 0.5 ms, until `forget`
        or until 64 younger ones are idle too. All of them take a quarter of the files that the
        process may have open.

        Raises:
            StorageError: the file is missing, DuckDB cannot read it, or too many are in use.
        """
        with self._lock:
            known = self._attached.pop(path, None)
            if known is None:
                most = descriptors() // 4
                self.detach_idle(len(self._attached) + 1 - most)
                if len(self._attached) >= most:
                    raise StorageError(f"cannot attach {str(path)!r}: too many files are in use")
                self._serial += 1
                known = _Attached(f"segment_{self._serial}")
                try:
                    require_file(path)
                    self._run(f"ATTACH {quoting.literal(str(path))} AS {known.alias} (READ_ONLY)")
                except (duckdb.Error, OSError) as error:
                    raise StorageError(f"cannot attach {str(path)!r}: {error}") from error
            known.users += 1
            self._attached[path] = known  # last: the most recently used
            return known.alias

    def release(self, path: Path, alias: str) -> None:
        """Undo one `attach`."""
        with self._lock:
            known = self._attached.get(path)
            if known is None or known.alias != alias:  # of an instance that is no more
                return
            known.users -= 1
            idle = sum(not a.users for a in self._attached.values())
            self.detach_idle(idle - _IDLE_MAX)
            if known.doomed and not known.users and path in self._attached:
                self._detach(path)

    def detach_idle(self, count: int | None = None) -> None:
        """Detach so many files that nobody uses, those not used for longest; by default all."""
        with self._lock:
            idle = [path for path, attached in self._attached.items() if not attached.users]
            for path in idle if count is None else idle[: max(0, count)]:
                self._detach(path)

    def forget(self, path: Path) -> None:
        """Detach a file that is deleted, once nobody uses it; its bytes are freed then."""
        with self._lock:
            known = self._attached.get(path)
            if known is not None:
                known.doomed = True
                if not known.users:
                    self._detach(path)

    def _detach(self, path: Path) -> None:
        known = self._attached.pop(path, None)
        if known is not None:
            self._run(f"DETACH DATABASE IF EXISTS {known.alias}")

    def _run(self, statement: str) -> None:
        cursor = self.cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()

    def aggregated(self, query: str, rows: pa.Table | None = None) -> pa.Table:
        """The answer of a query, by the one thread that builds files.

        Args:
            rows: what the query calls `rows`.

        Raises:
            duckdb.Error: such as too little memory.
        """
        with self._builder.cursor() as cursor:
            if rows is not None:
                cursor.register("rows", rows)
            return cursor.sql(query).to_arrow_table()

    def build(self, path: Path, fill: Callable[[duckdb.DuckDBPyConnection, str], None]) -> None:
        """Write a new DuckDB file: `fill(cursor, alias)` creates what it holds.

        The file is complete and closed when this returns; it is not fsynced.
        """
        with self._lock:
            self._serial += 1
            alias = f"building_{self._serial}"
        _build(self._builder.cursor(), path, alias, fill)

    def build_over(
        self,
        files: Mapping[str, bytes],
        path: Path,
        fill: Callable[[duckdb.DuckDBPyConnection, str], None],
    ) -> None:
        """As `build`, for views over a store's files, which are not asked for.

        Args:
            files: the first file of each view's list, of no rows, by its URL.
        """
        with _start_builder() as con:
            pretend(con, files)
            _build(con.cursor(), path, "building_views", fill)


def _build(
    cursor: duckdb.DuckDBPyConnection,
    path: Path,
    alias: str,
    fill: Callable[[duckdb.DuckDBPyConnection, str], None],
) -> None:
    try:
        cursor.execute(
            f"ATTACH {quoting.literal(str(path))} AS {alias} "
            f"(STORAGE_VERSION '{STORAGE_VERSION}', BLOCK_SIZE 16384)"
        )
        try:
            fill(cursor, alias)
        finally:
            cursor.execute(f"DETACH {alias}")
    except BaseException:
        # A full disk leaves the log of a file that was not finished, and it takes up room.
        path.with_name(f"{path.name}.wal").unlink(missing_ok=True)
        raise
    finally:
        cursor.close()


@contextmanager
def sorter(folder: Path, memory_bytes: int = SORT_BYTES) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own for one big sort, whose memory is given back at the end.

    Args:
        folder: for what does not fit.
        memory_bytes: its limit. Rows of many kilobytes need more than others: DuckDB holds
            2,048 of them at once, and cannot spill those.
    """
    con = start(
        memory_limit=f"{memory_bytes}B",
        preserve_insertion_order=False,  # the statement says ORDER BY
        threads=1,  # each needs memory of its own, and appends want the other cores
        temp_directory=str(folder),
        autoinstall_known_extensions=False,
        python_enable_replacements=False,
    )
    with con:
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        con.execute(QUIET)
        yield con


@contextmanager
def troubles(what: str) -> Iterator[None]:
    """Raise a `StorageError` in the place of an error of the disk or of DuckDB."""
    try:
        with interrupts():
            yield
    except OSError as error:
        raise storage_error(what, error) from error
    except duckdb.Error as error:
        raise duckdb_error(what, error) from error


def duckdb_error(what: str, error: Exception) -> StorageError:
    """A `StorageError` that says what failed, and what helps when that is known."""
    if isinstance(error, duckdb.OutOfMemoryException):
        return StorageError(f"{what}: it needs more memory than memory_bytes allows: {error}")
    return refusal(what, error) or StorageError(f"{what}: {str(error).strip()}")


def _start_builder() -> duckdb.DuckDBPyConnection:
    """Files are built in a DuckDB of one thread: beside appends and queries, not before them."""
    folder = str(spill.folder())
    con = start(
        threads=1,
        memory_limit=f"{SORT_BYTES}B",
        temp_directory=folder,
        autoinstall_known_extensions=False,
    )
    con.execute("SET GLOBAL TimeZone = 'UTC'")
    return con


_engine: Engine | None = None
_engine_lock = threading.Lock()  # guards _engine


def _in_child() -> None:
    """A thread of the parent may have held the lock, and is not there to let it go."""
    global _engine_lock
    _engine_lock = threading.Lock()


os.register_at_fork(after_in_child=_in_child)


def engine(memory_bytes: int) -> Engine:
    """This process's engine; a forked child gets one of its own."""
    global _engine
    with _engine_lock:
        if _engine is None or _engine._pid != os.getpid():
            _engine = Engine(memory_bytes)
        else:
            _engine.limit_memory(memory_bytes)
        return _engine
