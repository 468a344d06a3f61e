"""Payloads: the heavy columns of an event, kept beside it and read with `get(id, payload=True)`."""

from pathlib import Path

import pytest
from gateway import PAYLOADS, TIERS, event, put, usage

import lakestore as ls

each_tier = pytest.mark.parametrize("tier", TIERS)
HEAVY = (*PAYLOADS, "error_body", "response_body")


def payload_files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.parquet") if {"_payload", "payload"} & set(p.parts))


def payloads(found: dict[str, object]) -> dict[str, object]:
    """What an event has of heavy columns."""
    return {name: found[name] for name in HEAVY if found[name] is not None}


@each_tier
def test_heavy_columns_are_kept_beside_the_event(lake, root, tier):
    table = usage(lake)
    put(table, [event("light"), event("heavy", 1, **PAYLOADS)], tier)

    assert not set(HEAVY) & table.page().rows[0].keys()
    light = table.get("light", payload=True)
    assert payloads(light) == {}
    assert (light["last_message_content"], light["payload_ref"]) == ("hello", None)
    assert payloads(table.get("heavy", payload=True)) == PAYLOADS
    assert bool(payload_files(root)) == (tier != "buffer")


def test_events_of_a_flush_share_a_file_and_have_places_of_their_own(lake):
    table = usage(lake)
    other = {name: value + " " for name, value in PAYLOADS.items()}
    put(table, [event("one", **PAYLOADS), event("two", 1, **other)], "hot")

    references = [row["payload_ref"].rsplit("#", 1) for row in table.page().rows]
    (first, a), (second, b) = references
    assert first == second
    assert a != b
    assert payloads(table.get("one", payload=True)) == PAYLOADS
    assert payloads(table.get("two", payload=True)) == other


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_an_event_whose_payload_file_is_gone_comes_without(lake, root, tier):
    table = usage(lake)
    put(table, [event(**PAYLOADS)], tier)
    for path in payload_files(root):
        path.unlink()

    found = table.get("duckdb-test-event", payload=True)

    assert found["payload_missing"] is True
    assert found["request_headers_json"] == '{"host":["example.test"]}'


def test_the_reference_counts_and_no_flag_of_the_sender(lake):
    table = usage(lake)
    put(table, [event(detail_object_payload_present=False, **PAYLOADS)], "cold")
    assert payloads(table.get("duckdb-test-event", payload=True)) == PAYLOADS


@each_tier
def test_an_error_body_alone_is_a_payload(lake, tier):
    table = usage(lake)
    error = {"error_message": "broken", "error_class": "cyber_policy", "response_image_count": 2}
    put(table, [event(error_body="<html>502", session_blocked=True, **error)], tier)
    found = table.get("duckdb-test-event", payload=True)
    assert payloads(found) == {"error_body": "<html>502"}
    assert {name: table.page().rows[0][name] for name in error} == error


def test_sizes_are_those_of_the_payloads_whatever_the_sender_says(lake):
    table = usage(lake)
    put(table, [event(**PAYLOADS)], "hot")
    row = table.get("duckdb-test-event")
    assert row["payload_ref"]
    assert {name: row[f"{name}_bytes"] for name in PAYLOADS} == {
        name: len(value) for name, value in PAYLOADS.items()
    }


def test_payloads_go_with_their_events_from_tier_to_tier(lake, clock):
    table = usage(lake)
    put(table, [event(**PAYLOADS)], "cold")
    clock.move(3_600)
    table.vacuum(dry_run=False)
    assert payloads(table.get("duckdb-test-event", payload=True)) == PAYLOADS


def of_format(number: int, policy: str = "full") -> ls.TableSchema:
    return ls.TableSchema.from_toml(
        f"format = {number}\nevent_time = 't'\nevent_id = 'id'\n"
        "[columns]\nt = 'TIMESTAMPTZ'\nid = 'VARCHAR'\nbody = 'VARCHAR'\n"
        f"[payload]\nbody = '{policy}'"
    )


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_older_tables_keep_payloads_in_the_row(lake, root, tier):
    table = lake.create_table("old", of_format(1))
    put(table, [{"id": "a", "t": "2025-01-01T00:00:00Z", "body": "text"}], tier)
    assert table.get("a", payload=True)["body"] == "text"
    assert payload_files(root) == []


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_what_a_policy_drops_leaves_its_size_alone(lake, root, tier):
    table = lake.create_table("new", of_format(2, "none"))
    put(table, [{"id": "a", "t": "2025-01-01T00:00:00Z", "body": "text"}], tier)
    found = table.get("a", payload=True)
    assert (found.get("body"), found["body_bytes"]) == (None, 4)
    assert payload_files(root) == []
