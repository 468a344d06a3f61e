"""Open a lake: what its arguments may be."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from lakestore.catalog import postgres
from lakestore.clock import Clock, SystemClock
from lakestore.engine import troubles
from lakestore.errors import InvalidInputError
from lakestore.lake import Lake
from lakestore.layout import SiteLayout
from lakestore.quoting import UNSPEAKABLE
from lakestore.settings import Settings
from lakestore.siting import may_share
from lakestore.storage import Storage
from lakestore.storage.local import LocalStorage
from lakestore.storage.probe import probe_once
from lakestore.storage.s3 import S3Storage


@troubles("cannot open the lake")
def open(
    root: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, str] | None = None,
    local: str | os.PathLike[str] | None = None,
    catalog: str | None = None,
    mode: Literal["rw", "r"] = "rw",
    upkeep: Literal["auto", "manual"] = "auto",
    settings: Settings | dict[str, object] | None = None,
    clock: Clock | None = None,
) -> Lake:
    """Open the lake at `root`; in mode `rw` a new one is made when there is none.

    Args:
        root: a folder, or `s3://bucket/prefix`.
        storage_options: for S3, as deltalake names them: `AWS_ACCESS_KEY_ID`, `AWS_REGION`,
            `AWS_ENDPOINT_URL`, … What is left out is taken from the environment's variables of
            these names. `timeout` is how many seconds a request may take.
        local: where this host keeps journals, hot segments and the catalog; default
            `<root>/_site`, and for S3 a folder in `$XDG_STATE_HOME` (`~/.local/state`).
        catalog: `postgresql://user@host/database` for a catalog that several hosts share; default
            `$LAKESTORE_CATALOG`, and without it SQLite in `local`.
        mode: `rw` to write too, `r` to read only.
        upkeep: `auto` flushes, seals and vacuums in threads of its own; `manual` leaves it to
            the caller's `flush()`, `seal()` and `maintain()`.
        settings: numbers that differ from the defaults.
        clock: the time, for tests.

    Raises:
        InvalidInputError: `root` is a file, or an argument is none of those above.
        NotFoundError: mode `r`, and there is no lake; or there is no bucket.
        FormatTooNewError: a newer lakestore wrote the lake.
        CorruptionError: bytes of the lake break a promise.
        UnsafeStoreError: the store ignores the conditions that commits rest on.
    """
    if mode not in ("rw", "r"):
        raise InvalidInputError(f"mode {mode!r} is neither 'rw' nor 'r'")
    if upkeep not in ("auto", "manual"):
        raise InvalidInputError(f"upkeep {upkeep!r} is neither 'auto' nor 'manual'")
    numbers = Settings.of(settings)
    storage, layout, catalog = place(root, storage_options, local, catalog)
    if isinstance(storage, S3Storage) and mode == "rw":
        probe_once(storage, layout.local)
    return Lake(storage, layout, catalog, mode, upkeep, numbers, clock or SystemClock())


class Place(NamedTuple):
    """Where a lake is."""

    storage: Storage
    layout: SiteLayout
    catalog: str | None
    """The URL of a database that sites share; with a password in it, maybe."""


def place(
    root: str | os.PathLike[str],
    storage_options: Mapping[str, str] | None = None,
    local: str | os.PathLike[str] | None = None,
    catalog: str | None = None,
) -> Place:
    """Where a lake, this host's part of it and the catalog are.

    Raises:
        InvalidInputError: neither a folder nor an S3 URL, or not a place for DuckDB; or `catalog`
            is no URL of Postgres.
    """
    storage, layout = _files(root, storage_options, local)
    if catalog is None and may_share(layout):
        catalog = os.environ.get("LAKESTORE_CATALOG") or None
    if catalog is not None:
        postgres.parse(catalog)
    return Place(storage, layout, catalog)


def _files(
    root: str | os.PathLike[str],
    storage_options: Mapping[str, str] | None,
    local: str | os.PathLike[str] | None,
) -> tuple[Storage, SiteLayout]:
    for folder in (root, local or ""):
        if UNSPEAKABLE.search(str(folder)):
            raise InvalidInputError(f"{str(folder)!r} is no path of UTF-8 text, as DuckDB needs it")
        if set(str(folder)) & set("*?[\\"):
            raise InvalidInputError(
                f"{str(folder)!r}: DuckDB takes '*', '?', '[' and backslashes in a path for "
                "something else; name the folder without them"
            )
    if str(root).startswith(("s3://", "s3a://")):
        storage = S3Storage(str(root), storage_options or {})
        return storage, SiteLayout(Path(local).absolute() if local else _state(storage))
    if "://" in str(root):
        raise InvalidInputError(f"{str(root)!r}: a lake is a folder, or s3://bucket/prefix")
    if storage_options:
        raise InvalidInputError(f"storage_options are for S3, and {str(root)!r} is a folder")
    if local is not None and not SiteLayout(Path(local)).lies_apart_from(Path(root)):
        raise InvalidInputError(
            f"local={str(local)!r} and {str(root)!r} lie among each other's files: choose another"
        )
    folder = Path(root).absolute()
    layout = SiteLayout(Path(local).absolute() if local is not None else folder / "_site")
    return LocalStorage(folder), layout


def _state(storage: S3Storage) -> Path:
    """The folder of this user's state of a lake in a store: the same at each open."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    told = hashlib.sha256(f"{storage.endpoint or ''} {storage.url('')}".encode()).hexdigest()[:12]
    name = storage.url("").removeprefix("s3://").replace("/", "-")[:80]
    return Path(home).absolute() / "lakestore" / f"{name}-{told}"
