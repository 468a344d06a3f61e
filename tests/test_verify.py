"""Verify finds every broken promise, and repair does what is safe about it."""

import json
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import psycopg
import pytest
from conftest import SCHEMA, events
from support.commands import run
from support.soundness import assert_sound

import lakestore as ls
from lakestore.catalog.commit import Commit
from lakestore.verify.report import Problem, Report

SETTINGS = {"segment_duckdb_rows": 1}
POSTGRES = os.environ.get("LAKESTORE_CATALOG")
sqlite = pytest.mark.sqlite


def fill(lake: ls.Lake) -> None:
    """Every kind of file: two seals, a segment, a journal; and an empty table."""
    table = lake.create_table("events", SCHEMA)
    for start in (0, 40):
        table.append(events(start, start + 40), producer="job", seq=start)
        table.seal()
    table.append(events(80, 120), producer="job", seq=80)
    table.flush()
    table.append(events(120, 130), producer="job", seq=120)
    table.append(events(130, 140), producer="job", seq=130)
    lake.create_table("empty", SCHEMA)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("template") / "lake"
    with ls.open(root, upkeep="manual", settings=SETTINGS) as lake:
        fill(lake)
    return root


@pytest.fixture
def full(template, root, open_lake) -> ls.Lake:
    """A lake with every kind of file."""
    if POSTGRES:  # a copy would be the same site of the same catalog
        lake = open_lake(settings=SETTINGS)
        fill(lake)
        lake.close()
    else:
        shutil.copytree(template, root)
    return open_lake(settings=SETTINGS)


def found(report: Report) -> list[tuple[str, str]]:
    return [(problem.severity, problem.kind) for problem in report.problems]


def only(report: Report) -> Problem:
    (problem,) = report.problems
    return problem


