"""What single wrappers do beyond the conformance suite."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import pytest

from zpersist import (
    CacheFactoryStash,
    CacheStash,
    DelegateStash,
    DictionaryStash,
    DirectoryStash,
    FactoryStash,
    Failure,
    FailureFilterStash,
    InvalidArgumentError,
    InvalidDelegateError,
    InvalidKeyError,
    KeyLimitStash,
    KeySubsetStash,
    LRUCacheStash,
    MultiProcessFactoryStash,
    MultiProcessStash,
    OneShotFactoryStash,
    OutcomeUnknownError,
    PrimeableStash,
    ProtectiveStash,
    ReadOnlyDelegateStash,
    ReadOnlyError,
    ReadOnlyStash,
    ShelveStash,
    SortedStash,
    SqliteStash,
    StorageError,
    UnionStash,
    UnsupportedOperationError,
)
from zpersist.testing.reading import in_threads


class Counting(ReadOnlyStash):
    def __init__(self, keys=("a", "b"), make=str.upper):
        self.made = []
        self.names = keys
        self.make = make

    def load(self, name):
        self.made.append(name)
        return self.make(name)

    def keys(self):
        return self.names


def test_factory_makes_once_also_none():
    factory = Counting(make=lambda name: None)
    stash = FactoryStash(DictionaryStash(), factory)
    assert [stash["a"], stash["a"], stash.load("a"), len(stash)] == [None, None, None, 2]
    assert factory.made == ["a"]
    again = FactoryStash(DictionaryStash(), factory, dump_factory_nones=False)
    assert [again["a"], again["a"]] == [None, None]
    assert factory.made == ["a"] * 3


def test_factory_keys_are_all_that_can_be_had():
    stash = FactoryStash(DictionaryStash({"old": 1}), Counting())
    for _ in range(2):
        assert sorted(stash.keys()) == ["a", "b", "old"]
        assert "b" in stash
        assert stash["a"] == "A"
    assert not stash.add("b", 1)
    assert stash.update("b", lambda value: value * 2) == "BB"
    stash.clear()
    assert sorted(stash.keys()) == ["a", "b"]
    assert list(CacheFactoryStash(DictionaryStash({"old": 1}), Counting())) == [("a", "A"), ("b", "B")]


def test_factory_that_lists_nothing():
    factory = Counting(keys=())
    stash = FactoryStash(DictionaryStash(), factory)
    assert [stash["x"], stash.get("x"), stash.load("y")] == ["X", "X", "Y"]
    assert factory.made == ["x", "y"]
    assert {"x", "y"} == stash.keys()


@pytest.mark.parametrize("make", [DictionaryStash, lambda: DirectoryStash("d"), lambda: SqliteStash("s.db")])
def test_threads_make_once(elsewhere, make):
    factory = Counting(make=lambda name: (threading.Event().wait(0.02), name)[1])
    with FactoryStash(make(), factory) as stash:
        assert in_threads(8, lambda number: stash["ab"[number % 2]]) == list("abababab")
    assert sorted(factory.made) == ["a", "b"]


@pytest.mark.parametrize("kind", [DirectoryStash, SqliteStash, ShelveStash])
def test_processes_make_once(elsewhere, kind):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)

    def make(name):
        fd = os.open("made", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, b"x")
        os.close(fd)
        threading.Event().wait(0.05)
        return name

    def use():
        barrier.wait()
        with FactoryStash(kind("data"), Counting(make=make)) as stash:
            assert stash["a"] == "a"

    children = [fork.Process(target=use) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
        child.close()
    assert Path("made").read_bytes() == b"x"


def test_factory_clears_what_can_be_written():
    source = DictionaryStash({"a": 1})
    FactoryStash(DictionaryStash(), source).clear()
    assert not source
    kept = ReadOnlyDelegateStash(DictionaryStash({"a": 1}))
    FactoryStash(DictionaryStash(), kept).clear()
    assert kept


# one shot


def test_one_shot_of_every_kind_of_worker():
    for worker in ([("a", 1)], lambda: [("a", 1)], {"a": 1}.items(), iter([("a", 1)])):
        stash = OneShotFactoryStash(DictionaryStash(), worker)
        assert "a" in stash
        assert list(stash) == [("a", 1)]

    class Own(OneShotFactoryStash):
        @property
        def worker(self):
            return [("a", 1)]

        @worker.setter
        def worker(self, value):
            pass

        def _get_worker_type(self):
            return "a"

    assert list(Own(DictionaryStash())) == [("a", 1)]
    with pytest.raises(InvalidArgumentError, match="has no worker"):
        len(OneShotFactoryStash(DictionaryStash()))


@pytest.mark.parametrize(
    "make", [DictionaryStash, lambda: DirectoryStash("d"), lambda: SqliteStash("s.db"), lambda: ShelveStash("s")]
)
def test_a_worker_that_failed_is_run_again(elsewhere, make):
    trouble = [True]

    def worker():
        yield "a", 1
        if trouble:
            raise ZeroDivisionError
        yield "b", 2

    with make() as delegate:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                list(OneShotFactoryStash(delegate, worker))
        trouble.clear()
        assert dict(OneShotFactoryStash(delegate, worker)) == {"a": 1, "b": 2}
        trouble.append(True)
        assert dict(OneShotFactoryStash(delegate, worker)) == {"a": 1, "b": 2}


def test_an_iterator_that_failed_is_not_taken_for_finished():
    def worker():
        yield "a", 1
        raise ZeroDivisionError

    stash = OneShotFactoryStash(DictionaryStash(), worker())
    with pytest.raises(ZeroDivisionError):
        len(stash)
    with pytest.raises(InvalidArgumentError, match="can't be used again"):
        len(stash)


def test_a_dump_before_the_first_read_does_not_stop_the_filling(elsewhere):
    stash = OneShotFactoryStash(DictionaryStash(), [("a", 1), ("b", 2)])
    stash.dump("a", 10)
    stash.dump("x", 3)
    assert dict(stash) == {"a": 10, "b": 2, "x": 3}

    class Two(MultiProcessStash):
        def _create_data(self):
            return ["a", "b"]

        def _process(self, chunk):
            yield from ((name, 1) for name in chunk)

    stash = Two(DirectoryStash("data"), workers=1)
    stash["x"] = 2
    assert dict(stash) == {"a": 1, "b": 1, "x": 2}


@pytest.mark.parametrize("make", [lambda: ShelveStash("data"), lambda: SqliteStash("data.db")])
def test_a_filling_that_failed_is_not_taken_for_finished(elsewhere, make):
    class Half(MultiProcessStash):
        def _create_data(self):
            return range(6)

        def _process(self, chunk):
            for number in chunk:
                if number == 5 and os.path.exists("trouble"):
                    raise ZeroDivisionError
                yield str(number), number

    Path("trouble").touch()
    with make() as delegate, pytest.raises(ZeroDivisionError):
        len(Half(delegate, workers=1, chunk_size=2))
    os.unlink("trouble")
    with make() as delegate:
        stash = Half(delegate, workers=1, chunk_size=2)
        assert len(stash) == 6
        stash.clear()
        assert not delegate


def test_prime_may_use_the_stash():
    class Own(PrimeableStash, DelegateStash):
        primed = 0

        def prime(self):
            super().prime()
            self.primed += 1
            self.dump("a", len(self))

    outer = Own(Own(DictionaryStash()))
    assert outer["a"] >= 0
    assert outer.primed == 1
    assert outer.delegate.primed >= 1


# caches


def test_cache_is_never_stale_in_its_process():
    delegate = DictionaryStash({"a": 1})
    stash = CacheStash(delegate)
    assert [stash["a"], stash.get("b")] == [1, None]
    delegate.dump("b", 2)
    assert stash["b"] == 2
    stash.dump("a", 3)
    assert [stash["a"], delegate["a"], stash.cache_stash["a"]] == [3, 3, 3]
    assert stash.update("a", lambda value: value + 1) == stash["a"] == 4
    assert [stash.delete("a"), "a" in stash, stash.load("a")] == [True, False, None]
    stash.clear()
    assert [len(delegate), len(stash.cache_stash)] == [0, 0]


def test_cache_does_not_keep_what_was_read_before_a_write():
    class Slow(DictionaryStash):
        def load(self, name):
            value = super().load(name)
            if read is not None:
                read.set()
                written.wait()
            return value

    read, written = threading.Event(), threading.Event()
    delegate = Slow({"a": "old"})
    stash = CacheStash(delegate)
    reader = threading.Thread(target=stash.load, args=("a",))
    reader.start()
    read.wait()
    stash.dump("a", "new")
    written.set()
    reader.join()
    read = None
    assert stash["a"] == "new"


def test_a_value_that_could_not_be_kept_is_not_cached(elsewhere):
    stash = CacheStash(DirectoryStash("data"))
    stash.dump("a", 1)
    with pytest.raises(TypeError):
        stash.dump("a", lambda: None)
    assert stash["a"] == 1


@pytest.mark.parametrize("verb", ["dump", "add", "update", "delete"])
def test_nothing_old_is_served_when_the_outcome_is_unknown(verb):
    class Unsure(DictionaryStash):
        """Does it, and can't tell."""

        def _unsure(self, verb, *args):
            getattr(DictionaryStash, verb)(self, *args)
            raise OutcomeUnknownError(5, "the disk does not answer")

        def dump(self, name, inst):
            self._unsure("dump", name, inst)

        def add(self, name, inst):
            self._unsure("add", name, inst)

        def update(self, name, fn, default=None):
            self._unsure("update", name, fn, default)

        def delete(self, name):
            self._unsure("delete", name)

    below = Unsure({"a": 1} if verb != "add" else {})
    stash = CacheStash(below)
    stash.load("a")
    arguments = {"dump": ("a", 2), "add": ("a", 2), "update": ("a", lambda old: 2), "delete": ("a",)}[verb]
    with pytest.raises(OutcomeUnknownError):
        getattr(stash, verb)(*arguments)
    assert stash.load("a") == (None if verb == "delete" else 2)


