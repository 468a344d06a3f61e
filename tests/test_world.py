"""Errors of the world: a full disk, a read-only one, no descriptors, no memory, damaged files."""

import functools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from support import lifecycle
from support.mounts import Mount, bound, mount  # noqa: F401  (for pytest)
from support.planted import assert_caught
from support.soundness import assert_sound

import lakestore as ls
import lakestore.catalog.frozen
import lakestore.flush
import lakestore.instances
import lakestore.query.run

START = datetime(2025, 3, 1, tzinfo=UTC)
SCHEMA = ls.TableSchema.from_toml(lifecycle.SCHEMA.text.replace("format = 2", "format = 1"))
"""With the notes in the rows, where damage can meet them."""
SETTINGS = {
    "segments_max": 3,
    "segment_duckdb_rows": 100,
    "vacuum_grace_s": 0,
    "seal_age_s": 0.001,
    "flush_rows": 400,
}


@functools.cache
def _note(number: int) -> str:
    return random.Random(number).randbytes(250).hex()


def rows(numbers: Iterable[int]) -> pa.Table:
    """Events by number, 500 bytes each that do not compress below 250: 3,000 fill a day."""
    all_numbers = list(numbers)
    return pa.table(
        {
            "id": [f"e{n:06d}" for n in all_numbers],
            "at": [START + timedelta(seconds=28.8 * n) for n in all_numbers],
            "n": all_numbers,
            "note": [_note(n) for n in all_numbers],
            "body": [f"body {n}" for n in all_numbers],
        },
        schema=SCHEMA.arrow,
    )


def assert_holds(lake: ls.Lake, numbers: Iterable[int]) -> None:
    """The table holds these events, with every value of every row."""
    assert lifecycle.with_payload(lake, "t").sort_by("n").equals(rows(numbers))


def open_lake(root: Path, **options: object) -> ls.Lake:
    return ls.open(root, **({"upkeep": "manual", "settings": SETTINGS} | options))


# A full disk

ROOMS: dict[str, tuple[Callable[[Mount, int], None], list[int]]] = {
    "bytes": (Mount.fill, [0, 8 << 10, 64 << 10, 128 << 10, 256 << 10, 384 << 10]),
    "names": (Mount.fill_inodes, [0, 1, 2, 3, 4, 6, 8]),
}


def flush(lake: ls.Lake) -> None:
    lake.flush()


def seal(lake: ls.Lake) -> None:
    lake.seal()


def maintain(lake: ls.Lake) -> None:
    report = lake.maintain()
    if report.problems:
        assert not report.damaged
        raise ls.StorageError(report.problems[0])


def create(lake: ls.Lake) -> None:
    if "other" in lake:
        lake.drop_table("other")
    lake.create_table("other", SCHEMA)


@pytest.mark.parametrize("verb", [flush, seal, maintain, create])
@pytest.mark.parametrize("what", list(ROOMS))
def test_a_full_disk_loses_nothing_and_the_handle_goes_on(mount, verb, what):  # noqa: F811
    take, rooms = ROOMS[what]
    refusals = []
    with open_lake(mount.path / "lake") as lake:
        table = lake.create_table("t", lifecycle.SCHEMA)  # with payload files too
        held = 0
        for room in rooms:
            assert table.append(rows(range(held, held + 500))).rows == 500
            held += 500
            take(mount, room)
            for _ in range(2):
                try:
                    verb(lake)
                except ls.StorageError as error:
                    refusals.append(str(error))
            assert_holds(lake, range(held))
            mount.make_room()
            verb(lake)
            assert_holds(lake, range(held))
        lake.seal()
        assert len(refusals) >= 2
        assert all("make room" in refusal for refusal in refusals), refusals
        assert [p for p in (mount.path / "lake/_site/staging").rglob("*") if p.is_file()] == []
    with open_lake(mount.path / "lake") as lake:
        assert_holds(lake, range(held))
        assert_sound(lake, allowed=("orphan",))


