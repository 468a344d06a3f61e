"""Untrusted text: names, values and statements leave neither their quoting nor the lake."""

import csv
import io
import itertools
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import lakestore as ls
from lakestore.cli.app import app

TIME = datetime(2025, 1, 1, tzinfo=UTC)

NAMES = [
    'a"b', 'a";drop table t;--', '"', "`", "'", "a\nb", "\n", "\r", "\t", "$1", "?", "x" * 129,
    "\u202eabc", "\u0430dmin", "select", "main.x", " ", "  two  ", "%s", "{}", "\u00e9",
    "e\u0301", "\N{GRINNING FACE}", "..", "../../x", "/etc/passwd", "1a", "read_csv", "pragma_x",
    "information_schema", "a.b", "a.b.c", "a,b", "a=b", "[a]", "\\", "\\n", "\x1b[31m", "rowid",
    "file_row_number", "filename", "NULL", "true", "list", "element", "day", "\ufeffx", "\u200b",
    "\x7f", "low_0", "lakestore_x", "x;y", "--", "/*", "$$", "\\'", "a'b\"c`d", "count(*)",
    "\u00df", "\U0010ffff", "x\u2028y",
]  # fmt: skip
REFUSED_NAMES = ["", "\0", "a\0b", "\ud800", "a\udfffb"]
VALUES = [
    *NAMES, *(["", "\0", "a\0b", "\0\0", "nul\0x", "\r\n", "x" * 70_000, "1 OR 1=1"]),
    "x' OR '1'='1", "'; DROP TABLE t; --", "%", "_", "a%", "\\%", "null", "NaN", "inf", "-0",
    "__HIVE_DEFAULT_PARTITION__", "day=2025-01-01", "CON", "NUL", "\uffff", "9" * 40, "1e400",
    "0x10", '[1,2]', '{"a":1}', "E'\\n'", "%%", "_delta_log", ".crc", "file:///etc/passwd",
    "s3://b/x", "\u0130",
]  # fmt: skip


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def row(number: int) -> dict[str, object]:
    return {"id": f"i{number}", "time": TIME, "n": number} | {
        name: f"{index}'\"{number}" for index, name in enumerate(NAMES)
    }


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ls.Lake]:
    """A table with all of NAMES for columns, a row in every tier, reopened once."""
    root = tmp_path_factory.mktemp("named") / "lake"
    fields = [("id", pa.string()), ("time", pa.timestamp("us", "UTC")), ("n", pa.int64())]
    schema = pa.schema([*fields, *((name, pa.string()) for name in NAMES)])
    with ls.open(root, upkeep="manual") as lake:
        table = lake.create_table("t", schema, event_id="id", event_time="time")
        table.append(row(0))
        table.seal()
        table.append([row(1)])
        table.flush()
        table.append(pa.Table.from_pylist([row(2)], schema=schema))
    with ls.open(root, upkeep="manual") as lake:
        yield lake


@pytest.mark.parametrize("name", NAMES)
def test_column_names_are_exact_in_every_query(named, name):
    table, wanted = named["t"], row(1)[name]
    found = [{"n": 1, name: wanted}]
    assert table.to_arrow(["n", name], where={name: wanted}).to_pylist() == found
    result = named.sql(f"SELECT n, {quoted(name)} FROM t WHERE {quoted(name)} = ?", [wanted])
    assert (result.columns, result.fetchall()) == (["n", name], [(1, wanted)])
    kept = table.scan().filter(pl.col(name) == wanted).select("n", name).collect()
    assert kept.to_dicts() == found
    either = pl.col(name).is_in([row(0)[name], row(2)[name]])
    assert table.scan().filter(either).collect()["n"].sort().to_list() == [0, 2]
    assert named.explain(f"SELECT n FROM t WHERE {quoted(name)} = 'no'").tiers[2].files == 1


def test_column_names_are_exact_in_schemas_and_other_forms(named):
    names = ["id", "time", "n", *NAMES]
    table = named["t"]
    assert list(ls.TableSchema.from_toml(table.schema.text).names) == names
    assert table.to_arrow().schema.names == names
    assert table.scan().collect().columns == names
    result = named.sql("FROM t")
    assert list(result.to_pandas().columns) == result.to_polars().columns == names
    assert "i0" in repr(result)
    assert "<script" not in result._repr_html_()
    assert named.connect().sql("FROM t").to_arrow_table().schema.names == names


