"""Finding what can't be read any more, and putting it out of the way."""

from __future__ import annotations

import io
import pickletools
from collections import deque
from collections.abc import Callable, Iterator, KeysView
from typing import Any, Literal, NamedTuple

from zpersist.errors import CorruptValueError, InvalidArgumentError, ZPersistError
from zpersist.progress import Progress

__all__ = [
    "QUARANTINE",
    "Damage",
    "Repair",
    "check_repair",
    "is_damaged",
    "is_lost",
    "is_pickle",
    "named_aside",
    "no_key",
    "verified",
]

#: What holds, beside the values of a stash, what was laid aside.
QUARANTINE = "quarantine"

# Of the bytes that are no key, so many name what was laid aside.
_MOST_NAMED = 80

_BLANK = b" \t\r\n"

#: What to do with a damaged value: delete it, or lay it aside.
Repair = Literal["drop", "quarantine"]


class Damage(NamedTuple):
    """A value that can't be read.

    Parameters
    ----------
    key :
        Its key; ``None`` if that can't be read either.
    error :
        What a load would raise.
    repaired :
        Whether it was put out of the way.
    """

    key: str | None
    error: ZPersistError
    repaired: bool = False


def check_repair(repair: object) -> None:
    """Raise unless ``repair`` is one of :data:`Repair`, or ``None``."""
    if repair not in (None, "drop", "quarantine"):
        raise InvalidArgumentError(f"repair must be 'drop', 'quarantine' or None, not {repair!r}")


def is_lost(error: ZPersistError) -> bool:
    """Return whether nobody can read the value: no other codec, key or version."""
    return type(error) is CorruptValueError


def is_damaged(read: Callable[[], object], raw: Callable[[], bytes]) -> bool:
    """Return whether reading a value says that it is lost, and its bytes are no whole pickle of somebody else's."""
    try:
        read()
    except ZPersistError as err:
        return is_lost(err) and not is_pickle(raw())
    return False


def no_key(place: str, key: bytes | str | None, file: str) -> CorruptValueError:
    """Return the error that says that something in a database stands where a key should."""
    return CorruptValueError(
        f"{file} is damaged, or others write to it: {place} {key!r} is no key; "
        f"verify(repair='quarantine') lays it aside"
    )


def named_aside(key: bytes) -> str:
    """Return the name of what is laid aside and has no key."""
    return f"no key {key[:_MOST_NAMED]!r}"


def is_pickle(data: bytes) -> bool:
    """Return whether bytes are whole pickles, one after the other, and nothing else; nothing of them is run."""
    stream = io.BytesIO(data)
    try:
        # Each ends with its first STOP; some end a file with a line feed.
        while stream.tell() < len(data.rstrip(_BLANK)) or not stream.tell():
            if len(deque(pickletools.genops(stream), maxlen=2)) < 2:
                # A STOP with nothing before it.
                return False
    except (ValueError, IndexError, UnicodeError):
        return False
    return True


def verified(
    stash: Any, *, progress: bool, repair: Repair | None, names: Iterator[str] | None = None
) -> Iterator[Damage]:
    """Read all values of a stash, or those under some names, yield what is damaged, and repair it."""
    total = len(stash) if progress and names is None else None
    with Progress(progress, f"verify {type(stash).__name__}", total) as bar:
        damaged = 0
        keys = stash.keys() if names is None else names
        # A live view can't be iterated over while keys are deleted, or written by others.
        for done, name in enumerate(tuple(keys) if isinstance(keys, KeysView) else keys, 1):
            bar.show(done, 0, damaged)
            try:
                stash._verify_one(name)
            except ZPersistError as err:
                damaged += 1
                yield Damage(name, err, repair is not None and is_lost(err) and stash._repair(name, repair))
