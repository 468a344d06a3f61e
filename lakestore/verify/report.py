"""What verify finds: problems, as values."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["damage", "doubt", "cache", "leftover"]
"""How bad a problem is.

- damage: rows are lost or wrong, or a promise is broken
- doubt: the bytes alone cannot tell damage from the trace of a crash
- cache: something that can be made again is missing or wrong; answers stay right
- leftover: what a crash leaves; nothing reads it
"""
Repair = Literal["quarantine", "twin", "ids", "rollup", "views", "empty"]
"""What `repair` may do: move the file away, or make a cache again (the old one is moved away)."""

RESTORE = "restore the file from a copy"
REBUILD = "`lakestore rebuild` makes the catalog again from the lake's files"
REPAIR = "`lakestore verify --repair` makes it again"
MOVE = "nothing reads it; `lakestore verify --repair` moves it to quarantine"


@dataclass(frozen=True)
class Problem:
    """One broken promise: what, of which table, in which file, and what helps."""

    kind: str
    severity: Severity
    table: str | None
    file: Path | str  # of an object in a store, its URL
    what: str
    help: str
    repair: Repair | None = None
    rows_lost: int = 0

    @property
    def repairable(self) -> bool:
        """Whether `repair` deals with it."""
        return self.repair is not None

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.file}: {self.what}; {self.help}"

    def to_dict(self) -> dict[str, Any]:
        """The same as a plain dictionary."""
        return asdict(self) | {"file": str(self.file)}


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    root: str
    problems: tuple[Problem, ...]
    files: int
    rows: int

    @property
    def ok(self) -> bool:
        """Whether every promise holds; what a crash leaves and nothing reads is no problem."""
        return all(problem.severity == "leftover" for problem in self.problems)

    @property
    def rows_lost(self) -> int:
        """Rows that were published or accepted and cannot be read."""
        return sum(problem.rows_lost for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return {
            "root": self.root,
            "ok": self.ok,
            "files": self.files,
            "rows": self.rows,
            "rows_lost": self.rows_lost,
            "problems": [problem.to_dict() for problem in self.problems],
        }

    def __str__(self) -> str:
        lines = [f"{self.root}: checked {self.rows:,} rows in {self.files:,} files"]
        lines += [str(problem) for problem in self.problems]
        if self.rows_lost:
            lines.append(f"{self.rows_lost:,} rows cannot be read")
        lines.append("ok" if self.ok else "NOT ok")
        return "\n".join(lines)


def by_severity(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Problems, the worst first, each once."""
    order = ("damage", "doubt", "cache", "leftover")
    unique = dict.fromkeys(problems)
    return tuple(
        sorted(unique, key=lambda p: (order.index(p.severity), p.table or "", str(p.file)))
    )
