"""The watermark: who reads the cold tier alone knows up to when it has everything."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import SCHEMA, FixedClock, die, events
from deltalake import DeltaTable
from support.commands import fails, ok, run
from support.sites import before_the_next_commit

import lakestore as ls
from lakestore import seal as sealing
from lakestore.clock import micros
from lakestore.marks import RETIRED, least, next_mark
from lakestore.watermark import is_behind

Open = Callable[..., ls.Lake]
SHARED = "LAKESTORE_CATALOG" in os.environ
HOT = 10 if SHARED else None
"""Rows that are flushed by a site that is gone; only a catalog that sites share tells of them."""


@pytest.mark.parametrize("cold", ["parquet", "delta"])
def test_one_site(lake, clock, cold):
    table = lake.create_table("events", SCHEMA, cold=cold)
    made = clock.now()
    assert lake.watermark() == {"events": made}
    clock.move(60)
    table.append(events(0, 10))
    accepted = clock.now()
    clock.move(60)
    assert lake.watermark() == {"events": made}  # what was said last
    table.flush()
    assert lake.watermark() == {"events": made}
    clock.move(60)
    table.seal()
    sealed = clock.now()
    assert lake.watermark() == {"events": sealed}
    clock.move(60)
    table.append(events(10, 20))
    assert accepted < sealed < clock.now()
    assert lake.watermark() == {"events": sealed}
    table.seal()
    clock.move(59)
    table.seal()  # nothing to seal, and what is known is fresh enough to be left
    assert lake.watermark() == {"events": sealed + timedelta(seconds=60)}
    clock.move(600)
    lake.seal()
    assert lake.watermark() == {"events": clock.now()}
    assert list(table._context.cold.marks().values()) == [micros(clock.now())]


def test_two_sites_and_who_reads_the_log(site, clock, root):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta")
    clock.move(10)
    two["events"].append(events(10, 20))  # it joined before it accepted a row
    joined = clock.now()
    clock.move(10)
    one["events"].append(events(0, 10))
    one.seal()
    assert one.watermark() == two.watermark() == {"events": joined}
    clock.move(10)
    two.seal()
    first = clock.now() - timedelta(seconds=10)
    assert one.watermark() == two.watermark() == {"events": first}
    log = DeltaTable(str(root / "tables/events/data"))
    marks = [
        log.transaction_version(
            f"lakestore-watermark/{one.status().lake}/{lake._site.catalog.site}"
        )
        for lake in (one, two)
    ]
    assert marks == [micros(first), micros(clock.now())]


def test_an_idle_site_holds_nobody_back_for_long(site, clock):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta")
    assert two["events"].name == "events"
    clock.move(3_600)
    one["events"].append(events(0, 10))
    one.seal()
    said = clock.now()
    two.maintain()
    assert min(two["events"]._context.cold.marks().values()) == micros(said)
    version = two["events"]._context.state(newest=True).cold_version
    for _ in range(3):  # and then both are silent
        clock.move(3_600)
        one.maintain()
        two.maintain()
    assert two["events"]._context.state(newest=True).cold_version == version


def test_a_site_that_cannot_join_yet_is_waited_for(site, clock, root, caplog):
    """Another engine has changed the schema: the lake opens, and rows wait."""
    one = site("one")
    one.create_table("events", SCHEMA, cold="delta")
    log = root / "tables/events/data/_delta_log"
    metadata = (log / f"{0:020d}.json").read_text().splitlines()[2]
    told = metadata.replace(
        r"\"name\": \"n\", \"type\": \"long\"", r"\"name\": \"n\", \"type\": \"string\""
    )
    assert told != metadata
    (log / f"{1:020d}.json").write_text(told + "\n")
    two = site("two")
    assert two["events"].append(events(0, 10)).rows == 10
    assert "nothing can be sealed" in caplog.text
    two.flush()
    (log / f"{2:020d}.json").write_text(metadata + "\n")
    clock.move(20)
    two.maintain()
    assert one.watermark() == {"events": None}
    two.seal()
    assert one.watermark() == {"events": clock.now() - timedelta(seconds=20)}


def test_what_holds_a_site_back():
    assert is_behind({"me": 5_000_000}, "me", 1.0, None) is None
    assert is_behind({"me": 5_000_000, "a": 5_900_000}, "me", 1.0, None) is None
    assert is_behind({"me": 5_000_000, "a": 7_000_000, "b": 1}, "me", 1.0, None) == 7_000_000
    assert is_behind({"me": 5_000_000, "a": 7_000_000}, "me", 1.0, 9_000_000) == 9_000_000


def test_a_seal_promises_nothing_of_what_another_process_holds(lake, root, clock):
    """Rows of another process are in its journal: the watermark stays before it was begun."""
    table = lake.create_table("events", SCHEMA, cold="delta")
    made = clock.now()
    clock.move(100)
    other = ls.open(root, upkeep="manual", clock=clock)
    other["events"].append(events(0, 10))
    begun = clock.now()
    clock.move(100)
    table.append(events(10, 20))
    table.seal()
    assert made < begun < clock.now()
    assert lake.watermark() == {"events": begun}
    other.flush()
    clock.move(100)
    table.seal()
    assert lake.watermark() == {"events": clock.now()}
    other.close()


def test_a_seal_in_two_parts_promises_with_the_last(lake, clock, monkeypatch):
    table = lake.create_table("events", SCHEMA, cold="delta")
    for start in (0, 10):
        clock.move(10)
        table.append(events(start, start + 10))
        table.flush()
    marks = []
    publish = type(table._context.cold).publish

    def noting(cold, sealed, files, through, complete_before, examine):
        marks.append((through, complete_before))
        publish(cold, sealed, files, through, complete_before, examine)

    monkeypatch.setattr(type(table._context.cold), "publish", noting)
    monkeypatch.setattr(sealing, "choose", lambda hot: hot[:1])
    table.seal()
    assert marks == [(1, None), (2, micros(clock.now()))]


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from conftest import events
import lakestore as ls

lake = ls.open(sys.argv[2], local=sys.argv[3], upkeep="manual")
table, n = lake["events"], int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for k in range(20):
    table.append([{"id": f"{n}-{k}", "time": "2025-01-01"}])
    print(f"{n}-{k}", time.time(), flush=True)
    if k % 3 == n:
        table.seal()
table.seal()
lake.close()
"""


