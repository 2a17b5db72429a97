"""The same work by each engine: what goes well, what goes wrong, and what is different.

The table in ``docs/stashes/engines.md`` is what these tests see.  With ``ENGINES_TABLE=write`` in the environment
they write it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock

from zpersist import DirectoryStash

from ..disk import on_a_small_disk
from .programs import ENGINES

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("programs.py")
PAGE = Path(__file__).parents[2] / "docs" / "stashes" / "engines.md"
OURS = ("fork", "spawn", "forkserver")
NEEDS = {"loky": "loky", "dask": "distributed", "ray": "ray", "mpi": "mpi4py"}
#: The columns of the table.
COLUMNS = {
    **dict.fromkeys(OURS, "processes of ours"),
    "ProcessPoolExecutor": "`ProcessPoolExecutor`",
    "loky": "loky",
    "dask": "dask",
    "ray": "Ray",
    "mpi": "MPI",
}


@pytest.fixture(params=ENGINES)
def engine(request):
    module = NEEDS.get(request.param)
    if module is not None and importlib.util.find_spec(module) is None:
        if "CI" in os.environ:
            pytest.fail(f"{module} is not installed: pip install '.[engines]'")
        pytest.skip(f"needs {module}")
    return request.param


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def in_table(engine, row, seen, *, always=True):
    """See that a cell of the table says what was seen; what isn't so ``always`` is only written."""
    writes = os.environ.get("ENGINES_TABLE") == "write"
    with FileLock(Path(tempfile.gettempdir(), "engines-table.lock")) if writes else nullcontext():
        lines = PAGE.read_text().splitlines()
        head = next(line for line in lines if line.startswith("|") and "loky" in line)
        column = cells(head).index(COLUMNS[engine])
        number = next(number for number, line in enumerate(lines) if line.startswith(f"| {row} |"))
        told = cells(lines[number])
        if writes:
            told[column] = seen
            lines[number] = f"| {' | '.join(told)} |"
            PAGE.write_text("\n".join(lines) + "\n")
    if always:
        assert told[column] == seen


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


def command(engine, trouble, root, *more):
    program = [str(PROGRAM), engine, trouble, str(root), *more]
    if engine == "mpi":
        mpiexec = Path(sys.executable).with_name("mpiexec")
        options = ["--allow-run-as-root", "--oversubscribe", "-n", "3"]
        return [str(mpiexec), *options, sys.executable, "-m", "mpi4py.futures", *program]
    return [sys.executable, *program]


def run(engine, trouble, root, *, disk=None):
    """Return what a program printed, by the first word of the lines, and the items that were tried."""
    line = command(engine, trouble, root)
    if disk is not None:
        line = on_a_small_disk(line, disk, "2m")
        if line is None:
            assert not ("CI" in os.environ and os.geteuid() == 0), "in CI root can mount"
            pytest.skip("no disk can be mounted here")
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=110, check=False)
    words = ("summary", "failure", "cause", "error")
    lines = [line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(words)]
    told = (root / "told").read_text().split() if (root / "told").exists() else []
    assert lines or engine == "mpi", done.stderr
    return dict(lines), told


def test_all_is_done(engine, tmp_path):
    lines, told = run(engine, "no", tmp_path)
    assert lines == {"summary": "120 0 [] 120"}
    assert sorted(map(int, told)) == list(range(120))
    assert dict(DirectoryStash(tmp_path / "data")) == {str(n): n * n for n in range(120)}
    lines, told = run(engine, "no", tmp_path)
    assert lines == {"summary": "0 120 [] 120"}
    assert len(told) == 120


def test_one_raises(engine, tmp_path):
    lines, told = run(engine, "raise", tmp_path)
    assert lines["summary"] == "119 0 ['37'] 119"
    assert lines["failure"] == "ValueError item 37"
    assert len(told) == 120


def test_a_result_that_can_not_be_pickled(engine, tmp_path):
    lines, _ = run(engine, "unpicklable", tmp_path)
    assert lines["summary"] == "119 0 ['37'] 119"
    assert lines["failure"].startswith("EncodeError")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [("unsendable", "EncodeError an item can't travel"), ("unreadable", "DecodeError an item can't be made again")],
)
def test_an_item_that_can_not_be_pickled(engine, trouble, words, tmp_path):
    lines, told = run(engine, trouble, tmp_path)
    assert lines["summary"] == "119 0 ['37'] 119"
    assert lines["failure"].startswith(words)
    assert len(told) == 119


