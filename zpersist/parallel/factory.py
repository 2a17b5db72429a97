"""Many processes that load from a factory what a stash lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from threading import get_ident
from typing import Any, ClassVar, TypeVar

from attrs import define, field

from zpersist.errors import InvalidArgumentError
from zpersist.failure import Failure
from zpersist.files.locks import Claims
from zpersist.parallel.intake import InputOrder
from zpersist.parallel.job import OnError, check_on_error
from zpersist.parallel.known import KeysThere
from zpersist.parallel.multiprocess import MultiProcessStash
from zpersist.parallel.options import check_workers
from zpersist.stash import MISSING, Stash
from zpersist.wrappers.delegate import check_stash

__all__ = ["KeyedStash", "MultiProcessDefaultStash", "MultiProcessFactoryStash", "MultiProcessRobustStash"]

V = TypeVar("V")

#: The most keys that are listed before the first value is made.
_MOST = 100_000


@define(slots=False, eq=False)
class MultiProcessDefaultStash(MultiProcessStash[V]):
    """A :class:`~zpersist.MultiProcessStash` that works in this process alone, unless told otherwise.

    Parameters
    ----------
    delegate :
        Where the values are kept.
    workers :
        The number of processes; default: 1, none but this one.

    Notes
    -----
    All other parameters are those of :class:`~zpersist.MultiProcessStash`.

    *Concurrency*, *Durability*, *Trust*: as :class:`~zpersist.MultiProcessStash`.
    """

    workers: int | float = field(default=1, kw_only=True, validator=check_workers)


def _check_preemptive(stash: object, attribute: Any, value: object) -> None:
    if value not in (True, False, "always"):
        raise InvalidArgumentError(f"enable_preemptive must be True, False or 'always', not {value!r}")


@define(slots=False, eq=False)
class KeyedStash(MultiProcessDefaultStash[V]):
    """A :class:`~zpersist.MultiProcessStash` each of whose items has one key, known before: what is missing is made.

    A subclass gives ``_create_data``, ``_process`` (that takes an iterator, and yields one pair for each item, in
    order) and ``_key_of``.
    """

    _divisible: ClassVar[bool] = True

    retry_failed: bool = field(default=False, kw_only=True)
    _retried: bool = field(init=False, repr=False, default=False)

    def _calculate_has_data(self) -> bool:
        # Whether keys are missing is found out once, by the first access.
        return False

    def _to_do_again(self) -> Collection[str]:
        """Have what failed in earlier runs be made again, once, and return its keys."""
        if self._retried or not self.retry_failed:
            return ()
        self._retried = True
        notes = self._notes()
        failed = [name for name in notes.names() if self._can_make(name)]
        notes.forget(failed)
        return failed

    def _can_make(self, name: str) -> bool:
        return True

    def _fill(self, claims: Claims | None, wants_keys: bool, order: InputOrder | None) -> Iterator[list[str]]:
        known = KeysThere(self.delegate, self._key_of, self._to_do_again())
        for task, report in self._run(self._create_data(), known, claims, order=order):
            settled = max(1, report.done)
            keys = [self._key_of(item) for item in task.items[:settled]] if wants_keys else []
            if order is not None:
                order.add(task.places[:settled], keys)
            yield keys

    def _in_order(self, window: int) -> Iterator[tuple[str, V]]:
        order = InputOrder(window)
        if self._filler == get_ident():
            self.prime()
        if self.has_data:
            yield from self._pairs(self._key_of(item) for item in self._create_data())
            return
        with self._streamed(order) as stream:
            for _ in stream:
                yield from self._pairs(order.ready())
        # What others have done meanwhile, or all of it.
        rest = order.ready() if not order.untouched else (self._key_of(item) for item in self._create_data())
        yield from self._pairs(rest)


@define(slots=False, eq=False)
class MultiProcessFactoryStash(KeyedStash[V]):
    """Has many processes load, from a factory, the values that its delegate lacks.

    The keys are the factory's; the next run loads exactly those that are missing.

    Parameters
    ----------
    delegate :
        Where the values are kept.
    factory :
        The stash whose ``load`` makes a value and whose ``keys`` are the keys to fill.
    enable_preemptive :
        ``"always"``: look for missing keys at each access, not only at the first.
    retry_failed :
        Make again what is a :class:`~zpersist.Failure` of an earlier run.
    chunk_size :
        The most items a chunk has; 0: as many as take about 50 ms, and fewer towards the end.

    Raises
    ------
    Exception
        By the first read: what the factory raised; what was finished is kept.

    Notes
    -----
    All other parameters are those of :class:`~zpersist.MultiProcessStash`; ``workers`` is 1 by default.

    *Concurrency*, *Durability*, *Trust*: as :class:`~zpersist.MultiProcessStash`.

    Examples
    --------
    >>> stash = MultiProcessFactoryStash(DictionaryStash(), DictionaryStash({"a": 1, "b": 2}), workers=1)
    >>> len(stash), stash["b"]
    (2, 2)
    """

    factory: Stash[V] = field(validator=check_stash)
    enable_preemptive: bool | str = field(default=False, validator=_check_preemptive)

    def _can_make(self, name: str) -> bool:
        return self.factory.exists(name)

    def _create_data(self) -> Iterable[Any]:
        # To know how many there are, unless they are too many to be held in memory.
        keys = iter(self.factory.keys())
        first = list(islice(keys, _MOST))
        return first if len(first) < _MOST else chain(first, keys)

    def _process(self, chunk: Iterable[Any]) -> Iterator[tuple[str, V]]:
        for name in chunk:
            value = self.factory._fetch(name)
            if value is not MISSING:
                yield name, value

    def prime(self) -> None:
        """Load what is missing, unless that has been done."""
        if self.enable_preemptive == "always" and not self._working:
            self._reset_has_data()
        super().prime()

    def _cleared(self) -> None:
        super()._cleared()
        self.factory.clear()


@define(slots=False, eq=False)
class MultiProcessRobustStash(MultiProcessFactoryStash[V]):
    """A :class:`MultiProcessFactoryStash` in which an item that fails does not stop the others.

    Parameters
    ----------
    delegate, factory, enable_preemptive :
        As in :class:`MultiProcessFactoryStash`.
    protect_work :
        Keep a :class:`~zpersist.Failure` as the value of an item that raised; otherwise raise.
    retry_failed :
        Try failed items again in the next run.

    Notes
    -----
    All other parameters are those of :class:`~zpersist.MultiProcessStash`; ``on_error`` follows ``protect_work``.

    *Concurrency*, *Durability*, *Trust*: as :class:`~zpersist.MultiProcessStash`.

    Examples
    --------
    >>> class Half(ReadOnlyStash):
    ...     def load(self, name):
    ...         return 1 / int(name)
    ...     def keys(self):
    ...         return ("0", "2")
    >>> stash = MultiProcessRobustStash(DictionaryStash(), Half())
    >>> stash["2"], dict(stash.iterfails())
    (0.5, {'0': ZeroDivisionError: division by zero})
    """

    on_error: OnError = field(default="store", kw_only=True, validator=check_on_error)
    protect_work: bool = field(default=True, kw_only=True)
    retry_failed: bool = field(default=True, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.protect_work:
            self.on_error = "raise"

    def invalidate(self) -> None:
        """Look for missing keys again, and load them."""
        self._reset_has_data()
        self.prime()

    def iterfails(self) -> Iterator[tuple[str, Failure]]:
        """Iterate over the keys of failed items, with their failures."""
        return ((name, value) for name, value in self.items() if isinstance(value, Failure))

    def reprocess_failures(self) -> set[str]:
        """Try all failed items again, and return their keys."""
        failed = {name for name, _ in self.iterfails()}
        self._notes().forget(failed)
        self.invalidate()
        return failed