def one(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    path.write_bytes(data)


def change(root: Path, statement: str) -> None:
    """Change the catalog behind everybody's back."""
    if POSTGRES:
        lake = json.loads((root / "lakestore.json").read_text())["lake"]
        with psycopg.connect(POSTGRES) as server:
            server.execute(f'SET search_path = "lakestore_{lake}"')
            assert server.execute(statement).rowcount > 0
        return
    with sqlite3.connect(root / "_site/catalog.sqlite") as con:
        con.execute("PRAGMA foreign_keys = OFF")
        assert con.execute(statement).rowcount > 0
    con.close()


def test_a_sound_lake_has_no_problem(full, open_lake, root):
    report = full.verify()
    assert report.ok
    assert report.problems == ()
    assert report.rows == 140
    assert str(report).endswith("\nok")
    assert json.loads(json.dumps(report.to_dict()))["rows_lost"] == 0
    with open_lake(mode="r") as reader:
        assert reader.verify().problems == ()
    full.close()
    assert_sound(root)


def test_every_state_of_a_life_is_sound(open_lake, clock):
    lake = open_lake(settings={"segments_max": 3, "segment_duckdb_rows": 1, "vacuum_grace_s": 10})
    assert_sound(lake)
    table = lake.create_table("events", SCHEMA)
    for start in range(0, 80, 10):
        table.append(events(start, start + 15), producer="p", seq=start)
        assert lake.verify().problems == ()
        table.flush()
        assert lake.verify().problems == ()
    table.append(events(0, 15), producer="q", seq=1)
    table.flush()
    assert lake.verify().problems == ()
    table.seal()
    assert lake.verify().problems == ()
    table.append(events(0, 15), producer="q", seq=2)  # all sealed: a segment without rows
    table.flush()
    assert lake.verify().problems == ()
    assert table.seal() == 0
    table.append(events(85, 90))
    assert table.seal() == 5
    clock.move(20)
    lake.maintain()
    assert lake.verify().problems == ()
    lake.drop_table("events")
    assert lake.verify().problems == ()
    clock.move(20)
    lake.maintain()
    assert lake.verify().problems == ()


@pytest.mark.parametrize(
    ("pattern", "lost"),
    [("tables/events/data/*/*.parquet", 24), ("_site/hot/events/*.parquet", 40)],
)
def test_a_missing_data_file_is_named_with_its_rows(full, root, pattern, lost):
    path = sorted(root.glob(pattern))[lost // 40 * -1]  # the newest segment: others are superseded
    path.unlink()
    problem = only(full.verify())
    assert (problem.kind, problem.severity, problem.file) == ("missing", "damage", path)
    assert problem.rows_lost == lost
    assert full.verify().rows_lost == lost
    assert not full.verify().ok
    assert "restore the file from a copy" in str(problem)


def test_a_damaged_data_file_is_named_with_what_cannot_be_read(full, root):
    path = one(root, "tables/events/data/*/*.parquet")
    good = path.read_bytes()
    flip(path, 0.02)
    problem = only(full.verify())
    assert (problem.kind, problem.rows_lost) == ("damaged", 24)
    assert "24 of 24 rows cannot be read (rows 0 to 23, within times 2025-01-01T00" in problem.what
    path.write_bytes(good + b"more")
    assert full.verify().rows_lost == 24
    path.write_bytes(good)
    assert full.verify().problems == ()


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE holdings SET sealed_through = 1", "sealed_through"),
        ("UPDATE holdings SET last_segment = 7", "numbers"),
        ("UPDATE segments SET first = 4, last = 4", "name"),
        ("UPDATE cold_files SET day = '2025-01-09' WHERE first = 2", "name"),
        ("UPDATE producers SET seq = 3", "producer"),
        ("DELETE FROM producers", "producer"),
        ("UPDATE schemas SET text = replace(text, 'cost', 'cast')", "schema"),
        ("DELETE FROM generations WHERE number = 3", "covers"),
        ("UPDATE generations SET number = 4 WHERE number = 3", "covers"),
        ("DELETE FROM segments", "lost"),
        ("UPDATE segments SET info = replace(info, '\"rows\": 40', '\"rows\": 41')", "statistics"),
        ("UPDATE segments SET info = replace(info, 'sha256\": \"', 'sha256\": \"0')", "catalog"),
        ("UPDATE segments SET info = replace(info, '2025-01-04', '2025-01-05')", "statistics"),
        ("UPDATE cold_files SET info = replace(info, 'e000000', 'e000001')", "statistics"),
        ("UPDATE cold_files SET info = 'x'", "catalog"),
        pytest.param("UPDATE cold_files SET day = 'x'", "catalog", marks=sqlite),  # else no date
        ("DELETE FROM cold_files WHERE day = '2025-01-01'", "seal"),
        pytest.param("UPDATE sites SET name = 'ffffffff'", "catalog", marks=sqlite),  # else held
        ("UPDATE garbage SET name = (SELECT name FROM segments) WHERE kind = 'segment'"
         " AND id = (SELECT max(id) FROM garbage WHERE kind = 'segment')", "garbage"),
        ("UPDATE garbage SET name = 'x' WHERE kind = 'journal'"
         " AND id = (SELECT max(id) FROM garbage WHERE kind = 'journal')", "garbage"),
    ],
)  # fmt: skip
def test_a_catalog_that_is_wrong_is_found_out(full, root, statement, kind):
    if kind == "lost":
        full["events"].vacuum(dry_run=False)
    change(root, statement + (" WHERE name = 'events'" if "UPDATE tables" in statement else ""))
    problems = [p for p in full.verify().problems if p.severity == "damage"]
    assert kind in {problem.kind for problem in problems}


@pytest.mark.sqlite
def test_a_catalog_that_sqlite_finds_damaged(full, root):
    change(root, "DELETE FROM tables WHERE name = 'empty'")
    problems = full.verify().problems
    assert ("damage", "catalog") in found(full.verify())
    assert any("names no 'tables'" in problem.what for problem in problems)


def test_rows_that_are_published_twice(full, root, monkeypatch):
    from lakestore import duplicates

    appender = full["events"]._appender
    appender._known = type(appender._known)()
    full["events"].append(events(79, 80))
    full["events"].append(events(100, 103))
    monkeypatch.setattr(duplicates, "drop_duplicates", lambda table, rows, state, **_: rows)
    full.flush()
    problems = [p for p in full.verify().problems if p.kind == "duplicate"]
    assert problems
    assert all(problem.severity == "damage" for problem in problems)
    assert "'e000100'" in "".join(problem.what for problem in problems)
    assert "'e000079'" in "".join(problem.what for problem in problems)
    # The same ids on other days are other events.
    lines = " ".join(problem.what for problem in problems)
    assert "e000103" not in lines


