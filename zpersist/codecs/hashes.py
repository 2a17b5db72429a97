"""How long a look-up among keys may take: keys of the same hash are compared with each other, and with all in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

from zpersist.codecs.defaults import defaults_of
from zpersist.codecs.records import is_record

__all__ = ["MAX_EQUAL_HASHES", "check_hashes"]

#: So many bits a number may have that is to be compared with a ``Decimal``: this takes the square of its length.
MAX_BITS = 1 << 12

#: So many keys of one container may have the same hash; of containers in one another, the product counts.
MAX_EQUAL_HASHES = 100

_get = object.__getattribute__


def check_hashes(keys: Collection[object]) -> None:
    """Raise ``ValueError`` if to tell the keys of one container from each other takes too long."""
    hashes = list(map(hash, keys))
    if len(set(hashes)) == len(hashes):
        return
    counts = Counter(hashes)
    look = _Look()
    compared = [key for key, hashed in zip(keys, hashes, strict=True) if counts[hashed] > 1]
    most = max(counts.values()) * max(map(look.at, compared))
    if most > MAX_EQUAL_HASHES:
        raise ValueError(
            f"it is not a container with at most {MAX_EQUAL_HASHES} keys of the same hash, those of containers in it "
            f"multiplied"
        )
    if look.decimal and look.long:
        raise ValueError(
            f"it is not a container in which no number of more than {MAX_BITS} bits has the same hash as a Decimal"
        )


class _Look:
    """A look at keys that are compared."""

    def __init__(self) -> None:
        #: Whether there was a ``Decimal``, into which another number is converted for a comparison.
        self.decimal = False
        #: Whether there was a number for which this takes long.
        self.long = False

    def at(self, value: Any) -> int:
        """Return with how many others each of the smallest parts of a value may have to be compared."""
        # Not isinstance(): it asks an instance for its class.
        kind = type(value)
        if issubclass(kind, Decimal):
            self.decimal = True
        elif issubclass(kind, int):
            self.long = self.long or int.bit_length(value) > MAX_BITS
        elif kind is Fraction:
            self.long = self.long or max(map(int.bit_length, value.as_integer_ratio())) > MAX_BITS
        elif kind in (set, frozenset, dict):
            most = max(Counter(map(hash, value)).values(), default=1) * self._most(value)
            return max(most, self._most(value.values())) if kind is dict else most
        elif kind is list:
            return self._most(value)
        elif issubclass(kind, tuple):
            return self._most(tuple.__iter__(value))
        elif is_record(kind) and not issubclass(kind, Enum):
            return self._most(_get(value, name) for name in defaults_of(kind))
        return 1

    def _most(self, parts: Iterable[Any]) -> int:
        return max(map(self.at, parts), default=1)
