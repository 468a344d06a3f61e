"""Append: acknowledged rows, duplicates, levels, several threads, and a disk that refuses."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from conftest import SCHEMA, START, die, events

import lakestore as ls


def count(lake: ls.Lake, table: str = "events") -> tuple[int, int]:
    row = lake.sql(f"SELECT count(*), count(DISTINCT (id, time::DATE)) FROM {table}").fetchone()
    assert row is not None
    return row


def test_rows_are_visible_when_append_returns(lake, table):
    ack = table.append(events(0, 100))

    assert (ack.rows, ack.duplicates, ack.level) == (100, 0, "disk")
    assert count(lake) == (100, 100)


def test_empty_input_has_no_side_effect(lake, table, root):
    before = sorted(root.rglob("*"))

    ack = table.append([], producer="p", seq=5)

    assert (ack.rows, ack.duplicates, ack.position) == (0, 0, None)
    assert sorted(root.rglob("*")) == before
    assert table.append(events(0, 1), producer="p", seq=3).rows == 1


def test_a_batch_is_accepted_whole_or_not_at_all(lake, table):
    rows = events(0, 100).to_pylist()
    rows[99]["n"] = "no number"

    with pytest.raises(ls.SchemaError, match="row 99"):
        table.append(rows)

    assert count(lake) == (0, 0)


def test_duplicates_are_dropped_in_every_tier(lake, table):
    assert table.append(events(0, 10)).rows == 10
    assert table.append(events(5, 15)).duplicates == 5
    table.flush()
    assert table.append(events(0, 20)).duplicates == 15
    table.seal()
    ack = table.append(events(0, 25))
    table.flush()

    assert ack.rows == 25 - 20
    assert count(lake) == (25, 25)


def test_duplicates_within_a_batch_and_across_its_frames(lake, table):
    twice = pa.concat_tables([events(0, 70_000), events(0, 70_000), events(0, 3)])

    ack = table.append(twice)

    assert (ack.rows, ack.duplicates) == (70_000, 70_003)
    assert count(lake) == (70_000, 70_000)


def test_the_first_row_wins(lake, table):
    table.append([{"id": "a", "time": START, "n": 1}, {"id": "a", "time": START, "n": 2}])
    table.append([{"id": "a", "time": START, "n": 3}])
    table.seal()
    table.append([{"id": "a", "time": START, "n": 4}])
    table.flush()

    assert lake.sql("SELECT n FROM events").fetchall() == [(1,)]


@pytest.mark.parametrize(("scope", "rows"), [("day", 2), ("table", 1), ("none", 3)])
@pytest.mark.parametrize("state", ["buffered", "flushed", "sealed", "reopened"])
def test_dedup_scope(open_lake, scope, rows, state):
    lake = open_lake()
    schema = ls.TableSchema.from_document(
        SCHEMA.document.model_dump(exclude_defaults=True) | {"dedup": scope}
    )
    table = lake.create_table("events", schema)
    moments = [START, START.replace(hour=5), START.replace(day=2)]
    for moment in moments:
        table.append([{"id": "same", "time": moment}])
        if state == "flushed":
            table.flush()
        if state in ("sealed", "reopened"):
            table.seal()
        if state == "reopened":
            lake.close()
            lake = open_lake()
            table = lake["events"]
    table.flush()

    assert lake.sql("SELECT count(*) FROM events").fetchone() == (rows,)


def test_a_duplicate_of_a_sealed_row_is_caught_at_flush_after_reopening(open_lake):
    lake = open_lake()
    lake.create_table("events", SCHEMA).append(events(0, 50))
    lake.seal()
    lake.close()
    lake = open_lake()

    lake["events"].append(events(40, 60))
    lake.flush()

    assert count(lake) == (60, 60)


def test_a_damaged_id_cache_is_made_again(open_lake, root):
    lake = open_lake()
    lake.create_table("events", SCHEMA).append(events(0, 30))
    lake.seal()
    lake.close()
    caches = list((root / "_site/ids").rglob("*.ids"))
    assert len(caches) == 2
    caches[0].write_bytes(b"\0" * caches[0].stat().st_size)
    caches[1].unlink()
    lake = open_lake()

    lake["events"].append(events(0, 31))
    lake.flush()

    assert count(lake) == (31, 31)


def test_colliding_hashes_lose_nothing(lake, table, monkeypatch):
    """Hashes only nominate: if all were equal, ids would still decide."""
    import numpy as np

    from lakestore import append, duplicates

    def all_equal(rows, schema):
        return np.full(rows.num_rows, 7, dtype=np.uint64)

    monkeypatch.setattr(append, "hash_batch", all_equal)
    monkeypatch.setattr(duplicates, "hash_batch", all_equal)
    table.append(events(0, 40))
    table.append(events(30, 60))
    table.flush()

    assert count(lake) == (60, 60)


def test_producer_and_seq_are_accepted_once_for_ever(open_lake):
    lake = open_lake()
    table = lake.create_table(
        "made",
        ls.TableSchema.from_toml("event_time = 't'\n[columns]\nt = 'TIMESTAMP'\nn = 'INTEGER'"),
    )
    row = {"t": START, "n": 1}

    def send(seq: int) -> int:
        return lake["made"].append([row], producer="job", seq=seq).rows

    assert [send(0), send(0), send(1)] == [1, 0, 1]
    table.flush()
    assert [send(1), send(2)] == [0, 1]
    table.seal()
    lake.close()
    lake = open_lake()
    assert [send(2), send(3), send(3)] == [0, 1, 0]
    lake.close()  # buffered: the journal alone knows
    lake = open_lake()
    assert [send(3), send(4)] == [0, 1]
    assert lake.sql("SELECT count(*), count(DISTINCT event_id) FROM made").fetchone() == (5, 5)


@pytest.mark.parametrize(
    ("producer", "seq"),
    [("p", None), (None, 1), ("", 1), ("p", -1), ("p", 2**63), ("p", True), ("x" * 513, 1)],
)
def test_wrong_producers_are_refused(table, producer, seq):
    with pytest.raises(ls.InvalidInputError):
        table.append(events(0, 1), producer=producer, seq=seq)


def test_levels(lake, table, monkeypatch):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), real(fd)))

    memory = table.append(events(0, 1), level="memory")
    written = table.append(events(1, 2), level="os")
    assert (memory.level, written.level, synced) == ("memory", "os", [])
    assert count(lake) == (2, 2)

    lake.wait(written.position, "disk")
    assert len(synced) == 1
    lake.wait(memory.position, "disk")
    assert len(synced) == 1
    table.append(events(2, 3), level="disk")
    assert len(synced) == 2
    with pytest.raises(ls.InvalidInputError, match="level 'cold' is none of"):
        table.append(events(3, 4), level="cold")


def test_wait_for_rows_that_are_flushed_returns_at_once(lake, table):
    ack = table.append(events(0, 5), level="memory")
    table.flush()
    lake.wait(ack.position, "disk")
    assert count(lake) == (5, 5)


def test_memory_rows_reach_the_journal_with_the_next_write(open_lake):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 5), level="memory")
    table.append(events(5, 6), level="os")
    lake.close()

    assert count(open_lake()) == (6, 6)


def test_concurrent_appends_share_an_fsync(lake, table, monkeypatch):
    """Group commit: while one fdatasync runs, the others' frames gather for the next."""
    gate, started, calls = threading.Event(), threading.Event(), []
    real = os.fdatasync

    def slow(descriptor):
        calls.append(descriptor)
        started.set()
        if len(calls) == 1:
            assert gate.wait(30)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(table.append, events(0, 1))
        assert started.wait(30)
        rest = [pool.submit(table.append, events(i, i + 1)) for i in range(1, 9)]
        while table._context.buffer.rows < 9:
            pass
        assert not first.done()
        gate.set()
        assert sum(f.result().rows for f in [first, *rest]) == 9

    assert len(calls) == 2
    assert count(lake) == (9, 9)