def test_swapped_delegate_and_factory():
    for kind in (FactoryStash, CacheFactoryStash, MultiProcessFactoryStash):
        with pytest.raises(InvalidDelegateError, match="Counting is read only; were delegate and factory swapped"):
            kind(Counting(), DictionaryStash())


def test_lru():
    stash = LRUCacheStash(2)
    for key in "ab":
        stash.dump(key, key)
    for use in (lambda: stash["a"], lambda: stash.get("a"), lambda: stash.load("a"), lambda: stash.load_many(["a"])):
        stash.load("b")
        use()
        stash.dump("c", 1)
        assert list(stash.keys()) == ["a", "c"]
        stash.delete("c")
        stash.dump("b", "b")
    assert repr(stash) == "LRUCacheStash(2)"
    for wrong in (0, -1, 1.5, True, None):
        with pytest.raises(InvalidArgumentError, match="maxsize"):
            LRUCacheStash(wrong)


# subsets, limits, order, unions


def test_limit():
    stash = KeyLimitStash(DictionaryStash(dict.fromkeys("abc", 1)), 2)
    assert [list(stash.keys()), len(stash), "c" in stash, stash.load("c"), stash.get("c", 0)] == [
        ["a", "b"],
        2,
        False,
        None,
        0,
    ]
    with pytest.raises(KeyError):
        stash["c"]
    assert not stash.delete("c")
    for wrong in (-1, 1.5, True, None, "2"):
        with pytest.raises(InvalidArgumentError, match="limit"):
            KeyLimitStash(DictionaryStash(), wrong)


