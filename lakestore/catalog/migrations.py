"""Migrations: bring a catalog of an older format to the newest, one format at a time.

Each runs in one transaction together with the number that says it was done, so a crash leaves the
one format or the other, and of two processes the second finds it done.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t

STEPS = {
    # From this format to the next. Delta tables came with 2, and with them what a seal has claimed.
    1: ("ALTER TABLE tables ADD COLUMN sealing_through BIGINT NOT NULL DEFAULT '0'",),
}


def migrate(con: Connection) -> None:
    """Bring the catalog to `tables.FORMAT`; nothing happens when it is there."""
    found = con.execute(sa.select(t.lake.c.format)).scalar_one()
    for number in range(found, t.FORMAT):
        for statement in STEPS[number]:
            con.exec_driver_sql(statement)
    con.execute(t.lake.update().where(t.lake.c.format < t.FORMAT).values(format=t.FORMAT))