def test_rows_are_not_visible_before_they_are_durable(lake, table, monkeypatch):
    seen = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (seen.append(count(lake)), real(fd)))
    table.append(events(0, 10))
    assert seen == [(0, 0)]
    assert count(lake) == (10, 10)


def test_eight_threads(open_lake):
    lake = open_lake(upkeep="auto", settings={"flush_rows": 500, "flush_age_s": 0.05})
    table = lake.create_table("events", SCHEMA)

    def send(worker: int) -> int:
        return sum(
            table.append(events(i, i + 10)).rows
            for i in range(worker * 400, worker * 400 + 500, 10)
        )

    with ThreadPoolExecutor(8) as pool:
        accepted = sum(pool.map(send, range(8)))

    assert accepted == 8 * 400 + 100
    assert count(lake) == (accepted, accepted)
    table.seal()
    assert count(lake) == (accepted, accepted)


def test_back_pressure(open_lake):
    lake = open_lake(settings={"buffer_bytes": 20_000, "append_timeout_s": 0.01})
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 1000))

    with pytest.raises(ls.BackpressureError, match="nothing of this batch was accepted"):
        table.append(events(1000, 1001), producer="p", seq=1)

    assert count(lake) == (1000, 1000)
    table.flush()
    assert table.append(events(1000, 1001), producer="p", seq=1).rows == 1


