"""Views on memory in pickles: they are laid beside it as an array's buffer is, and come back as views."""

from __future__ import annotations

import copyreg
import pickle
from collections import ChainMap
from collections.abc import Callable
from io import BytesIO
from typing import Any

__all__ = ["ViewError", "dumps", "view"]


class ViewError(pickle.PicklingError):
    """A view that can't be kept; says what can."""


def view(buffer: Any, kind: str, shape: tuple[int, ...]) -> memoryview:
    """Return a view on a buffer (found by its name in stored pickles).

    Parameters
    ----------
    buffer :
        The bytes.
    kind :
        The format of an element, as :mod:`struct` writes it.
    shape :
        How many elements there are in each dimension.
    """
    raw = memoryview(buffer).cast("B")
    # What has no elements can't be cast to a shape.
    return raw.cast(kind, shape) if raw else raw.cast(kind)  # type: ignore[call-overload,no-any-return]


#: The formats of an element that a view can be cast to.
_KINDS = frozenset("bBhHiIlLqQnNfd?")


def _reduced(seen: memoryview) -> tuple[Any, ...]:
    shape = seen.shape or ()
    if not seen.c_contiguous or seen.format not in _KINDS or (0 in shape and len(shape) > 1):
        raise ViewError(
            f"a view of format {seen.format!r} and shape {shape} would not come back as it is; keep its tobytes()"
        )
    return view, (pickle.PickleBuffer(seen), seen.format, seen.shape)


_TABLE: Any = ChainMap({memoryview: _reduced}, copyreg.dispatch_table)


def dumps(value: object, *, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """Return the pickle of a value that may hold views; pickle alone can't."""
    stream = BytesIO()
    pickler = pickle.Pickler(stream, 5, buffer_callback=buffer_callback)
    pickler.dispatch_table = _TABLE
    pickler.dump(value)
    return stream.getvalue()
