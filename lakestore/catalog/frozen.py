"""A catalog where nothing can be written, which SQLite cannot open where it is.

Its write-ahead log needs an index beside it, and none can be made on a read-only file system. So
the file is read as it is, log included, and each connection gets it in memory. A writer may be at
it elsewhere, through a mount that is writable: its index is there then, and SQLite uses it.
"""

import os
import shutil
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from lakestore.storage.local import refusals

_SUFFIXES = ("", "-wal")


def engine(path: Path) -> sa.Engine:
    """Connections to a catalog in a folder that this process cannot write to; none is kept.

    SQLite, once it has opened an index read-only, would not let this process write either.
    """
    return sa.create_engine("sqlite://", creator=_Copies(path).connect, poolclass=sa.NullPool)


class _Copies:
    """The catalog's bytes, read again when they have changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[list[tuple[int, int]], bytes] | None = None

    def connect(self) -> sqlite3.Connection:
        """A connection to a copy in memory, or to the file once it can be written or has an index.

        Raises:
            StorageError: the catalog cannot be read.
        """
        with refusals(f"cannot read the catalog {str(self._path)!r}"):
            while self._is_frozen():
                state, known = self._state(), self._known
                if known is not None and known[0] == state:
                    con = _connect(":memory:")
                    con.deserialize(known[1])
                    return con
                data = _whole(self._path)
                if self._state() == state:
                    self._known = (state, data)
        return _connect(str(self._path))

    def _is_frozen(self) -> bool:
        index = self._path.with_name(f"{self._path.name}-shm")
        return not index.exists() and not os.access(self._path.parent, os.W_OK)

    def _state(self) -> list[tuple[int, int]]:
        paths = (self._path.with_name(self._path.name + suffix) for suffix in _SUFFIXES)
        found = [path.stat() for path in paths if path.exists()]
        return [(state.st_size, state.st_mtime_ns) for state in found]


def _connect(database: str) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=30, check_same_thread=False, isolation_level=None)


def _whole(path: Path) -> bytes:
    """The database with its log merged into it."""
    with TemporaryDirectory(prefix="lakestore-") as folder:
        copy = Path(folder) / path.name
        for suffix in _SUFFIXES:
            source = path.with_name(path.name + suffix)
            if source.exists():
                shutil.copyfile(source, copy.with_name(copy.name + suffix))
        con = sqlite3.connect(copy)
        try:
            con.execute("PRAGMA journal_mode = DELETE").close()
        finally:
            con.close()
        return copy.read_bytes()
