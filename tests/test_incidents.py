"""What went wrong in neighbouring systems, by number: each is a test here, or names the one it is.

Arc is a time-series database over DuckDB and Parquet; ducklake, delta-rs, slatedb and parseable are
what their names say; litellm and langfuse are LLM gateways and their logs.
"""

import ast
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import SCHEMA, events

import lakestore as ls
from lakestore import failpoint

ELSEWHERE = {
    2: "test_recovery.py::test_a_journal_that_was_flushed_but_not_deleted_is_not_read_again",
    6: "test_readers_under_change.py"
    "::test_a_result_and_a_scan_survive_the_vacuum_of_what_they_read",
    17: "test_query.py::test_an_empty_table_answers_with_its_types",
}
"""Incidents that a test of another file is about.

2: replay after a flush that had succeeded doubled rows (Arc #199, #218). 6: a list of files that a
compaction had made stale (Arc #204, parseable #1199). 17: a query of a table without data was an
error (Arc #198).
"""

LATER = {
    7: "a flush hung for ever on a slow S3 (Arc #197): there are no object stores yet",
    18: "retention left orphans in a side table (litellm #29342): there is no retention yet",
    19: "retention saturated the host (litellm #36594): there is no retention yet",
    22: "the backend was down, and events were lost (langfuse #6380): there is no backend yet",
    23: "one Delta transaction was committed twice (deltalake 1.6.6): there is no Delta yet",
}


def total(lake: ls.Lake, table: str = "events") -> tuple[int, int]:
    row = lake.sql(f"SELECT count(*), count(DISTINCT id) FROM {table}").fetchone()
    assert row is not None
    return row


def test_each_incident_has_its_test():
    here = {
        int(name.split("_")[1])
        for name in globals()
        if name.startswith("test_") and name.split("_")[1].isdigit()
    }
    assert sorted([*here, *ELSEWHERE, *LATER]) == list(range(1, 24))
    for name in ELSEWHERE.values():
        file, _, function = name.partition("::")
        tree = ast.parse((Path(__file__).parent / file).read_text())
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_01_recovery_spares_the_journals_of_the_living(lake, table, open_lake, root):
    """Recovery deleted the live write-ahead log (Arc #594)."""
    table.append(events(0, 30))
    journals = sorted((root / "_site/journal").rglob("*.journal"))
    other = open_lake()
    assert other.open_report.rows == 0
    other["events"].append(events(30, 40))
    other.flush()
    other.maintain()
    assert set(journals) <= set((root / "_site/journal").rglob("*.journal"))
    assert total(other) == total(lake) == (40, 40)
    lake.flush()
    assert total(other) == (40, 40)


def test_03_replayed_rows_are_those_that_were_seen(lake, table, open_lake, root, tmp_path):
    """A replay skipped the normalisation of times and texts (Arc #590)."""
    odd = ["ä", "a\u0308", "\u200b", "🦆", "\x00", "", " x "]  # no two are one
    table.append(events(0, 20))
    table.append(
        {"id": text, "time": f"2025-03-30T02:30:00.{i:06d}+02:00", "name": text, "tags": odd}
        for i, text in enumerate(odd)
    )
    table.append({"id": "naive", "time": "2025-03-30 02:30:00", "x": float("nan"), "cost": "0.1"})
    live = table.to_arrow().sort_by("id")
    assert set(odd) < set(live["id"].to_pylist())
    shutil.copytree(root, tmp_path / "copy")  # what a kill would leave
    with ls.open(tmp_path / "copy", upkeep="manual") as replayed:
        assert replayed.open_report.rows == 28
        for step in (lambda: None, replayed.flush, replayed.seal):
            step()
            again = replayed["events"].to_arrow().sort_by("id")
            assert again.drop(["x"]).equals(live.drop(["x"]))
            assert repr(again["x"].to_pylist()) == repr(live["x"].to_pylist())  # NaN is itself


def test_04_files_of_one_second_have_names_of_their_own(lake, table, root):
    """Names of a second's precision overwrote files (Arc 26.04.1); here the clock stands still."""
    for start in range(0, 100, 2):
        table.append(events(start, start + 2, step=timedelta(0)))
        table.flush()
        table.seal()
        assert total(lake) == (start + 2, start + 2)
    names = [path.name for path in (root / "tables").rglob("*.parquet") if "data" in str(path)]
    assert len(names) == len(set(names)) == 50
    assert lake.verify().ok


