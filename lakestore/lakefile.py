"""`lakestore.json`: what makes a folder a lake, and which lake it is."""

import json
import uuid
from pathlib import Path

from lakestore.errors import (
    CorruptionError,
    FormatTooNewError,
    InvalidInputError,
    NotFoundError,
)
from lakestore.layout import LAKE_FILE, SiteLayout, log_prefix, log_version_name, tombstone_key
from lakestore.storage import Storage
from lakestore.storage.local import discard, make_folder, refusals

FORMAT = 1


def lake_id(storage: Storage, stage_in: Path | None) -> str:
    """The uuid of the lake; a new one is made when there is none.

    Args:
        stage_in: where its file is staged then; None when none is to be made.

    Raises:
        InvalidInputError: it is a file where a folder should be.
        NotFoundError: there is no lake, and none is to be made.
        FormatTooNewError: a newer lakestore wrote it.
        CorruptionError: the file is damaged.
        StorageError: the disk refused.
    """
    root, file = storage.root, storage.url(LAKE_FILE)
    if not storage.remote and Path(root).exists() and not Path(root).is_dir():
        raise InvalidInputError(f"{root!r} is a file; a lake is a folder")
    if storage.size(LAKE_FILE) is None:
        if holds_tables(storage):
            raise CorruptionError(
                f"{file!r} is gone, and there are tables; `lakestore rebuild` "
                "makes it again from their files"
            )
        if stage_in is None:
            raise NotFoundError(f"no lake at {root!r}: open it with mode='rw' to make one")
        write_lake_file(storage, str(uuid.uuid4()), stage_in)
    try:
        facts = json.loads(storage.read(LAKE_FILE))
        version, lake = int(facts["format"]), str(facts["lake"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(
            f"{file!r} is damaged: {error!r}; `lakestore rebuild` makes it again"
        ) from error
    if version > FORMAT:
        raise FormatTooNewError(
            f"the lake at {root!r} has format {version}, this lakestore reads {FORMAT}: "
            "upgrade lakestore"
        )
    return lake


def lake_text(lake: str) -> str:
    """What the file of the lake of that uuid holds."""
    return json.dumps({"format": FORMAT, "lake": lake}) + "\n"


def write_lake_file(storage: Storage, lake: str, stage_in: Path) -> None:
    """Make the storage the lake of that uuid, unless it is one; raises `StorageError`."""
    staged = make_folder(stage_in) / f".{uuid.uuid4().hex}.tmp"
    try:
        with refusals(f"cannot make a lake at {storage.root!r}"):
            staged.write_text(lake_text(lake))
        storage.put_new(LAKE_FILE, staged)
    finally:
        discard(staged)


def holds_tables(storage: Storage) -> bool:
    """Whether there is a file of any table."""
    return bool(storage.folders("tables/"))


def is_delta(storage: Storage, folder: str) -> bool:
    """Whether a folder is that of a Delta table, whose files its log lists."""
    return storage.size(log_prefix(folder) + log_version_name(0)) is not None


def needs_catalog(storage: Storage, layout: SiteLayout) -> bool:
    """Whether there are files that only a catalog of this site could name."""
    return holds_rows(layout) or any(
        not is_delta(storage, folder) and storage.size(tombstone_key(folder)) is None
        for folder in storage.folders("tables/")
    )


def is_filled(storage: Storage, layout: SiteLayout) -> bool:
    """Whether a lake and its site hold files that a catalog can be made of."""
    return holds_rows(layout) or holds_tables(storage)


def holds_rows(layout: SiteLayout) -> bool:
    """Whether a site's folder has journals or segments."""
    local = (path for name in ("journal", "hot") for path in (layout.local / name).glob("*/*"))
    return next(local, None) is not None
