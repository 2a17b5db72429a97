"""A fast stash in front of a slow one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from attrs import define, field

from zpersist.forklock import ForkLock
from zpersist.stash import MISSING, Missing, Stash, native
from zpersist.stores.memory import DictionaryStash
from zpersist.stores.noop import NoopStash
from zpersist.wrappers.delegate import DelegateStash, check_stash

__all__ = ["CacheStash"]

V = TypeVar("V")


@define(slots=False, eq=False)
class CacheStash(DelegateStash[V]):
    """Keeps what was read from, or written to, its delegate in a faster stash.

    What is dumped goes to both; what is not there is not remembered as missing.

    Parameters
    ----------
    delegate :
        The stash this one stands on.
    cache_stash :
        The faster one; default: a :class:`~zpersist.DictionaryStash`, which grows without bound.  Use
        ``LRUCacheStash(n)`` for a bound.

    Notes
    -----
    *Concurrency*: safe among threads.  What **other processes** (or other caches) write to the delegate is not
    seen for keys that are cached here: use it where values don't change, or ``clear()`` the ``cache_stash``.
    *Durability*, *Trust*: those of the delegate.  Cached values are shared by all who load them.

    Examples
    --------
    >>> stash = CacheStash(DirectoryStash("features"), LRUCacheStash(100))
    >>> stash.dump("a", [1])
    >>> stash["a"] is stash["a"]
    True
    """

    cache_stash: Stash[V] = field(factory=DictionaryStash, validator=check_stash)
    _guard: ForkLock = field(init=False, repr=False, factory=ForkLock)
    _writes: int = field(init=False, repr=False, default=0)

    def _fetch(self, name: str) -> V | Missing:
        value = self.cache_stash._fetch(name)
        if value is not MISSING:
            return value
        before = self._writes
        value = self.delegate._fetch(name)
        if value is not MISSING:
            with self._guard:
                # A write that came between may have changed what was just read.
                if self._writes == before:
                    self.cache_stash.dump(name, value)
        return value

    def _writing(self, name: str) -> AbstractContextManager[None]:
        return Stash._flight(self, name)

    def _wrote(self, name: str, value: V | Missing) -> None:
        with self._guard:
            self._writes += 1
            if value is MISSING:
                self.cache_stash.delete(name)
            else:
                self.cache_stash.dump(name, value)

    def dump(self, name: str, inst: V) -> None:
        """Keep a value in the delegate, then in the cache."""
        with self._writing(name):
            try:
                self.delegate.dump(name, inst)
            except BaseException:
                self._wrote(name, MISSING)
                raise
            self._wrote(name, inst)

    def delete(self, name: str) -> bool:
        """Remove a key from both, and return whether it was there."""
        with self._writing(name):
            try:
                return self.delegate.delete(name)
            finally:
                self._wrote(name, MISSING)

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value in the delegate only if there is none."""
        with self._writing(name):
            # Forgotten first: should the outcome be unknown, nothing old is served.
            self._wrote(name, MISSING)
            added = self.delegate.add(name, inst)
            self._wrote(name, inst if added else MISSING)
            return added

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value in the delegate by what a function makes of it."""
        with self._writing(name):
            value: V | Missing = MISSING
            try:
                value = self.delegate.update(name, fn, default)
                return value
            finally:
                self._wrote(name, value)

    def _stored(self) -> Stash[V]:
        return self._standing_on(self.delegate._stored(), cache_stash=NoopStash())

    def _cleared(self) -> None:
        super()._cleared()
        self._outdated()

    def _outdated(self) -> None:
        super()._outdated()
        with self._guard:
            self._writes += 1
            self.cache_stash.clear()

    def close(self) -> None:
        """Close both."""
        self.delegate.close()
        self.cache_stash.close()

    @native
    def __len__(self) -> int:
        return len(self.delegate)

    @native
    def __bool__(self) -> bool:
        return bool(self.delegate)

    scan = DelegateStash.scan

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_guard"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _guard=ForkLock())