def test_05_a_day_is_sealed_while_it_is_written_to(lake, table):
    """A compaction of a partition that was still written to lost rows (Arc)."""
    done = threading.Event()
    sealed = []

    def seal() -> None:
        while not done.is_set():
            sealed.append(table.seal())

    thread = threading.Thread(target=seal)
    thread.start()
    for start in range(0, 3000, 10):
        assert table.append(events(start, start + 10, step=timedelta(seconds=1))).rows == 10
    done.set()
    thread.join()
    assert len([rows for rows in sealed if rows]) > 2
    assert total(lake) == (3000, 3000)
    assert sum(sealed) + table.seal() == 3000
    assert total(lake) == (3000, 3000)


def test_08_small_tables_are_flushed_as_early_as_a_busy_one(lake, clock):
    """Under load the age of small tables was not looked at (Arc #142)."""
    tables = [lake.create_table(f"t{n}", SCHEMA) for n in range(41)]
    age = lake._site.settings.flush_age_s
    for round_ in range(3):
        for table in tables[1:]:
            table.append(events(round_, round_ + 1))
        for start in range(5):
            tables[0].append(events(100 * round_ + 10 * start, 100 * round_ + 10 * start + 10))
        clock.move(age)
        lags = [status.tiers[0].lag_s for status in lake.status().tables]
        assert min(lags) >= age
        assert lake.maintain().flushed == 41
        assert {status.tiers[0].rows for status in lake.status().tables} == {0}
    assert total(lake, "t0") == (150, 150)
    assert total(lake, "t40") == (3, 3)


def test_09_what_expires_is_not_what_lives_under_the_name_now(lake, clock):
    """The expiry of snapshots removed live data after a rename (ducklake #527, #529)."""
    lake.create_table("events", SCHEMA).append(events(0, 50))
    lake.seal()
    lake.drop_table("events")
    table = lake.create_table("events", SCHEMA)
    table.append(events(20, 30))
    lake.seal()
    table.append(events(30, 40))
    lake.flush()
    clock.move(10 * lake._site.settings.vacuum_grace_s)
    assert lake.maintain().deleted > 0
    assert total(lake) == (20, 20)
    assert table.to_arrow()["id"].to_pylist() == events(20, 40)["id"].to_pylist()
    assert lake.verify().ok


def test_10_a_flush_beside_inserts_doubles_nothing(lake, table):
    """Flushed rows were inserted again while others came in (ducklake #650)."""
    done = threading.Event()
    counts: list[tuple[int, int]] = []

    def flush() -> None:
        while not done.is_set():
            table.flush()
            counts.append(total(lake))

    thread = threading.Thread(target=flush)
    thread.start()
    for start in range(0, 2000, 5):
        table.append(events(start, start + 10))  # half of them are known
    done.set()
    thread.join()
    assert total(lake) == (2005, 2005)
    assert all(rows == distinct and rows % 5 == 0 for rows, distinct in counts)
    assert counts == sorted(counts)
    assert len(counts) > 3


@pytest.mark.parametrize("step", ["flush.3", "flush.4"])
def test_11_a_commit_that_is_tried_again_keeps_what_it_was_to_do(lake, table, open_lake, step):
    """A retried commit had lost its deletions: the first try had moved them out (ducklake #846)."""
    other = open_lake()
    other["events"].append(events(15, 40))
    assert table.append(events(0, 20), producer="p", seq=1).rows == 20
    if step == "flush.3":
        with failpoint.at(step, other.flush):
            lake.flush()
    else:
        with failpoint.at(step, "EIO"), pytest.raises(ls.StorageError):
            lake.flush()
        other.flush()
        lake.flush()
    assert total(lake) == total(other) == (40, 40)
    assert table.append(events(0, 20), producer="p", seq=1).rows == 0
    lake.seal()
    assert total(lake) == total(other) == (40, 40)
    assert lake.verify().ok


def test_12_the_catalog_is_no_orphan(root, clock, tmp_path):
    """A cleanup of the data folder could delete the catalog in it (ducklake #839)."""
    for inside in (root / "tables", root / "tables/events/data"):
        with pytest.raises(ls.InvalidInputError, match="choose another"):
            ls.open(root, local=inside)
    with pytest.raises(ls.InvalidInputError, match="choose another"):
        ls.open(tmp_path / "site/hot/lake", local=tmp_path / "site")
    assert not root.exists()
    (tmp_path / "link").symlink_to(root / "tables")
    with pytest.raises(ls.InvalidInputError, match="choose another"):
        ls.open(root, local=tmp_path / "link/site")
    for local in (None, root / "site", tmp_path / "elsewhere"):
        shutil.rmtree(root, ignore_errors=True)
        with ls.open(root, local=local, upkeep="manual", clock=clock) as lake:
            lake.create_table("events", SCHEMA).append(events(0, 10))
            lake.seal()
            clock.move(10 * lake._site.settings.vacuum_grace_s)
            lake.maintain()
            lake.repair(dry_run=False)
            assert lake.repair().actions == ()
        with ls.open(root, local=local, mode="r") as reader:
            assert total(reader) == (10, 10)


