"""Partials in memory: texts as numbers, hours and their days; whatever is asked, in any order."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest

import lakestore as ls
from lakestore import coldfiles, datafile, partials, resident
from lakestore.events.filters import Filter
from lakestore.events.measures import parse
from lakestore.events.rolled import inside
from lakestore.events.statement import Question
from lakestore.partialfiles import PartialFiles
from lakestore.query.pin import pin
from lakestore.query.reader import Reader

SCHEMA = ls.TableSchema.from_toml("""
event_id = "id"
event_time = "time"
[columns]
id = "VARCHAR not null"
time = "TIMESTAMPTZ not null"
who = "VARCHAR"
kind = "INTEGER"
size = "BIGINT"
[[rollups]]
name = "hourly"
by = ["who", "kind"]
sums = ["size"]
max = ["size"]
""")
DAY = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def rows(chance: random.Random, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Events about the epoch, of few texts, among them none and an empty one."""
    return [
        {
            "id": f"e{first + i}",
            "time": DAY + timedelta(seconds=chance.randrange(-99 * 3600, 99 * 3600)),
            "who": chance.choice([None, "", "a", "b%", "it's", f"w{chance.randrange(first + 9)}"]),
            "kind": chance.choice([None, -1, 0, 7]),
            "size": chance.choice([None, chance.randrange(-(10**9), 10**9)]),
        }
        for i in range(count)
    ]


@pytest.fixture
def lake(open_lake) -> Iterator[ls.Lake]:
    with open_lake() as lake:
        usage = lake.create_table("usage", SCHEMA)
        usage.append(rows(random.Random(1), 400))
        usage.seal()
        usage.append(rows(random.Random(2), 300, 400))
        usage.flush()
        usage.append(rows(random.Random(3), 50, 700))
        yield lake


@pytest.fixture
def usage(lake) -> ls.Table:
    return lake["usage"]


def held(usage: ls.Table) -> list[resident.Resident]:
    return list(usage._context.partials._residents.values())


WHERE: list[tuple[dict[str, Any], str]] = [
    ({}, "true"),
    ({"who": "a"}, "who = 'a'"),
    ({"who": None}, "who IS NULL"),
    ({"who": ["", None, "nobody"]}, "(who IN ('', 'nobody') OR who IS NULL)"),
    ({"who": ("!=", "a"), "kind": 7}, "who <> 'a' AND kind = 7"),
    ({"who": ("like", "w%")}, "who LIKE 'w%'"),
    ({"who": ("not in", ["a", None])}, "NOT coalesce(who IN ('a') OR who IS NULL, false)"),
]


