"""Dead letters: what does not fit is kept, once, and the rest of its batch is accepted."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FixedClock
from deltalake import DeltaTable
from support.commands import fails, ok, run
from support.store import Store

import lakestore as ls
from lakestore import deadletters, failpoint

Open = Callable[..., ls.Lake]
TEXT = """\
event_id = "id"
event_time = "time"
rejects = "dead"
[columns]
id = "VARCHAR not null"
time = "TIMESTAMPTZ not null"
n = "INTEGER"
who = "VARCHAR"
"""
SCHEMA = ls.TableSchema.from_toml(TEXT)
TIME = "2026-01-01T00:00:00Z"
GOOD = {"id": "a", "time": TIME, "n": 1, "who": "ann"}
BATCH = [
    GOOD,
    GOOD | {"id": "b", "n": "x"},
    GOOD | {"id": None},
    GOOD | {"id": "c", "time": "1500-01-01T00:00:00Z"},
    GOOD | {"id": "d", "zz": 1},
    GOOD | {"id": "e", "who": "zoë"},
    {"id": "f"},
]
COLD = ("parquet", "delta")


def dead(lake: ls.Lake, columns: str = "batch_row", order: str = "batch_row, line") -> list[Any]:
    found = lake.sql(f"SELECT {columns} FROM dead ORDER BY {order}").fetchall()
    return [row[0] if len(row) == 1 else row for row in found]


def ids(lake: ls.Lake, table: str = "events") -> list[str]:
    return [id for (id,) in lake.sql(f"SELECT id FROM {table} ORDER BY id").fetchall()]


@pytest.mark.parametrize("cold", COLD)
def test_what_does_not_fit_is_kept_and_the_rest_accepted(
    open_lake: Open, root: Path, clock: FixedClock, cold: str
) -> None:
    lake = open_lake(clock=clock)
    table = lake.create_table("events", SCHEMA, cold=cold)
    assert lake.tables() == ["dead", "events"]
    ack = table.append(BATCH, producer="p", seq=7)
    assert (ack.rows, ack.duplicates, ack.rejected) == (2, 0, 5)
    assert ids(lake) == ["a", "e"]
    columns = "reason, event, producer, seq, batch_row, table_name, rejected_at, file, line"
    found = dead(lake, columns)
    assert [row[0].split("; ")[0] for row in found] == [
        "column 'n': 'x' does not fit INTEGER",
        "column 'id' is null, and it is required",
        "column 'time': -14831769600000000 µs since 1970 is not between the years 1678 and 2262",
        "unknown column 'zz'",
        "column 'time' is null, and it is required",
    ]
    assert [json.loads(row[1]) for row in found] == [BATCH[at] for at in (1, 2, 3, 4, 6)]
    when = clock.now()
    assert [row[2:] for row in found] == [
        ("p", 7, at, "events", when, None, None) for at in (1, 2, 3, 4, 6)
    ]
    assert lake.sql(
        "SELECT event->>'who' FROM dead WHERE seq = 7 AND batch_row = 3"
    ).fetchall() == [("ann",)]
    lake.seal()
    if cold == "delta":
        assert DeltaTable(root / "tables" / "dead" / "data").to_pyarrow_table().num_rows == 5
    assert len(dead(lake)) == 5
    table.append([GOOD | {"id": "g"}, GOOD | {"n": 1.5}])
    assert dead(lake, "reason, producer", "rejected_at, batch_row")[-1][0]
    lake.seal()
    for each in (lake["dead"], table):
        each.compact(today=True)
    assert dead(lake, "count(*)", "1") == [6]
    assert lake.verify().ok


def test_without_being_asked_for_nothing_of_the_batch_is_accepted(lake: ls.Lake) -> None:
    plain = ls.TableSchema.from_toml(TEXT.replace('rejects = "dead"\n', ""))
    table = lake.create_table("events", plain)
    with pytest.raises(ls.SchemaError, match="row 1: column 'n': 'x' does not fit"):
        table.append(BATCH[:4])
    assert (ids(lake), lake.tables()) == ([], ["events"])
    assert table.append(GOOD).rejected == 0


FORMS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "generator": iter,
    "arrow": pa.Table.from_pylist,
    "batch": lambda rows: pa.RecordBatch.from_pylist(rows),
    "reader": lambda rows: pa.Table.from_pylist(rows).to_reader(),
    "polars": lambda rows: pl.DataFrame(rows),
    "lazy": lambda rows: pl.DataFrame(rows).lazy(),
    "pandas": lambda rows: pa.Table.from_pylist(rows).to_pandas(),
    "chunked": lambda rows: pa.concat_tables(pa.Table.from_pylist([row]) for row in rows),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_form_the_rows_come_in(lake: ls.Lake, form: str) -> None:
    """Also those that can be read once alone."""
    table = lake.create_table("events", SCHEMA)
    rows = [
        {"id": f"e{n}", "time": "no time" if n % 10 == 3 else TIME, "n": 1 << (40 * (n % 10 == 5))}
        for n in range(40)
    ]
    ack = table.append(FORMS[form](rows))
    assert (ack.rows, ack.rejected) == (32, 8)
    assert dead(lake) == [n for n in range(40) if n % 10 in (3, 5)]
    assert dead(lake, "event->>'id'") == [f"e{n}" for n in range(40) if n % 10 in (3, 5)]
    assert set(dead(lake, "reason")) == {
        "column 'time': 'no time' does not fit TIMESTAMP WITH TIME ZONE",
        "column 'n': 1099511627776 does not fit INTEGER",
    }


def test_columns_as_such_reject_every_row_that_has_something_there(lake: ls.Lake) -> None:
    table = lake.create_table("events", SCHEMA)
    rows = pa.table({"id": ["a", "b", "c"], "time": [TIME] * 3, "zz": [None, 1, None]})
    assert table.append(rows).rejected == 1
    assert dead(lake, "reason, event->>'id'") == [
        ("unknown column 'zz'; the table has id, time, n, who", "b")
    ]
    kinds = pa.table({"id": ["d", "e"], "time": [TIME] * 2, "n": [None, {"x": 1}]})
    assert (table.append(kinds).rejected, ids(lake)) == (1, ["a", "c", "d"])
    assert table.append(pa.table({"id": ["x", "y"]})).rejected == 2
    assert table.append(pa.table({"nothing": [1, 2]})).rejected == 2
    assert table.append([{"id": "x"}, {"id": "y"}]).rejected == 2
    lost = "column 'time' is missing; it is required and has no default"
    assert dead(lake, "count(*)", "1") == [8]
    assert dead(lake, "reason").count(lost) == 4
    torn = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    assert table.append(pa.table({"id": ["t", "u"], "time": [TIME] * 2, "who": torn})).rejected == 1
    last = json.dumps({"id": "u", "time": TIME, "who": "/w=="})  # in base64, for it is no text
    assert last in dead(lake, "event")
    assert ids(lake) == ["a", "c", "d", "t"]


def test_derived_columns_may_be_to_blame(lake: ls.Lake) -> None:
    """Their errors name no row: the others are looked at without it."""
    text = TEXT + 'half = "INTEGER"\n[derived]\nhalf = "CAST(who AS INTEGER) // 2"\n'
    table = lake.create_table("events", ls.TableSchema.from_toml(text))
    rows = [GOOD | {"id": f"e{n}", "who": "no" if n == 5 else f"{n}"} for n in range(9)]
    assert table.append(pa.Table.from_pylist(rows)).rejected == 1
    assert table.append([row | {"id": f"again {row['id']}"} for row in rows]).rejected == 1
    assert dead(lake) == [5, 5]
    assert lake.sql("SELECT count(*), sum(half) FROM events").fetchone() == (16, 28)


def test_what_no_row_is_to_blame_for_stays_an_error(lake: ls.Lake) -> None:
    table = lake.create_table("events", SCHEMA)
    with pytest.raises(ls.InvalidInputError, match="row 1 is int, not a mapping"):
        table.append([GOOD | {"n": "x"}, 5])
    with pytest.raises(ls.InvalidInputError, match="cannot append int"):
        table.append(5)
    offsets = pa.py_buffer(b"".join(at.to_bytes(4, "little") for at in (0, 99, 1)))
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a")])
    with pytest.raises(ls.SchemaError, match="not valid Arrow data"):
        table.append(pa.table({"id": ["x", "y"], "time": [TIME] * 2, "who": broken}))
    with pytest.raises(ls.InvalidInputError, match="producer and seq go together"):
        table.append([GOOD, {"id": "b"}], producer="p")
    assert (dead(lake), ids(lake)) == ([], [])


def test_any_value_has_a_place_in_the_json(lake: ls.Lake) -> None:
    table = lake.create_table("events", SCHEMA)
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    values = {
        "n": b"\xff",
        "who": float("nan"),
        "when": datetime(2026, 1, 1, tzinfo=UTC),
        "exact": Decimal("1.50"),
        "late": timedelta(seconds=3),
        "half": "\ud800",
        "set": {1},
        "map": {1: "x"},
    }
    table.append([values, {"id": "x", "n": deep}])
    first, second = dead(lake, "event")
    assert json.loads(first) == {
        "n": "/w==",
        "who": "nan",
        "when": "2026-01-01T00:00:00+00:00",
        "exact": "1.50",
        "late": "0:00:03",
        "half": "?",
        "set": [1],
        "map": {"1": "x"},
    }
    assert json.loads(second) == "a value that nests too deeply"


def test_a_batch_sent_again_doubles_nothing(open_lake: Open) -> None:
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(BATCH, producer="p", seq=1)
    again = table.append(BATCH, producer="p", seq=1)
    assert (again.rows, again.duplicates, again.rejected) == (0, 2, 5)
    lake.seal()
    other = open_lake()["events"]
    assert other.append(BATCH, producer="p", seq=1).rejected == 5
    assert len(dead(lake)) == 5
    hopeless = [GOOD | {"n": "x"}]
    for _ in range(2):  # of a batch of which nothing fits the number is known too
        assert table.append(hopeless, producer="q", seq=4).rejected == 1
    lake["dead"].purge({"producer": "q"})
    assert other.append(hopeless, producer="q", seq=4).rejected == 1
    assert dead(lake, "count(*)", "1") == [5]
    for _ in range(2):  # nobody can tell these from others
        table.append(hopeless)
    assert dead(lake, "count(*)", "1") == [7]
    lake.drop_table("events")
    table = lake.create_table("events", SCHEMA)  # and its producers begin anew
    table.append(BATCH, producer="p", seq=1)
    assert dead(lake, "count(*)", "1") == [12]


@pytest.mark.parametrize("cold", COLD)
@pytest.mark.parametrize("point", ["reject.1", "append.4", "reject.2"])
def test_an_error_between_the_two_tables(open_lake: Open, point: str, cold: str) -> None:
    lake = open_lake()
    table = lake.create_table("events", SCHEMA, cold=cold)
    hit = 2 if point == "append.4" else 1
    with failpoint.at(point, "ENOSPC", hit=hit), pytest.raises((ls.StorageError, OSError)):
        table.append(BATCH, producer="p", seq=1)
    assert len(dead(lake)) == 5  # first the dead letters
    assert ids(lake) == ([] if point != "reject.2" else ["a", "e"])
    lake.seal()
    table.append(BATCH, producer="p", seq=1)
    assert (len(dead(lake)), ids(lake)) == (5, ["a", "e"])
    lake.seal()
    assert (len(dead(lake)), ids(lake)) == (5, ["a", "e"])
    assert lake.verify().ok


LIFE = """
import sys, lakestore as ls
from test_deadletters import BATCH
with ls.open(sys.argv[1], upkeep="manual") as lake:
    lake["events"].append(BATCH, producer="p", seq=1, level=sys.argv[2])
