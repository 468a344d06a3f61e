"""Adopt: list the Delta tables of a lake that other sites made.

A Delta table says of itself all that a site has to know: its schema is beside its log. A table
whose files only a catalog lists is that catalog's alone.
"""

import logging

from lakestore.errors import CorruptionError, NotFoundError, SchemaError
from lakestore.lakefile import is_delta
from lakestore.layout import TABLE_NAME, split_folder, tombstone_key
from lakestore.opensite import SiteContext
from lakestore.schema import TableSchema
from lakestore.versions import document

log = logging.getLogger("lakestore")


def adopt(site: SiteContext) -> None:
    """List what the catalog does not list yet, and take off what another site has dropped.

    Raises:
        StorageError: the store did not answer.
    """
    known = site.catalog.folders()
    names = {entry.name.casefold() for entry in site.catalog.tables()}
    for folder in site.storage.folders("tables/"):
        name, _ = split_folder(folder)
        if folder in known or name.casefold() in names or not TABLE_NAME.fullmatch(name):
            continue
        if not is_delta(site.storage, folder):
            continue
        if site.storage.size(tombstone_key(folder)) is not None:
            continue
        try:
            text = document(site, folder, 1)
            TableSchema.from_toml(text, folder)
        except (NotFoundError, SchemaError, CorruptionError) as error:
            log.warning("table %r of another site is left out: %s", folder, error)
            continue
        with site.catalog.commit() as commit:
            commit.adopt_table(name, folder, "delta", text)


def drop_buried(site: SiteContext) -> None:
    """Take tables off the list that another site has dropped; raises `StorageError`."""
    for table_id in site.catalog.dropped_elsewhere():
        with site.catalog.commit() as commit:
            commit.drop_table(table_id)
    for entry in site.catalog.tables():
        if entry.cold == "delta" and site.storage.size(tombstone_key(entry.folder)) is not None:
            with site.catalog.commit() as commit:
                commit.drop_table(entry.id)
