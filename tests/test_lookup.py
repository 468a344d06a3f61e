"""Which files a lookup opens: those that its ids may be in, and hardly another."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import lakestore as ls
from lakestore.events.lookup import _Asked
from lakestore.idhash import hash_ids
from lakestore.query.pin import pin
from lakestore.query.reader import filled
from lakestore.snapshot import ColdFile, ColumnRange, FileInfo

START = datetime(1969, 10, 1, 7, tzinfo=UTC)
SPANS = [0, 0, 0, 1, 2, 365, 366, 900]
"""Days from the first event of a file to its last; those of the last two are not asked for each."""


def files_of(table: ls.Table, count: int) -> list[tuple[ColdFile, list[str]]]:
    """Cold files of four events each, whose hashes are known, with their ids; one has none."""
    schema, ids = table.schema, table._context.file_ids
    files = []
    for number in range(count):
        first = START + timedelta(days=number % 200)
        last = first + timedelta(days=SPANS[number % len(SPANS)])
        held = [f"{number}-{row}" for row in range(4 if number != 17 else 0)]
        times = pa.array([first, last, last, first][: len(held)], pa.timestamp("us", "UTC"))
        name = f"day={first.date()}/{number}.parquet"
        ids.remember(name, hash_ids(pa.array(held, pa.string()), times, schema.dedup))
        info = FileInfo(len(held), 1, "", first, last)
        files.append((ColdFile(name, first.date(), 1, 1, 1, info), held))
    return files


@pytest.fixture(params=["day", "table", "none"])
def asked_table(request, lake) -> ls.Table:
    schema = ls.TableSchema.from_toml(
        f"event_id = 'id'\nevent_time = 't'\ndedup = '{request.param}'\n"
        "[columns]\nid = 'VARCHAR not null'\nt = 'TIMESTAMPTZ not null'"
    )
    return lake.create_table("asked", schema)


def chosen(table: ls.Table, files: list[ColdFile], ids: list[str]) -> list[ColdFile]:
    return list(_Asked(table._context, pa.array(ids)).those_that_may_hold(files))


def test_a_lookup_chooses_the_files_that_hold_an_id(asked_table):
    table, held = asked_table, files_of(asked_table, 400)
    files = [file for file, _ in held]
    long = [f for f in files if f.info.max_time - f.info.min_time >= timedelta(days=366)]
    always = set() if table.schema.dedup != "day" else {f.name for f in long}
    for ids in (["0-0"], ["5-1"], ["7-3"], ["11-2", "399-0", "0-0"], ["nobody"], ["17-0"]):
        for _ in range(2):  # from the caches, then from memory
            found = chosen(table, files, ids)
            wanted = {f.name for f, there in held if set(there) & set(ids)} | always
            assert {f.name for f in found} == wanted
            assert found == sorted(found, key=files.index)
    assert chosen(table, [], ["0-0"]) == []


def test_hashes_that_memory_has_no_room_for_are_read_again(asked_table, monkeypatch):
    from lakestore import fileids

    monkeypatch.setattr(fileids, "_MAPPED_BYTES", 5 * 32)
    held = [
        (file, ids)
        for file, ids in files_of(asked_table, 40)
        if ids and file.info.max_time - file.info.min_time < timedelta(days=366)
    ]
    files = [file for file, _ in held]
    for file, ids in (*held, *reversed(held)):
        assert chosen(asked_table, files, ids[:1]) == [file]
    known = asked_table._context.file_ids.in_memory([f.name for f in files])
    assert sum(hashes is not None for hashes in known) == 5


def test_files_without_hashes_are_read(lake):
    """As those that another engine wrote, or whose cache is lost."""
    schema = ls.TableSchema.from_toml(
        "event_id = 'id'\nevent_time = 't'\n"
        "[columns]\nid = 'VARCHAR not null'\nt = 'TIMESTAMPTZ not null'"
    )
    table = lake.create_table("asked", schema)
    table.append({"id": f"{i}", "t": START + timedelta(hours=i)} for i in range(100))
    table.seal()
    context = table._context
    files = context.state().cold
    names = [file.name for file in files]
    for name in names:
        context.file_ids.forget(name)
    assert context.file_ids.in_memory(names) == [None] * 5
    (found,) = chosen(table, list(files), ["50"])
    assert found.day == (START + timedelta(hours=50)).date()
    assert all(hashes is not None for hashes in context.file_ids.in_memory(names))
    assert np.concatenate(context.file_ids.in_memory(names)).size == 100


def test_hashes_that_two_threads_load_count_once(asked_table):
    context = asked_table._context
    (file, held), *_ = files_of(asked_table, 1)
    both = threading.Barrier(2)
    cached = context.file_ids.cached

    def together(name: str) -> Any:
        found = cached(name)
        both.wait(10)
        return found

    context.file_ids.cached = together
    loads = [threading.Thread(target=chosen, args=(asked_table, [file], held)) for _ in range(2)]
    for one in loads:
        one.start()
    for one in loads:
        one.join()
    (known,) = context.file_ids.in_memory([file.name])
    assert known is not None
    assert context.file_ids._bytes == known.nbytes


@pytest.mark.parametrize(
    ("kind", "id", "asked"),
    [
        ("TIMESTAMPTZ", START, START.replace(tzinfo=None)),
        ("BLOB", b"a", bytearray(b"a")),
        ("BLOB", b"a", "a"),
        ("VARCHAR", "5", b"5"),
        ("VARCHAR", "5", pa.scalar("5")),
    ],
)
def test_an_id_may_be_asked_for_in_another_type_of_python(lake, kind, id, asked):
    schema = ls.TableSchema.from_toml(
        "event_id = 'id'\nevent_time = 't'\n"
        f"[columns]\nid = '{kind} not null'\nt = 'TIMESTAMPTZ not null'"
    )
    table = lake.create_table("asked", schema)
    table.append([{"id": id, "t": START}])
    for change in (lambda: None, table.flush, table.seal):
        change()
        assert table.get_many([asked, asked]) == [{"id": id, "t": START}] * 2


@pytest.mark.parametrize("cold", ["parquet", "delta"])
def test_columns_that_are_empty_in_some_files_come_back_from_every_tier(lake, cold):
    """They are not read where a file says that they have no value."""
    names = ["never", "twos", "number", "list"]
    schema = ls.TableSchema.from_toml(
        "event_id = 'id'\nevent_time = 't'\n[columns]\n"
        "never = 'VARCHAR'\nid = 'VARCHAR not null'\nt = 'TIMESTAMPTZ not null'\n"
        "twos = 'VARCHAR'\nnumber = 'DECIMAL(9,2)'\nlist = 'INTEGER[]'\n"
    )
    table = lake.create_table("asked", schema, cold=cold)
    events = [
        {
            "id": f"{i}",
            "t": START + timedelta(hours=i),
            "twos": "two" if i % 2 else None,
            "number": i if i // 10 == 1 else None,
            "list": [i, None] if i // 10 == 2 else None,
        }
        for i in range(40)
    ]
    for first in range(0, 40, 10):  # sealed, sealed, flushed, buffered
        table.append([e for e in events[first : first + 10] if not (first == 0 and e["twos"])])
        if first < 20:
            table.seal()
        elif first == 20:
            table.flush()
    state = table._context.state()
    assert {r.nulls for f in state.cold if f.first == 1 for r in [f.info.ranges["twos"]]} != {0}
    known = {
        row["id"]: row
        for row in lake.sql("SELECT never, id, t, twos, number, list FROM asked")
        .to_arrow()
        .to_pylist()
    }
    assert len(known) == 35
    for id, row in known.items():
        found = table.get(id)
        assert found == row
        assert list(found) == ["never", "id", "t", *names[1:]]
    ids = ["0", "19", "25", "39", "nobody"]
    assert table.get_many(ids) == [known.get(id) for id in ids]


def test_files_that_do_not_say_how_many_rows_they_have_are_read_whole(lake):
    """As other engines may leave it out of a Delta log."""
    schema = ls.TableSchema.from_toml(
        "event_id = 'id'\nevent_time = 't'\n"
        "[columns]\nid = 'VARCHAR not null'\nt = 'TIMESTAMPTZ not null'\nv = 'INTEGER'"
    )
    table = lake.create_table("asked", schema)
    table.append({"id": "a", "t": START, "v": 7})
    table.seal()
    (one,) = pin(lake._site, [table._context])
    (file,) = one.cold
    unsure = replace(file.info, rows=0, ranges={"v": ColumnRange(None, None, 0)})
    assert filled(replace(one, cold=(replace(file, info=unsure),))) == ["id", "t", "v"]
    empty = replace(file.info, ranges=file.info.ranges | {"v": ColumnRange(None, None, 1)})
    assert filled(replace(one, cold=(replace(file, info=empty),))) == ["id", "t"]
