"""Upkeep: the jobs that are due, done by hand or in two threads.

A failure is kept and shown by `status` until the job succeeds; damage is kept until somebody has
looked (`maintain()` by hand). Meanwhile flushes and seals, which only add, go on, and nothing is
deleted but journals whose rows are published.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date, datetime

from lakestore import compact, flush, maintenance, prune, retain, seal, shell, undo
from lakestore.catalog.records import Garbage
from lakestore.compact import Compacted, Job
from lakestore.context import TableContext, states
from lakestore.deletable import deletable
from lakestore.errors import ConflictError, CorruptionError, StorageError
from lakestore.horizon import Age
from lakestore.maintenance import Budget, Plan
from lakestore.opensite import SiteContext
from lakestore.prune import Pruned
from lakestore.query.pin import FilesInUse
from lakestore.undo import Undone
from lakestore.worker import Report, Worker

log = logging.getLogger("lakestore")
_FOLLOW_S = 10.0
"""How often other sites are looked at: a few requests each time."""
_PAUSE_MAX_S = 60.0
_EXPIRY_S = 300.0
"""How often a table with a retention is looked at."""
_LEASE_S = 30.0
"""A process that is stopped keeps others from maintaining its table for this long at most."""


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
        self._workers: list[Worker] = []  # of flushes, and of seals
        self._problems: dict[str, str] = {}  # by job; each job writes its own
        self._has_leased = False
        self._expired_at: float | None = None  # by the monotonic clock: when it was looked
        # By table: the cold version, and the day, at which nothing was worth compacting.
        self._tidy: dict[int, tuple[int, date]] = {}
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
        pause = min(1.0, self._site.settings.flush_age_s / 2)
        most = _PAUSE_MAX_S if self._site.storage.remote else pause
        for name, job in (("flush", self._tend_hot), ("seal", self._tend_cold)):
            worker = Worker(name, job, pause, most, self._problems)
            self._workers.append(worker)
            worker.start()

    def stop(self) -> None:
        """End the threads, once they have finished what they are doing."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()

    def wake(self) -> None:
        """A flush may be due."""
        for worker in self._workers[:1]:
            worker.wake()

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
        self.show_sealed(table)
        return rows

    @contextmanager
    def turn(self, table: TableContext) -> Iterator[None]:
        """Keep the seals of a table to this thread: other processes let it for a while, too."""
        with table.sealing:
            self._lease(table, over=True)
            yield

    def show_sealed(self, table: TableContext) -> None:
        """Rows of a table became cold."""
        self._on_seal(table)
        self.publish()

    def _lease(self, table: TableContext, *, over: bool = False) -> bool:
        """Whether this process maintains a table from now on, for a while."""
        catalog, writer = self._site.catalog, self._site.writer
        self._has_leased = True
        return catalog.lease(table.entry.id, writer, _LEASE_S, over=over)

    def end_leases(self) -> None:
        """Let others maintain at once what this process did."""
        if self._has_leased:
            with suppress(StorageError, CorruptionError):  # they end by themselves
                self._site.catalog.end_leases([self._site.writer])

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
        chosen = self._deletable(table)
        if self.problem is not None and not dry_run:
            chosen = [g for g in chosen if g.kind == "journal"]
        vacuumed = retain.vacuum(self._site, chosen, dry_run=dry_run)
        if not dry_run:
            self._site.forget_dead()
        return vacuumed

    def _deletable(self, table: TableContext | None) -> list[Garbage]:
        """What vacuum may delete now, of one table or all."""
        return deletable(self._site, self._tables(), self._in_use, table)

    def prune(
        self,
        table: TableContext,
        older_than: Age | None = None,
        before: datetime | None = None,
        *,
        dry_run: bool,
        confirm: bool,
    ) -> Pruned:
        """Take off what has expired, or say what would go: also when something speaks against it.

        Args:
            before: the cutoff; no clock is asked then.
            confirm: do it in spite of that.

        Raises:
            InvalidInputError: no retention is said or declared.
        """
        order = prune.order(table, older_than, before)
        plan = prune.choose(table.state(newest=True), table.schema, order.cutoff)
        refused = None if confirm else prune.refusal(plan, order.doubt)
        if dry_run or refused is not None:
            return prune.report(plan, dry_run=True, refused=refused)
        segments = len(plan.segments)
        if segments:
            self.seal(table)
        with table.compacting:
            done = prune.carry_out(table, order.cutoff)
        if done.files:
            self.show_sealed(table)
        return prune.report(replace(done, segments=()), dry_run=False, segments=segments)

    def undo(self, table: TableContext, version: int | None) -> Undone:
        """Take a prune back."""
        with table.compacting, table.flushing:
            undone = undo.undo(table, version)
        self.show_sealed(table)
        return undone

    def compact(
        self, table: TableContext, budget: Budget, *, today: bool, dry_run: bool
    ) -> Compacted:
        """Compact all that is worth it now, for whoever asks by hand.

        Args:
            today: that day too, though its seals are still to come.
        """
        done: list[tuple[Job, Compacted]] = []
        if dry_run:
            jobs = [job for job in self._jobs(table, today=today) if budget.allows(job.bytes)]
            return compact.total([(job, compact.foreseen(job)) for job in jobs])
        with table.compacting:
            while jobs := self._jobs(table, today=today):
                if not budget.allows(jobs[0].bytes):
                    break
                compact.refuse_replaced(table, jobs[0], [job for job, _ in done])
                try:
                    done.append((jobs[0], compact.compact(table, jobs[0])))
                except ConflictError:  # what is left is for us
                    if jobs == self._jobs(table, today=today):
                        raise
        if done:
            self.show_sealed(table)
        return compact.total(done)

    def _jobs(self, table: TableContext, *, today: bool) -> list[Job]:
        return maintenance.jobs(table, table.state(newest=True), eager=True, today=today)

    def plan(self) -> Plan:
        """What is due now."""
        return maintenance.plan(self._tables(), self._deletable(None))

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

    def round(self, budget: Budget | None = None) -> Report:
        """Do every job that is due, once, as far as the budget goes: the most valuable first."""
        report, budget = Report(), budget or Budget(self._site.clock)
        self.take_over()
        self._flush_round(report, budget)
        self._seal_round(report, budget)
        self._prune_round(report)
        if not report.problems:
            report.deleted = len(self.vacuum(dry_run=False))
        self._compact_round(report, budget)
        report.left = budget.refused
        return report

    def _flush_round(self, report: Report, budget: Budget) -> None:
        """Flush what is due; merge what no seal is at."""
        for table in self._tables():
            with self._noting(table, report):
                report.flushed += self._flush_if_due(table, budget)
                report.merged += self._merge(table)
        if report.flushed or report.merged:
            self._show_flushed()

    def _seal_round(self, report: Report, budget: Budget) -> None:
        """Seal what is due, and look, now and then, at what other sites and engines did."""
        follows = self._follows()
        for table in self._tables():
            before = report.sealed
            with self._noting(table, report), table.sealing:
                if self._seal_is_due(table, budget) and self._lease(table):
                    report.sealed += len(seal.seal(table))
                elif follows:
                    seal.say_so(table, asked=False)
            if report.sealed > before:
                self._on_seal(table)
        if report.sealed or (follows and self._cold_versions() != self._shown):
            self.publish()

    def _prune_round(self, report: Report) -> None:
        """Prune tables by their own retentions; what needs somebody's word is logged, and left."""
        for table in self._tables():
            if table.schema.document.retention is None:
                continue
            with self._noting(table, report):
                done = self.prune(table, dry_run=not self._lease(table), confirm=False)
                if done.refusal is not None:
                    log.warning("table %s is not pruned: %s", table.entry.name, done.refusal)
                elif not done.dry_run:
                    report.pruned += done.rows

    def _looks_for_expired(self) -> bool:
        """Whether it is time for a thread to prune."""
        now, before = self._site.clock.monotonic(), self._expired_at
        if before is not None and 0 <= now - before < _EXPIRY_S:
            return False
        self._expired_at = now
        return True

    def _compact_round(self, report: Report, budget: Budget, jobs_max: int | None = None) -> None:
        """Compact what is due, of all tables what is worth most first.

        Args:
            jobs_max: after so many, others wait for the next round.
        """
        due = [(table, job) for table in self._tables() for job in self._worthwhile(table)]
        changed: dict[int, TableContext] = {}
        for table, job in sorted(due, key=lambda one: -one[1].worth):
            if jobs_max is not None and report.compacted >= jobs_max:
                break
            if not table.compacting.acquire(blocking=False):  # someone is at it, maybe for long
                continue
            try:
                with self._noting(table, report):
                    if budget.allows(job.bytes) and self._lease(table):
                        compact.compact(table, job)
                        report.compacted += 1
                        changed[table.entry.id] = table
            finally:
                table.compacting.release()
        for table in changed.values():
            self._on_seal(table)
        if changed:
            self.publish()

    def _worthwhile(self, table: TableContext) -> Sequence[Job]:
        """What is worth compacting; not looked for again while files and day are the same."""
        state = table.state()
        seen = (state.cold_version, self._site.clock.now().date())
        if self._tidy.get(table.entry.id) == seen:
            return ()
        jobs = maintenance.jobs(table, state)
        if not jobs:
            self._tidy[table.entry.id] = seen
        return jobs

    def _tend_hot(self, report: Report) -> None:
        """Take over what dead writers left, flush, merge, vacuum."""
        self.take_over()
        self._flush_round(report, Budget(self._site.clock))
        self.vacuum(dry_run=False)

    def _tend_cold(self, report: Report) -> None:
        """Seal, prune, then compact: one job, for a seal may be due again after it."""
        budget = Budget(self._site.clock)
        self._seal_round(report, budget)
        if not report.problems and not self.problem:
            if self._looks_for_expired():
                self._prune_round(report)
            self._compact_round(report, budget, jobs_max=1)

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

    def _seal_is_due(self, table: TableContext, budget: Budget) -> bool:
        state = table.state()
        size = sum(segment.info.bytes for segment in state.hot)
        return maintenance.seal_is_due(table, state) and budget.allows(size)

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

    def _flush_if_due(self, table: TableContext, budget: Budget) -> int:
        assert table.buffer is not None
        if not maintenance.flush_is_due(table) or not budget.allows(table.buffer.bytes):
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
