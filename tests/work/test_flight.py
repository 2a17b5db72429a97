"""One computes, the others wait: threads, processes, coroutines."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from zpersist import (
    DictionaryStash,
    DirectoryStash,
    InvalidArgumentError,
    PersistedWork,
    ShelveStash,
    SqliteStash,
    persisted,
    persisted_property,
)
from zpersist.testing.reading import in_threads

fork = multiprocessing.get_context("fork")


def note(text):
    """Write down, for all processes to see, that something was computed."""
    fd = os.open("computed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def noted():
    return Path("computed").read_text().splitlines() if os.path.exists("computed") else []


class Slow:
    """A work that takes as long as a file named ``hold`` is there."""

    def __init__(self, name="v.dat", **options):
        self.name = name
        self._v = PersistedWork(Path(name) if not options else name, self, **options)

    @property
    @persisted("_v")
    def v(self):
        note(f"{self.name} {os.getpid()}")
        while os.path.exists("hold"):
            threading.Event().wait(0.005)
        return [self.name, os.getpid()]

    @persisted_property
    def p(self):
        note("p")
        threading.Event().wait(0.05)
        return object()


def test_threads_compute_once_and_get_one_object(elsewhere):
    owner = Slow()
    results = in_threads(8, lambda _: (owner.v, owner.p))
    assert len({(id(v), id(p)) for v, p in results}) == 1
    assert len(noted()) == 2


def test_instances_in_threads_compute_a_file_once(elsewhere):
    in_threads(8, lambda _: Slow().v)
    assert len(noted()) == 1


def test_first_instances_in_threads_share_what_their_class_keeps():
    both = threading.Barrier(2)

    class Meta(type):
        def __setattr__(cls, name, value):
            if name == "__zpersist_registry__":
                # The other thread is either here too, or kept from coming here.
                with suppress(threading.BrokenBarrierError):
                    both.wait(0.5)
            super().__setattr__(name, value)

    class In(metaclass=Meta):
        def __init__(self):
            self._v = PersistedWork("v", self, cache_global=True)

        @persisted("_v")
        def v(self):
            return object()

    one, other = in_threads(2, lambda _: In())
    assert one.v() is other.v() is In().v()


def test_an_exception_frees_those_who_wait(elsewhere):
    class Fails:
        turn = 0

        @persisted("_v")
        def v(self):
            Fails.turn += 1
            if Fails.turn < 4:
                raise ZeroDivisionError
            return Fails.turn

    owner = Fails()

    def use(_):
        try:
            return owner.v()
        except ZeroDivisionError:
            return None

    assert sorted(map(str, in_threads(6, use))) == ["4", "4", "4", "None", "None", "None"]


def run(target, *args):
    child = fork.Process(target=target, args=args)
    child.start()
    return child


def ended(child):
    child.join()
    code = child.exitcode
    child.close()
    return code


@pytest.mark.parametrize("stash", [False, True])
def test_processes_compute_once(elsewhere, stash):
    barrier = fork.Barrier(8)

    def use():
        barrier.wait()
        if stash:
            with SqliteStash("works.db") as works:
                assert Slow("v", stash=works).v[0] == "v"
        else:
            assert Slow().v[0] == "v.dat"

    children = [run(use) for _ in range(8)]
    assert [ended(child) for child in children] == [0] * 8
    assert len(noted()) == 1


def test_different_works_do_not_wait_for_each_other(elsewhere):
    # Each waits in its body for the other one to have begun: one after the other would never end.
    started = [fork.Event(), fork.Event()]

    class Meets:
        def __init__(self, number):
            self.number = number
            self._v = PersistedWork(Path(f"{number}.dat"), self)

        @property
        @persisted("_v")
        def v(self):
            started[self.number].set()
            assert started[1 - self.number].wait(30)
            return self.number

    children = [run(lambda number=number: Meets(number).v) for number in range(2)]
    assert [ended(child) for child in children] == [0, 0]


def test_the_death_of_the_one_who_computes_lets_another_in(elsewhere):
    Path("hold").touch()
    first = run(lambda: Slow().v)
    while not noted():
        threading.Event().wait(0.005)
    others = [run(lambda: Slow().v) for _ in range(3)]
    os.kill(first.pid, signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    while len(noted()) < 2:
        threading.Event().wait(0.005)
    os.unlink("hold")
    assert [ended(child) for child in others] == [0, 0, 0]
    assert len(noted()) == 2


def test_a_work_that_needs_another_one_of_the_same_file_does_not_wait_for_itself(elsewhere):
    class Nested:
        def __init__(self, inner=None):
            self.inner = inner
            self._v = PersistedWork(Path("v.dat"), self)

        @property
        @persisted("_v")
        def v(self):
            return 1 if self.inner is None else self.inner.v + 1

    assert Nested(Nested()).v == 2


# what others do meanwhile


class NoAdd(DictionaryStash):
    """A stash without the atomic pair."""

    def dump(self, name, inst):
        super().dump(name, inst)


class Kept:
    """A work that returns what it is given, after it has done what it is given to do."""

    def __init__(self, where, do=lambda: None, result="computed"):
        self.do, self.result = do, result
        kind, options = where
        if kind == "stash":
            self._v = PersistedWork("v", self, **options)
        else:
            self._v = PersistedWork(Path("v.dat"), self, **options)

    @persisted("_v")
    def v(self):
        self.do()
        return self.result


def nothing(where):
    """Leave the place as it is."""


def damage(where):
    Path("v.dat").write_bytes(b"damaged")


def damage_body(where):
    Kept(where)._v.set("old")
    data = Path("v.dat").read_bytes()
    Path("v.dat").write_bytes(b"x" + data[1:])


def outdate(where):
    Kept(("file", {"version": "1"}))._v.set("old")


PLACES = {
    "file": (lambda: ("file", {}), nothing),
    "damaged file": (lambda: ("file", {"recover_empty": True}), damage),
    "file with a damaged body": (lambda: ("file", {"recover_empty": True}), damage_body),
    "file of another version": (lambda: ("file", {"version": "2"}), outdate),
    "memory": (lambda: ("stash", {"stash": DictionaryStash()}), nothing),
    "directory": (lambda: ("stash", {"stash": DirectoryStash("d")}), nothing),
    "sqlite": (lambda: ("stash", {"stash": SqliteStash("s.db")}), nothing),
    "shelve": (lambda: ("stash", {"stash": ShelveStash("s")}), nothing),
    "stash without add": (lambda: ("stash", {"stash": NoAdd()}), nothing),
}


@pytest.fixture(params=PLACES)
def place(request, elsewhere):
    make, prepare = PLACES[request.param]
    kind, options = make()
    prepare((kind, options))
    yield kind, options
    if "stash" in options:
        options["stash"].close()


def in_another_thread(do):
    thread = threading.Thread(target=do)
    thread.start()
    thread.join()


def test_what_another_sets_while_one_computes_stays(place):
    one = Kept(place, lambda: in_another_thread(lambda: Kept(place)._v.set("set")))
    other = Kept(place)
    assert [one.v(), one.v(), other.v(), Kept(place).v()] == ["set"] * 4


def test_none_that_another_sets_while_one_computes_stays(place):
    one = Kept(place, lambda: in_another_thread(lambda: Kept(place)._v.set(None)))
    assert [one.v(), Kept(place).v()] == [None, None]


def test_what_was_damaged_or_outdated_is_replaced(place):
    assert [Kept(place).v(), Kept(place, result="other").v()] == ["computed", "computed"]


def test_a_clear_while_one_computes_does_not_undo_what_comes_after(place):
    def do():
        other = Kept(place)
        other._v.set("set")
        other._v.clear()

    assert [Kept(place, lambda: in_another_thread(do)).v(), Kept(place).v()] == ["computed", "computed"]


def test_what_the_method_itself_sets_is_replaced_by_its_result(place):
    one = Kept(place, lambda: one._v.set("on the way"))
    assert [one.v(), Kept(place).v()] == ["computed", "computed"]


def test_what_another_work_keeps_on_the_way_is_replaced(place):
    inner = Kept(place, result="inner")
    outer = Kept(place, inner.v)
    assert [outer.v(), inner.v(), Kept(place).v()] == ["computed", "inner", "computed"]


def test_what_another_process_sets_while_one_computes_stays(elsewhere):
    where = "file", {}
    one = Kept(where, lambda: ended(run(lambda: Kept(where)._v.set("set"))))
    assert [one.v(), Kept(where).v()] == ["set", "set"]


class SetsWhenPickled:
    """A value during whose pickling another thread sets another one: after the look, before the write."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        in_another_thread(lambda: Kept(self.where)._v.set("set"))
        return str, ("computed",)


