"""Payloads leave the event row at flush, and are found again, whole, from every tier."""

import hashlib
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FixedClock, die
from deltalake import DeltaTable
from support.bitrot import harms
from support.commands import rebuild
from support.store import Store

import lakestore as ls
from lakestore import failpoint, flush, payload
from lakestore.layout import PayloadName, PayloadReference
from lakestore.query.attach import attach, read

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
SCHEMA = ls.TableSchema.from_toml(
    """
    format = 2
    event_id = "id"
    event_time = "t"
    [columns]
    id = "VARCHAR not null"
    t = "TIMESTAMPTZ not null"
    body = "VARCHAR"
    raw = "BLOB"
    begun = "VARCHAR"
    hashed = "VARCHAR"
    gone = "BLOB"
    [payload]
    body = "full"
    raw = "full"
    begun = "preview"
    hashed = "hash"
    gone = "none"
    """
)
SECRETS = ("tail-of-a-preview", "hashed-away", "never-kept")
BIG = Random(5).randbytes(150_000).hex()

Event = dict[str, Any]


def event(number: int, body: str | None, raw: bytes | None = None, *, day: int = 0) -> Event:
    """An event; what policies drop of it is in SECRETS."""
    return {
        "id": f"e{number}",
        "t": NOON + timedelta(days=day, seconds=number),
        "body": body,
        "raw": raw,
        "begun": f"é{number} ".ljust(256, ".") + SECRETS[0],
        "hashed": f"{SECRETS[1]} {number}",
        "gone": f"{SECRETS[2]} {number}".encode(),
    }


EVENTS = [
    event(0, "plain"),
    event(1, ""),
    event(2, None),
    event(3, None, b""),
    event(4, "naïve ☃ 𝄞\0", b"\x00\xff\xfe"),
    event(5, BIG, day=1),
    event(6, "plain"),
    event(7, "late", day=-3),
    event(8, BIG, day=1),
]


def with_payloads(lake: ls.Lake, table: str = "usage") -> list[Event]:
    """All events as a query finds them, their payloads attached, by number."""
    rows = lake.sql(f"FROM {table} ORDER BY id").to_arrow().to_pylist()
    attach(lake._queries, lake[table]._context, rows)
    return rows


def check(lake: ls.Lake, expected: list[Event], table: str = "usage") -> None:
    """The events are there with what each policy keeps, and the view has their payloads."""
    found = with_payloads(lake, table)
    assert [row["id"] for row in found] == [e["id"] for e in expected]
    for row, e in zip(found, expected, strict=True):
        assert (row["body"], row["raw"]) == (e["body"], e["raw"]), row["id"]
        assert row["body_bytes"] == (None if e["body"] is None else len(e["body"].encode()))
        assert row["raw_bytes"] == (None if e["raw"] is None else len(e["raw"]))
        assert (row["begun_preview"], row["begun_bytes"]) == (e["begun"][:256], 256 + 1 + 17)
        assert row["hashed_sha256"] == hashlib.sha256(e["hashed"].encode()).hexdigest()
        assert row["gone_bytes"] == len(e["gone"])
        assert not row.keys() & {"begun", "hashed", "gone", "payload_missing"}
    viewed = lake.sql(f"SELECT id, t, body, raw FROM {table}_payload ORDER BY id").fetchall()
    wanted = [e for e in expected if e["body"] is not None or e["raw"] is not None]
    assert viewed == [(e["id"], e["t"], e["body"], e["raw"]) for e in wanted]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.parquet") if path.is_file())


@pytest.fixture(params=["parquet", "delta"])
def usage(request: pytest.FixtureRequest, lake: ls.Lake) -> ls.Table:
    return lake.create_table("usage", SCHEMA, cold=request.param)


def local(table: ls.Table) -> list[Path]:
    return files(table._context.payload_folder)


def in_root(root: Path) -> list[Path]:
    return files(root / "tables" / "usage" / "_payload")


def test_payloads_come_back_from_every_tier(open_lake, lake, usage, root):
    usage.append(EVENTS[:5])
    check(lake, EVENTS[:5])
    usage.flush()
    check(lake, EVENTS[:5])
    usage.append(EVENTS[5:])
    check(lake, EVENTS)
    assert usage.seal() == len(EVENTS)
    check(lake, EVENTS)
    assert lake.verify().ok
    lake.close()
    with open_lake(mode="r") as reader:
        check(reader, EVENTS)


