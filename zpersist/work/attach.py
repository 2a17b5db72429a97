"""Where the works of an owner live: on the instance, in one of its slots, on the class, or beside it.

An owner has its works in its ``__dict__``, or in a slot of the work's name.  One that has neither (a slotted
class) has them in a table beside it, which forgets them when the owner dies.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, Protocol

from zpersist.errors import OwnerError, WorkNameError
from zpersist.forklock import ForkLock

if TYPE_CHECKING:
    from zpersist.work.work import PersistedWork

__all__ = [
    "WORK_NAME",
    "WorkAttribute",
    "class_registry",
    "find_work",
    "keep_work",
    "own_attribute",
    "own_attributes",
    "reference_to",
]

_REGISTRY = "__zpersist_registry__"

#: The attribute of a decorated method that says under which name its work is found.
WORK_NAME = "__persisted_name__"


class _Reference(Protocol):
    def __call__(self) -> Any: ...


class _StrongReference:
    """Stands in for a weak reference to what can't be weakly referenced."""

    __slots__ = ("owner",)

    def __init__(self, owner: object) -> None:
        self.owner = owner

    def __call__(self) -> Any:
        return self.owner


def reference_to(owner: object) -> _Reference:
    """Return a function that returns the owner, or ``None`` once it is dead; weak if that is possible."""
    try:
        return weakref.ref(owner)
    except TypeError:
        entry = _beside.find(owner)
        return _StrongReference(owner) if entry is None else entry[0]


class _Beside:
    """The works of owners that have no room for them."""

    def __init__(self) -> None:
        self._guard = ForkLock()
        self._entries: dict[int, tuple[_Reference, dict[str, Any]]] = {}
        self._sweep_at = 64

    def find(self, owner: object) -> tuple[_Reference, dict[str, Any]] | None:
        entry = self._entries.get(id(owner))
        return entry if entry is not None and entry[0]() is owner else None

    def works(self, owner: object) -> dict[str, Any]:
        with self._guard:
            entry = self.find(owner)
            if entry is None:
                key = id(owner)
                try:
                    reference: _Reference = weakref.ref(owner, lambda _: self._entries.pop(key, None))
                except TypeError:
                    self._sweep()
                    reference = _StrongReference(owner)
                entry = self._entries[key] = reference, {}
            return entry[1]

    def _sweep(self) -> None:
        # Owners that can't be weakly referenced are held here; those held by nobody else are dead.
        if len(self._entries) < self._sweep_at:
            return
        for key, (reference, _) in tuple(self._entries.items()):
            if isinstance(reference, _StrongReference) and sys.getrefcount(reference.owner) <= 2:
                del self._entries[key]
        self._sweep_at = max(64, 2 * len(self._entries))


_beside = _Beside()

_registering = ForkLock()


def class_registry(cls: type) -> dict[Any, Any]:
    """Return what is kept on a class itself, not on its bases or subclasses."""
    registry: dict[Any, Any] | None = cls.__dict__.get(_REGISTRY)
    return _new_registry(cls) if registry is None else registry


def _new_registry(cls: type) -> dict[Any, Any]:
    with _registering:
        if _REGISTRY not in cls.__dict__:
            try:
                setattr(cls, _REGISTRY, {})
            except (AttributeError, TypeError) as err:
                raise OwnerError(f"nothing can be kept on the class {cls.__qualname__}: {err}") from err
        registry: dict[Any, Any] = cls.__dict__[_REGISTRY]
        return registry


def _room(owner: object, name: str) -> dict[str, Any] | MemberDescriptorType:
    if isinstance(owner, type):
        works: dict[str, Any] = class_registry(owner).setdefault("works", {})
        return works
    slot = getattr(type(owner), name, None)
    slot = slot.slot if isinstance(slot, WorkAttribute) else slot
    if isinstance(slot, MemberDescriptorType):
        return slot
    attributes = getattr(owner, "__dict__", None)
    if isinstance(attributes, dict):
        return attributes
    if type(owner).__module__ == "builtins":
        raise OwnerError(
            f"no work can live on {owner!r}, a {type(owner).__name__}; if the method is a static one, "
            f"put @persisted above @staticmethod"
        )
    return _beside.works(owner)


def find_work(owner: object, name: str, kind: type[PersistedWork]) -> PersistedWork | None:
    """Return the work an owner has under a name, made its own if the owner is a copy of the one it was made for."""
    room = _room(owner, name)
    if isinstance(room, dict):
        work = room.get(name)
    else:
        try:
            work = room.__get__(owner, type(owner))
        except AttributeError:
            work = None
    if work is None:
        return None
    if not isinstance(work, kind):
        raise WorkNameError(
            f"{type(owner).__qualname__}.{name} is no work but {work!r}; give the work another name in @persisted(name)"
        )
    own = work._owned_by(owner)
    if own is not work:
        keep_work(owner, name, own)
    return own


def keep_work(owner: object, name: str, work: PersistedWork) -> None:
    """Keep a work on its owner under a name, past ``__setattr__`` of frozen classes."""
    room = _room(owner, name)
    if isinstance(room, dict):
        room[name] = work
    else:
        room.__set__(owner, work)


def _attributes(owner: object) -> dict[str, Any]:
    attributes = getattr(owner, "__dict__", None)
    return attributes if isinstance(attributes, dict) else _beside.works(owner)


class WorkAttribute:
    """Gives each instance its own work, also after ``copy.copy`` has copied a reference to another one's.

    Stands in the class for the attribute, or before the slot, under which instances have the work.
    """

    def __init__(self, name: str, kind: type[PersistedWork], slot: MemberDescriptorType | None) -> None:
        self._name = name
        self._kind = kind
        self.slot = slot

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        if self.slot is not None:
            value = self.slot.__get__(owner, cls)
        elif self._name in _attributes(owner):
            value = _attributes(owner)[self._name]
        else:
            raise AttributeError(f"{type(owner).__name__!r} object has no attribute {self._name!r}")
        return find_work(owner, self._name, self._kind) if isinstance(value, self._kind) else value

    def __set__(self, owner: Any, value: object) -> None:
        if self.slot is None:
            _attributes(owner)[self._name] = value
        else:
            self.slot.__set__(owner, value)

    def __delete__(self, owner: Any) -> None:
        work = getattr(owner, self._name)
        if isinstance(work, self._kind):
            work._unmirror()
        if self.slot is not None:
            self.slot.__delete__(owner)
        else:
            del _attributes(owner)[self._name]


def own_attribute(cls: type, name: str, kind: type[PersistedWork]) -> None:
    """Make a class hand out each instance's own work, if the class has room for that."""
    slot = getattr(cls, name, None)
    if isinstance(slot, MemberDescriptorType):
        cls = slot.__objclass__
    elif hasattr(cls, name):
        return
    else:
        slot = None
    with suppress(AttributeError, TypeError):
        # A class that can't be changed: instances get their own work when the method is called.
        setattr(cls, name, WorkAttribute(name, kind, slot))


def own_attributes(cls: type, kind: type[PersistedWork]) -> None:
    """Do so for all works of a class that its decorated methods name, once."""
    try:
        registry = class_registry(cls)
    except OwnerError:
        return
    if registry.setdefault("looked at", False):
        return
    registry["looked at"] = True
    for base in cls.__mro__:
        for value in tuple(vars(base).values()):
            name = getattr(getattr(value, "fget", value), WORK_NAME, None)
            if isinstance(name, str):
                own_attribute(cls, name, kind)
