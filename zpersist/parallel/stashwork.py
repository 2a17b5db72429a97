"""The work of a stash, on its way to the workers."""

from __future__ import annotations

from collections.abc import Iterable
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_hexdigest

from zpersist.keys import check_str_key

if TYPE_CHECKING:
    from zpersist.parallel.multiprocess import MultiProcessStash

__all__ = ["StashWork"]

#: The most characters of an item that are shown.
_LONGEST = 150


class StashWork:
    """Has a stash process items, and says who does."""

    def __init__(self, stash: MultiProcessStash[Any]) -> None:
        self._stash = stash
        self.label = stash._label
        self.divisible = stash._divisible

    def begin(self, *, away: bool) -> None:
        """Begin in a worker; ``away``: it has a stash of its own."""
        if away:
            self._stash._worker = True
        if self._stash.initializer is not None:
            self._stash.initializer()

    def process(self, items: Iterable[Any]) -> Iterable[tuple[str, Any]]:
        """Have the stash process items."""
        return self._stash._process(items)  # type: ignore[arg-type]

    def key_of(self, item: Any) -> str:
        """Return what the stash calls an item."""
        return self._stash._key_of(item)

    def name_of(self, item: Any) -> str:
        """Return the key of an item, or what else names it if that raises."""
        try:
            return check_str_key(self._stash._key_of(item))
        except Exception:  # noqa: BLE001 - it is raised where the item is made; here it is only to be named
            return _told(item)

    def __enter__(self) -> None:
        if self._stash._worker is None:
            self._stash._worker = get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stash._worker is not True:
            self._stash._worker = None


def _told(item: object) -> str:
    try:
        text = " ".join(ascii(item).split())
    except Exception:  # noqa: BLE001 - of the user
        text = ascii(object.__repr__(item))
    # Those that begin alike must not pass for one.
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... {xxh3_64_hexdigest(text.encode())}"
