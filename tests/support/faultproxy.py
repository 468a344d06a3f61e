"""A proxy in front of an S3 server that has bad weather: it delays, drops, cuts and lies.

Creations of one key are let through one at a time, because moto looks whether a key exists and
makes it in two steps.
"""

import http.client
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR

from support.store import Store

FAULTS = (
    "503", "500", "429", "reset before", "reset after", "slow", "never answers", "truncated",
    "flipped", "spurious 409", "spurious 412", "stale list", "expired",
)  # fmt: skip
_BODIES = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "429": (429, "TooManyRequests"),
    "spurious 409": (409, "ConditionalRequestConflict"),
    "spurious 412": (412, "PreconditionFailed"),
    "expired": (403, "ExpiredToken"),
}


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    key: str
    kind: str


@dataclass
class Rule:
    """Bad weather for requests of a kind: so often, from the first of them on."""

    fault: str
    kind: str
    times: int = 1
    met: int = 0


def kind_of(method: str, path: str, query: str) -> str:
    """What a request is for: its method, and the key without what differs between lakes."""
    key = path.split("/", 2)[2] if path.count("/") > 1 else ""
    for pattern, name in (
        (r"_delta_log/\d+\.json$", "log version"),
        (r"_delta_log/\d+\.checkpoint.*$", "checkpoint"),
        (r"_delta_log/_last_checkpoint$", "last checkpoint"),
        (r"/data/.*\.parquet$", "data"),
        (r"/schema/.*\.parquet$", "empty file"),
        (r"/schema/.*\.toml$", "schema"),
        (r"lakestore\.json$", "lake file"),
        (r"lake\.duckdb$", "views"),
        (r"dropped\.json$", "tombstone"),
        (r"/_replaced/.*\.json$", "record"),
        (r"lakestore-probe-", "probe"),
    ):
        if re.search(pattern, key):
            return f"{method} {name}"
    if "list-type" in query:
        return f"{method} list"
    return f"{method} delete" if "delete" in query else f"{method} other"


@dataclass
class Weather:
    """What is wrong now, and what was asked."""

    rules: list[Rule] = field(default_factory=list)
    log: list[Seen] = field(default_factory=list)
    listings: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    over: threading.Event = field(default_factory=threading.Event)

    def rule_for(self, kind: str) -> Rule | None:
        with self.lock:
            for rule in self.rules:
                if rule.kind == kind and rule.met < rule.times:
                    rule.met += 1
                    return rule
        return None

    def clear(self) -> None:
        """Good weather from now on; requests that hang are let go."""
        with self.lock:
            self.rules.clear()
        self.over.set()
        self.over = threading.Event()


@contextmanager
def proxied(upstream: Store) -> Iterator[tuple[Store, Weather]]:
    """A store behind a proxy, and its weather."""
    weather = Weather()

    class Handler(_Handler):
        pass

    Handler.upstream, Handler.weather = upstream, weather
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        store = Store(server.server_address[1])
        yield store, weather
    finally:
        weather.clear()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: Store
    weather: Weather

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):  # the client gave up
            super().handle()

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        kind = kind_of(self.command, path, query)
        with self.weather.lock:
            self.weather.log.append(Seen(self.command, path, kind))
        rule = self.weather.rule_for(kind)
        fault = rule.fault if rule is not None else ""
        if fault in _BODIES:
            self._answer(_BODIES[fault][0], {}, _error(_BODIES[fault][1]))
            return
        if fault == "reset before":
            self._reset()
            return
        if fault == "never answers":
            self.weather.over.wait(30)
            self._reset()
            return
        if fault == "slow":
            self.weather.over.wait(0.7)
        status, headers, answer = self._forward(body)
        if "list-type" in query and self.command == "GET":
            answer = self._listing(query, answer, stale=fault == "stale list")
        if fault == "reset after":
            self._reset()
        elif fault == "truncated":
            self._answer(status, headers, answer, cut=len(answer) // 2)
        elif fault == "flipped" and answer:
            middle = len(answer) // 2
            self._answer(
                status,
                headers,
                answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1 :],
            )
        else:
            self._answer(status, headers, answer)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do

    def _listing(self, query: str, answer: bytes, *, stale: bool) -> bytes:
        """A listing, or the one that was given the first time somebody asked."""
        with self.weather.lock:
            first = self.weather.listings.setdefault(query, answer)
        return first if stale else answer

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with self.weather.keys[self.path] if self.command == "PUT" else nullcontext():
            connection = http.client.HTTPConnection("127.0.0.1", self.upstream.port, timeout=30)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                return response.status, dict(response.getheaders()), response.read()
            finally:
                connection.close()

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None
    ) -> None:
        self.send_response(status)
        left_out = ("content-length", "connection", "transfer-encoding", "date", "server")
        for name, value in headers.items():
            if name.lower() not in left_out:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self._reset()

    def _reset(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(SHUT_RDWR)


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>bad weather</Message></Error>".encode()
