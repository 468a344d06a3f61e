"""A catalog in Postgres: several hosts fill one lake of Parquet, and servers come and go.

The suite itself runs over it too: `python -m support.postgres pytest …`, see README.md here.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest
from conftest import SCHEMA, START, die, events
from support.commands import rebuild
from support.postgres import Server, Wire, postgres

import lakestore as ls
from lakestore.catalog import Catalog, migrations, tables
from lakestore.catalog.commit import Commit
from lakestore.catalog.postgres import Postgres
from lakestore.clock import SystemClock, micros
from lakestore.cold.parquet import ParquetCold
from lakestore.doctor import diagnose
from lakestore.flush import flush
from lakestore.opening import place

pytestmark = pytest.mark.faults

Open = Callable[..., ls.Lake]
QUERY = "SELECT count(*), count(DISTINCT id) FROM events"
WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from conftest import events
import lakestore as ls

root, local, url, first, seals = sys.argv[2:7]
first, seals = int(first), int(seals)
with ls.open(root, local=local, catalog=url, upkeep="manual") as lake:
    table = lake["events"]
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(seals):
        start = first + n * 4
        table.append(events(start, start + 3))
        table.append(events(900_000 + n, 900_001 + n))  # which every writer has
        while True:
            try:
                table.seal()
                print("sealed", flush=True)
                break
            except ls.StorageError as error:
                print("retry", error, flush=True)
                time.sleep(0.2)
        try:
            seen = lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall()[0]
            assert seen[0] == seen[1], seen
        except ls.StorageError:
            pass
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    relay = Wire(server.socket)
    yield relay
    relay.close()


@pytest.fixture
def site(site: Open, server: Server) -> Open:
    """Opens the test's lake as the site of that name, its catalog in the server."""
    return lambda name, **options: site(name, **({"catalog": server.url} | options))


def counted(lake: ls.Lake) -> tuple[int, int]:
    return lake.sql(QUERY).fetchall()[0]


def test_two_hosts_fill_one_table(site):
    one, two = site("one"), site("two")
    first = one.create_table("events", SCHEMA)
    assert first.append(events(0, 10), producer="job", seq=1).rows == 10
    second = two["events"]
    second.append(events(10, 30))
    assert (counted(one), counted(two)) == ((10, 10), (20, 20))  # each its own unsealed rows
    one.seal()
    assert (counted(one), counted(two)) == ((10, 10), (30, 30))
    two.seal()
    assert (counted(one), counted(two)) == ((30, 30), (30, 30))
    assert first.append(events(0, 10), producer="job", seq=1).rows == 0
    for lake in (one, two):
        assert lake.verify().problems == ()
    assert [s.sealed_through for s in two._site.catalog.states([1]).values()] == [1]
    with site("two", mode="r") as reader, site("nobody", mode="r") as stranger:
        second.append(events(30, 31))
        assert (counted(reader), counted(stranger)) == ((31, 31), (30, 30))


def test_a_row_that_two_hosts_have_is_there_once(site, monkeypatch):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA).append(events(0, 10))
    two["events"].append(events(5, 15))
    catalog, done = one._site.catalog, []
    commit = catalog.commit

    def late() -> AbstractContextManager[Commit]:
        if not done and sys._getframe(1).f_code is ParquetCold.publish.__code__:
            done.append(True)
            two.seal()  # after the first has looked for its rows, and before it commits
        return commit()

    monkeypatch.setattr(catalog, "commit", late)
    assert one.seal() == 5  # the other five were sealed by then
    assert done
    assert (counted(one), counted(two)) == ((15, 15), (15, 15))
    unlisted = {problem.kind for problem in one.verify().problems}
    assert unlisted <= {"orphan"}  # what was staged before the other site was seen


