"""Data files: how columns are encoded, by what a sample says of them."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import START

import lakestore as ls
from lakestore import datafile
from lakestore.distinct import hardly_repeats

SCHEMA = ls.TableSchema.from_toml(
    """
    event_id = "id"
    event_time = "t"
    [columns]
    id = "VARCHAR not null"
    t = "TIMESTAMPTZ not null"
    trace = "VARCHAR"
    cost = "DECIMAL(18,6)"
    model = "VARCHAR"
    latency = "INTEGER"
    ok = "BOOLEAN"
    nothing = "VARCHAR"
    tags = "VARCHAR[]"
    """
)
ROWS = 40_000


def made(rows: int) -> pa.RecordBatch:
    random = Random(rows)
    return pa.record_batch(
        {
            "id": [f"id-{i}" for i in range(rows)],
            "t": [START + timedelta(microseconds=i * 997) for i in range(rows)],
            "trace": [random.randbytes(12).hex() if i % 20 else None for i in range(rows)],
            "cost": [Decimal(i * 7919) / 1_000 for i in range(rows)],
            "model": [f"model-{i % 9}" for i in range(rows)],
            "latency": [random.randrange(9_000) for _ in range(rows)],
            "ok": [i % 3 == 0 for i in range(rows)],
            "nothing": pa.nulls(rows, pa.string()),
            "tags": [[f"{i}"] for i in range(rows)],
        },
        schema=SCHEMA.arrow,
    )


def write(path: Path, batches: list[pa.RecordBatch]) -> Path:
    datafile.write(path, SCHEMA, batches, {"format": 1}, bloom=True)
    return path


def with_dictionary(path: Path) -> set[str]:
    """Columns with a dictionary in any row group."""
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
    columns = (group.column(c) for group in groups for c in range(group.num_columns))
    return {c.path_in_schema for c in columns if c.has_dictionary_page}


def test_columns_of_unique_values_have_no_dictionary(tmp_path):
    rows = made(ROWS)
    path = write(tmp_path / "a.parquet", [rows])
    assert with_dictionary(path) == {"model", "latency", "nothing"}
    assert pq.read_table(path, partitioning=None).to_batches(ROWS) == [rows]
    found = duckdb.sql(f"SELECT trace, cost FROM '{path}' WHERE id = 'id-31234'").fetchall()
    assert found == [(rows["trace"][31_234].as_py(), rows["cost"][31_234].as_py())]


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_a_file_of_few_rows_keeps_its_dictionaries(tmp_path, rows):
    path = write(tmp_path / "a.parquet", [made(rows)])
    assert not with_dictionary(path) & {"id", "ok", "tags.list.element"}
    assert {"trace", "cost", "model"} <= with_dictionary(path) or not rows
    assert pq.read_metadata(path).num_rows == rows


def test_the_same_rows_make_the_same_bytes_again(tmp_path):
    """The name of a file holds their hash, and a retry must not make another file."""
    rows = made(ROWS)
    parts = [rows.slice(start, 1_700) for start in range(0, ROWS, 1_700)]
    first = write(tmp_path / "a.parquet", parts).read_bytes()
    assert write(tmp_path / "b.parquet", parts).read_bytes() == first
    for column in rows.schema.names:
        whole = pa.chunked_array([rows.column(column)])
        cut = pa.chunked_array([part.column(column) for part in parts])
        assert hardly_repeats(whole) == hardly_repeats(cut), column


@pytest.mark.parametrize(
    ("values", "unique"),
    [
        (np.arange(100_000), True),
        (np.arange(100_000) // 2, False),
        (np.arange(100_000) // 20, False),  # neighbours are alike
        (np.arange(100_000) % 10_000, False),  # neighbours differ, and each is there ten times
        (np.where(np.arange(100_000) % 5, np.arange(100_000), 0), True),
        (np.zeros(100_000), False),
        (np.arange(100), False),
    ],
)
def test_columns_are_told_by_a_sample(values, unique):
    assert hardly_repeats(pa.chunked_array([values])) == unique
