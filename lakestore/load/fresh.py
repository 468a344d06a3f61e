"""Which rows of a load are new in the table."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakestore import duplicates
from lakestore.context import TableContext
from lakestore.errors import ConflictError
from lakestore.idhash import Hashes, hash_batch, identities, in_sorted
from lakestore.query.pin import pin
from lakestore.snapshot import TableState


@dataclass(frozen=True)
class Fresh:
    """Rows that nothing had which was published, or buffered, at some time."""

    rows: pa.Table
    hashes: Hashes
    """Of their ids."""
    state: TableState | None
    """What was published then; None: they were compared with nothing yet."""
    schema_version: int
    """Which version of the schema the rows have."""

    @classmethod
    def unseen(cls, table: TableContext, rows: pa.Table) -> "Fresh":
        """Rows as the table has them, compared with nothing yet."""
        return cls(rows, hash_batch(rows, table.schema), None, table.entry.schema_version)

    def still(self, table: TableContext) -> "Fresh":
        """Those that are new still: what is durable wins, be it buffered here or elsewhere.

        Args:
            table: in the version of the schema that the rows have.

        Raises:
            ConflictError: another process evolved the schema meanwhile.
            StorageError: a file cannot be read.
            FileNotFoundError: another process took away a file that is to be asked.
        """
        if table.schema.dedup == "none":
            return replace(self, state=table.state(newest=True))
        pinned = pin(table.site, [table])[0]  # first: what is flushed meanwhile is published then
        state = table.state(newest=True)
        if pinned.table.entry.schema_version > self.schema_version:
            raise ConflictError(f"the schema of {table.entry.name!r} was evolved meanwhile")
        fresh = self
        if self.state is None or not _names(state) <= _names(self.state):
            left = duplicates.drop_duplicates(
                table,
                self.rows,
                state,
                ask_all=True,
                since=self.state,
                waits=True,
                hashes=self.hashes,
            )
            fresh = self._with(left, table)
        held = _held(fresh, pinned.held, table)
        if held.any():
            fresh = fresh._with(fresh.rows.filter(pa.array(~held)), table)
        return replace(fresh, state=state)

    def _with(self, rows: pa.Table, table: TableContext) -> "Fresh":
        """The same with some of the rows, or all."""
        if rows.num_rows == self.rows.num_rows:
            return self
        return replace(self, rows=rows, hashes=hash_batch(rows, table.schema))


def _names(state: TableState) -> set[str]:
    return {s.name for s in state.hot if s.info.rows} | {file.name for file in state.cold}


def _held(fresh: Fresh, held: pa.Table, table: TableContext) -> npt.NDArray[np.bool_]:
    """Which rows' events are among unflushed ones. Hashes nominate, ids decide."""
    schema, found = table.schema, np.zeros(fresh.rows.num_rows, dtype=np.bool_)
    if not held.num_rows or not fresh.rows.num_rows:
        return found
    others = hash_batch(held, schema)
    suspects = in_sorted(np.sort(others), fresh.hashes)
    if suspects.any():
        which = in_sorted(np.sort(fresh.hashes[suspects]), others)
        known = set(identities(held.filter(pa.array(which)), schema))
        asked = identities(fresh.rows.filter(pa.array(suspects)), schema)
        found[suspects] = [identity in known for identity in asked]
    return found
