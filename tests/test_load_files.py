"""Files that are loaded: every format, each file once, and what the command says."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from conftest import SCHEMA, events
from deltalake import DeltaTable
from support import commands
from support.commands import fails, ok, run
from support.store import Store

import lakestore as ls
from lakestore import failpoint
from lakestore.cli.load import _bar
from lakestore.load import chunks
from lakestore.load.run import Progress

SIMPLE = ["id", "time", "n", "x", "name", "ok"]
FLAT = ls.TableSchema.from_arrow(
    events(0, 1).select(SIMPLE).schema, event_id="id", event_time="time", dedup="none"
)
NAMES = ("f.parquet", "f.arrow", "f.feather", "f.csv", "f.csv.gz", "f.ndjson", "f.json.gz")
given_lake = commands.lake


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 100)


def write(path: Path, rows: pa.Table) -> Path:
    """A file of the format that its name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".parquet":
        pq.write_table(rows, path, row_group_size=70)
    elif plain.suffix == ".arrow":
        with ipc.new_stream(path, rows.schema) as sink:
            sink.write_table(rows, max_chunksize=70)
    elif plain.suffix == ".feather":
        with ipc.new_file(path, rows.schema) as sink:
            sink.write_table(rows, max_chunksize=70)
    elif plain.suffix == ".csv":
        sink = pa.BufferOutputStream()
        pcsv.write_csv(rows, sink)
        data = sink.getvalue().to_pybytes()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    else:
        lines = [json.dumps(row, default=str) + "\n" for row in rows.to_pylist()]
        data = "".join(lines).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def numbers(table: ls.Table) -> list[int]:
    return sorted(int(id[1:]) for id in table.to_arrow(["id"])["id"].to_pylist())


@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_loaded_once_and_goes_on_after_a_failure(
    lake: ls.Lake, tmp_path: Path, name: str
) -> None:
    rows = events(0, 350).select(SIMPLE)
    path = write(tmp_path / name, rows)
    table = lake.create_table("events", FLAT)
    pieces = {"monkey": 40}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lakestore.load.files._rows_of_chunk", lambda file: pieces["monkey"])
        with failpoint.at("load.9", "ENOSPC", hit=2), pytest.raises(ls.StorageError):
            table.load(path)
        done = len(numbers(table))
        assert 0 < done < 350
        pieces["monkey"] = 33  # other pieces, and other chunks: the rows count
        report = table.load(str(path))
    assert (report.rows, report.skipped) == (350 - done, done)
    assert table.to_arrow().sort_by("id").equals(rows.cast(table.schema.arrow))
    again = table.load([path])
    assert (again.rows, again.skipped, again.files) == (0, 350, 0)
    assert lake.verify().ok


def test_folders_and_globs_give_their_new_files(lake: ls.Lake, tmp_path: Path) -> None:
    table = lake.create_table("events", FLAT)
    rows = events(0, 300).select(SIMPLE)
    write(tmp_path / "in" / "b" / "1.parquet", rows.slice(100, 100))
    write(tmp_path / "in" / "a.csv", rows.slice(0, 100))
    (tmp_path / "in" / "_done").mkdir()
    write(tmp_path / "in" / "_done" / "x.csv", rows)
    (tmp_path / "in" / "readme.md").write_text("no events")
    seen: list[Progress] = []
    report = table.load(tmp_path / "in", progress=seen.append)
    assert report.rows == 200
    assert [Path(part.name).name for part in report.sources] == ["a.csv", "1.parquet"]
    total = sum(part.bytes or 0 for part in report.sources)
    assert (seen[-1].rows, seen[-1].bytes, seen[-1].bytes_total) == (200, total, total)
    write(tmp_path / "in" / "c.parquet", rows.slice(200))
    report = table.load(str(tmp_path / "in" / "**" / "*.parquet"))
    assert (report.rows, report.skipped) == (100, 100)
    assert numbers(table) == list(range(300))
    with pytest.raises(ls.NotFoundError, match="no file"):
        table.load(str(tmp_path / "*.nothing"))
    with pytest.raises(ls.InvalidInputError, match="does not tell a format"):
        table.load(tmp_path / "in" / "readme.md")


def test_a_file_that_changed_is_another_and_its_duplicates_are_left_out(
    lake: ls.Lake, tmp_path: Path
) -> None:
    table = lake.create_table("events", SCHEMA)
    path = write(tmp_path / "f.parquet", events(0, 150))
    table.load(path)
    write(path, events(0, 200))
    os.utime(path, ns=(1, 1))
    report = table.load(path)
    assert (report.rows, report.duplicates, report.skipped) == (50, 150, 0)


