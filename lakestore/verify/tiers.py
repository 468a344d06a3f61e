"""Verify how a table's published files fit together. Pure: catalog rows and footers, no I/O."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lakestore.catalog.records import COLD_KINDS, COLD_PAYLOAD_KINDS, TableRecord
from lakestore.errors import CorruptionError
from lakestore.hot import highest
from lakestore.layout import ColdName, PayloadName, SegmentName, data_name
from lakestore.snapshot import GenerationId
from lakestore.verify.report import REBUILD, Problem

Footers = Mapping[str, Mapping[str, Any]]
"""Footers of the listed files that could be read, by name."""


def covered(footers: Footers) -> list[GenerationId]:
    """The journal generations whose rows the files hold; twice there when two files say so."""
    return [
        GenerationId(writer, number)
        for footer in footers.values()
        for writer, number in footer.get("covers", ())
    ]


def check_tiers(
    record: TableRecord, catalog: Path, footers: Footers, gone: Footers, *, whole: bool
) -> list[Problem]:
    """What the catalog says of a table, where it contradicts itself, names or footers.

    Args:
        gone: footers of the site's cold files that others took the place of.
        whole: the footers are of every file that the site made of its rows, and of no other.
    """
    found = [*_names(record), *_numbers(record, gone), *_garbage(record)]
    found += _marks(record, {**gone, **footers}, whole=whole)
    if whole:
        found += partial_seals(record, footers, gone)
    return [Problem(kind, "damage", record.name, catalog, what, REBUILD) for kind, what in found]


def _names(record: TableRecord) -> Iterator[tuple[str, str]]:
    for segment in record.state.segments:
        try:
            name = SegmentName.parse(segment.name)
        except CorruptionError as error:
            yield "name", str(error)
            continue
        if (name.first, name.last) != (segment.first, segment.last):
            yield "name", f"segment {segment.name!r} is listed as {segment.first} to {segment.last}"
    for file in record.state.cold:
        try:
            cold = ColdName.parse(file.name)
        except CorruptionError as error:
            if record.cold == "delta":  # other engines name their files as they like
                continue
            yield "name", str(error)
            continue
        if (cold.day, cold.first, cold.last) != (file.day, file.first, file.last):
            yield (
                "name",
                f"cold file {file.name!r} is listed as {file.day}, {file.first} to {file.last}",
            )


def sealed_ranges(record: TableRecord, gone: Footers) -> list[tuple[int, int]]:
    """The runs of segments that a site's seals took, as cold files tell, those that went too."""
    ranges = {(file.first, file.last) for file in record.state.cold}
    ranges |= {(footer["first"], footer["last"]) for footer in gone.values() if "first" in footer}
    return sorted(some for some in ranges if some != (0, 0))  # of no seal: they replaced others


def _numbers(record: TableRecord, gone: Footers) -> Iterator[tuple[str, str]]:
    """Every segment number up to the last one given is in one tier, and in that once."""
    state = record.state
    cold = sealed_ranges(record, gone)
    if record.cold == "delta":  # it is a log that says what is sealed, and others take files away
        cold = [(1, state.sealed_through)] if state.sealed_through else []
    hot = [(segment.first, segment.last) for segment in state.hot]
    for tier, ranges in (("cold", cold), ("hot", hot)):
        if any(first > last for first, last in ranges):
            yield "numbers", f"a {tier} file ends before it begins: {ranges}"
    edges = [(0, 0), *cold, *hot]
    for (_, before), (first, last) in pairwise(edges):
        if first != before + 1:
            tier = "cold" if (first, last) in cold else "hot"
            yield (
                "numbers",
                f"the {tier} files of segments {first} to {last} come after those up to {before}",
            )
    if state.sealed_through != (cold[-1][1] if cold else 0):
        yield (
            "sealed_through",
            f"segments up to {state.sealed_through} are said to be sealed, and cold files hold "
            f"those up to {cold[-1][1] if cold else 0}",
        )
    if record.last_segment != edges[-1][1]:
        yield (
            "numbers",
            f"{record.last_segment} is said to be the last segment, and it is {edges[-1][1]}",
        )


