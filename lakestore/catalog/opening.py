"""Opening a catalog: it is made where there is none, an old one migrated, and this site joins."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.database import Creation, Database, add_lake, lay_out, refuse_lost
from lakestore.catalog.holdings import pairs_of
from lakestore.catalog.migrations import migrate
from lakestore.catalog.rows import only_site
from lakestore.clock import Clock
from lakestore.errors import CorruptionError, FormatTooNewError, InvalidInputError, NotFoundError


def enter(database: Database, clock: Clock, creation: Creation, *, write: bool) -> tuple[str, str]:
    """Open the catalog that a database keeps; returns the names of the lake and of the site.

    Args:
        write: make what is missing, and migrate what is old; else nothing is changed.

    Raises:
        NotFoundError: there is none, and none is to be created.
        CorruptionError: it is damaged, or there is none though there was one.
        FormatTooNewError: a newer lakestore wrote it.
        StorageError: it cannot be read, or (`write`) written.
    """
    database.open(write=write, is_filled=creation.needs_catalog)
    found = _format(database)
    if found is None:
        _make(database, clock, creation, write=write)
    elif found < t.FORMAT:
        _migrate(database, found, write=write)
    with database.begin("read") as con:
        lake = con.execute(sa.select(t.lake.c.uuid)).scalar_one()
        sites = pairs_of(con, sa.select(t.sites.c.name, t.sites.c.joined_at))
    site = database.site if database.site is not None else only_site(list(sites))
    if database.site is not None and not sites.get(site):
        _refuse_unknown(database, creation, is_awaited=write and site in sites)
        if write:
            _join(database, clock, site)
    return lake, site


def _make(database: Database, clock: Clock, creation: Creation, *, write: bool) -> None:
    if not write:
        refuse_lost(database, creation.needs_catalog)
        raise NotFoundError(f"the catalog at {database.name!r} is empty")
    with database.begin("write") as con:
        lay_out(database, con)
        if con.execute(sa.select(t.lake.c.one)).first() is None:  # else it was made just now
            refuse_lost(database, creation.needs_catalog)
            if creation.lake is None:
                raise NotFoundError(f"the catalog at {database.name!r} is empty")
            add_lake(con, creation.lake)
            _add_site(con, clock, creation.site)


def _refuse_unknown(database: Database, creation: Creation, *, is_awaited: bool) -> None:
    """Never use a catalog that others have, and that lacks what this site had in an older one.

    Args:
        is_awaited: it was made again elsewhere, and this site is to write.
    """
    if is_awaited or creation.needs_site():
        raise CorruptionError(
            f"the catalog {database.name!r} does not know what this host has of the lake, "
            "as after a rebuild at another host: run `lakestore rebuild` here, or correct "
            "catalog= if it names another database"
        )


def _join(database: Database, clock: Clock, site: str) -> None:
    """Make this site known to a catalog that other sites have made."""
    with database.begin("write") as con:
        name = t.sites.c.name
        if con.execute(sa.select(name).where(name == site)).first() is None:
            _add_site(con, clock, site)


def _add_site(con: Connection, clock: Clock, name: str) -> None:
    joined = clock.now().timestamp()
    con.execute(t.sites.insert(), {"name": name, "version": 0, "joined_at": joined})


def _format(database: Database) -> int | None:
    """The catalog's format, or None when it is empty; refuses a newer one."""
    with database.begin("read") as con:
        if not sa.inspect(con).has_table("lake"):
            return None
        found = con.execute(sa.select(t.lake.c.format)).scalar_one_or_none()
    if found is not None and found > t.FORMAT:
        raise FormatTooNewError(
            f"catalog {database.name!r} has format {found}, this lakestore reads "
            f"{t.FORMAT}: upgrade lakestore"
        )
    return found


def _migrate(database: Database, found: int, *, write: bool) -> None:
    if not write:
        raise InvalidInputError(
            f"the catalog {database.name!r} has format {found}, and a reader does not "
            "change it: open the lake once with mode='rw'"
        )
    with database.begin("write") as con:
        migrate(con)
