"""The list of files that no version names any more, as one transaction changes it."""

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.records import COLD_KINDS, COLD_PAYLOAD_KINDS, GarbageKind
from lakestore.errors import ConflictError


def add(
    con: Connection, holding: int, kind: GarbageKind, names: Sequence[str], since: float
) -> None:
    """List files of a holding."""
    for name in names:
        line = {"holding_id": holding, "kind": kind, "name": name, "since": since}
        con.execute(t.garbage.insert(), line)


def condemn(
    con: Connection, holding: int, kind: GarbageKind, names: Collection[str], since: float
) -> None:
    """List files that are not to be gone back to; what is listed has waited already."""
    g = t.garbage.c
    groups = (COLD_KINDS, COLD_PAYLOAD_KINDS, (kind,))
    kinds = next(kinds for kinds in groups if kind in kinds)
    for name in sorted(names):
        mine = (g.holding_id == holding) & g.kind.in_(kinds) & (g.name == name)
        before = con.execute(sa.select(g.since).where(mine)).scalars().all()
        con.execute(t.garbage.delete().where(mine))
        add(con, holding, kind, [name], min(before, default=since))


def refuse_purged(con: Connection, table_id: int, names: Sequence[str]) -> None:
    """Raise `ConflictError` when one of the files holds rows that were purged."""
    g = t.garbage.c
    query = sa.select(g.name).where(_of(table_id), g.kind == "purged")
    purged = set(con.execute(query).scalars()) & set(names)
    if purged:
        raise ConflictError(f"cold file {min(purged)!r} holds rows that were purged")


def _of(table_id: int) -> sa.ColumnElement[bool]:
    h = t.holdings.c
    return t.garbage.c.holding_id.in_(sa.select(h.id).where(h.table_id == table_id))
