"""Verify schema documents and their zero-row files against the catalog."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from lakestore import datafile
from lakestore.catalog.records import TableRecord
from lakestore.errors import CorruptionError, NotFoundError, SchemaError, StorageError
from lakestore.layout import schema_key
from lakestore.schema import TableSchema
from lakestore.storage import Storage
from lakestore.storage.local import raise_refusal
from lakestore.verify.objects import Objects
from lakestore.verify.report import REPAIR, RESTORE, Problem


def check_documents(objects: Objects, lake: str, record: TableRecord) -> list[Problem]:
    """What is wrong with the documents of a table's schema versions."""
    problems, storage = [], objects.storage
    for version, text in record.schemas.items():
        path = objects.path(schema_key(record.folder, version))
        for what in _document(storage, schema_key(record.folder, version), text):
            problems.append(Problem("schema", "damage", record.name, path, what, RESTORE))
        for suffix, schema in _empty_schemas(text).items():
            empty = objects.fetch(schema_key(record.folder, version, suffix))
            for what in _empty(empty, lake, record, version, schema):
                problems.append(
                    Problem("schema", "cache", record.name, empty, what, REPAIR, "empty")
                )
    return problems


def _empty_schemas(text: str) -> dict[str, TableSchema]:
    """Of what a table's zero-row files are, by the ends of their names."""
    try:
        accepts = TableSchema.from_toml(text)
    except SchemaError:
        return {}
    schemas = {"parquet": accepts.stored}
    return schemas | ({"payload.parquet": accepts.payload_file} if accepts.buffered.payload else {})


def _document(storage: Storage, key: str, text: str) -> Iterator[str]:
    try:
        if storage.read(key) != text.encode():
            yield "it is not what the catalog says the schema is"
    except NotFoundError:
        yield "the schema document is gone"
    except StorageError as error:
        raise_refusal(f"cannot read {key!r}", error.__cause__ or error)
        yield f"it cannot be read: {error}"


def _empty(
    path: Path, lake: str, record: TableRecord, version: int, schema: TableSchema
) -> Iterator[str]:
    """Whether the zero-row file is what would be made now; every byte, when pyarrow is the same."""
    says = {"lake": lake, "table": record.name, "tier": "schema", "schema_version": version}
    says["document"] = schema.text
    try:
        footer = datafile.read_footer(path)
        with tempfile.TemporaryDirectory(prefix="lakestore-verify-") as folder:
            fresh = Path(folder) / "fresh.parquet"
            datafile.write(fresh, schema, (), footer)
            with pq.ParquetFile(path) as found, pq.ParquetFile(fresh) as expected:
                other = found.metadata.created_by != expected.metadata.created_by
                same = (
                    (other or path.read_bytes() == fresh.read_bytes())
                    and found.schema.equals(expected.schema)
                    and found.schema_arrow.equals(expected.schema_arrow, check_metadata=True)
                    and found.metadata.num_rows == 0
                    and found.metadata.num_row_groups == 0
                )
    except (CorruptionError, *datafile.UNREADABLE) as error:
        raise_refusal(f"cannot read {str(path)!r}", error)
        yield f"it cannot be read: {error}"
        return
    if not same or any(footer.get(key) != value for key, value in says.items()):
        yield "it is not the zero-row file of the table's schema"