@pytest.mark.parametrize("dynamic", [False, True])
def test_subset_from_a_file(elsewhere, dynamic):
    Path("keys.txt").write_text("b\n\na\nb\nmissing\n")
    stash = KeySubsetStash(DirectoryStash("data"), Path("keys.txt"), dynamic)
    stash.delegate.dump_many({"a": 1, "b": None, "c": 3})
    for _ in range(2):
        assert sorted(stash.keys()) == ["a", "b"]
    assert [stash.get("c", 0), stash["b"], "missing" in stash] == [0, None, False]
    with pytest.raises(StorageError, match="subset of keys"):
        KeySubsetStash(DictionaryStash(), Path("absent.txt"))
    with pytest.raises(InvalidArgumentError, match="key_subset"):
        KeySubsetStash(DictionaryStash(), "abc")


def test_order_is_stated_where_it_holds():
    plain = DictionaryStash()
    assert not SortedStash(plain, int).ordered
    assert SortedStash(plain).ordered
    assert not FactoryStash(SortedStash(plain), plain).ordered
    assert not KeySubsetStash(SortedStash(plain), ("b", "a")).ordered
    assert CacheFactoryStash(plain, SortedStash(plain)).ordered
    assert CacheStash(SortedStash(plain)).ordered


def test_union():
    stash = UnionStash([DictionaryStash({"k": 1}), DictionaryStash({"x": 2, "k": 10}), DictionaryStash({"n": None})])
    assert [list(stash), len(stash), list(stash.values())] == [[("k", 1), ("x", 2), ("n", None)], 3, [1, 2, None]]
    assert [stash.get("absent", 0), stash["n"], UnionStash(()).shared] == [0, None, False]
    for wrong in (DictionaryStash(), 3, [{}]):
        with pytest.raises(TypeError, match="must be"):
            UnionStash(wrong)


