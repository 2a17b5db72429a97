"""A table in an LMDB environment: bytes by keys of any length, in the order of the keys."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from zpersist.errors import StorageError
from zpersist.files.atomic import sync_directory
from zpersist.stores.environment import Environment
from zpersist.stores.lmdbfile import LmdbError
from zpersist.stores.longkeys import MAX_SHORT, LongKeys, Pair
from zpersist.stores.pages import page, set_at

if TYPE_CHECKING:
    from lmdb import Transaction

__all__ = ["Table"]

T = TypeVar("T")

_first = itemgetter(0)


class Table:
    """A table, opened when it is first used.

    Parameters
    ----------
    file :
        The absolute path of the environment's file.
    name :
        The name of the table.
    map_size :
        Of the environment, in bytes, if this table opens it.
    synced :
        What is written is on the disk when the call returns.
    """

    def __init__(self, file: str, name: str, *, map_size: int, synced: bool) -> None:
        self.name = name.encode("ascii")
        self._map_size = map_size
        self._synced = synced
        self._env = Environment.of(file)
        self.forget()

    def forget(self) -> None:
        """Let the handles go: the environment is closed."""
        # Used under one lock or the other; set and unset under both.
        self._opened: Any = None
        self._begin: Any = None
        self._short: Any = None
        self._long: Any = None

    def close(self) -> None:
        """Let go of the environment; the next use opens it again."""
        self._env.leave(self)

    def __del__(self) -> None:
        # Of a stash that is dropped without being closed.
        if getattr(self, "_begin", None) is not None:
            self._env.leave(self, wait=False)

    # transactions

    def _open(self) -> None:
        env = self._env
        with env.writing, env.reading:
            if self._begin is not None and env.is_in_place():
                return
            opened = env.join(self, self._map_size)
            if opened.max_key_size() < MAX_SHORT:
                raise StorageError(errno.EINVAL, f"this LMDB was built for keys below {MAX_SHORT} bytes", env.file)
            # Changes nothing, and so writes nothing, if the databases are there.
            with opened.begin(write=True) as txn:
                short = self._open_db(opened, self.name, txn)
                long = self._open_db(opened, self.name + b":long", txn)
            if self._synced:
                sync_directory(os.path.dirname(env.file))
            self._short, self._long = short, LongKeys(long, env.file)
            self._opened, self._begin = opened, opened.begin

    def _open_db(self, opened: Any, name: bytes, txn: Transaction[bytes]) -> Any:
        db = opened.open_db(name, txn=txn)
        # In a database that was made so keys are in another order, or a value stays beside the one that follows it.
        foreign = sorted(flag for flag, is_set in db.flags(txn).items() if is_set)
        if foreign:
            raise StorageError(
                errno.EINVAL,
                f"the database {name!r} is not one of ours: it has {foreign}; take another",
                self._env.file,
            )
        return db

    def read(self, work: Callable[[Transaction[bytes]], T]) -> T:
        """Return what a function makes of a transaction that reads; it may be called again."""
        env = self._env
        while True:
            try:
                with env.reading:
                    if self._begin is not None:
                        with self._begin(self._short) as txn:
                            return work(txn)
                self._open()
            except LmdbError as err:
                env.mend(err)

    def write(self, work: Callable[[Transaction[bytes]], T]) -> T:
        """Return what a function makes of a transaction that is then committed; it may be called again."""
        env = self._env
        while True:
            try:
                with env.writing:
                    if self._begin is not None and env.is_in_place():
                        txn = self._begin(self._short, None, True)
                        try:
                            result = work(txn)
                        except BaseException:
                            txn.abort()
                            raise
                        env.commit(txn)
                        if self._synced:
                            env.sync()
                        return result
                self._open()
            except LmdbError as err:
                env.mend(err)

    # one key

    def get(self, key: bytes, buffers: bool = False) -> bytes | None:
        """Return what is kept under a key; with ``buffers`` something that only tells that it is there."""
        if len(key) > MAX_SHORT:
            return self.read(lambda txn: self._long.get(txn, key))  # type: ignore[no-any-return]
        env = self._env
        try:
            # As read() does it, without a call: most of what is done to a stash is this.
            with env.reading:
                if self._begin is not None:
                    txn = self._begin(self._short, None, False, buffers)
                    try:
                        return txn.get(key)  # type: ignore[no-any-return]
                    finally:
                        txn.abort()
        except LmdbError as err:
            env.mend(err)
        return self.read(lambda txn: txn.get(key))

    def has(self, key: bytes) -> bool:
        """Return whether a key is there."""
        return self.get(key, True) is not None

    def put(self, key: bytes, data: bytes) -> None:
        """Keep something under a key."""
        self.write(lambda txn: self._put(txn, key, data))

    def _put(self, txn: Transaction[bytes], key: bytes, data: bytes, overwrite: bool = True) -> bool:
        if len(key) > MAX_SHORT:
            return self._long.put(txn, key, data, overwrite=overwrite)  # type: ignore[no-any-return]
        return txn.put(key, data, overwrite=overwrite)

    def _get(self, txn: Transaction[bytes], key: bytes) -> bytes | None:
        return self._long.get(txn, key) if len(key) > MAX_SHORT else txn.get(key)

    def add(self, key: bytes, data: bytes) -> bool:
        """Keep something only if there is nothing, and return whether it was kept."""
        return self.write(lambda txn: self._put(txn, key, data, overwrite=False))

    def swap(self, key: bytes, old: bytes, new: bytes) -> bool:
        """Exchange what is kept if it is still the same, and return whether it was."""
        return self.write(lambda txn: self._get(txn, key) == old and self._put(txn, key, new))

    def remove(self, key: bytes, old: bytes) -> bool:
        """Remove a key if what is kept is still the same, and return whether it was."""
        return self.write(lambda txn: self._get(txn, key) == old and self._delete(txn, key))

    def _delete(self, txn: Transaction[bytes], key: bytes) -> bool:
        if len(key) > MAX_SHORT:
            return self._long.delete(txn, key)  # type: ignore[no-any-return]
        return txn.delete(key)

    def delete(self, key: bytes) -> bool:
        """Remove a key, and return whether it was there."""
        return self.write(lambda txn: self._delete(txn, key))

    # what is kept as it is kept

    def short_keys(self) -> Iterator[bytes]:
        """Iterate over all keys that LMDB takes itself."""
        return self._raw_keys(lambda: self._short)

    def records(self) -> Iterator[bytes]:
        """Iterate over the starts of long keys, of which each has a record."""
        return self._raw_keys(lambda: self._long.db)

    def _raw_keys(self, db: Callable[[], Any], count: int = 1000) -> Iterator[bytes]:
        low = b""

        def keys_from_low(txn: Transaction[bytes]) -> list[bytes]:
            # The handle is another one when the environment has been opened again.
            cursor = txn.cursor(db())
            return list(islice(cursor.iternext(True, False), count)) if set_at(cursor, low) else []

        while True:
            keys = self.read(keys_from_low)
            yield from keys
            if len(keys) < count:
                return
            low = keys[-1] + b"\0"

    def keys_of_record(self, start: bytes) -> list[bytes]:
        """Return the keys that begin so, or raise if their record is damaged."""
        return self.read(lambda txn: self._long.keys(txn, start))

    def record(self, start: bytes) -> bytes | None:
        """Return the record of the keys that begin so."""
        return self.read(lambda txn: self._long.raw(txn, start))  # type: ignore[no-any-return]

    def remove_record(self, start: bytes, old: bytes) -> bool:
        """Remove all keys that begin so if their record is still the same, and return whether it was."""
        return self.write(lambda txn: self._long.raw(txn, start) == old and txn.delete(start, db=self._long.db))

    # many keys, in one transaction

    def put_many(self, pairs: Sequence[Pair]) -> None:
        """Keep many things; of several under one key the last."""
        # In order, so that what comes next mostly belongs to the page that was just found.
        short = sorted((pair for pair in pairs if len(pair[0]) <= MAX_SHORT), key=_first)
        long = [pair for pair in pairs if len(pair[0]) > MAX_SHORT] if len(short) < len(pairs) else []

        def work(txn: Transaction[bytes]) -> None:
            txn.cursor().putmulti(short)
            for key, data in long:
                self._put(txn, key, data)

        self.write(work)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return what is kept under each of the keys."""
        return self.read(lambda txn: [self._get(txn, key) for key in keys])

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Remove many keys, and return how many were there."""
        return self.write(lambda txn: sum(self._delete(txn, key) for key in keys))

    def pages(self, low: bytes, high: bytes | None, *, reverse: bool, count: int, values: bool) -> Iterator[Any]:
        """Iterate over the keys in ``low <= key < high``, or the pairs of keys and values, ``count`` at a time."""
        # By pages, so that no transaction stays open while others write: what it sees could not be used again.
        while True:
            found = self.read(
                lambda txn: page(txn, self._long, low, high, reverse=reverse, count=count, values=values)  # noqa: B023 - called now
            )
            yield from found
            if len(found) < count:
                return
            last = found[-1][0] if values else found[-1]
            if reverse:
                high = last
            else:
                low = last + b"\0"

    def count(self) -> int:
        """Return how many keys there are."""
        return self.read(lambda txn: txn.stat(self._short)["entries"] + int(self._long.count(txn)))

    def clear(self) -> None:
        """Remove everything."""

        def work(txn: Transaction[bytes]) -> None:
            txn.drop(self._short, delete=False)
            txn.drop(self._long.db, delete=False)

        self.write(work)

    def clear_beside(self, name: str) -> None:
        """Remove everything from another table of this file, if there is one."""
        first = name.encode("ascii")
        wanted = (first, first + b":long")

        def work(txn: Transaction[bytes]) -> None:
            # The names of the databases are the keys of the one that has no name.
            names = txn.cursor(self._opened.open_db(None, txn=txn))
            found = names.iternext(True, False) if names.set_range(first) else ()
            for table in list(takewhile(lambda table: table.startswith(first), found)):
                if table in wanted:
                    txn.drop(self._opened.open_db(table, txn=txn), delete=False)

        self.write(work)
