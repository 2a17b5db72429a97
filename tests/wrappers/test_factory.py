"""Values that are made while others write."""

from __future__ import annotations

import threading

import pytest

from zpersist import (
    DictionaryStash,
    DirectoryStash,
    FactoryStash,
    KeyLimitStash,
    MultiProcessFactoryStash,
    ReadOnlyStash,
    ShelveStash,
    SqliteStash,
)

STORES = {
    "directory": lambda: DirectoryStash("data"),
    "sqlite": lambda: SqliteStash("data.db"),
    "shelve": lambda: ShelveStash("data"),
    "dictionary": DictionaryStash,
    "one without add": lambda: KeyLimitStash(DictionaryStash(), 10),
}


@pytest.mark.parametrize("store", STORES)
def test_what_is_dumped_while_a_value_is_made_stays(elsewhere, store):
    begun, go = threading.Event(), threading.Event()

    class Slow(ReadOnlyStash):
        def load(self, name):
            begun.set()
            go.wait()
            return "made"

        def keys(self):
            return ()

    stash = FactoryStash(STORES[store](), Slow())
    got = []
    thread = threading.Thread(target=lambda: got.append(stash["k"]))
    thread.start()
    begun.wait()
    stash["k"] = "dumped"
    go.set()
    thread.join()
    assert [stash["k"], *got] == ["dumped", "dumped"]
    stash.close()


def test_no_key_has_the_lock_of_a_filling(elsewhere):
    class Names(ReadOnlyStash):
        def load(self, name):
            return name

        def keys(self):
            return ["a", "prime", "oneshot", "all"]

    made = FactoryStash(DirectoryStash("data"), Names())
    assert len(MultiProcessFactoryStash(DirectoryStash("data"), made, workers=2)) == 4
