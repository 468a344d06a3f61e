"""Durable publication on a local file system: fsync, link, fsync of the folder.

`link` and not `rename`, because rename overwrites. A new folder is itself made durable by an
fsync of its parent; without it a power loss can take the folder and everything in it.
Failpoints: publish.1 folder made    .2 file fsynced    .3 linked    .4 folder fsynced
.5 staged name dropped    replace.1 file fsynced    .2 renamed    .3 folder fsynced
"""

import ctypes
import errno
import os
import resource
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from lakestore.errors import InvalidInputError, NotFoundError, StorageError
from lakestore.failpoint import reach


def open_to_read(path: Path) -> BufferedReader:
    """A file to read; an OSError for a pipe or a device, where a read might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def require_file(path: Path) -> None:
    """Refuse a pipe or a device before a library opens it; says nothing of what is not there."""
    try:
        found = path.stat()
    except OSError:  # the library says what
        return
    _require_regular(path, found)


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"{str(path)!r} is no regular file")


def fsync_file(path: Path) -> None:
    """Make the bytes of a finished file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a staged file; one that stays does no harm, and goes with the next sweep."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Have the disk take in bytes that an fsync will wait for soon; promises nothing.

    Half of the 0.7 ms that an fdatasync of 190 KB takes is the transfer.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, size, _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux has it
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, each durable in its parent; returns `path`.

    Raises:
        StorageError: the disk is full, read-only or failing.
    """
    if not path.is_dir():
        make_folder(path.parent)
        with refusals(f"cannot make folder {str(path)!r}"):
            try:
                path.mkdir()
            except FileExistsError:
                if not path.is_dir():
                    raise
            fsync_folder(path.parent)
    return path


def publish_new(source: Path, target: Path) -> bool:
    """Link a staged file to its final name, durably, and drop the staged name.

    Returns:
        False when `target` existed; it is untouched.

    Raises:
        StorageError: the disk is full, read-only or failing.
    """
    try:
        make_folder(target.parent)
        reach("publish.1")
        fsync_file(source)
        reach("publish.2")
        try:
            _link(source, target)
            created = True
        except FileExistsError:
            created = False
        reach("publish.3")
        fsync_folder(target.parent)
        reach("publish.4")
        discard(source)
        reach("publish.5")
    except OSError as error:
        raise storage_error(f"cannot publish {str(target)!r}", error) from error
    return created


def _link(source: Path, target: Path) -> None:
    """Give a file its final name too; from another file system, a copy of it."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with _copied(source, target.parent) as copy:
            os.link(copy, target)


