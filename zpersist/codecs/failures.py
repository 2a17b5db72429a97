"""A failure as plain data: what happened is kept as text, and the exception itself is not made again."""

from __future__ import annotations

from zpersist.errors import DecodeError, ZPersistError
from zpersist.failure import Failure

__all__ = ["failure_to_texts", "texts_to_failure"]

_ATTRIBUTES = {"exception", "thrower", "message", "traceback_str"}


def failure_to_texts(failure: Failure) -> list[str | None]:
    """Return what happened, the message, the traceback and the thrower (or ``None``).

    Parameters
    ----------
    failure :
        Its exception may be of any kind; a thrower becomes its text.

    Returns
    -------
    list[str | None]
        What :func:`texts_to_failure` takes.

    Raises
    ------
    ValueError
        It has attributes of its own, which would be lost.
    """
    more = sorted(vars(failure).keys() - _ATTRIBUTES)
    if more:
        raise ValueError(f"it has the attributes {more}, which no failure has")
    told = str(failure.exception) if type(failure.exception) is ZPersistError else ""
    # The exception of a failure that was loaded is a stand-in, whose text says what it stands for.
    happened = told if told.endswith(f": {failure.message}") else repr(failure)
    thrower = None if failure.thrower is None else str(failure.thrower)
    return [happened, failure.message, failure.traceback_str, thrower]


def texts_to_failure(happened: str, message: str, traceback: str, thrower: str | None) -> Failure:
    """Return a failure whose exception is a :class:`~zpersist.ZPersistError` that says what happened.

    Raises
    ------
    DecodeError
        These are no texts.
    """
    texts = (happened, message, traceback) if thrower is None else (happened, message, traceback, thrower)
    if any(type(text) is not str for text in texts):
        raise DecodeError("a failure is made of texts")
    failure = Failure.__new__(Failure)
    failure.exception = ZPersistError(happened)
    failure.thrower = thrower
    failure.message = message
    failure.traceback_str = traceback
    return failure
