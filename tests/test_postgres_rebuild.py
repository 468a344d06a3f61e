"""A catalog in Postgres that is lost comes back from the files, host by host."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import SCHEMA, die, events
from support.commands import rebuild
from support.postgres import Server, Wire, drop_catalog, postgres
from support.soundness import assert_sound

import lakestore as ls
from lakestore import hot, tiling
from lakestore.catalog.commit import Commit
from lakestore.locks import ProcessLock
from lakestore.rebuild.found import Finder
from lakestore.rebuild.run import Rebuilt
from lakestore.rebuild.sources import Found, Shared
from lakestore.tiling import Tile

pytestmark = pytest.mark.faults

Open = Callable[..., ls.Lake]
QUERY = "SELECT count(*), count(DISTINCT id) FROM events"
SETTINGS = {"vacuum_grace_s": 10, "segments_max": 2}
SEALER = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import events
import lakestore as ls

root, local, url, start, stop = sys.argv[2:]
lake = ls.open(root, local=local, catalog=url, upkeep="manual")
lake["events"].append(events(int(start), int(stop)))
lake["events"].seal()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture
def site(site: Open, server: Server) -> Open:
    """Opens the test's lake as the site of that name, its catalog in the server."""
    defaults = {"catalog": server.url, "settings": SETTINGS}
    return lambda name, **options: site(name, **(defaults | options))


@pytest.fixture
def lose(root: Path, server: Server) -> Callable[[], None]:
    return lambda: drop_catalog(
        server.url, json.loads((root / "lakestore.json").read_bytes())["lake"]
    )


@pytest.fixture
def rebuild_at(root: Path, tmp_path: Path, server: Server, clock) -> Callable[..., Rebuilt]:
    """Runs `lakestore rebuild` at the host of a site."""

    def run(name: str, url: str = server.url) -> Rebuilt:
        return rebuild(root, clock, local=tmp_path / "sites" / name, catalog=url)

    return run


def name_of(tmp_path: Path, site: str) -> str:
    return json.loads((tmp_path / "sites" / site / "site.json").read_bytes())["site"]


def counted(lake: ls.Lake) -> tuple[int, int]:
    return lake.sql(QUERY).fetchall()[0]


def plug(*_: object) -> None:
    raise OSError("pulled the plug")


