"""`lake.duckdb`: what a DuckDB shell sees that knows nothing of lakestore."""

import csv
import io
import os
import subprocess
import sys
import threading

import duckdb
import pytest
from conftest import SCHEMA, events

import lakestore as ls


def run(cli: str, root: object, query: str) -> list[list[str]]:
    """Rows that the real shell prints for a query, on lake.duckdb opened read-only."""
    done = subprocess.run(
        [cli, "-readonly", "-csv", f"{root}/lake.duckdb", query],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "TZ": "UTC"},
    )
    return list(csv.reader(io.StringIO(done.stdout)))[1:]


def attach(root: object) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute(f"ATTACH '{root}/lake.duckdb' AS lake (READ_ONLY)")
    return con


QUERY = """
    SELECT count(*), count(DISTINCT id), sum(n), sum(place.zip), count(tags[1]), min(time)
    FROM events
    """


def test_the_real_shell_sees_published_rows_and_their_structs(lake, table, root, duckdb_cli):
    assert run(duckdb_cli, root, "SELECT count(*) FROM events") == [["0"]]
    table.append(events(0, 30))
    assert run(duckdb_cli, root, "SELECT count(*) FROM events") == [["0"]]
    table.flush()
    table.append(events(30, 60))
    table.seal()
    table.append(events(60, 90))
    table.flush()

    expected = lake.sql(QUERY).fetchone()
    assert expected is not None
    row = run(duckdb_cli, root, QUERY)[0]
    assert [int(v) for v in row[:5]] == [int(v) for v in expected[:5]]
    assert row[5] == "2025-01-01 00:00:00+00"
    assert attach(root).execute(QUERY.replace("events", "lake.events")).fetchall() == [expected]


def test_the_columns_are_the_tables(lake, table, root, duckdb_cli):
    """Nothing is added by the folders' names, and types are those that `lake.sql` gives."""
    table.append(events(0, 30))
    table.seal()
    described = run(duckdb_cli, root, "DESCRIBE events")
    mine = lake.sql("DESCRIBE events").fetchall()
    assert [(r[0], r[1]) for r in described] == [(r[0], r[1]) for r in mine]
    assert [r[0] for r in described] == list(SCHEMA.names)


def test_facts_of_the_lake_are_literals(lake, table, root, duckdb_cli):
    table.append(events(0, 30))
    table.flush()
    ((generation, rows, at),) = run(duckdb_cli, root, "FROM _lake")
    assert (rows, at) == ("30", "2025-06-01 00:00:00+00")
    table.append(events(30, 31))
    table.flush()
    ((later, rows, _),) = run(duckdb_cli, root, "FROM _lake")
    assert rows == "31"
    assert int(later) > int(generation)


def test_an_attached_shell_keeps_its_snapshot_until_it_attaches_again(lake, table, root):
    table.append(events(0, 30))
    table.flush()
    con = attach(root)
    table.append(events(30, 60))
    table.seal()
    assert con.execute("SELECT count(*) FROM lake.events").fetchall() == [(30,)]
    con.execute("DETACH lake")
    con.execute(f"ATTACH '{root}/lake.duckdb' AS lake (READ_ONLY)")
    assert con.execute("SELECT count(*) FROM lake.events").fetchall() == [(60,)]


def test_tables_with_awkward_names_and_columns(lake, root, duckdb_cli):
    schema = ls.TableSchema.from_toml(
        "event_time = 'the time'\n[columns]\n'the time' = 'TIMESTAMP'\n"
        "'se\"lect' = 'INTEGER'\n'Day' = 'VARCHAR'\nlow_0 = 'INTEGER'\n'a.b' = 'INTEGER'"
    )
    table = lake.create_table("select", schema)
    row = {"the time": "2025-01-01", 'se"lect': 4, "Day": "it's", "low_0": 1, "a.b": 2}
    table.append(row)
    table.seal()
    table.append(row)
    query = 'SELECT sum("se""lect"), min("Day"), sum(low_0) FROM "select" WHERE "a.b" = 2'
    assert lake.sql(query).fetchall() == [(8, "it's", 2)]
    assert lake.sql(query.replace('"a.b" = 2', "low_0 = 2")).fetchall() == [(None, None, None)]
    table.flush()
    assert run(duckdb_cli, root, query) == [["8", "it's", "2"]]


