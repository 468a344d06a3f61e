"""The log of one table: read up to its newest version, and one more version put after that.

A version is one object, made once: whoever makes it first has committed. Versions are read by
their exact names and never found by listing, which some stores answer late. Failpoints:
delta.1 version made    .2 known to be made    .3 checkpoint put    .4 named as the last
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa

from lakestore.delta import checkpoint
from lakestore.delta.actions import (
    Action,
    Add,
    Commit,
    Metadata,
    Protocol,
    Remove,
    Transaction,
    decode,
)
from lakestore.errors import CorruptionError, NotFoundError, StorageError
from lakestore.failpoint import reach
from lakestore.layout import (
    checkpoint_names,
    log_version_name,
    parse_checkpoint,
    parse_log_version,
)
from lakestore.snapshot import ColdFile
from lakestore.storage import Storage
from lakestore.storage.local import refusals

logger = logging.getLogger("lakestore")
APP = "lakestore/"
"""How the names of lakestore's own applications begin: lake and site follow."""
MARK = "lakestore-watermark/"
"""How the names begin under which sites say up to when all that they accepted is sealed."""
LOAD = "lakestore-load/"
"""How the names begin under which it says how much of a source is loaded: lake, site, producer."""
LAKE_PROPERTY = "lakestore.lake"
VERSIONS_PROPERTY = "lakestore.schemaVersions"
"""The schema versions of the table, in order; where it is not there, there is but the first."""
_KEEP_REMOVED_MS = 7 * 86_400_000
"""How long a checkpoint remembers what was removed: Delta's `deletedFileRetentionDuration`."""
_ASK_EVERY_S = 30.0
_NO_HINT = (ValueError, LookupError, TypeError)
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OSError, pa.ArrowException)


@dataclass(frozen=True)
class LogState:
    """What a version of the log adds up to; `version` is -1 when there is no log."""

    version: int = -1
    protocol: Protocol | None = None
    metadata: Metadata | None = None
    adds: Mapping[str, Add] = field(default_factory=dict)
    files: Mapping[str, ColdFile] = field(default_factory=dict)
    """What the added files are to a reader."""
    removed: Mapping[str, Remove] = field(default_factory=dict)
    transactions: Mapping[str, int] = field(default_factory=dict)

    @property
    def schema_versions(self) -> tuple[int, ...]:
        """The versions of the table's schema, in order; raises `CorruptionError`."""
        told = None
        if self.metadata is not None:
            told = self.metadata.configuration.get(VERSIONS_PROPERTY)
        try:
            return tuple(int(number) for number in (told or "1").split(","))
        except ValueError as error:
            raise CorruptionError(f"{VERSIONS_PROPERTY} is {told!r}, and no versions") from error

    def actions(self, now_ms: int) -> Iterator[Action]:
        """What a checkpoint of this version holds."""
        if self.protocol is not None:
            yield self.protocol
        if self.metadata is not None:
            yield self.metadata
        for app, version in self.transactions.items():
            yield Transaction(app, version)
        yield from self.adds.values()
        for remove in self.removed.values():
            if remove.deleted_ms > now_ms - _KEEP_REMOVED_MS:
                yield remove


class Base(NamedTuple):
    """What a replay begins with: a checkpoint, or nothing."""

    version: int = -1
    parts: int = 0
    """Of how many files the checkpoint is; 0: of one."""