def test_events_refer_to_one_file_a_flush_and_day(lake, usage):
    usage.append(EVENTS)
    usage.flush()
    rows = lake.sql("SELECT id, t::DATE, payload_ref FROM usage ORDER BY id").fetchall()
    references = {id: None if ref is None else PayloadReference.parse(ref) for id, _, ref in rows}

    assert references.pop("e2") is None
    assert all(ref.name.day == day for id, day, text in rows if (ref := references.get(id)))
    assert [path.parent.name for path in local(usage)] == [
        "day=2024-12-29", "day=2025-01-01", "day=2025-01-02",
    ]  # fmt: skip
    (segment,) = usage._context.state().hot
    names = {str(ref.name) for ref in references.values()}
    assert (
        set(segment.info.payload)
        == names
        == {path.relative_to(usage._context.payload_folder).as_posix() for path in local(usage)}
    )
    for path in local(usage):
        name = PayloadName.parse(f"{path.parent.name}/{path.name}")
        assert (path.stat().st_size, payload.sha256(path)[:12]) == (name.bytes, name.sha12)


def test_the_status_tells_how_large_payloads_are(lake, usage, root):
    def told() -> list[tuple[int, int]]:
        tiers = lake.status().tables[0].tiers
        return [(tier.payload_files, tier.payload_bytes) for tier in tiers]

    def found(folder: Path) -> tuple[int, int]:
        sizes = [path.stat().st_size for path in folder.rglob("*.parquet")]
        return len(sizes), sum(sizes)

    usage.append(EVENTS)
    assert told() == [(0, 0)] * 3
    usage.flush()
    hot = found(root / "_site/payload/usage")
    assert told() == [(0, 0), hot, (0, 0)]
    assert "bytes of payloads" in str(lake.status())
    usage.seal()
    assert told() == [(0, 0), (0, 0), hot]
    assert found(root / "tables/usage/_payload") == hot
    assert hot[0] > 0


def test_identical_payloads_of_a_flush_and_day_are_stored_once(lake, usage):
    usage.append([event(n, BIG) for n in range(20)] + [event(20, BIG, b"more")])
    usage.flush()
    (path,) = local(usage)
    assert path.stat().st_size < 3 * len(BIG)
    found = pq.read_table(path)
    assert found["same_as"].to_pylist() == [None, *[0] * 19, None]
    assert found["body"].null_count == 19
    references = lake.sql("SELECT DISTINCT payload_ref FROM usage").fetchall()
    assert len(references) == 2
    check(lake, sorted([event(n, BIG) for n in range(20)] + [event(20, BIG, b"more")],
                       key=lambda e: e["id"]))  # fmt: skip


def test_one_lookup_reads_a_small_part(lake, usage):
    bodies = [Random(n).randbytes(150_000).hex() for n in range(20)]
    usage.append([event(n, body) for n, body in enumerate(bodies)])
    usage.flush()
    (path,) = local(usage)
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    assert len(groups) == 7
    assert max(group.num_rows for group in groups) == 3
    told = json.loads(metadata.metadata[b"lakestore"])
    assert (told["tier"], told["day"], told["rows"]) == ("payload", "2025-01-01", 20)
    assert told["lake"] == lake._site.catalog.lake
    column = groups[0].column(metadata.schema.names.index("body"))
    assert column.compression == "ZSTD"
    assert not column.is_stats_set
    assert groups[0].column(0).statistics.has_min_max
    check(lake, sorted([event(n, b) for n, b in enumerate(bodies)], key=lambda e: e["id"]))


def test_references_survive_merge_and_seal(open_lake, root, clock):
    lake = open_lake(settings={"segments_max": 2, "vacuum_grace_s": 60})
    usage = lake.create_table("usage", SCHEMA)
    for one in EVENTS[:5]:
        usage.append(one)
        usage.flush()
    segments = usage._context.state().hot
    assert len(segments) < 5  # merged
    check(lake, EVENTS[:5])
    assert lake.verify().ok
    names = [path.name for path in local(usage)]
    assert len(names) == 4  # one event has no payload
    usage.seal()
    check(lake, EVENTS[:5])
    assert [path.name for path in in_root(root)] == names
    assert len(usage.vacuum().payload) == 0  # within the grace
    clock.move(120)
    assert len(usage.vacuum(dry_run=False).payload) == 4
    assert local(usage) == []
    check(lake, EVENTS[:5])
    assert lake.verify().ok


