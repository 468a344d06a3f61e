"""Compaction: few files of the target size in the place of many, and no answer changes."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LARGE, START, events
from support.commands import rebuild
from support.partials import relation
from support.planted import assert_caught

import lakestore as ls
from lakestore import coldfiles, compact, datafile, replacement, retain
from lakestore.catalog.coldlist import ColdList
from lakestore.catalog.commit import Commit
from lakestore.cold.keeper import RecordKeeper, records_of
from lakestore.cold.logwriter import LogWriter
from lakestore.coldfiles import Rows
from lakestore.delta.actions import Remove
from lakestore.failpoint import at
from lakestore.rebuild import tables as rebuilding
from lakestore.replacement import Replacement
from lakestore.snapshot import ColdFile, FileInfo

MANY = "name, count(*), sum(n), count(DISTINCT place.zip), sum(len(tags))"
SETTINGS = {"cold_grace_s": 100, "vacuum_grace_s": 10}


@pytest.fixture(params=["parquet", "delta"])
def cold(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rows(start: int, stop: int) -> pa.Table:
    """Events, ten an hour, with a body."""
    made = events(start, stop, step=timedelta(minutes=6))
    bodies = [f"body {i % 13} " * 20 for i in range(start, stop)]
    return made.append_column("body", pa.array(bodies))


def fill(table: ls.Table, seals: int = 12, each: int = 50) -> None:
    """Seals of five hours each: two days and a half."""
    for number in range(seals):
        table.append(rows(number * each, (number + 1) * each), producer="p", seq=number)
        table.seal()


def answers(lake: ls.Lake) -> dict[str, Any]:
    """What users ask."""
    table = lake["events"]
    page = table.page(limit=70, offset=35)
    return {
        "rows": table.to_arrow().sort_by("id").to_pylist(),
        "sql": lake.sql(
            "SELECT name, count(*), sum(n) FROM events GROUP BY 1 ORDER BY 1"
        ).fetchall(),
        "page": (page.rows, page.total, page.totals),
        "get": table.get_many(["e000007", "e000333", "none"]),
        "totals": table.totals(["count", "sum(n)", "p95(n)"], where={"name": "name 2"}),
        "series": table.series("sum(n)", every="1h", by="name").to_arrow().to_pylist(),
        "facets": table.facets("name"),
        "counters": table.counters("name"),
        "scan": table.scan().filter(pl.col("n") > 100).select(pl.len()).collect().item(),
        "payload": lake.sql("SELECT count(*), count(DISTINCT body) FROM events_payload").fetchall(),
    }


def files(lake: ls.Lake) -> dict[date | None, list[ColdFile]]:
    found: dict[date | None, list[ColdFile]] = {}
    for file in lake["events"]._context.state(newest=True).cold:
        found.setdefault(file.day, []).append(file)
    return found


def test_no_answer_changes(open_lake, root, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table)
    before, many = answers(lake), files(lake)
    assert [len(of_day) for of_day in many.values()] == [5, 6, 3]
    done = table.compact()
    assert (done.days, done.files_before, done.files_after, done.duplicates) == (3, 14, 3, 0)
    few = files(lake)
    assert [len(of_day) for of_day in few.values()] == [1, 1, 1]
    assert few.keys() == many.keys()
    assert answers(lake) == before
    assert lake.verify().problems == ()
    assert table.compact().days == 0  # nothing is left to do
    lake.close()
    assert answers(open_lake(mode="r")) == before
    writer = open_lake(settings=SETTINGS)
    assert writer["events"].append(rows(100, 150), producer="p", seq=2).rows == 0
    writer["events"].append(rows(90, 110), producer="q", seq=1)
    writer["events"].flush()  # which finds all of them sealed
    assert answers(writer) == before


def test_an_output_is_as_a_sealed_file(open_lake, root, cold):
    lake = open_lake()
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table)
    table.compact()
    for (file,) in files(lake).values():
        path = table._context.cold_path(file)
        footer = datafile.read_footer(path)
        assert (footer["first"], footer["last"], footer["tier"]) == (0, 0, "cold")
        held = pq.read_table(path, partitioning=None)
        keys = list(zip(held["name"].to_pylist(), held["time"].to_pylist(), strict=True))
        assert keys == sorted(keys, key=lambda k: (k[0] is None, *k))  # nulls last, as DuckDB sorts
        assert {t.date() for t in held["time"].to_pylist()} == {file.day}
        (one,) = LARGE.document.rollups
        with table._context.partials.load(one, (), (file,)) as loaded:
            assert not loaded.missing
            with lake._site.engine.cursor() as cursor:
                query = f"SELECT sum(n) FROM {relation(loaded)}"
                assert cursor.execute(query).fetchall() == [(file.info.rows,)]
        column = pq.ParquetFile(path).metadata.row_group(0).column(0)
        assert column.bloom_filter_offset is None or column.bloom_filter_offset > 0


def test_what_was_replaced_goes_after_its_grace(open_lake, root, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table)
    before = answers(lake)
    replaced = [table._context.cold_path(f) for of_day in files(lake).values() for f in of_day]
    table.compact()
    clock.move(99)
    table.vacuum(dry_run=False)
    assert all(path.exists() for path in replaced)
    clock.move(2)
    assert len(table.vacuum().cold) == 14  # says so, and deletes nothing
    assert all(path.exists() for path in replaced)
    assert len(table.vacuum(dry_run=False).cold) == 14
    assert not any(path.exists() for path in replaced)
    partials = sorted((root / "tables/events/_rollups").rglob("*.parquet"))
    assert len(partials) == 3  # their partials went too
    assert answers(lake) == before
    assert lake.verify().problems == ()


@pytest.mark.faults
@pytest.mark.parametrize("vacuumed", [False, True])
def test_a_rebuild_knows_what_was_replaced(open_lake, root, cold, clock, vacuumed):
    lake = open_lake(settings=SETTINGS | {"cold_grace_s": 0 if vacuumed else 10**6})
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 4)
    table.compact()
    fill(table, 12)
    table.append(rows(600, 601), producer="once", seq=7)  # in a file that goes
    table.seal()
    table.compact()
    table.append(rows(590, 620), producer="p", seq=20)
    table.seal()
    clock.move(1000)
    assert len(table.vacuum(dry_run=False).cold) == (15 + 1 if vacuumed else 0)
    before = answers(lake)
    lake.close()
    (root / "_site/catalog.sqlite").unlink()
    made = rebuild(root)
    again = open_lake(settings=SETTINGS)
    assert answers(again) == before
    assert again.verify().problems == ()
    assert [table.name for table in made.tables] == ["events"]
    table = again["events"]
    assert table.append(rows(0, 5), producer="p", seq=3).rows == 0  # its number is known
    assert table.append(rows(600, 601), producer="once", seq=7).rows == 0
    table.append(rows(0, 5), producer="p", seq=21)
    assert table.flush() == 0  # and so are the events
    table.append(rows(620, 700))
    table.seal()
    table.compact()
    assert again.verify().problems == ()


@pytest.mark.faults
@pytest.mark.parametrize("point", ["compact.5", "swap.1", "swap.2", "record.1", "record.2"])
def test_a_rebuild_after_a_crash_at_the_commit(open_lake, root, cold, clock, point):
    """What was not committed is left out; what was, is the table, though the record is not kept."""
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 3)
    if (cold, point) == ("parquet", "swap.2"):
        point = "swap.1"
    before = answers(lake)

    class Crash(BaseException):
        pass

    def crash() -> None:
        raise Crash

    with at(point, crash), pytest.raises(Crash):
        table.compact()
    now = answers(lake)
    assert now == before
    lake.close()
    (root / "_site/catalog.sqlite").unlink()
    for vacuumed in (False, True):  # the second knows as little, and some files are gone
        rebuild(root, clock)
        again = open_lake(settings=SETTINGS)
        assert answers(again) == before
        assert again.verify().ok
        again["events"].compact()
        clock.move(1000)
        assert bool(again["events"].vacuum().cold) is not vacuumed
        again["events"].vacuum(dry_run=False)
        assert answers(again) == before
        assert again.verify().ok
        assert again["events"].append(rows(0, 5), producer="p", seq=2).rows == 0
        again.close()
        (root / "_site/catalog.sqlite").unlink()


def test_a_crash_before_the_record_is_kept_is_made_good(open_lake, root, cold, clock):
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 3)
    before = answers(lake)
    point = "swap.1" if cold == "parquet" else "swap.2"

    class Crash(BaseException):
        pass

    def crash() -> None:
        raise Crash

    with at(point, crash), pytest.raises(Crash):
        table.compact()
    folder = root / "tables/events/_replaced"
    assert not folder.exists()
    clock.move(1000)
    assert table.vacuum(dry_run=False).cold == ()  # nothing goes before its record is there
    lake.close()
    lake = open_lake(settings=SETTINGS)
    lake["events"]
    assert len(list(folder.iterdir())) == 1
    clock.move(1000)
    assert len(lake["events"].vacuum(dry_run=False).cold) == 3
    assert answers(lake) == before
    assert lake.verify().problems == ()


def test_of_two_that_would_replace_a_file_one_gives_up(open_lake, root, cold):
    lake = open_lake()
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 4)
    before = answers(lake)
    context = table._context
    (job,) = compact.choose(context.state().cold, date.max, 1 << 28, schema_version=1, eager=True)
    with at("compact.5", lambda: compact.compact(context, job)), pytest.raises(ls.ConflictError):
        compact.compact(context, job)
    assert answers(lake) == before
    assert [len(of_day) for of_day in files(lake).values()] == [1]
    lake.close()
    lake = open_lake(settings={"cold_grace_s": 0, "vacuum_grace_s": 0})
    lake["events"].vacuum(dry_run=False)  # the loser's files too
    assert len(list((root / "tables/events/data").rglob("*.parquet"))) == 1
    assert lake.verify().problems == ()
    assert answers(lake) == before


def test_a_file_that_goes_meanwhile_is_a_conflict(open_lake, cold):
    lake = open_lake(settings={"cold_grace_s": 0, "vacuum_grace_s": 0})
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 4)
    context = table._context
    (job,) = compact.choose(context.state().cold, date.max, 1 << 28, schema_version=1, eager=True)

    def another() -> None:
        compact.compact(context, job)
        table.vacuum(dry_run=False)

    with at("compact.1", another), pytest.raises(ls.ConflictError, match="replaced meanwhile"):
        compact.compact(context, job)
    assert lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [(200, 200)]
    assert lake.verify().ok


def test_a_commit_of_which_nobody_heard(open_lake, clock, monkeypatch):
    """It never came: the next compaction is the one, and what the first has made is deleted."""
    lake = open_lake(settings=SETTINGS)
    table = lake.create_table("events", LARGE, cold="delta")
    fill(table, 4)
    before = answers(lake)

    def unheard(*_: object) -> bool:
        raise ls.CommitUncertainError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(LogWriter, "_commit", unheard)
        with pytest.raises(ls.CommitUncertainError):
            table.compact()
    assert lake.verify().problems == ()
    assert table.compact().files_before == 4
    clock.move(1000)
    assert len(table.vacuum(dry_run=False).cold) == 4 + 1
    assert answers(lake) == before
    lake.close()
    assert open_lake(mode="r").verify().problems == ()


def test_seals_go_on_meanwhile(open_lake, cold):
    lake = open_lake()
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 4)

    def seal_some() -> None:
        table.append(rows(0, 230))
        table.seal()

    with at("compact.5", seal_some):
        table.compact()
    assert lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [(230, 230)]
    assert lake.verify().problems == ()


def test_residual_duplicates_go(open_lake):
    """Nothing makes any, so a file is listed that holds the rows of a seal once more."""
    lake = open_lake()
    table = lake.create_table("events", LARGE, cold="parquet")
    fill(table, 2)
    context = table._context
    second = [f for f in context.state().cold if f.first == 2]
    (file,) = second
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(100,)]
    with coldfiles.workplace(context, "test") as folder:
        written = list(
            coldfiles.write(
                folder,
                context.schema,
                context.footer(tier="cold", seal="s", first=0, last=0),
                coldfiles.by_day(
                    folder, context.lineage, Rows([(1, context.cold_path(file))]), 1 << 28
                ),
                1 << 28,
            )
        )
        (one,) = written
        twice = coldfiles.named(context, one, 0, 0, 0)
        coldfiles.publish(context, [(twice, one)], folder, {}, lambda: None)
    with lake._site.catalog.commit() as commit:
        commit.cold(context.entry.id).add([twice])
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(150,)]
    done = table.compact()
    assert (done.duplicates, done.files_after) == (50, 1)
    assert lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [(100, 100)]


def test_a_damaged_input_stops_it(open_lake, cold):
    lake = open_lake()
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 3)
    path = table._context.cold_path(table._context.state().cold[1])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(ls.CorruptionError, match="is not what was published"):
        table.compact()
    assert [len(of_day) for of_day in files(lake).values()] == [3]


def test_a_damaged_record_is_told(open_lake, root):
    lake = open_lake()
    table = lake.create_table("events", LARGE)
    fill(table, 3)
    table.compact()
    (path,) = (root / "tables/events/_replaced").iterdir()
    (record,) = records_of(lake._site.storage, "events", lake._site.storage.list("tables/"))
    assert (record.operation, len(record.removed), len(record.added)) == ("compact", 3, 1)
    text = path.read_text()
    path.chmod(0o644)
    path.write_text(text.replace('"last":2', '"last":1'))
    assert "record" in {problem.kind for problem in lake.verify().problems}
    lake.close()
    with pytest.raises(ls.CorruptionError, match="is no record of a replacement"):
        rebuild(root)
    path.write_text(text)
    assert rebuild(root).tables[0].rows == 150


def test_the_target_size_is_kept(open_lake, cold):
    lake = open_lake(settings={"cold_file_bytes": 20_000})
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 40, 5)
    before = answers(lake)
    done = table.compact()
    assert done.files_before == 43
    assert 0 < done.files_after < 14
    assert answers(lake) == before
    again = table.compact()
    assert again.days == 0 or again.files_after < again.files_before


def test_today_is_left_alone_unless_asked(open_lake, clock):
    lake = open_lake()
    table = lake.create_table("events", LARGE)
    clock.time = START + timedelta(hours=12)
    fill(table, 2)
    assert table.compact().days == 0
    assert table.compact(today=True).files_before == 2


@pytest.mark.faults
def test_ten_thousand_tiny_appends_end_as_few_files(open_lake):
    lake = open_lake(settings={"segments_max": 10_000})
    table = lake.create_table("events", LARGE)
    for number in range(120):
        table.append(rows(number, number + 1))
        table.flush()
        if number % 2:
            table.seal()
    before = answers(lake)
    table.seal()
    done = table.compact()
    assert (done.files_before, done.files_after) == (60, 1)
    assert answers(lake) == before


def cold_file(name: str, day: date | None, size: int, version: int = 1) -> ColdFile:
    time = datetime(2025, 1, 1, tzinfo=UTC)
    return ColdFile(name, day, 1, 1, version, FileInfo(1, size, "", time, time))


def named(day: date) -> Iterator[str]:
    return (f"day={day}/0a0a0a0a-{n:06d}-{n:06d}-0000-0123456789ab.parquet" for n in count(1))


def test_choosing_is_pure():
    one, two = date(2025, 1, 1), date(2025, 1, 2)
    names, more = named(one), named(two)
    small = [cold_file(next(names), one, 10) for _ in range(3)]
    big = cold_file(next(names), one, 90)
    foreign = [cold_file(f"part-{n}.parquet", one, 10) for n in range(5)]
    old = [cold_file(next(names), one, 10, version=1) for _ in range(2)]

    def chosen(files: list[ColdFile], *, eager: bool, today: date = two, version: int = 1):
        jobs = compact.choose(files, today, 100, schema_version=version, eager=eager)
        return [[f.name for f in job.files] for job in jobs]

    assert chosen([*small, big, *foreign], eager=True) == [[f.name for f in small]]
    assert chosen([*small, big, *foreign], eager=False) == []  # three are too few by themselves
    assert len(chosen([*small, *old, big], eager=False)[0]) == 5
    assert chosen(small, eager=True, version=2) == chosen(small, eager=True)
    assert chosen(small, eager=True, version=0) == []
    assert chosen(small, eager=True, today=one) == []
    assert chosen(small[:1], eager=True) == []
    unlike = [*small, cold_file(next(names), one, 70), cold_file(next(names), one, 70)]
    assert chosen(unlike, eager=False) == []  # the large ones are not written for three small ones
    assert len(chosen(unlike, eager=True)[0]) == 5
    of_both = [*small, *(cold_file(next(more), two, 20) for _ in range(30))]
    jobs = compact.choose(of_both, date.max, 100, schema_version=1, eager=True)
    assert {job.day for job in jobs} == {one, two}
    assert all(job.bytes <= 400 for job in jobs)  # four files of the target size at once
    assert [len(job.files) for job in jobs if job.day == two] == [20, 10]


def test_readers_and_a_compactor(open_lake, cold):
    """Counts are exact all the while, in queries, lookups and rollups."""
    lake = open_lake(settings={"cold_grace_s": 0, "vacuum_grace_s": 0})
    table = lake.create_table("events", LARGE, cold=cold)
    fill(table, 8, 10)
    done = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not done.is_set():
            seen = (
                lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall()[0],
                table.totals("count")["count"],
                table.get("e000042")["id"],
            )
            if seen != ((80, 80), 80, "e000042"):
                wrong.append(seen)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(6):
        table.append(rows(0, 80).slice(number, 1))  # a duplicate: a seal of no rows
        table.seal()
        table.compact()
        table.vacuum(dry_run=False)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def _keep_no_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecordKeeper, "_keep", lambda *_: None)


def _keep_no_footers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replacement, "of_use", lambda _: {})


def _rebuild_without_records(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rebuilding, "gone", lambda _: {})


def _rebuild_without_what_the_log_removed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rebuilding, "_site_of", lambda _: "nobody")


def _replace_what_is_gone(patch: pytest.MonkeyPatch) -> None:
    remove = ColdList.remove

    def hasty(cold: ColdList, gone: Sequence[ColdFile]) -> None:
        with suppress(ls.ConflictError):
            remove(cold, gone)

    patch.setattr(ColdList, "remove", hasty)


def _remove_nothing_from_the_log(patch: pytest.MonkeyPatch) -> None:
    line = Remove.line
    patch.setattr(
        Remove, "line", lambda gone, **said: line(Remove("other", gone.deleted_ms), **said)
    )


def _delete_before_the_record_is_kept(patch: pytest.MonkeyPatch) -> None:
    replace = Commit.replace

    def hasty(commit: Commit, id: int, done: Replacement) -> None:
        replace(commit, id, done)
        commit.add_garbage(id, "cold", [file.name for file in done.removed])

    patch.setattr(Commit, "replace", hasty)


def _delete_without_grace(patch: pytest.MonkeyPatch) -> None:
    chosen = retain.choose
    patch.setattr(
        retain, "choose", lambda garbage, now, *_: chosen(garbage, now, 0, 0, frozenset())
    )


def _leave_the_last_row_out(patch: pytest.MonkeyPatch) -> None:
    by_day = coldfiles.by_day

    def less(*arguments: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
        for day, batch in by_day(*arguments):
            yield day, batch.slice(0, batch.num_rows - 1)

    patch.setattr(coldfiles, "by_day", less)


def _sort_nothing(patch: pytest.MonkeyPatch) -> None:
    by_day = coldfiles.by_day

    def turned(*arguments: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
        for day, batch in by_day(*arguments):
            yield day, batch.take(pa.array(range(batch.num_rows - 1, -1, -1)))

    patch.setattr(coldfiles, "by_day", turned)


def _keep_every_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compact, "_repeats", lambda *_: None)


def _forget_what_a_loser_made(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Commit, "condemn", lambda *_: None)


REBUILDS = test_a_rebuild_knows_what_was_replaced
CRASHES = test_a_rebuild_after_a_crash_at_the_commit
PLANTED: list[tuple[Callable[..., None], Callable[..., None], dict[str, object]]] = [
    (_keep_no_record, REBUILDS, {"cold": "parquet", "vacuumed": True}),
    (_keep_no_record, REBUILDS, {"cold": "delta", "vacuumed": True}),
    (_keep_no_footers, REBUILDS, {"cold": "delta", "vacuumed": True}),
    (_keep_no_footers, REBUILDS, {"cold": "parquet", "vacuumed": True}),
    (_rebuild_without_records, REBUILDS, {"cold": "parquet", "vacuumed": False}),
    (_rebuild_without_what_the_log_removed, CRASHES, {"cold": "delta", "point": "swap.2"}),
    (
        _replace_what_is_gone,
        test_of_two_that_would_replace_a_file_one_gives_up,
        {"cold": "parquet"},
    ),
    (_remove_nothing_from_the_log, test_no_answer_changes, {"cold": "delta"}),
    (
        _delete_before_the_record_is_kept,
        test_a_crash_before_the_record_is_kept_is_made_good,
        {"cold": "parquet"},
    ),
    (_delete_without_grace, test_what_was_replaced_goes_after_its_grace, {"cold": "parquet"}),
    (_leave_the_last_row_out, test_no_answer_changes, {"cold": "parquet"}),
    (_sort_nothing, test_an_output_is_as_a_sealed_file, {"cold": "parquet"}),
    (_keep_every_row, test_residual_duplicates_go, {}),
    (
        _forget_what_a_loser_made,
        test_of_two_that_would_replace_a_file_one_gives_up,
        {"cold": "parquet"},
    ),
]


@pytest.mark.parametrize(("plant", "test", "arguments"), PLANTED)
def test_a_planted_bug_is_caught(request, figure, plant, test, arguments):
    assert_caught(request, figure, "compaction", plant, test, **arguments)
