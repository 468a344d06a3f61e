"""Maintenance: what is due, what it costs, what is worth most, and where a budget ends it."""

import json
import time
from datetime import timedelta

import pytest
from conftest import SCHEMA, START, events
from support.commands import fails, ok

import lakestore as ls
from lakestore import maintenance
from lakestore.failpoint import at
from lakestore.maintenance import Budget

TINY = timedelta(minutes=1)


def fill(table: ls.Table, days: int, seals: int = 4) -> None:
    """Seals of each day in turn, ten rows each."""
    for day in range(days):
        for seal in range(seals):
            first = day * 1440 + seal * 10
            table.append(events(first, first + 10, step=TINY))
            table.seal()


def cold(table: ls.Table) -> int:
    return len(table._context.state(newest=True).cold)


def rows(lake: ls.Lake) -> list[tuple[int, int]]:
    return lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall()


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_a_plan_says_what_is_done_then(open_lake, clock, form):
    lake = open_lake(settings={"flush_age_s": 5, "seal_age_s": 60, "cold_grace_s": 0})
    table = lake.create_table("events", SCHEMA, cold=form)
    fill(table, 3)
    assert [t.verb for t in lake.plan_maintenance().tasks] == ["vacuum", *["compact"] * 3]
    table.append(events(9000, 9010))
    clock.move(6)
    plan = lake.plan_maintenance()
    assert [(t.verb, t.table) for t in plan.tasks[:2]] == [
        ("flush", "events"),
        ("vacuum", "events"),
    ]
    compactions = [t for t in plan.tasks if t.verb == "compact"]
    size = sum(file.info.bytes for file in table._context.state().cold)
    assert sum(t.bytes for t in compactions) == size
    assert plan.bytes == size + plan.tasks[0].bytes
    assert [t.files for t in compactions] == [4, 4, 4]
    assert json.loads(json.dumps(plan.to_dict()))["tasks"][2]["what"].startswith("4 files of 2025-")
    report = lake.maintain()
    assert (report.flushed, report.compacted, report.left, report.problems) == (1, 3, 0, [])
    assert cold(table) == 3
    clock.move(61)
    assert "seal" in [t.verb for t in lake.plan_maintenance().tasks]
    lake.maintain()
    assert rows(lake) == [(130, 130)]
    clock.move(10**6)
    assert len(table.vacuum().cold) == 12
    lake.maintain()
    assert lake.plan_maintenance().tasks == ()
    assert str(lake.plan_maintenance()) == "0 task(s), 0 bytes"
    assert lake.verify().problems == ()


def test_bytes_are_a_budget(open_lake):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    fill(table, 3)
    tasks = [t for t in lake.plan_maintenance().tasks if t.verb == "compact"]
    assert lake.maintain(max_bytes=0).left == 3
    assert cold(table) == 12
    first_two = tasks[0].bytes + tasks[1].bytes
    report = lake.maintain(max_bytes=first_two)
    assert (report.compacted, report.left, cold(table)) == (2, 1, 6)
    assert lake.maintain().compacted == 1


def test_time_is_a_budget(open_lake, clock):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    fill(table, 3)
    with at("compact.1", lambda: clock.move(60)):
        report = lake.maintain(max_seconds=30)
    assert (report.compacted, report.left, cold(table)) == (1, 2, 9)
    assert table.compact(max_seconds=0).jobs == 0
    assert table.compact(max_bytes=10**9).jobs == 2


def test_a_budget():
    class Clock:
        seconds = 5.0

        def now(self):
            raise AssertionError

        def monotonic(self) -> float:
            return self.seconds

    clock = Clock()
    budget = Budget(clock, 10, 100)
    assert budget.allows(60)
    assert not budget.allows(41)
    assert budget.allows(40)
    clock.seconds = 14.9
    assert budget.allows(0)
    clock.seconds = 15
    assert not budget.allows(0)
    assert budget.refused == 2
    assert Budget(clock).allows(10**15)


def test_what_saves_most_files_for_a_byte_comes_first(open_lake):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    fill(table, 1, seals=4)
    wide = lake.create_table("wide", SCHEMA)
    for number in range(8):
        wide.append(events(number, number + 1, step=TINY))
        wide.seal()
    tasks = [t for t in lake.plan_maintenance().tasks if t.verb == "compact"]
    assert [(t.table, t.files) for t in tasks] == [("wide", 8), ("events", 4)]
    assert lake.maintain(max_bytes=tasks[0].bytes).compacted == 1
    assert (cold(wide), cold(table)) == (1, 4)


