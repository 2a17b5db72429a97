"""The same work by each engine: what goes well, what goes wrong, and what is different."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zpersist import DirectoryStash

from .programs import ENGINES

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("programs.py")
OURS = ("fork", "spawn", "forkserver")
NEEDS = {"loky": "loky", "dask": "distributed", "ray": "ray", "mpi": "mpi4py"}


@pytest.fixture(params=ENGINES)
def engine(request):
    module = NEEDS.get(request.param)
    if module is not None and importlib.util.find_spec(module) is None:
        if "CI" in os.environ:
            pytest.fail(f"{module} is not installed: pip install '.[engines]'")
        pytest.skip(f"needs {module}")
    return request.param


def command(engine, trouble, root, *more):
    program = [str(PROGRAM), engine, trouble, str(root), *more]
    if engine == "mpi":
        mpiexec = Path(sys.executable).with_name("mpiexec")
        return [
            str(mpiexec),
            "--allow-run-as-root",
            "--oversubscribe",
            "-n",
            "3",
            sys.executable,
            "-m",
            "mpi4py.futures",
            *program,
        ]
    return [sys.executable, *program]


def run(engine, trouble, root, *more):
    """Return the lines of a program, and the items that were tried."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        command(engine, trouble, root, *more), capture_output=True, text=True, env=env, timeout=110, check=False
    )
    lines = [
        line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("summary", "failure", "error"))
    ]
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
    assert lines == {"summary": "119 0 ['37'] 119", "failure": "ValueError item 37"}
    assert len(told) == 120


def test_a_result_that_can_not_be_pickled(engine, tmp_path):
    lines, _ = run(engine, "unpicklable", tmp_path)
    assert lines["summary"] == "119 0 ['37'] 119"
    assert lines["failure"].startswith("EncodeError")


def test_a_worker_is_killed_once(engine, tmp_path):
    lines, told = run(engine, "kill once", tmp_path)
    if engine == "mpi":
        # The death of one is the end of all, by design of MPI; the next run goes on.
        assert lines == {}
        lines, told = run(engine, "kill once", tmp_path)
        assert lines["summary"].endswith("[] 120")
    else:
        assert lines == {"summary": "120 0 [] 120"}
    assert told.count("37") == 2
    # Of the others, those that were under way may have been done again.
    assert len(told) <= 120 + (2 if engine in OURS else 60)


def test_poison(engine, tmp_path):
    if engine == "mpi":
        pytest.skip("the death of one is the end of all, by design of MPI")
    lines, told = run(engine, "kill", tmp_path)
    assert lines["summary"] == "119 0 ['37'] 119"
    assert lines["failure"].startswith("WorkerDiedError '37' killed its worker 3 times")
    assert told.count("37") == 3 if engine in OURS else told.count("37") <= 8


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_parent_is_stopped_and_the_next_goes_on(engine, tmp_path, number):
    marker = f"zpersist-{os.getpid()}-{engine}-{int(number)}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "MARKER": marker}
    parent = subprocess.Popen(
        command(engine, "no", tmp_path, "0.02"),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    told = tmp_path / "told"
    while not told.exists() or len(told.read_text().split()) < 40:
        assert parent.poll() is None, parent.stderr.read().decode()
        threading.Event().wait(0.005)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.kill()
    parent.wait(60)
    assert parent.returncode != 0
    left = alive(marker)
    for _ in range(500):
        if not left:
            break
        threading.Event().wait(0.01)
        left = alive(marker)
    if engine in OURS:
        assert left == []
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


def alive(marker):
    """Return the processes that run with a marker in their environment."""
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