WRITER = """
import sys
from conftest import events
import lakestore as ls
lake = ls.open(sys.argv[1], upkeep="manual")
for start in range(0, 10**6, 5):
    lake["events"].append(events(start, start + 5), producer="w", seq=start)
    if start % 50 == 45:
        lake.flush()
    if start % 250 == 245:
        lake.seal()
    print(start + 5, flush=True)
"""


@pytest.fixture
def child(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Runs a program beside the test, which its end kills."""
    started = []

    def start(program: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_13_a_writer_that_slept_overwrites_nothing(lake, table, clock, root, child):
    """A paused writer won a log number that was given anew while it slept (slatedb #1622)."""
    writer = child(WRITER, root)
    assert writer.stdout is not None
    written = 0
    for round_ in range(4):
        for _ in range(40):
            written = int(writer.stdout.readline())
        writer.send_signal(signal.SIGSTOP)
        start = 2_000_000 + 100 * round_
        table.append(events(start, start + 100, step=timedelta(seconds=1)))
        lake.flush()
        lake.seal()
        clock.move(10 * lake._site.settings.vacuum_grace_s)
        lake.maintain()
        seen = total(lake)
        assert seen[0] == seen[1] >= written + 100 * (round_ + 1)
        writer.send_signal(signal.SIGCONT)
    for _ in range(20):
        written = int(writer.stdout.readline())
    writer.kill()
    writer.wait()
    lake.maintain()
    lake.seal()
    ids = table.to_arrow(columns=["id"])["id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert set(events(0, written)["id"].to_pylist()) < set(ids)
    assert len(ids) in (written + 400, written + 405)
    assert lake.verify().ok


@pytest.mark.parametrize(
    ("step", "act"),
    [("flush.5", ls.Lake.flush), ("merge.3", ls.Lake.flush), ("seal.5", ls.Lake.seal)],
)
def test_14_a_vacuum_between_writing_and_committing_spares_the_files(open_lake, clock, step, act):
    """Garbage collection removed the output of a compaction before its commit (slatedb #1029)."""
    lake = open_lake(settings={"segments_max": 4})
    table = lake.create_table("events", SCHEMA)
    other = open_lake()

    def clean() -> None:
        clock.move(10 * lake._site.settings.vacuum_grace_s)
        other["events"].vacuum(dry_run=False)

    for start in range(0, 40, 10):
        table.append(events(start, start + 10))
        table.flush()
    table.append(events(40, 50))
    with failpoint.at(step, clean) as trap:
        act(lake)
    assert trap.seen >= 1
    with open_lake(mode="r") as reader:
        assert total(lake) == total(other) == total(reader) == (50, 50)
    lake.seal()
    assert total(lake) == (50, 50)
    assert lake.verify().ok


def test_15_no_commit_is_dropped(open_lake, clock, soak):
    """Commits were dropped without a word (delta-rs #3736): ten threads commit at once."""
    open_lake().create_table("events", SCHEMA)
    lakes = [open_lake() for _ in range(5)]
    turns = 200 if soak else 12
    before = lakes[0]._site.catalog.version()

    def work(number: int) -> None:
        table = lakes[number % 5]["events"]
        for turn in range(turns):
            start = 10_000 * number + 10 * turn
            table.append(events(start, start + 10))
            published[number] += table.flush()

    published = Counter[int]()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = 100 * turns
    assert sum(published.values()) == rows
    assert total(lakes[0]) == (rows, rows)
    state = lakes[0]["events"]._context.state()
    borders = [(segment.first, segment.last) for segment in state.hot]
    assert borders[0][0] == 1
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(borders))
    assert lakes[0]._site.catalog.version() - before >= borders[-1][1] > turns


def test_16_many_small_batches_are_one_file(lake, table):
    """Each chunk of the input became a file (delta-rs #3871)."""
    rows = events(0, 10_000, step=timedelta(milliseconds=1))
    for batch in rows.to_batches(max_chunksize=1):
        table.append(batch, level="memory")
    table.flush()
    (status,) = lake.status().tables
    assert [(tier.tier, tier.rows, tier.files) for tier in status.tiers][1] == ("hot", 10_000, 1)
    table.seal()
    (status,) = lake.status().tables
    assert [(tier.tier, tier.rows, tier.files) for tier in status.tiers][2] == ("cold", 10_000, 1)
    chunked = pa.Table.from_batches(events(10_000, 10_100).to_batches(max_chunksize=1))
    assert table.append(chunked).rows == 100
    assert table.flush() == 100


WIDE = """
import resource, sys
import numpy as np, pyarrow as pa, lakestore as ls
schema = ls.TableSchema.from_toml(
    "event_id = 'id'\\nevent_time = 'at'\\n[columns]\\nid = 'VARCHAR'\\nat = 'TIMESTAMP'\\n"
    "body = 'VARCHAR'"
)
noise = np.random.default_rng(1)
with ls.open(sys.argv[1], settings={"memory_bytes": 512 << 20}) as lake:
    table = lake.create_table("wide", schema)
    for start in range(0, int(sys.argv[2]), 20):
        bodies = [noise.bytes(150_000).hex() for _ in range(20)]
        ids = [f"e{n}" for n in range(start, start + 20)]
        times = pa.array([1_740_000_000_000_000 + n for n in range(start, start + 20)])
        at = times.cast(pa.timestamp("us"))
        assert table.append(pa.table({"id": ids, "at": at, "body": bodies})).rows == 20
    table.seal()
    facts = lake.sql("SELECT count(*), sum(length(body)), count(DISTINCT id) FROM wide").fetchone()
    count = int(sys.argv[2])
    assert facts == (count, 300_000 * count, count), facts
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_20_wide_rows_are_not_held_in_memory(root, child, soak):
    """Rows of 300 KB pinned memory until there was none (duckdb #23396).

    Measured: 1,370 MiB at most for 600 rows, and 1,560 for 4,000, which are 1.2 GB.
    """
    process = child(WIDE, root, 4_000 if soak else 600)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert int(said) < 2_000


SPILL = """
import sys
import lakestore as ls
from lakestore import spill
with ls.open(sys.argv[1], upkeep="manual", settings={"memory_bytes": 64 << 20}) as lake:
    print(lake.sql("SELECT current_setting('temp_directory')").fetchone()[0], flush=True)
    while len(sys.argv) > 2:
        lake.sql("SELECT sum(r) FROM (SELECT row_number() OVER (ORDER BY hash(i)) AS r "
                 "FROM range(30_000_000) t(i)) WHERE r % 2 = 0")
"""


def test_21_what_a_killed_process_spilled_is_deleted_by_the_next(root, child, tmp_path):
    """Spilled files stayed after a crash in a compaction (Arc)."""
    ls.open(root).close()
    places = {"TMPDIR": str(tmp_path)}

    def spilling() -> tuple[subprocess.Popen[str], Path]:
        process = child(SPILL, root, "spill", **places)
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        deadline = time.monotonic() + 60
        while not (folder.is_dir() and any(folder.iterdir())):
            assert process.poll() is None
            assert time.monotonic() < deadline, "nothing was spilled"
            time.sleep(0.01)
        return process, folder

    living, spared = spilling()
    killed, left = spilling()
    assert left.is_relative_to(tmp_path)
    assert left.parent.stat().st_mode & 0o077 == left.parents[1].stat().st_mode & 0o077 == 0
    killed.kill()
    killed.wait()
    assert any(left.iterdir())
    assert child(SPILL, root, **places).wait(timeout=60) == 0
    assert not left.parent.exists()
    assert any(spared.iterdir())
    living.kill()
    living.wait()
    assert child(SPILL, root, **places).wait(timeout=60) == 0
    assert not spared.parent.exists()


def test_21_a_folder_that_is_another_users_is_not_entered(root, child, tmp_path):
    """Nor one that a symbolic link stands for."""
    (tmp_path / "prey").mkdir()
    (tmp_path / "prey/kept").touch()
    (tmp_path / f"lakestore-{os.getuid()}").symlink_to(tmp_path / "prey")
    process = child(SPILL, root, TMPDIR=str(tmp_path))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert Path(said.strip()).parents[2] == tmp_path
    assert Path(said.strip()).parents[1] != tmp_path / f"lakestore-{os.getuid()}"
    assert [path.name for path in (tmp_path / "prey").iterdir()] == ["kept"]
