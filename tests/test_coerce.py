"""What may be appended, and what an error says of what may not."""

import itertools
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from conftest import SCHEMA, events

import lakestore as ls
from lakestore.coerce import to_batches
from lakestore.newids import make_ids

TIME = datetime(2025, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


def one(**values):
    return {"id": "a", "time": TIME, **values}


def coerced(data, schema=SCHEMA) -> list[dict]:
    return pa.Table.from_batches(to_batches(data, schema), schema=schema.arrow).to_pylist()


INPUTS = {
    "pyarrow table": lambda t: t,
    "pyarrow batch": lambda t: t.to_batches()[0],
    "pyarrow reader": lambda t: t.to_reader(),
    "pyarrow dataset": lambda t: ds.dataset(t),
    "pyarrow scanner": lambda t: ds.dataset(t).scanner(),
    "many tiny chunks": lambda t: pa.concat_tables(t.slice(i, 1) for i in range(len(t))),
    "a slice": lambda t: pa.concat_tables([events(900, 903), t]).slice(3),
    "large and dictionary": lambda t: t.set_column(
        0, "id", t["id"].cast(pa.large_string())
    ).set_column(4, "name", t["name"].dictionary_encode()),
    "reordered": lambda t: t.select(t.schema.names[::-1]),
    "polars": lambda t: pl.from_arrow(t),
    "polars lazy": lambda t: pl.from_arrow(t).lazy(),
    "duckdb relation": lambda t: duckdb.from_arrow(t),
    "mappings": lambda t: t.to_pylist(),
    "generator of mappings": lambda t: iter(t.to_pylist()),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_input_is_the_same_events(kind):
    table = events(1, 40)
    expected = coerced(table)

    assert coerced(INPUTS[kind](table)) == expected
    assert len(expected) == 39
    assert expected[0]["place"] == {"city": "c1", "zip": 1}
    assert expected[0]["cost"] is None


def test_pandas():
    frame = pd.DataFrame({"id": ["a", "b"], "time": [TIME, TIME], "n": [1, 2], "name": ["x", None]})

    rows = coerced(frame)

    assert [(r["id"], r["time"], r["n"], r["name"]) for r in rows] == [
        ("a", TIME, 1, "x"),
        ("b", TIME, 2, None),
    ]


def test_a_large_input_is_cut_into_frames_and_nothing_is_left_out():
    batches = to_batches(events(0, 200_000), SCHEMA)

    assert sum(b.num_rows for b in batches) == 200_000
    assert max(b.num_rows for b in batches) <= 65_536
    assert len(batches) == 4


def test_ten_thousand_tiny_chunks_are_one_frame():
    tiny = pa.concat_tables(events(i, i + 1) for i in range(1000))

    assert [b.num_rows for b in to_batches(tiny, SCHEMA)] == [1000]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"time": "2025-03-04T05:06:07.890123Z"}, TIME),
        ({"time": "2025-03-04 05:06:07.890123"}, TIME),
        ({"time": "2025-03-04T06:06:07.8901239+01:00"}, TIME),
        ({"time": TIME.replace(tzinfo=None)}, TIME),
        ({"time": date(2025, 3, 4)}, datetime(2025, 3, 4, tzinfo=UTC)),
        ({"n": 5.0}, 5),
        ({"n": None}, None),
        ({"x": 7}, 7.0),
        ({"cost": "1.25"}, Decimal("1.250000")),
        ({"time": "2025-03-04 05:06:07.890123+00"}, TIME),
        ({"time": "2025-03-04 05:06+05"}, datetime(2025, 3, 4, 0, 6, tzinfo=UTC)),
        ({"cost": 3}, Decimal("3.000000")),
        ({"cost": 0.1}, Decimal("0.100000")),
        ({"id": UUID(int=7)}, "00000000-0000-0000-0000-000000000007"),
        ({"tags": []}, []),
        ({"place": {"zip": 3}}, {"city": None, "zip": 3}),
    ],
)
def test_safe_casts(value, expected):
    (name,) = value
    assert coerced(one(**value))[0][name] == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"n": 1.5}, "row 0: column 'n': 1.5 does not fit BIGINT"),
        ({"n": "1"}, "row 0: column 'n': '1' does not fit"),
        ({"n": True}, "row 0: column 'n': True does not fit BIGINT"),
        ({"n": 2**63}, "row 0: column 'n': 9223372036854775808 does not fit"),
        ({"x": "1.5"}, "row 0: column 'x': '1.5' does not fit"),
        ({"x": True}, "row 0: column 'x': True does not fit DOUBLE"),
        ({"ok": 1}, "row 0: column 'ok': 1 does not fit BOOLEAN"),
        ({"name": 5}, "row 0: column 'name': 5 does not fit"),
        ({"name": b"\xff"}, "row 0: column 'name'"),
        ({"cost": "dear"}, r"row 0: column 'cost': 'dear' does not fit DECIMAL\(18,6\)"),
        ({"cost": "1e13"}, "row 0: column 'cost'"),
        ({"cost": float("nan")}, "row 0: column 'cost': nan does not fit"),
        ({"time": "yesterday"}, "row 0: column 'time': 'yesterday' does not fit"),
        ({"time": 1_700_000_000}, "row 0: column 'time': 1700000000 does not fit"),
        ({"time": None}, "row 0: column 'time' is null, and it is required"),
        ({"id": None}, "row 0: column 'id' is null, and it is required"),
        ({"tags": "t"}, "row 0: column 'tags'"),
        ({"place": {"zip": "x"}}, "row 0: column 'place'"),
        ({"place": {"zip": 1.5}}, "row 0: column 'place'"),
        ({"place": {"town": "x"}}, "row 0: column 'place'"),
        ({"nme": "x"}, "unknown column 'nme'; the table has id, time"),
        ({"time": datetime(1, 1, 1)}, "not between the years 1678 and 2262"),
        ({"time": datetime(9999, 1, 1)}, "were seconds, milliseconds or nanoseconds taken"),
    ],
)
def test_what_does_not_fit_is_named(value, message):
    with pytest.raises(ls.SchemaError, match=message):
        to_batches(one(**value), SCHEMA)


