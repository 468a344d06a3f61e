"""The catalog: which files make up each table, and what was accepted from each producer.

SQLAlchemy Core over SQLite. One transaction is one commit point: a flush, a seal, a drop. A
reader sees one version of everything. The catalog is never the only record of a row: segments
and cold files say in their footers what they are.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lakestore.catalog import tables as t
from lakestore.clock import Clock
from lakestore.errors import (
    ConflictError,
    CorruptionError,
    FormatTooNewError,
    InvalidInputError,
    LockedError,
    NotFoundError,
    StorageError,
)
from lakestore.snapshot import (
    ColdFile,
    ColumnRange,
    FileInfo,
    GenerationId,
    Segment,
    TableState,
)

GarbageKind = Literal["journal", "segment", "cold", "table"]


@dataclass(frozen=True)
class TableEntry:
    """One table, as the catalog lists it."""

    id: int
    name: str
    folder: str
    cold: str
    schema_version: int
    schema_text: str


@dataclass(frozen=True)
class Garbage:
    """A file that nothing names any more, and since when (Unix seconds)."""

    id: int
    table_id: int
    folder: str
    kind: GarbageKind
    name: str
    since: float


class Catalog:
    """A site's catalog."""

    def __init__(self, path: Path, clock: Clock, *, create: tuple[str, str] | None) -> None:
        """Open the catalog at `path`; `create` is (lake uuid, site) for a new one.

        Raises:
            NotFoundError: there is none, and none is to be created.
            FormatTooNewError: a newer lakestore wrote it.
        """
        if create is None and not path.exists():
            raise NotFoundError(f"no catalog at {str(path)!r}")
        self._clock = clock
        self._engine = sa.create_engine(
            f"sqlite:///{path}", connect_args={"timeout": 30, "isolation_level": None}
        )
        sa.event.listen(self._engine, "connect", _configure)
        self._states: dict[int, TableState] = {}
        self._cold: dict[int, dict[str, ColdFile]] = {}
        if create is not None:
            with self._begin("IMMEDIATE") as con:
                t.metadata.create_all(con)
                if con.execute(sa.select(t.lake.c.one)).first() is None:
                    row = {"one": 1, "format": t.FORMAT, "version": 0}
                    con.execute(t.lake.insert(), row | {"uuid": create[0], "site": create[1]})
        with self._begin("DEFERRED") as con:
            format, self.lake, self.site = con.execute(
                sa.select(t.lake.c.format, t.lake.c.uuid, t.lake.c.site)
            ).one()
        if format > t.FORMAT:
            raise FormatTooNewError(
                f"catalog {str(path)!r} has format {format}, this lakestore reads "
                f"{t.FORMAT}: upgrade lakestore"
            )

    def close(self) -> None:
        """Let every connection go."""
        self._engine.dispose()

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
        sealed = con.execute(
            sa.select(t.tables.c.sealed_through).where(t.tables.c.id == table_id)
        ).scalar_one()
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
        state = TableState(
            version,
            sealed,
            tuple(_segment(row) for row in segments),
            self._cold_files(con, table_id),
            frozenset(GenerationId(*row) for row in flushed),
        )
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
                info = _info(row.info)
                files[row.name] = ColdFile(
                    row.name, row.day, row.first, row.last, row.schema_version, info
                )
        self._cold[table_id] = files
        return tuple(files[name] for name in names)

    def producers(self, table_id: int) -> dict[str, int]:
        """The highest sequence number that a segment holds of each producer."""
        query = sa.select(t.producers.c.producer, t.producers.c.seq).where(
            t.producers.c.table_id == table_id
        )
        with self._begin("DEFERRED") as con:
            return {row.producer: row.seq for row in con.execute(query)}

    def garbage(self) -> list[Garbage]:
        """Every superseded file not yet deleted."""
        query = sa.select(
            t.garbage.c.id,
            t.garbage.c.table_id,
            t.tables.c.folder,
            t.garbage.c.kind,
            t.garbage.c.name,
            t.garbage.c.since,
        ).join(t.tables, t.tables.c.id == t.garbage.c.table_id)
        with self._begin("DEFERRED") as con:
            return [Garbage(*row) for row in con.execute(query)]

    @contextmanager
    def commit(self) -> Iterator["Commit"]:
        """One transaction: everything done through the `Commit` happens, or nothing.

        Raises:
            LockedError: another process kept the catalog busy for 30 s.
            StorageError: the disk refused; nothing was committed.
        """
        with self._begin("IMMEDIATE") as con:
            yield Commit(con, self._clock.now())
            con.execute(t.lake.update().values(version=t.lake.c.version + 1))

    @contextmanager
    def _begin(self, kind: str) -> Iterator[Connection]:
        try:
            with self._engine.connect() as con:
                con.exec_driver_sql(f"BEGIN {kind}")
                try:
                    yield con
                except BaseException:
                    con.exec_driver_sql("ROLLBACK")
                    raise
                con.exec_driver_sql("COMMIT")
        except sa.exc.OperationalError as error:
            if "locked" in str(error.orig):
                raise LockedError(f"the catalog stayed busy for 30 s: {error.orig}") from error
            raise StorageError(f"the catalog cannot be used: {error.orig}") from error
        except sa.exc.DatabaseError as error:
            raise CorruptionError(f"the catalog is damaged: {error.orig}") from error


