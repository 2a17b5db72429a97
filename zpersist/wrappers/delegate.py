"""A stash that stands on another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from attrs import define, field

from zpersist.damage import Damage, Repair
from zpersist.errors import InvalidDelegateError, ZPersistError
from zpersist.readonly import ReadOnlyStash
from zpersist.stash import CloseableStash, Missing, Stash, native
from zpersist.stores.noop import NoopStash

if TYPE_CHECKING:
    from zpersist.files.locks import Claims

__all__ = ["DelegateDefaults", "DelegateStash", "ReadOnlyDelegateStash", "check_stash"]

V = TypeVar("V")


class DelegateDefaults:
    """How delegates are checked, for all stashes of the process."""

    #: Refuse a delegate that is no :class:`~zpersist.Stash`.
    CLASS_CHECK: ClassVar[bool] = True


def check_stash(owner: object, attribute: Any, stash: object) -> None:
    """Raise unless ``stash`` is one (a validator for attrs)."""
    if DelegateDefaults.CLASS_CHECK and not isinstance(stash, Stash):
        hints = {type: "give an instance of it", int: "use LRUCacheStash(n)", str: "use DirectoryStash(path)"}
        hint = next(
            (hint for kind, hint in hints.items() if isinstance(stash, kind)),
            "wrap a mapping in DictionaryStash(mapping), a function in a subclass of ReadOnlyStash",
        )
        raise InvalidDelegateError(f"{attribute.name} of {type(owner).__name__} must be a stash, not {stash!r}; {hint}")


@define(slots=False, eq=False)
class DelegateStash(CloseableStash[V]):
    """Passes everything on to its delegate; the base of all wrappers.

    A wrapper of your own overrides primitives (``load``, ``dump``, ``delete``, ``exists``, ``keys``), and what is
    derived from them follows; what it does not touch keeps the speed of the delegate.

    Parameters
    ----------
    delegate :
        The stash this one stands on; default: one that keeps nothing.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: those of the delegate.

    Examples
    --------
    >>> class Upper(DelegateStash):
    ...     def dump(self, name, inst):
    ...         super().dump(name, inst.upper())
    >>> stash = Upper(DictionaryStash())
    >>> stash.dump_many({"a": "x"})
    >>> stash["a"]
    'X'
    """

    delegate: Stash[V] = field(factory=NoopStash, validator=check_stash)

    @property
    def shared(self) -> bool:  # type: ignore[override]
        """Whether other processes see what is dumped here: as the delegate says."""
        return self.delegate.shared

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether keys come in code-point order: as the delegate says."""
        return self.delegate.ordered

    @property
    def durable(self) -> bool:  # type: ignore[override]
        """Whether what is dumped here outlives the process: as the delegate says."""
        return self.delegate.durable

    @property
    def _batches(self) -> bool:  # type: ignore[override]
        return self.delegate._batches

    @property
    def _keeps(self) -> bool:  # type: ignore[override]
        return self.delegate._keeps

    def _fetch(self, name: str) -> V | Missing:
        return self.delegate._fetch(name)

    def dump(self, name: str, inst: V) -> None:
        """Keep a value in the delegate."""
        self.delegate.dump(name, inst)

    def delete(self, name: str) -> bool:
        """Remove a key from the delegate, and return whether it was there."""
        return self.delegate.delete(name)

    def exists(self, name: str) -> bool:
        """Return whether the delegate has a key."""
        return self.delegate.exists(name)

    def keys(self) -> Iterable[str]:
        """Return the delegate's keys."""
        return self.delegate.keys()

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value in the delegate only if there is none."""
        return self.delegate.add(name, inst)

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value in the delegate by what a function makes of it."""
        return self.delegate.update(name, fn, default)

    @native
    def values(self) -> Iterable[V]:
        """Iterate over the delegate's values."""
        return self.delegate.values()

    @native
    def items(self) -> Iterable[tuple[str, V]]:
        """Iterate over the delegate's keys with their values."""
        return self.delegate.items()

    @native
    def clear(self) -> None:
        """Delete everything in the delegate."""
        self.delegate.clear()
        self._cleared()

    def _cleared(self) -> None:
        self.delegate._cleared()

    @native
    def load_many(self, names: Iterable[str]) -> dict[str, V]:
        """Return the values of those keys that the delegate has."""
        return self.delegate.load_many(names)

    @native
    def dump_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]]) -> None:
        """Keep many values in the delegate."""
        self.delegate.dump_many(items)

    @native
    def delete_many(self, names: Iterable[str]) -> int:
        """Remove many keys from the delegate."""
        return self.delegate.delete_many(names)

    @native
    def scan(
        self, prefix: str = "", *, after: str | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[str]:
        """Iterate over the delegate's keys in code-point order."""
        return self.delegate.scan(prefix, after=after, reverse=reverse, limit=limit)

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every value of the delegate whole, and yield what is damaged."""
        try:
            yield from self.delegate.verify(progress=progress, repair=repair)
        finally:
            if repair is not None:
                # What was put out of the way is not to be found in a cache.
                self._outdated()

    def close(self) -> None:
        """Close the delegate."""
        self.delegate.close()

    @native
    def __len__(self) -> int:
        return len(self.delegate)

    @native
    def __bool__(self) -> bool:
        return bool(self.delegate)

    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return self.delegate._flight(name, purpose)

    def _stored(self) -> Stash[V]:
        below = self.delegate._stored()
        return self if below is self.delegate else self._standing_on(below)

    def _standing_on(self, delegate: Stash[V], **changes: Any) -> Stash[V]:
        """Return a copy, with all that a subclass has overridden, that stands on another stash."""
        twin = copy(self)
        for name, value in {"delegate": delegate, **changes}.items():
            object.__setattr__(twin, name, value)
        return twin

    def _outdated(self) -> None:
        self.delegate._outdated()

    def _keyless(self) -> Iterator[ZPersistError]:
        return self.delegate._keyless()

    def _claims(self) -> Claims | None:
        return self.delegate._claims()

    def _companion(self, purpose: str) -> Stash[Any]:
        return self.delegate._companion(purpose)


@define(slots=False, eq=False)
class ReadOnlyDelegateStash(ReadOnlyStash[V], DelegateStash[V]):
    """Passes reads on to its delegate, and ignores writes (or raises, if ``strict``).

    Parameters
    ----------
    delegate :
        The stash this one stands on.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: those of the delegate.

    Examples
    --------
    >>> stash = ReadOnlyDelegateStash(DictionaryStash({"a": 1}))
    >>> stash.dump("a", 2)
    >>> stash["a"]
    1
    """
