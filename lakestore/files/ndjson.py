"""NDJSON files, in chunks of 65,536 lines.

pyarrow reads a chunk when every line of it is as it should be; when not, Python reads it line by
line, which finds the culprits. What a chunk holds does not depend on which of the two read it.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from lakestore.coerce import FRAME_ROWS
from lakestore.errors import InvalidInputError, SchemaError
from lakestore.files.mapping import (
    Options,
    ignores,
    missing_columns,
    table_name,
    unknown_columns,
)
from lakestore.files.rejects import Chunk, Rejects, shorten
from lakestore.files.source import Source
from lakestore.naming import NewColumnsError
from lakestore.rowjson import drops_some, row_json, to_json
from lakestore.schema import TableSchema

_BLOCK_BYTES = 4 << 20
_SHORT_ZONE = r"(:\d{2}(?:\.\d+)?[+-]\d{2})$"
"""`+00`, as DuckDB prints a zone; Arrow wants `+00:00`."""


def infer(source: Source) -> pa.Schema:
    """Names and types of the columns, from the first lines.

    Raises:
        InvalidInputError: no lines, or lines that are no objects.
    """
    with source.open() as file:
        lines = [line for line in islice(file, FRAME_ROWS) if line.strip()]
    _refuse_array(source, lines)
    try:
        found = _parse(lines, pa.schema([])).schema
    except pa.ArrowException as error:
        raise InvalidInputError(f"{source.name}: {error}") from error
    if not found.names:
        raise InvalidInputError(f"{source.name}: no lines to take columns from")
    return pa.schema(
        pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in found
    )


def chunks(
    source: Source,
    schema: TableSchema,
    options: Options,
    rejects: Rejects,
    rows: int = FRAME_ROWS,
) -> Iterator[Chunk]:
    """The file's rows that are objects; the others become rejects.

    Args:
        rows: lines of each chunk.

    Raises:
        NewColumnsError: a line has a column that the table lacks, and that is to be added.
        SchemaError: a line has a column that the table lacks.
        InvalidInputError: an array instead of lines.
    """
    reader = _Reader(source, schema, options, rejects)
    first = 1
    with source.open() as file:
        while lines := list(islice(file, rows)):
            if first == 1:
                _refuse_array(source, lines)
            chunk = reader.read(lines, first)
            if first == 1:
                reader.check_required()
            yield chunk
            first += len(lines)
    reader.check_mapping()


class _Reader:
    """Turns lines into chunks, and remembers which columns it met."""

    def __init__(
        self, source: Source, schema: TableSchema, options: Options, rejects: Rejects
    ) -> None:
        self._source = source
        self._schema = schema
        self._options = options
        self._rejects = rejects
        self._met: set[str] = set()
        back = {target: name for name, target in options.renames.items()}
        self._explicit = pa.schema(
            (back.get(c.name, c.name), pa.string() if _from_text(c.arrow_type) else c.arrow_type)
            for c in schema.columns
            if not pa.types.is_nested(c.arrow_type) and not pa.types.is_binary(c.arrow_type)
        )

    def read(self, lines: list[bytes], first: int) -> Chunk:
        """The chunk of these lines, of which the first has that number."""
        numbers = [at for at, line in enumerate(lines, first) if line.strip()]
        if len(numbers) < len(lines):
            lines = [line for line in lines if line.strip()]
        try:
            table = self._columns(_parse(lines, self._explicit))
            table.validate(full=True)  # pyarrow's reader lets invalid UTF-8 through
        except pa.ArrowException:
            return self._slowly(lines, numbers)
        except SchemaError as error:
            if not self._rejects.are_kept or isinstance(error, NewColumnsError):
                raise
            return self._slowly(lines, numbers)
        if table.num_rows != len(lines):  # two objects on a line
            return self._slowly(lines, numbers)
        return Chunk(table, numbers)

    def check_required(self) -> None:
        """Raises `SchemaError` when none of the lines so far has a required column."""
        renamed = {table_name(name, self._schema, self._options) for name in self._met}
        missing = missing_columns(renamed, self._schema)
        if self._met and missing:
            raise SchemaError(
                f"{self._source.name}: the table requires {', '.join(map(repr, missing))}, and no "
                "line has it: name it with --map FROM=TO"
            )

    def check_mapping(self) -> None:
        """Raises `SchemaError` when --map names what no line has."""
        if self._met:
            named = [name for name in self._options.renames if name not in self._met]
            if named:
                raise SchemaError(f"{self._source.name}: --map names {named[0]!r}, on no line")

    def _columns(self, table: pa.Table) -> pa.Table:
        """The columns that the lines have, by the table's names."""
        # Explicit columns come whether or not a line has them: those only null are absent.
        present = [
            name
            for name, column in zip(table.schema.names, table.columns, strict=True)
            if name not in self._explicit.names or column.null_count < table.num_rows
        ]
        taken = self._take(present, lambda: table)
        chosen = table.select(list(taken)).rename_columns(list(taken.values()))
        for at, name in enumerate(chosen.schema.names):
            if pa.types.is_timestamp(self._schema.column(name).arrow_type):
                fixed = pc.replace_substring_regex(chosen.column(at), _SHORT_ZONE, r"\1:00")
                chosen = chosen.set_column(at, name, fixed)
        return chosen

    def _take(self, names: list[str], rows: Callable[[], pa.Table]) -> dict[str, str]:
        """Name on a line → column of the table, for those that are taken.

        Args:
            rows: the lines by their own names; asked when the table is to grow by some of these.
        """
        new = [name for name in names if name not in self._met]
        self._met.update(new)
        taken = {name: table_name(name, self._schema, self._options) for name in names}
        unknown = [name for name in new if taken[name] not in self._schema.names]
        if unknown and not ignores(self._schema, self._options):
            message = unknown_columns(unknown, self._schema, self._source.name)
            if self._schema.document.on_new_column != "add":
                self._met.difference_update(unknown)  # for the next line that has them
                raise SchemaError(message)
            found = rows()
            some = [n for n in unknown if not pa.types.is_null(found.schema.field(n).type)]
            if some:  # of nulls alone there is nothing to keep
                found = found.select(some).rename_columns([taken[name] for name in some])
                raise NewColumnsError(message, found, tuple(found.schema.names))
        taken = {name: to for name, to in taken.items() if to in self._schema.names}
        if len(set(taken.values())) < len(taken):
            raise SchemaError(f"{self._source.name}: --map gives a column that is there already")
        return taken

    def _slowly(self, lines: list[bytes], numbers: list[int]) -> Chunk:
        events: dict[int, dict[str, Any]] = {}
        for line, number in zip(lines, numbers, strict=True):
            try:
                event = json.loads(line)
            except ValueError as error:  # also a UnicodeDecodeError
                self._reject(number, f"not JSON: {_brief(error)}", line)
                continue
            if not isinstance(event, dict):
                self._reject(number, "not a JSON object", line)
                continue
            events[number] = event
        rows = {}
        for number, event in events.items():
            try:
                taken = self._take(list(event), lambda: _table(list(events.values())))
            except SchemaError as error:
                if not self._rejects.are_kept or isinstance(error, NewColumnsError):
                    raise
                self._rejects.add(number, None, str(error), None, row_json(event, self._schema))
                continue
            rows[number] = {to: self._value(event[name], to) for name, to in taken.items()}
        return Chunk(list(rows.values()), list(rows), numbers)

    def _reject(self, number: int, why: str, line: bytes) -> None:
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        event = None if drops_some(self._schema) else to_json(text)
        self._rejects.add(number, None, why, shorten(text, 2000), event)

    def _value(self, value: Any, name: str) -> Any:
        """A value as its column takes it: JSON in text stays JSON."""
        kind = self._schema.column(name).arrow_type
        if pa.types.is_string(kind) and isinstance(value, dict | list):
            return json.dumps(value, ensure_ascii=False)
        if pa.types.is_timestamp(kind) and isinstance(value, str):
            return re.sub(_SHORT_ZONE, r"\1:00", value)
        return value


