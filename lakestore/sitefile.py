"""`site.json`: which site a local folder is, when its catalog is not in that folder.

Who opens the folder without saying where the catalog is must not make another one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from uuid import uuid4

from lakestore.errors import CorruptionError, FormatTooNewError, InvalidInputError
from lakestore.layout import SITE_FILE, SiteLayout
from lakestore.storage.local import discard, make_folder, publish_new, refusals

FORMAT = 1


@dataclass(frozen=True)
class SiteId:
    """A site of a lake."""

    lake: str
    site: str


def read_site(layout: SiteLayout) -> SiteId | None:
    """Which site a folder is; None when its catalog is in it, or there is none yet.

    Raises:
        CorruptionError: the file is damaged.
        FormatTooNewError: a newer lakestore wrote it.
    """
    path = layout.local / SITE_FILE
    with refusals(f"cannot read {str(path)!r}"):
        if not path.exists():
            return None
        text = path.read_bytes()
    try:
        facts = json.loads(text)
        version, found = int(facts["format"]), SiteId(str(facts["lake"]), str(facts["site"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(
            f"{str(path)!r} is damaged: {error!r}; restore it: the footers of segments beside it "
            "name lake and site"
        ) from error
    if version > FORMAT:
        raise FormatTooNewError(
            f"{str(path)!r} has format {version}, this lakestore reads {FORMAT}: upgrade lakestore"
        )
    return found


def make_site(layout: SiteLayout, lake: str) -> SiteId:
    """Make a folder a site of a lake, or say which one it has become meanwhile.

    Raises:
        StorageError: the disk refused.
    """
    path = layout.local / SITE_FILE
    staged = make_folder(layout.local) / f".{uuid4().hex}.tmp"
    facts = {"format": FORMAT, "lake": lake, "site": token_hex(4)}
    try:
        with refusals(f"cannot write {str(path)!r}"):
            staged.write_text(json.dumps(facts) + "\n")
        publish_new(staged, path)
    finally:
        discard(staged)
    found = read_site(layout)
    assert found is not None
    return found


def refuse_other_place(layout: SiteLayout, *, shared: bool) -> None:
    """Raise `InvalidInputError` when a site's catalog is not where it is looked for.

    Args:
        shared: whether it is looked for in a database that sites share.
    """
    own: Path = layout.catalog
    if shared and own.exists():
        raise InvalidInputError(
            f"this site's catalog is {str(own)!r}: open the lake without catalog="
        )
    if not shared and (layout.local / SITE_FILE).exists():
        raise InvalidInputError(
            f"the catalog of {str(layout.local)!r} is in a database: pass its URL as catalog= "
            "(--catalog)"
        )