def test_files_of_one_name_are_one_source(lake: ls.Lake, tmp_path: Path) -> None:
    table = lake.create_table("events", FLAT)
    rows = events(0, 330).select(SIMPLE)
    paths = [
        write(tmp_path / f"{at}.{kind}", rows.slice(at, 110))
        for at, kind in ((0, "csv"), (110, "parquet"), (220, "ndjson"))
    ]
    with failpoint.at("load.9", "EIO", hit=2), pytest.raises(ls.StorageError):
        table.load(paths, load_id="all")
    done = len(numbers(table))
    for path in paths:
        os.utime(path)
    report = table.load(paths, load_id="all")
    assert (report.rows, report.skipped) == (330 - done, done)
    assert numbers(table) == list(range(330))


def test_lines_that_cannot_be_read_end_a_load(lake: ls.Lake, tmp_path: Path) -> None:
    table = lake.create_table("events", FLAT)
    path = tmp_path / "f.csv"
    lines = write(path, events(0, 500).select(["id", "time", "n"])).read_text().splitlines()
    lines[301] = '"e","soon",7'
    path.write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lakestore.load.files._rows_of_chunk", lambda file: 100)
        with pytest.raises(
            ls.InvalidInputError, match=r"(?s)not all of it was loaded.*line 302.*'soon'"
        ) as raised:
            table.load(path)
    assert "(1)" in str(raised.value)
    assert numbers(table) == list(range(200)) or numbers(table) == list(range(300))
    bad = tmp_path / "torn.parquet"
    bad.write_bytes(
        write(tmp_path / "whole.parquet", events(0, 90).select(SIMPLE)).read_bytes()[:-20]
    )
    with pytest.raises(ls.InvalidInputError, match="not a whole parquet file"):
        table.load(bad)
    with pytest.raises(ls.SchemaError, match="no column 'tags', 'place'"):
        table.load(write(tmp_path / "more.parquet", events(0, 9)))
    assert table.load(tmp_path / "more.parquet", ignore_unknown=True).rows == 9


def test_wide_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    from lakestore.files.source import open_source
    from lakestore.load.files import _rows_of_chunk

    wide = pa.table({"id": [f"e{n}" for n in range(2_000)], "body": ["x" * 100_000] * 2_000})
    pq.write_table(wide, tmp_path / "w.parquet", compression="none", use_dictionary=False)
    (tmp_path / "w.ndjson").write_text(
        "".join(json.dumps({"body": "x" * 100_000}) + "\n" for _ in range(20))
    )
    for name in ("w.parquet", "w.ndjson"):
        with open_source(str(tmp_path / name), None) as source:
            assert 200 < _rows_of_chunk(source) < 400
    with open_source(str(write(tmp_path / "n.csv", events(0, 9).select(SIMPLE))), None) as source:
        assert _rows_of_chunk(source) == 65_536


@pytest.mark.parametrize("cold", ["parquet", "delta"])
def test_a_lake_in_a_store_is_loaded(prefix: str, store: Store, tmp_path: Path, cold: str) -> None:
    rows = events(0, 350).select(SIMPLE)
    path = write(tmp_path / "f.parquet", rows)
    place: dict[str, Any] = {
        "storage_options": store.options,
        "local": tmp_path / "site",
        "upkeep": "manual",
        "settings": {"commit_timeout_s": 0},
    }
    with ls.open(prefix, **place) as lake:
        table = lake.create_table("events", FLAT, cold=cold)
        table.append(events(900, 910).select(SIMPLE))
        point = "seal.6" if cold == "parquet" else "delta.1"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lakestore.load.files._rows_of_chunk", lambda file: 60)
            with failpoint.at(point, "EIO", hit=2), pytest.raises(ls.StorageError):
                table.load(path)
            table.load(path)
        assert numbers(table) == [*range(350), *range(900, 910)]
        assert lake.verify().ok
        table.seal()
    if cold == "delta":
        found = DeltaTable(f"{prefix}/tables/events/data", storage_options=store.for_engines)
        assert found.to_pyarrow_table().num_rows == 360


