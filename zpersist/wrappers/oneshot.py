"""Filling a stash once, from a function or an iterable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from attrs import define, field

from zpersist.errors import InvalidArgumentError
from zpersist.wrappers.prime import Completion, PrimablePreemptiveStash

__all__ = ["OneShotFactoryStash"]

V = TypeVar("V")

Pairs = Iterable[tuple[str, V]]


@define(slots=False, eq=False)
class OneShotFactoryStash(PrimablePreemptiveStash[V]):
    """Fills its delegate from a *worker* when it is first read, and never again once that has been finished.

    Parameters
    ----------
    delegate :
        Where the values are kept.
    worker :
        The ``(key, value)`` pairs, or a function that returns them.  May also be set later, or be a property of a
        subclass.

    Notes
    -----
    *Concurrency*: that of the delegate; among threads and processes that share it, one fills it and the others wait.
    *Durability*: that of the delegate.  A worker that failed, or was killed, is run again by the next reader.
    *Trust*: that of the delegate.

    Examples
    --------
    >>> stash = OneShotFactoryStash(DictionaryStash(), lambda: [("a", 1), ("b", 2)])
    >>> len(stash), stash["b"]
    (2, 2)
    """

    worker: Pairs[V] | Callable[[], Pairs[V]] | None = field(default=None, repr=False)

    _spent: bool = field(init=False, repr=False, default=False)

    def _get_worker_type(self) -> str:
        """Return ``"m"`` if the worker is a function, ``"a"`` if it is the data, ``"u"`` if that is to be found out."""
        return "u"

    def _process_work(self) -> None:
        kind = self._get_worker_type()
        if kind not in ("u", "m", "a"):
            raise InvalidArgumentError(f"the type of a worker is 'u', 'm' or 'a', not {kind!r}")
        worker: Any = self.worker
        if worker is None:
            raise InvalidArgumentError(f"{type(self).__name__} has no worker; set .worker to pairs or to a function")
        if isinstance(worker, Iterator):
            if self._spent:
                raise InvalidArgumentError(
                    f"the worker of {type(self).__name__} is an iterator that failed before, and can't be used again; "
                    f"set .worker to a function that returns the pairs, or to a list of them"
                )
            self._spent = True
        self.delegate.dump_many(worker() if kind == "m" or (kind == "u" and callable(worker)) else worker)

    def _calculate_has_data(self) -> bool:
        return Completion(self.delegate).finished

    def prime(self) -> None:
        """Fill the delegate, unless that has been done."""
        super().prime()
        if self.has_data:
            return
        with self.delegate._flight("all", "oneshot"):
            if self.has_data:
                return
            completion = Completion(self.delegate)
            completion.begin()
            self._process_work()
            completion.finish()
            self._reset_has_data()
