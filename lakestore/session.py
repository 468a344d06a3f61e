"""One opening of a lake by one process: what it may do, and whether it still may."""

import os
from dataclasses import dataclass, field
from typing import Literal

from lakestore.errors import ClosedError, InvalidInputError
from lakestore.query.run import Queries

Mode = Literal["rw", "r"]


@dataclass
class Session:
    """What an open lake and its tables share."""

    root: str
    mode: Mode
    queries: Queries
    closed: bool = False
    pid: int = field(default_factory=os.getpid)

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that opened the lake."""
        return self.pid != os.getpid()

    def check_open(self, *, write: bool = False) -> None:
        """Refuse a call that comes too late, or from a child, or (`write`) to a reader.

        Raises:
            ClosedError: the lake was closed, or opened before a fork.
            InvalidInputError: it is open to read only.
        """
        if self.forked:
            raise ClosedError("this lake was opened before a fork: open it again in this process")
        if self.closed:
            raise ClosedError(f"the lake at {self.root!r} is closed: open it again")
        if write and self.mode == "r":
            raise InvalidInputError('the lake is open with mode="r": reopen it to write')
