"""The contract: what a stash is, and what is derived from it.

A stash maps ``str`` keys to values.  A stash of your own gives ``load``, ``dump``, ``delete`` and ``keys`` (and
``exists``, if it can tell without going through all keys); everything else is derived from these *on self*.

Stores override some of the derived methods with faster ones, marked as :func:`native`.  A subclass that overrides a
primitive gets the derived methods that stand on it anew, so that none of them slips past the override.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from zpersist.chunking import chunks
from zpersist.damage import Damage, Repair, check_repair, is_lost, verified
from zpersist.errors import InvalidArgumentError, MissingKeyError, UnsupportedOperationError, ZPersistError
from zpersist.flights import flights
from zpersist.mapping import StashMapping

if TYPE_CHECKING:
    from zpersist.files.locks import Claims

__all__ = [
    "COMPANIONS",
    "MISSING",
    "CloseableStash",
    "Missing",
    "Stash",
    "check_limit",
    "native",
    "pairs_of",
]

V = TypeVar("V")
D = TypeVar("D")


class Missing(Enum):
    """The type of :data:`MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"


#: The answer of ``Stash._fetch`` when there is nothing: ``None`` is a value like any other.
MISSING: Final = Missing.MISSING

#: What is kept beside the values of a stash, for bookkeeping about them.
COMPANIONS = ("journal", "failures")

F = TypeVar("F", bound=Callable[..., Any])

# What each derived method stands on.
_STANDS_ON: dict[str, tuple[str, ...]] = {
    "add": ("load", "dump", "exists"),
    "update": ("load", "dump", "exists"),
    "load_many": ("load",),
    "dump_many": ("dump",),
    "delete_many": ("delete",),
    "clear": ("delete", "keys"),
    "scan": ("keys",),
    "values": ("keys", "load"),
    "items": ("keys", "load"),
    "__len__": ("keys",),
    "__bool__": ("keys",),
}


def native(method: F) -> F:
    """Mark a method as one that does what is derived, only better, for it knows what lies below the primitives.

    A subclass that overrides a primitive on which the method stands gets the derived one in its place.
    """
    method.__native__ = True  # type: ignore[attr-defined]
    return method


def pairs_of(items: Mapping[str, V] | Iterable[tuple[str, V]]) -> Iterable[tuple[str, V]]:
    """Return the pairs of a mapping, or the pairs as they are."""
    return items.items() if isinstance(items, Mapping) else items


class Stash(ABC, Generic[V]):
    """A mapping of keys to values that are kept somewhere, or made when they are asked for.

    Unlike a ``dict``, iterating over a stash yields ``(key, value)`` pairs; :attr:`mapping` is a view that
    behaves as a ``dict`` in everything.

    Examples
    --------
    >>> from zpersist import DictionaryStash
    >>> stash = DictionaryStash()
    >>> stash.dump("a", None)
    >>> "a" in stash, stash["a"], stash.get("b", 0), list(stash)
    (True, None, 0, [('a', None)])
    """

    #: Whether other processes see what is dumped here.
    shared: bool = False
    #: Whether ``keys`` come in code-point order.
    ordered: bool = False
    #: Whether what is dumped here outlives the process.
    durable: bool = False

    # Whether many values at once cost less than one after the other.
    _batches: bool = False

    # Whether what is dumped here can be read again.
    _keeps: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _pair_load_and_fetch(cls)
        mro = cls.__mro__

        def depth(name: str) -> int:
            return next(i for i, base in enumerate(mro) if name in base.__dict__)

        for derived, primitives in _STANDS_ON.items():
            at = depth(derived)
            if hasattr(mro[at].__dict__[derived], "__native__") and any(depth(name) < at for name in primitives):
                setattr(cls, derived, Stash.__dict__[derived])

    # primitives

    def load(self, name: str) -> V | None:
        """Return the value of a key, made on the way if this kind of stash makes values; ``None`` if there is none.

        Parameters
        ----------
        name :
            The key.
        """
        raise UnsupportedOperationError(f"{type(self).__name__} must define load(name)")

    @abstractmethod
    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key, in place of the one that is there.

        Parameters
        ----------
        name :
            The key.
        inst :
            The value; ``None`` is one like any other.
        """

    @abstractmethod
    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""

    @abstractmethod
    def keys(self) -> Iterable[str]:
        """Return the keys; in no order, unless :attr:`ordered` is set or the class says so."""

    def exists(self, name: str) -> bool:
        """Return whether a key is there, or its value can be made."""
        return any(key == name for key in self.keys())

    # Answers the exact question, for None is a value; paired with load() when a class is made.
    def _fetch(self, name: str) -> V | Missing:
        raise UnsupportedOperationError(f"{type(self).__name__} must define load(name)")

    # A lock held by the one that computes the value of a key; stores that are shared lock among processes.
    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return flights.hold(id(self), f"{purpose} {name}")

    # A stash beside this one for bookkeeping about it, that goes when this one is cleared.
    def _companion(self, purpose: str) -> Stash[Any]:
        raise UnsupportedOperationError(f"{self!r} has no place for a {purpose} beside its values")

    # Who works on which of the items that are to fill this stash; None: that can't be known here.
    def _claims(self) -> Claims | None:
        return None

    # The stash that shows what is stored here and nothing else: no memory of it, nothing made for the asking.
    def _stored(self) -> Stash[V]:
        return self

    # What holds values whose keys can't be read, and so are not listed.
    def _keyless(self) -> Iterator[ZPersistError]:
        return iter(())

    def _outdated(self) -> None:
        """Let go what is cached, for others have written."""

    # the atomic pair

    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none under its key, as one step among threads and processes.

        Returns
        -------
        bool
            Whether it was kept.

        Raises
        ------
        UnsupportedOperationError
            This stash can't do that.
        """
        raise UnsupportedOperationError(_lacks(self, "add"))

    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it, as one step among threads and processes.

        Parameters
        ----------
        name :
            The key.
        fn :
            Gets the present value, returns the new one.  It may be called again if another one was faster, so it
            should do nothing else; it must not use this stash.
        default :
            What ``fn`` gets if there is no value.

        Returns
        -------
        V
            The new value.

        Raises
        ------
        UnsupportedOperationError
            This stash can't do that.
        """
        raise UnsupportedOperationError(_lacks(self, "update"))

    # derived

    def get(self, name: str, default: D | None = None) -> V | D | None:
        """Return the value of a key, or ``default`` if there is none."""
        value = self._fetch(name)
        return default if value is MISSING else value

    def values(self) -> Iterable[V]:
        """Iterate over the values; a key that is deleted meanwhile is left out."""
        return (value for _, value in self.items())

    def items(self) -> Iterable[tuple[str, V]]:
        """Iterate over keys with their values; a key that is deleted meanwhile is left out."""
        for key in self.keys():
            value = self._fetch(key)
            if value is not MISSING:
                yield key, value

    def key_groups(self, n: int) -> Iterable[list[str]]:
        """Iterate over the keys in lists of at most ``n``."""
        return chunks(self.keys(), n)

    def clear(self) -> None:
        """Delete everything."""
        for name in tuple(self.keys()):
            self.delete(name)
        self._cleared()

    def _cleared(self) -> None:
        """Let go what else goes when everything has been deleted."""

    def load_many(self, names: Iterable[str]) -> dict[str, V]:
        """Return the values of those keys that are there."""
        found = ((name, self._fetch(name)) for name in names)
        return {name: value for name, value in found if value is not MISSING}

    def dump_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]]) -> None:
        """Keep many values; each is kept as by :meth:`dump`, all together are not one step unless the class says so."""
        for name, inst in pairs_of(items):
            self.dump(name, inst)

    def delete_many(self, names: Iterable[str]) -> int:
        """Remove many keys, and return how many were there."""
        return sum(bool(self.delete(name)) for name in names)

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every value whole, also what is mapped otherwise, and yield what is damaged.

        Parameters
        ----------
        progress :
            Show a progress bar.
        repair :
            ``"drop"``: delete what nobody can read any more; ``"quarantine"``: lay it aside, in a place beside the
            values that ``clear`` leaves alone.  What another codec, key or version of zpersist may read, a plain
            pickle, and a whole value that lies under another key than its own, is told, and left.

        Returns
        -------
        Iterator
            A :class:`~zpersist.Damage` each; nothing is done before it is asked for the first.
        """
        check_repair(repair)
        return verified(self, progress=progress, repair=repair)

    def _verify_one(self, name: str) -> None:
        """Read a value, or raise."""
        self._fetch(name)

    def _repair(self, name: str, repair: Repair) -> bool:
        """Put a damaged value out of the way, if it is damaged still."""
        if repair == "quarantine":
            raise UnsupportedOperationError(f"{type(self).__name__} can't lay a damaged value aside; repair='drop'")
        try:
            self._verify_one(name)
        except ZPersistError as err:
            return is_lost(err) and self.delete(name) is not False
        return False

    def scan(
        self, prefix: str = "", *, after: str | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[str]:
        """Iterate over keys in code-point order.

        Parameters
        ----------
        prefix :
            What the keys start with.
        after :
            Leave out this key and all that come before it (in the order asked for).
        reverse :
            From the last to the first.
        limit :
            The most keys to yield.
        """
        check_limit(limit)
        names: Iterable[str] = (name for name in self.keys() if name.startswith(prefix))
        if after is not None:
            names = (name for name in names if (name < after if reverse else name > after))
        if limit is None:
            return iter(sorted(names, reverse=reverse))
        return iter((heapq.nlargest if reverse else heapq.nsmallest)(limit, names))

    @property
    def mapping(self) -> MutableMapping[str, V]:
        """A view on this stash that is a real :class:`~collections.abc.MutableMapping`: it iterates over keys."""
        return StashMapping(self)

    def close(self) -> None:
        """Give back what is held open; the next use opens it again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> V:
        value = self._fetch(name)
        if value is MISSING:
            raise MissingKeyError(name, _place(self))
        return value

    def __setitem__(self, name: str, inst: V) -> None:
        self.dump(name, inst)

    def __delitem__(self, name: str) -> None:
        if self.delete(name) is False:
            raise MissingKeyError(name, _place(self))

    def __contains__(self, name: object) -> bool:
        return self.exists(name)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return iter(self.items())

    def __len__(self) -> int:
        return sum(1 for _ in self.keys())

    def __bool__(self) -> bool:
        return any(True for _ in self.keys())


def _place(stash: Stash[Any]) -> str:
    where = getattr(stash, "_root", None) or getattr(stash, "_file", None)
    return type(stash).__name__ + (f"({where!r})" if where else "")


def _lacks(stash: Stash[Any], what: str) -> str:
    return (
        f"{type(stash).__name__} has no atomic {what}(); use a store that has it, "
        f"or define {what}() beside the methods the class overrides"
    )


def check_limit(limit: int | None) -> None:
    """Raise unless ``limit`` is ``None`` or a whole number that is not negative."""
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidArgumentError(f"limit must be a whole number of at least 0, not {limit!r}")


def _pair_load_and_fetch(cls: type[Stash[Any]]) -> None:
    # A class gives one of load() and _fetch(), and the other one follows; bound to the class, so that super() of
    # a subclass finds the pair that belongs together.
    own = cls.__dict__
    if "_fetch" in own and "load" not in own:
        fetch: Callable[[Any, str], Any] = own["_fetch"]

        def load(self: Stash[Any], name: str) -> Any:
            value = fetch(self, name)
            return None if value is MISSING else value

        load.__doc__ = Stash.load.__doc__
        cls.load = load  # type: ignore[method-assign]
    elif "load" in own and "_fetch" not in own:
        plain_load: Callable[[Any, str], Any] = own["load"]

        def _fetch(self: Stash[Any], name: str) -> Any:
            value = plain_load(self, name)
            return MISSING if value is None and not self.exists(name) else value

        cls._fetch = _fetch  # type: ignore[method-assign]


class CloseableStash(Stash[V]):
    """A stash that holds something open and must say how it is closed."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held open; the next use opens it again."""
