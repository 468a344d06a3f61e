"""Schema documents: what they may say, and what an error says of them."""

import json
import tomllib
from decimal import Decimal
from pathlib import Path

import jsonschema
import pyarrow as pa
import pytest

import lakestore as ls
from lakestore.document import json_schema, to_toml

SHIPPED = Path(__file__).parents[1] / "schemas"


def document(columns: str = "", **keys: str) -> str:
    head = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    return f'event_time = "t"\n{head}[columns]\nt = "TIMESTAMPTZ"\n{columns}\n'


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_documents_fit_the_json_schema_and_load(path):
    data = tomllib.loads(path.read_text())
    jsonschema.validate(data, json.loads((SHIPPED / "table.schema.json").read_text()))

    schema = ls.TableSchema.shipped(path.stem)

    assert list(schema.names) == list(data["columns"])


def test_json_schema_file_is_the_models():
    assert json.loads((SHIPPED / "table.schema.json").read_text()) == json_schema()


@pytest.mark.parametrize(
    "data",
    [
        {"event_time": "t", "columns": {"t": "TIMESTAMP"}, "evnet_id": "x"},
        {"columns": {"t": "TIMESTAMP"}},
        {"event_time": "t", "columns": {}},
        {"event_time": "t", "columns": {"t": "TIMESTAMP"}, "dedup": "week"},
        {"event_time": "t", "columns": {"t": "TIMESTAMP"}, "format": 3},
    ],
)
def test_json_schema_refuses_what_the_model_refuses(data):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json_schema())
    with pytest.raises(ls.SchemaError):
        ls.TableSchema.from_document(data)


def test_llm_usage_has_every_column_of_the_gateway_log():
    schema = ls.TableSchema.shipped("llm_usage")

    assert len(schema.names) == 64 + 1 + 5  # proxy_key, and the payload columns
    assert schema.event_id == "event_id"
    assert schema.event_time == "created_at"
    assert schema.column("credit_usage").arrow_type == pa.decimal128(24, 12)
    assert schema.column("request_method").default == "POST"
    assert len(schema.document.payload) == 5
    assert list(schema.document.metrics) == ["gateway", "latency", "proxy_traffic", "status"]


def test_types_are_duckdbs():
    schema = ls.TableSchema.from_toml(
        document(
            'd = "DECIMAL(24,12)"\nl = "VARCHAR[]"\ns = "STRUCT(a INT, b DATE)"\n'
            'm = "MAP(VARCHAR, BIGINT)"\nu = "UUID"\nj = "JSON"\nb = "BLOB"\nn = "UTINYINT"'
        )
    )
    types = {f.name: f.type for f in schema.arrow}

    assert types["t"] == pa.timestamp("us", "UTC")
    assert types["d"] == pa.decimal128(24, 12)
    assert types["l"] == pa.list_(pa.string())
    assert types["s"] == pa.struct([("a", pa.int32()), ("b", pa.date32())])
    assert types["m"] == pa.map_(pa.string(), pa.int64())
    assert types["u"] == types["j"] == pa.string()
    assert types["b"] == pa.binary()
    assert types["n"] == pa.uint8()
    assert schema.arrow.field("u").metadata == {b"sql_type": b"UUID"}


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("ENUM('a')", "use VARCHAR"),
        ("INTERVAL", "use BIGINT microseconds"),
        ("HUGEINT", r"use DECIMAL\(38,0\)"),
        ("TIMESTAMP_S", "use TIMESTAMP or TIMESTAMPTZ"),
        ("INT[3]", "not the same in Arrow, DuckDB and Parquet"),
        ("NOSUCH", "NOSUCH does not exist"),
        ("INT primary key", "only a type, NOT NULL and DEFAULT"),
        ("INT check (x > 1)", "only a type, NOT NULL and DEFAULT"),
        ("INT, y INT", "only a type, NOT NULL and DEFAULT"),
        ("INT); DROP TABLE t; --", "syntax error"),
        ("INT default random()", "not a constant"),
    ],
)
def test_a_type_that_not_every_tier_keeps_is_refused(declaration, message):
    with pytest.raises(ls.SchemaError, match=message) as caught:
        ls.TableSchema.from_toml(document(f'x = "{declaration}"'))
    assert "column 'x'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event_tiem = 't'\n[columns]\nt = 'TIMESTAMP'", "unknown key 'event_tiem'"),
        (document(evnet_id="t"), "unknown key 'evnet_id'; known keys are .*event_id"),
        ('[columns]\nt = "TIMESTAMP"', "key 'event_time' is missing"),
        (document(event_id="nope"), "event_id names 'nope', which is no column"),
        (document('n = "INT"').replace('"t"', '"n"', 1), "event_time 'n' is INTEGER"),
        (document(dedup="week"), "key 'dedup'"),
        (document(retention="soon"), "not a positive interval"),
        (document(retention="-1 day"), "not a positive interval"),
        (document('a = "INT"\nA = "INT"'), "columns 'a' and 'A' have one name in SQL"),
        (document('event_id = "INT"'), "exists but has no role"),
        ("event_time = ", "not TOML"),
        (document() + '[[rollups]]\nname = "r"\nsums = ["zz"]', "rollups.r names 'zz'"),
        (document() + '[[rollups]]\nname = "r"\nevry = "1h"', "rollups.0.evry"),
        (document('s = "INT[]"').replace("[columns]", 'sort = ["s"]\n[columns]'), "nested column"),
    ],
)
def test_a_wrong_document_says_where(text, message):
    with pytest.raises(ls.SchemaError, match=message):
        ls.TableSchema.from_toml(text)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"measures": {"n": "median(n)"}}, "'median\\(n\\)' is not a measure"),
        ({"measures": {"n": "sum(zz)"}}, "no column 'zz'"),
        ({"measures": {"n": "count if n > (SELECT 1)"}}, "is not allowed"),
        ({"measures": {"group": "count"}}, "cannot be called 'group'"),
        ({"measures": {"n": "count"}, "groups": {"by": "zz"}}, "no column 'zz'"),
        ({"measures": {"n": "count"}, "groups": {"by": "s"}}, "column 's' is nested"),
        ({"measures": {"n": "count"}, "top": {"most": "m"}}, "top.most: 'm' is not one of its"),
        ({"measures": {"n": "count"}, "top": {"most": "n up"}}, "top.most: 'n up' is not one"),
    ],
)
def test_a_table_with_wrong_metrics_is_not_made(tmp_path, view, message):
    columns = {"t": "TIMESTAMP", "n": "INTEGER", "s": "INTEGER[]"}
    data = {"event_time": "t", "columns": columns, "metrics": {"main": view}}
    schema = ls.TableSchema.from_document(data)

    with ls.open(tmp_path, upkeep="manual") as lake:
        with pytest.raises(ls.SchemaError, match=f"metrics.main: .*{message}"):
            lake.create_table("x", schema)
        assert lake.tables() == []