def test_a_failure_of_one_table_does_not_stop_the_others(open_lake):
    lake = open_lake()
    good, bad = (lake.create_table(name, SCHEMA) for name in ("good", "bad"))
    for table in (good, bad):
        fill(table, 1)
    path = bad._context.cold_path(bad._context.state().cold[0])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    report = lake.maintain()
    assert (report.compacted, report.damaged) == (1, True)
    assert [p.split(":")[0] for p in report.problems] == ["bad"]
    assert (cold(good), cold(bad)) == (1, 4)


def test_the_background_does_the_same(root, open_lake):
    """By the real clock: all of these days are over."""
    settings = {"seal_age_s": 0.01, "flush_age_s": 0.02, "cold_grace_s": 0, "vacuum_grace_s": 0}
    with ls.open(root, upkeep="auto", settings=settings) as lake:
        table = lake.create_table("events", SCHEMA)
        for number in range(9):
            table.append(events(number * 5, number * 5 + 5, step=TINY))
            table.seal()
        deadline = time.monotonic() + 60
        while cold(table) > 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cold(table) <= 3
        assert rows(lake) == [(45, 45)]
        assert lake.status().problem is None
    with ls.open(root, mode="r") as lake:
        assert rows(lake) == [(45, 45)]
        assert lake.verify().ok


def test_a_day_that_goes_on_is_left_to_the_next(open_lake, clock):
    clock.time = START + timedelta(hours=2)
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    fill(table, 1)
    assert [t.verb for t in lake.plan_maintenance().tasks if t.verb == "compact"] == []
    clock.move(86_400)
    assert [t.verb for t in lake.plan_maintenance().tasks if t.verb == "compact"] == ["compact"]


def test_the_commands(root, open_lake):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    fill(table, 2)
    lake.close()
    planned = ok("maintain", root, "--dry-run")
    assert "compact" in planned
    assert "4 files of 2025-01-01" in planned
    assert len(json.loads(ok("maintain", root, "--dry-run", "--json"))["tasks"]) >= 2
    told = "events: would compact 8 files of 2 day(s) to about 2, "
    assert ok("compact", root, "--dry-run").startswith(told)
    done = json.loads(ok("maintain", root, "--max-bytes", "0", "--json"))
    assert (done["compacted"], done["left"]) == (0, 2)
    assert "2 task(s) are left for the next time" in ok("maintain", root, "--max-bytes", "0")
    assert ok("compact", root, "events").startswith("events: compacted 8 files of 2 day(s) to 2, ")
    assert ok("compact", root) == "events: nothing to compact\n"
    assert json.loads(ok("compact", root, "--json"))["events"]["jobs"] == 0
    assert "compacted 0 days" in ok("maintain", root)
    assert "nothing" in fails("compact", root, "nothing")


def test_who_maintains_waits_for_no_compaction(open_lake):
    """One by hand may take hours; seals must not wait for it."""
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    fill(table, 1)
    table.append(events(5000, 5010, step=TINY))
    table.flush()
    with table._context.compacting:
        report = lake.maintain()
    assert (report.compacted, report.problems, cold(table)) == (0, [], 4)
    assert lake.maintain().compacted == 1


def test_a_tidy_table_is_not_planned_again(open_lake, clock, monkeypatch):
    """Its files are thousands, and a thread looks each second."""
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    fill(table, 1, seals=2)
    asked, jobs = [], maintenance.jobs

    def counted(*arguments, **options):
        asked.append(1)
        return jobs(*arguments, **options)

    monkeypatch.setattr(maintenance, "jobs", counted)
    for _ in range(3):
        lake.maintain()
    assert len(asked) == 1
    clock.move(86_400)
    lake.maintain()
    assert len(asked) == 2
    for number in range(20, 40, 10):
        table.append(events(number, number + 10, step=TINY))
        table.seal()
    assert lake.maintain().compacted == 1
    assert cold(table) == 1


def test_planning_opens_no_file(open_lake, monkeypatch):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    fill(table, 2)
    monkeypatch.setattr("lakestore.datafile.read_footer", None)
    assert len(maintenance.jobs(table._context, table._context.state())) == 2