def test_no_row_is_accepted_before_the_watermark_and_cold_after(root, tmp_path):
    """Two sites on real clocks: at each watermark, no older row becomes cold any more."""
    eager = {"seal_age_s": 0.01}
    with ls.open(root, local=tmp_path / "reader", upkeep="manual", settings=eager) as lake:
        lake.create_table("events", SCHEMA, cold="delta")
        here = str(Path(__file__).parent)
        running = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, here, str(root), str(tmp_path / f"{n}"), str(n)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(2)
        ]
        for process in running:
            assert process.stdout.readline() == "ready\n"
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        seen = []
        while any(process.poll() is None for process in running):
            lake.seal()
            mark = lake.watermark()["events"].timestamp()
            data = root / "tables/events/data"
            files = DeltaTable(str(data)).file_uris()
            cold = {i for f in files for i in pq.read_table(f, columns=["id"])["id"].to_pylist()}
            seen.append((mark, cold))
        assert [process.returncode for process in running] == [0, 0]
        lines = [line for process in running for line in process.communicate()[0].splitlines()]
        accepted = {id: float(time) for id, time in map(str.split, lines)}
        assert len(accepted) == 40
        for mark, cold in seen:
            assert {id for id, time in accepted.items() if time < mark} <= cold
        assert lake.sql("SELECT count(*) FROM events").fetchall() == [(40,)]
        assert len({mark for mark, _ in seen}) > 1