def test_a_payload_of_unsealed_rows_is_not_garbage(open_lake, clock):
    lake = open_lake(settings={"vacuum_grace_s": 0})
    usage = lake.create_table("usage", SCHEMA)
    usage.append(EVENTS[:5])
    usage.seal()
    usage.append(EVENTS[5:])
    usage.flush()
    clock.move(10)
    assert len(usage.vacuum(dry_run=False).payload) == 1
    assert len(local(usage)) == 3
    check(lake, EVENTS)


def test_what_policies_drop_never_reaches_the_disk(open_lake, root):
    lake = open_lake()
    usage = lake.create_table("usage", SCHEMA)
    kept = event(0, "kept-whole")
    usage.append(kept)
    said = [p for p in root.rglob("*.journal") if b"kept-whole" in p.read_bytes()]
    assert len(said) == 1

    def found() -> set[str]:
        written = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
        return {secret for secret in SECRETS if any(secret.encode() in data for data in written)}

    assert found() == set()
    usage.flush()
    assert found() == set()
    usage.seal()
    assert found() == set()
    die(lake)
    again = open_lake()
    check(again, [kept])


def test_a_journal_of_a_dead_writer_gives_its_payloads(open_lake):
    lake = open_lake()
    lake.create_table("usage", SCHEMA).append(EVENTS)
    with open_lake(mode="r") as reader:  # out of another process's journal
        check(reader, EVENTS)
    die(lake)
    again = open_lake()
    check(again, EVENTS)
    again.flush()
    check(again, EVENTS)


def test_a_flush_between_the_query_and_its_payloads(lake, usage):
    usage.append(EVENTS)
    rows = lake.sql("FROM usage ORDER BY id").to_arrow().to_pylist()
    assert {row["payload_ref"] for row in rows} == {None}
    usage.flush()
    attach(lake._queries, usage._context, rows)
    assert [(r["body"], r["raw"]) for r in rows] == [(e["body"], e["raw"]) for e in EVENTS]


def test_a_missing_file_gives_the_light_event_with_a_flag(lake, usage, root):
    usage.append(EVENTS)
    usage.seal()
    for path in [*local(usage), *in_root(root)]:
        if path.parent.name == "day=2025-01-02":
            path.unlink()
    found = {row["id"]: row for row in with_payloads(lake)}
    assert found["e5"]["payload_missing"] is True
    assert (found["e5"]["body"], found["e5"]["body_bytes"]) == (None, len(BIG))
    assert found["e4"]["body"] == EVENTS[4]["body"]
    assert "payload_missing" not in found["e4"]
    (name,) = {found["e5"]["payload_ref"]}
    assert read(usage._context, [name]) == {name: None}
    report = lake.verify()
    assert [(p.kind, p.severity) for p in report.problems if p.kind != "dangling"] == [
        ("payload", "damage")
    ]


def test_a_damaged_payload_is_never_handed_out(lake, usage):
    """Flipped bits, cuts, zeroed sectors, a pipe: what is handed out is right, or nothing is."""
    usage.append(event(0, BIG))
    usage.flush()
    (path,) = local(usage)
    whole = path.read_bytes()
    (reference,) = lake.sql("SELECT payload_ref FROM usage").fetchone()
    refused = 0
    for harm in harms(whole, Random(11), flips=40):
        harm.do(path)
        try:
            found = read(usage._context, [reference])
        except ls.CorruptionError as error:
            refused += path.name in str(error)
        else:  # in bytes that a lookup has no use for
            assert found == {reference: {"body": BIG, "raw": None}}, harm.name
        problems = {(p.kind, p.severity, p.file) for p in lake.verify().problems}
        assert ("payload", "damage", path) in problems, harm.name
    assert refused > 40
    with pytest.raises(ls.LakestoreError, match="no regular file"):  # it is a pipe by now
        lake.sql("FROM usage_payload")
    path.unlink()
    path.write_bytes(whole)
    assert lake.verify().ok