class Never(set[Any]):
    """Remembers nothing: every question is the first."""

    def add(self, item: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("where_partials_are", ["memory", "files"])
@pytest.mark.parametrize(("where", "condition"), WHERE, ids=[sql for _, sql in WHERE])
def test_days_hours_and_rows_add_up_whatever_the_window(
    lake, usage, where, condition, where_partials_are, monkeypatch
):
    if where_partials_are == "files":
        monkeypatch.setattr(partials, "_MANY_FILES", 1)
        usage._context.partials._asked = Never()
    chance = random.Random(str(where))
    for _ in range(12):
        unit = chance.choice([timedelta(minutes=7), HOUR, 24 * HOUR])
        start = chance.choice([None, DAY + chance.randrange(-9, 9) * unit])
        end = chance.choice([None, (start or DAY) + chance.randrange(1, 60) * unit])
        test = condition
        test += f" AND time >= '{start}'" if start else ""
        test += f" AND time < '{end}'" if end else ""
        window = {"where": where, "start": start, "end": end}
        found = usage.totals(["count", "sum(size)", "max(size)", "distinct(who)"], **window)
        measures = "count(*), coalesce(sum(size), 0), max(size), count(DISTINCT who)"
        query = f"SELECT {measures} FROM usage WHERE {test}"
        assert tuple(found.values()) == lake.sql(query).fetchone()
        width = chance.choice(["1h", "1 day", "6h"])
        points = usage.series(["count", "sum(size)"], every=width, by="who", **window)
        assert sorted(
            (row["bucket"], str(row["who"]), row["count"], row["sum(size)"])
            for row in points if row["count"]
        ) == sorted(
            (bucket, str(who), n, total)
            for bucket, who, n, total in lake.sql(
                f"SELECT time_bucket(INTERVAL '{width}', time), who, count(*), "
                f"coalesce(sum(size), 0) FROM usage WHERE {test} GROUP BY ALL"
            ).fetchall()
        )  # fmt: skip
    others = "kind = 7" if "kind" in where else "true"
    menu = lake.sql(f"SELECT who, count(*) FROM usage WHERE {others} GROUP BY 1").fetchall()
    assert dict(usage.facets("who", where=where, limit=1000)["who"]) == dict(menu)


def test_the_first_question_reads_partials_in_files_and_the_second_loads_them(
    lake, usage, monkeypatch
):
    monkeypatch.setattr(partials, "_MANY_FILES", 1)
    one, cold = SCHEMA.document.rollups[0], usage._context.state().cold
    files = usage._context.partials.files
    damaged = files.intact(one, cold[0])
    assert damaged is not None
    assert usage.totals(source="cold")["count"] == 400
    assert held(usage) == []
    assert usage.totals(source="cold")["count"] == 400
    (resident,) = held(usage)
    assert set(resident.files) == {file.name for file in cold}
    usage._context.partials._retire_all()
    usage._context.partials._asked.clear()
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert files.intact(one, cold[0]) is None
    assert usage.totals(source="cold")["count"] == 400  # one is made again: it is no first question
    assert len(held(usage)) == 1


def test_whole_days_are_not_read_by_the_hour(lake, usage):
    table = usage._context
    (one,), (pinned,) = table.schema.document.rollups, pin(lake._site, [table])
    with lake._site.engine.cursor() as cursor:
        reader: Any = Reader(cursor, pinned, None, None, False)

        def spans(start: datetime | None, end: datetime | None, measure: str = "count") -> Any:
            filter = Filter.of(table.schema, None, start, end)
            window = inside(Question(filter, parse(measure, table.schema)), one, reader)
            return window.by_day, window.by_bucket, window.edges(filter)

        day = [DAY + i * 24 * HOUR for i in range(4)]
        half = timedelta(minutes=30)
        assert spans(None, None) == ([(None, None)], [], [])
        assert spans(day[0], day[2]) == ([(day[0], day[2])], [], [])
        assert spans(day[0] + HOUR, None) == ([(day[1], None)], [(day[0] + HOUR, day[1])], [])
        assert spans(day[0] + half, day[2] + HOUR + half) == (
            [(day[1], day[2])],
            [(day[0] + HOUR, day[1]), (day[2], day[2] + HOUR)],
            [(day[0] + half, day[0] + HOUR), (day[2] + HOUR, day[2] + HOUR + half)],
        )
        assert spans(day[0] + HOUR, day[1]) == ([], [(day[0] + HOUR, day[1])], [])


def test_days_may_have_more_digits_than_their_hours(usage):
    usage.totals()
    large = 9 * 10**17
    usage.append(
        [{"id": f"l{i}", "time": DAY + i * HOUR, "who": "large", "size": large} for i in range(2)]
    )
    usage.flush()
    where = {"who": "large"}
    assert usage.totals("sum(size)", where=where)["sum(size)"] == 2 * large
    assert usage.totals("sum(size)", where=where, end=DAY + HOUR)["sum(size)"] == large
    assert [one.wide for one in held(usage)] == [False, True]


def test_texts_keep_their_numbers_when_partials_are_copied(usage, monkeypatch):
    monkeypatch.setattr(partials, "_STALE_ROWS", 0)
    monkeypatch.setattr(partials, "_STALE_LOADS", 2)
    before = dict(usage.facets("who")["who"])
    (cold, _) = held(usage)
    texts = len(cold._codes["who"])
    for round in range(8):
        first = 1000 + 100 * round
        usage.append(rows(random.Random(round), 100, first))
        usage.seal()
        files = usage._context.state().cold[:3]
        for _ in range(3):
            with usage._context.partials.load(SCHEMA.document.rollups[0], (), files):
                pass
    found = dict(usage.facets("who", limit=10_000)["who"])
    assert sum(found.values()) == 750 + 800
    assert all(found[text] >= count for text, count in before.items())
    (now, *_) = held(usage)
    assert now.name != cold.name
    assert len(now._codes["who"]) > texts


@contextmanager
def interrupted(cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    cursor.execute("BEGIN TRANSACTION")
    yield
    cursor.execute("COMMIT")
    raise KeyboardInterrupt


def test_what_was_interrupted_is_not_counted_twice(usage, monkeypatch):
    assert usage.totals()["count"] == 750
    usage.append(rows(random.Random(4), 50, 9000))
    usage.flush()
    with monkeypatch.context() as patch:
        patch.setattr(resident, "_transaction", interrupted)
        with pytest.raises(KeyboardInterrupt):
            usage.totals()
    assert usage.totals()["count"] == 800


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Files whose partials are made of rows, as they are made."""
    names: list[str] = []
    make = PartialFiles._made
    monkeypatch.setattr(
        PartialFiles,
        "_made",
        lambda self, one, file, *rest: names.append(file.name) or make(self, one, file, *rest),
    )
    return names


@pytest.mark.parametrize("left_out", ["nothing", "a partial", "a day's second file"])
def test_a_seal_adds_up_the_partials_of_its_segments(open_lake, made, monkeypatch, left_out):
    several = left_out == "a day's second file"
    monkeypatch.setattr(datafile, "ROW_GROUP_ROWS", 16)
    monkeypatch.setattr(coldfiles, "_BATCH_ROWS", 16)
    with open_lake(settings={"cold_file_bytes": 1 if several else 10**9}) as lake:
        usage = lake.create_table("usage", SCHEMA)
        for part in range(3):
            usage.append(rows(random.Random(part), 300, 300 * part))
            usage.flush()
        files = usage._context.partials.files
        if left_out == "a partial":
            path = files.intact(SCHEMA.document.rollups[0], usage._context.state().hot[1])
            assert path is not None
            path.unlink()
        flushed = len(made)
        usage.seal()
        cold = usage._context.state().cold
        assert (len({file.day for file in cold}) < len(cold)) == several
        kept = [files.intact(SCHEMA.document.rollups[0], file) for file in cold]
        assert None not in kept
        assert (len(made) > flushed) == (left_out != "nothing")
        query = "SELECT who, kind, count(*), sum(size), max(size) FROM usage GROUP BY ALL"
        found = usage.series(
            ["count", "sum(size)", "max(size)"], every="1 day", by=["who", "kind"], source="cold"
        )
        sums: dict[Any, list[Any]] = {}
        for row in found:
            group = sums.setdefault((row["who"], row["kind"]), [0, 0, None])
            group[0] += row["count"]
            group[1] += row["sum(size)"]
            most = [v for v in (group[2], row["max(size)"]) if v is not None]
            group[2] = max(most, default=None)
        known = lake.sql(query).fetchall()
        assert sums == {(who, kind): [n, s or 0, m] for who, kind, n, s, m in known}


def test_a_merge_adds_up_the_partials_of_its_segments(open_lake, made):
    with open_lake(settings={"segments_max": 3}) as lake:
        usage = lake.create_table("usage", SCHEMA)
        for part in range(6):
            usage.append(rows(random.Random(part), 100, 100 * part))
            usage.flush()
        hot = usage._context.state().hot
        assert len(made) == 6
        assert any(segment.first < segment.last for segment in hot)
        assert usage.totals()["count"] == 600
        (total,) = lake.sql("SELECT sum(size) FROM usage").fetchall()
        assert usage.totals()["size"] == total[0]


@pytest.mark.parametrize("key", ["k0", "lakestore_code", "lakestore_code_who", "LAKESTORE_CODE_K"])
@pytest.mark.parametrize(("kind", "made"), [("VARCHAR", str), ("INTEGER", int)])
def test_a_key_may_be_called_as_what_statements_name(open_lake, key, kind, made):
    schema = ls.TableSchema.from_document(
        {
            "event_id": "id",
            "event_time": "time",
            "columns": {
                "id": "VARCHAR not null", "time": "TIMESTAMPTZ not null",
                "who": "VARCHAR", key: kind,
            },
            "rollups": [{"name": "hourly", "by": ["who", key]}],
        }
    )  # fmt: skip
    with open_lake() as lake:
        usage = lake.create_table("usage", schema)
        usage.append(
            {"id": f"e{i}", "time": DAY + i * HOUR, "who": "ab"[i % 2], key: made(i % 3)}
            for i in range(30)
        )
        usage.flush()
        answers = [dict(usage.facets([key, "who"])[column]) for column in (key, "who")]
        assert answers == [
            dict(lake.sql(f"SELECT {column}, count(*) FROM usage GROUP BY 1").fetchall())
            for column in (f'"{key}"', "who")
        ]
        value = made(1)
        found = usage.totals(f"distinct({key})", where={key: value, "who": "a"})
        assert found[f"distinct({key})"] == 1
        points = usage.series(every="1h", by=[key, "who"], where={key: [value, None]})
        assert sum(row["count"] for row in points) == 10


def test_partials_of_many_files_are_loaded_in_one_piece(lake, usage, monkeypatch):
    """DuckDB takes as long for a chunk as for thousands of rows."""
    usage.totals()
    one = SCHEMA.document.rollups[0]
    pieces = []
    narrowed = resident._narrowed
    monkeypatch.setattr(resident, "_narrowed", lambda rows: pieces.append(rows) or narrowed(rows))
    partial = held(usage)[0]
    table = usage._context.partials.files.read(one, usage._context.state().cold[0])
    with lake._site.engine.cursor() as cursor:
        partial.add(cursor, [(f"f{i}", table) for i in range(50)], 1)
    assert {column.num_chunks for rows in pieces for column in rows.columns} == {1}
    assert pieces[0].num_rows == 50 * table.num_rows


def test_a_dropped_table_leaves_nothing_in_memory(lake, usage):
    assert usage.totals()["count"] == 750
    lake.drop_table("usage")
    assert held(usage) == []
    assert usage.totals()["count"] == 700  # its files are there until vacuum
    assert held(usage) == []
    assert usage._context.partials._retired == []
