"""Make a golden lake with the lakestore that is installed: `python make.py FOLDER`.

It holds something of everything: sealed, flushed and unflushed rows, three tables, a dropped one,
a producer. The process is killed, so its journals are there to be recovered. A lake of each format
that was ever released is kept, and opened by every version since (`tests/test_golden.py`).
"""

import json
import os
import signal
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lakestore as ls

START = datetime(2026, 3, 1, tzinfo=UTC)
SCHEMA = """
event_id = "id"
event_time = "at"
[columns]
id = "VARCHAR not null"
at = "TIMESTAMPTZ not null"
n = "BIGINT"
cost = "DECIMAL(18,6)"
tags = "VARCHAR[]"
place = "STRUCT(city VARCHAR, zip INTEGER)"
"""


def rows(start: int, stop: int) -> list[dict[str, object]]:
    return [
        {
            "id": f"e{n:04d}",
            "at": START + timedelta(hours=n),
            "n": None if n % 7 == 0 else n,
            "cost": f"{n}.25",
            "tags": [f"t{n % 3}", None] if n % 4 else None,
            "place": {"city": f"c{n % 3}", "zip": n} if n % 5 else None,
        }
        for n in range(start, stop)
    ]


def fill(root: Path) -> None:
    """Fill a lake and die; what it holds is said before."""
    lake = ls.open(root, upkeep="manual", settings={"segment_duckdb_rows": 20})
    schema = ls.TableSchema.from_toml(SCHEMA)
    events = lake.create_table("events", schema)
    other = lake.create_table("other", schema)
    gone = lake.create_table("gone", schema)
    gone.append(rows(0, 5))
    gone.seal()
    lake.drop_table("gone")
    log = lake.create_table("log", schema, cold="delta")  # from format 2 on
    log.append(rows(0, 10))
    log.seal()
    events.append(rows(0, 60), producer="job", seq=3)
    events.seal()
    events.append(rows(60, 90))
    events.flush()
    events.append(rows(80, 100), producer="job", seq=4)
    other.append(rows(0, 10))
    query = "SELECT count(*), count(DISTINCT id), sum(n), sum(cost)::VARCHAR FROM {}"
    answers = {
        name: [str(v) for v in lake.sql(query.format(name)).fetchall()[0]]
        for name in ("events", "other", "log")
    }
    (root.parent / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    root = folder / "lake"
    child = os.fork()
    if child == 0:
        fill(root)
    os.waitpid(child, 0)
    with tarfile.open(folder / "lake.tar.gz", "w:gz") as archive:
        archive.add(root, "lake")
