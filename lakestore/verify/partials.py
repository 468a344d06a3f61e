"""Verify partials of rollups: each holds what the rows of its file add up to."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from lakestore import rollup
from lakestore.catalog.records import TableRecord
from lakestore.document import Rollup
from lakestore.lineage import Lineage
from lakestore.opensite import SiteContext
from lakestore.partialfiles import DataFile
from lakestore.snapshot import ColdFile
from lakestore.storage.local import raise_refusal
from lakestore.verify.objects import Objects
from lakestore.verify.report import REPAIR, Problem


class PartialCheck:
    """Compares the partials of a table's files with their rows."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        site: SiteContext,
        objects: Objects,
        record: TableRecord,
        lineage: Lineage,
    ) -> None:
        self._con = con
        self._objects = objects
        self._record = record
        self._lineage = lineage
        self._local = site.layout.rollups(record.folder)
        self._files = site.partials_of(record.folder, lineage).files

    def check(self, file: DataFile, data: Path) -> Iterator[Problem]:
        """What is wrong with the partials of a file whose rows, in `data`, are as they should be.

        One that is not there is no problem: it is made when it is first needed.
        """
        for one in self._files.rollups:
            paths = [self._local / self._files.name(one, file).flat]
            if isinstance(file, ColdFile):
                paths.append(self._objects.fetch(self._files.key(one, file)))
            for path in paths:
                what = self._wrong(one, file, data, path) if path.exists() else None
                if what is not None:
                    yield Problem(
                        "rollup", "cache", self._record.name, path, what, REPAIR, "rollup"
                    )
                self._objects.let_go(path)

    def _wrong(self, one: Rollup, file: DataFile, data: Path, path: Path) -> str | None:
        kept = self._files.checked(one, file, path)
        if kept is None:
            return "it is damaged, or of other rows"
        source = self._lineage.relation([(file.schema_version, str(data))])
        try:
            query = rollup.partial_sql(one, self._lineage.schema.stored, source)
            made = self._con.sql(query).to_arrow_table().cast(kept.schema)
        except (duckdb.Error, pa.ArrowException) as error:
            raise_refusal(f"cannot read {str(data)!r}", error)
            return f"it cannot be compared with {data.name!r}: {error}"
        self._con.register("kept", kept)
        self._con.register("made", made)
        differ = self._con.execute("SELECT count(*) FROM (FROM kept EXCEPT ALL FROM made)")
        same = kept.num_rows == made.num_rows and differ.fetchall() == [(0,)]
        return None if same else f"it is not what the rows of {data.name!r} add up to"
