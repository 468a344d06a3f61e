"""Metrics, the ranking of latencies and the traffic of proxies, as the shipped schema declares."""

import pytest
from gateway import TIERS, at, event, put, usage

from lakestore.rollup import RELATIVE_ERROR

each_tier = pytest.mark.parametrize("tier", TIERS)


def proxy(id: str) -> dict[str, str]:
    """Columns of an event that went through a proxy."""
    return {
        "proxy_source_at_event": "fixed",
        "proxy_config_id_at_event": id,
        "proxy_config_name_at_event": f"Proxy {id}",
        "proxy_url_at_event": f"http://{id}.test:11111",
    }


FAST = event("fast", account_name="fast", quota_failover_count=0, **proxy("fast")) | {
    "first_sse_write_ms": 100, "latency_ms": 200, "routing_wait_ms": 5,
}  # fmt: skip
SLOW = event("slow", 1, account_name="slow", quota_failover_count=3, **proxy("slow")) | {
    "first_sse_write_ms": 900, "latency_ms": 1000, "routing_wait_ms": 25, "status_code": 524,
    "downstream_disconnect": True, "usage_missing": True, "credit_usage_missing": True,
}  # fmt: skip


@each_tier
def test_metrics_tell_where_it_is_slow_and_what_fails(lake, tier):
    table = usage(lake)
    codex = event("codex", 1, provider_type="codex", status_code=500)
    put(table, [FAST, SLOW, codex, event("late", 2)], tier)

    found = table.metrics("gateway", where={"provider_type": "kiro"}, start=at(), end=at(2))

    percentiles = {f"latency_p{p}_ms": found.summary[f"latency_p{p}_ms"] for p in (50, 90, 95, 99)}
    assert {k: v for k, v in found.summary.items() if k not in percentiles} == {
        "requests": 2, "ok": 1, "non_ok": 1, "accounts": 2, "proxies": 2,
        "first_token_samples": 2, "first_token_avg_ms": 500.0, "first_token_max_ms": 900,
        "latency_avg_ms": 600.0,
        "routing_wait_samples": 2, "routing_wait_avg_ms": 15.0, "routing_wait_max_ms": 25,
        "failover_requests": 1, "failovers": 3,
        "disconnects": 1, "usage_missing": 1, "credit_missing": 1,
    }  # fmt: skip
    for level, exact in zip((50, 90, 95, 99), (200, 1000, 1000, 1000), strict=True):
        assert percentiles[f"latency_p{level}_ms"] == pytest.approx(exact, rel=RELATIVE_ERROR)
    lists = {
        (name, by): [row["group"] for row in rows]
        for name, by_group in found.top.items()
        for by, rows in by_group.items()
    }
    names = ("first_token", "non_ok", "routing_wait", "failover", "disconnect")
    assert lists == {(name, "account"): ["slow", "fast"] for name in names} | {
        (name, "proxy"): ["proxy:id:slow", "proxy:id:fast"] for name in names
    }
    (account,) = (row for row in found.top["non_ok"]["account"] if row["group"] == "slow")
    assert (account["requests"], account["non_ok"], account["failovers"]) == (1, 1, 3)


@each_tier
def test_status_codes_that_are_not_ok_by_their_number(lake, tier):
    table = usage(lake)
    codes = [200, 524, 429, 524, 500, 429, 524, 200]
    put(table, [event(f"e{i}", i, status_code=code) for i, code in enumerate(codes)], tier)

    found = table.metrics("status", where={"status_code": ("!=", 200)}, top=2)

    told = [(row["group"], row["requests"]) for row in found.top["requests"]["status"]]
    assert told == [(524, 3), (429, 2)]


@each_tier
def test_the_lowest_latency_leads_and_more_samples_break_a_tie(lake, tier):
    table = usage(lake)
    tied = [event(f"tied-{i}", 2, account_name="tied", latency_ms=200) for i in range(2)]
    nothing = event("nothing", 3, account_name="nothing", latency_ms=None, first_sse_write_ms=None)
    put(table, [SLOW, FAST, *tied, nothing], tier)

    found = table.metrics("latency", where={"provider_type": "kiro"})

    assert (found.summary["samples"], found.summary["avg_ms"]) == (4, 400.0)
    ranking = [(row["group"], row["avg_ms"]) for row in found.top["fastest"]["account"]]
    assert ranking == [("tied", 200.0), ("fast", 200.0), ("slow", 1000.0), ("nothing", None)]
    assert found.top["first_token"]["proxy"][-1]["group"] == "proxy:id:slow"


@each_tier
def test_traffic_of_a_proxy_by_bucket(lake, tier):
    table = usage(lake)
    put(
        table,
        [
            event("a", 0, request_body_bytes=1024, bytes_streamed=4096, **proxy("one")),
            event("b", 60_000, request_body_bytes=512, bytes_streamed=2048, **proxy("one")),
            event("c", 60_000, request_body_bytes=9, bytes_streamed=9, **proxy("two")),
            event("d", 120_000, request_body_bytes=9, bytes_streamed=9, **proxy("one")),
        ],
        tier,
    )
    window = {"start": at(), "end": at(120_000), "where": {"proxy_config_id_at_event": "one"}}

    found = table.metrics("proxy_traffic", **window)
    assert found.summary == {"requests": 2, "request_bytes": 1536, "response_bytes": 6144}
    assert found.groups["proxy"].to_pylist() == [{"group": "proxy:id:one", **found.summary}]
    points = table.series(
        ["request_body_bytes", "bytes_streamed"], every="1m", origin=at(), **window
    )
    assert [row["request_body_bytes"] + row["bytes_streamed"] for row in points] == [5120, 2560]


@each_tier
def test_traffic_is_not_counted_twice_when_events_are_sent_again(lake, tier):
    table = usage(lake)
    sent = event(request_body_bytes=256, bytes_streamed=768, **proxy("one"))
    put(table, [sent], tier)
    for move in (lambda: None, table.flush, table.seal):
        table.append(sent)
        move()
        summary = table.metrics("proxy_traffic").summary
        assert summary == {"requests": 1, "request_bytes": 256, "response_bytes": 768}


@each_tier
def test_a_proxy_whose_name_changed_is_one_proxy(lake, tier):
    table = usage(lake)
    renamed = proxy("one") | {"proxy_config_name_at_event": "New", "proxy_url_at_event": "http://n"}
    put(
        table,
        [
            event("a", 0, request_body_bytes=100, bytes_streamed=400, **proxy("one")),
            event("b", 1, request_body_bytes=200, bytes_streamed=800, **renamed),
        ],
        tier,
    )
    told = table.metrics("proxy_traffic").groups["proxy"].to_pylist()
    total = {"requests": 2, "request_bytes": 300, "response_bytes": 1200}
    assert told == [{"group": "proxy:id:one"} | total]