@pytest.mark.parametrize("cold", ["parquet", "delta"])
def test_a_dropped_table_is_gone_for_all(site, clock, root, tmp_path, cold):
    one, two, three = site("one"), site("two"), site("three")
    one.create_table("events", SCHEMA, cold=cold).append(events(0, 10))
    two["events"].append(events(10, 20))
    two.flush()
    three["events"].append(events(20, 30))
    one.seal()
    one.drop_table("events")
    assert two.tables() == []
    for _ in range(3):  # the other site sees it, lets go of its rows, and deletes them
        clock.move(10_000)
        one.maintain()
        two.maintain()
        three.maintain()
    for lake in (one, two, three):
        assert lake._site.catalog.garbage() == []
        assert lake.verify().problems == ()
    assert not list((tmp_path / "sites").rglob("*.parquet"))
    assert not list((tmp_path / "sites").rglob("*.journal"))
    assert not list(root.rglob("data/**/*.parquet"))
    again = two.create_table("events", SCHEMA)
    again.append(events(0, 3))
    assert two.seal() == 3
    assert counted(one) == (3, 3)


def start_writers(root, tmp_path, url, writers, seals) -> list[subprocess.Popen[str]]:
    here = str(Path(__file__).parent)
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", WRITER, here, str(root)),
                *(str(tmp_path / f"site {n}"), url, str(n * 10_000), str(seals)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(writers)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    return running


def end_of(running: list[subprocess.Popen[str]]) -> int:
    """How often the writers had to seal again; fails when one of them did."""
    said = []
    for process in running:
        with process:
            said.append(process.stdout.read().splitlines())
    assert [process.returncode for process in running] == [0] * len(running)
    assert [lines[-1] for lines in said] == ["done"] * len(running)
    return sum(line.startswith("retry") for lines in said for line in lines)


def test_four_hosts_seal_at_once(site, root, tmp_path, server, figure):
    """Every row once, no commit lost; a row that each of the four has is there once too."""
    writers, seals = 4, 15
    with site("maker") as lake:
        lake.create_table("events", SCHEMA)
        again = end_of(start_writers(root, tmp_path, server.url, writers, seals))
        rows = writers * seals * 3 + seals
        assert counted(lake) == (rows, rows)
        for n in range(writers):
            with site(f"../site {n}") as other:
                assert counted(other) == (rows, rows)
                assert {p.kind for p in other.verify().problems} <= {"orphan"}
    figure(
        "Postgres", f"{writers} hosts, {writers * seals} seals, {rows} rows once, {again} retried"
    )


def test_a_killed_server_loses_no_commit(root, site, tmp_path, figure):
    """Kill -9 of the whole server under four writers, twice; they go on when it is back."""
    with postgres() as server:
        with site("maker", catalog=server.url) as lake:
            lake.create_table("events", SCHEMA)
        writers, seals = 4, 8
        running = start_writers(root, tmp_path, server.url, writers, seals)
        for _ in range(2):
            while running[0].stdout.readline() != "sealed\n":
                pass
            server.kill()
            server.start()
        again = end_of(running)
        rows = writers * seals * 3 + seals
        with site("maker", catalog=server.url) as lake:
            assert counted(lake) == (rows, rows)
            assert {p.kind for p in lake.verify().problems} <= {"orphan"}
    figure("Postgres", f"killed twice: {rows} rows once, {again} seals retried")


@pytest.mark.parametrize("how", ["request", "reply"])
@pytest.mark.parametrize("verb", ["flush", "merge", "seal", "create", "drop", "vacuum", "lease"])
def test_a_connection_lost_during_commit(site, wire, clock, how, verb):
    """What was committed is known to be; what was not can be tried again."""
    lake = site("one", catalog=wire.url, settings={"segments_max": 2})
    table = lake.create_table("events", SCHEMA)
    for start in range(0, 20, 5):
        table.append(events(start, start + 5))
        flush(table._context)  # and no merge after it
    table.append(events(20, 30), producer="p", seq=3)
    verbs = {
        "flush": table.flush,
        "merge": lambda: lake._upkeep._merge(table._context),
        "seal": table.seal,
        "create": lambda: lake.create_table("other", SCHEMA),
        "drop": lambda: lake.drop_table("events"),
        "vacuum": lambda: lake["events"].vacuum(dry_run=False),
        "lease": lambda: lake._upkeep._lease(table._context),
    }
    wire.cut = how
    if how == "reply":
        verbs[verb]()
    else:
        with pytest.raises(ls.StorageError, match="was lost; nothing was committed"):
            verbs[verb]()
        verbs[verb]()
    assert wire.cuts == 1
    if verb == "drop":
        assert lake.tables() == []
        return
    assert counted(lake) == (30, 30)
    assert table.append(events(20, 30), producer="p", seq=3).rows == 0
    table.seal()
    assert counted(lake) == (30, 30)
    assert {p.kind for p in lake.verify().problems} <= {"orphan"}
    assert lake.tables() == (["events", "other"] if verb == "create" else ["events"])


@pytest.mark.parametrize("cold", ["parquet", "delta"])
def test_a_site_that_is_gone_is_retired_and_comes_back(site, clock, cold):
    """The catalog says what it had, and until when it was there."""
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold=cold)
    table, name = two["events"], two._site.catalog.site
    table.append(events(0, 10))
    table.seal()
    clock.move(10)
    table.append(events(10, 25))
    said = clock.now()
    table.seal()
    clock.move(3_600)
    table.append(events(25, 30))
    table.flush()
    flushed = clock.now()
    table.append(events(30, 40))
    one["events"].append(events(100, 110))
    one.seal()
    for moved, writes in ((1_199, False), (1_000, True)):
        clock.move(moved)
        if writes:  # it merges, or seals into a store, and has said nothing yet
            assert two._upkeep._lease(table._context)
        with pytest.raises(ls.ConflictError, match=f"site '{name}' was there at"):
            one.retire(name)
    die(two)
    assert one.watermark() == {"events": said}
    (gone,) = [s for s in one.sites() if not s.is_this]
    assert gone.seen == clock.now() + timedelta(seconds=30)  # for so long it had the lease
    (part,) = gone.tables
    assert (part.sealed_through, part.hot_rows, part.complete_before) == (2, 5, said)
    clock.move(3_600)
    one["events"].append(events(110, 120))
    one.seal()
    one.retire(name)
    retired = clock.now()
    assert flushed < retired
    assert one.watermark() == {"events": retired}
    with pytest.raises(ls.ConflictError, match="is the last one"):
        one["events"]._context.cold.retire(one._site.catalog.site, micros(retired))
    clock.move(60)
    two = site("two")
    clock.move(60)
    one["events"].append(events(120, 130))
    one.seal()
    assert one.watermark() == {"events": retired}
    assert not any(s.retired for s in one.sites())
    two.seal()
    assert one.watermark() == {"events": clock.now()}
    assert (counted(one), counted(two)) == ((70, 70), (70, 70))
    assert one.verify().problems == two.verify().problems == ()


