"""Who lists the sealed files: the seam between the verbs and a cold format."""

from collections.abc import Sequence
from typing import Protocol

from lakestore.snapshot import ColdFile, Segment


class ColdTable(Protocol):
    """The sealed part of one table."""

    def publish(self, sealed: Sequence[Segment], files: Sequence[ColdFile], through: int) -> None:
        """Commit files in the place of segments: the commit point of a seal.

        Args:
            sealed: the segments, in order, first of them `sealed_through + 1`.
            files: published under their names already; none when there were no rows.
            through: the last segment number that is cold from now on.

        Raises:
            ConflictError: another process sealed them; its result stands.
            StorageError: nothing was committed.
        """
        ...
