"""What a Delta table was: versions of its log that are still there, replayed.

They are also those of other engines, by the names that these give to what they did.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from lakestore.clock import EPOCH
from lakestore.delta.actions import Add, Commit, Remove
from lakestore.delta.log import DeltaLog, Replay
from lakestore.errors import CorruptionError, NotFoundError, StorageError
from lakestore.past import AsOf, Past, Span, Version
from lakestore.snapshot import ColdFile

_UNREADABLE = (
    ValueError, LookupError, TypeError, AttributeError, OSError, pa.ArrowException,
    CorruptionError, NotFoundError,
)  # fmt: skip
"""What a checkpoint raises that is damaged, or gone meanwhile."""


@dataclass(frozen=True)
class _Step:
    """One version, as a replay comes by."""

    version: int
    commit: Commit
    added: Mapping[str, ColdFile]
    removed: Mapping[str, ColdFile]


def past_of(log: DeltaLog, limit: int | None) -> Past:
    """The last versions; of a `limit` that is None, all whose files are known.

    Raises:
        CorruptionError: a version is damaged or forged.
        StorageError: the store did not answer.
    """
    newest = log.refresh().version
    wanted = newest - limit if limit is not None else -1
    replay = _begun(log, wanted)
    if replay is None:
        return Past([], Counter(dict.fromkeys([newest], len(log.known.files))), [])
    since = dict.fromkeys(replay.files, replay.version)
    changes = _oldest(log, replay) if replay.version > wanted else []
    went: list[Span] = []
    for step in _steps(log, replay, newest):
        went += [Span(name, since.pop(name), step.version) for name in step.removed]
        since |= dict.fromkeys(step.added, step.version)
        changes.append(_change_of(step, changes[-1].at if changes else EPOCH))
    changes = changes[::-1][:limit]
    first = changes[-1].version if changes else newest
    return Past(changes, Counter(since.values()), [s for s in went if s.removed > first])


def _oldest(log: DeltaLog, replay: Replay) -> list[Version]:
    """The version of the checkpoint that a replay begins with, where the log still has it.

    After a purge it may be the only one. What its files were that went, nothing tells.
    """
    commit = log.read(replay.version)
    if commit is None:
        return []
    paths = {action.path for action in commit.actions if isinstance(action, Add)}
    added = {path: replay.files[path] for path in paths & replay.files.keys()}
    removed = sum(isinstance(action, Remove) for action in commit.actions)
    step = _Step(replay.version, commit, added, {})
    return [dataclasses.replace(_change_of(step, EPOCH), files_removed=removed)]


def as_of(log: DeltaLog, wanted: int | datetime) -> AsOf | None:
    """The files as of a version, or of the newest at a time; None when it is not known.

    Raises: as `past_of`.
    """
    state = log.refresh()
    version = wanted if isinstance(wanted, int) else _newest_at(log, state.version, wanted)
    if version is None or not 0 <= version <= state.version:
        return None
    commit, files = log.read(version), state.files
    if commit is None:
        return None
    if version < state.version:
        found = files_at(log, version)
        if found is None:
            return None
        files = found
    return AsOf(
        version,
        _time_of(commit) or EPOCH,
        tuple(files[name] for name in sorted(files)),
        [name for name in files if name not in state.files],
    )


def files_at(log: DeltaLog, version: int) -> Mapping[str, ColdFile] | None:
    """The files of a version before the newest, by name; None when the log does not tell.

    Raises: as `past_of`.
    """
    replay = _begun(log, version)
    if replay is None or replay.version > version:
        return None
    for _ in _steps(log, replay, version):
        pass
    return replay.files


def _begun(log: DeltaLog, wanted: int) -> Replay | None:
    """A replay that stands at `wanted`, or as little before it as can be; else after it."""
    bases = log.bases()
    before = [base for base in bases if base.version <= wanted]
    after = [base for base in bases if base.version > wanted]
    for base in [*before[::-1], *after]:
        try:
            return log.replay(base)
        except StorageError:
            raise
        except _UNREADABLE:  # another one will do
            continue
    return None


def _steps(log: DeltaLog, replay: Replay, until: int) -> Iterator[_Step]:
    """Take the versions after the one that a replay stands at, up to `until`."""
    while replay.version < until:
        version = replay.version + 1
        commit = log.read(version)
        if commit is None:  # another engine has cleaned up meanwhile
            raise StorageError(f"{log.key(version)!r} is not there any more: ask again")
        named = [a.path for a in commit.actions if isinstance(a, Add | Remove)]
        before = {name: replay.files[name] for name in named if name in replay.files}
        replay.take(commit, log.key(version))
        after = {name: replay.files[name] for name in named if name in replay.files}
        yield _Step(
            version,
            commit,
            {name: file for name, file in after.items() if name not in before},
            {name: file for name, file in before.items() if name not in after},
        )


def _newest_at(log: DeltaLog, newest: int, moment: datetime) -> int | None:
    """The newest version that is not after a moment; one that tells no time goes with those
    before it.
    """
    found = None
    for version in range(newest, -1, -1):
        commit = log.read(version)
        if commit is None:
            return None
        found = version if found is None else found
        at = _time_of(commit)
        if at is not None and at <= moment:
            return found
        if at is not None:
            found = None
    return None


def _time_of(commit: Commit) -> datetime | None:
    """When a version was committed, as far as it says."""
    told = commit.info.get("timestamp")
    if type(told) is not int:
        told = max((a.modified_ms for a in commit.actions if isinstance(a, Add)), default=None)
    try:
        return None if told is None else EPOCH + timedelta(milliseconds=told)
    except OverflowError:
        return None


def _change_of(step: _Step, before: datetime) -> Version:
    commit = step.commit
    return Version(
        step.version,
        _time_of(commit) or before,
        _text(commit.summary.get("operation")) or _text(commit.info.get("operation")) or "unknown",
        sum(file.info.rows for file in step.added.values()),
        sum(file.info.rows for file in step.removed.values()),
        len(step.added),
        len(step.removed),
        _text(commit.summary.get("site"))
        or _text(commit.info.get("engineInfo"))
        or _text(commit.info.get("clientVersion")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