@pytest.mark.parametrize("name", ["file", "damaged file", "file of another version", "directory", "sqlite"])
def test_what_is_set_between_the_last_look_and_the_write_stays(elsewhere, name):
    make, prepare = PLACES[name]
    where = make()
    prepare(where)
    assert [Kept(where, result=SetsWhenPickled(where)).v(), Kept(where).v()] == ["set", "set"]
    if "stash" in where[1]:
        where[1]["stash"].close()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_directory_without_links_keeps_what_was_computed(elsewhere, monkeypatch, code):
    def link(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    where = "stash", {"stash": DirectoryStash("d")}
    assert [Kept(where).v(), Kept(where, result="other").v()] == ["computed", "computed"]
    where[1]["stash"].clear()
    one = Kept(where, lambda: in_another_thread(lambda: Kept(where)._v.set("set")))
    assert [one.v(), Kept(where).v()] == ["set", "set"]


def test_what_another_sets_while_a_coroutine_computes_stays(elsewhere):
    class In:
        def __init__(self):
            self._v = PersistedWork(Path("v.dat"), self)

        @persisted("_v")
        async def v(self):
            In()._v.set("set")
            return "computed"

    one = In()
    assert [asyncio.run(one.v()), asyncio.run(one.v()), asyncio.run(In().v())] == ["set"] * 3


# coroutines


class Async:
    def __init__(self, **options):
        self.runs = 0
        self.gate = asyncio.Event()
        if options:
            self._v = PersistedWork(owner=self, **options)

    @persisted("_v")
    async def v(self):
        self.runs += 1
        note("coroutine")
        await self.gate.wait()
        return None

    @persisted("_fails")
    async def fails(self):
        self.runs += 1
        await asyncio.sleep(0)
        raise ZeroDivisionError

    @classmethod
    @persisted
    async def of_class(cls):
        await asyncio.sleep(0)
        return cls.__name__

    @staticmethod
    @persisted
    async def static():
        await asyncio.sleep(0)
        return object()


@pytest.mark.parametrize("options", [{}, {"path": Path("v.dat")}, {"path": "v", "stash": DictionaryStash()}])
def test_coroutines_share_one_computation(elsewhere, options):
    async def main():
        owner = Async(**options)
        tasks = [asyncio.create_task(owner.v()) for _ in range(10)]
        while not owner.runs:
            await asyncio.sleep(0.001)
        owner.gate.set()
        assert await asyncio.gather(*tasks) == [None] * 10
        assert await owner.v() is None
        assert owner.runs == 1
        if options:
            other = Async(**options)
            assert await other.v() is None
            assert other.runs == 0

    asyncio.run(main())


def test_coroutines_of_class_and_static_methods():
    async def main():
        assert await Async.of_class() == await Async().of_class() == "Async"
        assert await Async.static() is await Async.static()

    asyncio.run(main())


def test_one_who_gives_up_does_not_take_the_others_with_him(elsewhere):
    async def main():
        owner = Async(path=Path("v.dat"))
        first, second = asyncio.create_task(owner.v()), asyncio.create_task(owner.v())
        while not owner.runs:
            await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.sleep(0.01)
        owner.gate.set()
        assert await second is None
        assert first.cancelled()
        assert owner.runs == 1

    asyncio.run(main())


def test_when_all_give_up_the_computation_ends_and_the_lock_is_free(elsewhere):
    async def main():
        owner = Async(path=Path("v.dat"))
        for turn in (1, 2):
            task = asyncio.create_task(owner.v())
            while owner.runs < turn:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.01)
        owner.gate.set()
        assert await owner.v() is None
        assert owner.runs == 3

    asyncio.run(main())


