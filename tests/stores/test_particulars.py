"""What single stores do beyond the conformance suite."""

from __future__ import annotations

import dbm
import gc
import multiprocessing
import os
import pickle
import shelve as standard
import sqlite3
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from zpersist import (
    CorruptValueError,
    DictionaryStash,
    DirectoryCompositeStash,
    DirectoryStash,
    EncodeError,
    IncrementKeyDirectoryStash,
    InvalidArgumentError,
    MissingDataKeysError,
    OneShotFactoryStash,
    ShelveStash,
    SqliteStash,
    StorageError,
    UnsupportedOperationError,
    ZipStash,
    shelve,
)
from zpersist.testing.reading import in_threads

fork = multiprocessing.get_context("fork")


# directory


def test_file_names(elsewhere):
    stash = DirectoryStash("data")
    stash.dump_many({"plain": 1, "Two Words": 2, "a/b": 3})
    assert sorted(os.listdir("data")) == ["Two Words.dat", "a%2Fb.dat", "plain.dat"]
    with open("data/plain.dat", "rb") as stream:
        assert pickle.load(stream) == 1
    assert stash.key_to_path("a/b") == elsewhere / "data/a%2Fb.dat"
    Path("data/foreign.txt").touch()
    Path("data/sub.dat").mkdir()
    Path("data/UP.DAT").touch()
    assert sorted(stash.keys()) == ["Two Words", "a/b", "plain"]


def test_reading_makes_nothing(elsewhere):
    stash = DirectoryStash("data")
    assert [stash.load("a"), "a" in stash, len(stash), stash.delete("a")] == [None, False, 0, False]
    stash.clear()
    assert os.listdir() == []


def test_a_directory_is_where_it_was_made(elsewhere, monkeypatch):
    stash = DirectoryStash("data")
    Path("other").mkdir()
    monkeypatch.chdir("other")
    stash.dump("a", 1)
    assert [os.listdir(), os.listdir("../data"), stash.key_to_path("a").exists()] == [[], ["a.dat"], True]
    with pytest.raises(AttributeError):
        stash.path = Path("elsewhere")


@pytest.mark.parametrize(
    "pattern", ["data.dat", "{name}{name}", "{key}.dat", "a/{name}", ".{name}", "{name}\0", "", 3, "{name}" + "x" * 60]
)
def test_unknown_patterns(pattern):
    with pytest.raises(InvalidArgumentError, match="pattern"):
        DirectoryStash("data", pattern)


def test_two_patterns_share_a_directory(elsewhere):
    one, other = DirectoryStash("data", "{name}.one"), DirectoryStash("data", "x-{name}.two")
    one.dump("k", 1)
    other.dump("k", 2)
    assert [dict(one), dict(other), sorted(os.listdir("data"))] == [{"k": 1}, {"k": 2}, ["k.one", "x-k.two"]]


def test_a_damaged_file_of_a_long_key_is_left_out_and_cleared(elsewhere, caplog):
    stash = DirectoryStash("data")
    stash.dump_many({"x" * 400: 1, "short": 2})
    stash.key_to_path("x" * 400).write_bytes(b"")
    assert list(stash.keys()) == ["short"]
    assert "can't be listed" in caplog.text
    with pytest.raises(CorruptValueError):
        stash["x" * 400]
    stash.clear()
    assert os.listdir("data") == []


class Holder:
    def __init__(self, array):
        self.array = array


def test_large_arrays_are_mapped(elsewhere):
    stash = DirectoryStash("data")
    arrays = [np.arange(20_000.0) * number for number in range(5)]
    value = {"holders": [Holder(array) for array in arrays], "small": np.arange(3)}
    stash.dump("a", value)
    loaded = stash.load("a")
    for array, holder in zip(arrays, loaded["holders"], strict=True):
        assert np.array_equal(array, holder.array)
        assert holder.array.ctypes.data % 64 == 0
        assert not holder.array.flags.writeable
    assert loaded["small"].flags.writeable
    stash.dump("a", "replaced")
    stash.delete("a")
    assert np.array_equal(arrays[4], loaded["holders"][4].array)
    stash.dump("a", value)
    copied = DirectoryStash("data", mmap=False).load("a")["holders"][1].array
    copied += 1
    assert np.array_equal(stash.load("a")["holders"][1].array, arrays[1])


