"""Writers that write for ever, and tell in shared memory what they are at: whatever ends them, that is known."""

from __future__ import annotations

import itertools
import mmap
import struct

ABSENT = "nothing is there"
KEYS = ("1", "2", "3")


class Diary:
    """What a writer is at and what it has done: the last turn of each key, in memory that outlives the writer."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 16 * len(KEYS))

    def __getitem__(self, key):
        """Return the turn that was begun last, and the one that was finished last."""
        return struct.unpack_from("qq", self._memory, 16 * KEYS.index(key))

    def begin(self, key, turn):
        struct.pack_into("q", self._memory, 16 * KEYS.index(key), turn)

    def finish(self, key, turn):
        struct.pack_into("q", self._memory, 16 * KEYS.index(key) + 8, turn)


def value_of(store, turn):
    """Return what is kept in a turn; in some the key is deleted."""
    return ABSENT if turn % 7 == 0 else store.value([turn, "x" * (turn % 5 * 3000)])


def write(store, make, folder, diary, start):
    """Write for ever."""
    with make(folder) as stash:
        for turn in itertools.count(start):
            key = KEYS[turn % len(KEYS)]
            value = value_of(store, turn)
            diary.begin(key, turn)
            if value == ABSENT:
                stash.delete(key)
            elif turn % 5 == 0 and "update" in store.extra:
                stash.update(key, lambda old, value=value: value)
            else:
                stash.dump(key, value)
            diary.finish(key, turn)
