"""Ids for events that come without one: UUIDv7, vectorised."""

import os
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa


def make_ids(rows: int) -> pa.Array:
    """So many new UUIDv7 as text, ascending: 48 bits of time, then random bits that count up.

    Source: RFC 9562, section 5.7 and method 2 of section 6.2 (monotonic random).
    """
    millis = int(datetime.now(UTC).timestamp() * 1000)
    raw = np.zeros((rows, 16), dtype=np.uint8)
    raw[:, 0:6] = np.frombuffer(millis.to_bytes(6, "big"), dtype=np.uint8)
    raw[:, 6:8] = np.frombuffer(os.urandom(2), dtype=np.uint8)
    start = int.from_bytes(os.urandom(8), "big") >> 3  # leaves room to count without wrapping
    counter = np.uint64(start) + np.arange(rows, dtype=np.uint64)
    raw[:, 8:16] = counter.astype(">u8").view(np.uint8).reshape(rows, 8)
    raw[:, 6] = (raw[:, 6] & 0x0F) | 0x70
    raw[:, 8] = (raw[:, 8] & 0x3F) | 0x80
    digits = np.frombuffer(raw.tobytes().hex().encode(), dtype="S1").reshape(rows, 32)
    text = np.full((rows, 36), b"-", dtype="S1")
    for at, start_digit, count in ((0, 0, 8), (9, 8, 4), (14, 12, 4), (19, 16, 4), (24, 20, 12)):
        text[:, at : at + count] = digits[:, start_digit : start_digit + count]
    offsets = np.arange(rows + 1, dtype=np.int32) * 36
    return pa.Array.from_buffers(
        pa.string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(text.tobytes())]
    )