# others


def test_read_only():
    stash = ReadOnlyDelegateStash(DictionaryStash({"a": 1}))
    stash.dump("a", 2)
    stash.clear()
    assert [stash.delete("a"), stash.add("b", 1), dict(stash)] == [False, False, {"a": 1}]
    with pytest.raises(ReadOnlyError):
        stash.update("a", str)
    stash.strict = True
    for write in (stash.clear, lambda: stash.dump("a", 2), lambda: stash.delete("a"), lambda: stash.add("b", 1)):
        with pytest.raises(ReadOnlyError, match="read only"):
            write()


def test_protective(elsewhere, caplog):
    stash = ProtectiveStash(DirectoryStash("data"), True)
    stash.dump("a", lambda: None)
    assert stash.add("b", lambda: None)
    assert not stash.add("b", lambda: None)
    assert [type(error).__name__ for error in stash.values()] == ["EncodeError"] * 2
    assert "can not keep 'a'" in caplog.text
    with pytest.raises(ValueError, match="the key is empty"):
        stash.dump("", 1)


def test_protective_raises_what_says_nothing_about_the_value(elsewhere):
    stash = ProtectiveStash(KeyLimitStash(DictionaryStash()))
    with pytest.raises(UnsupportedOperationError):
        stash.add("k", "value")
    assert "k" not in stash
    with pytest.raises(InvalidKeyError):
        ProtectiveStash(DirectoryStash("data")).add("", 1)


@pytest.mark.parametrize("error", [StorageError(16, "busy"), OutcomeUnknownError(5, "unsure"), ReadOnlyError("no")])
@pytest.mark.parametrize("verb", ["dump", "add"])
def test_protective_writes_no_error_of_the_store_over_a_value(error, verb):
    class Once(DictionaryStash):
        """Fails once, and then works."""

        errors = [error]

        def dump(self, name, inst):
            super().dump(name, inst)
            if self.errors:
                raise self.errors.pop()

        def add(self, name, inst):
            self.dump(name, inst)
            return True

    stash = ProtectiveStash(Once())
    Once.errors = [error]
    with pytest.raises(type(error)):
        getattr(stash, verb)("a", "good")
    assert stash["a"] == "good"


def test_protective_and_a_value_that_is_too_large():
    class Small(DictionaryStash):
        def dump(self, name, inst):
            if inst == "large":
                raise StorageError(errno.EFBIG, "too large")
            super().dump(name, inst)

    stash = ProtectiveStash(Small())
    stash.dump("a", "large")
    assert stash["a"].errno == errno.EFBIG


def test_protective_add_leaves_what_another_one_adds_meanwhile(elsewhere):
    class Racing(DirectoryStash):
        asked = 0

        def exists(self, name):
            there = super().exists(name)
            self.asked += 1
            if self.asked == 2:
                self.dump(name, "another one's")
            return there

        add = DirectoryStash.add

    stash = ProtectiveStash(Racing("data"))
    assert not stash.add("a", lambda: None)
    assert stash["a"] == "another one's"


def test_failures_are_hidden(elsewhere):
    results = DictionaryStash({"a": 1, "b": Failure(ValueError("no"))})
    stash = FailureFilterStash(results, "good.dat")
    for _ in range(2):
        assert [list(stash), "b" in stash, stash.get("b", 0), len(stash)] == [[("a", 1)], False, 0, 1]
        stash = FailureFilterStash(results, "good.dat")
    stash.dump("b", 2)
    assert dict(stash) == {"a": 1, "b": 2}


class Pausing(DictionaryStash):
    """Does something in the middle of being listed."""

    pause = staticmethod(lambda: None)

    def load_many(self, names):
        found = super().load_many(names)
        self.pause()
        return found

    def items(self):
        yield from list(super().items())
        self.pause()


def test_a_list_of_failures_from_before_a_write_is_not_kept(elsewhere):
    delegate = Pausing({"a": 1})
    stash = FailureFilterStash(delegate, "good.dat")

    def write():
        delegate.pause = lambda: None
        in_threads(1, lambda _: stash.dump("b", 2))

    delegate.pause = write
    len(stash)
    assert sorted(FailureFilterStash(delegate, "good.dat")) == [("a", 1), ("b", 2)]
    assert sorted(stash) == [("a", 1), ("b", 2)]
    delegate.pause = write
    Path("good.dat").unlink()
    len(FailureFilterStash(delegate, "good.dat"))
    assert sorted(stash) == [("a", 1), ("b", 2)]


