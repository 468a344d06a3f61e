"""Lakes of every format that was ever released are opened, queried, added to and sealed."""

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from support.commands import rebuild

import lakestore as ls

DATA = Path(__file__).parent / "data"
RELEASED = sorted(path.name for path in DATA.glob("v*"))
QUERY = "SELECT count(*), count(DISTINCT id), sum(n), sum(cost)::VARCHAR FROM {}"


def answers(lake: ls.Lake) -> dict[str, list[str]]:
    return {name: [str(v) for v in lake.sql(QUERY.format(name)).fetchall()[0]] for name in lake}


@pytest.fixture(params=RELEASED)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, list[str]]]:
    """A lake as that release left it when its process was killed, and what it held."""
    with tarfile.open(DATA / request.param / "lake.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "format").write_text(request.param.removeprefix("v"))
    return tmp_path / "lake", json.loads((DATA / request.param / "answers.json").read_text())


def test_it_is_the_first_format_that_is_kept():
    assert RELEASED[0] == "v1"


def test_a_released_lake_lives_on(golden):
    root, held = golden
    with ls.open(root, upkeep="manual") as lake:
        assert answers(lake) == held
        assert lake.open_report.rows == 20  # ten of each table were not flushed
        assert lake.verify().problems == ()
        table = lake["events"]
        assert table.append({"id": "new", "at": "2026-03-02", "n": 1}).rows == 1
        again = table.append({"id": "x", "at": "2026-03-02"}, producer="job", seq=4)
        assert again.rows == 0  # what producers sent is remembered
        lake.seal()
        held["events"] = answers(lake)["events"]
        assert held["events"][:2] == ["101", "101"]
        assert lake.verify().problems == ()
        for name in lake:  # which writes into all that is new
            lake[name].compact()
        assert len({file.day for file in table._context.state().cold}) == 5
        assert len(table._context.state().cold) == 5
        assert answers(lake) == held
        assert lake.verify().problems == ()
    assert rebuild(root).tables  # and its catalog can be made again


def test_a_reader_does_not_migrate(golden):
    root, held = golden
    with pytest.raises(ls.InvalidInputError, match="open the lake once with mode='rw'"):
        ls.open(root, mode="r")
    with closing(sqlite3.connect(root / "_site" / "catalog.sqlite")) as con:
        format = con.execute("SELECT format FROM lake").fetchall()
    assert format == [(int(root.parent.joinpath("format").read_text()),)]
    ls.open(root, upkeep="manual").close()
    with ls.open(root, mode="r") as lake:
        assert answers(lake) == held