def test_an_exception_reaches_all_and_is_not_kept():
    async def main():
        owner = Async()
        results = await asyncio.gather(*(owner.fails() for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 3
        with pytest.raises(ZeroDivisionError):
            await owner.fails()
        assert owner.runs == 2

    asyncio.run(main())


def test_a_coroutine_waits_for_another_process_without_stopping_the_loop(elsewhere):
    Path("hold").touch()
    child = run(lambda: Slow().v)
    while not noted():
        threading.Event().wait(0.005)

    async def main():
        class Waits:
            def __init__(self):
                self._v = PersistedWork(Path("v.dat"), self)

            @persisted("_v")
            async def v(self):
                raise AssertionError

        task = asyncio.create_task(Waits().v())
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not task.done()
        os.unlink("hold")
        assert (await task)[0] == "v.dat"

    asyncio.run(main())
    assert ended(child) == 0


def test_two_loops_in_turn(elsewhere):
    owner = Async()
    owner.gate.set()
    assert asyncio.run(owner.v()) is None
    assert asyncio.run(owner.v()) is None
    assert owner.runs == 1


def test_an_async_generator_is_refused():
    with pytest.raises(InvalidArgumentError, match="return a list"):

        class In:
            @persisted("_v")
            async def v(self):
                yield 1


def test_cancelled_and_awaited_again_at_once(elsewhere):
    async def main():
        owner = Async()
        first = asyncio.create_task(owner.v())
        while not owner.runs:
            await asyncio.sleep(0.001)
        first.cancel()
        second = asyncio.create_task(owner.v())
        await asyncio.sleep(0.01)
        third = asyncio.create_task(owner.v())
        await asyncio.sleep(0.01)
        owner.gate.set()
        assert await asyncio.gather(second, third) == [None, None]
        assert owner.runs == 2

    asyncio.run(main())


@pytest.mark.parametrize("in_file", [True, False])
def test_what_is_cleared_while_a_coroutine_computes_stays_cleared(elsewhere, in_file):
    async def main():
        class In:
            x = 1

            def __init__(self):
                self._v = PersistedWork(Path("v.dat") if in_file else "v", self)
                self.gate = asyncio.Event()

            @persisted("_v")
            async def v(self):
                x = self.x
                await self.gate.wait()
                return x

        owner = In()
        first = asyncio.create_task(owner.v())
        await asyncio.sleep(0.05)
        owner.x = 2
        owner._v.clear()
        second = asyncio.create_task(owner.v())
        await asyncio.sleep(0.05)
        owner.gate.set()
        assert [await first, await second, await owner.v()] == [1, 2, 2]

    asyncio.run(main())


def test_no_lock_is_held_while_a_shared_work_computes():
    class Config:
        @property
        @persisted("_options")
        def options(self):
            return {}

    begun = threading.Event()

    class Model:
        @property
        @persisted("_weights", cache_global=True)
        def weights(self):
            begun.set()
            threading.Event().wait(0.1)
            return Config().options

    def use(number):
        if number:
            begun.wait()
        return Model().weights

    assert in_threads(2, use) == [{}, {}]
