"""What does it cost to make a day's many small files few, beside reading and writing them once?

A day of 16-column usage events lies in as many cold files as there were seals. lakestore compacts
it: checks every byte, sorts all rows, writes files of the target size with bloom filters, reads
them back, and commits. The baseline is pyarrow, which reads the same files one by one and writes
their rows as they come, with the same codec, pages, checksums and bloom filters; it sorts nothing
and checks nothing. Each has a process of its own, which tells its most memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import events
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import report

import lakestore as ls
from lakestore import datafile

DAY = datetime(2026, 6, 1, tzinfo=UTC)


def fill(root: Path, files: int, rows: int, cold: str) -> None:
    """A day in so many seals."""
    step = timedelta(days=1) / rows
    with ls.open(root, upkeep="manual", settings={"segment_duckdb_rows": 10**9}) as lake:
        table = lake.create_table("usage", events.SCHEMA, cold=cold)
        done = 0
        for batch in events.batches(rows, rows // files):
            numbers = np.arange(done, done + batch.num_rows)
            micros = np.datetime64(DAY.replace(tzinfo=None), "us") + numbers * np.timedelta64(step)
            times = pa.array(micros).cast(pa.timestamp("us", "UTC"))
            index = batch.schema.get_field_index("created_at")
            table.append(batch.set_column(index, batch.schema.field(index), times))
            table.seal()
            done += batch.num_rows


def compact(root: Path) -> None:
    with ls.open(root, upkeep="manual") as lake:
        start = time.perf_counter()
        done = lake["usage"].compact()
        say(time.perf_counter() - start, done.files_after)


def read_and_write(root: Path) -> None:
    paths = sorted((root / "tables/usage/data").rglob("*.parquet"))
    target = root.parent / "baseline.parquet"
    start = time.perf_counter()
    schema = pq.read_schema(paths[0]).remove_metadata()
    writer = pq.ParquetWriter(
        target,
        schema,
        compression="zstd",
        write_page_index=True,
        write_page_checksum=True,
        bloom_filter_options={"event_id": {"fpp": 0.01, "ndv": datafile.ROW_GROUP_ROWS}},
    )
    pending: list[pa.Table] = []
    for path in paths:
        pending.append(pq.ParquetFile(path).read())
        if sum(table.num_rows for table in pending) >= datafile.ROW_GROUP_ROWS:
            writer.write_table(pa.concat_tables(pending), row_group_size=1 << 30)
            pending = []
    if pending:
        writer.write_table(pa.concat_tables(pending), row_group_size=1 << 30)
    writer.close()
    say(time.perf_counter() - start, 1)


def say(seconds: float, files: int) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "files": files, "rss": most}))


def measured(job: str, root: Path) -> dict[str, float]:
    told = subprocess.run(
        [sys.executable, __file__, "--job", job, "--root", str(root)],
        check=True,
        capture_output=True,
        text=True,
    )
    answer: dict[str, float] = json.loads(told.stdout)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--cold", choices=("parquet", "delta"), default="parquet")
    parser.add_argument("--job", choices=("compact", "read_and_write"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job is not None:
        {"compact": compact, "read_and_write": read_and_write}[arguments.job](arguments.root)
        return
    report.machine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "lake"
        fill(root, arguments.files, arguments.rows, arguments.cold)
        paths = list((root / "tables/usage/data").rglob("*.parquet"))
        size = sum(path.stat().st_size for path in paths)
        base = measured("read_and_write", root)
        ours = measured("compact", root)
    rows = []
    for name, one in (("pyarrow, reading and writing once", base), ("lakestore compact", ours)):
        took = f"{one['seconds'] / base['seconds']:.2f} x"
        most = f"{one['rss'] / 2**20:.0f}"
        rows.append([name, f"{one['files']:.0f}", f"{one['seconds']:.1f}", took, most])
    what = f"{arguments.rows:,} rows in {len(paths):,} files, {size / 1e6:.0f} MB"
    report.table(
        f"a day of {what}, {arguments.cold}",
        ["system", "files after", "s", "took", "RSS MiB"],
        rows,
    )


if __name__ == "__main__":
    main()
