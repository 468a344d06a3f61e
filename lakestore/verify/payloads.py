"""Verify payload files: those that rows refer to are there, byte for byte."""

from collections.abc import Iterator
from pathlib import Path

from lakestore import payload
from lakestore.catalog.records import TableRecord
from lakestore.errors import SchemaError
from lakestore.layout import PayloadName, SiteLayout, payload_key, schema_key
from lakestore.payloadview import payload_names
from lakestore.schema import TableSchema
from lakestore.storage import Storage
from lakestore.verify.objects import Objects
from lakestore.verify.report import RESTORE, Problem


def check_payload(
    objects: Objects, layout: SiteLayout, record: TableRecord
) -> Iterator[Problem | None]:
    """For each payload file that rows of a table refer to, what is wrong with it."""
    for name in payload_names(record.state.hot):
        yield _check(record, name, layout.payload(record.folder) / name)
    for name in payload_names(record.state.cold):
        path = objects.fetch(payload_key(record.folder, name))
        yield _check(record, name, path)
        objects.let_go(path)


def _check(record: TableRecord, name: str, path: Path) -> Problem | None:
    why = payload.damage(path, PayloadName.parse(name))
    if why is None:
        return None
    what = f"events refer to it, and it {why}"
    return Problem("payload", "damage", record.name, path, what, RESTORE)


def published_payload(storage: Storage, layout: SiteLayout, record: TableRecord) -> list[str]:
    """Paths of the files that the view of a table's payloads lists; none when there is no view."""
    version = max(record.schemas, default=1)
    try:
        if not TableSchema.from_toml(record.schemas[version]).stored.has_references:
            return []
    except (SchemaError, LookupError):
        return []
    keys = [schema_key(record.folder, version, "payload.parquet")]
    keys += [payload_key(record.folder, name) for name in payload_names(record.state.cold)]
    urls = [storage.url(key) for key in keys]
    if storage.remote:
        return urls
    folder = layout.payload(record.folder)
    return urls + [str(folder / name) for name in payload_names(record.state.hot)]
