"""The events of the parity tests: one usage event, and the states that a table has them in."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import lakestore as ls

BASE_MS = 1_700_000_000_000
TOKENS = ("input_uncached_tokens", "input_cached_tokens", "output_tokens", "billable_tokens")
TIERS = ("buffer", "hot", "cold", "mixed")
"""Where events are: unflushed, flushed, sealed, or some of them in each."""


def at(offset_ms: int = 0) -> datetime:
    """A time so many milliseconds after that of the base event."""
    return datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC) + timedelta(milliseconds=offset_ms)


def event(id: str = "duckdb-test-event", offset_ms: int = 0, **changes: Any) -> dict[str, Any]:
    """The base event under an id, so many milliseconds later, with other values."""
    return {
        "event_id": id,
        "created_at_ms": BASE_MS + offset_ms,
        "provider_type": "kiro",
        "protocol_family": "anthropic",
        "key_id": "key-duckdb",
        "key_name": "DuckDB Key",
        "account_name": "kiro-account",
        "account_group_id_at_event": "group-duckdb",
        "route_strategy_at_event": "auto",
        "request_method": "POST",
        "request_url": "https://example.test/api/kiro-gateway/cc/v1/messages",
        "endpoint": "/cc/v1/messages",
        "model": "claude-sonnet-4-5",
        "mapped_model": "claude-sonnet-4-5",
        "status_code": 200,
        "request_body_bytes": 1234,
        "quota_failover_count": 2,
        "same_account_retry_count": 2,
        "same_account_retry_delay_ms": 12_345,
        "same_account_retry_reasons_json": '["transport","server_error"]',
        "routing_diagnostics_json": '{"route":"auto"}',
        "input_uncached_tokens": 10,
        "input_cached_tokens": 20,
        "output_tokens": 30,
        "billable_tokens": 40,
        "credit_usage": Decimal("0.5"),
        "usage_missing": False,
        "credit_usage_missing": False,
        "client_ip": "127.0.0.1",
        "ip_region": "local",
        "request_headers_json": '{"host":["example.test"]}',
        "last_message_content": "hello",
        "latency_ms": 55,
        "routing_wait_ms": 5,
        "upstream_headers_ms": 11,
        "post_headers_body_ms": 22,
        "request_body_read_ms": 3,
        "request_json_parse_ms": 4,
        "pre_handler_ms": 7,
        "first_sse_write_ms": 33,
        "stream_finish_ms": 44,
        "stream_completed_cleanly": True,
        "downstream_disconnect": False,
        "final_event_type": "message_stop",
        "bytes_streamed": 2048,
    } | changes


PAYLOADS = {
    "client_request_body_json": '{"model":"claude-sonnet-4-5"}',
    "upstream_request_body_json": '{"conversationState":{}}',
    "full_request_json": '{"model":"claude-sonnet-4-5"}',
}
"""The heavy columns of the base event."""


def usage(lake: ls.Lake) -> ls.Table:
    """The table of the shipped schema; made when there is none."""
    return lake.create_table("usage", "llm_usage", exist_ok=True)


def put(table: ls.Table, events: Sequence[dict[str, Any]], tier: str) -> None:
    """Append events, and bring them to a tier; `mixed` is a third in each, in their order."""
    third = -(-len(events) // 3)
    moves = {"buffer": (), "hot": (table.flush,), "cold": (table.seal,)}
    parts = {
        "cold": events[:third],
        "hot": events[third : 2 * third],
        "buffer": events[2 * third :],
    }
    for name, some in parts.items() if tier == "mixed" else [(tier, events)]:
        assert table.append(some).rows == len(some)
        for move in moves[name]:
            assert move() == len(some)


def ids(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The ids of events, in their order."""
    return [row["event_id"] for row in rows]


def tokens(measures: Any) -> list[int]:
    """The four sums of tokens, in the order of the schema."""
    return [measures[name] for name in TOKENS]
