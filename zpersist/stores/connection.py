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
from zpersist.files.paths import identity_of

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

_COLUMNS = "(key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL)"

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
    table :
        The table of keys and values; made if it is not there.
    durability :
        ``"fsync"``: what is written is on the disk when :meth:`write` returns.
    timeout :
        The most seconds to wait for other writers.
    """

    def __init__(self, file: str, table: str, *, durability: Durability, timeout: float) -> None:
        self.file = file
        self.table = table
        self.durability = durability
        self.timeout = timeout
        self._set_up()

    def _set_up(self) -> None:
        self.lock = threading.RLock()
        self._forget()
        _connections.add(self)

    def _forget(self) -> None:
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        #: Runs a statement; to be called with :attr:`lock` held.
        self.execute: Callable[[str, Sequence[object]], sqlite3.Cursor] = self._open_and_execute

    def __getstate__(self) -> dict[str, object]:
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_db", "_identity", "execute", "lock")
        }

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
            self._identity = identity_of(self.file)
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
            except ZPersistError:
                db.close()
                raise
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
        encoding = db.execute("PRAGMA encoding").fetchone()[0]
        if encoding != "UTF-8":
            raise self._refused(f"its text is {encoding}, which is in another order and loses characters")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if self.durability == 'fsync' else 'NORMAL'}")
        db.execute("PRAGMA mmap_size=268435456")
        db.execute("PRAGMA cache_size=-65536")
        db.execute("PRAGMA wal_autocheckpoint=4000")
        db.execute(f'CREATE TABLE IF NOT EXISTS "{self.table}" {_COLUMNS}')
        # SQLite takes capitals for small letters here, and there may be a table or view of somebody else's.
        found = "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') AND name=? COLLATE NOCASE"
        row = db.execute(found, (self.table,)).fetchone()
        if row is None:
            raise CorruptValueError(f"{self.file} is damaged: its schema is in disorder; restore it from a copy")
        name, sql = row
        if name != self.table:
            raise self._refused(f"the table {self.table!r} would be {name!r}, which is there: capitals don't count")
        if not str(sql).endswith(_COLUMNS):
            raise self._refused(f"the table {name!r} is not one of ours: {sql}")

    def _refused(self, why: str) -> StorageError:
        return StorageError(errno.EINVAL, f"can not use the database: {why}; take another table or file", self.file)

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

    def read(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        """Run a statement, and return its rows."""
        try:
            with self.lock:
                return self.execute(sql, values).fetchall()
        except FAULTS as err:
            raise self.translate(err) from err

    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run a statement, and return how many rows it changed."""
        try:
            with self.lock:
                self._check_may_write()
                return self.execute(sql, values).rowcount
        except FAULTS as err:
            raise self.translate(err) from err

    def _check_may_write(self) -> None:
        if self._db is None:
            return
        if self._db.in_transaction:
            # What is written now would go if the transaction failed.
            raise StorageError(
                errno.EBUSY,
                "this thread is in the middle of a write, which a signal handler has "
                "interrupted: set a flag there, and write when the handler has returned",
                self.file,
            )
        # What is written to a file that nobody finds any more is lost; and SQLite would mix the log of the old file
        # into the new one, so that it is not opened here (https://sqlite.org/howtocorrupt.html, 1.4).
        if self._identity != identity_of(self.file):
            raise StorageError(
                errno.ESTALE,
                "the database was deleted or replaced while it was open: nothing is written; "
                "close() this stash, and delete the files -wal and -shm beside a database that is not theirs",
                self.file,
            )

    def write_many(self, sql: str, rows: list[Any]) -> int:
        """Run a statement for each of the rows, in one transaction, and return how many rows it changed."""
        try:
            with self.lock:
                self._check_may_write()
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
