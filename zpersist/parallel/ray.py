"""Ray as an executor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

try:
    import ray
except ImportError as err:
    raise ImportError("zpersist.parallel.ray needs Ray: pip install 'zpersist[ray]'") from err

__all__ = ["RayExecutor"]


class RayExecutor(Executor):
    """Runs calls as Ray tasks.

    Parameters
    ----------
    **options :
        Of a task, such as ``num_cpus`` and ``resources``; see ``ray.remote``.

    Notes
    -----
    *Concurrency*: Ray runs as many tasks at once as the cluster has room for.  A cancelled future does not end its
    task.  A worker that dies loses its task alone; it is given out again by the one who submitted it, not by Ray.
    *Trust*: that of the cluster.

    Ray has no executor of its own; ``ObjectRef.future()`` is the documented way to a
    :class:`concurrent.futures.Future`.
    """

    def __init__(self, **options: Any) -> None:
        if not ray.is_initialized():
            ray.init()
        # Made once: each remote function is exported to the cluster.
        self._call = ray.remote(_call).options(max_retries=0, **options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call as a task."""
        future: Future[Any] = self._call.remote(fn, args, kwargs).future()
        return future


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)
