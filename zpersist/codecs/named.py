"""Codecs by name: ours, and those that other packages register.

A package registers a codec by an entry point of the group ``zpersist.codecs``: its name, and what makes the codec when
it is called without arguments (https://packaging.python.org/specifications/entry-points/).

.. code-block:: toml

    [project.entry-points."zpersist.codecs"]
    cbor = "my_package:CborCodec"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from zpersist.codecs.base import Codec
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
        There is none of that name, or what is registered makes no codec.
    """
    if name in _OURS:
        module, kind = _OURS[name]
        made = getattr(import_module(f"zpersist.codecs.{module}"), kind)
        return made()  # type: ignore[no-any-return]
    found = entry_points(group=_GROUP)
    if name not in found.names:
        known = ", ".join(sorted({*_OURS, *found.names}))
        raise InvalidArgumentError(f"there is no codec {name!r}, but {known}; is its package installed?")
    codec = found[name].load()()
    if not isinstance(codec, Codec):
        raise InvalidArgumentError(f"what is registered as the codec {name!r} makes {codec!r}, which is none")
    return codec


def as_codec(codec: Any) -> Any:
    """Return the codec of a name, and anything else as it is (a converter for attrs)."""
    return named_codec(codec) if isinstance(codec, str) else codec