def gone(site: Open, clock: FixedClock, cold: str = "delta") -> tuple[ls.Lake, str]:
    """A lake of two sites, one of which is gone with ten rows sealed, ten flushed, ten buffered."""
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold=cold)
    table = two["events"]
    table.append(events(0, 10))
    table.seal()
    clock.move(10)
    table.append(events(10, 20))
    table.flush()
    table.append(events(20, 30))
    name = two._site.catalog.site
    die(two)
    clock.move(3_600)
    one["events"].append(events(100, 110))
    one.seal()
    return one, name


def test_a_site_that_is_gone_is_retired_and_comes_back(site, clock, root):
    made = clock.now()
    one, name = gone(site, clock)
    assert one.watermark() == {"events": made}
    mine, other = one.sites()
    assert (mine.is_this, other.is_this, other.name) == (True, False, name)
    assert other.seen == (made + timedelta(seconds=30) if SHARED else made)  # a lease
    (part,) = other.tables
    assert (part.sealed_through, part.hot_rows, part.complete_before) == (1, HOT, made)
    assert (mine.tables[0].hot_rows, mine.tables[0].complete_before) == (0, clock.now())

    one.retire(name)
    retired = clock.now()
    assert one.watermark() == {"events": retired}
    assert [(s.retired, s.tables[0].complete_before) for s in one.sites()] == [
        (False, retired),
        (True, None),
    ]
    one.retire(name)  # again: nothing happens
    log = DeltaTable(str(root / "tables/events/data"))
    mark = f"lakestore-watermark/{one.status().lake}/{name}"
    assert log.transaction_version(mark) == RETIRED
    clock.move(60)
    one["events"].append(events(110, 120))
    one.seal()
    gone_on = clock.now()
    assert one.watermark() == {"events": gone_on}

    clock.move(3_600)
    two = site("two")  # it joins anew, where the watermark is
    assert one.watermark() == {"events": gone_on}
    log.update_incremental()
    assert log.transaction_version(mark) == micros(gone_on)
    one["events"].append(events(120, 130))
    one.seal()
    assert one.watermark() == {"events": gone_on}  # it waits for what the other one has
    two.seal()
    assert one.watermark() == {"events": clock.now()}
    assert one.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [(60, 60)]
    assert not any(s.retired for s in one.sites())


def test_a_site_that_was_retired_while_it_lives_joins_with_its_next_seal(site, clock):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta")
    two["events"].append(events(0, 10))
    begun = clock.now()
    other = ls.open(two.root, local=two._site.layout.local, upkeep="manual", clock=clock)
    clock.move(3_600)
    one.seal()
    one.retire(two._site.catalog.site)
    assert one.watermark() == {"events": clock.now()}
    one.seal()  # and is not kept awake by a mark at the end of time
    version = one["events"]._context.state(newest=True).cold_version
    clock.move(5)
    one.maintain()
    assert one["events"]._context.state(newest=True).cold_version == version
    retired = clock.now() - timedelta(seconds=5)
    other["events"].append(events(10, 20))
    other.seal()  # not all: the other process holds rows that are older than the watermark
    assert begun < retired
    assert one.watermark() == {"events": retired}
    assert min(one["events"]._context.cold.marks().values()) == micros(retired)
    two.flush()
    clock.move(20)
    other.seal()
    one["events"].append(events(20, 30))
    one.seal()
    assert one.watermark() == {"events": clock.now()}
    assert one.sql("SELECT count(*) FROM events").fetchall() == [(30,)]
    other.close()


def test_an_idle_site_that_was_retired_joins_in_a_round_of_upkeep(site, clock):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta")
    assert two["events"].name == "events"
    clock.move(3_600)
    one.seal()
    one.retire(two._site.catalog.site)
    clock.move(20)
    two.maintain()
    assert not any(s.retired for s in two.sites())
    assert one.watermark() == {"events": clock.now() - timedelta(seconds=20)}


