"""Stashes and dicts do the same, whatever is done to them."""

from __future__ import annotations

import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from zpersist import (
    CacheStash,
    DictionaryStash,
    DirectoryStash,
    FactoryStash,
    LmdbStash,
    LRUCacheStash,
    NoopStash,
    ShelveStash,
    SortedStash,
    SqliteStash,
)
from zpersist.testing import stash_machine

KINDS = {
    "dictionary": lambda path: DictionaryStash(),
    "lru": lambda path: LRUCacheStash(10_000),
    "directory": lambda path: DirectoryStash(f"{path}/data"),
    "sqlite": lambda path: SqliteStash(f"{path}/data.db"),
    "lmdb": lambda path: LmdbStash(f"{path}/data.lmdb"),
    "lmdb that grows": lambda path: LmdbStash(f"{path}/data.lmdb", map_size=1 << 16),
    "shelve": lambda path: ShelveStash(f"{path}/shelf"),
    "cache of one over directory": lambda path: CacheStash(DirectoryStash(f"{path}/data"), LRUCacheStash(1)),
    "stack over sqlite": lambda path: SortedStash(
        CacheStash(FactoryStash(SqliteStash(f"{path}/data.db"), NoopStash()), LRUCacheStash(2))
    ),
}

FAST = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(FAST, max_examples=200, stateful_step_count=40)


def run(kind, how):
    folders = []

    def make():
        folders.append(tempfile.mkdtemp())
        return KINDS[kind](folders[-1])

    def finish(stash):
        stash.close()
        shutil.rmtree(folders.pop())

    run_state_machine_as_test(stash_machine(make, finish=finish), settings=how)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_stash_behaves_as_a_dict(kind):
    run(kind, FAST)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_stash_behaves_as_a_dict_for_long(kind):
    run(kind, LONG)
