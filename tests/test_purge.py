"""Erasure: one person's events go from every tier, and no byte of them is left."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import START
from deltalake import DeltaTable
from support.commands import rebuild, run
from support.traces import traces

import lakestore as ls
from lakestore import erasure, purge, snapshot
from lakestore.failpoint import at
from lakestore.replacement import Replacement

SCHEMA = ls.TableSchema.from_toml(
    """
    format = 2
    event_id = "id"
    event_time = "time"
    bloom = ["who"]
    [columns]
    id = "VARCHAR not null"
    time = "TIMESTAMPTZ not null"
    who = "VARCHAR"
    n = "BIGINT"
    place = "STRUCT(city VARCHAR, zip INTEGER)"
    body = "VARCHAR"
    note = "VARCHAR"
    [payload]
    body = "full"
    note = "full"
    [[rollups]]
    name = "hourly"
    by = ["who"]
    sums = ["n"]
    histograms = ["n"]
    """
)
SETTINGS = {"cold_grace_s": 10**6, "vacuum_grace_s": 10, "segment_duckdb_rows": 5}
WORDS = ["ANNA-KARENINA", "anna-id", "anna's city", "anna's own body", "anna's note"]
ANNA = {"who": "ANNA-KARENINA"}


def rows(start: int, stop: int, *, step: timedelta = timedelta(hours=1)) -> pa.Table:
    """Events, every fifth of one person; some of hers have the payload of others."""
    made = []
    for i in range(start, stop):
        hers = i % 5 == 2
        made.append(
            {
                "id": f"anna-id-{i:05d}" if hers else f"e{i:05d}",
                "time": START + i * step,
                "who": "ANNA-KARENINA" if hers else f"person {i % 3}",
                "n": i,
                "place": {"city": f"anna's city {i}" if hers else "Rome", "zip": i},
                "body": f"shared body {i % 4}" if not hers or i % 2 else f"anna's own body {i}",
                "note": f"anna's note {i}" if hers and i % 3 else None,
            }
        )
    return pa.Table.from_pylist(made, schema=SCHEMA.arrow)


@pytest.fixture(params=["parquet", "delta"])
def cold(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fill(table: ls.Table, seals: int = 3, each: int = 20) -> None:
    for number in range(seals):
        table.append(rows(number * each, (number + 1) * each), producer="p", seq=number)
        table.seal()


def hers(stop: int) -> pa.Table:
    table = rows(0, stop)
    return table.filter(pa.array([who == "ANNA-KARENINA" for who in table["who"].to_pylist()]))


def left(folder: Path, stop: int = 200) -> dict[str, str]:
    """Where there is still something of her."""
    own = hers(stop)
    return traces(folder, WORDS, own["id"].combine_chunks(), own["time"].combine_chunks())


def events_of(lake: ls.Lake) -> list[dict[str, Any]]:
    """Every event with its payload."""
    table = lake["events"]
    ids = table.to_arrow(["id"]).column("id").to_pylist()
    found = table.get_many(sorted(ids))
    assert len(ids) == len(set(ids))
    kept = set(SCHEMA.names)
    return [{k: v for k, v in event.items() if k in kept} for event in found]


def expected(stop: int, start: int = 0) -> list[dict[str, Any]]:
    all_rows = rows(start, stop).to_pylist()
    return sorted(
        (event for event in all_rows if event["who"] != "ANNA-KARENINA"), key=lambda e: e["id"]
    )


def test_nothing_of_her_is_left(open_lake, root, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    fill(table)
    table.append(rows(60, 80))
    table.flush()
    table.append(rows(80, 90))
    lake.sql("SELECT count(*) FROM events").fetchall()
    table.totals("sum(n)", where=ANNA)
    assert left(root)
    told = table.purge(ANNA, dry_run=True)
    assert (told.rows, told.files, told.files_checked) == (18, 5, 5)
    assert (told.complete, told.dry_run) == (False, True)
    done = table.purge(ANNA)
    assert done.rows == 18
    assert not done.complete
    assert done.complete_at is not None
    assert done.complete_at - clock.now() <= timedelta(seconds=10)
    assert events_of(lake) == expected(90)
    assert table.totals("count", where=ANNA)["count"] == 0
    assert table.totals("sum(n)")["sum(n)"] == sum(e["n"] for e in expected(90))
    assert lake.verify().problems == ()
    clock.move(11)
    again = table.purge(ANNA)
    assert (again.rows, again.remaining, again.complete) == (0, (), True)
    assert set(done.removed) <= {*again.deleted, *done.deleted}
    assert left(root) == {}
    assert lake.verify().problems == ()
    assert events_of(lake) == expected(90)
    lake.close()
    assert events_of(open_lake(mode="r")) == expected(90)


def finished(lake: ls.Lake, clock: Any, where: Any = ANNA) -> erasure.Purged:
    """What the call says that comes after the grace."""
    lake["events"].purge(where)
    clock.move(11)
    return lake["events"].purge(where)


def test_what_others_share_stays(open_lake, root, cold, clock):
    """A payload of hers that another event has too is stored once: it is that event's now."""
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    made = [
        {"id": "a", "time": START, "who": "ANNA-KARENINA", "body": "shared", "note": None},
        {"id": "b", "time": START, "who": "x", "body": "shared", "note": None},
        {"id": "c", "time": START, "who": "y", "body": "shared", "note": None},
        {"id": "d", "time": START, "who": "ANNA-KARENINA", "body": "anna's own body", "note": None},
        {"id": "e", "time": START, "who": "x", "body": None, "note": None},
    ]
    table.append(made)
    table.seal()
    table.append([made[1] | {"id": "f"}])  # whose payload file is another, and stays
    table.seal()
    before = {f.name: f.info.payload for f in table._context.state(newest=True).cold}
    done = table.purge(ANNA)
    assert (done.rows, done.files, done.files_checked, done.files_rewritten) == (2, 2, 1, 1)
    after = {f.name: f.info.payload for f in table._context.state(newest=True).cold}
    kept = before.keys() & after.keys()
    assert len(kept) == 1
    assert [before[name] for name in kept] == [after[name] for name in kept]
    view = "SELECT id, body FROM events_payload ORDER BY id"
    assert lake.sql(view).fetchall() == [("b", "shared"), ("c", "shared"), ("f", "shared")]
    found = table.get_many(["a", "b", "c", "d", "e", "f"])
    bodies = [event and event["body"] for event in found]
    assert bodies == [None, "shared", "shared", None, None, "shared"]
    assert lake.verify().problems == ()
    assert finished(lake, clock).complete
    assert left(root) == {}


