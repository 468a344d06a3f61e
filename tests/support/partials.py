"""Partials in memory as SQL over the columns that their files have."""

from lakestore import quoting
from lakestore.document import BUCKET
from lakestore.partials import Loaded


def relation(loaded: Loaded) -> str:
    """What stands after FROM: the partials of exactly the files that were loaded."""
    parts = []
    for source, _ in loaded.sources:
        texts = list(source.dictionaries)
        numbers = "".join(f", {source.key(name)}" for name in texts)
        columns = "".join(f", {quoting.identifier(name)}" for name in texts)
        bucket = f"{source.time(BUCKET)} AS {BUCKET}"
        parts.append(
            f"SELECT {bucket}, * EXCLUDE ({BUCKET}{numbers}{columns}){columns} "
            f"FROM {source.with_texts(texts)}"
        )
    return f"({' UNION ALL '.join(parts)})"
