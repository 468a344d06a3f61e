"""The commands that ask as a dashboard does: their values, in a terminal and as JSON."""

import importlib
import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from support.commands import fails, ok

import lakestore as ls
from lakestore.cli.filters import at, conditions
from lakestore.cli.values import plain, short, text
from lakestore.errors import InvalidInputError, NotFoundError

SCHEMA = """
event_id = "id"
event_time = "at"
facets = ["who", "status"]
[columns]
id = "BIGINT not null"
at = "TIMESTAMPTZ not null"
who = "VARCHAR"
status = "INTEGER"
ms = "DOUBLE"
cost = "DECIMAL(18,6)"
note = "VARCHAR"
"a=b" = "INTEGER"
[[rollups]]
name = "hourly"
every = "1h"
by = ["who"]
sums = ["cost"]
[metrics.usage.measures]
events = "count"
failed = "count if status >= 500"
cost = "sum(cost)"
[metrics.usage.groups]
people = "who"
[metrics.usage.top]
dearest = "cost"
"""
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path):
    """Ten events: one each half hour, the last three an hour later, in all tiers."""
    rows = [
        {
            "id": n,
            "at": START + timedelta(minutes=30 * n + (60 if n > 6 else 0)),
            "who": ["ann", "bob", None][n % 3],
            "status": 500 if n % 5 == 4 else 200,
            "ms": n / 2,
            "cost": Decimal(n) / 10,
        }
        for n in range(10)
    ]
    with ls.open(tmp_path / "lake", upkeep="manual") as opened:
        table = opened.create_table("t", ls.TableSchema.from_toml(SCHEMA))
        for part, move in ((rows[:4], table.seal), (rows[4:7], table.flush), (rows[7:], len)):
            table.append(part)
            move() if move is not len else None
    return tmp_path / "lake"


@pytest.fixture(autouse=True)
def width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def told(*arguments):
    return json.loads(ok(*arguments, "--json"))


def ids(*arguments):
    return [row["id"] for row in told("events", *arguments)["rows"]]


def test_events_follow_each_other_by_cursor(lake):
    first = told("events", lake, "t", "--limit", "4")
    assert [row["id"] for row in first["rows"]] == [9, 8, 7, 6]
    assert (first["table"], first["total"]) == ("t", 10)
    assert first["totals"] == {"count": 10, "cost": "4.500000"}
    assert list(first["rows"][0]) == ["id", "at", "who", "status", "ms", "cost", "note", "a=b"]
    assert first["rows"][0]["at"] == "2026-01-01T05:30:00+00:00"
    assert (first["rows"][0]["ms"], first["rows"][0]["cost"]) == (4.5, "0.900000")
    assert first["rows"][0]["note"] is None

    rest = told("events", lake, "t", "--cursor", first["next_cursor"])
    assert [row["id"] for row in rest["rows"]] == [5, 4, 3, 2, 1, 0]
    assert rest["next_cursor"] is None
    assert ids(lake, "t", "--oldest", "--offset", "2", "--limit", "2") == [2, 3]
    assert told("events", lake, "t", "-c", "cost,id", "-n", "1")["rows"] == [
        {"cost": "0.900000", "id": 9}
    ]


@pytest.mark.parametrize(
    ("tests", "wanted"),
    [
        (["who=ann"], [9, 6, 3, 0]),
        (["who=null"], [8, 5, 2]),
        (["who!=null", "id>=6"], [9, 7, 6]),
        (["who=ann", "who=bob", "id<3"], [1, 0]),
        (["who~b%"], [7, 4, 1]),
        (["who!~b%"], [9, 6, 3, 0]),
        (["status == 500"], [9, 4]),
        (["id>2", "id<=4", "id!=3"], [4]),
        (["ms<0.75"], [1, 0]),
        (["cost=0.3"], [3]),
        (["at<2026-01-01T01:00"], [1, 0]),
        (['who="ann"', "id=0"], [0]),
    ],
    ids=str,
)
def test_where_tests_columns(lake, tests, wanted):
    options = [part for test in tests for part in ("-w", test)]
    assert ids(lake, "t", *options) == wanted


def test_start_end_and_source_choose(lake):
    assert ids(lake, "t", "--start", "2026-01-01T01:00Z", "--end", "2026-01-01T02:00") == [3, 2]
    assert ids(lake, "t", "--start", "1h ago") == []
    assert ids(lake, "t", "--source", "cold") == [3, 2, 1, 0]
    assert ids(lake, "t", "--source", "hot") == [9, 8, 7, 6, 5, 4]