def test_column_names_are_exact_in_shells(named, duckdb_cli, tmp_path):
    named.flush()
    views = f"{named.root}/lake.duckdb"
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{views}' AS lake (READ_ONLY)")
        rows = con.sql("FROM lake.t ORDER BY n").to_arrow_table().to_pylist()
    assert rows == [row(0), row(1), row(2)]
    some = [name for name in NAMES if "\r" not in name]  # csv readers fold those
    query = f"SELECT {', '.join(map(quoted, some))} FROM t ORDER BY n"
    shell = [duckdb_cli, "-readonly", "-csv", views, query]
    printed = subprocess.run(shell, capture_output=True, text=True, check=True, timeout=60).stdout
    expected = [[row(n)[name] for name in some] for n in range(3)]
    assert list(csv.reader(io.StringIO(printed, newline=""))) == [some, *expected]
    done = CliRunner().invoke(app, ["sql", named.root, query, "--format", "csv"])
    assert done.exit_code == 0
    assert list(csv.reader(io.StringIO(done.stdout, newline="")))[1:] == expected


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_column_names_that_no_quoting_carries_are_refused(lake, name):
    for schema in (
        pa.schema([("time", pa.timestamp("us", "UTC")), (name, pa.string())])
        if "\ud800" not in name and "\udfff" not in name
        else None,
        [{"time": TIME, name: "x"}],
    ):
        if schema is not None:
            with pytest.raises(ls.InvalidInputError):
                lake.create_table("t", schema, event_time="time")
    assert lake.tables() == []


def test_twins_that_look_alike_are_two_columns_or_refused(lake):
    both = {"time": TIME, "\u00e9": "one", "e\u0301": "two"}
    table = lake.create_table("t", [both], event_time="time")
    table.append([both])
    table.seal()
    assert table.to_arrow(["\u00e9", "e\u0301"]).to_pylist() == [
        {"\u00e9": "one", "e\u0301": "two"}
    ]
    with pytest.raises(ls.SchemaError, match="one name in SQL"):
        lake.create_table("u", [{"time": TIME, "a": 1, "A": 2}], event_time="time")


@pytest.mark.parametrize("name", [*NAMES, *REFUSED_NAMES, "a/b", "lakestore_x", "x" * 64, 1, None])
def test_table_names_are_exact_or_refused(lake, root, name):
    before = sorted(root.parent.rglob("*"))
    sample = [{"time": TIME, "n": 1}]
    if name in ("select", "read_csv", "pragma_x", "information_schema", "rowid", "filename",
                "file_row_number", "NULL", "true", "list", "element", "day", "low_0"):  # fmt: skip
        table = lake.create_table(name, sample, event_time="time")
        table.append(sample)
        table.seal()
        assert lake.sql(f"SELECT n FROM {quoted(name)}").fetchall() == [(1,)]
        assert lake.tables() == [name]
        return
    with pytest.raises(ls.InvalidInputError, match="table name"):
        lake.create_table(name, sample, event_time="time")
    with pytest.raises(ls.NotFoundError):
        lake[name]
    assert sorted(root.parent.rglob("*")) == before


@pytest.fixture(scope="module")
def valued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ls.Lake]:
    """All of VALUES as ids and as values: in the cold tier, in segments, and in the buffer."""
    root = tmp_path_factory.mktemp("valued") / "lake"
    rows = [{"id": v, "time": TIME, "v": v, "n": n} for n, v in enumerate(VALUES)]
    with ls.open(root, upkeep="manual") as lake:
        table = lake.create_table("t", rows, event_id="id", event_time="time")
        third = len(rows) // 3
        table.append(rows[:third])
        table.seal()
        table.append(rows[third : 2 * third])
        table.flush()
        table.append(rows[2 * third :])
        assert table.append(rows).duplicates == len(rows)
        yield lake


@pytest.mark.parametrize("index", range(len(VALUES)))
def test_values_are_exact_as_ids_filters_and_parameters(valued, index):
    table, value = valued["t"], VALUES[index]
    for column in ("id", "v"):
        found = table.to_arrow(["v"], where={column: value})["v"].to_pylist()
        assert set(found) == {value}
        assert set(table.to_arrow(["v"], where={column: [value, "no"]})["v"].to_pylist()) == {value}
        by_name = valued.sql(f"SELECT DISTINCT n FROM t WHERE {column} = $v", {"v": value})
        assert by_name.fetchall() == [(index,)]
        assert set(table.scan().filter(pl.col(column) == value).collect()["n"]) == {index}
        if "\0" not in value:
            literal = "'" + value.replace("'", "''") + "'"
            by_text = valued.sql(f"SELECT DISTINCT n FROM t WHERE {column} = {literal}")
            assert by_text.fetchall() == [(index,)]


