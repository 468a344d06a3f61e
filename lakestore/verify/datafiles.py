"""Verify one Parquet data file: its bytes, its footer, its statistics, its rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakestore import datafile
from lakestore.delta.statistics import Ranges, statistics_text
from lakestore.errors import CorruptionError
from lakestore.idhash import Hashes, days, hash_batch
from lakestore.kept import REFERENCE
from lakestore.schema import TableSchema
from lakestore.snapshot import FileInfo
from lakestore.storage.local import raise_refusal
from lakestore.verify.report import REBUILD, RESTORE, Problem, Severity


@dataclass
class Checked:
    """What a data file turned out to hold."""

    path: Path
    footer: Mapping[str, Any] | None = None
    hashes: Hashes = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    problems: list[Problem] = field(default_factory=list)


class DataFileCheck:
    """Checks data files of one table."""

    def __init__(self, table: str, schema: TableSchema, *, in_log: bool = False) -> None:
        """Checks for one table.

        Args:
            in_log: what is listed of cold files is what a Delta log keeps.
        """
        self._table = table
        self._schema = schema
        self._in_log = in_log

    def check(
        self,
        path: Path,
        listed: FileInfo,
        sha12: str,
        footer: Mapping[str, Any],
        day: date | None,
    ) -> Checked:
        """Read a whole file, and hold it against what the catalog and its name say.

        Args:
            listed: what the catalog says.
            sha12: what the name says of its sha256.
            footer: what its footer has to say, among other things.
            day: the day of every row, for a cold file.
        """
        checked = Checked(path)
        try:
            same = (path.stat().st_size, datafile.sha256(path))
        except FileNotFoundError:
            what = f"the catalog lists it, and it is gone with {listed.rows:,} rows"
            self._note(checked, "missing", what, RESTORE, rows_lost=listed.rows)
            return checked
        except OSError as error:
            raise_refusal(f"cannot read {str(path)!r}", error)
            what = f"it cannot be read: {error.strerror}"
            self._note(checked, "unreadable", what, RESTORE, rows_lost=listed.rows)
            return checked
        if not same[1].startswith(sha12):
            self._note_loss(checked, listed)
            return checked
        if same != (listed.bytes, listed.sha256):
            what = "its size or sha256 is not what the catalog says, but what its name says"
            self._note(checked, "catalog", what, REBUILD)
        try:
            self._check_content(checked, listed, footer, day)
        except (CorruptionError, *datafile.UNREADABLE) as error:
            raise_refusal(f"cannot read {str(path)!r}", error)
            self._note(checked, "unreadable", f"it cannot be read: {error}", RESTORE)
        return checked

    def check_foreign(self, path: Path, listed: FileInfo) -> Checked:
        """Read a whole file that another engine made, which says nothing of itself."""
        checked = Checked(path)
        try:
            if (size := path.stat().st_size) != listed.bytes:
                what = f"it has {size:,} bytes, and the log says {listed.bytes:,}"
                self._note(checked, "damaged", what, RESTORE, rows_lost=listed.rows)
                return checked
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                columns = [self._schema.event_id, self._schema.event_time]
                found = [hash_batch(b, self._schema) for b in file.iter_batches(columns=columns)]
            checked.hashes = np.concatenate([*found, checked.hashes])
            checked.footer = {}
        except FileNotFoundError:
            what = f"the log lists it, and it is gone with {listed.rows:,} rows"
            self._note(checked, "missing", what, RESTORE, rows_lost=listed.rows)
        except datafile.UNREADABLE as error:
            raise_refusal(f"cannot read {str(path)!r}", error)
            self._note(checked, "unreadable", f"it cannot be read: {error}", RESTORE)
        return checked

    def _check_content(
        self, checked: Checked, listed: FileInfo, footer: Mapping[str, Any], day: date | None
    ) -> None:
        checked.footer = datafile.read_footer(checked.path)
        wrong = {k: checked.footer.get(k) for k, v in footer.items() if checked.footer.get(k) != v}
        if wrong:
            told = ", ".join(f"{key} {v!r}, not {footer[key]!r}" for key, v in wrong.items())
            self._note(checked, "footer", f"its footer says {told}", RESTORE)
        measured = datafile.measure(checked.path, self._schema)
        if self._in_log and day is not None:  # a log keeps fewer statistics
            ranges = Ranges(statistics_text(measured, self._schema), self._schema)
            measured = replace(measured, ranges=ranges)
        if measured != listed:
            differing = [n for n in vars(listed) if getattr(listed, n) != getattr(measured, n)]
            what = f"the catalog's {', '.join(differing)} of it are not those of the file"
            self._note(checked, "statistics", what, REBUILD)
        hashes = []
        with pq.ParquetFile(checked.path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(self._schema.arrow):
                self._note(checked, "columns", "its columns are not those of the table", RESTORE)
                return
            order, payload = _Order(self._schema.sort), set[str]()
            for index in range(file.metadata.num_row_groups):
                rows = file.read_row_group(index)
                group = file.metadata.row_group(index)
                if rows.num_rows != group.num_rows:
                    what = f"row group {index} holds {rows.num_rows:,} of {group.num_rows:,} rows"
                    self._note(checked, "rows", what, RESTORE)
                for what in _wrong_rows(rows, group, self._schema, day):
                    self._note(checked, "statistics", f"row group {index}: {what}", RESTORE)
                if not order.goes_on(rows):
                    what = f"row group {index} is not in the table's sort order"
                    self._note(checked, "order", what, RESTORE)
                hashes.append(hash_batch(rows, self._schema))
                if self._schema.has_references:
                    payload |= datafile.files_referred_to(rows.column(REFERENCE))
        if payload != set(measured.payload):
            what = "its rows refer to other payload files than its footer names"
            self._note(checked, "payload", what, RESTORE)
        if hashes:
            checked.hashes = np.concatenate(hashes)

    def _note_loss(self, checked: Checked, listed: FileInfo) -> None:
        """Say of a damaged file exactly what of it cannot be read any more."""
        lost, spans = _unreadable(checked.path, listed)
        what = f"its bytes were altered, though all of its {listed.rows:,} rows can be read"
        if lost:
            share = f"{lost:,} of {listed.rows:,} rows cannot be read ({spans})"
            what = f"its bytes were altered: {share}"
        self._note(checked, "damaged", what, RESTORE, rows_lost=lost)

    def _note(
        self,
        checked: Checked,
        kind: str,
        what: str,
        help: str,
        *,
        severity: Severity = "damage",
        rows_lost: int = 0,
    ) -> None:
        checked.problems.append(
            Problem(kind, severity, self._table, checked.path, what, help, rows_lost=rows_lost)
        )


def _unreadable(path: Path, listed: FileInfo) -> tuple[int, str]:
    """How many rows cannot be read, and of which times."""
    whole = f"times {listed.min_time.isoformat()} to {listed.max_time.isoformat()}"
    lost, spans = 0, []
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if file.metadata.num_rows != listed.rows:
                return listed.rows, whole
            first = 0
            for index in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(index).num_rows
                try:
                    readable = file.read_row_group(index).num_rows == count
                except datafile.UNREADABLE as error:
                    raise_refusal(f"cannot read {str(path)!r}", error)
                    readable = False
                if not readable:
                    lost += count
                    spans.append(f"{first:,} to {first + count - 1:,}")
                first += count
    except datafile.UNREADABLE as error:
        raise_refusal(f"cannot read {str(path)!r}", error)
        return listed.rows, whole
    return lost, f"rows {', '.join(spans)}, within {whole}"


def _wrong_rows(
    rows: pa.Table, group: pq.RowGroupMetaData, schema: TableSchema, day: date | None
) -> Iterator[str]:
    """What the rows of a row group do not hold to."""
    for name in schema.required:
        if rows.column(name).null_count:
            yield f"column {name!r} holds a null"
    if day is not None:
        numbers = days(rows.column(schema.event_time))
        if len(numbers) and set(np.unique(numbers).tolist()) != {(day - date(1970, 1, 1)).days}:
            yield f"there are rows of another day than {day}"
    for index in range(group.num_columns):
        column = group.column(index)
        name, statistics = column.path_in_schema, column.statistics
        if name not in schema.names or statistics is None:
            continue
        values = rows.column(name)
        if statistics.has_null_count and statistics.null_count != values.null_count:
            yield f"column {name!r} has {values.null_count:,} nulls, and statistics say otherwise"
        if statistics.has_min_max and not _is_within(values, statistics):
            yield f"column {name!r} has values outside its statistics"


def _is_within(values: pa.ChunkedArray, statistics: pq.Statistics) -> bool:
    span = pc.min_max(values)
    try:
        low, high = span["min"].as_py(), span["max"].as_py()
        return bool(low is None or (statistics.min <= low and high <= statistics.max))
    except (OverflowError, ValueError):  # a date beyond the year 9999, which Python has not
        return True


class _Order:
    """Whether row groups, one after the other, are in a sort order: ascending, nulls last."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = list(keys)
        self._last: pa.Table | None = None

    def goes_on(self, rows: pa.Table) -> bool:
        """Whether these rows are sorted, and none comes before those seen so far."""
        keys = rows.select(self._keys)
        if self._last is not None:
            keys = pa.concat_tables([self._last, keys])
        if keys.num_rows == 0:
            return True
        self._last = keys.slice(keys.num_rows - 1)
        equal: npt.NDArray[np.bool_] = np.ones(keys.num_rows - 1, dtype=np.bool_)
        for name in self._keys:
            ranks = pc.rank(
                keys.column(name).combine_chunks(), sort_keys="ascending", tiebreaker="dense"
            ).to_numpy()  # nulls come last
            if bool((equal & (ranks[1:] < ranks[:-1])).any()):
                return False
            equal &= ranks[1:] == ranks[:-1]
        return True