def test_times_are_iso_or_ago():
    now = datetime(2026, 1, 8, tzinfo=UTC)
    assert at("7d", now) == at("1w ago", now) == START
    assert at("90 s", now) == now - timedelta(minutes=1.5)
    assert at("now", now) == now
    assert at("2026-01-01T01:00+01:00", now) == START
    for wrong in ("yesterday", "1 month", "-1h", "", "999999999w"):
        with pytest.raises(InvalidInputError, match="is no time"):
            at(wrong, now)


def test_tests_are_values_of_their_columns():
    schema = ls.TableSchema.from_toml(SCHEMA)
    assert conditions(schema, ["a=b=3", "id>1", "id<3"]) == {
        "a=b": (("in", [3]),),
        "id": ((">", 1), ("<", 3)),
    }
    assert conditions(schema, ['who="null"', "who=null"]) == {"who": (("in", ["null", None]),)}
    with pytest.raises(NotFoundError, match="no column 'nope'"):
        conditions(schema, ["nope=3"])
    with pytest.raises(InvalidInputError, match="'x' is no value"):
        conditions(schema, ["status=x"])


def test_events_in_a_terminal_fit_it(lake, monkeypatch):
    lines = ok("events", lake, "t", "-n", "2").splitlines()
    assert max(map(len, lines)) <= 80 or lines[-1].startswith("the next page: --cursor ")
    assert lines[1].split() == ["at", "id", "who", "status", "ms", "cost"]
    assert lines[3].split() == ["2026-01-01", "05:30:00Z", "9", "ann", "500", "4.5", "0.900000"]
    assert [line.split() for line in lines[-3:-1]] == [["count", "10"], ["cost", "4.50"]]
    monkeypatch.setenv("COLUMNS", "36")
    lines = ok("events", lake, "t", "-n", "1").splitlines()
    assert lines[1].split() == ["at", "id", "who"]
    assert lines[5].startswith("3 more columns have values")


def test_event_shows_one_without_nulls(lake):
    lines = ok("event", lake, "t", 8).splitlines()
    assert lines == [
        "id      8",
        "at      2026-01-01 05:00:00Z",
        "status  200",
        "ms      4.0",
        "cost    0.800000",
    ]
    assert told("event", lake, "t", 8)["note"] is None
    assert fails("event", lake, "t", 10) == "error: no event '10' in table 't'\n"
    assert "is BIGINT: 'x' is no value of it" in fails("event", lake, "t", "x")


def test_totals(lake):
    measures = ["count", "avg(ms)", "max(who)", "sum(cost) if status = 500", "min(note)"]
    assert told("totals", lake, "t", *measures) == {
        "table": "t",
        "totals": dict(zip(measures, [10, 2.25, "bob", "1.300000", None], strict=True)),
    }
    assert ok("totals", lake, "t", "-w", "who=bob") == "count     3\ncost   1.20\n"


def test_facets_leave_out_their_own_test(lake):
    found = told("facets", lake, "t", "-w", "who=ann")["facets"]
    assert found["who"] == [
        {"value": "ann", "count": 4},
        {"value": "bob", "count": 3},
        {"value": None, "count": 3},
    ]
    assert found["status"] == [{"value": 200, "count": 3}, {"value": 500, "count": 1}]
    lines = ok("facets", lake, "t", "who", "-n", "2").splitlines()
    assert lines[0] == "who, events"
    assert [line.split()[:2] for line in lines[1:3]] == [["ann", "4"], ["bob", "3"]]
    assert lines[3] == "  … and more values: --limit 4"


def test_top_ranks_values_over_all_time(lake):
    with ls.open(lake, upkeep="manual") as opened:  # in buckets, these would be far apart
        opened["t"].append({"id": 90, "at": "1700-01-01", "who": "bob", "cost": 1, "ms": 8})
        opened["t"].append({"id": 91, "at": "2261-12-31", "who": "bob", "cost": 1})
        opened["t"].append({"id": 92, "at": "2000-01-01", "who": "eve"})
    found = told("top", lake, "t", "who", "sum(cost)", "-n", "2")
    assert found["rows"] == [
        {"value": "bob", "measure": "3.200000"},
        {"value": "ann", "measure": "1.800000"},
    ]
    assert (found["column"], found["measure"], found["values"]) == ("who", "sum(cost)", 4)
    ranked = told("top", lake, "t", "who", "avg(ms)")["rows"]
    assert [(row["value"], row["measure"]) for row in ranked] == [
        ("bob", 3.5), (None, 2.5), ("ann", 2.25), ("eve", None),
    ]  # fmt: skip
    lines = ok("top", lake, "t", "who", "--start", "2026-01-01", "--end", "2027-01-01").splitlines()
    assert lines[0] == "who, count: 3 of 3 values"
    bars = [line.count("█") for line in lines[1:]]
    assert bars[0] > bars[1] == bars[2] > 0
    assert len(lines[1]) == 80  # the longest bar fills the terminal


