"""Many small values in one SQLite database."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from attrs import define, field

from zpersist.chunking import chunks
from zpersist.errors import CorruptValueError, InvalidArgumentError
from zpersist.keys import MAX_KEY_BYTES, check_str_key, key_in
from zpersist.stash import COMPANIONS, check_limit, native, pairs_of
from zpersist.stores.cells import CellStash, Stray, check_part
from zpersist.stores.connection import FAULTS, Connection, check_timeout

__all__ = ["SqliteStash"]

V = TypeVar("V")

_BATCH = 1000
#: So many characters are never too many bytes.
_SURELY_SHORT = MAX_KEY_BYTES // 4
_SURROGATES = re.compile("[\ud800-\udfff]")

# Of a cell as it is; of one with nothing in it, that a flipped bit can leave, no bytes.
_BYTES = "coalesce(CAST(value AS BLOB), x'')"


def _check_table(stash: object, attribute: object, table: object) -> None:
    check_part("table", table, 48)
    if str(table).lower().startswith("sqlite_"):
        raise InvalidArgumentError(
            f"table must not start with sqlite_, as those of SQLite itself do, as {table!r} does"
        )


def _after_prefix(prefix: str) -> str | None:
    """Return the first string, in code-point order, after all that start with the prefix."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)


def _unsurrogated(bound: str) -> str:
    """Return the same bound without surrogates: no key has one, and U+E000 is the first code point after them."""
    found = _SURROGATES.search(bound)
    return bound if found is None else bound[: found.start()] + "\ue000"


