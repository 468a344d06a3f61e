"""What the tables were, and what was done to them: read in a transaction, of one version."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.rows import cold_of
from lakestore.past import AsOf, Past, Span, Version
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
    later = t.cold_files.alias("later").c
    for row in con.execute(query).all():
        came_back = sa.select(later.name).where(
            later.table_id == table_id, later.added > row.version
        )
        gone = (c.removed == row.version) & c.name.not_in(came_back)
        found = con.execute(removed.where(gone)).all()
        if len(found) == row.files_removed:
            return Pruning(row.version, tuple(cold_of(one) for one in found))
        if found:  # the rest is deleted
            break
    raise nothing_pruned(version)


def past_of(con: Connection, table_id: int, limit: int | None) -> Past:
    """The last versions of a table; of a `limit` that is None, all."""
    h, c = t.history.c, t.cold_files.c
    query = sa.select(t.history).where(h.table_id == table_id).order_by(h.version.desc())
    changes = [_change_of(row) for row in con.execute(query.limit(limit))]
    mine = c.table_id == table_id
    live = sa.select(c.added, sa.func.count()).where(mine, c.removed == 0).group_by(c.added)
    first = changes[-1].version if changes else 0
    went = sa.select(c.name, c.added, c.removed).where(mine, c.removed > first)
    return Past(
        changes,
        dict(map(tuple, con.execute(live))),
        [Span(*row) for row in con.execute(went)],
    )


def as_of(con: Connection, table_id: int, wanted: int | datetime) -> AsOf | None:
    """A table as of a version, or of the newest at a time; None when there is none."""
    h, c = t.history.c, t.cold_files.c
    mine = h.table_id == table_id
    chosen = h.version == wanted if isinstance(wanted, int) else h.at <= wanted.timestamp()
    query = sa.select(h.version, h.at).where(mine, chosen).order_by(h.version.desc()).limit(1)
    found = con.execute(query).first()
    if found is None:
        return None
    version, at = found
    listed = (c.table_id == table_id, c.added <= version)
    there = sa.select(t.cold_files).where(*listed, (c.removed == 0) | (c.removed > version))
    rows = con.execute(there.order_by(c.name)).all()
    return AsOf(
        version,
        datetime.fromtimestamp(at, UTC),
        tuple(cold_of(row) for row in rows),
        [row.name for row in rows if row.removed],
        _count(con, table_id, version) - len(rows),
    )


def _count(con: Connection, table_id: int, version: int) -> int:
    """How many files a version had, counted back from those that there are now."""
    h, c = t.history.c, t.cold_files.c
    live = sa.select(sa.func.count()).where(c.table_id == table_id, c.removed == 0)
    sums = (sa.func.coalesce(sa.func.sum(n), 0) for n in (h.files_added, h.files_removed))
    since = sa.select(*sums).where(h.table_id == table_id, h.version > version)
    added, removed = con.execute(since).one()
    return int(con.execute(live).scalar_one() - added + removed)


def _change_of(row: Any) -> Version:
    return Version(
        row.version,
        datetime.fromtimestamp(row.at, UTC),
        row.operation,
        row.rows_added,
        row.rows_removed,
        row.files_added,
        row.files_removed,
        row.site or None,
    )