def test_metrics_of_the_schema(lake, monkeypatch):
    found = told("metrics", lake, "t", "usage", "--top", "1")
    assert found["summary"] == {"events": 10, "failed": 2, "cost": "4.500000"}
    assert {row["group"]: row["failed"] for row in found["groups"]["people"]} == {
        "ann": 1, "bob": 1, None: 0,
    }  # fmt: skip
    assert found["top"] == {
        "dearest": {"people": [{"group": "ann", "events": 4, "failed": 1, "cost": "1.800000"}]}
    }
    said = ok("metrics", lake, "t")
    assert "people, by dearest" in said
    assert [line.split() for line in said.splitlines() if "ann" in line] == [
        ["ann", "1.80", "4", "1"]  # what ranks them comes first
    ]
    monkeypatch.setenv("COLUMNS", "24")
    said = ok("metrics", lake, "t")
    assert [line.split() for line in said.splitlines() if "ann" in line] == [["ann", "1.80", "4"]]
    assert said.endswith("1 more measures: --json has all\n")


def test_chart_shows_every_bucket(lake):
    found = told("chart", lake, "t", "count", "avg(ms)", "--every", "1h")
    assert (found["every"], found["by"], found["measures"]) == ("1h", [], ["count", "avg(ms)"])
    assert [p["count"] for p in found["points"]] == [2, 2, 2, 1, 1, 2]
    assert found["points"][0]["bucket"] == "2026-01-01T00:00:00+00:00"
    lines = ok("chart", lake, "t", "--end", "2026-01-02T02:00", "--every", "6h").splitlines()
    assert lines == [
        "count by 6h, UTC",
        f"2026-01-01 00:00  10 {'█' * 59}",
        "           06:00   0",
        "           12:00   0",
        "           18:00   0",
        "2026-01-02 00:00   0",
    ]
    assert ok("chart", lake, "t", "-w", "who=nobody") == "no events\n"


def test_chart_puts_groups_side_by_side_on_one_scale(lake):
    lines = ok("chart", lake, "t", "max(ms)", "--by", "who", "--every", "3h").splitlines()
    assert lines[1].split() == ["∅", "ann", "bob"]
    assert [word for word in lines[2].split() if "█" not in word] == [
        "2026-01-01", "00:00", "2.50", "1.50", "2",
    ]  # fmt: skip
    bars = [word.count("█") for word in lines[3].split() if "█" in word]  # of 4, 4.5 and 3.5
    assert bars[1] > bars[0] > bars[2] > lines[2].split()[3].count("█")
    assert max(map(len, lines)) <= 80
    few = ok("chart", lake, "t", "--by", "who", "--groups", "1").splitlines()
    assert few[1].split() == ["ann"]  # four events, and three of the others
    assert few[-1] == "2 more groups: --groups 3, or a filter"


def test_chart_has_days_of_a_zone(lake):
    lines = ok("chart", lake, "t", "--every", "1d", "--tz", "America/New_York").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["2025-12-31", "8"], ["2026-01-01", "2"]]
    assert "nowhere" in fails("chart", lake, "t", "--tz", "nowhere")


def test_chart_draws_pictures(lake, tmp_path):
    png, page = tmp_path / "a.png", tmp_path / "a.html"
    said = ok("chart", lake, "t", "count", "avg(ms)", "--by", "who", "--png", png, "--html", page)
    assert said == f"wrote {png}\nwrote {page}\n"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 10_000
    assert "avg(ms)" in page.read_text()
    assert 'src="https://' not in page.read_text()  # it is whole
    assert "cannot write" in fails("chart", lake, "t", "--png", tmp_path / "no" / "a.png")


@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_chart_names_what_is_not_installed(lake, tmp_path, missing, monkeypatch):
    importlib.import_module("altair")  # or its first import would fail for another reason
    monkeypatch.setitem(sys.modules, missing, None)
    assert "pip install 'lakestore[plot]'" in fails("chart", lake, "t", "--png", tmp_path / "a.png")
    assert list(tmp_path.glob("*.png")) == []


