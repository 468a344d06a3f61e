"""Erasure: purge chosen events from every tier, and see to it that no copy of them is left.

First the rows: what is buffered is flushed and sealed, then the cold files that hold some are
written anew, a day at a time, until no event of the table is chosen. Then the copies: `traces`
finds them, vacuum deletes what has waited out its grace, and what is still there is named. A call
that was cut short, or that came before the grace ended, is finished by the next one.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from lakestore import deadletters, quoting, traces
from lakestore.columns import queried_type
from lakestore.context import TableContext
from lakestore.errors import ConflictError, InvalidInputError
from lakestore.events.filters import Filter, Where
from lakestore.events.lookup import that_may_hold
from lakestore.failpoint import reach
from lakestore.purge import Chosen, Erased, Hit, Job, choose, hits, purge, refers
from lakestore.query.reader import EVENTS, Reader
from lakestore.query.run import Queries
from lakestore.retain import Vacuumed
from lakestore.snapshot import ColdFile
from lakestore.upkeep import Upkeep
from lakestore.writers import living

_ROUNDS_MAX = 100_000
"""A job is of one day; and whoever waits for others looks often."""
_CONFLICTS_MAX = 20
_POLL_S = 0.05
_RETIRED_NOTE = "what other sites hold unsealed, and their caches, are theirs: run it there too"


@dataclass(frozen=True)
class Purged:
    """What a purge did, and what it left."""

    rows: int
    """Events that it took out of the table; of a dry run, that it would."""
    files: int
    """Cold files that the table had."""
    files_checked: int
    """Those that could hold one, by their statistics and hashes of ids, and were read."""
    files_rewritten: int
    files_dropped: int
    """Those of which nothing was left."""
    bytes: int
    """Of the cold and payload files that went."""
    complete: bool
    """Whether no copy is left that can be deleted from here."""
    complete_at: datetime | None
    """When vacuum may delete the last of them; None when it did, or when that is not known."""
    remaining: tuple[str, ...]
    """What still holds copies, or may, and why."""
    notes: tuple[str, ...]
    """What is out of reach."""
    removed: tuple[str, ...]
    """Cold files that went, and payload files."""
    added: tuple[str, ...]
    """Those that came in their place."""
    deleted: tuple[str, ...]
    """Files that this call deleted for good."""
    version: int
    """Of the cold tier, in which no event is chosen."""
    dry_run: bool = False
    rejects: "Purged | None" = None
    """The same of the dead letters, where the schema names a table for them."""

    def with_rejects(self, rejects: "Purged") -> "Purged":
        """The report of both: complete once both are."""
        waits = [one for one in (self, rejects) if not one.complete]
        times = [one.complete_at for one in waits]
        known = [at for at in times if at is not None]
        return replace(
            self,
            complete=not waits,
            complete_at=max(known) if known and len(known) == len(times) else None,
            rejects=rejects,
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        at = self.complete_at.isoformat() if self.complete_at is not None else None
        rejects = None if self.rejects is None else self.rejects.to_dict()
        return asdict(self) | {"complete_at": at, "rejects": rejects}

    def __str__(self) -> str:
        verb = "would erase" if self.dry_run else "erased"
        lines = [
            f"{verb} {self.rows:,} events: {self.files_checked:,} of {self.files:,} cold files "
            f"read, {self.files_rewritten:,} written anew, {self.files_dropped:,} dropped"
        ]
        if self.deleted:
            lines.append(f"deleted {len(self.deleted):,} files for good")
        if not self.dry_run:
            lines.append("complete: no copy is left" if self.complete else self._wait())
        lines += [f"remaining: {what}" for what in self.remaining]
        lines += [f"note: {what}" for what in self.notes]
        if self.rejects is not None:
            lines += [f"dead letters: {line}" for line in str(self.rejects).splitlines()]
        return "\n".join(lines)

    def _wait(self) -> str:
        if self.complete_at is None:
            return "not complete: run it again once what remains is seen to"
        when = self.complete_at.strftime("%Y-%m-%d %H:%M:%S")
        return f"not complete: the last copy may be deleted from {when} UTC on; run it again then"


@dataclass(frozen=True)
class _Seen:
    """Where one snapshot has chosen events."""

    unflushed: int
    segments: int
    cold: tuple[ColdFile, ...]
    candidates: tuple[ColdFile, ...]
    version: int


def erase(
    upkeep: Upkeep, queries: Queries, table: TableContext, where: Filter, *, dry_run: bool
) -> Purged:
    """Purge the events that pass a filter.

    Raises:
        InvalidInputError: the filter passes everything.
        ConflictError: others replaced the files all the while.
        CorruptionError: a file is not what was published.
        StorageError: the disk or the store refused; what was erased before stays so.
    """
    if not where.tests:
        raise InvalidInputError("purge needs a `where`: a table is dropped by drop_table")
    return _Erasure(upkeep, queries, table.newest, where).run(dry_run=dry_run)


def among_letters(table: TableContext, where: Where) -> Filter:
    """The filter of those dead letters of a table whose rows would pass a filter of it.

    Raises: as `Filter.of`.
    """

    def value(name: str) -> str:
        column = table.schema.column(name)
        before = table.schema.document.renamed.get(name)
        called = [one for one in (name, before) if one is not None]
        pointers = [f"/{one.replace('~', '~0').replace('/', '~1')}" for one in called]
        found = [f"json_extract_string(event, {quoting.literal(at)})" for at in pointers]
        return f"TRY_CAST(coalesce({', '.join(found)}) AS {queried_type(column.sql_type)})"

    wanted = Filter.of(table.schema, where, shown=value)
    own = f"table_name = {quoting.literal(table.entry.name)}"
    tests = {"table_name": own, "event": " AND ".join(wanted.tests.values())}
    return replace(wanted, schema=deadletters.schema(), tests=tests, equal={})


@dataclass
class _Erasure:
    """One purge on its way."""

    upkeep: Upkeep
    queries: Queries
    table: TableContext
    where: Filter
    known: dict[str, Hit] = field(default_factory=dict)
    """What of cold files is chosen, by name: files do not change."""
    refers: dict[str, Sequence[str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    """Cold files that there were."""
    done: list[Erased] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    @property
    def chosen(self) -> Chosen:
        condition = self.where.condition
        return Chosen(condition, self.where.bound(condition))

    def run(self, *, dry_run: bool) -> Purged:
        """All of it."""
        if dry_run:
            return self._foretold()
        self.upkeep.take_over()
        with self.table.compacting:
            seen = self._rewrite()
            if self.done:
                self.upkeep.show_sealed(self.table)
            self.table.cold.settle()
            left = self._delete_copies()
        return self._report(seen, left)

    def _foretold(self) -> Purged:
        seen = self._look()
        found = {file.name: self.known[file.name] for file in seen.candidates}
        rows = seen.unflushed + seen.segments + sum(hit.rows for hit in found.values())
        whole = {file.name for file in seen.cold if self._is_whole(file, found.get(file.name))}
        count = sum(bool(hit.rows) for hit in found.values())
        report = self._report(seen, ())
        return replace(
            report,
            rows=rows,
            files_rewritten=count - len(whole),
            files_dropped=len(whole),
            bytes=sum(f.info.bytes for f in seen.candidates if found[f.name].rows),
            complete=False,
            dry_run=True,
        )

    @staticmethod
    def _is_whole(file: ColdFile, hit: Hit | None) -> bool:
        return hit is not None and 0 < hit.rows == file.info.rows

    def _look(self) -> _Seen:
        """Where there are chosen events now; what of candidates is chosen is known after it."""
        seen = self.queries.ask(self.table, self._seen)
        self.files |= {file.name for file in seen.cold}
        fresh = [file for file in seen.candidates if file.name not in self.known]
        self.known |= hits(self.table, fresh, self.chosen)
        return seen

    def _seen(self, reader: Reader) -> _Seen:
        pin, values = reader.pin, self.chosen.values
        test = f"FROM {EVENTS} WHERE {self.chosen.condition}"
        counted = f"SELECT count(*) {test}"
        hot = replace(pin, cold=())
        parts = (replace(hot, segments=()), replace(hot, buffered=pin.buffered.slice(0, 0)))
        counts = [reader.fetch(counted, values, {EVENTS: part})[0][0].as_py() for part in parts]
        candidates = self._that_may_hold(reader.pruned(f"SELECT 1 {test}", values))
        return _Seen(counts[0], counts[1], pin.cold, candidates, pin.version[1])

    def _that_may_hold(self, files: tuple[ColdFile, ...]) -> tuple[ColdFile, ...]:
        """Of files, those that can hold one of the ids that are asked for, if any are."""
        ids = self.where.equal_to(self.table.schema.event_id)
        return files if ids is None else that_may_hold(self.table, files, ids)

    def _rewrite(self) -> _Seen:
        """Take chosen events out of the table, until there are none."""
        conflicts = 0
        patience = time.monotonic() + 2 * self.table.site.settings.flush_age_s
        for _ in range(_ROUNDS_MAX):
            try:
                seen, job = self._next()
                if job is not None:
                    self.done.append(purge(self.table, job, self.chosen))
                elif seen.segments or (seen.unflushed and time.monotonic() < patience):
                    time.sleep(_POLL_S)  # other processes flush what they buffer within seconds
                else:
                    return seen
            except ConflictError:  # another process replaced a file: look again
                conflicts += 1
                if conflicts > _CONFLICTS_MAX:
                    raise
        return self._look()

    def _next(self) -> tuple[_Seen, Job | None]:
        """Where there are chosen events once what is buffered is sealed, and what to do first."""
        seen = self._look()
        if seen.unflushed or seen.segments:
            self.upkeep.seal(self.table)
            seen = self._look()
        for file in seen.cold if self.table.schema.has_references else ():
            if file.name not in self.refers:
                self.refers[file.name] = refers(self.table, file)
        found = {file.name: self.known[file.name] for file in seen.candidates}
        return seen, choose(seen.cold, found, self.refers)

    def _delete_copies(self) -> Sequence[str]:
        """Delete what may go, and say what is left."""
        table = self.table
        traces.condemn(table, self._traces())
        reach("purge.8")
        gone = self.upkeep.vacuum(dry_run=False, table=table)
        self.deleted += _names(gone)
        traces.sweep(table, table.state(newest=True))
        reach("purge.9")
        left = self._traces()
        return [*left.left, *self._waiting(left), *self._staged(), *self._scrubbed()]

    def _traces(self) -> traces.Traces:
        with self.table.sealing:
            search = traces.Search(self.table, self.chosen)
            return search.traces(self.table.state(newest=True))

    def _waiting(self, left: traces.Traces) -> list[str]:
        """Copies that wait for their grace, or for their owner."""
        id, garbage = self.table.entry.id, self.table.site.catalog.garbage()
        listed = {g.name for g in garbage if g.table_id == id and g.kind.startswith("purged")}
        listed |= left.cold | left.payload | left.segments | left.local_payload
        files = sorted(listed)
        found = [f"{name!r} waits for its grace" for name in files]
        return found + [f"journal {name!r} is its writer's to delete" for name in left.journals]

    def _staged(self) -> list[str]:
        """What running processes stage may be anything."""
        folder = self.table.site.layout.local / "staging"
        writers = {p.relative_to(folder).parts[0] for p in folder.rglob("*") if p.is_file()}
        return [f"writer {name} stages files: they go when it ends" for name in sorted(writers)]

    def _scrubbed(self) -> list[str]:
        what = self.table.site.catalog.database.scrub()
        return [what] if what is not None else []

    def _report(self, seen: _Seen, left: Sequence[str]) -> Purged:
        remaining = [*left]
        if seen.unflushed:
            others = len(living(self.table.site.layout) - self.table.site.writers)
            remaining.append(
                f"{seen.unflushed:,} rows in the journals of {others} other writers: run it again"
            )
        if seen.segments or any(self.known[f.name].rows for f in seen.candidates):
            remaining.append("such events keep coming: run it again")
        removed = [name for one in self.done for name in (*one.removed, *one.payload_removed)]
        added = [name for one in self.done for name in (*one.added, *one.payload_added)]
        dropped = sum(max(0, len(one.removed) - len(one.added)) for one in self.done)
        gone = sum(len(one.removed) for one in self.done)
        return Purged(
            rows=sum(one.rows for one in self.done),
            files=len(self.files - set(added)),
            files_checked=len(self.known.keys() - set(added)),
            files_rewritten=gone - dropped,
            files_dropped=dropped,
            bytes=sum(one.bytes for one in self.done),
            complete=not remaining,
            complete_at=self._due(remaining),
            remaining=tuple(remaining),
            notes=tuple(self._notes()),
            removed=tuple(removed),
            added=tuple(added),
            deleted=tuple(self.deleted),
            version=seen.version,
        )

    def _due(self, remaining: Sequence[str]) -> datetime | None:
        """When the last copy may go, where only the grace keeps it."""
        if not remaining or any("grace" not in what for what in remaining):
            return None
        id, catalog = self.table.entry.id, self.table.site.catalog
        since = [g.since for g in catalog.garbage() if g.table_id == id and g.kind != "cold"]
        grace = self.table.site.settings.vacuum_grace_s
        return datetime.fromtimestamp(max(since, default=0.0) + grace, UTC)

    def _notes(self) -> list[str]:
        site = self.table.site
        notes = []
        if len(self.table.cold.marks()) > 1:
            notes.append(_RETIRED_NOTE)
        if site.layout.quarantine.is_dir() and any(site.layout.quarantine.iterdir()):
            notes.append(f"{str(site.layout.quarantine)!r} is not looked into: delete it yourself")
        return notes


def _names(gone: Vacuumed) -> list[str]:
    return [
        *gone.journals,
        *gone.segments,
        *gone.payload,
        *gone.cold,
        *gone.cold_payload,
        *gone.log,
    ]
