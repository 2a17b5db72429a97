"""Stashes that do something once before they are read, and those that know whether they have data."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, TypeVar

from attrs import define, field

from zpersist.errors import UnsupportedOperationError
from zpersist.stash import Missing, Stash, native
from zpersist.stores.memory import DictionaryStash
from zpersist.wrappers.delegate import DelegateStash

__all__ = ["Completion", "PreemptiveStash", "PrimablePreemptiveStash", "Primeable", "PrimeableStash", "companion_of"]

V = TypeVar("V")

_priming = threading.local()


class Primeable(ABC):
    """Something that can be made ready before it is used."""

    @abstractmethod
    def prime(self) -> None:
        """Make ready; doing it again does nothing."""


class PrimeableStash(Stash[V], Primeable):
    """A stash that is primed before it is read; to be mixed in before a stash that has the data.

    Whatever is done with it by key, or to list it, primes first; ``prime()`` itself may use it.

    Examples
    --------
    >>> class Greeting(PrimeableStash, DelegateStash):
    ...     def prime(self):
    ...         super().prime()
    ...         self.delegate.dump("hello", "world")
    >>> "hello" in Greeting(DictionaryStash())
    True
    """

    # Set in what shows only what is stored.
    _unprimed: bool = False

    def prime(self) -> None:
        """Prime the delegate, if it can be."""
        delegate = getattr(self, "delegate", None)
        if isinstance(delegate, Primeable):
            delegate.prime()

    def _ready(self) -> None:
        if self._unprimed:
            return
        # prime() may itself use the stash.
        busy: set[int] = _priming.__dict__.setdefault("stashes", set())
        if id(self) not in busy:
            busy.add(id(self))
            try:
                self.prime()
            finally:
                busy.discard(id(self))

    def _stored(self) -> Stash[V]:
        twin = copy(super()._stored())
        object.__setattr__(twin, "_unprimed", True)
        return twin

    def _fetch(self, name: str) -> V | Missing:
        self._ready()
        return super()._fetch(name)

    def dump(self, name: str, inst: V) -> None:
        """Prime, so that it does not write over the value later, and keep it."""
        self._ready()
        super().dump(name, inst)  # type: ignore[safe-super]

    def delete(self, name: str) -> bool:
        """Prime, so that it does not bring the key back, and remove it."""
        self._ready()
        return super().delete(name)  # type: ignore[safe-super]

    def exists(self, name: str) -> bool:
        """Prime, and return whether a key is there."""
        self._ready()
        return super().exists(name)

    def keys(self) -> Iterable[str]:
        """Prime, and return the keys."""
        self._ready()
        return super().keys()  # type: ignore[safe-super]

    @native
    def __len__(self) -> int:
        self._ready()
        return super().__len__()

    @native
    def __bool__(self) -> bool:
        self._ready()
        return super().__bool__()

    @native
    def add(self, name: str, inst: V) -> bool:
        """Prime, and keep a value only if there is none."""
        self._ready()
        return super().add(name, inst)

    @native
    def update(self, name: str, fn: Any, default: Any = None) -> V:
        """Prime, and replace a value by what a function makes of it."""
        self._ready()
        return super().update(name, fn, default)

    @native
    def items(self) -> Iterable[tuple[str, V]]:
        """Prime, and iterate over keys with their values."""
        self._ready()
        return super().items()

    @native
    def values(self) -> Iterable[V]:
        """Prime, and iterate over the values."""
        self._ready()
        return super().values()

    @native
    def load_many(self, names: Iterable[str]) -> dict[str, V]:
        """Prime, and return the values of those keys that are there."""
        self._ready()
        return super().load_many(names)

    @native
    def dump_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]]) -> None:
        """Prime, and keep many values."""
        self._ready()
        super().dump_many(items)

    @native
    def delete_many(self, names: Iterable[str]) -> int:
        """Prime, and remove many keys."""
        self._ready()
        return super().delete_many(names)


@define(slots=False, eq=False)
class PreemptiveStash(DelegateStash[V]):
    """Knows whether there is any data yet.

    Parameters
    ----------
    delegate :
        The stash this one stands on.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: those of the delegate.  Once there was data, ``has_data`` stays true
    until ``clear()``.

    Examples
    --------
    >>> stash = PreemptiveStash(DictionaryStash())
    >>> stash.has_data
    False
    """

    _has_data: bool | None = field(init=False, repr=False, default=None)

    @property
    def has_data(self) -> bool:
        """Whether the delegate has data."""
        if not self._has_data:
            self._has_data = self._calculate_has_data()
        return self._has_data

    def _calculate_has_data(self) -> bool:
        return bool(self.delegate)

    def _reset_has_data(self) -> None:
        self._has_data = None

    def _set_has_data(self, has_data: bool = True) -> None:
        self._has_data = has_data

    def _cleared(self) -> None:
        super()._cleared()
        self._reset_has_data()


class PrimablePreemptiveStash(PrimeableStash[V], PreemptiveStash[V]):
    """A stash that is primed before it is read, and knows whether it has data."""


_fallbacks: weakref.WeakKeyDictionary[Stash[Any], dict[str, Stash[Any]]] = weakref.WeakKeyDictionary()


def companion_of(stash: Stash[Any], purpose: str) -> Stash[Any]:
    """Return the stash for bookkeeping beside a stash; in memory, as long as the stash lives, if it has no place."""
    try:
        return stash._companion(purpose)
    except UnsupportedOperationError:
        return _fallbacks.setdefault(stash, {}).setdefault(purpose, DictionaryStash())


class Completion:
    """Remembers, beside the data, whether filling a stash was begun and whether it was finished.

    Data of which nothing is known is taken as finished: somebody put it there in another way.

    Parameters
    ----------
    stash :
        The stash that is filled.  If it has no place for bookkeeping, the memory lasts as long as the process.
    """

    def __init__(self, stash: Stash[Any]) -> None:
        self._stash = stash
        self.journal = companion_of(stash, "journal")

    @property
    def finished(self) -> bool:
        """Whether all data is there."""
        state = self.journal.get("state")
        return state == "finished empty" or (bool(self._stash) and state in (None, "finished"))

    @property
    def begun(self) -> bool:
        """Whether somebody has said that there may be some data, and not all of it."""
        return self.journal.get("state") == "begun"

    def begin(self) -> None:
        """Say that there may be some data, and not all of it."""
        if not self._stash:
            self.journal.clear()
        self.journal.dump("state", "begun")

    def finish(self) -> None:
        """Say that all data is there."""
        self.journal.dump("state", "finished" if self._stash else "finished empty")