def test_values_make_no_files_of_their_own(valued):
    valued.flush()
    valued.seal()
    assert valued.sql("SELECT count(*), count(DISTINCT id) FROM t").fetchone() == (
        len(VALUES),
        len(VALUES),
    )
    days = sorted(p.name for p in Path(valued.root, "tables/t/data").iterdir())
    assert days == ["day=2025-01-01"]


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ({"n": float("nan")}, 0), ({"n": float("inf")}, 0), ({"n": 10**40}, None),
        ({"n": -(10**40)}, None), ({"n": "x' OR '1'='1"}, None), ({"n": object()}, None),
        ({"n": {}}, None), ({"n": [[1]]}, None), ({"v": (";", 1)}, None), ({"v": (1, 1)}, None),
        ({"v": ("= 1 OR 1 =", 1)}, None), ({"v": ("=",)}, None), ({"n": True}, 1),
        ({"v": "\ud800"}, None), ({"time": "no time"}, None), ({"v": ("like", "\\%")}, 4),
        ({"v": ("like", "x' OR%")}, 1),
    ],
)  # fmt: skip
def test_filters_of_odd_kinds_answer_or_are_refused(valued, where, count):
    if count is None:
        with pytest.raises(ls.InvalidInputError):
            valued["t"].to_arrow(["n"], where=where)
    else:
        assert len(set(valued["t"].to_arrow(["n"], where=where)["n"].to_pylist())) == count


@pytest.mark.parametrize("producer", ["a\0b", "'", "\u00e9" * 256, "\n", "../..", "x; DROP"])
def test_producers_are_exact(open_lake, producer):
    sample = [{"time": TIME, "n": 1}]
    with open_lake() as lake:
        table = lake.create_table("t", sample, event_time="time")
        assert table.append(sample, producer=producer, seq=1).rows == 1
        assert table.append(sample, producer=producer[:-1] + "x", seq=1).rows == 1
        table.flush()
    table = open_lake()["t"]
    assert table.append(sample, producer=producer, seq=1).duplicates == 1


@pytest.mark.parametrize("producer", ["", "x" * 513, "\u00e9" * 257, "\ud800", 1, b"x"])
def test_producers_that_cannot_be_kept_are_refused(lake, producer):
    sample = [{"time": TIME, "n": 1}]
    table = lake.create_table("t", sample, event_time="time")
    with pytest.raises(ls.InvalidInputError, match="producer"):
        table.append(sample, producer=producer, seq=1)
    assert table.to_arrow().num_rows == 0


@pytest.mark.parametrize(
    "path", ["ftp://x", "s3::x://y", "http://x/y", "zip::file:///x", "\ud800", "a\0b", "a*b"]
)
def test_odd_paths_are_refused(tmp_path, path):
    with pytest.raises(ls.InvalidInputError):
        ls.open(tmp_path / path if "://" not in path else path)
    assert list(tmp_path.iterdir()) == []


MEGABYTE = "x" * (1 << 20)


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("SELECT " + "(" * 10_000 + "1" + ")" * 10_000, None),
        ("SELECT " + "NOT " * 10_000 + "true", None),
        ("SELECT 1" + "+1" * 10_000, None),
        ("SELECT 1" + "+1" * 200, 1),
        ("SELECT " + "(SELECT " * 10_000 + "1" + ")" * 10_000, None),
        ("SELECT " + "[" * 10_000, None),
        ("SELECT " + "CASE WHEN n = 1 THEN " * 100 + "1" + " END" * 100 + " FROM t", 3),
        ("SELECT 1 " + "UNION ALL SELECT 1 " * 500, 501),
        (f"SELECT '{MEGABYTE}'", 1),
        (f"SELECT n FROM t WHERE id = '{MEGABYTE}'", 0),
        ("SELECT n FROM t WHERE " + " OR ".join(f"n = {n}" for n in range(1000)), 3),
        ("/*" * 10_000 + "*/" * 10_000 + "SELECT 1", 1),
        (f"SELECT n AS {quoted(MEGABYTE)} FROM t", 3),
        ("SELECT '\ud800'", None),
        ("SELECT '\0'", None),
        ("", None),
        (";;", None),
    ],
    ids=lambda value: f"{str(value)[:24]!r}",
)
def test_deep_and_long_statements_answer_or_are_refused(named, statement, rows):
    if rows is None:
        with pytest.raises(ls.InvalidInputError):
            named.sql(statement)
    else:
        assert len(named.sql(statement)) == rows
    assert named.sql("SELECT count(*) FROM t").fetchone() == (3,)


