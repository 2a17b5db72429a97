"""Codecs at work on a value that lies somewhere: what they raise becomes an error that tells where.

Here all stores encode and decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zpersist.codecs.base import Codec, encoded
from zpersist.codecs.told import told
from zpersist.errors import CodecError, CorruptValueError, DecodeError, EncodeError, SealError, ZPersistError
from zpersist.files.atomic import Buffer

__all__ = ["decode", "encode"]

# What may have happened to data that is in order.
_MOVED = (
    ".  A seal covers the key and the place of the store: what was moved is read with its old path as scope=, and "
    "migrate() seals it for the new one"
)


def encode(
    codec: Codec, value: object, where: str, *, place: str = "", out_of_band: bool = True
) -> tuple[bytes, Sequence[memoryview]]:
    """Return what a codec makes of a value: a body, and views on bytes that lie beside it.

    Parameters
    ----------
    codec :
        The codec.
    value :
        The value.
    where :
        Where it is to be kept: a file, or a key.
    place :
        The database, if ``where`` is a key in it.
    out_of_band :
        Let the codec lay large buffers beside the body.

    Raises
    ------
    EncodeError
        The codec can't write the value, or has made something else than bytes of it.
    """
    buffers: Sequence[memoryview] = ()
    try:
        if out_of_band:
            body, buffers = codec.dump_parts(value)
        else:
            body = codec.dumps(value)
        body = encoded(codec, body)
        if buffers:
            buffers = [_bytewise(codec, buffer) for buffer in buffers]
    except EncodeError as err:
        _tell(err, f"{_named(where, place)} can't be written")
        raise
    return body, buffers


def decode(codec: Codec, body: Buffer, buffers: Sequence[memoryview], where: str, place: str = "") -> Any:
    """Return what a codec makes of bytes.

    Whatever the codec raises becomes an error of ours, so that one value can't end what looks at many.

    Parameters
    ----------
    codec :
        The codec.
    body, buffers :
        What it has once made of the value.
    where :
        Where they lie: a file, or a key.
    place :
        The database, if ``where`` is a key in it.

    Raises
    ------
    DecodeError, SealError, CorruptValueError
        The codec can't read them, or has failed.
    """
    try:
        return codec.load_parts(body, buffers) if buffers else codec.loads(body)
    except (CodecError, CorruptValueError) as err:
        _tell(err, f"{_named(where, place)} can't be read", _MOVED if type(err) is SealError else "")
        raise
    except (MemoryError, ZPersistError):
        raise
    except Exception as err:
        raise DecodeError(
            f"{_named(where, place)} can't be read: the codec {codec.id!r} ({type(codec).__name__}) has failed "
            f"({told(err)})"
        ) from err


def _named(where: str, place: str) -> str:
    return f"{where!r} in {place}" if place else where


def _tell(err: ZPersistError, what: str, remedy: str = "") -> None:
    """Have an error say first what could not be done, and where; once, also if it comes by again."""
    if len(err.args) == 1 and type(err.args[0]) is str and not err.args[0].startswith(what):
        err.args = (f"{what}: {err.args[0]}{remedy}",)


def _bytewise(codec: Codec, buffer: memoryview) -> memoryview:
    """Return a view whose length is that in bytes."""
    try:
        view = memoryview(buffer)
        return view if view.nbytes == len(view) and view.c_contiguous else view.cast("B")
    except TypeError as err:
        raise EncodeError(
            f"the codec {codec.id!r} ({type(codec).__name__}) has laid apart a {type(buffer).__qualname__} that is not "
            f"one block of bytes: its dump_parts() must return contiguous views"
        ) from err