class Commit:
    """What one catalog transaction may change."""

    def __init__(self, con: Connection, now: datetime) -> None:
        self._con = con
        self.now = now

    def add_table(self, name: str, cold: str, schema_text: str) -> TableEntry:
        """List a new table; raises `InvalidInputError` when the name is taken."""
        rows = self._con.execute(
            sa.select(t.tables.c.name, t.tables.c.folder, t.tables.c.dropped_at)
        ).all()
        for row in rows:
            if row.dropped_at is None and row.name.casefold() == name.casefold():
                raise InvalidInputError(
                    f"table {row.name!r} exists; open it with lake[{row.name!r}], or pass "
                    "exist_ok=True"
                )
        taken = {row.folder.casefold() for row in rows}
        folder, number = name, 1
        while folder.casefold() in taken:
            number += 1
            folder = f"{name}-{number}"
        values = {"name": name, "folder": folder, "cold": cold, "sealed_through": 0}
        result = self._con.execute(
            t.tables.insert(), values | {"last_segment": 0, "created_at": self.now.timestamp()}
        )
        key = result.inserted_primary_key
        assert key is not None
        table_id = int(key[0])
        self._con.execute(
            t.schemas.insert(), {"table_id": table_id, "version": 1, "text": schema_text}
        )
        return TableEntry(table_id, name, folder, cold, 1, schema_text)

    def drop_table(self, table_id: int) -> None:
        """Unlist a table; `vacuum` deletes its files after the grace."""
        self._con.execute(
            t.tables.update()
            .where(t.tables.c.id == table_id)
            .values(dropped_at=self.now.timestamp())
        )
        self.add_garbage(table_id, "table", [""])

    def last_segment(self, table_id: int) -> int:
        """The highest segment number given so far."""
        query = sa.select(t.tables.c.last_segment).where(t.tables.c.id == table_id)
        return int(self._con.execute(query).scalar_one())

    def flushed(self, table_id: int) -> set[GenerationId]:
        """Generations whose rows a segment holds."""
        query = sa.select(t.generations.c.writer, t.generations.c.number).where(
            t.generations.c.table_id == table_id
        )
        return {GenerationId(*row) for row in self._con.execute(query)}

    def add_segment(
        self,
        table_id: int,
        segment: Segment,
        covers: Sequence[GenerationId],
        producers: Mapping[str, int],
    ) -> None:
        """List a segment; the generations it covers are flushed from this commit on."""
        self._con.execute(
            t.segments.insert(),
            {
                "table_id": table_id,
                "first": segment.first,
                "last": segment.last,
                "name": segment.name,
                "has_duckdb": segment.has_duckdb,
                "committed_at": segment.committed_at.timestamp(),
                "info": _info_text(segment.info),
            },
        )
        self._con.execute(
            t.tables.update()
            .where(t.tables.c.id == table_id, t.tables.c.last_segment < segment.last)
            .values(last_segment=segment.last)
        )
        self.add_flushed(table_id, covers)
        for producer, seq in producers.items():
            self._raise_producer(table_id, producer, seq)

    def add_flushed(self, table_id: int, covers: Sequence[GenerationId]) -> None:
        """Generations that hold no row any more, whose files may go."""
        for id in covers:
            self._con.execute(
                t.generations.insert(),
                {"table_id": table_id, "writer": id.writer, "number": id.number},
            )
        self.add_garbage(table_id, "journal", [f"{g.writer}/{g.number}" for g in covers])

    def replace_segments(self, table_id: int, old: Sequence[Segment], new: Segment) -> None:
        """Put one merged segment in the place of neighbours.

        Raises:
            ConflictError: one of them was sealed or merged meanwhile.
        """
        assert (new.first, new.last) == (old[0].first, old[-1].last), (old, new)
        self._remove_segments(table_id, old)
        self.add_segment(table_id, new, (), {})

    def seal(
        self,
        table_id: int,
        sealed: Sequence[Segment],
        files: Sequence[ColdFile],
        through: int,
    ) -> None:
        """List cold files in the place of segments, and move `sealed_through`.

        Raises:
            ConflictError: somebody sealed meanwhile.
        """
        self._remove_segments(table_id, sealed)
        for file in files:
            self._con.execute(
                t.cold_files.insert(),
                {
                    "table_id": table_id,
                    "name": file.name,
                    "day": file.day,
                    "first": file.first,
                    "last": file.last,
                    "schema_version": file.schema_version,
                    "committed_at": self.now.timestamp(),
                    "info": _info_text(file.info),
                },
            )
        moved = self._con.execute(
            t.tables.update()
            .where(t.tables.c.id == table_id, t.tables.c.sealed_through == sealed[0].first - 1)
            .values(sealed_through=through)
        )
        if moved.rowcount != 1:
            raise ConflictError("another process sealed meanwhile; its result stands")

    def add_garbage(self, table_id: int, kind: GarbageKind, names: Sequence[str]) -> None:
        """Note files that nothing names from this commit on."""
        for name in names:
            self._con.execute(
                t.garbage.insert(),
                {
                    "table_id": table_id,
                    "kind": kind,
                    "name": name,
                    "since": self.now.timestamp(),
                },
            )

    def forget(self, garbage: Garbage) -> None:
        """Strike a file off that is gone from the disk."""
        self._con.execute(t.garbage.delete().where(t.garbage.c.id == garbage.id))
        if garbage.kind == "journal":
            writer, number = garbage.name.split("/")
            g = t.generations.c
            self._con.execute(
                t.generations.delete().where(
                    g.table_id == garbage.table_id, g.writer == writer, g.number == int(number)
                )
            )

    def _remove_segments(self, table_id: int, old: Sequence[Segment]) -> None:
        c = t.segments.c
        for segment in old:
            gone = self._con.execute(
                t.segments.delete().where(c.table_id == table_id, c.name == segment.name)
            )
            if gone.rowcount != 1:
                raise ConflictError(
                    f"segment {segment.name!r} was sealed or merged meanwhile; that result stands"
                )
        self.add_garbage(table_id, "segment", [segment.name for segment in old])

    def _raise_producer(self, table_id: int, producer: str, seq: int) -> None:
        c = t.producers.c
        mine = (c.table_id == table_id) & (c.producer == producer)
        known = self._con.execute(sa.select(c.seq).where(mine)).scalar_one_or_none()
        if known is None:
            values = {"table_id": table_id, "producer": producer, "seq": seq}
            self._con.execute(t.producers.insert(), values)
        elif known < seq:
            self._con.execute(t.producers.update().where(mine).values(seq=seq))


def _configure(connection: Any, _: Any) -> None:
    """What every SQLite connection needs: readers beside a writer, and commits that last."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _segment(row: Any) -> Segment:
    committed = datetime.fromtimestamp(row.committed_at, UTC)
    return Segment(row.first, row.last, row.name, _info(row.info), row.has_duckdb, committed)


def _info_text(info: FileInfo) -> str:
    return json.dumps(
        {
            "rows": info.rows,
            "bytes": info.bytes,
            "sha256": info.sha256,
            "min_time": info.min_time.isoformat(),
            "max_time": info.max_time.isoformat(),
            "ranges": {name: [r.low, r.high, r.nulls] for name, r in info.ranges.items()},
        }
    )


def _info(text: str) -> FileInfo:
    data = json.loads(text)
    return FileInfo(
        data["rows"],
        data["bytes"],
        data["sha256"],
        datetime.fromisoformat(data["min_time"]),
        datetime.fromisoformat(data["max_time"]),
        {name: ColumnRange(*values) for name, values in data["ranges"].items()},
    )
