"""Fields of registered classes that the data have none of: what their defaults are.

A class may have got a field since a value was written.  Its default is taken if it stands for itself: it is not
computed from other fields, is not converted, and is what ``__init__`` would take if nothing were given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import attrs

__all__ = ["Default", "defaults_of"]

#: Makes the default of a field.
Default = Callable[[], Any]


def defaults_of(kind: type) -> dict[str, Default | None]:
    """Return the fields of a class in their order, each with what makes its default.

    Parameters
    ----------
    kind :
        An attrs class, a data class, or a named tuple.

    Returns
    -------
    dict[str, Default | None]
        ``None`` for a field that has no default to take.
    """
    if attrs.has(kind):
        return {field.name: _of_attrs(field) for field in attrs.fields(kind)}
    if dataclasses.is_dataclass(kind):
        return {field.name: _of_data(field) for field in dataclasses.fields(kind)}
    given: dict[str, Any] = kind._field_defaults  # type: ignore[attr-defined]
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    return {name: _always(given[name]) if name in given else None for name in names}


def _of_attrs(field: attrs.Attribute[Any]) -> Default | None:
    default: Any = field.default
    if default is attrs.NOTHING or not field.init or field.converter is not None:
        return None
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return None if default.takes_self else default.factory
    return _always(default)


def _of_data(field: dataclasses.Field[Any]) -> Default | None:
    if not field.init:
        return None
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return None if field.default is dataclasses.MISSING else _always(field.default)


def _always(value: Any) -> Default:
    return lambda: value
