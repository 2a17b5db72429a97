"""Data as JSON: readable, and nothing but data."""

from __future__ import annotations

import json
import sys
from math import isfinite
from typing import Any

from attrs import define

from zpersist.codecs.plain import PlainCodec
from zpersist.errors import DecodeError

__all__ = ["JsonCodec"]

# As many as Python itself allows by default: the time grows with the square.
_MAX_DIGITS = 4300

_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False)


def _refuse(text: str) -> Any:
    raise DecodeError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if isfinite(value) else _refuse(f"{text[:40]}, which no float can hold,")


def _short_int(text: str) -> int:
    return int(text) if len(text) <= _MAX_DIGITS else _refuse(f"an integer of {len(text)} digits")


@define(slots=False, eq=False)
class JsonCodec(PlainCodec):
    """Keeps data as JSON, without loss; loading runs no code and imports nothing.

    What is plain JSON is stored as just that.  These come back equal and of the same type too: integers of any size,
    any ``float``, ``bytes``, ``bytearray``, ``tuple``, ``set``, ``frozenset``, ``dict`` with any of these as keys,
    ``complex``, ``range``, ``Decimal``, ``Fraction``, ``date``, ``time``, ``datetime``, ``timedelta``, ``timezone``,
    ``ZoneInfo``, ``UUID``, paths, :class:`~zpersist.Failure` (with a stand-in for its exception); and instances of
    the classes in ``types``.  Anything else is refused, also a subclass of these.

    Parameters
    ----------
    types :
        Enums, attrs classes, data classes and named tuples whose instances can be kept (default: none).  The data
        names them by module and name, and nothing else than these is ever looked up.

    Raises
    ------
    InvalidArgumentError
        One of ``types`` is of another kind, or its instances have state beside their fields.
    EncodeError
        By :meth:`dumps`: something in the value can't be kept; the error says what, where, and what to do.
    DecodeError
        By :meth:`loads`: the bytes are not what this codec writes, or name a class that is not registered.

    Notes
    -----
    *Trust*: bytes from anybody can be loaded: a value comes out, or a ``DecodeError``.  Fields of registered classes
    are set as they were stored, without a call of ``__init__``, converters or validators: check what you don't trust.
    A field that the data have none of gets its default, if it has one that is not computed.  Methods of a registered
    class are called only to hash and compare it, as a key or in a set, and by enums of flags.  Python keeps each
    combination of an ``enum.Flag`` that was ever made, so that of one with many members bytes can make many that stay;
    of an ``enum.IntFlag`` none stays.
    Time and memory grow with the length of the bytes.  So among keys at most 100 may have the same hash, with those of
    frozen sets in them multiplied, and no number of more than 4,096 bits that of a ``Decimal``; numbers of a ``range``
    or a ``Fraction`` have at most 65,536 bits.

    What is held twice comes back as two equal values.  What holds itself, or lies deeper than 128 containers, is
    refused.  The format is that of RFC 8259 in UTF-8, with tags as described in ``zpersist/codecs/plain.py``.

    Examples
    --------
    >>> codec = JsonCodec()
    >>> codec.dumps({"a": [1, 2.5, "x", None]})
    b'{"a": [1, 2.5, "x", null]}'
    >>> codec.loads(codec.dumps({1: ("a", b"b"), "1": {2, 3}})) == {1: ("a", b"b"), "1": {2, 3}}
    True
    """

    id = "json"
    _binary = False

    def _to_bytes(self, tree: Any) -> bytes:
        return _ENCODER.encode(tree).encode()

    def _from_bytes(self, data: bytes | bytearray | memoryview) -> Any:
        limited = 0 < sys.get_int_max_str_digits() <= _MAX_DIGITS
        return json.loads(
            str(data, "utf-8"),
            object_pairs_hook=self._read_object,
            parse_constant=_refuse,
            parse_float=_finite,
            # Python's own int is faster, where it is limited.
            parse_int=int if limited else _short_int,
        )
