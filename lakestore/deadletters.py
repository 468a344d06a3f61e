"""Dead letters: rows that do not fit a table, put into a table of their own and not lost.

Order of effects, numbered as their failpoints are:

    reject.1 dead letters on the disk    .2 the rows that fit accepted (`append.1` to `.6`)

So whoever is told how many rows were rejected finds them, and a crash in between leaves dead
letters of a batch that was not accepted. Sent again under its producer and number, it makes dead
letters of the same ids, and the table of dead letters drops those that it has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any

import pyarrow as pa
import xxhash

from lakestore import coerce
from lakestore.append import Ack, Appender
from lakestore.context import TableContext
from lakestore.errors import InvalidInputError, SchemaError
from lakestore.failpoint import reach
from lakestore.files.rejects import Chunk, Reject, Rejects, sift
from lakestore.naming import NewColumnsError
from lakestore.newids import make_ids
from lakestore.schema import TableSchema

_DOCUMENT = """\
format = 2
description = "Rows that did not fit a table, and why"
event_id = "event_id"
event_time = "rejected_at"
dedup = "table"
facets = ["table_name", "reason"]

[columns]
event_id = "VARCHAR not null"
rejected_at = "TIMESTAMPTZ not null"
table_name = "VARCHAR not null"
reason = "VARCHAR not null"
event = "JSON"
producer = "VARCHAR"
seq = "BIGINT"
batch_row = "BIGINT"
file = "VARCHAR"
line = "BIGINT"
"""


@cache
def schema() -> TableSchema:
    """What a table of dead letters has."""
    return TableSchema.from_toml(_DOCUMENT)


def check(name: str, found: TableSchema) -> None:
    """Raises `InvalidInputError` when a table cannot take dead letters."""
    wanted = schema()
    kinds = {column.name: column.arrow_type for column in found.columns}
    fits = all(kinds.get(c.name) == c.arrow_type for c in wanted.columns)
    required = set(found.required) <= set(wanted.required)
    if not fits or not required or found.dedup != "table" or found.document.rejects is not None:
        raise InvalidInputError(
            f"table {name!r} is there, and is none of dead letters: name another one under rejects"
        )


def check_name(table: str, document_says: str | None) -> None:
    """Raises `InvalidInputError` when a table would be that of its own dead letters."""
    if document_says is not None and document_says.casefold() == table.casefold():
        raise InvalidInputError(f"rejects = {document_says!r}: it must be another table")


@dataclass(frozen=True)
class Origin:
    """Where rejected rows came from."""

    table: TableContext
    producer: str | None = None
    """Who sent them, under a name by which the same rows would come again."""
    seq: int | None = None
    file: str | None = None


def letters(rejects: Sequence[Reject], origin: Origin, now: datetime) -> pa.Table:
    """Dead letters of rejected rows; their ids are the same whenever the same rows come again."""
    rows = len(rejects)
    ids: Any = make_ids(rows)
    if origin.producer is not None:
        # The folder, as a table that was dropped and made anew is another of the same name.
        sent = (origin.table.entry.folder, origin.producer, origin.seq)
        ids = [xxhash.xxh3_128_hexdigest(repr((*sent, one.line)).encode()) for one in rejects]
    lines = [one.line for one in rejects]
    of_batch = origin.file is None
    file = None if origin.file is None else origin.file.encode("utf-8", "replace").decode()
    nothing = [None] * rows
    columns = {
        "event_id": ids,
        "rejected_at": [now] * rows,
        "table_name": [origin.table.entry.name] * rows,
        "reason": [one.reason.encode("utf-8", "replace").decode() for one in rejects],
        "event": [one.event for one in rejects],
        "producer": [origin.producer] * rows,
        "seq": [origin.seq] * rows,
        "batch_row": lines if of_batch else nothing,
        "file": [file] * rows,
        "line": nothing if of_batch else lines,
    }
    return pa.table([columns[name] for name in schema().names], schema=schema().arrow)


@dataclass(frozen=True)
class Sending:
    """An append that did not fit as a whole."""

    appender: Appender
    producer: str | None
    seq: int | None
    level: str


def append_fitting(
    table: TableContext,
    rows: pa.Table | list[Any],
    sending: Sending,
    put: Callable[[Sequence[Reject], Origin], object],
    add: Callable[[Mapping[str, str]], object],
) -> Ack:
    """Put the rows that do not fit where dead letters are, then accept the others.

    Args:
        put: has dead letters on the disk when it returns.
        add: adds columns to the table.

    Raises: as `Appender.append`; dead letters may be there then.
    """
    appender, producer, seq = sending.appender, sending.producer, sending.seq
    sifted = sift_all(table, rows, range(len(rows)), add)
    found, batches, lineage = sifted.rejects, sifted.batches, sifted.table.lineage
    # Of a batch that was accepted before, they are there, or were and are gone for a reason.
    if found and not (producer is not None and seq is not None and appender.knows(producer, seq)):
        put(found, Origin(table, producer, seq))
    reach("reject.1")
    if producer is not None and not batches:  # so that the pair is known for ever
        batches = [pa.RecordBatch.from_pylist([], schema=lineage.schema.arrow)]
    ack = appender.accept(batches, lineage, producer, seq, sending.level)
    reach("reject.2")
    return replace(ack, rejected=len(found))


@dataclass(frozen=True)
class Sifted:
    """Rows of which some did not fit."""

    table: TableContext
    """In the version of its schema that the others fit."""
    batches: Sequence[pa.RecordBatch]
    rejects: Sequence[Reject]


def sift_all(
    table: TableContext,
    rows: pa.Table | list[Any],
    lines: Sequence[int],
    add: Callable[[Mapping[str, str]], object],
) -> Sifted:
    """Tell rows that fit from those that do not; columns are added where the schema says so.

    Raises:
        SchemaError: so damaged that no row may be looked at.
    """
    coerce.check_readable(rows)
    while True:
        newest = table.newest
        try:
            return _sifted(newest, newest.accepts, rows, lines)
        except NewColumnsError as error:
            try:
                add(error.declared())
            except SchemaError:  # they cannot be columns
                return _sifted(newest, _refusing(newest.accepts), rows, lines)


def _sifted(
    table: TableContext, schema: TableSchema, rows: pa.Table | list[Any], lines: Sequence[int]
) -> Sifted:
    found: list[Reject] = []
    rejects = Rejects(keep=found.extend)
    batches = sift(Chunk(rows, lines), schema, rejects)
    rejects.hand_on()
    return Sifted(table, batches, found)


def _refusing(schema: TableSchema) -> TableSchema:
    """The schema, where new columns do not fit."""
    document = schema.document.model_copy(update={"on_new_column": "reject"})
    return replace(schema, document=document)
