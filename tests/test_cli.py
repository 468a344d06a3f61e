"""The command line: every command, with its output and its real exit code."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import commands
from support.commands import GOOD, SCHEMA, TIME, fails, ok, rows, run

import lakestore as ls

lake = commands.lake  # fixtures
file = commands.file


def test_version_and_help():
    assert ok("--version") == f"lakestore {ls.__version__}\n"
    verbs = "init create ingest sql shell tail status flush seal sites retire maintain verify"
    listed = ok("--help").partition("Commands:")[2]
    assert all(f"  {verb} " in listed for verb in [*verbs.split(), "rebuild", "doctor", "demo"])
    assert "..." not in listed  # each is explained in its line


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


def test_maintain_does_what_is_due(lake, file):
    ok("ingest", lake, "t", file("a.csv", GOOD))
    assert ok("maintain", lake).startswith("flushed ")
    report = json.loads(ok("maintain", lake, "--json"))
    assert (report["problems"], report["flushed"]) == ([], 0)
    assert rows(lake) == [
        {"id": "a", "n": 1, "note": "one"},
        {"id": "b", "n": 2, "note": "two"},
    ]
    assert "no lake at" in fails("maintain", lake.parent / "none")


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

    assert (len(said["columns"]), said["event_time"]) == (70, "created_at")
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


def test_a_schema_is_shown_checked_and_evolved(lake, file):
    ok("ingest", lake, "t", file("good.csv", GOOD))
    shown = ok("schema", "show", lake, "t")
    assert shown == f"# version 1 of 1\n{SCHEMA}"
    same = file("same.toml", shown)
    assert ok("schema", "check", lake, "t", same) == "t has that schema already\n"
    wider = file("wider.toml", shown.replace('"INTEGER"', '"BIGINT"') + 'more = "DOUBLE"\n')
    would = "would: add column 'more' (DOUBLE)\nwould: widen column 'n' from INTEGER to BIGINT\n"
    assert ok("schema", "check", lake, "t", wider) == would
    assert ok("schema", "evolve", lake, "t", wider, "--dry-run") == would
    assert ok("schema", "show", lake, "t") == shown
    assert ok("schema", "evolve", lake, "t", wider) == would.replace("would", "did")
    assert ok("schema", "evolve", lake, "t", wider) == "t has that schema already\n"
    assert rows(lake, "SELECT n, more FROM t ORDER BY n")[0] == {"n": 1, "more": None}
    facts = json.loads(ok("schema", "show", lake, "t", "--json"))
    assert (facts["version"], facts["versions"]) == (2, [1, 2])
    assert facts["columns"]["n"] == {"type": "BIGINT", "nullable": True}
    assert ok("schema", "show", lake, "t", "--version", 1) == f"# version 1 of 1, 2\n{SCHEMA}"
    narrow = file("narrow.toml", SCHEMA.replace('note = "VARCHAR"\n', ""))
    for verb in ("check", "evolve"):
        error = fails("schema", verb, lake, "t", narrow)
        assert "column 'note' is dropped" in error
        assert "column 'n': BIGINT becomes INTEGER" in error
    told = json.loads(run("schema", "check", lake, "t", narrow, "--json").stdout)
    assert told["allowed"] is False
    assert "column 'note' is dropped" in told["error"]
    assert "no version 9" in fails("schema", "show", lake, "t", "--version", 9)
    assert "no schema document" in fails("schema", "check", lake, "t", "nowhere.toml")


def test_files_with_new_columns(tmp_path, file):
    """What a table does with them its schema says: to files as to appends."""
    lake = tmp_path / "lake"
    for policy in ("add", "ignore", "reject"):
        document = file(f"{policy}.toml", f'on_new_column = "{policy}"\n{SCHEMA}')
        ok("create", lake, policy, "--schema", document)
    csv = file("more.csv", "id,at,n,note,size\na,2026-01-01T00:00:00Z,1,one,2.5\n")
    line = {"id": "b", "at": TIME, "n": 2, "deep": {"x": [1]}, "none": None}
    ndjson = file("more.ndjson", json.dumps(line) + "\n")
    for more in (csv, ndjson):
        ok("ingest", lake, "add", more)
        ok("ingest", lake, "ignore", more)
        assert "the table has no column" in fails("ingest", lake, "reject", more)
    assert rows(lake, "SELECT id, size, deep FROM add ORDER BY id") == [
        {"id": "a", "size": 2.5, "deep": None},
        {"id": "b", "size": None, "deep": {"x": [1]}},
    ]
    assert rows(lake, 'SELECT id, n, note FROM "ignore" ORDER BY id') == [
        {"id": "a", "n": 1, "note": "one"},
        {"id": "b", "n": 2, "note": None},
    ]
    ok("ingest", lake, "add", file("good.csv", GOOD))  # nothing new
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lakestore.files.ndjson.FRAME_ROWS", 1)  # so many lines are looked at first
        lines = [{"id": i, "at": TIME, "n": 3} | {i: 1} for i in ("u", "v")]
        late = file("late.ndjson", "\n".join(map(json.dumps, lines)))
        ok("ingest", lake, "add", late)
    found = rows(lake, "SELECT id, u, v FROM add WHERE n = 3 ORDER BY id")
    assert found == [{"id": "u", "u": 1, "v": None}, {"id": "v", "u": None, "v": 1}]
    text = SCHEMA.replace("note =", "text =") + '[renamed]\ntext = "note"\n'
    ok("schema", "evolve", lake, "reject", file("renamed.toml", text))
    ok("ingest", lake, "reject", file("good.csv", GOOD))
    found = rows(lake, "SELECT text FROM reject ORDER BY 1")
    assert found == [{"text": "one"}, {"text": "two"}]
