"""Values that only those can read who have the key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from zpersist.codecs.base import Codec
from zpersist.codecs.sealed import SealedCodec
from zpersist.errors import EncodeError, SealError

__all__ = ["EncryptedCodec"]

#: Bytes of a nonce; 96 bits are what GCM is made for (NIST SP 800-38D, section 8.2).
_NONCE = 12

#: Bytes of the tag that follows what was encrypted.
_TAG = 16

#: The most bytes that the package cryptography encrypts in one piece; older versions decrypt no more than that either.
_MOST = 2**31 - 1


def _ciphers(keys: Sequence[bytes]) -> list[Any]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as err:
        raise ImportError("EncryptedCodec needs cryptography: pip install 'zpersist[encrypted]'") from err
    return [AESGCM(key) for key in keys]


class EncryptedCodec(SealedCodec):
    """Encrypts what another codec makes (AES-GCM, NIST SP 800-38D), and reads only what one of the keys has encrypted.

    What :class:`~zpersist.SignedCodec` promises holds as well; who has no key sees how long a value is, and no more.
    Keys of a stash are not encrypted.

    Parameters
    ----------
    codec :
        Makes bytes of a value; ``None``: :class:`~zpersist.PickleCodec`.
    key :
        The secret, 16, 24 or 32 bytes; or several, the newest last: it encrypts, and values of all of them are read.
        Each value has a random nonce: take a new key after 2**32 values.
    scope :
        What the values belong to; default: the place of the store, so that data that was moved is refused.

    Raises
    ------
    EncodeError
        By a write: the value has 2 GiB or more.
    SealError
        By a read: nobody who has one of the keys wrote this value here.
    ImportError
        The extra ``encrypted`` is not installed.

    Notes
    -----
    *Trust*: that of the codec, for everybody who has a key.  Keep it apart from the data.

    Examples
    --------
    >>> import secrets
    >>> stash = SqliteStash("secret.db", codec=EncryptedCodec(PickleCodec(), secrets.token_bytes(32)))
    >>> stash["a"] = "nobody knows"
    >>> stash["a"]
    'nobody knows'
    """

    _algorithm = "aes-gcm"
    _key_sizes = (16, 24, 32)

    def __init__(self, codec: Codec | str | None, key: bytes | Sequence[bytes], *, scope: str | None = None) -> None:
        super().__init__(codec, key, scope=scope)
        self._ciphers = _ciphers(self._keys)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_ciphers": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._ciphers = _ciphers(self._keys)

    def seal(self, data: bytes, context: bytes) -> bytes:
        """Return bytes, encrypted, behind their nonce."""
        if len(data) > _MOST - _TAG:
            raise EncodeError(
                f"{len(data)} bytes are more than can be encrypted in one piece, {_MOST - _TAG}: compress them, or "
                f"keep parts of the value under keys of their own"
            )
        nonce = os.urandom(_NONCE)
        return nonce + bytes(self._ciphers[-1].encrypt(nonce, data, context))

    def unseal(self, data: bytes | bytearray | memoryview, context: bytes) -> bytes:
        """Return what was encrypted."""
        from cryptography.exceptions import InvalidTag

        view = memoryview(data)
        for cipher in reversed(self._ciphers):
            try:
                return bytes(cipher.decrypt(view[:_NONCE], view[_NONCE:], context))
            except (InvalidTag, ValueError, OverflowError):
                continue
        raise SealError("none of the keys opens it: it was changed, belongs elsewhere, or has another key")
