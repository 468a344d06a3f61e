"""One catalog transaction, as the changes it may make."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.garbage as garbage
import lakestore.catalog.tables as t
from lakestore.catalog.coldlist import ColdList
from lakestore.catalog.holdings import accepted_of, holding_of, marks_of, sent_of
from lakestore.catalog.records import (
    COLD_KINDS,
    Garbage,
    GarbageKind,
    Sent,
    TableEntry,
    check_new,
)
from lakestore.catalog.rows import info_of, info_text
from lakestore.catalog.waiting import claim, renew, strike
from lakestore.clock import micros
from lakestore.errors import ConflictError, InvalidInputError
from lakestore.marks import RETIRED, check_retirable, next_mark
from lakestore.replacement import Record, Replacement
from lakestore.snapshot import ColdFile, GenerationId, Segment

_LEASE_MAX_S = 600.0
"""A lease that ends later than this was given by a clock that has been set back since."""


class Commit:
    """What one catalog transaction may change."""

    def __init__(self, con: Connection, site: str, now: datetime) -> None:
        self._con = con
        self._site = site
        self._holdings: dict[int, int] = {}
        self.now = now
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
        table_id = _key(result)
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

    def last_segment(self, table_id: int) -> int:
        """The highest segment number given so far."""
        c = t.holdings.c
        query = sa.select(c.last_segment).where(c.id == self._held(table_id))
        return int(self._con.execute(query).scalar_one())

    def sealed_through(self, table_id: int) -> int:
        """Up to which segment number rows are cold, as far as the catalog knows."""
        c = t.holdings.c
        query = sa.select(c.sealed_through).where(c.id == self._held(table_id))
        return int(self._con.execute(query).scalar_one())

    def flushed(self, table_id: int) -> set[GenerationId]:
        """Generations whose rows a segment holds."""
        query = sa.select(t.generations.c.writer, t.generations.c.number).where(
            t.generations.c.holding_id == self._held(table_id)
        )
        return {GenerationId(*row) for row in self._con.execute(query)}

    def sent(self, table_id: int, pairs: Collection[Sent]) -> set[Sent]:
        """Those of the (producer, seq) that another segment may hold."""
        return sent_of(self._con, self._held(table_id), pairs) if pairs else set()

    def forget_sent(self, table_id: int) -> None:
        """Only the highest seq of each producer matters: no other writer holds unflushed rows."""
        held = self._held(table_id)
        self._con.execute(t.batches.delete().where(t.batches.c.holding_id == held))

    def add_segment(
        self,
        table_id: int,
        segment: Segment,
        covers: Sequence[GenerationId],
        sent: Collection[Sent],
    ) -> None:
        """List a segment; the generations it covers are flushed from this commit on."""
        self._con.execute(
            t.segments.insert(),
            {
                "holding_id": self._held(table_id),
                "first": segment.first,
                "last": segment.last,
                "name": segment.name,
                "has_duckdb": segment.has_duckdb,
                "committed_at": segment.committed_at.timestamp(),
                "info": info_text(segment.info, segment.schema_version),
            },
        )
        self._mark(table_id, last_segment=segment.last)
        self.add_flushed(table_id, covers, sent)

    def add_flushed(
        self, table_id: int, covers: Sequence[GenerationId], sent: Collection[Sent]
    ) -> None:
        """Generations whose rows are published, or known already: their files may go."""
        held = self._held(table_id)
        highest: dict[str, int] = {}
        for producer, seq in sorted(set(sent) - self.sent(table_id, sent)):
            highest[producer] = seq
            self._con.execute(
                t.batches.insert(), {"holding_id": held, "producer": producer, "seq": seq}
            )
        for producer, seq in highest.items():
            self._raise_producer(table_id, producer, seq)
        for id in covers:
            self._con.execute(
                t.generations.insert(),
                {"holding_id": held, "writer": id.writer, "number": id.number},
            )
        self.add_garbage(table_id, "journal", [f"{g.writer}/{g.number}" for g in covers])

    def accept(self, table_id: int, sent: Mapping[str, int]) -> None:
        """Take what a load has of its sources: the rows of each so far, by producer.

        Raises:
            AcceptedError: somebody took them meanwhile.
        """
        known = accepted_of(self._con, table_id, sent)
        check_new(sent, known)
        self.follow(table_id, sent)

    def follow(self, table_id: int, producers: Mapping[str, int]) -> None:
        """Move producers up to numbers that files hold."""
        for producer, seq in producers.items():
            self._raise_producer(table_id, producer, seq)

    def replace_segments(self, table_id: int, old: Sequence[Segment], new: Segment) -> None:
        """Put one merged segment in the place of neighbours.

        Raises:
            ConflictError: one of them was sealed or merged meanwhile.
        """
        assert (new.first, new.last) == (old[0].first, old[-1].last), (old, new)
        c = t.holdings.c
        claimed = sa.select(c.sealing_through).where(c.id == self._held(table_id))
        if old[0].first <= self._con.execute(claimed).scalar_one():
            raise ConflictError(f"segment {old[0].name!r} is being sealed")
        self.check_listed(table_id, old)
        self._remove_segments(table_id, [segment.name for segment in old], new.info.payload)
        self.add_segment(table_id, new, (), ())

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

    def claim(self, table_id: int, segments: Sequence[Segment], through: int) -> None:
        """Keep segments from being merged: they are about to be sealed into a log.

        A claim outlives who made it, because what was sent to a log may arrive yet.

        Raises:
            ConflictError: one of them was sealed or merged meanwhile.
        """
        self.check_listed(table_id, segments)
        self._mark(table_id, sealing_through=through)

    def settle(self, table_id: int, through: int) -> None:
        """Follow a log that says that segments are sealed: take them off, and move after it."""
        c = t.segments.c
        sealed = (c.holding_id == self._held(table_id)) & (c.last <= through)
        names = self._con.execute(sa.select(c.name).where(sealed)).scalars().all()
        self._remove_segments(table_id, names)
        self._mark(table_id, sealed_through=through)

    def take_lease(self, table_id: int, writer: str, until: float, *, over: bool) -> bool:
        """Make `writer` the one that maintains a table, unless another is.

        Args:
            until: Unix seconds; from then on anybody may take it.
            over: take it from whoever has it.
        """
        mine = t.leases.c.holding_id == self._held(table_id)
        row = self._con.execute(sa.select(t.leases).where(mine)).first()
        values = {"holding_id": self._held(table_id), "writer": writer, "until": until}
        if row is None:
            self._con.execute(t.leases.insert(), values)
        elif (
            over or row.writer == writer or not 0 < row.until - self.now.timestamp() < _LEASE_MAX_S
        ):
            self._con.execute(t.leases.update().where(mine).values(values))
        else:
            return False
        return True

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

    def add_garbage(self, table_id: int, kind: GarbageKind, names: Sequence[str]) -> None:
        """Note files that nothing names from this commit on."""
        now = self.now.timestamp()
        garbage.add(self._con, self._held(table_id), kind, names, now)

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

    def check_listed(self, table_id: int, segments: Sequence[Segment]) -> None:
        """Raise `ConflictError` when one of the segments was sealed or merged meanwhile."""
        c = t.segments.c
        listed = self._con.execute(
            sa.select(c.name).where(c.holding_id == self._held(table_id))
        ).scalars()
        gone = {segment.name for segment in segments} - set(listed)
        if gone:
            raise ConflictError(
                f"segment {min(gone)!r} was sealed or merged meanwhile; that result stands"
            )

    def _remove_segments(
        self, table_id: int, names: Sequence[str], kept: Collection[str] = ()
    ) -> None:
        """Take segments off the list, and with them the payload files that no other refers to.

        Args:
            kept: payload files that a segment will refer to that is listed next.
        """
        c = t.segments.c
        mine = c.holding_id == self._held(table_id)
        payload: dict[bool, set[str]] = {True: set(), False: set(kept)}  # by whether it goes
        for name, info in self._con.execute(sa.select(c.name, c.info).where(mine)):
            payload[name in names].update(info_of(info).payload)
        self._con.execute(t.segments.delete().where(mine, c.name.in_(names)))
        self.add_garbage(table_id, "segment", names)
        self.add_garbage(table_id, "payload", sorted(payload[True] - payload[False]))

    def _raise_producer(self, table_id: int, producer: str, seq: int) -> None:
        c = t.producers.c
        held = self._held(table_id)
        mine = (c.holding_id == held) & (c.producer == producer)
        known = self._con.execute(sa.select(c.seq).where(mine)).scalar_one_or_none()
        if known is None:
            values = {"holding_id": held, "producer": producer, "seq": seq}
            self._con.execute(t.producers.insert(), values)
        elif known < seq:
            self._con.execute(t.producers.update().where(mine).values(seq=seq))

    def _held(self, table_id: int) -> int:
        """What this site holds of a table; from its first commit to it on, there is something."""
        known = self._holdings.get(table_id) or holding_of(self._con, self._site, table_id)
        if known is None:
            marks = dict.fromkeys(("sealed_through", "last_segment", "sealing_through"), 0)
            marks["complete_before"] = self._new_mark()
            values = {"table_id": table_id, "site": self._site, "dropped": False}
            known = _key(self._con.execute(t.holdings.insert(), values | marks))
        self._holdings[table_id] = known
        return known

    def _new_mark(self) -> int:
        """Before which moment all is cold that a site accepted which had nothing: any."""
        return micros(self.now)

    def _mark(self, table_id: int, *, dropped: bool = False, **marks: int) -> None:
        """Move marks of a holding up; those that are there already stay."""
        c, held = t.holdings.c, self._held(table_id)
        for name, value in marks.items():
            self._con.execute(
                t.holdings.update().where(c.id == held, c[name] < value).values({name: value})
            )
        if dropped:
            self._con.execute(t.holdings.update().where(c.id == held).values(dropped=True))


def _key(result: sa.CursorResult[Any]) -> int:
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])
