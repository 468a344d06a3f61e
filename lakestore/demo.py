"""Synthetic usage events of an LLM gateway: seeded, so the same arguments give the same events.

All of it is vectorised: a generator slower than the lake would measure itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakestore.errors import InvalidInputError

START = datetime(2026, 11, 15, tzinfo=UTC)
"""Events begin here, a Sunday, and span `DAYS` days."""

DAYS = 7
_MINUTES = DAYS * 24 * 60
_MINUTE_US = 60_000_000
_KEYS = 60


@dataclass(frozen=True)
class _Model:
    """One model: its share of the traffic, how fast it is, and what it costs."""

    name: str
    provider: str
    protocol: str
    endpoint: str
    share: float
    latency_ms: float
    output_tokens: float
    price_in: float  # per million tokens
    price_out: float


_ANTHROPIC = ("anthropic", "anthropic", "/v1/messages")
_OPENAI = ("openai", "openai", "/v1/responses")
_GEMINI = ("gemini", "gemini", "/v1beta/generateContent")
_MODELS = (
    _Model("claude-sonnet-4-5", *_ANTHROPIC, 0.34, 5200, 620, 3.0, 15.0),
    _Model("gpt-5", *_OPENAI, 0.19, 7800, 810, 1.25, 10.0),
    _Model("claude-haiku-4-5", *_ANTHROPIC, 0.15, 1500, 280, 1.0, 5.0),
    _Model("gpt-5-mini", *_OPENAI, 0.11, 2300, 340, 0.25, 2.0),
    _Model("gemini-2.5-pro", *_GEMINI, 0.08, 6400, 700, 1.25, 10.0),
    _Model("claude-opus-4-1", *_ANTHROPIC, 0.05, 11_500, 900, 15.0, 75.0),
    _Model("gemini-2.5-flash", *_GEMINI, 0.05, 1200, 260, 0.3, 2.5),
    _Model("text-embedding-3-large", "openai", "openai", "/v1/embeddings", 0.03, 240, 1, 0.13, 0.0),
)
_STATUS = np.array([200, 429, 500, 400, 529], dtype=np.int32)
_STATUS_SHARE = (0.962, 0.021, 0.008, 0.006, 0.003)

COLUMNS = (
    "event_id",
    "created_at",
    "provider_type",
    "protocol_family",
    "key_id",
    "key_name",
    "account_name",
    "endpoint",
    "model",
    "status_code",
    "latency_ms",
    "first_sse_write_ms",
    "input_uncached_tokens",
    "input_cached_tokens",
    "output_tokens",
    "billable_tokens",
    "credit_usage",
)
"""The columns of `llm_usage` that are filled, in this order."""


def usage_events(
    rows: int,
    *,
    seed: int = 7,
    start: datetime = START,
    batch_rows: int = 10_000,
    columns: Literal["demo"] | Sequence[str] = "demo",
) -> Iterator[pa.RecordBatch]:
    """Usage events, ascending in time over seven days with a daily rhythm.

    Args:
        rows: how many, in all.
        seed: another seed, other events.
        start: an aware time; the first event comes right after it.
        batch_rows: rows of a batch; the last may have fewer.
        columns: `demo`, or which of `COLUMNS`, in this order.

    Raises:
        InvalidInputError: a column that is not in `COLUMNS`, or a negative number of rows.
    """
    names = COLUMNS if columns == "demo" else tuple(columns)
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or rows < 0 or batch_rows < 1:
        raise InvalidInputError(
            f"usage_events has no column {unknown[0]!r}; it has {', '.join(COLUMNS)}"
            if unknown
            else f"rows={rows} must be at least 0, and batch_rows={batch_rows} at least 1"
        )
    traffic = _cumulative_traffic()
    for first in range(0, rows, batch_rows):
        count = min(batch_rows, rows - first)
        draw = np.random.default_rng([seed, first])
        position = (np.arange(first, first + count) + draw.random(count)) / rows
        minute = np.interp(position, traffic, np.arange(_MINUTES + 1))
        times = int(start.timestamp()) * 1_000_000 + (minute * _MINUTE_US).astype(np.int64)
        made = _columns(draw, times)
        yield pa.record_batch([made[name] for name in names], names=list(names))


def _cumulative_traffic() -> npt.NDArray[np.float64]:
    """The share of all events that came by each minute: busy afternoons, quiet weekends."""
    minute = np.arange(_MINUTES)
    hour = (minute / 60) % 24
    day = minute // 1440
    rhythm = (
        0.25 + np.exp(-(((hour - 10.5) / 2.6) ** 2)) + 1.2 * np.exp(-(((hour - 15.5) / 3) ** 2))
    )
    weekend = np.where((day % 7 == 0) | (day % 7 == 6), 0.45, 1.0)
    traffic = np.concatenate([[0.0], np.cumsum(rhythm * weekend)])
    return np.asarray(traffic / traffic[-1], dtype=np.float64)


def _columns(draw: np.random.Generator, times: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
    """Every column of one batch."""
    rows = len(times)
    model = draw.choice(len(_MODELS), rows, p=_shares([m.share for m in _MODELS])).astype(np.int32)
    # A few keys make most of the requests.
    key = np.minimum((draw.exponential(9.0, rows)).astype(np.int32), _KEYS - 1)
    status = _STATUS[draw.choice(len(_STATUS), rows, p=_shares(_STATUS_SHARE))]
    good = status == 200
    typical = np.array([m.latency_ms for m in _MODELS])[model]
    latency = typical * np.exp(draw.normal(0, 0.55, rows))
    latency = np.where(good, latency, 20 + latency * 0.05).astype(np.int32)
    first_byte = (latency * draw.uniform(0.08, 0.35, rows)).astype(np.int32)
    prompt = np.exp(draw.normal(8.1, 1.1, rows)).astype(np.int64) + 12
    cached = (prompt * np.clip(draw.normal(0.55, 0.3, rows), 0, 0.97)).astype(np.int64)
    written = np.array([m.output_tokens for m in _MODELS])[model]
    output = (written * np.exp(draw.normal(0, 0.7, rows))).astype(np.int64) * good
    cached, uncached = cached * good, (prompt - cached) * good
    price_in = np.array([m.price_in for m in _MODELS])[model]
    price_out = np.array([m.price_out for m in _MODELS])[model]
    # Prices per million tokens, so this is in millionths: exact integers of 10^-9.
    nano = ((uncached + 0.1 * cached) * price_in + output * price_out) * 1000
    return {
        "event_id": _ids(draw, times),
        "created_at": pa.array(times, pa.timestamp("us", "UTC")),
        "provider_type": _text([m.provider for m in _MODELS], model),
        "protocol_family": _text([m.protocol for m in _MODELS], model),
        "key_id": _text([f"key_{i * 7919 % 10_000:04d}" for i in range(_KEYS)], key),
        "key_name": _text([f"{_TEAMS[i % len(_TEAMS)]}-{i:02d}" for i in range(_KEYS)], key),
        "account_name": _text([f"account-{i}" for i in range(6)], key % 6),
        "endpoint": _text([m.endpoint for m in _MODELS], model),
        "model": _text([m.name for m in _MODELS], model),
        "status_code": pa.array(status),
        "latency_ms": pa.array(latency),
        "first_sse_write_ms": pa.array(first_byte, mask=~good),
        "input_uncached_tokens": pa.array(uncached),
        "input_cached_tokens": pa.array(cached),
        "output_tokens": pa.array(output),
        "billable_tokens": pa.array(uncached + output),
        "credit_usage": _decimals(nano.astype(np.int64) * 1000),
    }


_TEAMS = ("search", "agents", "support", "batch", "research", "mobile", "internal")


def _shares(weights: Sequence[float]) -> npt.NDArray[np.float64]:
    share = np.asarray(weights, dtype=np.float64)
    return np.asarray(share / share.sum(), dtype=np.float64)


def _text(values: Sequence[str], index: npt.NDArray[Any]) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(index))


def _decimals(units: npt.NDArray[np.int64]) -> pa.Array:
    """Counts of 10^-12 as DECIMAL(24,12): the 128-bit integer itself, no arithmetic."""
    halves = np.zeros((len(units), 2), dtype="<i8")
    halves[:, 0] = units
    halves[:, 1] = units >> 63  # the sign
    return pa.Array.from_buffers(
        pa.decimal128(24, 12), len(units), [None, pa.py_buffer(halves.tobytes())]
    )


def _ids(draw: np.random.Generator, times: npt.NDArray[np.int64]) -> pa.Array:
    """UUIDv7: the milliseconds of the event, then seeded chance."""
    rows = len(times)
    raw = np.frombuffer(draw.bytes(rows * 16), dtype=np.uint8).reshape(rows, 16).copy()
    raw[:, :6] = (times // 1000).astype(">u8").view(np.uint8).reshape(rows, 8)[:, 2:]
    raw[:, 6] = (raw[:, 6] & 0x0F) | 0x70
    raw[:, 8] = (raw[:, 8] & 0x3F) | 0x80
    digits = np.frombuffer(raw.tobytes().hex().encode(), dtype=np.uint8).reshape(rows, 32)
    text = np.full((rows, 36), ord("-"), dtype=np.uint8)
    for at, digit, count in ((0, 0, 8), (9, 8, 4), (14, 12, 4), (19, 16, 4), (24, 20, 12)):
        text[:, at : at + count] = digits[:, digit : digit + count]
    offsets = np.arange(rows + 1, dtype=np.int32) * 36
    return pa.Array.from_buffers(
        pa.string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(text.tobytes())]
    )
