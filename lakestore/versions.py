"""The versions of a table's schema that are committed, and a table as the newest of them has it.

The catalog lists them. Of a Delta table the log does too, and the catalog follows it: another site
may have made the newest. A document that neither lists was never committed, and is of no account.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lakestore.catalog.records import TableEntry
from lakestore.context import TableContext
from lakestore.datafile import read_footer
from lakestore.errors import ConflictError, CorruptionError, SchemaError
from lakestore.filecache import Wanted
from lakestore.layout import schema_key
from lakestore.lineage import Lineage
from lakestore.opensite import SiteContext
from lakestore.schema import TableSchema


def lineage_of(site: SiteContext, entry: TableEntry) -> Lineage:
    """Every version of a table's schema that the catalog lists.

    Raises:
        CorruptionError: a document in the catalog is none.
    """
    texts = {entry.schema_version: entry.schema_text}
    if entry.schema_version > 1:
        texts |= site.catalog.schemas(entry.id)
    return Lineage({n: _listed(entry, text) for n, text in texts.items() if n})


def _listed(entry: TableEntry, text: str) -> TableSchema:
    try:
        return TableSchema.from_toml(text)
    except SchemaError as error:
        raise CorruptionError(
            f"the catalog's schema of table {entry.name!r} is none: {error}; `lakestore rebuild` "
            "makes the catalog again from the lake's files"
        ) from error


def take_up(table: TableContext, version: int) -> TableContext:
    """The table in that version of its schema, or a newer one.

    Where it has to be read first, all who have the table open in this process get it from now on.

    Raises:
        CorruptionError: a version that rows are of is nowhere to be found.
        StorageError: the store that has it does not answer.
    """
    if table.entry.schema_version >= version:
        return table
    if table.newest.entry.schema_version >= version:
        return table.newest
    site, entry = table.site, table.entry
    texts = site.catalog.schemas(entry.id)
    if max(texts) < version:
        texts = _follow_log(table, texts)
    newest = max(texts)
    entry = replace(entry, schema_version=newest, schema_text=texts[newest])
    return table.evolved(entry, Lineage({n: _listed(entry, text) for n, text in texts.items()}))


def _follow_log(table: TableContext, texts: dict[int, str]) -> dict[int, str]:
    """What the catalog lists, and the versions that the log of the cold tier has beside them."""
    site, entry = table.site, table.entry
    follows = max(texts)
    for version in table.cold.versions():
        if version <= follows:
            continue
        text = document(site, entry.folder, version)
        if site.lock is not None:  # who only reads leaves the catalog as it is
            with suppress(ConflictError), site.catalog.commit() as commit:
                commit.add_schema(entry.id, follows, version, text)
        texts[version], follows = text, version
    return texts


def document(site: SiteContext, folder: str, version: int) -> str:
    """A version's schema document, as both of its files have it.

    Raises:
        CorruptionError: they differ, or one is none.
        NotFoundError, StorageError: they cannot be read.
    """
    try:
        text = site.storage.read(schema_key(folder, version)).decode()
    except UnicodeDecodeError as error:
        raise CorruptionError(f"{schema_key(folder, version)!r} is no text") from error
    if described(site, folder, version).get("document") != text:
        url = site.storage.url(schema_key(folder, version, "parquet"))
        raise CorruptionError(f"{url!r} says another schema than the document")
    return text


def described(site: SiteContext, folder: str, version: int) -> Mapping[str, Any]:
    """The footer of a version's zero-row file.

    Raises:
        CorruptionError: it has none.
        NotFoundError, StorageError: it cannot be read.
    """
    key = schema_key(folder, version, "parquet")
    return read_footer(site.files.path(Wanted(key, site.storage.size(key) or 0)))
