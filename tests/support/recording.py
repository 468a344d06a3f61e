"""What a process did to files, call by call and with the data, from a trace by strace.

A `Recording` is a list of operations on paths below one folder, and of what was written to the
ledger between them. Played back onto nothing they must give the very files that the process left
(`Recording.check`), which shows that nothing was overlooked.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.strace import tracing

CALLS = (
    "openat", "creat", "lseek", "write", "writev", "pwrite64", "pwritev2", "ftruncate", "fallocate",
    "fsync", "fdatasync", "sync", "syncfs", "link", "linkat", "rename", "renameat", "renameat2",
    "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "symlink", "symlinkat", "truncate",
)  # fmt: skip
OPTIONS = [*tracing(CALLS), "-xx", "-s", "16777216"]
_REFUSED = {"creat", "fallocate", "sync", "syncfs", "symlink", "symlinkat", "truncate"}
"""Nobody here uses them; one that does needs a place in the model first."""

_LINE = re.compile(r"(\d+) +(.*)$")
_CALL = re.compile(r"([a-z0-9_]+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(?:AT_FDCWD|(\d+))<((?:\\x[0-9a-f]{2})*)>")


@dataclass(frozen=True)
class Op:
    """One operation: `kind` is create, write, truncate, sync, link, rename, unlink, mkdir, rmdir
    or ledger; files that are open go by a number, `file`, names by a path."""

    kind: str
    path: str = ""
    to: str = ""
    file: int = -1
    offset: int = 0
    data: bytes = b""


@dataclass
class _Open:
    path: str
    file: int
    append: bool
    at: int = 0


@dataclass
class Recording:
    """Operations in the order in which they returned."""

    folder: str
    ops: list[Op] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        """The files that all operations together leave."""
        from support.powerloss import Disk

        disk = Disk(self.folder, strict=False)
        for op in self.ops:
            disk.apply(op)
        return disk.now().files

    def check(self, leave_out: str = "-shm") -> int:
        """Compare with what the process left; returns the number of files."""
        found = {
            str(path): path.read_bytes()
            for path in Path(self.folder).rglob("*")
            if path.is_file() and not path.name.endswith(leave_out)
        }
        played = {p: b for p, b in self.files().items() if not p.endswith(leave_out)}
        assert played.keys() == found.keys(), played.keys() ^ found.keys()
        different = [path for path in found if found[path] != played[path]]
        assert different == []
        return len(found)


def read(trace: Path, folder: Path, ledger: Path) -> Recording:
    """The recording of a trace: what was done below `folder`, and written below `ledger`."""
    return _Reader(str(folder), str(ledger)).read(trace)


class _Reader:
    def __init__(self, folder: str, ledger: str) -> None:
        self._recording = Recording(folder)
        self._above = os.path.dirname(folder)  # its fsync makes the folder's own name durable
        self._ledger = ledger
        self._open: dict[int, _Open] = {}
        self._names: dict[str, int] = {}
        self._files = 0

    def read(self, trace: Path) -> Recording:
        for text in _whole_calls(trace):
            match = _CALL.match(text)
            if match is None or int(match[3]) < 0:
                continue
            name, rest, result = match[1], match[2], int(match[3])
            paths = [_text(found) for found in _TEXT.findall(rest)]
            self._call(name, rest, result, paths)
        return self._recording

    def _call(self, name: str, rest: str, result: int, texts: list[bytes]) -> None:
        if name in ("openat",):
            self._opened(rest, result, texts)
        elif name in ("write", "writev", "pwrite64", "pwritev2"):
            self._written(name, rest, result, b"".join(texts))
        elif name in ("lseek", "ftruncate", "fsync", "fdatasync"):
            self._of_descriptor(name, rest, result)
        else:
            self._named(name, rest, [t.decode() for t in texts])

    def _inside(self, path: str) -> bool:
        return path == self._recording.folder or path.startswith(self._recording.folder + "/")

    def _opened(self, rest: str, result: int, texts: list[bytes]) -> None:
        path = _paths(rest, [texts[0].decode()])[0]
        self._open.pop(result, None)
        if path.startswith(self._ledger + "/"):
            self._open[result] = _Open(path, -1, True)
        if not self._inside(path) and path != self._above:
            return
        if path not in self._names and "O_CREAT" in rest:
            self._files += 1
            self._names[path] = self._files
            self._recording.ops.append(Op("create", path, file=self._files))
        file = self._names.get(path, 0)  # 0: a folder
        self._open[result] = _Open(path, file, "O_APPEND" in rest)
        if "O_TRUNC" in rest:
            self._recording.ops.append(Op("truncate", path, file=file))

    def _written(self, name: str, rest: str, result: int, data: bytes) -> None:
        opened = self._open.get(_descriptor(rest))
        if opened is None:
            return
        data = data[:result]
        assert len(data) == result, (rest[:200], result)
        if opened.path.startswith(self._ledger + "/"):
            self._recording.ops.append(Op("ledger", data=data))
            return
        offset = opened.at
        if opened.append:
            offset = -1  # at the end
        elif name == "pwrite64":
            offset = int(rest.rsplit(",", 1)[1])
        else:
            opened.at += result
        op = Op("write", opened.path, file=opened.file, offset=offset, data=data)
        self._recording.ops.append(op)

    def _of_descriptor(self, name: str, rest: str, result: int) -> None:
        opened = self._open.get(_descriptor(rest))
        if opened is None or opened.path.startswith(self._ledger + "/"):
            return
        if name == "lseek":
            opened.at = result
        elif name == "ftruncate":
            size = int(rest.rsplit(",", 1)[1])
            self._recording.ops.append(Op("truncate", opened.path, file=opened.file, offset=size))
        else:
            self._recording.ops.append(Op("sync", opened.path, file=opened.file))

    def _named(self, name: str, rest: str, texts: list[str]) -> None:
        paths = [path for path in _paths(rest, texts) if self._inside(path)]
        if not paths:
            return
        assert name not in _REFUSED, rest[:200]
        kind = re.sub(r"(at2?)$", "", name)
        if name == "unlinkat" and "AT_REMOVEDIR" in rest:
            kind = "rmdir"
        if kind in ("link", "rename"):
            file = self._names[paths[0]]
            self._names[paths[1]] = file
            self._recording.ops.append(Op(kind, paths[0], paths[1], file))
            if kind == "rename":
                del self._names[paths[0]]
        else:
            file = self._names.pop(paths[0], 0)
            self._recording.ops.append(Op(kind, paths[0], file=file))


def _whole_calls(trace: Path) -> Iterator[str]:
    """Each call once it has returned, its two halves joined."""
    begun: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        thread, text = match.groups()
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>")
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)$", text)
        yield begun.pop(thread, "") + resumed[1] if resumed else text


def _text(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _descriptor(rest: str) -> int:
    return int(re.match(r"\d+", rest)[0])  # type: ignore[index]


def _paths(rest: str, texts: list[str]) -> list[str]:
    """Absolute paths: a relative one is below the folder whose descriptor comes before it."""
    bases = [_text(found).decode() for _, found in _DESCRIPTOR.findall(rest.split(" = ")[0])]
    paths = []
    for number, text in enumerate(texts):
        base = bases[min(number, len(bases) - 1)] if bases else os.getcwd()
        paths.append(os.path.normpath(os.path.join(base, text)))
    return paths
