"""Writing a file so that a reader finds the old content or the new, never anything between.

The recipe: write to a new temporary file in the same directory, then ``os.replace`` it.  With
``durability="fsync"`` the file is synced before and the directory after.  Nothing is ever unlinked first, and a
failed fsync is never tried again, for the kernel may have dropped the pages it could not write (PostgreSQL's
"fsyncgate", 2018).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Literal

from zpersist.errors import InvalidArgumentError, OutcomeUnknownError, StorageError

__all__ = [
    "READ_FLAGS",
    "Buffer",
    "Durability",
    "check_durability",
    "close_quietly",
    "make_directory",
    "place_new",
    "storage_error",
    "sync_directory",
    "write_file",
]

Buffer = bytes | bytearray | memoryview

#: How a value's file is opened: a pipe that lies in its place does not block.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

#: ``"rename"``: whole or absent, may be lost in a power cut.  ``"fsync"``: on the disk when the call returns.
Durability = Literal["rename", "fsync"]

TEMPORARY_PREFIX = ".zpersist-"

_MOST_PARTS = 512
_serial = count()


@cache
def place_of_process() -> str:
    """Return a mark of where the number of this process means something: its boot and PID namespace."""
    marks = [os.uname().nodename]
    with suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    return blake2b("\0".join(marks).encode(), digest_size=4).hexdigest()


def check_durability(value: str) -> Durability:
    """Return ``value`` if it names a durability."""
    if value == "rename":
        return "rename"
    if value == "fsync":
        return "fsync"
    raise InvalidArgumentError(f"durability must be 'rename' or 'fsync', not {value!r}")


_REMEDIES = {
    errno.EISDIR: "a directory stands in the place of the file; move it away",
    errno.ENOTDIR: "a file stands in the place of a directory; move it away",
    errno.EACCES: "give this user the permission (chmod)",
    errno.EPERM: "give this user the permission (chmod)",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EROFS: "the file system is read only; choose another place",
    errno.EMFILE: "close files, or raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def storage_error(err: OSError, what: str, path: str | os.PathLike[str]) -> StorageError:
    """Return the error of our tree for one of the operating system's, with its ``errno`` and what to do."""
    remedy = _REMEDIES.get(err.errno or 0)
    return StorageError(err.errno, f"{what}: {err.strerror or err}{f'; {remedy}' if remedy else ''}", os.fspath(path))


def write_file(
    path: str,
    parts: Sequence[Buffer],
    *,
    durability: Durability | Literal["content"] = "rename",
    place: Callable[[str, str], None] = os.replace,
    workshop: str | None = None,
) -> None:
    """Write a file atomically.

    Parameters
    ----------
    path :
        The file to make or replace; its directory must exist.
    parts :
        The content, written one after the other without being joined.
    durability :
        See :data:`Durability`; ``"content"``: what is in the file is synced, and the caller syncs the directory.
    place :
        Puts the temporary file (first argument) in its place (second); default: replace what is there.
    workshop :
        Where the temporary file is made, on the same file system; default: in the directory of the file.

    Raises
    ------
    FileNotFoundError
        The directory does not exist.
    StorageError
        The write failed; what was at ``path`` is untouched.
    OutcomeUnknownError
        The new content is in place, but its directory could not be synced.
    """
    folder = os.path.dirname(path)
    name = f"{TEMPORARY_PREFIX}{place_of_process()}-{os.getpid():x}-{next(_serial):x}-{os.urandom(4).hex()}.tmp"
    temporary = f"{workshop or folder}/{name}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise storage_error(err, "can not write", path) from err
    try:
        try:
            _write_all(fd, parts)
            if durability != "rename":
                os.fsync(fd)
        finally:
            os.close(fd)
        place(temporary, path)
    except BaseException as err:
        _discard(temporary)
        if isinstance(err, OSError) and not isinstance(err, (StorageError, FileExistsError)):
            raise storage_error(err, "can not write (what was there is untouched)", path) from err
        raise
    if durability == "fsync":
        sync_directory(folder)


def place_new(temporary: str, path: str) -> None:
    """Put a temporary file in its place only if nothing is there, else raise ``FileExistsError``."""
    os.link(temporary, path)
    # The value is in its place whatever comes now; a second name that can't be removed is swept later.
    for _ in range(2):
        with suppress(OSError):
            os.unlink(temporary)
            return


def _write_all(fd: int, parts: Sequence[Buffer]) -> None:
    if len(parts) == 1:
        data = parts[0]
        written = os.write(fd, data)
        if written == len(data):
            return
        todo = [memoryview(data)[written:]]
    else:
        todo = [memoryview(part).cast("B") for part in parts if len(part)]
    while todo:
        written = os.writev(fd, todo[:_MOST_PARTS])
        while todo and written >= len(todo[0]):
            written -= len(todo.pop(0))
        if written:
            todo[0] = todo[0][written:]


def _discard(temporary: str) -> None:
    # What can't be removed now is swept later; the error that led here tells more.
    with suppress(OSError):
        os.unlink(temporary)


def sync_directory(folder: str) -> None:
    """Put the names in a directory on the disk.

    Raises
    ------
    OutcomeUnknownError
        They may or may not survive a power cut.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as err:
        raise OutcomeUnknownError(
            err.errno, f"written, but the directory could not be synced: {err.strerror}", folder
        ) from err


def close_quietly(fd: int) -> None:
    """Close a descriptor through which nothing was written: an error then says nothing about what was done."""
    with suppress(OSError):
        os.close(fd)


def make_directory(path: str, *, durability: Durability = "rename") -> None:
    """Make a directory and its parents, private to the user (mode 0700) where they are new.

    Parameters
    ----------
    path :
        The directory.
    durability :
        With ``"fsync"`` the names of new directories are on the disk when the call returns.

    Raises
    ------
    StorageError
        It can't be made, or a file stands in its place.
    """
    missing = []
    here = path
    while here and not os.path.isdir(here):
        missing.append(here)
        parent = os.path.dirname(here)
        if parent == here:
            break
        here = parent
    for folder in reversed(missing):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError as err:
            if not os.path.isdir(folder):
                raise StorageError(
                    errno.ENOTDIR, "a file stands where a directory is needed; move it away", folder
                ) from err
        except OSError as err:
            raise storage_error(err, "can not make the directory", folder) from err
        if durability == "fsync":
            sync_directory(os.path.dirname(folder))
