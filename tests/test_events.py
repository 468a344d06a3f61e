"""The events API: what each answer promises, at its borders."""

import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

import lakestore as ls

START = datetime(2026, 3, 1, tzinfo=UTC)
DOCUMENT = """
event_id = "id"
event_time = "at"
facets = ["key", "status"]
[columns]
id = "VARCHAR not null"
at = "TIMESTAMPTZ not null"
key = "VARCHAR"
status = "INTEGER"
tokens = "BIGINT"
cost = "DECIMAL(18,6)"
ms = "INTEGER"
tags = "VARCHAR[]"
[[rollups]]
name = "hourly"
every = "1h"
by = ["key", "status"]
sums = ["tokens", "cost", "ms"]
max = ["ms"]
histograms = ["ms"]
[metrics.gateway.measures]
requests = "count"
failed = "count if status >= 500"
slow = "avg(ms)"
[metrics.gateway.groups]
who = "key"
[metrics.gateway.top]
failing = "failed"
quickest = "slow asc"
"""
SCHEMA = ls.TableSchema.from_toml(DOCUMENT)
UUIDS = [f"7b0c1c5e-0000-4000-8000-00000000000{i}" for i in range(3)]
DECIMALS = [Decimal("1.50"), Decimal(-3), Decimal(0)]


def usage(start: int, stop: int, *, step: timedelta = timedelta(minutes=10)) -> list[dict]:
    return [
        {
            "id": f"e{i:05d}",
            "at": START + i * step,
            "key": f"k{i % 3}" if i % 5 else None,
            "status": 500 if i % 10 == 1 else 200,
            "tokens": i,
            "cost": Decimal(i) / 8,
            "ms": i % 100 + 10 * (i % 3) if i % 4 else None,
        }
        for i in range(start, stop)
    ]


@pytest.fixture
def table(lake) -> ls.Table:
    return lake.create_table("usage", SCHEMA)


@pytest.fixture
def days(table) -> ls.Table:
    """Ten days, 144 events each: seven sealed one by one, two flushed, one buffered."""
    for day in range(10):
        table.append(usage(day * 144, (day + 1) * 144))
        if day < 7:
            table.seal()
        elif day < 9:
            table.flush()
    return table


def cold_files(root) -> list:
    return sorted((root / "tables/usage/data").rglob("*.parquet"))


def walk(table: ls.Table, between=lambda: None, **asked) -> list[str]:
    """The ids of all pages, with something done between them."""
    seen, cursor = [], None
    while True:
        page = table.page(cursor=cursor, **asked)
        seen += [row["id"] for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            return seen
        between()


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_pages_show_each_event_once_while_data_comes_and_moves(table, order):
    table.append(usage(0, 200))
    news = iter(range(1_000, 100_000, 10))

    def live() -> None:
        first = next(news)
        at = START - timedelta(days=1) if order == "oldest" else START + timedelta(days=90)
        table.append([row | {"at": at} for row in usage(first, first + 3)])
        table.seal() if first % 20 else table.flush()

    seen = walk(table, live, limit=17, order=order)
    wanted = [f"e{i:05d}" for i in range(200)]
    assert seen == (wanted if order == "oldest" else wanted[::-1])


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_a_page_reads_on_while_a_file_may_reach_it(table, order):
    """Twelve files of one day that lie across each other, of which a page opens four first."""
    for start in range(12):
        table.append(usage(0, 144)[start::12])
        table.seal()
    wanted = [f"e{i:05d}" for i in range(144)]
    assert walk(table, limit=10, order=order) == (wanted if order == "oldest" else wanted[::-1])


def test_pages_go_through_ties_and_equal_ids(lake):
    twice = ls.TableSchema.from_toml('dedup = "none"\n' + DOCUMENT)
    table = lake.create_table("usage", twice)
    rows = [row | {"at": START} for row in usage(0, 7)] + [
        row | {"at": START} for row in usage(3, 4)
    ] * 4
    table.append(rows)
    table.seal()
    table.append(usage(3, 4))
    for limit in (1, 2, 3, 5):
        seen = walk(table, limit=limit)
        assert sorted(seen) == sorted([row["id"] for row in rows] + ["e00003"])


def test_a_late_event_before_the_cursor_is_not_shown_and_one_after_it_is(table):
    table.append(usage(0, 20))
    page = table.page(limit=5)
    assert [row["id"] for row in page.rows] == [f"e{i:05d}" for i in (19, 18, 17, 16, 15)]
    table.append([usage(90, 91)[0] | {"at": START + timedelta(minutes=185)}])  # newer: passed
    table.append([usage(91, 92)[0] | {"at": START + timedelta(minutes=145)}])  # between 14 and 15
    page = table.page(limit=2, cursor=page.next_cursor)
    assert [row["id"] for row in page.rows] == ["e00091", "e00014"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"limit": -1}, "limit -1"),
        ({"limit": 10_001}, "limit 10001"),
        ({"offset": -1}, "offset -1"),
        ({"order": "random"}, "order 'random'"),
        ({"cursor": "nonsense"}, "not one that a page"),
        ({"cursor": "bm9uc2Vuc2U"}, "not one that a page"),
        ({"source": "warm"}, "source 'warm'"),
        ({"where": {"zz": 1}}, "no column 'zz'"),
        ({"where": {"key": ("~", 1)}}, "operator '~'"),
        ({"where": {"key": ()}}, "not (operator, value)"),
        ({"where": {"key": ("<", None)}}, "nothing is < None"),
        ({"where": {"key": ("in", "abc")}}, "takes a list"),
        ({"start": "yesterday"}, "not an ISO time"),
        ({"start": 5}, "no time"),
    ],
)
def test_wrong_questions_say_what_is_wrong(days, asked, said):
    with pytest.raises(ls.LakestoreError) as error:
        days.page(**asked)
    assert said in str(error.value)


