"""Flush, merge, seal, vacuum: what is published, when, and what is left behind."""

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random

import duckdb
import pyarrow.parquet as pq
import pytest
from conftest import SCHEMA, START, events

import lakestore as ls
from lakestore import coldfiles, datafile, flush, hot, retain, seal
from lakestore.catalog.records import Garbage
from lakestore.demo import usage_events
from lakestore.engine import sorter
from lakestore.snapshot import FileInfo, Segment


def total(lake: ls.Lake) -> tuple:
    row = lake.sql("SELECT count(*), count(DISTINCT id), sum(n) FROM events").fetchone()
    assert row is not None
    return tuple(int(v or 0) for v in row)


def expected(stop: int) -> tuple:
    return stop, stop, sum(i for i in range(stop) if i % 11)


def tiers(lake: ls.Lake) -> dict[str, tuple[int, int]]:
    (status,) = lake.status().tables
    return {t.tier: (t.rows, t.files) for t in status.tiers}


def test_rows_move_from_tier_to_tier(lake, table):
    table.append(events(0, 30))
    assert tiers(lake) == {"buffer": (30, 1), "hot": (0, 0), "cold": (0, 0)}
    assert table.flush() == 30
    table.append(events(30, 50))
    assert tiers(lake) == {"buffer": (20, 1), "hot": (30, 1), "cold": (0, 0)}
    assert total(lake) == expected(50)
    assert table.seal() == 50
    assert tiers(lake) == {"buffer": (0, 0), "hot": (0, 0), "cold": (50, 3)}
    assert total(lake) == expected(50)


def test_nothing_to_do_does_nothing(lake, table):
    assert (table.flush(), table.seal()) == (0, 0)
    assert len(table.vacuum(dry_run=False)) == 0
    assert total(lake) == (0, 0, 0)


def test_a_cold_file_is_what_it_says(lake, table, root):
    table.append(events(0, 30))
    table.append(events(30, 60).slice(0, 25))
    table.seal()
    files = sorted((root / "tables/events/data").rglob("*.parquet"))

    assert [f.parent.name for f in files] == ["day=2025-01-01", "day=2025-01-02", "day=2025-01-03"]
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in path.name
        footer = datafile.read_footer(path)
        assert footer["table"] == "events"
        assert (footer["first"], footer["last"], footer["tier"]) == (1, 1, "cold")
        times = pq.read_table(path)["time"].to_pylist()
        assert times == sorted(times)
        assert {f"day={t.date()}" for t in times} == {path.parent.name}
        column = pq.ParquetFile(path).metadata.row_group(0).column(0)
        assert column.path_in_schema == "id"
        assert pq.ParquetFile(path).metadata.row_group(0).column(0).has_offset_index
    info = duckdb.sql(f"SELECT bloom_filter_offset FROM parquet_metadata('{files[0]}')").fetchall()
    assert info[0][0] is not None


def test_a_segments_footer_names_what_it_covers(lake, table, root):
    table.append(events(0, 3), producer="job", seq=4)
    table.flush()
    (path,) = (root / "_site/hot/events").glob("*.parquet")
    footer = datafile.read_footer(path)

    assert footer["covers"] == [[table._context.site.writer, 1]]
    assert footer["producers"] == {"job": 4}
    assert footer["lake"] == json.loads((root / "lakestore.json").read_text())["lake"]


def test_big_segments_have_a_duckdb_file_and_small_ones_do_not(open_lake, root):
    lake = open_lake(settings={"segment_duckdb_rows": 100})
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 99))
    table.flush()
    assert len(list((root / "_site/hot").rglob("*.duckdb"))) == 0
    table.append(events(99, 300))
    table.flush()
    (path,) = (root / "_site/hot").rglob("*.duckdb")
    assert total(lake) == expected(300)
    assert "000002-000002" in path.name


def test_a_missing_or_damaged_duckdb_file_only_slows(open_lake, root):
    lake = open_lake(settings={"segment_duckdb_rows": 1})
    table = lake.create_table("events", SCHEMA)
    for start in (0, 50):
        table.append(events(start, start + 50))
        table.flush()
    lake.close()
    first, second = sorted((root / "_site/hot").rglob("*.duckdb"))
    first.unlink()
    second.write_bytes(b"not a database")

    lake = open_lake()
    assert total(lake) == expected(100)
    assert lake["events"].seal() == 100
    assert total(lake) == expected(100)