def test_a_site_that_was_retired_while_it_lives_joins_with_its_next_seal(site, clock):
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA)
    two["events"].append(events(0, 10))
    clock.move(3_600)
    one.seal()
    one.retire(two._site.catalog.site)
    retired = clock.now()
    clock.move(60)
    other = site("one")  # which has rows that are not sealed
    other["events"].append(events(10, 20))
    two.seal()
    assert two["events"]._context.cold.marks()[two._site.catalog.site] == micros(clock.now())
    assert one.watermark() == {"events": retired}


@pytest.mark.parametrize("how", ["request", "reply"])
def test_a_commit_that_stays_uncertain(site, server, wire, monkeypatch, how):
    """The server is gone for longer than we ask: the caller is told, and the next try finds out."""
    monkeypatch.setattr("lakestore.catalog.postgres._UNCERTAIN_S", 0.2)
    lake = site("one", catalog=wire.url)
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 10), producer="p", seq=1)
    stopped = Event()
    wire.cut, wire.on_cut = how, lambda: (server.stop(), stopped.set())
    with pytest.raises(ls.CommitUncertainError, match="not known whether a commit"):
        table.flush()
    with pytest.raises(ls.StorageError):
        lake.sql(QUERY)
    table.append(events(10, 20))  # rows do not wait for it
    assert stopped.wait(60)
    server.start()
    table.flush()
    assert counted(lake) == (20, 20)
    table.seal()
    assert counted(lake) == (20, 20)
    assert {p.kind for p in lake.verify().problems} <= {"orphan"}  # a file of the lost commit


