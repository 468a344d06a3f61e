"""Upkeep: which job is due, and the thread that does it.

A failure is kept and shown by `status`; the thread goes on with flushes and seals, which only
add, and deletes nothing more until somebody has looked (`maintain()` by hand clears it).
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lakestore import flush, retain, seal, shell
from lakestore.catalog import Catalog
from lakestore.clock import Clock
from lakestore.context import TableContext
from lakestore.engine import Engine
from lakestore.errors import ConflictError, LakestoreError
from lakestore.layout import SiteLayout
from lakestore.query.pin import FilesInUse
from lakestore.settings import Settings
from lakestore.storage import Storage

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
        tables: Callable[[], Sequence[TableContext]],
        catalog: Catalog,
        site: SiteLayout,
        storage: Storage,
        engine: Engine,
        in_use: FilesInUse,
        writer: str,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._tables = tables
        self._catalog = catalog
        self._site = site
        self._storage = storage
        self._engine = engine
        self._in_use = in_use
        self._writer = writer
        self._settings = settings
        self._clock = clock
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
        garbage = self._catalog.garbage()
        if table is not None:
            garbage = [g for g in garbage if g.table_id == table.entry.id]
        now = self._clock.now().timestamp()
        chosen = retain.choose(garbage, now, self._settings.vacuum_grace_s, self._in_use)
        return retain.vacuum(
            self._catalog, self._site, self._storage, self._engine, chosen, dry_run=dry_run
        )

    def publish(self) -> None:
        """Make `lake.duckdb` show what is published."""
        shell.publish(
            self._tables(),
            self._catalog,
            self._site,
            self._storage,
            self._engine,
            self._site.staging_of(self._writer),
        )

    def round(self, *, delete: bool = True) -> Report:
        """Do every job that is due, once."""
        report = Report()
        for table in self._tables():
            try:
                self._keep(table, report)
            except ConflictError:
                pass  # another process did it
            except (LakestoreError, OSError) as error:
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
        now = self._clock.monotonic()
        began = buffer.began
        age = now - began if began is not None else 0.0
        if flush.is_due(buffer.rows, buffer.bytes, age, self._settings):
            with table.maintaining:
                report.flushed += len(flush.flush(table))
        with table.maintaining:
            while flush.merge(table) is not None:
                report.merged += 1
            hot = table.state().hot
            if hot:
                oldest = self._clock.now() - min(s.committed_at for s in hot)
                size = sum(s.info.bytes for s in hot)
                if seal.is_due(size, oldest.total_seconds(), self._settings):
                    report.sealed += len(seal.seal(table))

    def _run(self) -> None:
        pause = min(1.0, self._settings.flush_age_s / 2)
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
