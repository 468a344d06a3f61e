"""Migrations: bring a catalog of an older format to the newest, one format at a time.

Each runs in one transaction together with the number that says it was done, so a crash leaves the
one format or the other, and of two processes the second finds it done. Formats before 3 were of
SQLite alone.
"""

from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.rows import DAMAGED, info_of
from lakestore.catalog.strict import Number, Seconds, Text, damage

_COUNTED = "<counted>"
"""The type of a key that counts up by itself, which every database calls something else."""
_OF_A_HOLDING = {
    "segments": (
        "first BIGINT NOT NULL, last BIGINT NOT NULL, name TEXT NOT NULL,"
        " has_duckdb BOOLEAN NOT NULL, committed_at FLOAT NOT NULL, info TEXT NOT NULL,"
        " PRIMARY KEY (holding_id, first)"
    ),
    "generations": (
        "writer TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (holding_id, writer, number)"
    ),
    "producers": (
        "producer TEXT NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY (holding_id, producer)"
    ),
    "batches": (
        "producer TEXT NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY (holding_id, producer, seq)"
    ),
    "leases": 'writer TEXT NOT NULL, "until" FLOAT NOT NULL, PRIMARY KEY (holding_id)',
}
"""Columns after the first, as format 3 has them."""


def _to_holdings() -> Iterator[str]:
    """What a site has of a table leaves `tables`; what named a table names a holding instead."""
    yield (
        "CREATE TABLE sites (name TEXT NOT NULL, version BIGINT NOT NULL,"
        " joined_at FLOAT NOT NULL, PRIMARY KEY (name))"
    )
    yield "INSERT INTO sites SELECT site, 0, 0.0 FROM lake"
    yield "ALTER TABLE lake DROP COLUMN site"
    yield (
        "CREATE TABLE holdings (id INTEGER NOT NULL, table_id INTEGER NOT NULL,"
        " site TEXT NOT NULL, sealed_through BIGINT NOT NULL, last_segment BIGINT NOT NULL,"
        " sealing_through BIGINT NOT NULL, complete_before BIGINT NOT NULL,"
        " dropped BOOLEAN NOT NULL, PRIMARY KEY (id),"
        " UNIQUE (table_id, site), FOREIGN KEY(table_id) REFERENCES tables (id),"
        " FOREIGN KEY(site) REFERENCES sites (name))"
    )
    yield (
        "INSERT INTO holdings SELECT t.id, t.id, s.name, t.sealed_through, t.last_segment,"
        " t.sealing_through, 0, t.dropped_at IS NOT NULL FROM tables t, sites s"
    )
    for mark in ("sealed_through", "last_segment", "sealing_through"):
        yield f"ALTER TABLE tables DROP COLUMN {mark}"
    key = "holding_id INTEGER NOT NULL, "
    reference = ", FOREIGN KEY(holding_id) REFERENCES holdings (id))"
    for name, columns in _OF_A_HOLDING.items():
        yield from _made_again(name, f"CREATE TABLE {name} ({key}{columns}{reference}")
    yield from _made_again(
        "garbage",
        f"CREATE TABLE garbage (id INTEGER NOT NULL, {key}kind TEXT NOT NULL, name TEXT NOT NULL,"
        f" since FLOAT NOT NULL, PRIMARY KEY (id), UNIQUE (holding_id, kind, name){reference}",
    )


def _to_replacements() -> Iterator[str]:
    """Cold files have versions, from which on they are listed and no more."""
    key = "table_id INTEGER NOT NULL, "
    reference = ", FOREIGN KEY(table_id) REFERENCES tables (id))"
    yield from _made_again(
        "cold_files",
        f"CREATE TABLE cold_files ({key}name TEXT NOT NULL, day DATE NOT NULL,"
        " first BIGINT NOT NULL, last BIGINT NOT NULL, schema_version INTEGER NOT NULL,"
        " committed_at FLOAT NOT NULL, info TEXT NOT NULL, added BIGINT NOT NULL,"
        f" removed BIGINT NOT NULL, PRIMARY KEY (table_id, name, added){reference}",
        ", (SELECT version FROM lake), 0",
    )
    yield (
        f"CREATE TABLE history ({key}version BIGINT NOT NULL, at FLOAT NOT NULL,"
        " operation TEXT NOT NULL, site TEXT NOT NULL, files_added INTEGER NOT NULL,"
        " rows_added BIGINT NOT NULL,"
        " files_removed INTEGER NOT NULL, rows_removed BIGINT NOT NULL,"
        f" PRIMARY KEY (table_id, version){reference}"
    )
    yield (
        f"CREATE TABLE records (number {_COUNTED} NOT NULL, id TEXT NOT NULL, {key}"
        f"text TEXT NOT NULL, PRIMARY KEY (number), UNIQUE (id){reference}"
    )


def _made_again(name: str, statement: str, more: str = "") -> Iterator[str]:
    yield f"ALTER TABLE {name} RENAME TO old_{name}"
    yield statement
    yield f"INSERT INTO {name} SELECT *{more} FROM old_{name}"
    yield f"DROP TABLE old_{name}"


STEPS = {
    # From this format to the next. Delta tables came with 2, and with them what a seal has claimed;
    # several sites in one catalog with 3; compaction, and versions of cold files, with 4.
    1: ("ALTER TABLE tables ADD COLUMN sealing_through BIGINT NOT NULL DEFAULT '0'",),
    2: tuple(_to_holdings()),
    3: tuple(_to_replacements()),
}


def _begin_history(con: Connection) -> None:
    """One line for what each Parquet table has, and has had since its last file came."""
    version = con.exec_driver_sql("SELECT version FROM lake").scalar_one()
    files = sa.table(
        "cold_files",
        sa.column("info", Text()),
        sa.column("committed_at", Seconds()),
        sa.column("table_id", Number()),
    )
    listed = sa.select(files.c.info, files.c.committed_at)
    tables = "SELECT id, created_at FROM tables WHERE cold = 'parquet'"
    for id, created in con.exec_driver_sql(tables).all():
        found = con.execute(listed.where(files.c.table_id == id)).all()
        try:
            rows = sum(info_of(text).rows for text, _ in found)
        except DAMAGED as error:
            raise damage(repr(error)) from error
        values = {"id": id, "version": version, "at": max([created, *(at for _, at in found)])}
        line = "VALUES (:id, :version, :at, 'upgrade', '', :files, :rows, 0, 0)"
        begun = sa.text(f"INSERT INTO history {line}")
        con.execute(begun, values | {"files": len(found), "rows": rows})


def migrate(con: Connection) -> None:
    """Bring the catalog to `tables.FORMAT`; nothing happens when it is there."""
    counted = "SERIAL" if con.dialect.name == "postgresql" else "INTEGER"
    found = con.execute(sa.select(t.lake.c.format)).scalar_one()
    for number in range(found, t.FORMAT):
        for statement in STEPS[number]:
            con.exec_driver_sql(statement.replace(_COUNTED, counted))
        if number == 3:
            _begin_history(con)
    con.execute(t.lake.update().where(t.lake.c.format < t.FORMAT).values(format=t.FORMAT))
