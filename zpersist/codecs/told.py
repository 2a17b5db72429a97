"""What an error tells of the exception behind it: never by a call of code that comes with a value."""

from __future__ import annotations

__all__ = ["told"]

#: What is in the ``args`` of an exception without being shown by code of somebody's.
_PLAIN = frozenset((str, bytes, int, float, bool, type(None)))


def told(err: BaseException) -> str:
    """Return the type of an exception and, if that is plain text, what it says.

    An exception may hold a value, as ``KeyError`` does, and would show it by its ``__repr__``: that would run code
    of a class while bytes of somebody else are loaded, and what it raises would hide the error.

    Parameters
    ----------
    err :
        The exception.

    Returns
    -------
    str
        Such as ``"ValueError: month must be in 1..12"``; at most 500 characters of what it says.
    """
    name = type(err).__name__
    try:
        if not all(type(arg) in _PLAIN for arg in err.args):
            return name
        text = str(err)
    except Exception:  # noqa: BLE001 - it can't tell; the exception itself is the cause of the error
        return name
    return f"{name}: {text[:500]}" if text else name
