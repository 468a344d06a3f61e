"""CSV files, in chunks of 65,536 rows.

DuckDB splits the lines, and its casts read the values, but as TRY_CAST in a projection over text
columns: its CSV reader's own casts round 1.5 to 2 in silence, and on 1.5.5, told to store
rejects, make some times null without one. Nothing but the header is sniffed: a torn last line or
an `NA` on row 30,000 must not change how the rest is read.
"""

import csv
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from lakestore import quoting
from lakestore.coerce import FRAME_ROWS, MAX_TIME, MIN_TIME
from lakestore.columns import Column
from lakestore.errors import InvalidInputError, SchemaError
from lakestore.files.arrow import rechunk
from lakestore.files.mapping import Options, check_unique, targets
from lakestore.files.rejects import Chunk, Rejects, shorten
from lakestore.files.source import Source
from lakestore.rowjson import drops_some, row_json, to_json
from lakestore.schema import TableSchema

_DELIMITERS = ",\t;|"
_BAD = "lakestore_bad"
_LINE_BYTES = 16_000_000
_TEXT_BYTES = 2_000
_MEMORY = "384MB"
_NULL_LIKE = ("NA", "N/A", "NULL", "null", "NaN", "nan", "None", "-", "\\N")


@dataclass(frozen=True)
class _Dialect:
    """The header's names, and what separates them."""

    delimiter: str
    names: list[str]


def infer(source: Source, options: Options) -> pa.Schema:
    """Names and types of the columns, from every value of the file.

    Raises:
        SchemaError: text that looks like null keeps a column from a better type.
    """
    dialect = _dialect(source, options)
    plain = _sniff(source, dialect, options.nulls)
    lenient = _sniff(source, dialect, (*options.nulls, *_NULL_LIKE))
    better = [n for n in plain.names if plain.field(n).type != lenient.field(n).type]
    if better:
        name = better[0]
        raise SchemaError(
            f"{source.name}: column {name!r} would be {lenient.field(name).type} but for text such "
            "as NA: say what means null, as in --null NA, or create the table with --schema first"
        )
    return plain


def header(source: Source, options: Options) -> list[str]:
    """Names of the columns; raises `InvalidInputError` when there are none."""
    return _dialect(source, options).names


def chunks(
    source: Source,
    schema: TableSchema,
    options: Options,
    rejects: Rejects,
    rows: int = FRAME_ROWS,
) -> Iterator[Chunk]:
    """The file's rows that can be read; the others become rejects, once the last row is out.

    Args:
        rows: of each chunk, those that cannot be read among them.

    Raises:
        SchemaError: the header does not fit the table.
        InvalidInputError: the file is no CSV, or compressed and damaged.
    """
    dialect = _dialect(source, options)
    taken = targets(dialect.names, schema, options, source.name)
    index = {target: dialect.names.index(name) for name, target in taken.items()}
    wrong: dict[int, int] = {}  # row among those DuckDB could split → column of the file
    con = _connect()
    try:
        reader = con.sql(_query(source, dialect, index, schema, options)).to_arrow_reader(rows)
        first = 0
        for table in rechunk(reader, rows):
            bad = table.column(_BAD)
            read = table.drop_columns([_BAD])
            numbers = range(first + 2, first + 2 + table.num_rows)
            lines: Sequence[int] = numbers
            if bad.null_count < table.num_rows:
                good = np.asarray(bad.is_null())
                places = (np.flatnonzero(~good) + first).tolist()
                wrong.update(zip(places, bad.drop_null().to_pylist(), strict=True))
                read = read.filter(pa.array(good))
                lines = (np.flatnonzero(good) + first + 2).tolist()
            first += table.num_rows
            yield Chunk(read, lines, numbers)
        broken = _broken(con)
    except duckdb.Error as error:
        raise InvalidInputError(f"{source.name}: {_reason(error)}") from error
    finally:
        con.close()
    refused = {reject.line - 2: reject for reject in rejects.drain()}
    if wrong or broken or refused:
        columns = {at: schema.column(target) for target, at in index.items()}

        def why(row: int, fields: Sequence[str]) -> tuple[str | None, str]:
            if row not in wrong:
                return refused[row].column, refused[row].error
            at = wrong[row]
            value = fields[at] if at < len(fields) else ""
            return dialect.names[at], _why(value, columns[at], options.nulls)

        def event(fields: Sequence[str], text: str) -> str | None:
            if not rejects.are_kept:
                return None
            if len(fields) == len(dialect.names):
                named = zip(dialect.names, fields, strict=True)
                return row_json({taken.get(name, name): field for name, field in named}, schema)
            return None if drops_some(schema) else to_json(text)

        _note(source, dialect, {*wrong, *refused}, broken, (why, event), rejects)