def test_structs_and_lists_are_the_same_in_every_tier(open_lake):
    lake = open_lake(settings={"segment_duckdb_rows": 1})
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 40))
    query = "SELECT id, tags, place, place.zip, tags[1], cost, x, ok FROM events ORDER BY id"
    buffered = lake.sql(query).fetchall()
    table.flush()
    assert lake.sql(query).fetchall() == buffered
    table.seal()
    assert lake.sql(query).fetchall() == buffered
    assert buffered[1][3] == 1


def test_too_many_segments_are_merged_and_nothing_changes(open_lake, root):
    lake = open_lake(settings={"segments_max": 4})
    table = lake.create_table("events", SCHEMA)
    for start in range(0, 120, 10):
        table.append(events(start, start + 10))
        table.flush()
        assert total(lake) == expected(start + 10)
        assert tiers(lake)["hot"][1] <= 4
    names = [s.name for s in table._context.state().hot]
    borders = [tuple(map(int, n.split("-")[:2])) for n in names]
    assert borders[0][0] == 1
    assert borders[-1][1] == 12
    assert all(a[1] + 1 == b[0] for a, b in pairwise(borders))
    assert table.seal() == 120
    assert total(lake) == expected(120)


def test_merge_refuses_a_segment_that_changed(open_lake, root):
    """Where no page's checksum tells, too: a merge would write the damage under new ones."""
    lake = open_lake(settings={"segments_max": 2})
    table = lake.create_table("events", SCHEMA)
    for start in (0, 10):
        table.append(events(start, start + 10))
        table.flush()
    path = min((root / "_site/hot/events").glob("*.parquet"))
    good = path.read_bytes()
    at = good.rindex(b"parquet-cpp")
    path.write_bytes(good[:at] + b"P" + good[at + 1 :])
    table.append(events(20, 30))
    with pytest.raises(ls.CorruptionError, match=f"{path.name}.*not what was published"):
        table.flush()
    path.write_bytes(good)
    assert lake.maintain().merged == 1
    assert lake.sql("SELECT count(*), sum(n) FROM events").fetchone() == (30, 435 - 0 - 11 - 22)


def test_a_seal_that_fails_leaves_nothing_staged(lake, table, root, monkeypatch):
    table.append(events(0, 60))
    table.flush()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(datafile, "check", fail)
    with pytest.raises(MemoryError):
        table.seal()
    assert list((root / "_site/staging").rglob("*.parquet")) == []


def test_seal_refuses_a_segment_that_changed(lake, table, root):
    table.append(events(0, 30))
    table.flush()
    (path,) = (root / "_site/hot").rglob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(ls.CorruptionError, match="is not what was published"):
        table.seal()
    assert tiers(lake)["cold"] == (0, 0)


def test_a_cold_file_past_its_target_is_continued_in_another(open_lake, root):
    lake = open_lake(settings={"cold_file_bytes": 100_000})
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 300_000, step=timedelta(microseconds=1)))
    table.seal()
    files = sorted((root / "tables").rglob("day=*/*.parquet"))

    assert len(files) > 1
    assert [f.name.split("-")[3] for f in files] == [f"{i:04d}" for i in range(len(files))]
    assert total(lake) == expected(300_000)


def test_a_date_that_python_has_not_is_stored(lake):
    import pyarrow as pa

    schema = ls.TableSchema.from_toml(
        "event_time = 't'\n[columns]\nt = 'TIMESTAMP'\nd = 'DATE'\nu = 'TIMESTAMP'"
    )
    table = lake.create_table("far", schema)
    far = pa.array([4_000_000], pa.int32()).cast(pa.date32())
    late = pa.array([2**60], pa.int64()).cast(pa.timestamp("us"))
    table.append(pa.table({"t": [START], "d": far, "u": late}))
    table.seal()
    assert lake.sql("SELECT count(*) FROM far WHERE d > '9999-12-31'").fetchone() == (1,)
    assert lake.sql("SELECT count(*) FROM far WHERE u > '9999-12-31'").fetchone() == (1,)


