"""Flush, merge, seal, vacuum: what is published, when, and what is left behind."""

import hashlib
import json
from datetime import timedelta

import duckdb
import pyarrow.parquet as pq
import pytest
from conftest import SCHEMA, START, events

import lakestore as ls
from lakestore import datafile, flush, hot, retain, seal
from lakestore.catalog import Garbage
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

    assert footer["covers"] == [[table._context.writer, 1]]
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
    assert all(a[1] + 1 == b[0] for a, b in zip(borders, borders[1:], strict=False))
    assert table.seal() == 120
    assert total(lake) == expected(120)


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
        lake._clock.move(1)
        assert lake.status().problem is None
    assert total(lake) == expected(60)


def test_upkeep_shows_its_problem_and_deletes_nothing_after_it(open_lake, root):
    lake = open_lake(upkeep="auto", settings={"flush_age_s": 0.05, "seal_age_s": 0.01})
    table = lake.create_table("events", SCHEMA)
    with table._context.maintaining:
        table.append(events(0, 30))
        flush.flush(table._context)
        (path,) = (root / "_site/hot").rglob("*.parquet")
        path.write_bytes(b"damaged")
        lake._clock.move(1)
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

    settings = ls.Settings(segment_duckdb_rows=10, buffer_bytes=100)
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
    ]
    assert [g.id for g in retain.choose(garbage, 160.0, 60.0, {"used"})] == [1, 2]
