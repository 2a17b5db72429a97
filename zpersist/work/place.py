"""What the places have in common where a work is kept beyond the process."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from zpersist.damage import is_lost
from zpersist.errors import CorruptValueError
from zpersist.files.envelope import REMEDIES

__all__ = ["Place"]

logger = logging.getLogger(__name__)


class _Own(threading.local):
    """For the places for which this thread computes: whether it has kept something there itself since it began."""

    def __init__(self) -> None:
        self.kept: dict[Any, bool] = {}


_own = _Own()


class Place(ABC):
    """A place that knows what the one who computes has kept there himself.

    A method may keep what is not its result yet: by ``set()``, or by another work of the same place.  Its result
    replaces that, and nothing else.
    """

    #: Whether what is damaged is computed again.
    _recover: bool = False
    _told: bool = False

    @property
    @abstractmethod
    def _where(self) -> Any: ...

    @abstractmethod
    def _lock(self) -> AbstractContextManager[None]: ...

    @contextmanager
    def flight(self) -> Iterator[None]:
        """Hold the lock of the one who computes."""
        with self._lock():
            where = self._where
            outer = _own.kept.get(where)
            _own.kept[where] = False
            try:
                yield
            finally:
                inner = _own.kept.pop(where)
                if outer is not None:
                    _own.kept[where] = outer or inner

    def _keeps(self) -> bool:
        """Return whether this thread has kept something here since it began to compute, and note that it does now."""
        where = self._where
        kept = _own.kept.get(where)
        if kept is not None:
            _own.kept[where] = True
        return bool(kept)

    def _recover_from(self, err: CorruptValueError) -> None:
        """Raise, or log once that what can't be read is computed again."""
        if not is_lost(err):
            raise err
        text = str(err)
        if not self._recover:
            raise CorruptValueError(f"{text}; with recover_empty=True it is computed again") from err
        if not self._told:
            fault = next((text.removesuffix(remedy) for remedy in REMEDIES if text.endswith(remedy)), text)
            logger.warning("%s: it is computed again, for recover_empty is set", fault)
            self._told = True
