"""Policies of payload columns at work: rows as they are appended → buffered → stored."""

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from lakestore.kept import REFERENCE, preview_name, sha256_name, size_name
from lakestore.schema import TableSchema

PREVIEW_CHARS = 256


def to_buffered(batch: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
    """A batch of what an append takes as the journal holds it: what is dropped is gone.

    Args:
        schema: the table's, in the form that an append takes.
    """
    if schema.buffered is schema:
        return batch
    columns = {name: batch.column(name) for name in schema.names}
    for name, policy in schema.payload.items():
        values = columns[name]
        columns[size_name(name)] = sizes(values)
        if policy == "preview":
            columns[preview_name(name)] = pc.utf8_slice_codeunits(values, 0, PREVIEW_CHARS)
        elif policy == "hash":
            columns[sha256_name(name)] = sha256s(values)
    made = [columns[name] for name in schema.buffered.names]
    return pa.RecordBatch.from_arrays(made, schema=schema.buffered.arrow)


def to_stored(rows: pa.Table, schema: TableSchema, references: pa.Array | None = None) -> pa.Table:
    """Buffered rows as segments hold them.

    Args:
        references: where the payload of each row is; without, they are null.
    """
    held, stored = schema.buffered, schema.stored
    if stored is held:
        return rows
    if not rows.num_rows:  # as a rule when a query asks; making the columns takes 0.2 ms
        return pa.Table.from_batches([], schema=stored.arrow)
    if references is None:
        references = pa.nulls(rows.num_rows, pa.string())
    made = {REFERENCE: references} | {size_name(n): sizes(rows.column(n)) for n in held.payload}
    columns = [made[name] if name in made else rows.column(name) for name in stored.names]
    return pa.table(columns, schema=stored.arrow)


def sizes(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Bytes of each value, of text in UTF-8; null where it is null."""
    return pc.cast(pc.binary_length(values), pa.int64())


def sha256s(values: pa.Array) -> pa.Array:
    """Hex sha256 of each value; null where it is null."""
    buffers = (value.as_buffer() for value in values)
    digests = [None if b is None else hashlib.sha256(b).hexdigest() for b in buffers]
    return pa.array(digests, pa.string())