def _connect() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(config={"python_enable_replacements": False, "memory_limit": _MEMORY})
    con.execute("SET GLOBAL TimeZone = 'UTC'")
    con.execute("SET enable_progress_bar = false")  # DuckDB would draw it on stdout
    return con


def _broken(con: duckdb.DuckDBPyConnection) -> dict[int, tuple[str | None, str]]:
    """Records that DuckDB could not split → made name of the column, and the reason."""
    # The name, as column_idx counts from 0 or from 1, whatever the error.
    found = con.execute(
        "SELECT line, any_value(column_name ORDER BY column_idx), "
        "any_value(error_message ORDER BY column_idx) FROM reject_errors GROUP BY line"
    ).fetchall()
    return {line: (name, message) for line, name, message in found}


def _dialect(source: Source, options: Options) -> _Dialect:
    with source.open() as file:
        first = file.readline(_LINE_BYTES)
    try:
        header = first.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{source.name}: line 1: the header is not UTF-8") from error
    if not header:
        raise InvalidInputError(f"{source.name}: no header: the first line is empty")
    delimiter = options.delimiter or max(_DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter))
    check_unique(names, source.name)
    return _Dialect(delimiter, names)


def _read_options(source: Source, dialect: _Dialect, nulls: Sequence[str]) -> str:
    return (
        f"header = true, delim = {quoting.literal(dialect.delimiter)}, quote = '\"', "
        f"escape = '\"', nullstr = {quoting.literals(['', *nulls])}, "
        f"compression = '{'gzip' if source.gzipped else 'none'}', "
        f"max_line_size = {_LINE_BYTES}, buffer_size = {2 * _LINE_BYTES}"
    )


def _sniff(source: Source, dialect: _Dialect, nulls: Sequence[str]) -> pa.Schema:
    options = _read_options(source, dialect, nulls)
    with _connect() as con:
        try:
            # `ignore_errors`, or a torn line would be taken for a hint about the dialect.
            found = con.sql(
                f"FROM read_csv({quoting.literal(str(source.path))}, {options}, "
                f"names = {quoting.literals(dialect.names)}, sample_size = -1, "
                "ignore_errors = true) LIMIT 0"
            )
            return found.to_arrow_table().schema
        except duckdb.Error as error:
            raise InvalidInputError(f"{source.name}: {_reason(error)}") from error


def _query(
    source: Source,
    dialect: _Dialect,
    index: Mapping[str, int],
    schema: TableSchema,
    options: Options,
) -> str:
    """Values cast to the table's types, and the number of the first column that is wrong."""
    values, tests = [], []
    for target, at in index.items():
        column = schema.column(target)
        value = _value(at, column)
        values.append(f"{value} AS {quoting.identifier(target)}")
        test = " OR ".join(_tests(at, value, column, target == schema.event_time))
        if test:
            tests.append(f"WHEN {test} THEN {at}")
    bad = f"CASE {' '.join(tests)} END" if tests else "NULL"
    columns = ", ".join(f"'c{at}': 'VARCHAR'" for at in range(len(dialect.names)))
    return (
        f"SELECT {', '.join(values)}, CAST({bad} AS INTEGER) AS {_BAD} "
        f"FROM read_csv({quoting.literal(str(source.path))}, auto_detect = false, "
        f"columns = {{{columns}}}, store_rejects = true, rejects_limit = 0, strict_mode = true, "
        f"{_read_options(source, dialect, options.nulls)})"
    )


def _value(at: int, column: Column) -> str:
    kind = "VARCHAR" if column.sql_type in ("UUID", "JSON") else column.sql_type
    return f"c{at}" if kind == "VARCHAR" else f"TRY_CAST(c{at} AS {kind})"


