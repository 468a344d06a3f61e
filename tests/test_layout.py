"""Names on disk: built and parsed back, and nothing else is accepted."""

from datetime import date

import pytest

import lakestore as ls
from lakestore.layout import (
    ColdName,
    SegmentName,
    check_table_name,
    checkpoint_names,
    data_name,
    parse_checkpoint,
    parse_journal_name,
    past_name,
)
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


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_files_of_a_checkpoint_say_which(parts):
    names = checkpoint_names(17, parts)
    assert [parse_checkpoint(name) for name in names] == [(17, parts)] * max(1, parts)
    assert [past_name(name) for name in names] == names
    assert parse_checkpoint("17.checkpoint.parquet") is None


@pytest.mark.parametrize(
    "name",
    ["", "_last_checkpoint", f"{0:020d}.json", f"../{17:020d}.json", f"{17:020d}.json.parquet"],
)
def test_what_is_not_the_past_of_a_log(name):
    with pytest.raises(ls.CorruptionError):
        past_name(name)


@pytest.mark.parametrize(
    "name", ["", "../x.parquet", "/x.parquet", "a//x.parquet", "_delta_log/1.parquet", "x.json"]
)
def test_other_names_lie_outside_of_the_data(name):
    assert data_name("day=2025-01-02/part-0.parquet") == "day=2025-01-02/part-0.parquet"
    with pytest.raises(ls.CorruptionError):
        data_name(name)


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
