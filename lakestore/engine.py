"""The DuckDB instance of this process: one, shared by every open lake.

Owns the instance and the hot segments attached to it. Each query takes a cursor of its own,
because a second query on a connection silently cuts an open Arrow stream short (DuckDB 1.5.5).
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from lakestore import quoting
from lakestore.errors import ClosedError, StorageError
from lakestore.forks import kept_in_children
from lakestore.settings import MIB

STORAGE_VERSION = "v1.2.0"
"""Files that DuckDB 1.4, 1.5 and 2.0 all read; 2.0's own default is refused by older shells."""


_IDLE_MAX = 64
_QUIET = "SET enable_progress_bar = false"  # it cannot be set for all connections at once
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
        self._lock = threading.Lock()  # guards _attached
        self._attached: dict[Path, _Attached] = {}  # least recently used first
        self._serial = 0
        # Left alone, an in-memory DuckDB spills into the caller's working directory.
        spill = Path(tempfile.gettempdir()) / f"lakestore-{self._pid}"
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,  # a caller's statement must load nothing
            "temp_directory": str(spill),
        }
        self._instance = kept_in_children(duckdb.connect(":memory:", config=config))
        # GLOBAL, or cursors would not see them; the zone, or days would follow the machine.
        self._instance.execute("SET GLOBAL TimeZone = 'UTC'")
        self._instance.execute("SET GLOBAL python_enable_replacements = false")
        self._instance.execute("SET GLOBAL parquet_metadata_cache = true")
        if not _DUCKDB_2:  # pyarrow cannot take the filters that 1.5 makes of joins, and raises
            self._instance.execute("SET GLOBAL disabled_optimizers = 'join_filter_pushdown'")
        self.limit_memory(memory_bytes)
        # Files are built in a DuckDB of one thread: beside appends and queries, not before them.
        config = {"threads": 1, "memory_limit": f"{SORT_BYTES}B"}
        self._builder = kept_in_children(duckdb.connect(":memory:", config=config))
        self._builder.execute("SET GLOBAL TimeZone = 'UTC'")

    def limit_memory(self, memory_bytes: int) -> None:
        """Let DuckDB use so much memory; beyond it, it spills to the disk."""
        self._instance.execute(f"SET GLOBAL memory_limit = '{memory_bytes}B'")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the instance."""
        if self._pid != os.getpid():
            raise ClosedError("DuckDB does not survive a fork: open the lake again in this process")
        cursor = self._instance.cursor()
        cursor.execute(_QUIET)
        return cursor

    def attach(self, path: Path) -> str:
        """The alias of a segment's DuckDB file, attached read-only; `release` when done.

        A file stays attached when nobody uses it, because attaching costs 0.5 ms, until `forget`
        or until 64 younger ones are idle too.

        Raises:
            StorageError: the file is missing or DuckDB cannot read it.
        """
        with self._lock:
            known = self._attached.pop(path, None)
            if known is None:
                self._serial += 1
                known = _Attached(f"segment_{self._serial}")
                try:
                    self._run(f"ATTACH {quoting.literal(str(path))} AS {known.alias} (READ_ONLY)")
                except duckdb.Error as error:
                    raise StorageError(f"cannot attach {str(path)!r}: {error}") from error
            known.users += 1
            self._attached[path] = known  # last: the most recently used
            return known.alias

    def release(self, path: Path) -> None:
        """Undo one `attach`."""
        with self._lock:
            known = self._attached[path]
            known.users -= 1
            idle = [p for p, a in self._attached.items() if not a.users]
            for old in idle[: max(0, len(idle) - _IDLE_MAX)]:
                self._detach(old)
            if known.doomed and not known.users and path in self._attached:
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
        self._run(f"DETACH {self._attached.pop(path).alias}")

    def _run(self, statement: str) -> None:
        cursor = self.cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()

    def build(self, path: Path, fill: Callable[[duckdb.DuckDBPyConnection, str], None]) -> None:
        """Write a new DuckDB file: `fill(cursor, alias)` creates what it holds.

        The file is complete and closed when this returns; it is not fsynced.
        """
        with self._lock:
            self._serial += 1
            alias = f"building_{self._serial}"
        cursor = self._builder.cursor()
        cursor.execute(_QUIET)
        try:
            cursor.execute(
                f"ATTACH {quoting.literal(str(path))} AS {alias} "
                f"(STORAGE_VERSION '{STORAGE_VERSION}', BLOCK_SIZE 16384)"
            )
            try:
                fill(cursor, alias)
            finally:
                cursor.execute(f"DETACH {alias}")
        finally:
            cursor.close()


@contextmanager
def sorter(spill: Path, memory_bytes: int = SORT_BYTES) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own for one big sort, whose memory is given back at the end.

    Args:
        spill: a folder for what does not fit.
        memory_bytes: its limit. Rows of many kilobytes need more than others: DuckDB holds
            2,048 of them at once, and cannot spill those.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_bytes}B",
        "preserve_insertion_order": False,  # the statement says ORDER BY
        "threads": 1,  # each needs memory of its own, and appends want the other cores
        "temp_directory": str(spill),
        "autoinstall_known_extensions": False,
        "python_enable_replacements": False,
    }
    with duckdb.connect(":memory:", config=config) as con:
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        con.execute(_QUIET)
        yield con


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