def test_appends_until_the_disk_is_full_keep_what_was_acknowledged(mount):  # noqa: F811
    """No answer is given for what was refused, and room brings back every verb."""
    mount.fill(6 << 20)
    acknowledged: list[int] = []
    with open_lake(mount.path / "lake", settings=SETTINGS | {"flush_rows": 10**6}) as lake:
        table = lake.create_table("t", SCHEMA)
        for start in range(0, 10**6, 300):
            numbers = range(start, start + 300)
            try:
                assert table.append(rows(numbers), producer="p", seq=start).rows == 300
            except ls.StorageError as error:
                refusal = str(error)
                break
            acknowledged += numbers
        assert "No space left on device; make room" in refusal
        assert len(acknowledged) > 3000
        assert_holds(lake, acknowledged)
        with pytest.raises(ls.StorageError, match="make room"):
            table.append(rows(numbers), producer="p", seq=start)
        with pytest.raises(ls.StorageError, match="make room"):
            table.flush()
        assert_holds(lake, acknowledged)
        mount.make_room()
        assert table.append(rows(numbers), producer="p", seq=start).rows == 300
        acknowledged += numbers
        assert table.flush() == len(acknowledged)
        assert table.seal() == len(acknowledged)
        assert lake.maintain().problems == []
        assert_holds(lake, acknowledged)
        assert_sound(lake, allowed=("staging",))


@pytest.mark.parametrize(
    "what",
    # A catalog elsewhere leaves an open no byte to write that it could not do without.
    [pytest.param(what, marks=[pytest.mark.sqlite] if what == "bytes" else []) for what in ROOMS],
)
def test_an_open_on_a_full_disk_is_refused_and_hides_nothing(mount, what):  # noqa: F811
    """What a dead writer left is there for the open that succeeds."""
    take, rooms = ROOMS[what]
    root = mount.path / "lake"
    with open_lake(root) as lake:
        table = lake.create_table("t", SCHEMA)
        table.append(rows(range(500)))
        table.flush()
        table.append(rows(range(500, 700)))
    refusals = []
    for room in rooms:
        take(mount, room)
        try:
            with open_lake(root) as lake:
                assert_holds(lake, range(700))
        except ls.StorageError as error:
            refusals.append(str(error))
        mount.make_room()
        with open_lake(root, mode="r") as reader:
            assert_holds(reader, range(700))
    assert refusals
    assert all("make room" in refusal for refusal in refusals), refusals
    with open_lake(root) as lake:
        assert_holds(lake, range(700))
        assert lake.seal() == 700
        assert_holds(lake, range(700))
        assert_sound(lake, allowed=("staging",))


def cold_names(table: ls.Table) -> list[str]:
    return [file.name for file in table._context.state(newest=True).cold]


COMPACTING = {"bytes": [0, 8 << 10, 128 << 10, 512 << 10], "names": [0, 1, 2, 4, 7, 9]}


@pytest.mark.faults
@pytest.mark.parametrize("cold", ["parquet", "delta"])
@pytest.mark.parametrize("what", list(ROOMS))
def test_a_compaction_on_a_full_disk_leaves_the_files_as_they_were(mount, cold, what):  # noqa: F811
    """Wherever the room ends; once there is some, what was in vain is done."""
    take, settings = ROOMS[what][0], SETTINGS | {"cold_grace_s": 0}
    refusals: list[str] = []
    with open_lake(mount.path / "lake", settings=settings) as lake:
        table = lake.create_table("t", lifecycle.SCHEMA, cold=cold)
        held = 0
        for room in COMPACTING[what]:
            for _ in range(3):
                table.append(rows(range(held, held + 150)))
                table.seal()
                held += 150
            before = cold_names(table)
            take(mount, room)
            try:
                table.compact()
            except ls.StorageError as error:
                refusals.append(str(error))
                assert cold_names(table) == before
            assert_holds(lake, range(held))
            mount.make_room()
            table.compact()
            assert len(cold_names(table)) == 1
            assert_holds(lake, range(held))
            table.vacuum(dry_run=False)
        assert len(refusals) >= 3
        assert all("make room" in refusal for refusal in refusals), refusals
        assert [p for p in (mount.path / "lake/_site/staging").rglob("*") if p.is_file()] == []
    with open_lake(mount.path / "lake") as lake:
        assert_holds(lake, range(held))
        assert_sound(lake, allowed=("orphan",))


# A read-only file system


