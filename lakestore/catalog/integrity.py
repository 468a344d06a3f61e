"""What is wrong with a catalog by itself, before its rows are held against the lake's files."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t

_SHOWN = 20
_DESCRIBED = ("table_xinfo", "foreign_key_list")


def check(con: Connection) -> list[str]:
    """What SQLite finds in its own file, references that lead nowhere, relations not as made."""
    found = con.exec_driver_sql(f"PRAGMA integrity_check({_SHOWN})").scalars().all()
    keys = con.exec_driver_sql("PRAGMA foreign_key_check").all()
    wrong = [text for text in found if text != "ok"]
    wrong += [f"a row of {row[0]!r} names no {row[2]!r}" for row in keys[:_SHOWN]]
    made = sa.create_engine("sqlite://")
    try:
        with made.connect() as fresh:
            t.metadata.create_all(fresh)
            wrong += [
                f"relation {name!r} is not as it was made"
                for name in t.metadata.tables
                if _shape(con, name) != _shape(fresh, name)
            ]
    finally:
        made.dispose()
    rows = con.execute(sa.select(t.lake.c.one, t.lake.c.format)).all()
    if [tuple(row) for row in rows] != [(1, t.FORMAT)]:
        wrong.append(f"its first line is {rows!r}")
    return wrong + _versions(con)


def _versions(con: Connection) -> list[str]:
    """Cold files and history that are of no version that there was."""
    versions = con.execute(sa.select(t.lake.c.version)).scalars().all()
    newest = max(versions, default=0)
    c = t.cold_files.c
    wrong = [
        f"cold file {name!r} came with version {added} of {newest} and went with {removed}"
        for name, added, removed in con.execute(sa.select(c.name, c.added, c.removed))
        if not 0 <= added <= (removed or newest) <= newest
    ]
    for row in con.execute(sa.select(t.history)):
        counts = (row.files_added, row.rows_added, row.files_removed, row.rows_removed)
        if not 0 <= row.version <= newest or min(counts) < 0:
            wrong.append(f"its history has version {row.version} of {newest}: {counts}")
    return wrong


def _shape(con: Connection, relation: str) -> list[Any]:
    """Columns, keys and indexes of a relation; the text that made it depends on SQLAlchemy."""
    shape: list[Any] = [
        con.exec_driver_sql(f"PRAGMA {what}('{relation}')").all() for what in _DESCRIBED
    ]
    for index in con.exec_driver_sql(f"PRAGMA index_list('{relation}')").all():
        shape += [tuple(index), con.exec_driver_sql(f"PRAGMA index_xinfo('{index[1]}')").all()]
    return shape
