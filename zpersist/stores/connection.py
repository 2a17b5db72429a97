"""One connection to an SQLite database: opened when it is used, shared by threads, never inherited by a child."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from zpersist.errors import CorruptValueError, InvalidArgumentError, OutcomeUnknownError, StorageError, ZPersistError
from zpersist.files.atomic import Durability, make_directory, storage_error

__all__ = ["FAULTS", "Connection", "check_timeout"]

#: What sqlite3 raises: also for a name in a damaged database that is no text any more.
FAULTS = (sqlite3.Error, UnicodeDecodeError)

_ERRNO = {
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
    sqlite3.SQLITE_TOOBIG: errno.EFBIG,
}

#: What was written could not be synced: the next one to open the database may find it in the log.
_UNSYNCED = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)

#: SQLite counts the milliseconds it waits in 31 bits.
_LONGEST = 2_000_000.0

_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_held: list[Connection] = []


def _before_fork() -> None:
    # A child inherits SQLite's memory of the locks its parent holds, and would then take none of its own: its
    # writes would be lost when the parent closes the database.  So nothing is open at a fork.
    while not _hold_all():
        # No lock is held while another one is waited for: a thread may hold that one, and want one of ours.
        time.sleep(0.001)
    for connection in _held:
        connection.close()


def _hold_all() -> bool:
    for connection in tuple(_connections):
        if not connection.lock.acquire(timeout=0.1):
            _after_fork_in_parent()
            return False
        _held.append(connection)
    return True


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().lock.release()


def _after_fork_in_child() -> None:
    _held.clear()
    for connection in tuple(_connections):
        # The inherited lock may be held by a thread that does not exist in the child.
        connection.lock = threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def check_timeout(owner: object, attribute: object, timeout: object) -> None:
    """Raise unless ``timeout`` is a number of seconds, at least 0."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise InvalidArgumentError(f"timeout must be a number of seconds of at least 0, not {timeout!r}")


def _is_full(path: str) -> bool:
    # SQLite tells no more than "disk I/O error" when there is no room for its index in shared memory.
    try:
        disk = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    # A file system without a fixed number of files says that it has none.
    return disk.f_bavail * disk.f_frsize < 1 << 16 or (disk.f_files > 0 and not disk.f_favail)


def _why_not_opened(path: str) -> int:
    # SQLite tells no more than "unable to open": the operating system says why nothing can be opened, or made, there.
    try:
        os.close(os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC))
    except OSError as err:
        return err.errno or errno.EACCES
    return errno.ENOSPC if _is_full(path) else errno.EACCES


class Connection:
    """A connection in write-ahead mode that opens when it is first used.

    Parameters
    ----------
    file :
        The absolute path of the database.
    schema :
        A statement to run when it has been opened.
    durability :
        ``"fsync"``: what is written is on the disk when :meth:`run` returns.
    timeout :
        The most seconds to wait for other writers.
    """

    def __init__(self, file: str, schema: str, *, durability: Durability, timeout: float) -> None:
        self.file = file
        self.schema = schema
        self.durability = durability
        self.timeout = timeout
        self._set_up()

    def _set_up(self) -> None:
        self.lock = threading.RLock()
        self._forget()
        _connections.add(self)

    def _forget(self) -> None:
        self._db: sqlite3.Connection | None = None
        #: Runs a statement; to be called with :attr:`lock` held.
        self.execute: Callable[[str, Sequence[object]], sqlite3.Cursor] = self._open_and_execute

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_db", "execute", "lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_up()

    def __del__(self) -> None:
        # Of a stash that is dropped without being closed.
        db = getattr(self, "_db", None)
        if db is not None:
            db.close()

    def close(self) -> None:
        """Close the database; the next use opens it again."""
        with self.lock:
            if self._db is not None:
                self._db.close()
                self._forget()

    def _open_and_execute(self, sql: str, values: Sequence[object]) -> sqlite3.Cursor:
        return self._opened().execute(sql, values)

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = self._open()
            self.execute = self._db.execute
        return self._db

    def _open(self) -> sqlite3.Connection:
        make_directory(os.path.dirname(self.file), durability=self.durability)
        self._make()
        db = sqlite3.connect(
            self.file,
            timeout=min(self.timeout, _LONGEST),
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        end = time.monotonic() + self.timeout
        while True:
            try:
                self._prepare(db)
            except FAULTS as err:
                # Two that turn a new database to write-ahead mode at once are refused without waiting.
                if getattr(err, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY and time.monotonic() < end:
                    time.sleep(0.01)
                    continue
                db.close()
                raise self.translate(err) from err
            return db

    def _make(self) -> None:
        # The log and the index beside it get the mode of the database.  It is not opened for that: closing it would
        # drop the locks that another connection of this process holds (https://sqlite.org/howtocorrupt.html, 2.2).
        try:
            os.mknod(self.file, 0o600 | stat.S_IFREG)
        except FileExistsError:
            if not os.access(self.file, os.R_OK | os.W_OK):
                denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                raise storage_error(denied, "can not open the database", self.file) from None
        except OSError as err:
            raise storage_error(err, "can not open the database", self.file) from err

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if self.durability == 'fsync' else 'NORMAL'}")
        db.execute("PRAGMA mmap_size=268435456")
        db.execute("PRAGMA cache_size=-65536")
        db.execute("PRAGMA wal_autocheckpoint=4000")
        db.execute(self.schema)

    def translate(self, err: Exception) -> ZPersistError:
        """Return the error of ours that says what one of :data:`FAULTS` means."""
        full_code = getattr(err, "sqlite_errorcode", 0)
        code = full_code & 0xFF
        garbled = isinstance(err, UnicodeDecodeError) or "decode to UTF-8" in str(err)
        if garbled or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return CorruptValueError(f"{self.file} is damaged, or no SQLite database: {err}; restore it from a copy")
        if os.path.isdir(self.file):
            directory = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return storage_error(directory, "can not open the database", self.file)
        number = _ERRNO.get(code, errno.EIO)
        if code == sqlite3.SQLITE_CANTOPEN:
            number = _why_not_opened(self.file)
        elif number == errno.EIO and _is_full(self.file):
            number = errno.ENOSPC
        if full_code in _UNSYNCED:
            return OutcomeUnknownError(number, f"written, but SQLite could not sync it: {err}", self.file)
        return StorageError(number, f"SQLite refused: {err}", self.file)

    def run(self, sql: str, values: Sequence[object] = ()) -> tuple[list[Any], int]:
        """Run a statement, and return its rows and how many rows it changed."""
        try:
            with self.lock:
                cursor = self.execute(sql, values)
                return cursor.fetchall(), cursor.rowcount
        except FAULTS as err:
            raise self.translate(err) from err

    def run_one(self, sql: str, values: Sequence[object]) -> Any:
        """Run a statement, and return its first row or ``None``."""
        try:
            with self.lock:
                return self.execute(sql, values).fetchone()
        except FAULTS as err:
            raise self.translate(err) from err

    def run_many(self, sql: str, rows: list[Any]) -> int:
        """Run a statement for each of the rows, in one transaction, and return how many rows it changed."""
        try:
            with self.lock:
                db = self._opened()
                db.execute("BEGIN IMMEDIATE")
                try:
                    count = db.executemany(sql, rows).rowcount
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
        except FAULTS as err:
            raise self.translate(err) from err
        return count
