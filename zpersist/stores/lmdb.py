"""Many small values in one LMDB environment, read at the speed of memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field, setters

from zpersist.chunking import chunks
from zpersist.codecs import Codec, PickleCodec, as_codec, check_codec
from zpersist.damage import QUARANTINE, Repair, is_damaged
from zpersist.errors import CorruptValueError, InvalidArgumentError
from zpersist.files.atomic import Durability, check_durability
from zpersist.files.envelope import pack, unpack
from zpersist.files.locks import Claims, KeyLocks
from zpersist.files.paths import as_path
from zpersist.forklock import ForkLock
from zpersist.keys import check_str_key
from zpersist.stash import COMPANIONS, MISSING, CloseableStash, Missing, check_limit, native, pairs_of

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

_making = ForkLock()


def _check_database(stash: object, attribute: object, database: object) -> None:
    if not (isinstance(database, str) and database.isascii() and database.isidentifier() and len(database) <= 200):
        raise InvalidArgumentError(
            f"database must be ASCII letters, digits and underscores, at most 200 and no digit in front, "
            f"not {database!r}"
        )


def _check_map_size(stash: object, attribute: object, size: object) -> None:
    if type(size) is not int or not _LEAST_MAP <= size < 1 << 47:
        raise InvalidArgumentError(f"map_size must be a whole number of bytes of at least {_LEAST_MAP}, not {size!r}")


def _encoded(bound: str) -> bytes:
    # In UTF-8 bytes are in the order of code points; a lone surrogate, which no key has, has its place there too.
    return bound.encode("utf-8", "surrogatepass")


@define(slots=False, eq=False)
class LmdbStash(CloseableStash[V]):
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
        LMDB or the operating system refused; what was there is untouched.
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

    shared = True
    durable = True
    ordered = True
    _batches = True

    path: Path = field(converter=as_path, on_setattr=setters.frozen)
    database: str = field(default="stash", kw_only=True, validator=_check_database)
    codec: Codec = field(factory=PickleCodec, kw_only=True, converter=as_codec, validator=check_codec)
    durability: Durability = field(default="rename", kw_only=True, converter=check_durability)
    map_size: int = field(default=1 << 26, kw_only=True, validator=_check_map_size)
    _file: str = field(init=False, repr=False)
    _place: str = field(init=False, repr=False)
    _locks: KeyLocks = field(init=False, repr=False)
    _table: Table = field(init=False, repr=False)
    _companions: dict[str, LmdbStash[Any]] = field(init=False, repr=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._file = os.path.abspath(self.path)
        self._place = f"{self._file}\0database {self.database}"
        self._locks = KeyLocks.beside(self._file)
        self._connect()

    def _connect(self) -> None:
        # Here, so that importing this module does not need lmdb.
        from zpersist.stores.table import Table

        self._table = Table(self._file, self.database, map_size=self.map_size, synced=self.durability == "fsync")

    def close(self) -> None:
        """Let go of the environment, which is closed when no stash uses it; the next use opens it again."""
        for beside in tuple(self._companions.values()):
            beside.close()
        self._table.close()

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__ | {"_companions": {}}
        del state["_table"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._connect()

    # values

    def _encode(self, name: str, inst: V) -> bytes:
        (data,) = pack(self.codec.bound(self._place, name), inst, name, tag=name, out_of_band=False)
        return bytes(data)

    def _decode(self, name: str, data: bytes) -> V:
        return unpack(data, self.codec.bound(self._place, name), name, self._file)  # type: ignore[no-any-return]

    def _fetch(self, name: str) -> V | Missing:
        data = self._table.get(check_str_key(name).encode())
        return MISSING if data is None else self._decode(name, data)

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key."""
        self._table.put(check_str_key(name).encode(), self._encode(name, inst))

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        return self._table.delete(check_str_key(name).encode())

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        return self._table.has(check_str_key(name).encode())

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        return self._table.add(check_str_key(name).encode(), self._encode(name, inst))

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it; the function is called again if another one was faster."""
        key = check_str_key(name).encode()
        while True:
            # No transaction is open meanwhile: the function may take long, fork, or use another stash.
            old = self._table.get(key)
            value = fn(default if old is None else self._decode(name, old))
            data = self._encode(name, value)
            if self._table.add(key, data) if old is None else self._table.swap(key, old, data):
                return value

    def _repair(self, name: str, repair: Repair) -> bool:
        key = name.encode()
        data = self._table.get(key)
        if data is None or not is_damaged(lambda: self._decode(name, data), lambda: data):
            return False
        if repair == "quarantine":
            self._companion(QUARANTINE)._lay_aside(key, data)
        return self._table.remove(key, data)

    def _lay_aside(self, key: bytes, data: bytes) -> None:
        # Under its own name, or with a number behind if there is such a one already.
        keys = (b"%s.%d" % (key, number) if number else key for number in count())
        next(place for place in keys if self._table.add(place, data))

    # many at once

    def keys(self) -> Iterator[str]:
        """Iterate over the keys in code-point order, a thousand at a time."""
        return self.scan()

    @native
    def scan(
        self, prefix: str = "", *, after: str | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[str]:
        """Iterate over keys in code-point order; see :meth:`Stash.scan`."""
        check_limit(limit)
        names = (self._name(key) for key in self._pages(prefix, after, reverse, _BATCH, limit))
        return names if limit is None else islice(names, limit)

    @native
    def items(self) -> Iterator[tuple[str, V]]:
        """Iterate over keys with their values in code-point order."""
        for key, data in self._pages("", None, False, _BATCH_OF_VALUES, None, values=True):
            name = self._name(key)
            yield name, self._decode(name, data)

    def _name(self, key: bytes) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError as err:
            raise CorruptValueError(f"{self._file} is damaged: {key!r} is no key; restore it from a copy") from err

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

    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return self._locks.hold(f"{self.database} {purpose} {check_str_key(name)}")

    def _beside(self, purpose: str) -> str:
        return f"{self.database}__{purpose}"

    def _claims(self) -> Claims | None:
        return self._locks.claims(f"{self.database}:fill")

    def _companion(self, purpose: str) -> LmdbStash[Any]:
        with _making:
            if purpose not in self._companions:
                self._companions[purpose] = LmdbStash(
                    self._file,
                    database=self._beside(purpose),
                    codec=self.codec,
                    durability=self.durability,
                    map_size=self.map_size,
                )
            return self._companions[purpose]
