"""What codecs that seal a value with a key have in common: they take only what was sealed for the same place.

A seal covers the format of seals, the names of the codecs, the place of the store and the key of the value (each
with its length before it, so that no two of them can be confused), and all bytes of the value.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from zpersist.codecs.base import Codec, encoded
from zpersist.codecs.named import as_codec
from zpersist.codecs.pickle import PickleCodec
from zpersist.errors import InvalidArgumentError

__all__ = ["SealedCodec"]

_FORMAT = b"zpersist seal 1"


def _is_writable(scope: str) -> bool:
    try:
        _counted(scope)
    except UnicodeEncodeError:
        return False
    return True


def _counted(name: str) -> bytes:
    data = name.encode("utf-8", "surrogateescape")
    return len(data).to_bytes(4, "little") + data


@lru_cache(maxsize=256)
def _start(codec: str, place: str) -> bytes:
    return _FORMAT + _counted(codec) + _counted(place)


class SealedCodec(Codec):
    """Seals what another codec makes with a secret key.

    Parameters
    ----------
    codec :
        Makes bytes of a value.
    key :
        The secret, as bytes; or several, the newest last: it seals, and all of them are tried when a value is read.
    scope :
        What the values belong to, in place of the place of the store: give a name if the data may be moved.
    """

    #: What the algorithm is called in :attr:`id`.
    _algorithm: str
    #: How long a key may be, in bytes.
    _key_sizes: Sequence[int]

    def __init__(self, codec: Codec | str | None, key: bytes | Sequence[bytes], *, scope: str | None = None) -> None:
        try:
            inner = PickleCodec() if codec is None else as_codec(codec)
        except InvalidArgumentError:
            inner = None
        if not isinstance(inner, Codec):
            # Not shown: it may be the secret.
            raise InvalidArgumentError(
                f"codec of {type(self).__name__} must be a codec or the name of one, not this "
                f"{type(codec).__qualname__}; the secret is the second argument"
            ) from None
        if scope is not None and not isinstance(scope, str):
            # Not shown: it may be the secret.
            raise InvalidArgumentError(f"scope must be a str or None, not of type {type(scope).__qualname__}")
        if scope is not None and ("\0" in scope or not _is_writable(scope)):
            raise InvalidArgumentError(
                f"scope must have no zero character and no half of a character (surrogate), not {scope!r}; a name such "
                f"as 'corpus' will do"
            )
        self._codec = inner
        self._keys = self._checked(key)
        self._scope = scope
        self.id = f"{self._algorithm}:{inner.id}"

    def _checked(self, key: object) -> tuple[bytes, ...]:
        keys = (key,) if isinstance(key, bytes) else key
        sizes = self._key_sizes
        if not isinstance(keys, Sequence) or not keys or not all(isinstance(one, bytes) for one in keys):
            # Not shown: it is a secret.
            odd = [one for one in keys if not isinstance(one, bytes)] if isinstance(keys, (list, tuple)) else [key]
            what = f"not a {type(odd[0]).__qualname__}" if odd else "and here is none"
            raise InvalidArgumentError(
                f"key of {type(self).__name__} must be bytes, or a list of them with the newest last, {what}; "
                f"secrets.token_bytes(32) makes one"
            )
        for one in keys:
            if len(one) not in sizes:
                raise InvalidArgumentError(
                    f"a key of {type(self).__name__} has {len(one)} bytes, and must have {_told(sizes)}; "
                    f"secrets.token_bytes(32) makes one"
                )
        return tuple(keys)

    def bound(self, place: str, key: str) -> Codec:
        """Return the codec for one value of one store."""
        inner = self._codec.bound(place, key)
        if self._scope is not None:
            # It stands for where the store is, not for what in it the value belongs to.
            place = "\0".join((self._scope, *place.split("\0")[1:]))
        return _Bound(self, inner, place, key)

    def dumps(self, value: object) -> bytes:
        """Return the value, sealed for no place."""
        return self.bound("", "").dumps(value)

    def loads(self, data: bytes | bytearray | memoryview) -> Any:
        """Return a value that was sealed for no place."""
        return self.bound("", "").loads(data)

    def context(self, place: str, key: str) -> bytes:
        """Return what a seal covers beside the value."""
        return _start(self.id, place) + _counted(key)

    @abstractmethod
    def seal(self, data: bytes, context: bytes) -> bytes:
        """Return bytes, sealed for a context."""

    @abstractmethod
    def unseal(self, data: bytes | bytearray | memoryview, context: bytes) -> bytes | memoryview:
        """Return what was sealed for a context, or raise :class:`~zpersist.SealError`."""

    def __repr__(self) -> str:
        scope = "" if self._scope is None else f", scope={self._scope!r}"
        return f"{type(self).__name__}({self._codec!r}, <{len(self._keys)} keys>{scope})"


class _Bound(Codec):
    """A codec that seals, for one value of one store."""

    def __init__(self, sealing: SealedCodec, codec: Codec, place: str, key: str) -> None:
        self.id = sealing.id
        self._sealing = sealing
        self._codec = codec
        self._context = sealing.context(place, key)

    def dumps(self, value: object) -> bytes:
        return self._sealing.seal(encoded(self._codec, self._codec.dumps(value)), self._context)

    def loads(self, data: bytes | bytearray | memoryview) -> Any:
        return self._codec.loads(self._sealing.unseal(data, self._context))


def _told(sizes: Sequence[int]) -> str:
    if isinstance(sizes, range):
        return f"{sizes[0]} to {sizes[-1]}"
    return " or ".join(map(str, sizes))
