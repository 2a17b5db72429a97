"""Real processes, really killed, at moments nobody chose."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zpersist import DirectoryStash, MultiProcessStash, SqliteStash, fill

from .programs import tell

fork = multiprocessing.get_context("fork")
STORES = {"directory": lambda: DirectoryStash("data"), "sqlite": lambda: SqliteStash("data.db")}


def children_of(pid):
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def killer(victim, seed, spared):
    """Kill children of a process, one now and then, but none of those that other tests have started."""
    rng = random.Random(seed)
    while True:
        time.sleep(rng.uniform(0.001, 0.03))
        try:
            others = sorted(children_of(victim) - spared - {os.getpid()})
        except FileNotFoundError:
            return
        if others:
            try:
                os.kill(rng.choice(others), signal.SIGKILL)
            except ProcessLookupError:
                continue


def slow(n):
    time.sleep(0.002)
    return n * n


class Pairs(MultiProcessStash):
    """Two pairs of each item, by hooks."""

    def _create_data(self):
        return range(40)

    def _process(self, chunk):
        for n in chunk:
            yield f"a{n}", slow(n)
            yield f"b{n}", n


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 200))])
def test_runs_under_random_kills_end_complete(elsewhere, seed):
    rng = random.Random(seed)
    descriptors = len(os.listdir("/proc/self/fd"))
    stash = STORES[rng.choice(list(STORES))]()
    killing = fork.Process(target=killer, args=(os.getpid(), seed, children_of(os.getpid())))
    killing.start()
    try:
        if seed % 3:
            fill(stash, slow, range(80), workers=rng.choice([2, 3]), retries=1000, start_method="fork")
            expected = {str(n): n * n for n in range(80)}
        else:
            pairs = Pairs(stash, workers=2, retries=1000, start_method="fork", chunk_size=rng.choice([0, 1, 7]))
            assert len(pairs) == 80
            expected = {f"a{n}": n * n for n in range(40)} | {f"b{n}": n for n in range(40)}
    finally:
        killing.kill()
        killing.join()
        killing.close()
    assert dict(stash) == expected
    stash.close()
    assert multiprocessing.active_children() == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert not [path for path in Path().rglob("*.tmp") if time.time() - path.stat().st_mtime > 3600]


def filling(kind, number, barrier):
    """Fill along with others; the pid is told with each item."""

    def work(n):
        tell(".", f"{number}-{n}")
        time.sleep(0.005)
        return n

    class Items(MultiProcessStash):
        def _create_data(self):
            return range(120)

        def _process(self, chunk):
            for n in chunk:
                yield str(n), work(n)

    barrier.wait()
    if kind == "function":
        summary = fill(DirectoryStash("data"), work, range(120), workers=2)
        assert summary.done + summary.there == 120
        tell(".", f"done-{summary.done}")
    else:
        stash = Items(DirectoryStash("data") if kind == "hooks" else SqliteStash("data.db"), workers=2, chunk_size=3)
        assert len(stash) == 120
    os._exit(0 if len(DirectoryStash("data") if kind != "sqlite hooks" else SqliteStash("data.db")) == 120 else 1)


@pytest.mark.parametrize("kind", ["function", "hooks", "sqlite hooks"])
def test_parents_share_the_work(elsewhere, kind):
    barrier = fork.Barrier(2)
    parents = [fork.Process(target=filling, args=(kind, number, barrier)) for number in range(2)]
    for parent in parents:
        parent.start()
    for parent in parents:
        parent.join(60)
        assert parent.exitcode == 0
        parent.close()
    told = [line.split("-") for line in Path("told").read_text().split()]
    made = [int(count) for who, count in told if who == "done"]
    assert not made or 120 <= sum(made) <= 128
    told = [pair for pair in told if pair[0] != "done"]
    assert {int(n) for _, n in told} == set(range(120))
    assert len(told) <= 120 + 8
    shares = [sum(number == who for number, _ in told) for who in "01"]
    assert min(shares) >= 20


def test_a_parent_that_dies_leaves_its_share_to_the_other(elsewhere):
    barrier = fork.Barrier(2)
    parents = [fork.Process(target=filling, args=("function", number, barrier)) for number in range(2)]
    for parent in parents:
        parent.start()
    while not Path("told").exists() or len(Path("told").read_text().split()) < 30:
        time.sleep(0.001)
    parents[0].kill()
    for parent, code in zip(parents, (-signal.SIGKILL, 0), strict=True):
        parent.join(60)
        assert parent.exitcode == code
        parent.close()
    assert len(DirectoryStash("data")) == 120


PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from zpersist import DirectoryStash, SqliteStash, fill
from tests.parallel.programs import tell

def work(n):
    tell(".", n)
    time.sleep(0.003)
    return n * n

if __name__ == "__main__":
    stash = DirectoryStash("data") if sys.argv[1] == "directory" else SqliteStash("data.db")
    fill(stash, work, range(150), workers=2)
    print(len(stash))
"""


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("seed", range(10))
def test_the_parent_is_killed_at_random_moments(elsewhere, store, seed):
    rng = random.Random(seed)
    Path("program.py").write_text(PROGRAM.format(root=str(Path(__file__).parents[2])))
    command = [sys.executable, "program.py", store]
    kills = 0
    while True:
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        timer = threading.Timer(rng.uniform(0.15, 0.45), parent.kill)
        timer.start()
        out, _ = parent.communicate(timeout=60)
        timer.cancel()
        timer.join()
        if parent.returncode == 0:
            break
        assert parent.returncode == -signal.SIGKILL
        kills += 1
        assert kills < 60
    assert out.strip() == b"150"
    told = Path("told").read_text().split()
    assert {int(n) for n in told} == set(range(150))
    # At most once more for those in flight at each kill; SQLite's are written some at a time.
    assert len(told) <= 150 + kills * (2 if store == "directory" else 6)