def test_files_out_of_order_or_of_another_day(open_lake, monkeypatch):
    from lakestore import datafile, hot

    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    with monkeypatch.context() as patch:
        patch.setattr(
            hot,
            "sorted_batches",
            lambda rows, schema, spill: rows.take(
                list(reversed(range(rows.num_rows)))
            ).to_batches(),
        )
        table.append(events(0, 30))
        table.flush()
    assert found(lake.verify()) == [("damage", "order")]
    with monkeypatch.context() as patch:
        from lakestore import coldfiles

        real = coldfiles.ColdName
        patch.setattr(coldfiles, "ColdName", lambda day, *more: real(day.replace(day=9), *more))
        patch.setattr(datafile, "_ranges", lambda metadata, schema: {})
        table.seal()
    kinds = {problem.kind for problem in lake.verify().problems}
    assert {"name", "statistics"} <= kinds


def test_journals_are_read_to_their_end(root, open_lake):
    full = open_lake(settings=SETTINGS)
    fill(full)
    (path,) = [p for p in (root / "_site/journal/events").glob("*/*") if p.stem == "000004"]
    good = path.read_bytes()
    flip(path, 0.5)
    problem = only(full.verify())
    assert (problem.kind, problem.severity, problem.file) == ("journal", "damage", path)
    path.write_bytes(good[:-3])
    assert "bytes of it were on the disk" in only(full.verify()).what  # this process knows
    path.write_bytes(good)
    full.close()
    path.write_bytes(good[:-3])  # what a stopped write leaves, once the writer is dead
    with open_lake(mode="r") as reader:
        assert found(reader.verify()) == [("leftover", "tail")]
    path.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    with open_lake(mode="r") as reader:
        assert found(reader.verify()) == [("doubt", "tail")]
        assert not reader.verify().ok
    other = path.with_name("000009.journal")
    other.write_bytes(good)
    path.write_bytes(good)
    with open_lake(mode="r") as reader:
        assert found(reader.verify()) == [("damage", "journal")]
        assert "says that it is journal" in only(reader.verify()).what


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("_site/hot/events/*.duckdb", "twin"),
        ("_site/ids/events/*.ids", "ids"),
        ("lake.duckdb", "views"),
        ("tables/events/schema/0001.parquet", "schema"),
    ],
)
def test_caches_are_made_again(full, root, pattern, kind):
    path = sorted(root.glob(pattern))[-1]
    path.write_bytes(b"rubbish" * 40)
    assert found(full.verify()) == [("cache", kind)]
    before = full.sql("FROM events ORDER BY id").fetchall()
    planned = full.repair(dry_run=True)
    assert [action.file for action in planned.actions] == [path]
    assert path.read_bytes() == b"rubbish" * 40
    done = full.repair(dry_run=False)
    assert done.actions == planned.actions
    assert done.report.problems == ()
    assert full.sql("FROM events ORDER BY id").fetchall() == before
    kept = [p.read_bytes() for p in (root / "_site/quarantine").rglob("*") if p.is_file()]
    assert kept == ([] if kind == "views" else [b"rubbish" * 40])


def test_a_missing_twin_is_made_again_in_mode_r(full, root, open_lake):
    full.close()
    path = sorted(root.glob("_site/hot/events/*.duckdb"))[-1]
    path.unlink()
    with open_lake(mode="r") as reader:
        assert found(reader.verify()) == [("cache", "twin")]
        assert reader.repair(dry_run=False).report.problems == ()
    assert path.exists()
    assert list((root / "_site/staging").iterdir()) == []


@pytest.mark.parametrize(("verb", "step"), [("flush", "add_segment"), ("seal", "seal")])
def test_what_a_crash_leaves_goes_to_quarantine(full, monkeypatch, root, verb, step, open_lake):
    def fail(*_):
        raise OSError("pulled the plug")

    table = full["events"]
    with monkeypatch.context() as patch:
        patch.setattr(Commit, step, fail)
        with pytest.raises(ls.StorageError, match="pulled the plug"):
            getattr(table, verb)()
    assert full.verify().ok
    full.close()
    with open_lake(mode="r") as reader:
        report = reader.verify()
        assert report.ok
        orphaned = [problem for problem in report.problems if problem.kind == "orphan"]
        assert len(orphaned) == (2 if verb == "flush" else 3)
        assert set(found(report)) - {("leftover", "orphan")} <= {("leftover", "views")}
        assert_sound(reader)
        rows = reader.sql("FROM events ORDER BY id").fetchall()
        orphans = {problem.file.name: problem.file.read_bytes() for problem in orphaned}
        assert reader.repair(dry_run=False).report.problems == ()
        assert reader.sql("FROM events ORDER BY id").fetchall() == rows
    kept = [p for p in (root / "_site/quarantine").rglob("*") if p.is_file()]
    assert {p.name: p.read_bytes() for p in kept} == orphans


