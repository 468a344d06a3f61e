"""Delta as a cold format: every engine reads it, others may write to it, and nothing doubles."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import localcontext
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from conftest import SCHEMA, events
from deltalake import DeltaTable, write_deltalake
from support.commands import rebuild

import lakestore as ls
from lakestore.delta import log as delta_log

Open = Callable[..., ls.Lake]
TYPES = ls.TableSchema.from_toml(
    """
    event_id = "id"
    event_time = "time"
    [columns]
    id = "VARCHAR not null"
    time = "TIMESTAMPTZ not null"
    tiny = "TINYINT"
    small = "SMALLINT"
    int = "INTEGER"
    big = "BIGINT"
    real = "REAL"
    double = "DOUBLE"
    exact = "DECIMAL(38,9)"
    text = "VARCHAR"
    bytes = "BLOB"
    flag = "BOOLEAN"
    day = "DATE"
    local = "TIMESTAMP"
    list = "INTEGER[]"
    struct = "STRUCT(a INTEGER, b VARCHAR[])"
    map = "MAP(VARCHAR, BIGINT)"
    """
)


@pytest.fixture
def delta(lake: ls.Lake) -> ls.Table:
    return lake.create_table("events", SCHEMA, cold="delta")


@pytest.fixture
def data(root: Path) -> Path:
    """The folder of the Delta table."""
    return root / "tables" / "events" / "data"


def versions(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "_delta_log").glob("*.json"))


def typed(n: int) -> dict[str, object]:
    time = datetime(2026, 2, 3, 4, 5, 6, 789_123, UTC) + timedelta(hours=n)
    if n % 5 == 4:
        return {"id": f"i{n}", "time": time}  # all the rest is null
    return {
        "id": f"i{n}", "time": time, "tiny": -n, "small": 1000 + n, "int": n * 100_000,
        "big": 2**62 + n, "real": n / 4, "double": n / 3, "exact": f"12345678901234567890.{n:09d}",
        "text": f"tä\n'\"{n}", "bytes": bytes([0, n, 255]), "flag": n % 2 == 0,
        "day": (time + timedelta(days=3)).date(), "local": time.replace(tzinfo=None),
        "list": [n, None], "struct": {"a": n, "b": ["x", None]}, "map": {f"k{n}": n},
    }  # fmt: skip


@pytest.fixture
def every_type(lake: ls.Lake) -> pa.Table:
    """What a table of every type holds, all of it sealed."""
    table = lake.create_table("events", TYPES, cold="delta")
    table.append([typed(n) for n in range(30)])
    table.seal()
    table.append([typed(n) for n in range(30, 40)])
    table.seal()
    return table.to_arrow().sort_by("id")


def test_deltalake_polars_and_pandas_read_every_type(every_type, data):
    table = DeltaTable(str(data))
    read = table.to_pyarrow_table().sort_by("id").select(every_type.column_names)
    assert read.cast(every_type.schema).equals(every_type)
    frame = pl.scan_delta(str(data)).collect().sort("id").select(every_type.column_names)
    assert frame.to_dicts() == pl.from_arrow(every_type).to_dicts()
    pandas = table.to_pandas().sort_values("id").reset_index(drop=True)
    assert pandas["text"].dropna().tolist() == every_type["text"].drop_null().to_pylist()
    days = set(table.to_pyarrow_table()["event_day"].to_pylist())
    assert days == {time.date() for time in every_type["time"].to_pylist()}


def test_a_duckdb_shell_reads_every_type(every_type, data, duckdb_cli, extensions):
    query = (
        f"LOAD delta; SELECT count(*), sum(big), sum(exact), count(DISTINCT text), sum(struct.a), "
        f"max(local), sum(list[1]), count(DISTINCT event_day) FROM delta_scan('{data}')"
    )
    done = subprocess.run(
        [duckdb_cli, "-csv", "-noheader", "-c", query],
        env={**os.environ, "HOME": str(extensions), "TZ": "UTC"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    rows = every_type.to_pylist()
    full = [row for row in rows if row["big"] is not None]
    with localcontext(prec=60):  # Python's own sums keep 28 digits
        exact = sum(row["exact"] for row in full)
    assert done.stdout.splitlines()[-1].split(",") == [
        "40", str(sum(r["big"] for r in full)), str(exact), "32",
        str(sum(r["struct"]["a"] for r in full)), str(max(r["local"] for r in full)),
        str(sum(r["list"][0] for r in full)), "2",
    ]  # fmt: skip


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_statistics_never_hide_a_row(every_type, data, offset):
    """Other engines skip files by our bounds; a row exactly at one must be found."""
    times = sorted(every_type["time"].to_pylist())
    for edge in (times[0], times[19], times[20], times[-1]):
        at = edge + timedelta(microseconds=offset)
        expected = sum(time >= at for time in times)
        frame = pl.scan_delta(str(data)).filter(pl.col("time") >= at)
        assert frame.select(pl.len()).collect().item() == expected
        dataset = DeltaTable(str(data)).to_pyarrow_dataset()
        assert dataset.count_rows(filter=pa.compute.field("time") >= at) == expected
    text = max(t for t in every_type["text"].to_pylist() if t)
    assert pl.scan_delta(str(data)).filter(pl.col("text") == text).collect().height == 1
    exact = max(e for e in every_type["exact"].to_pylist() if e)
    assert pl.scan_delta(str(data)).filter(pl.col("exact") == exact).collect().height == 1


def test_an_empty_table_is_a_table(delta, data):
    assert DeltaTable(str(data)).to_pyarrow_table().num_rows == 0
    assert delta.seal() == 0
    assert versions(data) == ["00000000000000000000.json"]


@pytest.mark.parametrize(
    ("declared", "instead"),
    [("UTINYINT", "SMALLINT"), ("UBIGINT", "DECIMAL"), ("TIME", "microseconds")],
)
def test_types_that_delta_lacks_are_named(lake, declared, instead):
    columns = {"id": "VARCHAR", "at": "TIMESTAMPTZ", "x": declared}
    document = {"event_id": "id", "event_time": "at", "columns": columns}
    schema = ls.TableSchema.from_document(document)
    with pytest.raises(ls.SchemaError, match=f"'x'.*{instead}"):
        lake.create_table("t", schema, cold="delta")
    assert lake.tables() == []
    lake.create_table("t", schema)  # Parquet has


def test_a_shipped_schema_with_a_day_of_its_own(lake, root):
    """`flights` has a column `day`, so the partition column is called otherwise."""
    table = lake.create_table("flights", "flights", cold="delta")
    log = root / "tables" / "flights" / "data" / "_delta_log" / f"{0:020d}.json"
    assert '"partitionColumns":["event_day"]' in log.read_text()
    assert "day" in table.schema.names


def test_what_others_append_and_delete_is_seen(lake, delta, data):
    delta.append(events(0, 100))
    delta.seal()
    delta.append(events(100, 130))
    delta.flush()
    theirs = events(1_000, 1_010).append_column("day", pa.nulls(10, pa.date32()))
    theirs = theirs.append_column("cost", pa.nulls(10, pa.decimal128(18, 6)))
    write_deltalake(str(data), theirs, mode="append")
    assert lake.sql("SELECT count(*), max(id) FROM events").fetchall() == [(140, "e001009")]
    DeltaTable(str(data)).delete("n < 50")
    kept = [n for n in range(100) if n % 11 == 0 or n >= 50]
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(len(kept) + 40,)]
    when = "time >= '2025-02-11' AND time < '2025-02-12'"  # hours 1,000 and later
    assert lake.sql(f"SELECT count(*) FROM events WHERE {when}").fetchall() == [(8,)]
    assert delta.seal() == 30
    assert delta.append(events(1_000, 1_005)).rows == 5
    assert delta.seal() == 0  # what they appended is no less an event
    assert lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [
        (len(kept) + 40, len(kept) + 40)
    ]
    assert lake.verify().ok


def test_a_foreign_compaction_is_respected(lake, delta, data):
    for start in range(0, 60, 20):
        delta.append(events(start, start + 20))
        delta.seal()
    DeltaTable(str(data)).optimize.compact()
    expected = [(60, 60, sum(n for n in range(60) if n % 11))]
    query = "SELECT count(*), count(DISTINCT id), sum(n) FROM events"
    assert lake.sql(query).fetchall() == expected
    delta.append(events(50, 70))
    delta.seal()
    assert lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [(70, 70)]
    assert lake.verify().ok


@pytest.mark.parametrize("reader", ["deltalake", "polars", "lakestore"])
def test_a_checkpoint_stands_for_the_versions_before_it(lake, delta, data, reader, monkeypatch,
                                                        open_lake: Open):  # fmt: skip
    monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 4)
    for start in range(0, 60, 10):
        delta.append(events(start, start + 10))
        delta.seal()
    hint = json.loads((data / "_delta_log" / "_last_checkpoint").read_text())
    assert hint["version"] == 4
    for name in versions(data)[:5]:
        (data / "_delta_log" / name).unlink()
    if reader == "deltalake":
        rows = DeltaTable(str(data)).to_pyarrow_table().num_rows
        app = f"lakestore/{lake.status().lake}/{lake._site.catalog.site}"
        assert DeltaTable(str(data)).transaction_version(app) == 6
    elif reader == "polars":
        rows = pl.scan_delta(str(data)).select(pl.len()).collect().item()
    else:
        rows = open_lake().sql("SELECT count(*) FROM events").fetchall()[0][0]
    assert rows == 60


def test_a_sleeper_does_not_commit_into_the_past(lake, delta, data, open_lake, monkeypatch):
    """Versions that it has not read were cleaned away: their names are free, and not the next."""
    monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 4)
    other = open_lake(local=data.parents[2] / "other")["events"]
    other.append(events(100, 110))
    other.flush()
    for start in range(0, 60, 10):
        delta.append(events(start, start + 10))
        delta.seal()
    for name in versions(data)[:5]:
        (data / "_delta_log" / name).unlink()
    assert other.seal() == 10
    assert versions(data)[-1] == f"{8:020d}.json"
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(70,)]


def test_a_damaged_checkpoint_costs_nothing(lake, delta, data, open_lake, monkeypatch, caplog):
    monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 2)
    for start in range(0, 40, 10):
        delta.append(events(start, start + 10))
        delta.seal()
    (checkpoint, *_) = (data / "_delta_log").glob("*4.checkpoint.parquet")
    checkpoint.write_bytes(b"PAR1 no more")
    assert open_lake().sql("SELECT count(*) FROM events").fetchall() == [(40,)]
    assert "cannot be read" in caplog.text


def test_a_lost_reply_is_read_back(lake, delta, monkeypatch):
    """The version was made, and the answer says it exists: it is ours."""
    delta.append(events(0, 10))
    put_new = lake._site.storage.put_new
    lost = []

    def put(key: str, source: Path) -> bool:
        created = put_new(key, source)
        if "_delta_log" in key:
            lost.append(key)
            return False
        return created

    monkeypatch.setattr(lake._site.storage, "put_new", put)
    assert delta.seal() == 10
    assert len(lost) == 1
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(10,)]
    assert lake.verify().problems == ()


@pytest.mark.parametrize("silent", [False, True])
def test_an_unknown_end_is_found_out(lake, delta, data, monkeypatch, silent):
    """A version was made and nobody was told: its rows are cold, and sealed once."""
    delta.append(events(0, 10))
    storage = lake._site.storage
    put_new = storage.put_new

    def put(key: str, source: Path) -> bool:
        created = put_new(key, source)
        if "_delta_log" in key:
            if silent:
                patch.setattr(storage, "read", _silent)  # nor can it be asked
            raise ls.StorageError("the answer was lost")
        return created

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_new", put)
        if silent:
            with pytest.raises(ls.CommitUncertainError, match="the next one finds out"):
                delta.seal()
        else:
            delta.seal()
    assert len(versions(data)) == 2
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(10,)]  # in one tier
    delta.append(events(10, 20))
    assert delta.seal() in (10, 20)
    assert lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [(20, 20)]
    assert DeltaTable(str(data)).to_pyarrow_table().num_rows == 20
    assert lake.verify().problems == ()


def test_segments_that_a_seal_has_claimed_are_not_merged(delta, open_lake, monkeypatch):
    """Another process's merge, between a seal's version of the log and its catalog."""
    from lakestore import flush

    settings = {"segments_max": 2}
    other = open_lake(settings=settings)
    for start in range(0, 30, 10):
        delta.append(events(start, start + 10))
        delta.flush()
    context = other["events"]._context
    assert flush.merge_is_due(context)
    with monkeypatch.context() as patch:  # stopped with its version on the way
        patch.setattr(delta_log.DeltaLog, "commit", _silent)
        with pytest.raises(ls.CommitUncertainError):
            delta.seal()
    assert not flush.merge_is_due(context)
    assert other.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [(30, 30)]
    other.seal()
    assert other.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall() == [(30, 30)]
    assert other.verify().ok


def test_features_that_are_not_read_are_named(lake, delta, data):
    delta.append(events(0, 10))
    delta.seal()
    features = ["deletionVectors"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    protocol |= {"readerFeatures": features, "writerFeatures": features}
    _forge(data, 2, {"protocol": protocol})
    with pytest.raises(ls.FormatTooNewError, match="needs deletionVectors"):
        lake.sql("FROM events")


def test_a_changed_schema_stops_seals_alone(lake, delta, data):
    """Another engine has retyped a column: what was sealed is read, what waits is kept."""
    delta.append(events(0, 10))
    delta.seal()
    metadata = json.loads((data / "_delta_log" / f"{0:020d}.json").read_text().splitlines()[2])
    text = metadata["metaData"]["schemaString"]
    other = text.replace('"name": "n", "type": "long"', '"name": "n", "type": "string"')
    assert other != text
    metadata["metaData"]["schemaString"] = other
    _forge(data, 2, metadata)
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(10,)]
    delta.append(events(10, 20))
    with pytest.raises(ls.SchemaError, match=r"lacks n \(string, not long\)"):
        delta.seal()
    metadata["metaData"]["schemaString"] = text
    _forge(data, 3, metadata)
    assert delta.seal() == 10
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(20,)]


def _forge(data: Path, version: int, *actions: dict[str, object]) -> Path:
    path = data / "_delta_log" / f"{version:020d}.json"
    path.write_text("".join(json.dumps(action) + "\n" for action in actions))
    return path


ADD = {"path": "day=2025-01-01/x.parquet", "partitionValues": {"day": "2025-01-01"}, "size": 9,
       "modificationTime": 1, "dataChange": True, "stats": '{"numRecords": 1}'}  # fmt: skip
FORGERIES = {
    "above": [{"add": ADD | {"path": "../../secret.parquet"}}],
    "above, encoded": [{"add": ADD | {"path": "%2e%2e/%2E%2E/secret.parquet"}}],
    "within": [{"add": ADD | {"path": "day=1/../../x.parquet"}}],
    "absolute": [{"add": ADD | {"path": "/etc/passwd"}}],
    "URL": [{"add": ADD | {"path": "s3://other/x.parquet"}}],
    "file URL": [{"add": ADD | {"path": "file:///etc/passwd"}}],
    "empty": [{"add": ADD | {"path": ""}}],
    "pattern": [{"add": ADD | {"path": "day=*/x.parquet"}}],
    "NUL": [{"add": ADD | {"path": "a%00b.parquet"}}],
    "removed above": [{"remove": {"path": "../x.parquet", "deletionTimestamp": 1}}],
    "negative size": [{"add": ADD | {"size": -1}}],
    "huge size": [{"add": ADD | {"size": 2**70}}],
    "size that is no number": [{"add": ADD | {"size": "9"}}],
    "no path": [{"add": {k: v for k, v in ADD.items() if k != "path"}}],
    "no day": [{"add": ADD | {"partitionValues": {"day": "yesterday"}}}],
    "statistics": [{"add": ADD | {"stats": "[" * 3_000}}],
    "rows": [{"add": ADD | {"stats": '{"numRecords": -5}'}}],
    "twice": [{"add": ADD}, {"add": ADD}],
    "twice, two sizes": [{"add": ADD}, {"add": ADD | {"size": 10}}],
    "no action": [7],
    "nested": [{"add": [[]]}],
    "format": [{"metaData": {"id": "x", "schemaString": "{}", "format": {"provider": "orc"}}}],
    "another lake": [
        {
            "metaData": {
                "id": "x",
                "schemaString": "{}",
                "configuration": {"lakestore.lake": "other"},
            }
        }
    ],
    "no lake": [{"metaData": {"id": "x", "schemaString": "{}"}}],
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_versions_are_refused(lake, delta, data, name, open_lake):
    delta.append(events(0, 10))
    delta.seal()
    path = _forge(data, 2, *FORGERIES[name])
    with pytest.raises(ls.CorruptionError, match="forged|cannot be"):
        lake.sql("FROM events")
    report = open_lake(mode="r").verify()
    assert [problem.kind for problem in report.problems] == ["log"]
    path.unlink()
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(10,)]


def test_a_replayed_seal_is_refused(lake, delta, data):
    delta.append(events(0, 10))
    delta.seal()
    first = data / "_delta_log" / f"{1:020d}.json"
    shutil.copy(first, data / "_delta_log" / f"{2:020d}.json")
    with pytest.raises(ls.CorruptionError, match="once more"):
        lake.sql("FROM events")


def test_a_flipped_digit_of_ours_is_found(delta, data, open_lake):
    delta.append(events(0, 10))
    delta.seal()
    path = data / "_delta_log" / f"{1:020d}.json"
    text = path.read_text()
    path.write_text(re.sub(r'"size":\d', '"size":9', text, count=1))
    reader = open_lake(mode="r")
    with pytest.raises(ls.CorruptionError, match="digest"):
        reader.sql("FROM events")


def test_a_missing_version_of_ours_is_named(lake, delta, data, open_lake):
    for start in (0, 10, 20):
        delta.append(events(start, start + 10))
        delta.seal()
    (data / "_delta_log" / f"{2:020d}.json").rename(data / "kept")
    (problem,) = open_lake(mode="r").verify().problems
    assert problem.kind == "log"
    assert "segments up to 3 were sealed" in problem.what


def test_a_gap_in_the_versions_of_others_is_found(lake, delta, data, open_lake):
    delta.append(events(0, 10))
    delta.seal()
    for version in (2, 3):
        _forge(data, version, {"commitInfo": {"operation": "WRITE"}})
    (data / "_delta_log" / f"{2:020d}.json").unlink()
    problems = open_lake(mode="r").verify().problems
    told = [(p.kind, p.what) for p in problems]
    assert told == [("log", "it is missing, and the log goes on to version 3")]


def test_a_lost_log_is_named(lake, delta, data, open_lake):
    delta.append(events(0, 10))
    delta.seal()
    shutil.rmtree(data / "_delta_log")
    with pytest.raises(ls.CorruptionError, match="restore its _delta_log"):
        open_lake(mode="r").sql("FROM events")


@pytest.mark.sqlite
def test_the_catalog_is_made_again_from_the_log(lake, delta, root, clock, open_lake):
    for start in range(0, 60, 20):
        delta.append(events(start, start + 20), producer="job", seq=start)
        delta.seal()
    delta.append(events(60, 80))
    delta.flush()
    delta.append(events(80, 90))
    lake.close()
    for path in (root / "_site").glob("catalog.sqlite*"):
        path.unlink()
    with pytest.raises(ls.CorruptionError, match="lakestore rebuild"):
        open_lake()
    rebuild(root, clock)
    again = open_lake()
    query = "SELECT count(*), count(DISTINCT id) FROM events"
    assert again.sql(query).fetchall() == [(90, 90)]
    assert again["events"].append(events(0, 1), producer="job", seq=40).rows == 0
    again.seal()
    assert again.sql(query).fetchall() == [(90, 90)]
    assert again.verify().problems == ()


def test_nobody_reads_the_folder(lake, delta, data):
    """A file that no version adds is not there, whatever its name."""
    delta.append(events(0, 10))
    delta.seal()
    (file,) = data.glob("day=*/*.parquet")
    shutil.copy(file, file.with_name("copy.parquet"))
    assert lake.sql("SELECT count(*) FROM events").fetchall() == [(10,)]


def test_a_dropped_table_goes_with_its_log(lake, delta, data, clock):
    delta.append(events(0, 10))
    delta.seal()
    lake.drop_table("events")
    clock.move(10_000)
    lake.maintain()
    assert not (data / "_delta_log" / f"{0:020d}.json").exists()
    assert lake.verify().problems == ()
    again = lake.create_table("events", SCHEMA, cold="delta")
    again.append(events(0, 5))
    assert again.seal() == 5


def test_reading_the_log_costs_what_is_new(lake, delta, monkeypatch):
    """Ten versions are read once, and one more costs one more."""
    for start in range(0, 100, 10):
        delta.append(events(start, start + 10))
        delta.seal()
    reads = []
    read = delta_log.DeltaLog.read
    monkeypatch.setattr(delta_log.DeltaLog, "read", lambda log, v: reads.append(v) or read(log, v))
    lake.sql("SELECT count(*) FROM events")
    assert reads == [11]
    delta.append(events(100, 110))
    delta.seal()
    reads.clear()
    lake.sql("SELECT count(*) FROM events")
    assert reads == [12]


def _silent(*_: object) -> bool:
    raise ls.StorageError("no answer")


SIX_HOURS = timedelta(hours=6)


def seal_some(table: ls.Table, start: int, stop: int) -> None:
    """Four events a day, sealed two by two."""
    for first in range(start, stop, 2):
        table.append(events(first, first + 2, step=SIX_HOURS))
        table.seal()


def read_by_others(data: Path) -> list[list[str]]:
    """The ids that each engine reads, in order."""
    ours = DeltaTable(str(data)).to_pyarrow_table()["id"].to_pylist()
    polars = pl.scan_delta(str(data)).collect()["id"].to_list()
    return [sorted(ours), sorted(polars)]


@pytest.mark.sqlite
def test_a_compaction_beside_what_others_rewrite_and_delete(open_lake: Open, root, data, clock):
    lake = open_lake(settings={"cold_grace_s": 0, "vacuum_grace_s": 0})
    table = lake.create_table("events", SCHEMA, cold="delta")

    def ids() -> list[str]:
        """What all agree to be there."""
        found = sorted(lake.sql("SELECT id FROM events").to_arrow()["id"].to_pylist())
        assert read_by_others(data) == [found, found]
        assert lake.verify().ok
        return found

    def named(numbers: Iterable[int]) -> list[str]:
        return [f"e{n:06d}" for n in numbers]

    seal_some(table, 0, 16)
    assert table.compact().files_before == 8
    assert ids() == named(range(16))
    gone = DeltaTable(str(data)).vacuum(
        dry_run=True, retention_hours=0, enforce_retention_duration=False
    )
    assert len([name for name in gone if name.endswith(".parquet")]) == 8
    seal_some(table, 16, 20)
    DeltaTable(str(data)).delete("n = 5 or n = 17")  # in one of ours of each kind
    kept = [n for n in range(20) if n not in (5, 17)]
    assert ids() == named(kept)
    seal_some(table, 20, 28)
    assert table.compact().files_before > 0
    assert ids() == named([*kept, *range(20, 28)])
    DeltaTable(str(data)).optimize.compact()
    assert ids() == named([*kept, *range(20, 28)])
    clock.move(1000)
    assert table.vacuum(dry_run=False).cold
    seal_some(table, 26, 34)
    table.compact()
    assert ids() == named([*kept, *range(20, 34)])
    told = [entry["operation"] for entry in DeltaTable(str(data)).history()]
    assert {"OPTIMIZE", "DELETE", "WRITE"} <= set(told)
    lake.close()
    (root / "_site/catalog.sqlite").unlink()
    rebuild(root)
    lake = open_lake(settings={"cold_grace_s": 0, "vacuum_grace_s": 0})
    table = lake["events"]
    assert ids() == named([*kept, *range(20, 34)])
    table.append(events(30, 36, step=SIX_HOURS))
    table.seal()
    assert table.compact().days > 0
    assert ids() == named([*kept, *range(20, 36)])


@pytest.mark.parametrize("reader", ["deltalake", "polars", "lakestore", "a stranger"])
def test_a_checkpoint_at_the_version_of_a_compaction(open_lake: Open, root, data, reader,
                                                     monkeypatch):  # fmt: skip
    """It remembers what went, and what went is not read."""
    monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 5)
    lake = open_lake(settings={"cold_grace_s": 10**6})
    table = lake.create_table("events", SCHEMA, cold="delta")
    for start in range(0, 16, 4):  # versions 1 to 4, of a day each
        table.append(events(start, start + 2, step=timedelta(hours=1)))
        table.seal()
    assert table.compact().files_after == 1
    hint = json.loads((data / "_delta_log" / "_last_checkpoint").read_text())
    assert (hint["version"], DeltaTable(str(data)).version()) == (5, 5)
    for name in versions(data)[:6]:
        (data / "_delta_log" / name).unlink()
    table.append(events(16, 20, step=timedelta(hours=1)))
    table.seal()
    expected = sorted(f"e{n:06d}" for n in range(20) if n >= 16 or n % 4 < 2)
    if reader == "deltalake":
        assert read_by_others(data)[0] == expected
    elif reader == "polars":
        assert read_by_others(data)[1] == expected
    else:
        again = open_lake(mode="r") if reader == "lakestore" else open_lake()
        found = again.sql("SELECT id FROM events").to_arrow()["id"].to_pylist()
        assert sorted(found) == expected
        assert again.verify().ok
        if reader == "a stranger":
            lake.close()
            assert again["events"].compact().files_before == 2
            assert read_by_others(data) == [expected, expected]


def test_a_duckdb_shell_reads_what_was_compacted(lake, delta, data, duckdb_cli, extensions):
    seal_some(delta, 0, 16)
    delta.compact()
    query = f"LOAD delta; SELECT count(*), count(DISTINCT id), sum(n) FROM delta_scan('{data}')"
    done = subprocess.run(
        [duckdb_cli, "-csv", "-noheader", "-c", query],
        env={**os.environ, "HOME": str(extensions), "TZ": "UTC"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    expected = sum(n for n in range(16) if n % 11)
    assert done.stdout.splitlines()[-1] == f"16,16,{expected}"
