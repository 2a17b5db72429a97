"""One LMDB environment a file and process: shared by all stashes, grown when it is full, closed for a fork.

LMDB forbids to open a file twice in one process, and to use in a child what its parent has opened: closing it there
takes away the slots of the parent's readers (http://www.lmdb.tech/doc/, "Caveats").
"""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet, WeakValueDictionary

from zpersist.errors import OutcomeUnknownError, StorageError
from zpersist.files.paths import identity_of
from zpersist.forklock import ForkLock
from zpersist.stores.lmdbfile import LmdbError, lmdb, may_fall_short, open_environment, translate

if TYPE_CHECKING:
    from lmdb import Transaction

__all__ = ["Environment", "User"]

_guard = ForkLock()
_environments: WeakValueDictionary[str, Environment] = WeakValueDictionary()
_held: list[Environment] = []


def _before_fork() -> None:
    # So that there is nothing to inherit.  It waits for the transactions of other threads.
    while not _hold_all():
        time.sleep(0.001)
    for environment in _held:
        environment.close()


def _hold_all() -> bool:
    for environment in tuple(_environments.values()):
        # Not for ever: a thread may hold this one, and want one of those that are held by now.  And not by a look
        # now and then: a thread that writes all the time lets others run only while it holds its lock.
        if not environment.try_hold(0.1):
            _after_fork_in_parent()
            return False
        _held.append(environment)
    return True


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().let_go()


def _after_fork_in_child() -> None:
    _held.clear()
    for environment in tuple(_environments.values()):
        # The inherited locks may be held by a thread that does not exist in the child.
        environment.renew_locks()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class User(Protocol):
    """What uses an environment, and holds handles that end with it."""

    def forget(self) -> None:
        """Let the handles go: the environment is closed."""

    def __hash__(self) -> int: ...


class Environment:
    """The environment of a file, open as long as somebody uses it; made by :meth:`of`.

    Attributes
    ----------
    reading :
        To be held during each transaction that reads, so that there is none when the map is exchanged.
    writing :
        To be held during each transaction that writes; who wants both takes this one first.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._users: WeakSet[User] = WeakSet()
        self._lmdb: lmdb.Environment | None = None
        self._identity: tuple[int, int] | None = None
        #: Whether what is in memory may not be on the disk, until the file is closed by all.
        self._doubtful = False
        self.renew_locks()

    @classmethod
    def of(cls, file: str) -> Environment:
        """Return the one environment of this process for a file, by whatever links its path goes."""
        file = os.path.realpath(file)
        with _guard:
            found = _environments.get(file)
            if found is None:
                found = _environments[file] = cls(file)
            return found

    # the locks

    def renew_locks(self) -> None:
        """Make new locks, that nobody holds."""
        self.reading = threading.RLock()
        self.writing = threading.RLock()

    def try_hold(self, timeout: float = 0) -> bool:
        """Take both locks if each is free within so many seconds."""
        if not self.writing.acquire(timeout=timeout):
            return False
        if not self.reading.acquire(timeout=timeout):
            self.writing.release()
            return False
        return True

    def let_go(self) -> None:
        """Give both locks back."""
        self.reading.release()
        self.writing.release()

    # open and closed

    def join(self, user: User, map_size: int) -> lmdb.Environment:
        """Return the open environment, and tell the user when it is closed; with both locks held."""
        if self._lmdb is not None and not self.is_in_place():
            self.close()
        # Before it is opened: a stash that is collected at that moment must find a user, or it would close it.
        self._users.add(user)
        if self._lmdb is None:
            try:
                self._lmdb = open_environment(self.file, map_size)
                self._identity = identity_of(self.file)
            except BaseException:
                self._users.discard(user)
                raise
        return self._lmdb

    def is_in_place(self) -> bool:
        """Return whether the file is the one that is open: nobody has deleted it, or put another one in its place."""
        return self._identity == identity_of(self.file)

    def leave(self, user: User, *, wait: bool = True) -> None:
        """Close the environment if nobody else uses it; without ``wait`` only if no other thread is at it."""
        if wait:
            with self.writing, self.reading:
                self._leave(user)
        elif self.try_hold():
            try:
                self._leave(user)
            finally:
                self.let_go()
        else:
            self._users.discard(user)

    def _leave(self, user: User) -> None:
        user.forget()
        self._users.discard(user)
        if not self._users:
            self.close()
            self._doubtful = False

    def close(self) -> None:
        """Close it for all, with both locks held; the next use opens it again."""
        for user in tuple(self._users):
            user.forget()
        self._users.clear()
        if self._lmdb is not None:
            self._lmdb.close()
            self._lmdb = None

    # what goes wrong

    def commit(self, txn: Transaction[bytes]) -> None:
        """Commit; with :attr:`writing` held."""
        if self._doubtful:
            txn.abort()
            raise StorageError(
                errno.EIO,
                "writing to this file has failed, and what is in memory may not be on the disk: look after the disk, "
                "then close() all stashes in the file",
                self.file,
            )
        try:
            txn.commit()
        except LmdbError as err:
            # The kernel may call clean what it could not write, and LMDB would build on that (see files.atomic).
            self._doubtful = err.code in (errno.EIO, errno.EROFS) and not may_fall_short(self.file)
            if self._is_lost():
                with self.reading:
                    self.close()
                raise self._unknown(err) from err
            raise

    def sync(self) -> None:
        """Put what has been committed on the disk, with :attr:`writing` held."""
        assert self._lmdb is not None  # noqa: S101 - for mypy: there was a transaction
        try:
            self._lmdb.sync(True)
        except LmdbError as err:
            self._doubtful = True
            raise self._unknown(err) from err

    def _is_lost(self) -> bool:
        # So it is when writing the page failed that makes a transaction valid.
        with self.reading:
            try:
                if self._lmdb is not None:
                    self._lmdb.begin().abort()
            except lmdb.PanicError:
                return True
            return False

    def _unknown(self, err: LmdbError) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            err.code if err.code > 0 else errno.EIO,
            f"written, but it may not survive a power cut: {err}; read before you write again",
            self.file,
        )

    def mend(self, err: LmdbError) -> None:
        """Do something so that what failed can be tried again, or raise one of our errors; with no lock held."""
        if isinstance(err, (lmdb.MapFullError, lmdb.MapResizedError)):
            self._resize(grow=isinstance(err, lmdb.MapFullError))
        elif "closed/deleted/dropped" in str(err):
            # A signal handler has closed or resized it, or forked, in the middle of a transaction of its own thread:
            # nothing has been written.
            with self.writing, self.reading:
                self.close()
        elif not (isinstance(err, lmdb.ReadersFullError) and self._clear_readers()):
            raise translate(err, self.file) from err

    def _resize(self, *, grow: bool) -> None:
        with self.writing, self.reading:
            if self._lmdb is None:
                return
            # A reader that was killed may be what keeps old pages from being used again.
            self._lmdb.reader_check()
            size = self._lmdb.info()["map_size"]
            try:
                # 0: the size that another process has given it.
                self._lmdb.set_mapsize(2 * size if grow else 0)
            except (LmdbError, OverflowError) as err:
                # There may be no map now.
                self.close()
                raise StorageError(
                    errno.ENOMEM, f"a map of more than {size} bytes was refused: {err}; raise ulimit -v", self.file
                ) from err

    def _clear_readers(self) -> bool:
        with self.writing, self.reading:
            return self._lmdb is not None and self._lmdb.reader_check() > 0
