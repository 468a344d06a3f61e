"""A catalog in a file of SQLite, which one site has for itself."""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.frozen as frozen
import lakestore.catalog.integrity as integrity
from lakestore.catalog.database import Database, Kind, refuse_lost
from lakestore.catalog.strict import REBUILD, damage
from lakestore.errors import LakestoreError, LockedError, NotFoundError, StorageError
from lakestore.storage.local import refusals, require_file, storage_error, why_refused

_BEGIN = {"read": "BEGIN DEFERRED", "write": "BEGIN IMMEDIATE"}


class SQLite:
    """`Database` in a file: readers beside a writer, and commits that last."""

    remedy = REBUILD
    site: str | None = None

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._engine: sa.Engine | None = None
        self._inode: int | None = None

    def open(self, *, write: bool, is_filled: Callable[[], bool]) -> None:
        """Get ready to connect; raises as `Database.open`."""
        path = self._path
        writable = os.access(path.parent, os.W_OK)
        if write and not writable and path.parent.exists():
            raise StorageError(
                f"cannot write in {str(path.parent)!r}: the file system is read-only, or the "
                'folder belongs to another user; open with mode="r"'
            )
        if not path.exists():
            refuse_lost(self, is_filled)
            if not write:
                raise NotFoundError(f"no catalog at {str(path)!r}")
        with refusals(f"cannot read the catalog {str(path)!r}"):
            require_file(path)
        self._inode = path.stat().st_ino if path.exists() else None
        if not write and not writable:
            self._engine = frozen.engine(path)
        else:
            self._engine = sa.create_engine(
                sa.URL.create("sqlite", database=str(path)),
                connect_args={"timeout": 30, "isolation_level": None},
            )
        sa.event.listen(self._engine, "connect", _configure)

    def prepare(self, con: Connection) -> None:
        """Nothing: the file is there by now."""

    def scrub(self) -> str | None:
        """Write the file anew, and empty its log; a reader may keep the log from that."""
        assert self._engine is not None
        try:
            with self._engine.connect() as con:
                con.exec_driver_sql("VACUUM")
                busy = con.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
        except sa.exc.DatabaseError as error:
            return f"deleted lines of the catalog {self.name!r} are not overwritten: {error.orig}"
        return (
            f"the catalog {self.name!r} is in use: its log may hold deleted lines" if busy else None
        )

    def is_in_place(self) -> bool:
        """Whether the file that was opened is still the catalog: a rebuild moves it away."""
        return self._path.exists() and self._path.stat().st_ino == self._inode

    def check(self, con: Connection) -> list[str]:
        """What is wrong with it by itself."""
        return integrity.check(con)

    def again(self) -> Database:
        """The same file, with connections of its own."""
        return SQLite(self._path)

    def close(self) -> None:
        """Let every connection go."""
        if self._engine is not None:
            self._engine.dispose()

    @contextmanager
    def begin(self, kind: Kind) -> Iterator[Connection]:
        """One transaction; raises as `Database.begin`."""
        assert self._engine is not None
        try:
            with self._engine.connect() as con:
                con.exec_driver_sql(_BEGIN[kind])
                self._inode = self._inode or self._path.stat().st_ino  # connecting has made it
                try:
                    yield con
                except BaseException:
                    if not con.invalidated:  # an interrupt has closed it, and rolled it back
                        con.exec_driver_sql("ROLLBACK")
                    raise
                con.exec_driver_sql("COMMIT")
        except sa.exc.OperationalError as error:
            raise self._translated(error.orig) from error
        except sa.exc.DatabaseError as error:
            raise damage(error.orig) from error
        except (sa.exc.NoResultFound, sa.exc.MultipleResultsFound, UnicodeDecodeError) as error:
            # A row is gone that was written, or SQLite's own message quotes bytes of the file.
            raise damage(repr(error)) from error
        except sqlite3.Error as error:  # of `_configure`, which SQLAlchemy does not see
            raise self._translated(error) from error

    def _translated(self, error: BaseException | None) -> LakestoreError:
        """What an error of SQLite means: wait, make room, or stop."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return LockedError(f"the catalog stayed busy for 30 s: {error}")
        # SQLITE_ERROR too: our statements are right, so what they name is gone, or is no text.
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            return damage(error)
        what = f"the catalog cannot be used ({error})"
        refusal = why_refused(self._path.parent)  # SQLite itself hardly says
        if refusal is None and code == sqlite3.SQLITE_FULL:
            refusal = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return storage_error(what, refusal) if refusal is not None else StorageError(what)


def _configure(connection: Any, _: Any) -> None:
    """What every SQLite connection needs: readers beside a writer, and commits that last."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()
