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
from lakestore.layout import LAKE_FILE, SiteLayout
from lakestore.storage import Storage
from lakestore.storage.local import LocalStorage, discard, make_folder, storage_error

FORMAT = 1


def lake_id(storage: LocalStorage, root: Path, *, create: bool) -> str:
    """The uuid of the lake in `root`; with `create`, a new lake is made when there is none.

    Raises:
        InvalidInputError: `root` is a file.
        NotFoundError: there is no lake, and none is to be made.
        FormatTooNewError: a newer lakestore wrote it.
        CorruptionError: the file is damaged.
        StorageError: the disk refused.
    """
    if root.exists() and not root.is_dir():
        raise InvalidInputError(f"{str(root)!r} is a file; a lake is a folder")
    if storage.size(LAKE_FILE) is None:
        if holds_tables(storage):
            raise CorruptionError(
                f"{str(root / LAKE_FILE)!r} is gone, and there are tables; `lakestore rebuild` "
                "makes it again from their files"
            )
        if not create:
            raise NotFoundError(f"no lake at {str(root)!r}: open it with mode='rw' to make one")
        write_lake_file(storage, root, str(uuid.uuid4()))
    try:
        facts = json.loads(storage.read(LAKE_FILE))
        version, lake = int(facts["format"]), str(facts["lake"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(
            f"{str(root / LAKE_FILE)!r} is damaged: {error!r}; `lakestore rebuild` makes it again"
        ) from error
    if version > FORMAT:
        raise FormatTooNewError(
            f"the lake at {str(root)!r} has format {version}, this lakestore reads {FORMAT}: "
            "upgrade lakestore"
        )
    return lake


def lake_text(lake: str) -> str:
    """What the file of the lake of that uuid holds."""
    return json.dumps({"format": FORMAT, "lake": lake}) + "\n"


def write_lake_file(storage: LocalStorage, root: Path, lake: str) -> None:
    """Make a folder the lake of that uuid, unless it is one; raises `StorageError`."""
    try:
        make_folder(root)
        staged = root / f".{uuid.uuid4().hex}.tmp"
        staged.write_text(lake_text(lake))
    except OSError as error:
        raise storage_error(f"cannot make a lake at {str(root)!r}", error) from error
    storage.put_new(LAKE_FILE, staged)
    discard(staged)


def holds_tables(storage: Storage) -> bool:
    """Whether there is a file of any table."""
    return next(iter(storage.list("tables/")), None) is not None


def is_filled(storage: Storage, layout: SiteLayout) -> bool:
    """Whether a lake and its site hold files that a catalog has to name."""
    local = (path for name in ("journal", "hot") for path in (layout.local / name).glob("*/*"))
    return holds_tables(storage) or next(local, None) is not None
