"""Time travel: the sealed rows of a table as they were at a version.

What a version listed is known as long as the catalog or the log has it, and its files are there for
a grace after they were replaced. All of them are looked for first: an answer is whole or none.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Collection

from lakestore.context import TableContext
from lakestore.errors import InvalidInputError, NotFoundError
from lakestore.events.filters import Moment, moment
from lakestore.layout import data_prefix
from lakestore.past import AsOf, Version
from lakestore.payloadview import payload_names
from lakestore.query.frames import of_caller
from lakestore.query.parameters import Parameters
from lakestore.query.payloads import readable
from lakestore.query.pin import PinnedRows, pin_version
from lakestore.query.result import Result
from lakestore.session import Session
from lakestore.tablerows import TableRows
from lakestore.versions import take_up


def history(table: TableContext, limit: int | None) -> list[Version]:
    """The last versions, the newest first.

    Raises:
        StorageError, CorruptionError: the catalog, the log or the store cannot be read.
    """
    if limit is not None and limit < 1:
        raise InvalidInputError(f"limit {limit!r} is not 1 or more")
    past = table.cold.past(limit)
    return past.told(_missing(table, past.names))


def as_of(table: TableContext, wanted: int | Moment) -> tuple[TableContext, AsOf]:
    """What a table was, found by number or by time; and the table with the newest schema.

    Raises:
        NotFoundError: it is not known what it was.
        Others: as `history`.
    """
    when = wanted if isinstance(wanted, int) else moment(wanted)
    if when is None:
        raise InvalidInputError("say a version, as history() tells, or a time")
    table = take_up(table, table.state(newest=True).schema_version)
    found = table.cold.as_of(when)
    if found is not None:
        return table, found
    asked = f"no version {when}" if isinstance(when, int) else f"nothing as of {when.isoformat()}"
    changes = table.cold.past(None).changes
    known = "nothing is known of what it was"
    if changes:
        known = f"its history goes from {_told(changes[-1])} to {_told(changes[0])}"
    raise NotFoundError(f"table {table.entry.name!r} has {asked}: {known}")


def check(table: TableContext, version: AsOf) -> None:
    """Raise `NotFoundError` unless all files of a version are there; others as `history`."""
    lacking = len(_missing(table, version.went)) + version.forgotten
    if not lacking:
        return
    known = [change for change in history(table, None) if change.readable]
    later = [change for change in known if change.version > version.version]
    oldest = f"the oldest after it that can is {_told(later[-1])}; " if later else ""
    raise NotFoundError(
        f"version {version.version} of table {table.entry.name!r} cannot be asked any more, "
        f"{lacking:,} of its {len(version.files) + version.forgotten:,} files are deleted: "
        f"{oldest}files that were replaced are kept for cold_grace_s, here "
        f"{table.site.settings.cold_grace_s:g} s"
    )


def _told(change: Version) -> str:
    return f"version {change.version} of {change.at.isoformat(timespec='seconds')}"


def _missing(table: TableContext, names: Collection[str]) -> set[str]:
    """Those of some cold files that nobody can ask; of each folder with such files, by listing it.

    They are deleted, or hold rows that were purged, and are about to be.
    """
    if not names:
        return set()
    prefix = data_prefix(table.entry.folder)
    there: set[str] = set()
    for folder in {name.rpartition("/")[0] for name in names}:
        listed = table.site.storage.list(f"{prefix}{folder}/" if folder else prefix)
        there.update(key.removeprefix(prefix) for key in listed)
    id = table.entry.id
    waiting = (g for g in table.site.catalog.garbage() if g.table_id == id and g.kind == "purged")
    return set(names) - there.difference(item.name for item in waiting)


class TableVersion(TableRows, PinnedRows):
    """A table's sealed rows as of a version; made by `table.at`.

    A statement of `lake.sql` can name the variable that holds it, beside tables as they are now.
    """

    def __init__(self, session: Session, context: TableContext, version: AsOf) -> None:
        """Keep the files of a version from being deleted, if they are there.

        Raises:
            NotFoundError: they are not.
        """
        super().__init__(session)
        self._table = context
        self.version = version.version
        self.at = version.at
        self.pin = pin_version(context, version.version, version.files)
        self._as_of = version
        names = [*(file.name for file in version.files), *payload_names(version.files)]
        in_use = session.queries.in_use
        in_use.add(names)  # first: what is there after that stays
        weakref.finalize(self, in_use.remove, names)
        self.check()

    def __repr__(self) -> str:
        return f"<lakestore table {self.name!r} at version {self.version} of {self.at.isoformat()}>"

    def check(self) -> None:
        """Raise `NotFoundError` when files of it are deleted by now."""
        check(self._context, self._as_of)

    def sql(self, query: str, params: Parameters = None) -> Result:
        """Run one statement that reads, in which the table's name means its rows of this version.

        As `lake.sql`, and the caller's own data can be joined as there; other tables cannot, but
        by `lake.sql`, which takes the variable that holds this.

        Args:
            query: DuckDB SQL; `$name` or `?` where a parameter goes.
            params: a mapping for `$name`, a sequence for `?`.

        Raises:
            NotFoundError: files of the version are deleted by now; others as `lake.sql`.
        """
        self._session.check_open()
        tables = [self._context]
        frames = of_caller(query, sys._getframe(1), readable(tables))
        return self._session.queries.sql(query, params, tables, {**frames, self.name: self})

    @property
    def _context(self) -> TableContext:
        return self._table

    @property
    def _source(self) -> PinnedRows:
        return self
