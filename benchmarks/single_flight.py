"""Many want one result that nobody has: how many compute it, how long it takes, and what if the one who does dies.

Computing takes a while (it sleeps) and leaves a mark in a file.  *One work*: eight processes, or threads, ask for one
result at once.  *Eight works*: each asks for another one; the time is in times of one that asks alone.  *Takeover*:
one process computes, a second one waits, the first is killed (SIGKILL); seconds until the second begins to compute.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from interleave import (
    OURS,
    SEED,
    Contestant,
    Figures,
    Measured,
    arguments,
    file_system,
    installed,
    number,
    print_machine,
    print_table,
    take_turns,
)

Compute = Callable[[str], str]
Fetch = Callable[[str], str]
Make = Callable[[Path, Compute], Fetch]

CROWD = 8
PATIENCE = 30.0
KINDS = {"processes": multiprocessing.get_context("fork"), "threads": None}
#: The most seconds until a waiter takes over.
GOAL_TAKEOVER = 2.0
#: The most times of one that eight works may take: what is above 1 is the time to wake eight on a few cores.
GOAL_EIGHT = 1.25


class Owner:
    """The owner of a work."""


# the contestants: each makes a function that gets the value of a key, computed if need be


def our_work(folder: Path, compute: Compute) -> Fetch:
    from zpersist import PersistedWork

    return _works(PersistedWork, folder, compute)


def seed_work(folder: Path, compute: Compute) -> Fetch:
    from zensols.persist import PersistedWork

    return _works(PersistedWork, folder, compute)


def _works(kind: Any, folder: Path, compute: Compute) -> Fetch:
    owner = Owner()
    works = {}
    for key in names():
        works[key] = kind(folder / f"{key}.dat", owner)
        works[key].worker = partial(compute, key)
    return lambda key: works[key]()


def our_directory(folder: Path, compute: Compute) -> Fetch:
    from zpersist import DirectoryStash

    return _our_factory(DirectoryStash(folder / "values"), compute)


def our_sqlite(folder: Path, compute: Compute) -> Fetch:
    from zpersist import SqliteStash

    return _our_factory(SqliteStash(folder / "values.db"), compute)


def _our_factory(delegate: Any, compute: Compute) -> Fetch:
    from zpersist import FactoryStash, ReadOnlyStash

    class Computed(ReadOnlyStash):
        def load(self, name: str) -> str:
            return compute(name)

        def keys(self) -> list[str]:
            return names()

    return FactoryStash(delegate, Computed()).load


def seed_directory(folder: Path, compute: Compute) -> Fetch:
    from zensols.persist import DirectoryStash, FactoryStash, ReadOnlyStash

    class Computed(ReadOnlyStash):
        def load(self, name: str) -> str:
            return compute(name)

        def keys(self) -> list[str]:
            return names()

    return FactoryStash(DirectoryStash(folder / "values"), Computed()).load


MAKERS: dict[str, Make] = {
    f"{OURS}: PersistedWork(Path)": our_work,
    f"{OURS}: FactoryStash on DirectoryStash": our_directory,
    f"{OURS}: FactoryStash on SqliteStash": our_sqlite,
    f"{SEED}: PersistedWork(Path)": seed_work,
    f"{SEED}: FactoryStash on DirectoryStash": seed_directory,
}


def names() -> list[str]:
    return [f"work-{i}" for i in range(CROWD)]


# what they do


def computing(marks: Path, seconds: float) -> Compute:
    def compute(key: str) -> str:
        fd = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, b".")
        os.close(fd)
        time.sleep(seconds)
        return f"value of {key}"

    return compute


def crowd(kind: str, make: Make, folder: Path, keys: list[str], seconds: float) -> Measured:
    """Let as many as there are keys ask for one each, at once."""
    folder.mkdir(parents=True)
    marks = folder / "marks"
    compute = computing(marks, seconds)
    context = KINDS[kind]
    barrier: Any = (context or threading).Barrier(len(keys) + 1)
    answers: Any = context.Queue() if context else queue.Queue()
    # Processes open what they use themselves, threads share it.
    shared = None if context else make(folder, compute)

    def ask(key: str) -> None:
        fetch = shared or make(folder, compute)
        barrier.wait(PATIENCE)
        try:
            answers.put(fetch(key) == f"value of {key}")
        except Exception:
            answers.put(False)

    runner: Any = context.Process if context else threading.Thread
    members = [runner(target=ask, args=(key,), daemon=True) for key in keys]
    for member in members:
        member.start()
    barrier.wait(PATIENCE)
    start = time.perf_counter()
    right = sum(answers.get(timeout=PATIENCE) for _ in keys)
    took = time.perf_counter() - start
    for member in members:
        member.join()
    return {"computed": marks.stat().st_size, "failed": len(keys) - right, "seconds": took}


def takeover(make: Make, folder: Path) -> float:
    """Return the seconds from the death of the one that computes until the one that waits begins.

    Infinite: the second one raises; not a number: it does not wait at all.
    """
    context = multiprocessing.get_context("fork")
    folder.mkdir(parents=True)
    key = names()[0]
    asked, began, ended = context.Queue(), context.Queue(), context.Queue()

    def ask(seconds: float) -> None:
        def compute(key: str) -> str:
            began.put(time.monotonic())
            time.sleep(seconds)
            return "value"

        fetch = make(folder, compute)
        asked.put(True)
        try:
            fetch(key)
            ended.put(True)
        except Exception:
            ended.put(False)

    first = context.Process(target=ask, args=(PATIENCE,), daemon=True)
    second = context.Process(target=ask, args=(0.0,), daemon=True)
    first.start()
    began.get(timeout=PATIENCE)
    second.start()
    for _ in range(2):
        asked.get(timeout=PATIENCE)
    time.sleep(0.3)
    killed = time.monotonic()
    os.kill(first.pid or 0, signal.SIGKILL)
    worked = ended.get(timeout=PATIENCE)
    first.join()
    second.join()
    if not worked:
        return float("inf")
    waited = began.get(timeout=PATIENCE) - killed
    return waited if waited >= 0 else float("nan")


def steps(folder: Path, *, make: Make, seconds: float) -> Iterator[tuple[str, Measured]]:
    # So that the children need not import anything.
    make(folder, computing(folder / "marks", 0))
    for kind in KINDS:
        yield f"one, {kind}", crowd(kind, make, folder / f"one-{kind}", names()[:1] * CROWD, seconds)
        alone = crowd(kind, make, folder / f"alone-{kind}", names()[:1], seconds)
        eight = crowd(kind, make, folder / f"eight-{kind}", names(), seconds)
        yield f"eight, {kind}", {"times": eight["seconds"] / alone["seconds"], "failed": eight["failed"]}
    yield "takeover", {"seconds": takeover(make, folder / "takeover")}


# printing


def print_flights(figures: Figures) -> None:
    rows = []
    for kind in KINDS:
        for quantity, goal in (("computed", 1), ("failed", 0)):
            rows.append(
                [
                    f"one work, {CROWD} {kind}: {quantity}",
                    str(goal),
                    *(
                        _counts(figures.values(f"one, {kind}", name, quantity), goal, name)
                        for name in figures.contestants
                    ),
                ]
            )
    for kind in KINDS:
        times = {name: figures.median(f"eight, {kind}", name, "times") for name in figures.contestants}
        cells = [f"{value:.2f}{_verdict(value <= GOAL_EIGHT, name)}" for name, value in times.items()]
        rows.append([f"{CROWD} works, {CROWD} {kind}: times of one", f"1 (at most {GOAL_EIGHT:g})", *cells])
    cells = [_waited(figures.values("takeover", name, "seconds"), name) for name in figures.contestants]
    rows.append(["takeover, median (most)", f"at most {GOAL_TAKEOVER:g} s", *cells])
    print_table(["", "goal", *figures.contestants], rows)


def _verdict(is_met: bool, name: str) -> str:
    return (": met" if is_met else ": **missed**") if name.startswith(OURS) else ""


def _counts(values: list[float], goal: int, name: str) -> str:
    spread = f"{min(values):.0f}" if min(values) == max(values) else f"{min(values):.0f} to {max(values):.0f}"
    return f"{spread}{_verdict(max(values) <= goal, name)}"


def _waited(values: list[float], name: str) -> str:
    if any(value != value for value in values):
        return "does not wait"
    if max(values) == float("inf"):
        return "raises"
    text = f"{statistics.median(values) * 1e3:.0f} ms ({max(values) * 1e3:.0f})"
    return f"{text}{_verdict(max(values) <= GOAL_TAKEOVER, name)}"


def main() -> None:
    options = arguments(__doc__, rounds=5, quick=1, places=True)
    print_machine("zensols.util")
    seconds = 0.1 if options.quick else 0.5
    runners: dict[str, Contestant] = {name: partial(steps, make=make, seconds=seconds) for name, make in MAKERS.items()}
    runners = installed(runners, {name: SEED for name in runners if name.startswith(SEED)})
    for place in options.places:
        figures = take_turns(runners, options.rounds, place)
        print(f"Computing takes {number(seconds)} s, on {file_system(place)}, {options.rounds} rounds:\n")
        print_flights(figures)


if __name__ == "__main__":
    main()