@define(slots=False, eq=False)
class SqliteStash(CellStash[V]):
    """Keeps values in a table of an SQLite database: the embedded default for many small values.

    The database is in write-ahead mode, so that readers and a writer don't wait for each other.

    Parameters
    ----------
    path :
        The file of the database.  A relative one is taken from the working directory at construction.
    table :
        The table; each table is a stash of its own.  SQLite takes capitals for small letters in its name.
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
        SQLite or the operating system refused; what was there is untouched.  The table is not one of ours.  The file
        was deleted or replaced while it was open.  A signal handler writes in the middle of a write of its thread.

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

    _kind = "table"

    table: str = field(default="stash", kw_only=True, validator=_check_table)
    timeout: float = field(default=60.0, kw_only=True, validator=check_timeout)
    _db: Connection = field(init=False, repr=False)

    @property
    def _part(self) -> str:
        return self.table

    def _connect(self) -> None:
        table = f'"{self.table}"'
        self._db = Connection(self._file, self.table, durability=self.durability, timeout=self.timeout)
        # No part of them is a user's: the name of the table has been checked.
        self._select = f"SELECT CAST(value AS BLOB) FROM {table} WHERE key=?"  # noqa: S608
        self._remove = f"DELETE FROM {table} WHERE key=?"  # noqa: S608
        self._probe = f"SELECT 1 FROM {table} WHERE key=?"  # noqa: S608
        self._insert = f"INSERT INTO {table} VALUES (?, ?) ON CONFLICT (key) DO NOTHING"  # noqa: S608
        self._upsert = f"INSERT INTO {table} VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value"  # noqa: S608

    def _disconnect(self) -> None:
        self._db.close()

    def _sibling(self, part: str) -> SqliteStash[Any]:
        return SqliteStash(self._file, table=part, codec=self.codec, durability=self.durability, timeout=self.timeout)

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        super().close()

    def _run(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        return self._db.read(sql.replace("$table", f'"{self.table}"'), values)

    def _change(self, sql: str, values: Sequence[object] = ()) -> int:
        return self._db.write(sql.replace("$table", f'"{self.table}"'), values)

    # one cell

    def _cell(self, name: str) -> bytes | None:
        db = self._db
        try:
            with db.lock:
                row = db.execute(self._select, (name,)).fetchone()
        except FAULTS as err:
            raise db.translate(err) from err
        if row is None:
            return None
        # A flipped bit can leave a cell with nothing in it.
        return b"" if row[0] is None else row[0]

    def _cell_is_there(self, name: str) -> bool:
        return bool(self._db.read(self._probe, (name,)))

    def _cell_set(self, name: str, data: bytes) -> None:
        self._db.write(self._upsert, (name, data))

    def _cell_add(self, name: str, data: bytes) -> bool:
        return self._db.write(self._insert, (name, data)) > 0

    def _cell_swap(self, name: str, old: bytes, new: bytes) -> bool:
        return self._change(f"UPDATE $table SET value=? WHERE key=? AND {_BYTES}=?", (new, name, old)) > 0  # noqa: S608

    def _cell_drop(self, name: str, old: bytes) -> bool:
        return self._change(f"DELETE FROM $table WHERE key=? AND {_BYTES}=?", (name, old)) > 0  # noqa: S608

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        return self._db.write(self._remove, (check_str_key(name),)) > 0

    # cells that have no key

    def _cell_names(self, stray: Callable[[Stray], object]) -> Iterator[str]:
        columns = "rowid, CAST(key AS BLOB), typeof(key)='text'"
        start = -(1 << 63)
        while True:
            select = f"SELECT {columns} FROM $table WHERE rowid >= ? ORDER BY rowid LIMIT {_BATCH}"  # noqa: S608
            rows = self._run(select, (start,))
            for row, key, is_text in rows:
                # What is of another type is not found, whatever its bytes say.
                name = key_in(key) if is_text else None
                if name is None:
                    stray(Stray((row, key), key or b"", self._no_key(key)))
                else:
                    yield name
            if len(rows) < _BATCH:
                return
            start = rows[-1][0] + 1

    def _cell_of(self, stray: Stray) -> bytes | None:
        rows = self._run(
            f"SELECT {_BYTES} FROM $table WHERE rowid=? AND CAST(key AS BLOB) IS ?",  # noqa: S608
            stray.place,
        )
        return rows[0][0] if rows else None

    def _cell_drop_stray(self, stray: Stray, old: bytes) -> bool:
        where = f"rowid=? AND CAST(key AS BLOB) IS ? AND {_BYTES}=?"
        return self._change(f"DELETE FROM $table WHERE {where}", (*stray.place, old)) > 0  # noqa: S608

    # many at once

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
        if _unsurrogated(prefix) != prefix:
            return
        low, op = prefix, ">="
        high = _after_prefix(prefix)
        if after is not None:
            after, exact = _unsurrogated(after), after
            if reverse:
                high = after if high is None else min(after, high)
            elif after >= prefix:
                low, op = after, ">" if after == exact else ">="
        # By pages, so that no cursor stays open while others write.
        while True:
            bound, values = ("", [low]) if high is None else (" AND key < ?", [low, high])
            rows = self._page(
                f"SELECT {columns} FROM $table WHERE key {op} ?{bound} "  # noqa: S608 - no part of it is a user's
                f"ORDER BY key{' DESC' if reverse else ''} LIMIT {_BATCH}",
                values,
            )
            for row in rows:
                key = row[0]
                if type(key) is not str:
                    raise self._no_key(key)
                # What is not surely a key is looked at.
                if not 0 < len(key) <= _SURELY_SHORT:
                    self._key(key)
                yield row
            if len(rows) < _BATCH:
                return
            if reverse:
                high = rows[-1][0]
            else:
                low, op = rows[-1][0], ">"

    def _page(self, sql: str, values: Sequence[object]) -> list[Any]:
        try:
            return self._run(sql, values)
        except CorruptValueError as err:
            # SQLite does not tell the bytes of a key that is no text.
            strays: list[Stray] = []
            deque(self._cell_names(strays.append), maxlen=0)
            if strays:
                raise strays[0].error from err
            raise

    @native
    def dump_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]]) -> None:
        """Keep many values, a thousand in one transaction."""
        rows = ((check_str_key(name), self._encode(name, inst)) for name, inst in pairs_of(items))
        for batch in chunks(rows, _BATCH):
            self._db.write_many(self._upsert, batch)

    @native
    def load_many(self, names: Iterable[str]) -> dict[str, V]:
        """Return the values of those keys that are there."""
        found: dict[str, V] = {}
        for batch in chunks(map(check_str_key, names), _BATCH):
            marks = ", ".join("?" * len(batch))
            rows = self._run(f"SELECT key, CAST(value AS BLOB) FROM $table WHERE key IN ({marks})", batch)  # noqa: S608
            found.update((key, self._decode(key, data)) for key, data in rows)
        return found

    @native
    def delete_many(self, names: Iterable[str]) -> int:
        """Remove many keys, a thousand in one transaction, and return how many were there."""
        rows = ((check_str_key(name),) for name in names)
        return sum(self._db.write_many(self._remove, batch) for batch in chunks(rows, _BATCH))

    @native
    def clear(self) -> None:
        """Delete everything, in one transaction."""
        self._change("DELETE FROM $table")
        self._cleared()

    def _cleared(self) -> None:
        for purpose in COMPANIONS:
            if self._run("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", (self._beside(purpose),)):
                self._change(f'DELETE FROM "{self._beside(purpose)}"')  # noqa: S608 - a table of ours

    @native
    def __len__(self) -> int:
        return int(self._run("SELECT count(*) FROM $table")[0][0])

    @native
    def __bool__(self) -> bool:
        return bool(self._run("SELECT 1 FROM $table LIMIT 1"))