def test_mapped_values_hold_no_descriptor_and_no_memory_once_they_are_gone(elsewhere):
    stash = DirectoryStash("data")
    stash.dump("a", np.arange(100_000.0))
    before = len(os.listdir("/proc/self/fd"))
    values = [stash.load("a") for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    maps = Path("/proc/self/maps").read_text().count("a.dat")
    assert maps == 50
    del values
    gc.collect()
    assert "a.dat" not in Path("/proc/self/maps").read_text()


def test_an_array_that_is_not_contiguous(elsewhere):
    stash = DirectoryStash("data")
    array = np.arange(200_000.0).reshape(400, 500)[::2, ::3]
    stash.dump("a", array)
    assert np.array_equal(stash.load("a"), array)


# counting up


def test_increment(elsewhere):
    stash = IncrementKeyDirectoryStash("runs", name="run")
    assert stash.load() is None
    stash.dump("5", None)
    assert [stash.load("5"), stash.get_last_key()] == [None, "5"]
    stash.dump("value")
    assert [stash.load(), stash.get_last_key(), stash.get_last_key(True)] == ["value", "6", "7"]
    assert stash.append(None) == "7"
    assert stash["7"] is None
    keys = in_threads(6, lambda number: [stash.append(number) for _ in range(5)])
    assert len({key for several in keys for key in several}) == 30
    assert len(stash) == 33


def test_increment_gives_no_none_that_nobody_wrote(elsewhere, monkeypatch):
    stash, other = IncrementKeyDirectoryStash("runs"), IncrementKeyDirectoryStash("runs")

    def exists(name):
        other.dump(name, "value")
        return True

    monkeypatch.setattr(stash, "exists", exists)
    with pytest.raises(KeyError):
        stash["1"]
    assert stash.get("2", "nothing") == "nothing"
    assert stash.load_many(["3"]) == {}
    stash.dump("4", None)
    assert [stash["4"], stash.load("4")] == [None, None]


def test_the_last_one_of_a_directory_whose_last_key_goes(elsewhere, monkeypatch):
    stash = IncrementKeyDirectoryStash("runs")
    stash.dump_many({"1": "first", "2": "second"})
    last = stash.get_last_key

    def get_last_key():
        key = last()
        if key == "2":
            IncrementKeyDirectoryStash("runs").delete("2")
        return key

    monkeypatch.setattr(stash, "get_last_key", get_last_key)
    assert stash.load() == "first"
    stash.delete("1")
    assert stash.load() is None


# composites


def make_composite(**options):
    return DirectoryCompositeStash("data", ({"a", "b"}, {"c"}), "parts", **options)


def test_composite(elsewhere):
    stash = make_composite()
    data = OrderedDict([("c", 3), ("a", 1), ("b", 2)])
    inst = SimpleNamespace(parts=data, name="x")
    stash.dump("1", inst)
    assert inst.parts is data
    loaded = stash.load("1")
    assert [type(loaded.parts), list(loaded.parts.items())] == [OrderedDict, list(data.items())]
    part = make_composite(load_keys={"a"}).load("1")
    assert part.parts == {"a": 1}
    part = make_composite(load_keys={"c"}).load("1")
    part.parts["c"] = 30
    stash.dump("1", part)
    assert dict(stash.load("1").parts) == {"c": 30, "a": 1, "b": 2}
    assert [stash.load("absent"), stash.delete("absent"), stash.delete("1")] == [None, False, True]
    assert sorted(str(path) for path in Path("data").rglob("*.dat")) == []


def test_composite_refuses(elsewhere):
    stash = make_composite()
    for parts, keys in (({"a": 1}, {"b"}), ({"a": 1, "b": 2}, {"c"}), ({"a": 1, "b": 2, "c": 3, "d": 4}, {"d"})):
        with pytest.raises(MissingDataKeysError) as caught:
            stash.dump("1", SimpleNamespace(parts=parts))
        assert caught.value.keys == keys
    with pytest.raises(InvalidArgumentError, match="more than one group"):
        DirectoryCompositeStash("data", ({"a"}, {"a"}), "parts")
    with pytest.raises(InvalidArgumentError, match="in no group"):
        make_composite(load_keys={"z"})
    with pytest.raises(UnsupportedOperationError):
        stash.add("1", SimpleNamespace(parts={}))


def test_composite_whose_dump_was_cut_short(elsewhere):
    stash = make_composite()
    stash.dump("1", SimpleNamespace(parts={"a": 1, "b": 2, "c": 3}))
    old = Path("data/comp/c/1.dat").read_bytes()
    stash.dump("1", SimpleNamespace(parts={"a": 10, "b": 20, "c": 30}))
    Path("data/comp/c/1.dat").write_bytes(old)
    with pytest.raises(CorruptValueError, match="cut short"):
        stash.load("1")
    assert make_composite(load_keys={"a"}).load("1").parts == {"a": 10}


MANY = [{f"k{number}"} for number in range(12)]


def whole(value):
    return SimpleNamespace(data={f"k{number}": value for number in range(12)})


def stop_in_the_middle(stash, monkeypatch, pause):
    """Have each deletion of an object stop after half of its groups."""
    group = stash._stash_by_group["k6"]
    delete = group.delete

    def stopping(name):
        pause()
        return delete(name)

    monkeypatch.setattr(group, "delete", stopping)


@pytest.mark.parametrize("verb", ["dump", "load", "delete"])
def test_composite_delete_excludes_other_threads(elsewhere, monkeypatch, verb):
    stash = DirectoryCompositeStash("data", MANY, "data")
    stash.dump("k", whole(1))
    other = DirectoryCompositeStash("data", MANY, "data")
    got = []
    arguments = {"dump": ("k", whole(2)), "load": ("k",), "delete": ("k",)}[verb]

    def work():
        try:
            got.append(getattr(other, verb)(*arguments))
        except Exception as err:
            got.append(err)

    thread = threading.Thread(target=work)

    def pause():
        thread.start()
        # One that waits for its turn says nothing: so it gets time to do harm.
        thread.join(0.3)

    stop_in_the_middle(stash, monkeypatch, pause)
    assert stash.delete("k")
    thread.join()
    assert got == [{"dump": None, "load": None, "delete": False}[verb]]
    assert ("k" in stash) == (verb == "dump")
    assert stash.load("k") == (whole(2) if verb == "dump" else None)
    assert len(list(Path("data").rglob("*.dat"))) == (13 if verb == "dump" else 0)


@pytest.mark.parametrize("verb", ["dump", "delete"])
def test_composite_load_excludes_other_threads(elsewhere, monkeypatch, verb):
    stash = DirectoryCompositeStash("data", MANY, "data")
    stash.dump("k", whole(1))
    arguments = {"dump": ("k", whole(2)), "delete": ("k",)}[verb]
    thread = threading.Thread(target=getattr(DirectoryCompositeStash("data", MANY, "data"), verb), args=arguments)
    read = stash._from_composite

    def reading(name, tokens):
        thread.start()
        thread.join(0.3)
        return read(name, tokens)

    monkeypatch.setattr(stash, "_from_composite", reading)
    assert stash.load("k") == whole(1)
    thread.join()
    monkeypatch.undo()
    assert stash.load("k") == (whole(2) if verb == "dump" else None)


@pytest.mark.parametrize("verb", ["dump", "load"])
def test_composite_delete_excludes_other_processes(elsewhere, monkeypatch, verb):
    stash = DirectoryCompositeStash("data", MANY, "data")
    stash.dump("k", whole(1))
    other = DirectoryCompositeStash("data", MANY, "data")
    begun, go = fork.Event(), fork.Event()

    def pause():
        begun.set()
        go.wait()

    stop_in_the_middle(stash, monkeypatch, pause)
    child = fork.Process(target=stash.delete, args=("k",))
    child.start()
    begun.wait()
    timer = threading.Timer(0.3, go.set)
    timer.start()
    got = other.dump("k", whole(2)) if verb == "dump" else other.load("k")
    assert got is None
    timer.join()
    child.join()
    assert child.exitcode == 0
    child.close()
    assert other.load("k") == (whole(2) if verb == "dump" else None)


def test_composite_delete_of_what_is_not_there(elsewhere):
    stash = make_composite(durability="fsync")
    assert stash.delete("1") is False
    stash.dump("1", SimpleNamespace(parts={"a": 1, "b": 2, "c": 3}))
    Path("data/inst/1.dat").unlink()
    assert stash.delete("1") is False
    assert list(Path("data").rglob("*.dat")) == []
    Path("data/inst/1.dat").mkdir()
    with pytest.raises(StorageError, match="can not delete"):
        stash.delete("1")


# SQLite


def test_sqlite_tables_are_stashes_of_their_own(elsewhere):
    with SqliteStash("data.db") as one, SqliteStash("data.db", table="other") as other:
        one.dump("k", 1)
        other.dump("k", 2)
        one.clear()
        assert [dict(one), dict(other)] == [{}, {"k": 2}]
    for wrong in ("", "a b", 'a"b', "a;b", "1a", "ключ", "x" * 49, None):
        with pytest.raises(InvalidArgumentError, match="table"):
            SqliteStash("data.db", table=wrong)


def test_sqlite_sees_what_others_write(elsewhere):
    with SqliteStash("data.db") as one, SqliteStash("data.db") as other:
        one.dump("a", 1)
        assert other["a"] == 1
        other.update("a", lambda value: value + 1)
        assert one["a"] == 2
        names = iter(one.keys())
        other.dump_many({str(number): number for number in range(3000)})
        assert len(set(names)) == 3001


def test_sqlite_update_that_fails_leaves_no_transaction(elsewhere):
    with SqliteStash("data.db") as one, SqliteStash("data.db") as other:
        with pytest.raises(EncodeError):
            one.update("a", lambda value: lambda: None)
        other.dump("a", 1)
        assert one["a"] == 1


def test_sqlite_waits_and_then_says_so(elsewhere):
    with SqliteStash("data.db", timeout=0.05) as stash:
        stash.dump("a", 1)
        db = sqlite3.connect("data.db", isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            stash.dump("a", 2)
        db.execute("ROLLBACK")
        db.close()
        assert stash["a"] == 1


def test_sqlite_of_what_is_no_database(elsewhere):
    Path("data.db").write_bytes(b"x" * 5000)
    with SqliteStash("data.db") as stash, pytest.raises(CorruptValueError, match="no SQLite database"):
        stash.load("a")
    assert Path("data.db").read_bytes() == b"x" * 5000


def test_sqlite_opened_by_many_at_once(elsewhere):
    code = "from zpersist import SqliteStash\nwith SqliteStash('data.db') as s: s.update('n', lambda n: n + 1, 0)"
    children = [subprocess.Popen([sys.executable, "-c", code], env=environment()) for _ in range(6)]
    assert [child.wait() for child in children] == [0] * 6
    with SqliteStash("data.db") as stash:
        assert stash["n"] == 6


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


# shelves


def test_shelve(elsewhere):
    extension = ShelveStash.get_extension()
    stash = ShelveStash("shelf")
    assert not stash.real_path.exists()
    assert stash.load("a") is None
    assert stash.real_path.exists()
    stash.dump("a", [1])
    with standard.open("shelf", "r") as shelf:
        assert shelf["a"] == [1]
    stash.clear()
    assert not stash.real_path.exists()
    assert [name for name in os.listdir() if not name.startswith(".")] == []
    assert extension is None or not extension.startswith(".")


def test_shelve_is_not_poisoned(elsewhere):
    with shelve("shelf") as stash:
        stash.dump("a", [1])
        with pytest.raises(EncodeError):
            stash.dump("b", lambda: None)
        stash.load("a").append(2)
    with shelve("shelf") as stash:
        assert dict(stash) == {"a": [1, 2]}
        stash.load("a").append(lambda: None)
        stash.dump("c", 3)
        with pytest.raises(EncodeError):
            stash.close()
        assert not stash.is_open
        assert dict(stash) == {"a": [1, 2], "c": 3}


def test_shelve_without_writeback(elsewhere):
    with shelve("shelf", writeback=False) as stash:
        stash.dump("a", [1])
        stash.load("a").append(2)
    assert ShelveStash("shelf")["a"] == [1]


def test_shelve_that_is_open_elsewhere(elsewhere):
    with shelve("shelf") as stash:
        stash.dump("a", 1)
        with pytest.raises(StorageError, match=r"close\(\) it there"):
            ShelveStash("shelf", timeout=0.05).load("a")
    assert ShelveStash("shelf")["a"] == 1


def test_shelve_that_a_child_inherits(elsewhere):
    go = fork.Event()
    stash = ShelveStash("shelf", auto_close=False)
    stash["a"] = [1]
    stash["a"].append(2)

    def work():
        go.wait()
        assert "b" not in stash
        assert stash["a"] == "newer"
        stash.close()

    child = fork.Process(target=work)
    child.start()
    stash.close()
    ShelveStash("shelf")["a"] = "newer"
    go.set()
    child.join()
    assert child.exitcode == 0
    child.close()
    assert ShelveStash("shelf")["a"] == "newer"


def test_shelve_that_a_child_drops_without_using_it(elsewhere):
    go = fork.Event()
    shelves = [ShelveStash("shelf", auto_close=False)]
    shelves[0]["a"] = [1]

    def work():
        go.wait()
        shelves.clear()
        gc.collect()

    child = fork.Process(target=work)
    child.start()
    shelves[0].close()
    ShelveStash("shelf")["a"] = "newer" * 1000
    go.set()
    child.join()
    assert child.exitcode == 0
    child.close()
    assert ShelveStash("shelf")["a"] == "newer" * 1000


def test_shelve_used_by_a_child_that_was_forked_within_an_update(elsewhere):
    stash = ShelveStash("shelf")

    def fn(old):
        if os.fork() == 0:
            return "child"
        return "parent"

    mine = os.getpid()
    try:
        stash.update("a", fn)
        if os.getpid() != mine:
            os._exit(0 if (stash["a"], stash.is_open, stash._db.depth) == ("child", False, 0) else 1)
    finally:
        if os.getpid() != mine:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert stash["a"] == "child"


@pytest.mark.parametrize("auto_close", [True, False])
@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("mine"), FileNotFoundError(2, "mine"), ValueError("mine"), dbm.error[0]("mine")]
)
def test_shelve_passes_on_what_the_function_of_an_update_raises(elsewhere, error, auto_close):
    def fn(old):
        old.append(2)
        raise error

    stash = ShelveStash("shelf")
    stash["a"] = [1]
    with ShelveStash("shelf", auto_close=auto_close) as other:
        with pytest.raises(type(error)) as caught:
            other.update("a", fn)
        assert caught.value is error
        assert other["a"] == [1]
    assert stash["a"] == [1]


