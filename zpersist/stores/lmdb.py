"""Many small values in one LMDB environment, read at the speed of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field

from zpersist.chunking import chunks
from zpersist.errors import InvalidArgumentError, ZPersistError
from zpersist.keys import check_str_key, key_in
from zpersist.stash import COMPANIONS, check_limit, native, pairs_of
from zpersist.stores.cells import CellStash, Stray, check_part

if TYPE_CHECKING:
    from zpersist.stores.table import Table

__all__ = ["LmdbStash"]

V = TypeVar("V")

_BATCH = 1000
#: Values may be large: of those fewer are in memory at once.
_BATCH_OF_VALUES = 100
#: A transaction writes each page once: the more values it has, the less a value costs.
_BATCH_TO_WRITE = 10_000
_BYTES_TO_WRITE = 1 << 24

_LEAST_MAP = 1 << 16


def _check_database(stash: object, attribute: object, database: object) -> None:
    check_part("database", database, 200)


def _check_map_size(stash: object, attribute: object, size: object) -> None:
    if type(size) is not int or not _LEAST_MAP <= size < 1 << 47:
        raise InvalidArgumentError(f"map_size must be a whole number of bytes of at least {_LEAST_MAP}, not {size!r}")


def _encoded(bound: str) -> bytes:
    # In UTF-8 bytes are in the order of code points; a lone surrogate, which no key has, has its place there too.
    return bound.encode("utf-8", "surrogatepass")


@define(slots=False, eq=False)
class LmdbStash(CellStash[V]):
    """Keeps values in a database of an LMDB environment: for many small values that are read much more than written.

    Needs the extra ``lmdb``.  The environment is one file, with a lock file beside it.  It grows by itself.

    Parameters
    ----------
    path :
        The file of the environment.  A relative one is taken from the working directory at construction.
    database :
        The database in it; each is a stash of its own.
    codec :
        Turns values into bytes and back; also the name of one, such as ``"dill"``.
    durability :
        ``"rename"``: the environment is always whole, and the last transaction may be lost in a power cut
        (``MDB_NOMETASYNC``); ``"fsync"``: a value is on the disk when ``dump`` returns.
    map_size :
        The bytes of address space to begin with, at least 64 KiB.  It doubles whenever it is full; all stashes on the
        file share it.

    Raises
    ------
    ImportError
        At construction: lmdb is not installed.
    CorruptValueError
        By any operation: the environment or the value is damaged.
    StorageError
        LMDB or the operating system refused; what was there is untouched.  The database is not one of ours.  A signal
        handler writes in the middle of a write of its thread.
    OutcomeUnknownError
        The last step of a write failed: it may or may not survive a power cut.

    Notes
    -----
    *Concurrency*: each operation is atomic among threads and processes of one host, on a local file system.
    Readers never wait for writers.  Writers take turns, and wait for one another without a limit; the death of one
    lets the next one in.  ``dump_many`` is atomic by ten thousand values or 16 MiB,
    ``delete_many`` by the thousand.  Keys come in code-point order.  Before a fork the environment is closed, and so
    a fork waits for the transactions of other threads.
    *Durability*: a killed process harms nothing; for a power cut see ``durability``.  Either way each transaction
    waits for the disk: ``MDB_NOSYNC``, which does not, may leave a file that can't be read (LMDB's documentation of
    ``mdb_env_open``).  ``dump_many`` waits once for many values.
    *Trust*: that of the codec, for everybody who may write to the file.  A file that was cut, or is no LMDB
    environment, is told by an error; but LMDB itself trusts what is inside a page, and one that was overwritten by
    something else may end the process.  ``python -m lmdb verify -s`` examines a file.

    Examples
    --------
    >>> with LmdbStash("features.lmdb") as stash:
    ...     stash.dump_many({"b": 2, "a": 1})
    ...     list(stash.scan(limit=1)), stash.update("a", lambda n: n + 1)
    (['a'], 2)
    """

    _kind = "database"

    database: str = field(default="stash", kw_only=True, validator=_check_database)
    map_size: int = field(default=1 << 26, kw_only=True, validator=_check_map_size)
    _table: Table = field(init=False, repr=False)

    @property
    def _part(self) -> str:
        return self.database

    def _connect(self) -> None:
        # Here, so that importing this module does not need lmdb.
        from zpersist.stores.table import Table

        self._table = Table(self._file, self.database, map_size=self.map_size, synced=self.durability == "fsync")

    def _disconnect(self) -> None:
        self._table.close()

    def _sibling(self, part: str) -> LmdbStash[Any]:
        return LmdbStash(
            self._file, database=part, codec=self.codec, durability=self.durability, map_size=self.map_size
        )

    def close(self) -> None:
        """Let go of the environment, which is closed when no stash uses it; the next use opens it again."""
        super().close()

    def __getstate__(self) -> dict[str, object]:
        state = super().__getstate__()
        del state["_table"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._connect()

    # one cell

    def _cell(self, name: str) -> bytes | None:
        return self._table.get(name.encode())

    def _cell_is_there(self, name: str) -> bool:
        return self._table.has(name.encode())

    def _cell_set(self, name: str, data: bytes) -> None:
        self._table.put(name.encode(), data)

    def _cell_add(self, name: str, data: bytes) -> bool:
        return self._table.add(name.encode(), data)

    def _cell_swap(self, name: str, old: bytes, new: bytes) -> bool:
        return self._table.swap(name.encode(), old, new)

    def _cell_drop(self, name: str, old: bytes) -> bool:
        return self._table.remove(name.encode(), old)

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        return self._table.delete(check_str_key(name).encode())

    # cells that have no key

    def _cell_names(self, stray: Callable[[Stray], object]) -> Iterator[str]:
        for key in self._table.short_keys():
            name = key_in(key)
            if name is None:
                stray(Stray(None, key, self._no_key(key)))
            else:
                yield name
        for start in self._table.records():
            try:
                names = [self._key(key) for key in self._table.keys_of_record(start)]
            except ZPersistError as err:
                stray(Stray("record", start, err))
            else:
                yield from names

    def _cell_of(self, stray: Stray) -> bytes | None:
        if stray.place == "record":
            return self._table.record(stray.key)
        return self._table.get(stray.key)

    def _cell_drop_stray(self, stray: Stray, old: bytes) -> bool:
        if stray.place == "record":
            return self._table.remove_record(stray.key, old)
        return self._table.remove(stray.key, old)

    # many at once

    @native
    def scan(
        self, prefix: str = "", *, after: str | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[str]:
        """Iterate over keys in code-point order; see :meth:`Stash.scan`."""
        check_limit(limit)
        names = (self._key(key) for key in self._pages(prefix, after, reverse, _BATCH, limit))
        return names if limit is None else islice(names, limit)

    @native
    def items(self) -> Iterator[tuple[str, V]]:
        """Iterate over keys with their values in code-point order."""
        for key, data in self._pages("", None, False, _BATCH_OF_VALUES, None, values=True):
            name = self._key(key)
            yield name, self._decode(name, data)

    def _pages(
        self, prefix: str, after: str | None, reverse: bool, count: int, limit: int | None, values: bool = False
    ) -> Iterator[Any]:
        low = _encoded(prefix)
        # No byte of UTF-8 is 0xff.
        high = low[:-1] + bytes([low[-1] + 1]) if low else None
        if after is not None and reverse:
            high = _encoded(after) if high is None else min(_encoded(after), high)
        elif after is not None:
            low = max(low, _encoded(after) + b"\0")
        if limit is not None:
            count = min(count, max(limit, 1))
        return self._table.pages(low, high, reverse=reverse, count=count, values=values)

    @native
    def dump_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]]) -> None:
        """Keep many values, ten thousand or 16 MiB of them in one transaction."""
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        for name, inst in pairs_of(items):
            data = self._encode(check_str_key(name), inst)
            batch.append((name.encode(), data))
            size += len(data)
            if size >= _BYTES_TO_WRITE or len(batch) == _BATCH_TO_WRITE:
                self._table.put_many(batch)
                batch, size = [], 0
        if batch:
            self._table.put_many(batch)

    @native
    def load_many(self, names: Iterable[str]) -> dict[str, V]:
        """Return the values of those keys that are there."""
        found: dict[str, V] = {}
        for batch in chunks(map(check_str_key, names), _BATCH):
            data = self._table.get_many([name.encode() for name in batch])
            found.update(
                (name, self._decode(name, one)) for name, one in zip(batch, data, strict=True) if one is not None
            )
        return found

    @native
    def delete_many(self, names: Iterable[str]) -> int:
        """Remove many keys, a thousand in one transaction, and return how many were there."""
        keys = (check_str_key(name).encode() for name in names)
        return sum(self._table.delete_many(batch) for batch in chunks(keys, _BATCH))

    @native
    def clear(self) -> None:
        """Delete everything, in one transaction."""
        self._table.clear()
        self._cleared()

    def _cleared(self) -> None:
        for purpose in COMPANIONS:
            self._table.clear_beside(self._beside(purpose))

    @native
    def __len__(self) -> int:
        return self._table.count()

    @native
    def __bool__(self) -> bool:
        return any(True for _ in self._table.pages(b"", None, reverse=False, count=1, values=False))
