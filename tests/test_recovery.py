"""Open, close, crash, reopen; and lakes that are not what they should be."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SCHEMA, events

import lakestore as ls
from lakestore import failpoint
from lakestore.catalog import Catalog
from lakestore.catalog.database import Creation
from lakestore.catalog.sqlite import SQLite


def total(lake: ls.Lake) -> tuple[int, int]:
    row = lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchone()
    assert row is not None
    return row


WRITER = """
import sys
from conftest import SCHEMA, events
import lakestore as ls
lake = ls.open(sys.argv[1], upkeep="auto",
               settings={"flush_rows": 60, "flush_age_s": 0.05, "seal_bytes": 20_000,
                         "segment_duckdb_rows": 50})
table = lake.create_table("events", SCHEMA, exist_ok=True)
start = int(sys.argv[2])
while True:
    table.append(events(start, start + 10), producer="w", seq=start)
    start += 10
    print(start, flush=True)
"""


def spawn(
    children: list[subprocess.Popen[bytes]], script: str, tmp_path: Path, *arguments: str
) -> subprocess.Popen[bytes]:
    path = tmp_path / "child.py"
    path.write_text(script)
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    child = subprocess.Popen(
        [sys.executable, str(path), *arguments], stdout=subprocess.PIPE, env=environment
    )
    children.append(child)
    return child


@pytest.fixture(autouse=True)
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Ends what a test started."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def test_kill_9_loses_nothing_acknowledged(open_lake, root, tmp_path, children):
    start = 0
    for kill_after in (1, 3, 17, 40, 71):
        child = spawn(children, WRITER, tmp_path, str(root), str(start))
        assert child.stdout is not None
        acknowledged = start
        for _ in range(kill_after):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, child.stdout.read().split(b"\n")[:-1])])
        child.wait()
        lake = open_lake()
        rows, distinct = total(lake)
        assert rows == distinct
        assert acknowledged <= rows <= acknowledged + 10
        assert rows % 10 == 0
        assert lake.sql("SELECT max(id) FROM events").fetchone() == (f"e{rows - 1:06d}",)
        # The retry that its client would send is no new row, whether or not it was acknowledged.
        again = lake["events"].append(events(rows - 10, rows), producer="w", seq=rows - 10)
        assert (again.rows, again.duplicates) == (0, 10)
        lake.close()
        start = rows


def test_a_reader_sees_a_live_writers_rows(lake, table, root, open_lake):
    table.append(events(0, 30))
    table.flush()
    table.append(events(30, 50))
    reader = open_lake(mode="r")
    assert total(reader) == (50, 50)
    table.append(events(50, 60), level="os")
    assert total(reader) == (60, 60)
    table.seal()
    assert total(reader) == (60, 60)
    table.vacuum(dry_run=False)
    table.append(events(60, 61))
    assert total(reader) == (61, 61)
    assert reader.status().tables[0].rows == 61
    other = lake.create_table("other", SCHEMA)
    other.append(events(0, 5))
    assert reader.sql("SELECT count(*) FROM other").fetchone() == (5,)
    assert reader.tables() == ["events", "other"]


def test_a_reader_writes_nothing(lake, table, open_lake, root):
    table.append(events(0, 30))
    table.flush()
    lake.close()
    before = sorted(p for p in root.rglob("*") if "sqlite" not in p.name)
    reader = open_lake(mode="r")
    assert total(reader) == (30, 30)
    for call in (
        lambda: reader["events"].append(events(0, 1)),
        lambda: reader["events"].flush(),
        lambda: reader["events"].seal(),
        lambda: reader["events"].vacuum(),
        lambda: reader.create_table("x", SCHEMA),
        lambda: reader.drop_table("events"),
        lambda: reader.maintain(),
    ):
        with pytest.raises(ls.InvalidInputError, match="reopen it to write"):
            call()
    reader.close()
    assert sorted(p for p in root.rglob("*") if "sqlite" not in p.name) == before


def test_what_a_dead_writer_left_is_taken_over(open_lake, root, tmp_path, children):
    child = spawn(children, WRITER, tmp_path, str(root), "0")
    assert child.stdout is not None
    child.stdout.readline()
    child.kill()
    child.wait()
    (staging,) = (root / "_site/staging").iterdir()
    (staging / "half.parquet").write_bytes(b"half")

    lake = open_lake()
    rows, _ = total(lake)
    assert not staging.exists()
    assert lake.open_report.rows <= rows
    lake.flush()
    assert total(lake) == (rows, rows)
    lake["events"].vacuum(dry_run=False)
    assert list((root / "_site/journal").rglob("*.journal")) == []
    lake.close()
    assert total(open_lake()) == (rows, rows)


def test_damage_in_the_middle_of_a_journal_stops_the_open(open_lake, root):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    for start in (0, 10, 20):
        table.append(events(start, start + 10))
    lake.close()
    (journal,) = (root / "_site/journal").rglob("*.journal")
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)

    with pytest.raises(ls.CorruptionError, match="which was on the disk, and rows follow"):
        open_lake()
    assert journal.exists()


@pytest.mark.parametrize("at", [*range(28), 40, 200])
def test_a_damaged_header_never_drops_rows(open_lake, root, at):
    lake = open_lake()
    lake.create_table("events", SCHEMA).append(events(0, 10))
    lake.close()
    (journal,) = (root / "_site/journal").rglob("*.journal")
    data = bytearray(journal.read_bytes())
    data[at] ^= 0x40
    journal.write_bytes(data)

    with pytest.raises((ls.CorruptionError, ls.FormatTooNewError)):
        open_lake()
    assert journal.exists()


def test_rows_that_two_dead_writers_both_had_are_one(open_lake, monkeypatch):
    """Even when they are flushed to different segments."""
    from lakestore import flush

    lake = open_lake()
    lake.create_table("events", SCHEMA)
    writers = [open_lake(), open_lake()]
    for writer in writers:
        writer["events"].append(events(0, 100))
    for one in (*writers, lake):
        one.close()
    monkeypatch.setattr(flush, "_ROWS_MAX", 50)

    lake = open_lake()
    lake.flush()
    assert total(lake) == (100, 100)
    lake.seal()
    assert total(lake) == (100, 100)


def test_a_fork_does_not_keep_its_parents_writer_alive(open_lake, root, tmp_path, children):
    script = """
