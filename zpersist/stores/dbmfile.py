"""A DBM database, whichever kind this Python has: opened, locked, and left behind in forked children."""

from __future__ import annotations

import dbm
import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from tempfile import TemporaryDirectory
from typing import Any

from zpersist.errors import CorruptValueError, StorageError
from zpersist.files.atomic import make_directory, storage_error
from zpersist.files.locks import KeyLocks, LockHandle
from zpersist.forklock import ForkLock

__all__ = ["DbmFile", "extension_here"]

_FILES = {
    "dbm.dumb": (".dat", ".dir", ".bak"),
    "dbm.ndbm": (".db", ".pag", ".dir"),
    "dbm.gnu": ("",),
    "dbm.sqlite3": ("", "-wal", "-shm"),
}

# What dbm.dumb raises, beside OSError, for an index of which some bytes are others.
_DAMAGE = (SyntaxError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)

# SQLITE_CORRUPT and SQLITE_NOTADB, without an import of sqlite3.
_SQLITE_DAMAGE = (11, 26)

_databases: weakref.WeakSet[DbmFile] = weakref.WeakSet()
# Inherited by a forked child: closing one there could write what the parent has not, or take its lock away.
_left_behind: list[Any] = []


def _after_fork_in_child() -> None:
    for database in tuple(_databases):
        database._leave_behind()


os.register_at_fork(after_in_child=_after_fork_in_child)


def extension_here() -> str:
    """Return what this Python's DBM adds to the name of a database, with its dot; nothing, if it adds none."""
    with TemporaryDirectory() as folder:
        dbm.open(f"{folder}/x", "n").close()
        kind = dbm.whichdb(f"{folder}/x") or ""
        names = set(os.listdir(folder))
    return next((extension for extension in _FILES[kind] if f"x{extension}" in names), "")


class DbmFile:
    """A DBM database that one thread of one process at a time has open.

    Parameters
    ----------
    path :
        The database, absolute, without the extension that the kind of DBM gives it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Whoever comes by a symbolic link meets the others there.
        self.locks = KeyLocks.beside(os.path.realpath(path))
        self.lock = ForkLock()
        #: How many are within :meth:`opened`.
        self.depth = 0
        #: What its user remembers as long as it is open: a forked child begins with nothing.
        self.live: dict[str, tuple[bytes, Any]] = {}
        self._db: Any = None
        self._handle: LockHandle | None = None
        _databases.add(self)

    def __reduce__(self) -> tuple[type[DbmFile], tuple[str]]:
        return DbmFile, (self.path,)

    @property
    def is_open(self) -> bool:
        """Whether other processes wait."""
        return self._handle is not None

    @property
    def kind(self) -> str | None:
        """The module of its kind, an empty name if that is none; ``None`` if there is no such file."""
        return dbm.whichdb(self.path)

    @contextmanager
    def opened(self, *, stays: bool, timeout: float) -> Iterator[Any]:
        """Have it open within a ``with``, and after that if it ``stays`` so; others are waited for by ``timeout``."""
        with self.lock:
            pid = os.getpid()
            self.depth += 1
            try:
                if self._db is None:
                    self._open(timeout)
                yield self._db
            finally:
                # In a child that was forked in between, nothing is open any more.
                if pid == os.getpid():
                    self.depth -= 1
                    if not self.depth:
                        self._rest(stays)

    def _rest(self, stays: bool) -> None:
        if not stays:
            self.close()
        elif type(self._db).__module__ == "dbm.sqlite3":
            # Bound to the thread that opened it; the lock stays.
            self._close_database()

    @contextmanager
    def driving(self, what: str = "the DBM refused") -> Iterator[None]:
        """Raise errors of ours for those of the DBM; around its calls only, for the functions of users raise any."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as err:
            if self._tells_damage(err):
                raise CorruptValueError(
                    f"the shelf {self.path} is damaged, or is none: {str(err) or type(err).__name__}; look at its "
                    f"files, then delete them, or restore them from a copy"
                ) from err
            if isinstance(err, OSError):
                raise storage_error(err, what, self.path) from err
            raise StorageError(errno.EIO, f"{what}: {err}", self.path) from err

    def _tells_damage(self, err: Exception) -> bool:
        if isinstance(err, dbm.error[0]):
            return self.kind == ""  # there is a file, of no kind
        # dbm.sqlite3 raises an error of its own while it handles that of SQLite.
        cause = err.__context__ if type(err).__module__ == "dbm.sqlite3" else err
        place_before_the_start = isinstance(err, OSError) and err.errno == errno.EINVAL
        code: int = getattr(cause, "sqlite_errorcode", 0)
        return isinstance(err, _DAMAGE) or place_before_the_start or code & 0xFF in _SQLITE_DAMAGE

    def _open(self, timeout: float) -> None:
        make_directory(os.path.dirname(self.path))
        if self._handle is None:
            try:
                self._handle = self.locks.acquire("database", timeout)
            except TimeoutError as err:
                raise StorageError(
                    errno.EBUSY, f"another one has had the shelf open for {timeout} s; close() it there", self.path
                ) from err
        try:
            with self.driving("can not open the shelf"):
                self._db = dbm.open(self.path, "c", 0o600)  # noqa: SIM115 - it stays open
        except BaseException:
            self.close()
            raise

    def _leave_behind(self) -> None:
        """Drop, in a forked child, what belongs to its parent, and write nothing on the way."""
        db, self._db = self._db, None
        self._handle, self.depth, self.live = None, 0, {}
        if db is not None:
            if type(db).__module__ == "dbm.dumb":
                # It would write its index when it is closed or collected, which may be when the child ends.
                db._index = None
            _left_behind.append(db)

    def _close_database(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with self.driving():
                db.close()

    def close(self) -> None:
        """Close it, and let others in."""
        handle, self._handle = self._handle, None
        with ExitStack() as stack:
            if handle is not None:
                stack.callback(handle.release)
            self._close_database()

    # within opened()

    def get(self, name: str) -> bytes | None:
        """Return the bytes under a key."""
        with self.driving():
            data: bytes | None = self._db.get(name.encode())
            return data

    def get_listed(self, key: bytes) -> bytes | None:
        """Return the bytes under a key that was listed; of dbm.ndbm also none, of which it says they aren't there."""
        with self.driving():
            data: bytes | None = self._db.get(key)
            return b"" if data is None and key in self._db.keys() else data

    def listed(self) -> list[bytes]:
        """Return what stands where keys do, as it is now, in no order."""
        with self.driving():
            return list(self._db.keys())

    def delete(self, key: bytes) -> bool:
        """Remove a key, and return whether it was there."""
        with self.driving():
            try:
                del self._db[key]
            except KeyError:
                return False
            return True

    def put(self, name: str, data: bytes) -> None:
        """Keep bytes under a key."""
        with self.driving():
            self._db[name.encode()] = data

    def put_beside(self, name: str, data: bytes) -> None:
        """Keep bytes under a key, or under it with a number behind if there is such a one already."""
        with self.driving():
            places = (f"{name}.{number}" if number else name for number in count())
            self.put(next(place for place in places if place.encode() not in self._db), data)

    def delete_files(self) -> None:
        """Delete the files of the database."""
        # Closed first: a new one of dbm.dumb has no file before.
        self._close_database()
        for extension in _FILES.get(self.kind or "", ()):
            with suppress(FileNotFoundError):
                os.unlink(self.path + extension)
