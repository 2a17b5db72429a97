"""A filling that is read while it goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

__all__ = ["Stream"]


class Stream:
    """Yields what a filling yields; somebody else may have the rest done first.

    Parameters
    ----------
    filling :
        Yields keys as they are made; closed when the iteration ends.
    """

    def __init__(self, filling: Iterator[list[str]]) -> None:
        self._filling = filling
        self._waiting: deque[list[str]] = deque()
        self._error: BaseException | None = None
        self._busy = False

    def __iter__(self) -> Iterator[list[str]]:
        while self._waiting or self._advance():
            yield self._waiting.popleft()
        if self._error is not None:
            # Whoever finished it was told; the one who iterates is, too.
            raise self._error

    def _advance(self) -> bool:
        self._busy = True
        try:
            self._waiting.append(next(self._filling))
        except StopIteration:
            return False
        finally:
            self._busy = False
        return True

    def finish(self) -> None:
        """Do the rest, for somebody wants all of it; nothing is done within a step of the filling itself."""
        if self._busy:
            return
        try:
            while self._advance():
                pass
        except BaseException as err:
            self._error = err
            raise
