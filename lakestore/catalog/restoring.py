"""What a rebuild does to a catalog: list tables as their files tell of them."""

import sqlalchemy as sa

import lakestore.catalog.tables as t
from lakestore.catalog.commit import Commit
from lakestore.catalog.database import add_lake, changing, lay_out
from lakestore.catalog.holdings import holding_of
from lakestore.catalog.postgres import Postgres
from lakestore.catalog.records import Elsewhere, TableRecord
from lakestore.catalog.rows import cold_of
from lakestore.clock import Clock, micros
from lakestore.errors import ConflictError, CorruptionError
from lakestore.layout import ColdName
from lakestore.snapshot import ColdFile

_UNKNOWN = 1
"""The mark of a site that cannot tell since when its unsealed rows are there."""
_HELD = (t.segments, t.generations, t.producers, t.batches, t.leases, t.garbage)


class Restoration(Commit):
    """One catalog transaction of a rebuild."""

    def add_site(self, name: str, *, awaited: bool) -> None:
        """Name a site; an `awaited` one has to bring in itself what only its host knows."""
        joined = 0.0 if awaited else self.now.timestamp()
        self._con.execute(t.sites.insert(), {"name": name, "version": 0, "joined_at": joined})

    def arrive(self) -> None:
        """This site has brought in what only its host knows."""
        joined, c = self.now.timestamp(), t.sites.c
        known = self._con.execute(sa.select(c.joined_at).where(c.name == self._site)).first()
        if known is None:
            self.add_site(self._site, awaited=False)
        elif not known.joined_at:
            self._con.execute(t.sites.update().where(c.name == self._site).values(joined_at=joined))

    def restore(self, record: TableRecord) -> None:
        """List a table as a rebuild found it, its files and marks with it."""
        self.is_shared = True
        now = self.now.timestamp()
        values: dict[str, object] = {
            "name": record.name,
            "folder": record.folder,
            "cold": record.cold,
            "created_at": now,
            "dropped_at": now if record.dropped else None,
        }
        key = self._con.execute(t.tables.insert(), values).inserted_primary_key
        assert key is not None
        for version, text in record.schemas.items():
            self._con.execute(
                t.schemas.insert(), {"table_id": key[0], "version": version, "text": text}
            )
        if record.cold == "parquet":
            # What comes has to be newer than what there are records of, whose order decides.
            older = t.lake.c.version < record.replaced_through
            self._con.execute(t.lake.update().where(older).values(version=record.replaced_through))
            cold = self.cold(key[0])
            cold.add(record.state.cold)
            cold.note("rebuild", record.state.cold)
        if record.is_held:
            self._hold(key[0], record)
        for other in record.elsewhere:
            Restoration(self._con, other.site, self.now)._hold_sealed(key[0], other)

    def bring(self, record: TableRecord, version: int) -> None:
        """Put what a rebuild found of this site in the place of what is listed of it.

        Args:
            version: of what all see, when others' files were last looked at.

        Raises:
            ConflictError: a file is to be listed, and others have listed some since: they may
                hold the same rows.
            CorruptionError: no such table is listed.
        """
        self.is_shared = True
        row = self._con.execute(
            sa.select(t.tables.c.id).where(t.tables.c.folder == record.folder)
        ).first()
        if row is None:
            raise CorruptionError(f"the catalog lists no table in {record.folder!r}")
        if self._list_own(row.id, record.state.cold) and self.shared_version() != version:
            raise ConflictError("other hosts sealed meanwhile")
        held = holding_of(self._con, self._site, row.id)
        waiting = self._waiting(held) - {file.name for file in record.state.cold}
        for relation in _HELD if held is not None else ():
            self._con.execute(relation.delete().where(relation.c.holding_id == held))
        if held is not None or record.is_held:
            self._hold(row.id, record)
        # Files of other sites too, which this one has replaced: nobody else deletes them.
        named = {item.name for item in record.garbage if item.kind == "cold"}
        self.add_garbage(row.id, "cold", sorted(waiting - named))

    def _waiting(self, held: int | None) -> set[str]:
        """Cold files that this site has listed as garbage."""
        g = t.garbage.c
        query = sa.select(g.name).where(g.holding_id == held, g.kind == "cold")
        return set(self._con.execute(query).scalars())

    def _list_own(self, table_id: int, files: tuple[ColdFile, ...]) -> bool:
        """List these of this site's cold files, and no others; whether one was not listed."""
        c = t.cold_files.c
        mine = (c.table_id == table_id) & (c.removed == 0)
        listed = {
            row.name: cold_of(row)
            for row in self._con.execute(sa.select(t.cold_files).where(mine))
            if is_of(row.name, self._site)
        }
        lost = [listed[name] for name in sorted(listed.keys() - {file.name for file in files})]
        for file in lost:
            self._con.execute(t.cold_files.delete().where(mine, c.name == file.name))
        fresh = [file for file in files if file.name not in listed]
        cold = self.cold(table_id)
        cold.add(fresh)
        if fresh or lost:
            cold.note("rebuild", fresh, lost)
        return bool(fresh)

    def _hold(self, table_id: int, record: TableRecord) -> None:
        state = record.state
        marks = {"sealed_through": state.sealed_through, "last_segment": record.last_segment}
        held = self._held(table_id)
        self._con.execute(
            t.holdings.update()
            .where(t.holdings.c.id == held)
            .values(marks | {"dropped": record.dropped})
        )
        if not record.unsealed:
            self.promise(table_id, micros(self.now))
        for segment in state.segments:
            self.add_segment(table_id, segment, (), ())
        self.add_flushed(table_id, sorted(state.flushed), record.batches)
        for producer, seq in record.producers.items():
            self._raise_producer(table_id, producer, seq)
        if record.unkept is not None:
            self.keep(table_id, record.unkept)
        for item in record.garbage:
            self.add_garbage(table_id, item.kind, [item.name])

    def _hold_sealed(self, table_id: int, other: Elsewhere) -> None:
        """What is known of another site; the watermark waits until it says what it has."""
        through = other.sealed_through
        self._held(table_id)
        self._mark(table_id, sealed_through=through, last_segment=through)
        for producer, seq in other.producers.items():
            self._raise_producer(table_id, producer, seq)

    def _new_mark(self) -> int:
        return _UNKNOWN


def is_of(name: str, site: str) -> bool:
    """Whether a cold file is that site's."""
    try:
        return ColdName.parse(name).site == site
    except CorruptionError:
        return False


def remake(
    database: Postgres, clock: Clock, lake: str, site: str, tables: tuple[TableRecord, ...]
) -> str | None:
    """Make a catalog that sites share again, all in one transaction.

    Returns:
        What the old one's schema is called now; None when there was none.

    Raises:
        ConflictError: another host has made one since `database` was opened.
        Others: as `Database.begin`.
    """
    with changing(database) as con:
        aside = database.renew(con)
        lay_out(database, con)
        add_lake(con, lake)
        restoration = Restoration(con, site, clock.now())
        restoration.add_site(site, awaited=False)
        for other in sorted({e.site for record in tables for e in record.elsewhere}):
            restoration.add_site(other, awaited=True)
        for record in tables:
            restoration.restore(record)
        con.execute(t.lake.update().values(version=t.lake.c.version + 1))  # all see it
    return aside
