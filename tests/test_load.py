"""Load: straight to cold files, each row once, whoever else writes and whatever is killed."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import SCHEMA, START, events
from deltalake import DeltaTable
from support.commands import rebuild
from support.sites import before_the_next_commit

import lakestore as ls
from lakestore import failpoint
from lakestore.catalog.records import AcceptedError
from lakestore.clock import SystemClock
from lakestore.load import chunks, ordering

Open = Callable[..., ls.Lake]
COLD = ("parquet", "delta")
MINUTE = timedelta(minutes=1)
PLAIN = ls.TableSchema.from_arrow(SCHEMA.arrow, event_id="id", event_time="time", dedup="none")
PAID = ls.TableSchema.from_toml(
    """
    format = 2
    event_id = "id"
    event_time = "time"
    [columns]
    id = "VARCHAR not null"
    time = "TIMESTAMPTZ not null"
    who = "VARCHAR default 'nobody'"
    twice = "BIGINT"
    n = "BIGINT"
    body = "VARCHAR"
    secret = "VARCHAR"
    [payload]
    body = "full"
    secret = "hash"
    [derived]
    twice = "2 * n"
    [[rollups]]
    name = "daily"
    every = "1d"
    by = ["who"]
    sums = ["n"]
    """
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 100)


def reader(rows: pa.Table, each: int = 30) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches(max_chunksize=each))


def numbers(table: ls.Table) -> list[int]:
    return sorted(int(id[1:]) for id in table.to_arrow(["id"])["id"].to_pylist())


def tiers(table: ls.Table) -> tuple[int, int]:
    """Rows of segments, and of cold files."""
    state = table._context.state()
    return sum(s.info.rows for s in state.hot), sum(f.info.rows for f in state.cold)


def assert_sound(lake: ls.Lake) -> None:
    report = lake.verify()
    assert report.ok, report.problems
    assert not report.problems


@pytest.mark.parametrize("cold", COLD)
def test_rows_are_cold_and_as_they_were_handed_in(lake: ls.Lake, cold: str) -> None:
    table = lake.create_table("events", SCHEMA, cold=cold)
    rows = events(0, 350)
    seen: list[tuple[int, int | None]] = []
    loaded = table.load(reader(rows), progress=lambda p: seen.append((p.rows, p.rows_total)))
    assert (loaded.rows, loaded.duplicates, loaded.skipped) == (350, 0, 0)
    assert loaded.chunks == 3
    assert seen == [(0, None), (120, None), (240, None), (350, None)]
    assert tiers(table) == (0, 350)
    cold_files = table._context.state().cold
    assert loaded.files == len(cold_files)
    assert loaded.bytes == sum(file.info.bytes for file in cold_files)
    assert table.to_arrow().sort_by("id").select(rows.schema.names).equals(rows)
    for file in cold_files:
        (day,) = {
            t.date() for t in pq.read_table(table._context.cold_path(file))["time"].to_pylist()
        }
        assert file.day == day
    assert_sound(lake)


@pytest.mark.parametrize("cold", COLD)
def test_rows_are_made_as_an_append_makes_them(lake: ls.Lake, cold: str) -> None:
    """Derived, defaulted, and parted from their payloads: the same table either way."""
    loaded = lake.create_table("loaded", PAID, cold=cold)
    appended = lake.create_table("appended", PAID, cold=cold)
    rows = events(0, 130).select(["id", "time", "n"])
    rows = rows.append_column("body", pa.array([f"body {i % 9}" for i in range(130)]))
    rows = rows.append_column("secret", pa.array(["s" if i % 2 else None for i in range(130)]))
    assert loaded.load(reader(rows)).rows == 130
    appended.append(rows)
    appended.seal()
    one, other = (t.to_arrow().sort_by("id").drop(["payload_ref"]) for t in (loaded, appended))
    assert one.equals(other)
    assert set(one["who"].to_pylist()) == {"nobody"}
    assert one["twice"].to_pylist()[1:4] == [2, 4, 6]
    for number in (0, 64, 129):
        assert loaded.get(f"e{number:06d}") == appended.get(f"e{number:06d}") | {
            "payload_ref": loaded.get(f"e{number:06d}")["payload_ref"]
        }
    assert loaded.get("e000064")["body"] == "body 1"
    context = loaded._context
    (rollup,) = context.schema.document.rollups
    partials = [context.partials.files.read(rollup, file) for file in context.state().cold]
    assert None not in partials, "a loaded file has its partials beside it"
    assert dict(loaded.totals("sum(n)")) == dict(appended.totals("sum(n)"))
    assert_sound(lake)


@pytest.mark.parametrize("cold", COLD)
def test_the_first_durable_row_wins(lake: ls.Lake, cold: str) -> None:
    table = lake.create_table("events", SCHEMA, cold=cold)

    def marked(start: int, stop: int, name: str) -> pa.Table:
        rows = events(start, stop, step=MINUTE)
        at = rows.schema.get_field_index("name")
        return rows.set_column(at, "name", pa.array([name] * (stop - start)))

    table.append(marked(0, 20, "cold"))
    table.seal()
    table.append(marked(20, 40, "hot"))
    table.flush()
    table.append(marked(40, 60, "buffered"))
    again = pa.concat_tables([marked(0, 90, "loaded"), marked(50, 100, "late")])
    report = table.load(reader(again))
    assert (report.rows, report.duplicates) == (40, 100)
    counts = dict(lake.sql("SELECT name, count(*) FROM events GROUP BY 1").fetchall())
    assert counts == {"cold": 20, "hot": 20, "buffered": 20, "loaded": 30, "late": 10}
    assert numbers(table) == list(range(100)), "no query shows two, before any flush"
    lake.flush()
    lake.seal()
    assert numbers(table) == list(range(100))
    assert_sound(lake)


def test_ids_of_different_days_are_different_events(lake: ls.Lake) -> None:
    table = lake.create_table("events", SCHEMA)
    rows = events(0, 50, step=MINUTE)
    later = rows.set_column(1, "time", events(0, 50, step=timedelta(days=1))["time"])
    assert table.load(rows).rows == 50
    assert table.load(later).rows == 49
    scoped = lake.create_table(
        "scoped", SCHEMA.arrow, event_id="id", event_time="time", dedup="table"
    )
    assert scoped.load(rows).rows == 50
    assert scoped.load(later).rows == 0


@pytest.mark.parametrize("cold", COLD)
def test_a_source_of_a_name_is_loaded_once(lake: ls.Lake, cold: str) -> None:
    table = lake.create_table("events", PLAIN, cold=cold)
    rows = events(0, 250)
    assert table.load(reader(rows), load_id="first").rows == 250
    again = table.load(reader(rows), load_id="first")
    assert (again.rows, again.skipped, again.files) == (0, 250, 0)
    longer = table.load(reader(events(0, 300)), load_id="first")
    assert (longer.rows, longer.skipped) == (50, 250)
    assert numbers(table) == list(range(300))
    assert table.load(rows).rows == 250, "without a name it is another one"
    named = table._context.site.catalog.producers(table._context.entry.id)
    assert named == {"load:first": 300}, "what nobody can name again is not remembered"
    for wrong in ("", "x" * 501, 7, "\0"):
        with pytest.raises(ls.InvalidInputError, match="load_id"):
            table.load(rows, load_id=wrong)


@pytest.mark.parametrize("cold", COLD)
@pytest.mark.parametrize("point", [*(f"load.{n}" for n in range(1, 11)), "seal.6", "delta.1"])
def test_what_fails_half_way_goes_on_where_it_was(lake: ls.Lake, cold: str, point: str) -> None:
    """Without duplicates told by id, so that nothing but the count of rows helps."""
    if point.split(".")[0] == ("delta" if cold == "parquet" else "seal"):
        pytest.skip("not on the way of this format")
    table = lake.create_table("events", PLAIN, cold=cold)
    with failpoint.at(point, "ENOSPC", hit=2) as trap, pytest.raises(ls.StorageError):
        table.load(reader(events(0, 350)), load_id="l")
    assert trap.seen >= 2, "files are published some at a time"
    done = len(numbers(table))
    assert done in (0, 120, 240)
    report = table.load(reader(events(0, 350)), load_id="l")
    assert numbers(table) == list(range(350))
    assert report.rows + report.skipped == 350
    lake.seal()
    assert_sound(lake) if point in ("load.1", "load.2") else None
    assert lake.verify().ok


def test_a_row_that_does_not_fit_is_named_and_what_was_before_stays(lake: ls.Lake) -> None:
    table = lake.create_table("events", SCHEMA)
    rows = events(0, 250).to_batches(max_chunksize=50)
    bad = pa.table({"id": ["x"], "time": ["soon"]})
    with pytest.raises(ls.SchemaError, match="after row 250: row 0: column 'time': 'soon'"):
        table.load([*rows, bad])
    assert numbers(table) == list(range(200))
    with pytest.raises(ls.InvalidInputError, match="cannot load int"):
        table.load(7)


@pytest.mark.parametrize(
    "kind",
    [
        "table",
        "reader",
        "polars",
        "lazy",
        "dataset",
        "scanner",
        "batches",
        "rows",
        "result",
        "nothing",
    ],
)
def test_anything_that_has_rows_is_a_source(lake: ls.Lake, tmp_path: Path, kind: str) -> None:
    table = lake.create_table("events", SCHEMA)
    rows = events(0, 230)
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=70)
    sources: dict[str, Any] = {
        "table": rows,
        "reader": reader(rows),
        "polars": pl.from_arrow(rows),
        "lazy": pl.from_arrow(rows).lazy(),
        "dataset": ds.dataset(tmp_path / "rows.parquet"),
        "scanner": ds.dataset(tmp_path / "rows.parquet").scanner(),
        "batches": iter(rows.to_batches(max_chunksize=40)),
        "rows": (row for row in rows.to_pylist()),
        "nothing": rows.slice(0, 0),
    }
    if kind == "result":
        lake.create_table("other", SCHEMA).append(rows)
        sources["result"] = lake.sql("FROM other ORDER BY id")
    report = table.load(sources[kind])
    expected = list(range(230)) if kind != "nothing" else []
    assert report.rows == len(expected)
    assert numbers(table) == expected
    if kind == "lazy":
        assert table.load(sources["lazy"].filter(pl.col("n") > 100)).duplicates == 118


def test_a_reader_of_the_lake_may_not_load(lake: ls.Lake, open_lake: Open) -> None:
    lake.create_table("events", SCHEMA)
    with pytest.raises(ls.InvalidInputError, match="mode"):
        open_lake(mode="r")["events"].load(events(0, 1))


class TestOthers:
    """Other threads and processes append, flush and seal meanwhile."""

    @pytest.mark.parametrize("cold", COLD)
    @pytest.mark.parametrize("point", ["load.2", "load.4", "load.5", "load.8"])
    @pytest.mark.parametrize("deed", ["append", "flush", "seal"])
    def test_what_became_durable_before_the_commit_wins(
        self, lake: ls.Lake, open_lake: Open, cold: str, point: str, deed: str
    ) -> None:
        """Between any two steps of a chunk, another process has some of its rows."""
        table = lake.create_table("events", SCHEMA, cold=cold)
        other = open_lake()["events"]
        rows = events(0, 80, step=MINUTE)
        mine = rows.set_column(4, "name", pa.array(["loaded"] * 80))
        theirs = rows.set_column(4, "name", pa.array(["appended"] * 80)).slice(30, 20)

        def meanwhile() -> None:
            other.append(theirs)
            if deed != "append":
                other.flush()
            if deed == "seal":
                other._upkeep.seal(other._context)

        with failpoint.at(point, meanwhile):
            report = table.load(mine)
        assert (report.rows, report.duplicates) == (60, 20)
        assert numbers(table) == list(range(80))
        for handle in (other, table):
            handle.flush()
            handle.seal()
        assert numbers(table) == list(range(80))
        count = lake.sql("SELECT count(*) FROM events WHERE name = 'appended'").fetchone()
        assert count == (20,)
        assert lake.verify().ok
        if point != "load.8":  # after that, files that were made in vain are there for good
            assert_sound(lake)

    @pytest.mark.parametrize("cold", COLD)
    @pytest.mark.parametrize("step", ["flush.2", "flush.3"])
    def test_a_flush_that_a_load_overtakes_looks_again(
        self, lake: ls.Lake, open_lake: Open, cold: str, step: str
    ) -> None:
        table = lake.create_table("events", SCHEMA, cold=cold)
        other = open_lake()["events"]
        with failpoint.at("append.4", lambda: None):
            other.append(events(50, 90))
        pinned = []
        with failpoint.at(step, lambda: pinned.append(table.load(events(0, 80)))):
            other.flush()
        assert pinned[0].rows == 50, "what is buffered is durable, and comes first"
        assert numbers(table) == list(range(90))
        lake.seal()
        assert numbers(table) == list(range(90))
        assert_sound(lake)

    def test_a_flush_between_the_last_look_and_a_log_is_found_by_the_seal(
        self, lake: ls.Lake, open_lake: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table = lake.create_table("events", SCHEMA, cold="delta")
        other = open_lake()["events"]

        def late() -> None:
            other.append(events(50, 90))
            other.flush()

        before_the_next_commit(monkeypatch, late)
        assert table.load(events(0, 80)).rows == 80
        lake.seal()
        assert numbers(table) == list(range(90))
        assert_sound(lake)

    @pytest.mark.parametrize("cold", COLD)
    def test_who_loads_the_same_source_at_once_is_told(
        self, lake: ls.Lake, open_lake: Open, cold: str
    ) -> None:
        table = lake.create_table("events", PLAIN, cold=cold)
        other = open_lake()["events"]
        done = []

        def meanwhile() -> None:
            done.append(other.load(reader(events(0, 350)), load_id="same"))

        with failpoint.at("load.2", meanwhile), pytest.raises(AcceptedError, match="same"):
            table.load(reader(events(0, 350)), load_id="same")
        assert done[0].rows == 350
        assert numbers(table) == list(range(350))
        assert table.load(reader(events(0, 350)), load_id="same").skipped == 350

    @pytest.mark.parametrize("cold", COLD)
    @pytest.mark.parametrize("point", ["load.2", "load.5", "load.9"])
    def test_a_schema_that_evolves_is_taken_up(
        self, lake: ls.Lake, open_lake: Open, cold: str, point: str
    ) -> None:
        table = lake.create_table("events", SCHEMA, cold=cold)
        other = open_lake()["events"]

        def meanwhile() -> None:
            other.evolve(add={"more": "BIGINT"})
            row = events(100, 101).append_column("more", pa.array([7]))
            other.append(row)

        with failpoint.at(point, meanwhile):
            loaded = table.load(reader(events(0, 350))).rows
        is_late = point == "load.9"  # its row is cold by then, and a flush finds that out
        assert loaded == 350 - (not is_late)
        other.flush()
        assert numbers(table) == list(range(350))
        lake.seal()
        more = events(350, 360).append_column("more", pa.array([8] * 10))
        assert table.load(more).rows == 10
        found = lake.sql("SELECT more, count(*) FROM events GROUP BY 1").fetchall()
        assert dict(found) == ({None: 350, 8: 10} if is_late else {None: 349, 7: 1, 8: 10})
        assert lake.verify().ok

    @pytest.mark.parametrize("cold", COLD)
    def test_appends_go_on_in_threads(self, open_lake: Open, cold: str) -> None:
        """Everything at once: loads of the very rows that threads append, with upkeep."""
        quick = {"flush_rows": 40, "seal_age_s": 0.05, "flush_age_s": 0.05}
        lake = open_lake(upkeep="auto", settings=quick, clock=SystemClock())
        table = lake.create_table("events", SCHEMA, cold=cold)
        failures: list[BaseException] = []

        def work(do: Callable[[], object]) -> threading.Thread:
            def run() -> None:
                try:
                    do()
                except BaseException as error:
                    failures.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        def append(start: int) -> None:
            for at in range(start, start + 300, 10):
                table.append(events(at, at + 10, step=MINUTE))

        rows = events(0, 800, step=MINUTE)
        threads = [
            work(lambda: table.load(reader(rows))),
            *(work(lambda s=s: append(s)) for s in (100, 600)),
        ]
        for thread in threads:
            thread.join()
        assert not failures, failures
        lake.flush()
        lake.seal()
        assert numbers(table) == list(range(900))
        assert lake.verify().ok


_LOADER = """
import sys
import lakestore as ls
from conftest import events
from lakestore.load import chunks
from test_load import PLAIN, reader
chunks.CHUNK_ROWS = 100
lake = ls.open(sys.argv[1], upkeep="manual")
def told(progress):
    print(progress.rows, flush=True)
    if progress.rows >= int(sys.argv[2]):
        sys.stdin.readline()
