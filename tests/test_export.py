"""Export: a file has all rows of one snapshot, or it is not there."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from conftest import SCHEMA, events
from support import commands
from support.commands import fails, ok
from support.store import Store

import lakestore as ls
from lakestore import failpoint

Open = Callable[..., ls.Lake]
given_lake = commands.lake


@pytest.fixture
def table(lake: ls.Lake) -> ls.Table:
    """Rows of every tier."""
    made = lake.create_table("events", SCHEMA)
    made.append(events(0, 50))
    made.seal()
    made.append(events(50, 80))
    made.flush()
    made.append(events(80, 100))
    return made


def read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    if path.suffix in (".arrow", ".feather"):
        return ipc.open_file(pa.memory_map(str(path))).read_all()
    if path.suffix in (".csv", ".tsv"):
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return pcsv.read_csv(path, parse_options=pcsv.ParseOptions(delimiter=delimiter))
    return pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "csv", "tsv", "ndjson", "jsonl"])
def test_every_format_has_all_rows_of_all_tiers(
    lake: ls.Lake, table: ls.Table, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "deep" / f"events.{suffix}"
    seen: list[int] = []
    report = table.export(path, progress=seen.append)
    assert (report.rows, report.files, report.bytes) == (100, 1, path.stat().st_size)
    assert seen[-1] == 100
    assert seen == sorted(seen)
    found, expected = read(path).sort_by("id"), table.to_arrow().sort_by("id")
    assert found["id"].to_pylist() == expected["id"].to_pylist()
    assert found["x"].to_pylist() == expected["x"].to_pylist()
    assert found["n"].to_pylist() == expected["n"].to_pylist()
    if suffix in ("parquet", "arrow", "feather"):
        assert found.equals(expected)
    else:
        assert [str(t)[:19] for t in found["time"].to_pylist()] == [
            str(t)[:19] for t in expected["time"].to_pylist()
        ]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if suffix not in ("csv", "tsv"):  # whose structs and lists are text
        again = lake.create_table("again", SCHEMA)
        assert again.load(path).rows == 100
        assert again.to_arrow().sort_by("id").equals(expected)


def test_a_filter_and_columns(table: ls.Table, tmp_path: Path) -> None:
    report = table.export(
        tmp_path / "some.parquet",
        {"ok": True, "n": (">", 20)},
        start="2025-01-02",
        end="2025-01-04",
        columns=["n", "id"],
    )
    found = read(tmp_path / "some.parquet")
    assert found.schema.names == ["n", "id"]
    expected = [n for n in range(24, 72) if n % 2 == 0 and n % 11]
    assert sorted(found["n"].to_pylist()) == expected
    assert report.rows == len(expected)
    assert table.export(tmp_path / "none.parquet", {"id": "nobody"}).rows == 0
    assert read(tmp_path / "none.parquet").schema.names == list(SCHEMA.names)
    assert table.export(tmp_path / "none.csv", {"id": "nobody"}).rows == 0
    assert read(tmp_path / "none.csv").schema.names == list(SCHEMA.names)
    with pytest.raises(ls.NotFoundError, match="no column 'y'"):
        table.export(tmp_path / "x.csv", columns=["y"])
    with pytest.raises(ls.InvalidInputError, match="without columns"):
        table.export(tmp_path / "x.csv", columns=[])


def test_a_folder_has_a_file_a_day(table: ls.Table, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    report = table.export(folder, {"ok": True}, start="2025-01-01T12:00", end="2025-01-03T12:00")
    days = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    assert days == [f"day=2025-01-0{n}/0.parquet" for n in (1, 2, 3)]
    assert (report.rows, report.files) == (24, 3)
    found = pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).collect()
    assert sorted(found["id"]) == [f"e{n:06d}" for n in range(12, 60, 2)]
    assert all(row["time"].date() == row["day"] for row in found.iter_rows(named=True))
    assert found["day"].unique().sort().to_list() == [date(2025, 1, n) for n in (1, 2, 3)]
    with pytest.raises(ls.InvalidInputError, match="name another folder"):
        table.export(folder, overwrite=True)


def test_what_is_there_is_replaced_only_when_told(table: ls.Table, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("mine")
    with pytest.raises(ls.InvalidInputError, match="overwrite=True"):
        table.export(path)
    assert path.read_text() == "mine"

    def meanwhile() -> None:
        (tmp_path / "b.csv").write_text("mine")

    with failpoint.at("export.2", meanwhile), pytest.raises(ls.InvalidInputError, match="is there"):
        table.export(tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text() == "mine"
    assert table.export(path, overwrite=True).rows == 100
    assert read(path).num_rows == 100
    assert sorted(p.name for p in tmp_path.glob("*.csv")) == ["a.csv", "b.csv"]
    assert not list(tmp_path.glob(".*.partial"))
    for wrong in (tmp_path / "a.xlsx", tmp_path / "a", Path("s3://bucket/a.csv")):
        if wrong.name == "a":
            wrong.mkdir()
        with pytest.raises(ls.InvalidInputError):
            table.export(wrong)


@pytest.mark.parametrize("target", ["a.parquet", "a.ndjson", "a"])
@pytest.mark.parametrize("point", ["export.1", "export.2"])
def test_a_full_disk_leaves_nothing(
    table: ls.Table, tmp_path: Path, target: str, point: str
) -> None:
    folder = tmp_path / "out"
    with failpoint.at(point, "ENOSPC"), pytest.raises(ls.StorageError, match="cannot export"):
        table.export(folder / target)
    assert list(folder.iterdir()) == []
    assert table.export(folder / target).rows == 100


def test_a_snapshot_is_of_one_instant(lake: ls.Lake, table: ls.Table, tmp_path: Path) -> None:
    """Rows that come while it is written, and files that are sealed and deleted, change nothing."""

    def meanwhile(rows: int) -> None:
        table.append(events(100 + rows, 101 + rows))
        table.seal()
        lake.maintain()

    report = table.export(tmp_path / "a.parquet", progress=meanwhile)
    assert report.rows == 100
    assert sorted(read(tmp_path / "a.parquet")["id"].to_pylist()) == [
        f"e{n:06d}" for n in range(100)
    ]


def test_damage_is_named(lake: ls.Lake, table: ls.Table, tmp_path: Path) -> None:
    file = table._context.state().cold[0]
    path = table._context.cold_path(file)
    data = bytearray(path.read_bytes())
    data[100:400] = bytes(300)
    path.chmod(0o644)
    path.write_bytes(data)
    for target in ("a.parquet", "a.csv"):
        with pytest.raises(ls.CorruptionError, match=path.name):
            table.export(tmp_path / "out" / target)
        assert list((tmp_path / "out").iterdir()) == []


_EXPORTER = """
import os, sys
import lakestore as ls
lake = ls.open(sys.argv[1], mode="r")
def told(rows):
    print(rows, flush=True)
    sys.stdin.readline()
