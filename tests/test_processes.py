"""Any number of processes of one host write one table, and query it, at once.

Two handles are two writers, whether they are in one process or in two: only the tests that stop
or kill one need a process for it.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import SCHEMA, events
from support.commands import rebuild
from support.planted import assert_caught
from support.soundness import assert_sound

import lakestore as ls
from lakestore import duplicates, failpoint
from lakestore.catalog import Catalog
from lakestore.catalog.commit import Commit
from lakestore.cold.parquet import ParquetCold
from lakestore.snapshot import ColdFile, Segment
from lakestore.tail import JournalTails

WRITER = """
import sys
from conftest import SCHEMA, events
import lakestore as ls
lake = ls.open(sys.argv[1], upkeep="manual")
table = lake["events"]
start, stop, size = map(int, sys.argv[2:5])
for at in range(start, stop, size):
    table.append(events(at, at + size), producer=sys.argv[5], seq=at)
    if at % (10 * size) == 0 and len(sys.argv) > 6:
        table.flush()
    print(at + size, flush=True)
sys.stdin.readline()
lake.close()
"""


class Child:
    """A process that runs a script, and says on its output how far it is."""

    def __init__(self, script: Path, *arguments: object) -> None:
        here = os.path.dirname(__file__)
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])},
        )

    def line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def finish(self) -> int:
        self.process.communicate(b"\n", timeout=60)
        return self.process.returncode

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    script = tmp_path / "child.py"
    script.write_text(WRITER)
    started: list[Child] = []

    def start(*arguments: object) -> Child:
        started.append(Child(script, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def bare(lake: ls.Lake) -> ls.Table:
    """A table in which nothing but (producer, seq) tells a row that was sent twice."""
    schema = ls.TableSchema.from_arrow(
        events(0, 1).schema, event_id="id", event_time="time", dedup="none"
    )
    return lake.create_table("bare", schema)


def counted(lake: ls.Lake, table: str = "events") -> tuple[int, int]:
    row = lake.sql(f"SELECT count(*), count(DISTINCT id) FROM {table}").fetchone()
    assert row is not None
    return row


def test_four_processes_write_while_a_reader_counts(lake, table, root, child, open_lake):
    """Every count is of whole batches, never falls, and ends at every row once."""
    writers = [child(root, n * 1000, n * 1000 + 400, 20, f"w{n}", "flush") for n in range(4)]
    reader = open_lake(mode="r")
    last, done = 0, threading.Event()
    counts = []

    def count() -> None:
        while not done.is_set():
            counts.append(counted(reader))

    thread = threading.Thread(target=count)
    thread.start()
    for writer in writers:
        while writer.line() % 1000 != 400:
            pass
    done.set()
    thread.join()
    for rows, distinct in counts:
        assert rows == distinct >= last
        assert rows % 20 == 0
        last = rows
    assert len(counts) > 3
    assert counted(reader) == counted(lake) == (1600, 1600)
    assert [writer.finish() for writer in writers] == [0, 0, 0, 0]
    lake.maintain()
    lake.flush()
    table.seal()
    assert counted(reader) == (1600, 1600)
    assert lake.open_report.rows > 0
    assert not list((root / "_site/journal/events").glob("*/*.journal")) or lake.maintain()
    assert table.vacuum(dry_run=True).journals == ()


def test_duplicates_across_writers_are_gone_once_flushed(lake, table, open_lake):
    other = open_lake()
    assert table.append(events(0, 30)).rows == 30
    assert other["events"].append(events(20, 50)).rows == 30  # not known there yet
    lake.flush()
    other.flush()
    assert counted(lake) == counted(other) == (50, 50)
    assert other["events"].append(events(0, 50)).rows in (0, 20)
    other.flush()
    assert counted(lake) == (50, 50)


@pytest.mark.parametrize("first", ["lake", "other"])
def test_a_batch_sent_to_two_writers_is_accepted_once(lake, bare, open_lake, first):
    """Also when neither had published it before the other accepted it, and ids say nothing."""
    other = open_lake()
    assert bare.append(events(0, 10), producer="job", seq=1).rows == 10
    again = other["bare"].append(events(0, 10), producer="job", seq=1)
    assert (again.rows, again.duplicates) == (0, 10)  # seen in the other's journal
    lake.flush()
    again = other["bare"].append(events(0, 10), producer="job", seq=1)
    assert (again.rows, again.duplicates) == (0, 10)  # seen in the catalog
    assert counted(lake, "bare") == (10, 10)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_batch_that_two_writers_accept_at_once_is_published_once(
    lake, bare, open_lake, monkeypatch, order
):
    """Each looked before the other wrote: the flush that comes second finds out."""
    other = open_lake()
    for table in (bare, other["bare"]):  # neither sees the other
        monkeypatch.setattr(table._appender, "_highest_elsewhere", lambda _: -1)
    batch = events(0, 10)
    bare.append(events(50, 60))
    assert bare.append(batch, producer="job", seq=1).rows == 10
    assert other["bare"].append(batch, producer="job", seq=1).rows == 10
    other["bare"].append(events(60, 70), producer="job", seq=2)
    lakes = (lake, other)
    for index in order:
        lakes[index].flush()
    assert counted(lake, "bare") == (30, 30)
    lake.seal()
    assert counted(other, "bare") == (30, 30)


def test_a_producer_that_changes_its_writer_loses_nothing(lake, bare, open_lake):
    """Batch 1 waits in one writer while batch 2 is published by another."""
    other = open_lake()
    bare.append(events(0, 10), producer="job", seq=1)
    assert other["bare"].append(events(10, 20), producer="job", seq=2).rows == 10
    other.flush()
    other["bare"].append(events(20, 30), producer="job", seq=3)
    other.flush()
    lake.flush()
    assert counted(lake, "bare") == (30, 30)
    for table in (bare, other["bare"]):
        for seq in (1, 2, 3):
            assert table.append(events(0, 10), producer="job", seq=seq).rows == 0


def test_what_was_sent_is_forgotten_once_nobody_can_send_it_again(lake, bare, open_lake):
    """Only the highest number of each producer stays, however long it goes on."""
    other = open_lake()
    other["bare"].append(events(100, 101))
    for seq in range(5):
        bare.append(events(seq, seq + 1), producer="job", seq=seq)
        lake.flush()
    catalog, id = lake._site.catalog, bare._context.entry.id
    pairs = {("job", seq) for seq in range(5)}
    assert catalog.sent(id, pairs) == pairs
    other.flush()
    bare.append(events(5, 6), producer="job", seq=5)
    lake.flush()
    assert catalog.sent(id, pairs) == set()
    assert bare.append(events(3, 4), producer="job", seq=3).rows == 0


def test_a_dead_writers_rows_are_taken_over_while_the_lake_is_open(lake, table, root, child):
    table.append(events(500, 510))
    writer = child(root, 0, 100, 10, "w0")
    while (reached := writer.line()) < 60:
        pass
    assert counted(lake)[0] >= 10 + reached
    writer.signal(signal.SIGKILL)
    writer.process.wait()
    before = counted(lake)
    assert lake.open_report.rows == 0
    lake.maintain()
    assert lake.open_report.writers == 1
    assert lake.open_report.rows == before[0] - 10
    assert counted(lake) == before
    again = table.append(events(0, 60), producer="w0", seq=50)
    assert (again.rows, again.duplicates) == (0, 60)
    lake.flush()
    lake.maintain()
    assert counted(lake) == before
    assert len(list((root / "_site/writers").iterdir())) == 1


def test_a_take_over_that_fails_is_done_by_the_next(lake, table, root, child, monkeypatch):
    writer = child(root, 0, 10, 10, "w0")
    writer.line()
    writer.signal(signal.SIGKILL)
    writer.process.wait()

    def busy(_: object) -> None:
        raise ls.LockedError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(lake._site.catalog, "end_leases", busy)
        with pytest.raises(ls.LockedError):
            lake.maintain()
    assert lake.open_report.rows == 0
    lake.maintain()
    assert lake.open_report.rows == 10
    lake.flush()
    lake.maintain()
    assert counted(lake) == (10, 10)
    assert len(list((root / "_site/writers").iterdir())) == 1


def test_rows_taken_over_are_no_duplicates_of_what_was_flushed_before(lake, table, root, child):
    """The same event reached two writers; one flushed it, and the other died."""
    writer = child(root, 0, 10, 10, "w0")
    writer.line()
    assert table.append(events(0, 30)).rows == 30
    lake.flush()
    writer.signal(signal.SIGKILL)
    writer.process.wait()
    lake.maintain()
    lake.flush()
    assert counted(lake) == (30, 30)


def test_a_stopped_writer_blocks_nobody(lake, table, root, child, open_lake):
    writer = child(root, 0, 1_000_000, 10, "w0", "flush")
    for _ in range(30):
        writer.line()
    writer.signal(signal.SIGSTOP)
    try:
        table.append(events(1_500_000, 1_500_100))
        before = counted(lake)
        assert before[0] == before[1] > 300
        lake.flush()
        lake.seal()
        lake.maintain()
        table.vacuum(dry_run=False)
        assert counted(lake) == counted(open_lake(mode="r")) == before
        newcomer = open_lake()
        newcomer["events"].append(events(1_600_000, 1_600_010))
        newcomer.flush()
        assert counted(lake)[0] == before[0] + 10
    finally:
        writer.signal(signal.SIGCONT)
    assert writer.line() > 0  # it goes on, and loses nothing


def test_one_process_maintains_a_table_until_its_lease_ends(lake, table, open_lake, clock):
    other = open_lake()
    catalog, id = lake._site.catalog, table._context.entry.id
    assert catalog.lease(id, "a", 30)
    assert not catalog.lease(id, "b", 30)
    assert catalog.lease(id, "a", 30)
    clock.move(31)
    assert catalog.lease(id, "b", 30)
    assert catalog.lease(id, "a", 30, over=True)
    clock.move(-7200)
    assert catalog.lease(id, "b", 30)  # a clock that was set back keeps nobody out

    table.append(events(0, 30))
    other["events"].append(events(30, 60))
    other.flush()
    clock.move(3600)
    assert catalog.lease(id, "somebody", 30)
    report = other.maintain()
    assert (report.sealed, report.problems) == (0, [])
    other.seal()  # by hand: nobody is asked
    assert other.status().tables[0].tiers[2].rows == 30


def test_two_processes_that_seal_at_once_seal_each_row_once(lake, table, open_lake):
    other = open_lake()
    failures: list[BaseException] = []
    for turn in range(4):
        for n, one in enumerate((lake, other)):
            start = turn * 1000 + n * 100
            one["events"].append(events(start, start + 40))
            one.flush()

        both = threading.Barrier(2)
        reached = itertools.count()

        def seal(one: ls.Lake) -> None:
            try:
                one["events"].seal()
            except BaseException as error:
                failures.append(error)

        def meet(both: threading.Barrier = both, reached: Iterator[int] = reached) -> None:
            if next(reached) < 2:
                both.wait(60)

        threads = [threading.Thread(target=seal, args=(one,)) for one in (lake, other)]
        with failpoint.at("seal.5", meet, hit=None):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not failures, failures
        cold = lake.status().tables[0].tiers[2].rows
        assert cold == (turn + 1) * 80
        assert counted(lake) == counted(other) == (cold, cold)


COMPACTOR = """
import sys
import lakestore as ls
lake = ls.open(sys.argv[1], upkeep="manual")
lake["events"].append({"id": "buffered", "time": "2025-01-01"})
lake["events"].compact()
"""


@pytest.mark.faults
@pytest.mark.parametrize("cold", ["parquet", "delta"])
@pytest.mark.parametrize("point", ["compact.4", "swap.1", "record.1"])
def test_a_compactor_that_is_killed_beside_another(root, open_lake, tmp_path, cold, point):
    """Both have the same files before them; whichever commits, each row is there once."""
    lake = open_lake(settings={"cold_grace_s": 0, "vacuum_grace_s": 0})
    table = lake.create_table("events", SCHEMA, cold=cold)
    for start in range(0, 60, 12):  # three days, each in two files or three
        table.append(events(start, start + 12))
        table.seal()
    script = tmp_path / "compactor.py"
    script.write_text(COMPACTOR)

    def other_dies() -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "LAKESTORE_FAILPOINTS": f"{point}=crash",
        }
        done = subprocess.run([sys.executable, str(script), str(root)], env=environment)
        assert done.returncode == -signal.SIGKILL

    with failpoint.at("compact.3", other_dies) as trap:
        table.compact()
    assert trap.seen >= 2  # of as many days
    days = [file.day for file in table._context.state(newest=True).cold]
    assert len(days) == len(set(days)) == 3
    lake.maintain()  # which takes the dead one's row over
    assert counted(lake) == (61, 61)
    assert_sound(lake)
    table.vacuum(dry_run=False)
    lake.close()
    for path in (root / "_site").glob("catalog.sqlite*"):
        path.unlink()
    rebuild(root)
    again = open_lake()
    assert counted(again) == (61, 61)
    assert_sound(again)


def test_a_flush_whose_merge_comes_second_has_flushed(open_lake):
    """Another process seals the segments that this one merges: no reason to raise."""
    lake, other = open_lake(settings={"segments_max": 2}), open_lake()
    table = lake.create_table("events", SCHEMA)
    for start in (0, 10):
        table.append(events(start, start + 10))
        table.flush()
    table.append(events(20, 30))
    with failpoint.at("merge.2", other.seal) as trap:
        assert table.flush() == 10
    assert trap.seen == 1
    assert [tier.rows for tier in lake.status().tables[0].tiers] == [0, 0, 30]
    assert counted(lake) == counted(other) == (30, 30)


def test_a_lake_seals_tables_that_another_process_has_created(open_lake):
    lake, other = open_lake(), open_lake()
    lake.create_table("events", SCHEMA).append(events(0, 10))
    lake.flush()
    assert other.seal() == 10
    assert [tier.rows for tier in lake.status().tables[0].tiers] == [0, 0, 10]


def test_lake_duckdb_shows_the_latest_whoever_publishes(lake, table, open_lake, root, duckdb_cli):
    """A stopped process that holds the lock is passed by, and looks again when it goes on."""
    import fcntl

    lock = os.open(root / "_site/views.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    table.append(events(0, 30))
    table.flush()
    done = subprocess.run(
        [duckdb_cli, "-readonly", "-csv", f"{root}/lake.duckdb", "SELECT count(*) FROM events"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.split() == ["count_star()", "30"]
    os.close(lock)


def test_the_report_of_an_open(lake, table, root, open_lake, child):
    writer = child(root, 0, 100, 10, "w0")
    while writer.line() < 50:
        pass
    writer.signal(signal.SIGKILL)
    writer.process.wait()
    (journal,) = (root / "_site/journal/events").glob("*/*.journal")
    with journal.open("ab") as file:
        file.write(b"torn")
    other = open_lake()
    report = other.open_report
    assert (report.writers, report.generations, report.torn_bytes) == (1, 1, 4)
    assert report.rows == counted(other)[0] >= 50
    assert other.status().recovery == report
    assert not lake.open_report


def _ask_no_published_file(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(duplicates, "_files_to_ask", lambda *_, **__: {})


def _look_at_no_other_writers_batches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JournalTails, "highest_seq", lambda *_: -1)


def _commit_whatever_was_sent(patch: pytest.MonkeyPatch) -> None:
    for kind in (Catalog, Commit):
        patch.setattr(kind, "sent", lambda *_: set())


def _go_by_the_highest_number_alone(patch: pytest.MonkeyPatch) -> None:
    def highest(self: Catalog, table: int, sent: set[tuple[str, int]]) -> set[tuple[str, int]]:
        known = self.producers(table)
        return {(producer, seq) for producer, seq in sent if seq <= known.get(producer, -1)}

    patch.setattr(Catalog, "sent", highest)


def _read_no_other_writers_journals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JournalTails, "pin", lambda *_: ())


def _let_every_seal_win(patch: pytest.MonkeyPatch) -> None:
    """Neither the commit nor the look at what others sealed keeps the second from its own."""
    publish = ParquetCold.publish

    def seal(
        self: Commit, id: int, sealed: list[Segment], files: list[ColdFile], through: int, *_: str
    ) -> None:
        with suppress(ls.ConflictError):
            self.check_listed(id, sealed)
            self._remove_segments(id, [segment.name for segment in sealed])
        self.cold(id).add(files)
        self._mark(id, sealed_through=through)

    def unseen(cold: ParquetCold, *arguments: Any, **load: Any) -> None:
        publish(cold, *arguments[:-1], lambda _: None, **load)

    patch.setattr(Commit, "seal", seal)
    patch.setattr(ParquetCold, "publish", unseen)


PLANTED = [
    (_ask_no_published_file, test_duplicates_across_writers_are_gone_once_flushed, {}),
    (_look_at_no_other_writers_batches, test_a_batch_sent_to_two_writers_is_accepted_once,
     {"first": "lake"}),
    (_commit_whatever_was_sent, test_a_batch_that_two_writers_accept_at_once_is_published_once,
     {"order": (0, 1)}),
    (_go_by_the_highest_number_alone, test_a_producer_that_changes_its_writer_loses_nothing, {}),
    (_read_no_other_writers_journals,
     test_a_dead_writers_rows_are_taken_over_while_the_lake_is_open, {}),
    (_let_every_seal_win, test_two_processes_that_seal_at_once_seal_each_row_once, {}),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "test", "arguments"), PLANTED)
def test_a_planted_bug_is_caught(request, figure, plant, test, arguments):
    assert_caught(request, figure, "processes", plant, test, **arguments)
