"""Cutting any iterable into lists of a given size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

from zpersist.errors import InvalidArgumentError

__all__ = ["chunks"]

T = TypeVar("T")


class chunks(Generic[T]):  # noqa: N801 - a public name of zensols.persist
    """Iterate over an iterable in lists of at most ``size`` items.

    The last list may be shorter; an empty iterable yields nothing.  The iterable is consumed lazily, one list
    at a time.

    Parameters
    ----------
    iterable :
        What to cut up.
    size :
        The most items a list has, at least 1.
    enum :
        Yield lists of ``(index, item)``, the index counted over the whole iterable.

    Examples
    --------
    >>> list(chunks(range(5), 2))
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, iterable: Iterable[T], size: int, enum: bool = False) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidArgumentError(f"size of chunks must be a whole number of at least 1, not {size!r}")
        self.iterable = iterable
        self.size = size
        self.enum = enum

    def __iter__(self) -> Iterator[list[Any]]:
        items: Iterator[Any] = iter(enumerate(self.iterable) if self.enum else self.iterable)
        while chunk := list(islice(items, self.size)):
            yield chunk
