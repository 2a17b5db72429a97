"""The engine of this machine: worker processes, each at its own pipe, so that none can take another one down.

A worker has nothing in common with the others but memory in which it says which item is under way: so the parent knows
what a dead one was at, and ends one that takes too long.  There is no queue whose lock could die with its holder.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from importlib.util import find_spec
from mmap import mmap
from multiprocessing.connection import Connection
from selectors import EVENT_READ, EVENT_WRITE, PollSelector
from typing import Any

from attrs import define, field

from zpersist.errors import InvalidArgumentError, ItemTimeoutError, WorkerDiedError
from zpersist.failure import Failure
from zpersist.parallel import guard
from zpersist.parallel.engine import Engine, Event, packed, sent
from zpersist.parallel.job import IDLE, READING, WRITING, Job
from zpersist.parallel.line import Line
from zpersist.parallel.schedule import Task
from zpersist.parallel.worker import MARK, main

__all__ = ["PoolEngine", "check_start_method"]

#: Seconds a worker that is told to end has to do so, before it is killed.
_GRACE = 1.0

#: How many workers, one after the other, may be killed before they have begun anything.
_STILLBORN = 100


def check_start_method(method: str | None) -> str | None:
    """Return a start method of :mod:`multiprocessing` that this platform has."""
    if method is not None and method not in multiprocessing.get_all_start_methods():
        raise InvalidArgumentError(
            f"start_method must be one of {multiprocessing.get_all_start_methods()} or None, not {method!r}"
        )
    return method


def _choose(method: str | None) -> str:
    if method is not None:
        return method
    # Forking a process with threads may copy a lock that is held; nobody would ever release it.
    forks = "fork" in multiprocessing.get_all_start_methods() and threading.active_count() == 1
    return "fork" if forks else "spawn"


@define(eq=False)
class _Member:
    """A worker process."""

    process: Any
    pipe: Connection
    slot: int
    line: Line
    tasks: deque[Task] = field(factory=deque)
    #: How many reports it has sent.
    reports: int = 0
    #: How many items it has done.
    done: int = 0
    #: Why it was ended, and what its mark said then.
    ended: tuple[BaseException, tuple[int, int]] | None = None


_engines: weakref.WeakSet[PoolEngine] = weakref.WeakSet()


class PoolEngine(Engine):
    """Does the work in processes of this machine.

    Parameters
    ----------
    job :
        What is to be done.
    workers :
        The most processes; they are started as they are needed.
    start_method :
        Of :mod:`multiprocessing`; ``None``: fork if this process has no threads, else spawn.
    timeout :
        The most seconds for an item; a worker that takes longer is killed.
    max_tasks_per_worker :
        A worker is replaced by a new one after so many items.
    max_memory :
        The most bytes of data a worker may have; beyond that an item raises ``MemoryError``.
    threads :
        How many threads BLAS and OpenMP use in a worker.
    level :
        The level of the root logger.
    """

    def __init__(
        self,
        job: Job,
        *,
        workers: int,
        start_method: str | None = None,
        timeout: float | None = None,
        max_tasks_per_worker: int | None = None,
        max_memory: int | None = None,
        threads: int = 1,
        level: int = 0,
    ) -> None:
        method = _choose(start_method)
        self._context: Any = multiprocessing.get_context(method)
        # A forked child has the job in its memory; nothing of it need travel.
        self._job = job if method == "fork" else _travelling(job)
        self._workers = workers
        self._timeout = timeout
        self._most = max_tasks_per_worker
        self._options = (max_memory, level)
        self._threads = threads
        # What forked children share needs no file; others are given one.
        self._memory = mmap(-1, 8 * MARK * workers) if method == "fork" else self._context.RawArray("d", MARK * workers)
        #: The marks of the workers, one after the other.
        self._slots = memoryview(self._memory).cast("B").cast("d")
        self._members: list[_Member] = []
        self._free = list(range(workers))
        self._stillborn = 0
        _engines.add(self)

    def room(self, cheap: bool) -> int:
        deep = 2 if cheap and self._most is None else 1
        idle = sum(max(0, deep - len(member.tasks)) for member in self._members)
        return idle + deep * (self._workers - len(self._members))

    def submit(self, task: Task, *, unsure: bool) -> None:
        data = bytes([unsure]) + sent(task, pickle.dumps)
        idle = [member for member in self._members if not member.tasks]
        if idle:
            member = idle[0]
        elif self._free:
            member = self._start()
        else:
            member = min(self._members, key=lambda member: len(member.tasks))
        member.line.send(data)
        member.tasks.append(task)

    def _start(self) -> _Member:
        ours, theirs = self._context.Pipe()
        slot = self._free.pop(0)
        self._slots[MARK * slot] = IDLE
        self._slots[MARK * slot + 2] = 0
        process = self._context.Process(target=main, args=(self._job, theirs, self._memory, slot, *self._options))
        with guard.thread_limits(self._threads):
            process.start()
        theirs.close()
        member = _Member(process, ours, slot, Line(ours.fileno()))
        self._members.append(member)
        return member

    def wait(self, timeout: float) -> list[Event]:
        if self._timeout is not None:
            timeout = min(timeout, self._timeout / 4)
            self._end_late(self._timeout)
        events: list[Event] = []
        for member, has_ended in self._ready(timeout):
            if member in self._members and (not self._receive(member, events) or has_ended):
                self._bury(member, events)
        # A child of a dead worker may hold open what would tell of the death.
        for member in tuple(self._members):
            if not member.process.is_alive():
                self._receive(member, events)
                if member in self._members:
                    self._bury(member, events)
        return events

    def _ready(self, timeout: float) -> list[tuple[_Member, bool]]:
        """Return the workers that have said something, or have taken something, and whether they have ended."""
        with PollSelector() as selector:
            for member in self._members:
                wants = EVENT_READ | EVENT_WRITE if member.line.is_full else EVENT_READ
                selector.register(member.pipe, wants, (member, False))
                selector.register(member.process.sentinel, EVENT_READ, (member, True))
            ready = selector.select(timeout)
        for key, _ in ready:
            key.data[0].line.flush()
        return [key.data for key, _ in ready]

    def _receive(self, member: _Member, events: list[Event]) -> bool:
        """Take what a worker has said; return whether it can say more."""
        try:
            for message in member.line.messages():
                said = pickle.loads(message)
                if isinstance(said, Failure):
                    raise WorkerDiedError(f"a worker could not begin: {said!r}") from said.exception
                self._stillborn = 0
                member.reports += 1
                task = member.tasks.popleft()
                events.append(Event(task, said))
                member.done += said.done
                if self._most is not None and member.done >= self._most and not member.tasks:
                    self._retire(member)
                    return True
        except EOFError:
            return False
        return True

    def _retire(self, member: _Member) -> None:
        member.line.send(b"")
        self._leave(member)

    def _leave(self, member: _Member) -> int | None:
        """Wait for the end of a worker, and return its exit code."""
        member.process.join(_GRACE)
        if member.process.is_alive():
            member.process.kill()
            member.process.join()
        member.pipe.close()
        self._members.remove(member)
        self._free.append(member.slot)
        code: int | None = member.process.exitcode
        with suppress(ValueError):
            # Whose end was never told, for the program ignores it (SIGCHLD).
            member.process.close()
        return code

    def _mark(self, member: _Member) -> tuple[int, int]:
        """Return which task a worker is at, counted from 1, and what it has marked of it."""
        at, _, task = self._slots[MARK * member.slot : MARK * (member.slot + 1)]
        # The one before is told already.
        return (int(task), int(at)) if task > member.reports else (int(task), IDLE)

    def _bury(self, member: _Member, events: list[Event]) -> None:
        mark = self._mark(member)
        at: int | None = mark[1]
        code = self._leave(member)
        if at == IDLE and not member.reports:
            self._stillborn += 1
            if code is None or code > 0 or self._stillborn > _STILLBORN:
                raise WorkerDiedError(
                    f"a worker process {_how(code)} before it did anything.  Its own error, if it had one, stands "
                    f"above.  A script must begin this work under  if __name__ == '__main__':  and define outside of "
                    f"that what the workers use; an initializer must not end its process"
                )
        error, judged = member.ended or (WorkerDiedError(f"its worker {_how(code)}"), mark)
        if at in (READING, WRITING):
            # It may be the fault of any of the items.
            at = None
        for number, task in enumerate(member.tasks):
            # Judged for one item, it may have been at the next when it was ended.
            events.append(Event(task, None, error, IDLE if number else at, blames=mark == judged))

    def _end_late(self, timeout: float) -> None:
        now = time.monotonic()
        for member in self._members:
            mark, since = self._mark(member), self._slots[MARK * member.slot + 1]
            if mark[1] == IDLE or not member.tasks or member.ended is not None:
                continue
            # To read and to write concerns all items together.
            most = timeout if mark[1] >= 0 else timeout * len(member.tasks[0].items)
            if now - since > most:
                late = ItemTimeoutError(f"it took longer than {timeout} s, and its worker was ended")
                member.ended = late, mark
                member.process.kill()

    def under_way(self) -> int:
        return sum(max(0, self._mark(member)[1]) for member in self._members if member.tasks)

    def close(self, *, now: bool) -> None:
        for member in self._members:
            if now:
                member.process.terminate()
            else:
                member.line.send(b"")
        end = time.monotonic() + _GRACE
        for member in tuple(self._members):
            member.process.join(max(0, end - time.monotonic()))
            self._leave(member)
        _engines.discard(self)


def _travelling(job: Job) -> bytes:
    # A process of this machine imports the script, so that what it defines is found there by its name.
    # Of one that has no script, what it defines must travel itself.
    if not hasattr(sys.modules["__main__"], "__file__") and find_spec("cloudpickle"):
        return packed(job)
    try:
        return pickle.dumps(job, 5)
    except Exception:  # noqa: BLE001 - whatever it is, it is to travel by its code then
        return packed(job)


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


@atexit.register
def _close_all() -> None:
    # Of an iteration that was left off, and never closed: else the interpreter would wait for its workers.
    for engine in tuple(_engines):
        engine.close(now=True)


# The workers are the parent's, not a child's.
os.register_at_fork(after_in_child=_engines.clear)
