"""What a disk may hold after a power loss: every state that two kinds of file systems allow.

A `Disk` takes in a recording, operation by operation, and knows which bytes and which names are
durable. Two models say what an fsync does to names:

- ordinary, as ext4: names change in order, and the fsync of a file that is new or has grown, or of
  any folder, makes all earlier changes of names durable;
- strict, as POSIX: the change of a name is durable once its folder was fsynced, and until then any
  of them may be there while others are not.

Unsynced bytes may be there or not, in either model: not at all, as zeros, all but half of the last
write, or the last write alone.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.recording import Op, Recording

FOLDER = 0
_GONE = -1
Names = dict[str, int]


@dataclass(frozen=True)
class State:
    """Files and folders of one disk after a power loss, and the ledger as it was then."""

    label: str
    files: Mapping[str, bytes]
    folders: frozenset[str]
    ledger: bytes

    @property
    def key(self) -> int:
        """The same for states that a reader cannot tell apart."""
        return hash((frozenset(self.files.items()), self.folders, len(self.ledger)))

    def write(self, old: str, lake: Path, ledger: Path) -> None:
        """Make the state: `lake` gets what was recorded below `old`."""
        ledger.mkdir(parents=True)
        (ledger / "0.ledger").write_bytes(self.ledger)
        for folder in sorted(self.folders):
            Path(str(lake) + folder.removeprefix(old)).mkdir(parents=True, exist_ok=True)
        for path, data in self.files.items():
            if not path.endswith("-shm"):  # it is mapped memory, and SQLite makes it anew
                Path(str(lake) + path.removeprefix(old)).write_bytes(data)


@dataclass
class _File:
    now: bytes = b""
    durable: bytes = b""
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)
    dirty: bool = True  # its size or names changed since the last sync
    _made: dict[str, bytes] = field(default_factory=dict)

    def content(self, label: str) -> bytes:
        """What of it is there, in one of `_CONTENTS`; made once, until it changes."""
        if label not in self._made:
            self._made[label] = _CONTENTS[label](self)
        return self._made[label]

    def changed(self) -> None:
        self._made.clear()


class Disk:
    """One disk; `strict` as above."""

    def __init__(self, root: str, *, strict: bool) -> None:
        self._root = root
        self._strict = strict
        self._files: dict[int, _File] = {}
        self._names: Names = {}
        self._durable: Names = {}
        self._changes: list[Names] = []  # of names, not yet durable, in order
        self._ledger = b""

    def apply(self, op: Op) -> None:
        """Take in one operation."""
        if op.kind == "ledger":
            self._ledger += op.data
        elif op.kind == "write":
            self._write(self._files[op.file], op)
        elif op.kind == "truncate":
            file = self._files[op.file]
            file.now = file.now[: op.offset].ljust(op.offset, b"\0")
            file.changed()
            file.dirty = True
        elif op.kind == "sync":
            self._sync(op)
        else:
            self._rename(op)

    @staticmethod
    def _write(file: _File, op: Op) -> None:
        at = len(file.now) if op.offset < 0 else op.offset
        file.dirty |= at + len(op.data) > len(file.now)
        file.now = _written(file.now, at, op.data)
        file.unsynced.append((at, op.data))
        file.changed()

    def _sync(self, op: Op) -> None:
        if op.file == FOLDER:
            changed = any(op.path == os.path.dirname(name) for c in self._changes for name in c)
            if self._strict:
                self._make_durable(lambda name: os.path.dirname(name) == op.path)
            elif changed:
                self._make_durable(lambda name: True)
            return
        file = self._files[op.file]
        file.durable = file.now
        file.unsynced.clear()
        file.changed()
        if file.dirty and not self._strict:
            self._make_durable(lambda name: True)
        file.dirty = False

    def _rename(self, op: Op) -> None:
        change: Names = {op.path: _GONE}
        if op.kind == "create":
            self._files[op.file] = _File()
            change = {op.path: op.file}
        elif op.kind == "mkdir":
            change = {op.path: FOLDER}
        elif op.kind == "link":
            change = {op.to: op.file}
        elif op.kind == "rename":
            change = {op.path: _GONE, op.to: op.file}
        else:
            assert op.kind in ("unlink", "rmdir"), op
        if op.file > 0:
            self._files[op.file].dirty = True
        self._names = _changed(self._names, [change])
        self._changes.append(change)

    def _make_durable(self, chosen: Callable[[str], bool]) -> None:
        left = []
        for change in self._changes:
            self._durable.update({n: f for n, f in change.items() if chosen(n)})
            rest = {n: f for n, f in change.items() if not chosen(n)}
            left += [rest] if rest else []
        self._durable = _changed(self._durable, [])
        self._changes = left

    def now(self) -> State:
        """What a process sees, and what is left when only processes die."""
        return self._state("all", self._names, "all bytes")

    def states(self, *, name_by_name: bool) -> Iterator[State]:
        """Every state that is modelled, were the power lost now; some come more than once.

        Args:
            name_by_name: those too in which some changes of names survive and others do not.
        """
        for label in _CONTENTS:
            yield self._state("all names", self._names, label)
            if self._changes:
                yield self._state("durable names", self._durable, label)
        if name_by_name:
            for label, names in self._some_names():
                yield self._state(label, names, "durable bytes")
                yield self._state(label, names, "all bytes")

    def _some_names(self) -> Iterator[tuple[str, Names]]:
        changes = self._changes
        if not self._strict:  # in order: each prefix
            for count in range(1, len(changes)):
                yield f"{count} changes of names", _changed(self._durable, changes[:count])
            return
        for number, change in enumerate(changes):
            label = ", ".join(change)
            yield f"only {label} changed", _changed(self._durable, [change])
            others = changes[:number] + changes[number + 1 :]
            yield f"all but {label} changed", _changed(self._durable, others)

    def _state(self, label: str, names: Names, content: str) -> State:
        there = {
            path: file
            for path, file in names.items()
            if all(names.get(parent) == FOLDER for parent in self._parents(path))
        }
        files = {p: self._files[f].content(content) for p, f in there.items() if f != FOLDER}
        folders = frozenset(path for path, f in there.items() if f == FOLDER)
        return State(f"{label}, {content}", files, folders, self._ledger)

    def _parents(self, path: str) -> Iterator[str]:
        """Folders above a path, up to the lake's."""
        while path != self._root:
            path = os.path.dirname(path)
            yield path