"""


def _die(life: str, *arguments: object, failpoints: str) -> None:
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    env = {**os.environ, "PYTHONPATH": path, "LAKESTORE_FAILPOINTS": failpoints}
    done = subprocess.run([sys.executable, "-c", life, *map(str, arguments)], env=env)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.faults
@pytest.mark.parametrize("level", ["memory", "disk"])
@pytest.mark.parametrize("point", ["reject.1", "reject.2"])
def test_a_kill_between_the_two_tables(root: Path, point: str, level: str) -> None:
    with ls.open(root, upkeep="manual") as lake:
        lake.create_table("events", SCHEMA)
    _die(LIFE, root, level, failpoints=f"{point}=crash")
    with ls.open(root, upkeep="manual") as lake:
        assert len(dead(lake)) == 5
        assert ids(lake) == (["a", "e"] if (point, level) == ("reject.2", "disk") else [])
        ack = lake["events"].append(BATCH, producer="p", seq=1)
        assert (ack.rows + ack.duplicates, ack.rejected) == (2, 5)
        lake.seal()
        assert (len(dead(lake)), ids(lake)) == (5, ["a", "e"])


def _lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows first: what a crash in between leaves looks accepted, and nothing is rejected again."""
    true = deadletters.append_fitting

    def wrong(table: Any, rows: Any, sending: Any, put: Any, add: Any) -> ls.Ack:
        waiting: list[Any] = []
        ack = true(table, rows, sending, lambda *letter: waiting.append(letter), add)
        for letter in waiting:
            put(*letter)
        return ack

    monkeypatch.setattr("lakestore.table.append_fitting", wrong)


