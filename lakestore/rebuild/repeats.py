"""Which seals hold rows of one event: at most one of the two was committed.

Hashes nominate, ids decide.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakestore.datafile import UNREADABLE
from lakestore.errors import CorruptionError
from lakestore.idhash import Hashes, hash_batch, identities
from lakestore.layout import ColdName
from lakestore.schema import TableSchema
from lakestore.storage.local import raise_refusal


class Repeats:
    """Looks for events that files have in common; reads each file once."""

    def __init__(self, schema: TableSchema, path_of: Callable[[str], Path]) -> None:
        self._schema = schema
        self._path_of = path_of
        self._hashes: dict[str, Hashes] = {}

    def share(self, names: Iterable[str], others: Iterable[str]) -> bool:
        """Whether files of one seal and others hold a row of the same event.

        Raises:
            CorruptionError: a file cannot be read.
        """
        if self._schema.dedup == "none":
            return False
        others = list(others)
        return any(
            self._repeat(name, other)
            for name in names
            for other in others
            if self._meet(name, other)
        )

    def _meet(self, name: str, other: str) -> bool:
        """Whether an event of the one file could be in the other."""
        return (
            self._schema.dedup == "table" or ColdName.parse(name).day == ColdName.parse(other).day
        )

    def _repeat(self, name: str, other: str) -> bool:
        common = np.intersect1d(self._hashes_of(name), self._hashes_of(other))
        if not len(common):
            return False
        return bool(self._identities(name, common) & self._identities(other, common))

    def _hashes_of(self, name: str) -> Hashes:
        known = self._hashes.get(name)
        if known is None:
            known = self._hashes[name] = hash_batch(self._events_of(name), self._schema)
        return known

    def _identities(self, name: str, hashes: Hashes) -> set[object]:
        rows = self._events_of(name)
        wanted = np.isin(hash_batch(rows, self._schema), hashes)
        return set(identities(rows.filter(pa.array(wanted)), self._schema))

    def _events_of(self, name: str) -> pa.Table:
        """Ids and times of a file."""
        columns = [self._schema.event_id, self._schema.event_time]
        path = self._path_of(name)
        try:
            return pq.read_table(path, columns=columns, page_checksum_verification=True)
        except UNREADABLE as error:
            raise_refusal(f"cannot read {str(path)!r}", error)
            raise CorruptionError(f"{str(path)!r} cannot be read: {error}") from error
