"""Verify that no event is published twice in its table's scope. Hashes nominate, ids decide."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakestore.datafile import UNREADABLE
from lakestore.idhash import Hashes, hash_batch, identities, in_sorted, twins
from lakestore.schema import TableSchema
from lakestore.storage.local import raise_refusal
from lakestore.verify.datafiles import Checked
from lakestore.verify.report import Problem

_SHOWN = 3
_HELP = "the first durable one counts; tell which rows are wanted, and load those into a new table"


def check_duplicates(
    table: str,
    schema: TableSchema,
    files: Sequence[tuple[Checked, date | None]],
    fetched: Callable[[Path], Path],
) -> list[Problem]:
    """Rows that are published twice, by the files that hold them.

    Args:
        files: what was read, with the day of its rows; None when it may have any.
        fetched: gives a file that was let go once more.
    """
    if schema.dedup == "none":
        return []
    anywhere = [checked for checked, day in files if day is None or schema.dedup == "table"]
    by_day: dict[date, list[Checked]] = defaultdict(list)
    for checked, day in files:
        if day is not None and schema.dedup == "day":
            by_day[day].append(checked)
    problems = []
    for group in (anywhere, *by_day.values()):
        rest = anywhere if group is not anywhere else []
        problems += _in_group(table, schema, [*group, *rest], fetched)
    return problems


def _in_group(
    table: str,
    schema: TableSchema,
    files: Sequence[Checked],
    fetched: Callable[[Path], Path],
) -> list[Problem]:
    hashes = [checked.hashes for checked in files]
    if not hashes:
        return []
    nominated = np.unique(twins(np.sort(np.concatenate(hashes))))
    if len(nominated) == 0:
        return []
    holders: dict[object, list[Path]] = defaultdict(list)
    for checked in files:
        for identity in _identities(fetched(checked.path), schema, nominated):
            holders[identity].append(checked.path)
    doubled: dict[tuple[Path, ...], list[object]] = defaultdict(list)
    for identity, paths in holders.items():
        if len(paths) > 1:
            doubled[tuple(sorted(paths))].append(identity)
    return [_problem(table, schema, paths, ids) for paths, ids in doubled.items()]


def _problem(
    table: str, schema: TableSchema, paths: tuple[Path, ...], ids: Sequence[object]
) -> Problem:
    shown = ", ".join(
        repr(i[0] if schema.dedup == "day" and isinstance(i, tuple) else i) for i in ids[:_SHOWN]
    )
    where = " and ".join(dict.fromkeys(str(path) for path in paths[1:]))
    what = f"{len(ids):,} event(s) are published twice, such as {shown}; again in {where}"
    return Problem("duplicate", "damage", table, paths[0], what, _HELP)


def _identities(path: Path, schema: TableSchema, nominated: Hashes) -> list[object]:
    """What identifies the rows of a file whose hashes are among the nominated."""
    found: list[object] = []
    try:
        with pq.ParquetFile(path) as file:
            for rows in file.iter_batches(columns=[schema.event_id, schema.event_time]):
                hit = in_sorted(nominated, hash_batch(rows, schema))
                if hit.any():
                    found += identities(rows.filter(pa.array(hit)), schema)
    except UNREADABLE as error:  # it was there a moment ago, and is superseded by now
        raise_refusal(f"cannot read {str(path)!r}", error)
        return []
    return found
