"""Opening the file of an LMDB environment, and what LMDB's errors mean."""

from __future__ import annotations

import errno
import os
import resource

try:
    import lmdb
except ImportError as err:
    raise ImportError("LmdbStash needs lmdb: pip install 'zpersist[lmdb]'") from err

from zpersist.errors import CorruptValueError, StorageError, ZPersistError
from zpersist.files.atomic import close_quietly, make_directory, storage_error, write_file
from zpersist.files.locks import directory_lock
from zpersist.files.sweep import sweep

__all__ = [
    "MAX_DATABASES",
    "MAX_READERS",
    "LmdbError",
    "lmdb",
    "may_fall_short",
    "open_environment",
    "translate",
]

LmdbError = lmdb.Error

#: Processes that read at the same moment; a process takes one slot, whatever its threads do.
MAX_READERS = 510
#: A stash takes two, and two more for each kind of bookkeeping about it.
MAX_DATABASES = 256

# The lock file: two headers of 64 bytes for the two locks, one for the format, and 64 bytes a reader (mdb.c).
_LOCK_FILE_SIZE = 64 * (MAX_READERS + 2)

_DAMAGED = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PageNotFoundError,
    lmdb.BadDbiError,
)

_ERRNO = {
    lmdb.ReadersFullError: errno.EAGAIN,
    lmdb.TxnFullError: errno.EFBIG,
    lmdb.BadValsizeError: errno.EFBIG,
    lmdb.MapFullError: errno.ENOMEM,
}


def open_environment(file: str, map_size: int) -> lmdb.Environment:
    """Open an environment, with a map of at least so many bytes, and made if it is not there."""
    make_directory(os.path.dirname(file))
    try:
        _make(file, map_size)
        opened = lmdb.open(
            file,
            map_size=map_size,
            subdir=False,
            # The pages are on the disk before the page that refers to them is written, and that one with the
            # next transaction: so whatever arrives is whole.
            metasync=False,
            mode=0o600,
            max_readers=MAX_READERS,
            max_dbs=MAX_DATABASES,
            # One reader at a time, by the lock: its slot is kept for the next one.
            max_spare_txns=1,
        )
        try:
            opened.reader_check()
            _check_length(file, opened)
        except BaseException:
            opened.close()
            raise
    except OSError as err:
        raise storage_error(err, "can not open the database", file) from err
    return opened


def _make(file: str, map_size: int) -> None:
    folder = os.path.dirname(file)
    if os.path.exists(f"{file}/data.mdb"):
        raise _foreign("this is a directory that lmdb.open() made, with subdir=True")
    if os.path.basename(file) == "data.mdb" and os.path.exists(f"{folder}/lock.mdb"):
        # Each would have a lock file of its own, and so no lock at all.
        raise _foreign(f"{folder} is a directory that lmdb.open() made, with subdir=True")
    if not os.path.exists(file):
        _make_environment(file, map_size)
    if os.path.isdir(file):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(file, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    _make_lock_file(file)


def _foreign(what: str) -> OSError:
    return OSError(errno.EINVAL, f"{what}, and an LmdbStash is one file: take another path, and copy() it there")


def _make_environment(file: str, map_size: int) -> None:
    # LMDB would write its first pages in place, and a power cut leave some of them: then nobody can open the file.
    def place(temporary: str, file: str) -> None:
        with lmdb.open(temporary, map_size=map_size, subdir=False, lock=False) as made:
            made.sync(True)
        os.replace(temporary, file)

    folder = os.path.dirname(file)
    with directory_lock(folder, shared=False):
        if not os.path.exists(file):
            sweep(folder)
            write_file(file, [b""], place=place)


def _make_lock_file(file: str) -> None:
    # LMDB maps it, and a map for which the disk has no room kills the process that writes to it.  It may be opened
    # here for only as long as LMDB has not: closing it drops LMDB's locks of this process.
    fd = os.open(f"{file}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # One that has a size may be in use, by processes that have mapped no more than that.
        os.posix_fallocate(fd, 0, os.fstat(fd).st_size or _LOCK_FILE_SIZE)
    finally:
        close_quietly(fd)


def _check_length(file: str, opened: lmdb.Environment) -> None:
    # A page that is mapped and beyond the end of the file kills the process that reads it.
    if os.stat(file).st_size >= _used(opened):
        return
    # No other process writes meanwhile.
    with opened.begin(write=True):
        size, used = os.stat(file).st_size, _used(opened)
        if size >= used:
            return
        from lmdb.verify import VerifyError, verify

        try:
            problems = verify(file, subdir=False)  # type: ignore[no-untyped-call]
        except VerifyError as err:
            problems = [str(err)]
        if problems:
            raise CorruptValueError(
                f"{file} is damaged: it has {size} bytes of {used} ({problems[0]}); restore it from a copy"
            )
        # What is missing are pages that were given back before they were written.
        os.truncate(file, used)


def translate(err: lmdb.Error, file: str) -> ZPersistError:
    """Return the error of ours that says what one of LMDB's means."""
    if isinstance(err, _DAMAGED):
        return CorruptValueError(f"{file} is damaged, or no LMDB database: {err}; restore it from a copy")
    if isinstance(err, lmdb.IncompatibleError):
        return StorageError(errno.EINVAL, f"not a database, or one of another kind, has this name: {err}", file)
    if isinstance(err, lmdb.DbsFullError):
        what = f"{MAX_DATABASES} databases of the file are open, two for each stash and each kind of notes about it"
        return StorageError(errno.EMFILE, f"{what}: close() some, or keep more stashes in another file", file)
    if err.code == errno.EBUSY:
        # Otherwise it would wait for itself.
        what = "this thread is in the middle of a write, which a signal handler has interrupted"
        return StorageError(errno.EBUSY, f"{what}: set a flag there, and write when the handler has returned", file)
    if "already open in this process" in str(err):
        return StorageError(errno.EBUSY, "lmdb.open() of this program has it open: close that environment", file)
    if err.code > 0:
        # LMDB calls it an input/output error when only a part of a page could be written.
        code = errno.ENOSPC if err.code == errno.EIO and _is_full(file) else err.code
        refused = OSError(code, os.strerror(code))
        return storage_error(refused, f"LMDB refused (what was there is untouched): {err}", file)
    return StorageError(_ERRNO.get(type(err), errno.EIO), f"LMDB refused: {err}", file)


def may_fall_short(file: str) -> bool:
    """Return whether there is a reason why a part of a page could not be written: LMDB calls that EIO, too."""
    return _is_full(file) or resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _is_full(file: str) -> bool:
    try:
        disk = os.statvfs(os.path.dirname(file))
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < 1 << 16


def _used(opened: lmdb.Environment) -> int:
    return (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
