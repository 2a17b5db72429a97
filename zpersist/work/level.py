"""Where a work is kept beyond the process: in a file, or under a key of a stash."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from zpersist.codecs import Codec
from zpersist.errors import CorruptValueError, StorageError, UnsupportedOperationError
from zpersist.files.atomic import Durability, close_quietly, make_directory, storage_error, sync_directory, write_file
from zpersist.files.envelope import WrongTagError, looks_whole, pack, read_file
from zpersist.files.locks import KeyLocks, LockHandle
from zpersist.files.sweep import sweep
from zpersist.stash import MISSING, Stash
from zpersist.work.place import Place

__all__ = ["FileLevel", "Level", "StashLevel"]

logger = logging.getLogger(__name__)


class Level(Protocol):
    """What a work asks of the place where it is kept."""

    def load(self) -> Any:
        """Return the value, or ``MISSING``."""

    def check(self) -> None:
        """Raise if nothing could be kept, before anything is computed."""

    def dump(self, value: object) -> None:
        """Keep a value."""

    def offer(self, value: Any) -> Any:
        """Keep what was computed, unless another one has kept a value meanwhile; return the one that is kept."""

    def clear(self) -> None:
        """Delete the value, if there is one."""

    def exists(self) -> bool:
        """Return whether there is a value."""

    def flight(self) -> AbstractContextManager[None]:
        """Return the lock that is held by the one who computes."""

    def try_flight(self) -> LockHandle | None:
        """Take that lock if it is free."""


class _Changed(Exception):  # noqa: N818 - a signal, not an error
    """Somebody else wrote between our look and our writing."""


class FileLevel(Place):
    """A value in a file."""

    def __init__(
        self,
        path: Path,
        *,
        codec: Codec,
        mkdir: bool,
        recover: bool,
        version: str,
        durability: Durability,
        mmap: bool,
    ) -> None:
        self.path = os.path.abspath(path)
        self._mkdir = mkdir
        self._recover = recover
        self._version = version
        self._durability = durability
        self._mmap = mmap
        self._folder = os.path.dirname(self.path)
        self._locks = KeyLocks.beside(self.path)
        # A seal covers the name of the file also if a scope stands for its path.
        self._bound = codec.bound(f"{self.path}\0work {os.path.basename(self.path)}", version)

    def load(self) -> Any:
        try:
            return read_file(self.path, self._bound, mapped=self._mmap, tag=self._version)
        except FileNotFoundError:
            return MISSING
        except WrongTagError as err:
            logger.info("%s is of version %r, %r is wanted: it is computed again", self.path, str(err), self._version)
            return MISSING
        except CorruptValueError as err:
            self._recover_from(err)
            return MISSING

    def check(self) -> None:
        self._refuse_device()
        if self._mkdir:
            make_directory(self._folder, durability=self._durability)
        elif not os.path.isdir(self._folder):
            raise StorageError(
                errno.ENOENT, "the directory of the work's file is missing; make it, or use mkdir=True", self._folder
            )
        elif not os.access(self._folder, os.W_OK | os.X_OK):
            raise StorageError(
                errno.EACCES, "the directory of the work's file can't be written to; change that (chmod)", self._folder
            )

    def _refuse_device(self) -> None:
        # Root could replace /dev/null by a value, or delete it.
        try:
            mode = os.lstat(self.path).st_mode
        except OSError:
            # There is nothing, or the next call tells what is wrong.
            return
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise StorageError(errno.ENODEV, "a device stands in the place of the file; choose another path", self.path)

    def dump(self, value: object) -> None:
        self._keeps()
        self._write(value, self._replace)

    def offer(self, value: Any) -> Any:
        if self._keeps():
            self.dump(value)
            return value
        while True:
            # What can't be read, or is of another version, is no value: it is replaced, if it is still the same file.
            seen = self._identity()
            kept = self.load()
            if kept is not MISSING:
                return kept
            try:
                self._write(value, self._replace_if(seen))
            except _Changed:
                continue
            return value

    def _write(self, value: object, place: Callable[[str, str], None]) -> None:
        self.check()
        sweep(self._folder)
        parts = pack(self._bound, value, self.path, tag=self._version)
        write_file(self.path, parts, durability=self._durability, place=place)

    def _replace(self, temporary: str, path: str) -> None:
        with self._locks.hold("write"):
            os.replace(temporary, path)

    def _replace_if(self, seen: tuple[int, int, int] | None) -> Callable[[str, str], None]:
        def place(temporary: str, path: str) -> None:
            with self._locks.hold("write"):
                if self._identity() != seen:
                    raise _Changed
                os.replace(temporary, path)

        return place

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise storage_error(err, "can not look for", self.path) from err
        # The number of a file that was replaced may be given to another one.
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def clear(self) -> None:
        self._refuse_device()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return
        except OSError as err:
            raise storage_error(err, "can not delete", self.path) from err
        if self._durability == "fsync":
            sync_directory(self._folder)

    def exists(self) -> bool:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as err:
            raise storage_error(err, "can not look for", self.path) from err
        try:
            return looks_whole(fd, self.path, self._bound, tag=self._version)
        except OSError as err:
            raise storage_error(err, "can not look for", self.path) from err
        finally:
            close_quietly(fd)

    @property
    def _where(self) -> Any:
        return self.path

    def _lock(self) -> AbstractContextManager[None]:
        return self._locks.hold("work")

    def try_flight(self) -> LockHandle | None:
        try:
            return self._locks.acquire("work", timeout=0)
        except TimeoutError:
            return None


class _NoLock:
    def release(self) -> None:
        """Do nothing: there is nothing to release."""


# What link() says on a file system without links: a directory can't add there, but it can dump.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP)


class StashLevel(Place):
    """A value under a key of a stash."""

    def __init__(self, stash: Stash[Any], key: str, version: str, *, recover: bool) -> None:
        self._stash = stash
        self._key = f"{key}@{version}" if version else key
        self._recover = recover

    def load(self) -> Any:
        try:
            return self._stash._fetch(self._key)
        except CorruptValueError as err:
            # Raises if not the value, but all of the stash is damaged.
            self._stash.exists(self._key)
            self._recover_from(err)
            return MISSING

    def check(self) -> None:
        """Nothing can be known before."""

    def dump(self, value: object) -> None:
        self._keeps()
        self._stash.dump(self._key, value)

    def offer(self, value: Any) -> Any:
        if not self._keeps():
            try:
                if self._stash.add(self._key, value):
                    return value
            except UnsupportedOperationError:
                pass
            except StorageError as err:
                if err.errno not in _NO_LINKS:
                    raise
            kept = self.load()
            if kept is not MISSING:
                return kept
        self.dump(value)
        return value

    def clear(self) -> None:
        self._stash.delete(self._key)

    def exists(self) -> bool:
        return self._stash.exists(self._key)

    @property
    def _where(self) -> Any:
        return id(self._stash), self._key

    def _lock(self) -> AbstractContextManager[None]:
        return self._stash._flight(self._key)

    def try_flight(self) -> LockHandle | None:
        # A stash's lock belongs to a thread; coroutines share one computation in their loop only.
        return _NoLock()
