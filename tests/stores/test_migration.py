"""From one stash into another."""

from __future__ import annotations

import pickle
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpersist import (
    CorruptValueError,
    DictionaryStash,
    DirectoryStash,
    EncodeError,
    InvalidDelegateError,
    JsonCodec,
    LmdbStash,
    Migration,
    MigrationError,
    PickleCodec,
    ShelveStash,
    SignedCodec,
    SqliteStash,
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
