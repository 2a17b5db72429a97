"""Filling a stash by a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any, TypeVar

from attrs import define, field, fields

from zpersist.errors import InvalidArgumentError, InvalidDelegateError
from zpersist.parallel.factory import KeyedStash
from zpersist.parallel.job import NoKeyError
from zpersist.parallel.options import check_workers
from zpersist.parallel.run import Summary
from zpersist.readonly import ReadOnlyStash
from zpersist.stash import Stash

__all__ = ["fill"]

T = TypeVar("T")
V = TypeVar("V")


def _own_key(item: object) -> str:
    # A number of NumPy is no int, but Integral.
    if isinstance(item, (str, int, Integral)):
        return str(item)
    raise NoKeyError(f"item {item!r} is of type {type(item).__name__}, not str or int: give key=, a function")


@define(slots=False, eq=False)
class _FunctionStash(KeyedStash[V]):
    """What a function makes of items."""

    function: Callable[[Any], V]
    data: Iterable[Any]
    key: Callable[[Any], str]
    workers: int | float = field(default=0, kw_only=True, validator=check_workers)

    @property
    def _label(self) -> str:
        return "fill"

    def _create_data(self) -> Iterable[Any]:
        return self.data

    def _process(self, chunk: Iterable[Any]) -> Iterator[tuple[str, V]]:
        function, key = self.function, self.key
        for item in chunk:
            yield key(item), function(item)

    def _key_of(self, item: Any) -> str:
        return self.key(item)

    def __getstate__(self) -> dict[str, object]:
        # The items come one by one.
        return super().__getstate__() | {"data": ()}


def fill(
    stash: Stash[V],
    worker: Callable[[T], V],
    items: Iterable[T],
    *,
    key: Callable[[T], str] = _own_key,
    **options: Any,
) -> Summary:
    """Have many processes make values of items, and keep them in a stash; those that are there are not made again.

    Parameters
    ----------
    stash :
        Where the values are kept.
    worker :
        Makes a value of an item; runs in the workers.  Any function, also a lambda or a closure: what it refers to is
        shared with forked workers without a copy.
    items :
        The items; taken as they are needed, so they may be endless.
    key :
        Returns the key of an item; default: the item itself, if it is a ``str`` or an ``int``.
    **options :
        All of :class:`~zpersist.MultiProcessStash`: ``workers`` (default: all cores), ``chunk_size``, ``on_error``,
        ``retries``, ``timeout``, ``executor``, ``progress``, and the others; and ``retry_failed``: make again what is a
        :class:`~zpersist.Failure` of an earlier run.

    Returns
    -------
    Summary
        How many were made, were there, and failed.

    Raises
    ------
    WorkerDiedError
        An item killed its worker ``retries`` times; all others are finished.
    Exception
        What ``worker`` raised, unless ``on_error`` says otherwise; what was finished is kept.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: as :class:`~zpersist.MultiProcessStash`.

    Examples
    --------
    >>> stash = DirectoryStash("squares")
    >>> print(fill(stash, lambda n: n * n, range(100), workers=2).done)
    100
    >>> stash["7"]
    49
    >>> fill(stash, lambda n: n * n, range(101), workers=2).done
    1
    """
    if not isinstance(stash, Stash) or isinstance(stash, ReadOnlyStash):
        raise InvalidDelegateError(f"stash must be a stash that keeps values, such as a DirectoryStash, not {stash!r}")
    if not callable(worker):
        raise InvalidArgumentError(f"worker must be a function, not {worker!r}")
    if not isinstance(items, Iterable):
        raise InvalidArgumentError(f"items must be iterable, not {items!r}")
    if not callable(key):
        raise InvalidArgumentError(f"key must be a function, not {key!r}")
    known = {option.name for option in fields(_FunctionStash) if option.kw_only}
    if unknown := options.keys() - known:
        raise TypeError(f"fill() has no option {min(unknown)!r}; it has {', '.join(sorted(known))}")
    filling: _FunctionStash[V] = _FunctionStash(stash, worker, items, key, **options)
    filling.prime()
    return filling.summary
