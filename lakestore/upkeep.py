"""Upkeep: which job is due, and the two threads that do it.

A failure is kept and shown by `status` until the job succeeds; damage is kept until somebody has
looked (`maintain()` by hand). Meanwhile flushes and seals, which only add, go on, and nothing is
deleted but journals whose rows are published.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date

from lakestore import compact, flush, retain, seal, shell
from lakestore.catalog.records import Garbage
from lakestore.compact import Compacted, Job
from lakestore.context import SiteContext, TableContext, states
from lakestore.errors import ConflictError, CorruptionError, StorageError
from lakestore.query.pin import FilesInUse
from lakestore.snapshot import GenerationId

log = logging.getLogger("lakestore")
_NICENESS = 5
_FOLLOW_S = 10.0
"""How often other sites are looked at: a few requests each time."""
_PAUSE_MAX_S = 60.0
_LEASE_S = 30.0
"""A process that is stopped keeps others from maintaining its table for this long at most."""


@dataclass
class Report:
    """What one round of maintenance did: numbers of things."""

    flushed: int = 0
    merged: int = 0
    sealed: int = 0
    deleted: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: bool = False


class Upkeep:
    """The jobs that keep a lake in shape, by hand or in a thread."""

    def __init__(
        self,
        site: SiteContext,
        tables: Callable[[], Sequence[TableContext]],
        in_use: FilesInUse,
        on_seal: Callable[[TableContext], None],
        on_death: Callable[[Sequence[str]], None],
        adopt: Callable[[], None],
    ) -> None:
        """The jobs of an open lake.

        Args:
            tables: those there are now.
            on_seal: told of each table that was sealed.
            on_death: takes over the rows of dead writers, whose locks this process has.
            adopt: sees which tables other sites made and dropped.
        """
        self._site = site
        self._tables = tables
        self._in_use = in_use
        self._on_seal = on_seal
        self._on_death = on_death
        self._adopt = adopt
        self._followed_at = site.clock.monotonic()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._problems: dict[str, str] = {}  # by job; each job writes its own
        self._shown: dict[int, int] = {}  # by table: the cold version that shells see

    @property
    def problem(self) -> str | None:
        """What failed last, until the job that failed succeeds; damage stays until `look`."""
        return next(iter(list(self._problems.values())), None)

    def look(self) -> None:
        """Somebody has looked at the problem: go on as if there were none."""
        self._problems.clear()

    def start(self) -> None:
        """Do the jobs in two threads from now on: a seal takes long, and flushes must not wait."""
        for name, jobs in (("flush", self._flush_round), ("seal", self._seal_round)):
            thread = threading.Thread(
                target=self._run, args=(jobs,), name=f"lakestore-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the threads, once they have finished what they are doing."""
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def wake(self) -> None:
        """Something may be due."""
        self._wake.set()

    def flush(self, table: TableContext) -> int:
        """Flush now; returns the rows published."""
        with table.flushing:
            segments = flush.flush(table)
        if segments:
            with suppress(ConflictError):  # another process merged or sealed them: flushed is done
                self._merge(table)
            self._show_flushed()
        return sum(segment.info.rows for segment in segments)

    def seal(self, table: TableContext) -> int:
        """Flush and seal now; returns the rows sealed."""
        with table.flushing:
            flush.flush(table)
        rows = 0
        with table.sealing:
            while seal.choose((state := table.state()).hot):
                self._lease(table, over=True)  # whoever asks by hand need not wait
                try:
                    rows += sum(file.info.rows for file in seal.seal(table))
                except ConflictError:  # another process does it: what is left is for us
                    if table.state().version == state.version:
                        raise
            seal.say_so(table, asked=True)
        self._on_seal(table)
        self.publish()
        return rows

    def _lease(self, table: TableContext, *, over: bool = False) -> bool:
        """Whether this process maintains a table from now on, for a while."""
        catalog, writer = self._site.catalog, self._site.writer
        return catalog.lease(table.entry.id, writer, _LEASE_S, over=over)

    def take_over(self) -> None:
        """Take over the rows of writers that have died.

        Raises:
            CorruptionError: a journal is damaged; its rows are tried again at the next call.
        """
        self._site.take_over()
        dead = [lock.name for lock in list(self._site.dead)]
        if dead:
            self._on_death(dead)

    def vacuum(self, *, dry_run: bool, table: TableContext | None = None) -> retain.Vacuumed:
        """Delete what nothing names any more, or say what would go."""
        garbage = [g for g in self._site.catalog.garbage() if self._may_go(g)]
        garbage = self._not_live(garbage)
        if table is not None:
            garbage = [g for g in garbage if g.table_id == table.entry.id]
        if self.problem is not None and not dry_run:
            garbage = [g for g in garbage if g.kind == "journal"]
        now = self._site.clock.now().timestamp()
        settings = self._site.settings
        graces = settings.vacuum_grace_s, settings.cold_grace_s
        chosen = retain.choose(garbage, now, *graces, self._in_use)
        vacuumed = retain.vacuum(self._site, chosen, dry_run=dry_run)
        if not dry_run:
            self._site.forget_dead()
        return vacuumed

    def _may_go(self, garbage: Garbage) -> bool:
        """Whether a file is this process's to delete.

        A journal is its writer's, or of whoever took a dead writer over; and while the buffer
        holds its rows, the catalog must go on saying that a segment has them too.
        """
        if garbage.kind != "journal":
            return True
        writer, number = garbage.name.split("/")
        id = GenerationId(writer, int(number))
        held = any(t.buffer is not None and id in t.buffer.ids for t in self._tables())
        return writer in self._site.writers and not held

    def _not_live(self, garbage: Sequence[Garbage]) -> list[Garbage]:
        """Without cold files that are part of a table, whatever the catalog says of them."""
        ids = {g.table_id for g in garbage if g.kind == "cold"}
        tables = [table for table in self._tables() if table.entry.id in ids]
        live = {
            (id, file.name)
            for id, state in states(self._site, tables).items()
            for file in state.cold
        }
        return [g for g in garbage if g.kind != "cold" or (g.table_id, g.name) not in live]

    def compact(self, table: TableContext, *, today: bool) -> Compacted:
        """Compact all that is worth it now.

        Args:
            today: that day too, though its seals are still to come.
        """
        done = Compacted()
        with table.compacting:
            while jobs := self._jobs(table, eager=True, today=today):
                try:
                    done += compact.compact(table, jobs[0])
                except ConflictError:  # what is left is for us
                    if jobs == self._jobs(table, eager=True, today=today):
                        raise
        if done.days:
            self._on_seal(table)
            self.publish()
        return done

    def _jobs(self, table: TableContext, *, eager: bool, today: bool = False) -> list[Job]:
        now = self._site.clock.now()
        return compact.choose(
            table.state(newest=True).cold,
            date.max if today else now.date(),
            self._site.settings.cold_file_bytes,
            schema_version=table.entry.schema_version,
            eager=eager,
        )

    def publish(self) -> None:
        """Make `lake.duckdb` show what is published."""
        try:
            shown = self._cold_versions()
            shell.publish(self._site, self._tables)
            self._shown = shown
        except StorageError as error:  # a cache: what it shows is committed, only shells lag
            self._problems["views"] = str(error)
            log.error("upkeep: %s", error)
        else:
            self._problems.pop("views", None)

    def _show_flushed(self) -> None:
        """Show shells new segments; those of a store see none, and it must delay no flush."""
        if not self._site.storage.remote:
            self.publish()

    def round(self) -> Report:
        """Do every job that is due, once."""
        report = Report()
        self.take_over()
        self._flush_round(report)
        self._seal_round(report)
        if not report.problems:
            report.deleted = len(self.vacuum(dry_run=False))
        return report

    def _flush_round(self, report: Report) -> None:
        """Flush what is due; merge what no seal is at."""
        for table in self._tables():
            with self._noting(table, report):
                report.flushed += self._flush_if_due(table)
                report.merged += self._merge(table)
        if report.flushed or report.merged:
            self._show_flushed()

    def _seal_round(self, report: Report) -> None:
        """Seal what is due, and look, now and then, at what other sites and engines did."""
        follows = self._follows()
        for table in self._tables():
            before = report.sealed
            with self._noting(table, report), table.sealing:
                if self._seal_is_due(table) and self._lease(table):
                    report.sealed += len(seal.seal(table))
                elif follows:
                    seal.say_so(table, asked=False)
            if report.sealed > before:
                self._on_seal(table)
        if report.sealed or (follows and self._cold_versions() != self._shown):
            self.publish()

    def _follows(self) -> bool:
        """Whether it is time to look at other sites; sees which tables they made and dropped."""
        now = self._site.clock.monotonic()
        if 0 <= now - self._followed_at < _FOLLOW_S:
            return False
        self._followed_at = now
        self._adopt()
        return True

    def _cold_versions(self) -> dict[int, int]:
        """Which version of each cold tier is the newest: others seal into it too."""
        published = states(self._site, self._tables())
        return {id: state.cold_version for id, state in published.items()}

    def _seal_is_due(self, table: TableContext) -> bool:
        hot = table.state().hot
        if not hot:
            return False
        oldest = self._site.clock.now() - min(s.committed_at for s in hot)
        size = sum(s.info.bytes for s in hot)
        return seal.is_due(size, oldest.total_seconds(), self._site.settings)

    def _merge(self, table: TableContext) -> int:
        """Merge while there are too many segments, unless a seal is about to take them."""
        merged = 0
        if table.sealing.acquire(blocking=False):
            try:
                while flush.merge_is_due(table) and self._lease(table):
                    flush.merge(table)
                    merged += 1
            finally:
                table.sealing.release()
        return merged

    def _flush_if_due(self, table: TableContext) -> int:
        buffer = table.buffer
        assert buffer is not None
        began = buffer.began
        age = self._site.clock.monotonic() - began if began is not None else 0.0
        if not flush.is_due(buffer.rows, buffer.bytes, age, self._site.settings):
            return 0
        with table.flushing:
            return len(flush.flush(table))

    @contextmanager
    def _noting(self, table: TableContext, report: Report) -> Iterator[None]:
        """Note a failure in the report: one table must not hold up the others."""
        try:
            yield
        except ConflictError:
            pass  # another process did it
        except Exception as error:
            report.problems.append(f"{table.entry.name}: {error}")
            report.damaged = report.damaged or isinstance(error, CorruptionError)

    def _run(self, jobs: Callable[[Report], None]) -> None:
        with suppress(OSError):
            # Of this thread alone, on Linux: appends and queries come first on busy cores.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        flushes = jobs == self._flush_round
        name = "flush" if flushes else "seal"
        pause = min(1.0, self._site.settings.flush_age_s / 2)
        damaged, failures = False, 0
        while not self._stopping.is_set():
            (self._wake if flushes else self._stopping).wait(pause)
            if flushes:
                self._wake.clear()
            if self._stopping.is_set():
                return
            report = Report()
            try:
                if flushes:
                    self.take_over()
                jobs(report)
                if flushes:
                    self.vacuum(dry_run=False)
            except Exception as error:  # the thread must outlive any one failure
                report.problems.append(str(error))
            failures = failures + 1 if report.problems else 0
            damaged = (damaged and name in self._problems) or report.damaged
            if report.problems:
                known, problem = self._problems.get(name), report.problems[0]
                self._problems[name] = problem  # first: who is told looks at the status
                if problem != known:
                    log.error("upkeep: %s", problem)
                most = _PAUSE_MAX_S if self._site.storage.remote else pause
                self._stopping.wait(min(most, pause * 2 ** min(failures, 9)))
            elif not damaged:
                self._problems.pop(name, None)