def test_back_pressure_waits_for_a_flush(open_lake):
    lake = open_lake(settings={"buffer_bytes": 20_000, "append_timeout_s": 60})
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 1000))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(table.append, events(1000, 1010))
        assert table.flush() == 1000
        assert waiting.result().rows == 10
    assert count(lake) == (1010, 1010)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_refused_write_accepts_nothing_and_works_again(lake, table, monkeypatch, code):
    table.append(events(0, 10))
    real = os.writev
    calls = iter([3, OSError(code, os.strerror(code))])

    def failing(descriptor, buffers):
        answer = next(calls, None)
        if isinstance(answer, OSError):
            raise answer
        if answer:  # a short write first, so that a torn frame must be cut away
            return real(descriptor, [memoryview(buffers[0])[:answer]])
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "writev", failing)
    with pytest.raises(ls.StorageError, match="cannot write journal"):
        table.append(events(10, 20), producer="p", seq=1)
    assert count(lake) == (10, 10)

    assert table.append(events(10, 20), producer="p", seq=1).rows == 10
    assert count(lake) == (20, 20)


def test_short_writes_are_completed(open_lake, monkeypatch):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, buffers: real(fd, [memoryview(buffers[0])[:1000]]))
    table.append(events(0, 500))
    lake.close()
    assert count(open_lake()) == (500, 500)


def test_a_failed_fsync_poisons_the_journal_and_nothing_else(open_lake, monkeypatch):
    """After a failed fsync the kernel may call lost pages clean: the file is never synced again."""
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 10))
    real = os.fdatasync
    failing = [True]
    synced = []

    def sync(descriptor):
        synced.append(descriptor)
        if failing.pop() if failing else False:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync)
    with pytest.raises(ls.StorageError, match="cannot sync journal"):
        table.append(events(10, 20), producer="p", seq=1)
    assert count(lake) == (10, 10)

    assert table.append(events(10, 20), producer="p", seq=1).rows == 10
    assert synced[0] not in synced[1:]
    assert count(lake) == (20, 20)
    table.flush()
    assert count(lake) == (20, 20)
    lake.close()
    assert count(open_lake()) == (20, 20)


def test_made_ids_are_added(lake):
    table = lake.create_table("clicks", pa.schema([("at", pa.timestamp("us"))]), event_time="at")
    table.append([{"at": START}] * 3)
    table.append({"at": START})

    ids = lake.sql("SELECT event_id FROM clicks").fetchall()
    assert len({i for (i,) in ids}) == 4


@pytest.mark.parametrize("moment", ["fdatasync", "writev", "after writev"])
def test_an_interrupt_loses_nothing_and_hangs_nothing(open_lake, root, monkeypatch, moment):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 10))
    real = os.fdatasync if moment == "fdatasync" else os.writev

    def interrupted(descriptor, *rest):
        monkeypatch.undo()
        if moment == "writev":
            real(descriptor, [memoryview(rest[0][0])[:7]])
        elif moment == "after writev":
            real(descriptor, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, real.__name__, interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.append(events(10, 20))
    assert table.append(events(20, 30)).rows == 10

    def full(descriptor, buffers):
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(ls.StorageError):
        table.append(events(30, 40))
    table.append(events(40, 50))
    assert count(lake) == (30, 30)
    lake.close()
    reopened = open_lake()
    ids = reopened.sql("SELECT id FROM events ORDER BY id").fetchall()
    assert ids == [(f"e{i:06d}",) for i in [*range(10), *range(20, 30), *range(40, 50)]]


def test_refused_rows_are_seen_by_nobody(open_lake, monkeypatch):
    """Neither by another process, nor after a crash, when their retry was accepted."""
    lake = open_lake()
    made = ls.TableSchema.from_toml("event_time = 't'\n[columns]\nt = 'TIMESTAMP'\nn = 'INTEGER'")
    table = lake.create_table("made", made)
    table.append([{"t": START, "n": 0}])

    def fail(descriptor):
        monkeypatch.undo()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(ls.StorageError):
        table.append([{"t": START, "n": 1}])
    assert table.append([{"t": START, "n": 1}]).rows == 1
    expected = [(0,), (1,)]
    query = "SELECT n FROM made ORDER BY n"
    assert open_lake(mode="r").sql(query).fetchall() == expected
    lake.close()
    assert open_lake().sql(query).fetchall() == expected


def test_a_failed_fsync_spares_what_another_had_synced(lake, table, monkeypatch):
    """One thread's fsync is done but its rows are not yet visible when another's fails."""
    from lakestore.buffer import Buffer

    reached, go = threading.Event(), threading.Event()
    publish = Buffer.publish

    def slow(self, generation, end):
        if threading.current_thread().name == "first":
            reached.set()
            assert go.wait(30)
        publish(self, generation, end)

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Buffer, "publish", slow)
    acks = []
    first = threading.Thread(target=lambda: acks.append(table.append(events(0, 10))), name="first")
    first.start()
    assert reached.wait(30)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(ls.StorageError):
            table.append(events(10, 11))
    go.set()
    first.join()
    assert acks[0].rows == 10
    table.flush()
    assert count(lake) == (10, 10)


