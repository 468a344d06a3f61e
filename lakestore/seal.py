"""Seal: hot segments → cold files, in segment order.

Order of effects, numbered as their failpoints are:

    seal.1 segments' bytes checked    .2 one sorted file a day staged (more past the target size)
    .3 rows and ids checked, and the payload files that the rows refer to put in the root
    (`payload.4`)    .4 a file published    .5 all of them    .6 listed in the catalog
    (of a Delta table: `delta.1` and `.2`)    .7 committed    .8 caches of ids brought up to date

The commit lists the files and moves `sealed_through`, so at no instant is a row in both tiers or
in neither. A crash before it leaves
files that nothing names; the next seal writes the same rows under names of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa

from lakestore import coldfiles, datafile, hot, payload, quoting
from lakestore.clock import micros
from lakestore.coldfiles import Rows, Written
from lakestore.context import TableContext
from lakestore.duplicates import RepeatedError, SealedElsewhere
from lakestore.engine import SORT_BYTES
from lakestore.errors import CorruptionError
from lakestore.failpoint import reach
from lakestore.fileids import read_hashes
from lakestore.idhash import hash_batch, id_sum
from lakestore.layout import LAKE_FILE
from lakestore.marks import RETIRED, UNKNOWN
from lakestore.schema import TableSchema
from lakestore.settings import MIB, Settings
from lakestore.snapshot import ColdFile, Segment
from lakestore.versions import take_up
from lakestore.watermark import Promise, is_behind, promise

_SEAL_BYTES_MAX = 512 * MIB


def is_due(hot_bytes: int, oldest_age_s: float, settings: Settings) -> bool:
    """Whether the hot tier is worth sealing now. Pure."""
    return hot_bytes > 0 and (
        hot_bytes >= settings.seal_bytes or oldest_age_s >= settings.seal_age_s
    )


def choose(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The oldest segments, as many as one seal should take: at least one, then up to 512 MiB.

    None while no segment has a row: there would be no file whose footer says what they took.
    """
    if not any(segment.info.rows for segment in segments):
        return ()
    total = 0
    for count, segment in enumerate(segments):
        total += segment.info.bytes
        if total > _SEAL_BYTES_MAX and any(s.info.rows for s in segments[:count]):
            return segments[:count]
    return segments


def seal(table: TableContext) -> list[ColdFile]:
    """Seal every hot segment; the caller holds `table.sealing`.

    Raises:
        ConflictError: another process sealed meanwhile; its result stands.
        CorruptionError: a segment's bytes are not those that were published.
        StorageError: the disk refused; nothing more was committed.
    """
    files: list[ColdFile] = []
    if table.site.storage.remote:  # before hours of work: does it answer?
        table.site.storage.size(LAKE_FILE)
    while True:
        promised = promise(table)
        segments = choose(table.state().hot)
        if not segments:
            return files
        table = take_up(table, max(s.schema_version for s in segments))
        try:
            files += _seal_some(table, segments, promised, SORT_BYTES)
        except duckdb.OutOfMemoryException:  # rows so wide that one segment is work enough
            filled = next(i for i, segment in enumerate(segments) if segment.info.rows)
            files += _seal_one(table, segments[: filled + 1], promised)


def say_so(table: TableContext, *, asked: bool) -> None:
    """Move the watermark of a site with nothing to seal, where it lags by what a seal may wait.

    Args:
        asked: by the caller, who wants to know; else only others that are held back.

    Raises: as `seal`.
    """
    site, marks = table.site, table.cold.marks()
    if marks.get(site.catalog.site) == RETIRED:  # by another site, which took it to be gone
        table.cold.join()
        marks = table.cold.marks()
    if site.catalog.site not in marks:  # it could not join when it was opened
        promised = promise(table)
        table.cold.promise(promised.moment if promised.is_kept else UNKNOWN)
        return
    now = micros(site.clock.now()) if asked else None
    known = is_behind(marks, site.catalog.site, site.settings.seal_age_s, now)
    if known is not None and (promised := promise(table)).is_kept:
        table.cold.promise(min(promised.moment, known))


def _seal_one(
    table: TableContext, segments: Sequence[Segment], promised: Promise
) -> list[ColdFile]:
    """Seal the first segment that has rows, and those without before it."""
    return coldfiles.sorting(
        f"segment {segments[-1].name!r}",
        lambda memory_bytes: _seal_some(table, segments, promised, memory_bytes),
    )


