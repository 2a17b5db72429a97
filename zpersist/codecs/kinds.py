"""The builtin types that data-only codecs keep: how a value of each is taken apart, and put together again.

A value is taken apart into values of simpler types.  What is put together is checked: it must be just what would
have been written, so that nothing is ever read as something else.
"""

from __future__ import annotations

import re
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Context, Decimal
from fractions import Fraction
from functools import cache
from math import isnan
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from pickle import PicklingError
from typing import Any, NamedTuple
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo, available_timezones

from zpersist.codecs.failures import failure_to_texts, texts_to_failure
from zpersist.codecs.hashes import check_hashes
from zpersist.failure import Failure

__all__ = ["KINDS", "MAX_BITS", "TEXTUAL", "Kind", "float_to_text", "int_to_text"]

#: The greatest common divisor of larger numbers, which is needed to check a fraction, would take too long; and so would
#: their quotient, which tells the length of a range.
MAX_BITS = 1 << 16

_HEX_INT = re.compile(r"-?0x[0-9a-f]+")
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,3}")
_PATHS = {kind.__name__: kind for kind in (PurePosixPath, PureWindowsPath, PosixPath, WindowsPath)}

# The decimal context of a thread decides, among other things, how its numbers are written: this one is ours.
_DECIMALS = Context(capitals=1)


class Kind(NamedTuple):
    """One builtin type.

    ``apart`` returns simpler values that make up a value, or raises ``ValueError``; ``together`` takes them back, and
    raises whatever it may if they are not what ``apart`` returns.
    """

    tag: str
    type: type
    apart: Callable[[Any], Any]
    together: Callable[[Any], Any]


def _check(condition: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"it is not {expected}")


def _items(payload: Any, *kinds: type) -> list[Any]:
    """Return the payload if it is a list of just these types."""
    # Not isinstance(): it asks an instance for its class.
    _check(type(payload) is list and tuple(map(type, payload)) == kinds, f"a list of {len(kinds)} such values")
    return payload  # type: ignore[no-any-return]


def _text(payload: Any) -> str:
    _check(type(payload) is str, "a text")
    return payload  # type: ignore[no-any-return]


# Numbers.


def int_to_text(value: int) -> str:
    """Return the number in hexadecimal: the time for this grows with its length only, and there is no limit."""
    return hex(value)


def _text_to_int(payload: Any) -> int:
    _check(_HEX_INT.fullmatch(_text(payload)), "a hexadecimal number")
    value = int(payload, 16)
    _check(hex(value) == payload, "a hexadecimal number as it is written")
    return value


def float_to_text(value: float) -> str:
    """Return a number that is not finite as text; of ``nan`` there are many, told apart by their bits."""
    data = struct.pack(">d", value)
    return data.hex() if isnan(value) and data != struct.pack(">d", float("nan")) else repr(value)


def _text_to_float(payload: Any) -> float:
    text = _text(payload)
    value: float = float(text) if text in ("nan", "inf", "-inf") else struct.unpack(">d", bytes.fromhex(text))[0]
    _check(float_to_text(value) == text, "a number that is not finite")
    return value


def _together_complex(payload: Any) -> complex:
    return complex(*_items(payload, float, float))


def _together_decimal(payload: Any) -> Decimal:
    value = Decimal(_text(payload))
    _check(_DECIMALS.to_sci_string(value) == payload, "a decimal number as it is written")
    return value


def _check_bits(what: str, *numbers: int) -> None:
    bits = max(map(int.bit_length, numbers))
    _check(bits <= MAX_BITS, f"a {what} of numbers of at most {MAX_BITS} bits")


def _apart_fraction(value: Fraction) -> list[int]:
    numerator, denominator = value.as_integer_ratio()
    _check_bits("fraction", numerator, denominator)
    return [numerator, denominator]


def _together_fraction(payload: Any) -> Fraction:
    numerator, denominator = _items(payload, int, int)
    _check_bits("fraction", numerator, denominator)
    value = Fraction(numerator, denominator)
    _check(value.denominator == denominator, "a fraction in lowest terms")
    return value


def _apart_range(value: range) -> list[int]:
    numbers = [value.start, value.stop, value.step]
    _check_bits("range", *numbers)
    return numbers


def _together_range(payload: Any) -> range:
    numbers = _items(payload, int, int, int)
    _check_bits("range", *numbers)
    return range(*numbers)


# Times.


def _apart_time(value: time | datetime) -> Any:
    text = value.replace(tzinfo=None, fold=0).isoformat()
    return text if value.tzinfo is None and not value.fold else [text, value.fold, value.tzinfo]


def _together_iso(kind: Any) -> Callable[[Any], Any]:
    """Return what puts a date, a time, or both together."""

    def together(payload: Any) -> Any:
        if type(payload) is list and len(payload) == 3:
            text, fold, zone = payload
        else:
            text, fold, zone = payload, 0, None
        value = kind.fromisoformat(_text(text))
        _check(value.isoformat() == text and getattr(value, "tzinfo", None) is None, f"a {kind.__name__}")
        if type(payload) is str:
            return value
        _check(zone is None or type(zone) in (timezone, ZoneInfo), "a time zone")
        _check(type(fold) is int and (fold or zone is not None), "a list as it is written")
        return value.replace(fold=fold, tzinfo=zone)

    return together


def _together_timedelta(payload: Any) -> timedelta:
    days, seconds, microseconds = _items(payload, int, int, int)
    value = timedelta(days, seconds, microseconds)
    _check([value.days, value.seconds, value.microseconds] == payload, "a time span as it is written")
    return value


