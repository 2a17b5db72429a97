"""What a worker process owes to its machine and its parent: it dies with it, and takes no more than its share."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from zpersist.errors import InvalidArgumentError

__all__ = [
    "available_cores",
    "die_with_parent",
    "enter_worker",
    "in_worker",
    "limit_memory",
    "limit_threads",
    "refuse_in_import",
    "thread_limits",
]

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_in_worker = False


def available_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_worker() -> bool:
    """Return whether this process does the work of another one."""
    return _in_worker


def enter_worker() -> None:
    """Say that this process does the work of another one."""
    global _in_worker
    _in_worker = True


def refuse_in_import() -> None:
    """Raise if this is a worker that is only just importing the script of its parent."""
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise InvalidArgumentError(
            "the script begins this work again in its own worker, which imports it: put the part that begins it "
            "under  if __name__ == '__main__':"
        )


def die_with_parent() -> None:
    """End this process as soon as the one that started it has died, whatever it does at that moment."""
    threading.Thread(target=_watch, name="zpersist-parent-watch", daemon=True).start()


def _watch() -> None:
    watched, above = multiprocessing.parent_process(), os.getppid()
    while watched is not None and watched.is_alive() and os.getppid() == above:
        # Another child of the parent may hold open what tells of its death; then it is told by the new parent.
        watched.join(1.0)
    os._exit(1)


# threads of native libraries


def _limits(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in _THREADS if name not in os.environ}


def _loaded_libraries(threads: int) -> AbstractContextManager[object]:
    """Have libraries that have read the environment already use so many threads within a ``with``."""
    if "numpy" not in sys.modules or not find_spec("threadpoolctl"):
        return nullcontext()
    import threadpoolctl

    limits: AbstractContextManager[object] = threadpoolctl.threadpool_limits(threads)
    return limits


@contextmanager
def thread_limits(threads: int) -> Iterator[None]:
    """Have processes that are started within a ``with`` use so many threads in BLAS and OpenMP."""
    wanted = os.environ.get("OMP_NUM_THREADS", str(threads)) == str(threads)
    added = _limits(threads)
    os.environ.update(added)
    try:
        # Forked ones inherit what libraries that are loaded already use; to tell them there would cost each its start.
        with _loaded_libraries(threads) if wanted else nullcontext():
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def limit_threads(threads: int) -> None:
    """Have this process use so many threads in BLAS and OpenMP, unless the environment says otherwise."""
    wanted = os.environ.get("OMP_NUM_THREADS", str(threads))
    os.environ.update(_limits(threads))
    if wanted == str(threads):
        # It stays so: nothing is taken back when the process ends.
        _loaded_libraries(threads).__enter__()


# memory


def limit_memory(size: int) -> None:
    """Have this process raise ``MemoryError`` when its data has grown by ``size`` bytes."""
    import resource

    # What a forked process shares with its parent counts as its own.
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + size
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))
