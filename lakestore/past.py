"""Versions of a table's cold tier: what changed with each, and which can still be asked.

A version can be asked as long as all the files are there that it lists. Those that are part of the
table no more go some time after they were replaced; so it is the old versions that cannot.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from lakestore.snapshot import ColdFile


@dataclass(frozen=True)
class Version:
    """A version of a table's sealed rows, and what changed with it."""

    version: int
    """Of the lake where the catalog lists the files, of the log in a Delta table."""
    at: datetime
    """When it was committed, by the clock of who did."""
    operation: str
    """`create`, `seal`, `compact`, …; what another engine did by the name it gives."""
    rows_added: int
    rows_removed: int
    """0 for the oldest version of a Delta log that was cleaned up: it does not tell."""
    files_added: int
    files_removed: int
    by: str | None
    """The site, or the other engine; None when it does not say."""
    readable: bool = False
    """Whether `at` gives its rows: all of its files are there."""

    def to_dict(self) -> dict[str, Any]:
        """The same as a plain dictionary; the time as ISO text."""
        return asdict(self) | {"at": self.at.isoformat()}


class Span(NamedTuple):
    """From which version on a file was part of the table, and from which on no more."""

    name: str
    added: int
    removed: int


@dataclass(frozen=True)
class Past:
    """What is known of the last versions."""

    changes: Sequence[Version]
    """The newest first, none left out."""
    live: Mapping[int, int]
    """How many files of the newest version came with each."""
    went: Sequence[Span]
    """The files of these versions that are part of the table no more, as far as listed yet."""

    @property
    def names(self) -> set[str]:
        """Of the files that went."""
        return {span.name for span in self.went}

    def told(self, missing: Collection[str] = ()) -> list[Version]:
        """The changes, and of each version whether it can be asked. Pure.

        From the newest version backwards it is counted how many files each has, by what changed
        since, and how many of them are there. One that nothing lists any more is of the first
        alone.

        Args:
            missing: names of files that went and are deleted.
        """
        there = [span for span in self.went if span.name not in missing]
        came = Counter(span.added for span in there)
        came.update(self.live)
        left = Counter(span.removed for span in there)
        has = found = sum(self.live.values())
        told = []
        for change in self.changes:
            told.append(replace(change, readable=has == found))
            has -= change.files_added - change.files_removed
            found -= came[change.version] - left[change.version]
        return told


@dataclass(frozen=True)
class AsOf:
    """What a table's cold tier was at a version."""

    version: int
    at: datetime
    files: tuple[ColdFile, ...]
    went: Sequence[str]
    """Names of those that are part of the table no more."""
    forgotten: int = 0
    """How many more there were, of which nothing tells any more: they are deleted."""
