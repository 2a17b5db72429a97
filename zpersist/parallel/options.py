"""What the options of filling may be: validators for attrs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from zpersist.errors import InvalidArgumentError
from zpersist.parallel.guard import available_cores

__all__ = ["check_callable", "check_count", "check_executor", "check_memory", "check_timeout", "check_workers"]


def check_workers(stash: object, attribute: Any, workers: object) -> None:
    """Raise unless ``workers`` is a number of processes or a share of the cores."""
    if isinstance(workers, bool) or not isinstance(workers, (int, float)):
        raise InvalidArgumentError(f"workers must be a number, not {workers!r}")
    if isinstance(workers, float) and not 0 < workers <= 1:
        raise InvalidArgumentError(
            f"workers={workers!r} is a share of the cores and must be above 0 and at most 1; use an int for a number"
        )
    if isinstance(workers, int) and workers < 0 and available_cores() + workers < 1:
        raise InvalidArgumentError(f"workers={workers!r} leaves none of {available_cores()} cores; use 1 or 0")


def check_count(least: int, *, optional: bool = False) -> Callable[[object, Any, object], None]:
    """Return what raises unless a value is a whole number of at least ``least``, or ``None`` if that may be."""

    def check(stash: object, attribute: Any, count: object) -> None:
        if optional and count is None:
            return
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InvalidArgumentError(f"{attribute.name} must be a whole number of at least {least}, not {count!r}")

    return check


def check_timeout(stash: object, attribute: Any, timeout: object) -> None:
    """Raise unless ``timeout`` is ``None`` or a number of seconds."""
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0):
        raise InvalidArgumentError(f"timeout must be a number of seconds above 0 or None, not {timeout!r}")


def check_callable(stash: object, attribute: Any, value: object) -> None:
    """Raise unless ``value`` is ``None`` or a function."""
    if value is not None and not callable(value):
        raise InvalidArgumentError(f"{attribute.name} must be a function or None, not {value!r}")


def check_executor(stash: object, attribute: Any, value: object) -> None:
    """Raise unless ``value`` is ``None``, an executor, or a function that may make one."""
    if value is not None and not isinstance(value, Executor) and (isinstance(value, type) or not callable(value)):
        raise InvalidArgumentError(
            f"executor must be a concurrent.futures.Executor, or a function that makes one, not {value!r}; such as "
            f"executor=lambda: ProcessPoolExecutor(2), or client.get_executor(pure=False) of Dask"
        )


def check_memory(stash: object, attribute: Any, size: object) -> None:
    """Raise unless ``size`` is ``None`` or a number of bytes that a process can live with."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1 << 26):
        raise InvalidArgumentError(
            f"max_memory must be a whole number of bytes, at least 64 MiB ({1 << 26}), not {size!r}"
        )
