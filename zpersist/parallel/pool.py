"""The engine: runs the chunks of a stash in worker processes of this machine.

This is the only module that knows how chunks reach a process; a :class:`Worker` travels to each process once, and
from then on only chunks and what is to be said about them do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for
from typing import Any, NamedTuple, Protocol

from zpersist.codecs import PickleCodec
from zpersist.errors import EncodeError, InvalidArgumentError, WorkerDiedError

__all__ = ["Chunk", "Worker", "available_cores", "check_start_method", "refuse_in_import", "run_chunks"]

#: Seconds between two looks at how far the workers are.
_GLANCE = 0.1

#: Seconds a worker has to write what it has, before it is killed.
_GRACE = 5.0


class Chunk(NamedTuple):
    """Some of the data, and by what it is known again in the next run."""

    id: str
    items: list[Any]


class Worker(Protocol):
    """What travels to the processes and does the work there."""

    def start(self, tell: Callable[[int], None]) -> None:
        """Begin in a process; ``tell`` takes the number of items done since the last time."""

    def work(self, items: list[Any]) -> Any:
        """Do a chunk, and return what is to be said about it."""


class _Stop(BaseException):
    """The parent wants no more."""


def refuse_in_import() -> None:
    """Raise if this is a worker that is only just importing the script of its parent."""
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise InvalidArgumentError(
            "the script begins this work again in its own worker, which imports it: put the part that begins it "
            "under  if __name__ == '__main__':"
        )


def available_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def run_chunks(
    worker: Worker,
    chunks: Iterable[Chunk],
    *,
    workers: int,
    start_method: str | None,
    told: Callable[[int], None],
) -> Iterator[tuple[Chunk, Any]]:
    """Run chunks in processes, and yield each with what the worker returned, as they are finished.

    Only a few chunks more than there are workers are taken at a time.  After an error no new chunk is begun; those
    that run are finished and yielded before it is raised.

    Parameters
    ----------
    worker :
        Does the work; pickled unless processes are forked.
    chunks :
        The chunks; may be endless.
    workers :
        The number of processes; 1: no process but this one.
    start_method :
        Of :mod:`multiprocessing`; ``None``: fork if this process has no threads, else spawn.
    told :
        Is called now and then with the number of items done since the last time.

    Raises
    ------
    WorkerDiedError
        A process was killed or crashed.
    Exception
        What the worker raised.
    """
    if workers == 1:
        worker.start(told)
        yield from ((chunk, worker.work(chunk.items)) for chunk in chunks)
        return
    context = multiprocessing.get_context(_choose(start_method))
    if context.get_start_method() != "fork":
        _check_travels(worker)
    done = context.Value("Q", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(worker, done, os.getpid()))
    finished = False
    try:
        yield from _feed(pool, iter(chunks), 2 * workers, done, told)
        finished = True
    except BrokenProcessPool as err:
        raise WorkerDiedError(
            "a worker process died: it was killed, ran out of memory, crashed, or could not import the script (then "
            "its error stands above; is what begins this work under  if __name__ == '__main__': ?); what was finished "
            "is kept, and the next run goes on from there"
        ) from err
    finally:
        if not finished:
            _terminate(pool)
        pool.shutdown(wait=True, cancel_futures=True)


def _check_travels(worker: Worker) -> None:
    try:
        PickleCodec().dumps(worker)
    except EncodeError as err:
        raise EncodeError(
            f"the stash can't travel to a new process: {err.__cause__}; define its class and functions at the top of "
            f"a module, or use start_method='fork'"
        ) from err


def _feed(
    pool: ProcessPoolExecutor, chunks: Iterator[Chunk], ahead: int, done: Any, told: Callable[[int], None]
) -> Iterator[tuple[Chunk, Any]]:
    running: dict[Future[Any], Chunk] = {}
    error: BaseException | None = None
    seen = 0
    while True:
        if error is None:
            running.update((pool.submit(_run, chunk.items), chunk) for chunk in islice(chunks, ahead - len(running)))
        if not running:
            break
        ready, _ = wait(running, timeout=_GLANCE, return_when=FIRST_COMPLETED)
        seen = _report(done, seen, told)
        for future in ready:
            chunk = running.pop(future)
            if future.cancelled():
                continue
            failure = future.exception()
            if failure is None:
                yield chunk, future.result()
            elif error is None:
                error = failure
                for other in running:
                    other.cancel()
    _report(done, seen, told)
    if error is not None:
        raise error


def _report(done: Any, seen: int, told: Callable[[int], None]) -> int:
    now = int(done.value)
    if now > seen:
        told(now - seen)
    return now


def _terminate(pool: ProcessPoolExecutor) -> None:
    # Python 3.14 has ProcessPoolExecutor.terminate_workers(); before, the processes are known to the pool alone.
    processes = tuple((getattr(pool, "_processes", None) or {}).values())
    for process in processes:
        process.terminate()
    end = time.monotonic() + _GRACE
    left = {process.sentinel for process in processes}
    while left and time.monotonic() < end:
        left.difference_update(wait_for(list(left), timeout=_GRACE))
    for process in processes:
        if process.sentinel in left:
            process.kill()


# In the child.

_worker: Worker | None = None
_working = False


def _begin(worker: Worker, done: Any, parent: int) -> None:
    global _worker
    # The parent decides what an interrupt means; it ends its children by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_die_with, args=(parent,), name="zpersist-parent-watch", daemon=True).start()

    def tell(count: int) -> None:
        with done.get_lock():
            done.value += count

    worker.start(tell)
    _worker = worker


def _stop(number: int, frame: object) -> None:
    if _working:
        raise _Stop
    # Outside of the work this process may wait for a lock of the pool that a killed one will never give back.
    os._exit(0)


def _die_with(parent: int) -> None:
    watched = multiprocessing.parent_process()
    if watched is not None:
        watched.join()
    os._exit(1)


def _run(items: list[Any]) -> Any:
    if _worker is None:
        raise WorkerDiedError("the worker process was not set up")
    global _working
    try:
        _working = True
        outcome = _worker.work(items)
        _working = False
    except _Stop:
        os._exit(0)
    except BaseException:
        _working = False
        raise
    return outcome
