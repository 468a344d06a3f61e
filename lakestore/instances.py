"""DuckDB instances: how one is started, and anew once an error has ended it.

A forked child never frees those it inherited. Their worker threads are not copied, and freeing an
instance joins them: a child that ended as programs do, by returning or by `sys.exit`, died of a
segmentation fault or waited for ever.
"""

import ctypes
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import duckdb

from lakestore.errors import StorageError

log = logging.getLogger("lakestore")
QUIET = "SET enable_progress_bar = false"  # it cannot be set for all connections at once
LOST = (duckdb.FatalException, duckdb.InternalException, UnicodeDecodeError)
"""What every statement raises on an instance that an error within DuckDB has made unusable.

The last where DuckDB 2.0 cannot put the message, with damaged bytes in it, into text.
"""


def interrupted(error: BaseException) -> bool:
    """Whether DuckDB's Python package made the error of a KeyboardInterrupt."""
    text = str(error)
    return "KeyboardInterrupt" in text or (
        isinstance(error, (duckdb.InterruptException, RuntimeError)) and "interrupted" in text
    )


@contextmanager
def interrupts() -> Iterator[None]:
    """Raise a KeyboardInterrupt in the place of what DuckDB's Python package makes of one."""
    try:
        yield
    except (duckdb.Error, RuntimeError) as error:
        if interrupted(error):
            raise KeyboardInterrupt from error
        raise


_instances: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()


def kept_in_children(con: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """The connection, whose instance a child of this process will leave alone."""
    _instances.add(con)
    return con


def start(**config: str | bool | int | float | list[str]) -> duckdb.DuckDBPyConnection:
    """A new DuckDB in memory.

    Raises:
        StorageError: no file can be opened; DuckDB 1.5 would end the process then.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        return kept_in_children(duckdb.connect(":memory:", config=config))
    except (OSError, duckdb.IOException) as error:
        raise StorageError(
            f"cannot start DuckDB: {error}; raise the limit of open files"
        ) from error


class Instance:
    """A DuckDB that callers take connections of; started anew when an error has ended it."""

    def __init__(
        self, make: Callable[[], duckdb.DuckDBPyConnection], lock: threading.RLock
    ) -> None:
        """The first one is made now; each later one by a thread that has `lock`."""
        self._make = make
        self._lock = lock
        self._con = make()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the instance.

        Raises:
            StorageError: no new one can be started.
        """
        con = self._con
        try:
            return _quiet(con)
        except LOST as error:
            log.error("DuckDB is started anew, after %r", error)
        with self._lock:
            if self._con is con:  # else another thread was here before
                self._con = self._make()
        return _quiet(self._con)


def _quiet(con: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    cursor = con.cursor()
    cursor.execute(QUIET)
    return cursor


# DuckDB 1.5 makes its default connection, threads and all, when it is imported.
_default = None if int(duckdb.__version__.split(".")[0]) >= 2 else duckdb.default_connection()
if _default is not None:
    kept_in_children(_default)


def _never_free() -> None:
    for con in list(_instances):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(con))
    _instances.clear()


os.register_at_fork(after_in_child=_never_free)
