"""Keep records of replacements: in the catalog from their commit on, then in the root.

Only from then on are the files that went garbage. Failpoints: record.1 put into the root
.2 struck off the catalog
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from lakestore.catalog import Catalog
from lakestore.errors import StorageError
from lakestore.failpoint import reach
from lakestore.layout import is_cold_name, is_record_name, record_key
from lakestore.replacement import Record
from lakestore.snapshot import ColdFile
from lakestore.storage import Storage

Fate = Literal["committed", "open", "never"]
"""What became of a replacement: `open` while its commit may still come."""


class RecordKeeper:
    """The records of one table's replacements."""

    def __init__(
        self,
        catalog: Catalog,
        table_id: int,
        folder: str,
        storage: Storage,
        put_new: Callable[[str, bytes], bool],
    ) -> None:
        """The records of the table in `folder`.

        Args:
            storage: where the lake's root is.
            put_new: makes an object of it, all at once, unless there is one.
        """
        self._catalog = catalog
        self._table_id = table_id
        self._folder = folder
        self._storage = storage
        self._put_new = put_new

    def settle(
        self,
        fate: Callable[[Record], Fate],
        live: Callable[[], Sequence[ColdFile]],
        condense: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Put what the catalog has of them into the root, and list what went as garbage.

        Of one that never was committed, it is the files that were to come.

        Args:
            fate: of each, in the order of their commits.
            live: the files that are part of the table.
            condense: after a purge: what of a log tells of the past, and can go.

        Raises:
            StorageError: something is left to be done.
        """
        for id, text in self._catalog.records(self._table_id).items():
            record = Record.from_json(text, f"record {id} of the catalog")
            known = fate(record)
            if known == "open":
                continue
            if known == "committed":
                self._keep(record_key(self._folder, id), text.encode())
            reach("record.1")
            files = {file.name: file for file in live()}
            is_done = known == "committed"
            doomed = record.removed if is_done else record.added
            went = [name for name in doomed if name not in files]
            came = [files[name] for name in record.added if name in files]
            payload = self._unreferred(record, files) if is_done else set[str]()
            is_purge = record.operation == "purge"
            purged = record.payload if is_purge and is_done else ()
            past = condense() if is_purge and is_done else ()
            with self._catalog.commit() as commit:
                commit.settle_record(
                    self._table_id, id, went, came, payload, purged if is_purge else None
                )
                commit.condemn(self._table_id, "purged_log", past)
            reach("record.2")

    def _unreferred(self, record: Record, live: Mapping[str, ColdFile]) -> set[str]:
        """Payload files that rows of removed files refer to, and no other rows.

        None while another engine's file is part of the table: its rows may refer to them, and it
        does not say.
        """
        if not all(map(is_cold_name, live)):
            return set()
        segments = self._catalog.states([self._table_id])[self._table_id].segments
        removed = (footer for name, footer in record.removed.items() if name not in live)
        named = {str(name) for footer in removed for name in footer.get("payload", ())}
        named -= {p for file in live.values() for p in file.info.payload}
        return named - {p for segment in segments for p in segment.info.payload}

    def _keep(self, key: str, data: bytes) -> None:
        """Have a record in the root, through a power loss too; raises `StorageError`."""
        if self._put_new(key, data):
            return
        # An attempt that was cut short has put it there; or the store answers what is not so.
        if self._storage.size(key) != len(data):
            raise StorageError(f"{key!r} was not put; what it tells of is kept until it is")
        self._storage.make_durable(key)


def records_of(storage: Storage, folder: str, keys: Iterable[str]) -> list[Record]:
    """The records in the root of a table's replacements.

    Args:
        keys: of the table's objects, or of more.

    Raises:
        CorruptionError: one is damaged.
        StorageError: one cannot be read for now.
    """
    prefix = record_key(folder)
    names = sorted(key.removeprefix(prefix) for key in keys if key.startswith(prefix))
    return [
        Record.from_json(storage.read(prefix + name), storage.url(prefix + name))
        for name in names
        if is_record_name(name)
    ]
