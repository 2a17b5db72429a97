"""A value that can't be kept becomes the exception that says why."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from attrs import define, field

from zpersist.stash import native
from zpersist.wrappers.delegate import DelegateStash

__all__ = ["ProtectiveStash"]

V = TypeVar("V")

logger = logging.getLogger(__name__)


@define(slots=False, eq=False)
class ProtectiveStash(DelegateStash[Any]):
    """Keeps the exception in place of a value that its delegate could not keep.

    Parameters
    ----------
    delegate :
        The stash this one stands on.
    log_errors :
        Log each such exception with its traceback.

    Raises
    ------
    Exception
        By ``dump``: what the delegate raised, if it can't keep the exception either.

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
        try:
            self.delegate.dump(name, inst)
        except Exception as err:  # noqa: BLE001 - whatever it is, it is kept, or raised again
            self._log(name, err)
            self._keep(name, err)

    @native
    def add(self, name: str, inst: Any) -> bool:
        """Keep a value, or the exception that tells why not, only if there is none."""
        try:
            return self.delegate.add(name, inst)
        except Exception as err:  # noqa: BLE001 - as in dump()
            self._log(name, err)
            if self.delegate.exists(name):
                return False
            self._keep(name, err)
            return True

    def _keep(self, name: str, err: Exception) -> None:
        try:
            self.delegate.dump(name, err)
        except Exception:  # noqa: BLE001 - the first one tells more
            raise err from None

    def _log(self, name: str, err: Exception) -> None:
        if self.log_errors:
            logger.error("can not keep %r: %s", name, err, exc_info=err)

    update = DelegateStash.update