@pytest.mark.parametrize("depth", [150, 10_000, 100_000])
def test_deep_values_are_refused(lake, depth):
    deep: object = 1
    for _ in range(depth):
        deep = {"a": deep} if depth % 4 else [deep]
    table = lake.create_table("t", [{"time": TIME, "v": "x", "s": {"a": 1}}], event_time="time")
    for column in ("v", "s"):
        with pytest.raises(ls.SchemaError):
            table.append({"time": TIME, column: deep})
    with pytest.raises(ls.SchemaError):
        lake.create_table("u", [{"time": TIME, "v": deep}], event_time="time")
    with pytest.raises(ls.InvalidInputError):
        lake.sql("SELECT ?", [deep])
    assert table.to_arrow().num_rows == 0


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ls.Lake]:
    """A lake with rows in every tier, in a folder with files to be reached for."""
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "x.csv").write_text("a,b\n1,2\n")
    (folder / "dump").mkdir()
    (folder / "dump/schema.sql").write_text("SELECT 1")
    (folder / "dump/load.sql").write_text("")
    with duckdb.connect(str(folder / "other.duckdb")) as con:
        con.execute("CREATE TABLE t AS SELECT 42 AS a")
    os.link(folder / "other.duckdb", folder / "other.db")
    before = os.getcwd()
    os.chdir(folder)
    settings = {"segment_duckdb_rows": 1}
    with ls.open("lake", upkeep="manual", settings=settings) as lake:
        table = lake.create_table("events", [{"time": TIME, "n": 1}], event_time="time")
        for n in range(3):
            table.append([{"time": TIME, "n": n}])
            (table.seal, table.flush, lambda: None)[n]()
        lake.sql("SELECT * FROM events")
        yield lake
    os.chdir(before)


def state(lake: ls.Lake) -> dict[str, object]:
    """Everything that a statement could change for those after it, in DuckDB and on disk."""
    kinds = ("databases", "schemas", "tables", "views", "sequences", "types", "secrets", "logs")
    with lake._queries._engine.cursor() as con:
        found: dict[str, object] = {
            kind: con.execute(f"SELECT count(*) FROM duckdb_{kind}()").fetchall() for kind in kinds
        }
        found["settings"] = con.execute("SELECT name, value FROM duckdb_settings()").fetchall()
        loaded = "SELECT extension_name FROM duckdb_extensions() WHERE loaded"
        found["loaded"] = con.execute(loaded).fetchall()
        functions = "SELECT count(*) FROM duckdb_functions() WHERE NOT internal"
        found["functions"] = con.execute(functions).fetchall()
    found["files"] = sorted(str(p) for p in Path.cwd().rglob("*") if "sqlite" not in p.name)
    found["rows"] = lake.sql("SELECT n FROM events ORDER BY n").fetchall()
    return found


