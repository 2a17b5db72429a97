"""Values in a DBM database, in the format of the standard library's shelve."""

from __future__ import annotations

import dbm
import errno
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, TypeVar

from attrs import define, field, setters

from zpersist.codecs import Codec, PickleCodec, as_codec, check_codec
from zpersist.errors import CorruptValueError, StorageError
from zpersist.files.atomic import make_directory, storage_error
from zpersist.files.envelope import pack, unpack
from zpersist.files.locks import Claims, KeyLocks, LockHandle
from zpersist.files.paths import as_path
from zpersist.forklock import ForkLock
from zpersist.keys import check_str_key
from zpersist.stash import COMPANIONS, MISSING, CloseableStash, Missing, Stash, native

__all__ = ["ShelveStash", "shelve"]

V = TypeVar("V")

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

_shelves: weakref.WeakSet[ShelveStash[Any]] = weakref.WeakSet()
# Inherited by a forked child: closing one there could write what the parent has not, or take its lock away.
_left_behind: list[Any] = []


def _after_fork_in_child() -> None:
    for shelf in tuple(_shelves):
        shelf._leave_behind()


os.register_at_fork(after_in_child=_after_fork_in_child)


@define(slots=False, eq=False)
class ShelveStash(CloseableStash[V]):
    """Keeps values in a DBM database, whichever kind this Python has.

    For code written for shelves; :class:`~zpersist.SqliteStash` is faster, and safe when a process is killed.
    A database is made by the first use, also by a read.

    Parameters
    ----------
    path :
        The database, without the extension that the kind of DBM gives it.
    writeback :
        With ``auto_close=False``: values that were loaded or dumped and changed since are written on ``close()``.
    auto_close :
        Open and close the database in each operation, so that processes may take turns.  Otherwise it stays
        open, and other processes wait, until ``close()``.
    codec :
        Turns values into bytes and back; also the name of one, such as ``"dill"``.
    timeout :
        The most seconds to wait for another process that has the database open.

    Raises
    ------
    CorruptValueError
        The database or the value is damaged.
    StorageError
        The operating system or the DBM refused, or another process has the database open for too long.

    Notes
    -----
    *Concurrency*: threads and processes of one host take turns.
    *Durability*: a process killed while it writes may damage the database, as DBM does; a damaged value is told
    by its checksum.
    *Trust*: that of the codec, for everybody who may write to the files.

    Examples
    --------
    >>> with ShelveStash("shelf") as stash:
    ...     stash.dump("a", [1])
    ...     stash.load("a")
    [1]
    """

    shared = True
    durable = True

    path: Path = field(converter=as_path, on_setattr=setters.frozen)
    writeback: bool = field(default=True)
    auto_close: bool = field(default=True)
    codec: Codec = field(factory=PickleCodec, kw_only=True, converter=as_codec, validator=check_codec)
    timeout: float = field(default=60.0, kw_only=True)
    _file: str = field(init=False, repr=False)
    _locks: KeyLocks = field(init=False, repr=False)
    _lock: ForkLock = field(init=False, repr=False, factory=ForkLock)
    _db: Any = field(init=False, repr=False, default=None)
    _depth: int = field(init=False, repr=False, default=0)
    _handle: LockHandle | None = field(init=False, repr=False, default=None)
    _live: dict[str, tuple[bytes, V]] = field(init=False, repr=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._file = os.path.abspath(self.path)
        self._locks = KeyLocks.beside(self._file)
        _shelves.add(self)

    @classmethod
    def get_extension(cls) -> str | None:
        """Return the extension this Python's DBM gives to its files, ``None`` if it gives none."""
        with TemporaryDirectory() as folder:
            dbm.open(f"{folder}/x", "n").close()
            kind = dbm.whichdb(f"{folder}/x") or ""
            names = set(os.listdir(folder))
        return next((ext[1:] or None for ext in _FILES[kind] if f"x{ext}" in names), None)

    @property
    def real_path(self) -> Path:
        """The path with the extension of this Python's DBM."""
        extension = self.get_extension()
        return self.path if extension is None else self.path.with_name(f"{self.path.name}.{extension}")

    @property
    def is_open(self) -> bool:
        """Whether the database is open, and other processes wait."""
        return self._handle is not None

    # opening and closing

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with self._lock:
            pid = os.getpid()
            self._depth += 1
            try:
                if self._db is None:
                    self._open()
                yield self._db
            finally:
                # In a child that was forked in between, nothing is open any more.
                if pid == os.getpid():
                    self._depth -= 1
                    if not self._depth:
                        self._rest()

    def _rest(self) -> None:
        if self.auto_close:
            self._close()
        elif type(self._db).__module__ == "dbm.sqlite3":
            # Bound to the thread that opened it; the lock stays.
            self._close_database()

    @contextmanager
    def _driving(self, what: str = "the DBM refused") -> Iterator[None]:
        """Raise errors of ours for those of the DBM; around its calls only, for the functions of users raise any."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as err:
            if self._tells_damage(err):
                raise CorruptValueError(
                    f"the shelf {self._file} is damaged, or is none: {str(err) or type(err).__name__}; look at its "
                    f"files, then delete them, or restore them from a copy"
                ) from err
            if isinstance(err, OSError):
                raise storage_error(err, what, self._file) from err
            raise StorageError(errno.EIO, f"{what}: {err}", self._file) from err

    def _tells_damage(self, err: Exception) -> bool:
        if isinstance(err, dbm.error[0]):
            return dbm.whichdb(self._file) == ""  # there is a file, of no kind
        # dbm.sqlite3 raises an error of its own while it handles that of SQLite.
        cause = err.__context__ if type(err).__module__ == "dbm.sqlite3" else err
        place_before_the_start = isinstance(err, OSError) and err.errno == errno.EINVAL
        code: int = getattr(cause, "sqlite_errorcode", 0)
        return isinstance(err, _DAMAGE) or place_before_the_start or code & 0xFF in _SQLITE_DAMAGE

    def _open(self) -> None:
        make_directory(os.path.dirname(self._file))
        if self._handle is None:
            try:
                self._handle = self._locks.acquire("database", self.timeout)
            except TimeoutError as err:
                raise StorageError(
                    errno.EBUSY,
                    f"another one has had the shelf open for {self.timeout} s; close() it there",
                    self._file,
                ) from err
        try:
            with self._driving("can not open the shelf"):
                self._db = dbm.open(self._file, "c", 0o600)  # noqa: SIM115 - it stays open
        except BaseException:
            self._close()
            raise

    def _leave_behind(self) -> None:
        """Drop, in a forked child, what belongs to its parent, and write nothing on the way."""
        db, self._db = self._db, None
        self._handle, self._depth, self._live = None, 0, {}
        if db is not None:
            if type(db).__module__ == "dbm.dumb":
                # It would write its index when it is closed or collected, which may be when the child ends.
                db._index = None
            _left_behind.append(db)

    def _close_database(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with self._driving():
                db.close()

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        with ExitStack() as stack:
            if handle is not None:
                stack.callback(handle.release)
            self._close_database()

    def close(self) -> None:
        """Write back what was changed, and close the database; the next use opens it again.

        Raises
        ------
        EncodeError
            A changed value can't be written; all others are, and the database is closed.
        """
        with self._lock:
            if not self.is_open:
                return
            live, self._live = self._live, {}
            with ExitStack() as stack:
                stack.callback(self._close)
                if live:
                    stack.enter_context(self._opened())
                for name, (data, value) in live.items():
                    stack.callback(self._write_back, name, data, value)

    def _write_back(self, name: str, old: bytes, value: V) -> None:
        data = self._encode(name, value)
        if data != old:
            with self._driving():
                self._db[name.encode()] = data

    def __getstate__(self) -> dict[str, object]:
        lost = ("_db", "_depth", "_handle", "_live", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in lost}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _db=None, _handle=None, _live={}, _lock=ForkLock(), _depth=0)
        _shelves.add(self)

    # values

    def _encode(self, name: str, inst: V) -> bytes:
        (data,) = pack(self.codec.bound(f"{self._file}\0shelf", name), inst, name, tag=name, out_of_band=False)
        return bytes(data)

    def _remember(self, name: str, data: bytes, inst: V) -> None:
        if self.writeback and not self.auto_close:
            self._live[name] = data, inst

    def _fetch(self, name: str) -> V | Missing:
        check_str_key(name)
        with self._opened() as db:
            if name in self._live:
                return self._live[name][1]
            with self._driving():
                data = db.get(name.encode())
            if data is None:
                return MISSING
            value: V = unpack(data, self.codec.bound(f"{self._file}\0shelf", name), name, self._file)
            self._remember(name, data, value)
            return value

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key."""
        check_str_key(name)
        data = self._encode(name, inst)
        with self._opened() as db:
            with self._driving():
                db[name.encode()] = data
            self._remember(name, data, inst)

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        check_str_key(name)
        with self._opened() as db, self._driving():
            self._live.pop(name, None)
            try:
                del db[name.encode()]
            except KeyError:
                return False
            return True

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        check_str_key(name)
        with self._opened() as db, self._driving():
            return name.encode() in db

    def keys(self) -> Iterator[str]:
        """Iterate over the keys as they are at this moment, in no order."""
        with self._opened() as db, self._driving():
            return iter([name.decode() for name in db.keys()])

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        with self._opened():
            if self.exists(name):
                return False
            self.dump(name, inst)
            return True

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it; the database is open and locked meanwhile."""
        with self._opened():
            lives = name in self._live
            value = self._fetch(name)
            try:
                value = fn(default if value is MISSING else value)
                self.dump(name, value)
            except BaseException:
                # What fn has changed before it failed is not written back.
                if not lives:
                    self._live.pop(name, None)
                raise
            return value

    @native
    def clear(self) -> None:
        """Delete everything, and the files of the database."""
        with self._lock:
            with self._opened():
                self._live.clear()
                kind = dbm.whichdb(self._file)
                self._close_database()
                for extension in _FILES.get(kind or "", ()):
                    with suppress(FileNotFoundError):
                        os.unlink(self._file + extension)
            self._cleared()

    @native
    def __len__(self) -> int:
        with self._opened() as db, self._driving():
            return len(db.keys())

    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return self._locks.hold(f"{purpose} {check_str_key(name)}")

    def _claims(self) -> Claims | None:
        return self._locks.claims("fill")

    def _companion(self, purpose: str) -> Stash[Any]:
        return ShelveStash(f"{self._file}.{purpose}", codec=self.codec, timeout=self.timeout)

    def _cleared(self) -> None:
        for purpose in COMPANIONS:
            if dbm.whichdb(f"{self._file}.{purpose}") is not None:
                self._companion(purpose).clear()


class shelve:  # noqa: N801 - a public name of zensols.persist
    """Open a shelf for the length of a ``with``.

    Parameters
    ----------
    args, kwargs :
        Those of :class:`ShelveStash`.

    Examples
    --------
    >>> with shelve("shelf") as stash:
    ...     stash.dump("cool", [1, 2])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stash: ShelveStash[Any] = ShelveStash(*args, **{"auto_close": False, **kwargs})

    def __enter__(self) -> ShelveStash[Any]:
        with self.stash._opened():
            return self.stash

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stash.close()
