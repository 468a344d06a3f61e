"""A cold file as the log of a Delta table has it, and back."""

from datetime import datetime

from lakestore.delta import types
from lakestore.delta.actions import Add, day_of
from lakestore.delta.statistics import Ranges, rows_of, statistics_text, times_of
from lakestore.errors import CorruptionError
from lakestore.layout import ColdName, PayloadName
from lakestore.lineage import FOREIGN
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, FileInfo


def add_of(file: ColdFile, schema: TableSchema, now_ms: int, *, is_new: bool = True) -> Add:
    """What adds a file to a log.

    Args:
        is_new: whether its rows were not in the table before.
    """
    info = file.info
    tags = {
        "sha256": info.sha256,
        "schema": str(file.schema_version),
        "rows": str(info.rows),
        "min_time": info.min_time.isoformat(),
        "max_time": info.max_time.isoformat(),
    }
    if info.payload:
        tags["payload"] = " ".join(info.payload)
    assert file.day is not None
    day = {types.partition_column(schema): file.day.isoformat()}
    stats = statistics_text(info, schema)
    return Add(file.name, day, info.bytes, now_ms, stats, tags, is_new)


def cold_file(add: Add, schema: TableSchema) -> ColdFile:
    """A file as the log tells of it; what others leave out is not known, and prunes nothing.

    Raises:
        ValueError, OverflowError, CorruptionError: it says what cannot be.
    """
    ranges = Ranges(add.stats or "{}", schema)
    tags = add.tags
    rows = int(tags["rows"]) if "rows" in tags else rows_of(add.stats)
    if "min_time" in tags and "max_time" in tags:
        low, high = (datetime.fromisoformat(tags[name]) for name in ("min_time", "max_time"))
    else:
        low, high = times_of(ranges, schema.event_time)
    payload = tuple(str(PayloadName.parse(name)) for name in tags.get("payload", "").split())
    info = FileInfo(rows or 0, add.size, tags.get("sha256", ""), low, high, ranges, payload)
    try:
        name = ColdName.parse(add.path)
        first, last = name.first, name.last
    except CorruptionError:
        first = last = 0
    return ColdFile(
        add.path,
        day_of(add, types.partition_column(schema)),
        first,
        last,
        int(tags.get("schema", FOREIGN)),
        info,
    )
