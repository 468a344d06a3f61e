"""The list of a table's cold files, as one transaction changes it."""

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.rows import info_text
from lakestore.errors import ConflictError
from lakestore.snapshot import ColdFile

_AT_ONCE = 500
"""Names in one statement; SQLite takes 32,766 parameters, old ones 999."""


class ColdList:
    """One table's cold files; those that were removed stay on it until they are deleted."""

    def __init__(
        self, con: Connection, table_id: int, version: int, now: datetime, site: str
    ) -> None:
        """The list, to be changed.

        Args:
            version: of the lake, once this transaction is committed.
            site: whose transaction it is.
        """
        self._con = con
        self._table_id = table_id
        self._site = site
        self._version = version
        self._now = now.timestamp()
        self._mine = t.cold_files.c.table_id == table_id

    def add(self, files: Sequence[ColdFile]) -> None:
        """List files; those that were removed before are part of the table again from now on."""
        c = t.cold_files.c
        known: set[str] = set()
        for some in _pieces([file.name for file in files]):
            query = sa.select(c.name).where(self._mine, c.name.in_(some), c.removed == 0)
            known.update(self._con.execute(query).scalars())
        rows = [self._row(file) for file in files if file.name not in known]
        if rows:
            self._con.execute(t.cold_files.insert(), rows)

    def restore(self, files: Sequence[ColdFile]) -> None:
        """Make removed files part of the table again.

        Raises:
            ConflictError: one of them is part of it, or is being deleted.
        """
        c = t.cold_files.c
        left: set[str] = set()
        live: set[str] = set()
        for some in _pieces([file.name for file in files]):
            query = sa.select(c.name, c.removed).where(self._mine, c.name.in_(some))
            for name, removed in self._con.execute(query):
                (left if removed else live).add(name)
        if live or len(left) != len(files):
            raise ConflictError("an expired cold file came back or was deleted meanwhile")
        if files:
            self._con.execute(t.cold_files.insert(), [self._row(file) for file in files])

    def remove(self, files: Sequence[ColdFile]) -> None:
        """Take files off the table; they stay on the list, as removed.

        Raises:
            ConflictError: one of them is not part of the table any more.
        """
        c, listed = t.cold_files.c, 0
        for some in _pieces([file.name for file in files]):
            live = (self._mine, c.name.in_(some), c.removed == 0)
            removed = t.cold_files.update().where(*live).values(removed=self._version)
            listed += self._con.execute(removed).rowcount
        if listed != len(files):
            raise ConflictError("a cold file was replaced meanwhile; that result stands")

    def forget(self, names: Collection[str]) -> None:
        """Strike files off that are gone from the storage."""
        for some in _pieces(sorted(names)):
            gone = (self._mine, t.cold_files.c.name.in_(some), t.cold_files.c.removed > 0)
            self._con.execute(t.cold_files.delete().where(*gone))

    def live(self) -> set[str]:
        """Names of the files that are part of the table."""
        query = sa.select(t.cold_files.c.name).where(self._mine, t.cold_files.c.removed == 0)
        return set(self._con.execute(query).scalars())

    def note(
        self, operation: str, added: Sequence[ColdFile], removed: Sequence[ColdFile] = ()
    ) -> None:
        """Say in the history what this version has changed."""
        self._con.execute(
            t.history.insert(),
            {
                "table_id": self._table_id,
                "version": self._version,
                "at": self._now,
                "operation": operation,
                "site": self._site,
                "files_added": len(added),
                "rows_added": sum(file.info.rows for file in added),
                "files_removed": len(removed),
                "rows_removed": sum(file.info.rows for file in removed),
            },
        )

    def _row(self, file: ColdFile) -> dict[str, object]:
        return {
            "table_id": self._table_id,
            "name": file.name,
            "day": file.day,
            "first": file.first,
            "last": file.last,
            "schema_version": file.schema_version,
            "committed_at": self._now,
            "info": info_text(file.info),
            "added": self._version,
            "removed": 0,
        }


def _pieces(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]
