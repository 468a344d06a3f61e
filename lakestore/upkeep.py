"""Upkeep: which job is due, and the thread that does it.

A failure is kept and shown by `status`; the thread goes on with flushes and seals, which only
add, and deletes nothing more until somebody has looked (`maintain()` by hand clears it).
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lakestore import flush, retain, seal, shell
from lakestore.context import SiteContext, TableContext
from lakestore.errors import ConflictError, StorageError
from lakestore.query.pin import FilesInUse

log = logging.getLogger("lakestore")


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
        self._thread: threading.Thread | None = None
        self.problem: str | None = None

    def start(self) -> None:
        """Do the jobs in a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="lakestore-upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, once it has finished what it is doing."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def wake(self) -> None:
        """Something may be due."""
        self._wake.set()

    def flush(self, table: TableContext) -> int:
        """Flush now; returns the rows published."""
        with table.maintaining:
            segments = flush.flush(table)
            while flush.merge(table) is not None:
                pass
        if segments:
            self.publish()
        return sum(segment.info.rows for segment in segments)

    def seal(self, table: TableContext) -> int:
        """Flush and seal now; returns the rows sealed."""
        with table.maintaining:
            flush.flush(table)
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

    def round(self, *, delete: bool = True) -> Report:
        """Do every job that is due, once."""
        report = Report()
        for table in self._tables():
            try:
                self._keep(table, report)
            except ConflictError:
                pass  # another process did it
            except Exception as error:  # one table must not hold up the others
                report.problems.append(f"{table.entry.name}: {error}")
        if report.flushed or report.merged or report.sealed:
            self.publish()
        if delete and not report.problems:
            report.deleted = len(self.vacuum(dry_run=False))
        return report

    def _keep(self, table: TableContext, report: Report) -> None:
        """One table's jobs: flush, merge, seal, each when due."""
        buffer = table.buffer
        assert buffer is not None
        now = self._site.clock.monotonic()
        began = buffer.began
        age = now - began if began is not None else 0.0
        if flush.is_due(buffer.rows, buffer.bytes, age, self._site.settings):
            with table.maintaining:
                report.flushed += len(flush.flush(table))
        with table.maintaining:
            while flush.merge(table) is not None:
                report.merged += 1
            hot = table.state().hot
            if hot:
                oldest = self._site.clock.now() - min(s.committed_at for s in hot)
                size = sum(s.info.bytes for s in hot)
                if seal.is_due(size, oldest.total_seconds(), self._site.settings):
                    report.sealed += len(seal.seal(table))

    def _run(self) -> None:
        pause = min(1.0, self._site.settings.flush_age_s / 2)
        while not self._stopping.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            if self._stopping.is_set():
                return
            try:
                report = self.round(delete=self.problem is None)
                problem = report.problems[0] if report.problems else None
            except Exception as error:  # the thread must outlive any one failure
                problem = str(error)
                log.exception("upkeep failed")
            if problem is not None and problem != self.problem:
                log.error("upkeep: %s", problem)
            if problem is not None:
                self.problem = problem
                self._stopping.wait(pause)