def _garbage(record: TableRecord) -> Iterator[tuple[str, str]]:
    """Nothing that a version names may be deleted, and of the journals all that are flushed."""
    state = record.state
    live = {s.name for s in state.segments} | {f.name for f in state.cold}
    live |= {name for s in state.segments for name in s.info.payload}
    journals = {item.name for item in record.garbage if item.kind == "journal"}
    for id in sorted(state.flushed):
        if f"{id.writer}/{id.number}" not in journals:
            yield "garbage", f"journal {id.writer}/{id.number} is flushed, and is never deleted"
    referred = {name for file in state.cold for name in file.info.payload}
    for item in record.garbage:
        if item.kind in COLD_PAYLOAD_KINDS and item.name in referred:
            yield "garbage", f"{item.name!r} is to be deleted, and events refer to it"
        elif item.kind == "segment" and not _is_segment(item.name):
            yield "garbage", f"{item.name!r} is to be deleted, and is no name of a segment"
        elif item.kind in COLD_KINDS and not _is_cold(item.name):
            yield "garbage", f"{item.name!r} is to be deleted, and is no name of a cold file"
        elif item.kind in ("payload", *COLD_PAYLOAD_KINDS) and not _is_payload(item.name):
            yield "garbage", f"{item.name!r} is to be deleted, and is no name of a payload file"
        elif item.kind == "journal":
            writer, _, number = item.name.partition("/")
            if not number.isdecimal() or GenerationId(writer, int(number)) not in state.flushed:
                yield "garbage", f"journal {item.name!r} is to be deleted, and is not flushed"
        elif item.kind == "table" and not record.dropped:
            yield "garbage", "the table is to be deleted, and was not dropped"
        elif item.name in live and item.kind not in COLD_PAYLOAD_KINDS:
            yield "garbage", f"{item.name!r} is to be deleted, and is in use"


def _is_segment(name: str) -> bool:
    try:
        SegmentName.parse(name)
    except CorruptionError:
        return False
    return True


def _is_cold(name: str) -> bool:
    try:
        data_name(name)
    except CorruptionError:
        return False
    return True


def _is_payload(name: str) -> bool:
    try:
        PayloadName.parse(name)
    except CorruptionError:
        return False
    return True


def _marks(record: TableRecord, footers: Footers, *, whole: bool) -> Iterator[tuple[str, str]]:
    """What was accepted of a producer stays accepted, and nothing is that no file holds."""
    said = highest(mark for f in footers.values() for mark in f.get("producers", {}).items())
    for producer, seq in said.items():
        if record.producers.get(producer, -1) < seq:
            yield (
                "producer",
                f"{producer!r} is known up to {record.producers.get(producer)}, and a file holds "
                f"its batch {seq}",
            )

    if whole:
        for producer, seq in record.producers.items():
            if seq > said.get(producer, -1):
                yield "producer", f"batch {seq} of {producer!r} is known, and no file holds it"
        sent = {(p, seq) for f in footers.values() for p, seq in f.get("sent", ())}
        for producer, seq in sorted(record.batches - sent):
            yield "producer", f"batch {seq} of {producer!r} is said to be published, and is not"


def partial_seals(record: TableRecord, footers: Footers, gone: Footers) -> list[tuple[str, str]]:
    """The cold files of a range are one whole seal; those ranges of which they are not."""
    found = []
    attempts: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    parts = [footers[file.name] for file in record.state.cold if file.name in footers]
    for footer in [*parts, *gone.values()]:
        if footer.get("first"):
            attempts.setdefault((footer["first"], footer["last"]), []).append(footer)
    for (first, last), parts in attempts.items():
        seals = {part.get("seal") for part in parts}
        if len(seals) != 1 or not is_whole(parts):
            what = (
                f"the {len(parts)} cold files of segments {first} to {last} are not one whole seal"
            )
            found.append(("seal", what))
    return found


def is_whole(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether footers are those of all files of one seal."""
    numbers = sorted(part.get("part", -1) for part in parts)
    counts = [part["parts"] for part in parts if "parts" in part]
    return counts == [len(parts)] and numbers == list(range(len(parts)))
