"""Duplicates: rows whose event a published file holds already. Hashes nominate, ids decide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lakestore import hot, quoting
from lakestore.context import TableContext
from lakestore.engine import duckdb_error
from lakestore.errors import ConflictError, CorruptionError, StorageError
from lakestore.idhash import (
    NO_HASHES,
    Hashes,
    Sought,
    days_of,
    hash_batch,
    identities,
    in_sorted,
    twins,
)
from lakestore.layout import ColdName
from lakestore.snapshot import ColdFile, TableState

Source = Callable[[], Path]
"""Where a published file can be read; fetched only when it has to be."""


def drop_duplicates(
    table: TableContext,
    rows: pa.Table,
    state: TableState,
    *,
    ask_all: bool = False,
    since: TableState | None = None,
    waits: bool = False,
    hashes: Hashes | None = None,
) -> pa.Table:
    """The rows without those whose id a published file holds, or an earlier row.

    Hashes nominate, ids decide; files are chosen by their times in scope `day`. A file that a
    store does not give for now is left to the seal.

    Args:
        ask_all: also ask the segments whose ids the appender knew when it accepted the rows.
        since: ask only files that were not published then; the rows were compared with the others,
            and with each other.
        waits: for a store that does not answer, instead of leaving its files to the seal.
        hashes: of the rows' ids, where they are known.

    Raises:
        StorageError: a file cannot be read.
        FileNotFoundError: another process took away a file that is to be asked.
    """
    schema = table.schema
    if schema.dedup == "none" or rows.num_rows == 0:
        return rows
    hashes = hash_batch(rows, schema) if hashes is None else hashes
    sought = Sought(hashes)
    suspects = _rows_of(twins(sought.ordered) if since is None else NO_HASHES, hashes)
    known: set[object] = set()
    asked = {s.name for s in since.hot} | {f.name for f in since.cold} if since else set()
    sources = _files_to_ask(table, rows, state, ask_all=ask_all, waits=waits)
    for name, source in sources.items():
        if name in asked:
            continue
        try:
            there = table.file_ids.common(name, source, sought)
            hit = _rows_of(there, hashes)
            if len(there):
                known |= _published(table, source(), rows.filter(pa.array(hit)))
        except StorageError:
            if waits or not table.site.storage.remote:
                raise
            continue  # rows must not wait for a store: the seal asks again, and can
        suspects |= hit
    if not suspects.any():
        return rows
    return rows.filter(pa.array(_first_of_each(rows, suspects, known, table)))


def _rows_of(some: Hashes, hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Which rows have one of some hashes, which are sorted."""
    return in_sorted(some, hashes) if len(some) else np.zeros(len(hashes), dtype=np.bool_)


def _files_to_ask(
    table: TableContext,
    rows: pa.Table,
    state: TableState,
    *,
    ask_all: bool,
    waits: bool = False,
) -> Mapping[str, Source]:
    """Published files that may hold an id of these rows, by name."""
    times = rows.column(table.schema.event_time)
    checked = () if ask_all else table.file_ids.checked
    asked = {s.name: partial(table.segment_path, s) for s in state.hot if s.name not in checked}
    cold: Sequence[ColdFile] = state.cold
    if table.schema.dedup == "day":
        present = days_of(times)
        cold = [f for f in cold if f.day is None or f.day in present]
    fetch = TableContext.cold_path if waits else _without_waiting
    return asked | {f.name: partial(fetch, table, f) for f in cold}


def _without_waiting(table: TableContext, file: ColdFile) -> Path:
    """A cold file; of a store that failed to answer just now, its copy, or a `StorageError`."""
    if table.site.storage.answers:
        return table.cold_path(file)
    copy = table.site.files.copied(table.wanted(file))
    if copy is None:
        raise StorageError(f"the store of {table.cold_url(file)!r} does not answer")
    return copy


def published(table: TableContext, ids: pa.Array) -> pa.Table:
    """Ids and event times of published events that have one of these ids.

    An append asks, and must not wait for a store: what is sealed there is for the flush to find.

    Raises:
        CorruptionError, StorageError: a file cannot be read.
    """
    while True:
        state = table.state()
        segments = state.hot
        paths = [table.segment_path(segment) for segment in segments]
        if not table.site.storage.remote:
            paths += [table.cold_path(file) for file in state.cold]
        try:
            with table.conflict_if_superseded(segments):
                try:
                    return _holding(table, paths, ids)
                except (duckdb.Error, OSError) as error:
                    for segment in segments:
                        hot.check_intact(table.segment_path(segment), segment.info)
                    raise duckdb_error("cannot look for events that are known", error) from error
        except ConflictError:  # another process merged or sealed them, and deleted the files
            continue