def test_a_lake_in_a_folder_with_an_awkward_name(tmp_path, duckdb_cli):
    root = tmp_path / 'it\'s a "lake"; {x} $y %s é'
    with ls.open(root, upkeep="manual") as lake:
        table = lake.create_table("events", SCHEMA)
        for start in (0, 30):
            table.append(events(start, start + 30))
            table.seal()
        table.append(events(60, 70))
        table.flush()
        assert lake.sql("SELECT count(*) FROM events").fetchone() == (70,)
        assert table.scan().collect().height == 70
    assert run(duckdb_cli, root, "SELECT count(*) FROM events") == [["70"]]


@pytest.mark.parametrize("name", ["a*b", "a?b", "a[b]", "a\\b"])
def test_a_folder_that_duckdb_takes_for_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(ls.InvalidInputError, match="DuckDB takes"):
        ls.open(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_dropped_tables_leave_the_views(lake, table, root, duckdb_cli):
    lake.drop_table("events")
    assert run(duckdb_cli, root, "SHOW TABLES") == [["_lake"]]


WRITER = """
import sys
from conftest import SCHEMA, events
import lakestore as ls
lake = ls.open(sys.argv[1], upkeep="manual", settings={"vacuum_grace_s": 3, "segments_max": 4})
table = lake["events"]
print("ready", flush=True)
for turn in range(int(sys.argv[2])):
    table.append(events(turn * 20, turn * 20 + 20))
    table.flush()
    if turn % 5 == 4:
        table.seal()
        table.vacuum(dry_run=False)
lake.close()
"""


@pytest.mark.parametrize("reader", ["cli", "python"])
def test_every_read_is_exact_while_a_writer_publishes(
    lake, table, root, duckdb_cli, tmp_path, reader, request
):
    """Each read finds whole appends, each row once, never fewer than the read before.

    DuckDB opens the file twice, the header first: when the file is replaced in between, the new
    file has no free list where the old header says, and the attach fails. It is tried again then.
    """
    lake.close()
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    writer = subprocess.Popen(
        [sys.executable, str(script), str(root), "60"], stdout=subprocess.PIPE, env=environment
    )
    request.addfinalizer(writer.communicate)
    request.addfinalizer(writer.kill)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    finished = threading.Event()
    threading.Thread(target=lambda: (writer.wait(), finished.set())).start()
    query = (
        "SELECT count(*), count(DISTINCT id), coalesce(max(id), ''), max(n_rows) FROM events, _lake"
    )
    reads, last, failed = 0, 0, 0
    while True:
        over = finished.is_set()
        try:
            if reader == "cli":
                (row,) = run(duckdb_cli, root, query)
            else:
                con = attach(root)
                con.execute("USE lake")
                row = con.execute(query).fetchall()[0]
                con.close()
        except (subprocess.CalledProcessError, duckdb.IOException) as error:
            if over or "IO Error" not in str(getattr(error, "stderr", error)):
                raise  # nobody publishes any more, or it is something else
            failed += 1
            continue
        rows, distinct, highest = int(row[0]), int(row[1]), row[2]
        assert rows == distinct >= last
        assert rows % 20 == 0
        assert highest == (f"e{rows - 1:06d}" if rows else "")
        assert rows == 0 or int(row[3]) == rows
        last, reads = rows, reads + 1
        if over:
            break
    assert writer.returncode == 0
    assert last == 1200
    assert reads >= 10
    assert failed <= reads // 10
