"""Writers are killed at random moments, hundreds of times: what they acknowledged is there, and what they left goes.

Each writer is a fresh process, which therefore first tidies up after the one before it, and may die of that too.
"""

from __future__ import annotations

import os
import random
import signal
import time
import warnings

import pytest

from tests.faults.stores import STORES, names_in
from tests.faults.writers import ABSENT, KEYS, Diary, value_of, write
from zpersist import DirectoryStash, SqliteStash
from zpersist.stores import directory as directory_module


@pytest.fixture(autouse=True)
def forks_are_meant():
    # Python 3.12 and later warn of a fork while there are threads; the children here use none.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def killed(run, seconds):
    """Run a function in a child, and kill that after a while."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it ended by itself"


def kill_often(kind, folder, count, seed, make=None):
    """Return what is wrong after the first of so many kills after which anything is."""
    print(f"seed {seed}")
    store, chance, diary = STORES[kind], random.Random(seed), Diary()
    make = make or store.make
    wrong: list[str] = []
    written, begun = 0, 1
    for kill in range(count):
        killed(lambda start=begun: write(store, make, folder, diary, start), chance.uniform(0.001, 0.012))
        before, begun = begun, max(max(diary[key]) for key in KEYS) + 1
        written += begun > before
        with make(folder) as stash:
            for key in KEYS:
                begun_last, finished = diary[key]
                allowed = [value_of(store, turn) if turn else ABSENT for turn in (begun_last, finished)]
                try:
                    found = stash.get(key, ABSENT)
                except Exception as err:
                    found = repr(err)
                if found not in allowed:
                    wrong.append(f"kill {kill}: {key!r} is {str(found)[:80]}, not {str(allowed)[:160]}")
                # From now on what was found is what is there.
                turn = begun_last if found == allowed[0] else finished
                diary.begin(key, turn)
                diary.finish(key, turn)
            stash.dump("9", store.value("9"))
            if stash.get("9") != store.value("9"):
                wrong.append(f"kill {kill}: it does not work any more")
        if left := [name for name in names_in(folder) if name.endswith(".tmp")]:
            wrong.append(f"kill {kill}: left behind: {left}")
        if wrong:
            return wrong
    assert written > count // 3, "most writers came to write something"
    return []


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("kind", STORES)
def test_killed_at_random(kind, count, scratch):
    assert kill_often(kind, scratch, count, seed=count) == []


# it can fail: stores that are broken on purpose


class InPlace(DirectoryStash):
    """Cuts the old value off, then writes the new one."""

    def _put(self, path, parts, place):
        if not self.path.exists():
            super()._put(path, parts, place)
            return
        with open(path, "wb", buffering=0) as stream:
            for part in parts:
                time.sleep(0.0001)
                stream.write(part)


class Late(SqliteStash):
    """Keeps what it is given for a while, and says that it is on the disk."""

    def _fetch(self, name):
        waiting = self.__dict__.setdefault("waiting", {})
        return waiting[name] if name in waiting else super()._fetch(name)

    def dump(self, name, inst):
        waiting = self.__dict__.setdefault("waiting", {})
        waiting[name] = inst
        if len(waiting) == len(KEYS):
            super().dump_many(waiting)
            waiting.clear()

    def close(self):
        super().dump_many(self.__dict__.pop("waiting", {}))
        super().close()


def test_a_writer_in_place_is_found_out(scratch):
    wrong = kill_often("directory", scratch, 40, 1, lambda folder: InPlace(folder / "data"))
    assert "CorruptValueError" in "\n".join(wrong)


def test_a_store_that_writes_late_is_found_out(scratch):
    wrong = kill_often("work", scratch, 40, 1, lambda folder: Late(folder / "data.db"))
    assert ", not [" in "\n".join(wrong)


def test_leftovers_are_found_out(scratch, monkeypatch):
    monkeypatch.setattr(directory_module, "sweep", lambda folder: 0)
    assert "left behind" in "\n".join(kill_often("directory", scratch, 60, 1))
