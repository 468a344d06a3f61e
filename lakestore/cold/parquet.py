"""A cold tier of plain Parquet files: the catalog lists them, with their statistics.

Failpoint: swap.1 a replacement committed
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from lakestore.catalog import Catalog
from lakestore.cold import Examine, Load
from lakestore.cold.keeper import RecordKeeper
from lakestore.errors import StorageError
from lakestore.failpoint import reach
from lakestore.marks import RETIRED
from lakestore.past import AsOf, Past
from lakestore.replacement import Pruning, Replacement
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, Segment, TableState


class ParquetCold:
    """`ColdTable` in one catalog transaction: files, segments and `sealed_through` together."""

    partition = "day"

    def __init__(self, catalog: Catalog, table_id: int, records: RecordKeeper) -> None:
        self._catalog = catalog
        self._table_id = table_id
        self._records = records

    def create(self) -> None:
        """Nothing: the catalog's own commit makes the table."""

    def current(self, listed: TableState, *, newest: bool) -> TableState:
        """What the catalog lists is all there is."""
        return listed

    def claim(self, segments: Sequence[Segment], through: int) -> None:
        """Nothing: the commit itself finds out."""

    def join(self) -> None:
        """List the site with the table."""
        if self.marks().get(self._catalog.site, RETIRED) == RETIRED:
            with self._catalog.commit() as commit:
                commit.join(self._table_id)

    def marks(self) -> Mapping[str, int]:
        """What each site has said."""
        return self._catalog.marks(self._table_id)

    def sealed(self) -> Mapping[str, int]:
        """Up to which segment each site has sealed."""
        holdings = self._catalog.holdings(self._table_id)
        return {site: holding.sealed_through for site, holding in holdings.items()}

    def retire(self, site: str, said: int) -> None:
        """One catalog transaction."""
        with self._catalog.commit() as commit:
            commit.retire(self._table_id, site, said)

    def promise(self, complete_before: int) -> None:
        """One catalog transaction."""
        with self._catalog.commit() as commit:
            commit.promise(self._table_id, complete_before)

    def publish(
        self,
        sealed: Sequence[Segment],
        files: Sequence[ColdFile],
        through: int,
        complete_before: int | None,
        examine: Examine,
        load: Load | None = None,
    ) -> None:
        """Commit files in the place of segments, beside no cold file that was not examined.

        Sites that share a catalog seal at once: what one lists while another examines is examined
        too before that one's commit, in turn; and so are segments beside the rows of a load.
        """
        while True:
            listed = self._catalog.states([self._table_id])[self._table_id]
            examine(listed.cold)
            with self._catalog.commit() as commit:
                newest = load.newest if load is not None else None
                is_examined = newest in (None, commit.last_segment(self._table_id))
                if is_examined and commit.shared_version() == listed.cold_version:
                    if load is not None:
                        commit.accept(self._table_id, load.sent)
                    operation = "seal" if load is None else "load"
                    commit.seal(self._table_id, sealed, files, through, operation)
                    commit.promise(self._table_id, complete_before)
                    reach("seal.6")
                    return

    def replace(self, replacement: Replacement, examine: Examine | None = None) -> None:
        """One catalog transaction; the record is put into the root after it."""
        while not self._replaced(replacement, examine):
            pass
        reach("swap.1")
        with suppress(StorageError):  # it is committed, and nothing goes before its record is kept
            self.settle()

    def _replaced(self, replacement: Replacement, examine: Examine | None) -> bool:
        """Whether it is committed, beside no cold file that was not examined."""
        listed = self._catalog.states([self._table_id])[self._table_id]
        if examine is not None:
            examine(listed.cold)
        with self._catalog.commit() as commit:
            if examine is not None and commit.shared_version() != listed.cold_version:
                return False
            commit.replace(self._table_id, replacement)
        return True

    def accepted(self, producers: Collection[str]) -> Mapping[str, int]:
        """What the catalog knows."""
        return self._catalog.accepted(self._table_id, producers)

    def versions(self) -> Sequence[int]:
        """None: the catalog lists them."""
        return ()

    def evolve(self, schema: TableSchema, versions: Sequence[int]) -> None:
        """Nothing: the catalog's own commit says it."""

    def condense(self) -> Sequence[str]:
        """Nothing: the catalog forgets a file that is deleted."""
        return ()

    def replaced(self) -> Collection[str]:
        """What the catalog lists as removed."""
        return self._catalog.replaced(self._table_id)

    def past(self, limit: int | None) -> Past:
        """What the catalog keeps of it."""
        return self._catalog.past(self._table_id, limit)

    def as_of(self, wanted: int | datetime) -> AsOf | None:
        """What the catalog listed; of files that are deleted it tells how many there were."""
        return self._catalog.as_of(self._table_id, wanted)

    def settle(self) -> None:
        """Records alone: both tiers change in one transaction."""
        self._records.settle(
            lambda record: "committed",
            lambda: self._catalog.states([self._table_id])[self._table_id].cold,
        )

    def moments(self) -> Sequence[float]:
        """Of the history."""
        return self._catalog.moments()

    def pruned(self, version: int | None) -> Pruning:
        """As the history tells, and the list of files that were removed."""
        return self._catalog.pruned(self._table_id, version)