import os, sys, time
from conftest import SCHEMA, events
import lakestore as ls
lake = ls.open(sys.argv[1], upkeep="manual")
lake.create_table("events", SCHEMA).append(events(0, 10))
child = os.fork()
if child == 0:
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
sys.stdin.read()
"""
    path = tmp_path / "forks.py"
    path.write_text(script)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    parent = subprocess.Popen(
        [sys.executable, str(path), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    children.append(parent)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        lake = open_lake()
        assert lake.open_report.rows == 10
    finally:
        os.kill(child, signal.SIGKILL)


def test_an_open_that_failed_holds_nothing(open_lake, root):
    """Or the next open would take the dead writers for living ones, and hide their rows."""
    lake = open_lake()
    lake.create_table("events", SCHEMA).append(events(0, 10))
    lake.close()
    (journal,) = (root / "_site/journal").rglob("*.journal")
    good = journal.read_bytes()
    journal.write_bytes(good[:20] + b"?" + good[21:])
    for _ in range(2):
        with pytest.raises(ls.CorruptionError):
            open_lake()
    journal.write_bytes(good)
    lake = open_lake()
    assert lake.open_report.rows == 10
    assert total(lake) == (10, 10)


@pytest.mark.parametrize("damage", ["missing", "short", "noise"])
def test_a_segment_that_cannot_be_read_is_named_at_open(open_lake, root, damage):
    """An open needs its ids; once the file is back, every row is."""
    lake = open_lake()
    lake.create_table("events", SCHEMA).append(events(0, 10))
    lake.flush()
    lake.close()
    (segment,) = (root / "_site/hot").rglob("*.parquet")
    good = segment.read_bytes()
    segment.unlink()
    if damage != "missing":
        segment.write_bytes(good[:-9] if damage == "short" else b"?" * len(good))
    for _ in range(2):
        with pytest.raises(ls.CorruptionError, match=segment.name):
            open_lake()
    segment.write_bytes(good)
    assert total(open_lake()) == (10, 10)


def test_a_create_that_was_cut_short_does_not_spoil_the_name(lake, monkeypatch, root):
    from lakestore import shell

    def fail(*_):
        raise OSError("pulled the plug")

    other = ls.TableSchema.from_toml("event_time = 't'\n[columns]\nt = 'TIMESTAMP'")
    with monkeypatch.context() as patch:
        patch.setattr(lake._site.storage, "read", fail)
        write_empty = shell.write_empty
        patch.setattr(shell, "write_empty", lambda table: (write_empty(table), fail()))
        with pytest.raises(ls.StorageError, match="pulled the plug"):
            lake.create_table("events", other)
    assert lake.tables() == []
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 3))
    table.flush()
    assert total(lake) == (3, 3)
    assert lake.status().problem is None


def test_close_saves_every_table_though_one_fails(open_lake, monkeypatch):
    lake = open_lake(upkeep="auto", settings={"flush_age_s": 9_999})
    for name in "ab":
        lake.create_table(name, SCHEMA).append(events(0, 3), level="memory")
    from lakestore import flush

    real = flush.flush

    def fail_for_a(table):
        if table.entry.name == "a":
            raise ls.StorageError("no")
        return real(table)

    monkeypatch.setattr(flush, "flush", fail_for_a)
    with pytest.raises(ls.StorageError, match="no"):
        lake.close()
    assert open_lake().sql("SELECT count(*) FROM b").fetchone() == (3,)


def test_a_torn_tail_is_cut(open_lake, root):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 10))
    table.append(events(10, 20))
    lake.close()
    (journal,) = (root / "_site/journal").rglob("*.journal")
    journal.write_bytes(journal.read_bytes()[:-5])

    assert total(open_lake()) == (10, 10)


def test_a_finished_journal_that_lost_its_end_is_named(open_lake, root, tmp_path):
    """Cut exactly after a frame, it looks whole; the writer's next one knows how long it was."""
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    end = table.append(events(0, 10)).position.offset
    table.append(events(10, 20))
    with failpoint.at("flush.3", "EIO"), pytest.raises(ls.StorageError):
        lake.flush()
    table.append(events(20, 30))
    shutil.copytree(root, tmp_path / "copy")  # what a kill would leave
    first, second = sorted((tmp_path / "copy/_site/journal").rglob("*.journal"))
    good = first.read_bytes()
    first.write_bytes(good[:end])
    for mode in ("r", "rw"):
        with (
            pytest.raises(ls.CorruptionError, match=f"{first.name}.*bytes of it were on the disk"),
            ls.open(tmp_path / "copy", mode=mode, upkeep="manual") as copy,
        ):
            total(copy)
    with ls.open(tmp_path / "copy", mode="r") as copy:
        damage = [p for p in copy.verify().problems if p.severity == "damage"]
        assert [(problem.kind, problem.file) for problem in damage] == [("journal", first)]
    first.write_bytes(good)
    with ls.open(tmp_path / "copy", upkeep="manual") as copy:
        assert total(copy) == (30, 30)
    assert second.exists()


