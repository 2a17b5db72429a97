"""What a value is, told so exactly that two values are told alike only if nobody can tell them apart."""

from __future__ import annotations

import dataclasses
import enum
import struct
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs

from zpersist import Failure


def _parts(value):
    match value:
        case enum.Enum():
            return (value.name, told(value.value))
        case float():
            return (struct.pack(">d", value).hex(),)
        case complex():
            return (told(value.real), told(value.imag))
        case datetime() | time():
            zone = value.tzinfo
            return (repr(value.replace(tzinfo=None, fold=0)), value.fold, told(zone))
        case timezone():
            return tuple(map(told, value.__getinitargs__()))
        case ZoneInfo():
            return (value.key, id(value))
        case Decimal():
            return (repr(value.as_tuple()),)
        case UUID():
            return (value.int, value.is_safe)
        case PurePath():
            return (str(value), value.parts)
        case range():
            return tuple(map(told, (value.start, value.stop, value.step)))
        case Failure():
            return tuple(map(told, (value.message, value.traceback_str, value.thrower)))
        case list() | tuple():
            return (*map(told, value), told(getattr(value, "__dict__", None)))
        case set() | frozenset():
            return tuple(sorted(map(told, value), key=repr))
        case dict():
            return tuple((told(key), told(item)) for key, item in value.items())
        case None | bool() | int() | str() | bytes() | bytearray() | date() | timedelta() | Fraction():
            return (ascii(value) if type(value) is str else hex(value) if isinstance(value, int) else repr(value),)
    if attrs.has(type(value)):
        return tuple((item.name, told(getattr(value, item.name))) for item in attrs.fields(type(value)))
    if dataclasses.is_dataclass(value):
        return tuple((item.name, told(getattr(value, item.name))) for item in dataclasses.fields(value))
    raise AssertionError(f"a {type(value)} can't be told")


def told(value):
    """Return a tuple that tells the type of a value, and of all in it, and every bit of it."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}@{id(kind):x}", _parts(value)
