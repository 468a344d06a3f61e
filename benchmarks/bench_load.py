"""How much slower is a load than pyarrow writing the same Parquet, and what memory does it take?

The baseline writes the very same rows from the same Arrow data in one run, one after the other: the
same codec, row groups, page index, page checksums and bloom filters, through `DataFileWriter`'s own
pyarrow writer, into files of the sizes that the load makes. It sorts, checks, hashes and fsyncs
nothing. In turns, each in a process of its own; the data are made before the clock starts.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from events import PLAIN, SCHEMA, batches
from report import machine, table

import lakestore as ls
from lakestore.datafile import ROW_GROUP_ROWS


def peak() -> int:
    """Most bytes of memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def source(path: Path) -> pa.RecordBatchReader:
    """The events in a file of Arrow data, read as they are asked for."""
    return pa.ipc.open_stream(pa.OSFile(str(path)))


def write_source(path: Path, rows: int) -> None:
    """The events, in a file of Arrow data."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, PLAIN.arrow) as writer:
        for batch in batches(rows, 65_536):
            writer.write_table(pa.Table.from_batches([batch]).cast(PLAIN.arrow))


def pyarrow_alone(data: Path, folder: Path, rows: int) -> dict[str, float]:
    """Write the data as pyarrow would, by options alone."""
    folder.mkdir()
    reader = source(data)
    clock = _Clock()
    writer, written, number = None, 0, 0
    held: list[pa.RecordBatch] = []
    for batch in reader:
        held.append(batch)
        if sum(b.num_rows for b in held) < ROW_GROUP_ROWS and written + batch.num_rows < rows:
            continue
        group = pa.Table.from_batches(held)
        if writer is None:
            writer = _writer(folder / f"{number}.parquet", group)
        writer.write_table(group, row_group_size=group.num_rows)
        written, held, number = written + group.num_rows, [], number + 1
        if number % 3 == 0:
            writer.close()
            writer = None
    if held:
        group = pa.Table.from_batches(held)
        writer = writer or _writer(folder / f"{number}.parquet", group)
        writer.write_table(group)
    if writer is not None:
        writer.close()
    took = clock.read()
    size = sum(path.stat().st_size for path in folder.iterdir())
    return took | {"bytes": size, "peak": peak()}


class _Clock:
    """Seconds by the wall, and of processors, from now on."""

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Those until now."""
        seconds, used = time.perf_counter() - self._began, time.process_time() - self._used
        return {"seconds": seconds, "cpu": used}


def _writer(path: Path, first: pa.Table) -> pq.ParquetWriter:
    from lakestore.distinct import hardly_repeats

    plain = {name for name in PLAIN.names if hardly_repeats(first.column(name))} | set(PLAIN.bloom)
    return pq.ParquetWriter(
        path,
        PLAIN.arrow,
        compression="zstd",
        use_dictionary=[name for name in PLAIN.names if name not in plain],
        write_page_index=True,
        write_page_checksum=True,
        bloom_filter_options={n: {"fpp": 0.01, "ndv": first.num_rows} for n in PLAIN.bloom},
        data_page_size=128 << 10,
        write_batch_size=1_024,
    )


def loading(
    data: Path, folder: Path, rows: int, schema: ls.TableSchema, cold: str
) -> dict[str, float]:
    """Load the data into a new lake."""
    with ls.open(folder, upkeep="manual") as lake:
        usage = lake.create_table("usage", schema, cold=cold)
        clock = _Clock()
        report = usage.load(source(data))
        took = clock.read()
        assert report.rows == rows
        assert lake.sql("SELECT count(*) FROM usage").fetchone() == (rows,)
    return took | {"bytes": report.bytes, "files": report.files, "peak": peak()}


def measure(what: str, data: Path, rows: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        target = Path(folder) / "out"
        if what == "pyarrow":
            return pyarrow_alone(data, target, rows)
        schema = SCHEMA if "dedup" in what else PLAIN
        return loading(data, target, rows, schema, "delta" if "delta" in what else "parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, data = given.one
        print(json.dumps(measure(what, Path(data), given.rows)))
        return
    machine()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        data = folder / "events.arrows"
        write_source(data, given.rows)
        kinds = ("pyarrow", "load", "load, dedup by day", "load to delta, dedup by day")
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(given.rounds):
            for kind in kinds:
                command = [sys.executable, __file__, "--rows", str(given.rows), "--one", kind]
                done = subprocess.run([*command, str(data)], check=True, stdout=subprocess.PIPE)
                found[kind].append(json.loads(done.stdout))
    finally:
        shutil.rmtree(folder)
    base = statistics.median(one["seconds"] for one in found["pyarrow"])
    lines = []
    for kind, all_of in found.items():
        seconds = statistics.median(one["seconds"] for one in all_of)
        most = max(one["peak"] for one in all_of)
        lines.append(
            [
                kind,
                f"{seconds:.2f}",
                f"{given.rows / seconds:,.0f}",
                f"{base / seconds:.2f}",
                f"{statistics.median(one['cpu'] for one in all_of):.2f}",
                f"{all_of[0]['bytes'] / 1e6:,.1f}",
                f"{most / 2**20:,.0f}",
            ]
        )
    columns = ["what", "s", "rows/s", "x pyarrow", "CPU s", "MB", "peak MiB"]
    table(f"loading {given.rows:,} rows, median of {given.rounds}", columns, lines)


if __name__ == "__main__":
    main()
