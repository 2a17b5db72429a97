"""Values that are made when they are first asked for, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, TypeVar

from attrs import define, field

from zpersist.errors import InvalidDelegateError, UnsupportedOperationError
from zpersist.readonly import ReadOnlyStash
from zpersist.stash import MISSING, Missing, Stash, native
from zpersist.wrappers.delegate import check_stash
from zpersist.wrappers.prime import PreemptiveStash

__all__ = ["CacheFactoryStash", "FactoryStash"]

V = TypeVar("V")


def check_keeps(owner: object, attribute: Any, stash: object) -> None:
    """Raise unless ``stash`` is one that can keep values (a validator for attrs)."""
    check_stash(owner, attribute, stash)
    if isinstance(stash, ReadOnlyStash):
        raise InvalidDelegateError(
            f"delegate of {type(owner).__name__} keeps what is made, and {type(stash).__name__} is read only; "
            f"were delegate and factory swapped?"
        )


@define(slots=False, eq=False)
class FactoryStash(PreemptiveStash[V]):
    """Has a factory make what its delegate does not have yet, and keeps it there.

    Its keys are the factory's and the delegate's.  A factory that can make values for keys it does not list
    gives an empty ``keys()``.

    Parameters
    ----------
    delegate :
        Where values are kept.
    factory :
        The stash whose ``load`` makes a value, and whose ``keys`` says which can be made.
    enable_preemptive :
        Whether ``has_data`` looks at the delegate; otherwise it is always false.
    dump_factory_nones :
        Keep a ``None`` that the factory makes; otherwise it is made again each time.
    force_clear_factory :
        Clear the factory by ``clear()`` also if it is a :class:`~zpersist.ReadOnlyStash`.

    Notes
    -----
    *Concurrency*: among threads, and among processes if the delegate is shared, one makes a value and the others
    wait for it.
    *Durability*, *Trust*: those of the delegate.

    Examples
    --------
    >>> class Squares(ReadOnlyStash):
    ...     def load(self, name):
    ...         print("computing", name)
    ...         return int(name) ** 2
    ...     def keys(self):
    ...         return ("1", "2")
    >>> stash = FactoryStash(DictionaryStash(), Squares())
    >>> stash["2"], stash["2"], sorted(stash.keys())
    computing 2
    (4, 4, ['1', '2'])
    """

    delegate: Stash[V] = field(validator=check_keeps)
    factory: Stash[V] = field(validator=check_stash)
    enable_preemptive: bool = field(default=True)
    dump_factory_nones: bool = field(default=True)
    force_clear_factory: bool = field(default=False)

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether keys come in code-point order: not those of two stashes together."""
        return False

    def _calculate_has_data(self) -> bool:
        return self.enable_preemptive and super()._calculate_has_data()

    def _fetch(self, name: str) -> V | Missing:
        value = self.delegate._fetch(name)
        if value is not MISSING:
            return value
        with self.delegate._flight(name):
            value = self.delegate._fetch(name)
            if value is not MISSING:
                return value
            made = self.factory._fetch(name)
            if made is MISSING or (made is None and not self.dump_factory_nones):
                return made
            return self._keep(name, made)

    def _keep(self, name: str, made: V) -> V | Missing:
        # What somebody dumped while it was made is newer.
        try:
            kept = self.delegate.add(name, made)
        except UnsupportedOperationError:
            kept = not self.delegate.exists(name)
            if kept:
                self.delegate.dump(name, made)
        value = made if kept else self.delegate._fetch(name)
        return made if value is MISSING else value

    def exists(self, name: str) -> bool:
        """Return whether a value is there or can be made."""
        return self.delegate.exists(name) or self.factory.exists(name)

    def keys(self) -> Iterable[str]:
        """Return the keys of the factory, and those of the delegate that it does not list."""
        return dict.fromkeys(chain(self.factory.keys(), self.delegate.keys())).keys()

    @native
    def scan(
        self, prefix: str = "", *, after: str | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[str]:
        """Iterate over keys in code-point order; see :meth:`Stash.scan`."""
        return Stash.scan(self, prefix, after=after, reverse=reverse, limit=limit)

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none and none can be made."""
        return not self.factory.exists(name) and self.delegate.add(name, inst)

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value, made if need be, by what a function makes of it."""
        made = self._fetch(name)
        return self.delegate.update(name, fn, default if made is MISSING else made)

    def _stored(self) -> Stash[V]:
        # What can be made is then what is there.
        below = self.delegate._stored()
        return self._standing_on(below, factory=below)

    def _cleared(self) -> None:
        super()._cleared()
        if self.force_clear_factory or not isinstance(self.factory, ReadOnlyStash):
            self.factory.clear()

    def close(self) -> None:
        """Close the delegate and the factory."""
        super().close()
        self.factory.close()


@define(slots=False, eq=False)
class CacheFactoryStash(FactoryStash[V]):
    """A :class:`FactoryStash` whose keys are the factory's alone, for a factory that knows them all.

    Parameters
    ----------
    delegate, factory, enable_preemptive, force_clear_factory :
        As in :class:`FactoryStash`.
    dump_factory_nones :
        Keep a ``None`` that the factory makes; here not, by default.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: as :class:`FactoryStash`.

    Examples
    --------
    >>> stash = CacheFactoryStash(DictionaryStash({"old": 0}), DictionaryStash({"a": 1}))
    >>> list(stash)
    [('a', 1)]
    """

    dump_factory_nones: bool = field(default=False)
    # Named again, so that it stays the last one.
    force_clear_factory: bool = field(default=False)

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether keys come in code-point order: as the factory says."""
        return self.factory.ordered

    def exists(self, name: str) -> bool:
        """Return whether the factory can make a value."""
        return self.factory.exists(name)

    def keys(self) -> Iterable[str]:
        """Return the keys of the factory."""
        return self.factory.keys()

    add = FactoryStash.add
    update = FactoryStash.update