def test_a_value_is_held_against_its_sha256(lake, usage):
    """Even in a file that is whole by itself: another one under its name."""
    usage.append(event(0, "right"))
    usage.flush()
    (path,) = local(usage)
    table = pq.read_table(path)
    forged = table.set_column(2, table.field(2), pa.array(["wrong"]))
    pq.write_table(forged, path)
    (reference,) = lake.sql("SELECT payload_ref FROM usage").fetchone()
    with pytest.raises(ls.CorruptionError, match="another sha256"):
        read(usage._context, [reference])
    with pytest.raises(ls.CorruptionError, match="is not the name"):
        read(usage._context, ["../../etc/passwd#0"])
    with pytest.raises(ls.CorruptionError, match="cannot be read"):
        read(usage._context, [reference.replace("#0", "#7")])


def test_a_seal_does_not_take_damaged_payloads(lake, usage):
    usage.append(EVENTS)
    usage.flush()
    path = local(usage)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ls.CorruptionError, match=r"payload file .* bytes of"):
        usage.seal()
    path.unlink()
    with pytest.raises(ls.CorruptionError, match=r"payload file .* is gone"):
        usage.seal()
    path.write_bytes(whole)
    assert usage.seal() == len(EVENTS)
    check(lake, EVENTS)


def test_a_crash_before_the_commit_leaves_only_leftovers(open_lake, usage, lake):
    usage.append(EVENTS)
    with (
        failpoint.at("flush.6", "ENOSPC"),
        pytest.raises((OSError, ls.StorageError)),
    ):
        usage.flush()
    named = local(usage)
    assert len(named) == 3
    check(lake, EVENTS)  # from the buffer still
    usage.flush()  # the same generations again: the same files
    assert local(usage) == named
    check(lake, EVENTS)
    assert lake.verify().ok


def test_leftovers_are_told_and_moved_away(lake, usage, root):
    usage.append(EVENTS)
    usage.flush()
    path = local(usage)[0]
    stray = path.with_name(path.name.replace("-", "-9", 1))
    stray.write_bytes(b"stray")
    other = root / "tables" / "usage" / "_payload" / "day=2025-01-01" / path.name
    other.parent.mkdir(parents=True)
    other.write_bytes(b"stray")
    report = lake.verify()
    assert report.ok
    assert {(p.kind, p.file) for p in report.problems} == {("orphan", stray), ("orphan", other)}
    lake.repair(dry_run=False)
    assert not stray.exists()
    assert not other.exists()
    check(lake, EVENTS)


def test_rows_that_another_engine_rewrote_keep_their_payloads(lake, root):
    usage = lake.create_table("usage", SCHEMA, cold="delta")
    for some in (EVENTS[:2], EVENTS[2:5]):
        usage.append(some)
        usage.seal()
    DeltaTable(root / "tables/usage/data").optimize.compact()
    assert len(usage._context.state().cold) == 1
    report = lake.verify()
    assert not [p for p in report.problems if "payload" in p.what], report
    rows = with_payloads(lake)
    assert [(r["body"], r["raw"]) for r in rows] == [(e["body"], e["raw"]) for e in EVENTS[:5]]


@pytest.mark.sqlite
def test_a_rebuild_finds_payloads_again(open_lake, root, clock):
    lake = open_lake(settings={"vacuum_grace_s": 0})
    usage = lake.create_table("usage", SCHEMA)
    usage.append(EVENTS[:5])
    usage.seal()
    usage.append(EVENTS[5:])
    usage.flush()
    lake.close()
    (root / "_site" / "catalog.sqlite").unlink()
    rebuild(root, clock=clock)
    again = open_lake(settings={"vacuum_grace_s": 0})
    check(again, EVENTS)
    assert again.verify().ok
    clock.move(10)
    assert len(again["usage"].vacuum(dry_run=False).payload) == 1
    assert len(local(again["usage"])) == 3
    check(again, EVENTS)
    assert again.verify().ok


def test_a_dropped_table_takes_its_payloads_along(open_lake, root, clock):
    lake = open_lake(settings={"vacuum_grace_s": 0})
    usage = lake.create_table("usage", SCHEMA)
    usage.append(EVENTS[:5])
    usage.seal()
    usage.append(EVENTS[5:])
    usage.flush()
    folder = usage._context.payload_folder
    lake.drop_table("usage")
    clock.move(10)
    lake.maintain()
    assert in_root(root) == []
    assert not folder.exists()