def test_odd_ids_and_bloom_columns(lake):
    for name, kind in (("a", "BIGINT"), ("b", "BOOLEAN"), ("c", "DATE"), ("d", "DECIMAL(9,2)")):
        schema = ls.TableSchema.from_toml(
            "event_time = 't'\nevent_id = 'id'\nbloom = ['flag', 'x']\n[columns]\n"
            f"t = 'TIMESTAMP'\nid = '{kind}'\nflag = 'BOOLEAN'\nx = 'DOUBLE'"
        )
        table = lake.create_table(name, schema)
        value = {"a": 1, "b": True, "c": START.date(), "d": 1}[name]
        assert table.append([{"t": START, "id": value}] * 2).rows == 1
        table.seal()
        table.append({"t": START, "id": value})
        table.flush()
        assert lake.sql(f"SELECT count(*) FROM {name}").fetchone() == (1,)
    with pytest.raises(ls.SchemaError, match="NaN is no id"):
        ls.TableSchema.from_toml(
            "event_time = 't'\nevent_id = 'x'\n[columns]\nt = 'TIMESTAMP'\nx = 'DOUBLE'"
        )


def test_many_bytes_are_sorted_on_the_disk(open_lake, monkeypatch):
    monkeypatch.setattr(hot, "_SORT_BYTES_MAX", 1000)
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 300).take(list(range(299, -1, -1))))
    table.flush()
    (path,) = table._context.hot_folder.glob("*.parquet")
    assert pq.read_table(path)["id"].to_pylist() == [f"e{i:06d}" for i in range(300)]
    assert total(lake) == expected(300)


def test_a_seal_short_of_memory_goes_on_with_fewer_segments(lake, monkeypatch):
    """Wherever the sort runs out: at once, or in the middle of its stream, through Arrow."""
    table = lake.create_table("usage", "llm_usage")
    for batch in usage_events(60_000, batch_rows=20_000):
        table.append(batch)
        table.flush()
    asked = []

    def tight(spill, memory_bytes):
        asked.append(memory_bytes)
        return sorter(spill, 24 << 20 if len(asked) <= 2 else memory_bytes)

    monkeypatch.setattr(coldfiles, "sorter", tight)
    assert table.seal() == 60_000
    assert len(asked) > 2  # all at once, then the first alone, then the rest
    assert lake.sql("SELECT count(*), count(DISTINCT event_id) FROM usage").fetchone() == (
        60_000,
        60_000,
    )


def test_rows_of_many_kilobytes_are_sealed(lake):
    """More than a sort of them can hold: DuckDB cannot spill the rows it works on."""
    schema = ls.TableSchema.from_toml(
        "event_time = 't'\n[columns]\nt = 'TIMESTAMP'\nbody = 'VARCHAR'"
    )
    table = lake.create_table("wide", schema)
    random = Random(7)
    for _ in range(3):
        bodies = [random.randbytes(100_000).hex() for _ in range(250)]
        table.append(
            {"t": START + timedelta(hours=i % 30), "body": b} for i, b in enumerate(bodies)
        )
        table.flush()
    query = "SELECT count(*), sum(length(body)), count(DISTINCT md5(body)) FROM wide"
    assert lake.sql(query).fetchone() == (750, 750 * 200_000, 750)
    assert table.seal() == 750
    assert lake.sql(query).fetchone() == (750, 750 * 200_000, 750)


def test_a_segment_of_wide_rows_is_read_in_little_memory(open_lake):
    """However much one flush takes: a reader holds a page whole, and a row group's columns."""
    lake = open_lake(settings={"memory_bytes": 160 << 20})
    schema = ls.TableSchema.from_toml(
        "event_time = 't'\n[columns]\nt = 'TIMESTAMP'\nbody = 'VARCHAR'"
    )
    table = lake.create_table("wide", schema)
    random = Random(8)
    bodies = [random.randbytes(1_000).hex() * 150 for _ in range(400)]
    table.append({"t": START, "body": body} for body in bodies)
    table.flush()
    (path,) = table._context.hot_folder.glob("*.parquet")
    found = pq.read_metadata(path)
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    assert sum(group.num_rows for group in groups) == 400
    assert max(group.total_byte_size for group in groups) <= datafile.ROW_GROUP_BYTES
    query = "SELECT count(*), sum(length(body)), count(DISTINCT md5(body)) FROM wide"
    assert lake.sql(query).fetchone() == (400, 400 * 300_000, 400)


