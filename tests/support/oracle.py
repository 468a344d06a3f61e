"""The oracle: what was submitted and acknowledged, kept outside the lake, and a judge of both.

The process that writes keeps a `Ledger`: a file of its own in a folder that no lake knows, one line
a fact, on the disk before the call returns. A line is written before an append begins and after
it was acknowledged, so a crash leaves at most one batch per writer of which nothing is known. The
process that checks reads every ledger of the folder with an `Oracle` and compares a table's rows
with it:

    ledger = Ledger(folder, table.schema.arrow)           # where the lake is written
    batch = ledger.submit(rows, level="disk", producer="p", seq=1)
    table.append(rows, level="disk", producer="p", seq=1)
    ledger.ack(batch)                                     # `append_recorded` does all three

    oracle = Oracle(folder)                               # after the fault, in a fresh process
    findings = oracle.check(lake["t"].to_arrow(), level="disk")
    assert findings.ok, findings

A row is known by its id (column `id`, or `key=`), which its submitter must not use for two
different rows. A batch sent again, or one that repeats rows of other batches, is fine. After a
fault, the level to ask for is the weakest that survives it: `disk` after a power loss, `os` after
a kill, `memory` when nothing died.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

LEVELS = ("memory", "os", "disk")


def digests(rows: pa.Table, schema: pa.Schema) -> list[int]:
    """One number for the values of each row; columns that are missing are null, as in the table."""
    columns = [
        rows.column(f.name).cast(f.type)
        if f.name in rows.column_names
        else pa.nulls(rows.num_rows, f.type)
        for f in schema
    ]
    frame = pl.from_arrow(pa.table(columns, names=schema.names))
    assert isinstance(frame, pl.DataFrame)
    return frame.hash_rows(seed=1).to_list()


class Ledger:
    """What one process submits and gets acknowledged; a new file for each `Ledger`."""

    def __init__(
        self, folder: Path, schema: pa.Schema, *, key: str = "id", sync: bool = True
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._schema = schema
        self._key = key
        self._sync = sync
        self._count = 0
        self.path = folder / f"{time.monotonic_ns():020d}-{os.getpid()}.ledger"
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._write({"schema": schema.serialize().to_pybytes().hex(), "key": key})

    def submit(
        self, rows: pa.Table, *, level: str, producer: str | None = None, seq: int | None = None
    ) -> int:
        """Before an append: its rows. Returns the batch's number, which `ack` and `refuse` take."""
        assert level in LEVELS
        batch, self._count = self._count, self._count + 1
        self._write(
            {
                "submit": batch,
                "level": level,
                "producer": producer,
                "seq": seq,
                "keys": [str(key) for key in rows.column(self._key).to_pylist()],
                "digests": digests(rows, self._schema),
            }
        )
        return batch

    def ack(self, batch: int, *, level: str | None = None) -> None:
        """After the append returned; again with a higher `level` after `wait` or `flush`."""
        self._write({"ack": batch, "level": level})

    def refuse(self, batch: int) -> None:
        """The append raised and promises that nothing of the batch was accepted, now or later."""
        self._write({"refuse": batch})

    def leaving(self, keys: Iterable[str]) -> None:
        """Before rows are deleted, or brought back: from now on they may be there, or not."""
        self._write({"leaving": list(keys)})

    def left(self, keys: Iterable[str]) -> None:
        """After `leaving`, once they were deleted: none is there."""
        self._write({"left": list(keys)})

    def returned(self, keys: Iterable[str]) -> None:
        """After `leaving`, once they were brought back: as if they had never left."""
        self._write({"returned": list(keys)})

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, fact: dict[str, Any]) -> None:
        line = json.dumps(fact | {"at": time.monotonic_ns()}).encode() + b"\n"
        # Not `write`: faults are put into that. The file is open for appending, whatever the 0.
        assert os.pwritev(self._descriptor, [line], 0) == len(line)
        if self._sync:
            os.fdatasync(self._descriptor)


def append_recorded(
    table: Any,
    ledger: Ledger,
    rows: pa.Table,
    *,
    level: str = "disk",
    producer: str | None = None,
    seq: int | None = None,
) -> Any:
    """`table.append`, with the ledger written before and after; returns the `Ack`."""
    batch = ledger.submit(rows, level=level, producer=producer, seq=seq)
    ack = table.append(rows, level=level, producer=producer, seq=seq)
    ledger.ack(batch)
    return ack


@dataclass
class _Batch:
    name: str
    keys: list[str]
    level: int
    producer: str | None
    seq: int | None
    acked: int = -1  # the level that was acknowledged


@dataclass(frozen=True)
class Findings:
    """What a table's rows break; each list holds ids, `torn` and `disordered` batches."""

    lost: list[str]  # acknowledged at the level asked for, and not there
    doubled: list[str]  # there more than once
    phantom: list[str]  # there, and never submitted, or refused, or deleted
    wrong: list[str]  # there with other values than any that were submitted
    torn: list[str]  # batches of which some rows are there and others are not
    disordered: list[str]  # acknowledged and gone, while a later batch of its producer is there
    visible: int = 0
    acknowledged: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not any(self.broken.values())

    @property
    def broken(self) -> dict[str, int]:
        """How many of each kind."""
        kinds = ("lost", "doubled", "phantom", "wrong", "torn", "disordered")
        return {kind: len(getattr(self, kind)) for kind in kinds}

    def __str__(self) -> str:
        shown = [f"{count} {kind}" for kind, count in self.broken.items() if count]
        some = {k: getattr(self, k)[:3] for k, count in self.broken.items() if count}
        counts = f"{self.visible} rows visible, {self.acknowledged} acknowledged"
        return f"{', '.join(shown) or 'nothing broken'} ({counts}) {some or ''}".strip()


