"""What is known about which items of an input are done: by their keys, or by a journal."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any

from xxhash import xxh3_128_hexdigest

from zpersist.codecs import PickleCodec
from zpersist.errors import EncodeError
from zpersist.stash import Stash

__all__ = ["Journal", "KeysThere"]

#: Of more keys than these, workers ask for each, so that they need not be held in memory.
_MOST = 200_000


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

    def limit(self, place: int, count: int) -> int:
        """Return ``count``: no items belong together."""
        return count

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
    """Knows by notes beside the data: which stretches of the input are done, and a digest of their items.

    Parameters
    ----------
    stash :
        Where the notes are kept.
    """

    unsure = False

    def __init__(self, stash: Stash[Any]) -> None:
        self._stash = stash
        self._notes: dict[int, tuple[int, str]] = {}
        self._starts: list[int] = []
        self.refresh()

    def refresh(self) -> None:
        """Read what others have noted meanwhile."""
        for name in self._stash.keys():
            if name.startswith("at-") and int(name[3:]) not in self._notes:
                note = self._stash.get(name)
                if note is not None:
                    self._remember(int(name[3:]), note)

    def _remember(self, start: int, note: tuple[int, str]) -> None:
        if start not in self._notes:
            insort(self._starts, start)
        self._notes[start] = note

    def note(self, place: int, items: list[Any]) -> None:
        """Note that items are done, which stand in the input from ``place`` on."""
        self._stash.dump(f"at-{place:012}", (len(items), _digest(items)))

    def limit(self, place: int, count: int) -> int:
        """Return how many items to look at together: those of one note, or those before the next one."""
        if place in self._notes:
            return self._notes[place][0]
        at = bisect_left(self._starts, place)
        return min(count, self._starts[at] - place) if at < len(self._starts) else count

    def is_done(self, place: int, items: list[Any]) -> list[bool]:
        """Return whether there is a note about just these items."""
        note = self._notes.get(place)
        return [note is not None and note == (len(items), _digest(items))] * len(items)


def _digest(items: list[Any]) -> str:
    codec = PickleCodec()
    try:
        return xxh3_128_hexdigest(b"".join(codec.dumps(item) for item in items))
    except EncodeError as err:
        raise EncodeError(f"an item can't be noted as done: {err}; or give its name") from err
