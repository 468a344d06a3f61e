"""Processes that share one table until they are killed: writers, a reader, a maintainer.

Each writer is one producer whose batches can be made again from its ledger: after a kill, the next
life sends the last one again if nobody knows whether it was accepted.
"""

import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from support import mutants
from support.oracle import Ledger, Oracle, append_recorded
from support.small_life import SCHEMA

import lakestore as ls

SETTINGS = {
    "flush_rows": 400,
    "flush_age_s": 0.1,
    "seal_bytes": 60_000,
    "segment_duckdb_rows": 300,
    "vacuum_grace_s": 1.0,
    "memory_bytes": 64 << 20,
}
_START = datetime(2025, 1, 1, tzinfo=UTC)


def rows_of(producer: str, seq: int, count: int) -> pa.Table:
    """The rows of a batch, which its producer, number and size decide; over three days."""
    times = [_START + timedelta(days=(seq + i) % 3, seconds=i) for i in range(count)]
    ids = [f"{producer}-{seq:06d}-{i:02d}" for i in range(count)]
    return pa.table([ids, times, [seq * 100 + i for i in range(count)]], schema=SCHEMA.arrow)


def found(root: str) -> None:
    """Make the lake and its table."""
    with ls.open(root, upkeep="manual", settings=SETTINGS) as lake:
        lake.create_table("events", SCHEMA)


def write(root: str, ledger: str, producer: str, seed: int, mutant: str | None = None) -> None:
    """Append batches of 1 to 40 rows, at levels `os` and `disk`, some with known rows in them."""
    mutants.plant(mutant)
    chance = random.Random(seed)
    sent = list(_sent(Path(ledger), producer))
    lake = ls.open(root, settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, exist_ok=True)
    book = Ledger(Path(ledger), SCHEMA.arrow, sync=False)
    for seq, count in sent[-1:]:
        append_recorded(table, book, rows_of(producer, seq, count), producer=producer, seq=seq)
    seq = sent[-1][0] if sent else 0
    while True:
        seq += 1
        count = chance.randint(1, 40)
        level = chance.choice(("os", "disk"))
        rows = rows_of(producer, seq, count)
        append_recorded(table, book, rows, level=level, producer=producer, seq=seq)
        if chance.random() < 0.1:  # by nobody in particular: the ids alone tell
            append_recorded(table, book, rows, level=level)


def read(root: str, ledger: str) -> None:
    """Look again and again: what was acknowledged before is there, nothing twice, none torn."""
    oracle = Oracle(Path(ledger))
    lake = ls.open(root, mode="r", settings=SETTINGS)
    while True:
        before = oracle.required("os")
        rows = lake["events"].to_arrow()
        findings = oracle.check(rows, "os")
        lost = before - set(rows.column("id").to_pylist())
        broken = {**findings.broken, "lost": len(lost)}
        assert not any(broken.values()), f"a reader saw {broken}: {findings} {sorted(lost)[:5]}"


def maintain(root: str, seed: int, mutant: str | None = None) -> None:
    """Flush, seal and vacuum, in any order, as fast as it goes."""
    mutants.plant(mutant)
    chance = random.Random(seed)
    lake = ls.open(root, upkeep="manual", settings=SETTINGS)
    table = lake.create_table("events", SCHEMA, exist_ok=True)
    jobs: list[Any] = [
        table.flush,
        table.seal,
        lambda: table.vacuum(dry_run=False),
        lake.maintain,
    ]
    while True:
        with suppress(ls.ConflictError, ls.LockedError):  # another process did it
            chance.choice(jobs)()
        time.sleep(0.02)


def judge(root: str, ledger: str) -> None:
    """Once all are dead: recover, check, flush, check; prints the rows acknowledged and visible."""
    oracle = Oracle(Path(ledger))
    with ls.open(root, upkeep="manual", settings=SETTINGS) as lake:
        for _ in range(2):
            findings = oracle.check(lake["events"].to_arrow() if "events" in lake else None, "os")
            assert findings.ok, findings
            lake.flush()
        report = lake.verify()
        assert report.ok, report.problems
    text = json.dumps({"visible": findings.visible, "acknowledged": findings.acknowledged})
    Path(ledger, "judged.json").write_text(text)


def _sent(ledger: Path, producer: str) -> Iterator[tuple[int, int]]:
    """Number and size of each batch that earlier lives of a producer submitted, in order."""
    for path in sorted(ledger.glob("*.ledger")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                fact = json.loads(line)
                if fact.get("producer") == producer:
                    yield fact["seq"], len(fact["keys"])
