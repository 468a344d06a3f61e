"""Thin a payload file: write it anew, without the payloads that no event refers to any more.

A row stays whose event does. Of events whose payloads are the same one row has the values; where
that one goes, the next takes them over, so that what only erased events had is in no file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lakestore import datafile, quoting
from lakestore.datafile import DataFileWriter
from lakestore.errors import CorruptionError
from lakestore.kept import SAME_AS
from lakestore.layout import PayloadName
from lakestore.payload import ROW_GROUP_BYTES, damage
from lakestore.schema import FILE_ROW, TableSchema
from lakestore.storage.local import fsync_file

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Thinned:
    """A payload file that is written and checked, in the place of another."""

    name: str
    path: Path
    references: Mapping[str, str]
    """New ones by the old ones."""


def thin(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    old: str,
    path: Path,
    schema: TableSchema,
    remaining: pa.Table,
    facts: Mapping[str, Any],
) -> Thinned | None:
    """Write what is left of a payload file to `folder`; None when nothing is.

    Args:
        con: to join the rows of files with.
        path: where the payload file `old` is.
        schema: of payload files.
        remaining: id, time and `holder`, the row that has the payload, of the events that stay.
        facts: what the new file says of itself, and what is of this one alone.

    Raises:
        CorruptionError: the file is not what was published, or lacks an event.
        StorageError: the disk refused.
    """
    name = PayloadName.parse(old)
    if why := damage(path, name):
        raise CorruptionError(f"payload file {str(path)!r} {why}; restore it from a copy")
    kept, holders = _kept(con, path, schema, remaining)
    if not len(kept):
        return None
    staged = folder / f"{uuid4().hex}.parquet"
    footer = {**datafile.read_footer(path), **facts, "replaces": old}
    footer.pop("rows", None)
    writer = DataFileWriter(
        staged,
        schema,
        footer,
        bloom=True,
        row_group_bytes=ROW_GROUP_BYTES,
        unsearched=schema.names[2:-1],
    )
    first = _first_of_each(holders)
    try:
        for batch in _batches(path, schema, kept, holders, first):
            writer.write(batch)
    except BaseException:
        writer.abandon()
        raise
    info = writer.close(rows=len(kept))
    fsync_file(staged)
    made = str(PayloadName(name.day, str(footer["site"]), info.bytes, info.sha256[:12]))
    moved = {int(h): int(row) for h, row in zip(holders, first, strict=True)}
    return Thinned(made, staged, {f"{old}#{h}": f"{made}#{row}" for h, row in moved.items()})


def _kept(
    con: duckdb.DuckDBPyConnection, path: Path, schema: TableSchema, remaining: pa.Table
) -> tuple[Numbers, Numbers]:
    """Numbers of the rows whose events stay, in order, and of each the row with its payload."""
    key = f"{quoting.identifiers(schema.names[:2])}, holder"
    con.register("remaining", remaining.rename_columns([*schema.names[:2], "holder"]))
    found = con.sql(
        f"WITH rows AS (SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY number) AS nth "
        f"FROM (SELECT {quoting.identifiers(schema.names[:2])}, {FILE_ROW} AS number, "
        f"coalesce({SAME_AS}, {FILE_ROW}) AS holder FROM read_parquet("
        f"{quoting.literals([str(path)])}, hive_partitioning = false, file_row_number = true))), "
        f"events AS (SELECT {key}, count(*) AS n FROM remaining GROUP BY ALL) "
        f"SELECT number, holder FROM rows JOIN events USING ({key}) WHERE nth <= n ORDER BY number"
    ).to_arrow_table()
    con.unregister("remaining")
    if found.num_rows != remaining.num_rows:
        raise CorruptionError(
            f"payload file {str(path)!r} has {found.num_rows:,} of {remaining.num_rows:,} events "
            "that refer to it"
        )
    return (
        np.asarray(found.column("number"), dtype=np.int64),
        np.asarray(found.column("holder"), dtype=np.int64),
    )


def _first_of_each(holders: Numbers) -> Numbers:
    """Of each row that stays the number, among these, of the first with the same payload."""
    _, first, group = np.unique(holders, return_index=True, return_inverse=True)
    return np.asarray(first[group], dtype=np.int64)


def _batches(
    path: Path, schema: TableSchema, kept: Numbers, holders: Numbers, first: Numbers
) -> Iterator[pa.RecordBatch]:
    """The rows that stay, a row group at a time; values that change hands wait in memory."""
    heirs = first == np.arange(len(kept))
    wanted = set(holders[heirs & (holders != kept)].tolist())
    carried: dict[int, pa.Table] = {}
    columns = schema.names[2:-1]
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        start = 0
        for number in range(file.num_row_groups):
            group = file.read_row_group(number).cast(schema.arrow)
            end = start + group.num_rows
            for holder in [h for h in wanted if start <= h < end]:
                carried[holder] = group.select(columns).slice(holder - start, 1)
            here = np.flatnonzero((kept >= start) & (kept < end))
            if len(here):
                inherited = [h for h in holders[here[heirs[here]]].tolist() if h < start]
                pool = pa.concat_tables(
                    [group.select(columns), *(carried.pop(h) for h in inherited)]
                )
                place = {h: group.num_rows + i for i, h in enumerate(inherited)}
                index = pa.array(
                    [
                        place.get(h, h - start) if heir else None
                        for h, heir in zip(
                            holders[here].tolist(), heirs[here].tolist(), strict=True
                        )
                    ],
                    pa.int64(),
                )
                events = group.select(schema.names[:2]).take(pa.array(kept[here] - start))
                values = pool.take(index)
                same_as = pa.array(first[here], mask=heirs[here])
                made = pa.table([*events.columns, *values.columns, same_as], schema=schema.arrow)
                yield from made.combine_chunks().to_batches()
            start = end
