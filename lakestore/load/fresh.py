"""Which rows of a load are new in the table."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakestore import duplicates
from lakestore.context import TableContext
from lakestore.errors import ConflictError
from lakestore.idhash import hash_batch, identities, in_sorted
from lakestore.query.pin import pin
from lakestore.snapshot import TableState


@dataclass(frozen=True)
class Fresh:
    """Rows that nothing had which was published, or buffered, at some time."""

    rows: pa.Table
    state: TableState
    """What was published then."""
    schema_version: int
    """Which version of the schema the rows have."""


def without_known(table: TableContext, rows: pa.Table, since: TableState | None) -> Fresh:
    """The rows that are new: what is durable already wins, be it buffered here or elsewhere.

    Args:
        since: what they were compared with before.

    Raises:
        ConflictError: another process evolved the schema meanwhile.
        StorageError: a file cannot be read.
        FileNotFoundError: another process took away a file that is to be asked.
    """
    version = table.entry.schema_version
    if table.schema.dedup == "none":
        return Fresh(rows, table.state(newest=True), version)
    pinned = pin(table.site, [table])[0]  # first: what is flushed meanwhile is published then
    held, state = pinned.held, table.state(newest=True)
    if pinned.table.entry.schema_version > version:
        raise ConflictError(f"the schema of {table.entry.name!r} was evolved meanwhile")
    if since is not None and _names(state) <= _names(since):
        return Fresh(_without_held(table, rows, held), state, version)
    fresh = duplicates.drop_duplicates(table, rows, state, ask_all=True, since=since, waits=True)
    return Fresh(_without_held(table, fresh, held), state, version)


def _names(state: TableState) -> set[str]:
    return {s.name for s in state.hot if s.info.rows} | {file.name for file in state.cold}


def _without_held(table: TableContext, rows: pa.Table, held: pa.Table) -> pa.Table:
    """The rows without those whose events are among unflushed ones. Hashes nominate."""
    schema = table.schema
    if not held.num_rows or not rows.num_rows:
        return rows
    hashes, others = hash_batch(rows, schema), hash_batch(held, schema)
    suspects = in_sorted(np.sort(others), hashes)
    if not suspects.any():
        return rows
    which = in_sorted(np.sort(hashes[suspects]), others)
    known = set(identities(held.filter(pa.array(which)), schema))
    keep: npt.NDArray[np.bool_] = np.ones(rows.num_rows, dtype=np.bool_)
    found = identities(rows.filter(pa.array(suspects)), schema)
    keep[suspects] = [identity not in known for identity in found]
    return rows.filter(pa.array(keep))
