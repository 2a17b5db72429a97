"""From one stash into another."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpersist import (
    CacheFactoryStash,
    CacheStash,
    CorruptValueError,
    DelegateStash,
    DictionaryStash,
    DirectoryStash,
    EncodeError,
    FactoryStash,
    Failure,
    FailureFilterStash,
    InvalidDelegateError,
    JsonCodec,
    KeyLimitStash,
    KeySubsetStash,
    LmdbStash,
    Migration,
    MigrationError,
    MultiProcessFactoryStash,
    NoopStash,
    OneShotFactoryStash,
    PickleCodec,
    PreemptiveStash,
    ProtectiveStash,
    ReadOnlyDelegateStash,
    ReadOnlyStash,
    SealError,
    ShelveStash,
    SignedCodec,
    SortedStash,
    SqliteStash,
    UnionStash,
    migrate,
)
from zpersist.sameness import _Comparison, is_same

KINDS = {
    "memory": lambda path: DictionaryStash(),
    "directory": lambda path: DirectoryStash(path / "data"),
    "spread": lambda path: DirectoryStash(path / "data", fan_out=16),
    "json": lambda path: DirectoryStash(path / "data", codec=JsonCodec()),
    "signed": lambda path: SqliteStash(path / "data.db", codec=SignedCodec(None, bytes(32))),
    "sqlite": lambda path: SqliteStash(path / "data.db"),
    "lmdb": lambda path: LmdbStash(path / "data.lmdb"),
    "shelve": lambda path: ShelveStash(path / "shelf"),
}
DATA = {"a": 1, "b": [2.5, None], "long " * 100: {"x": (1, 2)}, "ключ": {3}} | {str(n): n for n in range(250)}


def folders(path):
    for name in ("one", "two"):
        (path / name).mkdir()
        yield path / name


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_from_any_into_any(tmp_path, source, target):
    one, two = folders(tmp_path)
    with KINDS[source](one) as source, KINDS[target](two) as target:
        source.dump_many(DATA)
        assert migrate(source, target) == Migration(len(DATA), 0)
        assert dict(target) == dict(source) == DATA
        assert migrate(source, target) == Migration(0, len(DATA))


def test_old_pickles(tmp_path):
    for name, value in {"a": 1, "b": [2, 3]}.items():
        (tmp_path / f"{name}.dat").write_bytes(pickle.dumps(value))
    old, new = DirectoryStash(tmp_path, codec=PickleCodec(plain=True)), DirectoryStash(tmp_path / "new")
    assert migrate(old, new) == (2, 0)
    assert dict(new) == {"a": 1, "b": [2, 3]}


class Stops(DictionaryStash):
    """A stash that takes so many values."""

    left = 120

    def dump(self, name, inst):
        self.left -= 1
        if self.left < 0:
            raise OSError("stopped")
        super().dump(name, inst)


def test_a_run_that_was_cut_short_goes_on():
    source, target = DictionaryStash(DATA), Stops()
    with pytest.raises(OSError, match="stopped"):
        migrate(source, target)
    assert len(target) == 120
    target.left = 10_000
    assert migrate(source, target) == (len(DATA) - 120, 120)
    assert dict(target) == DATA


@pytest.mark.parametrize("wrong", [2, [1], None, True, 1.0])
def test_what_is_there_and_differs_is_told_and_kept(tmp_path, wrong):
    source, target = DirectoryStash(tmp_path), DictionaryStash({"a": wrong})
    source.dump_many({"a": 1, "b": 2})
    with pytest.raises(
        MigrationError, match=r"1 values of .* are not those of .*: 'a'; if the source is right"
    ) as caught:
        migrate(source, target)
    assert caught.value.keys == ("a",)
    assert target.load("a") is wrong
    assert target["b"] == 2
    assert migrate(source, target, verify=False) == (0, 2)


class Forgets(DictionaryStash):
    """A stash that loses values, or changes them, without a word."""

    def dump(self, name, inst):
        if name != "3":
            super().dump(name, 0 if name == "5" else inst)


def test_a_target_that_does_not_keep_what_it_takes_is_found_out():
    with pytest.raises(MigrationError) as caught:
        migrate(DictionaryStash({str(n): n for n in range(10)}), Forgets())
    assert caught.value.keys == ("3", "5")


def test_a_damaged_value_stops_it_and_the_next_run_goes_on(tmp_path):
    source, target = DirectoryStash(tmp_path), DictionaryStash()
    source.dump_many({str(n): n for n in range(50)})
    source.key_to_path("7").write_bytes(b"cut")
    with pytest.raises(CorruptValueError, match=r"7\.dat"):
        migrate(source, target)
    assert [damage.key for damage in source.verify(repair="quarantine")] == ["7"]
    migrate(source, target)
    assert len(target) == 49


def test_a_value_that_the_target_can_not_keep(tmp_path):
    source = DictionaryStash({"a": 1, "b": SimpleNamespace(x=1)})
    with pytest.raises(EncodeError):
        migrate(source, DirectoryStash(tmp_path, codec=JsonCodec()))


@pytest.mark.parametrize(("source", "target"), [({}, DictionaryStash()), (DictionaryStash(), "target")])
def test_what_is_no_stash(source, target):
    with pytest.raises(InvalidDelegateError, match="must be a stash, not"):
        migrate(source, target)


def test_progress(capsys):
    migrate(DictionaryStash({str(n): n for n in range(30)}), DictionaryStash(), progress=True)
    assert "60/60" in capsys.readouterr().err


# what is stored, and nothing else


class Prefixed(DelegateStash):
    """A wrapper of a user: other keys below."""

    def load(self, name):
        return super().load(f"x-{name}")

    def dump(self, name, inst):
        super().dump(f"x-{name}", inst)

    def delete(self, name):
        return super().delete(f"x-{name}")

    def exists(self, name):
        return super().exists(f"x-{name}")

    def keys(self):
        return [name[2:] for name in self.delegate.keys()]


class Upper(CacheStash):
    """A cache of a user that changes what it keeps."""

    def dump(self, name, inst):
        super().dump(name, inst.upper())


class Never(ReadOnlyStash):
    """A factory that is not to be asked."""

    def load(self, name):
        raise AssertionError(f"{name} was made")

    def keys(self):
        return ("a", "b", "c")


def never():
    raise AssertionError("it was filled")


CACHES = {
    "cache": CacheStash,
    "two caches": lambda store: CacheStash(CacheStash(store)),
    "sorted": lambda store: SortedStash(CacheStash(store)),
    "protective": lambda store: ProtectiveStash(CacheStash(store)),
    "preemptive": lambda store: PreemptiveStash(CacheStash(store)),
    "of other keys": lambda store: Prefixed(CacheStash(store)),
    "over a factory": lambda store: CacheStash(FactoryStash(store, Never())),
    "in a factory": lambda store: FactoryStash(CacheStash(store), Never()),
}


class Loses(DictionaryStash):
    """A stash that loses values, or changes them, without a word; whatever wrapper keys come from."""

    def dump(self, name, inst):
        if not name.endswith("3"):
            super().dump(name, 0 if name.endswith("5") else inst)


@pytest.mark.parametrize("cache", CACHES)
def test_caches_are_not_asked_what_was_stored(cache):
    target = CACHES[cache](Loses())
    with pytest.raises(MigrationError) as caught:
        migrate(DictionaryStash({str(n): n for n in range(10)}), target)
    assert caught.value.keys == ("3", "5")


@pytest.mark.parametrize("cache", CACHES)
def test_caches_that_see_what_was_stored_are_in_order(cache, tmp_path):
    target = CACHES[cache](DirectoryStash(tmp_path))
    source = DictionaryStash({str(n): n for n in range(10)})
    assert migrate(source, target) == (10, 0)
    assert migrate(source, target) == (0, 10)
    assert target["5"] == 5


def test_caches_learn_what_was_stored_below_them(tmp_path):
    target = CacheStash(DirectoryStash(tmp_path))
    target["a"] = "old"
    DirectoryStash(tmp_path).clear()
    assert target["a"] == "old"
    assert migrate(DictionaryStash({"a": "new"}), target) == (1, 0)
    assert target["a"] == "new"


def test_caches_learn_also_by_a_migration_that_fails():
    target = CacheStash(DictionaryStash({"b": 0}))
    target["a"] = "old"
    target.delegate.clear()
    target.delegate["b"] = 0
    with pytest.raises(MigrationError):
        migrate(DictionaryStash({"a": "new", "b": 1}), target)
    assert target["a"] == "new"


def test_a_wrapper_that_changes_what_it_keeps_is_still_there():
    target = Upper(DictionaryStash())
    with pytest.raises(MigrationError):
        migrate(DictionaryStash({"a": "text"}), target)
    assert target.delegate.data == {"a": "TEXT"}
    assert migrate(DictionaryStash({"a": "TEXT"}), target) == (0, 1)


def test_a_shelf_that_is_kept_open_is_not_asked_what_it_remembers(tmp_path):
    with ShelveStash(tmp_path / "shelf", auto_close=False) as target:
        assert migrate(DictionaryStash({"a": [1], "b": [2]}), target) == (2, 0)
        target["a"].append(2)
        assert migrate(DictionaryStash({"a": [1], "b": [2]}), target) == (0, 2)
        with target._opened() as db:
            db[b"b"] = db[b"a"]
        with pytest.raises(MigrationError) as caught:
            migrate(DictionaryStash({"a": [1], "b": [2]}), target)
        assert caught.value.keys == ("b",)
    assert ShelveStash(target.path)["a"] == [1, 2]


MAKING = {
    "factory": lambda store, path: FactoryStash(store, Never()),
    "factory that knows the keys": lambda store, path: CacheFactoryStash(store, Never()),
    "many processes": lambda store, path: MultiProcessFactoryStash(store, Never()),
    "one shot": lambda store, path: OneShotFactoryStash(store, never),
    "cached": lambda store, path: CacheStash(FactoryStash(store, Never())),
    "filtered": lambda store, path: FailureFilterStash(MultiProcessFactoryStash(store, Never()), path / "good.dat"),
    "sorted": lambda store, path: SortedStash(OneShotFactoryStash(store, never)),
}


@pytest.mark.parametrize("making", MAKING)
def test_what_could_be_made_is_not_there(making, tmp_path):
    store = DictionaryStash({"b": 2})
    target = MAKING[making](store, tmp_path)
    assert migrate(DictionaryStash({"a": 1, "b": 2, "d": 4}), target) == (2, 1)
    assert store.data == {"a": 1, "b": 2, "d": 4}
    with pytest.raises(MigrationError) as caught:
        migrate(DictionaryStash({"a": 1, "b": 3}), target)
    assert caught.value.keys == ("b",)


def test_it_can_be_made_still_after_that():
    target = FactoryStash(DictionaryStash(), DictionaryStash({"made": 7}))
    assert migrate(DictionaryStash({"a": 1}), target) == (1, 0)
    assert (target["made"], target["a"], target.delegate.data) == (7, 1, {"a": 1, "made": 7})


def test_what_is_hidden_is_there_and_is_not_replaced(tmp_path):
    failure = Failure(ValueError("no"))
    store = DictionaryStash({"a": failure, "b": 1})
    for target in (
        KeyLimitStash(store, 0),
        FailureFilterStash(store, tmp_path / "good.dat"),
        KeyLimitStash(FailureFilterStash(store, tmp_path / "good.dat"), 1),
    ):
        with pytest.raises(MigrationError) as caught:
            migrate(DictionaryStash({"a": 5, "b": 1}), target)
        assert caught.value.keys == ("a",)
        assert store["a"] is failure


@pytest.mark.parametrize("making", MAKING)
def test_a_source_makes_nothing(making, tmp_path):
    store, target = DictionaryStash({"b": 2}), DictionaryStash()
    source = MAKING[making](store, tmp_path)
    assert migrate(source, target) == (1, 0)
    assert target.data == store.data == {"b": 2}
    assert migrate(UnionStash((source, DictionaryStash({"d": 4}))), target) == (1, 1)
    assert target.data == {"b": 2, "d": 4}
    assert store.data == {"b": 2}


@pytest.mark.parametrize("cache", CACHES)
def test_a_source_gives_what_is_stored_not_what_a_cache_has(cache, tmp_path):
    source, target = CACHES[cache](DirectoryStash(tmp_path)), DictionaryStash()
    source["a"] = [1]
    source["a"].append("in memory only")
    assert migrate(source, target) == (1, 0)
    assert target.data == {"a": [1]}


def test_what_a_source_hides_is_copied_but_not_beside_a_subset(tmp_path):
    failure = Failure(ValueError("no"))
    store = DictionaryStash({"a": failure, "b": 1})
    for source in (KeyLimitStash(store, 1), FailureFilterStash(store, tmp_path / "good.dat")):
        target = DictionaryStash()
        assert migrate(source, target) == (2, 0)
    for dynamic in (False, True):
        target = DictionaryStash()
        assert migrate(KeySubsetStash(store, {"b"}, dynamic), target) == (1, 0)
        assert target.data == {"b": 1}


LONG = "long" * 100


@pytest.mark.parametrize(
    "wrap",
    [
        lambda store: store,
        CacheStash,
        lambda store: UnionStash((DictionaryStash(), store)),
        lambda store: KeySubsetStash(store, {"x", LONG}, True),
        lambda store: KeySubsetStash(store, {"x", LONG}),
    ],
    ids=["directory", "cache", "union", "dynamic subset", "subset"],
)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("fan_out", [0, 16])
def test_a_damaged_value_whose_key_lies_in_its_file_is_not_left_out(tmp_path, wrap, verify, fan_out):
    store, target = DirectoryStash(tmp_path / "data", fan_out=fan_out), DictionaryStash()
    store.dump_many({"x": 1, LONG: 2})
    path = store.key_to_path(LONG)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptValueError, match="is damaged"):
        migrate(wrap(store), target, verify=verify)
    assert LONG not in target
    assert sum(damage.repaired for damage in store.verify(repair="quarantine")) == 1
    assert sum(migrate(wrap(store), target, verify=verify)) == 1
    assert target.data == {"x": 1}


def test_a_subset_is_copied_though_a_value_beside_it_is_damaged(tmp_path):
    store = DirectoryStash(tmp_path / "data")
    store.dump_many({"x": 1, LONG: 2})
    store.key_to_path(LONG).write_bytes(b"cut")
    assert migrate(KeySubsetStash(store, {"x"}), DictionaryStash()) == (1, 0)


KEEPS_NOTHING = {
    "noop": lambda store: NoopStash(),
    "delegate of nothing": lambda store: DelegateStash(),
    "cache of nothing": lambda store: CacheStash(NoopStash(), cache_stash=store),
    "read only": ReadOnlyDelegateStash,
    "subset": lambda store: KeySubsetStash(store, {"a"}),
    "union": lambda store: UnionStash((store,)),
    "below": lambda store: SortedStash(CacheStash(ReadOnlyDelegateStash(store))),
    "given": lambda store: Never(),
}


@pytest.mark.parametrize("keeps_nothing", KEEPS_NOTHING)
@pytest.mark.parametrize("verify", [True, False])
def test_a_target_that_keeps_nothing_is_refused_before_anything_is_read(keeps_nothing, verify):
    store = DictionaryStash({"z": 0})
    with pytest.raises(InvalidDelegateError, match="target .* keeps nothing"):
        migrate(Never(), KEEPS_NOTHING[keeps_nothing](store), verify=verify)
    assert store.data == {"z": 0}


# runs that end early, and several at once


class Dies(DictionaryStash):
    """A source whose reader is killed at a value."""

    def _fetch(self, name):
        if name == "137":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._fetch(name)


@pytest.mark.parametrize("kind", ["directory", "spread", "signed", "sqlite", "lmdb", "shelve"])
def test_a_run_that_was_killed_goes_on(tmp_path, kind):
    def run():
        with KINDS[kind](tmp_path) as target:
            migrate(Dies(DATA), CacheStash(target))

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child.close()
    with KINDS[kind](tmp_path) as target:
        there = len(target)
        assert 0 < there < len(DATA)
        assert migrate(DictionaryStash(DATA), target) == (len(DATA) - there, there)
        assert dict(target) == DATA
        assert list(target.verify()) == []


class Waits(DictionaryStash):
    """A source during whose reading another thread gets its turn."""

    def begin(self, other):
        self.other = other
        self.thread = None

    def _fetch(self, name):
        if self.thread is None:
            self.thread = threading.Thread(target=self.other)
            self.thread.start()
            self.thread.join(0.5)
        return super()._fetch(name)


def two_at_once(target):
    """Return which of two migrations, from sources that differ, found everything in order."""
    source, other = Waits({"a": 1, "b": 1}), DictionaryStash({"a": 2, "b": 2})
    in_order = []

    def run(name, source):
        try:
            migrate(source, target)
        except MigrationError:
            return
        in_order.append(name)

    source.begin(lambda: run("other", other))
    run("one", source)
    source.thread.join()
    return in_order


@pytest.mark.parametrize("kind", KINDS)
def test_two_at_once_do_not_replace_what_the_other_one_has_put_there(tmp_path, kind):
    with KINDS[kind](tmp_path) as target:
        assert two_at_once(SortedStash(target)) == ["one"]
        assert dict(target) == {"a": 1, "b": 1}


def test_without_a_lock_two_at_once_replace_it():
    class Unlocked(DictionaryStash):
        def _flight(self, name, purpose="key"):
            return nullcontext()

    target = Unlocked()
    assert two_at_once(target) == ["other", "one"]
    assert dict(target) == {"a": 1, "b": 1}


def test_a_source_that_changes_meanwhile():
    source = DictionaryStash({str(n): n for n in range(250)})

    class Writes(DictionaryStash):
        def dump(self, name, inst):
            source[f"new {name}"] = 0
            source.delete("249")
            super().dump(name, inst)

    target = Writes()
    assert migrate(source, target, verify=False) == (249, 0)
    assert "249" not in target


def test_a_value_of_the_target_that_is_damaged_is_told_with_the_others(tmp_path):
    source, target = DictionaryStash({"a": 1, "b": 2, "c": 3}), DirectoryStash(tmp_path)
    migrate(source, target)
    target.key_to_path("a").write_bytes(b"cut")
    target["b"] = 5
    with pytest.raises(MigrationError, match="2 values of") as caught:
        migrate(source, target)
    assert caught.value.keys == ("a", "b")
    target.delete_many(caught.value.keys)
    assert migrate(source, target) == (2, 1)


def test_a_target_with_another_key_or_codec_is_no_difference(tmp_path):
    source = DictionaryStash({"a": 1})
    migrate(source, DirectoryStash(tmp_path, codec=SignedCodec(None, bytes(32))))
    with pytest.raises(SealError):
        migrate(source, DirectoryStash(tmp_path, codec=SignedCodec(None, bytes(range(32)))))


MOVABLE = {
    "directory": (DirectoryStash, "data"),
    "spread": (lambda path, **options: DirectoryStash(path, fan_out=16, **options), "data"),
    "sqlite": (SqliteStash, "data.db"),
    "lmdb": (LmdbStash, "data.lmdb"),
    "shelve": (ShelveStash, "shelf"),
}


@pytest.mark.parametrize("kind", MOVABLE)
def test_a_signed_store_that_was_moved_as_its_error_says(tmp_path, kind):
    make, name = MOVABLE[kind]
    one, two = folders(tmp_path)
    with make(one / name, codec=SignedCodec(None, bytes(32))) as stash:
        stash.dump_many({"a": 1, "b": [2]})
    one.rename(tmp_path / "moved")
    moved = tmp_path / "moved" / name
    with make(moved, codec=SignedCodec(None, bytes(32))) as stash, pytest.raises(SealError) as caught:
        stash["a"]
    assert "what was moved is read with its old path as scope=, and migrate() seals it" in str(caught.value)
    assert str(moved) in str(caught.value)
    with (
        make(moved, codec=SignedCodec(None, bytes(32), scope=str(one / name))) as source,
        make(two / name, codec=SignedCodec(None, bytes(32))) as target,
    ):
        assert migrate(source, target) == (2, 0)
        assert dict(target) == {"a": 1, "b": [2]}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_a_value_is_the_same_as_its_copy(value):
    assert is_same(value, pickle.loads(pickle.dumps(value)))


@given(VALUES, VALUES)
def test_what_is_the_same_is_equal(one, other):
    assert not is_same(one, other) or repr(one) == repr(other)


class Plain:
    def __init__(self, x):
        self.x = x


class Odd:
    def __eq__(self, other):
        raise RuntimeError("not me")

    __hash__ = None


class Holds:
    """An object without ``__eq__``, with something in it that has no order."""

    def __init__(self, seed):
        self.words = {f"{seed} {n * 7919 % 1000}" for n in range(50)}
        self.more = frozenset(range(seed, seed + 50))


@pytest.mark.parametrize("kind", ["memory", "directory", "spread", "sqlite", "lmdb"])
def test_arrays_frames_and_sets(tmp_path, kind):
    numpy = pytest.importorskip("numpy")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    source = DirectoryStash(tmp_path / "one", codec=PickleCodec(plain=True))
    values = {
        "array": numpy.arange(100_000),
        "object": numpy.array(["a", None, 3], dtype=object),
        "nan": numpy.array([float("nan")] * 20_000),
        "records": numpy.zeros(20_000, dtype=[("a", "i4"), ("b", "f8")]),
        "holds": [Holds(n) for n in range(20)],
    }
    for name, value in values.items():
        source.key_to_path(name).write_bytes(pickle.dumps(value))
    with KINDS[kind](tmp_path / "two") as target:
        assert migrate(source, target) == (len(values), 0)
        assert migrate(source, target) == (0, len(values))
        target["holds"] = [Holds(n) for n in range(1, 21)]
        target["nan"] = numpy.arange(20_000.0)
        with pytest.raises(MigrationError) as caught:
            migrate(source, target)
        assert sorted(caught.value.keys) == ["holds", "nan"]


def test_values_that_can_not_be_told_equal():
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(10)
    assert is_same(array, array.copy())
    assert is_same({"a": [array]}, {"a": [array.copy()]})
    assert not is_same(array, array + 1)
    assert is_same(float("nan"), float("nan"))
    assert is_same(Plain("text"), Plain("".join(["text"])))
    assert not is_same(Plain(1), Plain(2))
    for one, other in (
        (1, True),
        (0.0, -0.0),
        ([1], [True]),
        ({1}, {True}),
        ({"a": 1}, {"a": 1.0}),
        (5, 6),
        ((1,), [1]),
    ):
        assert not is_same(one, other)
    assert not is_same(Decimal(1), Decimal(2))
    assert is_same({1.5, "a"}, {"a", 1.5})
    assert is_same(Odd(), Odd())
    loop, other = [1], [1]
    loop.append(loop)
    other.append(other)
    assert is_same(loop, other)
    assert isinstance(Path("x"), Path)


def maker(x):
    return lambda: x


class Pair:
    """An object without ``__eq__``."""

    def __init__(self, *parts):
        self.parts = parts


def test_what_only_looks_the_same():
    numpy = pytest.importorskip("numpy")
    for one, other in (
        ({1: "a"}, {True: "a"}),
        ({"a": None}, {"b": None}),
        (memoryview(b"12345678"), memoryview(b"12345678").cast("q")),
        (maker(1), maker(2)),
        (numpy.array([1]), numpy.array([1.0])),
        (numpy.array([1]), numpy.array([[1]])),
    ):
        assert not is_same(one, other)
    assert is_same(maker(1), maker(1))
    assert is_same({1: "a"}, {1: "a"})


def empty():
    def inner():
        return later

    if empty is None:
        later = 1
    return inner


def test_keys_and_cells_that_can_not_tell():
    def nan():
        return float("nan")

    for make in (
        lambda: {nan(): 1},
        lambda: {nan(): 1, 2: 3, nan(): [4]},
        lambda: {Plain(1): "a", Plain(2): "b"},
        lambda: {(nan(), 1): Plain(2)},
        lambda: {nan(), (Plain(3),)},
        empty,
    ):
        assert is_same(make(), make())
    for one, other in (
        ({nan(): 1}, {nan(): 2}),
        ({nan(): 1}, {nan(): 1, 2: 2}),
        ({nan(): 1}, {0.0: 1}),
        ({Plain(1): "a", Plain(2): "b"}, {Plain(1): "b", Plain(2): "a"}),
        ({(1,): 0}, {(True,): 0}),
        ({(1,)}, {(True,)}),
        ({0.0: 0}, {-0.0: 0}),
        (empty(), maker(1)),
    ):
        assert not is_same(one, other)
        assert not is_same(other, one)


def test_a_pair_that_was_found_different_stays_so():
    # In sets each is tried with each; what differs in one trial is met again in the next.
    x, y = Pair(1), Pair(2)
    comparison = _Comparison()
    assert [comparison.same(x, y) for _ in range(3)] == [False] * 3
    assert not comparison.same(Pair(x, "a"), Pair(y, "a"))
    one, other = {Pair(x, "a"), Pair(x, "b")}, {Pair(y, "a"), Pair(y, "b")}
    assert not is_same(one, other)
    assert is_same(one, {Pair(Pair(1), "b"), Pair(Pair(1), "a")})
    assert not is_same([x, x], [y, y])