def test_a_query_that_merges_batches_spares_a_flush(lake, table):
    """A flush takes what it writes at once; a query may merge the very same batches beside it."""
    for start in range(200):
        table.append(events(start, start + 1), level="os")
    closed = table._context.buffer.rotate()
    assert count(lake) == (200, 200)
    assert [g.rows for g in closed] == [200]
    table.flush()
    assert count(lake) == (200, 200)


def test_a_small_buffer_is_flushed_before_it_is_full(open_lake):
    lake = open_lake(
        upkeep="auto",
        settings={"buffer_bytes": 50_000, "flush_age_s": 9_999, "append_timeout_s": 60},
    )
    table = lake.create_table("events", SCHEMA)
    for start in range(0, 3000, 300):
        table.append(events(start, start + 300))
    assert count(lake) == (3000, 3000)


def test_a_pair_is_known_for_ever_even_if_all_its_rows_were_duplicates(open_lake):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 5))
    assert table.append(events(0, 5), producer="p", seq=1).duplicates == 5
    table.flush()
    table.seal()
    table.vacuum(dry_run=False)
    lake.close()
    lake = open_lake()
    assert lake["events"].append(events(5, 6), producer="p", seq=1).duplicates == 1
    lake["events"].append(events(0, 3), producer="p", seq=2)  # sealed: the flush finds them out
    lake.flush()
    lake["events"].vacuum(dry_run=False)
    lake.close()
    lake = open_lake()
    assert lake["events"].append(events(5, 6), producer="p", seq=2).duplicates == 1
    assert count(lake) == (5, 5)


def test_the_index_forgets_what_is_sealed(lake, table, monkeypatch):
    from lakestore import append

    monkeypatch.setattr(append, "_REBUILD_ROWS", 10)
    table.append(events(0, 100))
    table.seal()
    table.append(events(100, 103))
    table.flush()
    table.append(events(103, 105))
    known = table._appender._known
    assert len(known) == 5
    table.seal()
    table.append(events(0, 106))
    table.flush()
    assert count(lake) == (106, 106)


def test_what_is_cut_after_a_failed_fsync_is_not_missed_later(lake, table, monkeypatch, open_lake):
    """An interrupt left a frame that nobody holds, a sync took it, and a failure cuts it off."""
    from lakestore import failpoint
    from lakestore.buffer import Generation

    held = table.append(events(0, 10), level="os")
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "add", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            table.append(events(10, 20), level="os")
    lake.wait(held.position, "disk")
    with failpoint.at("journal.6", "EIO"), pytest.raises(ls.StorageError):
        table.append(events(20, 30))
    assert table.append(events(30, 40)).rows == 10  # in a new generation, which knows the cut
    die(lake)
    assert open_lake().sql("SELECT count(*) FROM events").fetchall() == [(20,)]


@pytest.mark.parametrize("point", ["journal.1", "journal.2", "journal.4"])
def test_a_journal_whose_making_was_interrupted_is_passed_by(
    lake, table, monkeypatch, open_lake, point
):
    """The next one begins after the one before it, and must not tell of that one's bytes."""
    from lakestore import journal

    table.append(events(0, 10))
    table._context.buffer.rotate()
    with monkeypatch.context() as patch:
        patch.setattr(journal, "reach", lambda at: _interrupted() if at == point else None)
        with pytest.raises(KeyboardInterrupt):
            table.append(events(10, 20))
    assert table.append(events(20, 30)).rows == 10
    die(lake)
    assert open_lake().sql("SELECT count(*) FROM events").fetchall() == [(20,)]


def test_a_damaged_segment_is_named_when_a_row_may_be_known(lake, table, root):
    table.append(events(0, 10))
    table.flush()
    (segment,) = (root / "_site/hot/events").glob("*.parquet")
    data = segment.read_bytes()
    segment.write_bytes(data[:100] + bytes(len(data) - 100))
    with pytest.raises(ls.CorruptionError, match=segment.name):
        table.append(events(5, 15))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt
