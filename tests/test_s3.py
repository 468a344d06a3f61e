"""A lake in an S3 store: the same promises, over a real server, with and without httpfs."""

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LARGE, SCHEMA, FixedClock, events
from deltalake import DeltaTable
from support.commands import ok, run
from support.faultproxy import Rule, proxied
from support.store import KEYS, Store, rclone

import lakestore as ls
from lakestore import failpoint
from lakestore.filecache import Wanted
from lakestore.storage.probe import REQUESTS
from lakestore.storage.s3 import S3Storage

Open = Callable[..., ls.Lake]
TOKEN = "canary-session-token"
QUERY = "SELECT count(*), count(DISTINCT id), sum(n), min(time), max(name) FROM {}"


@pytest.fixture
def open_s3(store: Store, prefix: str, tmp_path: Path, clock: FixedClock) -> Iterator[Open]:
    """Opens the test's lake in the store, for the host of that name."""
    opened: list[ls.Lake] = []

    def open_it(host: str = "one", store: Store = store, **options: object) -> ls.Lake:
        defaults = {"upkeep": "manual", "clock": clock, "storage_options": store.options}
        lake = ls.open(prefix, local=tmp_path / host, **(defaults | options))
        opened.append(lake)
        return lake

    yield open_it
    for lake in reversed(opened):
        lake.close()


@contextmanager
def answer_of(table: str, lake: ls.Lake) -> Iterator[None]:
    """What a block does must not change an answer."""
    before = lake.sql(QUERY.format(table)).fetchall()
    yield
    assert lake.sql(QUERY.format(table)).fetchall() == before


def answer(lake: ls.Lake, table: str = "events") -> tuple[object, ...]:
    return lake.sql(QUERY.format(table)).fetchall()[0]


@pytest.mark.parametrize("cold", ["parquet", "delta"])
def test_a_life_in_a_store(open_s3: Open, store, prefix, cold):
    lake = open_s3()
    table = lake.create_table("events", SCHEMA, cold=cold)
    table.append(events(0, 60))
    expected = answer(lake)
    assert table.seal() == 60
    assert answer(lake) == expected
    table.append(events(50, 90))
    table.flush()
    table.append(events(90, 100))
    with answer_of("events", lake):
        assert lake.seal() == 40
    assert answer(lake)[:2] == (100, 100)
    assert table.to_arrow(["id"]).column("id").to_pylist() != []
    assert table.scan().select(pl.len()).collect().item() == 100
    assert lake.verify().problems == ()
    tiers = {tier.tier: (tier.rows, tier.files) for tier in lake.status().tables[0].tiers}
    assert tiers["cold"] == (100, 6)  # five days, one of them in both seals
    expected = answer(lake)
    lake.close()

    with open_s3() as again:
        assert answer(again) == expected
        assert again.root == prefix
    with open_s3(mode="r") as reader:
        assert answer(reader) == expected
    if cold == "delta":
        url = f"{prefix}/tables/events/data"
        engine = DeltaTable(url, storage_options=store.for_engines)
        assert engine.version() == 2
        frame = pl.scan_delta(url, storage_options=store.for_engines)
        assert frame.select(pl.len(), pl.col("n").sum()).collect().row(0) == (100, expected[2])


def test_a_store_that_ignores_conditions_is_refused(tmp_path):
    with rclone(tmp_path) as unsafe:
        with pytest.raises(ls.UnsafeStoreError, match="overwrites all the same"):
            ls.open("s3://lakes/lake", storage_options=unsafe.options, local=tmp_path / "local")
        assert not list((tmp_path / "lakes").rglob("*.json"))  # nothing was put but probes
        assert not list((tmp_path / "lakes").rglob("lakestore-probe-*"))
        ran = run("doctor", "s3://lakes/lake", *_flags(unsafe))
        assert ran.exit_code == 1
        assert "no  store" in ran.stdout
        assert "use another store" in ran.stdout


def test_a_store_is_probed_once_a_day(open_s3: Open, store, monkeypatch):
    with proxied(store) as (through, weather):
        open_s3(store=through).close()
        probes = [seen for seen in weather.log if seen.kind.endswith("probe")]
        assert REQUESTS <= len(probes) <= REQUESTS + 2
        weather.log.clear()
        open_s3(store=through).close()
        assert not [seen for seen in weather.log if "probe" in seen.kind]


@pytest.mark.parametrize(
    ("root", "options", "error", "match"),
    [
        ("s3://no-such-bucket/lake", {}, ls.NotFoundError, "no bucket 'no-such-bucket'"),
        ("s3://UPPER/lake", {}, ls.InvalidInputError, "no s3://bucket/prefix"),
        ("s3://lakes/a//b", {}, ls.InvalidInputError, "no s3://bucket/prefix"),
        ("s3://lakes/a b", {}, ls.InvalidInputError, "no s3://bucket/prefix"),
        ("s3://lakes/x", {"AWS_REGOIN": "eu"}, ls.InvalidInputError, "aws_regoin.*not valid"),
        ("s3://lakes/x", {"max_retries": "many"}, ls.InvalidInputError, "max_retries='many'"),
        ("s3://lakes/x", {"timeout": "soon"}, ls.InvalidInputError, "no number of seconds"),
        ("gs://lakes/x", {}, ls.InvalidInputError, "a folder, or s3://"),
    ],
)
def test_wrong_places_are_named(store, tmp_path, root, options, error, match):
    with pytest.raises(error, match=match):
        ls.open(root, storage_options=store.options | options, local=tmp_path / "local")


def test_options_for_a_folder_are_refused(tmp_path):
    with pytest.raises(ls.InvalidInputError, match="is a folder"):
        ls.open(tmp_path / "lake", storage_options={"AWS_REGION": "eu"})


def test_the_environment_says_what_options_do_not(store, prefix, tmp_path, monkeypatch):
    for name, value in store.options.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with ls.open(prefix, upkeep="manual") as lake:
        lake.create_table("events", SCHEMA).append(events(0, 5))
    (site,) = (tmp_path / "state" / "lakestore").iterdir()
    assert len(list(site.glob("journal/events/*/*.journal"))) == 1
    with ls.open(prefix, upkeep="manual") as lake:
        assert answer(lake)[0] == 5