def test_any_engine_reads_payload_files(lake, usage, root, duckdb_cli):
    usage.append(EVENTS[:6])
    usage.seal()
    usage.append(EVENTS[6:])
    usage.flush()
    query = "SELECT id, length(body) AS n, octet_length(raw) AS m FROM usage_payload ORDER BY id"
    expected = lake.sql(query).fetchall()
    done = subprocess.run(
        [duckdb_cli, "-readonly", "-json", str(root / "lake.duckdb"), query],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [tuple(row.values()) for row in json.loads(done.stdout)] == expected
    assert len(expected) == len(EVENTS) - 1

    frame = pl.read_parquet([*in_root(root), *local(usage)], hive_partitioning=False)
    rows = dict(frame.unique().select("id", "body").iter_rows())
    assert rows["e4"] == EVENTS[4]["body"]
    con = lake.connect()
    assert con.sql(query).fetchall() == expected


def test_the_view_of_an_empty_table_and_of_a_name_that_is_taken(lake, root, duckdb_cli):
    lake.create_table("usage", SCHEMA)
    assert lake.sql("SELECT * FROM usage_payload").columns == ["id", "t", "body", "raw"]
    done = [duckdb_cli, "-readonly", str(root / "lake.duckdb"), "FROM usage_payload"]
    assert subprocess.run(done, capture_output=True).returncode == 0
    taken = lake.create_table("usage_payload", SCHEMA)
    taken.append(EVENTS[0])
    taken.flush()
    assert lake.sql("SELECT count(*), any_value(body_bytes) FROM usage_payload").fetchone() == (
        1, 5,
    )  # fmt: skip
    assert lake.verify().ok


def test_payloads_in_a_store(store: Store, prefix: str, tmp_path: Path, clock: FixedClock):
    def opened(host: str) -> ls.Lake:
        return ls.open(
            prefix, local=tmp_path / host, storage_options=store.options, upkeep="manual",
            clock=clock, settings={"vacuum_grace_s": 0},
        )  # fmt: skip

    with opened("one") as one, opened("two") as two:
        mine = one.create_table("usage", SCHEMA, cold="delta")
        theirs = two["usage"]
        mine.append(EVENTS[:4])
        theirs.append(EVENTS[4:])
        mine.seal()
        theirs.seal()
        clock.move(10)
        assert len(mine.vacuum(dry_run=False).payload) == 1
        check(one, EVENTS)
        check(two, EVENTS)
        assert one.verify().ok
        (reference,) = one.sql("SELECT payload_ref FROM usage WHERE id = 'e5'").fetchone()
        name = reference.partition("#")[0]
        one._site.storage.delete(mine._context.payload_key(name))
        assert "payload" in {p.kind for p in one.verify().problems}


def test_a_seal_that_the_store_cut_short_is_done_again(store, prefix, tmp_path, clock):
    lake = ls.open(
        prefix, local=tmp_path / "one", storage_options=store.options, upkeep="manual", clock=clock
    )
    with lake:
        usage = lake.create_table("usage", SCHEMA)
        usage.append(EVENTS)
        with failpoint.at("payload.4", "EIO", hit=2), pytest.raises((ls.StorageError, OSError)):
            usage.seal()
        check(lake, EVENTS)
        assert usage.seal() == len(EVENTS)
        check(lake, EVENTS)
        assert lake.verify().ok


def test_documents_of_format_1_keep_payloads_in_the_row(lake):
    text = SCHEMA.text.replace("format = 2", "format = 1")
    for old in (text, text.replace("format = 1", "")):
        schema = ls.TableSchema.from_toml(old)
        assert schema.stored is schema.buffered is schema
    usage = lake.create_table("usage", schema)
    usage.append(EVENTS)
    usage.seal()
    rows = lake.sql("FROM usage ORDER BY id").to_arrow().select(SCHEMA.names).to_pylist()
    assert rows == EVENTS


def test_a_schema_without_payloads_is_one_in_every_form():
    schema = ls.TableSchema.from_document({"event_time": "t", "columns": {"t": "TIMESTAMP"}})
    assert schema.stored is schema.buffered is schema
    assert schema.text.startswith("format = 2\n")


def test_forms_of_a_schema():
    assert SCHEMA.buffered.names == (
        "id", "t", "body", "raw", "begun_bytes", "begun_preview", "hashed_bytes", "hashed_sha256",
        "gone_bytes",
    )  # fmt: skip
    assert SCHEMA.stored.names == (
        "id", "t", "begun_bytes", "begun_preview", "hashed_bytes", "hashed_sha256", "gone_bytes",
        "payload_ref", "body_bytes", "raw_bytes",
    )  # fmt: skip
    assert SCHEMA.stored.stored is SCHEMA.stored
    assert SCHEMA.payload_view.names == ("id", "t", "body", "raw")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('body = "VARCHAR"', 'body = "INTEGER"', "'body': it is INTEGER; with 'full' it must be"),
        ('begun = "VARCHAR"', 'begun = "BLOB"', "'preview' it must be VARCHAR"),
        ("[columns]", 'sort = ["body"]\n[columns]', "sort names 'body', which is a payload"),
        ("[columns]", 'facets = ["gone"]\n[columns]', "facets names 'gone'"),
        ("[columns]", 'bloom = ["hashed"]\n[columns]', "bloom names 'hashed'"),
        ("[columns]", '[columns]\nbody_bytes = "BIGINT"', "one name in SQL"),
        ("[columns]", '[columns]\nPayload_Ref = "VARCHAR"', "one name in SQL"),
        ('body = "VARCHAR"', 'body = "VARCHAR"\nbegun_preview = "VARCHAR"', "one name in SQL"),
        ('id = "VARCHAR not null"', 'id = "VARCHAR"\nsame_as = "VARCHAR"', None),
    ],
)
def test_what_payload_columns_may_not_be(old, new, message):
    text = SCHEMA.text.replace(old, new, 1)
    if message is None:
        assert ls.TableSchema.from_toml(text)
        return
    with pytest.raises(ls.SchemaError, match=message):
        ls.TableSchema.from_toml(text)


