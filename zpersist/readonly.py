"""Stashes that only give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from zpersist.damage import Damage, Repair
from zpersist.errors import ReadOnlyError
from zpersist.keys import check_key
from zpersist.stash import Stash

__all__ = ["ReadOnlyStash"]

V = TypeVar("V")


class ReadOnlyStash(Stash[V]):
    """A stash that can't be written to; a subclass gives ``load`` and ``keys``.

    Writes are ignored, as long as :attr:`strict` is not set.

    Notes
    -----
    *Concurrency*: that of ``load`` and ``keys``.

    Examples
    --------
    >>> from zpersist import ReadOnlyStash
    >>> class Squares(ReadOnlyStash):
    ...     def load(self, name):
    ...         return int(name) ** 2
    ...     def keys(self):
    ...         return map(str, range(3))
    >>> list(Squares())
    [('0', 0), ('1', 1), ('2', 4)]
    """

    #: Raise :class:`~zpersist.ReadOnlyError` on a write; otherwise it is ignored.
    strict: bool = False

    _keeps = False

    def _refuse(self, what: str) -> Literal[False]:
        if self.strict:
            raise ReadOnlyError(f"{what} on {type(self).__name__}, which is read only; set strict=False to ignore it")
        return False

    def dump(self, name: str, inst: V) -> None:
        """Ignore the value, or raise if :attr:`strict`."""
        self._refuse(f"dump({name!r})")

    def delete(self, name: str) -> bool:
        """Delete nothing, or raise if :attr:`strict`."""
        check_key(name)
        return self._refuse(f"delete({name!r})")

    def __delitem__(self, name: str) -> None:
        self.delete(name)

    def clear(self) -> None:
        """Delete nothing, or raise if :attr:`strict`."""
        self._refuse("clear()")

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every value whole, and yield what is damaged; nothing can be repaired here."""
        if repair is not None:
            raise ReadOnlyError(f"verify(repair={repair!r}) on {type(self).__name__}, which is read only")
        return super().verify(progress=progress)

    def add(self, name: str, inst: V) -> bool:
        """Keep nothing, or raise if :attr:`strict`."""
        return self._refuse(f"add({name!r})")

    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Raise, whether :attr:`strict` or not: there is no new value to return."""
        raise ReadOnlyError(f"update({name!r}) on {type(self).__name__}, which is read only")
