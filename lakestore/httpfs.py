"""DuckDB and a store: its `httpfs` extension where that is installed, and views without it.

The extension reads the parts of a file that a query needs. Nothing is installed or fetched here:
without it, or without keys that it could be given, files are copied instead (`filecache.py`).
"""

import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import duckdb

from lakestore import quoting
from lakestore.errors import InvalidInputError
from lakestore.layout import VIEWS_FILE
from lakestore.storage import Storage
from lakestore.storage.s3 import S3Storage


def give_access(con: duckdb.DuckDBPyConnection, storage: Storage) -> bool:
    """Have an instance read the objects of a store; False when it cannot."""
    if not isinstance(storage, S3Storage):
        return False
    facts = _facts(storage)
    if facts is None:
        return False
    try:
        con.execute("LOAD httpfs")
        con.execute(_secret(storage, facts))
        seconds = max(1, round(storage.timeout_s))
        con.execute(f"SET GLOBAL http_timeout = {seconds}")
    except duckdb.Error:  # whose text would quote the secret
        return False
    return True


def attach_statements(storage: S3Storage) -> str:
    """What a DuckDB shell runs to see a lake in a store; there are keys in it."""
    facts = _facts(storage)
    secret = [_secret(storage, facts)] if facts is not None else []
    views = quoting.literal(storage.url(VIEWS_FILE))
    lines = ["INSTALL httpfs", "LOAD httpfs", *secret, f"ATTACH {views} AS lake (READ_ONLY)"]
    return ";\n".join([*lines, "USE lake"]) + ";\n"


def _secret(storage: S3Storage, facts: Mapping[str, str]) -> str:
    url = storage.url("")
    name = f"lakestore_{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    told = ", ".join(f"{key} {quoting.literal(value)}" for key, value in facts.items())
    return (
        f"CREATE OR REPLACE TEMPORARY SECRET {name} (TYPE s3, {told}, SCOPE {quoting.literal(url)})"
    )


def _facts(storage: S3Storage) -> dict[str, str] | None:
    """What a secret of DuckDB's says; None without keys."""
    key = storage.option("aws_access_key_id", "access_key_id")
    secret = storage.option("aws_secret_access_key", "secret_access_key")
    if key is None or secret is None:
        return None
    facts = {"KEY_ID": key, "SECRET": secret}
    token = storage.option("aws_session_token", "session_token", "aws_token", "token")
    region = storage.option("aws_region", "region", "aws_default_region", "default_region")
    facts |= {"SESSION_TOKEN": token} if token else {}
    facts |= {"REGION": region or "us-east-1"}
    endpoint = storage.endpoint
    if endpoint is not None:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        virtual = storage.option("aws_virtual_hosted_style_request", "virtual_hosted_style_request")
        style = "vhost" if (virtual or "").lower() == "true" else "path"
        facts |= {"ENDPOINT": parts.netloc + parts.path.rstrip("/"), "URL_STYLE": style}
        facts |= {"USE_SSL": "true" if parts.scheme == "https" else "false"}
    return facts


def pretend(con: duckdb.DuckDBPyConnection, files: Mapping[str, bytes]) -> None:
    """Have an instance bind views over `s3://` files without asking the store for any.

    A view is bound when it is made, and for that DuckDB opens the first file of its list. It gets
    one of no rows and the right columns; what the view keeps is the list.

    Args:
        con: of an instance that reads nothing else.
        files: what is opened, by URL; of other URLs only that there is something.

    Raises:
        InvalidInputError: the extra `s3` is not installed.
    """
    try:
        from fsspec import AbstractFileSystem
    except ImportError as error:
        raise InvalidInputError("a lake on S3 needs `pip install 'lakestore[s3]'`") from error

    class Pretended(AbstractFileSystem):  # type: ignore[misc]
        protocol = "s3"
        cachable = False

        def glob(self, path: str, **_: Any) -> list[str]:
            return [path]

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "size": len(files.get(path, b"")), "type": "file"}

        def modified(self, path: str) -> datetime:
            return datetime(2020, 1, 1, tzinfo=UTC)

        def open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
            return io.BytesIO(files[path])

    con.register_filesystem(Pretended())