def test_payloads_in_pieces_come_out_in_order(lake, monkeypatch):
    """Many batches, many row groups, events that came in any order, ids that are made."""
    monkeypatch.setattr(payload, "ROW_GROUP_BYTES", 2_000)
    schema = ls.TableSchema.from_document(
        {"event_time": "t", "columns": {"t": "TIMESTAMP", "n": "INT", "body": "VARCHAR"},
         "payload": {"body": "full"}}
    )  # fmt: skip
    usage = lake.create_table("usage", schema)
    random = Random(3)
    numbers = list(range(1_000))
    random.shuffle(numbers)
    for start in range(0, 1_000, 37):
        usage.append(
            [{"t": NOON + timedelta(hours=n // 40), "n": n, "body": f"{n % 600} " * (n % 90)}
             for n in numbers[start : start + 37]]
        )  # fmt: skip
    usage.flush()
    rows = lake.sql("FROM usage ORDER BY n").to_arrow().to_pylist()
    attach(lake._queries, usage._context, rows)
    assert [row["body"] for row in rows] == [f"{n % 600} " * (n % 90) for n in range(1_000)]
    for path in local(usage):
        file = pq.ParquetFile(path)
        times = file.read(columns=["t"])["t"].to_pylist()
        assert times == sorted(times)
        assert file.num_row_groups > 1


def test_a_flush_without_its_payload_files_is_noticed(lake, usage, monkeypatch):
    monkeypatch.setattr(flush.payload, "publish", lambda staged, folder: None)
    usage.append(EVENTS)
    usage.flush()
    kinds = [p.kind for p in lake.verify().problems]
    assert kinds.count("payload") == 3


def test_events_that_come_again_get_files_of_other_names(open_lake, clock):
    """Else the file of the first, which waits to be deleted, would be that of the second."""
    lake = open_lake(settings={"vacuum_grace_s": 0})
    schema = ls.TableSchema.from_toml(f'dedup = "none"\n{SCHEMA.text}')
    usage = lake.create_table("usage", schema)
    for _ in range(2):
        usage.append(EVENTS[:2])
        usage.flush()
        if len(local(usage)) == 1:
            usage.seal()
    assert len(local(usage)) == 2
    clock.move(10)
    assert len(usage.vacuum(dry_run=False).payload) == 1
    assert len(local(usage)) == 1
    assert lake.verify().ok
