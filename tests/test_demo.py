"""The generator of usage events, and the demo that fills a lake with them."""

import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

import lakestore as ls
from lakestore.cli.app import app
from lakestore.demo import COLUMNS, START, usage_events


def test_events_are_the_same_for_the_same_seed_only():
    first, again, other = (
        pa.Table.from_batches(usage_events(2_500, seed=seed)) for seed in (1, 1, 2)
    )

    assert first.equals(again)
    assert not first.equals(other)


def test_batches_have_the_rows_that_were_asked_for():
    sizes = [batch.num_rows for batch in usage_events(2_500, batch_rows=1_000)]

    assert sizes == [1_000, 1_000, 500]
    assert list(usage_events(0)) == []


def test_events_ascend_over_seven_days_and_have_unique_ids():
    events = pa.Table.from_batches(usage_events(20_000, batch_rows=3_000))
    times = events["created_at"]

    assert pc.all(pc.greater_equal(times.slice(1), times.slice(0, len(times) - 1))).as_py()
    assert times[0].as_py() - START < timedelta(hours=1)
    assert timedelta(0) < START + timedelta(days=7) - times[-1].as_py() < timedelta(hours=1)
    assert pc.count_distinct(events["event_id"]).as_py() == 20_000
    assert {len(id) for id in events["event_id"].to_pylist()} == {36}


def test_values_are_plausible():
    """The dashboards shown in the demo must look like a gateway's, not like noise."""
    events = pa.Table.from_batches(usage_events(50_000))
    ok = pc.mean(pc.equal(events["status_code"], 200)).as_py()
    refused = events.filter(pc.equal(events["status_code"], 429))
    afternoon = pc.sum(pc.equal(pc.hour(events["created_at"]), 15)).as_py()
    night = pc.sum(pc.equal(pc.hour(events["created_at"]), 3)).as_py()

    assert 0.95 < ok < 0.97
    assert 0.015 < refused.num_rows / 50_000 < 0.027
    assert pc.sum(refused["output_tokens"]).as_py() == 0
    assert afternoon > 4 * night
    assert events.schema.field("credit_usage").type == pa.decimal128(24, 12)
    assert pc.min(events["credit_usage"]).as_py() >= 0
    assert pc.min(events["latency_ms"]).as_py() > 0


def test_columns_can_be_chosen_and_a_wrong_one_is_named():
    (batch,) = usage_events(10, columns=["model", "event_id"])
    (whole,) = usage_events(10)

    assert batch.schema.names == ["model", "event_id"]
    assert batch.column("model").equals(whole.column("model"))
    assert tuple(whole.schema.names) == COLUMNS
    with pytest.raises(ls.InvalidInputError, match="'cost'"):
        list(usage_events(1, columns=["cost"]))
    with pytest.raises(ls.InvalidInputError, match="rows=-1"):
        list(usage_events(-1))


def test_events_fit_the_shipped_schema(tmp_path):
    start = datetime(2020, 2, 29, tzinfo=UTC)
    with ls.open(tmp_path / "lake", upkeep="manual") as lake:
        usage = lake.create_table("usage", "llm_usage")
        for batch in usage_events(300, batch_rows=100, start=start):
            assert usage.append(batch).rows == 100
        answer = lake.sql("SELECT count(*), min(created_at)::DATE::VARCHAR FROM usage").fetchone()

    assert answer == (300, "2020-02-29")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small demo lake, in a folder whose name needs quoting, and what `demo --json` said."""
    folder = tmp_path_factory.mktemp("demo") / "it's a demo"
    result = CliRunner().invoke(app, ["demo", str(folder), "--rows", "5000", "--json"])
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


def test_demo_seals_what_it_appended(demo):
    folder, said = demo

    assert said["rows"] == 5000
    assert said["lake"] == str(folder)
    assert {t["tier"]: t["rows"] for t in said["tiers"]} == {"buffer": 0, "hot": 0, "cold": 5000}
    assert sum(row["requests"] for row in said["models"]) == 5000
    assert said["models"][0]["model"] == "claude-sonnet-4-5"


@pytest.mark.parametrize("what", ["lakestore, in a shell", "any DuckDB shell", "Python", "Polars"])
def test_lines_to_type_next_work_when_pasted(demo, what):
    _, said = demo
    line = said["next"][what]
    arguments = [sys.executable, "-c", line]
    if what == "lakestore, in a shell":
        arguments = ["sh", "-c", line]
    elif what == "any DuckDB shell":
        shell = Path(sys.executable).parent / "duckdb"
        if not shell.exists():
            pytest.skip("no duckdb shell beside Python")
        arguments = [str(shell), *shlex.split(line.rpartition("&& ")[2])[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "claude-sonnet-4-5" in done.stdout
    assert done.stderr == ""


def test_demo_for_people_shows_rate_models_hours_tiers_and_next_lines(tmp_path):
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "d"), "--rows", "3000"])

    assert result.exit_code == 0, result.output
    assert "appended 3,000 events" in result.stdout
    assert "rows/s" in result.stdout
    assert "gpt-5-mini" in result.stdout
    assert "\n15h █" in result.stdout
    assert "│ cold" in result.stdout
    assert f"lakestore sql {tmp_path / 'd'}" in result.stdout


def test_demo_replaces_only_a_demo_and_only_when_told(tmp_path):
    folder = tmp_path / "d"
    run = CliRunner().invoke
    assert run(app, ["demo", str(folder), "--rows", "100"]).exit_code == 0

    kept = run(app, ["demo", str(folder), "--rows", "200"])
    assert (kept.exit_code, "--overwrite" in kept.stderr) == (1, True)
    replaced = run(app, ["demo", str(folder), "--rows", "200", "--overwrite", "--json"])
    assert json.loads(replaced.stdout)["rows"] == 200


def test_demo_refuses_folders_that_hold_something_else(tmp_path):
    run = CliRunner().invoke
    (tmp_path / "precious.txt").write_text("mine")
    ls.open(tmp_path / "lake").close()
    cases = {tmp_path: "not empty", tmp_path / "lake": "not of a demo"}
    cases[tmp_path / "precious.txt"] = "is a file"
    for folder, reason in cases.items():
        result = run(app, ["demo", str(folder), "--rows", "10", "--overwrite"])
        assert result.exit_code == 1
        assert reason in result.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert (tmp_path / "lake" / "lakestore.json").exists()


def test_demo_takes_a_file(tmp_path):
    import pyarrow.parquet as pq

    (batch,) = usage_events(400)
    table = pa.table(batch).append_column("extra", pa.array(range(400)))
    pq.write_table(table, tmp_path / "mine.parquet")
    result = CliRunner().invoke(
        app, ["demo", str(tmp_path / "d"), "--input", str(tmp_path / "mine.parquet"), "--json"]
    )

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 400