def test_the_first_bad_row_is_named_in_the_middle_of_arrow_data():
    table = events(0, 10_000)
    numbers = table["n"].to_pylist()
    floats = [0.0 if n is None else float(n) for n in numbers]
    floats[7_654] = 0.5
    bad = table.set_column(2, "n", pa.array(floats))

    with pytest.raises(ls.SchemaError, match="row 7654: column 'n': 0.5 does not fit BIGINT"):
        to_batches(bad, SCHEMA)


def test_a_null_in_a_required_column_of_arrow_data_is_named():
    ids = pa.array(["a", None, "c"])
    table = events(0, 3).set_column(0, "id", ids)

    for data in (table, table.to_batches()[0].cast(table.schema)):
        with pytest.raises(ls.SchemaError, match="row 1: column 'id' is null"):
            to_batches(data, SCHEMA)


def test_doubled_and_twin_columns_are_refused():
    for twin in ("id", "ID"):
        table = pa.table([["a"], ["b"], [TIME]], names=["id", twin, "time"])
        with pytest.raises(ls.SchemaError, match="have one name in SQL"):
            to_batches(table, SCHEMA)


def test_invalid_utf8_is_refused_and_named():
    offsets = pa.py_buffer(b"\0\0\0\0\2\0\0\0")
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    table = events(0, 1).set_column(4, "name", broken)

    for data in (table, table.to_batches()[0]):
        with pytest.raises(ls.SchemaError, match="column 'name' is not valid Arrow data.*UTF8"):
            to_batches(data, SCHEMA)


def test_damaged_arrow_data_does_not_crash_the_process():
    """Offsets beyond the data: DuckDB would read wild memory."""
    offsets = pa.py_buffer(b"\0\0\0\0\xff\xff\xff\x7f\2\0\0\0")
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab")])

    with pytest.raises(ls.SchemaError, match="column 'id' is not valid"):
        to_batches(pa.table({"id": broken, "time": [TIME, TIME]}), SCHEMA)


@pytest.mark.parametrize("data", [5, "text", b"bytes", [1], [[1]], None, object()])
def test_what_is_no_events_is_refused(data):
    with pytest.raises(ls.InvalidInputError):
        to_batches(data, SCHEMA)


@pytest.mark.parametrize("data", [[], events(0, 0), pl.DataFrame(), iter(()), pa.table({})])
def test_empty_input_is_no_batch(data):
    assert to_batches(data, SCHEMA) == []


def test_an_empty_mapping_is_not_an_empty_input():
    with pytest.raises(ls.SchemaError, match="row 0 is empty"):
        to_batches([{}], SCHEMA)


def test_defaults_fill_what_is_missing_or_null():
    schema = ls.TableSchema.from_toml(
        "event_time = 't'\n[columns]\nt = 'TIMESTAMP'\n"
        'a = "BIGINT not null default 7"\nb = "VARCHAR default \'x\'"'
    )
    rows = coerced([{"t": TIME}, {"t": TIME, "a": None, "b": None}], schema)

    assert [(r["a"], r["b"]) for r in rows] == [(7, None), (7, None)]
    assert [(r["a"], r["b"]) for r in coerced({"t": TIME}, schema)] == [(7, "x")]


def test_derived_columns_are_made_when_the_input_lacks_them():
    schema = ls.TableSchema.from_toml(
        "event_time = 't'\nevent_id = 'id'\n"
        "[columns]\nid = 'VARCHAR'\nt = 'TIMESTAMP'\nday = 'INTEGER'\nn = 'INTEGER'\n"
        '[derived]\nid = "concat_ws(\'-\', day, n)"\nt = "make_timestamp(2025, 1, day, 0, 0, 0)"'
    )
    rows = coerced([{"day": 3, "n": 4}], schema)

    assert rows == [{"id": "3-4", "t": datetime(2025, 1, 3), "day": 3, "n": 4}]
    assert coerced([{"id": "given", "day": 3, "n": 4}], schema)[0]["id"] == "given"
    with pytest.raises(ls.SchemaError, match="cannot derive t from this batch"):
        to_batches([{"id": "x", "n": 4}], schema)


