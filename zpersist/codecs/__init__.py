"""Codecs turn a value into bytes and back; a store names the one it uses, and uses no other."""

from zpersist.codecs.base import Codec as Codec
from zpersist.codecs.base import check_codec as check_codec
from zpersist.codecs.dill import DillCodec as DillCodec
from zpersist.codecs.named import as_codec as as_codec
from zpersist.codecs.pickle import PickleCodec as PickleCodec

__all__ = ["Codec", "DillCodec", "PickleCodec", "as_codec", "check_codec"]
