"""Undo: the files of a prune become part of the table again, as long as they are there.

Order of effects, numbered as their failpoints are: undo.1 files found, and their events found in no
other file    .2 committed (`swap` and `record`). In the commit, or with what is noted before it,
the files are no garbage any more, so that a vacuum does not take what comes back.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from lakestore.context import TableContext
from lakestore.duplicates import RepeatedError, SealedElsewhere
from lakestore.errors import ConflictError, NotFoundError
from lakestore.failpoint import reach
from lakestore.fileids import read_hashes
from lakestore.layout import PayloadName
from lakestore.replacement import Pruning, Replacement
from lakestore.snapshot import ColdFile


@dataclass(frozen=True)
class Undone:
    """What an undo brought back."""

    version: int
    """Of the prune that was taken back."""
    files: int
    rows: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"brought back {self.rows:,} rows in {self.files:,} files ({self.bytes:,} bytes) that "
            f"the prune of version {self.version} took"
        )


def undo(table: TableContext, version: int | None) -> Undone:
    """Take a prune back; the caller holds `table.flushing`.

    Args:
        version: of the prune; by default the newest one that was not taken back.

    Raises:
        NotFoundError: there is none, or its files are deleted.
        ConflictError: some of its events were accepted again since, or somebody else was faster.
        StorageError: the disk refused; nothing was committed.
    """
    table.cold.settle()
    pruning = table.cold.pruned(version)
    _check_there(table, pruning)
    _check_hot(table, pruning.files)
    examine = _Examination(table, pruning.files)
    examine(table.state(newest=True).cold)
    reach("undo.1")
    table.cold.replace(Replacement("undo", (), pruning.files), examine)
    reach("undo.2")
    return Undone(
        pruning.version,
        len(pruning.files),
        sum(file.info.rows for file in pruning.files),
        sum(file.info.bytes for file in pruning.files),
    )


def _check_there(table: TableContext, pruning: Pruning) -> None:
    """Refuse when a file is gone, be it one of payloads."""
    sizes = {table.cold_key(file): file.info.bytes for file in pruning.files}
    payload = {name for file in pruning.files for name in file.info.payload}
    sizes |= {table.payload_key(name): PayloadName.parse(name).bytes for name in payload}
    for key, size in sizes.items():
        if table.site.storage.size(key) != size:
            raise NotFoundError(
                f"the prune of version {pruning.version} cannot be taken back: "
                f"{table.site.storage.url(key)!r} is deleted, which is done `cold_grace_s` after it"
            )


class _Examination:
    """Looks for the events that come back among those that are there."""

    def __init__(self, table: TableContext, files: Sequence[ColdFile]) -> None:
        self._table = table
        self._files = files
        self._search: SealedElsewhere | None = None

    def __call__(self, cold: Sequence[ColdFile]) -> None:
        """Raise `ConflictError` when some are."""
        schema = self._table.schema
        days = {file.day for file in self._files}
        if schema.dedup == "day" and None not in days:
            cold = [file for file in cold if file.day is None or file.day in days]
        if not cold:
            return
        if self._search is None:
            paths = [(file, self._table.cold_path(file)) for file in self._files]
            found = [(file, path, read_hashes(path, schema)) for file, path in paths]
            self._search = SealedElsewhere(self._table, found, 0, ask_all=True)
        try:
            self._search(cold)
        except RepeatedError as error:
            raise _repeated(error.rows.num_rows) from error


def _check_hot(table: TableContext, files: Sequence[ColdFile]) -> None:
    """Refuse when a hot segment has some of the events; a flush to come leaves them out."""
    schema = table.schema
    for segment in table.state().hot if schema.dedup != "none" else ():
        for file in files:
            overlap = schema.dedup == "table" or _days_meet(segment.info.days, file.info.days)
            if not overlap or not file.info.rows:
                continue
            hashes = read_hashes(table.cold_path(file), schema)
            source = partial(table.segment_path, segment)
            hit = table.file_ids.contains(segment.name, source, hashes)
            if hit.any():
                raise _repeated(int(hit.sum()))


def _days_meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _repeated(rows: int) -> ConflictError:
    return ConflictError(
        f"{rows:,} of the events that were pruned were accepted again since: to bring them back "
        "would show them twice"
    )
