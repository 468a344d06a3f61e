"""Values as the catalog's rows hold them, and back."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from lakestore.catalog.strict import damage
from lakestore.errors import CorruptionError
from lakestore.layout import PayloadName
from lakestore.snapshot import ColdFile, ColumnRange, FileInfo, Segment

DAMAGED = (
    ValueError, LookupError, TypeError, AttributeError, OverflowError, CorruptionError,
)  # fmt: skip
"""What reading a damaged row raises: it is not what this module wrote."""
_VERSION = "schema_version"
"""Where the facts of a segment say it, unless it is the first."""


def segment_of(row: Any) -> Segment:
    """A segment from its row."""
    committed = datetime.fromtimestamp(row.committed_at, UTC)
    info = info_of(row.info)
    version = _count(json.loads(row.info).get(_VERSION, 1))
    return Segment(row.first, row.last, row.name, info, bool(row.has_duckdb), committed, version)


def cold_of(row: Any) -> ColdFile:
    """A cold file from its row."""
    return ColdFile(row.name, row.day, row.first, row.last, row.schema_version, info_of(row.info))


def info_text(info: FileInfo, schema_version: int = 1) -> str:
    """A file's facts as JSON; of a segment, also of which version of the schema its rows are."""
    return json.dumps(
        {
            "rows": info.rows,
            "bytes": info.bytes,
            "sha256": info.sha256,
            "min_time": info.min_time.isoformat(),
            "max_time": info.max_time.isoformat(),
            "ranges": {name: [r.low, r.high, r.nulls] for name, r in info.ranges.items()},
            **({"payload": info.payload} if info.payload else {}),
            **({_VERSION: schema_version} if schema_version != 1 else {}),
        }
    )


def info_of(text: str) -> FileInfo:
    """A file's facts from their JSON."""
    data = json.loads(text)
    return FileInfo(
        _count(data["rows"]),
        _count(data["bytes"]),
        data["sha256"],
        _time(data["min_time"]),
        _time(data["max_time"]),
        {name: ColumnRange(*values) for name, values in data["ranges"].items()},
        tuple(str(PayloadName.parse(name)) for name in data.get("payload", ())),
    )


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time


def only_site(sites: Sequence[str]) -> str:
    """The one site of a catalog that is a site's own."""
    if len(sites) != 1:
        raise damage(f"it names {len(sites)} sites")
    return sites[0]
