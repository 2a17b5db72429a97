"""Whatever call to the operating system fails, and wherever a process is killed, a fresh one finds old or new.

The faults come from outside, below Python, so that they reach the calls of SQLite too; those of ``test_writes.py`` come
from within and run everywhere.  Of each operation of each store every call suffers in turn.
"""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from tests.faults import stores
from tests.faults.shim import MODES, WRITE
from tests.faults.stores import STORES
from tests.faults.sweep import operations, sweep
from zpersist import OutcomeUnknownError, SqliteStash, StorageError
from zpersist.files.atomic import write_file
from zpersist.stores import directory as directory_module
from zpersist.stores.group import GroupStash

#: What is swept each time; all else is in the slow set.
QUICK = {"rename": ("killed", "ENOSPC for ever"), "fsync": ("EIO once",)}


def is_quick(kind, durability, name, mode):
    if (STORES[kind].database and name == "dump large") or (kind == "increment" and name != "append"):
        return False
    return mode in QUICK[durability]


def cases():
    for kind, store in STORES.items():
        for name in operations(store):
            for durability in ("rename", "fsync"):
                for mode in MODES:
                    case = kind, durability, name, mode
                    yield pytest.param(*case, id="-".join(case), marks=() if is_quick(*case) else pytest.mark.slow)


@pytest.mark.parametrize("kind, durability, name, mode", list(cases()))
def test_every_call_suffers(kind, durability, name, mode, preloaded, scratch):
    wrong, calls = preloaded.run(sweep, kind, durability, name, mode, str(scratch))
    assert not wrong, "\n".join(wrong)
    changes = MODES[mode].kinds != WRITE or name.startswith(("dump", "update", "append"))
    assert calls >= (changes and name != "add refused"), "there was nothing to suffer"


# it can fail: stores that are broken on purpose


def in_place(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Cut the old value off, then write the new one."""
    with open(path, "wb", buffering=0) as stream:
        for part in parts:
            stream.write(part)


def keeps_quiet(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Take no notice of errors."""
    with suppress(StorageError):
        write_file(path, parts, durability=durability, place=place)


def sure(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Say that nothing has happened, when it is in its place and can't be synced."""
    try:
        write_file(path, parts, durability=durability, place=place)
    except OutcomeUnknownError as err:
        raise StorageError(err.errno, "can not write (what was there is untouched)", path) from err


def at_once(group, name):
    """Write the groups of an object straight into the place of the old ones."""
    return group._file(name)


class TwoSteps(SqliteStash):
    """Deletes the old value in one transaction, and keeps the new one in the next."""

    def dump(self, name, inst):
        self.delete(name)
        super().dump(name, inst)


class Sure(SqliteStash):
    """Says of all that it did not happen."""

    def dump(self, name, inst):
        try:
            super().dump(name, inst)
        except OutcomeUnknownError as err:
            raise StorageError(err.errno, "SQLite refused", self.path) from err


#: Where it is broken, how; which sweep finds it; what that says.
BROKEN = {
    "in place": (directory_module, "write_file", in_place, "directory rename", "killed", "raises CorruptValueError"),
    "torn": (directory_module, "write_file", in_place, "directory rename", "killed in a write", "CorruptValueError"),
    "foreign": (directory_module, "write_file", in_place, "directory rename", "ENOSPC once", "not one of our errors"),
    "quiet": (directory_module, "write_file", keeps_quiet, "directory rename", "EIO once", "done (), and a fresh"),
    "sure of a file": (
        directory_module,
        "write_file",
        sure,
        "directory fsync",
        "EIO once",
        "refused (StorageError(5, 'ca",
    ),
    "unswept": (directory_module, "sweep", lambda folder: 0, "directory rename", "killed", "left behind"),
    "at once": (GroupStash, "waiting", at_once, "composite rename", "killed", "raises CorruptValueError"),
    "two steps": (stores, "SqliteStash", TwoSteps, "sqlite rename", "killed", "fresh process finds {'2': 'other'}"),
    "sure": (stores, "SqliteStash", Sure, "sqlite fsync", "EIO once", "refused (StorageError(5, 'SQLite refused'"),
}


def broken_sweep(name, folder):
    """Sweep a dump of a broken store; runs in the server."""
    where, attribute, instead, kind, mode, _ = BROKEN[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, attribute, instead)
        return sweep(*kind.split(), "dump", mode, folder)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_store_is_found_out(name, preloaded, scratch):
    wrong, _ = preloaded.run(broken_sweep, name, str(scratch))
    assert BROKEN[name][-1] in "\n".join(wrong)
