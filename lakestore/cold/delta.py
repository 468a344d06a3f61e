"""A cold tier that is a Delta table: its log lists the files, and any Delta reader opens it.

One version of the log adds a seal's files and says, as a `txn` of this site, up to which segment
they go: so the version that makes rows cold is the one that says that they are not hot any more.
Other sites and other engines commit to the same log; what they add and remove is respected.
Failpoints: swap.1 the record of a replacement noted in the catalog    .2 its version made
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from uuid import uuid4

from lakestore.catalog import Catalog
from lakestore.catalog.records import check_new
from lakestore.clock import Clock, micros
from lakestore.cold import Examine, Load
from lakestore.cold.entries import add_of
from lakestore.cold.keeper import Fate, RecordKeeper
from lakestore.cold.logwriter import CHECKPOINT_EVERY, DeltaTable, LogWriter
from lakestore.cold.past import moments, pruned
from lakestore.delta import past, types
from lakestore.delta.actions import (
    Metadata,
    Protocol,
    Remove,
    Transaction,
    encode,
    metadata_line,
    protocol_line,
)
from lakestore.delta.log import (
    APP,
    LAKE_PROPERTY,
    LOAD,
    MARK,
    VERSIONS_PROPERTY,
    DeltaLog,
    LogState,
)
from lakestore.errors import (
    ConflictError,
    CorruptionError,
    StorageError,
)
from lakestore.failpoint import reach
from lakestore.marks import RETIRED, check_retirable, next_mark
from lakestore.past import AsOf, Past
from lakestore.replacement import Pruning, Record, Replacement, nothing_pruned
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, Segment, TableState


class DeltaCold:
    """`ColdTable` over a Delta log; the catalog only follows it."""

    def __init__(
        self,
        log: DeltaLog,
        table: DeltaTable,
        catalog: Catalog,
        records: RecordKeeper,
        clock: Clock,
        timeout_s: float,
    ) -> None:
        """The cold tier of a table.

        Args:
            timeout_s: how long a commit is tried while others commit, or the store fails.
        """
        self._log = log
        self._table = table
        self._catalog = catalog
        self._records = records
        self._clock = clock
        self._apps = f"{APP}{catalog.lake}/"
        self._app = f"{self._apps}{catalog.site}"
        self._marks = f"{MARK}{catalog.lake}/"
        self._mark = f"{self._marks}{catalog.site}"
        self._loads = f"{LOAD}{catalog.lake}/"
        self.partition = types.partition_column(table.schema)
        self._writer = LogWriter(log, table, catalog.lake, catalog.site, clock, timeout_s)
        self._listed: tuple[int, tuple[ColdFile, ...]] = (-1, ())

    def create(self) -> None:
        """Make version 0 of the log."""
        schema, now = self._table.schema, self._writer.now_ms()
        metadata = Metadata(
            str(uuid4()),
            types.schema_string(schema),
            (self.partition,),
            {
                LAKE_PROPERTY: self._catalog.lake,
                "delta.checkpointInterval": str(CHECKPOINT_EVERY),
            },
            now,
        )
        features = (types.NO_ZONE,) if types.has_times_of_no_zone(schema) else ()
        protocol = Protocol(3, 7, features, features) if features else Protocol(1, 2)
        joined = Transaction(self._mark, micros(self._clock.now()))
        lines = [protocol_line(protocol), metadata_line(metadata), joined.line(now)]
        write = uuid4().hex
        told = self._writer.told("create", {"mode": "ErrorIfExists"})
        if not self._log.commit(
            0, encode(lines, told, self._writer.summary("create", write)), write
        ):
            raise ConflictError(f"{self._table.url!r} has a Delta log already")

    def current(self, listed: TableState, *, newest: bool) -> TableState:
        """What the catalog lists of the hot tier, and a version of the log."""
        state = self._version_for(listed, newest=newest)
        if state is None:
            return listed
        through = self._through(state)
        if through < listed.sealed_through or state.version < 0:
            raise CorruptionError(
                f"segments up to {listed.sealed_through} were sealed, and the log of "
                f"{self._table.url!r} knows of those up to {through}: restore its _delta_log"
            )
        return replace(
            listed,
            sealed_through=through,
            cold=self._cold(state),
            cold_version=state.version,
            schema_version=max(listed.schema_version, *state.schema_versions),
        )

    def _version_for(self, listed: TableState, *, newest: bool) -> LogState | None:
        """A version that knows of all the segments that are sealed.

        None, unless it has to be the newest, while the store that has it does not answer: what
        waits to be sealed can do without.
        """
        known = self._log.known
        enough = known.version >= 0 and self._through(known) >= listed.sealed_through
        if newest or not self._log.remote:
            return self._log.refresh()
        if enough:
            return known
        try:
            return self._log.refresh() if self._log.answers else None
        except StorageError:
            return None

    def claim(self, segments: Sequence[Segment], through: int) -> None:
        """Keep the segments from being merged, until the log says that they are sealed."""
        if self._catalog.states([self._table.id])[self._table.id].sealing_through < through:
            with self._catalog.commit() as commit:
                commit.claim(self._table.id, segments, through)

    def join(self) -> None:
        """One version of the log that says that this site has sealed all it accepted: nothing.

        Where sites share a catalog it is listed there too: when another one drops the table, this
        one's journals are garbage.
        """
        if self._catalog.site not in self._catalog.marks(self._table.id):
            with self._catalog.commit() as commit:
                commit.join(self._table.id)
        said = self._log.refresh().transactions.get(self._mark)
        if said is None:
            self.promise(micros(self._clock.now()))
        elif said == RETIRED:
            self._say(lambda state: self._promised(state, None), "promise")

    def marks(self) -> Mapping[str, int]:
        """What each site has said; 0 for one that seals and never did."""
        return self._marks_in(self._log.refresh())

    def _marks_in(self, state: LogState) -> dict[str, int]:
        seals = dict.fromkeys(_named(state, self._apps), 0)
        return seals | _named(state, self._marks)

    def sealed(self) -> Mapping[str, int]:
        """Up to which segment each site has sealed."""
        return _named(self._log.refresh(), self._apps)

    def retire(self, site: str, said: int) -> None:
        """One version of the log, with no file: a `txn` cannot be removed, and this one ends it."""

        def lines(state: LogState) -> list[str]:
            check_retirable(self._marks_in(state), site, said)
            return [Transaction(f"{self._marks}{site}", RETIRED).line(self._writer.now_ms())]

        self._say(lines, "retire")

    def promise(self, complete_before: int) -> None:
        """One version of the log, with no file."""
        self._say(lambda state: self._promised(state, complete_before), "promise")

    def _say(self, lines_of: Callable[[LogState], list[str]], operation: str) -> None:
        before = self._writer.make_next(lines_of, operation)
        if before is not None:
            self._writer.checkpoint(before)

    def _promised(self, state: LogState, complete_before: int | None) -> list[str]:
        """What says so in a version, unless more was said before."""
        mark = next_mark(self._marks_in(state), self._catalog.site, complete_before)
        return [] if mark is None else [Transaction(self._mark, mark).line(self._writer.now_ms())]

    def publish(
        self,
        sealed: Sequence[Segment],
        files: Sequence[ColdFile],
        through: int,
        complete_before: int | None,
        examine: Examine,
        load: Load | None = None,
    ) -> None:
        """Commit files in the place of segments: one version of the log."""

        def lines(state: LogState) -> list[str]:
            if self._through(state) != sealed[0].first - 1:
                self.settle()
                raise ConflictError("another process sealed meanwhile; its result stands")
            examine(self._cold(state))
            now = self._writer.now_ms()
            claimed = Transaction(self._app, through).line(now)
            promised = self._promised(state, complete_before)
            sent = self._sent(state, load, now) if load is not None else []
            return [
                claimed,
                *promised,
                *sent,
                *(add_of(file, self._table.schema, now).line() for file in files),
            ]

        before = self._writer.make_next(lines, "seal" if load is None else "load")
        assert before is not None  # there is a line
        self.settle()
        self._writer.checkpoint(before)

    def replace(self, replacement: Replacement, examine: Examine | None = None) -> None:
        """One version of the log; the record is noted before it, and put into the root after it."""
        self.settle()
        removed = [file.name for file in replacement.removed]
        with self._catalog.commit() as commit:
            if replacement.operation == "undo":
                commit.renew_garbage(self._table.id, [file.name for file in replacement.added])
            id = commit.keep(self._table.id, Record.of(replacement, self._log.known.version + 1))
        reach("swap.1")
        keeps = replacement.operation == "compact"

        def lines(state: LogState) -> list[str]:
            if not state.adds.keys() >= set(removed):
                raise ConflictError("a cold file was replaced meanwhile; that result stands")
            if state.adds.keys() & {file.name for file in replacement.added}:
                raise ConflictError("an expired cold file came back meanwhile")
            if examine is not None:
                examine(self._cold(state))
            now = self._writer.now_ms()
            gone = (Remove(name, now).line(is_lost=not keeps) for name in removed)
            come = (
                add_of(file, self._table.schema, now, is_new=not keeps)
                for file in replacement.added
            )
            return [*gone, *(add.line() for add in come)]

        try:
            before = self._writer.make_next(lines, replacement.operation)
        except ConflictError:
            with self._catalog.commit() as commit:
                commit.settle_record(self._table.id, id)
            raise
        assert before is not None  # there is a line
        reach("swap.2")
        if replacement.operation == "undo":
            with self._catalog.commit() as commit:
                commit.keep_files(self._table.id, replacement.added)
        with suppress(StorageError):  # it is committed, and vacuum waits for the record
            self.settle()
        self._writer.checkpoint(before)

    def _fate(self, record: Record) -> Fate:
        """What became of a replacement, as the newest version tells."""
        state = self._log.known
        if record.operation == "undo":  # what it adds was there before
            if state.adds.keys() >= set(record.added):
                return "committed"
            return "open" if state.version < record.version else "never"
        if state.adds.keys() & record.removed.keys():
            return "open"
        known = state.adds.keys() | state.removed.keys()
        return "committed" if known >= set(record.added) else "never"

    def _sent(self, state: LogState, load: Load, now: int) -> list[str]:
        """What says how many rows of each source are loaded."""
        check_new(load.sent, self._accepted(state))
        mine = f"{self._loads}{self._catalog.site}/"
        return [Transaction(f"{mine}{name}", rows).line(now) for name, rows in load.sent.items()]

    def accepted(self, producers: Collection[str]) -> Mapping[str, int]:
        """What the log says."""
        known = self._accepted(self._log.refresh())
        return {name: known[name] for name in producers if name in known}

    def _accepted(self, state: LogState) -> dict[str, int]:
        known: dict[str, int] = {}
        for name, rows in _named(state, self._loads).items():
            _, _, producer = name.partition("/")
            known[producer] = max(rows, known.get(producer, 0))
        return known

    def versions(self) -> Sequence[int]:
        """Those that the metadata tells."""
        return self._log.refresh().schema_versions

    def evolve(self, schema: TableSchema, versions: Sequence[int]) -> None:
        """One version of the log, with no file and new metadata."""

        def lines(state: LogState) -> list[str]:
            if state.schema_versions == tuple(versions):  # another process made it, the same
                return []
            if state.schema_versions != tuple(versions[:-1]):
                raise ConflictError("another site changed the table's schema meanwhile")
            assert state.metadata is not None
            told = {VERSIONS_PROPERTY: ",".join(map(str, versions))}
            metadata = replace(
                state.metadata,
                schema=types.extended(schema, state.metadata.schema),
                configuration={**state.metadata.configuration, **told},
            )
            return [*_raised(state.protocol, schema), metadata_line(metadata)]

        self._say(lines, "evolve")

    def past(self, limit: int | None) -> Past:
        """What the log tells, versions of other sites and engines too."""
        return past.past_of(self._log, limit)

    def as_of(self, wanted: int | datetime) -> AsOf | None:
        """What the log listed, whoever made the version."""
        return past.as_of(self._log, wanted)

    def condense(self) -> Sequence[str]:
        """A checkpoint of the newest version stands for those before it."""
        self._log.refresh()
        return self._log.condense(self._writer.now_ms())

    def replaced(self) -> Collection[str]:
        """What the newest version that was read says of them."""
        return self._log.known.removed.keys()

    def settle(self) -> None:
        """Take segments off the catalog's list that the log says are sealed; records too."""
        state = self._log.refresh()
        self._settle_segments(state)
        if self._catalog.records(self._table.id):
            self._log.make_durable(state.version)
            self._records.settle(self._fate, lambda: self._cold(self._log.known), self.condense)

    def moments(self) -> Sequence[float]:
        """Of files that came and went, and of what else the site did."""
        return [*self._catalog.moments(), *moments(self._log.refresh())]

    def pruned(self, version: int | None) -> Pruning:
        """As the log tells, which is read backwards."""
        garbage = self._catalog.garbage()
        if not any(g.kind == "cold" and g.table_id == self._table.id for g in garbage):
            raise nothing_pruned(version)
        return pruned(self._log, version)

    def _settle_segments(self, state: LogState) -> None:
        through = self._through(state)
        listed = self._catalog.states([self._table.id])[self._table.id]
        if through > listed.sealed_through:
            # The segments may be deleted from the next commit on: the version has to last.
            self._log.make_durable(state.version)
            loaded = _named(state, f"{self._loads}{self._catalog.site}/")
            known = self._catalog.producers(self._table.id) if loaded else {}
            with self._catalog.commit() as commit:
                commit.settle(self._table.id, through)
                newer = {p: rows for p, rows in loaded.items() if known.get(p, 0) < rows}
                commit.follow(self._table.id, newer)

    def _cold(self, state: LogState) -> tuple[ColdFile, ...]:
        """The files by name; the very same tuple as long as the version is the same."""
        version, listed = self._listed
        if version != state.version:
            listed = tuple(state.files[path] for path in sorted(state.files))
            self._listed = (state.version, listed)
        return listed

    def _through(self, state: LogState) -> int:
        return state.transactions.get(self._app, 0)


def _raised(protocol: Protocol | None, schema: TableSchema) -> list[str]:
    """The protocol that columns of a schema need, where the table has not got it yet."""
    assert protocol is not None
    if not types.has_times_of_no_zone(schema) or types.NO_ZONE in protocol.writer_features:
        return []
    readers = tuple(sorted({*protocol.reader_features, types.NO_ZONE}))
    writers = tuple(sorted({*protocol.writer_features, types.NO_ZONE}))
    return [protocol_line(Protocol(3, 7, readers, writers))]


def _named(state: LogState, prefix: str) -> dict[str, int]:
    """What the applications say whose names begin so, by the rest of their names."""
    said = state.transactions.items()
    return {app.removeprefix(prefix): n for app, n in said if app.startswith(prefix)}