def test_who_cannot_be_retired(site, clock):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta")
    assert two["events"].name == "events"
    mine, other = (lake._site.catalog.site for lake in (one, two))
    with pytest.raises(ls.InvalidInputError, match="is this one: retire it from another host"):
        one.retire(mine)
    with pytest.raises(ls.NotFoundError, match=f"no site 'nobody'; those of this lake: {mine}"):
        one.retire("nobody")
    clock.move(1_199)
    with pytest.raises(ls.ConflictError, match=r"was there at 2025-06-01T00:00:00\+00:00: end"):
        one.retire(other)
    assert not any(s.retired for s in one.sites())
    clock.move(1)
    reader = site("one", mode="r")
    with pytest.raises(ls.InvalidInputError, match="open with mode"):
        reader.retire(other)
    one.retire(other)
    with pytest.raises(ls.ConflictError, match="is the last one"):
        two.retire(mine)
    assert [s.retired for s in two.sites()] == [True, False]


def test_who_speaks_up_while_it_is_retired_is_not(site, clock):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold="delta")
    two["events"].append(events(0, 10))
    clock.move(3_600)
    with pytest.MonkeyPatch.context() as patch:
        before_the_next_commit(patch, two.seal)
        with pytest.raises(ls.ConflictError, match="said something meanwhile"):
            one.retire(two._site.catalog.site)
    assert not any(s.retired for s in one.sites())


def test_marks():
    marks = {"me": 5, "a": 7, "b": RETIRED}
    assert (least(marks), least({"b": RETIRED}), least({})) == (5, 0, 0)
    assert [next_mark(marks, "me", said) for said in (None, 4, 5, 6)] == [None, None, None, 6]
    assert [next_mark(marks, "b", said) for said in (None, 4, 6)] == [5, 5, 6]
    assert [next_mark(marks, "new", said) for said in (None, 4)] == [None, 4]
    assert is_behind({"me": 5_000_000, "b": RETIRED}, "me", 1.0, None) is None


def test_a_site_is_retired_in_a_store(store, prefix, tmp_path, clock):
    def at(name: str) -> ls.Lake:
        return ls.open(
            prefix,
            local=tmp_path / name,
            storage_options=store.options,
            upkeep="manual",
            clock=clock,
        )

    with at("one") as one:
        one.create_table("events", SCHEMA, cold="delta")
        made = clock.now()
        with at("two") as two:
            two["events"].append(events(0, 10))
            name = two._site.catalog.site
        clock.move(3_600)
        one.seal()
        assert one.watermark() == {"events": made}
        one.retire(name)
        assert one.watermark() == {"events": clock.now()}
        clock.move(60)
        with at("two") as two:
            two.seal()
            assert two.watermark() == {"events": clock.now() - timedelta(seconds=60)}
            assert two.sql("SELECT count(*) FROM events").fetchall() == [(10,)]


def test_the_commands(site, clock, root, tmp_path):
    one, name = gone(site, clock)
    mine = one._site.catalog.site
    place = (root, "--local", tmp_path / "sites" / "one")
    told = json.loads(ok("sites", *place, "--json"))
    assert [(s["name"], s["is_this"], s["retired"]) for s in told["sites"]] == [
        (mine, True, False),
        (name, False, False),
    ]
    assert told["sites"][1]["tables"] == [
        {
            "table": "events",
            "sealed_through": 1,
            "hot_rows": HOT,
            "complete_before": "2025-06-01T00:00:00+00:00",
            "retired": False,
        }
    ]
    listed = ok("sites", *place)
    for cell in (f"{mine} (this)", name, str(HOT or "unknown"), "2025-06-01 00:00:00Z"):
        assert cell in listed
    no = run("retire", root, name, *place[1:], stdin="n\n")
    assert (no.exit_code, "will not be waited for" in no.stderr) == (1, True)
    assert not any(s.retired for s in one.sites())
    said = ok("retire", root, name, *place[1:], "--json", stdin="y\n")
    yes = json.loads(said.splitlines()[-1])  # after the answer, which a terminal shows too
    assert yes["retired"] == name
    assert yes["watermark"]["events"] == one.watermark()["events"].isoformat()
    assert f"retired site {name}" in ok("retire", root, name, *place[1:], "--yes")
    assert "retired" in ok("sites", *place)
    assert "is this one" in fails("retire", root, mine, *place[1:], "--yes")