def test_a_planted_bug_is_caught(site, wire, monkeypatch):
    """Who takes a lost reply for a failure tells the caller of none that was done."""
    lake = site("one", catalog=wire.url)
    monkeypatch.setattr(Postgres, "_is_committed", lambda *_: False)
    wire.cut = "reply"
    with pytest.raises(ls.StorageError, match="nothing was committed"):
        lake.create_table("events", SCHEMA)
    assert lake.tables() == ["events"]


def test_a_restarted_server_is_found_again(site, server):
    lake = site("one")
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 10))
    table.flush()
    server.stop()
    assert table.append(events(10, 20)).rows == 10
    with pytest.raises(ls.StorageError, match="cannot be used"):
        table.flush()
    with pytest.raises(ls.StorageError, match="cannot be used"):
        site("two")
    server.start()
    table.flush()
    assert counted(lake) == (20, 20)


FORMAT_3 = (
    "DROP TABLE history",
    "DROP TABLE records",
    "ALTER TABLE cold_files DROP COLUMN added, DROP COLUMN removed",
    "UPDATE lake SET format = 3",
)
"""Makes a catalog of format 4 one of format 3."""


def test_a_catalog_of_format_3_is_migrated(site, server, root):
    """Its files are compacted then, which writes into all that is new."""
    with site("one") as lake:
        lake.create_table("events", SCHEMA)
        for start in (0, 8):
            lake["events"].append(events(start, start + 8))
            lake.seal()
        name = f"lakestore_{lake._site.catalog.lake}"
    with psycopg.connect(server.url, autocommit=True) as con:
        con.execute(f'SET search_path = "{name}"')
        for statement in FORMAT_3:
            con.execute(statement)
    with site("one") as lake:
        assert counted(lake) == (16, 16)
        for _ in range(2):
            assert lake["events"].compact().files_before == 2
            assert lake.verify().problems == ()
            lake["events"].append(events(16, 20))
            lake.seal()
        assert len(list((root / "tables/events/_replaced").iterdir())) == 2
        assert counted(lake) == (20, 20)


def test_two_migrations_at_once(site, server, monkeypatch, root, tmp_path):
    lake = site("one")
    lake.create_table("events", SCHEMA).append(events(0, 10))
    lake.close()
    monkeypatch.setattr(tables, "FORMAT", tables.FORMAT + 1)
    step = ("ALTER TABLE lake ADD COLUMN motto TEXT", "SELECT pg_sleep(0.2)")
    monkeypatch.setitem(migrations.STEPS, tables.FORMAT - 1, step)
    opened: list[ls.Lake] = []
    threads = [Thread(target=lambda n=n: opened.append(site(n))) for n in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(counted, opened)) == [(0, 0), (10, 10)]
    monkeypatch.undo()
    with pytest.raises(ls.FormatTooNewError, match="upgrade lakestore"):
        site("three")


def test_where_the_catalog_is_cannot_be_mistaken(root, site, server, tmp_path):
    lake = site("one")
    lake.create_table("events", SCHEMA).append(events(0, 10))
    lake.seal()
    lake.close()
    local = tmp_path / "sites" / "one"
    with pytest.raises(ls.InvalidInputError, match="in a database: pass its URL"):
        ls.open(root, local=local)
    with pytest.raises(ls.InvalidInputError, match="URL such as postgresql://"):
        ls.open(root, local=local, catalog="mysql://user:secret@host/db")
    (local / "site.json").rename(local / "aside")
    with pytest.raises(ls.CorruptionError, match="is lost, and there are rows beside it"):
        site("one")
    (local / "aside").rename(local / "site.json")
    with psycopg.connect(server.url, autocommit=True) as con:
        con.execute("CREATE DATABASE empty")
    with pytest.raises(ls.CorruptionError, match="lake is not empty; correct catalog= if it"):
        site("one", catalog=server.url.replace("/postgres?", "/empty?"))
    own = ls.open(tmp_path / "own")
    own.close()
    with pytest.raises(ls.InvalidInputError, match="open the lake without catalog="):
        ls.open(tmp_path / "own", catalog=server.url)


