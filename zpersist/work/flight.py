"""Coroutines: one computation for all who await it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from zpersist.stash import MISSING
from zpersist.work.level import Level
from zpersist.work.work import PersistedWork, refuse_one_pass

__all__ = ["await_work"]

#: How often, in seconds, a lock that another process holds is tried again.
_POLL = 0.02

Work = PersistedWork
Body = Callable[[], Coroutine[Any, Any, Any]]


class _Flight:
    """A computation, and how many await it."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.waiting = 0


async def await_work(work: Work, body: Body) -> Any:
    """Return the result of a work whose method is a coroutine.

    All who await it in one event loop share one computation, which is cancelled only when the last of them is.

    Parameters
    ----------
    work :
        The work.
    body :
        Starts the computation.
    """
    cell = work._alive()
    value = cell.get()
    if value is not MISSING:
        return value
    loop = asyncio.get_running_loop()
    flight: _Flight | None = cell.tasks.get(loop)
    if flight is None:
        flight = cell.tasks[loop] = _Flight(loop.create_task(_fly(work, body)))
        mine = flight

        def landed(task: asyncio.Task[Any]) -> None:
            if cell.tasks.get(loop) is mine:
                del cell.tasks[loop]

        flight.task.add_done_callback(landed)
    flight.waiting += 1
    try:
        return await asyncio.shield(flight.task)
    finally:
        flight.waiting -= 1
        if not flight.waiting and not flight.task.done():
            flight.task.cancel()
            if cell.tasks.get(loop) is flight:
                del cell.tasks[loop]


async def _fly(work: Work, body: Body) -> Any:
    cell = work._alive()
    level = work._level
    epoch = cell.epoch
    value = await _compute(work, body) if level is None else await _load_or_compute(work, level, body)
    with cell.lock:
        if cell.epoch != epoch:
            # Cleared or set meanwhile: those who asked before get what they asked for, nobody else does.
            return value
        cell.begin(value)
        return cell.value


async def _load_or_compute(work: Work, level: Level, body: Body) -> Any:
    value = await asyncio.to_thread(level.load)
    if value is not MISSING:
        return value
    level.check()
    epoch = work._cell.epoch
    while (handle := level.try_flight()) is None:
        await asyncio.sleep(_POLL)
    try:
        value = await asyncio.to_thread(level.load)
        if value is MISSING:
            value = await _compute(work, body)
            if work._cell.epoch == epoch:
                value = await asyncio.to_thread(level.offer, value)
        return value
    finally:
        handle.release()


async def _compute(work: Work, body: Body) -> Any:
    value = await body()
    refuse_one_pass(str(work), value)
    return value
