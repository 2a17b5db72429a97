"""A page of the keys in an LMDB database, short and long ones in one order."""

from __future__ import annotations

from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from zpersist.stores.longkeys import MAX_SHORT, LongKeys

if TYPE_CHECKING:
    from lmdb import Transaction

__all__ = ["page", "set_at"]

_first = itemgetter(0)


def page(
    txn: Transaction[bytes],
    long: LongKeys,
    low: bytes,
    high: bytes | None,
    *,
    reverse: bool,
    count: int,
    values: bool,
) -> list[Any]:
    """Return the first ``count`` keys in ``low <= key < high``, or the pairs of keys and values, in order."""
    cursor: Any = txn.cursor()
    if reverse:
        at = _before(cursor, high)
        found: Any = cursor.iterprev(True, values) if at else ()
    else:
        found = cursor.iternext(True, values) if set_at(cursor, low) else ()
    key_of = _first if values else bytes
    chosen: list[Any] = list(islice(found, count))
    # Only the last page may have keys beyond the bound.
    while chosen and (key_of(chosen[-1]) < low if reverse else high is not None and key_of(chosen[-1]) >= high):
        chosen.pop()
    pairs = long.pairs(txn, low, high, reverse)
    more: list[Any] = [pair if values else pair[0] for pair in islice(pairs, count)]
    if more:
        chosen = list(islice(merge(chosen, more, key=key_of, reverse=reverse), count))
    return chosen


def set_at(cursor: Any, low: bytes) -> bool:
    """Put a cursor on the first key from ``low`` on."""
    if not cursor.set_range(low[:MAX_SHORT]):
        return False
    # The start of a longer bound comes before it.
    return cursor.key() >= low or cursor.next()  # type: ignore[no-any-return]


def _before(cursor: Any, high: bytes | None) -> bool:
    """Put a cursor on the last key before ``high``."""
    if high is None or not cursor.set_range(high[:MAX_SHORT]):
        return cursor.last()  # type: ignore[no-any-return]
    return cursor.key() < high or cursor.prev()  # type: ignore[no-any-return]