def tiers(lake: ls.Lake) -> None:
    """Events 0 to 1,000: sealed, in segments with and without a DuckDB file, and buffered."""
    table = lake.create_table("t", SCHEMA)
    for start, stop, verb in (
        (0, 300, table.seal),
        (300, 600, table.flush),
        (600, 650, table.flush),
    ):
        table.append(rows(range(start, stop)))
        verb()
    table.append(rows(range(650, 1000)))


def writer_dies(root: Path, last: str = "os._exit(0)") -> None:
    """Make the lake in a process that ends without closing it."""
    program = f"""
import os, pathlib, test_world
lake = test_world.open_lake(pathlib.Path({str(root)!r}))
test_world.tiers(lake)
{last}
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent)


@pytest.mark.parametrize("end", ["closed", "died"])
def test_a_read_only_file_system_is_read_and_not_written(mount, end):  # noqa: F811
    root = mount.path / "lake"
    writer_dies(root, "lake.close()" if end == "closed" else "os._exit(0)")
    mount.remount("ro")
    with open_lake(root, mode="r") as reader:
        assert_holds(reader, range(1000))
        assert reader.sql("SELECT count(*), sum(n) FROM t").fetchall() == [(1000, 499_500)]
        assert reader["t"].scan().collect().sort("n").to_arrow().num_rows == 1000
        assert_sound(reader, allowed=("staging",))
        with pytest.raises(ls.StorageError, match='read-only.*mode="r"'):
            open_lake(root)
        mount.remount("rw")
        with open_lake(root) as lake:
            assert_holds(lake, range(1000))
            lake["t"].append(rows(range(1000, 1010)))
            assert lake.seal() == 710
            assert lake.maintain().problems == []
            assert_holds(reader, range(1010))
        assert_holds(reader, range(1010))
    with open_lake(root, mode="r") as reader:
        assert_holds(reader, range(1010))
        assert_sound(reader)


def test_a_reader_through_a_read_only_mount_follows_a_writer(mount, tmp_path):  # noqa: F811
    """Whether the writer came before the reader or after it."""
    writable = mount.path / "lake"
    writer_dies(writable, "lake.close()")
    bind = bound(mount.path, tmp_path / "other")
    with bind as other, open_lake(other / "lake", mode="r") as early:
        assert_holds(early, range(1000))
        with open_lake(writable) as lake:
            lake["t"].append(rows(range(1000, 1100)))
            with open_lake(other / "lake", mode="r") as late:
                for step in (lake.flush, lake.seal, lake.maintain):
                    step()
                    assert_holds(late, range(1100))
                    assert_holds(early, range(1100))
        assert_holds(early, range(1100))
        assert_sound(early)


def test_a_lake_goes_on_after_its_file_system_was_read_only(mount):  # noqa: F811
    """A read-only mount over the lake's folder: what is opened anew is refused."""
    root = mount.path / "lake"
    with open_lake(root) as lake:
        table = lake.create_table("t", SCHEMA)
        table.append(rows(range(500)))
        table.flush()
        with bound(root, root):
            for verb in (lambda: table.append(rows(range(500, 600))), lake.seal):
                with pytest.raises(ls.StorageError, match="read-only"):
                    verb()
            assert_holds(lake, range(500))
        assert table.append(rows(range(500, 600))).rows == 100
        assert lake.seal() == 600
        assert lake.maintain().problems == []
        assert_holds(lake, range(600))
        assert_sound(lake, allowed=("staging", "orphan"))


# No descriptors, no memory, no DuckDB

FEW_FILES = """
import os, pathlib, resource, sys, test_world
from test_world import *

root, held = pathlib.Path(sys.argv[1]), 2500
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with open_lake(root, settings=MANY_FILES) as lake:
    table = lake["t"]
    assert_holds(lake, range(held))
    assert len(table.scan().collect()) == held
    assert_sound(lake)
    refusals = []
    for free in (0, 1, 3):
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for descriptor in taken[:free]:
            os.close(descriptor)
        for verb in (
            lambda: assert_holds(lake, range(held)),
            lambda: table.scan().collect(),
            lambda: lake.sql("SELECT sum(n) FROM t").show(),
            lambda: lake.connect().close(),
            lake.flush, lake.seal, lake.maintain, lake.status, lake.verify, lake.repair,
            lambda: open_lake(root, mode="r").close(),
            lambda: open_lake(root).close(),
        ):
            try:
                verb()
            except ls.StorageError as error:
                refusals.append(str(error))
        for descriptor in taken[free:]:
            os.close(descriptor)
        assert table.append(rows(range(held, held + 10))).rows == 10
        held += 10
        assert_holds(lake, range(held))
    assert len(refusals) >= 10, refusals
    assert all("Too many open files" in r and "limit" in r for r in refusals), refusals
    assert table.seal() > 0
    assert_holds(lake, range(held))
    assert_sound(lake)
"""
MANY_FILES = SETTINGS | {"segments_max": 100, "segment_duckdb_rows": 0}


