"""A cold tier of plain Parquet files: the catalog lists them, with their statistics."""

from collections.abc import Sequence

from lakestore.catalog import Catalog
from lakestore.failpoint import reach
from lakestore.snapshot import ColdFile, Segment


class ParquetCold:
    """`ColdTable` in one catalog transaction: files, segments and `sealed_through` together."""

    def __init__(self, catalog: Catalog, table_id: int) -> None:
        self._catalog = catalog
        self._table_id = table_id

    def publish(self, sealed: Sequence[Segment], files: Sequence[ColdFile], through: int) -> None:
        """Commit files in the place of segments."""
        with self._catalog.commit() as commit:
            commit.seal(self._table_id, sealed, files, through)
            reach("seal.6")
