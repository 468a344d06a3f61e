"""Tiers: what moves, what a query opens, and what holds while it does."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from gateway import at, event, ids, put, tokens, usage

import lakestore as ls
from lakestore import failpoint


def data_files(root: Path) -> list[Path]:
    return sorted((root / "tables" / "usage" / "data").rglob("*.parquet"))


def test_settings_are_honoured(open_lake):
    """Upstream has a memory limit, UTC and a threshold for its write-ahead log."""
    lake = open_lake(settings={"memory_bytes": 512 << 20})
    said = lake.sql("SELECT current_setting('memory_limit'), current_setting('TimeZone')")
    assert said.fetchone() == ("512.0 MiB", "UTC")
    assert ls.Settings(flush_bytes=8).flush_bytes == 8
    for wrong in ({"memory_bytes": 1}, {"flush_bytes": 0}):
        with pytest.raises(ls.InvalidInputError, match="setting"):
            open_lake(settings=wrong)


def test_appends_share_a_journal_until_a_flush_and_then_begin_another(lake, root):
    """Upstream keeps its writer open until a segment is full."""
    table = usage(lake)

    def journals() -> dict[str, int]:
        return {p.name: p.stat().st_size for p in (root / "_site/journal").rglob("*.journal")}

    table.append(event("one"))
    ((name, size),) = journals().items()
    table.append(event("two", 1))
    assert journals().keys() == {name}
    assert journals()[name] > size
    table.flush()
    table.append(event("three", 2))
    assert len(journals()) == 2  # the first is deleted by vacuum
    assert ids(table.page()) == ["three", "two", "one"]


def test_segments_are_listed_newest_first_with_what_is_not_flushed(lake):
    table = usage(lake)
    error = {"status_code": 502, "error_message": "broken", "error_class": "upstream"}
    put(table, [event("sealed", **error)], "cold")
    put(table, [event("flushed", 1)], "hot")
    table.append(event("new", 2))

    first = table.page(limit=2)
    last = table.page(limit=2, cursor=first.next_cursor)

    assert (first.total, ids(first), ids(last)) == (3, ["new", "flushed"], ["sealed"])
    assert {name: last.rows[0][name] for name in error} == error
    assert table.get("sealed")["request_headers_json"] == '{"host":["example.test"]}'
    status = {tier.tier: tier.rows for tier in lake.status().tables[0].tiers}
    assert status == {"buffer": 1, "hot": 1, "cold": 1}


POINTS = [f"{verb}.{i + 1}" for verb in ("flush", "seal") for i in range(failpoint.STEPS[verb])]


def test_every_event_is_seen_at_every_step_of_its_way(lake):
    """Upstream does not see what waits to be archived."""
    table = usage(lake)
    totals, reached = [], set()

    def look(point: str) -> None:
        found = threading.Thread(target=lambda: totals.append(table.page().total))
        found.start()
        found.join()
        reached.add(point)

    traps = [failpoint.at(point, lambda p=point: look(p), hit=None) for point in POINTS]
    table.append([event("one"), event("two", 1)])
    for trap in traps:
        trap.__enter__()
    try:
        table.flush()
        table.seal()
    finally:
        for trap in traps:
            trap.__exit__(None, None, None)
    assert len(reached) >= 12
    assert set(totals) == {2}


def test_an_append_goes_on_while_a_seal_and_a_vacuum_run(lake):
    """Upstream had to keep retention from taking the segment under an append."""
    table = usage(lake)
    table.append(event("before"))
    parked, done = threading.Event(), threading.Event()

    def park() -> None:
        parked.set()
        assert done.wait(60)

    with failpoint.at("append.2", park):
        late = threading.Thread(target=lambda: table.append(event("during", 1)))
        late.start()
        assert parked.wait(60)
        others = threading.Thread(target=lambda: (table.seal(), table.vacuum(dry_run=False)))
        others.start()
        done.set()
        late.join()
        others.join()
    assert ids(table.page()) == ["during", "before"]
    table.seal()
    assert ids(table.page(source="cold")) == ["during", "before"]


def test_a_smaller_limit_flushes_what_was_left_before_what_comes(open_lake):
    lake = open_lake()
    usage(lake).append(event("left"))
    lake.close()

    lake = open_lake(settings={"flush_rows": 1, "flush_bytes": 1})
    lake.maintain()
    table = usage(lake)
    table.append(event("new", 1))
    lake.maintain()

    assert [t.files for t in lake.status().tables[0].tiers if t.tier == "hot"] == [2]
    assert ids(table.page()) == ["new", "left"]


def test_a_seal_leaves_one_copy_and_sealing_again_does_nothing(lake, clock, root):
    table = usage(lake)
    put(table, [event("one"), event("two", 1)], "cold")
    before = data_files(root)

    assert table.seal() == 0
    clock.move(3_600)
    table.vacuum(dry_run=False)

    assert data_files(root) == before
    left = [p for name in ("hot", "journal", "staging") for p in (root / "_site" / name).rglob("*")]
    assert [p for p in left if p.suffix in (".parquet", ".duckdb", ".journal")] == []
    assert ids(table.page()) == ["two", "one"]
    assert lake.verify().ok


def sealed_days(table: ls.Table, counts: list[int], key: str = "key-duckdb") -> None:
    """Seal so many events on each of as many days, the newest first."""
    for day, count in enumerate(counts):
        start = -day * 86_400_000
        some = [event(f"d{day}-{i:02d}", start - i, key_id=key) for i in range(count)]
        put(table, some, "cold")


@pytest.mark.parametrize(
    ("counts", "offset", "limit", "found"),
    [
        ([50, 80, 80], 55, 20, [f"d1-{i:02d}" for i in range(5, 25)]),
        ([5, 10], 3, 10, ["d0-03", "d0-04", *(f"d1-{i:02d}" for i in range(8))]),
    ],
)
def test_a_page_takes_its_rows_of_several_files(lake, counts, offset, limit, found):
    table = usage(lake)
    sealed_days(table, counts)
    page = table.page(offset=offset, limit=limit)
    assert (ids(page), page.total) == (found, sum(counts))


def test_a_page_opens_the_files_it_needs_and_no_others(lake, root):
    table = usage(lake)
    sealed_days(table, [3] * 10)
    for path in data_files(root)[:5]:  # the oldest days
        path.unlink()
    page = table.page(limit=8)
    assert (len(page), page.total) == (8, 30)
    with pytest.raises(ls.CorruptionError, match=r"day=2023-11-0.*\.parquet"):
        table.page(limit=30)


def test_a_file_of_another_key_is_not_opened(lake, root):
    """Though the window overlaps it in part."""
    table = usage(lake)
    put(table, [event("mine", 0, key_id="key-duckdb")], "cold")
    (kept,) = data_files(root)
    put(table, [event("a", 0, key_id="key-other"), event("b", 9, key_id="key-other")], "cold")
    next(path for path in data_files(root) if path != kept).unlink()

    wanted = {"where": {"key_id": "key-duckdb"}, "start": at(), "end": at(5)}
    assert ids(table.page(**wanted)) == ["mine"]
    assert table.totals("avg(latency_ms)", **wanted)["avg(latency_ms)"] == 55
    with pytest.raises(ls.CorruptionError, match=r"\.parquet"):
        table.page(where={"key_id": "key-other"})


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (None, 2),
        ({"key_id": "key-duckdb", "provider_type": "kiro", "model": "gpt-5"}, 1),
        ({"key_id": "key-duckdb", "endpoint": "/cc/v1/messages", "status_code": ("!=", 524)}, 2),
    ],
)
def test_totals_and_menus_need_no_data_files(lake, root, where, count):
    """What rollups keep is asked of them; also by several filters, unlike upstream."""
    table = usage(lake)
    put(table, [event("a")], "cold")
    put(table, [event("b", 1, model="gpt-5", account_name="codex-account")], "cold")
    for path in data_files(root):
        path.unlink()

    page = table.page(where, limit=0)
    assert (page.total, tokens(page.totals)) == (count, [n * count for n in (10, 20, 30, 40)])
    menus = table.facets(["model", "account_name", "endpoint"], where={"key_id": "key-duckdb"})
    assert {column: menus.values_of(column) for column in menus} == {
        "model": ["claude-sonnet-4-5", "gpt-5"],
        "account_name": ["codex-account", "kiro-account"],
        "endpoint": ["/cc/v1/messages"],
    }
    whole = {"start": at() - timedelta(days=30), "end": at() + timedelta(days=30)}
    assert table.metrics("proxy_traffic", **whole).summary["response_bytes"] == 4096
    assert sum(row["output_tokens"] for row in table.series("output_tokens", every="1h")) == 60
    with pytest.raises(ls.CorruptionError):
        table.page()


@pytest.mark.parametrize("view", ["gateway", "latency"])
@pytest.mark.parametrize(
    "where", [None, {"model": "gpt-5"}, {"status_code": ("!=", 200), "provider_type": "kiro"}]
)
def test_how_the_gateway_does_needs_no_data_files(lake, root, view, where):
    """Whole days are answered by the rollup that keeps what is asked; upstream reads rows."""
    table = usage(lake)
    events = [event(str(n), n * 3_600_000, status_code=200 + 324 * (n % 3 == 0)) for n in range(60)]
    put(table, [e | {"model": "gpt-5" if i % 2 else None} for i, e in enumerate(events)], "cold")
    day = at().replace(hour=0, minute=0, second=0, microsecond=0)
    asked = [{"where": where}, {"where": where, "start": day, "end": day + timedelta(days=2)}]
    wanted = [table.metrics(view, **window) for window in asked]
    count = "SELECT count(latency_ms), avg(latency_ms) FROM usage WHERE {}".format(
        {None: "true", "model": "model = 'gpt-5'"}.get(
            where and next(iter(where)), "status_code <> 200 AND provider_type = 'kiro'"
        )
    )
    label = {"gateway": "latency_avg_ms", "latency": "avg_ms"}[view]
    counted = {"gateway": "requests", "latency": "samples"}[view]
    summary = wanted[0].summary
    assert [(summary[counted], summary[label])] == lake.sql(count).fetchall()
    for path in data_files(root):
        path.unlink()
    for window, metrics in zip(asked, wanted, strict=True):
        found = table.metrics(view, **window)
        assert (found.summary, found.top) == (metrics.summary, metrics.top)
    with pytest.raises(ls.CorruptionError):  # a part of a day is of rows
        table.metrics(view, start=day, end=at(3_600_000))


def test_rollups_that_are_missing_are_made_again_once(open_lake, root):
    lake = open_lake()
    put(usage(lake), [event("a")], "cold")
    lake.close()
    hourly, daily = sorted((root / "tables/usage/_rollups").rglob("*.parquet"), reverse=True)
    hourly.unlink()
    daily.unlink()

    def check(lake: ls.Lake) -> None:
        assert usage(lake).facets("model").values_of("model") == ["claude-sonnet-4-5"]
        assert usage(lake).metrics("latency").summary["samples"] == 1
        lake.close()

    check(open_lake())
    for path in data_files(root):
        path.unlink()
    check(open_lake())


def test_a_damaged_file_is_named_and_what_needs_it_not_is_answered(lake, root):
    """Upstream fails every question; neither answers as if the file's rows had not been."""
    table = usage(lake)
    put(table, [event("old")], "cold")
    (damaged,) = data_files(root)
    put(table, [event("new", 86_400_000)], "cold")
    data = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(data[: len(data) // 2])

    with pytest.raises(ls.CorruptionError, match=damaged.name):
        table.page()
    assert ids(table.page(start=at(1_000))) == ["new"]
    assert table.totals()["count"] == 2
    assert damaged in [problem.file for problem in lake.verify().problems]
