"""Several sites, one table: hosts with their own disks and catalogs fill it at once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from conftest import SCHEMA, events
from deltalake import DeltaTable
from support.faultproxy import proxied
from support.sites import before_the_next_commit

import lakestore as ls
from lakestore.cold.delta import DeltaCold

Open = Callable[..., ls.Lake]
QUERY = "SELECT count(*), count(DISTINCT id) FROM events"
WRITER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from conftest import events
import lakestore as ls

root, local, options, first, seals = sys.argv[2:7]
first, seals, options = int(first), int(seals), json.loads(options)
with ls.open(root, local=local, storage_options=options, upkeep="manual") as lake:
    table = lake["events"]
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(seals):
        start = first + n * 4
        table.append(events(start, start + 3))
        table.append(events(900_000 + n, 900_001 + n))  # which every writer has
        table.seal()
        if n % 10 == 0:
            seen = lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall()[0]
            assert seen[0] == seen[1], seen
print("done", flush=True)
"""


def counted(lake: ls.Lake) -> tuple[int, int]:
    return lake.sql(QUERY).fetchall()[0]


@pytest.mark.faults
def test_four_writers_and_two_hundred_commits(store, prefix, tmp_path, figure):
    """Every row once, no commit lost; a row that each of the four has is there once too."""
    writers, seals = 4, 50
    with proxied(store) as (through, weather):
        options = through.options | {"timeout": "20"}
        with ls.open(
            prefix, local=tmp_path / "maker", storage_options=options, upkeep="manual"
        ) as lake:
            lake.create_table("events", SCHEMA, cold="delta")
            running = [
                _writer(prefix, tmp_path / f"site {n}", options, n * 10_000, seals)
                for n in range(writers)
            ]
            for process in running:
                assert process.stdout.readline() == "ready\n"
            for process in running:
                process.stdin.write("\n")
                process.stdin.flush()
            for process in running:
                out, error = process.communicate(timeout=280)
                assert (process.returncode, out) == (0, "done\n"), error
            rows = writers * seals * 3 + seals
            assert counted(lake) == (rows, rows)
            assert lake.verify().ok
        url = f"{prefix}/tables/events/data"
        assert (
            DeltaTable(url, storage_options=store.for_engines).version()
            == writers * seals + writers
        )  # each has joined
        frame = pl.scan_delta(url, storage_options=store.for_engines)
        assert frame.select(pl.len(), pl.col("id").n_unique()).collect().row(0) == (rows, rows)
        tried = sum(s.kind == "PUT log version" for s in weather.log)
    figure("sites", "commits", writers * seals)
    figure("sites", "conflicts", tried - writers * seals - 1)
    figure("sites", "rows", rows)