def test_a_cursor_is_of_one_question(days):
    cursor = days.page({"key": "k1"}, limit=3).next_cursor
    days.page({"key": "k1"}, limit=9, cursor=cursor)
    for other in ({"where": {"key": "k2"}}, {"order": "oldest"}, {"start": START}):
        with pytest.raises(ls.InvalidInputError, match="another filter or order"):
            days.page(**({"where": {"key": "k1"}} | other), cursor=cursor)
    with pytest.raises(ls.InvalidInputError, match="not at both"):
        days.page({"key": "k1"}, cursor=cursor, offset=1)


def test_a_page_of_nothing_is_totals_alone(days):
    page = days.page({"status": 500}, limit=0)
    assert (page.rows, page.next_cursor, page.total) == ([], None, 144)
    assert page.totals["tokens"] == sum(i for i in range(1_440) if i % 10 == 1)
    assert days.page({"status": 7}).rows == []


def test_what_rollups_answer_needs_no_file(days, root):
    wanted = [
        days.totals(["count", "tokens", "p95(ms)"]).measures,
        days.series("tokens", every="1 day", by="key").to_arrow(),
        days.facets().counts,
        days.metrics().top,
    ]
    for path in cold_files(root):
        path.unlink()
    assert days.totals(["count", "tokens", "p95(ms)"]).measures == wanted[0]
    assert days.series("tokens", every="1 day", by="key").to_arrow() == wanted[1]
    assert days.facets().counts == wanted[2]
    assert days.metrics().top == wanted[3]
    assert days.page({"status": 500}, limit=0, end=START + timedelta(days=3)).total == 44
    with pytest.raises(ls.CorruptionError):
        days.totals("count", start=START + timedelta(minutes=25))


def test_a_partial_that_is_gone_changes_no_answer(days, root, open_lake):
    wanted = days.totals().measures
    shutil.rmtree(root / "tables/usage/_rollups")
    with ls.open(root, mode="r") as again:
        assert again["usage"].totals().measures == wanted


def test_a_lookup_opens_the_one_file_that_has_the_event(days, root):
    kept = cold_files(root)[3]
    for path in cold_files(root):
        if path != kept:
            path.unlink()
    assert days.get("e00500") == usage(500, 501)[0] | {"tags": None}  # the fourth day
    assert days.get("nobody") is None
    assert days.get_many(["e01439", "e00500", "x", "e01200"]) == [
        row and row | {"tags": None}
        for row in (usage(1439, 1440)[0], usage(500, 501)[0], None, usage(1200, 1201)[0])
    ]
    with pytest.raises(ls.CorruptionError):
        days.get("e00001")


def test_a_lookup_sees_other_writers_and_readers_see_it(days, root):
    with ls.open(root, upkeep="manual") as other:
        other["usage"].append(usage(5_000, 5_001))
        assert days.get("e05000")["tokens"] == 5_000
    with ls.open(root, mode="r") as reader:
        assert reader["usage"].get("e05000")["tokens"] == 5_000


def test_of_two_days_events_of_one_id_the_newest_is_found(table):
    row = usage(0, 1)[0]
    table.append([row])
    table.seal()
    table.append([row | {"at": START + timedelta(days=2), "tokens": 9}])
    assert table.get("e00000")["tokens"] == 9
    table.seal()
    assert table.get("e00000")["tokens"] == 9
    assert table.get_many([]) == []
    for wrong in (5, None, b"\xff", ["e"]):
        with pytest.raises(ls.InvalidInputError):
            table.get(wrong)


