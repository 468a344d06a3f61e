"""Upkeep: which job is due, and the thread that does it.

A failure is kept and shown by `status`; the thread goes on with flushes and seals, which only
add, and deletes nothing more until somebody has looked (`maintain()` by hand clears it).
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lakestore import flush, retain, seal, shell
from lakestore.context import SiteContext, TableContext
from lakestore.errors import ConflictError, StorageError
from lakestore.query.pin import FilesInUse

log = logging.getLogger("lakestore")
_NICENESS = 5


@dataclass
class Report:
    """What one round of maintenance did: numbers of things."""

    flushed: int = 0
    merged: int = 0
    sealed: int = 0
    deleted: int = 0
    problems: list[str] = field(default_factory=list)


class Upkeep:
    """The jobs that keep a lake in shape, by hand or in a thread."""

    def __init__(
        self,
        site: SiteContext,
        tables: Callable[[], Sequence[TableContext]],
        in_use: FilesInUse,
    ) -> None:
        self._site = site
        self._tables = tables
        self._in_use = in_use
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.problem: str | None = None

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
            with table.sealing:
                while flush.merge(table) is not None:
                    pass
            self.publish()
        return sum(segment.info.rows for segment in segments)

    def seal(self, table: TableContext) -> int:
        """Flush and seal now; returns the rows sealed."""
        with table.flushing:
            flush.flush(table)
        with table.sealing:
            files = seal.seal(table)
        self.publish()
        return sum(file.info.rows for file in files)

    def vacuum(self, *, dry_run: bool, table: TableContext | None = None) -> retain.Vacuumed:
        """Delete what nothing names any more, or say what would go."""
        garbage = self._site.catalog.garbage()
        if table is not None:
            garbage = [g for g in garbage if g.table_id == table.entry.id]
        now = self._site.clock.now().timestamp()
        chosen = retain.choose(garbage, now, self._site.settings.vacuum_grace_s, self._in_use)
        return retain.vacuum(self._site, chosen, dry_run=dry_run)

    def publish(self) -> None:
        """Make `lake.duckdb` show what is published."""
        try:
            shell.publish(self._site, self._tables())
        except StorageError as error:  # a cache: what it shows is committed, only shells lag
            self.problem = str(error)
            log.error("%s", error)

    def round(self) -> Report:
        """Do every job that is due, once."""
        report = Report()
        self._flush_round(report)
        self._seal_round(report)
        if not report.problems:
            report.deleted = len(self.vacuum(dry_run=False))
        return report

    def _flush_round(self, report: Report) -> None:
        """Flush what is due; merge what no seal is at; delete journals and expired files."""
        for table in self._tables():
            with self._noting(table, report):
                report.flushed += self._flush_if_due(table)
                if table.sealing.acquire(blocking=False):
                    try:
                        while flush.merge(table) is not None:
                            report.merged += 1
                    finally:
                        table.sealing.release()
        if report.flushed or report.merged:
            self.publish()

    def _seal_round(self, report: Report) -> None:
        """Seal what is due."""
        for table in self._tables():
            with self._noting(table, report), table.sealing:
                hot = table.state().hot
                if hot:
                    oldest = self._site.clock.now() - min(s.committed_at for s in hot)
                    size = sum(s.info.bytes for s in hot)
                    if seal.is_due(size, oldest.total_seconds(), self._site.settings):
                        report.sealed += len(seal.seal(table))
        if report.sealed:
            self.publish()

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

    def _run(self, jobs: Callable[[Report], None]) -> None:
        # Of this thread alone, on Linux: appends and queries come first when the cores are busy.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        pause = min(1.0, self._site.settings.flush_age_s / 2)
        while not self._stopping.is_set():
            if jobs == self._flush_round:
                self._wake.wait(pause)
                self._wake.clear()
            else:
                self._stopping.wait(pause)
            if self._stopping.is_set():
                return
            report = Report()
            try:
                jobs(report)
                if self.problem is None and not report.problems and jobs == self._flush_round:
                    self.vacuum(dry_run=False)
            except Exception as error:  # the thread must outlive any one failure
                report.problems.append(str(error))
            if report.problems:
                if report.problems[0] != self.problem:
                    log.error("upkeep: %s", report.problems[0])
                self.problem = report.problems[0]
                self._stopping.wait(pause)
