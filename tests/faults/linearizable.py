"""Whether what many processes saw of one key could have happened one after the other.

The search of Wing and Gong (1993) with the memory of Lowe (2017): operations are put into an order in which each has
the result that it had, and none comes before one that had returned when it was called.  An operation whose process
died may have happened at any time after its call, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

ABSENT = "nothing is there"


class Operation(NamedTuple):
    """One call, on one key.

    ``kind``: ``load`` (``result``: what was found), ``dump`` (of ``value``), ``add`` (``result``: whether it was
    added), ``delete`` (``result``: whether it was there), ``update`` (from ``result``, which the function was given
    last, to ``value``).
    """

    kind: str
    called: float
    returned: float = math.inf
    value: Any = None
    result: Any = None

    @property
    def pending(self) -> bool:
        """Whether it never returned."""
        return self.returned == math.inf

    def after(self, state: Any) -> tuple[bool, Any]:
        """Return whether it could have happened in a state, with its result, and the state after it."""
        sure = not self.pending
        match self.kind:
            case "load":
                return not sure or self.result == state, state
            case "dump":
                return True, self.value
            case "add":
                added = state == ABSENT
                return not sure or self.result == added, self.value if added else state
            case "delete":
                return not sure or self.result == (state != ABSENT), ABSENT
            case "update":
                return not sure or self.result == state, self.value
        raise AssertionError(self.kind)


def is_linearizable(history: Iterable[Operation], start: Any = ABSENT) -> bool:
    """Return whether there is an order in which all of it could have happened."""
    operations = sorted((op for op in history if op.kind != "load" or not op.pending), key=lambda op: op.called)
    required = sum(1 << number for number, op in enumerate(operations) if not op.pending)
    seen: set[tuple[int, Any]] = set()
    # What has happened (one bit each), what is there, and the first that has not happened.
    todo: list[tuple[int, Any, int]] = [(0, start, 0)]
    while todo:
        happened, state, first = todo.pop()
        if happened & required == required:
            return True
        while happened >> first & 1:
            first += 1
        limit = math.inf
        for number in range(first, len(operations)):
            op = operations[number]
            if op.called > limit:
                break
            if happened >> number & 1:
                continue
            limit = min(limit, op.returned)
            possible, after = op.after(state)
            if possible and (happened | 1 << number, after) not in seen:
                seen.add((happened | 1 << number, after))
                todo.append((happened | 1 << number, after, first))
    return False