@dataclass
class Oracle:
    """Judges a table's rows by the ledgers in `folder`; reads what was added at each `check`."""

    folder: Path
    _offsets: dict[str, int] = field(default_factory=dict)
    _batches: dict[str, _Batch] = field(default_factory=dict)
    _owners: dict[str, tuple[str, ...]] = field(default_factory=dict)  # key → its batches
    _digests: dict[str, set[int]] = field(default_factory=dict)
    _excused: set[str] = field(default_factory=set)  # need not be there
    _left: set[str] = field(default_factory=set)  # of these: must not be there
    _schema: pa.Schema | None = None
    _key: str = "id"

    def check(self, rows: pa.Table | None, level: str) -> Findings:
        """Compare.

        Args:
            rows: every visible row of the table; None when the table does not exist.
            level: rows acknowledged at this level or above must be there.
        """
        self._read()
        if self._schema is None:
            return Findings([], [], [], [], [], [])
        if rows is None:
            rows = self._schema.empty_table()
        keys = [str(key) for key in rows.column(self._key).to_pylist()]
        there = set(keys)
        required = self._required(level)
        found = zip(keys, digests(rows, self._schema), strict=True)
        return Findings(
            lost=sorted(required - there),
            doubled=_more_than_once(keys),
            phantom=sorted((there - self._owners.keys()) | (there & self._left)),
            wrong=sorted(k for k, d in found if d not in self._digests.get(k, {d})),
            torn=self._torn(there),
            disordered=self._disordered(there),
            visible=len(keys),
            acknowledged=len(required),
        )

    def required(self, level: str) -> set[str]:
        """Ids that were acknowledged by now at this level or above: whoever looks must see them."""
        self._read()
        return self._required(level)

    def _required(self, level: str) -> set[str]:
        survives = LEVELS.index(level)
        acked = [batch for batch in self._batches.values() if batch.acked >= survives]
        return {key for batch in acked for key in batch.keys} - self._excused

    def _torn(self, there: set[str]) -> list[str]:
        """Batches that cannot be there whole or not at all, as those that share rows with them.

        A row that is absent was in no batch that was accepted; a row that is there was in one.
        """
        absent = self._owners.keys() - there - self._excused
        left_out = {owner for key in absent for owner in self._owners[key]}
        torn = {self._owners[key] for key in self._owners.keys() & there}
        return sorted(" and ".join(owners) for owners in torn if left_out.issuperset(owners))

    def _disordered(self, there: set[str]) -> list[str]:
        """Acknowledged batches that are gone while a later one of the same producer is there."""
        newest: dict[str, int] = {}
        gone: list[_Batch] = []
        for batch in self._batches.values():
            keys = set(batch.keys) - self._excused
            if batch.producer is None or batch.seq is None or not keys:
                continue
            if there.issuperset(keys):
                newest[batch.producer] = max(batch.seq, newest.get(batch.producer, -1))
            elif batch.acked >= 0:
                gone.append(batch)
        return [b.name for b in gone if (b.seq or 0) < newest.get(b.producer or "", -1)]

    def _read(self) -> None:
        for at, name, fact in sorted(self._new_facts(), key=lambda fact: fact[0]):
            del at
            if "schema" in fact:
                self._schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(fact["schema"])))
                self._key = fact["key"]
            elif "submit" in fact:
                self._submitted(f"{name}#{fact['submit']}", fact)
            elif "ack" in fact:
                batch = self._batches[f"{name}#{fact['ack']}"]
                level = LEVELS.index(fact["level"]) if fact["level"] else batch.level
                batch.acked = max(batch.acked, level)
            elif "refuse" in fact:
                self._refused(f"{name}#{fact['refuse']}")
            elif "leaving" in fact:
                self._excused.update(fact["leaving"])
                self._left.difference_update(fact["leaving"])
            elif "left" in fact:
                self._left.update(fact["left"])
            else:
                self._excused.difference_update(fact["returned"])

    def _new_facts(self) -> Iterable[tuple[int, str, dict[str, Any]]]:
        for path in self.folder.glob("*.ledger"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path.name, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]  # a kill may leave half a line
            self._offsets[path.name] = self._offsets.get(path.name, 0) + len(whole)
            for line in whole.splitlines():
                fact = json.loads(line)
                yield fact["at"], path.stem, fact

    def _submitted(self, name: str, fact: dict[str, Any]) -> None:
        producer, seq = fact["producer"], fact["seq"]
        known = producer is not None and any(
            b.producer == producer and b.acked >= 0 and (b.seq or 0) >= seq
            for b in self._batches.values()
        )  # then nothing of it is accepted again, whatever its rows
        keys: Sequence[str] = () if known else fact["keys"]
        batch = _Batch(name, list(keys), LEVELS.index(fact["level"]), producer, seq)
        self._batches[name] = batch
        for key, digest in zip(keys, fact["digests"], strict=False):
            if name not in self._owners.get(key, ()):
                self._owners[key] = (*self._owners.get(key, ()), name)
            self._digests.setdefault(key, set()).add(digest)

    def _refused(self, name: str) -> None:
        for key in self._batches.pop(name).keys:
            owners = tuple(owner for owner in self._owners[key] if owner != name)
            if owners:
                self._owners[key] = owners
            else:
                del self._owners[key]


def _more_than_once(keys: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    twice: set[str] = set()
    for key in keys:
        (twice if key in seen else seen).add(key)
    return sorted(twice)