def test_few_open_files_are_enough_and_none_is_no_damage(tmp_path):
    """64 for 40 segments with DuckDB files and 10 cold files; then some, or none at all."""
    root = tmp_path / "lake"
    with open_lake(root, settings=MANY_FILES) as lake:
        table = lake.create_table("t", SCHEMA)
        for start in range(0, 2500, 50):
            table.append(rows(range(start, start + 50)))
            table.seal() if start < 500 else table.flush()
    program = [sys.executable, "-W", "error", "-c", FEW_FILES, str(root)]
    run = subprocess.run(program, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert_sound(root)


def test_a_query_that_needs_too_much_memory_is_refused_and_the_next_runs(tmp_path):
    settings = SETTINGS | {"memory_bytes": 64 << 20}
    with open_lake(tmp_path / "lake", settings=settings) as lake:
        tiers(lake)
        for _ in range(2):
            with pytest.raises(ls.StorageError, match="more memory than memory_bytes allows"):
                lake.sql("SELECT length(string_agg(repeat(note, 300), '')) FROM t")
            assert_holds(lake, range(1000))
            assert lake["t"].scan().select("n").collect()["n"].sum() == 499_500
        assert lake["t"].append(rows(range(1000, 1100))).rows == 100
        assert lake.seal() == 800
        assert_holds(lake, range(1100))
        assert_sound(lake)


class Ended:
    """A DuckDB instance that an error within DuckDB has made unusable."""

    def cursor(self) -> "Ended":
        return self

    def __enter__(self) -> "Ended":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def register(self, *_: object) -> None:
        pass

    def execute(self, *_: object) -> None:
        raise duckdb.FatalException("database has been invalidated because of a previous error")


@pytest.mark.parametrize("verb", ["query", "scan", "append", "explain"])
def test_a_duckdb_that_has_ended_is_started_anew(tmp_path, verb):
    """Under what is attached, and for every instance that a lake keeps."""
    with open_lake(tmp_path / "lake") as lake:
        tiers(lake)
        assert_holds(lake, range(1000))
        engine, planner = lake._queries._engine, lake._queries._planner
        engine._queries._con = engine._builder._con = planner._instance = Ended()
        held = 1000
        if verb == "append":  # asks for the ids that may be there
            assert lake["t"].append(rows(range(900, 1010))).rows == 10
            held = 1010
        elif verb == "scan":
            frame = lake["t"].scan().sort("n").collect()
            assert frame.to_arrow().cast(SCHEMA.arrow).equals(rows(range(held)))
        elif verb == "explain":
            assert lake.explain("FROM t").tiers[2].rows == 300
        assert_holds(lake, range(held))
        explained = lake.explain("FROM t WHERE n > 5000")
        assert explained.tiers[2].files_kept == 0
        assert lake.flush() == held - 650
        newest = max((tmp_path / "lake/_site/hot/t").glob("*.duckdb"))
        assert newest.name.startswith("000004")
        assert_holds(lake, range(held))
        assert_sound(lake)


# Damaged files


@pytest.mark.parametrize("damage", ["noise", "cut", "zeros", "gone", "sums", "block"])
def test_a_damaged_duckdb_file_is_left_for_its_twin(tmp_path, damage):
    root = tmp_path / "lake"
    with open_lake(root) as lake:
        tiers(lake)
    path = max((root / "_site/hot/t").glob("*.duckdb"))  # the other's rows are sealed
    data = path.read_bytes()
    half = len(data) // 2
    damaged = {
        "noise": random.Random(3).randbytes(len(data)),
        "cut": data[:half],
        "zeros": data[:12_288] + bytes(len(data) - 12_288),
        "gone": None,
        "sums": data[:12_288] + random.Random(4).randbytes(len(data) - 12_288),
        "block": data[:50_000] + bytes(100) + data[50_100:],  # found only when rows are read
    }[damage]
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    with open_lake(root) as lake:
        assert_holds(lake, range(1000))
        frame = lake["t"].scan().filter(pl.col("n") >= 10).sort("n").collect()
        assert frame.to_arrow().cast(SCHEMA.arrow).equals(rows(range(10, 1000)))
        assert lake.explain("FROM t").tiers[1].rows == 350
        assert lake.seal() == 700
        assert_holds(lake, range(1000))
        assert_sound(lake)


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_a_damaged_parquet_file_is_named(tmp_path, tier):
    """By queries and scans alike; once it is restored, every row is back."""
    root = tmp_path / "lake"
    with open_lake(root, settings=SETTINGS | {"segment_duckdb_rows": 10**6}) as lake:
        tiers(lake)
        folder = root / ("_site/hot/t" if tier == "hot" else "tables/t/data")
        path = max(folder.rglob("*.parquet"))
        data = path.read_bytes()
        path.write_bytes(data[:4] + random.Random(5).randbytes(len(data) - 4))
        for read in (
            lambda: lake["t"].to_arrow(),
            lambda: lake.sql("SELECT max(note) FROM t"),
            lambda: lake["t"].scan().collect(),
            lambda: lake["t"].scan().select("note").collect(),
        ):
            with pytest.raises(ls.CorruptionError, match=path.stem):
                read()
        assert not lake.verify().ok
        assert lake["t"].append(rows(range(1000, 1100))).rows == 100
        path.write_bytes(data)
        os.utime(path, (0, 0))  # DuckDB 1.5 keeps what it read of a file within the same second
        assert_holds(lake, range(1100))
        assert_sound(lake)


def test_a_journal_of_noise_is_named_and_comes_back(tmp_path):
    root = tmp_path / "lake"
    writer_dies(root)
    path = max((root / "_site/journal/t").glob("*/*.journal"))
    data = path.read_bytes()
    path.write_bytes(random.Random(6).randbytes(len(data)))
    for mode in ("rw", "r"):
        with pytest.raises(ls.CorruptionError, match=path.name), open_lake(root, mode=mode) as lake:
            lake["t"].to_arrow()
    path.write_bytes(data)
    with open_lake(root) as lake:
        assert_holds(lake, range(1000))
        assert_sound(lake, allowed=("staging",))


# Planted bugs


def _let_rows_go_that_could_not_be_flushed(patch: pytest.MonkeyPatch) -> None:
    stage = lakestore.flush._stage

    def hasty(table, taken, *more):
        table.buffer.retire(taken.covers)
        return stage(table, taken, *more)

    patch.setattr(lakestore.flush, "_stage", hasty)


def _start_no_duckdb_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lakestore.instances, "LOST", ())


def _look_at_no_twin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lakestore.query.run, "may_be_damage", lambda _: False)


def _keep_the_first_copy_of_a_frozen_catalog(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lakestore.catalog.frozen._Copies, "_state", lambda _: [])


@pytest.mark.parametrize(
    ("plant", "test", "arguments"),
    [
        (
            _let_rows_go_that_could_not_be_flushed,
            test_a_full_disk_loses_nothing_and_the_handle_goes_on,
            {"verb": flush, "what": "bytes"},
        ),
        (_start_no_duckdb_anew, test_a_duckdb_that_has_ended_is_started_anew, {"verb": "query"}),
        (_look_at_no_twin, test_a_damaged_duckdb_file_is_left_for_its_twin, {"damage": "block"}),
        pytest.param(
            _keep_the_first_copy_of_a_frozen_catalog,
            test_a_reader_through_a_read_only_mount_follows_a_writer,
            {},
            marks=pytest.mark.sqlite,
        ),
    ],
)
def test_a_planted_bug_is_caught(request, figure, plant, test, arguments):
    assert_caught(request, figure, "errors of the world", plant, test, **arguments)
