"""NumPy arrays in pickles whose loading is restricted: by their bytes, and with a check of what these are said to be.

NumPy's own way of pickling can't be had for this: what it calls takes any description of a type on trust, also one
that makes addresses of bytes.
"""

from __future__ import annotations

import re
from pickle import PickleBuffer
from typing import Any, Literal

try:
    import numpy as np
except ImportError as err:
    raise ImportError("RestrictedPickleCodec(numpy=True) needs NumPy: pip install 'zpersist[numpy]'") from err

__all__ = ["make_array", "make_scalar", "take_apart"]

# Numbers, truth, bytes, text, times: no objects, no structures.
_DTYPE = re.compile(r"[<>|=](?:[?biufcSUV][0-9]{1,9}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,8}(?:/[0-9]{1,9})?\])?)")


# Of these NumPy takes away zeros at the end, when it makes a scalar of an item of an array.
_TEXT = re.compile(r"([<>|])([SU])([0-9]{1,9})")


def _dtype(text: object) -> Any:
    if type(text) is not str or not _DTYPE.fullmatch(text):
        raise ValueError(f"{_shown(text)} is no type of an array that can be kept")
    dtype = np.dtype(text)
    if dtype.hasobject or dtype.fields is not None or not dtype.itemsize or dtype.str != text:
        raise ValueError(f"{text!r} is no type of an array that can be kept")
    return dtype


def _shown(text: object) -> str:
    """Return a text as it is shown in errors, and of anything else the type: what it is runs no code."""
    return repr(text[:40]) if isinstance(text, str) and type(text) is str else f"a {type(text).__qualname__}"


def _name(dtype: Any) -> str:
    text: str = dtype.str
    if dtype.fields is not None or dtype.subdtype is not None or dtype.metadata or _dtype(text) != dtype:
        raise ValueError(f"arrays of {dtype} can't be kept, but those of numbers, truth, bytes, text and times")
    return text


def take_apart(value: object) -> tuple[Any, ...] | None:
    """Return how an array or a NumPy scalar is pickled; ``None`` if it is neither.

    Raises
    ------
    ValueError
        It holds objects, structures, or what else is more than numbers, truth, bytes, text and times.
    """
    if type(value) is np.ndarray:
        text = _name(value.dtype)
        order: Literal["C", "F"] = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        flat = np.require(value, requirements=order)
        # As bytes, for not every type of NumPy's has a buffer.
        data: Any = flat.reshape(-1, order=order).view(np.uint8)
        return make_array, (PickleBuffer(data), text, value.shape, order)
    if type(value) in (np.bytes_, np.str_):
        # Of an empty one NumPy gives a zero.
        return make_scalar, (value.tobytes()[: value.dtype.itemsize], value.dtype.str)  # type: ignore[attr-defined]
    if isinstance(value, np.generic) and type(value).__module__ == "numpy":
        return make_scalar, (value.tobytes(), _name(value.dtype))
    return None


def make_array(data: Any, text: str, shape: tuple[int, ...], order: Literal["C", "F"]) -> Any:
    """Return an array over the bytes.

    Parameters
    ----------
    data :
        The bytes; the array can be written to if these can.
    text :
        The type of the items, as NumPy writes it.
    shape :
        The lengths of its axes.
    order :
        ``"C"`` or ``"F"``.

    Raises
    ------
    ValueError
        These don't fit together.
    """
    dtype = _dtype(text)
    if type(shape) is not tuple or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError("what should be a shape is none")
    if order not in ("C", "F"):
        raise ValueError("what should be an order is none")
    with memoryview(data) as view:
        count, rest = divmod(view.nbytes, dtype.itemsize)
    if rest:
        raise ValueError("the bytes are no whole number of items")
    flat = np.frombuffer(data, dtype) if count else np.empty(0, dtype)
    return flat.reshape(shape, order=order)


def make_scalar(data: Any, text: str) -> Any:
    """Return the NumPy scalar of the bytes."""
    found = _TEXT.fullmatch(text) if type(text) is str else None
    if found is None:
        return make_array(data, text, (), "C")[()]
    order, kind, length = found.groups()
    # Not bytes(data): of a number it would make as many zeros.
    with memoryview(data) as view:
        raw = view.tobytes()
    if len(raw) != int(length) * (1 if kind == "S" else 4):
        raise ValueError("the bytes are not as long as the scalar")
    if kind == "S":
        return np.bytes_(raw)
    return np.str_(raw.decode("utf-32-be" if order == ">" else "utf-32-le", "surrogatepass"))
