"""Names on disk: built and parsed back, and nothing else is accepted."""

from datetime import date

import pytest

import lakestore as ls
from lakestore.layout import ColdName, SegmentName, check_table_name, parse_journal_name
from lakestore.storage.local import LocalStorage


def test_names_are_the_inverse_of_parsing():
    segment = SegmentName(3, 17, "0123456789ab")
    cold = ColdName(date(2025, 1, 2), "abcdef01", 3, 17, 2, "0123456789ab")

    assert str(segment) == "000003-000017-0123456789ab.parquet"
    assert SegmentName.parse(str(segment)) == segment
    assert str(cold) == "day=2025-01-02/abcdef01-000003-000017-0002-0123456789ab.parquet"
    assert ColdName.parse(str(cold)) == cold


@pytest.mark.parametrize(
    "name",
    ["", "x.parquet", "3-17-0123456789ab.parquet", "000003-000017-0123456789ab.parquet/..",
     "../000003-000017-0123456789ab.parquet", "000003-000017-0123456789AB.parquet"],
)  # fmt: skip
def test_other_names_are_no_segments(name):
    with pytest.raises(ls.CorruptionError):
        SegmentName.parse(name)


@pytest.mark.parametrize(
    "name",
    ["", "day=2025-01-02", "day=2025-13-02/abcdef01-000003-000017-0002-0123456789ab.parquet",
     "day=2025-01-02/../abcdef01-000003-000017-0002-0123456789ab.parquet"],
)  # fmt: skip
def test_other_names_are_no_cold_files(name):
    with pytest.raises(ls.CorruptionError):
        ColdName.parse(name)


def test_journal_names():
    assert parse_journal_name("000017.journal") == 17
    assert parse_journal_name("lock") is None


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", 'a"b', "a'b", "a b", "a" * 300, "_a", "1a", "é", "a\0", "a;b", None]
)
def test_table_names_that_are_refused(name):
    with pytest.raises(ls.InvalidInputError, match="letter"):
        check_table_name(name)


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b", "a/./b", "a/../../b", "", "a\0b"])
def test_a_key_cannot_leave_the_root(tmp_path, key):
    with pytest.raises(ls.InvalidInputError, match="not a key below"):
        LocalStorage(tmp_path).path(key)


def test_a_published_object_is_never_overwritten(tmp_path):
    storage = LocalStorage(tmp_path / "root")
    staged = tmp_path / "staged"
    staged.write_bytes(b"first")
    assert storage.put_new("a/b", staged)
    staged.write_bytes(b"second")
    assert not storage.put_new("a/b", staged)
    assert storage.read("a/b") == b"first"
    assert not staged.exists()
    assert list(storage.list("a/")) == ["a/b"]
    assert (storage.size("a/b"), storage.size("c")) == (5, None)
    with pytest.raises(ls.NotFoundError):
        storage.read("c")
