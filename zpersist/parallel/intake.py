"""What there is to do: an input, without what is done already, and without what another program works on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import groupby, islice
from typing import Any, Protocol

from zpersist.files.locks import Claims

__all__ = ["InputOrder", "Intake", "Known"]


class Known(Protocol):
    """What is known about which items are done."""

    @property
    def unsure(self) -> bool:
        """Whether an item that is not known to be done may be done nevertheless."""

    def refresh(self) -> None:
        """Look again, for others may have done some."""

    def is_done(self, place: int, items: list[Any]) -> list[bool]:
        """Return which of the items, that stand in the input from ``place`` on, are done."""


def stretches(flags: list[bool]) -> Iterator[tuple[int, int, bool]]:
    """Yield the start and end of each stretch of equal flags, with the flag."""
    if flags and not any(flags):
        yield 0, len(flags), False
        return
    start = 0
    for flag, group in groupby(flags):
        end = start + sum(1 for _ in group)
        yield start, end, flag
        start = end


class InputOrder:
    """Brings items that are done into the order of the input.

    Parameters
    ----------
    window :
        How many items may be given out from the first on that is not done.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        #: The first place that is not done, and those after it that are.
        self._first = 0
        self._after: list[int] = []
        #: The first place whose key was not yielded.
        self._next = 0
        self._done: list[tuple[int, str]] = []

    @property
    def untouched(self) -> bool:
        """Whether nothing was done."""
        return self._first == 0 and not self._after

    def limit(self) -> int:
        """Return up to which place items may be given out."""
        return self._first + self._window

    def add(self, places: Iterable[int], keys: Iterable[str]) -> None:
        """Take the keys of what is done."""
        for place, key in zip(places, keys, strict=True):
            heappush(self._done, (place, key))
            heappush(self._after, place)
        while self._after and self._after[0] == self._first:
            heappop(self._after)
            self._first += 1

    def ready(self) -> Iterator[str]:
        """Yield the keys of all that follow on those yielded before."""
        while self._done and self._done[0][0] == self._next:
            self._next += 1
            yield heappop(self._done)[1]


class Intake:
    """The items that are still to be done, each with its place in the input.

    Parameters
    ----------
    items :
        The input; taken as it is needed.
    known :
        What is done already.
    claims :
        Who else works on what; ``None``: nobody can.
    passed :
        Is told the places of items that are done already.
    limit :
        Up to which place items may be given out now; default: any.
    """

    def __init__(
        self,
        items: Iterable[Any],
        known: Known,
        claims: Claims | None = None,
        *,
        passed: Callable[[int, list[Any]], None] = lambda place, items: None,
        limit: Callable[[], int] | None = None,
    ) -> None:
        self._items = iter(items)
        self._known = known
        self._claims = claims
        self._passed = passed
        self._limit = limit
        self._at = 0
        self._ready: deque[tuple[int, list[Any]]] = deque()
        self._elsewhere: deque[tuple[int, list[Any]]] = deque()
        self._company = claims is not None and not claims.alone()

    @property
    def unsure(self) -> bool:
        """Whether items that are given out may be done already."""
        return self._known.unsure or self.in_company

    @property
    def in_company(self) -> bool:
        """Whether another program works, or has worked meanwhile, on the same input."""
        if not self._company and self._claims is not None:
            self._company = not self._claims.alone()
        return self._company

    def take(self, count: int, *, wait: bool) -> tuple[int, list[Any]]:
        """Return where a stretch of at most so many items starts, and the items; none if there are none now.

        Parameters
        ----------
        wait :
            If there is nothing else, wait for what others work on: they may die.
        """
        while not self._ready:
            room = count if self._limit is None else min(count, self._limit() - self._at)
            items = list(islice(self._items, room)) if room > 0 else []
            if not items:
                break
            self._look_at(self._at, items)
            self._at += len(items)
        if not self._ready and wait:
            self._wait_for_others()
        if not self._ready:
            return self._at, []
        place, items = self._ready.popleft()
        if len(items) > count:
            self._ready.appendleft((place + count, items[count:]))
        return place, items[:count]

    def _look_at(self, place: int, items: list[Any]) -> None:
        for start, end, done in stretches(self._known.is_done(place, items)):
            if done:
                self._passed(place + start, items[start:end])
            else:
                self._claim(place + start, items[start:end])

    def _claim(self, place: int, items: list[Any]) -> None:
        claims = self._claims
        if claims is None:
            self._ready.append((place, items))
            return
        while items:
            count = claims.take(place, len(items))
            if count < 0:
                self._company = True
                self._elsewhere.append((place, items[:-count]))
            else:
                self._claimed(place, items[:count])
            place, items = place + abs(count), items[abs(count) :]

    def _claimed(self, place: int, items: list[Any]) -> None:
        if not self.in_company:
            self._ready.append((place, items))
            return
        # Somebody may have done them just before, and given them back.
        self._known.refresh()
        for start, end, done in stretches(self._known.is_done(place, items)):
            if done:
                self.settled(range(place + start, place + end))
                self._passed(place + start, items[start:end])
            else:
                self._ready.append((place + start, items[start:end]))

    def _wait_for_others(self) -> None:
        while self._elsewhere and not self._ready and self._claims is not None:
            place, items = self._elsewhere.popleft()
            self._claims.wait(place, len(items))
            self._claimed(place, items)

    def settled(self, places: range) -> None:
        """Say that nothing more is to be done about these."""
        if self._claims is not None and places:
            self._claims.give(places.start, len(places))
