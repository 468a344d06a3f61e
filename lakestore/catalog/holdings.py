"""What sites have of the tables: read in a transaction, of one version."""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.records import Garbage, Holding, Sent
from lakestore.catalog.rows import segment_of

_NAMES_MAX = 500
"""So many values in one statement; databases have limits."""


def holding_of(con: Connection, site: str, table_id: int) -> int | None:
    """What a site holds of a table, by its number in the catalog."""
    c = t.holdings.c
    query = sa.select(c.id).where(c.table_id == table_id, c.site == site)
    found = con.execute(query).scalar_one_or_none()
    return None if found is None else int(found)


def sent_of(con: Connection, holding: int, pairs: Collection[Sent]) -> set[Sent]:
    """Those of the (producer, seq) that a segment of a holding has, as far as it is remembered."""
    b = t.batches.c
    query = sa.select(b.producer, b.seq).where(
        b.holding_id == holding, b.producer.in_({producer for producer, _ in pairs})
    )
    return {(producer, seq) for producer, seq in con.execute(query)} & set(pairs)


def accepted_of(con: Connection, table_id: int, producers: Collection[str]) -> dict[str, int]:
    """The highest seq of each of these producers that any site has of a table."""
    p, h = t.producers.c, t.holdings.c
    query = sa.select(p.producer, sa.func.max(p.seq)).join(t.holdings, h.id == p.holding_id)
    query = query.where(h.table_id == table_id).group_by(p.producer)
    found: dict[str, int] = {}
    names = sorted(producers)
    for start in range(0, len(names), _NAMES_MAX):
        some = names[start : start + _NAMES_MAX]
        found |= pairs_of(con, query.where(p.producer.in_(some)))
    return found


def marks_of(con: Connection, table_id: int) -> dict[str, int]:
    """The mark of each site that has something of a table."""
    h = t.holdings.c
    query = sa.select(h.site, h.complete_before)
    return dict(map(tuple, con.execute(query.where(h.table_id == table_id, h.dropped.is_(False)))))


def holdings_of(con: Connection, table_id: int) -> dict[str, Holding]:
    """What each site has of a table; raises as `segment_of`."""
    h, s = t.holdings.c, t.segments.c
    holdings = con.execute(sa.select(t.holdings).where(h.table_id == table_id)).all()
    query = sa.select(t.segments).order_by(s.first)
    return {
        row.site: Holding(
            row.sealed_through,
            tuple(
                segment_of(one) for one in con.execute(query.where(s.holding_id == row.id)).all()
            ),
        )
        for row in holdings
        if not row.dropped
    }


def seen(con: Connection) -> dict[str, float]:
    """When each site was last seen to do something (Unix seconds, by its own clock).

    It joined, it flushed, or a process of it leases a table: until then it is there.
    """
    h = t.holdings.c
    latest = dict(map(tuple, con.execute(sa.select(t.sites.c.name, t.sites.c.joined_at))))
    for relation, column in ((t.segments, "committed_at"), (t.leases, "until")):
        query = sa.select(h.site, sa.func.max(relation.c[column])).join(
            relation, relation.c.holding_id == h.id
        )
        for site, when in con.execute(query.group_by(h.site)):
            latest[site] = max(latest[site], when)
    return latest


def garbage_of(con: Connection, site: str) -> list[Garbage]:
    """What a site has that nothing names any more."""
    g, h = t.garbage.c, t.holdings.c
    query = sa.select(g.id, h.table_id, t.tables.c.folder, g.kind, g.name, g.since)
    query = query.join(t.holdings, h.id == g.holding_id).join(t.tables, t.tables.c.id == h.table_id)
    return [Garbage(*row) for row in con.execute(query.where(h.site == site))]


def pairs_of(con: Connection, query: sa.Select[tuple[Any, Any]]) -> dict[Any, Any]:
    """The rows of a query of two columns, by the first."""
    return {row[0]: row[1] for row in con.execute(query)}