def test_variables_of_others_are_not_the_stores(store, prefix, monkeypatch):
    for name in ("TOKEN", "ENDPOINT", "ENDPOINT_URL", "REGION", "ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "somebody's")
    storage = S3Storage(prefix, {})
    assert storage.endpoint is None
    assert storage.option("aws_session_token", "token") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert S3Storage(prefix, {}).endpoint == "http://127.0.0.1:1"
    assert S3Storage(prefix, store.options).endpoint == store.options["AWS_ENDPOINT_URL"]


def test_a_vacuum_asks_once_for_many_files(open_s3: Open, store):
    """Each file's size is asked for; they are listed, and deleted, together."""
    with proxied(store) as (through, weather):
        lake = open_s3(
            storage_options=through.options, settings={"cold_grace_s": 0, "vacuum_grace_s": 0}
        )
        table = lake.create_table("events", LARGE)
        for number in range(12):
            table.append(events(number * 2, number * 2 + 2, step=timedelta(seconds=1)))
            table.seal()
        table.compact()
        weather.log.clear()
        done = table.vacuum(dry_run=False)
        asked = Counter(seen.kind for seen in weather.log)
        assert (len(done.cold), done.bytes > 0) == (12, True)
        assert asked["HEAD data"] == 12
        assert asked["POST delete"] == 2  # the files; their partials
        assert asked["GET list"] == 1  # of the day's partials
        files = [key for key in lake._site.storage.list("tables/events/") if "day=" in key]
        assert sum("/data/" in key for key in files) == 1
        assert sum("/_rollups/" in key for key in files) == 1
        assert answer(lake)[0] == 24


def test_appends_go_on_while_the_store_is_silent(open_s3: Open, store, tmp_path):
    """What was acknowledged is on the local disk; it is sealed when the store returns."""
    with proxied(store) as (through, weather):
        options = through.options | {"timeout": "0.5", "max_retries": "0"}
        lake = open_s3(storage_options=options, settings={"commit_timeout_s": 1.0})
        table = lake.create_table("events", SCHEMA, cold="delta")
        table.append(events(0, 20))
        table.seal()
        for kind in ("PUT data", "PUT log version", "GET log version", "HEAD lake file",
                     "HEAD tombstone", "GET list", "GET lake file"):  # fmt: skip
            weather.rules.append(Rule("never answers", kind, times=1_000))
        table.append(events(20, 40))
        tiers = lake.status().tables[0].tiers  # asked first of all
        assert [tier.rows for tier in tiers] == [20, 0, 20]
        ack = table.append(events(10, 50))  # ten are sealed, twenty flushed or buffered
        assert (ack.rows, ack.duplicates) == (20, 20)
        assert table.flush() == 30  # what the site sealed itself it knows without the store
        with pytest.raises(ls.StorageError, match="retry once it answers"):
            table.seal()
        with pytest.raises(ls.StorageError, match="retry once it answers"):
            lake.sql("SELECT count(*) FROM events")
        table.append(events(50, 60))
        lake.close()

        again = open_s3(storage_options=options)  # after a restart, too
        table = again["events"]
        assert table.append(events(55, 70)).rows == 10
        table.flush()
        assert again.status().tables[0].tiers[1].rows == 50  # the backlog
        weather.clear()
        assert table.seal() == 50
        assert answer(again)[:2] == (70, 70)
        assert again.verify().problems == ()


def test_the_backlog_drains_by_itself(open_s3: Open, store):
    refused, sealed = threading.Event(), threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "events: cannot look at" in record.getMessage():
                refused.set()

    told = Told()
    logging.getLogger("lakestore").addHandler(told)
    try:
        with proxied(store) as (through, weather):
            options = through.options | {"timeout": "0.3", "max_retries": "0"}
            settings = {"flush_age_s": 0.1, "seal_age_s": 0.1, "commit_timeout_s": 0.5}
            lake = open_s3(upkeep="auto", storage_options=options, settings=settings, clock=None)
            table = lake.create_table("events", SCHEMA)
            weather.rules.append(Rule("503", "HEAD lake file", times=10_000))
            table.append(events(0, 20))
            assert refused.wait(60)
            status = lake.status()
            assert (status.problem or "").startswith("events: cannot look at")
            assert status.tables[0].tiers[2].rows == 0
            with failpoint.at("seal.8", sealed.set):
                weather.clear()
                assert sealed.wait(60)
            lake._upkeep.stop()  # once its round has ended
            status = lake.status()
            assert (status.problem, status.tables[0].tiers[2].rows) == (None, 20)
    finally:
        logging.getLogger("lakestore").removeHandler(told)


def test_a_query_asks_for_little(open_s3: Open, store, tmp_path):
    """An hour of a thousand files: one look at the log, and the one file that can hold it."""
    with proxied(store) as (through, weather):
        lake = open_s3(store=through)
        table = lake.create_table("events", SCHEMA, cold="delta")
        rows = events(0, 1_000)
        days = pa.array(["2024-01-01T00:30:00Z"] * 1_000).cast(pa.timestamp("us", "UTC"))
        step = pa.array([n * 86_400_000_000 for n in range(1_000)], pa.duration("us"))
        rows = rows.set_column(1, "time", pa.compute.add(days, step))
        table.append(rows)
        table.seal()
        lake.close()
        lake = open_s3("another host", store=through)
        lake["events"]
        query = "SELECT id FROM events WHERE time >= '2025-03-01' AND time < '2025-03-01 01:00'"
        weather.log.clear()
        assert lake.sql(query).fetchall() == [("e000425",)]
        cold = lake.explain(query).tiers[2]
        assert (cold.files, cold.files_kept) == (1_000, 1)
        del weather.log[2:]
        assert [seen.kind for seen in weather.log] == ["GET log version", "GET data"]
        weather.log.clear()
        assert lake.sql(query).fetchall() == [("e000425",)]
        assert [seen.kind for seen in weather.log] == ["GET log version"]


def test_copies_are_bounded_and_checked(open_s3: Open, store, prefix, monkeypatch):
    lake = open_s3()
    table = lake.create_table("events", SCHEMA, cold="delta")
    table.append(events(0, 100))
    table.seal()
    expected = answer(lake)
    lake.close()

    other = open_s3("another host", settings={"cache_bytes": 0})
    assert other.tables() == ["events"]
    adopted = other._site.files.downloads  # the schema's file, unless the catalog is shared
    assert answer(other) == expected
    assert other._site.files.downloads == adopted + 5  # days
    copies = list(other._site.layout.files.iterdir())
    assert len(copies) == adopted + 5  # a query may be at them
    monkeypatch.setattr("lakestore.filecache._YOUNG_S", -1)
    other._site.files._make_room()
    assert list((other._site.layout.files).iterdir()) == []
    monkeypatch.setattr("lakestore.filecache._YOUNG_S", 60)
    (copy,) = other._site.files.paths([c for c in _wanted(other) if "2025-01-01" in c.key])
    copy.write_bytes(copy.read_bytes()[:200])  # this disk loses the end of a copy
    assert answer(other) == expected
    other.close()

    lake = open_s3("a third")
    storage = S3Storage(prefix, store.options)
    (key, *_) = [k for k in storage.list("tables/events/data/") if "day=2025-01-02" in k]
    data = bytearray(storage.read(key))
    data[len(data) // 2] ^= 1
    storage.put(key, bytes(data), create=False)
    with pytest.raises(ls.CorruptionError, match=re.escape(key)):
        lake.sql("SELECT count(n) FROM events WHERE time >= '2025-01-02'")
    assert [problem.kind for problem in lake.verify().problems] == ["damaged"]


def _wanted(lake: ls.Lake) -> list[Wanted]:
    context = lake["events"]._context
    return [context.wanted(file) for file in context.state().cold]


def test_no_credential_is_told(open_s3: Open, store, prefix, tmp_path, caplog, monkeypatch):
    """Not in a log, an error, a repr, an answer, or a file."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    told: list[str] = []
    with proxied(store) as (through, weather):
        options = through.options | {"max_retries": "0"}
        lake = open_s3(storage_options=options, settings={"commit_timeout_s": 0.1})
        table = lake.create_table("events", SCHEMA, cold="delta")
        table.append(events(0, 10))
        told += [repr(lake), repr(lake._site), repr(lake._site.storage), str(lake.status())]
        told += [repr(lake.sql("FROM duckdb_secrets()").fetchall()), repr(vars(lake.status()))]
        for fault in ("expired", "503", "reset before", "429"):
            weather.rules.append(Rule(fault, "HEAD lake file", times=10))
            with pytest.raises(ls.StorageError) as caught:
                table.seal()
            told += [str(caught.value), repr(caught.getrepr(chain=True))]
            weather.clear()
        table.seal()
    with pytest.raises(ls.LakestoreError) as caught:
        ls.open(prefix, storage_options=store.options | {"nonsense": KEYS["AWS_SECRET_ACCESS_KEY"]})
    told += [str(caught.value), run("status", prefix, *_flags(store)).output]
    told += [record.getMessage() for record in caplog.records]
    for path in tmp_path.rglob("*"):
        told += [path.read_bytes().decode(errors="replace")] if path.is_file() else []
    for word in (*KEYS.values(), TOKEN):
        assert not [text[:200] for text in told if word in text]


def test_the_command_line_takes_a_store(store, prefix, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    flags = _flags(store)
    rows = tmp_path / "rows.ndjson"
    rows.write_text('{"id": "a", "at": "2026-01-01T00:00:00Z", "n": 1}\n')
    assert ok("init", prefix, *flags) == f"made a lake: {prefix}\n"
    ok("create", prefix, "t", "--like", str(rows), "--event-time", "at", "--event-id", "id",
       "--cold", "delta", *flags)  # fmt: skip
    ok("ingest", prefix, "t", str(rows), *flags)
    ok("seal", prefix, *flags)
    assert ok("sql", prefix, "SELECT id, n FROM t", "--format", "csv", *flags) == "id,n\na,1\n"
    assert json.loads(ok("status", prefix, "--json", *flags))["root"] == prefix
    looked = ok("doctor", prefix, *flags)
    assert "honours conditional writes" in looked
    assert ok("verify", prefix, *flags).endswith("ok\n")
    assert run("status", prefix, "--storage-option", "AWS_REGION").exit_code == 2
    assert run("sql", f"{prefix}-not", "SELECT 1", *flags).exit_code == 1


@pytest.mark.sqlite
def test_the_command_line_rebuilds_a_site_of_a_store(open_s3: Open, store, prefix, tmp_path):
    lake = open_s3("one")
    table = lake.create_table("t", SCHEMA, cold="delta")
    table.append(events(0, 10))
    table.seal()
    lake.close()
    flags = [*_flags(store), "--local", str(lake._site.layout.local)]
    lake._site.layout.catalog.unlink()
    assert "1 table(s) listed again" in ok("rebuild", prefix, *flags)
    query = "SELECT count(*) AS n FROM t"
    assert ok("sql", prefix, query, "--format", "csv", *flags) == "n\n10\n"


def _flags(store: Store) -> list[str]:
    return [part for k, v in store.options.items() for part in ("--storage-option", f"{k}={v}")]


@pytest.fixture
def sealed(open_s3: Open) -> tuple[object, ...]:
    """A sealed table of each format, and the answer of both."""
    lake = open_s3()
    for cold in ("parquet", "delta"):
        table = lake.create_table(cold, SCHEMA, cold=cold)
        table.append(events(0, 100))
        table.seal()
    expected = answer(lake, "delta")
    assert answer(lake, "parquet") == expected
    lake.close()
    return expected


def test_httpfs_gives_the_same_answers(extensions, store, prefix, tmp_path, sealed):
    """In a process of its own, because an extension stays loaded."""
    program = textwrap.dedent(
        f"""
        import lakestore as ls
        options = dict(storage_options={store.options!r}, local={str(tmp_path / "one")!r})
        lake = ls.open({prefix!r}, upkeep="manual", **options)
        assert lake._site.reads_store
        for table in ("parquet", "delta"):
            print([str(v) for v in lake.sql({QUERY!r}.format(table)).fetchall()[0]])
            print(lake[table].scan().collect().height, lake.connect().sql("FROM " + table).shape)
        print(lake._site.files.downloads)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HOME": str(extensions)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = [str(value) for value in sealed]
    assert done.stdout.splitlines() == [str(expected), "100 (100, 9)"] * 2 + ["0"]


def test_a_real_shell_attaches_the_views(extensions, store, prefix, duckdb_cli, sealed):
    setup = (
        "LOAD httpfs; CREATE SECRET (TYPE s3, KEY_ID '{AWS_ACCESS_KEY_ID}', "
        "SECRET '{AWS_SECRET_ACCESS_KEY}', URL_STYLE 'path', USE_SSL false, REGION 'us-east-1', "
    ).format(**KEYS)
    query = (
        f"{setup} ENDPOINT '127.0.0.1:{store.port}'); "
        f"ATTACH '{prefix}/lake.duckdb' AS lake (READ_ONLY); "
        "SELECT count(*), sum(n) FROM lake.parquet UNION ALL "
        "SELECT count(*), sum(n) FROM lake.delta"
    )
    done = subprocess.run(
        [duckdb_cli, "-csv", "-noheader", "-c", query],
        env={**os.environ, "HOME": str(extensions)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[-2:] == [f"100,{sealed[2]}"] * 2


def test_views_need_no_extension_to_be_made(open_s3: Open, store, prefix, tmp_path, sealed):
    """Explicit lists of the store's URLs, bound without asking it."""
    import duckdb

    storage = S3Storage(prefix, store.options)
    path = tmp_path / "views.duckdb"
    path.write_bytes(storage.read("lake.duckdb"))
    with duckdb.connect(str(path), read_only=True) as con:
        views = dict(
            con.execute("SELECT view_name, sql FROM duckdb_views() WHERE NOT internal").fetchall()
        )
        assert con.execute("SELECT n_rows FROM _lake").fetchall() == [(200,)]
    listed = set(re.findall(r"'(s3://[^']*)'", views["delta"]))
    data = {
        storage.url(k)
        for k in storage.list("tables/delta/")
        if k.endswith(".parquet") and "_delta_log" not in k
    }
    assert listed == data


def test_objects_are_whole_parquet(open_s3: Open, store, prefix, tmp_path, sealed):
    storage = S3Storage(prefix, store.options)
    rows = 0
    for number, key in enumerate(storage.list("tables/parquet/data/")):
        path = tmp_path / f"{number}.parquet"
        storage.download(key, storage.size(key) or 0, path)
        rows += pq.read_table(path, page_checksum_verification=True).num_rows
    assert rows == 100
