"""Schema versions: columns are added, widened and renamed, and rows stay as they were written."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import START, die
from support.commands import rebuild
from test_shell import run

import lakestore as ls
from lakestore import datafile, failpoint
from lakestore.events.counters import Counters
from lakestore.evolution import decide, is_wider
from lakestore.layout import schema_key
from lakestore.lineage import Lineage

BASE = """
event_id = "id"
event_time = "time"
[columns]
id = "VARCHAR not null"
time = "TIMESTAMPTZ not null"
n = "INTEGER"
x = "FLOAT"
cost = "DECIMAL(9,2)"
who = "VARCHAR"
ok = "BOOLEAN not null default true"
place = "STRUCT(city VARCHAR, zip INTEGER)"
[[rollups]]
name = "hourly"
by = ["who"]
sums = ["n"]
"""
COLDS = ["parquet", "delta"]


def schema(text: str) -> ls.TableSchema:
    return ls.TableSchema.from_toml(text)


def first(start: int, stop: int) -> pa.Table:
    """Rows as version 1 of `BASE` has them; some are null."""
    numbers = range(start, stop)
    return pa.table(
        {
            "id": [f"e{i:06d}" for i in numbers],
            "time": pa.array(
                [START + i * timedelta(hours=1) for i in numbers], pa.timestamp("us", "UTC")
            ),
            "n": pa.array([None if i % 11 == 0 else i for i in numbers], pa.int32()),
            "x": pa.array([i / 4 for i in numbers], pa.float32()),
            "cost": pa.array([f"{i}.25" for i in numbers]).cast(pa.decimal128(9, 2)),
            "who": [None if i % 7 == 0 else f"who {i % 3}" for i in numbers],
            "place": [{"city": f"c{i % 3}", "zip": i} if i % 5 else None for i in numbers],
        }
    )


def added(start: int, stop: int) -> pa.Table:
    """The same with columns that were added."""
    numbers = range(start, stop)
    extra = [None if i % 13 == 0 else f"extra {i}" for i in numbers]
    spot = [{"lat": i / 2, "tags": [f"t{i}"]} if i % 4 else None for i in numbers]
    return (
        first(start, stop)
        .append_column("extra", pa.array(extra))
        .append_column("spot", pa.array(spot))
    )


ADD = {"extra": "VARCHAR", "spot": "STRUCT(lat DOUBLE, tags VARCHAR[])"}
WIDEN = {"n": "BIGINT", "x": "DOUBLE", "cost": "DECIMAL(18,4)"}
NAMES = ["id", "n", "x", "cost", "who", "ok", "place", "extra", "spot"]


def expected(old: pa.Table, new: pa.Table) -> list[dict]:
    """What a table holds that got some rows before columns were added, and others after."""
    rows = [{**row, "extra": None, "spot": None} for row in old.to_pylist()] + new.to_pylist()
    rows = [{**row, "ok": True} for row in rows]
    return [{name: row[name] for name in NAMES} for row in sorted(rows, key=lambda r: r["id"])]


def seen(table: ls.Table) -> list[dict]:
    """All rows of a table, by id."""
    return table.to_arrow(NAMES).sort_by("id").to_pylist()


def everywhere(lake: ls.Lake, root: Path, rows: list[dict]) -> None:
    """Every reader of the library gives these rows; what is published, a view too."""
    table = lake["events"]
    assert seen(table) == rows
    columns = ", ".join(NAMES)
    assert lake.sql(f"SELECT {columns} FROM events ORDER BY id").to_arrow().to_pylist() == rows
    assert table.scan().select(NAMES).sort("id").collect().to_dicts() == rows
    con = lake.connect()
    assert con.sql(f"SELECT {columns} FROM events ORDER BY id").to_arrow_table().to_pylist() == rows
    filled = sum(row["extra"] is not None for row in rows)
    assert table.totals(["count", "count(extra)"]).to_arrow().to_pylist() == [
        {"count": len(rows), "count(extra)": filled}
    ]
    assert table.totals("count", where={"extra": None})["count"] == len(rows) - filled
    found = [{name: row[name] for name in NAMES} for row in table.page(limit=1_000).rows]
    assert sorted(found, key=lambda row: row["id"]) == rows
    for row in (rows[0], rows[-1]):
        got = table.get(row["id"])
        assert got is not None
        assert {name: got[name] for name in NAMES} == row
    menu = {value for value, _ in table.facets("extra")["extra"]}
    assert menu == {row["extra"] for row in rows}


# what may change


def test_changes_that_are_allowed():
    old = schema(BASE)
    text = BASE.replace('x = "FLOAT"', 'x = "DOUBLE"').replace('n = "INTEGER"', 'n = "BIGINT"')
    text = text.replace("DECIMAL(9,2)", "DECIMAL(18,4)").replace("true", "false")
    text = text.replace('who = "VARCHAR"', 'user = "VARCHAR"\nextra = "UUID default NULL"')
    text = text.replace('["who"]', '["user"]').replace("[[", '[renamed]\nuser = "who"\n[[', 1)
    assert decide(old, schema(text), "parquet").lines() == [
        "add column 'extra' (UUID)",
        "rename column 'who' to 'user'",
        "widen column 'n' from INTEGER to BIGINT",
        "widen column 'x' from FLOAT to DOUBLE",
        "widen column 'cost' from DECIMAL(9,2) to DECIMAL(18,4)",
        "change rollups",
    ]
    relaxed = schema(BASE.replace(" not null default true", ""))
    assert decide(old, relaxed, "delta").lines() == ["allow nulls in column 'ok'"]
    assert decide(old, schema(BASE + "\n# a remark"), "delta").is_nothing


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('who = "VARCHAR"\n', "", "'who' is dropped .to rename it, say so under .renamed."),
        ('n = "INTEGER"', 'n = "SMALLINT"', "INTEGER becomes SMALLINT, which does not hold all"),
        ('n = "INTEGER"', 'n = "VARCHAR"', "INTEGER becomes VARCHAR, which does not hold all"),
        ('n = "INTEGER"', 'n = "FLOAT"', "INTEGER becomes FLOAT"),
        ("DECIMAL(9,2)", "DECIMAL(9,4)", r"DECIMAL\(9,2\) becomes DECIMAL\(9,4\)"),
        ('place = "STRUCT(', 'place = "STRUCT(b INTEGER, ', "a nested type cannot change"),
        ('who = "VARCHAR"', 'who = "VARCHAR not null"', "'who' becomes NOT NULL"),
        ("[[r", "y = 'INTEGER not null'\n[[r", "'y' is new and NOT NULL"),
        ('event_id = "id"', 'event_id = "who"', "event_id changes from 'id' to 'who'"),
        ("event_id", 'sort = ["id"]\nevent_id', r"sort changes from \['time', 'id'\] to \['id'\]"),
        ("event_id", 'dedup = "table"\nevent_id', "dedup changes from 'day' to 'table'"),
        ('id = "VARCHAR not', 'id = "BLOB not', "VARCHAR becomes BLOB, and ids, event times"),
        ("[[r", '[payload]\nwho = "full"\n[[r', "payload changes from {} to {'who': 'full'}"),
    ],
)
def test_changes_that_are_refused(before, after, reason):
    """Each says why, and changes nothing."""
    text = "format = 2\n" + BASE
    assert before in text
    text = text.replace('by = ["who"]\nsums = ["n"]\n', "")
    changed = text.replace(before, after, 1)
    with pytest.raises(ls.SchemaError, match=reason):
        decide(schema(text), schema(changed), "parquet")


def test_delta_takes_what_its_readers_follow():
    old = schema(BASE)
    wider = schema(BASE.replace('n = "INTEGER"', 'n = "BIGINT"'))
    with pytest.raises(ls.SchemaError, match="do not agree on files of several types"):
        decide(old, wider, "delta")
    text = BASE.replace("who", "user").replace("[[", '[renamed]\nuser = "who"\n[[', 1)
    with pytest.raises(ls.SchemaError, match="know a column by one name in every file"):
        decide(old, schema(text), "delta")


def test_names_under_renamed_are_columns_and_are_free():
    for renamed, match in [
        ('nobody = "who"', "renamed names 'nobody', which is no column"),
        ('n = "who"', "one name in SQL"),
        ('n = "a"\nx = "A"', "one name in SQL"),
    ]:
        with pytest.raises(ls.SchemaError, match=match):
            schema(BASE.replace("[[", f"[renamed]\n{renamed}\n[[", 1))


def test_wider_types_hold_every_value():
    """Both ends of each integer type, and what lies beside them, go there and back."""
    plain = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()]
    plain += [pa.uint64(), pa.float32(), pa.float64()]
    plain += [pa.decimal128(p, s) for p in (3, 5, 10, 12, 19, 20, 38) for s in (0, 2)]
    for source in plain:
        if pa.types.is_floating(source):
            values = [0.1, -1.5e30]
        elif pa.types.is_decimal(source):
            most = "9" * (source.precision - source.scale) + "." + "9" * source.scale
            values = pa.array([most.rstrip("."), "-" + most.rstrip(".")]).cast(source).to_pylist()
        else:
            bits = source.bit_width - pa.types.is_signed_integer(source)
            low = -(2**bits) if pa.types.is_signed_integer(source) else 0
            values = [low, low + 1, 2**bits - 1, 2**bits - 2]
        array = pa.array(values, source)
        for target in plain:
            try:
                kept = array.cast(target).cast(source).equals(array)
            except pa.ArrowInvalid:
                kept = False
            if is_wider(source, target):
                assert kept, (source, target)


def test_versions_follow_each_other_through_renames():
    """A column is found in older files by the names it had, and new ones never in place of it."""
    one = schema(BASE)
    two = schema(BASE.replace("who", "user").replace("[[", '[renamed]\nuser = "who"\n[[', 1))
    three = schema(BASE.replace("who", "person").replace("[[", '[renamed]\nperson = "user"\n[[', 1))
    lineage = Lineage({1: one, 2: two, 5: three})
    assert lineage.stored(1).names["person"] == "who"
    assert lineage.stored(2).names["person"] == "user"
    back = BASE.replace("[columns]", '[columns]\nperson = "VARCHAR"')
    with pytest.raises(ls.SchemaError, match="'who': older files have another so called"):
        decide(three, schema(back), "parquet", [one, two])
    returned = BASE.replace("[[", '[renamed]\nwho = "person"\n[[', 1)
    assert decide(three, schema(returned), "parquet", [one, two]).renamed == (("person", "who"),)


# every tier, every reader


@pytest.mark.parametrize("cold", COLDS)
def test_rows_of_both_versions_in_every_tier(open_lake, root, cold):
    lake = open_lake(settings={"segment_duckdb_rows": 5})
    table = lake.create_table("events", schema(BASE), cold=cold)
    table.append(first(0, 30))
    table.seal()
    table.append(first(30, 50))
    table.flush()
    table.append(first(50, 55))
    change = table.evolve(add=ADD)
    assert change.lines() == [f"add column {name!r} ({kind})" for name, kind in ADD.items()]
    rows = expected(first(0, 55), added(0, 0))
    everywhere(lake, root, rows)
    table.append(added(55, 70))
    table.append(first(70, 72))  # a producer that knows nothing of it
    rows = expected(pa.concat_tables([first(0, 55), first(70, 72)]), added(55, 70))
    everywhere(lake, root, rows)
    assert table.flush() == 22  # of both versions: one segment of the newest
    assert datafile.read_footer(_newest(root, "_site/hot/events"))["schema_version"] == 2
    everywhere(lake, root, rows)
    assert table.seal() == 42
    everywhere(lake, root, rows)
    assert _versions(root) == {1, 2}
    table.append(added(73, 74))
    table.seal()
    assert table.compact().files_after > 0
    rows = expected(pa.concat_tables([first(0, 55), first(70, 72)]), _and(added(55, 70), 73))
    everywhere(lake, root, rows)
    report = lake.verify()
    assert report.ok, report.problems
    lake.close()
    with ls.open(root, mode="r") as reader:
        everywhere(reader, root, rows)
    _engines_agree(root, cold, rows)


def _and(rows: pa.Table, number: int) -> pa.Table:
    return pa.concat_tables([rows, added(number, number + 1)])


def _newest(root: Path, folder: str) -> Path:
    return max((root / folder).glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)


def _versions(root: Path) -> set[int]:
    files = (root / "tables/events/data").rglob("day=*/*.parquet")
    return {datafile.read_footer(path)["schema_version"] for path in files}


def _engines_agree(root: Path, cold: str, rows: list[dict]) -> None:
    """All is sealed: views and, of a Delta table, its readers."""
    with duckdb.connect(f"{root}/lake.duckdb", read_only=True) as con:
        query = f"SELECT {', '.join(NAMES)} FROM events ORDER BY id"
        assert con.sql(query).to_arrow_table().to_pylist() == rows
        partials = con.sql("SELECT sum(n), sum(sum_n) FROM events_rollup_hourly").fetchall()
        assert partials == [(len(rows), sum(row["n"] or 0 for row in rows))]
    if cold == "delta":
        from deltalake import DeltaTable

        data = f"{root}/tables/events/data"
        assert pl.scan_delta(data).select(NAMES).sort("id").collect().to_dicts() == rows
        assert pl.from_arrow(DeltaTable(data).to_pyarrow_table()).select(NAMES).sort(
            "id"
        ).to_dicts() == rows  # fmt: skip


def test_wider_types_and_other_names(open_lake, root, duckdb_cli):
    lake = open_lake(settings={"segment_duckdb_rows": 5})
    table = lake.create_table("events", schema(BASE))
    table.append(first(0, 30))
    table.seal()
    table.append(first(30, 40))
    table.flush()
    table.append(first(40, 45))
    table.evolve(widen=WIDEN, rename={"who": "user"})
    assert table.schema.column("cost").sql_type == "DECIMAL(18,4)"
    assert table.schema.document.rollups[0].by == ("user",)
    table.append({"id": "big", "time": START, "n": 2**40, "x": 0.1, "cost": "1.0625", "user": "u"})
    table.append({"id": "old", "time": START, "n": 1, "who": "called as before"})

    def check() -> None:
        rows = table.to_arrow(["id", "n", "x", "cost", "user"]).sort_by("id").to_pylist()
        old = first(0, 45).rename_columns({"who": "user"}).to_pylist()
        known = {row["id"]: row for row in rows}
        for row in old:
            assert known[row["id"]] == {key: row[key] for key in known[row["id"]]}
        assert known["big"]["n"] == 2**40
        assert known["big"]["x"] == 0.1
        assert str(known["big"]["cost"]) == "1.0625"
        assert known["old"]["user"] == "called as before"
        assert len(rows) == 47
        total = sum(row["n"] or 0 for row in old) + 2**40 + 1
        assert lake.sql("SELECT sum(n), typeof(any_value(n)) FROM events").fetchone() == (
            total,
            "BIGINT",
        )
        assert table.totals("sum(n)", where={"user": "who 1"})["sum(n)"] == sum(
            row["n"] or 0 for row in old if row["user"] == "who 1"
        )
        buckets = table.series("sum(n)", every="1 day", by="user").to_arrow()
        assert sum(v or 0 for v in buckets.column("sum(n)").to_pylist()) == total

    check()
    table.flush()
    check()
    table.seal()
    check()
    assert run(duckdb_cli, root, 'SELECT count(*), max(n), count("user") FROM events') == [
        ["47", str(2**40), str(sum(v is not None for v in first(0, 45)["who"].to_pylist()) + 2)]
    ]
    report = lake.verify()
    assert report.ok, report.problems


def test_files_without_a_column_are_not_opened_for_it(lake):
    table = lake.create_table("events", schema(BASE))
    for start in (0, 24):
        table.append(first(start, start + 24))
        table.seal()
    table.evolve(add=ADD, rename={"who": "user"})
    table.append(added(48, 72).rename_columns({"who": "user"}))
    table.seal()

    def kept(condition: str) -> int:
        tiers = lake.explain(f"SELECT count(*) FROM events WHERE {condition}").tiers
        return next(t.files_kept for t in tiers if t.tier == "cold")

    assert kept("true") == 3
    assert kept("extra = 'extra 50'") == 1
    assert kept("extra IS NOT NULL") == 1
    assert kept("extra IS NULL") == 3
    assert kept("n = 30") == 1
    assert kept("\"user\" > 'who 9'") == 0
    assert lake.sql("SELECT count(*) FROM events WHERE extra IS NULL").fetchone() == (50,)


@pytest.mark.parametrize("cold", COLDS)
def test_merged_segments_are_of_the_newest_version(open_lake, cold):
    lake = open_lake(settings={"segments_max": 2, "segment_duckdb_rows": 5})
    table = lake.create_table("events", schema(BASE), cold=cold)
    for start in (0, 10):
        table.append(first(start, start + 10))
        table.flush()
    table.evolve(add=ADD)
    table.append(added(20, 30))
    table.flush()
    assert [s.schema_version for s in table._context.state().hot] in ([2, 2], [1, 2])
    for start in (30, 40, 50):
        table.append(added(start, start + 10))
        table.flush()
    assert {s.schema_version for s in table._context.state().hot} == {2}
    assert seen(table) == expected(first(0, 20), added(20, 60))
    assert lake.verify().ok


@pytest.mark.parametrize("cold", COLDS)
def test_an_empty_table_and_several_versions(lake, root, cold, duckdb_cli):
    table = lake.create_table("events", schema(BASE), cold=cold)
    table.evolve(add={"extra": "VARCHAR"})
    assert run(duckdb_cli, root, "SELECT count(extra) FROM events") == [["0"]]
    assert lake.sql("SELECT extra FROM events").fetchall() == []
    table.append(first(0, 5))
    table.seal()
    table.evolve(add={"spot": ADD["spot"]})
    table.append(added(5, 10))
    table.seal()
    assert seen(table) == expected(first(0, 5), added(5, 10))
    assert sorted(path.name for path in (root / "tables/events/schema").glob("*.toml")) == [
        "0001.toml",
        "0002.toml",
        "0003.toml",
    ]
    assert lake.verify().ok


def test_a_schema_that_is_the_same_makes_no_version(lake, root):
    table = lake.create_table("events", schema(BASE))
    assert table.evolve(schema(BASE)).is_nothing
    table.evolve(schema(BASE.replace("[[", "extra = 'VARCHAR'\n[[", 1)))
    assert table.evolve(schema(BASE.replace("[[", "extra = 'VARCHAR'\n[[", 1))).is_nothing
    assert table.evolve(add={"spot": "INTEGER"}, dry_run=True).lines() == [
        "add column 'spot' (INTEGER)"
    ]
    assert len(list((root / "tables/events/schema").glob("*.toml"))) == 2
    for wrong in ({}, {"schema": schema(BASE), "add": {"y": "INTEGER"}}):
        with pytest.raises(ls.InvalidInputError, match="pass a schema, or what of it to add"):
            table.evolve(**wrong)
    for wrong in ({"widen": {"y": "BIGINT"}}, {"rename": {"y": "z"}}):
        with pytest.raises(ls.SchemaError, match="no column 'y' is declared"):
            table.evolve(**wrong)
    with pytest.raises(ls.SchemaError, match="there is a column 'n' already"):
        table.evolve(add={"n": "BIGINT"})


def test_counters_go_on(lake):
    table = lake.create_table("events", schema(BASE))
    table.append(first(0, 30))

    def asked(by: str) -> Counters:
        return table.counters(by, ["count", "sum(n)"])

    before = asked("who")["who 1"]
    table.evolve(widen={"n": "BIGINT"}, add={"extra": "VARCHAR"})
    assert asked("who")["who 1"] == before
    table.append({"id": "a", "time": START, "n": 2**40, "who": "who 1", "extra": "k"})
    after = asked("who")["who 1"]
    assert after == {"count": before["count"] + 1, "sum(n)": before["sum(n)"] + 2**40}
    table.flush()
    assert asked("who")["who 1"] == after
    assert asked("extra")["k"] == {"count": 1, "sum(n)": 2**40}


def test_payloads_stay_where_they_are(lake, root, duckdb_cli):
    text = (
        "format = 2\nevent_id='id'\nevent_time='time'\n[columns]\nid='VARCHAR'\n"
        "time='TIMESTAMPTZ'\nn='INTEGER'\nbody='VARCHAR'\nshort='VARCHAR'\n"
        "[payload]\nbody='full'\nshort='preview'\n"
    )
    table = lake.create_table("events", schema(text))

    def row(i: int) -> dict:
        return {"id": f"e{i}", "time": START, "n": i, "body": f"body {i}", "short": f"s{i}"}

    table.append([row(0), row(1)])
    table.seal()
    table.append([row(2)])
    table.flush()
    table.append([row(3)])
    table.evolve(add={"extra": "VARCHAR"}, widen={"n": "BIGINT"})
    table.append([row(4) | {"extra": "x"}])
    for do in (lambda: None, table.flush, table.seal):
        do()
        for i in range(5):
            got = table.get(f"e{i}")
            assert got is not None
            assert (got["n"], got["body"], got["short_preview"]) == (i, f"body {i}", f"s{i}")
            assert got["extra"] == ("x" if i == 4 else None)
        assert lake.sql("SELECT count(*), sum(body_bytes) FROM events").fetchone() == (5, 30)
        assert lake.sql("SELECT count(body) FROM events_payload").fetchone() == (5,)
    assert run(duckdb_cli, root, "SELECT body FROM events_payload WHERE id = 'e0'") == [["body 0"]]
    assert lake.verify().ok


# other handles


@pytest.mark.parametrize("cold", COLDS)
def test_a_handle_of_the_old_version_goes_on(open_lake, root, cold):
    """It appends, answers, flushes and seals; what it knows, it takes up when it looks."""
    one = open_lake()
    here = one.create_table("events", schema(BASE), cold=cold)
    here.append(first(0, 10))
    two = open_lake()
    there = two["events"]
    there.append(first(10, 20))
    here.evolve(add=ADD)
    here.append(added(20, 30))
    there.append(first(30, 40))  # of the old version still, for nobody has looked
    rows = expected(pa.concat_tables([first(0, 20), first(30, 40)]), added(20, 30))
    assert seen(here) == rows
    assert there.totals("count(extra)")["count(extra)"] == 9
    assert seen(there) == rows
    there.append(added(40, 50))
    rows = expected(
        pa.concat_tables([first(0, 20), first(30, 40)]),
        added(20, 30),
    )
    assert there.flush() == 30
    rows = expected(pa.concat_tables([first(0, 20), first(30, 40)]), 
                    pa.concat_tables([added(20, 30), added(40, 50)]))  # fmt: skip
    assert seen(here) == seen(there) == rows
    here.flush()
    assert there.seal() == 50
    everywhere(one, root, rows)
    everywhere(two, root, rows)
    assert one.verify().ok


@pytest.mark.parametrize("cold", COLDS)
def test_a_flush_by_a_handle_that_has_not_looked_is_of_the_old_version(open_lake, root, cold):
    one, two = open_lake(), None
    here = one.create_table("events", schema(BASE), cold=cold)
    two = open_lake()
    there = two["events"]
    there.append(first(0, 10))
    here.evolve(add=ADD)
    there.flush()
    assert datafile.read_footer(_newest(root, "_site/hot/events"))["schema_version"] == 1
    here.append(added(10, 20))
    here.flush()
    assert there.seal() == 20
    assert _versions(root) == {2}
    assert seen(here) == seen(there) == expected(first(0, 10), added(10, 20))


@pytest.mark.parametrize("cold", COLDS)
def test_a_reader_takes_the_new_version_up(open_lake, root, cold):
    lake = open_lake()
    table = lake.create_table("events", schema(BASE), cold=cold)
    table.append(first(0, 10))
    table.flush()
    reader = ls.open(root, mode="r")
    held = reader["events"]
    assert held.totals("count")["count"] == 10
    table.evolve(add=ADD)
    table.append(added(10, 20))
    assert held.totals(["count", "count(extra)"]).to_arrow().to_pylist() == [
        {"count": 20, "count(extra)": 9}
    ]
    table.seal()
    assert seen(held) == expected(first(0, 10), added(10, 20))
    assert "extra" in held.schema.names
    reader.close()


def test_a_renamed_column_in_the_question_of_another_handle(open_lake):
    one = open_lake()
    here = one.create_table("events", schema(BASE))
    here.append(first(0, 10))
    two = open_lake()
    there = two["events"]
    assert there.totals("count", where={"who": "who 1"})["count"] == 2
    here.evolve(rename={"who": "user"})
    assert there.totals("count", where={"user": "who 1"})["count"] == 2
    with pytest.raises(ls.NotFoundError, match="no column 'who'"):
        there.totals("count", where={"who": "who 1"})
    assert there.series("count", every="1 day", by="user").to_arrow().num_rows > 0


WRITER = """
import sys
from test_evolution import BASE, added, first
import lakestore as ls
lake = ls.open(sys.argv[1], upkeep="manual")
table = lake["events"]
table.append(first(0, 10))
print("old", flush=True)
sys.stdin.readline()
table.append(first(10, 20))
print("old again", flush=True)
sys.stdin.readline()
lake.sql("SELECT count(*) FROM events")
table.append(added(20, 30))
print("new", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("cold", COLDS)
def test_a_writer_of_both_versions_is_killed(open_lake, root, cold, tmp_path):
    """Another process has written the old version, then the new, and is killed."""
    lake = open_lake()
    table = lake.create_table("events", schema(BASE), cold=cold)
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "old\n"
    assert seen_count(table) == 10
    table.evolve(add=ADD)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "old again\n"
    assert seen(table) == expected(first(0, 20), added(0, 0))
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "new\n"
    rows = expected(first(0, 20), added(20, 30))
    assert seen(table) == rows
    process.kill()
    process.communicate()
    lake.maintain()
    assert lake.open_report.rows == 30
    assert seen(table) == rows
    assert table.flush() == 30
    assert seen(table) == rows
    table.seal()
    assert seen(table) == rows
    assert lake.verify().ok


def seen_count(table: ls.Table) -> int:
    return table.to_arrow(["id"]).num_rows


def test_appends_of_threads_while_the_schema_evolves(open_lake):
    """Each append is of one version or another, and all rows are there once."""
    lake = open_lake(settings={"flush_rows": 50})
    table = lake.create_table("events", schema(BASE))
    failures: list[BaseException] = []
    stop = threading.Event()

    def write(base: int) -> None:
        try:
            for at in range(base, base + 400, 10):
                table.append(first(at, at + 10))
        except BaseException as error:
            failures.append(error)

    def flush() -> None:
        try:
            while not stop.is_set():
                table.flush()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(i * 1000,)) for i in range(3)]
    flusher = threading.Thread(target=flush)
    for thread in [*threads, flusher]:
        thread.start()
    for number in range(5):
        table.evolve(add={f"extra_{number}": "BIGINT"})
    table.evolve(widen={"n": "BIGINT"})
    for thread in threads:
        thread.join()
    stop.set()
    flusher.join()
    assert failures == []
    table.seal()
    ids = table.to_arrow(["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(f"e{i * 1000 + k:06d}" for i in range(3) for k in range(400))
    assert table._context.entry.schema_version == 7
    assert lake.verify().ok


def test_of_two_that_evolve_at_once_each_has_its_columns(open_lake, root):
    one, two = open_lake(), open_lake()
    here = one.create_table("events", schema(BASE))
    there = two["events"]
    with failpoint.at("evolve.2", lambda: there.evolve(add={"b": "BIGINT"})):
        here.evolve(add={"a": "BIGINT"})
    assert here.schema.names[-2:] == ("b", "a")
    one.close()
    two.close()
    assert not (root / "tables/events/schema/0005.toml").exists()
    lake = open_lake()
    lake["events"].append({"id": "x", "time": START, "a": 1, "b": 2})
    assert lake.sql("SELECT a, b FROM events").fetchall() == [(1, 2)]


# what a crash leaves, and rebuilds


def _lose_catalog(root: Path) -> None:
    for path in (root / "_site").glob("catalog.sqlite*"):
        path.unlink()


@pytest.mark.sqlite
@pytest.mark.parametrize("cold", COLDS)
def test_a_rebuild_knows_every_version(open_lake, root, clock, cold):
    lake = open_lake()
    table = lake.create_table("events", schema(BASE), cold=cold)
    table.append(first(0, 30))
    table.seal()
    table.append(first(30, 40))
    table.flush()
    table.evolve(add=ADD)
    table.append(added(40, 50))
    table.flush()
    table.append(added(50, 55))
    rows = expected(first(0, 40), added(40, 55))
    die(lake)
    _lose_catalog(root)
    rebuild(root, clock=clock)
    lake = open_lake()
    everywhere(lake, root, rows)
    assert {s.schema_version for s in lake["events"]._context.state().hot} == {1, 2}
    assert lake.verify().ok
    lake["events"].seal()
    everywhere(lake, root, rows)


@pytest.mark.sqlite
@pytest.mark.parametrize("cold", COLDS)
@pytest.mark.parametrize("point", ["evolve.1", "evolve.2", "evolve.3", "evolve.4", "evolve.5"])
def test_an_evolve_that_was_cut_short(open_lake, root, clock, cold, point):
    """The next takes its document up, or takes the next number; a rebuild does not break."""
    lake = open_lake()
    table = lake.create_table("events", schema(BASE), cold=cold)
    table.append(first(0, 10))
    table.flush()
    with failpoint.at(point, "ENOSPC"), pytest.raises((ls.StorageError, OSError)):
        table.evolve(add=ADD)
    rows = expected(first(0, 10), added(0, 0))
    done = point == "evolve.5" or (cold == "delta" and point > "evolve.2")
    die(lake)
    lake = open_lake()
    table = lake["events"]
    count = lake.sql("SELECT count(*) FROM events").fetchone()
    assert count == (10,)
    assert ("extra" in table.schema.names) == done
    die(lake)
    _lose_catalog(root)
    rebuild(root, clock=clock)
    lake = open_lake()
    table = lake["events"]
    assert lake.sql("SELECT count(*), sum(n) FROM events").fetchone() == (10, 45)
    table.evolve(schema(table._context.lineage.schema.text))
    if "extra" not in table.schema.names:
        table.evolve(add=ADD)
    assert seen(table) == rows
    table.append(added(10, 20))
    table.seal()
    assert seen(table) == expected(first(0, 10), added(10, 20))
    assert lake.verify().ok


@pytest.mark.sqlite
@pytest.mark.parametrize("cold", COLDS)
def test_a_document_that_was_never_committed(open_lake, root, clock, cold):
    lake = open_lake()
    table = lake.create_table("events", schema(BASE), cold=cold)
    table.append(first(0, 10))
    with failpoint.at("evolve.2", "ENOSPC"), pytest.raises((ls.StorageError, OSError)):
        table.evolve(add=ADD)
    table.evolve(add={"other": "INTEGER"})  # another one: the next number
    assert table._context.entry.schema_version == 3
    table.append(first(10, 20).append_column("other", pa.array([7] * 10, pa.int32())))
    table.seal()
    assert table._context.lineage.versions.keys() == {1, 3}
    assert lake.sql("SELECT count(*), sum(other) FROM events").fetchone() == (20, 70)
    leftovers = [p for p in lake.verify().problems if p.severity != "leftover"]
    assert leftovers == []
    die(lake)
    _lose_catalog(root)
    rebuild(root, clock=clock)
    lake = open_lake()
    assert lake["events"]._context.lineage.versions.keys() == {1, 3}
    assert lake.sql("SELECT count(*), sum(other) FROM events").fetchone() == (20, 70)


def test_the_same_document_is_taken_up(open_lake, root):
    lake = open_lake()
    table = lake.create_table("events", schema(BASE))
    with failpoint.at("evolve.1", "ENOSPC"), pytest.raises((ls.StorageError, OSError)):
        table.evolve(add=ADD)
    assert (root / schema_key("events", 2)).exists()
    assert not (root / schema_key("events", 2, "parquet")).exists()
    table.evolve(add=ADD)
    assert table._context.entry.schema_version == 2
    assert pq.read_schema(root / schema_key("events", 2, "parquet")).names[-2:] == list(ADD)
    assert lake.verify().ok


# what an append does with new columns


ROW = {"id": "a", "time": START, "n": 1}


def growing(policy: str, text: str = BASE) -> ls.TableSchema:
    return schema(f'on_new_column = "{policy}"\n{text}')


def test_new_columns_are_refused_by_default(lake):
    table = lake.create_table("events", schema(BASE))
    rows = first(0, 2).append_column("extra", pa.array(["x", "y"]))
    with pytest.raises(ls.SchemaError, match="unknown column 'extra'; the table has id, time"):
        table.append(rows)
    with pytest.raises(ls.SchemaError, match="row 1: unknown column 'extra'; the table has"):
        table.append([ROW, ROW | {"id": "b", "extra": 1}])
    assert lake.sql("SELECT count(*) FROM events").fetchone() == (0,)


def test_new_columns_are_left_out(lake):
    table = lake.create_table("events", growing("ignore"))
    table.append(first(0, 2).append_column("extra", pa.array(["x", "y"])))
    table.append([ROW, ROW | {"id": "b", "extra": {"deep": object}}])
    assert table.append([ROW | {"id": "c", "other": 1}]).rows == 1
    assert table.schema.names == schema(BASE).names
    assert lake.sql("SELECT count(*) FROM events").fetchone() == (5,)
    with pytest.raises(ls.SchemaError, match="'time' is missing"):
        table.append({"nothing": 1, "id": "x"})
    with pytest.raises(ls.SchemaError, match="row 0 is empty; the table requires 'time'"):
        table.append({"nothing": 1})
    with pytest.raises(ls.SchemaError, match="the batch has no column of the table"):
        table.append(pa.table({"nothing": [1]}))


@pytest.mark.parametrize("cold", COLDS)
def test_new_columns_are_added(open_lake, root, cold):
    lake = open_lake()
    table = lake.create_table("events", growing("add"), cold=cold)
    table.append(first(0, 10))
    table.seal()
    assert table.append(added(10, 20)).rows == 10
    kinds = {c.name: c.sql_type for c in table.schema.columns}
    assert kinds["extra"] == "VARCHAR"
    assert kinds["spot"] == "STRUCT(lat DOUBLE, tags VARCHAR[])"
    everywhere(lake, root, expected(first(0, 10), added(10, 20)))
    other = open_lake()["events"]
    table.append([ROW | {"id": "x1", "count": 7}, ROW | {"id": "x2", "share": 0.5, "none": None}])
    other.append([ROW | {"id": "x3", "count": 8, "when": START}])
    assert table.append(iter([ROW | {"id": "x4", "flag": True}])).rows == 1
    assert lake.sql(
        'SELECT id, "count", share, "when" IS NOT NULL, flag FROM events '
        "WHERE id > 'x' ORDER BY id"
    ).fetchall() == [
        ("x1", 7, None, False, None),
        ("x2", None, 0.5, False, None),
        ("x3", 8, None, True, None),
        ("x4", None, None, False, True),
    ]
    assert "none" not in table.schema.names  # of nulls alone there is nothing to keep
    table.seal()
    assert lake.sql('SELECT count(*), sum("count") FROM events').fetchone() == (24, 15)
    assert lake.verify().ok


def test_a_batch_whose_new_column_cannot_be_kept_changes_nothing(lake):
    table = lake.create_table("events", growing("add"))
    delta = lake.create_table("deltas", growing("add"), cold="delta")
    late = pa.array([timedelta(days=1)] * 2, pa.duration("us"))
    with pytest.raises(ls.SchemaError, match="'late'.*is not the same in every tier"):
        table.append(first(0, 2).append_column("late", late))
    with pytest.raises(ls.SchemaError, match="'N' have one name in SQL"):
        table.append([ROW | {"N": 1}])
    with pytest.raises(ls.SchemaError, match="'mixed': its values have no common type"):
        table.append([ROW | {"mixed": 1}, ROW | {"mixed": "one"}])
    small = pa.array([1, 2], pa.uint8())
    with pytest.raises(ls.SchemaError, match="'small': Delta has no type for uint8"):
        delta.append(first(0, 2).append_column("small", small))
    assert len(table.schemas) == len(delta.schemas) == 1
    assert lake.sql("SELECT count(*) FROM events").fetchone() == (0,)


def test_a_producers_batch_that_adds_a_column_is_accepted_once(open_lake):
    lake = open_lake()
    table = lake.create_table("events", growing("add"))
    rows = first(0, 3).append_column("extra", pa.array(["x", "y", "z"]))
    assert table.append(rows, producer="job", seq=1).rows == 3
    assert table.append(rows, producer="job", seq=1).duplicates == 3
    assert lake.sql("SELECT count(*), count(extra) FROM events").fetchone() == (3, 3)


def test_threads_that_add_columns_at_once(open_lake):
    lake = open_lake()
    table = lake.create_table("events", growing("add"))
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for i in range(10):
                row = ROW | {"id": f"{number}-{i}", f"c{number}_{i % 3}": i, "same": number}
                table.append(row)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = lake.sql("SELECT count(*), sum(c0_0), sum(c3_2), sum(same) FROM events").fetchone()
    assert found == (40, 18, 15, 60)
    table.seal()
    assert lake.verify().ok


def test_both_names_of_a_renamed_column(lake):
    table = lake.create_table("events", schema(BASE))
    table.evolve(rename={"who": "user"})
    table.append([ROW | {"who": "old"}, ROW | {"id": "b", "user": "new"}, ROW | {"id": "c"}])
    table.append(pa.Table.from_pylist([ROW | {"id": "d", "who": "arrow"}]))
    with pytest.raises(ls.SchemaError, match="row 1: column 'user' is also called 'who'"):
        table.append([ROW | {"id": "e"}, ROW | {"id": "f", "who": "x", "user": "y"}])
    assert lake.sql('SELECT id, "user" FROM events ORDER BY id').fetchall() == [
        ("a", "old"),
        ("b", "new"),
        ("c", None),
        ("d", "arrow"),
    ]


# other sites and engines, and stores


def test_another_site_takes_the_version_up_from_the_log(site):
    one, two = site("one"), site("two")
    here = one.create_table("events", schema(BASE), cold="delta")
    here.append(first(0, 10))
    here.seal()
    there = two["events"]
    there.append(first(10, 20))
    here.evolve(add=ADD)
    here.append(added(20, 30))
    there.seal()  # of the old version: it has not looked
    here.seal()
    rows = expected(first(0, 20), added(20, 30))
    assert seen(there) == rows
    assert seen(here) == rows
    there.append(added(30, 40))
    there.evolve(add={"third": "BIGINT"})
    there.append(added(40, 50).append_column("third", pa.array(range(10))))
    there.seal()
    assert here.totals("sum(third)")["sum(third)"] == 45
    for lake in (one, two):
        assert lake["events"].schemas.keys() == {1, 2, 3}
        assert lake.verify().ok
    late = site("late")
    assert late["events"].totals("count")["count"] == 50


def test_two_sites_that_evolve_at_once(site):
    one, two = site("one"), site("two")
    here = one.create_table("events", schema(BASE), cold="delta")
    there = two["events"]
    with failpoint.at("evolve.2", lambda: there.evolve(add={"b": "BIGINT"})):
        here.evolve(add={"a": "BIGINT"})
    there.append(ROW | {"b": 1})
    there.seal()
    here.append(ROW | {"id": "other", "a": 2, "b": 3})
    here.seal()
    assert here.totals(["sum(a)", "sum(b)"]).to_arrow().to_pylist() == [{"sum(a)": 2, "sum(b)": 4}]
    assert two.sql("SELECT sum(a), sum(b) FROM events").fetchone() == (2, 4)


def test_files_of_another_engine_may_lack_columns(lake, root):
    """Delta lets a writer leave columns out; readers see nulls."""
    from deltalake import write_deltalake

    table = lake.create_table("events", schema(BASE), cold="delta")
    data = f"{root}/tables/events/data"
    day = pa.array([START.date()] * 4, pa.date32())
    of_day = first(0, 4).append_column("ok", pa.array([True] * 4)).append_column("day", day)
    write_deltalake(data, of_day, mode="append")
    table.evolve(add=ADD)
    later = added(5, 9).append_column("ok", pa.array([True] * 4)).append_column("day", day)
    write_deltalake(data, later, mode="append", schema_mode="merge")
    table.append(added(10, 12))
    table.seal()
    rows = expected(first(0, 4), pa.concat_tables([added(5, 9), added(10, 12)]))
    assert seen(table) == rows
    assert table.totals("count", where={"extra": "extra 6"})["count"] == 1
    with duckdb.connect(f"{root}/lake.duckdb", read_only=True) as con:
        query = f"SELECT {', '.join(NAMES)} FROM events ORDER BY id"
        assert con.sql(query).to_arrow_table().to_pylist() == rows
    assert pl.scan_delta(data).select("id").collect().height == 10


@pytest.mark.parametrize("cold", COLDS)
def test_a_schema_evolves_in_a_store(store, prefix, tmp_path, clock, cold):
    options = {"storage_options": store.options, "upkeep": "manual", "clock": clock}
    lake = ls.open(prefix, local=tmp_path / "site", **options)
    table = lake.create_table("events", schema(BASE), cold=cold)
    table.append(first(0, 10))
    table.seal()
    table.append(first(10, 15))
    table.evolve(add=ADD)
    table.append(added(15, 20))
    rows = expected(first(0, 15), added(15, 20))
    assert seen(table) == rows
    table.seal()
    assert seen(table) == rows
    assert lake.sql("SELECT count(*), count(extra) FROM events").fetchone() == (20, 5)
    assert table.totals(["count", "sum(n)"])["count"] == 20
    assert lake.verify().ok
    lake.close()
    if cold == "delta":
        with ls.open(prefix, local=tmp_path / "other", mode="r", **options) as reader:
            assert seen(reader["events"]) == rows


# any sequence of steps


class Walk:
    """Two writers and a reader at one table, whose schema evolves; and what the table must hold."""

    def __init__(self, seed: int, root: Path, clock: object, cold: str) -> None:
        self.chance = random.Random(seed)
        self.root, self.clock, self.cold = root, clock, cold
        self.rows: dict[str, dict] = {}
        self.name = "who"  # of a column that is renamed now and then
        self.extras: list[str] = []
        self.lakes = [self.opened(), self.opened()]
        self.lakes[0].create_table("events", schema(BASE), cold=cold)
        self.reader = self.opened(mode="r")

    def opened(self, **options: str) -> ls.Lake:
        settings = {"segments_max": 3, "segment_duckdb_rows": 8}
        made = {"upkeep": "manual", "clock": self.clock, "settings": settings}
        return ls.open(self.root, **(made | options))

    def any_table(self) -> ls.Table:
        return self.chance.choice(self.lakes)["events"]

    def append(self) -> None:
        """Rows with the columns that this handle knows of, or fewer."""
        table = self.any_table()
        known = set(table.schema.names)
        called = next(name for name in known if name.startswith("who"))
        batch = []
        for _ in range(self.chance.randint(1, 12)):
            id = f"e{len(self.rows):06d}"
            row = {"id": id, "time": START + timedelta(hours=self.chance.randint(0, 60))}
            row["n"] = self.chance.choice([None, self.chance.randint(-(2**31), 2**31 - 1)])
            row |= {n: self.chance.randint(0, 99) for n in self.extras if n in known}
            self.rows[id] = row | {"who": f"w{len(self.rows) % 4}"}
            batch.append(row | {called: self.rows[id]["who"]})
        table.append(batch, level=self.chance.choice(["disk", "os"]))

    def evolve(self) -> None:
        table = self.any_table()
        kind = self.chance.choice(["add", "widen", "rename"] if self.cold == "parquet" else ["add"])
        if kind == "add":
            self.extras.append(f"extra_{len(self.extras)}")
            table.evolve(add={self.extras[-1]: "INTEGER"})
        elif kind == "widen":
            kinds = {"INTEGER": "BIGINT", "BIGINT": "DECIMAL(20,0)"}
            query = "SELECT column_type FROM (DESCRIBE events) WHERE column_name = 'n'"
            ((now,),) = self.lakes[0].sql(query).fetchall()
            if now in kinds:
                table.evolve(widen={"n": kinds[now]})
        else:
            fresh = f"who_{len(table.schemas)}_{self.chance.randint(0, 10**6)}"
            table.evolve(rename={self.name: fresh})
            self.name = fresh

    def flush(self) -> None:
        self.any_table().flush()

    def seal(self) -> None:
        self.any_table().seal()

    def compact(self) -> None:
        self.any_table().compact()

    def die(self) -> None:
        """One writer dies, and another comes."""
        number = self.chance.randrange(2)
        die(self.lakes[number])
        self.lakes[number] = self.opened()

    def check(self) -> None:
        columns = ", ".join(["id", "n::BIGINT AS n", f'"{self.name}" AS who', *self.extras])
        wanted = [
            {"id": r["id"], "n": r["n"], "who": r["who"], **{n: r.get(n) for n in self.extras}}
            for r in self.rows.values()
        ]
        for lake in [*self.lakes, self.reader]:
            found = lake.sql(f"SELECT {columns} FROM events ORDER BY id").to_arrow().to_pylist()
            assert found == wanted
            table = lake["events"]
            assert table.totals(["count", "sum(n)"]).to_arrow().to_pylist() == [
                {"count": len(wanted), "sum(n)": _sum(r["n"] for r in wanted) or 0}
            ]
            some = self.chance.choice(wanted or [None])
            if some is not None:
                got = table.get(some["id"])
                assert got is not None
                assert (got["n"], got[self.name]) == (some["n"], some["who"])

    def close(self) -> None:
        for lake in [*self.lakes, self.reader]:
            lake.close()


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


@pytest.mark.parametrize("cold", COLDS)
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3))]
)
def test_any_sequence_of_steps(root, clock, cold, seed, soak):
    walk = Walk(seed, root, clock, cold)
    steps = [walk.append] * 6 + [walk.evolve, walk.flush, walk.flush, walk.seal]
    steps += [walk.compact, walk.die]
    for _ in range(400 if soak else 30):
        walk.chance.choice(steps)()
        if walk.chance.random() < 0.4:
            walk.check()
    walk.check()
    for lake in walk.lakes:
        lake["events"].seal()
    walk.check()
    report = walk.lakes[0].verify()
    assert report.ok, report.problems
    with duckdb.connect(f"{root}/lake.duckdb", read_only=True) as con:
        shown = con.sql("SELECT count(*), sum(n)::BIGINT FROM events").fetchall()
    assert shown == [(len(walk.rows), _sum(row["n"] for row in walk.rows.values()))]
    walk.close()