REFUSED = """
INSERT INTO events VALUES (1)
UPDATE events SET n = 1
DELETE FROM events
TRUNCATE events
MERGE INTO events USING events e ON true WHEN MATCHED THEN DELETE
WITH x AS (INSERT INTO events VALUES (1) RETURNING *) SELECT * FROM x
WITH x AS (DELETE FROM events RETURNING *) SELECT * FROM x
WITH x AS (COPY (SELECT 1) TO 'stolen.csv') SELECT * FROM x
WITH x AS (COPY (SELECT 1) TO 'stolen.csv' (RETURN_STATS)) SELECT 1
CREATE TABLE mine AS SELECT 1
CREATE TEMP TABLE events AS SELECT 1
CREATE OR REPLACE TEMP VIEW events AS SELECT 1
CREATE MACRO count(a) AS 0
CREATE SECRET s (TYPE s3)
CREATE SEQUENCE s
CREATE SCHEMA s
CREATE TYPE t AS ENUM ('a')
DROP VIEW events
DROP TABLE IF EXISTS segment_1.events
ALTER VIEW events RENAME TO other
COMMENT ON VIEW events IS 'x'
COPY events TO 'stolen.csv'
COPY (SELECT 1) TO 'stolen.parquet'
COPY events FROM 'x.csv'
COPY FROM DATABASE memory TO other
EXPORT DATABASE 'stolen'
IMPORT DATABASE 'dump'
ATTACH 'other.duckdb'
ATTACH ':memory:' AS m
DETACH memory
USE memory
INSTALL httpfs
FORCE INSTALL httpfs
LOAD httpfs
LOAD '/tmp/x.duckdb_extension'
UPDATE EXTENSIONS
PRAGMA version
PRAGMA enable_profiling
PRAGMA import_database('dump')
PRAGMA threads=1
SET threads = 1
SET GLOBAL TimeZone = 'Asia/Tokyo'
SET VARIABLE x = 1
RESET threads
RESET ALL
CALL force_checkpoint()
CALL enable_logging()
CALL duckdb_logs()
CHECKPOINT
FORCE CHECKPOINT
VACUUM
ANALYZE
BEGIN
COMMIT
ROLLBACK
PREPARE p AS SELECT 1
EXECUTE p
DEALLOCATE p
EXPLAIN ANALYZE CREATE TABLE mine AS SELECT 1
EXPLAIN ANALYZE COPY (SELECT 1) TO 'stolen.csv'
EXPLAIN (ANALYZE) COPY (SELECT 1) TO 'stolen.csv'
EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO 'stolen.csv'
EXPLAIN ANALYZE SET GLOBAL threads = 1
EXPLAIN ANALYZE INSERT INTO events VALUES (1)
EXPLAIN CREATE TABLE mine AS SELECT 1
EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO 'stolen.csv') SELECT * FROM x
EXPLAIN ANALYZE SELECT * FROM enable_logging()
EXPLAIN EXPLAIN ANALYZE COPY (SELECT 1) TO 'stolen.csv'
SELECT 1; SELECT 2
SELECT 1; COPY (SELECT 1) TO 'stolen.csv'
SELECT 1 /* ; */; DROP VIEW events
SELECT 1 -- \\n; SET threads = 1
/* SELECT */ COPY (SELECT 1) TO 'stolen.csv'
-- SELECT\\nCOPY (SELECT 1) TO 'stolen.csv'
/* /* */ EXPLAIN SELECT ' */ EXPLAIN ANALYZE COPY (SELECT 1) TO "stolen.csv" -- '
/* /* */ SELECT ' */ COPY (SELECT 1) TO "stolen.csv" -- '
SELECT * FROM query('CREATE TABLE mine AS SELECT 1')
SELECT * FROM query('SELECT * FROM enable_logging()')
SELECT * FROM query_table('other.duckdb')
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM enable_logging()'))
SELECT * FROM enable_logging()
SELECT * FROM "ENABLE_LOGGING"()
SELECT * FROM system.main.enable_logging()
SELECT * FROM enable_logging(storage='file', storage_path='stolen')
SELECT (SELECT count(*) FROM enable_logging())
SELECT * FROM range(3), LATERAL (SELECT * FROM enable_logging())
FROM events WHERE EXISTS (FROM enable_logging())
WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT 1 FROM t, enable_logging()) FROM t
DESCRIBE FROM enable_logging()
SELECT * FROM disable_logging()
SELECT * FROM truncate_duckdb_logs()
SELECT * FROM enable_profiling(format='json', save_location='stolen')
SELECT * FROM disable_profiling()
SELECT * FROM checkpoint()
SELECT * FROM force_checkpoint()
SELECT write_log('hello')
SELECT nextval('s')
SELECT * FROM read_duckdb('other.duckdb', table_name='t')
SELECT * FROM 'other.duckdb'
SELECT * FROM "other.db"
SELECT * FROM 'OTHER.DuckDB'
SELECT * FROM '*.duckdb'
SUMMARIZE 'other.duckdb'
SELECT * FROM sqlite_scan('x', 'y')
SELECT * FROM arrow_scan(1, 2, 3)
SELECT * FROM read_parquet('http://127.0.0.1:1/x.parquet')
SELECT * FROM 's3://bucket/x.parquet'
SELECT * FROM segment_1.events
SELECT * FROM segment_1.main.events
DESCRIBE segment_1.events
SELECT * FROM lakestore_buffer_1, events
SELECT * INTO mine FROM events
PIVOT events ON n USING count(*)
""".strip().split("\n")