@pytest.mark.parametrize(
    ("where", "checked"),
    [
        ({"id": "anna-id-00002"}, 1),
        ({"id": ["anna-id-00002", "e00025"]}, 2),
        ({"who": "zoe"}, 0),
        ({"n": (">=", 50)}, 1),
    ],
)
def test_only_files_that_can_hold_some_are_read(open_lake, where, checked):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA)
    for number in range(3):
        table.append(rows(number * 24, number * 24 + 20))
        table.seal()
    count = table.totals("count", where=where)["count"]
    done = table.purge(where)
    assert (done.rows, done.files, done.files_checked) == (count, 3, checked)
    assert table.totals("count")["count"] == 60 - count
    assert lake.verify().problems == ()


def test_what_is_refused(open_lake):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA)
    fill(table, 1)
    for where in (None, {}):
        with pytest.raises(ls.InvalidInputError, match="needs a `where`"):
            table.purge(where)
    with pytest.raises(ls.NotFoundError):
        table.purge({"nobody": 1})
    with pytest.raises(ls.InvalidInputError, match="mode=.r"):
        open_lake(mode="r")["events"].purge(ANNA)
    before = [f.name for f in table._context.state().cold]
    assert table.purge(ANNA, dry_run=True).rows == 4
    assert [f.name for f in table._context.state().cold] == before
    assert table.purge({"who": "nobody"}).complete


def test_files_that_others_replaced_go_too(open_lake, root, cold, clock):
    """They wait for `cold_grace_s` to be gone back to; nobody may."""
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    fill(table)
    old = table._context.state(newest=True).cold
    assert table.compact().files_before == 4
    clock.move(11)
    whole = table._context.state(newest=True).cold
    done = table.purge(ANNA)
    assert done.files == 3
    with pytest.raises(ls.ConflictError, match="were purged|was deleted"):
        table._context.cold.replace(Replacement("undo", (), whole[:1]))
    assert len([name for name in done.deleted if name in {f.name for f in old}]) == 4
    again = finished(lake, clock)
    assert (again.complete, again.remaining) == (True, ())
    assert left(root) == {}
    assert events_of(lake) == expected(60)
    assert lake.verify().problems == ()


class Crash(BaseException):
    pass


def crash() -> None:
    raise Crash


def interrupted(point: str, action: Any) -> None:
    with at(point, crash), pytest.raises(Crash):
        action()


