"""Files in the root that wait for vacuum, whichever site listed them: some come back."""

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.records import Garbage, GarbageKind
from lakestore.errors import ConflictError


def strike(con: Connection, table_id: int, kind: GarbageKind, names: Collection[str]) -> None:
    """Files are not to be deleted."""
    for name in names:
        con.execute(t.garbage.delete().where(_lists(table_id, kind, name)))


def claim(con: Connection, garbage: Garbage) -> bool:
    """Whether a file may be deleted now: from then on nobody brings it back.

    Not when an undo has renewed its grace, or has made it live, since it was read.
    """
    c = t.garbage.c
    as_read = (c.id == garbage.id, c.since == garbage.since)
    return bool(con.execute(t.garbage.update().where(*as_read).values(since=0.0)).rowcount)


def renew(con: Connection, table_id: int, names: Collection[str], now: float) -> None:
    """Have the grace of cold files begin anew.

    Raises:
        ConflictError: one of them is not there to be renewed, or is being deleted.
    """
    for name in names:
        waits = _lists(table_id, "cold", name) & (t.garbage.c.since > 0)
        if not con.execute(t.garbage.update().where(waits).values(since=now)).rowcount:
            raise ConflictError(
                f"{name!r} was deleted, or expired at another host, which alone can bring it back"
            )


def _lists(table_id: int, kind: GarbageKind, name: str) -> sa.ColumnElement[bool]:
    g, h = t.garbage.c, t.holdings.c
    holdings = sa.select(h.id).where(h.table_id == table_id)
    return g.holding_id.in_(holdings) & (g.kind == kind) & (g.name == name)