def test_derived_columns_are_made_of_values_as_they_are_stored():
    """Cast and filled; a column that the input lacks is null, and an earlier one may be used."""
    schema = ls.TableSchema.from_toml(
        "event_time = 't'\n[columns]\nt = 'TIMESTAMPTZ'\nms = 'BIGINT'\nhour = 'TIMESTAMP'\n"
        "a = 'VARCHAR'\nb = 'INTEGER default 7'\nc = 'VARCHAR'\n"
        '[derived]\nt = "make_timestamptz(ms * 1000)"\nms = "epoch_ms(t)"\n'
        "hour = \"date_trunc('hour', t AT TIME ZONE 'UTC')\"\n"
        "c = \"coalesce(a, 'none') || b\""
    )
    wanted = {
        "t": TIME.replace(microsecond=890_000), "ms": int(TIME.timestamp() * 1000), "a": None,
        "b": 7, "c": "none7", "hour": TIME.replace(minute=0, second=0, microsecond=0, tzinfo=None),
    }  # fmt: skip

    for given in ({"t": wanted["t"].isoformat()}, {"ms": wanted["ms"]}):
        (row,) = coerced([given], schema)
        assert {name: row[name] for name in wanted} == wanted
    with pytest.raises(ls.SchemaError, match="cannot derive t, ms, hour, c from this batch"):
        to_batches([{"a": "x"}], schema)
    with pytest.raises(ls.SchemaError, match="row 1: cannot derive t from this batch"):
        to_batches([{"ms": 1}, {"ms": None}], schema)


def test_zones_of_text_times_may_be_mixed():
    texts = ["2024-01-01 12:00:00+05", "2024-01-01 07:00", "2024-01-01T07:00:00.000Z", "2024-01-01"]
    hours = [r["time"].hour for r in coerced([one(time=text) for text in texts])]
    assert hours == [7, 7, 7, 0]


def test_kinds_that_arrow_would_change_in_silence():
    schema = ls.TableSchema.from_toml(
        "event_time = 't'\n[columns]\nt = 'TIMESTAMP'\nm = 'MAP(VARCHAR, BIGINT)'\n"
        "d = 'DATE'\nf = 'FLOAT'"
    )
    good = coerced({"t": TIME, "m": {"a": 1, "b": None}, "d": date(2025, 1, 1), "f": 1.5}, schema)
    assert good[0]["m"] == [("a", 1), ("b", None)]
    rows = coerced(
        [{"t": TIME, "m": None}, {"t": TIME, "m": {}}, {"t": TIME, "m": {"x": 2}}], schema
    )
    assert [r["m"] for r in rows] == [None, [], [("x", 2)]]
    for wrong in ({"m": {"a": 1.5}}, {"m": {"a": "x"}}, {"m": 5}, {"d": TIME}, {"f": 1e300}):
        with pytest.raises(ls.SchemaError, match=f"column '{next(iter(wrong))}'"):
            to_batches({"t": TIME, **wrong}, schema)


def test_made_ids_are_uuidv7_unique_and_ascending():
    ids = make_ids(50_000).to_pylist()

    assert len(set(ids)) == 50_000
    assert ids == sorted(ids)
    assert {UUID(i).version for i in ids[:100]} == {7}
    assert all(UUID(i).variant == "specified in RFC 4122" for i in ids[:100])
    now = datetime.now(UTC).timestamp() * 1000
    assert abs(int(ids[0].replace("-", "")[:12], 16) - now) < 60_000


def test_uuid_objects_and_text_are_one_id():
    key = uuid4()
    assert [r["id"] for r in coerced([one(id=key), one(id=str(key))])] == [str(key)] * 2


def test_mixed_rows_take_every_key():
    rows = coerced([one(n=1), one(name="x"), one()])
    assert [(r["n"], r["name"]) for r in rows] == [(1, None), (None, "x"), (None, None)]
    assert all(a["time"] == b["time"] for a, b in itertools.pairwise(rows))


def test_a_slice_is_not_written_with_what_it_was_cut_from():
    """Arrow's IPC writes all texts of a list column for a slice of it that holds only nulls."""
    rows = pa.Table.from_batches(to_batches(events(0, 10_000), SCHEMA)).combine_chunks()
    (one,) = to_batches(rows.slice(5_000, 1).to_batches()[0], SCHEMA)
    assert one.to_pylist()[0]["id"] == "e005000"
    assert one.to_pylist()[0]["tags"] is None
    assert one.serialize().size < 4_000
    frames = to_batches(pa.concat_tables([rows] * 20).combine_chunks(), SCHEMA)
    assert len(frames) == 4
    assert sum(frame.serialize().size for frame in frames) < 1.1 * 20 * rows.nbytes
    assert pa.Table.from_batches(frames)["tags"].to_pylist() == 20 * rows["tags"].to_pylist()