def test_days_before_1970_sorted_by_something_else(lake, root):
    schema = ls.TableSchema.from_document(
        SCHEMA.document.model_dump(exclude_defaults=True) | {"sort": ["name", "id"]}
    )
    table = lake.create_table("old", schema)
    start = datetime(1969, 12, 30, 1, tzinfo=UTC)
    table.append(
        {"id": f"{i}", "time": start + timedelta(hours=i), "name": f"{i % 3}"} for i in range(72)
    )
    table.seal()
    days = [p.parent.name for p in sorted((root / "tables/old/data").rglob("*.parquet"))]
    assert days == [f"day={d}" for d in ("1969-12-30", "1969-12-31", "1970-01-01", "1970-01-02")]
    assert lake.sql("SELECT count(*), count(DISTINCT id) FROM old").fetchone() == (72, 72)


def test_descriptors_do_not_grow_with_files(open_lake, monkeypatch):
    from lakestore import fileids

    monkeypatch.setattr(fileids, "_MAPPED_BYTES", 48)
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    held = []
    for turn in range(12):
        table.append(events(turn * 2, turn * 2 + 2, step=timedelta(minutes=1)))
        table.seal()
        total(lake)
        table.vacuum(dry_run=False)
        held.append(descriptors())
    assert held[-1] <= held[4] + 2
    table.append(events(0, 24, step=timedelta(minutes=1)))
    table.flush()
    assert total(lake) == expected(24)


def test_a_damaged_block_of_a_duckdb_file_only_slows(open_lake, root):
    lake = open_lake(settings={"segment_duckdb_rows": 1})
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 5000))
    table.flush()
    lake.close()
    (path,) = (root / "_site/hot").rglob("*.duckdb")
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data), 4096):
        data[at] ^= 0xFF
    path.write_bytes(data)
    assert total(open_lake()) == expected(5000)


def test_views_show_tables_of_another_writer(open_lake, root):
    first, second = open_lake(), open_lake()
    mine = first.create_table("mine", SCHEMA)
    second.create_table("other", SCHEMA)
    mine.append(events(0, 3))
    mine.flush()
    with duckdb.connect(str(root / "lake.duckdb"), read_only=True) as shell:
        assert shell.execute("SHOW TABLES").fetchall() == [("_lake",), ("mine",), ("other",)]


def test_superseded_files_wait_out_the_grace(open_lake, root, clock):
    lake = open_lake(settings={"vacuum_grace_s": 60})
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 30))
    table.seal()
    (segment,) = (root / "_site/hot").rglob("*.parquet")
    (journal,) = (root / "_site/journal").rglob("*.journal")

    dry = table.vacuum()
    assert (len(dry.journals), dry.segments, dry.dry_run) == (1, (), True)
    assert journal.exists()
    table.vacuum(dry_run=False)
    assert (journal.exists(), segment.exists()) == (False, True)
    clock.move(60)
    assert table.vacuum(dry_run=False).segments == (segment.name,)
    assert not segment.exists()
    assert lake.status().superseded_files == 0
    assert total(lake) == expected(30)


def test_a_running_scan_keeps_its_files(open_lake, root, clock):
    lake = open_lake(settings={"vacuum_grace_s": 0, "segment_duckdb_rows": 10})
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 30))
    table.flush()
    table.append(events(30, 35))
    table.flush()
    scan = table.scan()
    table.seal()
    assert table.vacuum(dry_run=False).segments == ()

    assert scan.collect().height == 35
    del scan
    assert len(table.vacuum(dry_run=False).segments) == 2
    assert total(lake) == expected(35)


def test_maintain_does_what_is_due(open_lake, clock):
    lake = open_lake(
        settings={"flush_age_s": 5, "seal_age_s": 600, "vacuum_grace_s": 900, "flush_rows": 100}
    )
    table = lake.create_table("events", SCHEMA)
    assert lake.maintain().flushed == 0
    table.append(events(0, 30))
    assert lake.maintain().flushed == 0
    clock.move(5)
    report = lake.maintain()
    assert (report.flushed, report.sealed) == (1, 0)
    clock.move(600)
    report = lake.maintain()
    assert (report.flushed, report.sealed) == (0, 2)
    clock.move(900)
    assert lake.maintain().deleted == 1
    assert total(lake) == expected(30)


