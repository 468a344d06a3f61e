"""Doctor: whether this machine and this folder can keep what lakestore promises, and what to do.

It probes with files of its own, in the folder that it is asked about, and deletes them.
"""

import fcntl
import os
import platform
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import duckdb
import polars as pl
import pyarrow as pa

from lakestore.catalog import postgres
from lakestore.clock import Clock
from lakestore.errors import LakestoreError, UnsafeStoreError
from lakestore.instances import start
from lakestore.lakefile import lake_id
from lakestore.layout import LAKE_FILE, SiteLayout
from lakestore.settings import GIB
from lakestore.storage import Storage
from lakestore.storage.local import descriptors, fsync_file, fsync_folder
from lakestore.storage.probe import REQUESTS, probe
from lakestore.storage.s3 import S3Storage

Verdict = Literal["ok", "warning", "failed"]
_SHARED = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.s3fs", "lustre")
"""File systems on which `flock` and `fsync` do not say what they say of a local disk."""
_OCTAL = re.compile(r"\\([0-7]{3})")
"""How Linux writes a space, and what else would be in the way."""
_FREE_MIN = 1 * GIB
_FILES_MIN = 1024
_SKEW_MAX_S = 5.0
_FSYNCS = 9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `help` says what to do, unless all is well."""

    what: str
    verdict: Verdict
    found: str
    help: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at."""

    root: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings may be there."""
        return all(finding.verdict != "failed" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return asdict(self) | {"ok": self.ok}

    def __str__(self) -> str:
        signs = {"ok": "ok", "warning": "!!", "failed": "no"}
        lines = []
        for finding in self.findings:
            lines.append(f"{signs[finding.verdict]}  {finding.what:16} {finding.found}")
            if finding.help:
                lines.append(f"{'':20} → {finding.help}")
        return "\n".join(lines)


def diagnose(storage: Storage, layout: SiteLayout, catalog: str | None, clock: Clock) -> Diagnosis:
    """Look at this machine, and at the place of a lake or of one to come."""
    findings = [Finding("versions", "ok", _versions()), _open_files()]
    folder = _nearest(layout.local)
    findings.append(_file_system(folder))
    findings += _disk(folder, clock)
    if isinstance(storage, S3Storage):
        findings += _store(storage)
    if catalog is not None:
        findings.append(_catalog(catalog))
    if all(finding.what != "store" or finding.verdict == "ok" for finding in findings):
        findings.append(_lake(storage))
    findings += [_extension(name, storage) for name in ("httpfs", "delta")]
    return Diagnosis(storage.root, tuple(findings))


def _store(storage: S3Storage) -> Iterator[Finding]:
    """Whether a store answers, lets this user write, and honours the conditions of a commit."""
    where = f"{storage.url('')} at {storage.endpoint or 'AWS'}"
    began = time.perf_counter()
    try:
        probe(storage)
    except UnsafeStoreError as error:
        help = "use another store: commits of two writers could overwrite each other in this one"
        yield Finding("store", "failed", str(error), help)
        return
    except LakestoreError as error:
        help = "check endpoint, bucket and keys (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …)"
        yield Finding("store", "failed", str(error), help)
        return
    each = 1000 * (time.perf_counter() - began) / REQUESTS
    yield Finding("store", "ok", f"{where}; honours conditional writes; {each:.0f} ms a request")
    skew = storage.skew_s()
    if abs(skew) <= _SKEW_MAX_S:
        yield Finding("store's clock", "ok", f"{round(skew):+d} s from this machine's")
    else:
        help = "set the clock: a store refuses requests that seem to be of another time"
        yield Finding("store's clock", "warning", f"{skew:+,.0f} s from this machine's", help)


def _catalog(url: str) -> Finding:
    """Whether a database answers, and lets this user keep catalogs in it."""
    try:
        told, may_create = postgres.examine(url)
    except LakestoreError as error:
        help = "check --catalog, PGPASSWORD, and that the server lets this host in"
        return Finding("catalog", "failed", str(error), help)
    if not may_create:
        help = "an administrator does it: GRANT CREATE ON DATABASE … TO …"
        return Finding("catalog", "failed", f"{told}; this user may make no schema", help)
    return Finding("catalog", "ok", told)


def _versions() -> str:
    modules = {"duckdb": duckdb, "pyarrow": pa, "polars": pl}
    parts = [f"Python {platform.python_version()}"]
    parts += [f"{name} {module.__version__}" for name, module in modules.items()]
    return ", ".join([*parts, f"{platform.system()} {platform.release()}"])


def _open_files() -> Finding:
    limit = descriptors()
    enough = limit >= _FILES_MIN
    help = "" if enough else f"raise it (`ulimit -n {_FILES_MIN}`): each segment in use is a file"
    return Finding("open files", "ok" if enough else "warning", f"{limit:,} at most", help)


def _nearest(root: Path) -> Path:
    """The folder itself, or the nearest above it that there is."""
    for folder in (root, *root.parents):
        if folder.is_dir():
            return folder
    return Path("/")


def _file_system(folder: Path) -> Finding:
    kind = file_system(folder)
    if kind in _SHARED:
        help = "keep journals, segments and the catalog on a local disk: pass local="
        return Finding("file system", "failed", f"{kind}, which is shared", help)
    return Finding("file system", "ok", kind or "not known")


def file_system(folder: Path) -> str | None:
    """What kind of file system a folder is on, as Linux calls it; None where it does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    target, best, kind = str(folder.resolve()), "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = _OCTAL.sub(lambda digits: chr(int(digits[1], 8)), before.split(" ")[4])
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind


def _disk(folder: Path, clock: Clock) -> Iterator[Finding]:
    """What can be tried only by writing."""
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / GIB:,.1f} GiB of {usage.total / GIB:,.1f}"
    few = usage.free < _FREE_MIN
    help = "make room: a full disk refuses appends" if few else ""
    yield Finding("free space", "warning" if few else "ok", free, help)
    try:
        with _scratch(folder) as scratch:
            yield Finding("permission", "ok", "this user may write")
            yield _tried("links", "needs hard links to publish files", lambda: _link(scratch))
            yield _tried("locks", "needs flock to know who lives", lambda: _flock(scratch))
            yield _tried("fsync", "cannot make a write durable", lambda: _fsync(scratch))
            yield _clock(scratch, clock)
    except OSError as error:
        help = 'choose another folder, or open with mode="r"'
        yield Finding("permission", "failed", f"cannot write in {str(folder)!r}: {error}", help)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    scratch = Path(mkdtemp(prefix=".lakestore-doctor-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _tried(what: str, need: str, probe: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", probe())
    except OSError as error:
        return Finding(what, "failed", str(error), f"use another file system: lakestore {need}")


def _link(folder: Path) -> str:
    (folder / "one").write_bytes(b"1")
    os.link(folder / "one", folder / "two")
    try:
        os.link(folder / "one", folder / "two")
    except FileExistsError:
        return "made, and never overwritten"
    raise OSError("a second link of the same name replaced the first")


def _flock(folder: Path) -> str:
    holder = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    other = os.open(folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "held by one at a time"
        raise OSError("two had the same lock at once")
    finally:
        os.close(holder)
        os.close(other)


def _fsync(folder: Path) -> str:
    waits = []
    for number in range(_FSYNCS):
        path = folder / f"sync-{number}"
        path.write_bytes(os.urandom(65_536))
        began = time.perf_counter()
        fsync_file(path)
        fsync_folder(folder)
        waits.append(time.perf_counter() - began)
    return f"{1000 * statistics.median(waits):.2f} ms for 64 KiB, which each durable append waits"


def _clock(folder: Path, clock: Clock) -> Finding:
    (folder / "now").touch()
    skew = (folder / "now").stat().st_mtime - clock.now().timestamp()
    if abs(skew) <= _SKEW_MAX_S:
        return Finding("clock", "ok", clock.now().isoformat(timespec="seconds"))
    help = "set the clock: graces and leases go by it, though no answer does"
    return Finding("clock", "warning", f"the file system is {skew:+,.0f} s away", help)


def _lake(storage: Storage) -> Finding:
    if not storage.remote and Path(storage.root).is_file():
        return Finding("lake", "failed", "a file", "a lake is a folder: name another")
    try:
        if storage.size(LAKE_FILE) is None and not storage.folders("tables/"):
            return Finding("lake", "ok", "none yet; an open makes it")
        found = lake_id(storage, None)
    except LakestoreError as error:  # which says what to do
        return Finding("lake", "failed", str(error))
    return Finding("lake", "ok", f"{found}; `lakestore verify` checks its bytes")


def _extension(name: str, storage: Storage) -> Finding:
    """What reads a store faster, or Delta tables in a shell; one that is missing is no fault."""
    try:
        with start(autoinstall_known_extensions=False, autoload_known_extensions=False) as con:
            con.execute(f"LOAD {name}")
    except (duckdb.Error, LakestoreError):
        without = "not installed; local lakes do not need it"
        if storage.remote and name == "httpfs":
            without = "not installed; queries copy whole files of the store to this disk instead"
        return Finding(f"DuckDB's {name}", "ok", without)
    return Finding(f"DuckDB's {name}", "ok", "can be loaded")
