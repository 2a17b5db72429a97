"""A lock of threads that a forked child finds free.

A child has only the thread that forked: what another thread held is held for ever there.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from types import TracebackType

__all__ = ["ForkLock"]

_generation = 0
_guard = threading.Lock()


def _count() -> None:
    global _generation, _guard
    _generation += 1
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_count)


class ForkLock:
    """A re-entrant lock of the threads of one process."""

    __slots__ = ("_generation", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._generation = _generation

    def __enter__(self) -> None:
        if self._generation != _generation:
            with _guard:
                if self._generation != _generation:
                    self._lock = threading.RLock()
                    self._generation = _generation
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Taken before a fork by the thread that forked, and given back in the child.
        with suppress(RuntimeError):
            self._lock.release()

    def __reduce__(self) -> tuple[type[ForkLock], tuple[()]]:
        return type(self), ()
