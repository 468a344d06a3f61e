"""Forks and exits: no hang, no abort, nothing lost, whatever state the lake is in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lakestore as ls

pytestmark = pytest.mark.faults

HANG_S = 150.0  # what hangs does so for ever; a busy machine starts slowly

PRELUDE = """
import faulthandler, os, signal, sys, threading, time
faulthandler.enable()
from conftest import SCHEMA, events
import lakestore as ls
root = sys.argv[1]
SETTINGS = {"segment_duckdb_rows": 10, "flush_age_s": 0.05, "seal_age_s": 0.05}
"""


def run(script: str, folder: Path, *, ends: int = 0) -> str:
    """What a script prints; it must end in time, as told, and without a native trace."""
    path = folder / "script.py"
    path.write_text(PRELUDE + script)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
        "PYTHONWARNINGS": "ignore::DeprecationWarning",  # Python 3.12 warns of forks with threads
    }
    done = subprocess.run(
        [sys.executable, str(path), str(folder / "lake")],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=environment,
    )
    assert done.returncode == ends, done.stderr
    for trace in ("Fatal", "Segmentation", "terminate called", "Traceback", "Current thread"):
        assert trace not in done.stderr, done.stderr
    return done.stdout


def rows(folder: Path) -> tuple[int, ...] | None:
    with ls.open(folder / "lake", upkeep="manual") as lake:
        return lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchone()


STATES = {
    "closed": "lake.close()",
    "read_only": "lake.close(); lake = ls.open(root, mode='r'); table = lake['events']",
    "buffered": "table.append(events(100, 150), level='memory')",
    "flushed": "table.flush(); lake.sql('FROM events')",
    "upkeep": "lake.close(); lake = ls.open(root, settings=SETTINGS); table = lake['events']",
    "scanning": "table.flush(); reader = table.scan(); taken = lake.connect()",
    "sealing": """
table.flush()
inside, leave = threading.Event(), threading.Event()
from lakestore import coldfiles
real = coldfiles.by_day
def slow(*arguments):
    for item in real(*arguments):
        inside.set()
        leave.wait(90)
        yield item
coldfiles.by_day = slow
sealing = threading.Thread(target=table.seal)
sealing.start()
inside.wait(90)
""",
}
FORK = """
result = lake.sql("SELECT count(*) FROM events") if not lake._session.closed else None
before = result.fetchall() if result else None
child = os.fork()
if child == 0:
    calls = [lake.tables, lake.status, lake.maintain, lake.flush, lake.seal, lake.connect,
             lambda: lake.sql("SELECT 1"), lambda: lake.explain("SELECT 1"),
             lambda: lake["events"], lambda: "events" in lake, lambda: list(lake),
             lambda: lake.create_table("x", SCHEMA), lambda: lake.drop_table("events"),
             lambda: lake.wait(None), lambda: table.append(events(0, 1)), table.flush,
             table.seal, table.vacuum, table.scan, table.to_arrow]
    for call in calls:
        began = time.monotonic()
        try:
            call()
        except ls.ClosedError:
            continue
        finally:
            assert time.monotonic() - began < 20, call
        raise AssertionError(call)
    assert result is None or result.fetchall() == before
    assert "lakestore" in repr(lake) + repr(table) and table.name == "events"
    lake.close()
    with ls.open(root, mode="r") as other:
        assert result is None or other.sql("SELECT count(*) > 0 FROM events").fetchone() == (True,)
    with ls.open(root + "-of-the-child") as mine:
        mine.create_table("events", SCHEMA).append(events(0, 3))
        assert mine.sql("SELECT count(*) FROM events").fetchone() == (3,)
    ENDING
deadline = time.monotonic() + 90
while True:
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        break
    if time.monotonic() > deadline:
        os.kill(child, signal.SIGKILL)
        raise SystemExit("the child hangs")
    time.sleep(0.01)
if status != STATUS << 8:
    raise SystemExit(f"the child ended with {status}")
"""


@pytest.mark.parametrize(
    "ending", ["os._exit(7)", pytest.param("sys.exit(7)", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("name", STATES)
def test_a_forked_child_is_told_at_once_and_ends_as_it_likes(tmp_path, name, ending):
    """DuckDB joins its threads when it is freed, and a child has none of them."""
    start = """
lake = ls.open(root, upkeep="manual", settings=SETTINGS)
table = lake.create_table("events", SCHEMA)
table.append(events(0, 100))
"""
    finish = """
if "leave" in globals():
    leave.set()
    sealing.join()
if not lake._session.closed and lake.mode == "rw":
    table.append(events(200, 210))
    table.flush()
    table.seal()
    assert lake.sql("SELECT count(*) FROM events WHERE id >= 'e000200'").fetchone() == (10,)
print("done")
"""
    fork = FORK.replace("ENDING", ending).replace("STATUS", "7")
    assert run(start + STATES[name] + fork + finish, tmp_path).endswith("done\n")
    expected = 100 + 50 * (name == "buffered") + 10 * (name not in ("closed", "read_only"))
    assert rows(tmp_path) == (expected, expected)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes_open_the_lake_for_themselves(tmp_path, method):
    """Through multiprocessing and concurrent.futures, with a lake open in the parent."""
    script = f"""
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor

def count(path):
    with ls.open(path, mode="r") as lake:
        return lake.sql("SELECT count(*) FROM events").fetchone()[0]

if __name__ == "__main__":
    lake = ls.open(root, upkeep="manual")
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 100))
    context = mp.get_context("{method}")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(count, [root] * 4)) == [100] * 4
    with context.Pool(1) as pool:
        assert pool.map(count, [root]) == [100]
        pool.close()
        pool.join()
    table.append(events(100, 110))
    print(lake.sql("SELECT count(*) FROM events").fetchone()[0])
