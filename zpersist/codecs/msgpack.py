"""Data as msgpack: compact, and nothing but data."""

from __future__ import annotations

from typing import Any

from attrs import define

from zpersist.codecs.plain import PlainCodec
from zpersist.errors import DecodeError

try:
    import msgpack
except ImportError:
    # The name can be imported without the package, for it is one of those that a star imports.
    msgpack = None

__all__ = ["MsgpackCodec"]


def _refuse(code: int, data: bytes) -> Any:
    raise DecodeError(f"the msgpack extension {code} means nothing here")


@define(slots=False, eq=False)
class MsgpackCodec(PlainCodec):
    """Keeps data as msgpack: what :class:`~zpersist.JsonCodec` keeps, in fewer bytes, and bytes as they are.

    It needs the package `msgpack <https://pypi.org/project/msgpack/>`_: ``pip install 'zpersist[msgpack]'``.

    Parameters
    ----------
    types :
        Enums, attrs classes, data classes and named tuples whose instances can be kept (default: none).

    Raises
    ------
    ImportError
        The package is missing.
    InvalidArgumentError
        One of ``types`` is of another kind, or its instances have state beside their fields.
    EncodeError
        By :meth:`dumps`: something in the value can't be kept; the error says what, where, and what to do.
    DecodeError
        By :meth:`loads`: the bytes are not what this codec writes, or name a class that is not registered.

    Notes
    -----
    *Trust*: as that of :class:`~zpersist.JsonCodec`.

    The format is `msgpack <https://github.com/msgpack/msgpack/blob/master/spec.md>`_ with string keys only, without
    extensions, and with tags as described in ``zpersist/codecs/plain.py``.

    Examples
    --------
    >>> codec = MsgpackCodec()
    >>> codec.dumps({"a": [1, b"x", None]})
    b'\\x81\\xa1a\\x93\\x01\\xc4\\x01x\\xc0'
    >>> codec.loads(codec.dumps({1: "a", "1": {2, 3}})) == {1: "a", "1": {2, 3}}
    True
    """

    id = "msgpack"
    _binary = True

    def __attrs_post_init__(self) -> None:
        if msgpack is None:
            raise ImportError("MsgpackCodec needs msgpack: pip install 'zpersist[msgpack]'")
        super().__attrs_post_init__()

    def _to_bytes(self, tree: Any) -> bytes:
        data: bytes = msgpack.packb(tree, strict_types=True)
        return data

    def _from_bytes(self, data: bytes | bytearray | memoryview) -> Any:
        # Room is made for as many items as a list says it has: lists in lists that all lie would take very much.
        # So it is first found out whether the items are there.
        probe = msgpack.Unpacker(max_buffer_size=max(1, len(data)))
        probe.feed(data)
        probe.skip()
        return msgpack.unpackb(
            data, object_pairs_hook=self._read_object, strict_map_key=True, ext_hook=_refuse, timestamp=3
        )
