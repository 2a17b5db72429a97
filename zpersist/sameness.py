"""Whether two values are the same, also those that can't say so themselves."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import zip_longest
from types import CellType, FunctionType
from typing import Any

__all__ = ["is_same"]

_ABSENT = object()
_SCALARS = (int, float, str, bytes, bool, type(None), complex, bytearray, range)


def is_same(one: object, other: object) -> bool:
    """Return whether two values are of one type and equal; of objects that can't tell, whether their parts are.

    Parameters
    ----------
    one, other :
        The values.  The parts of an object are what it is pickled by.
    """
    return _Comparison().same(one, other)


class _Comparison:
    """One comparison; remembers what is being compared, for a value may hold itself."""

    def __init__(self) -> None:
        # While a pair is being compared it counts as the same; then it is what came out.
        self._verdicts: dict[tuple[int, int], bool] = {}
        # What was made for the comparison, and must not be given an id that was seen.
        self._alive: list[object] = []

    def same(self, one: Any, other: Any) -> bool:
        if one is other:
            return True
        if type(one) is not type(other):
            return False
        kind = type(one)
        if kind in _SCALARS:
            # Of floats, one that is not a number isn't even equal to itself, and 0.0 is to -0.0.
            return bool(one == other if kind is not float else repr(one) == repr(other))
        pair = id(one), id(other)
        if pair in self._verdicts:
            return self._verdicts[pair]
        before = len(self._verdicts)
        self._verdicts[pair] = True
        self._alive += (one, other)
        if self._same_inside(kind, one, other):
            return True
        # What was found meanwhile may rest on the assumption that this pair is the same.
        for later in list(self._verdicts)[before:]:
            del self._verdicts[later]
        self._verdicts[pair] = False
        return False

    def _same_inside(self, kind: type, one: Any, other: Any) -> bool:
        if kind in (list, tuple):
            return len(one) == len(other) and all(map(self.same, one, other))
        if kind is dict:
            return self._same_dicts(one, other)
        if kind in (set, frozenset):
            return self._same_dicts(dict.fromkeys(one), dict.fromkeys(other))
        if kind in (pickle.PickleBuffer, memoryview):
            mine, others = memoryview(one), memoryview(other)
            return (mine.format, mine.shape, mine.tobytes()) == (others.format, others.shape, others.tobytes())
        if kind is FunctionType:
            return self.same(_parts_of_function(one), _parts_of_function(other))
        return self._say_so(one, other) or self._same_parts(one, other)

    def _say_so(self, one: Any, other: Any) -> bool:
        try:
            said = one == other
        except Exception:  # noqa: BLE001 - an array can't tell; whatever others raise, their parts will
            return False
        # What is no bool is an array's answer, for each element.
        return type(said) is bool and said

    def _same_dicts(self, one: dict[Any, Any], other: dict[Any, Any]) -> bool:
        if len(one) != len(other):
            return False
        # Keys of different types may be equal, and a key may be equal to nothing but itself.
        left = {(type(key), key): (key, value) for key, value in other.items()}
        alone = []
        for key, value in one.items():
            found = left.pop((type(key), key), None)
            if found is None:
                alone.append((key, value))
            elif not (self.same(key, found[0]) and self.same(value, found[1])):
                return False
        return self._same_each(alone, list(left.values()))

    def _same_each(self, one: list[Any], left: list[Any]) -> bool:
        for element in one:
            found = next((number for number, rest in enumerate(left) if self.same(element, rest)), None)
            if found is None:
                return False
            del left[found]
        return True

    def _same_parts(self, one: Any, other: Any) -> bool:
        mine, others = self._parts_of(one), self._parts_of(other)
        if mine is None or others is None:
            return False
        return all(self.same(a, b) for a, b in zip_longest(mine, others, fillvalue=_ABSENT))

    def _parts_of(self, value: Any) -> list[Any] | None:
        try:
            reduced = value.__reduce_ex__(5)
        except Exception:  # noqa: BLE001 - it can't be pickled, so it has no parts
            return None
        if isinstance(reduced, str):
            return None
        parts = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        self._alive.append(parts)
        return parts


def _parts_of_function(function: FunctionType) -> list[Any]:
    cells = [_content_of(cell) for cell in function.__closure__ or ()]
    return [function.__qualname__, function.__code__, function.__defaults__, function.__kwdefaults__, cells]


def _content_of(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # Nothing was assigned to the variable yet.
        return _ABSENT
