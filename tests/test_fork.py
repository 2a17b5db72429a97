"""A child may use every stash and work, whatever the threads of its parent were doing."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest

from zpersist import CacheStash, DictionaryStash, FactoryStash, ReadOnlyStash, SqliteStash, persisted
from zpersist.work import attach, decorator, work

fork = multiprocessing.get_context("fork")


class Waits(ReadOnlyStash):
    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def load(self, name):
        self.begun.set()
        if os.getpid() == PARENT:
            self.go.wait()
        return name

    def keys(self):
        return ("a",)


class Owner:
    def __init__(self, factory):
        self.factory = factory

    @property
    @persisted("_v", cache_global=True)
    def v(self):
        return self.factory.load("a")


PARENT = os.getpid()
FACTORY = Waits()


def update(stash, factory):
    stash.update("k", lambda old: factory.load("a"))


CASES = {
    "factory over memory": (lambda: FactoryStash(DictionaryStash(), FACTORY), lambda s: s.load("a")),
    "work": (lambda: Owner(FACTORY), lambda s: s.v),
    "memory": (DictionaryStash, lambda s: update(s, FACTORY) if os.getpid() == PARENT else s.dump("b", 1)),
    "cache": (
        lambda: CacheStash(DictionaryStash()),
        lambda s: update(s, FACTORY) if os.getpid() == PARENT else s.dump("k", 1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fork_while_another_thread_is_at_it(elsewhere, name, monkeypatch):
    monkeypatch.setitem(globals(), "PARENT", os.getpid())
    monkeypatch.setitem(globals(), "FACTORY", Waits())
    make, use = CASES[name]
    stash = make()
    thread = threading.Thread(target=use, args=(stash,))
    thread.start()
    FACTORY.begun.wait()
    child = fork.Process(target=use, args=(stash,))
    child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    child.join()
    child.close()
    FACTORY.go.set()
    thread.join()
    assert not alive, "the child waits for a lock that nobody will give back"


class Slim:
    __slots__ = ()

    @property
    @persisted("_v", initial_value=None)
    def v(self):
        return 1


# Held for a moment only, so that no method that takes its time can tell when one is.
GUARDS = {
    "slotted owners": lambda: attach._beside._guard,
    "classes": lambda: attach._registering,
    "making works": lambda: decorator._making,
    "storing": lambda: work._storing,
}


@pytest.mark.parametrize("name", GUARDS)
def test_fork_while_another_thread_holds_a_guard_of_works(name):
    held, go = threading.Event(), threading.Event()

    def hold():
        with GUARDS[name]():
            held.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def use():
        class New(Slim):
            __slots__ = ()

        assert [Slim().v, New().v] == [None, None]

    child = fork.Process(target=use)
    child.start()
    child.join(30)
    code = child.exitcode
    child.kill()
    child.join()
    child.close()
    go.set()
    thread.join()
    assert code == 0, "the child waits for a lock that nobody will give back"


def test_what_a_child_writes_survives_the_parents_closing(elsewhere):
    begun, closed = fork.Event(), fork.Event()

    def work(stash):
        stash.dump("hello", 1)
        begun.set()
        closed.wait()
        for number in range(300):
            stash.dump(str(number), number)

    with SqliteStash("data.db") as stash:
        stash.dump("parent", 1)
        child = fork.Process(target=work, args=(stash,))
        child.start()
        begun.wait()
    closed.set()
    child.join()
    assert child.exitcode == 0
    child.close()
    assert len(stash) == 302
    stash.close()


def test_fork_while_another_thread_updates_a_database(elsewhere):
    with SqliteStash("data.db", timeout=5) as stash:
        stash.dump("k", 0)
        begun = threading.Event()

        def slow(old):
            begun.set()
            threading.Event().wait(0.3)
            return 1

        thread = threading.Thread(target=stash.update, args=("k", slow))
        thread.start()
        begun.wait()

        def write():
            assert stash["k"] in (0, 1)
            stash.dump("b", 2)
            stash.close()

        child = fork.Process(target=write)
        child.start()
        child.join()
        assert child.exitcode == 0
        child.close()
        thread.join()
        assert dict(stash) == {"k": 1, "b": 2}