class TestCommand:
    def test_says_what_it_does_and_does_it_once(self, given_lake: Any, tmp_path: Path) -> None:
        lake = given_lake
        for name in ("a", "b"):
            (tmp_path / f"{name}.csv").write_text(commands.GOOD.replace("\na,", f"\n{name},"))
        pattern = str(tmp_path / "*.csv")
        plan = ok("load", lake, "t", pattern, "--dry-run")
        assert "2 files" in plan
        assert "nothing was loaded" in plan
        assert commands.rows(lake) == []
        said = ok("load", lake, "t", pattern)
        assert said.startswith("2 rows in"), said
        assert "2 were there already" in said  # both have b
        assert [row["id"] for row in commands.rows(lake)] == ["a", "b"]
        again = json.loads(ok("load", lake, "t", pattern, "--json"))
        assert (again["rows"], again["skipped"], again["dry_run"]) == (0, 4, False)
        assert "2 of them loaded before" in ok("load", lake, "t", pattern, "--dry-run")
        assert "no file" in fails("load", lake, "t", "nowhere.csv")

    def test_makes_a_table_of_the_first_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text(commands.GOOD)
        lake = tmp_path / "new"
        assert "no lake" in fails(
            "load", lake, "t", tmp_path / "a.csv", "--event-time", "at", "--dry-run"
        )
        ok("load", lake, "t", tmp_path / "a.csv", "--event-time", "at", "--event-id", "id")
        assert [row["n"] for row in commands.rows(lake)] == [1, 2]
        assert "'u'" in fails("load", lake, "u", tmp_path / "a.csv")
        assert (
            run("load", lake, "u", tmp_path / "a.csv", "--event-time", "at", "--dry-run").exit_code
            == 1
        )

    def test_a_bar_is_drawn_where_somebody_watches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with _bar("t") as show:
            show(Progress(1, 2, 0, None))
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        with _bar("t") as show:
            show(Progress(0, None, 0, 100))
            show(Progress(5, None, 50, 100))


# columns that the table lacks


GROWING = FLAT.text.replace("[columns]", 'on_new_column = "add"\n\n[columns]')


@pytest.mark.parametrize("cold", ["parquet", "delta"])
@pytest.mark.parametrize("name", NAMES)
def test_columns_of_a_later_file_are_added(
    lake: ls.Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cold: str
) -> None:
    monkeypatch.setattr("lakestore.load.files._rows_of_chunk", lambda file: 40)
    rows = events(0, 400).select(SIMPLE)
    more = pa.array([f"x{n}" for n in range(200, 400)])
    first = write(tmp_path / f"1-{name}", rows.slice(0, 200))
    second = write(tmp_path / f"2-{name}", rows.slice(200).append_column("more", more))
    table = lake.create_table("events", ls.TableSchema.from_toml(GROWING), cold=cold)
    with failpoint.at("load.9", "ENOSPC", hit=3), pytest.raises(ls.StorageError):
        table.load([first, second])
    assert numbers(table) == list(range(320))
    report = table.load([first, second])
    assert (report.rows, report.skipped) == (80, 320)
    assert numbers(table) == list(range(400))
    assert table.schema.names == (*FLAT.names, "more")
    found = lake.sql("SELECT count(more), min(id), max(more) FROM events WHERE more IS NOT NULL")
    assert found.fetchone() == (200, "e000200", "x399")
    assert len(table.schemas) == 2
    assert lake.verify().ok


@pytest.mark.parametrize("torn", [False, True])
def test_a_line_brings_a_column_that_those_before_it_had_not(
    lake: ls.Lake, tmp_path: Path, torn: bool
) -> None:
    """Also where Python reads them line by line, as it does where one is no JSON."""
    lines = [
        {"id": f"e{n}", "time": "2025-03-01T00:00:00Z", "n": n}
        | ({"late": n / 2} if n >= 150 else {})
        | ({"later": {"deep": [n]}} if n == 199 else {})
        for n in range(200)
    ]
    path = tmp_path / "f.ndjson"
    text = [json.dumps(line) for line in lines]
    path.write_text("\n".join(text + ["{"] * torn))
    table = lake.create_table(
        "events", ls.TableSchema.from_toml(GROWING.replace('"none"', '"day"'))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lakestore.files.ndjson.FRAME_ROWS", 40)  # so many are looked at at first
        patch.setattr("lakestore.load.files._rows_of_chunk", lambda file: 40)
        if torn:
            with pytest.raises(ls.InvalidInputError, match="line 201: not JSON"):
                table.load(path)
            path.write_text("\n".join(text))
        report = table.load(path)
    assert report.rows + report.duplicates + report.skipped == 200
    found = lake.sql(
        "SELECT count(DISTINCT id), count(late), sum(late), sum(later.deep[1]) FROM events"
    )
    assert found.fetchone() == (200, 50, sum(n / 2 for n in range(150, 200)), 199)
    assert lake.verify().ok


def test_files_with_other_columns_are_refused_or_read_without_them(
    lake: ls.Lake, tmp_path: Path
) -> None:
    rows = events(0, 30).select(SIMPLE)
    path = write(tmp_path / "f.csv", rows.append_column("more", pa.array(range(30))))
    refuses = lake.create_table("refuses", FLAT)
    with pytest.raises(ls.SchemaError, match="the table has no column 'more'"):
        refuses.load(path)
    ignoring = ls.TableSchema.from_toml(GROWING.replace('"add"', '"ignore"'))
    for name, schema, options in (
        ("ignores", ignoring, {}),
        ("told", ls.TableSchema.from_toml(GROWING), {"ignore_unknown": True}),
    ):
        table = lake.create_table(name, schema)
        assert table.load(path, **options).rows == 30
        assert table.schema.names == FLAT.names
