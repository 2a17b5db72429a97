"""Keys: what one may be, and how it becomes the name of a file and back.

A key is any non-empty ``str`` of at most 1 KiB of UTF-8.  A key of plain characters is its own file name, so that
a person finds ``vocab`` in ``vocab.dat``; everything else is percent-encoded (RFC 3986, section 2.1), and the
file name of a key that would grow too long ends in a digest.  Each key has exactly one name and each name at most
one key.
"""

from __future__ import annotations

import re
import sys
from hashlib import blake2b

from zpersist.errors import InvalidKeyError

__all__ = [
    "MAX_KEY_BYTES",
    "check_key",
    "check_str_key",
    "digest",
    "from_file_name",
    "is_digested",
    "key_in",
    "to_file_name",
]

#: The longest key, in bytes of UTF-8.
MAX_KEY_BYTES = 1024

#: The longest name to_file_name() gives; leaves room for a pattern around it (file systems stop at 255 bytes).
MAX_NAME = 200

_DIGEST_MARK = "%~"
_DIGEST_HEX = 40

# Names of devices on Windows, also with an extension; dots and blanks at the ends get lost there.
_RESERVED = r"(?!(?i:con|prn|aux|nul|com[0-9]|lpt[0-9]|conin\$|conout\$) *(?:\.|\Z))"
_EDGE = r"0-9a-z_!#$&'()+,;=@\[\]^{}~`\-"


def _safe(letters: str) -> re.Pattern[str]:
    return re.compile(rf"{_RESERVED}[{letters}{_EDGE}](?:[{letters}{_EDGE} .]*[{letters}{_EDGE}])?")


# Where the file system does not tell capitals from small letters, capitals are escaped.
_FOLDS_CASE = sys.platform in ("win32", "darwin")
_SAFE_EXACT = _safe("A-Z")
_SAFE_FOLDED = _safe("")
_PLAIN_EXACT = re.compile(r"[A-Z0-9a-z_!#$&'()+,;=@\[\]^{}~`\-]")
_PLAIN_FOLDED = re.compile(rf"[{_EDGE}]")
_INNER = re.compile(r"[ .]")

#: A pattern of names that are surely their own keys, told faster than by from_file_name().
SURELY_PLAIN = rf"[{'' if _FOLDS_CASE else 'A-Z'}a-z0-9_\-]{{5,{MAX_NAME}}}"
_ESCAPES = re.compile(r"(?:%[0-9A-F]{2})+")


def check_str_key(name: object) -> str:
    """Return ``name`` if it is a key that every stash can keep.

    Raises
    ------
    InvalidKeyError
        It is not a ``str``, is empty, has lone surrogates, or is longer than 1 KiB of UTF-8.
    """
    if not isinstance(name, str):
        hint = "; use clear() to delete everything" if name is None else "; use str(key)"
        raise InvalidKeyError(
            f"key {name!r} is of type {type(name).__name__}, and this stash keeps str keys only{hint}"
        )
    if not name:
        raise InvalidKeyError("the key is empty; give it at least one character")
    if len(name) * 4 > MAX_KEY_BYTES or not name.isascii():
        try:
            size = len(name.encode("utf-8"))
        except UnicodeEncodeError as err:
            raise InvalidKeyError(f"key {name!r} has a lone surrogate at {err.start}; it is not valid Unicode") from err
        if size > MAX_KEY_BYTES:
            raise InvalidKeyError(
                f"key {name[:40]!r}… has {size} bytes, the most is {MAX_KEY_BYTES}; use a digest of it as the key"
            )
    return name


def key_in(raw: bytes | str) -> str | None:
    """Return the key that stands in a database so; ``None`` if it is none."""
    try:
        return check_str_key(raw if isinstance(raw, str) else raw.decode())
    except (UnicodeDecodeError, InvalidKeyError):
        return None


def check_key(name: object) -> None:
    """Raise unless ``name`` may be a key in memory: any hashable object but ``None``, a ``str`` by the one rule."""
    if isinstance(name, str) or name is None:
        check_str_key(name)


def digest(name: str) -> bytes:
    """Return 20 bytes that stand for a key (BLAKE2b, RFC 7693)."""
    return blake2b(name.encode("utf-8"), digest_size=_DIGEST_HEX // 2).digest()


def to_file_name(name: str, *, folds_case: bool = _FOLDS_CASE) -> str:
    """Return the file name that stands for a key.

    Parameters
    ----------
    name :
        A valid key.
    folds_case :
        Whether the file system takes ``A`` and ``a`` for one; default: what this platform's does.

    Examples
    --------
    >>> to_file_name("vocab"), to_file_name("a/b"), to_file_name("..")
    ('vocab', 'a%2Fb', '%2E%2E')
    """
    safe = _SAFE_FOLDED if folds_case else _SAFE_EXACT
    if len(name) <= MAX_NAME and safe.fullmatch(name):
        return name
    plain = _PLAIN_FOLDED if folds_case else _PLAIN_EXACT
    last = len(name) - 1
    parts = [
        char
        if plain.fullmatch(char) or (0 < i < last and _INNER.fullmatch(char))
        else "".join(f"%{byte:02X}" for byte in char.encode("utf-8"))
        for i, char in enumerate(name)
    ]
    if re.match(_RESERVED, "".join(parts)) is None:
        parts[0] = f"%{ord(name[0]):02X}"
    encoded = "".join(parts)
    if len(encoded) <= MAX_NAME:
        return encoded
    room = MAX_NAME - len(_DIGEST_MARK) - _DIGEST_HEX
    while len(encoded) > room:
        encoded = encoded[: -len(parts.pop())]
    return f"{encoded}{_DIGEST_MARK}{digest(name).hex()}"


def is_digested(file_name: str) -> bool:
    """Return whether a file name holds only the start of its key, and the key itself lies in the file."""
    return file_name[-_DIGEST_HEX - len(_DIGEST_MARK) : -_DIGEST_HEX] == _DIGEST_MARK


def from_file_name(file_name: str, *, folds_case: bool = _FOLDS_CASE) -> str | None:
    """Return the key a file name stands for; ``None`` if :func:`to_file_name` does not give this name, or cut it.

    A name that was cut ends in a digest (see :func:`is_digested`): who writes the file keeps the key in it.

    Examples
    --------
    >>> from_file_name("a%2Fb"), from_file_name("a b "), from_file_name("%41")
    ('a/b', None, None)
    """
    safe = _SAFE_FOLDED if folds_case else _SAFE_EXACT
    if "%" not in file_name:
        return file_name if len(file_name) <= MAX_NAME and safe.fullmatch(file_name) else None
    try:
        name = _ESCAPES.sub(lambda m: bytes.fromhex(m.group().replace("%", "")).decode("utf-8"), file_name)
    except UnicodeDecodeError:
        return None
    return name if name and to_file_name(name, folds_case=folds_case) == file_name else None
