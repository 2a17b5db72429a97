"""Any Python object, by pickle protocol 5 with large buffers out of band (PEP 574)."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any

from zpersist.codecs import views
from zpersist.codecs.base import Codec
from zpersist.codecs.claims import check_claims
from zpersist.codecs.told import told
from zpersist.errors import DecodeError, EncodeError

__all__ = ["PickleCodec"]

#: Buffers of at least so many bytes lie beside the pickle, aligned, and are mapped when they are loaded.
OUT_OF_BAND_BYTES = 1 << 16


class PickleCodec(Codec):
    """Keeps whatever :mod:`pickle` can.

    Buffers of 64 KiB and more (NumPy arrays, frames of pandas, Arrow columns, :class:`memoryview`, anything that gives
    a :class:`pickle.PickleBuffer`) are laid beside the pickle; a store of files maps them and hands out **read-only**
    views: copy an array before you change it, or open the store with ``mmap=False``.

    Parameters
    ----------
    plain :
        Also read files that hold a pickle and nothing else, as ``pickle.dump`` and zensols.persist write them.  Whether
        one of those was cut or changed can't be told; what is written has its checksum as ever.

    Notes
    -----
    *Trust*: loading runs whatever code the pickle names.  Load only what you, or those you trust, have written.

    Examples
    --------
    >>> codec = PickleCodec()
    >>> codec.loads(codec.dumps({"a": 1}))
    {'a': 1}
    """

    id = "pickle"

    def __init__(self, *, plain: bool = False) -> None:
        self.plain = plain

    def __repr__(self) -> str:
        return "PickleCodec(plain=True)" if self.plain else "PickleCodec()"

    def dumps(self, value: object) -> bytes:
        """Return the pickle of the value, all in one."""
        try:
            return _pickled(value)
        except MemoryError:
            raise
        except Exception as err:
            raise _encode_error(value, err) from err

    def dump_parts(self, value: object) -> tuple[bytes, Sequence[memoryview]]:
        """Return the pickle of the value and its large buffers."""
        buffers: list[memoryview] = []

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if len(view) < OUT_OF_BAND_BYTES:
                return True
            buffers.append(view)
            return False

        try:
            body = _pickled(value, keep_in_band, buffers.clear)
        except MemoryError:
            raise
        except Exception as err:
            raise _encode_error(value, err) from err
        return body, buffers

    def loads(self, data: bytes | bytearray | memoryview) -> Any:
        """Return the value of a pickle."""
        try:
            return _loads_all(data) if self.plain else pickle.loads(data)
        except MemoryError:
            check_claims(data)
            raise
        except Exception as err:
            raise _decode_error(err) from err

    def load_parts(self, body: bytes | bytearray | memoryview, buffers: Iterable[memoryview]) -> Any:
        """Return the value of a pickle whose large buffers are given."""
        try:
            return pickle.loads(body, buffers=buffers)
        except MemoryError:
            check_claims(body)
            raise
        except Exception as err:
            raise _decode_error(err) from err


def _pickled(
    value: object,
    callback: Callable[[pickle.PickleBuffer], bool] | None = None,
    again: Callable[[], None] = lambda: None,
) -> bytes:
    try:
        return pickle.dumps(value, 5, buffer_callback=callback)
    except TypeError as err:
        if "memoryview" not in str(err):
            raise
    # What holds views is rare, and to look for them would cost all others.
    again()
    return views.dumps(value, buffer_callback=callback)


def _loads_all(data: bytes | bytearray | memoryview) -> Any:
    stream = BytesIO(data)
    value = pickle.load(stream)
    if left := len(data) - stream.tell():
        # The start of something else, or a value of ours that has lost its end.
        raise pickle.UnpicklingError(f"{left} bytes come after its end")
    return value


def _encode_error(value: object, err: Exception) -> EncodeError:
    return EncodeError(f"a {type(value).__qualname__} can't be pickled ({told(err)}); {_remedy(value, err)}")


def _remedy(value: object, err: Exception) -> str:
    if isinstance(err, views.ViewError):
        return "a view on one block of numbers can be kept"
    says = told(err)
    # First, for those of a script are found there no more than elsewhere.
    if "<locals>" in says or "<lambda>" in says:
        return "functions, lambdas and local classes can be kept by codec=DillCodec()"
    if "__main__" in says:
        return "define its class in a module that others can import, not in the script"
    if callable(value):
        return "functions, lambdas and local classes can be kept by codec=DillCodec()"
    return "leave it out, or try codec=DillCodec()"


def _decode_error(err: Exception) -> DecodeError:
    return DecodeError(f"an intact pickle can't be loaded ({told(err)}); has a class been moved or renamed?")
