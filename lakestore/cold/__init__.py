"""Who lists the sealed files: the seam between the verbs and a cold format."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from lakestore.past import AsOf, Past
from lakestore.replacement import Pruning, Replacement
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, Segment, TableState

Examine = Callable[[Sequence[ColdFile]], None]
"""Looks for rows that are to be sealed among cold files; raises when others have sealed some."""


@dataclass
class Load:
    """What a commit takes of sources that are loaded straight into cold files."""

    sent: Mapping[str, int]
    """How many rows of each source are accepted by then, by producer."""
    newest: int = 0
    """The last segment that its rows were compared with; whoever examines says so."""


class ColdTable(Protocol):
    """The sealed part of one table."""

    partition: str
    """What the folders of its days are called."""

    def create(self) -> None:
        """Make the empty table, before the catalog's commit that lists it.

        Raises:
            SchemaError: the format has no such type.
            StorageError: nothing was made that anybody reads.
        """
        ...

    def current(self, listed: TableState, *, newest: bool) -> TableState:
        """What the catalog lists, with the cold tier as it is now.

        The hot side is pinned first, and the cold version read after it: what was sealed in
        between is in the cold tier, and dropped from the hot one. The other order could miss rows.

        Args:
            listed: the hot side, and what the catalog knows of the cold one.
            newest: ask a store what is new; without, what is known will do, and a store that does
                not answer is no error.

        Raises:
            CorruptionError: what lists the cold files is damaged.
            StorageError: it cannot be read for now.
        """
        ...

    def claim(self, segments: Sequence[Segment], through: int) -> None:
        """Before a seal: from now on these segments are sealed as they are, or not at all.

        Raises:
            ConflictError: one of them was sealed or merged meanwhile.
            StorageError: the disk refused.
        """
        ...

    def join(self) -> None:
        """Before a site's first row is accepted: from now on the watermark waits for it.

        A site that was retired joins anew, where the watermark is.

        Raises:
            StorageError: it was not said.
        """
        ...

    def marks(self) -> Mapping[str, int]:
        """What each site has said, as `marks.py` tells; 0 for one that seals and never did.

        Raises:
            StorageError, CorruptionError: as `current`.
        """
        ...

    def sealed(self) -> Mapping[str, int]:
        """Up to which segment each site has sealed; raises as `marks`."""
        ...

    def retire(self, site: str, said: int) -> None:
        """From now on the watermark does not wait for another site.

        Args:
            said: its mark when it was taken to be gone.

        Raises:
            ConflictError: it said something else meanwhile, or no other site is left.
            Others: as `publish`.
        """
        ...

    def promise(self, complete_before: int) -> None:
        """Say so of this site, which has nothing to seal; raises as `publish`."""
        ...

    def publish(
        self,
        sealed: Sequence[Segment],
        files: Sequence[ColdFile],
        through: int,
        complete_before: int | None,
        examine: Examine,
        load: Load | None = None,
    ) -> None:
        """Commit files in the place of segments: the commit point of a seal, or of a load's chunk.

        Args:
            sealed: the segments, in order, first of them `sealed_through + 1`.
            files: published under their names already; none when there were no rows.
            through: the last segment number that is cold from now on.
            complete_before: what this site accepted before that moment is cold then; None when it
                cannot be said. With either, a site that was retired joins anew.
            examine: shown the cold files that the commit is made beside.
            load: what the files hold beside the rows of the segments.

        Raises:
            AcceptedError: another process loaded the same rows; its result stands.
            ConflictError: another process sealed them; its result stands.
            StorageError: nothing was committed.
            CommitUncertainError: the next seal finds out whether it was.
        """
        ...

    def replace(self, replacement: Replacement, examine: Examine | None = None) -> None:
        """Commit files in the place of others: the commit point of a compaction, prune or purge.

        Seals that are committed meanwhile stay as they are: they touch no file of this.

        Args:
            replacement: its new files are published under their names already.
            examine: shown the cold files that the commit is made beside.

        Raises:
            ConflictError: a file that is to go is not part of the table any more, or one that an
                undo brings back is deleted.
            Others: as `publish`.
        """
        ...

    def accepted(self, producers: Collection[str]) -> Mapping[str, int]:
        """How many rows of each source any site has loaded; raises as `marks`."""
        ...

    def versions(self) -> Sequence[int]:
        """The schema versions that the format's own log lists, in order; none without a log."""
        ...

    def evolve(self, schema: TableSchema, versions: Sequence[int]) -> None:
        """Have the table's own log, if it has one, say the next version of its schema.

        Args:
            schema: as files will have it.
            versions: all that are known, this one last.

        Raises:
            SchemaError: the format cannot say it.
            ConflictError: another process was first.
            Others: as `publish`.
        """
        ...

    def condense(self) -> Sequence[str]:
        """Have what tells of the past stand without its parts; returns the names of these.

        A log says of each file that there was what its least and greatest values were.

        Raises:
            StorageError: it was not done.
        """
        ...

    def moments(self) -> Sequence[float]:
        """When something was committed, in Unix seconds by the clocks of those who did.

        Raises:
            StorageError, CorruptionError: as `current`.
        """
        ...

    def pruned(self, version: int | None) -> Pruning:
        """What a prune took off the table.

        Args:
            version: that it made; by default the newest one that was not taken back.

        Raises:
            NotFoundError: there is none, or its files are deleted.
            Others: as `current`.
        """
        ...

    def replaced(self) -> Collection[str]:
        """Names of the files that were part of the table, whichever site is to delete them.

        As far as it is remembered: some are gone, and a log forgets them in time.
        """
        ...

    def past(self, limit: int | None) -> Past:
        """The last versions, as far as they are known; all without a limit.

        Raises:
            StorageError, CorruptionError: as `current`.
        """
        ...

    def as_of(self, wanted: int | datetime) -> AsOf | None:
        """What was listed at a version, or at the newest one that was committed at a time.

        None when there is no such version; raises as `past`.
        """
        ...

    def settle(self) -> None:
        """Finish what a commit began, after a crash: before anything it replaced is deleted.

        Segments that are sealed are taken off the catalog's list, and records of replacements are
        put into the root.

        Raises:
            StorageError: it is not finished.
        """
        ...
