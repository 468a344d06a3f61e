"""A lost or damaged catalog comes back from the other files, and every answer is the same."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SCHEMA, events
from support.commands import rebuild, run
from support.postgres import drop_catalog
from support.soundness import assert_sound

import lakestore as ls
from lakestore import retain, tiling
from lakestore.catalog.commit import Commit
from lakestore.locks import ProcessLock
from lakestore.snapshot import GenerationId
from lakestore.tiling import Tile

SETTINGS = {"segment_duckdb_rows": 1, "segments_max": 4, "vacuum_grace_s": 10}
NO_DEDUP = ls.TableSchema.from_toml(
    "event_id = 'id'\nevent_time = 't'\ndedup = 'none'\n[columns]\nid = 'VARCHAR'\nt = 'TIMESTAMP'"
)
Open = Callable[..., ls.Lake]


def everything(lake: ls.Lake) -> dict[str, object]:
    """All that a lake answers, and what its tiers are made of."""
    told: dict[str, object] = {}
    for context in lake._tables.contexts():
        name, state = context.entry.name, context.state()
        rows = lake.sql(f"FROM {name} ORDER BY ALL").fetchall()
        record = next(r for r in lake._site.catalog.inventory().tables if r.id == context.entry.id)
        told[name] = {
            "rows": rows,
            "hot": [(s.first, s.last, s.name, s.info, s.has_duckdb) for s in state.segments],
            "cold": [(f.name, f.day, f.first, f.last, f.info) for f in state.cold],
            "sealed_through": state.sealed_through,
            "last_segment": record.last_segment,
            "producers": dict(record.producers),
            "folder": record.folder,
            "schema": context.schema,
        }
    return told | {"lake": lake._site.catalog.lake}


def lose_catalog(root: Path) -> None:
    if url := os.environ.get("LAKESTORE_CATALOG"):
        drop_catalog(url, json.loads((root / "lakestore.json").read_bytes())["lake"])
    for path in (root / "_site").glob("catalog.sqlite*"):
        path.unlink()


# Each makes a state; the lake is closed (or its process is as good as dead) afterwards.


def empty(lake: ls.Lake) -> None:
    lake.create_table("events", SCHEMA)


def buffered(lake: ls.Lake) -> None:
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 30), producer="a", seq=3)
    table.append(events(20, 50))


def flushed(lake: ls.Lake) -> None:
    buffered(lake)
    lake.flush()
    lake["events"].append(events(50, 60), producer="b", seq=1)
    lake.flush()


def merged(lake: ls.Lake) -> None:
    table = lake.create_table("events", SCHEMA)
    for start in range(0, 110, 10):
        table.append(events(start, start + 15), producer="a", seq=start)
        table.flush()


def merged_and_vacuumed(lake: ls.Lake) -> None:
    merged(lake)
    lake._site.clock.move(20)
    lake["events"].vacuum(dry_run=False)


def sealed(lake: ls.Lake) -> None:
    flushed(lake)
    lake.seal()


def mixed(lake: ls.Lake) -> None:
    """Every tier, and superseded files of every kind still there."""
    sealed(lake)
    table = lake["events"]
    for start in (60, 90, 110):
        table.append(events(start, start + 40), producer="a", seq=start)
        table.flush()
        if start == 60:
            table.seal()
    table.append(events(140, 170), producer="a", seq=170)


def mixed_and_vacuumed(lake: ls.Lake) -> None:
    mixed(lake)
    lake._site.clock.move(20)
    lake["events"].vacuum(dry_run=False)


def only_duplicates(lake: ls.Lake) -> None:
    """What a producer sent is known by a segment without rows alone."""
    sealed(lake)
    appender = lake["events"]._appender
    appender._known = type(appender._known)()
    lake["events"].append(events(10, 30), producer="late", seq=7)
    lake.flush()
    lake["events"].vacuum(dry_run=False)


def without_dedup(lake: ls.Lake) -> None:
    table = lake.create_table("events", NO_DEDUP)
    same = [{"id": "x", "t": f"2025-01-0{day}"} for day in (1, 2, 2)]
    for number in range(4):
        table.append(same, producer="p", seq=number)
        table.flush()
        if number == 1:
            table.seal()
    table.append(same, producer="p", seq=9)


def dropped(lake: ls.Lake) -> None:
    sealed(lake)
    lake["events"].append(events(60, 70))
    lake.drop_table("events")
    lake.create_table("other", SCHEMA).append(events(0, 3))
    lake["other"].seal()


def dropped_and_made_again(lake: ls.Lake) -> None:
    dropped(lake)
    table = lake.create_table("events", NO_DEDUP)
    table.append([{"id": "n", "t": "2025-01-01"}], producer="a", seq=1)
    table.flush()
    lake.drop_table("events")
    lake.create_table("events", SCHEMA).append(events(0, 7), producer="b", seq=1)
    lake.flush()


def crashed_flush(lake: ls.Lake) -> None:
    sealed(lake)
    lake["events"].append(events(60, 90), producer="a", seq=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Commit, "add_segment", _plug)
        for _ in range(2):
            with pytest.raises(ls.StorageError, match="pulled the plug"):
                lake.flush()
            lake["events"].append(events(90, 95))
    lake.flush()
    lake["events"].append(events(95, 99))
    lake.flush()


def crashed_flush_and_vacuumed(lake: ls.Lake) -> None:
    crashed_flush(lake)
    lake["events"].vacuum(dry_run=False)


def crashed_seal(lake: ls.Lake) -> None:
    """A seal of all segments that was not committed; then smaller ones that were."""
    flushed(lake)
    lake["events"].append(events(60, 80))
    lake.flush()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Commit, "seal", _plug)
        with pytest.raises(ls.StorageError, match="pulled the plug"):
            lake.seal()
    with pytest.MonkeyPatch.context() as patch:
        from lakestore import seal

        patch.setattr(seal, "choose", lambda segments: segments[:2] if len(segments) > 2 else ())
        assert lake["events"].seal() > 0
    lake["events"].append(events(80, 90))
    lake.seal()
    lake._site.clock.move(20)
    lake["events"].vacuum(dry_run=False)


def half_a_seal(lake: ls.Lake) -> None:
    """Some of its files were published, not the last."""
    flushed(lake)
    storage, put_new = lake._site.storage, lake._site.storage.put_new
    keys: list[str] = []

    def once(key: str, source: Path) -> bool:
        keys.append(key)
        return put_new(key, source) if len(keys) == 1 else _plug()

    storage.put_new = once
    with pytest.raises(ls.StorageError, match="pulled the plug"):
        lake.seal()
    del storage.put_new


def _plug(*_: object) -> bool:
    raise OSError("pulled the plug")


STATES = [
    empty, buffered, flushed, merged, merged_and_vacuumed, sealed, mixed, mixed_and_vacuumed,
    only_duplicates, without_dedup, dropped, dropped_and_made_again, crashed_flush,
    crashed_flush_and_vacuumed, crashed_seal, half_a_seal,
]  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_answers_are_the_same_after_a_rebuild(open_lake: Open, root, clock, state):
    lake = open_lake(settings=SETTINGS)
    state(lake)
    lake.close()
    with open_lake(mode="r") as reader:
        before = everything(reader)
    assert before
    lose_catalog(root)

    made = rebuild(root, clock=clock)
    assert {table.name for table in made.tables} == set(before) - {"lake"}
    with open_lake(mode="r") as reader:
        assert everything(reader) == before
        assert_sound(reader)
    _behaves(open_lake(settings=SETTINGS), before)


def _behaves(lake: ls.Lake, before: dict) -> None:
    """Retries and duplicates are refused as ever, and the tiers go on from where they were."""
    for name, told in before.items():
        if name == "lake":
            continue
        table, rows = lake[name], len(told["rows"])
        for producer, seq in told["producers"].items():
            again = table.to_arrow().slice(0, 3)
            assert table.append(again, producer=producer, seq=seq).rows == 0
        if told["schema"].dedup == "day":
            table.append(table.to_arrow().slice(0, 20))
            table.append(events(900, 910))
            rows += 10
        table.flush()
        assert lake.sql(f"SELECT count(*) FROM {name}").fetchone() == (rows,)
        table.seal()
        assert lake.sql(f"SELECT count(*) FROM {name}").fetchone() == (rows,)
        assert table._context.state().sealed_through >= told["last_segment"]
    assert_sound(lake)
    lake._site.clock.move(20)
    lake.maintain()
    assert_sound(lake)


def test_several_writers_that_died(open_lake: Open, root, clock):
    first = open_lake(settings=SETTINGS)
    first.create_table("events", SCHEMA)
    writers = [first, open_lake(), open_lake()]
    for number, writer in enumerate(writers):
        for part in range(3):
            start = 100 * number + 10 * part
            writer["events"].append(events(start, start + 10), producer=f"w{number}", seq=part)
            if part < 2:
                writer["events"].flush()
    for writer in writers:
        writer.close()
    with open_lake(mode="r") as reader:
        before = everything(reader)
    lose_catalog(root)
    assert rebuild(root, clock=clock).tables[0].journals == 3
    with open_lake(mode="r") as reader:
        assert everything(reader) == before
    lake = open_lake()
    assert lake.open_report.rows == 30
    _behaves(lake, before)


@pytest.mark.parametrize("mode", ["rw", "r"])
@pytest.mark.parametrize("state", [empty, buffered, flushed, sealed], ids=lambda s: s.__name__)
def test_a_lost_catalog_is_never_made_anew(open_lake: Open, root, state, mode):
    lake = open_lake()
    state(lake)
    lake.close()
    lose_catalog(root)
    with pytest.raises(ls.CorruptionError, match="`lakestore rebuild`"):
        open_lake(mode=mode)


@pytest.mark.sqlite
@pytest.mark.parametrize("mode", ["rw", "r"])
@pytest.mark.parametrize("state", [empty, buffered, flushed, sealed], ids=lambda s: s.__name__)
def test_a_file_that_is_no_catalog_is_never_made_one(open_lake: Open, root, state, mode):
    lake = open_lake()
    state(lake)
    lake.close()
    lose_catalog(root)
    for content in (b"", b"not a database" * 400):
        (root / "_site/catalog.sqlite").write_bytes(content)
        with pytest.raises(ls.CorruptionError, match="`lakestore rebuild`"):
            open_lake(mode=mode)
    assert (root / "_site/catalog.sqlite").read_bytes() == b"not a database" * 400


@pytest.mark.sqlite
def test_an_open_that_a_rebuild_overtakes_writes_to_no_old_catalog(open_lake, root, monkeypatch):
    lake = open_lake()
    mixed(lake)
    lake.close()
    create = ProcessLock.create

    def overtaken(folder: Path) -> ProcessLock:
        with monkeypatch.context() as patch:
            patch.setattr(ProcessLock, "create", create)
            rebuild(root)
        return create(folder)

    with monkeypatch.context() as patch:
        patch.setattr(ProcessLock, "create", overtaken)
        with pytest.raises(ls.LockedError, match="open the lake again"):
            open_lake()
    lake = open_lake()
    with pytest.raises(ls.LockedError, match="close them"):
        rebuild(root)
    lake["events"].append(events(900, 910))
    lake.flush()
    assert lake.verify().ok


@pytest.mark.sqlite
def test_a_damaged_catalog_goes_to_quarantine(open_lake: Open, root, clock):
    lake = open_lake(settings=SETTINGS)
    mixed(lake)
    lake.close()
    with open_lake(mode="r") as reader:
        before = everything(reader)
    site = root / "_site"
    (site / "catalog.sqlite").write_bytes(b"rubbish" * 999)
    (site / "catalog.sqlite-wal").write_bytes(b"more rubbish")
    made = rebuild(root, clock=clock)
    assert made.quarantine is not None
    kept = {path.name: path.read_bytes() for path in Path(made.quarantine).iterdir()}
    assert kept == {"catalog.sqlite": b"rubbish" * 999, "catalog.sqlite-wal": b"more rubbish"}
    with open_lake(mode="r") as reader:
        assert everything(reader) == before
    again = rebuild(root, clock=clock)  # of a catalog that is well, too
    assert again.quarantine != made.quarantine
    with open_lake(mode="r") as reader:
        assert everything(reader) == before
        assert_sound(reader)


def test_a_lost_lake_file_comes_back_too(open_lake: Open, root, clock):
    lake = open_lake()
    sealed(lake)
    lake.close()
    good = (root / "lakestore.json").read_bytes()
    (root / "lakestore.json").unlink()
    for mode in ("rw", "r"):
        with pytest.raises(ls.CorruptionError, match=r"lakestore\.json' is gone.*rebuild"):
            open_lake(mode=mode)
    rebuild(root, clock=clock)
    assert (root / "lakestore.json").read_bytes() == good
    (root / "lakestore.json").write_bytes(b"{")
    rebuild(root, clock=clock)
    assert (root / "lakestore.json").read_bytes() == good
    assert_sound(root)


def test_a_drop_that_was_cut_short_is_finished(open_lake: Open, root, clock, monkeypatch):
    lake = open_lake(settings=SETTINGS)
    sealed(lake)
    with monkeypatch.context() as patch:
        patch.setattr(retain, "bury", _plug)
        with pytest.raises(ls.StorageError, match="pulled the plug"):
            lake.drop_table("events")
        lake.close()
    tombstone = root / "tables/events/dropped.json"
    assert not tombstone.exists()
    lake = open_lake(settings=SETTINGS)
    assert tombstone.exists()
    assert lake.tables() == []
    lake.close()
    lose_catalog(root)
    rebuild(root, clock=clock)
    lake = open_lake(settings=SETTINGS)
    assert lake.tables() == []
    assert lake.create_table("events", SCHEMA)._context.entry.folder == "events-2"
    clock.move(20)
    lake.maintain()
    assert [p for p in (root / "tables/events").rglob("*") if p.is_file()] == []
    lake.close()
    lose_catalog(root)
    assert [table.name for table in rebuild(root, clock=clock).tables] == ["events"]


def test_a_table_that_was_never_made_does_not_take_the_name(open_lake: Open, root, clock):
    lake = open_lake()
    storage, put_new = lake._site.storage, lake._site.storage.put_new

    def until_the_document(key: str, source: Path) -> bool:
        return put_new(key, source) and (not key.endswith(".toml") or _plug())

    storage.put_new = until_the_document
    with pytest.raises(ls.StorageError, match="pulled the plug"):
        lake.create_table("events", NO_DEDUP)
    del storage.put_new
    lake.create_table("events", SCHEMA).append(events(0, 5))
    lake.close()
    lose_catalog(root)
    rebuild(root, clock=clock)
    lake = open_lake()
    assert lake["events"].schema.dedup == "day"
    assert lake.sql("SELECT count(*) FROM events").fetchone() == (5,)


def test_it_refuses_while_a_writer_lives(open_lake: Open, root, clock):
    lake = open_lake()
    sealed(lake)
    with pytest.raises(ls.LockedError, match="1 process"):
        rebuild(root, clock=clock)
    lake.close()
    rebuild(root, clock=clock)
    with pytest.raises(ls.NotFoundError):
        rebuild(root / "nothing")
    assert not (root / "nothing").exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[30] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [Path.unlink, _cut, _flip], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize(
    "pattern", ["data/*/*.parquet", "_site/hot/events/*.parquet", "schema/0001.toml"]
)
def test_it_refuses_to_lose_rows(open_lake: Open, root, clock, harm, pattern):
    lake = open_lake(settings=SETTINGS)
    mixed_and_vacuumed(lake)
    lake.close()
    base = root if pattern.startswith("_site") else root / "tables/events"
    harm(sorted(base.glob(pattern))[0])
    lose_catalog(root)
    before = sorted(path for path in root.rglob("*") if path.is_file())
    with pytest.raises(ls.CorruptionError, match="nothing was changed") as caught:
        rebuild(root, clock=clock)
    assert "events" in str(caught.value)
    assert sorted(path for path in root.rglob("*") if path.is_file()) == before


def test_files_of_two_lakes_are_refused(open_lake: Open, root, clock, tmp_path):
    lake = open_lake()
    sealed(lake)
    lake.close()
    with ls.open(tmp_path / "other", upkeep="manual") as other:
        other.create_table("more", SCHEMA)
    shutil.copytree(tmp_path / "other/tables/more", root / "tables/more")
    lose_catalog(root)
    with pytest.raises(ls.CorruptionError, match="do not agree on whose they are"):
        rebuild(root, clock=clock)


def test_the_command(open_lake: Open, root):
    lake = open_lake()
    mixed(lake)
    lake.close()
    lose_catalog(root)
    result = run("sql", root, "SELECT 1")
    assert (result.exit_code, "`lakestore rebuild`" in result.stderr) == (1, True)
    facts = json.loads(run("rebuild", root, "--json").stdout)
    assert facts["tables"][0]["name"] == "events"
    assert "1 table(s) listed again" in run("rebuild", root).stdout
    assert run("verify", root).exit_code == 0


# The choice of tiles, by itself.


def g(*names: str) -> frozenset[GenerationId]:
    return frozenset(GenerationId(name, 1) for name in names)


def hot(first: int, last: int, *covers: str, linked: int = 0) -> Tile:
    return Tile(first, last, False, (f"{first}-{last}{covers}",), g(*covers), linked)


def cold(first: int, last: int, *covers: str) -> Tile:
    return Tile(first, last, True, (f"cold {first}-{last}{covers}",), g(*covers))


@pytest.mark.parametrize(
    ("tiles", "last", "journals", "chosen"),
    [
        ([], 0, (), []),
        ([hot(1, 1, "a"), hot(2, 2, "b")], 2, (), [0, 1]),
        # A merged segment takes the place of its parts; so does a seal.
        ([hot(1, 1, "a"), hot(2, 2, "b"), hot(1, 2, "a", "b")], 2, (), [2]),
        ([hot(1, 1, "a"), hot(2, 2, "b"), cold(1, 2, "a", "b")], 2, (), [2]),
        ([hot(1, 1, "a"), hot(2, 2, "b"), cold(1, 1, "a")], 2, (), [2, 1]),
        # The longest seal would leave 3 to nobody.
        ([cold(1, 2, "a", "b"), cold(1, 1, "a"), cold(2, 3, "b", "c")], 3, (), [1, 2]),
        # No cold file comes after a segment.
        ([hot(1, 1, "a"), cold(2, 2, "b"), hot(2, 2, "b")], 2, (), [0, 2]),
        # A flush was cut short, and its number given to another segment, which took more.
        ([hot(1, 1, "a", linked=1), hot(1, 1, "a", "b", linked=2)], 1, (), [1]),
        # … or to one of another writer; then it was flushed again.
        ([hot(1, 1, "a"), hot(1, 1, "b"), hot(2, 2, "a")], 2, (), [1, 2]),
        # … and has not been flushed again: its journal is there, the other's is gone.
        ([hot(1, 1, "a", linked=2), hot(1, 1, "b", linked=1)], 1, "a", [1]),
        # Both journals are there: the latest is taken, the other is flushed again.
        ([hot(1, 1, "a", linked=1), hot(1, 1, "b", linked=2)], 1, "ab", [1]),
    ],
)
def test_tiles_are_chosen(tiles, last, journals, chosen):
    assert tiling.choose(tiles, last, g(*journals)) == [tiles[i] for i in chosen]


@pytest.mark.parametrize(
    ("tiles", "last", "reason"),
    [
        ([hot(1, 1, "a"), hot(3, 3, "c")], 3, "no whole file holds segment 2 of 3"),
        ([hot(1, 1, "a")], 2, "no whole file holds segment 2 of 2"),
        ([hot(1, 1, "a"), hot(2, 2, "a")], 2, "contradict each other"),
        ([hot(1, 1, "a"), hot(1, 1, "b")], 1, "contradict each other"),
    ],
)
def test_no_choice_is_an_error(tiles, last, reason):
    with pytest.raises(tiling.Untileable, match=reason):
        tiling.choose(tiles, last, g())


def attempt(first: int, last: int, rows: int) -> Tile:
    return Tile(first, last, True, (f"{first}-{last}: {rows}",), rows=rows)


@pytest.mark.parametrize(
    ("ranges", "more_starts", "committed", "last"),
    [
        ([(1, 3, 9), (1, 3, 7), (1, 3, 8)], (), [], [1]),
        ([(1, 3, 9), (1, 3, 7), (4, 4, 1)], (), [1], [2]),
        # That 4 was begun with shows that a seal up to 3 was committed, whole as the longer one is.
        ([(1, 5, 9), (1, 3, 7), (4, 5, 2)], (), [1], [2]),
        ([(1, 5, 9), (1, 3, 7)], (4,), [1], []),
        # Of those that were begun last one at most was committed, and the longest has all rows.
        ([(1, 1, 1), (2, 3, 4), (2, 5, 9), (2, 5, 8)], (), [0], [3, 1]),
        ([(1, 2, 5), (1, 3, 4), (4, 4, 1), (5, 5, 1), (5, 6, 2)], (), [1, 2], [4, 3]),
        ([], (), [], []),
    ],
)
def test_which_seals_of_a_site_were_committed(ranges, more_starts, committed, last):
    tiles = [attempt(*one) for one in ranges]
    starts = {first for first, _, _ in ranges} | set(more_starts)
    found = tiling.chain(tiling.plausible(tiles, starts), starts)
    assert found == ([tiles[i] for i in committed], [tiles[i] for i in last])


def test_a_seal_that_spans_the_start_of_another_was_not_committed():
    spanning, *others = [attempt(1, 5, 9), attempt(1, 3, 7), attempt(4, 5, 2)]
    assert tiling.plausible([spanning, *others], {1, 4}) == [others[1], others[0]]
    assert tiling.plausible([spanning], {1}) == [spanning]


@pytest.mark.parametrize(
    ("ranges", "more_starts", "reason"),
    [
        ([(2, 3, 4)], (), "no whole seal holds the segments 1 to 1"),
        ([(1, 2, 4), (4, 5, 4)], (), "no whole seal holds the segments 1 to 3"),
        ([(1, 2, 4), (5, 5, 1)], (3,), "no whole seal holds the segments 3 to 4"),
    ],
)
def test_a_seal_that_is_missing_is_said_to_be(ranges, more_starts, reason):
    starts = {first for first, _, _ in ranges} | set(more_starts)
    seals = tiling.plausible([attempt(*one) for one in ranges], starts)
    with pytest.raises(tiling.Untileable, match=reason):
        tiling.chain(seals, starts)


def test_a_long_history_is_chosen_at_once():
    tiles = []
    for number in range(1, 2_001):
        tiles.append(hot(number, number, f"g{number}"))
        if number % 4 == 0:
            took = [f"g{n}" for n in range(number - 3, number + 1)]
            tiles.append(hot(number - 3, number, *took))
    assert [t.last for t in tiling.choose(tiles, 2_000, g())] == list(range(4, 2_001, 4))
    with pytest.raises(tiling.Untileable):
        tiling.choose(tiles, 2_001, g())


def test_a_dropped_rule_would_be_caught(open_lake: Open, root, clock, monkeypatch):
    """Without the covers of a seal, a journal not yet deleted is read again: rows are doubled."""
    from lakestore import hot as hot_module

    lake = open_lake()
    with monkeypatch.context() as patch:
        patch.setattr(
            hot_module, "taken", lambda footers: {"covers": [], "producers": {}, "sent": []}
        )
        without_dedup(lake)
    lake.close()
    with open_lake(mode="r") as reader:
        before = everything(reader)
        assert not reader.verify().ok
    lose_catalog(root)
    rebuild(root, clock=clock)
    with open_lake(mode="r") as reader:
        assert everything(reader) != before