def test_what_crashes_left_goes_too(open_lake, root, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    fill(table, 2)
    table.append(rows(40, 60), producer="p", seq=2)
    interrupted("flush.5", table.flush)
    table.flush()
    interrupted("seal.5", table.seal)
    table.seal()
    interrupted("compact.5", table.compact)
    interrupted("purge.7", lambda: table.purge({"id": "e00001"}))
    assert left(root)
    assert table.purge(ANNA).rows == 12
    again = finished(lake, clock)
    assert (again.complete, again.remaining) == (True, ())
    assert left(root) == {}
    assert events_of(lake) == expected(60)
    assert lake.verify().problems == ()


@pytest.mark.faults
@pytest.mark.parametrize("point", [*(f"purge.{n}" for n in range(1, 10)), "swap.1", "record.1"])
def test_a_purge_that_was_cut_short_is_finished(open_lake, root, clock, point):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA)
    fill(table, 2)
    interrupted(point, lambda: table.purge(ANNA))
    lake.close()
    lake = open_lake(settings=SETTINGS)
    again = finished(lake, clock)
    assert (again.complete, again.remaining) == (True, ())
    assert events_of(lake) == expected(40)
    assert left(root) == {}
    assert lake.verify().ok
    lake.close()
    (root / "_site/catalog.sqlite").unlink()
    rebuild(root)
    lake = open_lake(settings=SETTINGS)
    assert events_of(lake) == expected(40)
    assert lake.verify().ok


@pytest.mark.parametrize("vacuumed", [False, True])
def test_a_rebuild_brings_nothing_back(open_lake, root, cold, clock, vacuumed):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    fill(table, 2)
    table.append(rows(40, 50), producer="p", seq=2)
    assert table.purge(ANNA).rows == 10
    if vacuumed:
        assert finished(lake, clock).complete
    lake.close()
    (root / "_site/catalog.sqlite").unlink()
    rebuild(root)
    clock.time = datetime.now(UTC)  # as the rebuild's
    lake = open_lake(settings=SETTINGS)
    assert events_of(lake) == expected(50)
    assert lake.verify().problems == ()
    assert finished(lake, clock).complete
    assert left(root) == {}
    assert lake["events"].append(rows(40, 50), producer="p", seq=2).rows == 0


def test_nobody_goes_back_to_them(open_lake, cold, clock):
    """Not even while the files are there still."""
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    fill(table)
    version = table.history()[0].version
    assert table.at(version).totals("count")["count"] == 60
    clock.move(1)
    table.purge(ANNA)
    with pytest.raises(ls.NotFoundError, match="cannot be asked any more"):
        table.at(version)
    readable = {change.version: change.readable for change in table.history()}
    assert not readable[version]
    assert table.at(max(readable)).totals("count")["count"] == 48


def test_her_events_may_come_again(open_lake):
    """What is remembered of producers is numbers; of ids, nothing."""
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA)
    fill(table, 1)
    table.purge(ANNA)
    assert table.append(rows(0, 20), producer="p", seq=0).rows == 0
    assert table.append(rows(0, 20), producer="q", seq=0).rows > 0
    table.flush()
    assert table.totals("count", where=ANNA)["count"] == 4


