"""Locks among threads and processes; the death of a holder frees them.

On Linux one lock file serves any number of keys: each key is one byte of its address space, locked by an open
file description (``F_OFD_SETLK``, Linux 3.15).  Unlike POSIX locks these belong to the descriptor, so that threads
exclude each other too, and no unrelated ``close()`` drops them.  Elsewhere each key has a lock file of its own,
by the ``filelock`` library.  A lock file is never unlinked: that would give a lock two holders.

``filelock`` is not used on Linux because it can't lock a range, so that a directory of a million keys would hold
a million lock files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from types import TracebackType
from typing import Protocol, TypeVar, cast

from zpersist.errors import StorageError
from zpersist.files.atomic import close_quietly, make_directory, storage_error

__all__ = ["Claims", "KeyLocks", "LockHandle", "directory_lock"]

T = TypeVar("T")

_FLOCK = struct.Struct("hhqqi4x")
_SET: int | None = getattr(fcntl, "F_OFD_SETLK", None)
_WAIT: int | None = getattr(fcntl, "F_OFD_SETLKW", None)
_ASK: int | None = getattr(fcntl, "F_OFD_GETLK", None)

_open_descriptors: set[int] = set()

# What each thread holds, whichever object it took the lock by.
_held = threading.local()


def _close_in_child() -> None:
    # A forked child shares the parent's open file descriptions: as long as it keeps one, the lock outlives the
    # parent.
    for fd in tuple(_open_descriptors):
        os.close(fd)
    _open_descriptors.clear()
    _held.__dict__.clear()


os.register_at_fork(after_in_child=_close_in_child)


class LockHandle(Protocol):
    """A lock that is held."""

    def release(self) -> None:
        """Give the lock back."""


class _RangeHandle:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()

    def release(self) -> None:
        if self._pid == os.getpid() and self._fd in _open_descriptors:
            _open_descriptors.discard(self._fd)
            # Unlocked by name, not by closing alone: a child forked at this very moment may share the descriptor.
            fcntl.fcntl(self._fd, cast(int, _SET), _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
            close_quietly(self._fd)
        # The number may soon be that of another lock.
        self._fd = -1


class _FileHandle:
    def __init__(self, path: str, timeout: float) -> None:
        import filelock

        self._lock = filelock.FileLock(path, mode=0o600, thread_local=False, is_singleton=False)
        try:
            self._lock.acquire(timeout=timeout, poll_interval=0.01)
        except filelock.Timeout as err:
            raise TimeoutError(path) from err
        except OSError as err:
            raise storage_error(err, "can not open the lock file", path) from err

    def release(self) -> None:
        self._lock.release()


class KeyLocks:
    """Any number of named locks that live in one lock file.

    Parameters
    ----------
    path :
        The lock file (Linux), or the start of the names of the lock files (elsewhere).  Made on first use, with
        its directory.
    fallback :
        Another one, for where the first can't be written to.
    ranges :
        Use ranges of one file; default: where the platform has them.

    Notes
    -----
    *Concurrency*: threads and processes of one host.  :meth:`hold` may be nested by one thread for one name.
    """

    def __init__(self, path: str, *, fallback: str | None = None, ranges: bool = _SET is not None) -> None:
        self.path = path
        self._fallback = fallback
        self._ranges = ranges

    @classmethod
    def beside(cls, path: str, *, directory: bool = False) -> KeyLocks:
        """Return the locks of a file or directory, in a lock file beside it; of a directory, else in it."""
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if len(os.fsencode(name)) > 200:
            name = blake2b(os.fsencode(name), digest_size=20).hexdigest()
        return cls(f"{folder}/.{name}.lock", fallback=f"{path}/.lock" if directory else None)

    def acquire(self, name: str, timeout: float = -1) -> LockHandle:
        """Wait for the lock of a name, and take it.

        Parameters
        ----------
        name :
            Whose lock.
        timeout :
            The most seconds to wait; negative: for ever; 0: not at all.

        Raises
        ------
        TimeoutError
            Another one holds it.
        StorageError
            The lock file can't be made or opened.
        """
        slot = _slot(name)
        try:
            return self._somewhere(lambda path: self._acquire(path, slot, timeout))
        except TimeoutError:
            raise TimeoutError(f"the lock of {name!r} in {self.path} is held by another one") from None

    def _somewhere(self, use: Callable[[str], T]) -> T:
        try:
            return use(self.path)
        except StorageError as err:
            if self._fallback is None or err.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return use(self._fallback)

    def _acquire(self, path: str, slot: int, timeout: float) -> LockHandle:
        if not self._ranges:
            make_directory(os.path.dirname(path))
            return _FileHandle(f"{path}.{slot:x}", timeout)
        fd = _open_lock_file(path)
        handle = _RangeHandle(fd)
        try:
            _lock_range(fd, slot, timeout)
        except BaseException:
            handle.release()
            raise
        return handle

    def claims(self, name: str) -> Claims | None:
        """Return what tells who works on which stretch of an input; ``None`` where the platform has no such locks."""
        if not self._ranges:
            return None
        return Claims(self._somewhere(_open_lock_file), _slot(name))

    @contextmanager
    def hold(self, name: str, timeout: float = -1) -> Iterator[None]:
        """Hold the lock of a name within a ``with``; a thread that holds it already goes straight on."""
        held: set[tuple[str, str]] = _held.__dict__.setdefault("names", set())
        mine = (self.path, name)
        if mine in held:
            yield
            return
        handle = self.acquire(name, timeout)
        held.add(mine)
        try:
            yield
        finally:
            held.discard(mine)
            handle.release()


def _slot(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 2


def _open_lock_file(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            make_directory(os.path.dirname(path))
            fd = os.open(path, flags, 0o600)
    except OSError as err:
        raise (
            err if isinstance(err, StorageError) else storage_error(err, "can not open the lock file", path)
        ) from err
    _open_descriptors.add(fd)
    return fd


class Claims:
    """Which stretches of a numbered input somebody works on; the death of one that does frees them.

    To be closed; made by :meth:`KeyLocks.claims`.
    """

    def __init__(self, fd: int, base: int) -> None:
        self._handle = _RangeHandle(fd)
        self._fd = fd
        self._base = base
        # Shared by all who are there; before the first number.
        self._set(fcntl.F_RDLCK, -1, 1)

    def _set(self, kind: int, start: int, count: int, *, wait: bool = False) -> None:
        request = _FLOCK.pack(kind, os.SEEK_SET, self._base + start, count, 0)
        fcntl.fcntl(self._fd, cast(int, _WAIT if wait else _SET), request)

    def _ask(self, start: int, count: int) -> tuple[int, int] | None:
        """Return where somebody else's stretch starts and ends."""
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._base + start, count, 0)
        kind, _, at, size, _ = _FLOCK.unpack(fcntl.fcntl(self._fd, cast(int, _ASK), request))
        return None if kind == fcntl.F_UNLCK else (at - self._base, at - self._base + size)

    def alone(self) -> bool:
        """Return whether nobody else is there now."""
        return self._ask(-1, 1) is None

    def take(self, start: int, count: int) -> int:
        """Claim as many numbers from ``start`` on as are free, at most ``count``.

        Returns
        -------
        int
            How many were claimed; negative: so many from ``start`` on are somebody else's.
        """
        while True:
            try:
                self._set(fcntl.F_WRLCK, start, count)
            except BlockingIOError:
                other = self._ask(start, count)
                if other is None:
                    continue
                if other[0] <= start:
                    return -min(count, other[1] - start)
                count = other[0] - start
            else:
                return count

    def wait(self, start: int, count: int) -> None:
        """Wait until nobody else works on these numbers, and claim them."""
        self._set(fcntl.F_WRLCK, start, count, wait=True)

    def give(self, start: int, count: int) -> None:
        """Give numbers back."""
        self._set(fcntl.F_UNLCK, start, count)

    def close(self) -> None:
        """Give everything back, and leave."""
        self._handle.release()


def _lock_range(fd: int, slot: int, timeout: float) -> None:
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
    if timeout < 0:
        fcntl.fcntl(fd, cast(int, _WAIT), request)
        return
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.fcntl(fd, cast(int, _SET), request)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError from None
            time.sleep(0.005)
        else:
            return


class directory_lock:  # noqa: N801 - read as a verb in a with statement
    """Lock a directory itself, without a lock file, for the moment of one change.

    Parameters
    ----------
    path :
        The directory.
    shared :
        Exclude only those who ask for it exclusively.

    Raises
    ------
    FileNotFoundError
        There is no such directory.
    """

    __slots__ = ("_fd", "_path", "_shared")

    def __init__(self, path: str, *, shared: bool) -> None:
        self._path = path
        self._shared = shared

    def __enter__(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except FileNotFoundError:
            raise
        except OSError as err:
            raise storage_error(err, "can not lock", self._path) from err
        _open_descriptors.add(fd)
        self._fd = fd
        try:
            fcntl.flock(fd, fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fd = self._fd
        if fd in _open_descriptors:
            _open_descriptors.discard(fd)
            fcntl.flock(fd, fcntl.LOCK_UN)
            close_quietly(fd)