def explore(recording: Recording, *, strict: bool) -> list[State]:
    """Every state, each once, that a power loss at any moment may leave."""
    disk = Disk(recording.folder, strict=strict)
    found: dict[int, State] = {}
    for op in recording.ops:
        disk.apply(op)
        for state in disk.states(name_by_name=op.kind not in ("write", "truncate")):
            found.setdefault(state.key, state)
    return list(found.values())


def _changed(names: Names, changes: Sequence[Names]) -> Names:
    result = dict(names)
    for change in changes:
        result.update(change)
    return {name: file for name, file in result.items() if file != _GONE}


def _written(content: bytes, at: int, data: bytes) -> bytes:
    return content[:at].ljust(at, b"\0") + data + content[at + len(data) :]


def _zeros(file: _File) -> bytes:
    return file.durable.ljust(len(file.now), b"\0")


def _torn(file: _File) -> bytes:
    """All but the second half of the last unsynced write."""
    if not file.unsynced:
        return file.now
    content = file.durable
    for at, data in file.unsynced[:-1]:
        content = _written(content, at, data)
    at, data = file.unsynced[-1]
    half = len(data) // 2
    return _written(content, at, data[: half // 512 * 512 or half])


def _last_alone(file: _File) -> bytes:
    if not file.unsynced:
        return file.durable
    return _written(file.durable, *file.unsynced[-1])


_CONTENTS: dict[str, Callable[[_File], bytes]] = {
    "all bytes": lambda file: file.now,
    "durable bytes": lambda file: file.durable,
    "durable bytes and zeros": _zeros,
    "the last write torn": _torn,
    "the last write alone": _last_alone,
}
