"""Registered classes: how instances of attrs classes, data classes, named tuples and enums become fields, and back."""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from inspect import getattr_static, signature
from types import FunctionType, MemberDescriptorType
from typing import Any

import attrs

from zpersist.codecs.defaults import Default, defaults_of
from zpersist.errors import InvalidArgumentError

__all__ = ["EnumRecord", "FieldsRecord", "ObjectRecord", "Record", "TupleRecord", "is_record", "name_of", "record_of"]

# Where attrs remembers the hash of an instance, if it is told to.
_HASH = "_attrs_cached_hash"

_get = object.__getattribute__

#: So many bits a combination of flags may have.
MAX_FLAG_BITS = 1 << 13


def name_of(kind: type) -> str:
    """Return the name by which a class is known in the data."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields") and hasattr(kind, "_field_defaults")


def is_record(kind: type) -> bool:
    """Return whether it is a class that can be registered."""
    return issubclass(kind, enum.Enum) or attrs.has(kind) or dataclasses.is_dataclass(kind) or _is_named_tuple(kind)


class Record(ABC):
    """A registered class.

    Parameters
    ----------
    kind :
        The class.
    """

    #: Says in the data what follows it.
    tag: str

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.name = name_of(kind)

    @abstractmethod
    def apart(self, value: Any) -> Any:
        """Return what an instance is made of, or raise ``ValueError``."""

    @abstractmethod
    def together(self, payload: Any) -> Any:
        """Return an instance, or raise ``ValueError``."""


class EnumRecord(Record):
    """An enum, by the names of its members; combinations of flags by their values."""

    tag = "$enum"

    def __init__(self, kind: type[enum.Enum]) -> None:
        super().__init__(kind)
        self._members: Mapping[str, enum.Enum] = kind.__members__
        if issubclass(kind, enum.Flag):
            self._by_number: dict[int, enum.Flag] = kind._value2member_map_  # type: ignore[assignment]
            self._mask: int = kind._flag_mask_  # type: ignore[attr-defined]
            # Of others than numbers, one that is not kept would not be equal to one that is made later.
            self._is_open = issubclass(kind, int) and kind._boundary_ is enum.KEEP

    def apart(self, value: Any) -> Any:
        """Return the name of a member, or the value of a combination of flags."""
        # Not by name and value, which a class may define anew.
        name, number = _get(value, "_name_"), _get(value, "_value_")
        if type(name) is str and self._members.get(name) is value:
            return name
        if issubclass(self.kind, enum.Flag) and type(number) is int:
            self._check_number(number)
            return number
        raise ValueError("it is no member of its class")

    def together(self, payload: Any) -> Any:
        """Return a member, or a combination of flags."""
        if type(payload) is str:
            if payload not in self._members:
                raise ValueError(f"{self.name} has no member {payload[:200]!r}")
            return self._members[payload]
        if type(payload) is not int or not issubclass(self.kind, enum.Flag):
            raise ValueError(f"a {type(payload).__qualname__} tells no member of {self.name}")
        self._check_number(payload)
        known = payload in self._by_number
        value = self.kind(payload)
        if not known and issubclass(self.kind, int):
            # Python keeps each combination that was ever made in its class, and so what bytes from anybody name.  Of
            # those that are equal to their number another one does as well.
            self._by_number.pop(payload, None)
        if type(value) is not self.kind or _get(value, "_value_") != payload:
            raise ValueError(f"{self.name} has no combination of the value {payload:#x}"[:300])
        return value

    def _check_number(self, number: int) -> None:
        # The flags that a number stands for are named in decimal, and this takes the square of its length.
        if number.bit_length() > MAX_FLAG_BITS:
            raise ValueError(f"flags of more than {MAX_FLAG_BITS} bits can't be kept")
        # Python would keep what it makes of any other number, too.
        if number < 0 or (number & ~self._mask and not self._is_open):
            raise ValueError(f"{self.name} has no combination of the value {number:#x}"[:300])


class FieldsRecord(Record):
    """A class with fields: they are set as they were, and its ``__init__`` is not called.

    Parameters
    ----------
    kind :
        The class.
    defaults :
        Its fields in their order, each with what makes a value for it where the data have none; ``None``: they must.
    """

    tag = "$object"

    def __init__(self, kind: type, defaults: Mapping[str, Default | None]) -> None:
        super().__init__(kind)
        self.names = tuple(defaults)
        self._defaults = defaults
        self._all = frozenset(defaults)
        computed = _computed_in_slots(kind)
        for base in kind.__mro__:
            more = _slots(base) - {*self.names, _HASH, "__weakref__", "__dict__"} - computed
            if more:
                raise InvalidArgumentError(
                    f"{self.name} has the slots {sorted(more)} that are no fields and would be lost: "
                    f"make fields of them, or use another codec"
                )
        self._has_dict = bool(kind.__dictoffset__)

    def apart(self, value: Any) -> dict[str, Any]:
        """Return the fields by name."""
        self._check_more(value)
        fields: dict[str, Any] = {}
        name = ""
        try:
            for name in self.names:
                fields[name] = _get(value, name)
        except AttributeError as err:
            raise ValueError(f"its field {name!r} is not set") from err
        return fields

    def _check_more(self, value: Any) -> None:
        # Not getattr(): the class may have a __getattr__ or a __getattribute__ of its own.
        for name in _get(value, "__dict__").keys() - self._all if self._has_dict else ():
            # What is computed from the fields is computed again.
            if name != _HASH and not issubclass(type(getattr_static(self.kind, name, None)), cached_property):
                raise ValueError(f"its attribute {name!r} is no field and would be lost")

    def together(self, payload: Any) -> Any:
        """Return an instance with these fields."""
        return self._make(self._filled(payload))

    def _filled(self, payload: Any) -> dict[str, Any]:
        """Return the fields, with the defaults of those that the class has got since the value was written."""
        if type(payload) is not dict:
            raise ValueError(f"a {type(payload).__qualname__} is not the fields of {self.name}")
        if payload.keys() == self._all:
            return payload
        if not all(type(name) is str for name in payload):
            raise ValueError(f"the names of the fields of {self.name} are texts")
        if more := payload.keys() - self._all:
            raise ValueError(f"{self.name} has no field {min(more)[:200]!r} (any more), and the data have")
        filled = {}
        for name, default in self._defaults.items():
            if name in payload:
                filled[name] = payload[name]
            elif default is not None:
                filled[name] = default()
            else:
                raise ValueError(f"the data have no field {name!r} of {self.name}, which has no default to take")
        return filled

    def _make(self, fields: dict[str, Any]) -> Any:
        raise NotImplementedError


class ObjectRecord(FieldsRecord):
    """An attrs class, or a data class."""

    def __init__(self, kind: type, defaults: Mapping[str, Default | None]) -> None:
        super().__init__(kind, defaults)
        for name in self.names:
            # To set and to get it would be to call the class.
            found = getattr_static(kind, name, None)
            if hasattr(type(found), "__set__") and not isinstance(found, MemberDescriptorType):
                raise InvalidArgumentError(
                    f"the field {name!r} of {self.name} is a {type(found).__name__} too, and what that does is not "
                    f"known: give one of them another name, or use another codec"
                )
        try:
            object.__new__(kind)
        except TypeError as err:
            raise InvalidArgumentError(f"{self.name} can't be registered ({err}): use another codec for it") from err
        # The class of attrs that remembers the hash of an instance expects a place for it.
        hashing = getattr(getattr(kind, "__hash__", None), "__code__", None)
        self._remembers = hashing is not None and _HASH in (*hashing.co_names, *hashing.co_consts)

    def _make(self, fields: dict[str, Any]) -> Any:
        value: Any = object.__new__(self.kind)
        for name, item in fields.items():
            object.__setattr__(value, name, item)
        if self._remembers:
            object.__setattr__(value, _HASH, None)
        return value


class TupleRecord(FieldsRecord):
    """A named tuple."""

    def apart(self, value: Any) -> dict[str, Any]:
        """Return the items by name."""
        self._check_more(value)
        if tuple.__len__(value) != len(self.names):
            raise ValueError(f"it has {tuple.__len__(value)} items, its class has {len(self.names)}")
        return dict(zip(self.names, tuple.__iter__(value), strict=True))

    def _make(self, fields: dict[str, Any]) -> Any:
        return tuple.__new__(self.kind, [fields[name] for name in self.names])


def _slots(base: type) -> set[str]:
    slots = vars(base).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return {f"_{base.__name__.lstrip('_')}{name}" if _is_private(name) else name for name in names}


def _is_private(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")


def _computed_in_slots(kind: type) -> set[str]:
    """Return for which slots attrs has taken a ``cached_property``: what is there is computed again.

    It keeps their functions as a default of the ``__getattr__`` that it makes.
    """
    names: set[str] = set()
    for base in kind.__mro__:
        made = vars(base).get("__getattr__")
        if attrs.has(base) and isinstance(made, FunctionType):
            parameters = signature(made).parameters
            if "cached_properties" in parameters and isinstance(parameters["cached_properties"].default, dict):
                names |= parameters["cached_properties"].default.keys()
    return names


def record_of(kind: object) -> Record:
    """Return how instances of a class are kept.

    Parameters
    ----------
    kind :
        An attrs class, a data class, a named tuple, or an enum.

    Raises
    ------
    InvalidArgumentError
        It is something else, or an instance has state that is in no field.
    """
    if not isinstance(kind, type) or not is_record(kind):
        raise InvalidArgumentError(
            f"types must be attrs classes, data classes, named tuples or enums, not {kind!r}; "
            f"builtin types need not be registered"
        )
    if issubclass(kind, enum.Enum):
        return EnumRecord(kind)
    if attrs.has(kind) or dataclasses.is_dataclass(kind):
        return ObjectRecord(kind, defaults_of(kind))
    return TupleRecord(kind, defaults_of(kind))