def _writer(root: str, local: Path, options: dict[str, str], first: int, seals: int):
    arguments = [str(Path(__file__).parent), root, str(local), json.dumps(options)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments, str(first), str(seals)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_each_site_sees_what_is_sealed_and_what_is_its_own(site: Open):
    one, two = site("one"), site("two")
    first = one.create_table("events", SCHEMA, cold="delta")
    second = two["events"]
    first.append(events(0, 30))
    first.flush()
    second.append(events(30, 50))
    assert counted(one) == (30, 30)
    assert counted(two) == (20, 20)
    first.seal()
    assert counted(two) == (50, 50)
    second.seal()
    assert counted(one) == (50, 50)
    assert one.verify().problems == two.verify().problems == ()
    assert two["events"].schema == one["events"].schema


@pytest.mark.parametrize("dedup", ["day", "table", "none"])
def test_a_row_that_two_sites_have_is_sealed_once(site: Open, dedup):
    schema = ls.TableSchema.from_document(SCHEMA.document.model_dump() | {"dedup": dedup})
    one, two = site("one"), site("two")
    first = one.create_table("events", schema, cold="delta")
    second = two["events"]
    first.append(events(0, 30))
    first.flush()
    second.append(events(20, 50))
    second.flush()  # before the other seals: only its own seal can tell
    assert first.seal() == 30
    assert second.seal() == (30 if dedup == "none" else 20)
    rows = 60 if dedup == "none" else 50
    assert counted(one) == counted(two) == (rows, 50)
    second.append(events(10, 20))
    assert second.seal() == (10 if dedup == "none" else 0)  # all of it is known
    assert one.verify().ok
    assert two.verify().ok


def test_a_row_that_another_site_seals_in_the_last_moment(site: Open, monkeypatch):
    """Between a seal's look and its commit: the version is taken, and what is new is looked at."""
    one, two = site("one"), site("two")
    first = one.create_table("events", SCHEMA, cold="delta")
    second = two["events"]
    first.append(events(0, 30))
    first.flush()
    second.append(events(20, 50))
    second.flush()
    before_the_next_commit(monkeypatch, first.seal)
    assert second.seal() == 20
    assert counted(one) == counted(two) == (50, 50)
    assert one.verify().ok


def test_two_sites_make_one_table(site: Open):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta")
    with pytest.raises(ls.InvalidInputError, match="exists"):
        two.create_table("events", SCHEMA, cold="delta")
    assert two.create_table("events", SCHEMA, cold="delta", exist_ok=True).name == "events"
    assert "events" in site("three")


def test_a_table_that_another_site_drops_is_let_go(site: Open, clock):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta").append(events(0, 10))
    one.seal()
    table = two["events"]
    table.append(events(10, 20))
    one.drop_table("events")
    clock.move(60)
    two.maintain()
    assert two.tables() == []
    with pytest.raises(ls.ClosedError, match="dropped"):
        table.append(events(20, 30))
    again = one.create_table("events", SCHEMA, cold="delta")
    again.append(events(0, 3))
    again.seal()
    assert two["events"].to_arrow().num_rows == 3
    assert site("three")["events"].to_arrow().num_rows == 3


def test_two_processes_of_a_site_hear_of_a_drop_at_once(site: Open, monkeypatch):
    """Both find the table listed still, and the tombstone there."""
    from lakestore.adopt import drop_buried

    one, two, again = site("one"), site("two"), site("two")
    one.create_table("events", SCHEMA, cold="delta")
    assert two["events"].name == again["events"].name == "events"
    entries = again._site.catalog.tables()
    one.drop_table("events")
    drop_buried(two._site)
    monkeypatch.setattr(again._site.catalog, "tables", lambda: entries)
    drop_buried(again._site)
    assert two.tables() == []
    assert [item.kind for item in two._site.catalog.garbage()] == ["table"]


def test_a_name_that_a_site_has_itself_is_left_alone(site: Open, root):
    """Another table of that name is not listed beside it, nor tried with a commit each time."""
    one = site("one")
    one.create_table("events", SCHEMA, cold="delta")
    shutil.copytree(root / "tables" / "events", root / "tables" / "Events-2")
    version = one._site.catalog.version()
    one._tables.adopt()
    one._tables.adopt()
    assert one._site.catalog.version() == version
    assert one.tables() == ["events"]


def test_a_checkpoint_is_made_though_another_has_its_version(site: Open, root, monkeypatch):
    """A seal commits version 4, and the other commits 5 before it looks; 1 is its joining."""
    monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 4)
    one, two = site("one"), site("two")
    first = one.create_table("events", SCHEMA, cold="delta")
    second = two["events"]
    for start in range(0, 20, 10):
        first.append(events(start, start + 10))
        first.seal()
    first.append(events(30, 40))
    second.append(events(40, 50))
    settle, done = DeltaCold.settle, []

    def late(cold: DeltaCold) -> None:
        if not done:
            done.append(True)
            monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 100)
            second.seal()
            monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 4)
        settle(cold)

    monkeypatch.setattr(DeltaCold, "settle", late)
    first.seal()
    hint = root / "tables" / "events" / "data" / "_delta_log" / "_last_checkpoint"
    assert json.loads(hint.read_text())["version"] == 5


@pytest.mark.sqlite
def test_a_parquet_table_is_its_catalogs_alone(site: Open):
    """Its files are listed by one catalog: another site is not shown an empty table."""
    one = site("one")
    one.create_table("events", SCHEMA)
    with pytest.raises(ls.CorruptionError, match=r"lost.*lakestore rebuild"):
        site("two")


def test_a_site_on_another_file_system(tmp_path, root):
    """Files are copied where they cannot be linked."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    import tempfile

    with (
        tempfile.TemporaryDirectory(dir=shm) as local,
        ls.open(root, local=local, upkeep="manual") as lake,
    ):
        for cold in ("parquet", "delta"):
            table = lake.create_table(cold, SCHEMA, cold=cold)
            table.append(events(0, 30))
            assert table.seal() == 30
        assert lake.verify().problems == ()
        assert not list(root.rglob(".*"))


def test_shells_see_what_other_sites_seal(site: Open, root, clock):
    import duckdb

    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta").append(events(0, 10))
    two["events"].append(events(10, 20))
    two.seal()
    one.seal()
    two.maintain()
    clock.move(60)
    two.maintain()
    with duckdb.connect(str(root / "lake.duckdb"), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM events").fetchall() == [(20,)]
