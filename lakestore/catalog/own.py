"""What one site has of tables: its segments, marks and garbage, as one transaction changes them."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.garbage as garbage
import lakestore.catalog.tables as t
from lakestore.catalog.holdings import holding_of, sent_of
from lakestore.catalog.records import GarbageKind, Sent
from lakestore.catalog.rows import info_of, info_text
from lakestore.clock import micros
from lakestore.errors import ConflictError
from lakestore.snapshot import GenerationId, Segment

_LEASE_MAX_S = 600.0
"""A lease that ends later than this was given by a clock that has been set back since."""


class OwnChanges:
    """What one catalog transaction may change of that which this site has."""

    def __init__(self, con: Connection, site: str, now: datetime) -> None:
        self._con = con
        self._site = site
        self._holdings: dict[int, int] = {}
        self.now = now

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

    def add_garbage(self, table_id: int, kind: GarbageKind, names: Sequence[str]) -> None:
        """Note files that nothing names from this commit on."""
        now = self.now.timestamp()
        garbage.add(self._con, self._held(table_id), kind, names, now)

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
            known = key_of(self._con.execute(t.holdings.insert(), values | marks))
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


def key_of(result: sa.CursorResult[Any]) -> int:
    """The key of the line that was inserted."""
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])
