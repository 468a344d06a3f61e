"""The journal file: what a torn or damaged one gives back."""

import random
from contextlib import suppress

import pyarrow as pa
import pytest
from conftest import SCHEMA, events
from hypothesis import given
from hypothesis import strategies as st

import lakestore as ls
from lakestore.coerce import to_batches
from lakestore.frames import JournalHeader
from lakestore.journal import JournalReader, JournalWriter
from lakestore.snapshot import GenerationId

HEADER = JournalHeader("lake", "events", GenerationId("0123456789abcdef", 1), 1, SCHEMA.arrow)


def batches(start: int, stop: int) -> list[pa.RecordBatch]:
    return to_batches(events(start, stop), SCHEMA)


@pytest.fixture
def journal(tmp_path) -> JournalWriter:
    return JournalWriter(tmp_path, HEADER)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[bytes, list[int]]:
    """The bytes of a journal of three appends, the last a run of two frames; and their ends."""
    journal = JournalWriter(tmp_path_factory.mktemp("journal"), HEADER)
    start = journal.end
    ends = [
        start,
        journal.append(batches(0, 3), None, None),
    ]
    journal.sync_to(ends[-1])
    ends.append(journal.append(batches(3, 5), "job", 7))
    journal.sync_to(ends[-1])
    ends.append(journal.append(batches(5, 6) + batches(6, 9), None, None))
    return journal.path.read_bytes(), ends


def read(path) -> list[str]:
    entries = JournalReader(path).read()
    return [i for e in entries for b in e.batches for i in b.column("id").to_pylist()]


def ids(stop: int) -> list[str]:
    return [f"e{i:06d}" for i in range(stop)]


def test_entries_come_back_as_they_were(journal):
    end = journal.append(batches(0, 3), "job", 7)
    journal.append(batches(3, 5), None, None)
    entries = JournalReader(journal.path).read()

    assert [(e.producer, e.seq, e.end) for e in entries] == [
        ("job", 7, end),
        (None, None, journal.end),
    ]
    assert entries[0].batches[0].equals(batches(0, 3)[0])
    assert entries[1].batches[0].equals(batches(3, 5)[0])


def test_queued_appends_have_the_offsets_they_are_written_at(journal):
    ends = [journal.append(batches(n, n + 1), "job", n, queue=True) for n in range(3)]
    assert journal.end == ends[-1]
    assert read(journal.path) == []
    ends.append(journal.append(batches(3, 4), "job", 3))
    assert [entry.end for entry in JournalReader(journal.path).read()] == ends
    assert journal.path.stat().st_size == journal.end == ends[-1]


def test_rows_begin_where_arrow_wants_them(journal):
    for number in range(8):
        journal.append(batches(number, number + 1), number * "p", 1)
    for entry in JournalReader(journal.path).read():
        buffers = entry.batches[0].column("n").buffers()
        assert all(buffer.address % 8 == 0 for buffer in buffers if buffer is not None)


def test_a_reader_goes_on_where_it_stopped(journal):
    reader = JournalReader(journal.path)
    assert reader.read() == []
    journal.append(batches(0, 3), None, None)
    assert [b.num_rows for e in reader.read() for b in e.batches] == [3]
    assert reader.read() == []
    journal.append(batches(3, 4), None, None)
    assert [b.num_rows for e in reader.read() for b in e.batches] == [1]
    assert reader.header == HEADER


@given(cut=st.integers(0, 10_000))
def test_a_cut_anywhere_leaves_whole_appends(written, tmp_path_factory, cut):
    data, ends = written
    cut = min(cut, len(data))
    path = tmp_path_factory.mktemp("cut") / "000001.journal"
    path.write_bytes(data[:cut])

    whole = sum(end <= cut for end in ends[1:])
    assert read(path) == ids([0, 3, 5, 9][whole])


