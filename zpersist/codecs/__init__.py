"""Codecs turn a value into bytes and back; a store names the one it uses, and uses no other."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zpersist.codecs.base import Codec as Codec
from zpersist.codecs.base import check_codec as check_codec
from zpersist.codecs.dill import DillCodec as DillCodec
from zpersist.codecs.pickle import PickleCodec as PickleCodec

if TYPE_CHECKING:
    from zpersist.codecs.json import JsonCodec as JsonCodec
    from zpersist.codecs.msgpack import MsgpackCodec as MsgpackCodec
    from zpersist.codecs.restricted import RestrictedPickleCodec as RestrictedPickleCodec

__all__ = [
    "Codec",
    "DillCodec",
    "JsonCodec",
    "MsgpackCodec",
    "PickleCodec",
    "RestrictedPickleCodec",
    "check_codec",
]

# These know many types, whose modules are not needed by those who only pickle.
_LATER = {"JsonCodec": "json", "MsgpackCodec": "msgpack", "RestrictedPickleCodec": "restricted"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = value
    return value
