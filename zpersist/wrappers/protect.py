"""A value that can't be kept becomes the exception that says why."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import define, field

from zpersist.errors import InvalidKeyError, OutcomeUnknownError, StorageError, UnsupportedOperationError
from zpersist.stash import native
from zpersist.wrappers.delegate import DelegateStash

__all__ = ["ProtectiveStash"]

V = TypeVar("V")
R = TypeVar("R")

logger = logging.getLogger(__name__)


def _is_of_the_store(err: Exception) -> bool:
    """Whether an error says nothing about the value; in its place it could hide a good one for good."""
    if isinstance(err, StorageError):
        return isinstance(err, OutcomeUnknownError) or err.errno != errno.EFBIG
    return isinstance(err, (UnsupportedOperationError, InvalidKeyError))


@define(slots=False, eq=False)
class ProtectiveStash(DelegateStash[Any]):
    """Keeps the exception in place of a value that its delegate could not keep.

    An error that says nothing about the value is raised: the store can't do that, is full, or does not answer; the
    key is no key.

    Parameters
    ----------
    delegate :
        The stash this one stands on.
    log_errors :
        Log each such exception with its traceback.

    Raises
    ------
    UnsupportedOperationError, InvalidKeyError, StorageError
        By ``dump`` and ``add``: as the delegate raised it; but a value that is too large (``EFBIG``) is replaced.
    Exception
        By ``dump`` and ``add``: what the delegate raised, if it can't keep the exception either.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: those of the delegate.

    Examples
    --------
    >>> stash = ProtectiveStash(DirectoryStash("results"))
    >>> stash.dump("a", lambda: "can't be pickled")
    >>> type(stash["a"]).__name__
    'EncodeError'
    """

    log_errors: bool = field(default=False)

    def dump(self, name: str, inst: Any) -> None:
        """Keep a value, or the exception that tells why not."""
        self._protected(self.delegate.dump, name, inst)

    @native
    def add(self, name: str, inst: Any) -> bool:
        """Keep a value, or the exception that tells why not, only if there is none."""
        return self._protected(self.delegate.add, name, inst)

    def _protected(self, keep: Callable[[str, Any], R], name: str, inst: Any) -> R:
        try:
            return keep(name, inst)
        except Exception as err:
            if _is_of_the_store(err):
                raise
            self._log(name, err)
            try:
                return keep(name, err)
            except Exception:  # noqa: BLE001 - the first one tells more
                raise err from None

    def _log(self, name: str, err: Exception) -> None:
        if self.log_errors:
            logger.error("can not keep %r: %s", name, err, exc_info=err)

    update = DelegateStash.update
