"""Many small values in one SQLite database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field, setters

from zpersist.chunking import chunks
from zpersist.codecs import Codec, PickleCodec, as_codec, check_codec
from zpersist.damage import QUARANTINE, Repair, is_damaged
from zpersist.errors import CorruptValueError, InvalidArgumentError
from zpersist.files.atomic import Durability, check_durability
from zpersist.files.envelope import pack, unpack
from zpersist.files.locks import Claims, KeyLocks
from zpersist.files.paths import as_path
from zpersist.keys import check_str_key
from zpersist.stash import COMPANIONS, MISSING, CloseableStash, Missing, check_limit, native, pairs_of
from zpersist.stores.connection import FAULTS, Connection, check_timeout

__all__ = ["SqliteStash"]

V = TypeVar("V")

_BATCH = 1000


def _check_table(stash: object, attribute: object, table: object) -> None:
    if not (isinstance(table, str) and table.isascii() and table.isidentifier() and len(table) <= 48):
        raise InvalidArgumentError(
            f"table must be ASCII letters, digits and underscores, at most 48 and no digit in front, not {table!r}"
        )


def _after_prefix(prefix: str) -> str | None:
    """Return the first string, in code-point order, after all that start with the prefix."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)


@define(slots=False, eq=False)
class SqliteStash(CloseableStash[V]):
    """Keeps values in a table of an SQLite database: the embedded default for many small values.

    The database is in write-ahead mode, so that readers and a writer don't wait for each other.

    Parameters
    ----------
    path :
        The file of the database.  A relative one is taken from the working directory at construction.
    table :
        The table; each table is a stash of its own.
    codec :
        Turns values into bytes and back; also the name of one, such as ``"dill"``.
    durability :
        ``"rename"``: the database is always whole, and the last values may be lost in a power cut
        (``synchronous=NORMAL``); ``"fsync"``: a value is on the disk when ``dump`` returns (``FULL``).
    timeout :
        The most seconds to wait for other writers.

    Raises
    ------
    CorruptValueError
        By any operation: the database or the value is damaged.
    StorageError
        SQLite or the operating system refused; what was there is untouched.

    Notes
    -----
    *Concurrency*: each operation is atomic among threads and processes of one host, on a local file system;
    threads take turns.  ``dump_many`` and ``delete_many`` are atomic by the thousand.  Keys come in code-point
    order.
    *Durability*: a killed process harms nothing; for a power cut see ``durability``.
    *Trust*: that of the codec, for everybody who may write to the file.

    Examples
    --------
    >>> with SqliteStash("features.db") as stash:
    ...     stash.dump_many({"b": 2, "a": 1})
    ...     list(stash.scan(limit=1)), stash.update("a", lambda n: n + 1)
    (['a'], 2)
    """

    shared = True
    durable = True
    ordered = True
    _batches = True

    path: Path = field(converter=as_path, on_setattr=setters.frozen)
    table: str = field(default="stash", kw_only=True, validator=_check_table)
    codec: Codec = field(factory=PickleCodec, kw_only=True, converter=as_codec, validator=check_codec)
    durability: Durability = field(default="rename", kw_only=True, converter=check_durability)
    timeout: float = field(default=60.0, kw_only=True, validator=check_timeout)
    _file: str = field(init=False, repr=False)
    _place: str = field(init=False, repr=False)
    _locks: KeyLocks = field(init=False, repr=False)
    _db: Connection = field(init=False, repr=False)
    _companions: dict[str, SqliteStash[Any]] = field(init=False, repr=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._file = os.path.abspath(self.path)
        self._place = f"{self._file}\0table {self.table}"
        self._locks = KeyLocks.beside(self._file)
        table = f'"{self.table}"'
        self._db = Connection(
            self._file,
            f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL)",
            durability=self.durability,
            timeout=self.timeout,
        )
        # No part of them is a user's: the name of the table has been checked.
        self._select = f"SELECT CAST(value AS BLOB) FROM {table} WHERE key=?"  # noqa: S608
        self._remove = f"DELETE FROM {table} WHERE key=?"  # noqa: S608
        self._probe = f"SELECT 1 FROM {table} WHERE key=?"  # noqa: S608
        self._swap = f"UPDATE {table} SET value=? WHERE key=? AND CAST(value AS BLOB)=?"  # noqa: S608
        self._upsert = f"INSERT INTO {table} VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value"  # noqa: S608

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        for beside in tuple(self._companions.values()):
            beside.close()
        self._db.close()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_companions": {}}

    def _run(self, sql: str, values: Sequence[object] = ()) -> tuple[list[Any], int]:
        return self._db.run(sql.replace("$table", f'"{self.table}"'), values)

    # values

    def _encode(self, name: str, inst: V) -> bytes:
        (data,) = pack(self.codec.bound(self._place, name), inst, name, tag=name, out_of_band=False)
        return bytes(data)

    def _decode(self, name: str, data: bytes) -> V:
        return unpack(data, self.codec.bound(self._place, name), name, self._file)  # type: ignore[no-any-return]

    def _fetch(self, name: str) -> V | Missing:
        check_str_key(name)
        db = self._db
        try:
            with db.lock:
                row = db.execute(self._select, (name,)).fetchone()
        except FAULTS as err:
            raise db.translate(err) from err
        return MISSING if row is None else self._decode(name, row[0])

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key."""
        self._db.run_one(self._upsert, (check_str_key(name), self._encode(name, inst)))

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        return self._db.run(self._remove, (check_str_key(name),))[1] > 0

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        return self._db.run_one(self._probe, (check_str_key(name),)) is not None

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        row = (check_str_key(name), self._encode(name, inst))
        return self._run("INSERT INTO $table VALUES (?, ?) ON CONFLICT (key) DO NOTHING", row)[1] > 0

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it; the function is called again if another one was faster."""
        while True:
            # No transaction is open meanwhile: the function may take long, fork, or use another stash.
            row = self._db.run_one(self._select, (check_str_key(name),))
            value = fn(default if row is None else self._decode(name, row[0]))
            if row is None:
                done = self.add(name, value)
            else:
                done = self._db.run(self._swap, (self._encode(name, value), name, row[0]))[1] > 0
            if done:
                return value

    def _repair(self, name: str, repair: Repair) -> bool:
        row = self._db.run_one(self._select, (name,))
        if row is None or not is_damaged(lambda: self._decode(name, row[0]), lambda: bytes(row[0])):
            return False
        if repair == "quarantine":
            self._companion(QUARANTINE)._lay_aside(name, row[0])
        return self._run("DELETE FROM $table WHERE key=? AND CAST(value AS BLOB)=?", (name, row[0]))[1] > 0

    def _lay_aside(self, name: str, data: bytes) -> None:
        # Under its own name, or with a number behind if there is such a one already.
        rows = ((f"{name}.{number}" if number else name, data) for number in count())
        insert = "INSERT INTO $table VALUES (?, ?) ON CONFLICT (key) DO NOTHING"
        next(row for row in rows if self._run(insert, row)[1])

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
        names = (row[0] for row in self._rows("key", prefix, after, reverse))
        return names if limit is None else islice(names, limit)

    @native
    def items(self) -> Iterator[tuple[str, V]]:
        """Iterate over keys with their values in code-point order."""
        return ((key, self._decode(key, data)) for key, data in self._rows("key, CAST(value AS BLOB)", "", None, False))

    def _rows(self, columns: str, prefix: str, after: str | None, reverse: bool) -> Iterator[Any]:
        low, op = prefix, ">="
        high = _after_prefix(prefix)
        if after is not None and reverse:
            high = after if high is None else min(after, high)
        elif after is not None and after >= prefix:
            low, op = after, ">"
        # By pages, so that no cursor stays open while others write.
        while True:
            bound, values = ("", [low]) if high is None else (" AND key < ?", [low, high])
            rows, _ = self._run(
                f"SELECT {columns} FROM $table WHERE key {op} ?{bound} "  # noqa: S608 - no part of it is a user's
                f"ORDER BY key{' DESC' if reverse else ''} LIMIT {_BATCH}",
                values,
            )
            for row in rows:
                if not isinstance(row[0], str):
                    raise CorruptValueError(f"{self._file} is damaged: {row[0]!r} is no key; restore it from a copy")
                yield row
            if len(rows) < _BATCH:
                return
            if reverse:
                high = rows[-1][0]
            else:
                low, op = rows[-1][0], ">"

    @native
    def dump_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]]) -> None:
        """Keep many values, a thousand in one transaction."""
        rows = ((check_str_key(name), self._encode(name, inst)) for name, inst in pairs_of(items))
        for batch in chunks(rows, _BATCH):
            self._db.run_many(self._upsert, batch)

    @native
    def load_many(self, names: Iterable[str]) -> dict[str, V]:
        """Return the values of those keys that are there."""
        found: dict[str, V] = {}
        for batch in chunks(map(check_str_key, names), _BATCH):
            marks = ", ".join("?" * len(batch))
            rows, _ = self._run(f"SELECT key, CAST(value AS BLOB) FROM $table WHERE key IN ({marks})", batch)  # noqa: S608
            found.update((key, self._decode(key, data)) for key, data in rows)
        return found

    @native
    def delete_many(self, names: Iterable[str]) -> int:
        """Remove many keys, a thousand in one transaction, and return how many were there."""
        rows = ((check_str_key(name),) for name in names)
        return sum(self._db.run_many(self._remove, batch) for batch in chunks(rows, _BATCH))

    @native
    def clear(self) -> None:
        """Delete everything, in one transaction."""
        self._run("DELETE FROM $table")
        self._cleared()

    def _cleared(self) -> None:
        for purpose in COMPANIONS:
            there, _ = self._run("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", (self._beside(purpose),))
            if there:
                self._run(f'DELETE FROM "{self._beside(purpose)}"')  # noqa: S608 - a table of ours

    @native
    def __len__(self) -> int:
        return int(self._run("SELECT count(*) FROM $table")[0][0][0])

    @native
    def __bool__(self) -> bool:
        return bool(self._run("SELECT 1 FROM $table LIMIT 1")[0])

    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return self._locks.hold(f"{self.table} {purpose} {check_str_key(name)}")

    def _beside(self, purpose: str) -> str:
        return f"{self.table}__{purpose}"

    def _claims(self) -> Claims | None:
        return self._locks.claims(f"{self.table}:fill")

    def _companion(self, purpose: str) -> SqliteStash[Any]:
        with self._db.lock:
            if purpose not in self._companions:
                self._companions[purpose] = SqliteStash(
                    self._file,
                    table=self._beside(purpose),
                    codec=self.codec,
                    durability=self.durability,
                    timeout=self.timeout,
                )
            return self._companions[purpose]