class DeltaLog:
    """One table's log, and what is known of it; any thread may ask."""

    def __init__(
        self,
        storage: Storage,
        prefix: str,
        lake: str | None,
        interpret: Callable[[Add], ColdFile] | None,
        put_new: Callable[[str, bytes], bool],
        replace_with: Callable[[str, bytes], None],
    ) -> None:
        """A log that has not been read yet.

        Args:
            prefix: of the keys of the log.
            lake: whose log it has to be; None when that is what is asked.
            interpret: what a file is to a reader; raises ValueError for one that cannot be.
            put_new: makes an object, all at once, unless there is one.
            replace_with: puts an object in the place of another.
        """
        self._storage = storage
        self._prefix = prefix
        self._lake = lake
        self._interpret = interpret
        self._put_new = put_new
        self._replace_with = replace_with
        self._lock = threading.Lock()  # guards _state, and who reads on
        self._state = LogState()
        self._asked = time.monotonic()  # whether what is known is still there

    @property
    def known(self) -> LogState:
        """The newest version that was read."""
        return self._state

    @property
    def remote(self) -> bool:
        """Whether it is behind a network: slow, and what failed may succeed by itself soon."""
        return self._storage.remote

    @property
    def answers(self) -> bool:
        """Whether it is worth asking the store: it did not fail just now."""
        return self._storage.answers

    def make_durable(self, version: int) -> None:
        """Have a version, and those before it, survive a power loss; raises `StorageError`."""
        self._storage.make_durable(self.key(version))

    def key(self, version: int) -> str:
        """The object that a version is."""
        return self._prefix + log_version_name(version)

    def refresh(self) -> LogState:
        """Read what came since; returns the newest version.

        Raises:
            CorruptionError: a version is damaged or forged, or of another lake.
            FormatTooNewError: it needs what lakestore cannot read.
            StorageError: the store did not answer.
        """
        with self._lock:
            begins = self._state.version < 0
            if begins:
                self._state = self._from_checkpoint()
            if not self._read_on() and self._is_cleaned():
                self._state, begins = self._from_checkpoint(), True
                self._read_on()
            if begins and self._state.version == 0 and (listed := self._from_listed()).version > 0:
                self._state = listed
                self._read_on()
            return self._state

    def _read_on(self) -> bool:
        """Read the versions that came since; whether there were any."""
        following = self.read(self._state.version + 1)
        if following is None:
            return False
        replay = Replay(self._state, self._lake, self._interpret)
        while following is not None:
            replay.take(following, self._storage.url(self.key(replay.version + 1)))
            following = self.read(replay.version + 1)
        self._state = replay.state()
        return True

    def pass_by_cleaned(self) -> None:
        """Before a commit: forget what is known when a newer checkpoint stands for it.

        Other engines delete versions that a checkpoint stands for. To one who has slept so long,
        a deleted version looks like the next to be made, and nobody would read it.
        """
        with self._lock, suppress(NotFoundError, *_NO_HINT):
            hinted, _ = self._hint()
            if hinted > self._state.version:
                self._state = LogState()

    def read(self, version: int) -> Commit | None:
        """One version, or None when it was not made yet; raises as `refresh`."""
        key = self.key(version)
        try:
            data = self._storage.read(key)
        except NotFoundError:
            return None
        try:
            return decode(data, self._storage.url(key))
        except CorruptionError:
            # A byte may have been flipped on its way here: what lies in the store decides.
            return decode(self._storage.read(key), self._storage.url(key))

    def commit(self, version: int, data: bytes, write_id: str) -> bool:
        """Make a version; False when another writer's is there.

        An answer that is lost does not say whether the version was made, and the request may still
        be on its way. Making the same version again settles it: of all requests for one name, one
        is granted.

        Raises:
            StorageError: it is not known who made it, if anybody.
        """
        key = self.key(version)
        with refusals(f"cannot make {self._storage.url(key)!r}"):
            created = self._put_new(key, data)
            reach("delta.1")
        if not created:
            found = self.read(version)
            if found is None:
                raise StorageError(f"{key!r} was there, and is not any more")
            created = found.write_id == write_id
        reach("delta.2")
        return created

    def checkpoint(self, now_ms: int) -> None:
        """Put a checkpoint of the newest version known; raises `StorageError`."""
        state = self._state
        data, actions = checkpoint.write(state.actions(now_ms))
        (name,) = checkpoint_names(state.version, 0)
        key = self._prefix + name
        if not self._put_new(key, data) and self._storage.size(key) is None:
            raise StorageError(f"{self._storage.url(key)!r} was not put")  # nothing may name it
        reach("delta.3")
        hint = checkpoint.hint(state.version, actions, len(data), len(state.adds))
        self._replace_with(f"{self._prefix}_last_checkpoint", hint)
        reach("delta.4")

    def bases(self) -> list[Base]:
        """Where a replay up to the newest known version can begin, the oldest first.

        Found by listing. What a store does not list yet is a checkpoint to begin with the less.
        """
        names = {key.removeprefix(self._prefix) for key in self._storage.list(self._prefix)}
        versions = {version for name in names if (version := parse_log_version(name)) is not None}
        oldest = newest = self._state.version
        while oldest - 1 in versions:
            oldest -= 1
        bases = {Base(*parsed) for name in names if (parsed := parse_checkpoint(name))}
        found = [
            base
            for base in bases
            if oldest - 1 <= base.version <= newest
            and names.issuperset(checkpoint_names(base.version, base.parts))
        ]
        return sorted([*found, *([Base()] if oldest <= 0 else [])])

    def condense(self, now_ms: int) -> list[str]:
        """Put a checkpoint of the newest version known; returns the files that it stands for.

        Version 0 is not among them: it says that there is a log, and of no file.

        Raises:
            StorageError: the checkpoint was not put.
        """
        self.checkpoint(now_ms)
        version = self._state.version
        names = [key.removeprefix(self._prefix) for key in self._storage.list(self._prefix)]
        numbers = ((n, parse_log_version(n) or (parse_checkpoint(n) or (0,))[0]) for n in names)
        return sorted(name for name, number in numbers if 0 < number < version)

    def _is_cleaned(self) -> bool:
        """Whether the version that is known was deleted since, because a checkpoint stands for it.

        Then what comes next may be deleted too, and would look as if it were still to come. A store
        is asked now and then: for so long, at the least, versions stay that are to be deleted.
        """
        now = time.monotonic()
        if self._state.version < 0 or (self._storage.remote and now - self._asked < _ASK_EVERY_S):
            return False
        self._asked = now
        return self._storage.size(self.key(self._state.version)) is None

    def _hint(self) -> Base:
        """The last checkpoint; raises as its readers."""
        return Base(*checkpoint.hinted(self._storage.read(f"{self._prefix}_last_checkpoint")))

    def _from_listed(self) -> LogState:
        """What the newest checkpoint says that is listed: for a log of which nothing else is left,
        and whose last checkpoint is not named."""
        names = [key.removeprefix(self._prefix) for key in self._storage.list(self._prefix)]
        bases = [Base(*parsed) for name in names if (parsed := parse_checkpoint(name))]
        return self._from_checkpoint(max(bases)) if bases else LogState()

    def replay(self, base: Base) -> Replay:
        """A replay that stands at `base`; raises what reading a checkpoint does."""
        replay = Replay(LogState(), self._lake, self._interpret)
        if base.version >= 0:
            names = checkpoint_names(base.version, base.parts)
            files = [checkpoint.read(self._storage.read(self._prefix + name)) for name in names]
            actions = [action for file in files for action in file]
            replay.take(Commit(actions), self._storage.url(self._prefix + names[0]))
            replay.version = base.version
        return replay

    def _from_checkpoint(self, named: Base | None = None) -> LogState:
        """What the last checkpoint says, or another; nothing when there is none to be read."""
        try:
            return self.replay(named or self._hint()).state()
        except NotFoundError:
            return LogState()
        except StorageError:
            raise
        except (*_UNREADABLE, CorruptionError) as error:
            logger.warning("a checkpoint below %r cannot be read: %s", self._prefix, error)
            return LogState()