def _apart_timezone(value: timezone) -> list[Any]:
    # What it would be pickled as: its offset and, if it has one of its own, its name.
    return list(value.__getinitargs__())  # type: ignore[attr-defined]


def _together_timezone(payload: Any) -> timezone:
    kinds = (timedelta, str) if type(payload) is list and len(payload) == 2 else (timedelta,)
    return timezone(*_items(payload, *kinds))


def _apart_zone(value: ZoneInfo) -> str:
    key: object = value.key
    _check(type(key) is str and _ZONE.fullmatch(key) and key in _zones(), "a time zone with a name that can be found")
    try:
        value.__reduce__()
    except PicklingError as err:
        # Whatever name it was given: what is found under that name may be another zone.
        raise ValueError("it was read from a file of its own; a zone is kept by its name, ZoneInfo(name)") from err
    return value.key


def _together_zone(payload: Any) -> ZoneInfo:
    # Looked up before: of a name that is none Python would import a module.
    _check(_ZONE.fullmatch(_text(payload)) and payload in _zones(), "the name of a time zone")
    return ZoneInfo(payload)


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


# Others.


def _apart_path(value: Any) -> list[str]:
    text = str(value)
    again = type(value)(text)
    _check(again.parts == value.parts and str(again) == text, "a path that its text tells")
    return [type(value).__name__, text]


def _together_path(payload: Any) -> Any:
    name, text = _items(payload, str, str)
    value = _PATHS[name](text)
    _check(str(value) == text, "a path as it is written")
    return value


def _apart_uuid(value: UUID) -> Any:
    return str(value) if value.is_safe is SafeUUID.unknown else [str(value), value.is_safe.value]


def _together_uuid(payload: Any) -> UUID:
    text, safe = (payload, None) if type(payload) is str else _items(payload, str, int)
    value = UUID(text, is_safe=SafeUUID(safe))
    _check(str(value) == text, "a UUID as it is written")
    return value


def _together_set(kind: Any) -> Callable[[Any], Any]:
    def together(payload: Any) -> Any:
        _check(type(payload) is list, "a list of items")
        check_hashes(payload)
        value = kind(payload)
        _check(len(value) == len(payload), "a list of different items")
        return value

    return together


def _together_dict(payload: Any) -> dict[Any, Any]:
    pairs = type(payload) is list and all(type(pair) is list and len(pair) == 2 for pair in payload)
    _check(pairs, "a list of pairs")
    check_hashes([key for key, _ in payload])
    value = dict(payload)
    _check(len(value) == len(payload), "a list of different keys")
    return value


def _together_tuple(payload: Any) -> tuple[Any, ...]:
    _check(type(payload) is list, "a list of items")
    return tuple(payload)


def _together_bytearray(payload: Any) -> bytearray:
    _check(type(payload) is bytes, "bytes")
    return bytearray(payload)


def _together_str(payload: Any) -> str:
    _check(type(payload) is bytes, "bytes")
    value: str = payload.decode("utf-8", "surrogatepass")
    return value


def _together_failure(payload: Any) -> Failure:
    _check(type(payload) is list and len(payload) == 4, "a list of four texts")
    return texts_to_failure(*payload)


def _encode_str(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _apart_bytes(value: bytes) -> str:
    return b2a_base64(value, newline=False).decode("ascii")


def _together_bytes(payload: Any) -> bytes:
    return a2b_base64(_text(payload), strict_mode=True)


#: Those that both formats write in the same way.  ``str``, ``int`` and ``dict`` are written so if they must.
KINDS: tuple[Kind, ...] = (
    Kind("$str", str, _encode_str, _together_str),
    Kind("$int", int, int_to_text, _text_to_int),
    Kind("$dict", dict, lambda value: [list(pair) for pair in value.items()], _together_dict),
    Kind("$tuple", tuple, list, _together_tuple),
    Kind("$set", set, list, _together_set(set)),
    Kind("$frozenset", frozenset, list, _together_set(frozenset)),
    Kind("$bytearray", bytearray, bytes, _together_bytearray),
    Kind("$complex", complex, lambda value: [value.real, value.imag], _together_complex),
    Kind("$decimal", Decimal, _DECIMALS.to_sci_string, _together_decimal),
    Kind("$fraction", Fraction, _apart_fraction, _together_fraction),
    Kind("$range", range, _apart_range, _together_range),
    Kind("$date", date, date.isoformat, _together_iso(date)),
    Kind("$time", time, _apart_time, _together_iso(time)),
    Kind("$datetime", datetime, _apart_time, _together_iso(datetime)),
    Kind("$timedelta", timedelta, lambda value: [value.days, value.seconds, value.microseconds], _together_timedelta),
    Kind("$timezone", timezone, _apart_timezone, _together_timezone),
    Kind("$zone", ZoneInfo, _apart_zone, _together_zone),
    Kind("$uuid", UUID, _apart_uuid, _together_uuid),
    *(Kind("$path", kind, _apart_path, _together_path) for kind in _PATHS.values()),
    Kind("$failure", Failure, failure_to_texts, _together_failure),
)

#: Those that only a format of text has to take apart: numbers that are not finite, and bytes.
TEXTUAL: tuple[Kind, ...] = (
    Kind("$float", float, float_to_text, _text_to_float),
    Kind("$bytes", bytes, _apart_bytes, _together_bytes),
)