"""
    assert run(script, tmp_path) == "110\n"
    assert rows(tmp_path) == (110, 110)


def test_fifty_exits_with_live_threads_and_open_lakes(tmp_path):
    """Forked from one that has imported everything, so that each is a tenth of a start."""
    script = """
ENDINGS = {
    "falls off": ("sys.exit(0)", 0),
    "raises": ("raise SystemExit(3)", 3),
    "leaves": ("os._exit(4)", 4),
    "is told to go": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)", -15),
    "is told, and exits": ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); "
                           "os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)", 5),
}
def one(number, code):
    lake = ls.open(f"{root}-{number}", settings=SETTINGS)
    table = lake.create_table("events", SCHEMA)
    acknowledged = 0
    stop = threading.Event()
    def work():
        i = 1
        while not stop.wait(0.002):
            table.append(events(i * 10, i * 10 + 10))
            i += 1
    threading.Thread(target=work, daemon=True).start()
    table.append(events(0, 10))
    scan = table.scan()
    for _ in range(number % 5):
        lake.sql("SELECT count(*) FROM events")
    with open(f"{root}-{number}.acked", "w") as file:
        file.write(str(lake.sql("SELECT count(*) FROM events").fetchone()[0]))
    exec(code)

names = list(ENDINGS)
running = {}
deadline = time.monotonic() + 100
left = list(range(50))
while left or running:
    while left and len(running) < 4:
        number = left.pop()
        child = os.fork()
        if child == 0:
            running.clear()
            one(number, ENDINGS[names[number % 5]][0])
            raise AssertionError("not reached")
        running[child] = number, time.monotonic()
    child, status = os.waitpid(-1, os.WNOHANG)
    if child:
        number, _ = running.pop(child)
        name = names[number % 5]
        ended = os.waitstatus_to_exitcode(status)
        if ended != ENDINGS[name][1]:
            raise SystemExit(f"{number}, which {name}, ended with {ended}")
    else:
        time.sleep(0.01)
        late = [n for n, began in running.values() if time.monotonic() - began > 90]
        if late:
            for child in running:
                os.kill(child, signal.SIGKILL)
            raise SystemExit(f"hangs: {late}")
for number in range(50):
    acknowledged = int(open(f"{root}-{number}.acked").read())
    with ls.open(f"{root}-{number}", upkeep="manual") as lake:
        found, ids = lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchone()
    assert found == ids >= acknowledged >= 10, (number, found, ids, acknowledged)
print("50 of 50")
"""
    path = tmp_path / "script.py"
    path.write_text(PRELUDE + script)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "lake")],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "50 of 50\n"), done.stderr
    assert "Segmentation" not in done.stderr
    assert "Fatal" not in done.stderr


INTERRUPTED = """
lake = ls.open(root, upkeep=UPKEEP, settings=SETTINGS | {"flush_age_s": 999})
table = lake.create_table("events", SCHEMA)
table.append(events(0, 1000))
table.flush()
from lakestore import coldfiles
real, acknowledged = coldfiles.publish, threading.Event()
def kill_and_go_on(*arguments):
    acknowledged.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)
    return real(*arguments)
coldfiles.publish = kill_and_go_on
HANDLER
table.append(events(1000, 1010))
print("acknowledged", flush=True)
acknowledged.set()
table.seal()
print("sealed", flush=True)
"""


@pytest.mark.parametrize(
    ("handler", "ends"),
    [("", -15), ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))", 5)],
    ids=["default", "exits"],
)
@pytest.mark.parametrize("upkeep", ["auto", "manual"])
def test_a_sigterm_during_a_seal(tmp_path, handler, ends, upkeep):
    script = INTERRUPTED.replace("UPKEEP", repr(upkeep)).replace("HANDLER", handler)
    assert run(script, tmp_path, ends=ends) == "acknowledged\n"
    assert rows(tmp_path) == (1010, 1010)
    with ls.open(tmp_path / "lake", upkeep="manual") as lake:
        lake.seal()
        assert lake.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchone() == (
            1010,
            1010,
        )


def test_an_interrupt_in_append_accepts_all_or_nothing_and_the_handle_goes_on(tmp_path):
    script = """
lake = ls.open(root, upkeep="manual")
table = lake.create_table("events", SCHEMA)
interrupted, inside, stop = 0, False, threading.Event()
def interrupt(*_):
    global inside
    if inside:
        inside = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
def disturb():
    while not stop.wait(0.003):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
threading.Thread(target=disturb, daemon=True).start()
start, deadline = 0, time.monotonic() + 40
while interrupted < 100 and time.monotonic() < deadline:
    try:
        inside = True
        table.append(events(start, start + 10), producer="p", seq=start)
        inside = False
        start += 10
    except KeyboardInterrupt:
        interrupted += 1
    except ls.StorageError:  # an fsync was interrupted, so nobody knows: it was not accepted
        inside = False
stop.set()
if interrupted < 20:
    raise SystemExit(f"only {interrupted} interrupts")
table.append(events(start, start + 10), producer="p", seq=start)
found = [row[0] for row in lake.sql("SELECT id FROM events ORDER BY id").fetchall()]
expected = [f"e{i:06d}" for i in range(start + 10)]
if found != expected:
    raise SystemExit(f"{len(found)} rows of {len(expected)}, {len(set(found))} ids")
print(start + 10)
lake.close()
"""
    count = int(run(script, tmp_path))
    assert rows(tmp_path) == (count, count)
