"""The events that every benchmark sends: 16 columns of an LLM gateway's usage log, seeded."""

from collections.abc import Iterator

import pyarrow as pa

import lakestore as ls
from lakestore.demo import usage_events

COLUMN_COUNT = 16


def batches(rows: int, batch_rows: int, seed: int = 7) -> Iterator[pa.RecordBatch]:
    """`rows` events in batches of `batch_rows`, ascending in time."""
    for batch in usage_events(rows, seed=seed, batch_rows=batch_rows):
        yield batch.select(range(COLUMN_COUNT))


SCHEMA = ls.TableSchema.from_arrow(
    next(batches(1, 1)).schema, event_time="created_at", event_id="event_id"
)

PLAIN = ls.TableSchema.from_arrow(
    next(batches(1, 1)).schema, event_time="created_at", event_id="event_id", dedup="none"
)
"""The same without the check for duplicates, which no baseline makes."""
