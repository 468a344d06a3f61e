"""Lines of a file that cannot become events: which, why, and what they say."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lakestore import coerce
from lakestore.errors import InvalidInputError, SchemaError, StorageError
from lakestore.schema import TableSchema

SHOWN = 5
"""So many are named in an error."""

_KEPT_MAX = 100_000
_PLACE = re.compile(r"^row \d+: (?:column '((?:[^'\\]|\\.)*)'(?:: | is ))?")


@dataclass(frozen=True)
class Reject:
    """One line that cannot be read; `line` counts from 1, or rows from 1 if there are no lines."""

    line: int
    column: str | None
    error: str
    text: str | None = None


class Rejects:
    """The rejects of one file: how many, and the first of them."""

    def __init__(self, enough: int | None = None) -> None:
        self._enough = enough
        self.count = 0
        self.cut = False  # whether there may be more than were counted
        self.kept: list[Reject] = []

    def add(self, line: int, column: str | None, error: str, text: str | None = None) -> None:
        """Take one more."""
        self.count += 1
        if len(self.kept) < _KEPT_MAX:
            self.kept.append(Reject(line, column, error, text))

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

    def write(self, path: Path, name: str) -> None:
        """Write them as NDJSON: file, line, column, error, text."""
        try:
            with path.open("a", encoding="utf-8") as file:
                for reject in self.kept:
                    file.write(json.dumps({"file": name, **vars(reject)}) + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {str(path)!r}: {error}") from error


@dataclass(frozen=True)
class Chunk:
    """Up to 65,536 rows of a file, by the table's column names, and the line of each."""

    rows: pa.Table | list[dict[str, Any]]
    lines: Sequence[int]


def sift(chunk: Chunk, schema: TableSchema, rejects: Rejects) -> list[pa.RecordBatch]:
    """The rows that fit the table's schema, as its batches; the others become rejects."""
    if not len(chunk.lines):
        return []
    if rejects.full:
        rejects.cut = True
        return []
    try:
        return coerce.to_batches(chunk.rows, schema)
    except SchemaError as error:
        rows = chunk.rows
        if len(chunk.lines) == 1:
            column, reason = _place(error)
            rejects.add(chunk.lines[0], column, reason, _text(rows))
            return []
    half = len(chunk.lines) // 2
    if isinstance(rows, list):
        parts = [rows[:half], rows[half:]]
    else:
        parts = [rows.slice(0, half), rows.slice(half)]
    sides = (chunk.lines[:half], chunk.lines[half:])
    return [
        batch
        for part, lines in zip(parts, sides, strict=True)
        for batch in sift(Chunk(part, lines), schema, rejects)
    ]


def _text(rows: pa.Table | list[dict[str, Any]]) -> str | None:
    try:
        return shorten(repr(rows[0] if isinstance(rows, list) else rows.to_pylist()[0]), 2000)
    except UnicodeDecodeError:  # Arrow's strings may hold anything
        return None


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