def _seal_some(
    table: TableContext, segments: Sequence[Segment], promised: Promise, memory_bytes: int
) -> list[ColdFile]:
    table.cold.claim(segments, segments[-1].last)
    with table.conflict_if_superseded(segments):
        for segment in segments:
            hot.check_intact(table.segment_path(segment), segment.info)
        reach("seal.1")
        repeated = None
        with coldfiles.workplace(table, "seal") as folder:
            while True:
                try:
                    return _seal_in(folder, table, segments, promised, memory_bytes, repeated)
                except RepeatedError as error:
                    repeated = pa.concat_tables([error.rows, *([repeated] if repeated else [])])


def _seal_in(
    folder: Path,
    table: TableContext,
    segments: Sequence[Segment],
    promised: Promise,
    memory_bytes: int,
    repeated: pa.Table | None,
) -> list[ColdFile]:
    """Seal what is not among the rows that another site has sealed; raises `RepeatedError`."""
    first, last = segments[0].first, segments[-1].last
    written = list(_write(folder, table, segments, memory_bytes, repeated))
    reach("seal.2")
    ids = np.concatenate([read_hashes(table.segment_path(s), table.schema) for s in segments])
    if repeated is not None:
        ids = ids[~np.isin(ids, hash_batch(repeated, table.schema))]
    found = sum(w.info.rows for w in written)
    if found != len(ids) or id_sum(ids) != sum(id_sum(w.hashes) for w in written) % 2**64:
        raise CorruptionError(
            f"sealing segments {first} to {last} gave {found:,} rows of {len(ids):,}; "
            "nothing was committed"
        )
    reach("seal.3")
    named = [(coldfiles.named(table, w, first, last, part), w) for part, w in enumerate(written)]
    compared_with = hot.compared_with(_footers(table, segments))
    examine = SealedElsewhere(table, [(file, w.path, w.hashes) for file, w in named], compared_with)
    examine(table.state().cold)
    site = table.site
    for name in sorted({name for file, _ in named for name in file.info.payload}):
        key = table.payload_key(name)
        payload.put(site.storage, key, name, table.payload_folder, site.staging)
    parts = table.partials.files.of_files(segments)
    coldfiles.publish(table, named, folder, parts, lambda: reach("seal.4"))
    reach("seal.5")
    files = [file for file, _ in named]
    complete = promised.moment if last >= promised.last else None
    table.cold.publish(segments, files, last, complete, examine)
    reach("seal.7")
    for file, one in named:
        table.file_ids.remember(file.name, one.hashes)
    for segment in segments:
        table.file_ids.forget(segment.name)
    reach("seal.8")
    return files


def _write(
    folder: Path,
    table: TableContext,
    segments: Sequence[Segment],
    memory_bytes: int,
    repeated: pa.Table | None,
) -> Iterator[Written]:
    """Write the rows of the segments to files whose footers say what these took.

    A seal whose rows are all known has a file without rows, for its footer.
    """
    footer = table.footer(
        tier="cold", seal=uuid4().hex, first=segments[0].first, last=segments[-1].last
    )
    took = taken(table, segments)
    rows = Rows([(s.schema_version, table.segment_path(s)) for s in segments])
    if repeated is not None:
        rows = replace(
            rows, condition=_without_repeated(table.schema), relations={"repeated": repeated}
        )
    filled = next(s for s in segments if s.info.rows)
    return coldfiles.write(
        folder,
        table.schema,
        footer,
        coldfiles.by_day(folder, table.lineage, rows, memory_bytes),
        table.site.settings.cold_file_bytes,
        ending=lambda: took,
        at_least_of=filled.info.min_time.date(),
    )


def taken(table: TableContext, segments: Sequence[Segment]) -> dict[str, Any]:
    """What segments took, as the footer of the cold files says that take their place."""
    took = hot.taken(_footers(table, segments))
    remembered = table.site.catalog.sent(table.entry.id, {(p, seq) for p, seq in took["sent"]})
    return took | {"sent": sorted(remembered)}


def _footers(table: TableContext, segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [datafile.read_footer(table.segment_path(segment)) for segment in segments]


def _without_repeated(schema: TableSchema) -> str:
    """A join that leaves rows out whose event is in `repeated`."""
    id, time = quoting.identifier(schema.event_id), quoting.identifier(schema.event_time)
    same = f"repeated.{id} = sealed.{id}"
    if schema.dedup == "day":
        same += f" AND CAST(repeated.{time} AS DATE) = CAST(sealed.{time} AS DATE)"
    return f"WHERE NOT EXISTS (FROM repeated WHERE {same})"
