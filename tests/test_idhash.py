"""Hashes of ids, and the set of them that appends ask."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakestore import idhash
from lakestore.idhash import IdIndex, Sought, hash_ids

RANDOM = np.random.Generator(np.random.PCG64(3))


def text_hashes(texts: list[str]) -> list[int]:
    times = pa.array([0] * len(texts), pa.timestamp("us", "UTC"))
    return hash_ids(pa.array(texts, pa.string()), times, "table").tolist()


@given(st.lists(st.text(max_size=40), min_size=1, max_size=60))
def test_a_text_has_one_hash_whatever_stands_beside_it(texts):
    together = text_hashes(texts)
    assert together == [text_hashes([text])[0] for text in texts]
    sliced = pa.array(["x", *texts], pa.string()).slice(1)
    times = pa.array([0] * len(texts), pa.timestamp("us", "UTC"))
    assert hash_ids(sliced, times, "table").tolist() == together


@pytest.mark.parametrize("width", [4, 7, 8, 9, 15, 16, 36])
def test_texts_that_differ_little_have_different_hashes(width):
    texts = [f"{i:0{width}d}"[-width:] for i in range(10 ** min(width, 4))]
    assert len(set(text_hashes(texts))) == len(texts)


def test_in_scope_day_the_day_is_part_of_the_hash():
    day = 86_400_000_000
    times = pa.array([0, day - 1, day, -1], pa.timestamp("us", "UTC"))
    ids = pa.array(["a"] * 4)
    first, same, later, before = hash_ids(ids, times, "day").tolist()
    assert first == same
    assert len({first, later, before}) == 3
    alone = [hash_ids(ids[:1], times.slice(i, 1), "day").tolist()[0] for i in range(4)]
    assert alone == [first, same, later, before]


def test_an_index_finds_all_that_was_put_in_and_little_else():
    """Also after it has grown past its first filter."""
    index, sets = IdIndex(), []
    for size in (1, 1_000, 10, 100_000, 300_000, 5):
        hashes = np.sort(RANDOM.integers(0, 2**64, size, dtype=np.uint64))
        assert len(index.find(hashes)) == 0
        index.add(hashes)
        sets.append(hashes)
    assert len(index) == 401_016
    assert index._bloom.slots == idhash._LARGE_SLOTS
    for hashes in sets:
        assert np.array_equal(index.find(hashes), hashes)
    others = np.sort(RANDOM.integers(0, 2**64, 100_000, dtype=np.uint64))
    assert len(index.find(others)) == 0
    assert index._bloom.may_hold(others).mean() < 0.002


def test_the_filter_is_good_for_ids_that_count_up():
    index = IdIndex()
    known = np.sort(np.array(text_hashes([f"e{i:07d}" for i in range(200_000)]), np.uint64))
    index.add(known)
    others = np.array(text_hashes([f"e{i:07d}" for i in range(200_000, 300_000)]), np.uint64)
    assert index._bloom.may_hold(others).mean() < 0.02


@pytest.mark.parametrize("size", [0, 1, 31, 5_000, 300_000])
@pytest.mark.parametrize("known", [0, 1, 5_000, 300_000])
def test_what_is_sought_is_found_in_a_run_however_long_both_are(size, known):
    hashes = RANDOM.integers(0, 2**64, size, dtype=np.uint64)
    both = hashes[: min(size, known) // 2]
    others = RANDOM.integers(0, 2**64, known - len(both), dtype=np.uint64)
    run = np.sort(np.concatenate((both, others)))
    assert np.array_equal(Sought(hashes).found_in(run), np.intersect1d(hashes, run))
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert np.array_equal(Sought(extremes).found_in(np.sort(np.append(run, extremes))), extremes)
