"""Keys in an order of one's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from attrs import define, field

from zpersist.stash import native
from zpersist.wrappers.delegate import DelegateStash

__all__ = ["SortedStash"]

V = TypeVar("V")


@define(slots=False, eq=False)
class SortedStash(DelegateStash[V]):
    """Lists keys, and with them values and items, in an order.

    Parameters
    ----------
    delegate :
        The stash this one stands on.
    sort_function :
        Gives what a key is sorted by (``int`` for keys that are numbers); default: the key itself.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: those of the delegate.  All keys are read before the first is given.

    Examples
    --------
    >>> stash = SortedStash(DictionaryStash({"10": "b", "9": "a"}), int)
    >>> list(stash)
    [('9', 'a'), ('10', 'b')]
    """

    sort_function: Callable[[str], Any] | None = field(default=None)

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether keys come in code-point order: if no other order is asked for."""
        return self.sort_function is None

    def keys(self) -> Iterable[str]:
        """Return the keys in order."""
        return sorted(self.delegate.keys(), key=self.sort_function)

    @native
    def __len__(self) -> int:
        return len(self.delegate)

    @native
    def __bool__(self) -> bool:
        return bool(self.delegate)

    clear = DelegateStash.clear
    scan = DelegateStash.scan