@pytest.mark.parametrize(
    ("id_type", "ids"),
    [("BIGINT", [1, -5, 2**62]), ("UUID", UUIDS),
     ("BLOB", [b"a", b"\0\xff", b""]), ("DECIMAL(20,2)", DECIMALS)],
)  # fmt: skip
@pytest.mark.parametrize("time_type", ["TIMESTAMP", "TIMESTAMPTZ"])
def test_ids_and_times_of_other_types(lake, id_type, ids, time_type):
    table = lake.create_table(
        "things",
        ls.TableSchema.from_toml(
            f'event_id = "id"\nevent_time = "at"\n[columns]\nid = "{id_type} not null"\n'
            f'at = "{time_type} not null"\nn = "INTEGER"\n'
            '[[rollups]]\nname = "hourly"\nsums = ["n"]'
        ),
    )
    for n, id in enumerate(ids):
        table.append([{"id": id, "at": START + timedelta(hours=n), "n": n}])
        table.seal() if n == 1 else table.flush()
    assert [row["n"] for row in table.get_many(ids)] == [0, 1, 2]
    seen, cursor = [], None
    for _ in ids:
        page = table.page(limit=1, cursor=cursor)
        seen.append(page.rows[0]["n"])
        cursor = page.next_cursor
    assert (seen, cursor) == ([2, 1, 0], None)
    later = START + timedelta(hours=1)
    assert table.totals(start=later)["n"] == 3
    assert table.series("n", every="1h").to_arrow()["n"].to_pylist() == [0, 1, 2]
    assert table.page(end=later).total == 1


def test_series_fill_what_is_empty(days):
    found = days.series(
        ["count", "avg(ms)"], every="6h", start=START - timedelta(days=1), end=START
    )
    assert [tuple(row.values()) for row in found] == [
        (START - timedelta(hours=h), 0, None) for h in (24, 18, 12, 6)
    ]
    found = days.series("count", every="1 day", by="status", end=START + timedelta(days=11))
    rows = found.to_arrow().to_pylist()
    assert {row["status"] for row in rows} == {200, 500}
    assert [row["count"] for row in rows][10] == 0
    assert sum(row["count"] for row in rows) == 1_440
    assert len(days.series("count", start=START, end=START)) == 0


def test_series_follow_the_calendar_of_a_zone(table):
    berlin = datetime(2026, 3, 28, 12, tzinfo=UTC)
    table.append(
        [row | {"at": berlin + timedelta(minutes=10 * i)} for i, row in enumerate(usage(0, 288))]
    )
    found = table.series("count", every="1 day", tz="Europe/Berlin").to_arrow().to_pylist()
    # Midnight is at 23:00 UTC before the clocks change, and at 22:00 after: 23 hours apart.
    assert [(row["bucket"].isoformat()[:16], row["count"]) for row in found] == [
        ("2026-03-27T23:00", 66),
        ("2026-03-28T23:00", 138),
        ("2026-03-29T22:00", 84),
    ]
    months = table.series("count", every="1 month", tz="Europe/Berlin").to_arrow().to_pylist()
    assert [row["bucket"].isoformat()[:16] for row in months] == ["2026-02-28T23:00"]
    origin = berlin + timedelta(minutes=5)
    equal = table.series("count", every="1 day", origin=origin, start=origin).to_arrow().to_pylist()
    assert [(row["bucket"], row["count"]) for row in equal] == [
        (origin, 144),
        (origin + timedelta(days=1), 143),
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"every": "soon"}, "every='soon'"),
        ({"every": "-1 hour"}, "not a width"),
        ({"every": "1 month 3 days"}, "not a width"),
        ({"every": "1 second"}, "more than 10,000 buckets"),
        ({"tz": "Mars/Base"}, "Mars/Base"),
        ({"every": "1 month", "origin": START}, "equally long"),
        ({"by": "tags"}, "nested"),
        ({"by": ["key", "key"]}, "named twice"),
        ({"measures": "median(ms)"}, "not a measure"),
        ({"measures": "sum(key)"}, "no number"),
        ({"measures": "sum(zz)"}, "no column 'zz'"),
        ({"measures": []}, "must be some"),
        ({"measures": ["count", "count"]}, "named once"),
        ({"measures": "p101(ms)"}, "not a measure"),
        ({"measures": "count if status = (select 1)"}, "not allowed"),
        ({"measures": "count if read_text('/etc/passwd') = ''"}, "not allowed"),
        ({"measures": "count if zz = 1"}, "no column 'zz'"),
        ({"measures": "count if status ="}, "not a condition"),
    ],
)
def test_wrong_series_say_what_is_wrong(days, asked, said):
    with pytest.raises(ls.LakestoreError) as error:
        days.series(**asked)
    assert said in str(error.value)