def test_failures_are_found_out_again_by_other_stashes_on_the_file(elsewhere):
    delegate = DictionaryStash({"a": 1})
    one, other = FailureFilterStash(delegate, "good.dat"), FailureFilterStash(delegate, "good.dat")
    assert [len(one), len(other)] == [1, 1]
    one.dump("b", 2)
    one.dump("c", Failure(ValueError("no")))
    assert [len(one), len(other)] == [2, 2]
    assert sorted(pickle.loads(pickle.dumps(one))) == [("a", 1), ("b", 2)]


def test_failures_are_hidden_among_threads(elsewhere):
    stash = FailureFilterStash(DictionaryStash(), "good.dat")

    def work(number):
        for turn in range(60):
            stash[f"{number}-{turn}"] = turn
            assert f"{number}-{turn}" in stash
            assert len(stash) > turn // 2
            if turn % 2:
                assert stash.delete(f"{number}-{turn}")

    in_threads(8, work)
    assert len(stash) == len(FailureFilterStash(stash.delegate, "good.dat")) == 8 * 30
    assert sorted(in_threads(8, lambda _: stash.delete("0-0"))) == [False] * 7 + [True]


def test_a_list_that_can_not_be_deleted_is_an_error_before_anything_is_written(elsewhere):
    stash = FailureFilterStash(DictionaryStash(), "good.dat")
    Path("good.dat").mkdir()
    with pytest.raises(StorageError, match=r"can not delete.*good\.dat"):
        stash.dump("a", 1)
    assert not stash.delegate


def test_delegate_by_default_keeps_nothing():
    stash = DelegateStash()
    stash.dump("a", 1)
    assert [stash.load("a"), len(stash), stash.delete("a")] == [None, 0, False]


def test_what_a_subclass_overrides_and_what_it_does_on_the_way():
    class Own(CacheStash):
        cleared = 0

        def clear(self):
            self.cleared += 1
            super().clear()

    class Sub(Own):
        def keys(self):
            return sorted(super().keys())

    stash = Sub(DictionaryStash({"b": 1, "a": 2}))
    assert [list(stash), stash["a"], len(stash.cache_stash)] == [[("a", 2), ("b", 1)], 2, 2]
    stash.clear()
    assert [stash.cleared, len(stash), len(stash.cache_stash)] == [1, 0, 0]


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_failures_that_were_repaired_are_not_remembered(elsewhere, repair):
    results = DirectoryStash("results")
    results.dump_many({"a": 1, "b": 2, "c": Failure(ValueError("no"))})
    stash, other = FailureFilterStash(results, "good.dat"), FailureFilterStash(results, "good.dat")
    for one in (stash, other):
        assert sorted(one.keys()) == ["a", "b"]
    results.key_to_path("b").write_bytes(b"cut")
    assert [damage.key for damage in stash.verify()] == ["b"]
    assert Path("good.dat").exists()
    assert [damage.key for damage in stash.verify(repair=repair)] == ["b"]
    for one in (stash, other, FailureFilterStash(results, "good.dat")):
        assert sorted(one.keys()) == ["a"]
        assert ("b" in one, one.load("b"), len(one)) == (False, None, 1)


def test_a_repair_that_is_cut_short_leaves_no_list_of_failures(elsewhere):
    results = DirectoryStash("results")
    results.dump_many({"a": 1, "b": 2, "c": 3})
    stash = FailureFilterStash(results, "good.dat")
    assert sorted(stash.keys()) == ["a", "b", "c"]
    results.key_to_path("b").write_bytes(b"cut")
    repairing = stash.verify(repair="drop")
    assert next(repairing).key == "b"
    # As another process finds it if this one is killed now.
    assert not Path("good.dat").exists()
    repairing.close()
    assert sorted(stash.keys()) == ["a", "c"]


def test_a_list_of_failures_that_was_found_out_during_a_repair_is_forgotten(elsewhere):
    with SqliteStash("results.db") as results:
        results.dump_many({"a": 1, "b": 2, "c": 3})
        stash = FailureFilterStash(results, "good.dat")
        results._run("UPDATE stash SET value=x'00' WHERE key='a'")
        repairing = stash.verify(repair="drop")
        assert next(repairing).key == "a"
        assert sorted(stash.keys()) == ["b", "c"]
        results._run("UPDATE stash SET value=x'00' WHERE key='b'")
        assert [damage.key for damage in repairing] == ["b"]
        assert sorted(stash.keys()) == ["c"]
