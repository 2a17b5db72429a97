"""After a power cut a database holds what it held at some moment; with ``durability="fsync"`` nothing is lost.

Unlike a stash of files, a database is whole also *without* syncs: only its last transactions may be gone, in order.
"""

from __future__ import annotations

import itertools

import pytest

from tests.faults.databases import BROKEN, DATABASES, SCRIPTS, Examination, record, write_on

#: How many states are drawn after each call: of every seed others.
FEW, MANY = 2, 8


def examined(preloaded, folder, kind, durability, name, seed, count, broken=""):
    print(f"seed {seed}")
    place = folder / "here"
    told = preloaded.run(record, kind, durability, name, str(place), broken)
    return Examination(kind, durability, name, told, place).run(seed, count)


def cases():
    for kind, durability, name in itertools.product(DATABASES, ("rename", "fsync"), SCRIPTS):
        yield pytest.param(kind, durability, name, 1, FEW, marks=pytest.mark.slow if name == "turns" else ())
        yield pytest.param(kind, durability, name, 2, MANY, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind, durability, name, seed, count", list(cases()))
def test_a_power_cut_leaves_a_database_whole(kind, durability, name, seed, count, preloaded, scratch):
    wrong, states = examined(preloaded, scratch, kind, durability, name, seed, count)
    assert not wrong, "\n".join(wrong[:5])
    assert states > 20, "there was nothing that could be lost"


def test_lmdb_does_not_write_on_after_a_sync_has_failed(preloaded, scratch):
    told = preloaded.run(write_on, str(scratch), False)
    assert told == ["StorageError 5", "old", "StorageError 5", "old", "last"]


def test_who_writes_on_is_found_out(preloaded, scratch):
    assert preloaded.run(write_on, str(scratch), True)[2] == "next"


# it can fail: databases that are opened in ways that are in use


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_database_is_found_out(broken, preloaded, scratch):
    kind, durability, name, _, says = BROKEN[broken]
    wrong, _ = examined(preloaded, scratch, kind, durability, name, 1, 3 * MANY, broken)
    assert says in "\n".join(wrong)
