"""Values in a dictionary, or in any mutable mapping."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, KeysView, MutableMapping
from typing import Any, TypeVar

from attrs import define, field

from zpersist.errors import InvalidArgumentError
from zpersist.forklock import ForkLock
from zpersist.keys import check_key
from zpersist.stash import MISSING, Missing, Stash, native

__all__ = ["DictionaryStash", "LRUCacheStash"]

V = TypeVar("V")


def _as_mapping(data: MutableMapping[str, V]) -> MutableMapping[str, V]:
    if not isinstance(data, MutableMapping):
        raise InvalidArgumentError(f"data must be a mutable mapping, not {data!r}; use dict({data!r})")
    return data


@define(slots=False, eq=False)
class DictionaryStash(Stash[V]):
    """Keeps values in a dictionary, or in any mutable mapping that is given.

    Keys may be any hashable objects here, not only ``str``; ``keys()`` is the live view of the mapping.

    Parameters
    ----------
    data :
        Where the values lie; default: a new ``dict``.

    Notes
    -----
    *Concurrency*: safe among threads as far as the mapping is (a ``dict`` is); ``add`` and ``update`` are atomic
    among the users of this stash.  Processes each have their own.
    *Durability*: none (or the mapping's).
    *Trust*: values are handed out as they are, and shared by all who load them.

    Examples
    --------
    >>> stash = DictionaryStash({"a": 1})
    >>> stash.dump("b", 2)
    >>> stash.data
    {'a': 1, 'b': 2}
    """

    data: MutableMapping[str, V] = field(factory=dict, converter=_as_mapping, repr=False)
    _companions: dict[str, Stash[Any]] = field(factory=dict, init=False, repr=False)
    _lock: ForkLock = field(factory=ForkLock, init=False, repr=False)

    def _fetch(self, name: str) -> V | Missing:
        value = self.data.get(name, MISSING)
        if value is MISSING:
            check_key(name)
        return value

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key."""
        check_key(name)
        with self._lock:
            self.data[name] = inst

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        check_key(name)
        with self._lock:
            return self.data.pop(name, MISSING) is not MISSING

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        if name in self.data:
            return True
        check_key(name)
        return False

    def keys(self) -> KeysView[str]:
        """Return the live view on the keys, in the order of the mapping."""
        return self.data.keys()

    @native
    def items(self) -> Iterable[tuple[str, V]]:
        """Return the items as they are at this moment, in the order of the mapping."""
        with self._lock:
            return tuple(self.data.items())

    @native
    def scan(
        self, prefix: str = "", *, after: str | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[str]:
        """Iterate over keys in code-point order, as they are at this moment; see :meth:`Stash.scan`."""
        with self._lock:
            return DictionaryStash(dict.fromkeys(self.data))._scan(prefix, after, reverse, limit)

    def _scan(self, prefix: str, after: str | None, reverse: bool, limit: int | None) -> Iterator[str]:
        return Stash.scan(self, prefix, after=after, reverse=reverse, limit=limit)

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        check_key(name)
        with self._lock:
            if name in self.data:
                return False
            self.dump(name, inst)
            return True

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it."""
        check_key(name)
        with self._lock:
            value = fn(self.data.get(name, default))
            self.dump(name, value)
            return value

    @native
    def clear(self) -> None:
        """Delete everything."""
        with self._lock:
            self.data.clear()
            self._cleared()

    def _cleared(self) -> None:
        self._companions.clear()

    @native
    def __len__(self) -> int:
        return len(self.data)

    @native
    def __bool__(self) -> bool:
        return bool(self.data)

    def _companion(self, purpose: str) -> Stash[Any]:
        with self._lock:
            return self._companions.setdefault(purpose, DictionaryStash())

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=ForkLock())


def _check_maxsize(maxsize: object) -> int:
    if not isinstance(maxsize, int) or isinstance(maxsize, bool) or maxsize < 1:
        raise InvalidArgumentError(f"maxsize must be a whole number of at least 1, not {maxsize!r}")
    return maxsize


class LRUCacheStash(DictionaryStash[V]):
    """Keeps at most so many values, and forgets the one that was not used for the longest time.

    Whatever reads a value by its key, or writes it, uses it; listing does not.

    Parameters
    ----------
    maxsize :
        The most values, at least 1.

    Notes
    -----
    *Concurrency*: safe among threads.  Processes each have their own.
    *Durability*: none.
    *Trust*: values are handed out as they are, and shared by all who load them.

    Examples
    --------
    >>> stash = LRUCacheStash(2)
    >>> for key in "abac":
    ...     stash.dump(key, key.upper())
    >>> stash.load("b"), list(stash.keys())
    (None, ['a', 'c'])
    """

    def __init__(self, maxsize: int) -> None:
        super().__init__(OrderedDict())
        self.maxsize = _check_maxsize(maxsize)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.maxsize})"

    def _fetch(self, name: str) -> V | Missing:
        with self._lock:
            value = DictionaryStash._fetch(self, name)
            if value is not MISSING:
                self.data.move_to_end(name)  # type: ignore[attr-defined]
            return value

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key, and forget the oldest if there are too many."""
        check_key(name)
        with self._lock:
            self.data[name] = inst
            self.data.move_to_end(name)  # type: ignore[attr-defined]
            if len(self.data) > self.maxsize:
                self.data.popitem(last=False)  # type: ignore[call-arg]

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        return DictionaryStash.add(self, name, inst)

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it."""
        return DictionaryStash.update(self, name, fn, default)

    def keys(self) -> KeysView[str]:
        """Return the keys as they are at this moment, from the oldest to the youngest."""
        with self._lock:
            return dict.fromkeys(self.data).keys()

    @native
    def items(self) -> Iterable[tuple[str, V]]:
        """Return the items from the oldest to the youngest; they are not used by that."""
        with self._lock:
            return tuple(self.data.items())