def test_facets_leave_their_own_test_out(days):
    found = days.facets(where={"key": "k1", "status": 500})
    assert {value for value, _ in found["key"]} == {"k0", "k1", "k2"}
    assert {value for value, _ in found["status"]} == {200, 500}
    everything = days.facets()
    assert everything.values_of("status") == [200, 500]
    assert everything["key"][0] == ("k0", 384)
    assert (None, 288) in everything["key"]
    assert days.facets("key", limit=1).counts == {"key": [("k0", 384)]}


def test_metrics_rank_by_what_is_declared(days):
    found = days.metrics("gateway", top=2)
    assert found.summary["requests"] == 1_440
    assert [row["group"] for row in found.top["failing"]["who"]] == ["k0", "k1"]
    slow = {row["group"]: row["slow"] for row in found.groups["who"].to_pylist()}
    quickest = [row["group"] for row in found.top["quickest"]["who"]]
    wanted = sorted(slow, key=lambda who: (slow[who], who is None, who))
    assert quickest == wanted[:2]
    with pytest.raises(ls.NotFoundError, match="the schema declares gateway"):
        days.metrics("weather")


def test_metrics_without_a_declaration_are_those_of_facets(lake):
    plain = DOCUMENT[: DOCUMENT.index("[metrics")]
    table = lake.create_table("usage", ls.TableSchema.from_toml(plain))
    table.append(usage(0, 30))
    found = table.metrics()
    assert set(found.groups) == {"key", "status"}
    assert found.summary["count"] == 30
    assert found.top["count"]["status"][0]["group"] == 200


def test_counters_are_exact_at_every_moment(table, root):
    wanted: dict = {}
    kept = []
    for turn in range(40):
        rows = usage(turn * 25, turn * 25 + 25)
        table.append(rows)
        for row in rows:
            count, tokens = wanted.get(row["key"], (0, 0))
            wanted[row["key"]] = (count + 1, tokens + row["tokens"])
        found = table.counters("key", ["count", "tokens"])
        assert {key: tuple(found[key].values()) for key in found} == wanted
        kept.append((found, dict(wanted)))
        if turn % 7 == 3:
            table.flush()
        if turn % 13 == 5:
            table.seal()
    with ls.open(root, upkeep="manual") as other:
        other["usage"].append(usage(9_000, 9_600))
        assert (
            table.counters("status")[200]["count"] + table.counters("status")[500]["count"] == 1_600
        )
    for found, then in kept:  # an answer does not change after it was given
        assert {key: tuple(found[key].values()) for key in found} == then
    assert found["nobody"] == {"count": 0, "tokens": 0}
    assert "nobody" not in found
    assert len(found) == 4
    with pytest.raises(ls.InvalidInputError, match="count and add up"):
        table.counters("key", "avg(ms)")


def test_counters_of_many_rows_are_added_up_by_duckdb(table):
    table.append(usage(0, 2_000))
    found = table.counters("key", ["count", "count(ms)", "cost"])
    assert found["k1"] == {
        "count": sum(i % 3 == 1 and i % 5 > 0 for i in range(2_000)),
        "count(ms)": sum(i % 3 == 1 and i % 5 > 0 and i % 4 > 0 for i in range(2_000)),
        "cost": sum(Decimal(i) / 8 for i in range(2_000) if i % 3 == 1 and i % 5),
    }


def test_sums_beyond_64_bits_stay_exact(table):
    table.append([row | {"tokens": 2**62} for row in usage(0, 40)])
    assert table.totals("tokens")["tokens"] == 40 * 2**62
    table.seal()
    assert table.totals("tokens")["tokens"] == 40 * 2**62
    assert table.counters("status", "tokens")[200]["tokens"] == 36 * 2**62


def test_names_that_want_out_of_their_quotes(lake):
    odd = "a \"b\" $w0 'c' if x"
    table = lake.create_table(
        "t",
        pa.schema(
            [
                ("at", pa.timestamp("us", "UTC")),
                (odd, pa.int64()),
                ("k0", pa.string()),
                ("m0", pa.int64()),
            ]
        ),
        event_time="at",
    )
    table.append(
        [{"at": START, odd: 1, "k0": "x", "m0": 3}, {"at": START, odd: 2, "k0": "y", "m0": 4}]
    )
    assert table.totals([odd, f"max({odd})", "p50(m0)"])[odd] == 3
    assert table.series(["m0", "p50(m0)"], by=["k0"]).to_arrow()["m0"].to_pylist() == [3, 4]
    assert dict(table.facets([odd, "k0"])[odd]) == {1: 1, 2: 1}
    assert [row["m0"] for row in table.page({odd: 2}).rows] == [4]
    assert table.page({"k0": "x' OR '1'='1"}).total == 0


