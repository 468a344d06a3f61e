"""Lives of a lake in a store: something of everything, then a storm, then good weather."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from conftest import SCHEMA, FixedClock, events
from deltalake import DeltaTable
from support.store import Store

import lakestore as ls

OPTIONS = {"timeout": "0.4", "max_retries": "2"}
_ASK = "SELECT id FROM events"


class Life:
    """Appends, seals, compaction and maintenance; a dropped table and its vacuum.

    While the storm lasts, calls may fail with an error of lakestore's, and appends may not. What a
    query answers then holds every row that is there for certain, and nothing that cannot be.
    """

    grace_s = 0

    def __init__(
        self,
        root: str,
        local: Path,
        store: Store,
        through: Store,
        cold: Literal["parquet", "delta"],
    ) -> None:
        self.root, self.local, self.cold = root, local, cold
        self.store, self.through = store, through
        self.clock = FixedClock()
        self.certain: set[int] = set()
        self.uncertain: set[int] = set()
        """Rows that a call which failed put there or took away, or did not."""
        self.failures: list[str] = []

    def open(self, store: Store, **options: str) -> ls.Lake:
        return ls.open(
            self.root, local=self.local, upkeep="manual", clock=self.clock,
            storage_options=store.options | options,
            settings={
                "commit_timeout_s": 1.5, "cache_bytes": 0, "vacuum_grace_s": 0,
                "cold_grace_s": self.grace_s,
            },
        )  # fmt: skip

    def prepare(self) -> None:
        with self.open(self.store) as lake:
            for name in ("events", "gone"):
                table = lake.create_table(name, SCHEMA, cold=self.cold)
                table.append(events(0, 20))
                table.seal()
            lake.drop_table("gone")
            lake["events"].append(events(20, 40))
            lake["events"].flush()
        self.certain = set(range(40))
        shutil.rmtree(self.local / "files", ignore_errors=True)  # so that a query has to ask
        self.clock.move(10_000)

    def storm(self) -> None:
        try:
            lake = self.open(self.through, **OPTIONS)
        except ls.LakestoreError as error:
            self.failures.append(repr(error))
            return
        assert lake["events"].append(events(40, 60)).rows == 20  # whatever the store does
        self.certain |= set(range(40, 60))
        self.live(lake)
        self.call(lake.close)
        lake._site.catalog.close()

    def live(self, lake: ls.Lake) -> None:
        table = lake["events"]
        for call in (table.seal, table.compact, lake.maintain):
            self.call(call)
            self.ask(lake)

    def call(self, call: Callable[..., object], *given: object, **options: object) -> bool:
        """Whether a call came through."""
        try:
            call(*given, **options)
        except ls.LakestoreError as error:
            self.failures.append(repr(error))
            return False
        return True

    def ask(self, lake: ls.Lake) -> None:
        """A query answers truly, or fails."""
        try:
            found = [number_of(id) for (id,) in lake.sql(_ASK).fetchall()]
        except ls.LakestoreError as error:
            self.failures.append(repr(error))
            return
        assert len(found) == len(set(found))
        assert self.certain <= set(found) <= self.certain | self.uncertain

    def problems(self) -> list[str]:
        """What is broken, once the weather is good again."""
        found = []
        with self.open(self.store) as lake:
            if not self.certain >= set(range(40, 60)):  # the lake could not be opened
                lake["events"].append(events(40, 60))
                self.certain |= set(range(40, 60))
            found += self.mend(lake)
            lake.seal()
            found += self._wrong(lake, "after the storm")
            table = lake["events"]
            table.compact(today=True)
            self.clock.move(self.grace_s)
            table.vacuum(dry_run=False)
            days = [file.day for file in table._context.state(newest=True).cold]
            found += [] if len(days) == len(set(days)) else [f"files of {days}"]
            found += self._wrong(lake, "after a compaction")
        if self.cold == "delta":
            url = f"{self.root}/tables/events/data"
            rows = DeltaTable(url, storage_options=self.store.for_engines).to_pyarrow_table()
            if sorted(map(number_of, rows["id"].to_pylist())) != sorted(self.certain):
                found.append(f"deltalake reads {rows.num_rows}")
        return found

    def mend(self, lake: ls.Lake) -> list[str]:
        """Do again what failed; returns what is broken still."""
        return []

    def _wrong(self, lake: ls.Lake, when: str) -> list[str]:
        rows = [number_of(id) for (id,) in lake.sql(_ASK).fetchall()]
        expected = sum(number for number in self.certain if number % 11)
        total = lake.sql("SELECT sum(n)::BIGINT FROM events").fetchall()
        report = lake.verify()
        return [
            *([] if sorted(rows) == sorted(self.certain) else [f"rows {when}: {sorted(rows)}"]),
            *([] if total == [(expected,)] else [f"sum {when}: {total}"]),
            *([] if report.ok else [f"{when}: {report}"]),
        ]


class LaterLife(Life):
    """Columns are added, rows loaded, purged, pruned, brought back and pruned again."""

    grace_s = 3_600
    first_day = frozenset(range(20))
    erased = frozenset({5, 30, 50})
    purged = False

    def prepare(self) -> None:
        with self.open(self.store) as lake:
            table = lake.create_table("events", SCHEMA, cold=self.cold)
            table.append(events(0, 20))
            table.append(events(24, 30))
            table.seal()
            table.append(events(30, 40))
            table.flush()
        self.certain = set(range(40)) - set(range(20, 24))
        shutil.rmtree(self.local / "files", ignore_errors=True)
        self.clock.move(10_000)

    def live(self, lake: ls.Lake) -> None:
        self.evolve(lake)
        self.load(lake)
        self.ask(lake)
        self.purge(lake)
        self.ask(lake)
        self.call(lake["events"].seal)
        self.prune(lake)
        self.ask(lake)
        self.undo(lake)
        self.ask(lake)
        self.call(lake["events"].compact, today=True)
        self.travel(lake)
        self.prune(lake)
        self.clock.move(self.grace_s)
        self.call(lake["events"].vacuum, dry_run=False)
        self.ask(lake)

    def evolve(self, lake: ls.Lake) -> bool:
        return self.call(lake["events"].evolve, add={"note": "VARCHAR"})

    def load(self, lake: ls.Lake) -> bool:
        rows = events(70, 90)
        came = self.changed(range(70, 90), lake["events"].load, rows, load_id="storm")
        self.certain |= set(range(70, 90)) if came else set()
        return came

    def purge(self, lake: ls.Lake) -> bool:
        ids = [f"e{number:06d}" for number in self.erased]
        self.purged = self.changed(self.erased, lake["events"].purge, {"id": ids})
        return self.purged

    def prune(self, lake: ls.Lake) -> bool:
        options: dict[str, Any] = {"before": "2025-01-02", "confirm": True}
        return self.changed(self.first_day, lake["events"].prune, **options)

    def undo(self, lake: ls.Lake) -> None:
        if self.changed(self.first_day, lake["events"].undo):
            self.certain |= self.first_day - self.erased
            self.uncertain |= set() if self.purged else self.first_day & self.erased

    def changed(
        self, rows: Iterable[int], call: Callable[..., object], *given: Any, **options: Any
    ) -> bool:
        """Whether a call that adds or deletes rows came through; else they are uncertain."""
        if self.call(call, *given, **options):
            self.certain -= set(rows)
            self.uncertain -= set(rows)
            return True
        self.certain -= set(rows)
        self.uncertain |= set(rows)
        return False

    def travel(self, lake: ls.Lake) -> None:
        """The newest version can be asked by its number."""
        table = lake["events"]
        try:
            newest = table.history(1)[0]
            ids = table.at(newest.version).to_arrow().column("id").to_pylist()
        except ls.LakestoreError as error:
            self.failures.append(repr(error))
            return
        assert set(map(number_of, ids)) <= self.certain | self.uncertain

    def mend(self, lake: ls.Lake) -> list[str]:
        done = ["note" in lake["events"].schema.names or self.evolve(lake)]
        done += [self.load(lake), self.purge(lake)]
        lake.seal()
        done.append(self.prune(lake))
        return [] if all(done) else self.failures[-4:]


LIVES: dict[str, type[Life]] = {"small": Life, "later": LaterLife}


def number_of(id: str) -> int:
    return int(id[1:])