# archives


def test_zip(elsewhere):
    import zipfile

    with zipfile.ZipFile("a.zip", "w") as archive:
        for name in ("one/b", "one/a", "oneself/c", "x"):
            archive.writestr(name, name)
    with ZipStash("a.zip") as stash:
        assert list(stash.keys()) == ["one/b", "one/a", "oneself/c", "x"]
        assert list(ZipStash("a.zip", root="one").keys()) == ["b", "a"]
        with zipfile.ZipFile("b.zip", "w") as archive:
            archive.writestr("other", "other")
        stash.path = "b.zip"
        assert list(stash) == [("other", b"other")]
    for root in ("one/", "/one", ""):
        with pytest.raises(InvalidArgumentError, match="Roots can not start"):
            ZipStash("a.zip", root=root)
    Path("c.zip").write_bytes(b"no archive")
    with pytest.raises(CorruptValueError, match=r"c\.zip"):
        ZipStash("c.zip").load("a")
    with pytest.raises(StorageError):
        ZipStash("absent.zip").load("a")
    ZipStash("a.zip").close()
    gc.collect()


# memory


def test_dictionary():
    data = {"a": 1}
    stash = DictionaryStash(data)
    keys = stash.keys()
    stash.dump("b", 2)
    assert [len(keys), keys == {"a", "b"}, stash.data is data] == [2, True, True]
    stash[3] = "int keys are fine in memory"
    assert [3 in stash.mapping, stash.mapping[3], [] in stash.mapping] == [True, stash[3], False]
    stash.clear()
    assert data == {}
    with pytest.raises(InvalidArgumentError, match="mutable mapping"):
        DictionaryStash([1])


def test_user_stash_with_four_methods(elsewhere):
    from zpersist import Stash

    class Own(Stash):
        def __init__(self):
            self.data = {}

        def load(self, name):
            return self.data.get(name)

        def dump(self, name, inst):
            self.data[name] = inst

        def delete(self, name):
            return self.data.pop(name, self) is not self

        def keys(self):
            return self.data.keys()

    stash = Own()
    stash.dump("none", None)
    assert [stash["none"], "none" in stash, "absent" in stash, stash.get("absent", 1)] == [None, True, False, 1]
    with pytest.raises(UnsupportedOperationError, match="has no atomic"):
        stash.add("a", 1)
    filled = OneShotFactoryStash(stash, [("a", 1)])
    assert dict(filled) == {"none": None}
    with pytest.raises(UnsupportedOperationError, match="must define load"):

        class Nothing(Own):
            load = Stash.load
            _fetch = Stash._fetch

        Nothing().load("a")
