"""Data files of one table: where they are, and what they say and hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lakestore import datafile
from lakestore.errors import CorruptionError
from lakestore.layout import ColdName, SegmentName, data_prefix, split_folder
from lakestore.rebuild.sources import Found, Sources
from lakestore.schema import TableSchema
from lakestore.snapshot import FileInfo
from lakestore.storage.local import raise_refusal


class TableFiles:
    """Those of the table in `folder`, cold ones and segments, by name."""

    def __init__(self, sources: Sources, found: Found, folder: str) -> None:
        self._sources = sources
        self._found = found
        self._folder = folder

    def path(self, name: str) -> Path:
        """Where this machine reads it."""
        if "/" in name:
            return self._sources.fetched(data_prefix(self._folder) + name)
        return self._sources.layout.hot(self._folder) / name

    def shown(self, name: str) -> str:
        """Where it is, for people."""
        if "/" in name:
            return self._sources.storage.url(data_prefix(self._folder) + name)
        return str(self.path(name))

    def footer_of(self, name: str) -> Mapping[str, Any]:
        """A data file's footer; raises `CorruptionError`."""
        return self.footer(self.path(name), self.shown(name))

    def footer(self, path: Path, shown: str) -> Mapping[str, Any]:
        """The footer of a file of the table; raises `CorruptionError`."""
        footer = datafile.read_footer(path)
        self._found.lakes.setdefault(str(footer.get("lake")), shown)
        if footer.get("site"):
            self._found.sites.append(str(footer["site"]))
        if footer.get("table") != split_folder(self._folder)[0]:
            raise CorruptionError(f"{shown!r} is of table {footer.get('table')!r}")
        return footer

    def measure(self, name: str, schema: TableSchema) -> FileInfo | None:
        """What a file holds; None when its bytes are not those that were published."""
        path, shown = self.path(name), self.shown(name)
        kind = ColdName if "/" in name else SegmentName
        try:
            info = datafile.measure(path, schema)
            with pq.ParquetFile(path) as file:
                fits = file.schema_arrow.equals(schema.arrow)
        except (CorruptionError, *datafile.UNREADABLE) as error:
            raise_refusal(f"cannot read {shown!r}", error)
            self._found.problems.append(f"{shown!r} cannot be read: {error}")
            return None
        if not info.sha256.startswith(kind.parse(name).sha12):
            self._found.problems.append(f"{shown!r} was altered: its sha256 is not in its name")
            return None
        if not fits:
            self._found.problems.append(f"{shown!r} has other columns than the schema document")
            return None
        return info