def test_a_full_disk(engine, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    lines, told = run(engine, "full", tmp_path, disk=disk)
    assert lines["error"].startswith("StorageError")
    assert "No space left on device" in lines["error"]
    kept = int(lines["error"].split()[-1])
    assert 10 <= kept < 120
    assert lines["summary"] == f"{120 - kept} {kept} [] 120"
    assert len(told) <= 120 + 60


@pytest.mark.parametrize("how", ["kill", "crash", "exit"])
def test_a_worker_dies_once(engine, how, tmp_path):
    lines, told = run(engine, f"{how} once", tmp_path)
    if engine == "mpi":
        assert lines == {}
        lines, told = run(engine, f"{how} once", tmp_path)
        assert lines["summary"].endswith("[] 120")
        in_table(engine, "a worker is killed, crashes or exits", "all end; the next run goes on")
    else:
        assert lines == {"summary": "120 0 [] 120"}
        in_table(engine, "a worker is killed, crashes or exits", "the run goes on")
    assert told.count("37") == 2
    again = len(told) - 120
    assert again <= (2 if engine in OURS else 60)
    in_table(engine, "done again then", "that item" if engine in OURS else "what was under way")


def test_poison(engine, tmp_path):
    if engine == "mpi":
        in_table(engine, "tries of an item that kills, with `retries=3`", "each ends all")
        in_table(engine, "a death is told by", "the end of all")
        return
    lines, told = run(engine, "kill", tmp_path)
    assert lines["summary"] == "119 0 ['37'] 119"
    assert lines["failure"].startswith("WorkerDiedError '37' killed its worker 3 times")
    assert told.count("37") == 3 if engine in OURS else 3 <= told.count("37") <= 8
    in_table(engine, "tries of an item that kills, with `retries=3`", "3" if engine in OURS else "3 to 8")
    in_table(engine, "a death is told by", "its end" if engine in OURS else f"`{lines['cause']}`")


def test_limits_of_a_process(engine, tmp_path):
    lines, _ = run(engine, "timeout", tmp_path)
    if engine in OURS:
        assert lines == {"summary": "120 0 [] 120"}
    else:
        assert lines["error"].startswith("InvalidArgumentError timeout is for processes of this machine")
    seen = "yes" if engine in OURS else "an error"
    in_table(engine, "`timeout`, `max_memory`, `max_tasks_per_worker`", seen)


def started(engine, trouble, root, marker, *more):
    return subprocess.Popen(
        command(engine, trouble, root, *more),
        env=environment(MARKER=marker),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_until(told, enough, parent):
    while not told.exists() or not enough(told.read_text().split()):
        assert parent.poll() is None, parent.stderr.read().decode()
        threading.Event().wait(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_parent_is_stopped_and_the_next_goes_on(engine, tmp_path, number):
    marker = f"zpersist-{os.getpid()}-{engine}-{int(number)}"
    parent = started(engine, "no", tmp_path, marker, "0.02")
    wait_until(tmp_path / "told", lambda told: len(told) >= 40, parent)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.kill()
    parent.wait(60)
    assert parent.returncode != 0
    left = those_that_stay(marker)
    if engine in OURS:
        assert left == []
    row = f"processes left 5 s after {'Ctrl-C' if number == signal.SIGINT else 'your program was killed'}"
    in_table(engine, row, "some" if left else "none", always=engine in OURS)
    # Others end their workers in their own time, and some never.
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    parent.communicate(timeout=60)
    before = len(DirectoryStash(tmp_path / "data"))
    # What mpiexec has started may notice its death when all is done.
    assert 30 <= before < (121 if engine == "mpi" else 120)
    lines, told = run(engine, "no", tmp_path)
    assert lines == {"summary": f"{120 - before} {before} [] 120"}
    assert len(told) <= 120 + 50
    if engine in OURS:
        # At most once more for what was under way.
        assert len(told) <= 120 + 4


def test_an_interrupt_while_an_item_is_under_way(engine, tmp_path):
    marker = f"zpersist-{os.getpid()}-{engine}-late"
    parent = started(engine, "late", tmp_path, marker)
    wait_until(tmp_path / "told", lambda told: "37" in told, parent)
    began = time.monotonic()
    os.killpg(parent.pid, signal.SIGINT)
    _, printed = parent.communicate(timeout=60)
    seconds = time.monotonic() - began
    assert parent.returncode != 0
    left = those_that_stay(marker)
    ended = "ended" in (tmp_path / "told").read_text()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    in_table(engine, "an item under way at Ctrl-C", "runs to its end" if ended else "is cut off", always=engine in OURS)
    in_table(engine, "Ctrl-C ends your program", "in under 2 s" if seconds < 2 else "later", always=engine in OURS)
    if engine != "mpi":
        assert b"the next run goes on from there" in printed


def those_that_stay(marker, seconds=5.0):
    """Return the processes that run with a marker in their environment, still after some time."""
    end = time.monotonic() + seconds
    while (left := alive(marker)) and time.monotonic() < end:
        threading.Event().wait(0.01)
    return left


def alive(marker):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and f"MARKER={marker}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