def test_a_compaction_comes_first(open_lake, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    fill(table, 2)
    other = open_lake(settings=SETTINGS)["events"]
    with at("purge.7", other.compact):
        done = table.purge(ANNA)
    assert done.rows == 8
    assert events_of(lake) == expected(40)
    assert finished(lake, clock).complete
    assert lake.verify().problems == ()


def test_rows_that_another_writer_buffers(open_lake, root, clock):
    lake = open_lake(settings=SETTINGS | {"flush_age_s": 0.1})
    table = lake.create_table("events", SCHEMA)
    other = open_lake(settings=SETTINGS)
    other["events"].append(rows(0, 20))
    done = table.purge(ANNA)
    assert (done.rows, done.complete, done.complete_at) == (0, False, None)
    assert done.remaining[-1] == "4 rows in the journals of 1 other writers: run it again"
    other["events"].flush()
    done = table.purge(ANNA)
    assert done.rows == 4
    assert any("is its writer's to delete" in what for what in done.remaining)
    other.maintain()
    clock.move(11)
    assert table.purge(ANNA).complete
    assert left(root) == {}


def test_nothing_is_left_in_a_store(store, prefix, tmp_path, cold, clock):
    local = tmp_path / "site"
    with ls.open(
        prefix,
        local=local,
        storage_options=store.options,
        upkeep="manual",
        clock=clock,
        settings=SETTINGS,
    ) as lake:
        table = lake.create_table("events", SCHEMA, cold=cold)
        fill(table, 2)
        table.append(rows(40, 50))
        lake.sql("SELECT * FROM events").fetchall()
        lake.sql("SELECT * FROM events_payload").fetchall()
        assert table.purge(ANNA).rows == 10
        again = finished(lake, clock)
        assert (again.complete, again.remaining) == (True, ())
        assert events_of(lake) == expected(50)
        assert lake.verify().problems == ()
        copy = tmp_path / "copy"
        for key in lake._site.storage.list(""):
            (copy / key).parent.mkdir(parents=True, exist_ok=True)
            (copy / key).write_bytes(lake._site.storage.read(key))
        assert len(list(copy.rglob("*.parquet"))) > 5
        assert left(copy) == {}
    assert left(local) == {}


def test_what_another_engine_wrote(open_lake, root, clock):
    """Its compaction made a file without a word on payloads, and left ours in the log's past."""
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold="delta")
    fill(table, 2)
    DeltaTable(str(root / "tables/events/data")).optimize.compact()
    done = table.purge(ANNA)
    assert done.rows == 8
    assert events_of(lake) == expected(40)
    again = finished(lake, clock)
    assert (again.complete, again.remaining) == (True, ())
    assert left(root) == {}
    assert lake.verify().ok


def test_readers_of_a_log_whose_past_is_gone(open_lake, root, clock):
    settings = SETTINGS | {"vacuum_grace_s": 0}
    lake = open_lake(settings=settings)
    table = lake.create_table("events", SCHEMA, cold="delta")
    fill(table, 2)
    sleeper = open_lake(mode="r")
    count = "SELECT count(*) FROM events"
    assert sleeper.sql(count).fetchall() == [(40,)]
    assert table.purge(ANNA).complete
    log = root / "tables/events/data/_delta_log"
    versions = sorted(int(path.stem) for path in log.glob("*.json"))
    assert versions[0] == 0
    assert versions[1] > 3
    table.append(rows(40, 42))
    table.seal()
    assert sleeper.sql(count).fetchall() == [(34,)]
    assert DeltaTable(str(log.parent)).to_pyarrow_table().num_rows == 34
    (log / "_last_checkpoint").unlink()
    assert open_lake(mode="r").sql(count).fetchall() == [(34,)]
    assert lake.verify().problems == ()


def test_the_command(open_lake, root, clock):
    lake = open_lake()
    fill(lake.create_table("events", SCHEMA), 1)
    lake.close()
    asked = ["purge", str(root), "events", "--where", "who=ANNA-KARENINA"]
    told = run(*asked, "--dry-run")
    assert told.exit_code == 0
    assert told.stdout.startswith("would erase 4 events: 1 of 1 cold files read, 1 written anew")
    assert run(*asked, stdin="n\n").exit_code == 1
    done = run(*asked, "--yes", "--json")
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["rows"], facts["complete"]) == (1, 4, False)
    assert facts["complete_at"] is not None
    assert run("purge", str(root), "events").exit_code == 2
    again = run("purge", str(root), "events", "--where", "who=nobody at all", "--yes")
    assert (again.exit_code, again.stdout.splitlines()[0][:15]) == (1, "erased 0 events")
    clock.time = datetime.now(UTC)
    with open_lake(settings={"vacuum_grace_s": 0}) as lake:
        assert lake["events"].purge(ANNA).complete
    assert left(root) == {}


def test_choosing_is_pure():
    day = START.date()

    def file(name: str, days: int, payload: Sequence[str] = ()) -> snapshot.ColdFile:
        info = snapshot.FileInfo(1, 1, "", START, START, {}, tuple(payload))
        return snapshot.ColdFile(name, day + timedelta(days=days), 1, 1, 1, info)

    files = [file("a", 1, ["p"]), file("b", 0), file("c", 1, ["p", "q"]), file("d", 0, ["r"])]
    refers = {one.name: one.info.payload for one in files}
    assert purge.choose(files, {"a": purge.Hit(0)}, refers) is None
    hits = {"a": purge.Hit(2, frozenset("p")), "b": purge.Hit(1)}
    job = purge.choose(files, hits, refers)
    assert job is not None
    assert ([f.name for f in job.files], job.payload) == (["b"], ())
    job = purge.choose(files, {"a": hits["a"]}, refers)
    assert job is not None
    assert ([f.name for f in job.files], job.payload) == (["a", "c"], ("p",))