def test_the_environment_names_the_catalog_of_new_lakes(tmp_path, server, monkeypatch):
    with ls.open(tmp_path / "old") as old:
        old.create_table("events", SCHEMA).append(events(0, 3))
    monkeypatch.setenv("LAKESTORE_CATALOG", server.url)
    with ls.open(tmp_path / "old") as old, ls.open(tmp_path / "new") as new:
        assert isinstance(new._site.catalog.database, Postgres)
        assert counted(old) == (3, 3)
    for path in (tmp_path / "old/_site").glob("catalog.sqlite*"):
        path.unlink()
    with pytest.raises(ls.CorruptionError, match="lakestore rebuild"):  # no other one is asked
        ls.open(tmp_path / "old")
    rebuild(tmp_path / "old")
    with ls.open(tmp_path / "old") as old:
        assert counted(old) == (3, 3)


def test_a_password_is_told_to_nobody(tmp_path, server, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    secret = "canary-password"
    url = server.url.replace("postgres:@", f"postgres:{secret}@")
    with ls.open(tmp_path / "lake", catalog=url) as lake:
        lake.create_table("events", SCHEMA).append(events(0, 3))
        said = [
            repr(lake),
            repr(lake._site.catalog.database),
            str(lake.status()),
            str(lake.verify()),
        ]
    for wrong in (url.replace("/postgres?", "/nope?"), f"postgresql://u:{secret}@127.0.0.1:1/x"):
        with pytest.raises(ls.StorageError) as failure:
            ls.open(tmp_path / "lake", catalog=wrong)
        said += [str(failure.value), str(failure.value.__cause__)]
    with pytest.raises(ls.InvalidInputError) as invalid:
        ls.open(tmp_path / "lake", catalog=f"postgresql://u:{secret}@host:port/x")
    said += [str(invalid.value), caplog.text, *capsys.readouterr()]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes()
    assert secret not in "".join(said)


def test_doctor_looks_at_the_server(root, server):
    told = {f.what: f for f in diagnose(*place(root, catalog=server.url), SystemClock()).findings}
    assert told["catalog"].verdict == "ok"
    assert "PostgreSQL 18" in told["catalog"].found
    nobody = place(root, catalog="postgresql://127.0.0.1:1/x")
    told = {f.what: f for f in diagnose(*nobody, SystemClock()).findings}
    assert told["catalog"].verdict == "failed"
    assert "Connection refused" in told["catalog"].found
    with psycopg.connect(server.url, autocommit=True) as con:
        con.execute("CREATE ROLE guest LOGIN")
    guest = server.url.replace("postgres:@", "guest:@")
    told = {f.what: f for f in diagnose(*place(root, catalog=guest), SystemClock()).findings}
    assert "may make no schema" in told["catalog"].found
    with pytest.raises(ls.StorageError, match="permission denied"):
        ls.open(root, catalog=guest)


def test_the_command_line_takes_a_catalog(root, server):
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lakestore.cli", *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )

    lake, rows = str(root), root.parent / "rows.ndjson"
    rows.write_text('{"id": "a", "time": "2025-01-01T00:00:00Z"}\n')
    made = run(
        *("create", lake, "events", "--like", str(rows)),
        *("--event-time", "time", "--event-id", "id", "--catalog", server.url),
    )
    assert made.returncode == 0, made.stderr
    assert run("ingest", lake, "events", str(rows), LAKESTORE_CATALOG=server.url).returncode == 0
    count = run("sql", lake, "SELECT count(*) AS n FROM events", "--json", "--catalog", server.url)
    assert '"n": 1' in count.stdout or '"n":1' in count.stdout
    without = run("sql", lake, "SELECT 1")
    assert without.returncode == 1
    assert "pass its URL as catalog=" in without.stderr


def test_two_lakes_in_one_database(tmp_path, server):
    with (
        ls.open(tmp_path / "a", catalog=server.url, upkeep="manual") as a,
        ls.open(tmp_path / "b", catalog=server.url, upkeep="manual") as b,
    ):
        for lake, rows in ((a, 3), (b, 5)):
            lake.create_table("events", SCHEMA).append(events(0, rows))
            lake.seal()
        assert (counted(a), counted(b)) == ((3, 3), (5, 5))
        shutil.rmtree(tmp_path / "b" / "tables")
        assert counted(a) == (3, 3)


def test_a_failed_statement_commits_nothing(site):
    lake = site("one")
    table = lake.create_table("events", SCHEMA)
    catalog: Catalog = lake._site.catalog

    def fail() -> None:
        with catalog.commit() as commit:
            commit.add_garbage(table._context.entry.id, "segment", ["x"])
            commit._con.exec_driver_sql("SELECT 1 / 0")

    with pytest.raises(ls.StorageError, match="division by zero"):
        fail()
    assert catalog.garbage() == []


def test_a_connection_lost_within_a_commit(site, server):
    lake = site("one")
    table = lake.create_table("events", SCHEMA)
    catalog: Catalog = lake._site.catalog

    def cut() -> None:
        with catalog.commit() as commit:
            commit.add_garbage(table._context.entry.id, "segment", ["x"])
            with psycopg.connect(server.url, autocommit=True) as con:
                con.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'lakestore'"
                )
            commit.add_garbage(table._context.entry.id, "segment", ["y"])

    with pytest.raises(ls.StorageError, match="cannot be used"):
        cut()
    assert catalog.garbage() == []  # over a new connection


