"""An exception as a value: it can be stored, sent between processes, and raised again."""

from __future__ import annotations

import pickle
import sys
import traceback
from typing import TextIO

from zpersist.errors import InvalidArgumentError, ZPersistError

__all__ = ["Failure"]


class Failure:
    """An exception with its traceback as text, so that it survives pickling.

    Parameters
    ----------
    exception :
        What was raised; default: the exception being handled.
    thrower :
        Who or what raised it, for the reader.
    message :
        A text instead of the exception's own.

    Raises
    ------
    InvalidArgumentError
        No exception is given and none is being handled.

    Examples
    --------
    >>> try:
    ...     1 / 0
    ... except ZeroDivisionError:
    ...     failure = Failure()
    >>> failure
    ZeroDivisionError: division by zero
    """

    def __init__(
        self, exception: BaseException | None = None, thrower: object = None, message: str | None = None
    ) -> None:
        exception = exception if exception is not None else sys.exc_info()[1]
        if exception is None:
            raise InvalidArgumentError("no exception is being handled; use Failure(exception)")
        self.exception = exception
        self.thrower = thrower
        self.message = str(exception) if message is None else message
        lines = traceback.format_exception(exception)
        self.traceback_str = "".join(lines)

    def rethrow(self) -> None:
        """Raise the exception again, with its traceback if it is still in the process that made it."""
        raise self.exception

    def write(self, writer: TextIO | None = None) -> None:
        """Write what happened and the traceback.

        Parameters
        ----------
        writer :
            Where to; default: the standard output.
        """
        out = sys.stdout if writer is None else writer
        if self.thrower is not None:
            out.write(f"{self.thrower}:\n")
        out.write(f"{self!r}\n{self.traceback_str}")

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        if self.thrower is not None:
            state["thrower"] = str(self.thrower)
        try:
            # An exception with a constructor of its own often pickles well and can't be unpickled.
            pickle.loads(pickle.dumps(self.exception))
        except Exception:  # noqa: BLE001 - whatever the foreign __reduce__ raises, the text must travel
            state["exception"] = ZPersistError(repr(self))
        return state

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self.exception).__name__}: {self.message}"