def test_a_journal_that_was_flushed_but_not_deleted_is_not_read_again(open_lake, root):
    lake = open_lake()
    table = lake.create_table(
        "made", ls.TableSchema.from_toml("event_time = 't'\n[columns]\nt = 'TIMESTAMP'")
    )
    table.append([{"t": "2025-01-01"}] * 5)
    table.flush()
    lake.close()
    assert len(list((root / "_site/journal").rglob("*.journal"))) == 1
    lake = open_lake()
    assert lake.sql("SELECT count(*) FROM made").fetchone() == (5,)
    lake.flush()
    assert lake.sql("SELECT count(*) FROM made").fetchone() == (5,)


@pytest.mark.parametrize(("verb", "step"), [("flush", "add_segment"), ("seal", "seal")])
def test_a_failure_between_publishing_and_committing(open_lake, monkeypatch, verb, step):
    from lakestore.catalog.commit import Commit

    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 30))
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError("pulled the plug")

        patch.setattr(Commit, step, fail)
        with pytest.raises(ls.StorageError, match="pulled the plug"):
            getattr(table, verb)()
        assert total(lake) == (30, 30)
    assert getattr(table, verb)() == 30
    assert total(lake) == (30, 30)


def test_a_path_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(ls.InvalidInputError, match="is a file; a lake is a folder"):
        ls.open(path)


def test_no_lake_to_read(tmp_path):
    with pytest.raises(ls.NotFoundError, match="no lake at"):
        ls.open(tmp_path / "nothing", mode="r")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.sqlite
def test_a_newer_lake_is_refused_and_untouched(lake, table, root, open_lake):
    lake.close()
    facts = json.loads((root / "lakestore.json").read_text())
    (root / "lakestore.json").write_text(json.dumps(facts | {"format": 2}))
    with pytest.raises(ls.FormatTooNewError, match="has format 2.*upgrade lakestore"):
        open_lake()
    (root / "lakestore.json").write_text(json.dumps(facts))
    with sqlite3.connect(root / "_site/catalog.sqlite") as catalog:
        catalog.execute("UPDATE lake SET format = 99")
    catalog.close()
    with pytest.raises(ls.FormatTooNewError, match="has format 99.*upgrade lakestore"):
        open_lake()


def test_a_damaged_lake_file(lake, root, open_lake):
    lake.close()
    (root / "lakestore.json").write_text("{")
    with pytest.raises(ls.CorruptionError, match="is damaged"):
        open_lake()


def test_a_site_of_another_lake_is_refused(lake, tmp_path, root):
    lake.close()
    with pytest.raises(ls.CorruptionError, match="belongs to lake"):
        ls.open(tmp_path / "other", local=root / "_site")


