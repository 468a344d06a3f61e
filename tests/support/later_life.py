"""A lake's later life, in which rows leave it and its columns change, for the same suites."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from support import mutants, small_life
from support.oracle import Ledger
from support.small_life import SCHEMA

import lakestore as ls

TOMORROW = "2025-01-02"
"""Events from number 120 on are of this day."""


class Life(small_life.Life):
    """One opening; what leaves the table, the ledger knows."""

    schema = pa.schema([*SCHEMA.arrow, pa.field("note", pa.string())])  # as it is at the end
    cold: Any = "parquet"
    n = "INTEGER"  # widened later
    wide = False

    @classmethod
    def create(cls, lake: ls.Lake) -> ls.Table:
        if "events" in lake:  # with more columns, perhaps
            return lake["events"]
        return lake.create_table(
            "events",
            {"id": "VARCHAR not null", "time": "TIMESTAMPTZ not null", "n": cls.n},
            event_id="id",
            event_time="time",
            cold=cls.cold,
        )

    def take(self, verb: str, numbers: Iterable[int], **options: Any) -> None:
        """Delete these rows, or all that are of the first day among them, or bring them back."""
        keys = [f"e{number:06d}" for number in numbers]
        self._ledger.leaving(keys)
        if self.do(verb, **options) is not None:
            (self._ledger.returned if verb == "undo" else self._ledger.left)(keys)

    def evolve(self, **changes: Any) -> None:
        self.wide = self.do("evolve", **changes) is not None or self.wide

    def events(self, start: int, stop: int) -> pa.Table:
        rows = small_life.events(start, stop)
        notes = pa.array([f"note {number}" for number in range(start, stop)])
        return rows.append_column("note", notes) if self.wide else rows


class InDelta(Life):
    """Columns of a Delta table cannot be widened."""

    cold = "delta"
    n = "BIGINT"


LIVES: dict[str, type[Life]] = {"parquet": Life, "delta": InDelta}


def live(root: str, ledger: str, cold: str, mutant: str | None = None) -> None:
    """Fill every tier, evolve, purge, prune, undo, compact, prune, vacuum, and go on."""
    mutants.plant(mutant)
    life = LIVES[cold]
    book = Ledger(Path(ledger), life.schema, sync=False)
    first = life(root, book)
    first.append(0, 30, producer="p", seq=1)
    first.append(120, 140)
    first.do("seal")
    first.append(30, 40)
    first.do("flush")
    if life.n == "INTEGER":
        first.evolve(widen={"n": "BIGINT"})
    first.evolve(add={"note": "VARCHAR"})
    first.append(140, 160, producer="p", seq=2)
    erased = (5, 6, 35, 121, 150)  # in cold files, in a segment and in a journal
    first.take("purge", erased, where={"id": [f"e{number:06d}" for number in erased]})
    _prune(first, set(range(40)) - set(erased))
    first.take("undo", set(range(40)) - set(erased))
    first.append(40, 50)
    first.do("seal")
    first.do("compact", today=True)
    _prune(first, set(range(50)) - set(erased))
    first.do("vacuum", dry_run=False)
    first.append(160, 170)
    first.close()
    second = life(root, book)
    second.append(160, 180, producer="p", seq=3)  # ten are known
    second.take("purge", erased, where={"id": [f"e{number:06d}" for number in erased]})
    second.do("seal")
    second.do("vacuum", dry_run=False)
    second.close()


def _prune(life: Life, numbers: Iterable[int]) -> None:
    """Of a file or segment that has newer events too nothing goes: first each day has its own."""
    if life.do("seal") is not None:
        life.take("prune", numbers, before=TOMORROW, confirm=True)


def judge(lakes: list[list[str]], level: str, report: str, cold: str) -> None:
    small_life.judge(lakes, level, report, LIVES[cold])
