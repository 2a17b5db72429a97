"""One key is one register: what processes saw of it could have happened one after the other.

Some of them are stopped for a while meanwhile, and some are killed.
"""

from __future__ import annotations

import os
import time
import warnings

import pytest

from tests.faults.histories import history
from tests.faults.stores import SHARED
from zpersist import CacheStash, DirectoryStash

WORKERS, COUNT = 4, 400

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@pytest.fixture(autouse=True)
def forks_are_meant():
    # Python 3.12 and later warn of a fork while there are threads; the children here use none.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def told_of(make, folder, seed, *, kills=0, pauses=0, run=lambda function, *arguments: function(*arguments)):
    """Return what is told of one history."""
    here = folder / str(seed)
    here.mkdir()
    print(f"seed {seed}")
    told = run(history, make, str(here), seed, WORKERS, COUNT, kills, pauses)
    assert len(told.deaths) == told.pending == kills, "each of those who were killed was in the middle of something"
    return told


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 100))])
@pytest.mark.parametrize("kind", SHARED)
def test_what_was_seen_could_have_happened(kind, seed, preloaded, scratch):
    assert told_of(kind, scratch, seed, kills=6, pauses=6, run=preloaded.run).broken == [], f"seed {seed}"


@pytest.mark.parametrize("kind", SHARED)
def test_the_processes_meet(kind, scratch):
    # Else the histories above would say little.  In one of them it may be that the machine let them take turns.
    assert any(told_of(kind, scratch, seed, pauses=6).met for seed in range(20))


# it can fail: stores that are broken on purpose


class InPlace(DirectoryStash):
    """Cuts the old value off, then writes the new one."""

    def _put(self, path, parts, place):
        if place != self._replace or not self.path.exists():
            super()._put(path, parts, place)
            return
        with open(path, "wb", buffering=0) as stream:
            # Long enough for others to look.
            time.sleep(0.0002)
            for part in parts:
                stream.write(part)


class Torn(DirectoryStash):
    """Reads, and writes, without a look at what was written meanwhile."""

    def update(self, name, fn, default=None):
        value = fn(self.get(name, default))
        self.dump(name, value)
        return value


class Hesitant(DirectoryStash):
    """Adds in two steps."""

    def add(self, name, inst):
        if self.exists(name):
            return False
        self.dump(name, inst)
        return True


def of(kind):
    return lambda folder: kind(folder / "data")


def cached(folder):
    """Return a directory behind a cache of this process."""
    return CacheStash(DirectoryStash(folder / "data"))


BROKEN = {"in place": of(InPlace), "update in two steps": of(Torn), "add in two steps": of(Hesitant), "cache": cached}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_store_is_found_out(name, scratch):
    assert any(told_of(BROKEN[name], scratch, seed).broken for seed in range(20))
