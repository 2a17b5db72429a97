"""Keys that are longer than LMDB takes: all that begin alike lie in one record, in order.

LMDB takes keys of 511 bytes, zpersist of 1,024.  A record holds the rests of the keys with their values::

    u16 length of the rest, u64 length of the value, rest, value; and so on, in the order of the rests

It is enveloped as a value is, so that damage is noticed.  Each change writes the whole record: long keys are kept
right, not fast.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zpersist.codecs import Codec
from zpersist.errors import CorruptValueError
from zpersist.files.envelope import pack, unpack

if TYPE_CHECKING:
    from lmdb import Transaction, _Database

__all__ = ["MAX_SHORT", "LongKeys"]

#: The longest key, in bytes, that LMDB takes itself.
MAX_SHORT = 511

_HEAD = struct.Struct("<HQ")
_TAG = "long keys"

Pair = tuple[bytes, bytes]


class _RecordCodec(Codec):
    """Turns a dict of rests and values into bytes and back."""

    id = "zpersist-long-keys"

    def dumps(self, value: Any) -> bytes:
        parts: list[bytes] = []
        for rest, data in sorted(value.items()):
            parts += (_HEAD.pack(len(rest), len(data)), rest, data)
        return b"".join(parts)

    def loads(self, data: bytes | bytearray | memoryview) -> dict[bytes, bytes]:
        data = bytes(data)
        found, at = {}, 0
        while at < len(data):
            rest_length, length = _HEAD.unpack_from(data, at)
            start = at + _HEAD.size
            at = start + rest_length + length
            found[data[start : start + rest_length]] = data[start + rest_length : at]
        return found


_CODEC = _RecordCodec()


class LongKeys:
    """The long keys of a table.

    Parameters
    ----------
    db :
        The database that holds the records.
    place :
        Names it in errors.
    """

    def __init__(self, db: _Database, place: str) -> None:
        self.db = db
        self._place = place

    def _record(self, txn: Transaction[bytes], start: bytes) -> dict[bytes, bytes]:
        data = self.raw(txn, start)
        return {} if data is None else self._read(start, data)

    def _read(self, start: bytes, data: Any) -> dict[bytes, bytes]:
        place = f"{self._place} (all keys that begin with {start!r})"
        found: dict[bytes, bytes] = unpack(data, _CODEC, _TAG, place)
        if len(start) != MAX_SHORT or not found or b"" in found:
            raise CorruptValueError(
                f"{_TAG!r} in {place} is damaged: no key is as long as that; restore it from a copy"
            )
        return found

    def raw(self, txn: Transaction[bytes], start: bytes) -> bytes | None:
        """Return a record as it is kept."""
        return txn.get(start, db=self.db)

    def keys(self, txn: Transaction[bytes], start: bytes) -> list[bytes]:
        """Return the keys of a record."""
        return [start + rest for rest in self._record(txn, start)]

    def _write(self, txn: Transaction[bytes], start: bytes, record: dict[bytes, bytes]) -> None:
        if record:
            (data,) = pack(_CODEC, record, self._place, tag=_TAG, out_of_band=False)
            txn.put(start, data, db=self.db)
        else:
            txn.delete(start, db=self.db)

    def get(self, txn: Transaction[bytes], key: bytes) -> bytes | None:
        """Return what is kept under a key."""
        return self._record(txn, key[:MAX_SHORT]).get(key[MAX_SHORT:])

    def put(self, txn: Transaction[bytes], key: bytes, data: bytes, *, overwrite: bool = True) -> bool:
        """Keep something under a key, and return whether it was kept."""
        record = self._record(txn, key[:MAX_SHORT])
        if not overwrite and key[MAX_SHORT:] in record:
            return False
        record[key[MAX_SHORT:]] = data
        self._write(txn, key[:MAX_SHORT], record)
        return True

    def delete(self, txn: Transaction[bytes], key: bytes) -> bool:
        """Remove a key, and return whether it was there."""
        record = self._record(txn, key[:MAX_SHORT])
        if record.pop(key[MAX_SHORT:], None) is None:
            return False
        self._write(txn, key[:MAX_SHORT], record)
        return True

    def count(self, txn: Transaction[bytes]) -> int:
        """Return how many long keys there are."""
        if not txn.stat(self.db)["entries"]:
            return 0
        return sum(len(self._read(start, data)) for start, data in txn.cursor(self.db).iternext())

    def pairs(self, txn: Transaction[bytes], low: bytes, high: bytes | None, reverse: bool) -> Iterator[Pair]:
        """Iterate over what lies in ``low <= key < high``, in order."""
        if not txn.stat(self.db)["entries"]:
            return
        cursor = txn.cursor(self.db)
        if reverse:
            # A record that starts as the bound does may have keys on both sides of it.
            found = cursor.last() if high is None or not cursor.set_range(high[:MAX_SHORT]) else True
            records = cursor.iterprev() if found else iter(())
        else:
            records = cursor.iternext() if cursor.set_range(low[:MAX_SHORT]) else iter(())
        for start, data in records:
            if (start < low[:MAX_SHORT]) if reverse else (high is not None and start > high[:MAX_SHORT]):
                return
            for rest, value in sorted(self._read(start, data).items(), reverse=reverse):
                key = start + rest
                if low <= key and (high is None or key < high):
                    yield key, value
