"""The command line: every command, real exit codes, and files as bad as they come."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import lakestore as ls
from lakestore.cli.app import app
from lakestore.cli.ingest import _suffix
from lakestore.cli.mapping import Options
from lakestore.cli.source import open_source

SCHEMA = """
event_time = "at"
event_id = "id"
[columns]
id = "VARCHAR not null"
at = "TIMESTAMPTZ not null"
n = "INTEGER"
note = "VARCHAR"
"""
GOOD = "id,at,n,note\na,2026-01-01T00:00:00Z,1,one\nb,2026-01-01T00:00:01Z,2,two\n"
TIME = "2026-01-01T00:00:00Z"


def run(*arguments, stdin=None):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def ok(*arguments, stdin=None):
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments, stdin=None, code=1):
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


def rows(lake, query="SELECT id, n, note FROM t ORDER BY id"):
    return json.loads(ok("sql", lake, query, "--json"))


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "t.toml").write_text(SCHEMA)
    ok("create", tmp_path / "lake", "t", "--schema", tmp_path / "t.toml")
    return tmp_path / "lake"


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_version_and_help():
    assert ok("--version") == f"lakestore {ls.__version__}\n"
    verbs = ("init", "create", "ingest", "sql", "shell", "tail", "status", "flush", "seal", "demo")
    said = ok("--help")
    assert all(f"  {verb} " in said for verb in verbs)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["init"],
        ["sql", "lake"],
        ["sql", "lake", "SELECT 1", "-p", "x"],
        ["sql", "lake", "SELECT 1", "--format", "xml"],
        ["sql", "lake", "SELECT 1", "-o", "answer.xyz"],
        ["sql", "lake", "SELECT 1", "--json", "--format", "csv"],
        ["create", "lake", "t"],
        ["create", "lake", "t", "--schema", "flights", "--like", "f.csv"],
        ["create", "lake", "t", "--like", "f.csv"],
        ["ingest", "lake", "t"],
        ["ingest", "lake", "t", "f.csv", "--map", "x"],
        ["ingest", "lake", "t", "f.csv", "--delimiter", ",,"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(*arguments, code=2)
    assert list(tmp_path.iterdir()) == []


def test_init_makes_a_lake_once(tmp_path):
    first = json.loads(ok("init", tmp_path / "lake", "--json"))
    again = json.loads(ok("init", tmp_path / "lake", "--json"))

    assert (first["created"], again["created"]) == (True, False)
    assert first["id"] == again["id"]
    assert ok("init", tmp_path / "lake").startswith("a lake is there already: ")


def test_a_lake_that_is_a_file_or_missing_is_an_error(tmp_path, file):
    path = file("plain", "x")
    for verb in (["init"], ["status"], ["flush"], ["seal"]):
        assert "is a file; a lake is a folder" in fails(*verb, path)
    for verb in (["status"], ["flush"], ["seal"], ["tail", "t"], ["sql", "SELECT 1"]):
        said = fails(verb[0], tmp_path / "none", *verb[1:])
        assert said.startswith("error: no lake at ")
    assert not (tmp_path / "none").exists()


def test_create_from_shipped_schema_and_from_a_file(tmp_path, file):
    lake = tmp_path / "lake"
    said = json.loads(ok("create", lake, "usage", "--schema", "llm_usage", "--json"))
    like = file("like.csv", "id,at,n\na,2026-01-01 00:00:00,7\n")
    ok("create", lake, "t", "--like", like, "--event-time", "at", "--event-id", "id")

    assert (len(said["columns"]), said["event_time"]) == (69, "created_at")
    with ls.open(lake, mode="r") as opened:
        schema = opened["t"].schema
        assert [c.sql_type for c in schema.columns] == ["VARCHAR", "TIMESTAMP", "BIGINT"]
        assert len(opened["t"].to_arrow()) == 0


def test_create_names_what_is_wrong(tmp_path, lake, file):
    typo = file("typo.toml", SCHEMA.replace("[columns]", "srot = []\n[columns]"))
    assert "unknown key 'srot'" in fails("create", lake, "x", "--schema", typo)
    assert "no schema named 'nope'" in fails("create", lake, "x", "--schema", "nope")
    assert "no schema document" in fails("create", lake, "x", "--schema", tmp_path / "no.toml")
    for name in ('a"b', "a/b", "a" * 300, "", "../up"):
        assert repr(name)[1:50] in fails("create", lake, name, "--schema", "flights")
    assert "'t'" in fails("create", lake, "t", "--schema", "flights")
    assert "event_time" in fails(
        "create", lake, "x", "--schema", "flights", "--event-time", "time_hour"
    )


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.zip", "f.ndjson", "f.json.gz"])
def test_ingest_reads_text_formats(lake, tmp_path, name):
    import gzip

    text = GOOD
    if "json" in name:
        text = "".join(
            json.dumps({"id": i, "at": f"2026-01-01T00:00:0{n - 1}Z", "n": n, "note": t}) + "\n"
            for i, n, t in (("a", 1, "one"), ("b", 2, "two"))
        )
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("README.md", "about")
            archive.writestr("inner/data.csv", text)
    else:
        path.write_text(text)
    said = json.loads(ok("ingest", lake, "t", path, "--json"))

    assert (said["rows"], said["accepted"], said["rejects"]) == (2, 2, 0)
    assert rows(lake) == [{"id": "a", "n": 1, "note": "one"}, {"id": "b", "n": 2, "note": "two"}]


@pytest.mark.parametrize("name", ["f.parquet", "f.arrow", "f.feather"])
def test_ingest_reads_binary_formats(lake, tmp_path, name):
    table = pcsv.read_csv(io.BytesIO(GOOD.encode()))
    path = tmp_path / name
    if name == "f.parquet":
        pq.write_table(table, path)
    elif name == "f.arrow":
        with ipc.new_stream(path, table.schema) as sink:
            sink.write_table(table)
    else:
        with ipc.new_file(path, table.schema) as sink:
            sink.write_table(table)
    ok("ingest", lake, "t", path)
    assert [row["n"] for row in rows(lake)] == [1, 2]
    path.write_bytes(path.read_bytes()[:-40])
    assert "not a whole" in fails("ingest", lake, "t", path)


def test_ingest_reads_standard_input(lake):
    ok("ingest", lake, "t", "-", "--format", "csv", stdin=GOOD)
    assert len(rows(lake)) == 2
    assert "add --format" in fails("ingest", lake, "t", "-", stdin=GOOD)


def test_ingesting_again_adds_nothing_even_without_ids(tmp_path, file):
    """Made ids differ each time, so only producer and seq can know the file."""
    path = file("f.csv", "at,n\n2026-01-01 00:00:00,1\n2026-01-01 00:00:00,1\n")
    lake = tmp_path / "lake"
    first = json.loads(ok("ingest", lake, "t", path, "--event-time", "at", "--json"))
    again = json.loads(ok("ingest", lake, "t", path, "--json"))
    other = json.loads(ok("ingest", lake, "t", path, "--null", "x", "--json"))

    assert (first["accepted"], again["accepted"], again["duplicates"]) == (2, 0, 2)
    assert other["accepted"] == 2, "read in another way, it is another file"
    assert rows(lake, "SELECT count(*) AS c FROM t") == [{"c": 4}]


def test_ingest_goes_on_after_a_kill(tmp_path, file):
    """A run that was killed after its first batch: the next one appends the rest, once."""
    lines = "".join(f"2026-01-01 00:00:00,{n}\n" for n in range(70_000))
    path = file("big.csv", "at,n\n" + lines)
    lake = tmp_path / "lake"
    ok("create", lake, "t", "--like", path, "--event-time", "at")
    with open_source(str(path), None) as source, ls.open(lake, upkeep="manual") as opened:
        producer = "file:" + source.digest() + _suffix(Options({}), source)
        first = pa.table({"at": ["2026-01-01 00:00:00"] * 65_536, "n": range(65_536)})
        opened["t"].append(first, producer=producer, seq=0)
    said = json.loads(ok("ingest", lake, "t", path, "--json"))

    assert (said["rows"], said["accepted"]) == (70_000, 70_000 - 65_536)
    query = "SELECT count(*) AS c, count(DISTINCT n) AS d, sum(n) AS s FROM t"
    assert rows(lake, query) == [{"c": 70_000, "d": 70_000, "s": sum(range(70_000))}]


def test_columns_are_mapped_dropped_and_nulls_named(lake, file):
    path = file("f.csv", "key,TIMESTAMP,n,other\na,2026-01-01 00:00:00+00,NA,x\n")
    mapped = ["--map", "key=id", "--map", "TIMESTAMP=at"]
    said = fails("ingest", lake, "t", path, *mapped)
    assert "no column 'other'" in said
    assert "--ignore-unknown" in said
    said = fails("ingest", lake, "t", path, *mapped, "--ignore-unknown")
    assert "line 2, column 'n': 'NA' does not fit INTEGER" in said
    ok("ingest", lake, "t", path, *mapped, "--ignore-unknown", "--null", "NA")
    assert rows(lake) == [{"id": "a", "n": None, "note": None}]


def test_columns_that_do_not_fit_are_one_error_up_front(lake, file):
    assert "requires 'at'" in fails("ingest", lake, "t", file("a.csv", "id,n\na,1\n"))
    assert "requires 'at'" in fails("ingest", lake, "t", file("a.ndjson", '{"id": "a"}\n'))
    assert "'ID' is there twice" in fails("ingest", lake, "t", file("b.csv", "id,ID\na,1\n"))
    assert "--map names 'x'" in fails("ingest", lake, "t", file("c.csv", GOOD), "--map", "x=n")
    line = json.dumps({"id": "a", "at": TIME, "xx": 1})
    assert "no column 'xx'" in fails("ingest", lake, "t", file("d.ndjson", line))
    assert "no header" in fails("ingest", lake, "t", file("e.csv", ""))
    assert rows(lake) == []


def test_na_is_not_taken_for_text_in_silence(tmp_path, file):
    """The sniffing of a sample would make numbers text, or fail on row 30,000."""
    path = file("f.csv", "at,n\n2026-01-01 00:00:00,1\n2026-01-01 00:00:00,NA\n")
    command = ["ingest", tmp_path / "lake", "t", path, "--event-time", "at"]
    assert "column 'n' would be int64" in fails(*command)
    ok(*command, "--null", "NA")
    assert rows(tmp_path / "lake", "SELECT n FROM t ORDER BY n") == [{"n": 1}, {"n": None}]


BAD_CSV = {
    "torn last line": ("c,2026-01-0", 4, "n", "expected 4 columns, found 2"),
    "torn quote": ('c,2026-01-01,3,"thr', 4, "note", "the quote is never closed"),
    "wrong type": ("c,2026-01-01,three,x\n", 4, "n", "'three' does not fit INTEGER"),
    "too big": ("c,2026-01-01,99999999999,x\n", 4, "n", "does not fit INTEGER"),
    "a fraction": ("c,2026-01-01,1.5,x\n", 4, "n", "'1.5' does not fit INTEGER"),
    "no time": ("c,1700000000,1,x\n", 4, "at", "'1700000000' does not fit TIMESTAMP"),
    "impossible time": ("c,9999-01-01,1,x\n", 4, "at", "does not fit TIMESTAMP"),
    "null": (",2026-01-01,1,x\n", 4, "id", "is null, and it is required"),
    "too many": ("c,2026-01-01,1,x,y\n", 4, None, "expected 4 columns, found 5"),
    "not UTF-8": (b"c,2026-01-01,1,\xff\xfe\n", 4, "note", "not UTF-8"),
    "after blank and multi-line": ('\nx,2026-01-01,1,"p\nq"\n\nc,2026-01-01,z,x\n', 8, "n", "'z'"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_csv_line_is_named_and_only_skipped_when_told(case, lake, file, tmp_path):
    tail, line, column, reason = BAD_CSV[case]
    tail = tail.encode() if isinstance(tail, str) else tail
    path = file("f.csv", GOOD.encode() + tail)
    said = fails("ingest", lake, "t", path)

    place = f"line {line}" + (f", column {column!r}" if column else "")
    assert place in said
    assert reason in said
    assert "--skip-rejects" in said
    assert rows(lake) == []

    kept = tmp_path / "rejects.ndjson"
    taken = ["--skip-rejects", "--rejects-to", kept, "--json"]
    report = json.loads(ok("ingest", lake, "t", path, *taken))
    (reject,) = [json.loads(one) for one in kept.read_text().splitlines()]
    assert (report["rejects"], reject["line"], reject["column"]) == (1, line, column)
    assert reject["text"] == tail.decode(errors="replace").split("\n\n")[-1].rstrip("\n")
    assert [row["id"] for row in rows(lake)][:2] == ["a", "b"]


BAD_NDJSON = {
    "torn last line": ('{"id": "c", "at"', None, "not JSON"),
    "no object": ("[1]\n", None, "not a JSON object"),
    "two on a line": ('{"id": "c"} {"id": "d"}\n', None, "not JSON"),
    "wrong type": ('{"id": "c", "at": "2026-01-01", "n": "x"}\n', "n", "does not fit"),
    "a fraction": ('{"id": "c", "at": "2026-01-01", "n": 1.5}\n', "n", "does not fit"),
    "null": ('{"id": null, "at": "2026-01-01"}\n', "id", "is null, and it is required"),
    "not UTF-8": (b'{"id": "c\xff", "at": "2026-01-01"}\n', None, "0xff is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_NDJSON)
def test_a_bad_ndjson_line_is_named_and_only_skipped_when_told(case, lake, file, tmp_path):
    tail, column, reason = BAD_NDJSON[case]
    tail = tail.encode() if isinstance(tail, str) else tail
    good = "".join(json.dumps({"id": i, "at": TIME, "n": 1}) + "\n\n" for i in "ab")
    path = file("f.ndjson", good.encode() + tail)
    said = fails("ingest", lake, "t", path)

    assert "line 5" + (f", column {column!r}" if column else "") in said
    assert reason in said
    assert rows(lake) == []

    kept = tmp_path / "rejects.ndjson"
    ok("ingest", lake, "t", path, "--rejects-to", kept)
    (reject,) = [json.loads(one) for one in kept.read_text().splitlines()]
    assert (reject["line"], reject["column"]) == (5, column)
    assert [row["id"] for row in rows(lake)] == ["a", "b"]


def test_ndjson_keeps_nested_values_in_text_and_reads_our_own_output(lake, file):
    line = {"id": "a", "at": "2026-01-01 00:00:00+00", "note": {"x": [1, "é"]}}
    ok("ingest", lake, "t", file("f.ndjson", json.dumps(line)))
    out = ok("sql", lake, "FROM t", "--format", "ndjson")
    ok("create", lake, "copy", "--schema", str(lake.parent / "t.toml"))
    ok("ingest", lake, "copy", file("g.ndjson", out))

    assert rows(lake) == [{"id": "a", "n": None, "note": '{"x": [1, "é"]}'}]
    assert rows(lake, "FROM copy EXCEPT FROM t") == []
    said = fails("ingest", lake, "t", file("h.ndjson", "[\n{}\n]\n"))
    assert "NDJSON has one object a line" in said


def test_derived_columns_need_not_be_in_the_file(tmp_path, file):
    """Flights have neither a time nor an id; a row without a day cannot get them."""
    head = "year,month,day,sched_dep_time,carrier,flight,origin,junk\n"
    path = file(
        "f.csv", head + "2013,1,2,515,UA,1545,EWR,x\n2013,1,2,0,UA,,EWR,\n2013,2,2,99,A,1,B,\n"
    )
    ok("create", tmp_path / "lake", "f", "--schema", "flights")
    said = fails("ingest", tmp_path / "lake", "f", path, "--ignore-unknown")
    assert "line 4" in said
    ok("ingest", tmp_path / "lake", "f", path, "--ignore-unknown", "--skip-rejects")
    found = rows(tmp_path / "lake", "SELECT event_id, event_time FROM f WHERE flight = 1545")
    assert found == [{"event_id": "2013-1-2-UA-1545-EWR", "event_time": "2013-01-02 05:15:00"}]


def test_ingest_names_missing_files_tables_and_formats(lake, file, tmp_path):
    path = file("f.csv", GOOD)
    assert "no file" in fails("ingest", lake, "t", tmp_path / "none.csv")
    assert "is a folder" in fails("ingest", lake, "t", tmp_path)
    assert "no table 'other'" in fails("ingest", lake, "other", path)
    assert "does not tell a format" in fails("ingest", lake, "t", file("f.xyz", GOOD))
    assert "holds 0 data files" in fails("ingest", lake, "t", _zip(tmp_path / "a.zip", {}))
    both = _zip(tmp_path / "b.zip", {"a.csv": GOOD, "b.csv": GOOD})
    assert "holds 2 data files" in fails("ingest", lake, "t", both)
    assert "damaged archive" in fails("ingest", lake, "t", file("c.zip", "no zip"))
    assert "damaged archive" in fails("ingest", lake, "t", file("c.csv.gz", "no gzip"))
    assert "no lake at" in fails("ingest", tmp_path / "nowhere", "t", path)


def _zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_ingest_and_reads_while_another_process_holds_the_lake(lake, file):
    """A service and its operator: both write, and the operator sees what is not flushed yet."""
    with ls.open(lake, upkeep="manual") as service:
        service["t"].append({"id": "s", "at": TIME, "n": 9})
        command = [sys.executable, "-m", "lakestore.cli", "ingest", lake, "t", file("f.csv", GOOD)]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert [row["id"] for row in rows(lake)] == ["a", "b", "s"]
        tiers = json.loads(ok("status", lake, "--json"))["tables"][0]["tiers"]
        assert {t["tier"]: t["rows"] for t in tiers} == {"buffer": 1, "hot": 2, "cold": 0}
        assert json.loads(ok("flush", lake, "--json")) == {"flushed": 0}
        assert len(service.sql("FROM t")) == 3


def test_flush_seal_and_status_move_rows(lake):
    with ls.open(lake, upkeep="manual") as opened:
        opened["t"].append([{"id": "a", "at": TIME}, {"id": "b", "at": TIME}])
    assert ok("flush", lake, "t") == "flushed 2 rows\n"
    assert ok("seal", lake) == "sealed 2 rows\n"
    said = ok("status", lake)
    assert "t: 2026-01-01 00:00:00Z to 2026-01-01 00:00:00Z" in said
    assert "cold" in said
    assert "no table 'x'" in fails("flush", lake, "x")
    assert "no table 'x'" in fails("seal", lake, "x")


def test_sql_prints_every_format(lake, tmp_path):
    with ls.open(lake, upkeep="manual") as opened:
        opened["t"].append({"id": "a", "at": TIME, "n": 1, "note": "x,y"})
    query = "SELECT id, n, note FROM t"
    one = {"id": "a", "n": 1, "note": "x,y"}
    assert ok("sql", lake, query, "--format", "csv") == 'id,n,note\na,1,"x,y"\n'
    assert json.loads(ok("sql", lake, query, "--format", "ndjson")) == one
    assert json.loads(ok("sql", lake, query, "--json")) == [one]
    assert "x,y" in ok("sql", lake, query)
    binary = run("sql", lake, query, "--format", "parquet").stdout_bytes
    assert pq.read_table(io.BytesIO(binary)).to_pylist() == [one]
    for name in ("o.csv", "o.json", "o.ndjson", "o.parquet"):
        assert ok("sql", lake, query, "-o", tmp_path / name) == ""
        assert (tmp_path / name).stat().st_size > 0
    assert "cannot write" in fails("sql", lake, query, "-o", tmp_path / "no" / "o.csv")


def test_sql_parameters_are_values_or_text(lake):
    query = "SELECT $a AS a, $b AS b, $c AS c"
    given = ["-p", "a=12", "-p", "b=it's", "-p", "c=null"]
    assert rows(lake, query="SELECT 1 AS one") == [{"one": 1}]
    said = json.loads(ok("sql", lake, query, *given, "--json"))
    assert said == [{"a": 12, "b": "it's", "c": None}]


def test_sql_errors_are_told_without_a_traceback(lake):
    assert "syntax error" in fails("sql", lake, "SELEC 1").lower()
    assert "nope" in fails("sql", lake, "SELECT nope FROM t")
    assert "The lake's tables: t" in fails("sql", lake, "FROM missing")
    assert "only reads" in fails("sql", lake, "DROP TABLE t")


def test_tail_shows_the_newest_and_follows(lake):
    with ls.open(lake, upkeep="manual") as opened:
        for second in range(3):
            opened["t"].append({"id": f"e{second}", "at": f"2026-01-01T00:00:0{second}Z"})
    lines = ok("tail", lake, "t", "-n", "2").splitlines()
    assert lines == [f"2026-01-01T00:00:0{n}+00:00 id=e{n}" for n in (1, 2)]
    followed = ok("tail", lake, "t", "-n", "1", "--follow", "--seconds", "0.1", "--json")
    assert [json.loads(line)["id"] for line in followed.splitlines()] == ["e2"]
    assert ok("tail", lake, "t", "-n", "0") == ""
    assert "no table 'x'" in fails("tail", lake, "x")


def test_tail_follows_another_process(lake):
    command = [sys.executable, "-m", "lakestore.cli", "tail", str(lake), "t", "-n", "1", "-f"]
    with ls.open(lake, upkeep="manual") as opened:
        opened["t"].append({"id": "first", "at": TIME})
        with subprocess.Popen(
            [*command, "--seconds", "30"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert "id=first" in process.stdout.readline()
            opened["t"].append({"id": "second", "at": TIME})
            assert "id=second" in process.stdout.readline()
            process.terminate()


def test_shell_opens_duckdb_read_only_on_flushed_rows(lake):
    shell = Path(sys.executable).parent
    if not (shell / "duckdb").exists():
        pytest.skip("no duckdb shell beside Python")
    with ls.open(lake, upkeep="manual") as opened:
        opened["t"].append({"id": "a", "at": TIME, "n": 42})
    command = [sys.executable, "-m", "lakestore.cli", "shell", str(lake), "--"]
    environment = {**os.environ, "PATH": f"{shell}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, "-csv", "-c", "SELECT n FROM t"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout.split()) == (0, ["n", "42"]), done.stderr


def test_shell_says_where_to_get_duckdb(lake, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pip install duckdb-cli" in fails("shell", lake)
