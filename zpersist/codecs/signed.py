"""Values that were signed by somebody who has the key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import Literal

from zpersist.codecs.base import Codec
from zpersist.codecs.sealed import SealedCodec
from zpersist.errors import InvalidArgumentError, SealError

__all__ = ["SignedCodec"]

_SIZE = 32

Buffer = bytes | bytearray | memoryview

#: Returns the signature of a context and data, which are not joined for it.
_Mac = Callable[[bytes, Buffer], bytes]


def _hmac_sha256(key: bytes) -> _Mac:
    """Return HMAC (RFC 2104) with this key, which is hashed only once: what is signed is mostly small."""
    size = sha256().block_size
    block = (sha256(key).digest() if len(key) > size else key).ljust(size, b"\0")
    inner, outer = (sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))

    def mac(context: bytes, data: Buffer) -> bytes:
        within, around = inner.copy(), outer.copy()
        within.update(context)
        within.update(data)
        around.update(within.digest())
        return around.digest()

    return mac


def _blake2b(key: bytes) -> _Mac:
    start = blake2b(key=key, digest_size=_SIZE)

    def mac(context: bytes, data: Buffer) -> bytes:
        hashed = start.copy()
        hashed.update(context)
        hashed.update(data)
        return hashed.digest()

    return mac


_ALGORITHMS: dict[str, tuple[Callable[[bytes], _Mac], range]] = {
    "hmac-sha256": (_hmac_sha256, range(16, 257)),
    "blake2b": (_blake2b, range(16, 65)),
}


class SignedCodec(SealedCodec):
    """Signs what another codec makes, and reads only what was signed: nothing is decoded before.

    Who can write to the store, but has no key, can't have a value of his own read, nor one of ours in another place.
    He can put an older value of ours back into its place, or delete one.

    Parameters
    ----------
    codec :
        Makes bytes of a value; ``None``: :class:`~zpersist.PickleCodec`.
    key :
        The secret, 16 bytes or more; or several, the newest last: it signs, and values of all of them are read.
    algorithm :
        ``"hmac-sha256"`` (RFC 2104) or ``"blake2b"`` (RFC 7693, keyed).
    scope :
        What the values belong to; default: the place of the store, so that data that was moved is refused.

    Raises
    ------
    SealError
        By a read: nobody who has one of the keys wrote this value here.

    Notes
    -----
    *Trust*: that of the codec, for everybody who has a key.  Keep it apart from the data.

    Buffers are not mapped, for what is mapped could be changed after it was checked.

    Examples
    --------
    >>> import secrets
    >>> key = secrets.token_bytes(32)
    >>> stash = DirectoryStash("signed", codec=SignedCodec(PickleCodec(), key))
    >>> stash["a"] = [1, 2]
    >>> DirectoryStash("signed", codec=SignedCodec(PickleCodec(), secrets.token_bytes(32)))["a"]
    Traceback (most recent call last):
    ...
    zpersist.errors.SealError: ...
    """

    def __init__(
        self,
        codec: Codec | str | None,
        key: bytes | Sequence[bytes],
        *,
        algorithm: Literal["hmac-sha256", "blake2b"] = "hmac-sha256",
        scope: str | None = None,
    ) -> None:
        if algorithm not in _ALGORITHMS:
            raise InvalidArgumentError(f"algorithm must be one of {', '.join(_ALGORITHMS)}, not {algorithm!r}")
        self._algorithm = algorithm
        _, self._key_sizes = _ALGORITHMS[algorithm]
        super().__init__(codec, key, scope=scope)
        self._macs = self._made()

    def _made(self) -> tuple[_Mac, ...]:
        """Return what signs with each of the keys, the newest first."""
        make, _ = _ALGORITHMS[self._algorithm]
        return tuple(map(make, reversed(self._keys)))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_macs": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._macs = self._made()

    def seal(self, data: bytes, context: bytes) -> bytes:
        """Return bytes behind their signature."""
        return self._macs[0](context, data) + data

    def unseal(self, data: bytes | bytearray | memoryview, context: bytes) -> memoryview:
        """Return the bytes behind a good signature."""
        view = memoryview(data)
        signature, rest = view[:_SIZE], view[_SIZE:]
        for mac in self._macs:
            if compare_digest(mac(context, rest), signature):
                return rest
        raise SealError("the signature is none of ours: it was changed, belongs elsewhere, or has another key")
