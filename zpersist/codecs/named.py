"""Codecs by name: ours, and those that other packages register.

A package registers a codec by an entry point of the group ``zpersist.codecs``: its name, and what makes the codec when
it is called without arguments (https://packaging.python.org/specifications/entry-points/).

.. code-block:: toml

    [project.entry-points."zpersist.codecs"]
    cbor = "my_package:CborCodec"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zpersist.codecs.base import Codec
from zpersist.codecs.told import told
from zpersist.errors import InvalidArgumentError

__all__ = ["as_codec", "named_codec"]

_GROUP = "zpersist.codecs"
_OURS = {
    "dill": ("dill", "DillCodec"),
    "json": ("json", "JsonCodec"),
    "msgpack": ("msgpack", "MsgpackCodec"),
    "pickle": ("pickle", "PickleCodec"),
}


def named_codec(name: str) -> Codec:
    """Return a new codec of a name.

    Parameters
    ----------
    name :
        One of ours (``"pickle"``, ``"dill"``, ``"json"``, ``"msgpack"``), or one that an installed package registers.

    Raises
    ------
    InvalidArgumentError
        There is none of that name, what is registered can't be loaded or makes no codec, or two packages have
        registered different ones.
    """
    if name in _OURS:
        module, kind = _OURS[name]
        made = getattr(import_module(f"zpersist.codecs.{module}"), kind)
        return made()  # type: ignore[no-any-return]
    # Their names are read from what the packages say of themselves: nothing is imported for it.
    found = entry_points(group=_GROUP)
    points = {point.value: point for point in reversed(tuple(found)) if point.name == name}
    if not points:
        known = ", ".join(sorted({*_OURS, *found.names}))
        raise InvalidArgumentError(f"there is no codec {name!r}, but {known}; is its package installed?")
    if len(points) > 1:
        several = " and ".join(map(_told, points.values()))
        raise InvalidArgumentError(f"the codec {name!r} is registered as {several}: uninstall all but one")
    (point,) = points.values()
    return _made(point)


def _made(point: EntryPoint) -> Codec:
    try:
        codec = point.load()()
    except MemoryError:
        raise
    except Exception as err:
        raise InvalidArgumentError(
            f"the codec {point.name!r}, which is registered as {_told(point)}, can't be made ({told(err)}): mend or "
            f"uninstall that package, or install what it needs"
        ) from err
    if not isinstance(codec, Codec):
        raise InvalidArgumentError(
            f"what is registered as the codec {point.name!r} makes {codec!r}, which is none: it is {_told(point)}"
        )
    return codec


def _told(point: EntryPoint) -> str:
    dist = point.dist
    return point.value if dist is None else f"{point.value} by {dist.name} {dist.version}"


def as_codec(codec: Any) -> Any:
    """Return the codec of a name, and anything else as it is (a converter for attrs)."""
    return named_codec(codec) if isinstance(codec, str) else codec
