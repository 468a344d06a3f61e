"""Rows that cannot become events, of files and of batches: which, why, and what they say."""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lakestore import coerce
from lakestore.errors import InvalidInputError, SchemaError, StorageError
from lakestore.naming import NO_COLUMN, NewColumnsError, target, unknown
from lakestore.rowjson import row_json
from lakestore.schema import TableSchema

SHOWN = 5
"""So many are named in an error."""

_KEPT_MAX = 100_000
_AT_ONCE = 10_000
"""So many are held before they are handed on."""
_COLUMN = re.compile(r"^(?:row \d+: )?column '((?:[^'\\]|\\.)*)'")
_MISSING = re.compile(r"^column '(?:[^'\\]|\\.)*' is missing; ")
_PLACE = re.compile(r"^row \d+: (?:column '((?:[^'\\]|\\.)*)'(?:: | is ))?")


@dataclass(frozen=True)
class Reject:
    """One line that cannot be read; `line` counts from 1, or rows from 1 if there are no lines.

    Of a batch that is appended it is the number of the row, from 0.
    """

    line: int
    column: str | None
    error: str
    text: str | None = None
    event: str | None = None
    """The row as JSON, where rejects are kept."""

    @property
    def reason(self) -> str:
        """What an error would say of it, but for the row."""
        if self.column is None:
            return self.error
        return f"column {self.column!r}{' ' if self.error.startswith('is ') else ': '}{self.error}"


class Rejects:
    """The rejects of one file or batch: how many, and the first of them, or all that come."""

    def __init__(
        self,
        enough: int | None = None,
        keep: Callable[[Sequence[Reject]], object] | None = None,
    ) -> None:
        """No rejects yet.

        Args:
            enough: no more than about so many are wanted.
            keep: takes all of them, some at a time, the last at `hand_on`.
        """
        self._enough = enough
        self._keep = keep
        self.count = 0
        self.cut = False  # whether there may be more than were counted
        self.kept: list[Reject] = []

    @property
    def are_kept(self) -> bool:
        """Whether all of them are, with what they say as JSON."""
        return self._keep is not None

    def add(
        self,
        line: int,
        column: str | None,
        error: str,
        text: str | None = None,
        event: str | None = None,
    ) -> None:
        """Take one more."""
        self.count += 1
        if self._keep is not None:
            self.kept.append(Reject(line, column, error, text, event))
            if len(self.kept) >= _AT_ONCE:
                self.hand_on()
        elif len(self.kept) < _KEPT_MAX:
            self.kept.append(Reject(line, column, error, text))

    def hand_on(self) -> None:
        """Have those kept that are not yet."""
        if self._keep is not None and self.kept:
            self._keep(self.kept)
            self.kept = []

    def drain(self) -> list[Reject]:
        """Give back those kept, so that they can be added again with their true lines."""
        kept, self.kept = self.kept, []
        self.count -= len(kept)
        return kept

    @property
    def full(self) -> bool:
        """Whether no more are wanted: a strict ingest names the first few."""
        return self._enough is not None and self.count >= self._enough

    def message(self, name: str, outcome: str, help: str) -> str:
        """What it says about them who does not pass over them.

        Args:
            outcome: what was done with the others.
            help: what to do about it.
        """
        count = f"{self.count:,} or more" if self.cut else f"{self.count:,}"
        lines = [f"{name}: {outcome}, for these lines cannot be read ({count}):"]
        for reject in self.kept[:SHOWN]:
            column = f", column {reject.column!r}" if reject.column else ""
            text = "" if reject.text is None else f": {shorten(reject.text)!r}"
            lines.append(f"  line {reject.line}{column}: {reject.error}{text}")
        lines.append(help)
        return "\n".join(lines)


def write(rejects: Sequence[Reject], path: Path, name: str) -> None:
    """Append rejects of a file to another, as NDJSON: file, line, column, error, text."""
    try:
        with path.open("a", encoding="utf-8") as file:
            for reject in rejects:
                said = {n: v for n, v in vars(reject).items() if n != "event"}
                file.write(json.dumps({"file": name, **said}) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error}") from error


@dataclass(frozen=True)
class Chunk:
    """Up to 65,536 rows of a file, or a batch, by the table's column names; the line of each."""

    rows: pa.Table | list[Any]
    lines: Sequence[int]
    read: Sequence[int] | None = None
    """Its lines and those that became rejects as they were read; None when there are none."""

    @property
    def count(self) -> int:
        """How many lines were read for it."""
        return len(self.lines if self.read is None else self.read)

    def after(self, count: int) -> "Chunk":
        """What comes after so many lines that were read."""
        if not count:
            return self
        read = self.lines if self.read is None else self.read
        rest = read[count:]
        at = bisect_left(self.lines, rest[0]) if len(rest) else len(self.lines)
        return Chunk(self.rows[at:], self.lines[at:], rest)


