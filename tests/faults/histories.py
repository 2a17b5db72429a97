"""Many processes use one store at once, are stopped and killed; what each did and saw is written down, with the time.

Each process writes to a file of its own that it calls something before it does, and what came of it after: of what a
killed process had called it is not known whether it happened.  Each kill is in the middle of an operation, at one of
its calls to the operating system: so :func:`history` runs in the server of :mod:`tests.faults.shim` if anybody is to
be killed.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.linearizable import ABSENT, Operation, is_linearizable
from tests.faults.shim import KILL, Mode, Report, armed
from tests.faults.stores import STORES
from zpersist import CorruptValueError

KEYS = ("1", "2", "3", "4")
#: A process dies at one of so many calls; an operation that changes something has at least one.
MOST_CALLS = 20
KINDS = {"load": 8, "dump": 4, "add": 2, "delete": 2, "update": 4}


class Worker:
    """A process, which is replaced by another one when it is killed."""

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.number = number
        self.left = crew.count
        self.lives = 0
        self.pid = 0
        #: Before which of its operations it is doomed, and at which call after that it dies.
        self.plan: list[tuple[int, int]] = []
        #: The calls in which it has died.
        self.deaths: list[str] = []
        self.report = Report()

    @property
    def done(self) -> int:
        """How many operations the process has finished."""
        return struct.unpack_from("q", self.crew.progress, 8 * self.number)[0]

    def start(self) -> None:
        """Start a process for what is left to do."""
        self.lives += 1
        self.crew.tell(self.number, 0)
        log = self.crew.folder / f"{self.number}-{self.lives}.log"
        log.touch()
        self.crew.logs.append(log)
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self.crew.work(self, log)
                code = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)

    def ended(self) -> bool:
        """Whether the process is through; start another one for what is left if it was killed, raise if it failed."""
        if self.pid and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.pid = 0
            code = os.waitstatus_to_exitcode(found[1])
            if code == -signal.SIGKILL and self.report.first:
                self.deaths.append(self.report.first)
                self.plan.pop(0)
                self.report.clear()
                self.left -= self.done
                self.start()
            else:
                assert code == 0, f"a process failed: {code}"
        return not self.pid

    def pause(self, seconds: float) -> None:
        """Stop the process for a while."""
        if not self.ended():
            os.kill(self.pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(self.pid, signal.SIGCONT)


class Crew:
    """The processes of one history."""

    def __init__(self, make: Callable[[Path], Any], folder: Path, seed: int, *, workers: int, count: int) -> None:
        self.make, self.folder, self.count = make, folder, count
        self.chance = random.Random(seed)
        self.seed = seed
        self.progress = mmap.mmap(-1, 8 * workers)
        self.logs: list[Path] = []
        self.workers = [Worker(self, number) for number in range(workers)]
        self._gate, self._opener = os.pipe()

    def tell(self, number: int, done: int) -> None:
        """Note how far a process is."""
        struct.pack_into("q", self.progress, 8 * number, done)

    def work(self, worker: Worker, log: Path) -> None:
        """Be a process."""
        chance = random.Random(f"{self.seed} {worker.number} {worker.lives}")
        stream = os.open(log, os.O_WRONLY | os.O_APPEND)

        def note(*what: Any) -> None:
            os.write(stream, json.dumps([time.monotonic_ns(), *what]).encode() + b"\n")

        with self.make(self.folder) as stash, ExitStack() as doom:
            # All begin at once, or they would not meet.
            os.read(self._gate, 1)
            doomed = False
            for number in range(worker.left):
                if not doomed and worker.plan and number + self.count - worker.left >= worker.plan[0][0]:
                    doomed = True
                    doom.enter_context(armed(f"{self.folder}/data", worker.plan[0][1], Mode(KILL), worker.report))
                key = chance.choice(KEYS)
                (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
                value = (worker.number * 1000 + worker.lives) * 100_000 + number
                note(key, kind, value)
                note(do(stash, key, kind, value))
                self.tell(worker.number, number + 1)

    def run(self, *, kills: int, pauses: int) -> dict[str, list[Operation]]:
        """Have them work, with so many kills and pauses among it; return what each key saw."""
        total = self.count * len(self.workers)
        # Not at the end, where some are through.
        plan = sorted(self.chance.randrange(total * 3 // 4) for _ in range(pauses))
        for _ in range(kills):
            doomed = self.chance.choice(self.workers)
            doomed.plan.append((self.chance.randrange(self.count * 3 // 4), self.chance.randrange(1, MOST_CALLS)))
        for worker in self.workers:
            worker.plan.sort()
        for worker in self.workers:
            worker.start()
        os.write(self._opener, bytes(len(self.workers) + kills))
        try:
            while working := [worker for worker in self.workers if not worker.ended()]:
                done = sum(self.count - worker.left + worker.done for worker in self.workers)
                while plan and plan[0] <= done:
                    plan.pop(0)
                    self.chance.choice(working).pause(self.chance.uniform(0, 0.01))
                time.sleep(0.0005)
        finally:
            self._end()
        return self._read()

    def _end(self) -> None:
        for worker in self.workers:
            worker.plan.clear()
            if worker.pid:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(worker.pid, signal.SIGKILL)
                    os.waitpid(worker.pid, 0)
        os.close(self._gate)
        os.close(self._opener)

    def _read(self) -> dict[str, list[Operation]]:
        found: dict[str, list[Operation]] = {key: [] for key in KEYS}
        for log in self.logs:
            for key, operation in operations_in(log):
                found[key].append(operation)
        return found


def operations_in(log: Path) -> Iterator[tuple[str, Operation]]:
    """Yield what a process called, and what came of it."""
    # The last line may be cut.
    lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    while lines:
        called, key, kind, value = lines.pop(0)
        if not lines:
            yield key, Operation(kind, called, value=value)
            return
        returned, result = lines.pop(0)
        yield key, Operation(kind, called, returned, value, result)


def do(stash: Any, key: str, kind: str, value: int) -> Any:
    """Do something, and return what came of it."""
    try:
        return _do(stash, key, kind, value)
    except CorruptValueError as err:
        # Nobody has written that.
        return repr(err)


def _do(stash: Any, key: str, kind: str, value: int) -> Any:
    if kind == "load":
        return stash.get(key, ABSENT)
    if kind == "update":
        seen = []

        def change(old: Any) -> int:
            seen.append(old)
            return value

        stash.update(key, change, ABSENT)
        return seen[-1]
    if kind == "dump":
        return stash.dump(key, value)
    return stash.add(key, value) if kind == "add" else stash.delete(key)


def broken_keys(histories: dict[str, list[Operation]]) -> list[str]:
    """Return the keys of which what was seen can't have happened."""
    return [key for key, history in histories.items() if not is_linearizable(history)]


class Told(NamedTuple):
    """What is told of one history."""

    broken: list[str]
    #: The calls in which processes died.
    deaths: list[str]
    #: How many operations never returned.
    pending: int
    #: How often one was called before the one before it had returned.
    met: int


def history(make: Callable[[Path], Any] | str, folder: str, seed: int, *plan: int) -> Told:
    """Return what became of a history on a store, which may be named: with workers, operations, kills and pauses."""
    workers, count, kills, pauses = plan
    crew = Crew(STORES[make].make if isinstance(make, str) else make, Path(folder), seed, workers=workers, count=count)
    seen = crew.run(kills=kills, pauses=pauses)
    operations = [operation for key in seen for operation in seen[key]]
    assert len(operations) >= workers * count
    assert all(len(of_key) <= 700 for of_key in seen.values())
    operations.sort(key=lambda operation: operation.called)
    pairs = zip(operations, operations[1:], strict=False)
    met = sum(other.called < one.returned and not one.pending for one, other in pairs)
    deaths = [death for worker in crew.workers for death in worker.deaths]
    return Told(broken_keys(seen), deaths, sum(operation.pending for operation in operations), met)