def test_a_document_survives_writing_and_reading():
    schema = ls.TableSchema.shipped("llm_usage")

    again = ls.TableSchema.from_toml(to_toml(schema.document))

    assert again.document == schema.document
    assert again.columns == schema.columns


def test_from_arrow_takes_the_plain_types():
    arrow = pa.schema(
        [
            ("id", pa.dictionary(pa.int32(), pa.string())),
            ("at", pa.timestamp("ns", "America/New_York")),
            ("names", pa.large_list(pa.large_string())),
            ("half", pa.float16()),
            pa.field("must", pa.int64(), nullable=False),
        ]
    )
    schema = ls.TableSchema.from_arrow(arrow, event_time="at", event_id="id", sort=["must"])

    assert schema.arrow.types == [
        pa.string(),
        pa.timestamp("us", "UTC"),
        pa.list_(pa.string()),
        pa.float32(),
        pa.int64(),
    ]
    assert schema.required == ("id", "at", "must")
    assert schema.sort == ("must",)
    assert ls.TableSchema.from_toml(schema.text).arrow == schema.arrow


def test_a_table_without_an_id_gets_one():
    schema = ls.TableSchema.from_toml(document())

    assert schema.names == ("event_id", "t")
    assert schema.made_id
    assert schema.dedup == "none"


def test_a_shipped_name_that_is_not_there_lists_those_that_are():
    with pytest.raises(ls.NotFoundError, match="shipped are flights, llm_usage"):
        ls.TableSchema.shipped("nope")


def test_types_by_column_make_a_table(open_lake):
    types = {"id": "VARCHAR not null", "at": "TIMESTAMPTZ", "n": "DECIMAL(9,2) default 1.5"}
    with open_lake() as lake:
        table = lake.create_table("t", types, event_time="at", event_id="id")
        assert dict(table.schema.document.columns) == types
        assert table.append([{"id": "a", "at": "2025-01-01T00:00:00Z"}]).rows == 1
        assert lake.sql("SELECT id, n FROM t").fetchall() == [("a", Decimal("1.50"))]
        with pytest.raises(ls.SchemaError, match="NOTYPE"):
            lake.create_table("u", {"at": "TIMESTAMP", "x": "NOTYPE"}, event_time="at")
        # An event that has a text for a time is still an event.
        made = lake.create_table("v", {"at": "2025-01-01", "id": "VARCHAR"}, event_time="at")
        assert str(made.schema.column("at").arrow_type) == "timestamp[us, tz=UTC]"
        assert str(made.schema.column("id").arrow_type) == "string"
