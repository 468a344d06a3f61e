"""Objects in an S3 bucket, or in a store that speaks as S3 does.

Every object is put by one request, whole, so there is never half of one, and no upload in parts
that a crash could leave behind. The request's signature covers the body. Requests that fail are
tried again by the client; each has a deadline. Failpoints: s3.1 object created    .2 replaced
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import uuid4

from lakestore.errors import InvalidInputError, NotFoundError, StorageError
from lakestore.failpoint import reach
from lakestore.storage.local import refusals

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

_URL = re.compile(r"s3a?://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
_KEY = re.compile(r"[A-Za-z0-9_.=/-]*")
_TIMEOUT_S = 20.0
_SLOWEST = 1_000_000
"""Bytes a second below which a transfer has failed: what is large may take longer."""
_PAUSE_S = 5.0
"""How long a store that did not answer is left alone by whoever can do without."""
_PARALLEL = 8
_CLIENT = (
    "timeout", "connect_timeout", "max_retries", "retry_timeout", "allow_http", "aws_allow_http",
)  # fmt: skip
"""Options of the client, not of the store."""
_SECRETS = ("secret_access", "access_key_id", "session_token", "sse_customer_key", "aws_token")
_SECRET_CHARS = 4
"""Shorter values are no secrets, and all of a message could hold them."""


class S3Storage:
    """`Storage` on a bucket, or on a prefix of one."""

    remote = True

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        """The store at `url`; nothing is asked of it yet.

        Args:
            url: `s3://bucket/prefix`.
            options: as deltalake names them (`AWS_REGION`, `AWS_ENDPOINT_URL`, …); what is not
                there is taken from the environment's variables of these names. `timeout` is how
                many seconds a request may take.

        Raises:
            InvalidInputError: no such URL or option, or the extra `s3` is not installed.
        """
        match = _URL.fullmatch(url.rstrip("/"))
        if match is None or not _KEY.fullmatch(match[2] or "") or "//" in (match[2] or ""):
            raise InvalidInputError(
                f"{url!r} is no s3://bucket/prefix of letters, digits and the characters _.=-/"
            )
        self.root = url.rstrip("/")
        self.bucket, self.prefix = match[1], match[2] or ""
        self.options = {str(key).lower(): str(value) for key, value in options.items()}
        self.timeout_s = self._seconds("timeout", _TIMEOUT_S)
        self._stores: dict[int, S3Store] = {}
        self._failed_at = -_PAUSE_S
        self._store()

    def __repr__(self) -> str:
        return f"<S3 store {self.url('')!r}>"  # the options have secrets in them

    @property
    def endpoint(self) -> str | None:
        """Where the store is; None for that of AWS."""
        return self.option(
            "aws_endpoint_url", "aws_endpoint_url_s3", "aws_endpoint", "endpoint_url", "endpoint"
        )

    @property
    def answers(self) -> bool:
        """Whether it is worth asking: the last request did not fail just now."""
        return time.monotonic() - self._failed_at > _PAUSE_S

    def put_new(self, key: str, source: Path) -> bool:
        """Publish `source` as `key`; False when the key existed."""
        created = self.put(key, _read(source), create=True)
        reach("s3.1")
        return created

    def replace(self, key: str, source: Path) -> None:
        """Put a cache in place of its older version."""
        self.put(key, _read(source), create=False)
        reach("s3.2")

    def put(self, key: str, data: bytes, *, create: bool) -> bool:
        """Put an object; with `create`, unless there is one, and False then."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
        try:
            with self._requests(f"cannot put {self.url(key)!r}"):
                obstore.put(self._store(len(data)), key, data, mode=mode, use_multipart=False)
        except AlreadyExistsError:
            return False
        except NotFoundError as error:
            raise NotFoundError(f"there is no bucket {self.bucket!r}: make it first") from error
        return True

    def last_bytes(self, key: str, count: int) -> bytes:
        """The end of an object, as readers of Parquet ask for it; raises as `read`."""
        import obstore

        with self._requests(f"cannot read the end of {self.url(key)!r}"):
            got = obstore.get(self._store(), key, options={"range": {"suffix": count}})
            return bytes(got.bytes())

    def read(self, key: str) -> bytes:
        """The whole object."""
        import obstore

        with self._requests(f"cannot read {self.url(key)!r}"):
            return bytes(obstore.get(self._store(), key).bytes())

    def download(self, key: str, size: int, target: Path) -> None:
        """Copy an object of `size` bytes to a new file; it is not fsynced."""
        import obstore

        with self._requests(f"cannot read {self.url(key)!r}"):
            data = obstore.get(self._store(size), key)
            with refusals(f"cannot write {str(target)!r}"), target.open("xb") as file:
                for chunk in data:
                    file.write(chunk)

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None."""
        import obstore

        try:
            with self._requests(f"cannot look at {self.url(key)!r}"):
                return int(obstore.head(self._store(), key)["size"])
        except NotFoundError:
            return None

    def sizes(self, keys: Sequence[str]) -> Sequence[int | None]:
        """The same of several."""
        return self.each(self.size, keys)

    def make_durable(self, key: str) -> None:
        """Nothing: what a store has acknowledged, it keeps."""

    def delete(self, *keys: str) -> None:
        """Remove objects, a thousand a request."""
        import obstore

        if keys:
            others = f" and {len(keys) - 1:,} more" if len(keys) > 1 else ""
            with self._requests(f"cannot delete {self.url(keys[0])!r}{others}"):
                obstore.delete(self._store(), list(keys))

    def list(self, prefix: str) -> Iterator[str]:
        """Keys below `prefix`, in order."""
        import obstore

        with self._requests(f"cannot list {self.url(prefix)!r}"):
            found = [
                object["path"]
                for page in obstore.list(self._store(), prefix.rstrip("/"))
                for object in page
            ]
        yield from sorted(key for key in found if key.startswith(prefix))

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below `prefix`, in order."""
        import obstore

        with self._requests(f"cannot list {self.url(prefix)!r}"):
            found = obstore.list_with_delimiter(self._store(), prefix.rstrip("/"))
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found["common_prefixes"])

    def url(self, key: str) -> str:
        """The object's `s3://` URL."""
        path = f"{self.prefix}/{key}" if self.prefix else key
        return f"s3://{self.bucket}/{path}".rstrip("/")

    def skew_s(self) -> float:
        """How far the store's clock is ahead of this machine's, as a new object tells."""
        import obstore

        key = f"lakestore-clock-{uuid4().hex}"
        try:
            before = time.time()
            self.put(key, b"now", create=True)
            with self._requests(f"cannot look at {self.url(key)!r}"):
                made = obstore.head(self._store(), key)["last_modified"].timestamp()
        finally:
            self.delete(key)
        return float(made - before)

    def each(self, do: Callable[[str], Any], keys: Sequence[str]) -> Sequence[Any]:
        """What `do` makes of each key, several at a time: requests wait more than they work."""
        if len(keys) < 2:
            return [do(key) for key in keys]
        with ThreadPoolExecutor(min(_PARALLEL, len(keys)), "lakestore-s3") as threads:
            return list(threads.map(do, keys))

    def option(self, name: str, *variables: str) -> str | None:
        """An option, or what the environment says instead; an empty text counts as none.

        Only names that begin with AWS are the environment's, as for the client: a variable TOKEN
        is somebody else's.
        """
        for key in (name, *variables):
            variable = key.upper() if key.startswith("aws_") else ""
            value = self.options.get(key) or os.environ.get(variable)
            if value:
                return value
        return None

    def _allows_http(self) -> bool:
        """Whether requests may go unencrypted: an endpoint that says `http://` means it."""
        said = (self.option("aws_allow_http", "allow_http") or "").lower()
        return said in ("true", "1") or (not said and (self.endpoint or "").startswith("http://"))

    def _seconds(self, name: str, default: float) -> float:
        text = self.options.get(name, str(default))
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:s|sec|seconds?)?", text)
        if match is None or float(match[1]) <= 0:
            raise InvalidInputError(f"storage option {name}={text!r} is no number of seconds")
        return float(match[1])

    def _store(self, size: int = 0) -> "S3Store":
        """A client whose requests may take as long as `size` bytes need."""
        seconds = int(self.timeout_s + size / _SLOWEST) if size > _SLOWEST else 0
        scale = seconds.bit_length()  # few clients: each has connections of its own
        if scale not in self._stores:
            timeout = self.timeout_s if not scale else float(1 << scale)
            self._stores[scale] = self._client(timeout)
        return self._stores[scale]

    def _client(self, timeout_s: float) -> "S3Store":
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError as error:
            raise InvalidInputError("a lake on S3 needs `pip install 'lakestore[s3]'`") from error
        config = {key: value for key, value in self.options.items() if key not in _CLIENT}
        retries = self.options.get("max_retries", "4")
        if not retries.isdecimal():
            raise InvalidInputError(f"storage option max_retries={retries!r} is no number")
        try:
            return S3Store(
                self.bucket,
                prefix=self.prefix or None,
                config=cast("S3Config", config),
                client_options={
                    "allow_http": self._allows_http(),
                    "timeout": timedelta(seconds=timeout_s),
                    "connect_timeout": timedelta(
                        seconds=min(timeout_s, self._seconds("connect_timeout", 5.0))
                    ),
                },
                retry_config={
                    "max_retries": int(retries),
                    "retry_timeout": timedelta(seconds=self._seconds("retry_timeout", timeout_s)),
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=50),
                        "max_backoff": timedelta(seconds=2),
                        "base": 2,
                    },
                },
            )
        except (BaseError, TypeError, ValueError) as error:
            raise InvalidInputError(f"storage_options: {self._told(error)}") from None

    @contextmanager
    def _requests(self, what: str) -> Iterator[None]:
        """Raise lakestore's errors in the place of the client's.

        Raises:
            NotFoundError: there is no such object.
            StorageError: the store did not answer, or refused.
        """
        from obstore.exceptions import (
            AlreadyExistsError,
            BaseError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        try:
            yield
        except AlreadyExistsError:
            raise
        except FileNotFoundError as error:
            raise NotFoundError(f"{what}: there is no such object") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StorageError(
                f"{what}: the store refused: {self._told(error)}; check the credentials and "
                "what they allow"
            ) from None
        except (BaseError, OSError) as error:
            self._failed_at = time.monotonic()
            raise StorageError(f"{what}: {self._told(error)}; retry once it answers") from None
        else:
            self._failed_at = -_PAUSE_S

    def _told(self, error: Exception) -> str:
        """What an error says, in one line, and without a credential."""
        text = str(error).split("\n\nDebug source", 1)[0].replace("\n", " ").strip()
        told = {**{key.lower(): value for key, value in os.environ.items()}, **self.options}
        for key, value in told.items():
            if any(word in key for word in _SECRETS) and len(value) >= _SECRET_CHARS:
                text = text.replace(value, "***")
        return text


def _read(source: Path) -> bytes:
    with refusals(f"cannot read {str(source)!r}"):
        return source.read_bytes()
