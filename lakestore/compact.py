"""Compact: cold files of a day → fewer ones of the target size, sorted as one.

Order of effects, numbered as their failpoints are:

    compact.1 bytes of the inputs checked    .2 outputs staged    .3 rows and ids checked
    .4 one published    .5 all of them; what comes then is `swap` and `record`

No answer changes: each output has the rows of its inputs, their payload references, and partials of
its own. The commit lists outputs in the place of inputs on condition that all of these are live; so
of two that would replace one file, one gives up. What replaced files is kept, see `replacement`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa

from lakestore import coldfiles, datafile
from lakestore.coldfiles import Rows, Written
from lakestore.context import TableContext
from lakestore.errors import CorruptionError
from lakestore.failpoint import reach
from lakestore.idhash import Hashes, hash_batch, id_sum, identities, in_sorted, twins
from lakestore.layout import ColdName
from lakestore.replacement import Replacement
from lakestore.snapshot import ColdFile

_JOB_FILES_OF_TARGET = 4
"""A job reads about so many outputs' worth: it is over soon, and a commit is never far."""
_FILES_MIN = 4
_SIZE_RATIO = 2


@dataclass(frozen=True)
class Job:
    """Cold files of one day that are worth being fewer."""

    day: date
    files: tuple[ColdFile, ...]
    target_bytes: int

    @property
    def bytes(self) -> int:
        """To be read; about as many are written."""
        return sum(file.info.bytes for file in self.files)

    @property
    def saved(self) -> int:
        """How many files fewer there are afterwards."""
        return len(self.files) - -(-self.bytes // self.target_bytes)

    @property
    def worth(self) -> float:
        """Files saved for a byte."""
        return self.saved / max(1, self.bytes)


@dataclass(frozen=True)
class Compacted:
    """What compaction did."""

    days: int = 0
    jobs: int = 0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    duplicates: int = 0
    """Rows that were left out, because their event was there twice."""


def total(done: Sequence[tuple[Job, Compacted]]) -> Compacted:
    """What several did together."""
    names = ("jobs", "files_before", "files_after", "bytes_before", "bytes_after", "duplicates")
    sums = {name: sum(getattr(one, name) for _, one in done) for name in names}
    return Compacted(days=len({job.day for job, _ in done}), **sums)


def foreseen(job: Job) -> Compacted:
    """What it will do, as far as that can be told."""
    return Compacted(1, 1, len(job.files), len(job.files) - job.saved, job.bytes, job.bytes)


def choose(
    files: Sequence[ColdFile], today: date, target_bytes: int, *, schema_version: int, eager: bool
) -> list[Job]:
    """What is worth compacting, the most files saved for a byte first. Pure.

    Of each day before today, files that are well below the target. Unless `eager`, only those of
    like sizes, and four at least: else each late event would have a large file written again.

    Args:
        today: days from then on are left alone; their seals are still to come.
        schema_version: files of newer versions, and those of other engines, are left alone.
    """
    jobs = []
    for day, group in groupby(sorted(filter(_is_ours, files), key=_day), key=_day):
        small = [
            file
            for file in group
            if file.info.bytes * 4 < target_bytes * 3 and file.schema_version <= schema_version
        ]
        if day < today:
            chosen = small if eager else _of_like_sizes(small)
            jobs += [Job(day, tuple(some), target_bytes) for some in _pieces(chosen, target_bytes)]
    return sorted((job for job in jobs if job.saved > 0), key=lambda job: (-job.worth, job.day))


def _of_like_sizes(files: Sequence[ColdFile]) -> list[ColdFile]:
    """The smallest, up to one that is much larger than they together; none when they are few."""
    chosen: list[ColdFile] = []
    total = 0
    for file in sorted(files, key=lambda file: file.info.bytes):
        if chosen and file.info.bytes > _SIZE_RATIO * total:
            break
        chosen.append(file)
        total += file.info.bytes
    return chosen if len(chosen) >= _FILES_MIN else []


def _pieces(files: Sequence[ColdFile], target_bytes: int) -> Iterator[list[ColdFile]]:
    """Files in order of time, as many together as one job takes."""
    piece: list[ColdFile] = []
    total = 0
    for file in sorted(files, key=lambda file: (file.info.min_time, file.name)):
        if piece and total + file.info.bytes > _JOB_FILES_OF_TARGET * target_bytes:
            yield piece
            piece, total = [], 0
        piece.append(file)
        total += file.info.bytes
    if piece:
        yield piece


def _day(file: ColdFile) -> date:
    assert file.day is not None
    return file.day


def _is_ours(file: ColdFile) -> bool:
    try:
        return file.day is not None and ColdName.parse(file.name).day == file.day
    except CorruptionError:
        return False


def refuse_replaced(table: TableContext, job: Job, done: Sequence[Job]) -> None:
    """Raise `CorruptionError` when a file is to be compacted again: it would go on for ever."""
    replaced = {file.name for one in done for file in one.files}
    again = [file for file in job.files if file.name in replaced]
    if again:
        raise CorruptionError(f"{table.cold_url(again[0])!r} was replaced, and is listed still")


def compact(table: TableContext, job: Job) -> Compacted:
    """Do it.

    Raises:
        ConflictError: another process replaced one of the files; its result stands.
        CorruptionError: a file is not what was published.
        StorageError: the disk refused; nothing was committed.
    """

    def do(memory_bytes: int) -> Compacted:
        with coldfiles.workplace(table, "compact") as folder:
            return _compact_in(folder, table, job, memory_bytes)

    with coldfiles.conflict_if_replaced(table, job.files):
        return coldfiles.sorting(f"{len(job.files)} cold files of {job.day}", do)


def _compact_in(folder: Path, table: TableContext, job: Job, memory_bytes: int) -> Compacted:
    paths = table.site.files.paths([table.wanted(file) for file in job.files])
    footers = {}
    for file, path in zip(job.files, paths, strict=True):
        if datafile.sha256(path) != file.info.sha256:
            raise CorruptionError(f"{table.cold_url(file)!r} is not what was published")
        footers[file.name] = datafile.read_footer(path)
    reach("compact.1")
    ids = [table.file_ids.of(f.name, p) for f, p in zip(job.files, paths, strict=True)]
    repeats = _repeats(table, paths, ids)
    written = list(_write(folder, table, job, paths, repeats, memory_bytes))
    reach("compact.2")
    _check(job, written, ids, repeats)
    reach("compact.3")
    files = [coldfiles.named(table, one, 0, 0, part) for part, one in enumerate(written)]
    parts = table.partials.files.of_files(job.files)
    named = list(zip(files, written, strict=True))
    coldfiles.publish(table, named, folder, parts, lambda: reach("compact.4"))
    reach("compact.5")
    replacement = Replacement("compact", job.files, files, footers)
    coldfiles.replace(table, replacement, written, {"cold": [file.name for file in files]})
    return Compacted(
        1,
        1,
        len(job.files),
        len(files),
        job.bytes,
        sum(file.info.bytes for file in files),
        repeats.num_rows if repeats is not None else 0,
    )


def _write(
    folder: Path,
    table: TableContext,
    job: Job,
    paths: Sequence[Path],
    repeats: pa.Table | None,
    memory_bytes: int,
) -> Iterator[Written]:
    files = [(file.schema_version, path) for file, path in zip(job.files, paths, strict=True)]
    rows = Rows(files)
    if repeats is not None:
        rows = Rows(
            files,
            "ANTI JOIN repeats USING (filename, file_row_number)",
            {"repeats": repeats},
            numbered=True,
        )
    return coldfiles.write(
        folder,
        table.schema,
        table.footer(tier="cold", seal=uuid4().hex, first=0, last=0),
        coldfiles.by_day(folder, table.lineage, rows, memory_bytes),
        job.target_bytes,
        at_least_of=job.day,
    )


def _repeats(table: TableContext, paths: Sequence[Path], ids: Sequence[Hashes]) -> pa.Table | None:
    """Rows whose event an earlier file of these holds, or an earlier row: file, number and hash.

    Hashes nominate, ids decide. There are none but where another engine, or a crash of a kind that
    nobody thought of, put them.
    """
    twice = twins(np.sort(np.concatenate(ids)))
    if table.schema.dedup == "none" or not len(twice):
        return None
    columns = [table.schema.event_id, table.schema.event_time]
    known: set[object] = set()
    found: list[tuple[str, int, int]] = []
    for path, hashes in zip(paths, ids, strict=True):
        if not np.isin(twice, hashes).any():
            continue
        rows = datafile.read_columns(path, columns)
        ordered = hash_batch(rows, table.schema)
        suspects = np.flatnonzero(in_sorted(twice, ordered))
        for row, event in zip(suspects, identities(rows.take(suspects), table.schema), strict=True):
            if event in known:
                found.append((str(path), int(row), int(ordered[row])))
            known.add(event)
    if not found:
        return None
    names, numbers, hashed = zip(*found, strict=True)
    return pa.table(
        {
            "filename": names,
            "file_row_number": pa.array(numbers, pa.int64()),
            "hash": pa.array(hashed, pa.uint64()),
        }
    )


def _check(
    job: Job, written: Sequence[Written], ids: Sequence[Hashes], repeats: pa.Table | None
) -> None:
    """Refuse outputs that do not hold the rows of the inputs."""
    left_out = [repeats.column("hash").to_numpy()] if repeats is not None else []
    expected = sum(map(len, ids)) - sum(map(len, left_out))
    found = sum(one.info.rows for one in written)
    after = sum(map(id_sum, [*(one.hashes for one in written), *left_out]))
    if found != expected or (after - sum(map(id_sum, ids))) % 2**64:
        raise CorruptionError(
            f"compacting {len(job.files)} cold files of {job.day} gave {found:,} rows of "
            f"{expected:,}; nothing was committed"
        )
