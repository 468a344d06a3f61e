"""Have another environment's Daft read what lakestore seals: `run.py PYTHON`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import SCHEMA, events
from support.store import moto

import lakestore as ls


def main() -> None:
    python = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder, moto() as store:
        places: list[tuple[str, dict[str, str] | None]] = [
            (f"{folder}/lake", None),
            (f"s3://{store.bucket}/lake", store.options),
        ]
        for root, options in places:
            local = Path(folder) / "site" if options else None
            with ls.open(root, storage_options=options, local=local, upkeep="manual") as lake:
                table = lake.create_table("events", SCHEMA, cold="delta")
                for start in range(0, 120, 40):
                    table.append(events(start, start + 50))
                    table.seal()
                expected = list(
                    lake.sql(
                        "SELECT count(*), count(DISTINCT id), sum(n)::BIGINT, count(place), "
                        "count(*) FILTER (time >= '2025-01-03') FROM events"
                    ).fetchall()[0]
                )
            arguments = [f"{root}/tables/events/data", *([json.dumps(options)] if options else [])]
            reader = Path(__file__).with_name("daft_reads.py")
            done = subprocess.run(
                [python, str(reader), *arguments], capture_output=True, text=True, check=False
            )
            found = json.loads(done.stdout) if done.returncode == 0 else done.stderr
            if found != expected:
                raise SystemExit(f"{root}: Daft reads {found}, and there is {expected}")
            print(f"Daft reads {expected[0]} rows from {arguments[0]}")


if __name__ == "__main__":
    main()