@pytest.mark.parametrize("statement", REFUSED)
def test_what_does_more_than_read_is_refused_and_changes_nothing(sandbox, statement):
    before = state(sandbox)
    with pytest.raises((ls.InvalidInputError, ls.NotFoundError)):
        sandbox.sql(statement.replace("\\n", "\n"))
    with pytest.raises((ls.InvalidInputError, ls.NotFoundError)):
        sandbox.explain(statement.replace("\\n", "\n"))
    assert state(sandbox) == before


READ = {
    "SELECT n FROM events ORDER BY n": [(0,), (1,), (2,)],
    "FROM events SELECT sum(n)": [(3,)],
    "TABLE events": 3,
    "VALUES (1), (2)": [(1,), (2,)],
    "(SELECT 1)": [(1,)],
    "SELECT 1;": [(1,)],
    ";SELECT 1": [(1,)],
    "SELECT 1; -- x": [(1,)],
    "/* ; DROP */ SELECT 1 -- ; DROP": [(1,)],
    "SELECT $$ ; COPY $$": [(" ; COPY ",)],
    'SELECT \'COPY_QUERY_NODE\', \'"type":"COPY_QUERY_NODE"\' AS "function_name"': 1,
    "WITH a AS (SELECT 1 AS x), b AS MATERIALIZED (FROM a) FROM b": [(1,)],
    "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a+1 FROM t WHERE a<3) FROM t": 3,
    "SELECT * FROM range(3) INTERSECT SELECT n FROM events": 3,
    "SELECT * FROM generate_series(1, 2), unnest([1])": 2,
    "PIVOT events ON n IN (0, 1) USING count(*) GROUP BY time": [(TIME, 1, 1)],
    "DESCRIBE events": 3,
    "SUMMARIZE events": 3,
    "SHOW TABLES": 2,
    "EXPLAIN SELECT * FROM events": 1,
    "EXPLAIN ANALYZE SELECT * FROM events": 1,
    "EXPLAIN (FORMAT json) SELECT * FROM events": 1,
    "SELECT * FROM 'x.csv'": [(1, 2)],
    "SELECT * FROM read_csv('x.csv', store_rejects = true)": [(1, 2)],
    "SELECT count(*) FROM events JOIN 'x.csv' ON n = a": [(1,)],
    "SELECT content FROM read_text('x.csv')": [("a,b\n1,2\n",)],
    "SELECT parse_filename(file) FROM glob('x.*')": [("x.csv",)],
    "SELECT setseed(0.5)": 1,
    "SELECT count(*) > 0 FROM duckdb_settings()": [(True,)],
}


@pytest.mark.parametrize("statement", READ)
def test_what_reads_is_answered_and_changes_nothing(sandbox, statement):
    before = state(sandbox)
    result = sandbox.sql(statement)
    expected = READ[statement]
    assert (len(result) if isinstance(expected, int) else result.fetchall()) == expected
    assert state(sandbox) == before


def test_a_callers_frame_is_never_mistaken_for_the_lakes_own(sandbox):
    lakestore_buffer_1 = pa.table({"n": [99]})
    events = pa.table({"n": [99]})
    with pytest.raises(ls.NotFoundError, match="lakestore's own"):
        sandbox.sql("SELECT n FROM lakestore_buffer_1, events")
    assert sandbox.sql("SELECT max(n) FROM events").fetchone() == (2,)
    assert len(lakestore_buffer_1) == len(events) == 1


def test_the_open_door_runs_anything_and_shares_nothing(sandbox):
    before = state(sandbox)
    with sandbox.connect() as con:
        con.execute("SET threads = 1")
        con.execute("CREATE OR REPLACE TEMP VIEW events AS SELECT 7 AS n")
        con.execute("ATTACH 'other.duckdb' AS other (READ_ONLY)")
        assert con.execute("SELECT a FROM other.t").fetchall() == [(42,)]
    assert state(sandbox) == before


@pytest.fixture
def filled(open_lake, root) -> Path:
    """A lake that was closed, with a cold file, a segment and a journal."""
    with open_lake(settings={"segment_duckdb_rows": 1}) as lake:
        table = lake.create_table("events", [{"time": TIME, "n": 1}], event_time="time")
        for step in (table.seal, table.flush, lambda: None):
            table.append([{"time": TIME, "n": 1}])
            step()
    return root


