"""Where published bytes live: a handful of verbs, so that a backend is small enough to read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """Immutable objects under keys such as `tables/usage/data/…`; no verb overwrites."""

    root: str
    """What a user calls it: a folder, or an `s3://` URL."""
    remote: bool
    """Whether it is behind a network: slow, and what failed may succeed by itself soon."""

    @property
    def answers(self) -> bool:
        """Whether it is worth asking, for whoever can do without: it did not fail just now."""
        ...

    def put_new(self, key: str, source: Path) -> bool:
        """Publish the staged file `source` as `key`, durably and all at once.

        Returns:
            False when the key existed already; the object there is untouched.

        Raises:
            StorageError: the bytes may or may not have arrived; nothing was acknowledged.
        """
        ...

    def replace(self, key: str, source: Path) -> None:
        """Put a cache such as `lake.duckdb` in place of its older version, all at once."""
        ...

    def read(self, key: str) -> bytes:
        """The whole object; raises `NotFoundError`."""
        ...

    def last_bytes(self, key: str, count: int) -> bytes:
        """The end of an object, as readers of Parquet ask for it; raises `NotFoundError`."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None when there is none."""
        ...

    def sizes(self, keys: Sequence[str]) -> Sequence[int | None]:
        """The same of several."""
        ...

    def make_durable(self, key: str) -> None:
        """Have an object that somebody made survive a power loss, before others go for it."""
        ...

    def delete(self, *keys: str) -> None:
        """Remove objects; one that is not there does not matter. Only `vacuum` calls this.

        Raises:
            StorageError: some may be gone, and others not.
        """
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys below `prefix`: to find candidates for deletion, never to decide what is live."""
        ...

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below `prefix`, in order."""
        ...

    def url(self, key: str) -> str:
        """What DuckDB and other engines open."""
        ...