@given(cut=st.integers(0, 10_000), tail=st.binary(min_size=1, max_size=40))
def test_a_torn_tail_of_any_bytes_is_cut(written, tmp_path_factory, cut, tail):
    data, ends = written
    cut = max(ends[0], min(cut, len(data)))
    path = tmp_path_factory.mktemp("torn") / "000001.journal"
    path.write_bytes(data[:cut] + tail)

    whole = sum(end <= cut for end in ends[1:])
    assert read(path)[: [0, 3, 5, 9][whole]] == ids([0, 3, 5, 9][whole])


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_what_was_synced_is_reported(written, tmp_path_factory, at, bit):
    """It is never the rows after it that go, nor wrong rows that come."""
    data, ends = written
    at %= ends[2]  # before the last append, which stays valid
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "000001.journal"
    path.write_bytes(damaged)

    with pytest.raises((ls.CorruptionError, ls.FormatTooNewError)):
        read(path)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_last_append_gives_no_wrong_row(written, tmp_path_factory, at, bit):
    data, ends = written
    at = ends[2] + at % (ends[3] - ends[2])
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "000001.journal"
    path.write_bytes(damaged)

    with suppress(ls.CorruptionError):  # the run's second frame is valid behind its damaged first
        assert read(path) == ids(5)


def test_a_hole_in_what_was_not_synced_is_cut(journal):
    """A power loss may keep later bytes and lose earlier ones; nobody was told they are safe."""
    synced = journal.append(batches(0, 3), None, None)
    journal.sync_to(synced)
    lost = journal.append(batches(3, 5), None, None)
    journal.append(batches(5, 9), None, None)
    data = bytearray(journal.path.read_bytes())
    data[synced:lost] = bytes(lost - synced)
    journal.path.write_bytes(data)

    assert read(journal.path) == ids(3)


def test_a_crash_at_birth_is_no_damage(journal, tmp_path):
    data = journal.path.read_bytes()
    for broken in (b"", data[:30], bytes(len(data)), data[:40] + bytes(len(data) - 40)):
        journal.path.write_bytes(broken)
        assert read(journal.path) == []


def test_what_no_crash_at_birth_leaves_is_damage(journal, tmp_path):
    """It takes rows with it, so it is never passed over as a journal without any."""
    header = len(journal.path.read_bytes())
    journal.sync_to(journal.append(batches(0, 500), None, None))
    data = journal.path.read_bytes()
    noise = random.Random(8).randbytes(len(data))
    for broken in (
        noise,
        noise[:20],
        noise[:8] + bytes(90),
        bytes(300_000),
        data[:40] + noise[40:],
        data[:header - 1] + b"?" + noise[header:],
        noise[:header] + data[header:],
        bytes(header) + data[header:],
    ):  # fmt: skip
        journal.path.write_bytes(broken)
        with pytest.raises(ls.CorruptionError, match=r"000001.*restore the file"):
            read(journal.path)


def test_a_frame_of_another_journal_is_refused(journal, tmp_path):
    other = JournalWriter(
        tmp_path / "other",
        JournalHeader("lake", "events", GenerationId("0123456789abcdef", 2), 1, SCHEMA.arrow),
    )
    start = other.end
    other.append(batches(0, 2), None, None)
    journal.append(batches(2, 4), None, None)
    with journal.path.open("ab") as file:
        file.write(other.path.read_bytes()[start:])

    with pytest.raises(ls.CorruptionError, match="holds a frame of 2"):
        read(journal.path)


def test_a_newer_format_is_refused(journal):
    data = bytearray(journal.path.read_bytes())
    data[8] = 2
    journal.path.write_bytes(data)

    with pytest.raises(ls.FormatTooNewError, match="format 2"):
        read(journal.path)


def test_a_name_is_never_used_twice(journal, tmp_path):
    with pytest.raises(ls.StorageError, match="cannot start journal"):
        JournalWriter(tmp_path, HEADER)


def test_what_is_begun_is_no_row_until_it_is_accepted(journal):
    journal.append(batches(0, 2), None, None)
    reader = JournalReader(journal.path)
    assert len(reader.read()) == 1
    journal.begin(batches(2, 4), None, None)
    assert reader.read() == []
    journal.withdraw()
    journal.begin(batches(2, 5), None, None)  # cut off by the next append
    journal.append(batches(2, 3), None, None)
    journal.begin(batches(3, 4), None, None)
    journal.accept()
    assert [e.batches[0].num_rows for e in reader.read()] == [1, 1]
    assert read(journal.path) == ids(4)