def seal_in_vain(lake: ls.Lake) -> None:
    """A seal that publishes its files, and whose commit never comes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Commit, "seal", plug)
        with pytest.raises(ls.StorageError, match="pulled the plug"):
            lake.seal()


def vacuum(lake: ls.Lake, clock) -> None:
    """Nothing is left of segments that were sealed."""
    clock.move(20)
    lake["events"].vacuum(dry_run=False)


def all_sealed(site: Open, rows: int, *names: str) -> None:
    """Open sites seal what they have; then each sees every row once, and all is sound."""
    lakes = [site(name) for name in names]
    for lake in lakes:
        lake.seal()
    for lake in lakes:
        assert counted(lake) == (rows, rows)
        assert_sound(lake)
    for lake in lakes:
        lake.close()


def test_each_host_brings_in_what_it_has(site, lose, rebuild_at, clock, tmp_path):
    one, two, three = site("one"), site("two"), site("three")
    one.create_table("events", SCHEMA).append(events(0, 10), producer="a", seq=1)
    two["events"].append(events(10, 30), producer="b", seq=7)
    three["events"].append(events(30, 35))
    for lake in (one, two, three):
        lake.seal()
        vacuum(lake, clock)
    for lake, start in ((one, 40), (two, 50)):
        for number in range(3):  # merged, then one more
            lake["events"].append(events(start + 2 * number, start + 2 * number + 2))
            lake.flush()
    two["events"].append(events(60, 70), producer="b", seq=8)  # in its journal
    for lake in (one, two, three):
        lake.close()
    lose()
    for name in ("one", "two", "three"):
        for mode in ("rw", "r"):
            with pytest.raises(ls.CorruptionError, match="is lost.*`lakestore rebuild`"):
                site(name, mode=mode)

    made = rebuild_at("one")
    others = {name_of(tmp_path, "two"), name_of(tmp_path, "three")}
    assert (set(made.awaited), made.quarantine, made.left_out) == (others, None, ())
    assert [(t.name, t.rows, t.cold_files) for t in made.tables] == [("events", 41, 4)]
    with site("one") as one:
        assert counted(one) == (41, 41)
        assert_sound(one, allowed=("views",))
        assert one["events"].append(events(0, 10), producer="a", seq=1).rows == 0
        assert one.watermark() == {"events": None}  # the others have rows that are not sealed
        one.seal()
        assert counted(one) == (41, 41)
        assert one.watermark() == {"events": None}
        for name, mode in (("two", "rw"), ("two", "r"), ("three", "rw"), ("three", "r")):
            with pytest.raises(ls.CorruptionError, match="run `lakestore rebuild` here"):
                site(name, mode=mode)
        for folder in ("journal", "hot"):  # as if its disk had been lost: its numbers were not
            shutil.rmtree(tmp_path / "sites/three" / folder)
        with pytest.raises(ls.CorruptionError, match="run `lakestore rebuild` here"):
            site("three")
        with site("three", mode="r") as reader, site("nobody", mode="r") as stranger:
            assert (counted(reader), counted(stranger)) == ((41, 41), (41, 41))

        made = rebuild_at("two")
        assert made.awaited == (name_of(tmp_path, "three"),)
        assert [(t.rows, t.segments, t.journals) for t in made.tables] == [(47, 2, 1)]
        two = site("two")
        assert (counted(one), counted(two)) == ((41, 41), (57, 57))
        assert two["events"].append(events(60, 70), producer="b", seq=8).rows == 0
        assert two["events"].append(events(0, 1), producer="b", seq=7).rows == 0
        two["events"].append(events(0, 70))  # of which all but 35 to 39 and 46 to 49 are known
        assert two.seal() > 0
        assert (counted(one), counted(two)) == ((70, 70), (70, 70))
        assert rebuild_at("three").awaited == ()
        with site("three") as three:
            three["events"].append(events(70, 75))
            three.seal()
            assert one.seal() == 0
            assert min(one.watermark().values()) == clock.now()
        two.close()
    all_sealed(site, 75, "one", "two", "three")


@pytest.mark.parametrize("first", ["one", "two", "nobody"])
@pytest.mark.parametrize("common", [3, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.parametrize("later", [True, False], ids=["sealed later too", "not since"])
def test_of_two_attempts_the_one_with_fewer_rows_was_committed(
    site, lose, rebuild_at, clock, first, common, later
):
    """Another site sealed some rows, or all, after the commit of the first attempt was lost."""
    rows = lost_commit_then_another(site, clock, common, later=later)
    lose()
    rebuild_at(first)
    with site(first) as lake:
        assert counted(lake) == (rows, rows)
        assert_sound(lake)
    for name in {"one", "two"} - {first}:
        rebuild_at(name)
    all_sealed(site, rows, "one", "two")


def lost_commit_then_another(site: Open, clock, common: int, *, later: bool) -> int:
    """How many rows there are."""
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA).append(events(0, 10))
        seal_in_vain(one)
        two["events"].append(events(10 - common, 20 - common))
        two.seal()
        one.seal()
        for lake in (one, two):
            vacuum(lake, clock)
            assert counted(lake) == (20 - common, 20 - common)
            assert_sound(lake)
        if later:
            one["events"].append(events(20, 25))
            one.seal()
            vacuum(one, clock)
    return 25 - common if later else 20 - common


def test_the_opposite_rule_would_be_caught(site, lose, rebuild_at, clock, monkeypatch):
    assert lost_commit_then_another(site, clock, 3, later=True) == 22
    lose()
    plausible = tiling.plausible

    def most_rows(seals, starts):
        turned = {
            seal.files: Tile(seal.first, seal.last, True, seal.files, rows=-seal.rows)
            for seal in seals
        }
        kept = plausible(list(turned.values()), starts)
        return [seal for seal in seals if seal.files in {tile.files for tile in kept}]

    monkeypatch.setattr(tiling, "plausible", most_rows)
    rebuild_at("two")
    with site("two") as two:
        assert counted(two) == (25, 22)


@pytest.mark.parametrize("first", ["one", "two"])
@pytest.mark.parametrize("vacuumed", [True, False])
def test_a_last_attempt_that_was_never_committed(
    site, lose, rebuild_at, clock, root, tmp_path, server, first, vacuumed
):
    """Kill -9 between publish and commit; another site has sealed the same rows since."""
    with site("two") as two:
        two.create_table("events", SCHEMA)
        with site("one"):
            pass
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", SEALER, here, str(root), str(tmp_path / "sites/one")]
        killed = subprocess.run(
            [*command, server.url, "0", "10"],
            env=os.environ | {"LAKESTORE_FAILPOINTS": "seal.6=crash"},
        )
        assert killed.returncode == -signal.SIGKILL
        two["events"].append(events(5, 15))
        two.seal()
        if vacuumed:
            vacuum(two, clock)
        two["events"].append(events(15, 18))
    lose()
    other = {"one": "two", "two": "one"}[first]
    rebuild_at(first)
    with site(first) as lake:
        assert_sound(lake)  # no cold row twice; what is hot may be sealed elsewhere
    rebuild_at(other)
    all_sealed(site, 18, "one", "two")


def test_a_third_host_that_cannot_tell_says_who_can(site, lose, rebuild_at, clock, tmp_path):
    with site("one") as one, site("two") as two, site("three") as three:
        one.create_table("events", SCHEMA).append(events(0, 10))
        two["events"].append(events(5, 15))
        three["events"].append(events(20, 30))
        seal_in_vain(one)
        two.seal()
        vacuum(two, clock)
        three.seal()
    lose()
    with pytest.raises(ls.CorruptionError, match="nothing was changed.*only their own") as caught:
        rebuild_at("three")
    assert all(name_of(tmp_path, name) in str(caught.value) for name in ("one", "two"))
    with pytest.raises(ls.CorruptionError, match="is lost"):
        site("three")
    for name in ("two", "three", "one"):
        rebuild_at(name)
    all_sealed(site, 25, "one", "two", "three")


def test_an_attempt_whose_segments_were_merged_with_others_since(
    site, lose, rebuild_at, clock, monkeypatch
):
    """Elsewhere it looks committed; its own host knows better."""
    last_two = lambda segments, _: segments[-2:] if len(segments) == 3 else ()  # noqa: E731
    monkeypatch.setattr(hot, "choose_merge", last_two)
    with site("one") as one, site("two"):
        table = one.create_table("events", SCHEMA)
        for start in (0, 5):
            table.append(events(start, start + 5))
            table.flush()
        seal_in_vain(one)
        table.append(events(10, 15))
        table.flush()
        vacuum(one, clock)
        assert [(s.first, s.last) for s in table._context.state().hot] == [(1, 1), (2, 3)]
    lose()
    rebuild_at("two")
    with site("two") as two:
        assert counted(two) == (10, 10)
        two["events"].append(events(8, 20))
        two.seal()
    rebuild_at("one")
    all_sealed(site, 20, "one", "two")


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_rebuild_that_is_killed_is_done_again(
    site, lose, rebuild_at, root, tmp_path, server, step, first
):
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA).append(events(0, 10))
        two["events"].append(events(10, 30))
        one.seal()
        two.seal()
        two["events"].append(events(30, 35))
        two.flush()
    lose()
    if not first:
        rebuild_at("one")
    command = [sys.executable, "-m", "lakestore.cli", "rebuild", str(root)]
    killed = subprocess.run(
        [*command, "--local", str(tmp_path / "sites/two"), "--catalog", server.url],
        env=os.environ | {"LAKESTORE_FAILPOINTS": f"catalog.{step}=crash"},
    )
    assert killed.returncode == -signal.SIGKILL
    if step < 3:
        with pytest.raises(ls.CorruptionError, match="`lakestore rebuild`"):
            site("two")
    for name in ("two", "one", "two"):
        assert rebuild_at(name).quarantine is None
    all_sealed(site, 35, "one", "two")


@pytest.mark.parametrize("how", ["request", "reply"])
@pytest.mark.parametrize("first", [True, False])
def test_a_connection_lost_as_a_rebuild_commits(site, lose, rebuild_at, server, how, first):
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA).append(events(0, 10))
        two["events"].append(events(10, 30))
        two.flush()
    lose()
    if not first:
        rebuild_at("one")
    wire = Wire(server.socket)
    try:
        wire.cut = how
        if how == "request":
            with pytest.raises(ls.StorageError, match="nothing was committed"):
                rebuild_at("two", wire.url)
        rebuild_at("two", wire.url)
        assert wire.cuts == 1
    finally:
        wire.close()
    rebuild_at("one")
    all_sealed(site, 30, "one", "two")


def test_whoever_is_at_the_lake_writes_nothing_into_a_catalog_made_again(site, lose, rebuild_at):
    """Tables and sites have other numbers there."""
    one, two = site("one"), site("two")
    two.create_table("zebras", SCHEMA)
    one.create_table("events", SCHEMA).append(events(0, 10))
    table = two["events"]
    table.append(events(10, 20))
    for lake in (one, two):
        lake.seal()
    with pytest.raises(ls.LockedError, match="1 process"):
        rebuild_at("one")
    one.close()
    lose()
    rebuild_at("one")
    table.append(events(20, 25))  # its journal has them
    for verb in (table.flush, table.seal, lambda: counted(two)):
        with pytest.raises(ls.CorruptionError, match="made again meanwhile.*open the lake again"):
            verb()
    with pytest.raises(ls.LockedError, match="1 process"):
        rebuild_at("two")
    die(two)
    with site("one") as one:
        assert counted(one) == (20, 20)
        rebuild_at("two")  # while another host is at it
        one["events"].append(events(25, 30))
        one.seal()
    all_sealed(site, 30, "one", "two")


def test_an_open_that_a_rebuild_overtakes(site, lose, rebuild_at, monkeypatch):
    with site("one") as one:
        one.create_table("events", SCHEMA).append(events(0, 10))
        one.flush()
    create = ProcessLock.create

    def overtaken(folder: Path) -> ProcessLock:
        with monkeypatch.context() as patch:
            patch.setattr(ProcessLock, "create", create)
            lose()
            rebuild_at("one")
        return create(folder)

    with monkeypatch.context() as patch:
        patch.setattr(ProcessLock, "create", overtaken)
        with pytest.raises(ls.LockedError, match="open the lake again"):
            site("one")
    all_sealed(site, 10, "one")


def test_a_seal_elsewhere_while_a_rebuild_looks(site, lose, rebuild_at, monkeypatch):
    """A file is not listed beside one that has come since, and may hold the same rows."""
    with site("one") as one, site("two"):
        one.create_table("events", SCHEMA).append(events(0, 10))
        one.flush()
        seal_in_vain(one)
    two = site("two")
    two["events"].append(events(5, 15))
    done = after_the_first_look(monkeypatch, two.seal)
    rebuild_at("one")
    assert done
    assert counted(two) == (10, 10)
    two.close()
    all_sealed(site, 15, "one", "two")


def after_the_first_look(patch: pytest.MonkeyPatch, do: Callable[[], object]) -> list[bool]:
    """Do something once a rebuild has looked at the files; empty until then."""
    find, done = Finder.find, []

    def late(finder: Finder, shared: Shared | None) -> Found:
        found = find(finder, shared)
        if not done:
            done.append(True)
            do()
        return found

    patch.setattr(Finder, "find", late)
    return done


def test_two_hosts_rebuild_at_once(site, lose, rebuild_at, monkeypatch):
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA).append(events(0, 10))
        two["events"].append(events(10, 30))
        one.flush()
        two.flush()
    lose()
    done = after_the_first_look(monkeypatch, lambda: rebuild_at("two"))
    made = rebuild_at("one")
    assert done
    assert (made.quarantine, made.awaited) == (None, ())
    all_sealed(site, 30, "one", "two")


@pytest.mark.parametrize(
    "harm", ["DROP TABLE segments CASCADE", "DELETE FROM lake", "UPDATE lake SET uuid = 'x'"]
)
def test_a_damaged_catalog_is_set_aside(site, rebuild_at, server, root, tmp_path, harm):
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA).append(events(0, 10))
        two["events"].append(events(10, 30))
        two.flush()
        one.seal()
    lake = json.loads((root / "lakestore.json").read_bytes())["lake"]
    with psycopg.connect(server.url, autocommit=True) as con:
        con.execute(f'SET search_path = "lakestore_{lake}"')
        con.execute(harm)
    made = rebuild_at("two")
    assert made.awaited == (name_of(tmp_path, "one"),)
    assert made.quarantine.startswith("schema lakestore_old_")
    assert "made again" not in str(made)
    assert rebuild_at("one").quarantine is None
    all_sealed(site, 30, "one", "two")


def test_two_catalogs_of_one_lake_are_refused(site, server, root):
    with site("one") as one:
        one.create_table("events", SCHEMA)
    lake = json.loads((root / "lakestore.json").read_bytes())["lake"]
    with psycopg.connect(server.url, autocommit=True) as con:
        con.execute(f'CREATE SCHEMA "lakestore_{lake}_0a1b2c3d"')
    with pytest.raises(ls.CorruptionError, match="several catalogs of one lake"):
        site("one")


def test_delta_tables_of_two_sites(site, lose, rebuild_at, clock):
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA, cold="delta").append(events(0, 10))
        two["events"].append(events(10, 30))
        for lake in (one, two):
            lake.seal()
            vacuum(lake, clock)
        two["events"].append(events(30, 35))
        two.flush()
    lose()
    rebuild_at("one")
    with site("one") as one:
        assert counted(one) == (30, 30)
    with pytest.raises(ls.CorruptionError, match="run `lakestore rebuild` here"):
        site("two")
    rebuild_at("two")
    with site("two") as two:
        two["events"].append(events(35, 40))
    all_sealed(site, 40, "one", "two")


def test_a_table_that_another_host_dropped(site, lose, rebuild_at, clock, root):
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA).append(events(0, 10))
        two["events"].append(events(10, 30))
        two.flush()
        one.seal()
        one.drop_table("events")
        one.create_table("events", SCHEMA).append(events(0, 3))
    lose()
    rebuild_at("one")
    with site("one") as one:
        for _ in range(2):  # its files at the root are gone before the other host comes
            clock.move(20)
            one.maintain()
    rebuild_at("two")
    with site("two") as two:
        clock.move(20)
        two.maintain()
    assert not list((root.parent / "sites").rglob("hot/events/*.parquet"))
    all_sealed(site, 3, "one", "two")


def test_the_command(site, lose, root, tmp_path, server):
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA).append(events(0, 10))
        two["events"].append(events(10, 30))
        two.seal()
    lose()

    def run(name: str, *arguments: str, **environment: str) -> str:
        command = [sys.executable, "-m", "lakestore.cli", arguments[0], str(root), *arguments[1:]]
        local = ("--local", str(tmp_path / "sites" / name))
        done = subprocess.run(
            [*command, *local], env=os.environ | environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    assert "pass its URL as catalog=" in run("one", "rebuild")
    told = run("one", "rebuild", "--catalog", server.url)
    awaited = f"before they open the lake: {name_of(tmp_path, 'two')}"
    assert "1 table(s) listed again" in told
    assert f"at the hosts of these sites too, {awaited}" in told
    assert "run `lakestore rebuild` here" in run("two", "flush", "--catalog", server.url)
    facts = json.loads(run("two", "rebuild", "--json", LAKESTORE_CATALOG=server.url))
    assert (facts["awaited"], facts["tables"][0]["rows"]) == ([], 20)
    all_sealed(site, 30, "one", "two")


def compacted_by(site: Open, clock, by: str, *, vacuumed: bool, cold: str = "parquet") -> None:
    """Two hosts seal into one day, and one of them compacts it all; then both seal again."""
    one, two = site("one"), site("two")
    one.create_table("events", SCHEMA, cold=cold)
    for start in (0, 6):
        one["events"].append(events(start, start + 3), producer="a", seq=start)
        two["events"].append(events(start + 3, start + 6), producer="b", seq=start)
        one.seal()
        two.seal()
    compactor, other = (one, two) if by == "one" else (two, one)
    assert compactor["events"].compact().files_before == 4
    for lake in (other, compactor):
        assert counted(lake) == (12, 12)
        assert other.verify().problems == ()
    if vacuumed:
        clock.move(10**6)
        vacuum(other, clock)  # has nothing that is its to delete but segments
        assert compactor["events"].vacuum(dry_run=False).cold
    for lake, start in ((one, 12), (two, 16)):
        lake["events"].append(events(start, start + 4))
        lake.seal()
        vacuum(lake, clock)
        assert counted(lake)[0] == start + 4
        assert_sound(lake)
    other["events"].append(events(20, 22), producer="c", seq=1)
    other.flush()
    one.close()
    two.close()


@pytest.mark.parametrize("cold", ["parquet", "delta"])
@pytest.mark.parametrize("vacuumed", [True, False])
@pytest.mark.parametrize("by", ["one", "two"])
@pytest.mark.parametrize(
    "order", [("one", "two"), pytest.param(("two", "one"), marks=pytest.mark.soak)]
)
def test_a_host_has_compacted_the_files_of_all(
    site, lose, rebuild_at, clock, cold, vacuumed, by, order
):
    compacted_by(site, clock, by, vacuumed=vacuumed, cold=cold)
    lose()
    for name in order:
        rebuild_at(name)
    with site("one") as one, site("two") as two:
        assert one["events"].append(events(0, 3), producer="a", seq=6).rows == 0
        assert two["events"].append(events(3, 6), producer="b", seq=6).rows == 0
    rebuild_at(order[0])  # once more, while the catalog is well
    all_sealed(site, 22, "one", "two")
    with site(by) as lake:
        lake["events"].compact()
        clock.move(10**6)
        lake["events"].vacuum(dry_run=False)
        assert len(lake["events"]._context.state(newest=True).cold) == 1
    all_sealed(site, 22, "one", "two")


@pytest.mark.parametrize("at", ["one", "two"])
def test_a_rebuild_while_the_catalog_alone_knows_of_a_compaction(
    site, rebuild_at, clock, monkeypatch, at
):
    """Its record is not in the root yet: files alone would say that what went is there."""
    with site("one") as one, site("two") as two:
        one.create_table("events", SCHEMA)
        for start in (0, 6):
            one["events"].append(events(start, start + 3))
            two["events"].append(events(start + 3, start + 6))
            one.seal()
            two.seal()
        with monkeypatch.context() as patch:
            patch.setattr("lakestore.cold.keeper.RecordKeeper.settle", plug)
            one["events"].compact()  # committed, whatever becomes of the record
        assert not list(Path(one.root).glob("tables/events/_replaced/*"))
        assert counted(two) == (12, 12)
        assert_sound(two)
    rebuild_at(at)
    all_sealed(site, 12, "one", "two")
    clock.move(10**6)
    with site("one") as one, site("two") as two:
        deleted = [table.vacuum(dry_run=False).cold for table in (one["events"], two["events"])]
        assert sum(map(len, deleted)) == 4
    all_sealed(site, 12, "one", "two")