class Replay:
    """A state on its way through versions; copied once, however many there are."""

    def __init__(
        self,
        state: LogState,
        lake: str | None,
        interpret: Callable[[Add], ColdFile] | None,
    ) -> None:
        self._lake = lake
        self._interpret = interpret
        self.version = state.version
        self._protocol, self._metadata = state.protocol, state.metadata
        self._adds, self._removed = dict(state.adds), dict(state.removed)
        self._files = dict(state.files)
        self._transactions = dict(state.transactions)

    @property
    def files(self) -> Mapping[str, ColdFile]:
        """What the table's files are to a reader; it changes with `take`."""
        return self._files

    def take(self, commit: Commit, where: str) -> None:
        """Go on to the next version; raises `CorruptionError`, and is of no use then."""
        added: set[str] = set()
        for action in commit.actions:
            match action:
                case Add():
                    self._add(action, added, where)
                case Remove():
                    self._adds.pop(action.path, None)
                    self._files.pop(action.path, None)
                    self._removed[action.path] = action
                case Transaction():
                    before = self._transactions.get(action.app, -1)
                    if action.app.startswith(APP) and action.version <= before:
                        raise _forged(where, f"commits {action.app!r} {action.version} once more")
                    self._transactions[action.app] = action.version
                case Protocol():
                    action.check_readable(where)
                    self._protocol = action
                case Metadata():
                    self._metadata = action
        self._check(where)
        self.version += 1

    def state(self) -> LogState:
        """What the versions so far add up to."""
        return LogState(
            self.version,
            self._protocol,
            self._metadata,
            MappingProxyType(self._adds),
            MappingProxyType(self._files),
            MappingProxyType(self._removed),
            MappingProxyType(self._transactions),
        )

    def _add(self, action: Add, added: set[str], where: str) -> None:
        known = self._adds.get(action.path)
        if action.path in added or (known is not None and known.size != action.size):
            raise _forged(where, f"adds {action.path!r} twice")
        added.add(action.path)
        self._adds[action.path] = action
        if self._interpret is not None:
            try:
                self._files[action.path] = self._interpret(action)
            except (ValueError, OverflowError) as error:
                raise _forged(where, f"says of {action.path!r} what cannot be ({error})") from error
        self._removed.pop(action.path, None)

    def _check(self, where: str) -> None:
        if self._protocol is None or self._metadata is None:
            raise _forged(where, "does not say what table it is of")
        lake = self._metadata.configuration.get(LAKE_PROPERTY)
        if lake is None or lake != (self._lake or lake):
            raise _forged(where, f"is of lake {lake!r}, and this is {self._lake!r}")


def _forged(where: str, what: str) -> CorruptionError:
    return CorruptionError(f"{where} {what}: it is damaged or forged, and nothing of it was taken")
