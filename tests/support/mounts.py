"""File systems of a test's own, small enough to fill, and what fills them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Mount:
    """A tmpfs, and the means to take away its room and to give it back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, room: int) -> None:
        """Leave so many bytes free."""
        state = os.statvfs(self.path)
        taken = state.f_bavail * state.f_frsize - room
        with (self.path / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, taken)

    def fill_inodes(self, room: int) -> None:
        """Let so many more files be made."""
        folder = self.path / "names"
        folder.mkdir()
        for number in range(os.statvfs(self.path).f_ffree - room):
            (folder / str(number)).touch()

    def make_room(self) -> None:
        """Take away what fills it."""
        (self.path / "ballast").unlink(missing_ok=True)
        shutil.rmtree(self.path / "names", ignore_errors=True)

    def remount(self, how: str) -> None:
        """Make it read-only (`ro`) or writable (`rw`) under what is open on it."""
        subprocess.run(["mount", "-o", f"remount,{how}", self.path], check=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A tmpfs of 48 MiB and 600 names; skips where this user may not mount one."""
    path = tmp_path / "mount"
    path.mkdir()
    options = "size=48m,nr_inodes=600"
    try:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path]
        made = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        yield Mount(path)
    finally:  # lazily: DuckDB keeps segments open for the next query
        subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def bound(folder: Path, where: Path) -> Iterator[Path]:
    """The folder a second time, read-only; over itself, what is opened anew cannot be written."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", folder, where], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", where], check=True)
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)
