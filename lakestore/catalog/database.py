"""What a catalog needs of the database that keeps it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.errors import CorruptionError
from lakestore.failpoint import reach

Kind = Literal["read", "write"]
"""A transaction sees one version; one that writes is alone, and sees the newest."""


def _nothing() -> bool:
    return False


@dataclass(frozen=True)
class Creation:
    """What a catalog is made with when there is none.

    An empty one is never made beside files that one has to name: they would be lost to it.
    """

    lake: str | None = None
    """The uuid of the lake; without it, none is made."""
    site: str = ""
    needs_catalog: Callable[[], bool] = _nothing
    """Whether there are files that only a catalog of this lake could name."""
    needs_site: Callable[[], bool] = _nothing
    """Whether there are files that only a catalog that knows this site could name."""


class Database(Protocol):
    """One database, and the connections of this process to it."""

    name: str
    """What messages call it; without secrets."""
    remedy: str
    """What helps when it is lost."""
    site: str | None
    """Which site asks; None where the database knows but one."""

    def open(self, *, write: bool, is_filled: Callable[[], bool]) -> None:
        """Get ready to connect.

        Args:
            write: an empty one may be made.
            is_filled: whether there are files that a catalog has to name.

        Raises:
            NotFoundError: there is none, and none is to be created.
            CorruptionError: there is none, though there was one.
            StorageError: it cannot be read, or (`write`) written.
        """
        ...

    def begin(self, kind: Kind) -> AbstractContextManager[Connection]:
        """One transaction: committed at the end, or rolled back by an exception.

        Raises:
            LockedError: another process kept it busy for 30 s.
            StorageError: it cannot be used for now; nothing was committed.
            CommitUncertainError: it could not be learned whether the commit was done.
            CorruptionError: it is damaged.
        """
        ...

    def prepare(self, con: Connection) -> None:
        """Before the relations are made."""
        ...

    def scrub(self) -> str | None:
        """Overwrite what deleted lines said; what of them is left where, if anything."""
        ...

    def is_in_place(self) -> bool:
        """Whether what was opened is still the catalog: a rebuild moves SQLite's file away."""
        ...

    def check(self, con: Connection) -> list[str]:
        """What is wrong with it by itself, before it is held against the lake's files."""
        ...

    def again(self) -> "Database":
        """The same, with connections of its own."""
        ...

    def close(self) -> None:
        """Let every connection go."""
        ...


def lay_out(database: Database, con: Connection) -> None:
    """Make the relations of a catalog that are not there."""
    database.prepare(con)
    t.metadata.create_all(con)


def add_lake(con: Connection, lake: str) -> None:
    """Say of which lake an empty catalog is."""
    con.execute(t.lake.insert(), {"one": 1, "format": t.FORMAT, "version": 0, "uuid": lake})


def refuse_lost(database: Database, is_filled: Callable[[], bool]) -> None:
    """Never make an empty catalog beside files that one has to name."""
    if is_filled():
        raise CorruptionError(
            f"the catalog {database.name!r} is lost, and the lake is not empty; {database.remedy}"
        )


@contextmanager
def changing(database: Database) -> Iterator[Connection]:
    """One transaction that changes what the catalog says; raises as `Database.begin`.

    Failpoints: catalog.1 begun    .2 all of it written    .3 committed
    """
    with database.begin("write") as con:
        reach("catalog.1")
        yield con
        reach("catalog.2")
    reach("catalog.3")
