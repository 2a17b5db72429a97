"""Only the first keys of a stash."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from attrs import define, field

from zpersist.errors import InvalidArgumentError
from zpersist.stash import MISSING, Missing, Stash, native
from zpersist.wrappers.delegate import DelegateStash

__all__ = ["KeyLimitStash"]

V = TypeVar("V")


def _check(stash: object, attribute: Any, limit: object) -> None:
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise InvalidArgumentError(f"limit of KeyLimitStash must be a whole number of at least 0, not {limit!r}")


@define(slots=False, eq=False)
class KeyLimitStash(DelegateStash[V]):
    """Shows the first keys of its delegate and behaves as if there were no others.

    For trying a pipeline on a part of its data.  Asking for a key takes time that grows with the limit.

    Parameters
    ----------
    delegate :
        The stash this one stands on.
    limit :
        The most keys to show, in the order in which the delegate gives them.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: those of the delegate.  What is dumped under a key beyond the limit
    goes to the delegate and isn't seen here.

    Examples
    --------
    >>> stash = KeyLimitStash(DictionaryStash({"a": 1, "b": 2, "c": 3}), limit=2)
    >>> list(stash.keys()), "c" in stash, stash.load("c")
    (['a', 'b'], False, None)
    """

    limit: int = field(default=sys.maxsize, validator=_check)

    def _fetch(self, name: str) -> V | Missing:
        return self.delegate._fetch(name) if self.exists(name) else MISSING

    def exists(self, name: str) -> bool:
        """Return whether a key is there and within the limit."""
        return self.delegate.exists(name) and (self.limit == sys.maxsize or name in set(self.keys()))

    def delete(self, name: str) -> bool:
        """Remove a key that is within the limit, and return whether it was there."""
        return self.exists(name) and self.delegate.delete(name)

    def keys(self) -> Iterable[str]:
        """Return the first keys of the delegate."""
        return islice(self.delegate.keys(), self.limit)

    def _stored(self) -> Stash[V]:
        return self._standing_on(self.delegate._stored(), limit=sys.maxsize)

    @native
    def items(self) -> Iterator[tuple[str, V]]:
        """Iterate over the first keys of the delegate with their values."""
        pairs = ((name, self.delegate._fetch(name)) for name in self.keys())
        return ((name, value) for name, value in pairs if value is not MISSING)
