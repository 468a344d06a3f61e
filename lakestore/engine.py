"""The DuckDB instance of this process: one, shared by every open lake.

Owns the instance and the hot segments attached to it. Each query takes a cursor of its own,
because a second query on a connection silently cuts an open Arrow stream short (DuckDB 1.5.5).
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb

from lakestore import quoting
from lakestore.errors import ClosedError, StorageError

STORAGE_VERSION = "v1.2.0"
"""Files that DuckDB 1.4, 1.5 and 2.0 all read; 2.0's own default is refused by older shells."""


class Engine:
    """An in-memory DuckDB with attached segments, counted by the snapshots that use them."""

    def __init__(self, memory_bytes: int) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards _attached
        self._attached: dict[Path, tuple[str, int]] = {}  # path → (alias, users)
        self._serial = 0
        self._instance = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False})
        # GLOBAL, or cursors would not see them; the zone, or days would follow the machine.
        self._instance.execute("SET GLOBAL TimeZone = 'UTC'")
        self._instance.execute("SET GLOBAL python_enable_replacements = false")
        self._instance.execute("SET GLOBAL parquet_metadata_cache = true")
        self.limit_memory(memory_bytes)

    def limit_memory(self, memory_bytes: int) -> None:
        """Let DuckDB use so much memory; beyond it, it spills to the disk."""
        self._instance.execute(f"SET GLOBAL memory_limit = '{memory_bytes}B'")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the instance."""
        if self._pid != os.getpid():
            raise ClosedError("DuckDB does not survive a fork: open the lake again in this process")
        return self._instance.cursor()

    def attach(self, path: Path) -> str:
        """Attach a segment's DuckDB file, read-only; returns its alias.

        Raises:
            StorageError: the file is missing or DuckDB cannot read it.
        """
        with self._lock:
            alias, users = self._attached.get(path, ("", 0))
            if not users:
                self._serial += 1
                alias = f"segment_{self._serial}"
                try:
                    self.cursor().execute(
                        f"ATTACH {quoting.literal(str(path))} AS {alias} (READ_ONLY)"
                    )
                except duckdb.Error as error:
                    raise StorageError(f"cannot attach {str(path)!r}: {error}") from error
            self._attached[path] = (alias, users + 1)
            return alias

    def detach(self, path: Path) -> None:
        """Undo one `attach`; the file is let go with the last."""
        with self._lock:
            alias, users = self._attached[path]
            if users > 1:
                self._attached[path] = (alias, users - 1)
                return
            del self._attached[path]
            self.cursor().execute(f"DETACH {alias}")

    def build(self, path: Path, fill: Callable[[duckdb.DuckDBPyConnection, str], None]) -> None:
        """Write a new DuckDB file: `fill(cursor, alias)` creates what it holds.

        The file is complete and closed when this returns; it is not fsynced.
        """
        with self._lock:
            self._serial += 1
            alias = f"building_{self._serial}"
        cursor = self.cursor()
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


_engine: Engine | None = None
_engine_lock = threading.Lock()  # guards _engine


def engine(memory_bytes: int) -> Engine:
    """This process's engine; a forked child gets one of its own."""
    global _engine
    with _engine_lock:
        if _engine is None or _engine._pid != os.getpid():
            _engine = Engine(memory_bytes)
        else:
            _engine.limit_memory(memory_bytes)
        return _engine
