"""One more version of a Delta log, whoever else makes some meanwhile."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from lakestore.clock import Clock
from lakestore.delta import types
from lakestore.delta.actions import encode
from lakestore.delta.log import DeltaLog, LogState, logger
from lakestore.errors import CommitUncertainError, CorruptionError, SchemaError, StorageError
from lakestore.schema import TableSchema

CHECKPOINT_EVERY = 100
_PAUSE_MAX_S = 1.0
_ENGINE = "lakestore"
_OPERATIONS: Mapping[str, str] = {
    "create": "CREATE TABLE",
    "seal": "WRITE",
    "promise": "WRITE",
    "retire": "WRITE",
    "load": "WRITE",
    "evolve": "ADD COLUMNS",
    "compact": "OPTIMIZE",
    "prune": "DELETE",
    "purge": "DELETE",
    "undo": "RESTORE",
}
"""What Delta calls them."""


@dataclass(frozen=True)
class DeltaTable:
    """Which table a log is of, and what this site knows of it."""

    id: int
    schema: TableSchema
    schema_version: int
    url: str


class LogWriter:
    """Makes the versions of one table's log that this site makes."""

    def __init__(
        self, log: DeltaLog, table: DeltaTable, lake: str, site: str, clock: Clock, timeout_s: float
    ) -> None:
        """A writer for a site of a lake.

        Args:
            timeout_s: how long a commit is tried while others commit, or the store fails.
        """
        self._log = log
        self._table = table
        self._lake = lake
        self._site = site
        self._clock = clock
        self._timeout_s = timeout_s
        days = [types.partition_column(table.schema)]
        self._append = {"mode": "Append", "partitionBy": json.dumps(days)}

    def make_next(self, lines_of: Callable[[LogState], list[str]], operation: str) -> int | None:
        """Make the next version of the log.

        Args:
            lines_of: what the version says beside the one that it follows; nothing, and none is.
            operation: what the history calls it.

        Returns:
            The version that it follows; None when there was nothing to say.

        Raises:
            StorageError, CommitUncertainError, SchemaError: as `publish`.
        """
        write = uuid4().hex
        self._log.pass_by_cleaned()
        for _ in self._pauses():
            state = self._log.refresh()
            self._check_writable(state)
            lines = lines_of(state)
            if not lines:
                return None
            appends = _OPERATIONS.get(operation) == "WRITE"
            told = self.told(operation, self._append if appends else {})
            data = encode(lines, told, self.summary(operation, write))
            if self._commit(state.version + 1, data, write):
                return state.version
        raise StorageError(
            f"others committed to {self._table.url!r} for {self._timeout_s:g} s; nothing was "
            "committed, and the next attempt begins anew"
        )

    def _commit(self, version: int, data: bytes, write: str) -> bool:
        """Make a version; False when another writer's is there.

        Whether a failed request was granted is not known, and it may still be: the same version is
        tried again until the answer is known. Another one could be granted beside it.
        """
        failure: StorageError | None = None
        for _ in self._pauses():
            try:
                return self._log.commit(version, data, write)
            except StorageError as error:
                failure = error
                if not self._log.remote:  # a disk does not mend itself
                    break
        raise CommitUncertainError(
            f"it is not known whether a version of {self._table.url!r} was committed: {failure}; "
            "the next one finds out"
        ) from failure

    def _pauses(self) -> Iterator[None]:
        """Turns to try something in, with growing pauses between them, until the time is up."""
        deadline = time.monotonic() + self._timeout_s
        pause = 0.01
        yield
        while time.monotonic() < deadline:
            time.sleep(pause * random.uniform(0.5, 1.5))  # or those who met would meet again
            pause = min(_PAUSE_MAX_S, pause * 2)
            yield

    def _check_writable(self, state: LogState) -> None:
        assert state.protocol is not None
        assert state.metadata is not None
        state.protocol.check_writable(self._table.url)
        schema = state.metadata.schema
        try:
            missing = types.missing_columns(self._table.schema, schema)
        except (ValueError, LookupError, TypeError) as error:
            raise CorruptionError(f"{self._table.url!r} has no schema: {error!r}") from error
        if missing or "delta.invariants" in schema:
            what = f"lacks {', '.join(missing)}" if missing else "has invariants"
            raise SchemaError(
                f"the schema of {self._table.url!r} was changed by another engine: it {what}; "
                "change it back, and what waits is sealed"
            )

    def checkpoint(self, before: int) -> None:
        """Every so many versions; without one, readers only read more.

        Args:
            before: the version that was committed after; others may have committed since.
        """
        if self._log.known.version // CHECKPOINT_EVERY == before // CHECKPOINT_EVERY:
            return
        try:
            self._log.checkpoint(self.now_ms())
        except StorageError as error:
            logger.warning("no checkpoint of %r: %s", self._table.url, error)

    def told(self, operation: str, parameters: dict[str, str]) -> dict[str, Any]:
        """What the commit says of itself to every reader."""
        return {
            "timestamp": self.now_ms(),
            "operation": _OPERATIONS.get(operation, operation),
            "operationParameters": parameters,
            "engineInfo": _ENGINE,
        }

    def summary(self, operation: str, write: str) -> dict[str, str]:
        """What it says to a lakestore."""
        site = {"lake": self._lake, "site": self._site}
        return {**site, "operation": operation, "write": write}

    def now_ms(self) -> int:
        """The time, as logs tell it."""
        return int(self._clock.now().timestamp() * 1000)
