"""What a codec is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from zpersist.errors import DecodeError, EncodeError, InvalidArgumentError

__all__ = ["Codec", "check_codec", "encoded"]


class Codec(ABC):
    """Turns a value into bytes and bytes into the value.

    A codec of your own gives :attr:`id`, :meth:`dumps` and :meth:`loads`.  One that can keep large buffers apart
    from the rest, so that they need not be copied, also gives :meth:`dump_parts` and :meth:`load_parts`.
    """

    #: Names the codec in stored values, in ASCII: a value is only ever read by the codec that wrote it.
    id: str
    #: Whether it also reads what zpersist did not write, and what so has no checksum.
    plain: bool = False

    @abstractmethod
    def dumps(self, value: object) -> bytes:
        """Return the value as bytes, or raise :class:`~zpersist.EncodeError`."""

    @abstractmethod
    def loads(self, data: bytes | bytearray | memoryview) -> Any:
        """Return the value of the bytes, or raise :class:`~zpersist.DecodeError`."""

    def dump_parts(self, value: object) -> tuple[bytes, Sequence[memoryview]]:
        """Return the value as a body and large buffers that belong to it; default: all of it is body."""
        return self.dumps(value), ()

    def load_parts(self, body: bytes | bytearray | memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value of a body and its buffers."""
        if buffers:
            raise DecodeError(f"codec {self.id!r} keeps no buffers beside the body, and here are {len(buffers)}")
        return self.loads(body)

    def bound(self, place: str, key: str) -> Codec:
        """Return the codec for one value of one store; what it seals is taken nowhere else.  Default: itself.

        Parameters
        ----------
        place :
            Where the store is and, after a ``"\\0"``, which part of it the value belongs to.
        key :
            The key of the value.
        """
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def encoded(codec: Codec, data: object) -> bytes:
    """Return what a codec has made of a value, which must be bytes.

    Raises
    ------
    EncodeError
        It is something else, such as text.
    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise EncodeError(
        f"the codec {codec.id!r} ({type(codec).__name__}) has made a {type(data).__qualname__} of a value: its dumps() "
        f"must return bytes"
    )


def check_codec(owner: object, attribute: object, codec: object) -> None:
    """Raise unless ``codec`` is one (a validator for attrs)."""
    if not isinstance(codec, Codec):
        hint = "give an instance of it" if isinstance(codec, type) else "such as PickleCodec()"
        raise InvalidArgumentError(f"codec of {type(owner).__name__} must be a codec, not {codec!r}; {hint}")
    name = getattr(codec, "id", None)
    if not isinstance(name, str) or not name or not name.isascii():
        raise InvalidArgumentError(f"{codec!r} must have an id, a name of its own in ASCII, not {name!r}")
