"""Contestants take turns, step by step; and the tables that show how they compare.

What else a machine does comes and goes.  It falls on all contestants alike if they do the same step one right after
the other, again and again, and another one begins each time.  So a contestant is a generator: it does one step of its
work between two ``yield``, and yields the name of the step and what was measured of it.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

OURS = "zpersist"
SEED = "zensols.persist"
#: In a table, for what was not measured.
NOTHING = "-"

Measured = dict[str, float]
Contestant = Callable[[Path], Iterator[tuple[str, Measured]]]
#: By step and peer: the least that the peer's time divided by ours should be.
Goals = Mapping[tuple[str, str], float]

#: A step that is none: what comes after it is done when all rounds have come so far.  Deleting files goes there: for
#: minutes after it some file systems are slow to make new ones (ext4 passes over the inodes that were just freed).
LATER = "later"

_IN_MEMORY = ("tmpfs", "ramfs")

Running = dict[str, Iterator[tuple[str, Measured]]]


class Figures:
    """What was measured: all values by step, contestant and quantity."""

    def __init__(self) -> None:
        self.contestants: list[str] = []
        self._values: dict[str, dict[str, dict[str, list[float]]]] = {}

    def add(self, step: str, who: str, measured: Measured) -> None:
        by_quantity = self._values.setdefault(step, {}).setdefault(who, {})
        for quantity, value in measured.items():
            by_quantity.setdefault(quantity, []).append(value)

    def steps(self) -> list[str]:
        return list(self._values)

    def values(self, step: str, who: str, quantity: str) -> list[float]:
        return self._values[step].get(who, {}).get(quantity, [])

    def median(self, step: str, who: str, quantity: str) -> float:
        return statistics.median(self.values(step, who, quantity))

    def ratio(self, step: str, peer: str, quantity: str, ours: str = OURS) -> float:
        """Return the peer's value divided by ours, the median of all rounds: above 1, we are faster.

        Each round has its own ratio, for in a round the step was done by one right after the other.
        """
        pairs = zip(self.values(step, peer, quantity), self.values(step, ours, quantity), strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)


def timed(work: Callable[[], object], operations: int = 1) -> Measured:
    """Return the seconds an operation took, by the clock on the wall and by the processor."""
    gc.collect()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        gc.enable()
    # What was made is given back when the clock no longer runs.
    del result
    return {"wall": wall / operations, "cpu": cpu / operations}


def each(operation: Callable[..., object], *arguments: Sequence[object]) -> Measured:
    """Return the seconds an operation takes, done once for each of the arguments."""

    def work() -> None:
        for values in zip(*arguments, strict=True):
            operation(*values)

    return timed(work, len(arguments[0]))


def take_turns(contestants: Mapping[str, Contestant], rounds: int, place: str) -> Figures:
    """Let the contestants do their steps in turn, each in a new directory of its own in ``place``."""
    figures = Figures()
    figures.contestants = names = list(contestants)
    settle = os.sync if file_system(place) not in _IN_MEMORY else None
    waiting: list[tuple[Running, tempfile.TemporaryDirectory[str]]] = []
    for number in range(rounds):
        first = number % len(names)
        folder = tempfile.TemporaryDirectory(dir=place)
        order = enumerate(names[first:] + names[:first])
        running = {name: contestants[name](Path(folder.name) / str(i)) for i, name in order}
        later = _one_round(running, figures, settle)
        if later:
            waiting.append((later, folder))
        else:
            folder.cleanup()
    for running, folder in waiting:
        _one_round(running, figures, settle)
        folder.cleanup()
    return figures


def _one_round(running: Running, figures: Figures, settle: Callable[[], None] | None) -> Running:
    """Do one step of each, again and again; return those who wait for the other rounds."""
    later = {}
    while running:
        for name in tuple(running):
            if settle is not None:
                # Nobody waits for what another one has written.
                settle()
            step, measured = next(running[name], ("", {}))
            if step == LATER:
                later[name] = running.pop(name)
            elif not step:
                del running[name]
            else:
                figures.add(step, name, measured)
    return later


def installed(contestants: Mapping[str, Contestant], needs: Mapping[str, str]) -> dict[str, Contestant]:
    """Return the contestants whose module is there; say which modules are not."""
    missing = {module for module in needs.values() if not is_installed(module)}
    for module in sorted(missing):
        print(f"{module} is not installed: left out.\n")
    return {name: contestant for name, contestant in contestants.items() if needs.get(name) not in missing}


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


# printing


def number(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def against(ratio: float, goal: float | None) -> str:
    """Return a ratio, and beside it the goal and whether it is reached."""
    if goal is None:
        return number(ratio)
    return f"{number(ratio)} (goal {goal:.3g}: {'met' if ratio >= goal else '**missed**'})"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


#: With more peers than these, times and ratios are two tables.
_MOST_BESIDE = 5


def print_versus(figures: Figures, quantity: str, unit: str, scale: float, goals: Goals | None = None) -> None:
    """Print a row a step: median (and minimum) of each contestant, and the median ratios of the peers to ours."""
    names = figures.contestants
    peers = [name for name in names if name != OURS]
    times, ratios = [], []
    for step in figures.steps():
        if not figures.values(step, OURS, quantity):
            continue
        row = []
        for name in names:
            values = figures.values(step, name, quantity)
            median = number(statistics.median(values) * scale) if values else NOTHING
            row.append(f"{median} ({number(min(values) * scale)})" if values else median)
        times.append([step, *row])
        row = []
        for peer in peers:
            goal = (goals or {}).get((step, peer))
            takes_part = bool(figures.values(step, peer, quantity))
            row.append(against(figures.ratio(step, peer, quantity), goal) if takes_part else NOTHING)
        ratios.append([step, *row])
    if len(peers) > _MOST_BESIDE:
        print_table([f"{unit}, {quantity}", *names], times)
        print_table([f"… / {OURS}", *peers], ratios)
    else:
        both = [own + theirs[1:] for own, theirs in zip(times, ratios, strict=True)]
        print_table([f"{unit}, {quantity}", *names, *(f"{peer} / {OURS}" for peer in peers)], both)


# the machine and the arguments


def file_system(place: str) -> str:
    """Return the type of the file system a directory is on."""
    path = os.path.realpath(place)
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, mount, what = line.split()[:3]
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, what
    return kind


def print_machine(*packages: str) -> None:
    """Print what the figures were measured on and with."""
    versions = []
    for package in (OURS, *packages):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {', '.join(versions)}\n",
        flush=True,
    )


def default_places() -> list[str]:
    """Return a directory in memory, if there is one, and one on the disk."""
    return [place for place in ("/dev/shm", "/var/tmp") if os.path.isdir(place)] or [tempfile.gettempdir()]


def arguments(description: str | None, *, rounds: int, quick: int = 2, places: bool = False) -> argparse.Namespace:
    """Read the command line: ``rounds``, ``quick`` and, if asked for, ``places``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help=f"how often each contestant runs (default: {rounds})")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, and the figures mean nothing")
    if places:
        parser.add_argument("places", nargs="*", metavar="DIR", help="where to measure (default: memory and disk)")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = quick if options.quick else rounds
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if places and not options.places:
        options.places = default_places()
    return options


if __name__ == "__main__":
    sys.exit("This module is used by the programs beside it; run one of them, or run.py.")