def _rename(source: Path, target: Path) -> None:
    """Put a file in the place of another; from another file system, a copy of it."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with _copied(source, target.parent) as copy:
            os.replace(copy, target)


@contextmanager
def _copied(source: Path, folder: Path) -> Iterator[Path]:
    """A durable copy of a file in a folder of another file system, for a moment."""
    copy = folder / f".{source.name}.{os.getpid()}"
    try:
        shutil.copyfile(source, copy)
        fsync_file(copy)
        yield copy
    finally:
        discard(copy)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Raise a `StorageError` in the place of an OSError, and say what could not be done."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error


def set_aside(source: Path, target: Path) -> None:
    """Move a file to a name that is free, durably: at no instant is it under neither.

    Raises:
        StorageError: the disk refused.
    """
    try:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with source.open("rb") as old, target.open("xb") as new:
                shutil.copyfileobj(old, new)
        if target.is_file():  # a pipe has no bytes, and to open one waits
            fsync_file(target)
        fsync_folder(target.parent)
        source.unlink()
        fsync_folder(source.parent)
    except OSError as error:
        raise storage_error(f"cannot move {str(source)!r} to {str(target)!r}", error) from error


def storage_error(what: str, error: OSError) -> StorageError:
    """A `StorageError` that says what failed and what helps."""
    advice = _ADVICE.get(error.errno or 0, "nothing was acknowledged; retry once the disk works")
    return StorageError(f"{what}: {error.strerror or error}; {advice}")


_ADVICE = {
    errno.ENOSPC: "make room, then retry",
    errno.EDQUOT: "make room, then retry",
    errno.EROFS: 'the file system is read-only: open with mode="r"',
    errno.EMFILE: "raise the limit of open files",
    errno.ENFILE: "raise the limit of open files",
    errno.ENOMEM: "retry with more memory",
    errno.EACCES: "check who owns the folder",
}
_SAYS_NOTHING_OF_BYTES = tuple(number for number in _ADVICE if number != errno.EACCES)


def refusal(what: str, error: BaseException) -> StorageError | None:
    """A `StorageError` for what says nothing of a file's bytes, such as too many open files.

    Args:
        error: an OSError, or what a library made of one.
    """
    for number in _SAYS_NOTHING_OF_BYTES:
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return storage_error(what, OSError(number, os.strerror(number)))
    return None


def raise_refusal(what: str, error: BaseException) -> None:
    """Raise the `refusal` that an error is, lest it be taken for damage."""
    refused = refusal(what, error)
    if refused is not None:
        raise refused from error


def descriptors() -> int:
    """How many files this process may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def why_refused(folder: Path) -> OSError | None:
    """What is wrong now with writing in a folder, as far as it shows, for who did not say."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            state = os.fstatvfs(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    if state.f_flag & os.ST_RDONLY:
        return OSError(errno.EROFS, os.strerror(errno.EROFS))
    if not state.f_bavail or (state.f_files and not state.f_ffree):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


class LocalStorage:
    """`Storage` on a folder."""

    remote = False
    answers = True

    def __init__(self, folder: Path) -> None:
        self.root = str(folder)
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where `key` is; raises `InvalidInputError` when it would leave the root."""
        parts = key.split("/")
        if key.startswith("/") or any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise InvalidInputError(f"{key!r} is not a key below the lake's root")
        return self.folder.joinpath(*parts)

    def put_new(self, key: str, source: Path) -> bool:
        """Publish `source` as `key`; False when the key existed."""
        return publish_new(source, self.path(key))

    def replace(self, key: str, source: Path) -> None:
        """Put a cache in place of its older version."""
        target = self.path(key)
        try:
            fsync_file(source)
            reach("replace.1")
            _rename(source, target)
            reach("replace.2")
            fsync_folder(target.parent)
            reach("replace.3")
        except OSError as error:
            raise storage_error(f"cannot replace {str(target)!r}", error) from error

    def read(self, key: str) -> bytes:
        """The whole object."""
        try:
            with open_to_read(self.path(key)) as file:
                return file.read()
        except FileNotFoundError as error:
            raise NotFoundError(f"no object {key!r} in {self.root!r}") from error
        except OSError as error:
            raise storage_error(f"cannot read {key!r} in {self.root!r}", error) from error

    def last_bytes(self, key: str, count: int) -> bytes:
        """The end of an object."""
        try:
            with open_to_read(self.path(key)) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - count))
                return file.read(count)
        except FileNotFoundError as error:
            raise NotFoundError(f"no object {key!r} in {self.root!r}") from error
        except OSError as error:
            raise storage_error(f"cannot read {key!r} in {self.root!r}", error) from error

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None."""
        try:
            return self.path(key).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(f"cannot look at {key!r}", error) from error

    def sizes(self, keys: Sequence[str]) -> Sequence[int | None]:
        """The same of several."""
        return [self.size(key) for key in keys]

    def make_durable(self, key: str) -> None:
        """Sync an object and its name."""
        path = self.path(key)
        with refusals(f"cannot sync {str(path)!r}"):
            fsync_file(path)
            fsync_folder(path.parent)

    def delete(self, *keys: str) -> None:
        """Remove objects, so that a power loss does not bring them back."""
        folders = set()
        for path in map(self.path, keys):
            if path.exists():
                path.unlink(missing_ok=True)
                folders.add(path.parent)
        for folder in sorted(folders):
            fsync_folder(folder)

    def list(self, prefix: str) -> Iterator[str]:
        """Keys below `prefix`, in order."""
        folder = self.folder / prefix
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path.relative_to(self.folder).as_posix()

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below `prefix`, in order."""
        folder = self.folder / prefix
        with refusals(f"cannot list {str(folder)!r}"):
            try:
                return sorted(path.name for path in folder.iterdir() if path.is_dir())
            except FileNotFoundError:
                return []

    def url(self, key: str) -> str:
        """The absolute path."""
        return str(self.path(key))
