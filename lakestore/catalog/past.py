"""What was done to the tables, as far as it matters still: read in a transaction."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.rows import cold_of
from lakestore.replacement import Pruning, nothing_pruned

_MOMENTS = 10_000


def moments(con: Connection) -> list[float]:
    """When segments and cold files of any table were listed, in Unix seconds: the latest."""
    found: list[float] = []
    for at in (t.history.c.at, t.segments.c.committed_at):
        found += con.execute(sa.select(at).order_by(at.desc()).limit(_MOMENTS)).scalars()
    return found


def pruned(con: Connection, table_id: int, version: int | None) -> Pruning:
    """What a prune took off a table, as long as the list has all of its files.

    Args:
        version: that it made; by default the newest one that was not taken back.

    Raises:
        NotFoundError: there is none, or its files are deleted.
    """
    h, c = t.history.c, t.cold_files.c
    query = sa.select(h.version, h.files_removed).where(
        h.table_id == table_id, h.operation == "prune"
    )
    query = query.order_by(h.version.desc())
    if version is not None:
        query = query.where(h.version == version)
    removed = sa.select(t.cold_files).where(c.table_id == table_id).order_by(c.name)
    for row in con.execute(query).all():
        found = con.execute(removed.where(c.removed == row.version)).all()
        if len(found) == row.files_removed:
            return Pruning(row.version, tuple(cold_of(one) for one in found))
        if found:  # the rest is deleted
            break
    raise nothing_pruned(version)
