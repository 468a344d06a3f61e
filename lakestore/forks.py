"""Forks: a child never frees the DuckDB instances that it inherited.

Their worker threads are not copied, and freeing an instance joins them: a child that ended as
programs do, by returning or by `sys.exit`, died of a segmentation fault or waited for ever.
"""

import ctypes
import os
import weakref

import duckdb

_instances: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()


def kept_in_children(con: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """The connection, whose instance a child of this process will leave alone."""
    _instances.add(con)
    return con


# DuckDB 1.5 makes its default connection, threads and all, when it is imported.
_default = None if int(duckdb.__version__.split(".")[0]) >= 2 else duckdb.default_connection()
if _default is not None:
    kept_in_children(_default)


def _never_free() -> None:
    for con in list(_instances):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(con))
    _instances.clear()


os.register_at_fork(after_in_child=_never_free)
