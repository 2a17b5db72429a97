"""An exception as a value: it can be stored, sent between processes, and raised again."""

from __future__ import annotations

import pickle
import sys
import traceback
from typing import Any, TextIO

from zpersist.errors import InvalidArgumentError, ZPersistError

__all__ = ["Failure"]


def _text(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception as err:  # noqa: BLE001 - whatever a foreign __str__ raises
        return f"(its text can't be told: {err!r})"


def _pickled(exception: BaseException) -> bytes:
    for what in (exception, _Bare(exception)):
        try:
            data = pickle.dumps(what)
            pickle.loads(data)
        except Exception:  # noqa: BLE001, S112 - whatever the foreign class raises, the text must travel
            continue
        return data
    return b""


class _Bare:
    """An exception on its way past a constructor that wants something else than what the exception remembers."""

    def __init__(self, exception: BaseException) -> None:
        self._exception = exception

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._exception
        return _made_again, (type(error), error.args, error.__dict__)


def _made_again(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


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
        self.message = _text(exception) if message is None else message
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
        state["exception"] = _pickled(self.exception)
        return state | {"text": repr(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        data, text = state.pop("exception"), state.pop("text")
        self.__dict__.update(state)
        try:
            # One with a constructor of its own, or whose module is not here, can't be made again.
            self.exception = pickle.loads(data)
        except Exception:  # noqa: BLE001 - whatever the foreign class raises, the text has come
            self.exception = ZPersistError(text)

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        # A plain error of ours stands for one that could not be made again, and says which.
        told = str(self.exception) if type(self.exception) is ZPersistError else ""
        return told if told.endswith(f": {self.message}") else f"{type(self.exception).__name__}: {self.message}"
