"""What the footers of cold files say; of files in a store, their ends alone are fetched."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lakestore.context import TableContext
from lakestore.datafile import FOOTER_KEY, UNREADABLE
from lakestore.errors import CorruptionError
from lakestore.schema import TableSchema
from lakestore.settings import MIB
from lakestore.snapshot import ColdFile
from lakestore.storage.s3 import S3Storage

_END_BYTES = MIB // 16
_NEVER = datetime.min.replace(tzinfo=UTC)


def metadata(table: TableContext, files: Sequence[ColdFile]) -> Sequence[pq.FileMetaData]:
    """The Parquet metadata of cold files; of those in a store, their ends alone are fetched.

    Raises:
        NotFoundError: one is gone.
        CorruptionError: one is damaged, or has another size than is listed.
        StorageError: one cannot be read for now.
    """
    storage, by_name = table.site.storage, {file.name: file for file in files}

    def read(name: str) -> pq.FileMetaData:
        file, count = by_name[name], _END_BYTES
        key = table.cold_key(file)
        while count <= max(file.info.bytes, _END_BYTES):
            found = _read_end(storage.last_bytes(key, min(count, file.info.bytes)))
            if not isinstance(found, int):
                return found
            count = found
        raise CorruptionError(f"{table.cold_url(file)!r} has metadata that is longer than itself")

    if isinstance(storage, S3Storage):
        return storage.each(read, list(by_name))
    return [read(name) for name in by_name]


def _read_end(end: bytes) -> pq.FileMetaData | int:
    """A file's metadata from its last bytes, or how many of these are needed.

    Raises:
        CorruptionError: they are not the end of a Parquet file.
    """
    needed = int.from_bytes(end[-8:-4], "little") + 8
    try:
        if end[-4:] != b"PAR1":
            raise ValueError(f"it ends in {end[-4:]!r}")
        return needed if needed > len(end) else pq.read_metadata(pa.BufferReader(end))
    except UNREADABLE as error:
        raise CorruptionError(f"the end of a Parquet file is damaged: {error!r}") from error


def told_footer(metadata: pq.FileMetaData) -> dict[str, Any]:
    """What lakestore wrote into a file's footer; nothing in the file of another engine."""
    try:
        footer = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
    except ValueError:
        return {}
    return footer if isinstance(footer, dict) else {}


def newest_time(metadata: pq.FileMetaData, schema: TableSchema) -> datetime | None:
    """The greatest event time by the statistics of the row groups; None when they do not say.

    Nor is it said where an event time is null, or may be.
    """
    newest = _NEVER
    for group in (metadata.row_group(g) for g in range(metadata.num_row_groups)):
        columns = (group.column(index) for index in range(group.num_columns))
        chosen = (c.statistics for c in columns if c.path_in_schema == schema.event_time)
        found = next(chosen, None)
        if found is None or not found.has_min_max or found.null_count != 0:
            return None
        time = found.max
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        newest = max(newest, time)
    return newest
