"""Maintenance: what is due in a lake, what each piece of it costs, and how much of it may be done.

Decides, and does nothing: `upkeep` does it, by hand and in its threads, by the same rules.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lakestore import compact, flush, prune, seal
from lakestore.catalog.records import Garbage
from lakestore.clock import Clock
from lakestore.context import TableContext
from lakestore.snapshot import TableState

Verb = Literal["flush", "merge", "seal", "prune", "vacuum", "compact"]
_ORDER: tuple[Verb, ...] = ("flush", "merge", "seal", "prune", "vacuum", "compact")
"""The most valuable first: rows on their way to where they last, then room, then fewer files."""


@dataclass(frozen=True)
class Task:
    """One piece of maintenance that is due."""

    verb: Verb
    table: str
    what: str
    files: int
    """That it takes."""
    bytes: int
    """To be read, of which about as many are written; nothing is read of what is deleted."""
    job: compact.Job | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Plan:
    """What is due, in the order in which `maintain` would do it."""

    tasks: tuple[Task, ...]

    @property
    def bytes(self) -> int:
        """The cost of all."""
        return sum(task.bytes for task in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        tasks = [
            {key: value for key, value in asdict(task).items() if key != "job"}
            for task in self.tasks
        ]
        return {"tasks": tasks, "bytes": self.bytes}

    def __str__(self) -> str:
        lines = [
            f"{task.verb} {task.table}: {task.what}"
            + (f", {task.bytes:,} bytes" if task.bytes else "")
            for task in self.tasks
        ]
        return "\n".join([*lines, f"{len(lines)} task(s), {self.bytes:,} bytes"])


class Budget:
    """How long, and over how many bytes, maintenance may go on; it ends between two tasks."""

    def __init__(
        self, clock: Clock, max_seconds: float | None = None, max_bytes: int | None = None
    ) -> None:
        self._clock = clock
        self._until = None if max_seconds is None else clock.monotonic() + max_seconds
        self._left = max_bytes
        self.refused = 0
        """Tasks that were not begun."""

    def allows(self, cost: int) -> bool:
        """Whether a task of so many bytes may begin; it is counted then."""
        late = self._until is not None and self._clock.monotonic() >= self._until
        if late or (self._left is not None and cost > self._left):
            self.refused += 1
            return False
        if self._left is not None:
            self._left -= cost
        return True


def plan(tables: Sequence[TableContext], garbage: Sequence[Garbage]) -> Plan:
    """What is due now.

    Args:
        garbage: what vacuum would delete.

    Raises:
        StorageError, CorruptionError: what is there cannot be read.
    """
    tasks = [task for table in tables for task in _tasks(table)]
    for table in tables:
        items = [item for item in garbage if item.table_id == table.entry.id]
        if items:
            what = f"{len(items):,} superseded files"
            tasks.append(Task("vacuum", table.entry.name, what, len(items), 0))
    return Plan(tuple(sorted(tasks, key=lambda task: (_ORDER.index(task.verb), -_worth(task)))))


def _worth(task: Task) -> float:
    return task.job.worth if task.job is not None else 0


def _tasks(table: TableContext) -> Iterator[Task]:
    name, state = table.entry.name, table.state(newest=True)
    if flush_is_due(table):
        assert table.buffer is not None
        what = f"{table.buffer.rows:,} rows"
        yield Task("flush", name, what, 0, table.buffer.bytes)
    if chosen := flush.neighbours(table):
        size = sum(segment.info.bytes for segment in chosen)
        yield Task("merge", name, f"{len(chosen)} segments", len(chosen), size)
    if seal_is_due(table, state):
        size = sum(segment.info.bytes for segment in state.hot)
        yield Task("seal", name, f"{len(state.hot)} segments", len(state.hot), size)
    expired = prune.due(table, state)
    if expired is not None:
        what = f"{expired.rows:,} rows before {expired.cutoff.isoformat(timespec='seconds')}"
        yield Task("prune", name, what, len(expired.files), 0)
    for job in jobs(table, state):
        what = f"{len(job.files):,} files of {job.day}"
        yield Task("compact", name, what, len(job.files), job.bytes, job)


def flush_is_due(table: TableContext) -> bool:
    """Whether what is buffered is worth a flush now."""
    buffer = table.buffer
    if buffer is None:
        return False
    began = buffer.began
    age = table.site.clock.monotonic() - began if began is not None else 0.0
    return flush.is_due(buffer.rows, buffer.bytes, age, table.site.settings)


def seal_is_due(table: TableContext, state: TableState) -> bool:
    """Whether what is hot is worth a seal now."""
    if not state.hot:
        return False
    oldest = table.site.clock.now() - min(segment.committed_at for segment in state.hot)
    size = sum(segment.info.bytes for segment in state.hot)
    return seal.is_due(size, oldest.total_seconds(), table.site.settings)


def jobs(
    table: TableContext, state: TableState, *, eager: bool = False, today: bool = False
) -> list[compact.Job]:
    """What is worth compacting now, the best first.

    Args:
        eager: all that makes files fewer.
        today: the day that has not ended too.
    """
    day = table.site.clock.now().date()
    return compact.choose(
        state.cold,
        day.max if today else day,
        table.site.settings.cold_file_bytes,
        schema_version=table.entry.schema_version,
        eager=eager,
    )
