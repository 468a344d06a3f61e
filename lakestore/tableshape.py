"""What keeps a table in shape, as its caller asks for it by hand."""

from __future__ import annotations

from abc import abstractmethod

from lakestore.compact import Compacted
from lakestore.engine import troubles
from lakestore.errors import InvalidInputError
from lakestore.events.filters import Moment, moment
from lakestore.horizon import Age
from lakestore.maintenance import Budget
from lakestore.prune import Pruned
from lakestore.retain import Vacuumed
from lakestore.session import Session
from lakestore.tablerows import TableRows
from lakestore.undo import Undone
from lakestore.upkeep import Upkeep


class TableShape(TableRows):
    """A table whose rows move between tiers, are merged, expire and are deleted."""

    def __init__(self, session: Session, upkeep: Upkeep) -> None:
        super().__init__(session)
        self._upkeep = upkeep

    @abstractmethod
    def _writable(self) -> object:
        """Raise where this table is not to be changed."""

    @troubles("cannot flush")
    def flush(self) -> int:
        """Publish buffered rows as a hot segment, for every engine to read; returns the rows."""
        self._writable()
        return self._upkeep.flush(self._context)

    @troubles("cannot seal")
    def seal(self) -> int:
        """Flush, then move every hot segment to cold files; returns the rows moved."""
        self._writable()
        return self._upkeep.seal(self._context)

    @troubles("cannot compact")
    def compact(
        self,
        *,
        today: bool = False,
        max_seconds: float | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> Compacted:
        """Merge small cold files of each day to files of the target size; no answer changes.

        The files that are replaced stay for `cold_grace_s`, and then vacuum deletes them.

        Args:
            today: the day that has not ended too; its seals will make small files again.
            max_seconds, max_bytes: as in `Lake.maintain`.
            dry_run: say what would be done, and do nothing.

        Raises:
            CorruptionError: a file is not what was published.
            StorageError: the disk refused; what was compacted before stays so.
        """
        self._writable()
        budget = Budget(self._context.site.clock, max_seconds, max_bytes)
        return self._upkeep.compact(self._context, budget, today=today, dry_run=dry_run)

    @troubles("cannot prune")
    def prune(
        self,
        older_than: Age | None = None,
        before: Moment = None,
        *,
        dry_run: bool = False,
        confirm: bool = False,
    ) -> Pruned:
        """Take cold files off the table whose every event has expired; `undo` brings them back.

        A file that has newer events too waits for them, and hot segments that have expired are
        sealed first. The files stay for `cold_grace_s`, and then vacuum deletes them.

        Args:
            older_than: a timedelta, a number of days, or text such as `90 days`; by default the
                retention that the schema document declares.
            before: events before this have expired, whatever the clock says; instead of the other.
            dry_run: only say what would go.
            confirm: though it is more than half of the rows, or the clock may be wrong.

        Raises:
            InvalidInputError: no retention is said or declared, or it needs `confirm`.
            CorruptionError: a file's footer says other times than the list; nothing was done.
            StorageError: the disk refused; nothing was committed.
        """
        self._writable()
        if older_than is not None and before is not None:
            raise InvalidInputError("say one of older_than= and before=")
        done = self._upkeep.prune(
            self._context, older_than, moment(before), dry_run=dry_run, confirm=confirm
        )
        if done.refusal is not None and not dry_run:
            raise InvalidInputError(
                f"not pruned: {done.refusal}. Look at it with dry_run=True, and say confirm=True "
                "if they are to go"
            )
        return done

    @troubles("cannot undo")
    def undo(self, version: int | None = None) -> Undone:
        """Bring back what a prune took off the table, as long as its files are there.

        Args:
            version: of the prune; by default the newest one that was not taken back.

        Raises:
            NotFoundError: there is none, or its files are deleted.
            ConflictError: some of its events were appended again since.
            StorageError: the disk refused; nothing was committed.
        """
        self._writable()
        return self._upkeep.undo(self._context, version)

    @troubles("cannot vacuum")
    def vacuum(self, dry_run: bool = True) -> Vacuumed:
        """Say which superseded files would be deleted, or (`dry_run=False`) delete them."""
        self._writable()
        return self._upkeep.vacuum(dry_run=dry_run, table=self._context)