FILES = ("lakestore.json", "catalog.sqlite", "segment", "cold", "journal")


def counted(lake: ls.Lake) -> tuple[int, ...] | None:
    return lake.sql("SELECT count(*) FROM events").fetchone()


def test_foreign_files_are_left_alone(filled, open_lake, clock):
    """What is not lakestore's by its name is neither read nor deleted, wherever it lies."""
    site = filled / "_site"
    (journals,) = (site / "journal/events").iterdir()
    (data,) = (filled / "tables/events/data").iterdir()
    foreign = [
        *(folder / name for name in ("notes.txt", "..x", "\u00e9 \n'\"", "-rf") for folder in
          (filled, filled / "tables", filled / "tables/events", data, data.parent, site / "hot",
           site / "hot/events", site / "journal", site / "journal/events", journals,
           site / "writers", site / "staging")),
        data / "stranger.parquet",
        journals / "000001.journal.bak",
        site / "hot/events/000001-000001-aaaaaaaaaaaa.parquet",
    ]  # fmt: skip
    for path in foreign:
        path.write_bytes(b"not lakestore's")
    (site / "journal/events/not a writer").mkdir()
    (site / "journal/events/not a writer/000001.journal").write_bytes(b"junk")
    lake = open_lake(settings={"vacuum_grace_s": 0})
    assert counted(lake) == (3,)
    lake.seal()
    clock.move(10)
    lake.maintain()
    assert counted(lake) == (3,)
    lake.close()
    assert [path for path in foreign if path.read_bytes() != b"not lakestore's"] == []


def test_symlinks_are_followed_by_nothing_that_deletes(filled, open_lake, clock, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep me")
    (filled / "_site/staging/0123456789abcdef").symlink_to(outside)
    (filled / "_site/writers/0123456789abcdef").touch()
    (filled / "tables/events/data/link").symlink_to(outside)
    (filled / "_site/hot/events/link").symlink_to(outside)
    lake = open_lake(settings={"vacuum_grace_s": 0})
    assert counted(lake) == (3,)
    lake.drop_table("events")
    clock.move(10)
    lake.maintain()
    lake.close()
    assert (outside / "precious").read_text() == "keep me"


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        pytest.param(what, kind, marks=[pytest.mark.sqlite] if "sqlite" in what else [])
        for what, kind in (
            *itertools.product(FILES, ("folder", "loop", "noise", "fifo")),
            *itertools.product(FILES[:-1], ("empty",)),  # a journal begins so
        )
    ],
)
def test_something_else_in_the_place_of_a_file_is_an_error_that_says_so(
    filled, open_lake, what, kind
):
    """Never a hang, never an answer that leaves rows out in silence."""
    patterns = {
        "lakestore.json": "lakestore.json",
        "catalog.sqlite": "_site/catalog.sqlite",
        "segment": "_site/hot/events/*.parquet",
        "cold": "tables/events/data/*/*.parquet",
        "journal": "_site/journal/events/*/*.journal",
    }
    path = max(filled.glob(patterns[what]))  # of the journals, the one not flushed
    if what == "segment":
        path.with_suffix(".duckdb").unlink()
    path.unlink()
    {
        "folder": path.mkdir,
        "empty": path.touch,
        "loop": lambda: path.symlink_to(path),
        "fifo": lambda: os.mkfifo(path),  # to open one waits for a writer
        "noise": lambda: path.write_bytes(b"\xff\x00lake" * 99),
    }[kind]()
    with pytest.raises(
        (ls.CorruptionError, ls.StorageError, ls.InvalidInputError, ls.NotFoundError)
    ):
        counted(open_lake())


def test_a_trailing_slash_and_dots_are_the_same_lake(filled):
    for spelling in (f"{filled}/", f"{filled}//", f"{filled}/../{filled.name}/."):
        with ls.open(spelling, upkeep="manual") as lake:
            assert counted(lake) == (3,)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything, whatever its permissions")
def test_files_that_may_not_be_read_say_so(filled, open_lake):
    for path in filled.glob("tables/events/data/*/*.parquet"):
        path.chmod(0)
    with pytest.raises(ls.StorageError, match="cannot be read"):
        counted(open_lake())