def test_an_empty_table_answers(table):
    assert table.page().rows == []
    assert table.totals().measures == {"count": 0, "tokens": 0, "cost": 0, "ms": 0}
    assert len(table.series()) == 0
    assert [
        row["count"]
        for row in table.series(every="1h", start=START, end=START + timedelta(hours=3))
    ] == [0, 0, 0]
    assert table.facets().counts == {"key": [], "status": []}
    assert table.metrics().summary.measures == {"requests": 0, "failed": 0, "slow": None}
    assert len(table.counters("key")) == 0
    assert table.get("x") is None


def test_answers_are_taken_by_other_tools(days):
    answers = [
        days.page(limit=3),
        days.totals(),
        days.series("count", every="1 day"),
        days.facets(),
        days.metrics(),
        days.counters("key"),
    ]
    heights = [3, 1, 10, 6, 1]
    assert [answer.to_polars().height for answer in answers[:-1]] == heights
    assert [pa.table(answer).num_rows for answer in answers[:-1]] == heights
    assert all("<table>" in answer._repr_html_() for answer in answers[:-1])
    assert answers[-1].to_arrow().num_rows == 4


def test_plots_are_charts(days):
    series = days.series(["count", "tokens"], every="1 day", by="status")
    panels = series.plot().to_dict()["concat"]
    groups = len({row["status"] for row in series})
    assert [panel["title"]["text"] for panel in panels] == ["count", "tokens"]
    for panel in panels:  # a point a bucket, and one where each line ends
        assert len(panel["data"]["values"]) == len(series) + groups
    menus = days.facets().plot().to_dict()["concat"]
    assert [menu["title"]["text"] for menu in menus] == list(days.facets())
    assert menus[0]["layer"][0]["encoding"]["y"]["field"] == "name"
    assert days.metrics().plot("slow").to_dict()["data"]["values"]


def test_a_store_answers_as_a_folder_does(store, prefix, tmp_path, days):
    where = {"root": prefix, "storage_options": store.options}
    with ls.open(**where, local=tmp_path / "site", upkeep="manual") as lake:
        table = lake.create_table("usage", SCHEMA, cold="delta")
        for day in range(10):
            table.append(usage(day * 144, (day + 1) * 144))
            table.seal() if day < 7 else table.flush()
        assert table.totals().measures == days.totals().measures
        assert table.get("e00500") == days.get("e00500")
        assert table.page({"key": "k1"}, limit=9).rows == days.page({"key": "k1"}, limit=9).rows
        assert table.facets().counts == days.facets().counts
    with ls.open(**where, local=tmp_path / "other", mode="r") as lake:
        assert lake["usage"].get("e00500") == days.get("e00500")
        assert lake["usage"].totals(source="cold")["count"] == 7 * 144


def test_two_columns_of_a_series_have_two_names(days):
    for asked in ({"measures": {"key": "count"}, "by": "key"}, {"measures": {"bucket": "count"}}):
        with pytest.raises(ls.InvalidInputError, match="one name"):
            days.series(**asked)


@pytest.mark.parametrize("text", ["$lakestore_w7", "$lakestore_w0", "it's $lakestore_w7"])
def test_a_text_may_look_like_a_parameter(lake, table, text):
    table.append({"id": f"{i}", "at": START, "key": [text, "b"][i % 2]} for i in range(10))
    literal = "'" + text.replace("'", "''") + "'"
    measure = f"count if key = {literal} or key = 'b' -- it's a comment"
    for flush in (False, True):
        if flush:
            table.flush()
        assert table.totals({"n": measure}) == {"n": 10}
        assert table.totals({"n": measure}, where={"key": "b", "status": None}) == {"n": 5}


def test_a_column_may_be_called_as_a_parameter(lake):
    columns = {"id": "VARCHAR not null", "at": "TIMESTAMPTZ not null", "$lakestore_w0": "INTEGER"}
    document = {"event_id": "id", "event_time": "at", "columns": columns}
    table = lake.create_table("odd", ls.TableSchema.from_document(document))
    table.append({"id": f"{i}", "at": START, "$lakestore_w0": i % 2} for i in range(10))
    assert table.totals("$lakestore_w0") == {"$lakestore_w0": 5}
    assert table.totals(where={"$lakestore_w0": 1}) == {"count": 5}
