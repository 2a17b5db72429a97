"""Several stashes as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from itertools import chain
from typing import Any, TypeVar

from attrs import define, field

from zpersist.damage import Damage, Repair, check_repair
from zpersist.errors import InvalidDelegateError, ReadOnlyError, ZPersistError
from zpersist.readonly import ReadOnlyStash
from zpersist.stash import MISSING, CloseableStash, Missing, Stash
from zpersist.wrappers.delegate import check_stash

__all__ = ["UnionStash"]

V = TypeVar("V")


def _as_stashes(stashes: Iterable[Stash[V]]) -> tuple[Stash[V], ...]:
    if isinstance(stashes, Stash) or not isinstance(stashes, Iterable):
        raise InvalidDelegateError(f"stashes of UnionStash must be a tuple of stashes, not {stashes!r}")
    return tuple(stashes)


def _check_all(owner: object, attribute: Any, stashes: tuple[object, ...]) -> None:
    for stash in stashes:
        check_stash(owner, attribute, stash)


@define(slots=False, eq=False)
class UnionStash(ReadOnlyStash[V], CloseableStash[V]):
    """Shows the keys and values of several stashes; the first that has a key gives its value.  Read only.

    Parameters
    ----------
    stashes :
        The stashes, the most important first.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: the weakest of all.  Listing keys remembers those already seen.

    Examples
    --------
    >>> stash = UnionStash((DictionaryStash({"a": 1}), DictionaryStash({"a": 2, "b": 3})))
    >>> list(stash), len(stash)
    ([('a', 1), ('b', 3)], 2)
    """

    stashes: tuple[Stash[V], ...] = field(converter=_as_stashes, validator=_check_all)

    @property
    def shared(self) -> bool:  # type: ignore[override]
        """Whether other processes see the same: if they do for all."""
        return bool(self.stashes) and all(stash.shared for stash in self.stashes)

    @property
    def durable(self) -> bool:  # type: ignore[override]
        """Whether all stashes are durable."""
        return bool(self.stashes) and all(stash.durable for stash in self.stashes)

    def _fetch(self, name: str) -> V | Missing:
        for stash in self.stashes:
            value = stash._fetch(name)
            if value is not MISSING:
                return value
        return MISSING

    def exists(self, name: str) -> bool:
        """Return whether any of the stashes has a key."""
        return any(stash.exists(name) for stash in self.stashes)

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, each once, those of the first stash first."""
        seen: set[str] = set()
        for stash in self.stashes:
            for name in stash.keys():
                if name not in seen:
                    seen.add(name)
                    yield name

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every value of all stashes whole, and yield what is damaged."""
        check_repair(repair)
        if repair is not None:
            raise ReadOnlyError(f"verify(repair={repair!r}) on {type(self).__name__}, which is read only")
        return chain.from_iterable(stash.verify(progress=progress) for stash in self.stashes)

    def _stored(self) -> Stash[V]:
        twin = copy(self)
        object.__setattr__(twin, "stashes", tuple(stash._stored() for stash in self.stashes))
        return twin

    def _keyless(self) -> Iterator[ZPersistError]:
        return chain.from_iterable(stash._keyless() for stash in self.stashes)

    def close(self) -> None:
        """Close all stashes."""
        for stash in self.stashes:
            stash.close()
