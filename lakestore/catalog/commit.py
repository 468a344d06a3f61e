"""One catalog transaction, as the changes it may make."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.garbage as garbage
import lakestore.catalog.tables as t
from lakestore.catalog.coldlist import ColdList
from lakestore.catalog.holdings import accepted_of, marks_of
from lakestore.catalog.own import OwnChanges, key_of
from lakestore.catalog.records import (
    COLD_KINDS,
    Garbage,
    GarbageKind,
    TableEntry,
    check_new,
)
from lakestore.catalog.waiting import claim, renew, strike
from lakestore.errors import ConflictError, InvalidInputError
from lakestore.marks import RETIRED, check_retirable, next_mark
from lakestore.replacement import Record, Replacement
from lakestore.snapshot import ColdFile, Segment


class Commit(OwnChanges):
    """What one catalog transaction may change."""

    def __init__(self, con: Connection, site: str, now: datetime) -> None:
        super().__init__(con, site, now)
        self.is_shared = False
        """Whether it changed what every site sees."""

    def add_table(
        self, name: str, cold: str, schema_text: str, is_taken: Callable[[str], bool]
    ) -> TableEntry:
        """List a new table; raises `InvalidInputError` when the name is taken.

        Args:
            is_taken: whether a folder of that name holds something already.
        """
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
        while folder.casefold() in taken or is_taken(folder):
            number += 1
            folder = f"{name}-{number}"
        return self._list_table(name, folder, cold, schema_text)

    def adopt_table(self, name: str, folder: str, cold: str, schema_text: str) -> None:
        """List a table that another site has made, unless it is listed."""
        c = t.tables.c
        alive = self._con.execute(sa.select(c.name).where(c.dropped_at.is_(None))).scalars()
        names = {other.casefold() for other in alive}
        listed = self._con.execute(sa.select(c.id).where(c.folder == folder)).first()
        if listed is None and name.casefold() not in names:
            self._list_table(name, folder, cold, schema_text)

    def _list_table(self, name: str, folder: str, cold: str, schema_text: str) -> TableEntry:
        self.is_shared = True
        values = {"name": name, "folder": folder, "cold": cold}
        result = self._con.execute(t.tables.insert(), values | {"created_at": self.now.timestamp()})
        table_id = key_of(result)
        self._con.execute(
            t.schemas.insert(), {"table_id": table_id, "version": 1, "text": schema_text}
        )
        self._held(table_id)
        if cold == "parquet":  # else the log has its history
            self.cold(table_id).note("create", ())
        return TableEntry(table_id, name, folder, cold, 1, schema_text)

    def add_schema(self, table_id: int, follows: int, version: int, text: str) -> None:
        """List a new version of a table's schema: its rows may be of it from this commit on.

        Args:
            follows: the version that it was made from.

        Raises:
            ConflictError: that is not the newest any more, or the table was dropped.
        """
        c = t.schemas.c
        alive = (t.tables.c.id == table_id) & t.tables.c.dropped_at.is_(None)
        newest = (
            sa.select(sa.func.max(c.version)).join(t.tables).where(c.table_id == table_id, alive)
        )
        if self._con.execute(newest).scalar_one_or_none() != follows:
            raise ConflictError("another process changed the table's schema meanwhile")
        values = {"table_id": table_id, "version": version, "text": text}
        self._con.execute(t.schemas.insert(), values)
        self.is_shared = True
        cold = sa.select(t.tables.c.cold).where(t.tables.c.id == table_id)
        if self._con.execute(cold).scalar_one() == "parquet":
            self.cold(table_id).note("evolve", ())

    def drop_table(self, table_id: int) -> None:
        """Unlist a table, if it is listed still; `vacuum` deletes its files after the grace."""
        listed = (t.tables.c.id == table_id) & t.tables.c.dropped_at.is_(None)
        unlisted = self._con.execute(
            t.tables.update().where(listed).values(dropped_at=self.now.timestamp())
        )
        self.is_shared = self.is_shared or bool(unlisted.rowcount)
        c = t.holdings.c
        kept = (c.id == self._held(table_id)) & c.dropped.is_(False)
        if self._con.execute(t.holdings.update().where(kept).values(dropped=True)).rowcount:
            self.add_garbage(table_id, "table", [""])

    def shared_version(self) -> int:
        """Counts commits that change what every site sees."""
        return int(self._con.execute(sa.select(t.lake.c.version)).scalar_one())

    def accept(self, table_id: int, sent: Mapping[str, int]) -> None:
        """Take what a load has of its sources: the rows of each so far, by producer.

        Raises:
            AcceptedError: somebody took them meanwhile.
        """
        known = accepted_of(self._con, table_id, sent)
        check_new(sent, known)
        self.follow(table_id, sent)

    def seal(
        self,
        table_id: int,
        sealed: Sequence[Segment],
        files: Sequence[ColdFile],
        through: int,
        operation: str = "seal",
    ) -> None:
        """List cold files in the place of segments, and move `sealed_through`.

        Args:
            operation: what the history calls it.

        Raises:
            ConflictError: somebody sealed meanwhile.
        """
        self.check_listed(table_id, sealed)
        self._remove_segments(table_id, [segment.name for segment in sealed])
        cold = self.cold(table_id)
        cold.add(files)
        cold.note(operation, files)
        c = t.holdings.c
        moved = self._con.execute(
            t.holdings.update()
            .where(c.id == self._held(table_id), c.sealed_through == sealed[0].first - 1)
            .values(sealed_through=through)
        )
        if moved.rowcount != 1:
            raise ConflictError("another process sealed meanwhile; its result stands")

    def join(self, table_id: int) -> None:
        """Have something of a table, be it nothing yet: before its first row is accepted."""
        self.promise(table_id, None)

    def promise(self, table_id: int, complete_before: int | None) -> None:
        """Say that what was accepted before a moment is cold, or that this site is there."""
        held = self._held(table_id)
        mark = next_mark(marks_of(self._con, table_id), self._site, complete_before)
        if mark is not None:
            mine = t.holdings.update().where(t.holdings.c.id == held)
            self._con.execute(mine.values(complete_before=mark))

    def retire(self, table_id: int, site: str, said: int) -> None:
        """Do not wait for another site any more; raises as `check_retirable`."""
        check_retirable(marks_of(self._con, table_id), site, said)
        its = (t.holdings.c.table_id == table_id) & (t.holdings.c.site == site)
        self._con.execute(t.holdings.update().where(its).values(complete_before=RETIRED))

    def cold(self, table_id: int) -> ColdList:
        """The list of a table's cold files, for a change that all sites see."""
        self.is_shared = True
        return self._cold(table_id)

    def _cold(self, table_id: int) -> ColdList:
        return ColdList(self._con, table_id, self.shared_version() + 1, self.now, self._site)

    def replace(self, table_id: int, replacement: Replacement) -> None:
        """List files in the place of others, which are garbage from then on.

        Raises:
            ConflictError: one of them is not part of the table any more, or of those that an undo
                brings back, is deleted.
        """
        cold = self.cold(table_id)
        cold.remove(replacement.removed)
        if replacement.operation == "undo":
            cold.restore(replacement.added)
        else:
            cold.add(replacement.added)
        cold.note(replacement.operation, replacement.added, replacement.removed)
        self.keep(table_id, Record.of(replacement, self.shared_version() + 1))
        self.keep_files(table_id, replacement.added)

    def keep(self, table_id: int, record: Record) -> str:
        """Note a record of a replacement, until it is in the root; returns its id.

        Raises:
            ConflictError: a file that is to come back holds rows that were purged.
        """
        garbage.refuse_purged(self._con, table_id, record.added)
        id = uuid4().hex
        values = {"id": id, "table_id": table_id, "text": record.to_json()}
        self._con.execute(t.records.insert(), values)
        return id

    def settle_record(
        self,
        table_id: int,
        id: str,
        went: Sequence[str] = (),
        came: Sequence[ColdFile] = (),
        payload: Collection[str] = (),
        purged: Collection[str] | None = None,
    ) -> None:
        """Strike the record of a replacement off, and list the files that went as garbage.

        Args:
            went: those that are not live, as far as is known outside of the catalog.
            came: those that are.
            payload: payload files in the root that no live file refers to any more.
            purged: of a purge, those of them that held purged rows: nobody goes back to these.
        """
        if self._con.execute(t.records.delete().where(t.records.c.id == id)).rowcount:
            live = self._cold(table_id).live()
            self.keep_files(table_id, came)
            strike(self._con, table_id, "cold", went)  # another site may have seen them go too
            strike(self._con, table_id, "cold_payload", payload)
            gone = [name for name in went if name not in live]
            if purged is None:
                self.add_garbage(table_id, "cold", gone)
            else:
                self.condemn(table_id, "purged", gone)
                self.condemn(table_id, "purged_payload", purged)
            self.add_garbage(table_id, "cold_payload", sorted(set(payload) - set(purged or ())))

    def condemn(self, table_id: int, kind: GarbageKind, names: Collection[str]) -> None:
        """List files of the root that nobody may go back to, as of a kind, whatever they were."""
        now = self.now.timestamp()
        garbage.condemn(self._con, self._held(table_id), kind, names, now)

    def keep_files(self, table_id: int, files: Sequence[ColdFile]) -> None:
        """Cold files and what they refer to are not to be deleted: they are live."""
        strike(self._con, table_id, "cold", [file.name for file in files])
        payload = {name for file in files for name in file.info.payload}
        strike(self._con, table_id, "cold_payload", sorted(payload))

    def claim_garbage(self, item: Garbage) -> bool:
        """Whether a file of the root may be deleted now: from then on nobody brings it back."""
        claimed = claim(self._con, item)
        if claimed and item.kind in COLD_KINDS:
            self.cold(item.table_id).forget([item.name])
        return claimed

    def renew_garbage(self, table_id: int, names: Sequence[str]) -> None:
        """Have the grace of cold files begin anew, before they come back; raises as `renew`."""
        renew(self._con, table_id, names, self.now.timestamp())

    def forget(self, item: Garbage) -> None:
        """Strike a file off that is gone from the disk."""
        self._con.execute(t.garbage.delete().where(t.garbage.c.id == item.id))
        if item.kind in COLD_KINDS:
            self.cold(item.table_id).forget([item.name])
        if item.kind == "journal":
            writer, number = item.name.split("/")
            g = t.generations.c
            self._con.execute(
                t.generations.delete().where(
                    g.holding_id == self._held(item.table_id),
                    g.writer == writer,
                    g.number == int(number),
                )
            )
