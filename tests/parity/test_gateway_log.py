"""The log itself: what an append keeps, what is a duplicate, and what comes back of an event."""

from decimal import Decimal

import pytest
from gateway import BASE_MS, TIERS, at, event, ids, put, tokens, usage

import lakestore as ls

each_tier = pytest.mark.parametrize("tier", TIERS)


@each_tier
def test_every_column_of_an_event_comes_back(lake, tier):
    table = usage(lake)
    sent = event()
    filled = {
        "source_seq": 0, "source_event_id": "duckdb-test-event", "created_at": at(),
        "created_date": at().date(), "created_hour": at().replace(minute=0, second=0, tzinfo=None),
        "key_status_at_event": "active", "proxy_key": "proxy:unknown", "session_blocked": False,
        "detail_object_payload_present": False,
    }  # fmt: skip
    put(table, [sent], tier)

    found = table.get("duckdb-test-event")

    stored = table.schema.stored.names
    heavy = [name for name in table.schema.names if name not in stored]
    assert list(found) == [*stored, *heavy]
    assert found.pop("payload_ref") is None  # nothing heavy was sent
    sizes = {f"{name}_bytes": len(sent[name]) if name in sent else None for name in heavy}
    others = {*stored, *heavy} - {"payload_ref"}
    assert found == dict.fromkeys(others) | sent | filled | sizes


@each_tier
def test_an_event_is_listed_found_and_charted(lake, tier):
    table = usage(lake)
    put(table, [event()], tier)

    page = table.page()
    assert (page.total, ids(page), page.next_cursor) == (1, ["duckdb-test-event"], None)
    assert page.rows[0]["routing_diagnostics_json"] == '{"route":"auto"}'
    assert table.get("duckdb-test-event")["credit_usage"] == Decimal("0.5")
    assert table.get("another") is None
    chart = table.series(
        ["input_uncached_tokens", "output_tokens"],
        every="60s", origin=at(), start=at(), end=at(60_000), where={"key_id": "key-duckdb"},
    )  # fmt: skip
    (bucket,) = chart
    assert bucket == {"bucket": at(), "input_uncached_tokens": 10, "output_tokens": 30}


@each_tier
def test_a_chart_has_every_bucket_of_its_window_and_no_other_key(lake, tier):
    table = usage(lake)
    put(
        table,
        [
            event("early", -1),
            event("first", 0),
            event("last", 179_999),
            event("late", 180_000),
            event("other", 0, key_id="key-other"),
        ],
        tier,
    )
    chart = table.series(
        "output_tokens",
        every="1m", origin=at(), start=at(), end=at(180_000), where={"key_id": "key-duckdb"},
    )  # fmt: skip
    points = [(row["bucket"], row["output_tokens"]) for row in chart]
    assert points == [(at(), 30), (at(60_000), 0), (at(120_000), 30)]


@each_tier
def test_a_batch_is_stored_and_the_later_event_is_listed_first(lake, tier):
    table = usage(lake)
    put(table, [event("batch-1"), event("batch-2", 1)], tier)
    assert ids(table.page()) == ["batch-2", "batch-1"]


@each_tier
def test_a_late_event_is_listed_by_its_time(lake, tier):
    """Upstream lists in the order of arrival."""
    table = usage(lake)
    put(table, [event("new", 2), event("older", 1)], tier)
    table.append(event("oldest", 0))
    assert ids(table.page()) == ["new", "older", "oldest"]


@each_tier
def test_known_events_are_not_stored_again(lake, tier):
    """Of a batch and before it; upstream looks in the open segment alone, and has five here."""
    table = usage(lake)
    put(table, [event("one"), event("two", 1)], tier)

    again = [event("one", model="changed"), event("two", 1), event("three", 2), event("three", 2)]
    table.append(again)
    table.append(again)
    table.seal()

    assert ids(table.page()) == ["three", "two", "one"]
    assert table.get("one")["model"] == "claude-sonnet-4-5"
    assert tokens(table.totals()) == [30, 60, 90, 120]
    assert table.counters("key_id")["key-duckdb"]["count"] == 3