def test_commits_of_hosts_take_turns(site, server):
    one, two = site("one"), site("two")
    order: list[str] = []

    def commit_too() -> None:
        with two._site.catalog.commit():
            order.append("two")

    other = Thread(target=commit_too)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(server.url, autocommit=True) as con, one._site.catalog.commit():
        other.start()
        while other.is_alive() and con.execute(waiting).fetchone() == (0,):
            pass
        order.append("one")
    other.join()
    assert order == ["one", "two"]


def test_one_host_prunes_what_all_have_sealed(site, clock, root, tmp_path, server):
    """The other may take it back; who pruned deletes, and no rebuild brings rows back."""
    settings = {"cold_grace_s": 100, "vacuum_grace_s": 10}
    one, two = (site(name, settings=settings) for name in ("one", "two"))
    one.create_table("events", SCHEMA)
    for lake, parts in ((one, [(0, 12), (40, 80)]), (two, [(12, 40), (80, 120)])):
        for start, stop in parts:
            lake["events"].append(events(start, stop))
        lake.seal()
    assert counted(one) == counted(two) == (120, 120)
    cutoff = START + timedelta(days=1)
    assert one["events"].prune(before=cutoff).rows == 24
    assert counted(one) == counted(two) == (96, 96)
    assert two["events"].undo().rows == 24
    assert counted(one) == counted(two) == (120, 120)
    clock.move(1000)
    assert one.vacuum(dry_run=False).cold == ()
    assert two["events"].prune(before=cutoff).rows == 24
    clock.move(1000)
    assert one.vacuum(dry_run=False).cold == ()  # it is for the other to delete
    assert len(two.vacuum(dry_run=False).cold) == 2
    with pytest.raises(ls.NotFoundError, match="no prune"):
        one["events"].undo()
    for lake in (one, two):
        assert counted(lake) == (96, 96)
        assert lake.verify().problems == ()
        lake.close()
    for name in ("one", "two"):
        rebuild(root, local=tmp_path / "sites" / name, catalog=server.url)
        with site(name) as again:
            assert counted(again) == (96, 96)
            assert again.verify().problems == ()