def test_a_plot_tells_all_and_no_more_than_can_be_seen(lake):
    with ls.open(lake, mode="r") as opened:
        table = opened["t"]
        spec = table.series(["count", "avg(ms)"], every="1h", by="who").plot().to_dict()
        assert [panel["title"]["text"] for panel in spec["concat"]] == ["count", "avg(ms)"]
        domain = spec["concat"][0]["encoding"]["color"]["scale"]["domain"]
        assert sorted(domain) == ["ann", "bob", "∅"]
        points = [p for p in spec["concat"][0]["data"]["values"] if p["group"] == "ann"]
        assert [p["value"] for p in points] == [1, 1, 0, 1, 0, 1, 1]
        assert points[-1]["time"] == "2026-01-01T06:00:00+00:00"  # the last is as wide as others

        one = table.facets("status").plot().to_dict()
        assert one["data"]["values"] == [
            {"name": "200", "value": 8, "told": "8"},
            {"name": "500", "value": 2, "told": "2"},
        ]
        many = table.facets("id").plot().to_dict()
        assert many["title"]["text"] == "id"
        assert table.metrics("usage").plot("cost").to_dict()["data"]["values"][0] == {
            "name": "ann", "value": 1.8, "told": "1.80",
        }  # fmt: skip
    with ls.open(lake, upkeep="manual") as opened:
        opened["t"].append([{"id": n, "at": START, "who": f"w{n}"} for n in range(20, 40)])
        spec = opened["t"].series("count", every="1d", by="who").plot().to_dict()
        assert spec["title"]["text"] == "count (20 of 23 groups)"
        assert {"ann", "bob", "∅"} <= set(spec["encoding"]["color"]["scale"]["domain"])
        assert opened["t"].facets("who").plot().to_dict()["title"]["text"] == "who (20 of 23)"


@pytest.mark.parametrize(
    "arguments",
    [
        ["events", "-w", "who"],
        ["events", "-w", "=3"],
        ["events", "--start", "yesterday"],
        ["events", "--limit", "-1"],
        ["events", "--limit", "10001"],
        ["totals", "--source", "warm"],
        ["facets", "-n", "0"],
        ["top"],
        ["event"],
        ["chart", "--groups", "0"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(lake, arguments):
    verb, *rest = arguments
    fails(verb, lake, "t", *rest, code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["events", "-w", "nope=1"], "no column 'nope'"),
        (["events", "-w", "status=x"], "'x' is no value of it"),
        (["events", "-w", "status~5%"], "~ and !~ are for text"),
        (["events", "-w", "status>null"], "nothing is > None"),
        (["events", "-c", "nope"], "no column 'nope'"),
        (["events", "--cursor", "x"], "cursor"),
        (["events", "--cursor", "x", "--offset", "1"], "not at both"),
        (["totals", "sum(who)"], "no number"),
        (["top", "nope"], "no column 'nope'"),
        (["metrics", "nope"], "declares usage"),
        (["chart", "--every", "soon"], "every='soon'"),
        (["facets", "nope"], "no column 'nope'"),
    ],
    ids=str,
)
def test_wrong_calls_say_why(lake, arguments, said):
    verb, *rest = arguments
    error = fails(verb, lake, "t", *rest)
    assert error.startswith("error: ")
    assert said in error
    assert "no table 'x'" in fails(verb, lake, "x", *(["who"] if verb == "top" else []))


def test_values_are_safe_to_print_and_to_parse(lake):
    with ls.open(lake, upkeep="manual") as opened:
        opened["t"].append({"id": 50, "at": START, "who": "\x1b[31m[b]\n", "ms": float("nan")})
    assert "who  \\x1b[31m[b]\\n" in ok("event", lake, "t", 50)
    assert "\\x1b[31m[b]\\n" in ok("facets", lake, "t", "who")
    assert "\x1b" not in ok("chart", lake, "t", "--by", "who")
    assert told("event", lake, "t", 50)["ms"] == "nan"
    assert plain({"b": b"\0", "l": [Decimal("1.50")], "t": START}) == {
        "b": "AA==", "l": ["1.50"], "t": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    assert text({"a": [1, None]}) == '{"a": [1, null]}'
    assert [short(n) for n in (0, 12_345, 1_234_567, 540_631_004_112, Decimal("4234.66"))] == [
        "0", "12,345", "1.2M", "540.6G", "4,235",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["events", "event", "totals", "chart", "facets", "top", "metrics"])
def test_help_has_examples(verb):
    assert f"\n  lakestore {verb} lake usage" in ok(verb, "--help")


def test_a_table_with_payloads_is_shown_as_it_is_stored(tmp_path):
    root = tmp_path / "heavy"
    with ls.open(root, upkeep="manual") as lake:
        table = lake.create_table("usage", "llm_usage")
        table.append(
            {
                "event_id": "x1", "created_at": START, "provider_type": "p", "endpoint": "/e",
                "protocol_family": "f", "key_id": "k", "key_name": "n", "status_code": 200,
                "input_uncached_tokens": 1, "input_cached_tokens": 2, "output_tokens": 3,
                "billable_tokens": 4, "response_body": "the answer",
            }
        )  # fmt: skip
        table.flush()
    assert "2026-01-01 00:00:00Z" in ok("events", root, "usage")
    (row,) = json.loads(ok("events", root, "usage", "--json"))["rows"]
    assert (row["event_id"], row["response_body_bytes"]) == ("x1", 10)
    assert "the answer" in ok("event", root, "usage", "x1")