def _published(table: TableContext, path: Path, suspects: pa.Table) -> set[object]:
    """What identifies the events of a file that have the ids of `suspects`."""
    ids = suspects.column(table.schema.event_id)
    return set(identities(_holding(table, [path], ids), table.schema))


def _holding(table: TableContext, paths: Sequence[Path], ids: pa.Array) -> pa.Table:
    """Ids and event times of the events in some files that have one of these ids."""
    columns = [table.schema.event_id, table.schema.event_time]
    if not paths:
        return table.schema.arrow.empty_table().select(columns)
    cursor = table.site.engine.cursor()
    try:
        cursor.register("lakestore_wanted", pa.table({columns[0]: ids}))
        files = quoting.literals([str(path) for path in paths])
        return cursor.sql(
            f"SELECT {quoting.identifiers(columns)} "
            f"FROM read_parquet({files}, hive_partitioning = false) "
            f"SEMI JOIN lakestore_wanted USING ({quoting.identifier(columns[0])})"
        ).to_arrow_table()
    finally:
        cursor.close()


def _first_of_each(
    rows: pa.Table, suspects: npt.NDArray[np.bool_], known: set[object], table: TableContext
) -> npt.NDArray[np.bool_]:
    keep = np.ones(rows.num_rows, dtype=np.bool_)
    suspected = identities(rows.filter(pa.array(suspects)), table.schema)
    for row, identity in zip(np.flatnonzero(suspects), suspected, strict=True):
        keep[row] = identity not in known
        known.add(identity)
    return keep


class RepeatedError(Exception):
    """Rows about to be sealed that another site has sealed; `rows` are their ids and times."""

    def __init__(self, rows: pa.Table) -> None:
        super().__init__(f"{rows.num_rows:,} rows")
        self.rows = rows


@dataclass
class SealedElsewhere:
    """Looks for rows about to be sealed in the cold files of other sites and engines.

    A flush looks for its rows in what is cold by then; what others added since is for the seal.
    """

    table: TableContext
    files: Sequence[tuple[ColdFile, Path, Hashes]]
    """The files of the seal, where each is staged, and the hashes of its ids in file order."""
    compared_with: int
    """Up to which segment the flushes looked into what was cold."""
    ask_all: bool = False
    """Also the files of this site, which no flush has asked for these rows."""
    _examined: set[str] = field(default_factory=set)

    def __call__(self, cold: Sequence[ColdFile]) -> None:
        """Look into files that were not looked into before.

        Raises:
            RepeatedError: some of the rows are in them.
        """
        schema = self.table.schema
        if schema.dedup == "none":
            return
        found = []
        for file in cold:
            if file.name in self._examined or not self._is_to_be_asked(file):
                continue
            for staged, path, hashes in self.files:
                if schema.dedup == "table" or file.day in (None, staged.day):
                    here = path if path.exists() else self.table.cold_path(staged)  # published
                    found += self._repeated(file, here, hashes)
            self._examined.add(file.name)
        if found:
            raise RepeatedError(pa.concat_tables(found))

    def _repeated(self, file: ColdFile, path: Path, hashes: Hashes) -> list[pa.Table]:
        schema, source = self.table.schema, partial(self.table.cold_path, file)
        hit = self.table.file_ids.contains(file.name, source, hashes)
        if not hit.any():
            return []
        columns = [schema.event_id, schema.event_time]
        suspects = pq.read_table(path, columns=columns).filter(pa.array(hit))
        known = _published(self.table, source(), suspects)
        repeated = np.array([i in known for i in identities(suspects, schema)], dtype=np.bool_)
        return [suspects.filter(pa.array(repeated))] if repeated.any() else []

    def _is_to_be_asked(self, file: ColdFile) -> bool:
        """Whether a flush could not ask it: it is of others, or in a store that may be silent.

        Or it was loaded into a log, whose commits the catalog's do not wait for.
        """
        if self.ask_all or self.table.site.storage.remote:
            return True
        try:
            name, site = ColdName.parse(file.name), self.table.site.catalog.site
        except CorruptionError:
            return True
        in_log = self.table.entry.cold == "delta"
        is_newer = in_log and (name.last > self.compared_with or not name.last)  # or merged
        return is_newer or name.site != site
