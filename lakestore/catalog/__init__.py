"""The catalog: which files make up each table, and what was accepted from each producer.

SQLAlchemy Core over SQLite or Postgres. One transaction is one commit point: a flush, a seal, a
drop. A reader sees one version of everything. The catalog is never the only record of a row:
segments and cold files say in their footers what they are.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lakestore.catalog import tables as t
from lakestore.catalog.commit import Commit
from lakestore.catalog.database import Creation, Database, changing
from lakestore.catalog.holdings import (
    accepted_of,
    garbage_of,
    holding_of,
    holdings_of,
    marks_of,
    pairs_of,
    seen,
    sent_of,
)
from lakestore.catalog.opening import enter
from lakestore.catalog.past import as_of, moments, past_of, pruned
from lakestore.catalog.records import Garbage, Holding, Inventory, Sent, TableEntry, TableRecord
from lakestore.catalog.restoring import Restoration
from lakestore.catalog.rows import DAMAGED, cold_of, segment_of
from lakestore.catalog.strict import damage
from lakestore.clock import Clock
from lakestore.past import AsOf, Past
from lakestore.replacement import Pruning
from lakestore.snapshot import ColdFile, GenerationId, TableState

_Kind = TypeVar("_Kind", bound=Commit)
_NOBODY = -1
"""What a site holds of a table that it never committed to."""


class Catalog:
    """A lake's tables, as a site sees them."""

    def __init__(
        self, database: Database, clock: Clock, *, write: bool, creation: Creation | None = None
    ) -> None:
        """Open the catalog that a database keeps.

        Args:
            write: make what is missing, and migrate what is old; else nothing is changed.

        Raises:
            NotFoundError: there is none, and none is to be created.
            CorruptionError: it is damaged, or there is none though there was one.
            FormatTooNewError: a newer lakestore wrote it.
            StorageError: it cannot be read, or (`write`) written.
        """
        self.database = database
        self._clock = clock
        self._states: dict[int, TableState] = {}
        self._holdings: dict[int, int] = {}
        self._cold: dict[int, dict[str, ColdFile]] = {}
        try:
            self.lake, self.site = enter(database, clock, creation or Creation(), write=write)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let every connection go."""
        self.database.close()

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
        with self.database.begin("read") as con:
            return [TableEntry(*row) for row in con.execute(query)]

    def schemas(self, table_id: int) -> dict[int, str]:
        """The documents of a table's schema versions."""
        c = t.schemas.c
        query = sa.select(c.version, c.text).where(c.table_id == table_id)
        with self.database.begin("read") as con:
            return pairs_of(con, query)

    def folders(self) -> set[str]:
        """Folders of every table there ever was."""
        with self.database.begin("read") as con:
            return set(con.execute(sa.select(t.tables.c.folder)).scalars())

    def dropped_elsewhere(self) -> list[int]:
        """Tables that another site has dropped, and whose files here wait to be let go."""
        h = t.holdings.c
        query = sa.select(h.table_id).join(t.tables, t.tables.c.id == h.table_id)
        mine = (h.site == self.site) & h.dropped.is_(False)
        with self.database.begin("read") as con:
            return list(
                con.execute(query.where(mine, t.tables.c.dropped_at.is_not(None))).scalars()
            )

    def marks(self, table_id: int) -> dict[str, int]:
        """What each site has said of a table, as `marks.py` tells."""
        with self.database.begin("read") as con:
            return marks_of(con, table_id)

    def holdings(self, table_id: int) -> dict[str, Holding]:
        """What each site has of a table; a catalog of SQLite knows of its own alone."""
        with self.database.begin("read") as con:
            try:
                return holdings_of(con, table_id)
            except DAMAGED as error:
                raise damage(repr(error)) from error

    def seen(self) -> dict[str, float]:
        """When each site was last seen to do something (Unix seconds)."""
        with self.database.begin("read") as con:
            return seen(con)

    def version(self) -> int:
        """Counts commits; whoever knows this version knows everything the catalog says."""
        with self.database.begin("read") as con:
            return self._versions(con)[1]

    def states(self, table_ids: Sequence[int]) -> dict[int, TableState]:
        """What is published of several tables, all of one version."""
        with self.database.begin("read") as con:
            versions = self._versions(con)
            return {id: self._state(con, id, versions) for id in table_ids}

    def _state(self, con: Connection, table_id: int, versions: tuple[int, int]) -> TableState:
        known, (shared, version) = self._states.get(table_id), versions
        if known is not None and known.version == version:
            return known
        held = self._held(con, table_id)
        marks = sa.select(t.holdings.c.sealed_through, t.holdings.c.sealing_through)
        sealed, sealing = con.execute(marks.where(t.holdings.c.id == held)).first() or (0, 0)
        s, g, v = t.segments.c, t.generations.c, t.schemas.c
        newest = sa.select(sa.func.max(v.version)).where(v.table_id == table_id)
        # All at once: a damaged line would leave a cursor open, and the connection with it.
        mine = sa.select(t.segments).where(s.holding_id == held).order_by(s.first)
        generations = sa.select(g.writer, g.number).where(g.holding_id == held)
        try:
            segments, flushed = con.execute(mine).all(), con.execute(generations).all()
            state = TableState(
                version,
                sealed,
                tuple(segment_of(row) for row in segments),
                self._cold_files(con, table_id),
                frozenset(GenerationId(*row) for row in flushed),
                sealing_through=sealing,
                cold_version=shared,
                schema_version=con.execute(newest).scalar_one_or_none() or 1,
            )
        except DAMAGED as error:
            raise damage(repr(error)) from error
        self._states[table_id] = state
        return state

    def _cold_files(self, con: Connection, table_id: int) -> tuple[ColdFile, ...]:
        """Cold files by name; statistics are parsed once for each, for planning is per query."""
        known = self._cold.get(table_id, {})
        c = t.cold_files.c
        listed = (c.table_id == table_id) & (c.removed == 0)
        names = con.execute(sa.select(c.name).where(listed).order_by(c.name)).scalars().all()
        missing = set(names) - known.keys()
        rows = con.execute(sa.select(t.cold_files).where(listed)).all() if missing else ()
        files = {name: known[name] for name in names if name in known}
        for row in rows:
            if row.name in missing:
                files[row.name] = cold_of(row)
        self._cold[table_id] = files
        return tuple(files[name] for name in names)

    def producers(self, table_id: int) -> dict[str, int]:
        """The highest sequence number that a segment holds of each producer."""
        p = t.producers.c
        with self.database.begin("read") as con:
            held = self._held(con, table_id)
            return pairs_of(con, sa.select(p.producer, p.seq).where(p.holding_id == held))

    def highest_seq(self, table_id: int, producer: str) -> int:
        """The highest sequence number that a segment holds of a producer, or -1."""
        p = t.producers.c
        with self.database.begin("read") as con:
            held = self._held(con, table_id)
            query = sa.select(p.seq).where(p.holding_id == held, p.producer == producer)
            found = con.execute(query).scalar_one_or_none()
        return -1 if found is None else int(found)

    def accepted(self, table_id: int, producers: Collection[str]) -> dict[str, int]:
        """The highest sequence number of each of these producers that any site has published."""
        with self.database.begin("read") as con:
            return accepted_of(con, table_id, producers)

    def sent(self, table_id: int, pairs: Collection[Sent]) -> set[Sent]:
        """Those of the (producer, seq) that a segment holds, as far as it is still remembered."""
        with self.database.begin("read") as con:
            return sent_of(con, self._held(con, table_id), pairs) if pairs else set()

    def garbage(self) -> list[Garbage]:
        """Every superseded file not yet deleted."""
        with self.database.begin("read") as con:
            return garbage_of(con, self.site)

    def records(self, table_id: int) -> dict[str, str]:
        """Records of replacements that are not known to be in the root yet, in order, by id."""
        c = t.records.c
        query = sa.select(c.id, c.text).where(c.table_id == table_id).order_by(c.number)
        with self.database.begin("read") as con:
            return pairs_of(con, query)

    def moments(self) -> list[float]:
        """When segments and cold files of any table were listed, in Unix seconds: the latest."""
        with self.database.begin("read") as con:
            return moments(con)

    def pruned(self, table_id: int, version: int | None) -> Pruning:
        """What a prune took off a table; raises as `ColdTable.pruned`."""
        with self.database.begin("read") as con:
            return pruned(con, table_id, version)

    def replaced(self, table_id: int) -> frozenset[str]:
        """Cold files that others took the place of, until they are deleted."""
        c = t.cold_files.c
        query = sa.select(c.name).where(c.table_id == table_id, c.removed > 0)
        with self.database.begin("read") as con:
            return frozenset(con.execute(query).scalars())

    def past(self, table_id: int, limit: int | None) -> Past:
        """The last versions of a table of Parquet files; all without a limit."""
        with self._reading() as con:
            return past_of(con, table_id, limit)

    def as_of(self, table_id: int, wanted: int | datetime) -> AsOf | None:
        """A table of Parquet files as of a version, or of the newest one at a time, if any."""
        with self._reading() as con:
            return as_of(con, table_id, wanted)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A transaction that reads; a row that is none is damage."""
        with self.database.begin("read") as con:
            try:
                yield con
            except DAMAGED as error:
                raise damage(repr(error)) from error

    def inventory(self, *, settled: bool = False) -> Inventory:
        """Everything the catalog says, of one version.

        Args:
            settled: wait for a commit under way, so that a file that was there before this call
                is either named now, or never will be by the commit that put it there.
        """
        with self.database.begin("write" if settled else "read") as con:
            versions = self._versions(con)
            garbage = garbage_of(con, self.site)
            try:
                return Inventory(
                    versions[1],
                    tuple(
                        self._record(con, row, versions, garbage)
                        for row in con.execute(sa.select(t.tables).order_by(t.tables.c.id)).all()
                    ),
                )
            except DAMAGED as error:
                raise damage(repr(error)) from error

    def _record(
        self, con: Connection, row: Any, versions: tuple[int, int], garbage: Sequence[Garbage]
    ) -> TableRecord:
        h, p, b = t.holdings.c, t.producers.c, t.batches.c
        held = self._held(con, row.id)
        schemas = sa.select(t.schemas.c.version, t.schemas.c.text)
        batches = sa.select(b.producer, b.seq).where(b.holding_id == held)
        last = sa.select(h.last_segment).where(h.id == held)
        return TableRecord(
            row.id,
            row.name,
            row.folder,
            row.cold,
            row.dropped_at is not None,
            con.execute(last).scalar_one_or_none() or 0,
            pairs_of(con, schemas.where(t.schemas.c.table_id == row.id)),
            pairs_of(con, sa.select(p.producer, p.seq).where(p.holding_id == held)),
            frozenset((producer, seq) for producer, seq in con.execute(batches)),
            tuple(g for g in garbage if g.table_id == row.id),
            self._state(con, row.id, versions),
        )

    def integrity(self) -> list[str]:
        """What is wrong with it by itself, before it is held against the lake's files."""
        with self.database.begin("read") as con:
            return self.database.check(con)

    def awaited(self) -> list[str]:
        """Sites whose hosts have to bring in what they have, since a rebuild elsewhere."""
        c = t.sites.c
        query = sa.select(c.name).where(c.joined_at == 0).order_by(c.name)
        with self.database.begin("read") as con:
            return list(con.execute(query).scalars())

    def commit(self) -> AbstractContextManager[Commit]:
        """One transaction: everything done through the `Commit` happens, or nothing.

        Raises:
            LockedError: another process kept the catalog busy for 30 s.
            StorageError: the disk refused; nothing was committed.
        """
        return self._commit(Commit)

    def restoring(self) -> AbstractContextManager[Restoration]:
        """One transaction of a rebuild; as `commit`."""
        return self._commit(Restoration)

    @contextmanager
    def _commit(self, kind: type[_Kind]) -> Iterator[_Kind]:
        with changing(self.database) as con:
            commit = kind(con, self.site, self._clock.now())
            yield commit
            if commit.is_shared:
                con.execute(t.lake.update().values(version=t.lake.c.version + 1))
            else:
                mine = t.sites.update().where(t.sites.c.name == self.site)
                con.execute(mine.values(version=t.sites.c.version + 1))

    def end_leases(self, writers: Collection[str]) -> None:
        """Let others maintain what writers did that are dead."""
        with self.database.begin("write") as con:
            con.execute(t.leases.delete().where(t.leases.c.writer.in_(writers)))

    def lease(self, table_id: int, writer: str, seconds: float, *, over: bool = False) -> bool:
        """Whether `writer` maintains a table for so long from now on, and nobody else.

        A lease saves work that two would do; what they commit is right without it. With `over` it
        is taken from whoever has it. It changes no answer, so the version stays.
        """
        now = self._clock.now()
        with self.database.begin("write") as con:
            return Commit(con, self.site, now).take_lease(
                table_id, writer, now.timestamp() + seconds, over=over
            )

    def _held(self, con: Connection, table_id: int) -> int:
        """What this site holds of a table, for reading; each append of a producer asks."""
        known = self._holdings.get(table_id) or holding_of(con, self.site, table_id)
        if known is None:
            return _NOBODY
        self._holdings[table_id] = known
        return known

    def _versions(self, con: Connection) -> tuple[int, int]:
        """The lake's version, and with it that of what this site holds: both only grow."""
        lake, site = tuple(con.execute(self._both_versions).one())
        return lake, lake + site

    @cached_property
    def _both_versions(self) -> sa.Select[Any]:
        """Composed once: each query asks twice, and it takes as long as SQLite's answer."""
        mine = sa.select(t.sites.c.version).where(t.sites.c.name == self.site).scalar_subquery()
        return sa.select(t.lake.c.version, sa.func.coalesce(mine, 0))  # a reader may be of no site
