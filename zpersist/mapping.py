"""A stash as a mapping of the standard library."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, TypeVar

from zpersist.errors import InvalidKeyError

__all__ = ["StashMapping"]

V = TypeVar("V")


class StashMapping(MutableMapping[str, V]):
    """The keys and values of a stash as a mapping of the standard library."""

    def __init__(self, stash: Any) -> None:
        self._stash = stash

    def __getitem__(self, key: str) -> V:
        value: V = self._stash[key]
        return value

    def __setitem__(self, key: str, value: V) -> None:
        self._stash.dump(key, value)

    def __delitem__(self, key: str) -> None:
        del self._stash[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stash.keys())

    def __len__(self) -> int:
        return len(self._stash)

    def __contains__(self, key: object) -> bool:
        try:
            return bool(self._stash.exists(key))
        except (InvalidKeyError, TypeError):
            return False

    def clear(self) -> None:
        """Delete everything in the stash."""
        self._stash.clear()

    def __repr__(self) -> str:
        return f"{self._stash!r}.mapping"
