"""What is known about which items of an input are done: by their keys, or by a journal."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any

from xxhash import xxh3_64_digest

from zpersist.codecs import PickleCodec
from zpersist.errors import EncodeError
from zpersist.stash import Stash

__all__ = ["Journal", "KeysThere"]

#: Of more keys than these, workers ask for each, so that they need not be held in memory.
_MOST = 200_000

#: Bytes of the digest of an item.
_DIGEST = 8


class KeysThere:
    """Knows by the keys that are there, each item having one of its own.

    Parameters
    ----------
    delegate :
        Where the values are.
    key_of :
        Returns the key of an item.
    but :
        Keys that are to be made again.
    """

    def __init__(self, delegate: Stash[Any], key_of: Callable[[Any], str], but: Collection[str] = ()) -> None:
        self._key_of = key_of
        there = set(islice(delegate.keys(), _MOST + 1 if delegate.shared else None)).difference(but)
        self._there = there if not delegate.shared or len(there) <= _MOST else None

    @property
    def unsure(self) -> bool:
        """Whether an item that is not known to be done may be done nevertheless."""
        return self._there is None

    def refresh(self) -> None:
        """Do nothing: where others work too, workers ask for each key."""

    def is_done(self, place: int, items: list[Any]) -> list[bool]:
        """Return which of the items have their keys there."""
        there = self._there
        if not there:
            return [False] * len(items)
        return [self._is_there(item, there) for item in items]

    def _is_there(self, item: Any, there: set[str]) -> bool:
        try:
            return self._key_of(item) in there
        except Exception:  # noqa: BLE001 - a function of the user: what it raises is the failure of the item
            return False


class Journal:
    """Knows by notes beside the data: where stretches of the input begin that are done, and a digest of each item.

    Parameters
    ----------
    stash :
        Where the notes are kept.
    """

    unsure = False

    def __init__(self, stash: Stash[Any]) -> None:
        self._stash = stash
        #: Digests of items, one after the other, by the place of the first.
        self._notes: dict[int, bytes] = {}
        self._starts: list[int] = []
        #: How many items the longest note has.
        self._longest = 0
        self._read: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read what others have noted meanwhile."""
        for name in self._stash.keys():
            if name.startswith("at-") and name not in self._read:
                self._read.add(name)
                note = self._stash.get(name)
                if note is not None:
                    self._remember(int(name.split("-")[1]), note)

    def _remember(self, start: int, note: bytes) -> None:
        if start not in self._notes:
            insort(self._starts, start)
        # Two programs may have noted the same: the longer note says more.
        if len(note) > len(self._notes.get(start, b"")):
            self._notes[start] = note
        self._longest = max(self._longest, len(note) // _DIGEST)

    def note(self, place: int, items: list[Any]) -> None:
        """Note that items are done, which stand in the input from ``place`` on."""
        self._stash.dump(f"at-{place:012}-{len(items)}", b"".join(map(_digest, items)))

    def is_done(self, place: int, items: list[Any]) -> list[bool]:
        """Return which of the items have a note."""
        if not self._notes:
            return [False] * len(items)
        return [self._is_noted(at, item) for at, item in enumerate(items, place)]

    def _is_noted(self, place: int, item: Any) -> bool:
        # Notes of different programs may overlap.
        at = bisect_right(self._starts, place)
        while at and place - self._starts[at - 1] < self._longest:
            at -= 1
            start = (place - self._starts[at]) * _DIGEST
            if self._notes[self._starts[at]][start : start + _DIGEST] == _digest(item):
                return True
        return False


def _digest(item: Any) -> bytes:
    try:
        return xxh3_64_digest(PickleCodec().dumps(item))
    except EncodeError as err:
        raise EncodeError(f"an item can't be noted as done: {err}; or give its name") from err
