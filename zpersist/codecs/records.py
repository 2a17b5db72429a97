"""Registered classes: how instances of attrs classes, data classes, named tuples and enums become fields, and back."""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from inspect import getattr_static
from typing import Any

import attrs

from zpersist.errors import InvalidArgumentError

__all__ = ["EnumRecord", "FieldsRecord", "Record", "TupleRecord", "is_record", "name_of", "record_of"]

# Where attrs remembers the hash of an instance, if it is told to.
_HASH = "_attrs_cached_hash"


def name_of(kind: type) -> str:
    """Return the name by which a class is known in the data."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


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

    def apart(self, value: Any) -> Any:
        """Return the name of a member, or the value of a combination of flags."""
        members = self.kind.__members__  # type: ignore[attr-defined]
        if members.get(value.name) is value:
            return value.name
        if isinstance(value, enum.Flag) and type(value.value) is int:
            return value.value
        raise ValueError(f"{value!r} is no member of its class")

    def together(self, payload: Any) -> Any:
        """Return a member, or a combination of flags."""
        if type(payload) is str:
            members = self.kind.__members__  # type: ignore[attr-defined]
            if payload not in members:
                raise ValueError(f"{self.name} has no member {payload!r}")
            return members[payload]
        if type(payload) is int and issubclass(self.kind, enum.Flag):
            value = self.kind(payload)
            if type(value) is self.kind and value.value == payload:
                return value
        raise ValueError(f"{self.name} has no member of the value {payload!r}")


class FieldsRecord(Record):
    """A class with fields: they are set as they were, and its ``__init__`` is not called."""

    tag = "$object"

    def __init__(self, kind: type, names: Iterable[str], make: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__(kind)
        self.names = tuple(names)
        self._make = make
        self._known = {*self.names, _HASH}
        for base in kind.__mro__:
            slots = vars(base).get("__slots__", ())
            more = {*((slots,) if isinstance(slots, str) else slots)} - {*self._known, "__weakref__", "__dict__"}
            more = {f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") else slot for slot in more}
            if more - self._known:
                raise InvalidArgumentError(
                    f"{self.name} has the slots {sorted(more - self._known)} that are no fields and would be lost: "
                    f"make fields of them, or use another codec"
                )

    def apart(self, value: Any) -> dict[str, Any]:
        """Return the fields by name."""
        for name in getattr(value, "__dict__", {}).keys() - self._known:
            # What is computed from the fields is computed again.
            if not isinstance(getattr_static(self.kind, name, None), cached_property):
                raise ValueError(f"its attribute {name!r} is no field and would be lost")  # noqa: TRY004 - not a type
        try:
            return {name: getattr(value, name) for name in self.names}
        except AttributeError as err:
            raise ValueError(f"its field {err.name!r} is not set") from err

    def together(self, payload: Any) -> Any:
        """Return an instance with these fields."""
        if type(payload) is not dict or payload.keys() != {*self.names}:
            there = sorted(payload) if type(payload) is dict else payload
            raise ValueError(f"{self.name} has the fields {sorted(self.names)}, the data has {there}")
        return self._make(payload)


class TupleRecord(FieldsRecord):
    """A named tuple."""

    def __init__(self, kind: type, names: tuple[str, ...]) -> None:
        super().__init__(kind, names, lambda fields: tuple.__new__(kind, [fields[name] for name in names]))

    def apart(self, value: Any) -> dict[str, Any]:
        """Return the items by name."""
        if getattr(value, "__dict__", None):
            raise ValueError(f"its attributes {sorted(value.__dict__)} are no fields and would be lost")
        if tuple.__len__(value) != len(self.names):
            raise ValueError(f"it has {tuple.__len__(value)} items, its class has {len(self.names)}")
        return dict(zip(self.names, tuple.__iter__(value), strict=True))


def _maker(kind: type) -> Callable[[dict[str, Any]], Any]:
    try:
        object.__new__(kind)
    except TypeError as err:
        raise InvalidArgumentError(f"{name_of(kind)} can't be registered ({err}): use another codec for it") from err
    # The class of attrs that remembers the hash of an instance expects a place for it.
    hashing = getattr(getattr(kind, "__hash__", None), "__code__", None)
    remembers = hashing is not None and _HASH in (*hashing.co_names, *hashing.co_consts)

    def make(fields: dict[str, Any]) -> Any:
        value: Any = object.__new__(kind)
        for name, item in fields.items():
            object.__setattr__(value, name, item)
        if remembers:
            object.__setattr__(value, _HASH, None)
        return value

    return make


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
    if attrs.has(kind):
        return FieldsRecord(kind, (item.name for item in attrs.fields(kind)), _maker(kind))
    if dataclasses.is_dataclass(kind):
        return FieldsRecord(kind, (item.name for item in dataclasses.fields(kind)), _maker(kind))
    return TupleRecord(kind, kind._fields)  # type: ignore[attr-defined]