def _parse(lines: list[bytes], explicit: pa.Schema) -> pa.Table:
    if not lines:
        return explicit.empty_table()
    longest = max(len(line) for line in lines)
    return pj.read_json(
        io.BytesIO(b"".join(lines)),
        read_options=pj.ReadOptions(block_size=max(_BLOCK_BYTES, longest + 1)),
        parse_options=pj.ParseOptions(explicit_schema=explicit, unexpected_field_behavior="infer"),
    )


def _table(events: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Objects as Arrow makes of them what it can."""
    names = dict.fromkeys(name for event in events for name in event)
    columns = {}
    for name in names:
        values = [event.get(name) for event in events]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            columns[name] = pa.array([None if v is None else json.dumps(v) for v in values])
    return pa.table(columns)


def _from_text(arrow: pa.DataType) -> bool:
    """Whether JSON has it as text, which the library then casts."""
    return bool(pa.types.is_temporal(arrow))


def _refuse_array(source: Source, lines: list[bytes]) -> None:
    start = next((line.lstrip() for line in lines if line.strip()), b"")
    if start.startswith(b"["):
        raise InvalidInputError(
            f"{source.name}: an array, and NDJSON has one object a line: `jq -c '.[]'` makes it so"
        )


def _brief(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.object[error.start] if error.object else 0:#04x} is not UTF-8"
    return str(error)