@pytest.mark.parametrize(
    "options",
    [{"mode": "w"}, {"upkeep": "never"}, {"settings": {"flush_rows": 0}},
     {"settings": {"flsh_rows": 1}}],
)  # fmt: skip
def test_wrong_options(root, options):
    with pytest.raises(ls.InvalidInputError):
        ls.open(root, **options)


def test_wrong_urls_are_refused():
    with pytest.raises(ls.InvalidInputError, match="a folder, or s3://bucket/prefix"):
        ls.open("ftp://host/lake")


def test_closed_handles_say_so(open_lake):
    with open_lake() as lake:
        table = lake.create_table("events", SCHEMA)
        result = lake.sql("SELECT 1 AS one")
    lake.close()
    for call in (lake.tables, table.flush, table.scan, lambda: lake.sql("SELECT 1"),
                 lambda: table.append([]), lambda: lake["events"]):  # fmt: skip
        with pytest.raises(ls.ClosedError):
            call()
    assert result.fetchall() == [(1,)]


def test_a_forked_child_is_told(lake, table):
    table.append(events(0, 3))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            table.append(events(3, 4))
            os.write(write, b"accepted")
        except ls.ClosedError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"opened before a fork" in os.read(read, 1000)
    os.close(read)
    os.close(write)
    assert total(lake) == (3, 3)


def test_tables_are_created_once(lake, table):
    for name in ("events", "EVENTS"):
        with pytest.raises(ls.InvalidInputError, match="table 'events' exists"):
            lake.create_table(name, SCHEMA)
    assert lake.create_table("events", SCHEMA, exist_ok=True) is table
    with pytest.raises(ls.NotFoundError, match="no table 'nope'.*its tables: events"):
        lake["nope"]
    with pytest.raises(ls.InvalidInputError, match="cold format 'orc'"):
        lake.create_table("x", SCHEMA, cold="orc")
    with pytest.raises(ls.InvalidInputError, match="already says its roles"):
        lake.create_table("x", SCHEMA, event_id="id")
    with pytest.raises(ls.SchemaError, match="event_time= must name"):
        lake.create_table("x", events(0, 1).schema)
    assert lake.tables() == list(lake) == ["events"]
    assert "events" in lake


def test_a_schema_is_inferred_from_a_first_batch(lake):
    by_arrow = lake.create_table("a", events(0, 3), event_time="time", event_id="id")
    by_rows = lake.create_table("b", events(0, 3).to_pylist(), event_time="time", dedup="none")
    assert by_arrow.append(events(0, 3)).rows == 3
    assert by_rows.append(events(0, 3)).rows == 3
    text = [{"id": "a", "time": "2025-01-01T00:00:00Z", "n": 1}]
    by_text = lake.create_table("c", text, event_time="time", event_id="id")
    assert by_text.schema.column("time").sql_type == "TIMESTAMP WITH TIME ZONE"
    assert by_text.append(text).rows == 1
    with pytest.raises(ls.SchemaError, match="event_time 'id' is VARCHAR"):
        lake.create_table("d", text, event_time="id")
    assert by_arrow.schema.names == tuple(events(0, 0).schema.names)
    assert by_rows.schema.made_id


def test_a_dropped_table_can_be_made_again(open_lake, clock, root):
    lake = open_lake(settings={"vacuum_grace_s": 10})
    old = lake.create_table("events", SCHEMA)
    old.append(events(0, 30))
    old.seal()
    old.append(events(30, 40))
    old.flush()
    old.append(events(40, 45))
    lake.drop_table("events")
    with pytest.raises(ls.ClosedError, match="was dropped"):
        old.append(events(0, 1))
    new = lake.create_table("events", SCHEMA)
    assert total(lake) == (0, 0)
    assert new.append(events(0, 7)).rows == 7
    new.seal()
    clock.move(20)
    lake.maintain()
    assert not (root / "tables/events").exists() or not list((root / "tables/events").rglob("*.p*"))
    assert total(lake) == (7, 7)
    lake.close()
    assert total(open_lake()) == (7, 7)


def test_two_that_make_the_catalog_at_once_both_have_it(tmp_path, clock):
    """One looked before the other made the file: it is no stranger's for that."""

    class Late(SQLite):
        def open(self, **options: object) -> None:
            super().open(**options)
            creation = Creation("lake", "first")
            Catalog(SQLite(tmp_path / "c"), clock, write=True, creation=creation).close()

    creation = Creation("lake", "second")
    catalog = Catalog(Late(tmp_path / "c"), clock, write=True, creation=creation)
    assert catalog.site == "first"
    assert catalog.database.is_in_place()
    catalog.close()
