"""A small life of a lake, for suites that interrupt it at every point."""

import json
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from support import mutants
from support.forks import say
from support.oracle import Ledger, Oracle, append_recorded

import lakestore as ls

SCHEMA = ls.TableSchema.from_toml(
    """
    event_id = "id"
    event_time = "time"
    [columns]
    id = "VARCHAR not null"
    time = "TIMESTAMPTZ not null"
    n = "BIGINT"
    """
)
"""Few columns: each costs system calls in every Parquet file, and so points to interrupt."""

SETTINGS = {"vacuum_grace_s": 0, "cold_grace_s": 0, "segment_duckdb_rows": 60}
"""The second segment gets a DuckDB file, the others do not; what was replaced may go at once."""


_START = datetime(2025, 1, 1, 22, tzinfo=UTC)


def events(start: int, stop: int) -> pa.Table:
    """Events `start` to `stop`, one a minute; those from 120 on are of another day."""
    numbers = range(start, stop)
    times = [_START + timedelta(minutes=i) for i in numbers]
    columns = [[f"e{i:06d}" for i in numbers], times, [i if i % 11 else None for i in numbers]]
    return pa.table(columns, schema=SCHEMA.arrow)


def live(root: str, ledger: str, mutant: str | None = None) -> None:
    """Open, create, append, seal, append, flush, load, compact, vacuum, close, reopen, append,
    flush, close.

    What raises a lakestore error is left, as an application would that logs and goes on; any other
    exception ends the process. Before each close, this process's own view of the rows must be
    right.
    """
    mutants.plant(mutant)
    book = Ledger(Path(ledger), Life.schema, sync=False)
    first = Life(root, book)
    first.append(0, 20, producer="p", seq=1)
    first.append(20, 40, level="os")
    first.append(10, 50)  # of these, 30 are known
    first.do("seal")
    first.append(50, 100, producer="p", seq=2)
    first.append(50, 100, producer="p", seq=2)  # sent again
    first.append(100, 110, level="os")
    first.do("flush")
    first.load(110, 120)  # seals first
    first.do("compact")
    first.do("vacuum", dry_run=False)
    first.append(5, 110)  # all are known, and sealed
    first.append(120, 130)
    first.close()
    second = Life(root, book)
    second.append(130, 150, producer="p", seq=3)
    second.do("flush")
    second.do("vacuum", dry_run=False)
    second.close()


class Life:
    """One opening of the lake, whose steps may fail with a lakestore error, each by itself."""

    schema = SCHEMA.arrow  # the ledger's

    def __init__(self, root: str, ledger: Ledger) -> None:
        self._root = root
        self._ledger = ledger
        self._table: ls.Table | None = None
        self._lake: ls.Lake | None = self._try(self._open) or self._try(self._open)
        if self._lake is not None:
            create = partial(self.create, self._lake)
            self._table = self._try(create) or self._try(create)

    @classmethod
    def create(cls, lake: ls.Lake) -> ls.Table:
        return lake.create_table("events", SCHEMA, exist_ok=True)

    def events(self, start: int, stop: int) -> pa.Table:
        return events(start, stop)

    def append(self, start: int, stop: int, **options: Any) -> None:
        if self._table is not None:
            table, rows = self._table, self.events(start, stop)
            self._try(lambda: append_recorded(table, self._ledger, rows, **options))

    def load(self, start: int, stop: int) -> None:
        if self._table is not None:
            table, rows = self._table, self.events(start, stop)

            def step() -> None:
                batch = self._ledger.submit(rows, level="disk")
                table.load(rows, load_id="load")
                self._ledger.ack(batch)

            self._try(step)

    def do(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """What the table's method returns; None where it failed, too."""
        if self._table is not None:
            return self._try(lambda: getattr(self._table, verb)(*arguments, **options))
        return None

    def close(self) -> None:
        if self._table is not None:
            findings = Oracle(self._ledger.path.parent).check(self._table.to_arrow(), "memory")
            assert findings.ok, f"before the close: {findings}"
        if self._lake is not None:
            self._try(self._lake.close)

    def _open(self) -> ls.Lake:
        return ls.open(self._root, upkeep="manual", settings=SETTINGS)

    def _try(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except ls.LakestoreError as error:
            say(f"{type(error).__name__}: {error}")
            return None


def judge(lakes: list[list[str]], level: str, report: str, life: type[Life] = Life) -> None:
    """Open each lake, as after a crash, and check it; writes what is wrong, by lake, as JSON."""
    wrong = {}
    for root, ledger in lakes:
        try:
            _judge(Path(root), Oracle(Path(ledger)), level, life)
        except Exception:
            wrong[root] = traceback.format_exc(limit=-3)
    Path(report).write_text(json.dumps(wrong))


def _judge(root: Path, oracle: Oracle, level: str, life: type[Life]) -> None:
    """The rows must be right, those again that are written now, and both once they are flushed."""
    with ls.open(root, upkeep="manual", settings=SETTINGS) as lake:
        _check(lake, oracle, level)
        table = life.create(lake)
        ledger = Ledger(oracle.folder, life.schema, sync=False)
        append_recorded(table, ledger, events(1000, 1010), producer="p", seq=1000)
        _check(lake, oracle, level)
        table.flush()
        table.vacuum(dry_run=False)
        _check(lake, oracle, level)
        ledger.close()


def _check(lake: ls.Lake, oracle: Oracle, level: str) -> None:
    findings = oracle.check(lake["events"].to_arrow() if "events" in lake else None, level)
    assert findings.ok, findings
    problems = tuple(p for p in lake.verify().problems if p.severity != "leftover")
    if level == "disk":  # a power loss tears what is not fsynced: caches of ids, and only those
        problems = tuple(p for p in problems if (p.kind, p.severity) != ("ids", "cache"))
    assert not problems, problems
