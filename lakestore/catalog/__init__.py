"""The catalog: which files make up each table, and what was accepted from each producer.

SQLAlchemy Core over SQLite. One transaction is one commit point: a flush, a seal, a drop. A
reader sees one version of everything. The catalog is never the only record of a row: segments
and cold files say in their footers what they are. Failpoints: catalog.1 begun    .2 changed
.3 committed
"""

import errno
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lakestore.catalog import frozen, integrity
from lakestore.catalog import tables as t
from lakestore.catalog.commit import Commit, Garbage, Inventory, Sent, TableEntry, TableRecord
from lakestore.catalog.migrations import migrate
from lakestore.catalog.rows import DAMAGED, cold_of, segment_of
from lakestore.catalog.strict import REBUILD, damage
from lakestore.clock import Clock
from lakestore.errors import (
    CorruptionError,
    FormatTooNewError,
    InvalidInputError,
    LakestoreError,
    LockedError,
    NotFoundError,
    StorageError,
)
from lakestore.failpoint import reach
from lakestore.snapshot import ColdFile, GenerationId, TableState
from lakestore.storage.local import refusals, require_file, storage_error, why_refused


class Catalog:
    """A site's catalog."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        create: tuple[str | None, str] | None,
        is_filled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Open the catalog at `path`.

        Args:
            create: lake uuid and site of a new one, and leave to migrate an old one; without a
                uuid, none is made.
            is_filled: whether there are files that a catalog has to name; then none is made.

        Raises:
            NotFoundError: there is none, and none is to be created.
            CorruptionError: it is damaged, or there is none though there was one.
            FormatTooNewError: a newer lakestore wrote it.
            StorageError: it cannot be read, or (`create`) written.
        """
        writable = os.access(path.parent, os.W_OK)
        if create is not None and not writable and path.parent.exists():
            raise StorageError(
                f"cannot write in {str(path.parent)!r}: the file system is read-only, or the "
                'folder belongs to another user; open with mode="r"'
            )
        if not path.exists():
            _refuse_lost(path, is_filled)
            if create is None:
                raise NotFoundError(f"no catalog at {str(path)!r}")
        with refusals(f"cannot read the catalog {str(path)!r}"):
            require_file(path)
        self._path = path
        self._inode = path.stat().st_ino if path.exists() else None
        self._clock = clock
        if create is None and not writable:
            self._engine = frozen.engine(path)
        else:
            self._engine = sa.create_engine(
                sa.URL.create("sqlite", database=str(path)),
                connect_args={"timeout": 30, "isolation_level": None},
            )
        sa.event.listen(self._engine, "connect", _configure)
        self._states: dict[int, TableState] = {}
        self._cold: dict[int, dict[str, ColdFile]] = {}
        try:
            found = self._format(path)
            if found is None:
                self._make(path, create, is_filled)
            elif found < t.FORMAT:
                self._migrate(found, writable=create is not None)
            with self._begin("DEFERRED") as con:
                self.lake, self.site = con.execute(sa.select(t.lake.c.uuid, t.lake.c.site)).one()
            self._inode = self._inode or path.stat().st_ino
        except BaseException:
            self.close()
            raise

    def _make(
        self, path: Path, create: tuple[str | None, str] | None, is_filled: Callable[[], bool]
    ) -> None:
        with self._begin("IMMEDIATE") as con:
            t.metadata.create_all(con)
            if con.execute(sa.select(t.lake.c.one)).first() is None:  # else it was made just now
                _refuse_lost(path, is_filled)
                if create is None or create[0] is None:
                    raise NotFoundError(f"the catalog at {str(path)!r} is empty")
                row = {"one": 1, "format": t.FORMAT, "version": 0}
                con.execute(t.lake.insert(), row | {"uuid": create[0], "site": create[1]})

    def _format(self, path: Path) -> int | None:
        """The catalog's format, or None when it is empty; refuses a newer one."""
        with self._begin("DEFERRED") as con:
            if not sa.inspect(con).has_table("lake"):
                return None
            found = con.execute(sa.select(t.lake.c.format)).scalar_one_or_none()
        if found is not None and found > t.FORMAT:
            raise FormatTooNewError(
                f"catalog {str(path)!r} has format {found}, this lakestore reads "
                f"{t.FORMAT}: upgrade lakestore"
            )
        return found

    def _migrate(self, found: int, *, writable: bool) -> None:
        if not writable:
            raise InvalidInputError(
                f"the catalog {str(self._path)!r} has format {found}, and a reader does not change "
                "it: open the lake once with mode='rw'"
            )
        with self._begin("IMMEDIATE") as con:
            migrate(con)

    def close(self) -> None:
        """Let every connection go."""
        self._engine.dispose()

    def is_in_place(self) -> bool:
        """Whether the file that was opened is still the catalog: a rebuild moves it away."""
        return self._path.exists() and self._path.stat().st_ino == self._inode

    def tables(self) -> list[TableEntry]:
        """Every table that was not dropped, by name."""
        newest = (
            sa.select(t.schemas.c.table_id, sa.func.max(t.schemas.c.version).label("version"))
            .group_by(t.schemas.c.table_id)
            .subquery()
        )
        query = (
            sa.select(
                t.tables.c.id,
                t.tables.c.name,
                t.tables.c.folder,
                t.tables.c.cold,
                t.schemas.c.version,
                t.schemas.c.text,
            )
            .join(newest, newest.c.table_id == t.tables.c.id)
            .join(
                t.schemas,
                (t.schemas.c.table_id == t.tables.c.id) & (t.schemas.c.version == newest.c.version),
            )
            .where(t.tables.c.dropped_at.is_(None))
            .order_by(t.tables.c.name)
        )
        with self._begin("DEFERRED") as con:
            return [TableEntry(*row) for row in con.execute(query)]

    def folders(self) -> set[str]:
        """Folders of every table there ever was."""
        with self._begin("DEFERRED") as con:
            return set(con.execute(sa.select(t.tables.c.folder)).scalars())

    def version(self) -> int:
        """Counts commits; whoever knows this version knows everything the catalog says."""
        with self._begin("DEFERRED") as con:
            return int(con.execute(sa.select(t.lake.c.version)).scalar_one())

    def states(self, table_ids: Sequence[int]) -> dict[int, TableState]:
        """What is published of several tables, all of one version."""
        with self._begin("DEFERRED") as con:
            version = con.execute(sa.select(t.lake.c.version)).scalar_one()
            return {id: self._state(con, id, version) for id in table_ids}

    def _state(self, con: Connection, table_id: int, version: int) -> TableState:
        known = self._states.get(table_id)
        if known is not None and known.version == version:
            return known
        marks = sa.select(t.tables.c.sealed_through, t.tables.c.sealing_through)
        sealed, sealing = con.execute(marks.where(t.tables.c.id == table_id)).one()
        segments = con.execute(
            sa.select(t.segments)
            .where(t.segments.c.table_id == table_id)
            .order_by(t.segments.c.first)
        )
        flushed = con.execute(
            sa.select(t.generations.c.writer, t.generations.c.number).where(
                t.generations.c.table_id == table_id
            )
        )
        try:
            state = TableState(
                version,
                sealed,
                tuple(segment_of(row) for row in segments),
                self._cold_files(con, table_id),
                frozenset(GenerationId(*row) for row in flushed),
                sealing_through=sealing,
            )
        except DAMAGED as error:
            raise damage(repr(error)) from error
        self._states[table_id] = state
        return state

    def _cold_files(self, con: Connection, table_id: int) -> tuple[ColdFile, ...]:
        """Cold files by name; statistics are parsed once for each, for planning is per query."""
        known = self._cold.get(table_id, {})
        c = t.cold_files.c
        names = (
            con.execute(sa.select(c.name).where(c.table_id == table_id).order_by(c.name))
            .scalars()
            .all()
        )
        missing = set(names) - known.keys()
        rows = con.execute(sa.select(t.cold_files).where(c.table_id == table_id)) if missing else ()
        files = {name: known[name] for name in names if name in known}
        for row in rows:
            if row.name in missing:
                files[row.name] = cold_of(row)
        self._cold[table_id] = files
        return tuple(files[name] for name in names)

    def producers(self, table_id: int) -> dict[str, int]:
        """The highest sequence number that a segment holds of each producer."""
        query = sa.select(t.producers.c.producer, t.producers.c.seq).where(
            t.producers.c.table_id == table_id
        )
        with self._begin("DEFERRED") as con:
            return {row.producer: row.seq for row in con.execute(query)}

    def highest_seq(self, table_id: int, producer: str) -> int:
        """The highest sequence number that a segment holds of a producer, or -1."""
        query = sa.select(t.producers.c.seq).where(
            t.producers.c.table_id == table_id, t.producers.c.producer == producer
        )
        with self._begin("DEFERRED") as con:
            found = con.execute(query).scalar_one_or_none()
        return -1 if found is None else int(found)

    def sent(self, table_id: int, pairs: Collection[Sent]) -> set[Sent]:
        """Those of the (producer, seq) that a segment holds, as far as it is still remembered."""
        with self._begin("DEFERRED") as con:
            return Commit(con, self._clock.now()).sent(table_id, pairs)

    def garbage(self) -> list[Garbage]:
        """Every superseded file not yet deleted."""
        with self._begin("DEFERRED") as con:
            return _garbage(con)

    def inventory(self, *, settled: bool = False) -> Inventory:
        """Everything the catalog says, of one version.

        Args:
            settled: wait for a commit under way, so that a file that was there before this call
                is either named now, or never will be by the commit that put it there.
        """
        with self._begin("IMMEDIATE" if settled else "DEFERRED") as con:
            version = con.execute(sa.select(t.lake.c.version)).scalar_one()
            garbage = _garbage(con)
            try:
                return Inventory(
                    version,
                    tuple(
                        self._record(con, row, version, garbage)
                        for row in con.execute(sa.select(t.tables).order_by(t.tables.c.id)).all()
                    ),
                )
            except DAMAGED as error:
                raise damage(repr(error)) from error

    def _record(
        self, con: Connection, row: Any, version: int, garbage: Sequence[Garbage]
    ) -> TableRecord:
        schemas = sa.select(t.schemas.c.version, t.schemas.c.text)
        marks = sa.select(t.producers.c.producer, t.producers.c.seq)
        batches = sa.select(t.batches.c.producer, t.batches.c.seq)
        return TableRecord(
            row.id,
            row.name,
            row.folder,
            row.cold,
            row.dropped_at is not None,
            row.last_segment,
            _pairs(con, schemas.where(t.schemas.c.table_id == row.id)),
            _pairs(con, marks.where(t.producers.c.table_id == row.id)),
            frozenset(
                (p, seq) for p, seq in con.execute(batches.where(t.batches.c.table_id == row.id))
            ),
            tuple(g for g in garbage if g.table_id == row.id),
            self._state(con, row.id, version),
        )

    def integrity(self) -> list[str]:
        """What is wrong with it by itself, before it is held against the lake's files."""
        with self._begin("DEFERRED") as con:
            return integrity.check(con)

    @contextmanager
    def commit(self) -> Iterator["Commit"]:
        """One transaction: everything done through the `Commit` happens, or nothing.

        Raises:
            LockedError: another process kept the catalog busy for 30 s.
            StorageError: the disk refused; nothing was committed.
        """
        with self._begin("IMMEDIATE") as con:
            reach("catalog.1")
            yield Commit(con, self._clock.now())
            con.execute(t.lake.update().values(version=t.lake.c.version + 1))
            reach("catalog.2")
        reach("catalog.3")

    def end_leases(self, writers: Collection[str]) -> None:
        """Let others maintain what writers did that are dead."""
        with self._begin("IMMEDIATE") as con:
            con.execute(t.leases.delete().where(t.leases.c.writer.in_(writers)))

    def lease(self, table_id: int, writer: str, seconds: float, *, over: bool = False) -> bool:
        """Whether `writer` maintains a table for so long from now on, and nobody else.

        A lease saves work that two would do; what they commit is right without it. With `over` it
        is taken from whoever has it. It changes no answer, so the version stays.
        """
        now = self._clock.now()
        with self._begin("IMMEDIATE") as con:
            return Commit(con, now).take_lease(
                table_id, writer, now.timestamp() + seconds, over=over
            )

    @contextmanager
    def _begin(self, kind: str) -> Iterator[Connection]:
        try:
            with self._engine.connect() as con:
                con.exec_driver_sql(f"BEGIN {kind}")
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


def _refuse_lost(path: Path, is_filled: Callable[[], bool]) -> None:
    """Never make an empty catalog beside files that one has to name."""
    if is_filled():
        raise CorruptionError(
            f"the catalog {str(path)!r} is lost, and the lake is not empty; {REBUILD}"
        )


def _garbage(con: Connection) -> list[Garbage]:
    g = t.garbage.c
    query = sa.select(g.id, g.table_id, t.tables.c.folder, g.kind, g.name, g.since)
    return [Garbage(*row) for row in con.execute(query.join(t.tables, t.tables.c.id == g.table_id))]


def _pairs(con: Connection, query: sa.Select[tuple[Any, Any]]) -> dict[Any, Any]:
    return {row[0]: row[1] for row in con.execute(query)}


def _configure(connection: Any, _: Any) -> None:
    """What every SQLite connection needs: readers beside a writer, and commits that last."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()
