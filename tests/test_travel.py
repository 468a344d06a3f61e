"""Time travel: what was sealed at a version, as long as its files are there."""

import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from conftest import SCHEMA, events
from deltalake import DeltaTable, write_deltalake
from support.commands import fails, ok, rebuild
from support.postgres import postgres

import lakestore as ls
from lakestore import datafile
from lakestore.failpoint import at
from lakestore.past import Past, Span, Version
from lakestore.replacement import Replacement
from lakestore.snapshot import ColdFile
from lakestore.tablerows import TableRows

Open = Callable[..., ls.Lake]
SETTINGS = {"cold_grace_s": 100, "vacuum_grace_s": 0}
COUNT = "SELECT count(*) FROM events"


@pytest.fixture(params=["parquet", "delta"])
def cold(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def told(change: Version) -> tuple[object, ...]:
    return (
        change.operation,
        change.rows_added,
        change.rows_removed,
        change.files_added,
        change.files_removed,
    )


def ids(rows: TableRows) -> list[str]:
    return sorted(rows.to_arrow(["id"]).column("id").to_pylist())


def names(start: int, stop: int) -> list[str]:
    return [f"e{i:06d}" for i in range(start, stop)]


def seal(table: ls.Table, start: int, stop: int) -> int:
    """Seal some events; returns the version."""
    table.append(events(start, stop))
    table.seal()
    return table.history(1)[0].version


def files(table: ls.Table) -> tuple[ColdFile, ...]:
    return table._context.state(newest=True).cold


def replace(table: ls.Table, operation: str, removed=(), added=()) -> int:
    """Replace files as the verbs do; returns the version."""
    context = table._context
    footers = {f.name: datafile.read_footer(context.cold_path(f)) for f in removed}
    context.cold.replace(Replacement(operation, removed, added, footers))
    return table.history(1)[0].version


def test_a_version_is_what_was_sealed(open_lake, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    sealed: dict[int, list[dict[str, object]]] = {}
    times: dict[int, datetime] = {}
    for number in range(4):
        clock.move(60)
        version = seal(table, number * 10, number * 10 + 12)  # the last two come again
        sealed[version] = table.to_arrow().sort_by("id").to_pylist()
        times[version] = clock.now()
    clock.move(60)
    table.compact()
    table.append(events(900, 905))
    table.flush()
    table.append(events(905, 910))
    assert [len(rows) for rows in sealed.values()] == [12, 22, 32, 42]
    for version, rows in sealed.items():
        old = table.at(version)
        assert (old.version, old.at, old.name) == (version, times[version], "events")
        assert old.to_arrow().sort_by("id").to_pylist() == rows  # nulls, lists and structs too
        assert old.scan().select(pl.len()).collect().item() == len(rows)
        assert old.sql(COUNT).fetchall() == [(len(rows),)]
        assert old.totals("count") == {"count": len(rows)}
        assert (old.page(limit=5).total, len(old.page(limit=5).rows)) == (len(rows), 5)
        assert old.get("e000000")["id"] == "e000000"
        assert (old.get("e000035") is None) == (len(rows) < 42)
        assert old.get("e000901") is None  # which was hot, and is
        assert sum(n for _, n in old.facets("name")["name"]) == len(rows)
        assert sum(row["count"] for row in old.series("count", every="1d")) == len(rows)
        assert table.at(times[version]).version == version
        assert table.at(times[version] + timedelta(seconds=59)).version == version
        assert table.at(times[version].replace(tzinfo=None)).version == version
        assert table.at(times[version].isoformat()).version == version
    newest = table.history()[0].version
    assert table.at(datetime(2100, 1, 1, tzinfo=UTC)).version == newest
    assert ids(table.at(newest)) == names(0, 42)
    assert ids(table) == [*names(0, 42), *names(900, 910)]


def test_what_there_is_no_version_of(open_lake, cold, clock):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA, cold=cold)
    created = clock.now()
    (first,) = [c.version for c in table.history() if c.operation == "create"]
    empty = table.at(first)
    assert empty.to_arrow().num_rows == 0
    assert empty.sql(COUNT).fetchall() == [(0,)]
    assert empty.totals("count") == {"count": 0}
    assert empty.get("e000001") is None
    with pytest.raises(ls.NotFoundError, match="nothing as of 2025-05-31.* from version"):
        table.at(created - timedelta(seconds=1))
    newest = table.history(1)[0].version
    for version in (-1, newest + 1, 10**9):
        with pytest.raises(ls.NotFoundError, match=f"has no version {version}: its history goes"):
            table.at(version)
    for wrong in (None, "soon", 1.5):
        with pytest.raises(ls.InvalidInputError):
            table.at(wrong)
    with pytest.raises(ls.InvalidInputError):
        table.history(0)
    lake.close()
    with pytest.raises(ls.ClosedError):
        empty.to_arrow()
    with pytest.raises(ls.ClosedError):
        table.history()


def test_the_history_says_what_changed(open_lake, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    lake.create_table("others", SCHEMA, cold=cold)
    begun = clock.now()
    for number in range(3):
        clock.move(10)
        seal(table, number * 10, number * 10 + 10)  # an event an hour
        seal(lake["others"], 0, number)
    clock.move(10)
    table.compact()
    found = table.history()
    assert [told(c) for c in reversed(found) if c.operation != "promise"] == [
        ("create", 0, 0, 0, 0),
        ("seal", 10, 0, 1, 0),
        ("seal", 10, 0, 1, 0),
        ("seal", 10, 0, 2, 0),
        ("compact", 24, 24, 1, 3),
    ]
    assert {c.by for c in found} == {lake._site.catalog.site}
    assert [c.version for c in found] == sorted((c.version for c in found), reverse=True)
    assert (found[-1].at, found[0].at) == (begun, begun + timedelta(seconds=40))
    assert all(c.readable for c in found)
    for limit in (1, 2, len(found), 100):
        assert table.history(limit) == found[:limit]
    last = json.loads(json.dumps(found[0].to_dict()))
    assert (last["at"], last["files_removed"]) == ("2025-06-01T00:00:40+00:00", 3)
    lake.close()
    reader = open_lake(mode="r")
    assert reader["events"].history() == found
    assert ids(reader["events"].at(found[1].version)) == names(0, 30)


def test_after_vacuum_an_old_version_says_so(open_lake, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    versions = [seal(table, n * 10, n * 10 + 10) for n in range(3)]
    table.compact()
    compacted = seal(table, 30, 40)
    clock.move(101)
    table.vacuum(dry_run=False)
    found = {c.version: c.readable for c in table.history()}
    assert [found[v] for v in versions] == [False, False, False]
    assert found[compacted]
    for limit in (1, 2, 4):
        assert [c.readable for c in table.history(limit)] == list(found.values())[:limit]
    at_once = min(v for v in found if v > versions[-1] and found[v])
    with pytest.raises(
        ls.NotFoundError,
        match=rf"version {versions[1]} of table 'events' cannot be asked any more, 2 of its 2 "
        rf"files are deleted: the oldest after it that can is version {at_once} of .* "
        "cold_grace_s, here 100 s",
    ):
        table.at(versions[1])
    assert ids(table.at(at_once)) == names(0, 30)
    assert ids(table.at(compacted)) == names(0, 40)
    assert lake.verify().problems == ()


def test_what_is_referred_to_is_not_vacuumed(open_lake, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    versions = [seal(table, n * 3, n * 3 + 3) for n in range(3)]
    table.compact()
    clock.move(101)
    old = table.at(versions[1])
    assert len(table.vacuum(dry_run=False).cold) == 1  # of the third seal
    assert ids(old) == names(0, 6)
    frame = old.scan()
    del old
    assert table.vacuum(dry_run=False).cold == ()
    assert sorted(frame.collect()["id"]) == names(0, 6)
    assert ids(table.at(versions[0])) == names(0, 3)
    assert ids(table.at(versions[1])) == names(0, 6)
    with pytest.raises(ls.NotFoundError, match="1 of its 3 files are deleted"):
        table.at(versions[2])
    del frame
    assert len(table.vacuum(dry_run=False).cold) == 2
    assert lake.verify().problems == ()


def test_files_that_another_process_deletes_under_a_handle(open_lake, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    version = seal(table, 0, 10)
    seal(table, 10, 20)
    table.compact()
    clock.move(101)
    reader = open_lake(mode="r")  # another opening, whose files nobody here knows of
    old = reader["events"].at(version)
    frame = old.scan()
    assert len(lake["events"].vacuum(dry_run=False).cold) == 2
    message = f"version {version} of table 'events' cannot be asked any more"

    def beside() -> ls.Result:
        named = old
        assert named
        return reader.sql("SELECT count(*) FROM named, events")

    for ask in (
        old.to_arrow,
        old.scan,
        lambda: old.totals("count", where={"ok": True}),
        lambda: old.get("e000003"),
        lambda: old.sql(COUNT),
        beside,
        frame.collect,
    ):
        with pytest.raises(ls.NotFoundError, match=message):
            ask()
    assert ids(reader["events"]) == names(0, 20)  # nothing else is the worse for it


def test_between_two_prunes_and_an_undo(open_lake, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    full = seal(table, 0, 72)  # a file a day
    first, second, third = files(table)
    one = replace(table, "prune", [first])
    two = replace(table, "prune", [second])
    undone = replace(table, "undo", [], [first])
    three = replace(table, "prune", [first])
    expected = {
        full: names(0, 72),
        one: names(24, 72),
        two: names(48, 72),
        undone: [*names(0, 24), *names(48, 72)],
        three: names(48, 72),
    }
    assert {v: ids(table.at(v)) for v in expected} == expected
    assert [told(c) for c in table.history(4)] == [
        ("prune", 0, 24, 0, 1),
        ("undo", 24, 0, 1, 0),
        ("prune", 0, 24, 0, 1),
        ("prune", 0, 24, 0, 1),
    ]
    clock.move(101)
    assert len(table.vacuum(dry_run=False).cold) == 2
    readable = [c.version for c in table.history() if c.readable]
    assert set(expected) & set(readable) == {two, three}
    for version in (full, one, undone):
        with pytest.raises(ls.NotFoundError, match="cannot be asked any more"):
            table.at(version)
    assert ids(table.at(two)) == ids(table) == names(48, 72)
    assert third in files(table)


@pytest.mark.parametrize("point", ["swap.1", "swap.2", "record.1", "record.2"])
def test_a_crash_at_a_commit(open_lake, cold, clock, point):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    versions = [seal(table, 0, 10), seal(table, 10, 20)]

    class Crash(BaseException):
        pass

    def crash() -> None:
        raise Crash

    reached = not (point == "swap.2" and cold == "parquet")
    with at(point, crash):
        if reached:
            with pytest.raises(Crash):
                table.compact()
        else:
            table.compact()
    committed = not (point == "swap.1" and cold == "delta")
    lake.close()
    lake = open_lake(settings=SETTINGS)
    table = lake["events"]
    compacts = [c for c in table.history() if c.operation == "compact"]
    assert [told(c) for c in compacts] == [("compact", 20, 20, 1, 2)] * committed
    assert [ids(table.at(v)) for v in versions] == [names(0, 10), names(0, 20)]
    clock.move(101)
    table.vacuum(dry_run=False)
    readable = {c.version for c in table.history() if c.readable}
    assert readable.isdisjoint(versions) == committed
    assert ids(table) == names(0, 20)


def test_after_a_rebuild(open_lake, root, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold=cold)
    versions = [seal(table, 0, 10), seal(table, 10, 20)]
    table.compact()
    before = table.history()
    lake.close()
    (root / "_site/catalog.sqlite").unlink()
    clock.move(10)
    rebuild(root, clock)
    table = open_lake(settings=SETTINGS)["events"]
    if cold == "delta":  # the log is the history
        assert table.history() == before
        assert [ids(table.at(v)) for v in versions] == [names(0, 10), names(0, 20)]
        return
    (made,) = table.history()
    assert (told(made), made.at) == (("rebuild", 20, 0, 1, 0), clock.now())
    assert ids(table.at(made.version)) == names(0, 20)
    with pytest.raises(ls.NotFoundError, match="nothing as of"):
        table.at(clock.now() - timedelta(seconds=1))
    newest = seal(table, 20, 30)
    assert ids(table.at(made.version)) == names(0, 20)
    assert ids(table.at(newest)) == names(0, 30)


def test_a_lake_of_an_older_format_begins_with_its_upgrade(tmp_path):
    data = Path(__file__).parent / "data"
    with tarfile.open(data / "v1" / "lake.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    with ls.open(tmp_path / "lake", upkeep="manual") as lake:
        table = lake["events"]
        cold = files(table)
        rows = sum(f.info.rows for f in cold)
        (found,) = table.history()
        assert told(found) == ("upgrade", rows, 0, len(cold), 0)
        assert (found.by, found.readable) == (None, True)
        assert table.at(found.version).to_arrow().num_rows == rows > 0
        assert table.at(found.at).version == found.version
        table.append({"id": "new", "at": "2026-03-02", "n": 1})
        table.seal()
        assert table.at(found.version).to_arrow().num_rows == rows
        assert all(c.readable for c in table.history())


def test_other_engines_see_the_same_versions(open_lake, root):
    """deltalake and Polars give the rows that we give, also of versions that they made."""
    lake = open_lake()
    table = lake.create_table("events", SCHEMA, cold="delta")
    data = str(root / "tables/events/data")
    for number in range(3):
        seal(table, number * 20, number * 20 + 20)
    theirs = events(1_000, 1_010).append_column("day", pa.nulls(10, pa.date32()))
    theirs = theirs.append_column("cost", pa.nulls(10, pa.decimal128(18, 6)))
    write_deltalake(data, theirs, mode="append")
    table.compact()
    DeltaTable(data).delete("n < 30")
    seal(table, 60, 70)
    DeltaTable(data).optimize.compact()
    found = table.history()
    assert [c.version for c in found] == list(range(DeltaTable(data).version(), -1, -1))
    theirs_told = {c.version: c for c in found if c.by != lake._site.catalog.site}
    assert {c.operation for c in theirs_told.values()} == {"WRITE", "DELETE", "OPTIMIZE"}
    assert all(c.by.startswith("delta-rs") for c in theirs_told.values())
    times = {one["version"]: one["timestamp"] for one in DeltaTable(data).history()}
    counts = {}
    for change in found:
        assert change.at == datetime.fromtimestamp(times[change.version] / 1000, UTC)
        mine = sorted(table.at(change.version).to_arrow(["id"]).column("id").to_pylist())
        other = DeltaTable(data, version=change.version)
        assert mine == sorted(
            pa.table(other.to_pyarrow_dataset().to_table(["id"]))["id"].to_pylist()
        )
        assert mine == sorted(pl.scan_delta(data, version=change.version).collect()["id"])
        counts[change.version] = len(mine)
    for change in found[:-1]:
        gained = counts[change.version] - counts[change.version - 1]
        assert gained == change.rows_added - change.rows_removed


def test_a_duckdb_shell_sees_the_same_versions(open_lake, root, duckdb_cli, extensions):
    table = open_lake().create_table("events", SCHEMA, cold="delta")
    versions = [seal(table, n * 20, n * 20 + 20) for n in range(3)]
    table.compact()
    data = root / "tables/events/data"
    for version in versions:
        count = f"SELECT count(*), max(id) FROM delta_scan('{data}', version => {version})"
        done = subprocess.run(
            [duckdb_cli, "-csv", "-noheader", "-c", f"LOAD delta; {count}"],
            env={**os.environ, "HOME": str(extensions)}, capture_output=True, text=True,
        )  # fmt: skip
        mine = ids(table.at(version))
        assert (done.stderr, done.stdout.strip()) == ("", f"{len(mine)},{mine[-1]}")


def test_loads_and_schemas_are_in_the_history(open_lake, cold):
    """A version is shown in the newest columns, whatever they were then."""
    lake = open_lake()
    table = lake.create_table("events", SCHEMA, cold=cold)
    first = seal(table, 0, 10)
    table.evolve(add={"more": "INTEGER"})
    table.load([events(10, 30).append_column("more", pa.array(range(20)))], load_id="x")
    found = [told(c) for c in table.history() if c.operation != "promise"]
    assert found[:2] == [("load", 20, 0, 2, 0), ("evolve", 0, 0, 0, 0)]
    assert table.at(table.history(1)[0].version).totals("sum(more)") == {"sum(more)": 190}
    old = table.at(first)
    assert old.sql("SELECT count(*), count(more) FROM events").fetchall() == [(10, 0)]
    assert ids(old) == names(0, 10)


def test_a_log_whose_beginning_is_cleaned_up(open_lake, root, monkeypatch):
    monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 4)
    lake = open_lake()
    table = lake.create_table("events", SCHEMA, cold="delta")
    for number in range(10):
        seal(table, number, number + 1)
    whole = table.history()
    assert len(whole) == 11
    assert table.history(3) == whole[:3]  # from a checkpoint
    assert [ids(table.at(v)) for v in range(11)] == [names(0, v) for v in range(11)]
    log = root / "tables/events/data/_delta_log"
    for version in range(5):
        (log / f"{version:020d}.json").unlink()
    damaged = log / f"{8:020d}.checkpoint.parquet"
    damaged.chmod(0o644)
    damaged.write_bytes(b"damaged")  # the one before will do
    assert table.history() == whole[:6]  # 10 to 5
    assert table.history(1) == whole[:1]
    assert [ids(table.at(v)) for v in range(5, 11)] == [names(0, v) for v in range(5, 11)]
    with pytest.raises(ls.NotFoundError, match="no version 3: its history goes from version 5"):
        table.at(3)


def test_a_log_of_which_a_purge_left_the_newest_version(open_lake):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, cold="delta")
    before = [seal(table, number, number + 10) for number in range(0, 40, 10)]
    assert table.purge({"n": ("<", 15)}).complete
    (newest,) = table.history()
    assert told(newest) == ("purge", 7, 0, 2, 2)
    assert newest.readable
    assert table.history(1) == table.history(9) == [newest]
    kept = sorted({*names(15, 40), *names(0, 1), *names(11, 12)})  # without a number
    assert ids(table) == ids(table.at(newest.version)) == kept
    with pytest.raises(ls.NotFoundError, match=f"goes from version {newest.version}"):
        table.at(before[-1])
    last = seal(table, 40, 50)
    assert [(v.version, v.readable) for v in table.history()] == [
        (last, True),
        (newest.version, True),
    ]
    assert table.history(2)[1] == newest


def test_a_version_beside_tables_as_they_are(open_lake, cold):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA, cold=cold)
    version = seal(table, 0, 48)
    seal(table, 48, 60)
    table.append(events(60, 61))
    old = table.at(version)
    Newer = table.at(table.history(1)[0].version)  # SQL does not mind
    assert lake.sql("SELECT count(*) FROM events ANTI JOIN old USING (id)").fetchall() == [(13,)]
    both = "SELECT (SELECT count(*) FROM old), (SELECT count(*) FROM newer WHERE id > 'e000049')"
    assert lake.sql(both).fetchall() == [(48, 10)]
    day = "SELECT count(*) FROM old WHERE time >= $t"
    assert lake.sql(day, {"t": "2025-01-02"}).fetchall() == [(24,)]
    (plan,) = [t for t in lake.explain(day, {"t": "2025-01-02"}).tiers if t.files]
    assert (plan.table, plan.files_kept, plan.files) == ("old", 1, 2)
    extra = pa.table({"id": ["e000001", "e000050"]})
    assert old.sql("SELECT count(*) FROM events JOIN extra USING (id)").fetchall() == [(1,)]
    assert extra.num_rows == 2
    assert old.sql("SELECT id FROM events WHERE n = ?", [7]).fetchall() == [("e000007",)]
    with pytest.raises(ls.InvalidInputError, match="only reads"):
        old.sql("DELETE FROM events")
    with pytest.raises(ls.NotFoundError):
        old.sql("FROM elsewhere")
    assert repr(old).startswith(f"<lakestore table 'events' at version {version} of 2025-06-01")
    assert Newer.version > old.version


def test_a_version_of_another_lake_is_refused(open_lake, tmp_path):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    old = table.at(seal(table, 0, 5))
    another = ls.open(tmp_path / "another", upkeep="manual")
    with another, pytest.raises(ls.InvalidInputError, match="the lake that it is of"):
        another.sql("FROM old")
    assert old.to_arrow().num_rows == 5


PAYLOAD = ls.TableSchema.from_toml(
    """
    format = 2
    event_id = "id"
    event_time = "time"
    [columns]
    id = "VARCHAR not null"
    time = "TIMESTAMPTZ not null"
    n = "BIGINT"
    body = "VARCHAR"
    [payload]
    body = "full"
    [[rollups]]
    name = "hourly"
    by = []
    sums = ["n"]
    """
)


def test_payloads_and_rollups_of_a_version(open_lake, cold):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", PAYLOAD, cold=cold)
    versions = []
    for start in (0, 10, 20):
        rows = events(start, start + 10).select(["id", "time", "n"])
        table.append(rows.append_column("body", pa.array([f"b{start + i}" for i in range(10)])))
        table.seal()
        versions.append(table.history(1)[0].version)
    table.compact()
    old = table.at(versions[1])
    newer = table.at(versions[2])
    assert old.get("e000011")["body"] == "b11"
    assert old.sql("SELECT count(*), max(body) FROM events_payload").fetchall() == [(20, "b9")]
    assert lake.sql(
        "SELECT count(*) FROM events_payload, (SELECT 1 FROM newer LIMIT 1)"
    ).fetchall() == [(30,)]
    assert old.totals(["count", "sum(n)"]) == {
        "count": 20, "sum(n)": sum(n for n in range(20) if n % 11),
    }  # fmt: skip
    assert newer.totals("count") == {"count": 30}
    assert table.totals("count") == {"count": 30}


def test_seals_and_compactions_go_on_meanwhile(open_lake, cold):
    """What a version gives is the same all the while, and every version is what it was."""
    lake = open_lake(settings={"cold_grace_s": 1000})
    table = lake.create_table("events", SCHEMA, cold=cold)
    first = seal(table, 0, 5)
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen = (ids(table.at(first)), table.at(first).totals("count")["count"])
            if seen != (names(0, 5), 5):
                wrong.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    sealed = {first: 5}
    try:
        for number in range(1, 5):
            sealed[seal(table, number * 5, number * 5 + 5)] = number * 5 + 5
            table.compact()
            table.vacuum(dry_run=False)
    finally:
        done.set()
        reader.join()
    assert wrong == []
    assert {v: len(ids(table.at(v))) for v in sealed} == sealed


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import events
import lakestore as ls

first = int(sys.argv[3])
with ls.open(sys.argv[2], upkeep="manual") as lake:
    table = lake["events"]
    for n in range(5):
        table.append(events(first + n, first + n + 1))
        table.seal()  # or the other one has sealed it meanwhile
"""


def test_two_processes_seal_at_once(open_lake, root, cold):
    table = open_lake().create_table("events", SCHEMA, cold=cold)
    here = str(Path(__file__).parent)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, here, str(root), str(first)])
        for first in (0, 100)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    table.seal()
    seals = [c for c in table.history() if c.operation == "seal"]
    assert sum(c.rows_added for c in seals) == 10
    expected = 10
    for change in seals:  # each is one more step back
        assert len(ids(table.at(change.version))) == expected
        expected -= change.rows_added
    assert expected == 0


def test_a_forked_child_is_told(open_lake):
    table = open_lake().create_table("events", SCHEMA)
    old = table.at(seal(table, 0, 5))
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def ask() -> None:
        for question in (old.to_arrow, lambda: old.sql(COUNT), table.history):
            try:
                question()
                answers.put("answered")
            except ls.ClosedError:
                answers.put("closed")

    child = context.Process(target=ask)
    child.start()
    assert [answers.get() for _ in range(3)] == ["closed"] * 3
    child.join()


def test_in_a_store(prefix, store, tmp_path, clock, cold):
    options = {"storage_options": store.options, "upkeep": "manual", "clock": clock}
    options |= {"settings": SETTINGS}
    with ls.open(prefix, local=tmp_path / "local", **options) as lake:
        table = lake.create_table("events", SCHEMA, cold=cold)
        versions = [seal(table, 0, 10), seal(table, 10, 20)]
        table.compact()
        assert [ids(table.at(v)) for v in versions] == [names(0, 10), names(0, 20)]
        assert all(c.readable for c in table.history())
        clock.move(101)
        place = tmp_path / ("reader" if cold == "delta" else "local")  # Parquet is one host's
        reader = ls.open(prefix, local=place, mode="r", **options)
        old = reader["events"].at(versions[0]) if cold == "delta" else None
        assert len(table.vacuum(dry_run=False).cold) == 2
        assert [c.readable for c in table.history() if c.version in versions] == [False, False]
        with pytest.raises(ls.NotFoundError, match="cannot be asked any more"):
            table.at(versions[1])
        assert ids(table) == names(0, 20)
        if old is not None:
            with pytest.raises(ls.NotFoundError, match="cannot be asked any more"):
                old.to_arrow()
        reader.close()


def test_sites_share_one_history(root, tmp_path, clock):
    with postgres() as server:
        where = {"catalog": server.url, "upkeep": "manual", "clock": clock, "settings": SETTINGS}
        with (
            ls.open(root, local=tmp_path / "a", **where) as a,
            ls.open(root, local=tmp_path / "b", **where) as b,
        ):
            a.create_table("events", SCHEMA)
            versions = []
            for number, lake in enumerate((a, b, a)):
                versions.append(seal(lake["events"], number * 5, number * 5 + 5))
            b["events"].compact()
            assert a["events"].history() == b["events"].history()
            named = {x._site.catalog.site: x for x in (a, b)}
            assert [named[c.by] for c in a["events"].history()] == [b, a, b, a, a]
            for lake in (a, b):
                table = lake["events"]
                assert [len(ids(table.at(v))) for v in versions] == [5, 10, 15]
            clock.move(101)
            old = a["events"].at(versions[0])
            b["events"].vacuum(dry_run=False)
            with pytest.raises(ls.NotFoundError, match="cannot be asked any more"):
                old.to_arrow()
            readable = [c.readable for c in a["events"].history()]
            assert readable == [True, False, False, False, True]
            site = b._site.catalog.site
        rebuild(root, clock, local=tmp_path / "b", catalog=server.url)
        with ls.open(root, local=tmp_path / "b", **where) as b:
            assert ids(b["events"]) == names(0, 15)
            assert b["events"].history(1)[0].by == site
            assert len(ids(b["events"].at(b["events"].history(1)[0].version))) == 15


def test_from_the_command_line(tmp_path, cold):
    root = tmp_path / "lake"
    with ls.open(root, upkeep="manual") as lake:
        table = lake.create_table("events", SCHEMA, cold=cold)
        versions = [seal(table, 0, 10), seal(table, 10, 30)]
        seals = {c.version: c for c in table.history()}
    found = json.loads(ok("history", root, "events", "--json"))
    assert found["table"] == "events"
    assert [c["version"] for c in found["history"]] == list(seals)
    assert found["history"] == [c.to_dict() for c in seals.values()]
    assert len(json.loads(ok("history", root, "events", "--limit", 1, "--json"))["history"]) == 1
    shown = ok("history", root, "events")
    assert f"events={versions[0]}" in shown
    assert "+20" in shown
    for version, rows in zip(versions, (10, 30), strict=True):
        moment = seals[version].at.isoformat()
        for when in (version, moment):
            answer = ok("sql", root, COUNT, "--at", f"events={when}", "--json")
            assert json.loads(answer) == [{"count_star()": rows}]
    assert "has no version 77" in fails("sql", root, COUNT, "--at", "events=77")
    fails("sql", root, COUNT, "--at", "77", code=2)
    assert "no table 'x'" in fails("history", root, "x")


def test_telling_what_is_readable_is_pure():
    time = datetime(2025, 1, 1, tzinfo=UTC)

    def change(version: int, added: int, removed: int) -> Version:
        return Version(version, time, "x", 0, 0, added, removed, None)

    # 1 adds a and b; 3 adds c; 4 puts d in the place of a and b; 6 removes c; 7 brings a back
    changes = [change(7, 1, 0), change(6, 0, 1), change(4, 1, 2), change(3, 1, 0), change(1, 2, 0)]
    went = [Span("a", 1, 4), Span("b", 1, 4), Span("c", 3, 6)]
    live = {4: 1, 7: 1}

    def readable(missing: set[str], left: list[Span]) -> list[int]:
        found = Past(changes, live, left).told(missing)
        return [c.version for c in found if c.readable]

    assert readable(set(), went) == [7, 6, 4, 3, 1]
    assert readable({"c"}, went) == [7, 6, 1]
    assert readable({"b"}, went) == [7, 6, 4]
    assert readable(set(), went[1:]) == [7, 6, 4]  # nothing tells of a's first time any more
    assert readable(set(), []) == [7, 6]
    assert readable({"b", "c"}, went) == [7, 6]