print(lake["events"].load(reader(events(0, 2000)), load_id="big", progress=told).rows)
"""


@pytest.mark.faults
@pytest.mark.parametrize("cold", COLD)
@pytest.mark.parametrize("after", [0, 360, 1_200])
def test_a_load_that_is_killed_goes_on_with_no_row_lost_or_doubled(
    root: Path, cold: str, after: int
) -> None:
    """A real process, at a real moment: while it works on the chunks after the one it told of."""
    with ls.open(root, upkeep="manual") as lake:
        lake.create_table("events", PLAIN, cold=cold)
    command = [sys.executable, "-c", _LOADER, str(root), "5000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as process:
        assert process.stdout is not None
        told = 0
        for line in process.stdout:
            told = int(line)
            if told >= after:
                break
        process.send_signal(signal.SIGKILL)
    with ls.open(root, upkeep="manual") as lake:
        table = lake["events"]
        before = numbers(table)
        assert before == list(range(len(before))), "whole chunks, in order"
        assert told <= len(before) < 2_000
        report = table.load(reader(events(0, 2000)), load_id="big")
        assert (report.rows, report.skipped) == (2_000 - len(before), len(before))
        assert numbers(table) == list(range(2_000))
        assert lake.verify().ok


class TestFiles:
    """What loaded files say of themselves is enough."""

    @pytest.mark.parametrize("cold", COLD)
    def test_a_catalog_that_is_lost_comes_back_with_its_loads(self, root: Path, cold: str) -> None:
        with ls.open(root, upkeep="manual") as lake:
            table = lake.create_table("events", PLAIN, cold=cold)
            table.append(events(1_000, 1_020))
            table.load(reader(events(0, 250)), load_id="l")
            table.append(events(2_000, 2_020))
            table.flush()
            with (
                failpoint.at("load.9" if cold == "parquet" else "delta.1", "EIO", hit=2),
                pytest.raises(ls.StorageError),
            ):
                table.load(reader(events(300, 550)), load_id="m")
            expected = table.to_arrow(["id"]).sort_by("id")
        (root / "_site" / "catalog.sqlite").unlink()
        rebuild(root)
        with ls.open(root, upkeep="manual") as lake:
            table = lake["events"]
            assert table.to_arrow(["id"]).sort_by("id").equals(expected)
            assert table.load(reader(events(0, 250)), load_id="l").skipped == 250
            table.load(reader(events(300, 550)), load_id="m")
            assert numbers(table) == [
                *range(250),
                *range(300, 550),
                *range(1_000, 1_020),
                *range(2_000, 2_020),
            ]
            assert lake.verify().ok

    @pytest.mark.parametrize("cold", COLD)
    def test_what_a_load_took_is_known_after_its_files_were_merged_and_deleted(
        self, root: Path, cold: str
    ) -> None:
        rows = events(0, 700, step=MINUTE)
        with ls.open(
            root, upkeep="manual", settings={"cold_grace_s": 0, "vacuum_grace_s": 0}
        ) as lake:
            table = lake.create_table("events", PLAIN, cold=cold)
            table.load(reader(rows), load_id="l")
            assert len(table._context.state().cold) == 6
            table.compact(today=True)
            assert len(table._context.state().cold) == 1
            table.vacuum(dry_run=False)
            assert table.load(reader(rows), load_id="l").skipped == 700
            assert lake.verify().ok
        (root / "_site" / "catalog.sqlite").unlink()
        rebuild(root)
        with ls.open(root, upkeep="manual") as lake:
            assert lake["events"].load(reader(rows), load_id="l").skipped == 700
            assert numbers(lake["events"]) == list(range(700))
            assert lake.verify().ok

    def test_delta_readers_see_what_was_loaded(self, lake: ls.Lake, root: Path) -> None:
        table = lake.create_table("events", SCHEMA, cold="delta")
        table.load(reader(events(0, 250)))
        found = DeltaTable(root / "tables" / "events" / "data").to_pyarrow_table()
        assert sorted(found["id"].to_pylist()) == [f"e{n:06d}" for n in range(250)]

    def test_a_source_in_no_order_is_sorted(self, lake: ls.Lake) -> None:
        table = lake.create_table("events", SCHEMA)
        rows = events(0, 240).take(pa.array(np.random.default_rng(5).permutation(240)))
        table.load(rows)
        for file in table._context.state().cold:
            read = pq.read_table(table._context.cold_path(file))
            assert read.equals(read.sort_by([("time", "ascending"), ("id", "ascending")]))
        assert numbers(table) == list(range(240))


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ([("a", 1), ("a", 2), ("b", 0)], True),
        ([("a", 2), ("a", 1), ("b", 0)], False),
        ([("b", 0), ("a", 1)], False),
        ([("a", 1), ("a", 1)], True),
        ([("a", None), ("a", 1)], False),
        ([], True),
    ],
)
def test_what_is_in_order_is_known(sort: list[tuple[str, int]], expected: bool) -> None:
    columns = [
        pa.array([one[i] for one in sort], t) for i, t in enumerate((pa.string(), pa.int64()))
    ]
    assert ordering._is_in_order(columns) is expected


@pytest.mark.parametrize("cold", COLD)
def test_streams_add_columns(lake: ls.Lake, cold: str) -> None:
    """A chunk has rows of one version; what was loaded before a failure is passed over."""
    text = SCHEMA.text.replace("[columns]", 'on_new_column = "add"\n\n[columns]')
    table = lake.create_table("events", ls.TableSchema.from_toml(text), cold=cold)
    rows = events(0, 250)
    more = rows.slice(120, 100).append_column("more", pa.array(range(120, 220)))
    other = rows.slice(220).append_column("other", pa.array(["x"] * 30))

    def source() -> list[pa.Table]:
        return [rows.slice(0, 70), rows.slice(70, 50), more, rows.slice(120, 10), other]

    with failpoint.at("load.9", "ENOSPC", hit=2), pytest.raises(ls.StorageError):
        table.load(source(), load_id="mine")
    report = table.load(source(), load_id="mine")
    assert report.skipped > 0
    assert report.rows + report.duplicates + report.skipped == 260
    assert numbers(table) == list(range(250))
    found = lake.sql("SELECT count(more), sum(more), count(other) FROM events").fetchone()
    assert found == (100, sum(range(120, 220)), 30)
    assert table.load(pl.from_arrow(events(250, 260)).with_columns(third=pl.lit(1.5))).rows == 10
    assert table.load(iter([{"id": "e000999", "time": START, "fourth": True}])).rows == 1
    assert table.schema.names[-4:] == ("more", "other", "third", "fourth")
    strict = lake.create_table("strict", SCHEMA, cold=cold)
    with pytest.raises(ls.SchemaError, match=r"after row 120: unknown column 'more'"):
        strict.load(source())
    assert_sound(lake)


def test_another_process_adds_the_same_column_first(open_lake: Open) -> None:
    text = SCHEMA.text.replace("[columns]", 'on_new_column = "add"\n\n[columns]')
    lake = open_lake()
    table = lake.create_table("events", ls.TableSchema.from_toml(text))
    other = open_lake()["events"]

    def pieces() -> Any:
        yield events(0, 50)
        other.evolve(add={"more": "BIGINT"})
        other.append(events(300, 301).append_column("more", pa.array([7])))
        yield events(50, 90).append_column("more", pa.array(range(50, 90)))

    assert table.load(pieces()).rows == 90
    assert lake.sql("SELECT count(*), sum(more) FROM events").fetchone() == (
        91,
        7 + sum(range(50, 90)),
    )
    assert len(table.schemas) == 2
    assert_sound(lake)
