"""How tasks reach workers: one small interface, and the engines behind it that need no processes of ours."""

from __future__ import annotations

import os
import pickle
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import Any, NamedTuple
from uuid import uuid4

from zpersist.errors import EncodeError, InvalidArgumentError, WorkerDiedError
from zpersist.failure import Failure
from zpersist.parallel import guard
from zpersist.parallel.job import Job, Report
from zpersist.parallel.logs import captured
from zpersist.parallel.schedule import Task

__all__ = ["Engine", "Event", "ExecutorEngine", "SerialEngine", "packed", "sent"]


class Event(NamedTuple):
    """What became of a task: a report, or its loss."""

    task: Task
    report: Report | None
    #: Why it was lost.
    error: BaseException | None = None
    #: Which item was under way; ``None`` if that can't be known, IDLE if none was begun.
    at: int | None = None
    #: Whether it may be the fault of an item.
    blames: bool = True


class Engine(ABC):
    """Takes tasks to workers and tells what became of them."""

    #: Whether the loss of a task is told for it alone, not for others that shared a fate with it.
    isolates = True

    @abstractmethod
    def room(self, cheap: bool) -> int:
        """Return how many more tasks are wanted now; of cheap ones some may wait at a worker."""

    @abstractmethod
    def submit(self, task: Task, *, unsure: bool) -> None:
        """Give a task to a worker; see :meth:`Job.do`.

        Raises
        ------
        EncodeError
            An item can't travel.
        """

    @abstractmethod
    def wait(self, timeout: float) -> list[Event]:
        """Return what became of tasks, at the latest after so many seconds."""

    def under_way(self) -> int:
        """Return how many items of tasks that run are done already, as far as is known."""
        return 0

    @abstractmethod
    def close(self, *, now: bool) -> None:
        """End all workers; ``now``: whatever they do."""


class SerialEngine(Engine):
    """Does the work in this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._task: tuple[Task, bool] | None = None
        job.work.begin(away=False)

    def room(self, cheap: bool) -> int:
        return int(self._task is None)

    def submit(self, task: Task, *, unsure: bool) -> None:
        self._task = task, unsure

    def wait(self, timeout: float) -> list[Event]:
        if self._task is None:
            return []
        (task, unsure), self._task = self._task, None
        return [Event(task, self._job.do(task.items, unsure))]

    def close(self, *, now: bool) -> None:
        self._task = None


def sent(task: Task, dumps: Callable[[list[Any], int], bytes]) -> bytes:
    """Return the items of a task as bytes."""
    try:
        return dumps(task.items, 5)
    except Exception as err:
        raise EncodeError(f"an item can't travel to a worker ({type(err).__name__}: {err}); give its name") from err


def packed(job: Job) -> bytes:
    """Return a job as bytes that make it again also where this program's script is not known."""
    try:
        import cloudpickle
    except ImportError as err:
        raise EncodeError(
            f"{job.work.label} works with something that has no name at the top of a module (a lambda, a closure, a "
            f"class within a function), and can't travel without cloudpickle: pip install 'zpersist[parallel]', or "
            f"define it at the top of a module"
        ) from err
    try:
        return bytes(cloudpickle.dumps(job, 5))
    except Exception as err:
        raise EncodeError(
            f"{job.work.label} can't travel to a worker ({type(err).__name__}: {err}); leave out what can't be "
            f"pickled, make it in the worker (initializer=), or use start_method='fork'"
        ) from err


_jobs: OrderedDict[str, Job] = OrderedDict()
_jobs_lock = threading.Lock()


class _Call(NamedTuple):
    """What goes to an executor with each task."""

    token: str
    parent: int
    level: int
    threads: int

    def __call__(self, payload: bytes | None, items: bytes, unsure: bool) -> Report | None:
        """Do a task where an executor has brought it; ``None``: the job is not known here yet."""
        # A thread pool brings it nowhere.
        away = os.getpid() != self.parent
        with _jobs_lock:
            job = _jobs.get(self.token)
            if job is None:
                if payload is None:
                    return None
                if away:
                    guard.enter_worker()
                    guard.limit_threads(self.threads)
                job = pickle.loads(payload)
                try:
                    job.begin()
                except Exception as err:  # noqa: BLE001 - the parent is to raise it
                    return Report(0, 0.0, {}, Failure(WorkerDiedError(f"a worker could not begin: {err!r}")), [])
                _jobs[self.token] = job
                while len(_jobs) > 2:
                    _jobs.popitem(last=False)
        if not away:
            return job.do_sent(items, unsure)
        with captured(self.level) as records:
            report = job.do_sent(items, unsure)
        return report._replace(records=records)


class ExecutorEngine(Engine):
    """Does the work in any :class:`concurrent.futures.Executor`.

    Parameters
    ----------
    job :
        What is to be done.
    executor :
        The executor, or a function that makes one: called again when the one before has broken.
    workers :
        How many tasks run at once.
    """

    isolates = False

    def __init__(
        self, job: Job, executor: Executor | Callable[[], Executor], *, workers: int, level: int, threads: int
    ) -> None:
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = executor if isinstance(executor, Executor) else executor()
        if not isinstance(self._executor, Executor):
            raise InvalidArgumentError(
                f"executor must be or make a concurrent.futures.Executor, not {self._executor!r}"
            )
        self._workers = workers
        self._payload = packed(job)
        self._call = _Call(uuid4().hex, os.getpid(), level, threads)
        self._running: dict[Future[Report | None], tuple[Task, bool]] = {}

    def room(self, cheap: bool) -> int:
        # One more for each worker hides the way there and back.
        return 2 * self._workers - len(self._running)

    def submit(self, task: Task, *, unsure: bool) -> None:
        self._send(task, unsure, None)

    def _send(self, task: Task, unsure: bool, payload: bytes | None) -> None:
        import cloudpickle

        # Not left to the executor, of which one couldn't tell what it failed at.
        items = sent(task, cloudpickle.dumps)

        def send() -> Future[Report | None]:
            return self._executor.submit(self._call.__call__, payload, items, unsure)

        try:
            future = send()
        except (BrokenExecutor, RuntimeError) as err:
            if self._make is None:
                raise WorkerDiedError(
                    f"the executor broke ({type(err).__name__}: {err}) and can't be made anew; give a function that "
                    f"makes one, executor=lambda: ...; what was finished is kept"
                ) from err
            self._executor = self._make()
            try:
                future = send()
            except (BrokenExecutor, RuntimeError) as trouble:
                raise WorkerDiedError(
                    f"the executor that was made anew takes no work ({type(trouble).__name__}: {trouble}): make a new "
                    f"one at each call; what was finished is kept"
                ) from trouble
        self._running[future] = task, unsure

    def wait(self, timeout: float) -> list[Event]:
        events = []
        ready, _ = wait(self._running, timeout, FIRST_COMPLETED)
        for future in ready:
            task, unsure = self._running.pop(future)
            error = future.exception() if not future.cancelled() else WorkerDiedError("the executor cancelled it")
            if error is not None:
                # Items never raise through a report: whatever comes here, a worker or its executor failed.
                events.append(Event(task, None, error))
            elif (report := future.result()) is None:
                self._send(task, unsure, self._payload)
            else:
                events.append(Event(task, report))
        return events

    def close(self, *, now: bool) -> None:
        for future in self._running:
            future.cancel()
        with _jobs_lock:
            # Where threads have done the work.
            _jobs.pop(self._call.token, None)
        if self._make is not None:
            self._executor.shutdown(wait=not now)