def test_repair_moves_no_data_while_the_catalog_is_in_doubt(full, root):
    full["events"].vacuum(dry_run=False)
    change(root, "DELETE FROM cold_files")
    assert "lost" in {problem.kind for problem in full.verify().problems}
    assert full.repair(dry_run=False).actions == ()
    assert not (root / "_site/quarantine").exists()


def test_staged_files_of_the_dead_and_lines_for_deleted_files(full, root):
    staged = root / "_site/staging/0123456789abcdef"
    staged.mkdir()
    (staged / "half.parquet").write_bytes(b"half")
    superseded = [p for p in (root / "_site/hot/events").iterdir() if "000001" in p.name]
    for path in superseded:
        path.unlink()
    report = full.verify()
    assert report.ok
    assert set(found(report)) == {("leftover", "staging"), ("leftover", "dangling")}


def test_another_lakes_files(full, root, tmp_path):
    with ls.open(tmp_path / "other", upkeep="manual") as other:
        other.create_table("events", SCHEMA).append(events(80, 120))
        other["events"].flush()
    stranger = one(tmp_path / "other", "_site/hot/events/*.parquet")
    path = sorted((root / "_site/hot/events").glob("*.parquet"))[-1]
    path.write_bytes(stranger.read_bytes())
    assert full.verify().rows_lost == 0
    assert "damaged" in {problem.kind for problem in full.verify().problems}


def test_verify_while_others_write(open_lake, root):
    lake = open_lake(
        upkeep="auto",
        settings={"flush_rows": 40, "flush_age_s": 0.02, "seal_bytes": 30_000, "segments_max": 3,
                  "vacuum_grace_s": 0, "segment_duckdb_rows": 20},
    )  # fmt: skip
    table = lake.create_table("events", SCHEMA)
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            start = 0
            while not stop.is_set():
                table.append(events(start, start + 20), producer="w", seq=start)
                start += 20
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with open_lake(mode="r", upkeep="manual") as reader:
            for lake_ in (lake, reader) * 4:
                report = lake_.verify()
                assert report.ok, str(report)
    finally:
        stop.set()
        writer.join()
    assert failures == []
    assert_sound(lake)


def test_the_command(full, root):
    full.close()
    result = run("verify", root)
    assert (result.exit_code, "ok" in result.stdout) == (0, True)
    path = sorted(root.glob("_site/hot/events/*.duckdb"))[-1]
    path.unlink()
    result = run("verify", root, "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["ok"]) == (1, False)
    assert [(p["kind"], p["file"]) for p in facts["problems"]] == [("twin", str(path))]
    result = run("verify", root, "--repair", "--dry-run")
    assert (result.exit_code, path.exists()) == (1, False)
    assert f"would: {path}: make again from its Parquet file" in result.stdout
    result = run("verify", root, "--repair", "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["ok"], path.exists()) == (0, True, True)
    assert [action["do"] for action in facts["actions"]] == ["twin"]
    one(root, "tables/events/data/*/*.parquet").unlink()
    result = run("verify", root, "--repair")
    assert result.exit_code == 1
    assert "24 rows cannot be read" in result.stdout
    assert run("verify", root / "nothing").exit_code == 1


def test_lakes_own_file(full, root):
    path = root / "lakestore.json"
    good = path.read_bytes()
    for bad in (b"", good.replace(b"-", b"_", 1), good[:-9]):
        path.write_bytes(bad)
        assert found(full.verify()) == [("damage", "lake")]
    os.unlink(path)
    assert found(full.verify()) == [("damage", "lake")]


def test_a_tombstone_of_a_table_that_lives(full, root):
    (root / "tables/events/dropped.json").write_text("{}")
    assert found(full.verify()) == [("damage", "tombstone")]
    (root / "tables/events/dropped.json").unlink()
    full.drop_table("events")
    assert full.verify().ok


def test_views_are_made_again_after_what_they_read(full, open_lake, root):
    """Both are damaged, and no view of the empty table can be made before its zero-row file."""
    full.close()
    (root / "lake.duckdb").write_bytes(b"rubbish")
    (root / "tables/empty/schema/0001.parquet").write_bytes(b"rubbish")
    with open_lake(mode="r") as reader:
        done = reader.repair(dry_run=False)
        assert [action.do for action in done.actions] == ["empty", "views"]
        assert done.report.problems == ()
        assert reader.verify().ok
