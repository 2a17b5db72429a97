"""What runs in a worker process of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from zpersist.failure import Failure
from zpersist.parallel import guard, line
from zpersist.parallel.job import IDLE, READING, Job
from zpersist.parallel.logs import captured

__all__ = ["MARK", "main"]

#: The numbers of a mark: what is under way, since when, and of which task, counted from 1.
MARK = 3

#: The process of the worker itself, not of its children.
_pid = 0


class _Stop(BaseException):
    """The parent wants no more."""


def main(
    job: Job | bytes,
    pipe: Connection,
    slots: Any,
    slot: int,
    max_memory: int | None,
    level: int,
) -> None:
    """Do the tasks that come through a pipe, until it is closed or an empty one comes."""
    # The parent decides what an interrupt means; it ends its children by SIGTERM.
    with suppress(_Stop, EOFError, ConnectionError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        global _pid
        _pid = os.getpid()
        signal.signal(signal.SIGTERM, _stop)
        guard.die_with_parent()
        guard.enter_worker()
        if max_memory is not None:
            guard.limit_memory(max_memory)
        job = _arrived(job)
        job.mark = memoryview(slots).cast("B").cast("d")[MARK * slot : MARK * (slot + 1)]
        _serve(job, pipe, level)


def _arrived(job: Job | bytes) -> Job:
    if isinstance(job, Job):
        return job
    return pickle.loads(job)  # type: ignore[no-any-return]


def _stop(number: int, frame: object) -> None:
    if os.getpid() != _pid:
        # A child of a worker is ended as any other process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        raise _Stop


def _serve(job: Job, pipe: Connection, level: int) -> None:
    fd, mark = pipe.fileno(), job.mark

    def begun() -> None:
        mark[1] = time.monotonic()
        mark[0] = READING
        # Last: what the mark says is of this task.
        mark[2] += 1

    with captured(level) as records:
        try:
            job.begin()
        except Exception as err:  # noqa: BLE001 - the parent is to raise it
            line.send(fd, pickle.dumps(Failure(err), 5))
            return
        while True:
            try:
                message = line.receive(fd, begun)
            except MemoryError as err:
                report = job.unreadable(err)
            else:
                if not message:
                    return
                report = job.do_sent(memoryview(message)[1:], bool(message[0]))
            line.send(fd, pickle.dumps(report._replace(records=records), 5))
            mark[0] = IDLE
            records.clear()