def _tests(at: int, value: str, column: Column, is_time: bool) -> list[str]:
    """Conditions under which a value is wrong."""
    raw, tests = f"c{at}", []
    if not column.nullable and column.default is None:
        # With the raw text in it, or DuckDB moves the cast into its CSV reader (see above).
        tests.append(f"({raw} IS NULL OR {value} IS NULL)")
    elif value != raw:
        tests.append(f"({raw} IS NOT NULL AND {value} IS NULL)")
    if pa.types.is_integer(column.arrow_type):
        # DuckDB rounds 1.5 and 1e-1 to an integer; only a whole number is one.
        tests.append(
            f"((contains({raw}, '.') OR contains({raw}, 'e') OR contains({raw}, 'E')) "
            f"AND TRY_CAST({raw} AS DOUBLE) <> CAST({value} AS DOUBLE))"
        )
    if is_time:
        low, high = (when.strftime("%Y-%m-%d") for when in (MIN_TIME, MAX_TIME))
        tests.append(f"NOT ({value} >= DATE '{low}' AND {value} < DATE '{high}')")
    return tests


def _note(
    source: Source,
    dialect: _Dialect,
    wrong: set[int],
    broken: dict[int, tuple[str | None, str]],
    says: tuple[
        Callable[[int, Sequence[str]], tuple[str | None, str]],
        Callable[[Sequence[str], str], str | None],
    ],
    rejects: Rejects,
) -> None:
    """Add rejects, with the line and the text that the file has there.

    DuckDB numbers records, not lines, and the rows it could split are numbered without those it
    could not; so the file is read once more, by Python, which is slow but only happens now.

    Args:
        wrong: rows among those that DuckDB could split.
        broken: records that it could not split → made name of the column and reason.
        says: row and fields → column and reason; fields and text → the row as JSON.
    """
    why, event = says
    row = 0
    for number, (line, text, fields) in enumerate(_records(source, dialect), 1):
        if number == 1:  # the header
            continue
        if number in broken:
            made_name, message = broken.pop(number)
            name = dialect.names[int(made_name[1:])] if made_name else None
            shown = shorten(text, _TEXT_BYTES)
            rejects.add(line, name, _said(message), shown, event(fields, text))
        elif fields or len(dialect.names) == 1:
            if row in wrong:
                wrong.remove(row)
                shown = shorten(text, _TEXT_BYTES)
                rejects.add(line, *why(row, fields), shown, event(fields, text))
            row += 1
        if not broken and not wrong:
            return
    # Python and DuckDB split the file in different ways: say what is known.
    for number, (_, message) in broken.items():
        rejects.add(number, None, _said(message))
    for row in sorted(wrong):
        rejects.add(row + 2, *why(row, ()))


def _records(source: Source, dialect: _Dialect) -> Iterator[tuple[int, str, list[str]]]:
    """First line, text and fields of every record, blank ones included."""
    csv.field_size_limit(sys.maxsize)
    held: list[str] = []

    def lines() -> Iterator[str]:
        with source.open() as file:
            for raw in file:
                held.append(raw.decode("utf-8", errors="replace"))
                yield held[-1]

    reader = csv.reader(lines(), delimiter=dialect.delimiter)
    line = 1
    for fields in reader:
        yield line, "".join(held).rstrip("\r\n"), fields
        held.clear()
        line = reader.line_num + 1


def _why(value: str, column: Column, nulls: Sequence[str]) -> str:
    if value in ("", *nulls):
        return "is null, and it is required"
    return f"{shorten(value)!r} does not fit {column.sql_type}"


def _said(message: str) -> str:
    """DuckDB's reason, shorter and in our words."""
    first = message.strip().split("\n", 1)[0].rstrip(".")
    counts = re.search(r"Number of Columns: (\d+) Found: (\d+)", first)
    if counts is not None:
        return f"expected {counts[1]} columns, found {counts[2]}"
    if "unterminated quote" in first:
        return "the quote is never closed"
    if "unicode" in first:
        return "not UTF-8"
    return first[:1].lower() + first[1:]


def _reason(error: duckdb.Error) -> str:
    text = str(error).strip().split("\n", 1)[0]
    if "state machine" in text:
        return "no regular CSV: its line ends are mixed, or a quote is out of place"
    return text