def sift(chunk: Chunk, schema: TableSchema, rejects: Rejects) -> list[pa.RecordBatch]:
    """The rows that fit the table's schema, as its batches; the others become rejects.

    Raises:
        NewColumnsError: rows have columns that are to be added.
    """
    if not len(chunk.lines):
        return []
    if rejects.full:
        rejects.cut = True
        return []
    try:
        return coerce.to_batches(chunk.rows, schema)
    except NewColumnsError as error:
        if schema.document.on_new_column == "add":
            raise
        if len(error.names) < error.rows.num_columns:
            return _without_unknown(error, chunk.lines, schema, rejects)
        problem: SchemaError = error
    except SchemaError as error:
        problem = error
    wrong = (
        _of_all(problem, chunk) or _of_names(chunk, schema) or _of_column(problem, chunk, schema)
    )
    if not wrong and len(chunk.lines) == 1:
        wrong = {0: problem}
    if wrong:
        for at, why in sorted(wrong.items()):
            _reject(chunk, at, why, schema, rejects)
        return sift(_without(chunk, wrong), schema, rejects)
    half = len(chunk.lines) // 2
    return [
        batch
        for part in (slice(0, half), slice(half, None))
        for batch in sift(Chunk(chunk.rows[part], chunk.lines[part]), schema, rejects)
    ]


def _of_all(error: SchemaError, chunk: Chunk) -> dict[int, SchemaError]:
    """Every row, when none has a column that is required, or any that is known."""
    nothing_known = isinstance(error, NewColumnsError) or str(error).startswith(NO_COLUMN)
    if nothing_known or _MISSING.match(str(error)):
        return dict.fromkeys(range(len(chunk.lines)), error)
    return {}


def _of_names(chunk: Chunk, schema: TableSchema) -> dict[int, SchemaError]:
    """The mappings that have unknown columns, where those do not fit."""
    wrong = {}
    if isinstance(chunk.rows, list) and schema.document.on_new_column == "reject":
        known: dict[object, bool] = {}
        for at, row in enumerate(chunk.rows):
            for name in row:
                if name not in known:
                    known[name] = isinstance(name, str) and target(name, schema) is not None
                if not known[name]:
                    wrong[at] = SchemaError(unknown(str(name), schema))
                    break
    return wrong


def _of_column(error: SchemaError, chunk: Chunk, schema: TableSchema) -> dict[int, SchemaError]:
    """The rows whose value of one column does not fit, when the error is of that column."""
    found = _COLUMN.match(str(error))
    if found is None or found[1] not in schema.names:
        return {}
    name, rows = found[1], chunk.rows
    if isinstance(rows, pa.Table):
        values = rows.column(name) if name in rows.schema.names else None
    else:
        values = [row.get(name) for row in rows] if any(name in row for row in rows) else None
    return {} if values is None else coerce.misfits(values, schema.column(name), schema)


def _without(chunk: Chunk, wrong: Mapping[int, object]) -> Chunk:
    kept = [at for at in range(len(chunk.lines)) if at not in wrong]
    rows = chunk.rows
    left = [rows[at] for at in kept] if isinstance(rows, list) else _taken(rows, kept)
    return Chunk(left, [chunk.lines[at] for at in kept])


def _taken(rows: pa.Table, kept: Sequence[int]) -> pa.Table:
    """Some of the rows: Arrow takes none of views, as Polars has them, so runs are cut out."""
    ends = np.flatnonzero(np.diff(kept) != 1) + 1
    runs = [run for run in np.split(np.asarray(kept, np.int64), ends) if len(run)]
    parts = [rows.slice(int(run[0]), len(run)) for run in runs]
    return pa.concat_tables(parts) if parts else rows.slice(0, 0)


def _without_unknown(
    error: NewColumnsError, lines: Sequence[int], schema: TableSchema, rejects: Rejects
) -> list[pa.RecordBatch]:
    """Reject rows that have a value in a column that is unknown; the others lose nothing."""
    rows, names = error.rows, error.names
    found = [np.asarray(rows.column(name).is_valid()) for name in names]
    wrong = np.logical_or.reduce(found)
    for at in np.flatnonzero(wrong).tolist():
        name = next(n for n, valid in zip(names, found, strict=True) if valid[at])
        _reject(Chunk(rows, lines), at, SchemaError(unknown(name, schema)), schema, rejects)
    known = Chunk(rows.drop_columns(list(names)), lines)
    return sift(_without(known, dict.fromkeys(np.flatnonzero(wrong).tolist())), schema, rejects)


def _reject(
    chunk: Chunk, at: int, error: SchemaError, schema: TableSchema, rejects: Rejects
) -> None:
    row = chunk.rows[at] if isinstance(chunk.rows, list) else _row(chunk.rows.slice(at, 1))
    text = None if row is None else _shown(row)
    event = row_json(row, schema) if rejects.are_kept and row is not None else None
    rejects.add(chunk.lines[at], *_place(error), text, event)


def _shown(row: Any) -> str | None:
    try:
        return shorten(repr(row), 2000)
    except RecursionError:  # it nests too deeply
        return None


def _row(rows: pa.Table) -> dict[str, Any] | None:
    """The first row; bytes in the place of what should be text and is none."""
    row = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except UnicodeDecodeError:  # Arrow's strings may hold anything
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                return None
            row[name] = column.cast(pa.large_binary())[0].as_py()
    return row


def _place(error: InvalidInputError) -> tuple[str | None, str]:
    """Column and reason, out of `row 3: column 'x': 'abc' does not fit INTEGER`."""
    text = str(error)
    found = _PLACE.match(text)
    if found is None:
        return None, text
    rest = text[found.end() :]
    return found[1], rest if not found[0].endswith(" is ") else f"is {rest}"


def shorten(text: str, limit: int = 120) -> str:
    """The text, or its beginning."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
