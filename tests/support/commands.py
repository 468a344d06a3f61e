"""Run commands of the command line, and a lake with one small table to run them on."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lakestore.cli.app import app
from lakestore.clock import Clock, SystemClock
from lakestore.opening import place
from lakestore.rebuild import run as rebuilding
from lakestore.rebuild.run import Rebuilt

SCHEMA = """
event_time = "at"
event_id = "id"
[columns]
id = "VARCHAR not null"
at = "TIMESTAMPTZ not null"
n = "INTEGER"
note = "VARCHAR"
"""
GOOD = "id,at,n,note\na,2026-01-01T00:00:00Z,1,one\nb,2026-01-01T00:00:01Z,2,two\n"
TIME = "2026-01-01T00:00:00Z"


def run(*arguments, stdin=None):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def ok(*arguments, stdin=None):
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments, stdin=None, code=1):
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


def rows(lake, query="SELECT id, n, note FROM t ORDER BY id"):
    return json.loads(ok("sql", lake, query, "--json"))


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "t.toml").write_text(SCHEMA)
    ok("create", tmp_path / "lake", "t", "--schema", tmp_path / "t.toml")
    return tmp_path / "lake"


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rebuild(root: Path, clock: Clock | None = None, **where: Any) -> Rebuilt:
    """What `lakestore rebuild` does."""
    return rebuilding.rebuild(*place(root, **where), clock or SystemClock())