def test_upkeep_flushes_and_seals_by_itself(open_lake):
    lake = open_lake(
        upkeep="auto", settings={"flush_rows": 50, "seal_age_s": 0.01, "flush_age_s": 0.05}
    )
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 60))
    while tiers(lake)["cold"][0] < 60:
        lake._site.clock.move(1)
        assert lake.status().problem is None
    assert total(lake) == expected(60)


def test_upkeep_shows_its_problem_and_deletes_nothing_after_it(open_lake, root):
    lake = open_lake(upkeep="auto", settings={"flush_age_s": 0.05, "seal_age_s": 0.01})
    table = lake.create_table("events", SCHEMA)
    with table._context.flushing, table._context.sealing:
        table.append(events(0, 30))
        flush.flush(table._context)
        (path,) = (root / "_site/hot").rglob("*.parquet")
        path.write_bytes(b"damaged")
        lake._site.clock.move(1)
    while lake.status().problem is None:
        pass
    assert "is not what was published" in (lake.status().problem or "")


def test_closing_flushes_what_is_buffered_only_with_upkeep(open_lake, root):
    lake = open_lake(upkeep="auto")
    lake.create_table("events", SCHEMA).append(events(0, 30))
    lake.close()
    assert list((root / "_site").rglob("*.journal")) == []
    assert list((root / "_site/writers").iterdir()) == []
    lake = open_lake()
    assert tiers(lake) == {"buffer": (0, 0), "hot": (30, 1), "cold": (0, 0)}
    lake["events"].append(events(30, 31))
    lake.close()
    assert len(list((root / "_site").rglob("*.journal"))) == 1
    assert total(open_lake()) == expected(31)


def segment(number: int, size: int) -> Segment:
    info = FileInfo(size, size, "", START, START)
    return Segment(number, number, f"s{number}", info, False, START)


def test_choosing_is_pure():
    settings = ls.Settings(flush_rows=10, flush_bytes=100, flush_age_s=5)
    assert not flush.is_due(0, 0, 99, settings)
    assert not flush.is_due(9, 99, 4.9, settings)
    assert flush.is_due(10, 1, 0, settings)
    assert flush.is_due(1, 100, 0, settings)
    assert flush.is_due(1, 1, 5, settings)

    settings = ls.Settings(segment_duckdb_rows=10, buffer_bytes=3200)
    assert flush.wants_duckdb(10, 50, settings)
    assert not flush.wants_duckdb(9, 50, settings)
    assert not flush.wants_duckdb(10, 51, settings)

    settings = ls.Settings(seal_bytes=100, seal_age_s=5)
    assert not seal.is_due(0, 99, settings)
    assert not seal.is_due(99, 4.9, settings)
    assert seal.is_due(100, 0, settings)
    assert seal.is_due(1, 5, settings)

    many = [segment(i, size) for i, size in enumerate([9, 9, 1, 1, 9])]
    assert hot.choose_merge(many, 5) == ()
    assert hot.choose_merge(many, 4) == many[2:4]
    assert hot.choose_merge([segment(i, 1 << 19) for i in range(5)], 4) == ()
    assert seal.choose(many) == many
    big = [segment(i, 300 << 20) for i in range(3)]
    assert seal.choose(big) == big[:1]

    garbage = [
        Garbage(1, 1, "t", "journal", "w/1", 100.0),
        Garbage(2, 1, "t", "segment", "old", 100.0),
        Garbage(3, 1, "t", "segment", "used", 100.0),
        Garbage(4, 1, "t", "segment", "young", 150.0),
        Garbage(5, 1, "t", "cold", "to go back to", 100.0),
        Garbage(6, 1, "t", "cold", "old and cold", 0.0),
    ]
    assert [g.id for g in retain.choose(garbage, 160.0, 60.0, 160.0, {"used"})] == [1, 2, 6]
    assert [g.id for g in retain.choose(garbage, 160.0, 170.0, 0.0, ())] == [1]
