"""`lakestore ingest`: every kind of file, as bad as they come, each exactly once."""

import gzip
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from support import commands
from support.commands import GOOD, TIME, fails, ok, rows

import lakestore as ls
from lakestore.cli.ingest import _suffix
from lakestore.files.mapping import Options
from lakestore.files.source import open_source

lake = commands.lake  # fixtures
file = commands.file


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.zip", "f.ndjson", "f.json.gz"])
def test_ingest_reads_text_formats(lake, tmp_path, name):
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
