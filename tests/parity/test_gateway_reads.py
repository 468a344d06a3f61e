"""Lists, totals, menus and sums by key: what the gateway's tables of events show."""

from decimal import Decimal

import pytest
from gateway import TIERS, TOKENS, at, event, ids, put, tokens, usage

import lakestore as ls

each_tier = pytest.mark.parametrize("tier", TIERS)


@each_tier
def test_pages_follow_each_other_from_the_newest(lake, tier):
    table = usage(lake)
    put(table, [event("old"), event("new", 1)], tier)

    first = table.page(limit=1)
    assert (ids(first), first.total, first.next_cursor is None) == (["new"], 2, False)
    for second in (table.page(limit=1, cursor=first.next_cursor), table.page(limit=1, offset=1)):
        assert (ids(second), second.total, second.next_cursor) == (["old"], 2, None)
    window = table.page(start=at(1), end=at(2))
    assert (ids(window), window.total) == (["new"], 1)


@each_tier
def test_a_page_may_be_longer_or_lie_past_the_end(lake, tier):
    table = usage(lake)
    put(table, [event(f"e{i:02d}", i) for i in range(25)], tier)

    whole = table.page(limit=500)
    assert (len(whole), whole.total, whole.next_cursor) == (25, 25, None)
    assert ids(whole)[:2] == ["e24", "e23"]
    past = table.page(limit=20, offset=1000)
    assert (ids(past), past.total, past.next_cursor) == ([], 25, None)


@each_tier
def test_an_offset_may_be_deep(lake, tier):
    table = usage(lake)
    put(table, [event(f"e{i:03d}", i) for i in range(260)], tier)
    page = table.page(limit=20, offset=220)
    assert ids(page) == [f"e{i:03d}" for i in range(39, 19, -1)]
    assert page.next_cursor is not None


@each_tier
def test_totals_are_of_all_that_pass_six_filters(lake, tier):
    table = usage(lake)
    wanted = {
        "key_id": "key-duckdb", "provider_type": "kiro", "model": "claude-sonnet-4-5",
        "account_name": "kiro-account", "endpoint": "/cc/v1/messages", "status_code": 200,
    }  # fmt: skip
    other = {
        "key_id": "key-other", "provider_type": "codex", "model": None,
        "account_name": "KIRO-ACCOUNT", "endpoint": "/v1/messages", "status_code": 524,
    }  # fmt: skip
    misses = [event(f"not-{name}", 2, **{name: value}) for name, value in other.items()]
    put(table, [event("one"), *misses, event("two", 1)], tier)

    page = table.page(wanted, limit=1)

    assert (ids(page), page.total) == (["two"], 2)
    assert tokens(page.totals) == [20, 40, 60, 80]
    only_totals = table.page(wanted, limit=0)
    assert (ids(only_totals), only_totals.totals) == ([], page.totals)


@each_tier
@pytest.mark.parametrize(
    ("status", "found"), [(200, ["ok"]), (("!=", 200), ["bad"]), ([200, 524], ["bad", "ok"])]
)
def test_status_tells_the_good_from_the_bad(lake, tier, status, found):
    table = usage(lake)
    put(table, [event("ok"), event("bad", 1, status_code=524, output_tokens=7)], tier)
    page = table.page({"status_code": status})
    assert ids(page) == found
    assert page.totals["output_tokens"] == {"ok": 30, "bad": 7}.get(found[0]) + 30 * (
        len(found) - 1
    )


@each_tier
def test_a_menu_ignores_its_own_filter_and_keeps_the_others(lake, tier):
    table = usage(lake)
    other = {"model": "gpt-5", "account_name": "codex-account", "endpoint": "/v1/responses"}
    put(table, [event("a"), event("b", 1), event("c", 2, **other)], tier)

    menus = table.facets(["model", "account_name", "endpoint"], where={"model": "gpt-5"})

    assert menus.values_of("model") == ["claude-sonnet-4-5", "gpt-5"]
    assert menus["model"] == [("claude-sonnet-4-5", 2), ("gpt-5", 1)]
    assert menus.values_of("account_name") == ["codex-account"]
    assert menus.values_of("endpoint") == ["/v1/responses"]


@each_tier
def test_a_menu_of_two_filters_misses_nothing(lake, tier):
    """Upstream looks for segments by all filters, also the menu's own, and misses `gpt-5` here."""
    table = usage(lake)
    put(table, [event("a", account_name="x"), event("b", 1, model="gpt-5", account_name="x")], tier)
    where = {"model": "claude-sonnet-4-5", "account_name": "x"}
    assert table.facets("model", where=where).values_of("model") == ["claude-sonnet-4-5", "gpt-5"]
    nothing = table.facets("model", where=where, start=at(1), end=at(2))
    assert nothing.values_of("model") == ["gpt-5"]


@each_tier
def test_sums_by_key(lake, tier):
    table = usage(lake)
    second = event("two", 1, credit_usage=Decimal("0.25"), credit_usage_missing=True)
    put(table, [event("one"), second], tier)

    by_key = table.counters("key_id", ["count", *TOKENS, "credit_usage"])
    assert list(by_key) == ["key-duckdb"]
    assert tokens(by_key["key-duckdb"]) == [20, 40, 60, 80]
    assert by_key["key-duckdb"]["credit_usage"] == Decimal("0.75")
    used = table.totals(
        {"missing": "count if credit_usage_missing", "last": "max(created_at)"},
        where={"key_id": "key-duckdb"},
    )
    assert used == {"missing": 1, "last": at(1)}


@each_tier
def test_values_are_compared_exactly(lake, tier):
    """Upstream's filters are case-sensitive, and null is equal to nothing."""
    table = usage(lake)
    put(table, [event("a", model="GPT"), event("b", model=""), event("c", model=None)], tier)
    for value, found in (("gpt", 0), ("GPT", 1), ("", 1), (None, 1)):
        assert table.page({"model": value}).total == found
    assert table.facets("model").values_of("model") == ["", "GPT"]


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_a_source_is_one_of_the_tiers(lake, tier):
    table = usage(lake)
    put(table, [event("there")], tier)
    table.append(event("here", 1))

    told = {s: ids(table.page(source=s)) for s in ("hot", "cold", "all")}

    hot = ["here", "there"] if tier == "hot" else ["here"]
    assert told == {"hot": hot, "cold": ["there"] * (tier == "cold"), "all": ["here", "there"]}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"limit": 10_001}, "limit 10001 is not from 0 to 10,000"),
        ({"limit": -1}, "limit -1"),
        ({"offset": -1}, "offset -1"),
        ({"source": "archived"}, "source 'archived' is not known"),
        ({"where": {"status_code": ("ok", 200)}}, "operator 'ok'"),
        ({"start": "yesterday"}, "'yesterday' is not an ISO time"),
    ],
)
def test_a_question_that_cannot_be_is_refused(lake, asked, message):
    with pytest.raises(ls.InvalidInputError, match=message):
        usage(lake).page(**asked)


def test_a_window_that_ends_before_it_begins_is_empty(lake):
    """Upstream swaps such bounds."""
    table = usage(lake)
    table.append(event())
    bounds = {"start": at(1), "end": at(0)}
    assert table.page(**bounds).total == 0
    assert table.totals("count", **bounds) == {"count": 0}
    assert len(table.series(**bounds)) == 0
    assert table.facets("model", **bounds)["model"] == []
