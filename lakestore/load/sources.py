"""What a caller wants loaded, as sources."""

from typing import Any

from lakestore.load.chunks import Source
from lakestore.load.files import Reading, are_files, file_sources, found
from lakestore.load.streams import producer_of, stream


def sources_of(source: Any, load_id: str | None, reading: Reading) -> list[Source]:
    """The sources, in order; raises as `table.load`.

    Args:
        load_id: what the caller calls them together.
    """
    producer = producer_of(load_id)
    if are_files(source):
        return file_sources(found(source), reading, producer)
    return [stream(source, producer)]