def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that are made each time."""
    monkeypatch.setattr(deadletters.xxhash, "xxh3_128_hexdigest", lambda data: os.urandom(8).hex())


@pytest.mark.parametrize(("mutant", "expected"), [(None, 5), (_lose, 0), (_double, 10)])
def test_planted_bugs_lose_and_double_dead_letters(
    open_lake: Open, monkeypatch: pytest.MonkeyPatch, mutant: Any, expected: int
) -> None:
    """An append that is cut short between the two, and sent again."""
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    if mutant is not None:
        mutant(monkeypatch)
    point = "reject.2" if mutant is _lose else "reject.1"
    with failpoint.at(point, "ENOSPC"), pytest.raises(OSError, match="No space"):
        table.append(BATCH, producer="p", seq=1)
    table.append(BATCH, producer="p", seq=1)
    assert dead(lake, "count(*)", "1") == [expected]


def test_new_columns_are_added_and_what_cannot_be_is_rejected(lake: ls.Lake) -> None:
    text = TEXT.replace("[columns]", 'on_new_column = "add"\n[columns]')
    table = lake.create_table("events", ls.TableSchema.from_toml(text))
    rows = [
        GOOD | {"more": 1},
        GOOD | {"id": "b", "n": "x", "more": 2},
        GOOD | {"id": "c", "more": 3},
    ]
    ack = table.append(rows, producer="p", seq=1)
    assert (ack.rows, ack.rejected) == (2, 1)
    assert table.append(rows, producer="p", seq=1).duplicates == 2
    assert lake.sql("SELECT id, more FROM events ORDER BY id").fetchall() == [("a", 1), ("c", 3)]
    late = pa.array([None, timedelta(days=1)], pa.duration("us"))
    wrong = pa.table({"id": ["d", "e"], "time": [TIME] * 2, "late": late})
    assert table.append(wrong).rejected == 1
    mixed = [GOOD | {"id": "f", "mixed": 1}, GOOD | {"id": "g", "mixed": "one"}]
    assert table.append(mixed).rejected == 1
    assert ids(lake) == ["a", "c", "d", "f"]
    ignoring = ls.TableSchema.from_toml(text.replace('"add"', '"ignore"'))
    other = lake.create_table("other", ignoring)
    assert other.append([GOOD | {"zz": 1}, {"zz": 1}]).rejected == 1


def test_what_a_policy_drops_is_not_in_dead_letters(lake: ls.Lake, root: Path) -> None:
    text = "format = 2\n" + TEXT + 'body = "VARCHAR"\nsecret = "VARCHAR"\n'
    text += '[payload]\nbody = "full"\nsecret = "hash"\n'
    table = lake.create_table("events", ls.TableSchema.from_toml(text))
    table.append([GOOD | {"n": "x", "body": "all of it", "secret": "topsecret"}])
    assert json.loads(dead(lake, "event")[0]) == GOOD | {"n": "x", "body": "all of it"}
    lines = root.parent / "f.ndjson"
    lines.write_text('{"id": 1, "secret": "topsecret"\n')
    table.load(lines)
    assert dead(lake, "line, event", "line")[0] == (1, None)
    lake.close()
    everything = b"".join(p.read_bytes() for p in root.rglob("*") if p.is_file())
    assert b"all of it" in everything
    assert b"topsecret" not in everything


def test_names_that_collide(lake: ls.Lake) -> None:
    with pytest.raises(ls.InvalidInputError, match="it must be another table"):
        lake.create_table("Dead", SCHEMA)
    plain = ls.TableSchema.from_toml(TEXT.replace('rejects = "dead"\n', ""))
    lake.create_table("dead", plain)
    with pytest.raises(ls.InvalidInputError, match="'dead' is there, and is none of dead letters"):
        lake.create_table("events", SCHEMA)
    table = lake.create_table("events", plain)
    with pytest.raises(ls.InvalidInputError, match="'dead' is there, and is none of dead letters"):
        table.evolve(SCHEMA)
    with pytest.raises(ls.SchemaError, match="rejects"):
        ls.TableSchema.from_toml(TEXT.replace('"dead"', '"../dead"'))
    assert table.schema.document.rejects is None
    lake.drop_table("dead")
    assert table.evolve(SCHEMA).lines() == ["change rejects"]
    assert table.append([{"id": "x"}]).rejected == 1
    assert lake.create_table("more", SCHEMA).append([{"id": "y"}]).rejected == 1  # shared
    assert dead(lake, "table_name", "table_name") == ["events", "more"]
    lake.drop_table("dead")  # and is made again when something is rejected
    assert table.append([{"id": "z"}]).rejected == 1
    assert dead(lake, "event->>'id'") == ["z"]
    lake.drop_table("events")  # its dead letters are a table of their own
    assert len(dead(lake)) == 1


def test_readers_children_and_threads(open_lake: Open, root: Path) -> None:
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(BATCH, producer="p", seq=1)
    with ls.open(root, mode="r") as reader:
        assert len(dead(reader)) == 5
        with pytest.raises(ls.InvalidInputError, match="reopen it to write"):
            reader["events"].append(BATCH)

    child = os.fork()
    if not child:
        try:
            table.append(BATCH)
        except ls.ClosedError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def send(number: int) -> None:
        for seq in range(5):
            table.append(
                [GOOD | {"id": f"{number}-{seq}"}, GOOD | {"n": f"{number}"}],
                producer=f"t{number}",
                seq=seq,
            )

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dead(lake, "count(*)", "1") == [25]
    assert len(ids(lake)) == 22


def test_the_table_evolves_and_takes_what_it_refused(lake: ls.Lake) -> None:
    table = lake.create_table("events", SCHEMA)
    big = GOOD | {"n": 1 << 40}
    assert table.append([big], producer="p", seq=1).rejected == 1
    table.evolve(widen={"n": "BIGINT"}, add={"extra": "VARCHAR"})
    assert table.schema.document.rejects == "dead"
    rows = [json.loads(event) for event in dead(lake, "event")]
    assert table.append(rows, producer="again", seq=1).rows == 1
    assert lake.sql("SELECT n FROM events").fetchall() == [(1 << 40,)]
    lake["dead"].evolve(add={"seen": "BOOLEAN"})
    assert table.append([{"id": "x"}]).rejected == 1
    assert dead(lake, "count(*)", "1") == [2]


# files


def _files(folder: Path) -> dict[str, Path]:
    """The same ten events, of which those of lines 4 and 8, from 1, do not fit."""
    rows = [{"id": f"e{n}", "time": TIME, "n": n, "who": "ann"} for n in range(1, 11)]
    for at in (3, 7):
        rows[at]["time"] = None
    files = {name: folder / f"f.{name}" for name in ("parquet", "csv", "ndjson")}
    pq.write_table(pa.Table.from_pylist(rows), files["parquet"], row_group_size=4)
    files["csv"].write_text(pl.DataFrame(rows).write_csv())
    files["ndjson"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.mark.parametrize("name", ["parquet", "csv", "ndjson"])
def test_files_put_their_rejects_there_once(
    open_lake: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("lakestore.load.chunks.CHUNK_ROWS", 2)
    monkeypatch.setattr("lakestore.load.files._rows_of_chunk", lambda file: 3)
    path = _files(tmp_path)[name]
    first = 2 if name == "csv" else 1
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    with failpoint.at("load.9", "ENOSPC", hit=2), pytest.raises(ls.StorageError):
        table.load(path)
    assert 0 < len(ids(lake)) < 8
    monkeypatch.setattr("lakestore.load.files._rows_of_chunk", lambda file: 4)
    table.load(path)
    assert len(ids(lake)) == 8
    assert dead(lake, "line, file") == [(first + at, str(path)) for at in (3, 7)]
    assert dead(lake, "event->>'id'") == ["e4", "e8"]
    again = table.load(path)
    assert (again.rows, again.rejected, again.skipped) == (0, 0, 10)
    named = table.load([path], load_id="mine")
    assert (named.rows, named.duplicates, named.rejected) == (0, 8, 2)
    assert table.load([path], load_id="mine").rejected == 0
    lake.seal()
    assert dead(lake, "count(*)", "1") == [4]
    assert lake.verify().ok


@pytest.mark.parametrize("name", ["parquet", "csv", "ndjson"])
def test_a_load_goes_on_where_it_was_though_more_fits_by_now(
    open_lake: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Lines that did not fit count too: else rows would be loaded twice, for nothing drops them."""
    monkeypatch.setattr("lakestore.load.chunks.CHUNK_ROWS", 2)
    monkeypatch.setattr("lakestore.load.files._rows_of_chunk", lambda file: 3)
    lake = open_lake()
    text = TEXT.replace("rejects", 'dedup = "none"\nrejects', 1)
    table = lake.create_table("events", ls.TableSchema.from_toml(text))
    rows = [{"id": f"e{n}", "time": TIME, "n": 1 << (40 * (n in (1, 2)))} for n in range(12)]
    path = tmp_path / f"f.{name}"
    if name == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    elif name == "csv":
        path.write_text(pl.DataFrame(rows).write_csv())
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with failpoint.at("load.9", "ENOSPC", hit=1), pytest.raises(ls.StorageError):
        table.load(path)
    before = len(ids(lake))
    assert 0 < before < 10
    table.evolve(widen={"n": "BIGINT"})
    table.load(path)
    found = ids(lake)
    assert sorted(found) == sorted(set(found))
    assert {f"e{n}" for n in range(12)} - set(found) <= {"e1", "e2"}
    assert {f"e{n}" for n in range(12)} == {*found, *dead(lake, "event->>'id'")}


