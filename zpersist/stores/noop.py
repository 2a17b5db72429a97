"""The stash that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from attrs import define

from zpersist.keys import check_key
from zpersist.stash import MISSING, Missing, Stash, native

__all__ = ["NoopStash"]

V = TypeVar("V")


@define(slots=False, eq=False)
class NoopStash(Stash[V]):
    """Keeps nothing: every dump succeeds, and nothing is ever there.

    Notes
    -----
    *Concurrency*: it has no state.
    *Durability*: none.
    *Trust*: nothing is loaded.

    Examples
    --------
    >>> stash = NoopStash()
    >>> stash.dump("a", 1)
    >>> stash.load("a"), len(stash)
    (None, 0)
    """

    _keeps = False

    def _fetch(self, name: str) -> V | Missing:
        return MISSING

    def dump(self, name: str, inst: V) -> None:
        """Forget the value."""

    def delete(self, name: str) -> bool:
        """Return ``False``: there was nothing."""
        check_key(name)
        return False

    def exists(self, name: str) -> bool:
        """Return ``False``."""
        return False

    def keys(self) -> Iterable[str]:
        """Return no keys."""
        return ()

    @native
    def add(self, name: str, inst: V) -> bool:
        """Forget the value, and return ``True``: there was none."""
        return True

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Return what ``fn`` makes of the default, and forget it."""
        return fn(default)
