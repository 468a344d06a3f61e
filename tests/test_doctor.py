"""The doctor says what a machine and a folder lack, and what to do, and leaves nothing behind."""

import json
import resource
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import FixedClock
from support.commands import ok, run
from support.mounts import mount  # noqa: F401  (for pytest)

import lakestore as ls
from lakestore import doctor
from lakestore.clock import SystemClock
from lakestore.opening import place


def found(root: Path, **options: object) -> dict[str, doctor.Finding]:
    diagnosis = doctor.diagnose(*place(root), options.get("clock", SystemClock()))
    return {finding.what: finding for finding in diagnosis.findings}


def verdicts(root: Path) -> dict[str, str]:
    return {what: finding.verdict for what, finding in found(root).items()}


def test_a_good_place(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    looked = found(tmp_path / "lake")
    assert {finding.verdict for finding in looked.values()} == {"ok"}
    assert all(finding.help == "" for finding in looked.values())
    assert looked["lake"].found == "none yet; an open makes it"
    assert looked["fsync"].found.split(" ")[1] == "ms"
    with ls.open(tmp_path / "lake") as lake:
        assert found(tmp_path / "lake")["lake"].found.startswith(lake.status().lake)
    assert verdicts(tmp_path / "lake")["lake"] == "ok"
    assert sorted(tmp_path.glob("*")) == [*before, tmp_path / "lake"]
    assert not [path for path in tmp_path.rglob("*") if "doctor" in path.name]


def test_a_read_only_file_system(mount):  # noqa: F811
    mount.remount("ro")
    looked = found(mount.path)
    assert looked["permission"].verdict == "failed"
    assert "Read-only file system" in looked["permission"].found
    assert 'mode="r"' in looked["permission"].help
    assert looked["free space"].verdict == "warning"  # it is a small one
    assert looked["file system"].found == "tmpfs"
    assert "fsync" not in looked


def test_a_full_disk(mount):  # noqa: F811
    mount.fill(0)
    looked = found(mount.path)
    assert looked["free space"].help.startswith("make room")
    assert looked["fsync"].verdict == "failed"
    assert "No space left" in looked["fsync"].found


def test_shared_file_systems_are_named(tmp_path, monkeypatch):
    lines = (
        "22 1 0:20 / / rw - ext4 /dev/vda rw\n"
        f"30 22 0:30 / {tmp_path} rw,relatime shared:1 - nfs4 server:/export rw\n"
        f"31 30 0:31 / {tmp_path}/wäth\\040space rw - tmpfs none rw\n"
    )
    read_text = Path.read_text

    def told(path: Path, *arguments: object) -> str:
        return lines if str(path) == "/proc/self/mountinfo" else read_text(path, *arguments)

    monkeypatch.setattr(Path, "read_text", told)
    (tmp_path / "wäth space").mkdir()
    assert doctor.file_system(tmp_path / "wäth space") == "tmpfs"
    assert doctor.file_system(tmp_path.parent) == "ext4"
    looked = found(tmp_path / "lake")["file system"]
    assert (looked.verdict, looked.found) == ("failed", "nfs4, which is shared")
    assert "local=" in looked.help


def test_few_open_files_and_a_clock_that_is_wrong(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        assert "ulimit -n 1024" in found(tmp_path)["open files"].help
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    late = FixedClock()
    late.time = SystemClock().now() + timedelta(hours=1)
    looked = found(tmp_path, clock=late)["clock"]
    assert looked.verdict == "warning"
    assert "-3,6" in looked.found or "-3,5" in looked.found


@pytest.mark.parametrize("damage", ["gone", "noise", "file"])
def test_a_lake_that_cannot_be_opened(tmp_path, damage):
    root = tmp_path / "lake"
    if damage == "file":
        root.write_text("not a folder")
    else:
        with ls.open(root) as lake:
            lake.create_table("t", {"t": "2025-01-01"}, event_time="t")
        (root / "lakestore.json").unlink()
        if damage == "noise":
            (root / "lakestore.json").write_bytes(b"noise")
    looked = found(root)["lake"]
    assert looked.verdict == "failed"
    said = f"{looked.found} {looked.help}"
    assert ("name another" if damage == "file" else "`lakestore rebuild`") in said


def test_a_lake_of_a_newer_format_is_not_to_be_rebuilt(tmp_path):
    (tmp_path / "lakestore.json").write_text('{"format": 99, "lake": "x"}')
    looked = found(tmp_path)["lake"]
    assert looked.verdict == "failed"
    assert "upgrade lakestore" in looked.found
    assert "rebuild" not in looked.found + looked.help


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = ok("doctor")
    assert "ok  permission       this user may write" in said
    assert json.loads(ok("doctor", "lake", "--json"))["ok"] is True
    (tmp_path / "lake").write_text("")
    result = run("doctor", "lake")
    assert result.exit_code == 1
    assert "→ a lake is a folder" in result.stdout
