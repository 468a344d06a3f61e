"""Which lake and which site an open is of, and the catalog that knows its files."""

from secrets import token_hex

from lakestore.catalog import Catalog
from lakestore.catalog.database import Creation
from lakestore.catalog.postgres import Postgres
from lakestore.catalog.sqlite import SQLite
from lakestore.clock import Clock
from lakestore.errors import CorruptionError, StorageError
from lakestore.lakefile import holds_rows, lake_id, needs_catalog
from lakestore.layout import LAKE_FILE, SITE_FILE, SiteLayout
from lakestore.sitefile import SiteId, make_site, read_site, refuse_other_place
from lakestore.storage import Storage


def known_lake(storage: Storage, layout: SiteLayout, *, write: bool) -> str | None:
    """The lake's uuid; None while its store does not answer, and this host knows it.

    Raises: as `lake_id`.
    """
    try:
        return lake_id(storage, layout.local if write else None)
    except StorageError:
        own = layout.catalog
        known = (own.is_file() and own.stat().st_size) or read_site(layout) is not None
        if not storage.remote or not known:
            raise
        return None


def open_catalog(
    storage: Storage,
    layout: SiteLayout,
    lake: str | None,
    url: str | None,
    clock: Clock,
    *,
    write: bool,
) -> Catalog:
    """The catalog of a site: SQLite in its folder, or (`url`) Postgres that sites share.

    Args:
        lake: as the store says; None when it does not answer.
        write: make what is missing.

    Raises:
        InvalidInputError: the site's catalog is in the other place.
        CorruptionError: it is lost, or of another lake.
        Others: as `Catalog`.
    """
    refuse_other_place(layout, shared=url is not None)
    if url is None:
        creation = Creation(lake, token_hex(4), lambda: needs_catalog(storage, layout))
        # Of a lake in a store, the catalog is this host's alone: a reader needs one too.
        makes = write or storage.remote
        catalog = Catalog(SQLite(layout.catalog), clock, write=makes, creation=creation)
    else:
        id = site_of(layout, lake, write=write)
        creation = Creation(
            id.lake,
            id.site,
            lambda: needs_catalog(storage, layout),
            lambda: holds_rows(layout),
        )
        database = Postgres(url, id.lake, id.site)
        catalog = Catalog(database, clock, write=write, creation=creation)
    if lake is not None and catalog.lake != lake:
        catalog.close()
        raise _other_lake(str(layout.catalog), catalog.lake, storage.url(LAKE_FILE), lake)
    return catalog


def may_share(layout: SiteLayout) -> bool:
    """Whether a site's catalog is in a database, or could be: it has none here, nor lost one."""
    has_own = layout.catalog.exists() or holds_rows(layout)
    return not has_own or (layout.local / SITE_FILE).exists()


def site_of(layout: SiteLayout, lake: str | None, *, write: bool) -> SiteId:
    """Which site a folder is; a reader that has none is nobody.

    Raises:
        CorruptionError: `site.json` is lost, damaged, or of another lake.
        StorageError: the disk refused.
    """
    found = read_site(layout)
    if found is None and holds_rows(layout):
        raise CorruptionError(
            f"{str(layout.local / SITE_FILE)!r} is lost, and there are rows beside it: restore the "
            "file; the footers of the segments there name the site"
        )
    if found is None:
        assert lake is not None  # a store that does not answer is only done without by who has one
        found = make_site(layout, lake) if write else SiteId(lake, "")
    if lake is not None and found.lake != lake:
        raise _other_lake(str(layout.local / SITE_FILE), found.lake, "the lake", lake)
    return found


def _other_lake(mine: str, is_of: str, root: str, says: str) -> CorruptionError:
    return CorruptionError(
        f"{mine!r} belongs to lake {is_of}, and {root!r} says {says}: pass the right local= "
        "folder, or restore what is damaged"
    )