lake["events"].export(sys.argv[2], progress=told)
"""


@pytest.mark.faults
@pytest.mark.parametrize("target", ["a.parquet", "a.csv", "a"])
def test_a_process_that_is_killed_leaves_no_file(
    table: ls.Table, root: Path, tmp_path: Path, target: str
) -> None:
    command = [sys.executable, "-c", _EXPORTER, str(root), str(tmp_path / target)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / target).exists()
    assert table.export(tmp_path / target).rows == 100


def test_a_lake_in_a_store(prefix: str, store: Store, tmp_path: Path) -> None:
    place = {"storage_options": store.options, "local": tmp_path / "site", "upkeep": "manual"}
    with ls.open(prefix, **place) as lake:
        table = lake.create_table("events", SCHEMA, cold="delta")
        table.load(events(0, 60))
        table.append(events(60, 70))
        assert table.export(tmp_path / "a.parquet").rows == 70
    assert read(tmp_path / "a.parquet").num_rows == 70


def test_the_command(given_lake: Path, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(commands.GOOD)
    ok("load", given_lake, "t", tmp_path / "f.csv")
    said = ok("export", given_lake, "t", tmp_path / "out.parquet", "-w", "n>1", "-c", "id,n")
    assert "1 rows" in said
    assert read(tmp_path / "out.parquet").to_pylist() == [{"id": "b", "n": 2}]
    assert "--overwrite" in fails("export", given_lake, "t", tmp_path / "out.parquet")
    told = json.loads(
        ok("export", given_lake, "t", tmp_path / "out.parquet", "--overwrite", "--json")
    )
    assert (told["rows"], told["files"]) == (2, 1)
    ok("export", given_lake, "t", tmp_path / "days", "--start", "2026-01-01")
    with duckdb.connect() as con:
        found = con.sql(f"SELECT count(*) FROM '{tmp_path}/days/**/*.parquet'").fetchall()
    assert found == [(2,)]
