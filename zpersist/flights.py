"""Locks by name among the threads of a process: one computes, the others wait."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from types import TracebackType

from zpersist.forklock import ForkLock

__all__ = ["Flights", "flights"]


class Flights:
    """One re-entrant lock an owner and name, for as long as somebody wants it."""

    def __init__(self) -> None:
        self._guard = ForkLock()
        self._locks: dict[tuple[int, str], tuple[threading.RLock, int]] = {}

    def hold(self, owner: int, name: str) -> AbstractContextManager[None]:
        """Hold the lock of a name within a ``with``; a thread that holds it already goes straight on."""
        return _Flight(self, (owner, name))

    def take(self, key: tuple[int, str]) -> None:
        """Wait for a lock, and take it."""
        with self._guard:
            lock, wanted = self._locks.get(key) or (threading.RLock(), 0)
            self._locks[key] = lock, wanted + 1
        lock.acquire()

    def give(self, key: tuple[int, str]) -> None:
        """Give a lock back."""
        with self._guard:
            # A child forked by the holder has none of its parent's locks.
            lock, wanted = self._locks.get(key, (None, 1))
            if lock is None:
                return
            if wanted == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, wanted - 1
        lock.release()


class _Flight(AbstractContextManager[None]):
    def __init__(self, flights: Flights, key: tuple[int, str]) -> None:
        self._flights = flights
        self._key = key

    def __enter__(self) -> None:
        self._flights.take(self._key)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flights.give(self._key)


#: The locks of this process.
flights = Flights()

# What other threads of the parent held, nobody would give back in a child.
os.register_at_fork(after_in_child=flights._locks.clear)