LOAD = """
import sys, lakestore as ls
from lakestore.load import chunks, files
chunks.CHUNK_ROWS, files._rows_of_chunk = 2, lambda file: 3
with ls.open(sys.argv[1], upkeep="manual") as lake:
    lake["events"].load(sys.argv[2])
"""


@pytest.mark.faults
@pytest.mark.parametrize("name", ["parquet", "csv", "ndjson"])
@pytest.mark.parametrize("point", ["load.8=crash@2", "load.9=crash@2", "append.2=crash"])
def test_a_load_that_is_killed_loses_and_doubles_no_dead_letters(
    root: Path, tmp_path: Path, name: str, point: str
) -> None:
    """Also where it is killed while dead letters are put into their table."""
    path = _files(tmp_path)[name]
    with ls.open(root, upkeep="manual") as lake:
        lake.create_table("events", SCHEMA)
    _die(LOAD, root, path, failpoints=point)
    with ls.open(root, upkeep="manual") as lake:
        lake["events"].load(path)
        assert sorted(ids(lake)) == sorted(f"e{n}" for n in range(1, 11) if n not in (4, 8))
        assert dead(lake, "event->>'id'") == ["e4", "e8"]
        lake.seal()
        assert lake.verify().ok


def test_in_a_store_that_two_hosts_share(store: Store, tmp_path: Path) -> None:
    root = f"s3://{store.bucket}/{uuid4().hex}"

    def opened(name: str) -> ls.Lake:
        options = {"local": tmp_path / name, "storage_options": store.options}
        return ls.open(root, upkeep="manual", **options)

    with opened("a") as one, opened("b") as other:
        one.create_table("events", SCHEMA, cold="delta").append(BATCH, producer="p", seq=1)
        ack = other["events"].append(BATCH, producer="q", seq=1)
        assert (ack.rows, ack.rejected) == (2, 5)
        for lake in (one, other, one):
            lake.seal()
        counts = "SELECT producer, count(*) FROM dead GROUP BY 1 ORDER BY 1"
        for lake in (one, other):
            assert lake.sql(counts).fetchall() == [("p", 5), ("q", 5)]
            assert ids(lake) == ["a", "e"]