def test_an_append_says_how_many_are_new(lake):
    """Upstream says how many ids the call had."""
    table = usage(lake)
    first = table.append([event("a"), event("b"), event("a", model="second of its id")])
    second = table.append([event("b"), event("c")])

    assert (first.rows, first.duplicates) == (2, 1)
    assert (second.rows, second.duplicates) == (1, 1)
    assert table.get("a")["model"] == "claude-sonnet-4-5"


@pytest.mark.parametrize(
    ("given", "latency"),
    [
        ({"latency_ms": 55, "stream_finish_ms": 44}, 55),
        ({"stream_finish_ms": 44, "upstream_headers_ms": 11, "post_headers_body_ms": 22}, 44),
        ({"upstream_headers_ms": 11, "post_headers_body_ms": 22}, 33),
        ({"upstream_headers_ms": 11}, None),
        ({}, None),
    ],
)
def test_a_latency_that_is_not_given_is_made_of_its_parts(lake, given, latency):
    table = usage(lake)
    parts = ("latency_ms", "stream_finish_ms", "upstream_headers_ms", "post_headers_body_ms")
    table.append({k: v for k, v in event().items() if k not in parts} | given)
    assert table.get("duckdb-test-event")["latency_ms"] == latency


@pytest.mark.parametrize(
    ("proxy", "key"),
    [
        ({"config_id": " p1 ", "url": "http://p", "source": "fixed"}, "proxy:id:p1"),
        ({"config_id": "  ", "url": " http://p", "source": "fixed"}, "proxy:url:http://p"),
        ({"source": "none"}, "proxy:source:none"),
        ({"config_id": None, "url": "", "source": " "}, "proxy:unknown"),
        ({}, "proxy:unknown"),
    ],
)
def test_a_proxy_is_known_by_its_id_or_url_or_source(lake, proxy, key):
    table = usage(lake)
    table.append(event(**{f"proxy_{name}_at_event": value for name, value in proxy.items()}))
    assert table.get("duckdb-test-event")["proxy_key"] == key


def test_the_time_may_be_given_in_milliseconds_or_as_a_time(lake):
    table = usage(lake)
    by_time = {k: v for k, v in event("time", 5).items() if k != "created_at_ms"}
    table.append(event("ms", 5))
    table.append(by_time | {"created_at": at(5).isoformat()})

    kept = [
        {name: table.get(id)[name] for name in ("created_at_ms", "created_at", "created_hour")}
        for id in ("ms", "time")
    ]
    assert kept[0] == kept[1]
    assert kept[0]["created_at_ms"] == BASE_MS + 5


@each_tier
def test_an_error_is_told_with_its_event(lake, tier):
    error = {
        "status_code": 524, "error_message": "upstream timed out", "error_class": "cyber_policy",
        "session_blocked": True, "response_image_count": 3,
    }  # fmt: skip
    table = usage(lake)
    put(table, [event(**error)], tier)
    for row in (table.page().rows[0], table.get("duckdb-test-event")):
        assert {name: row[name] for name in error} == error


@pytest.mark.parametrize("credit", ["not-a-number", "1e13", float("nan")])
def test_a_wrong_number_refuses_its_batch_and_no_later_one(lake, credit):
    table = usage(lake)
    with pytest.raises(ls.SchemaError, match=r"row 1: column 'credit_usage'"):
        table.append([event("good"), event("bad", credit_usage=credit)])
    with pytest.raises(ls.SchemaError, match=r"'latency_ms': 2147483648 does not fit INTEGER"):
        table.append(event("bad", latency_ms=2**31))
    assert table.append(event("good", credit_usage="0.25")).rows == 1
    assert table.get("good")["credit_usage"] == Decimal("0.25")


def test_columns_are_taken_by_name_whatever_their_order(lake):
    table = usage(lake)
    whole = event("whole")
    part = {name: whole[name] for name in reversed(whole) if name != "mapped_model"}
    table.append([whole])
    table.append([part | {"event_id": "part"}])
    table.seal()

    changes = {"event_id": "part", "source_event_id": "part", "mapped_model": None}
    assert table.get("part") == table.get("whole") | changes