def test_streams_put_their_rejects_there(open_lake: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lakestore.load.chunks.CHUNK_ROWS", 5)
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)

    def batches() -> list[pa.Table]:
        rows = [{"id": f"e{n}", "time": None if n in (3, 13) else TIME} for n in range(20)]
        return [pa.Table.from_pylist(rows[at : at + 4]) for at in range(0, 20, 4)]

    with failpoint.at("load.9", "ENOSPC", hit=2), pytest.raises(ls.StorageError):
        table.load(batches(), load_id="s")
    report = table.load(batches(), load_id="s")
    assert len(ids(lake)) == 18
    assert report.skipped + report.rows + report.duplicates in (19, 20)
    assert dead(lake, "batch_row, producer") == [(3, "load:s"), (13, "load:s")]
    report = table.load(iter([{"id": "x", "time": TIME}, {"id": "y"}]))
    assert (report.rows, report.rejected) == (1, 1)


def test_the_command_line_says_how_many(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    files = _files(tmp_path)
    document = tmp_path / "events.toml"
    document.write_text(TEXT)
    ok("create", lake, "events", "--schema", document)
    told = json.loads(run("ingest", lake, "events", files["csv"], "--json").stdout)
    assert (told["accepted"], told["rejects"]) == (8, 2)
    assert told["files"][0]["rejects_table"] == "dead"
    assert (
        "2 lines rejected, and kept in dead" in run("ingest", lake, "events", files["csv"]).stdout
    )
    torn = tmp_path / "torn.ndjson"
    lines = [json.dumps(GOOD | {"id": "t1"}), "{", json.dumps(GOOD | {"id": "t2", "zz": 1}), "5"]
    torn.write_text("\n".join(lines))
    apart = tmp_path / "apart.ndjson"
    assert "3 lines rejected" in run("ingest", lake, "events", torn, "--rejects-to", apart).stdout
    assert [json.loads(line)["line"] for line in apart.read_text().splitlines()] == [2, 4, 3]
    loaded = run("load", lake, "events", torn).stdout
    assert "3 rejected, and kept in dead" in loaded
    assert "what does not fit is in dead" in " ".join(run("status", lake).stdout.split())
    with ls.open(lake, mode="r") as opened:
        found = dead(opened, "file, line, event", "file, line, producer")
    csv = json.dumps({"id": "e4", "time": "", "n": "4", "who": "ann"})
    assert found[0] == (str(files["csv"]), 5, csv)
    assert [row[1:] for row in found[2::2]] == [
        (2, '"{"'),
        (3, lines[2]),
        (4, '"5"'),
    ]
    assert "the table has no column" in fails(
        "ingest", lake, "events", _with_column(tmp_path / "wide.csv")
    )


def _with_column(path: Path) -> Path:
    path.write_text(f"id,time,zz\nx,{TIME},1\n")
    return path


@pytest.mark.parametrize("cold", COLD)
def test_a_purge_looks_through_dead_letters(
    open_lake: Open, root: Path, clock: FixedClock, cold: str
) -> None:
    lake = open_lake(clock=clock)
    text = TEXT.replace('who = "VARCHAR"', 'user = "VARCHAR"') + '[renamed]\nuser = "who"\n'
    table = lake.create_table("events", ls.TableSchema.from_toml(text), cold=cold)
    other = lake.create_table("other", SCHEMA, cold=cold)
    for each in (table, other):
        each.append(
            [
                GOOD | {"id": "x1", "who": "anna-q"},
                GOOD | {"id": "x2", "who": "anna-q", "n": "wrong-q"},
                {"id": "x3", "user" if each is table else "who": "anna-q"},
                GOOD | {"id": "x4", "who": "bob", "n": "wrong"},
            ]
        )
    table.append([GOOD | {"id": "x5", "who": "anna-q", "n": "y"}])
    foretold = table.purge({"user": "anna-q"}, dry_run=True)
    assert foretold.rejects is not None
    assert (foretold.rows, foretold.rejects.rows) == (1, 3)
    done = table.purge({"user": "anna-q"})
    assert (done.rows, done.rejects and done.rejects.rows, done.complete) == (1, 3, False)
    assert done.to_dict()["rejects"]["rows"] == 3
    assert "dead letters: erased 3 events" in str(done)
    assert dead(lake, "table_name, event->>'id'", "1, 2") == [
        ("events", "x4"),
        ("other", "x2"),
        ("other", "x3"),
        ("other", "x4"),
    ]
    other.purge({"who": "anna-q"})
    for _ in range(3):
        clock.move(3600)
        done = table.purge({"user": "anna-q"})
        rest = other.purge({"who": "anna-q"})
    assert (done.complete, rest.complete) == (True, True), (done.remaining, rest.remaining)
    lake.close()
    left = [p for p in root.rglob("*") if p.is_file() and b"wrong-q" in p.read_bytes()]
    assert left == []


def test_a_purge_makes_no_table_of_dead_letters_again(open_lake: Open) -> None:
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(BATCH)
    lake.drop_table("dead")
    assert table.purge({"who": "ann"}, dry_run=True).rejects is None
    assert table.purge({"who": "ann"}).rejects is None
    assert (lake.tables(), ids(lake)) == (["events"], ["e"])
    assert table.append(BATCH).rejected == 5  # which needs one
    assert lake.tables() == ["dead", "events"]


def test_a_schema_that_is_refused_makes_no_table_of_dead_letters(open_lake: Open) -> None:
    lake = open_lake()
    text = TEXT.replace('rejects = "dead"\n', "")
    table = lake.create_table("events", ls.TableSchema.from_toml(text))
    with pytest.raises(ls.SchemaError):
        table.evolve(ls.TableSchema.from_toml(TEXT.replace('who = "VARCHAR"\n', "")))
    assert lake.tables() == ["events"]
    table.evolve(SCHEMA)
    assert lake.tables() == ["dead", "events"]
