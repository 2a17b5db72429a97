"""Bad input, item by item: an error of ours that names the value and says what to do, and nothing is harmed."""

from __future__ import annotations

import errno
import os
import pickle
import re
import threading
from pathlib import Path

import pytest

from tests.faults.test_locks import give_up_privileges
from tests.faults.test_writes import forked
from zpersist import (
    CacheFactoryStash,
    CacheStash,
    CodecMismatchError,
    CorruptValueError,
    DeallocatedError,
    DictionaryStash,
    DillCodec,
    DirectoryCompositeStash,
    DirectoryStash,
    EncodeError,
    FactoryStash,
    FailureFilterStash,
    IncrementKeyDirectoryStash,
    InvalidArgumentError,
    InvalidDelegateError,
    InvalidKeyError,
    KeyLimitStash,
    KeySubsetStash,
    LRUCacheStash,
    MultiProcessDefaultStash,
    MultiProcessFactoryStash,
    NoopStash,
    OneShotFactoryStash,
    OwnerError,
    PersistableContainer,
    PersistedWork,
    PickleCodec,
    ShelveStash,
    SortedStash,
    SqliteStash,
    StorageError,
    UnionStash,
    ZipStash,
    ZPersistError,
    chunks,
    persisted,
    persisted_property,
)
from zpersist.parallel.guard import available_cores

STORES = {
    "directory": lambda path: DirectoryStash(path / "data"),
    "sqlite": lambda path: SqliteStash(path / "data.db"),
    "shelve": lambda path: ShelveStash(path / "shelf"),
    "cache": lambda path: CacheStash(DirectoryStash(path / "data")),
    "factory": lambda path: FactoryStash(SqliteStash(path / "data.db"), NoopStash()),
}


def raises(kind, *words):
    """Expect an error of ours, of exactly this kind, whose message has all these words."""
    assert issubclass(kind, ZPersistError)
    pattern = "".join(f"(?=.*{re.escape(str(word))})" for word in words)
    return pytest.raises(kind, match=f"(?s)^{pattern}")


def content(path):
    """Return what lies below a directory."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and not file.name.endswith((".lock", "-shm", "-wal"))
    }


@pytest.fixture(params=STORES)
def stash(request, tmp_path):
    """Return each store with something in it, which must be there at the end."""
    with STORES[request.param](tmp_path) as made:
        made.dump("kept", ["unharmed"])
        yield made
        assert list(made) == [("kept", ["unharmed"])]


# keys

KEYED = {
    "load": lambda stash, key: stash.load(key),
    "get": lambda stash, key: stash.get(key),
    "[]": lambda stash, key: stash[key],
    "dump": lambda stash, key: stash.dump(key, "new"),
    "[]=": lambda stash, key: stash.__setitem__(key, "new"),
    "delete": lambda stash, key: stash.delete(key),
    "del": lambda stash, key: stash.__delitem__(key),
    "exists": lambda stash, key: stash.exists(key),
    "in": lambda stash, key: key in stash,
    "add": lambda stash, key: stash.add(key, "new"),
    "update": lambda stash, key: stash.update(key, lambda old: "new"),
    "load_many": lambda stash, key: stash.load_many(["kept", key]),
    "dump_many": lambda stash, key: stash.dump_many([(key, "new")]),
    "delete_many": lambda stash, key: stash.delete_many([key]),
}


@pytest.mark.parametrize("verb", KEYED)
@pytest.mark.parametrize(
    "key, words",
    [
        ("", ["the key is empty", "give it at least one character"]),
        (3, ["key 3 is of type int", "str keys only", "use str(key)"]),
        (b"kept", ["key b'kept' is of type bytes", "use str(key)"]),
        (("a", 1), ["key ('a', 1) is of type tuple", "use str(key)"]),
        (1.5, ["key 1.5 is of type float", "use str(key)"]),
        (Path("kept"), ["Path('kept')", "use str(key)"]),
        (None, ["key None is of type NoneType", "use clear() to delete everything"]),
        ("x" * 1025, ["xxxx", "1025 bytes", "the most is 1024", "use a digest"]),
        ("é" * 513, ["éééé", "1026 bytes", "the most is 1024", "use a digest"]),
        ("x" * 10**6, ["1000000 bytes", "use a digest"]),
        ("\ud800", ["'\\ud800'", "lone surrogate", "not valid Unicode"]),
    ],
    ids=["empty", "int", "bytes", "tuple", "float", "path", "None", "long", "long in bytes", "very long", "surrogate"],
)
def test_bad_keys(key, words, verb, stash):
    with raises(InvalidKeyError, *words) as caught:
        KEYED[verb](stash, key)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300, "a message can be read"


@pytest.mark.parametrize("key, words", [("", ["empty"]), (None, ["None", "clear()"]), ("x" * 1025, ["1025 bytes"])])
def test_bad_keys_in_memory(key, words):
    for stash in (DictionaryStash({"kept": 1}), LRUCacheStash(5)):
        before = list(stash)
        for verb in ("dump", "delete", "add", "update"):
            with raises(InvalidKeyError, *words):
                KEYED[verb](stash, key)
        assert list(stash) == before


def test_a_key_that_can_not_be_hashed_in_memory():
    stash = DictionaryStash({"kept": 1})
    with pytest.raises(TypeError):
        stash.dump([], 1)
    assert list(stash) == [("kept", 1)]


def test_a_bad_key_among_good_ones(stash):
    with raises(InvalidKeyError, "the key is empty"):
        stash.dump_many([("", 1), ("never", 1)])
    with raises(InvalidKeyError, "use str(key)"):
        stash.load_many(["kept", 3])
    with raises(InvalidKeyError, "use str(key)"):
        stash.delete_many([3, "kept"])


# a path whose parent is missing


def work_at(path, **options):
    work = PersistedWork(path, None, **options)
    work.worker = lambda: "computed"
    return work


def test_a_missing_parent(tmp_path):
    path = tmp_path / "missing" / "deeper" / "work.dat"
    work = work_at(path)
    computed = []
    work.worker = lambda: computed.append(1)
    for use in (work, lambda: work.set(1)):
        with raises(StorageError, path.parent, "is missing", "make it", "mkdir=True") as caught:
            use()
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == str(path.parent)
    assert computed == []
    assert not work.is_set()
    work.clear()
    assert list(tmp_path.iterdir()) == []
    assert work_at(path, mkdir=True)() == "computed"


def test_a_missing_parent_of_a_decorated_method(tmp_path):
    class Owner:
        @property
        @persisted("_v", path=tmp_path / "missing" / "v.dat")
        def v(self):
            raise AssertionError("nothing is computed that can't be kept")

        @persisted_property(path=tmp_path / "missing" / "v.dat")
        def w(self):
            raise AssertionError

    for name in ("v", "w"):
        with raises(StorageError, tmp_path / "missing", "mkdir=True"):
            getattr(Owner(), name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_archive_and_a_missing_file_of_keys(tmp_path):
    with raises(StorageError, tmp_path / "none.zip", "No such file"):
        ZipStash(tmp_path / "none.zip").load("a")
    with raises(StorageError, tmp_path / "none.txt", "No such file"):
        KeySubsetStash(DictionaryStash(), tmp_path / "none.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [DirectoryStash, SqliteStash, ShelveStash, ZipStash, IncrementKeyDirectoryStash])
@pytest.mark.parametrize("path", ["", None, 3, b"bytes", ["a"]], ids=repr)
def test_what_is_no_path(path, kind):
    with raises(InvalidArgumentError, "path must be a path or a str", repr(path)):
        kind(path)


@pytest.mark.parametrize("path", ["", None, 3, b"bytes", ["a"]], ids=repr)
def test_what_is_no_path_of_a_work(path):
    with raises(InvalidArgumentError, "must be a Path (a file) or a str (a name)", repr(path)):
        PersistedWork(path, None)


@pytest.mark.parametrize("path, words", [("a\0b", "null character"), ("\ud800", "lone surrogate")])
@pytest.mark.parametrize(
    "kind",
    [DirectoryStash, SqliteStash, ShelveStash, ZipStash, IncrementKeyDirectoryStash, lambda path: work_at(Path(path))],
)
def test_what_no_file_can_be_named(path, words, kind):
    with raises(InvalidArgumentError, repr(path), words):
        kind(path)


@pytest.mark.parametrize("codec", [None, b"pickle", PickleCodec, 3])
@pytest.mark.parametrize("kind", [DirectoryStash, SqliteStash, ShelveStash])
def test_what_is_no_codec(codec, kind, tmp_path):
    with raises(InvalidArgumentError, f"codec of {kind.__name__} must be a codec", repr(codec)):
        kind(tmp_path / "data", codec=codec)


@pytest.mark.parametrize("timeout", ["x", None, -1, True, float("nan")])
def test_what_is_no_timeout(timeout, tmp_path):
    with raises(InvalidArgumentError, "timeout must be a number of seconds", repr(timeout)):
        SqliteStash(tmp_path / "data.db", timeout=timeout)


@pytest.mark.parametrize("version", [3, None, b"1"])
def test_what_is_no_version(version, tmp_path):
    with raises(InvalidArgumentError, "version must be a str", repr(version), "use str(version)"):
        work_at(tmp_path / "work.dat", version=version)


# a directory where a file should be, and the other way round


def file_uses(path):
    """Return what is done where a file is expected, each with the place of the file."""
    work, stash = path / "work.dat", DirectoryStash(path / "data")
    stash.dump("kept", 1)
    value = stash.key_to_path("a")
    return {
        "get a work": (work, work_at(work)),
        "set a work": (work, lambda: work_at(work).set(1)),
        "clear a work": (work, lambda: work_at(work).clear()),
        "load": (value, lambda: stash.load("a")),
        "dump": (value, lambda: stash.dump("a", 1)),
        "delete": (value, lambda: stash.delete("a")),
        "update": (value, lambda: stash.update("a", lambda old: old)),
        "sqlite": (path / "data.db", lambda: SqliteStash(path / "data.db").dump("a", 1)),
        "sqlite load": (path / "data.db", lambda: SqliteStash(path / "data.db").load("a")),
        "zip": (path / "a.zip", lambda: ZipStash(path / "a.zip").load("a")),
        "keys": (path / "keys.txt", lambda: KeySubsetStash(stash, path / "keys.txt")),
        "failures": (path / "good.dat", lambda: list(FailureFilterStash(stash, path / "good.dat").keys())),
    }


FILE_USES = [
    "get a work", "set a work", "clear a work", "load", "dump", "delete", "update", "sqlite", "sqlite load", "zip",
    "keys", "failures",
]  # fmt: skip


@pytest.mark.parametrize("use", FILE_USES)
def test_a_directory_where_a_file_should_be(use, tmp_path):
    place, do = file_uses(tmp_path)[use]
    place.mkdir()
    (place / "inside").write_bytes(b"mine")
    before = content(tmp_path)
    with raises(StorageError, place) as caught:
        do()
    assert caught.value.errno == errno.EISDIR
    assert re.search("(?i)directory", str(caught.value))
    assert content(tmp_path) == before
    assert DirectoryStash(tmp_path / "data")["kept"] == 1


@pytest.mark.parametrize("use", ["get a work", "dump", "load", "sqlite"])
def test_the_error_about_a_directory_says_what_to_do(use, tmp_path):
    place, do = file_uses(tmp_path)[use]
    place.mkdir()
    with raises(StorageError, "move it away"):
        do()


def test_a_directory_beside_the_values_is_no_value(tmp_path):
    stash = DirectoryStash(tmp_path)
    stash.dump("kept", 1)
    stash.key_to_path("a").mkdir()
    assert list(stash) == [("kept", 1)]
    assert not stash.exists("a")
    stash.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["a.dat"]


FOLDER_USES = {
    "dump": lambda path: DirectoryStash(path).dump("a", 1),
    "dump below": lambda path: DirectoryStash(path / "below").dump("a", 1),
    "load": lambda path: DirectoryStash(path).load("a"),
    "load below": lambda path: DirectoryStash(path / "below").load("a"),
    "keys": lambda path: list(DirectoryStash(path).keys()),
    "delete": lambda path: DirectoryStash(path).delete("a"),
    "update": lambda path: DirectoryStash(path).update("a", lambda old: old),
    "flight": lambda path: DirectoryStash(path / "below")._flight("a").__enter__(),
    "increment": lambda path: IncrementKeyDirectoryStash(path).dump(1),
    "composite": lambda path: DirectoryCompositeStash(path, ({"a"},), "data").dump("x", Holder()),
    "composite load": lambda path: DirectoryCompositeStash(path, ({"a"},), "data").load("x"),
    "sqlite": lambda path: SqliteStash(path / "data.db").dump("a", 1),
    "shelve": lambda path: ShelveStash(path / "shelf").dump("a", 1),
    "get a work": lambda path: work_at(path / "work.dat")(),
    "set a work": lambda path: work_at(path / "work.dat").set(1),
    "make a work": lambda path: work_at(path / "work.dat", mkdir=True)(),
    "make a work below": lambda path: work_at(path / "below" / "work.dat", mkdir=True)(),
}


class Holder:
    def __init__(self):
        self.data = {"a": 1}


@pytest.mark.parametrize("use", FOLDER_USES)
def test_a_file_where_a_directory_should_be(use, tmp_path):
    place = tmp_path / "file"
    place.write_bytes(b"mine")
    with raises(StorageError, place) as caught:
        FOLDER_USES[use](place)
    assert caught.value.errno in (errno.ENOTDIR, errno.ENOENT)
    assert re.search("(?i)directory", str(caught.value))
    assert content(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("use", ["dump", "dump below", "load", "sqlite", "shelve", "make a work"])
def test_the_error_about_a_file_in_the_way_says_what_to_do(use, tmp_path):
    place = tmp_path / "file"
    place.write_bytes(b"mine")
    with raises(StorageError, "move it away"):
        FOLDER_USES[use](place)


# a file without permission


def test_a_file_without_permission(tmp_path):
    with SqliteStash(tmp_path / "data.db") as database:
        database.dump("a", 1)
    stash = DirectoryStash(tmp_path / "data")
    stash.dump_many({"a": 1, "b": 2})
    stash.key_to_path("a").chmod(0)
    work_at(tmp_path / "work.dat").set("kept")
    (tmp_path / "work.dat").chmod(0)
    (tmp_path / "data.db").chmod(0)
    before = content(tmp_path)

    def use():
        give_up_privileges()
        for place, do in {
            stash.key_to_path("a"): lambda: stash.load("a"),
            tmp_path / "data" / "a.dat": lambda: stash.update("a", lambda old: 2),
            tmp_path / "data/a.dat": lambda: dict(stash.items()),
            tmp_path / "work.dat": lambda: work_at(tmp_path / "work.dat")(),
            tmp_path / "data.db": lambda: SqliteStash(tmp_path / "data.db").load("a"),
        }.items():
            with raises(StorageError, place, "ermission") as caught:
                do()
            assert caught.value.errno == errno.EACCES
        assert stash["b"] == 2
        assert sorted(stash.keys()) == ["a", "b"]

    assert forked(use) == 0
    assert content(tmp_path) == before
    # Its directory may be written to: then a value is replaced, whatever its own mode.
    stash.dump("a", 3)
    assert stash["a"] == 3


def test_a_directory_without_permission(tmp_path):
    stash = DirectoryStash(tmp_path / "data")
    stash.dump("kept", 1)
    work_at(tmp_path / "data" / "kept.work").set("kept")
    before = content(tmp_path)
    computed = []

    def use():
        give_up_privileges()
        stash.path.chmod(0o500)
        work = work_at(tmp_path / "data" / "new.work")
        work.worker = lambda: computed.append(1)
        for do in (
            lambda: stash.dump("a", 1),
            lambda: stash.dump("kept", 2),
            lambda: stash.add("a", 2),
            lambda: stash.delete("kept"),
            lambda: stash.update("kept", lambda old: 2),
            work,
            lambda: work_at(tmp_path / "data" / "kept.work").set(1),
            lambda: SqliteStash(tmp_path / "data" / "new.db").dump("a", 1),
            lambda: DirectoryStash(tmp_path / "data" / "below").dump("a", 1),
            stash.clear,
        ):
            with raises(StorageError, tmp_path / "data") as caught:
                do()
            assert caught.value.errno == errno.EACCES, caught.value
        assert computed == []
        assert stash["kept"] == 1
        stash.path.chmod(0)
        for do in (lambda: stash.load("kept"), lambda: list(stash.keys()), work):
            with raises(StorageError, tmp_path / "data", "ermission") as caught:
                do()
            assert caught.value.errno == errno.EACCES

    try:
        assert forked(use) == 0
    finally:
        stash.path.chmod(0o700)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "ask",
    [
        lambda path: DirectoryStash(path).exists("kept"),
        lambda path: "kept" in DirectoryStash(path),
        lambda path: DirectoryStash(path).add("kept", 2),
        lambda path: work_at(path / "work").is_set(),
    ],
    ids=["exists", "in", "add", "is_set"],
)
def test_a_place_without_permission_is_not_an_empty_one(ask, tmp_path):
    stash = DirectoryStash(tmp_path / "data")
    stash.dump("kept", 1)
    work_at(tmp_path / "data" / "work").set(1)

    def use():
        give_up_privileges()
        stash.path.chmod(0)
        with raises(StorageError, tmp_path / "data"):
            ask(stash.path)

    try:
        assert forked(use) == 0
    finally:
        stash.path.chmod(0o700)


def test_the_error_about_permission_says_what_to_do(tmp_path):
    stash = DirectoryStash(tmp_path / "data")
    stash.dump("a", 1)

    def use():
        give_up_privileges()
        stash.key_to_path("a").chmod(0)
        with raises(StorageError, "chmod"):
            stash.load("a")
        stash.path.chmod(0o500)
        with raises(StorageError, "chmod"):
            stash.dump("a", 1)

    try:
        assert forked(use) == 0
    finally:
        stash.path.chmod(0o700)


# a file that is cut, empty, flipped, or made by another codec

DAMAGE = {
    "empty": (lambda data: b"", "it is empty"),
    "cut": (lambda data: data[:-1], "it does not end as zpersist ends a value"),
    "cut short": (lambda data: data[:20], "it has only 20 bytes"),
    "flipped": (lambda data: bytes([data[0] ^ 1]) + data[1:], "its checksum is wrong"),
    "foreign": (lambda data: pickle.dumps(["a foreign pickle"] * 20), "it does not end as zpersist ends a value"),
    "longer": (lambda data: b"\0" + data, "bytes"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file(damage, tmp_path):
    change, what = DAMAGE[damage]
    stash = DirectoryStash(tmp_path)
    stash.dump_many({"a": ["value"], "kept": 1})
    work_at(tmp_path / "work").set(["value"])
    for path, do in (
        (stash.key_to_path("a"), lambda: stash.load("a")),
        (tmp_path / "work", work_at(tmp_path / "work")),
    ):
        path.write_bytes(change(path.read_bytes()))
        before = content(tmp_path)
        with raises(CorruptValueError, path, "is damaged", what, "delete it, or restore it from a copy"):
            do()
        assert content(tmp_path) == before
    assert stash["kept"] == 1
    with raises(CorruptValueError, "recover_empty=True"):
        work_at(tmp_path / "work")()


def test_a_file_of_another_codec(tmp_path):
    DirectoryStash(tmp_path, codec=DillCodec()).dump("a", 1)
    stash = DirectoryStash(tmp_path)
    before = content(tmp_path)
    with raises(CodecMismatchError, tmp_path / "a.dat", "'dill'", "'pickle' is configured", "open it with the codec"):
        stash.load("a")
    with raises(CodecMismatchError, tmp_path / "a.dat", "'dill'", "'pickle' is configured", "open it with the codec"):
        work_at(tmp_path / "a.dat", recover_empty=True)()
    assert content(tmp_path) == before
    assert DirectoryStash(tmp_path, codec=DillCodec())["a"] == 1


def test_a_damaged_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with raises(CorruptValueError, tmp_path / "a.zip", "is damaged, or no ZIP archive"):
        ZipStash(tmp_path / "a.zip").load("a")


def test_a_damaged_database(tmp_path):
    (tmp_path / "data.db").write_bytes(b"no database " * 100)
    with raises(CorruptValueError, tmp_path / "data.db", "is damaged, or no SQLite database", "restore it from a copy"):
        SqliteStash(tmp_path / "data.db").load("a")


# a value that can't be pickled


class Refuses:
    def __reduce__(self):
        raise RuntimeError("not me")


def deep():
    nested: list = []
    for _ in range(200_000):
        nested = [nested]
    return nested


UNPICKLABLE = {
    "lambda": lambda: lambda: None,
    "local class": lambda: type("Local", (), {})(),
    "lock": threading.Lock,
    "generator": lambda: (n for n in range(3)),
    "one that refuses": Refuses,
    "deep inside": lambda: {"a": [1, {"b": Refuses()}]},
    "too deep": deep,
}


@pytest.mark.parametrize("value", UNPICKLABLE)
def test_a_value_that_can_not_be_pickled(value, stash):
    inst = UNPICKLABLE[value]()
    for do in (
        lambda: stash.dump("kept", inst),
        lambda: stash.dump("new", inst),
        lambda: stash.add("new", inst),
        lambda: stash.update("kept", lambda old: inst),
        lambda: stash.dump_many({"kept": inst}),
    ):
        with raises(EncodeError, type(inst).__qualname__, "can't be pickled", "codec=DillCodec()") as caught:
            do()
        assert isinstance(caught.value, TypeError)
        assert str(caught.value).count("can't be written: ") == 1
        assert list(stash.keys()) == ["kept"]
        assert stash["kept"] == ["unharmed"]


@pytest.mark.parametrize("value", ["generator", "one that refuses", "too deep"])
def test_a_value_that_dill_can_not_write_either(value, tmp_path):
    stash = DirectoryStash(tmp_path, codec=DillCodec())
    stash.dump("kept", 1)
    inst = UNPICKLABLE[value]()
    with raises(EncodeError, type(inst).__qualname__, "can't be written by dill"):
        stash.dump("kept", inst)
    assert list(stash) == [("kept", 1)]


def test_a_result_that_can_not_be_pickled(tmp_path):
    work = work_at(tmp_path / "work.dat")
    work.set("kept")
    before = content(tmp_path)
    with raises(EncodeError, "can't be pickled", "DillCodec"):
        work.set(lambda: None)
    assert work() == "kept"
    assert content(tmp_path) == before
    other = work_at(tmp_path / "other.dat")
    other.worker = Refuses
    with raises(EncodeError, "Refuses", "can't be pickled", "not me"):
        other()
    assert not other.is_set()
    assert content(tmp_path) == before


# a full disk


def test_a_full_disk(stash, tmp_path, monkeypatch):
    # As it looks to who writes; really full ones are in tests/faults.
    if not isinstance(getattr(stash, "delegate", stash), DirectoryStash):
        return

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    work = work_at(tmp_path / "work.dat")
    work.set("kept")
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(os, "writev", full)
        for place, do in (
            (tmp_path / "data" / "kept.dat", lambda: stash.dump("kept", 1)),
            (tmp_path / "data" / "new.dat", lambda: stash.add("new", 1)),
            (tmp_path / "work.dat", lambda: work.set(1)),
        ):
            with raises(StorageError, place, "No space left", "what was there is untouched") as caught:
                do()
            assert caught.value.errno == errno.ENOSPC
            assert content(tmp_path) == before
    assert work() == work_at(tmp_path / "work.dat")() == "kept"


# something that is no stash

NO_STASH = {
    "mapping": ({}, "wrap a mapping in DictionaryStash(mapping)"),
    "class": (DictionaryStash, "give an instance of it"),
    "None": (None, "must be a stash"),
    "path": (Path("data"), "must be a stash"),
}
WRAPPERS = {
    "SortedStash": (SortedStash, "delegate"),
    "FactoryStash": (lambda wrong: FactoryStash(wrong, DictionaryStash()), "delegate"),
    "FactoryStash's factory": (lambda wrong: FactoryStash(DictionaryStash(), wrong), "factory"),
    "CacheFactoryStash": (lambda wrong: CacheFactoryStash(DictionaryStash(), wrong), "factory"),
    "OneShotFactoryStash": (lambda wrong: OneShotFactoryStash(wrong, ()), "delegate"),
    "CacheStash": (CacheStash, "delegate"),
    "CacheStash's cache": (lambda wrong: CacheStash(DictionaryStash(), wrong), "cache_stash"),
    "KeySubsetStash": (lambda wrong: KeySubsetStash(wrong, {"a"}), "delegate"),
    "KeyLimitStash": (lambda wrong: KeyLimitStash(wrong, 1), "delegate"),
    "UnionStash": (lambda wrong: UnionStash((DictionaryStash(), wrong)), "stashes"),
    "MultiProcessFactoryStash": (lambda wrong: MultiProcessFactoryStash(DictionaryStash(), wrong), "factory"),
    "MultiProcessFactoryStash's delegate": (lambda wrong: MultiProcessFactoryStash(wrong, NoopStash()), "delegate"),
}


@pytest.mark.parametrize("wrong", NO_STASH)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_something_that_is_no_stash(wrapper, wrong):
    value, remedy = NO_STASH[wrong]
    make, name = WRAPPERS[wrapper]
    with raises(InvalidDelegateError, name, "must be a stash", repr(value), remedy) as caught:
        make(value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("wrong", [None, 3, DictionaryStash(), DictionaryStash], ids=["None", "int", "stash", "class"])
def test_what_is_no_tuple_of_stashes(wrong):
    with raises(InvalidDelegateError, "must be a tuple of stashes", repr(wrong)):
        UnionStash(wrong)


@pytest.mark.parametrize("wrong", [{}, DictionaryStash, Path("x"), 3], ids=["mapping", "class", "path", "int"])
def test_a_work_in_something_that_is_no_stash(wrong):
    with raises(InvalidArgumentError, "stash must be a stash", repr(wrong)):
        PersistedWork("name", None, stash=wrong)


@pytest.mark.parametrize("wrong", [{}, DictionaryStash, Path("x"), 3], ids=["mapping", "class", "path", "int"])
def test_a_method_in_something_that_is_no_stash_is_told_when_it_is_decorated(wrong):
    for decorator in (persisted, persisted_property):
        with raises(InvalidArgumentError, "stash must be a stash", repr(wrong)):
            decorator("_v", stash=wrong)(lambda self: 1) if decorator is persisted else decorator(stash=wrong)


def test_data_that_is_no_mapping():
    with raises(InvalidArgumentError, "data must be a mutable mapping", "[1]", "dict("):
        DictionaryStash([1])


# limits

NO_LIMIT = [-1, -(10**9), 1.5, "3", True]


@pytest.mark.parametrize("limit", [*NO_LIMIT, None], ids=repr)
def test_a_bad_limit_of_keys(limit):
    delegate = DictionaryStash({"a": 1})
    with raises(InvalidArgumentError, "limit", "whole number of at least 0", repr(limit)):
        KeyLimitStash(delegate, limit)
    assert list(delegate) == [("a", 1)]


@pytest.mark.parametrize("limit", [*NO_LIMIT, None, 0], ids=repr)
def test_a_bad_limit_of_a_cache(limit):
    with raises(InvalidArgumentError, "maxsize", "whole number of at least 1", repr(limit)):
        LRUCacheStash(limit)


@pytest.mark.parametrize("limit", NO_LIMIT, ids=repr)
def test_a_bad_limit_of_a_scan(limit, stash):
    for some in (stash, DictionaryStash(), UnionStash((stash,)), SortedStash(stash)):
        with raises(InvalidArgumentError, "limit must be a whole number of at least 0", repr(limit)):
            list(some.scan(limit=limit))


@pytest.mark.parametrize("size", [0, -1, 1.5, "3", True, None], ids=repr)
def test_a_bad_size_of_groups(size, stash):
    for make in (lambda: list(stash.key_groups(size)), lambda: list(chunks([1], size))):
        with raises(InvalidArgumentError, "whole number of at least 1", repr(size)):
            make()


# workers and chunk_size


class Work(MultiProcessDefaultStash):
    def _create_data(self):
        raise AssertionError("nothing is begun")

    def _process(self, chunk):
        return ()


def make_default(delegate, **options):
    return Work(delegate, **options)


def make_factory(delegate, **options):
    return MultiProcessFactoryStash(delegate, DictionaryStash({"x": 1}), **options)


@pytest.mark.parametrize("make", [make_default, make_factory])
@pytest.mark.parametrize(
    "workers, words",
    [
        (0.0, ["share of the cores", "above 0 and at most 1", "use an int"]),
        (-0.5, ["share of the cores", "above 0 and at most 1"]),
        (1.5, ["share of the cores", "use an int for a number"]),
        (float("nan"), ["share of the cores"]),
        (float("inf"), ["share of the cores"]),
        (-available_cores(), ["leaves none of", "cores", "use 1 or 0"]),
        (-(10**6), ["leaves none of", "cores", "use 1 or 0"]),
        ("all", ["workers must be a number"]),
        (True, ["workers must be a number"]),
        (None, ["workers must be a number"]),
        ([2], ["workers must be a number"]),
    ],
    ids=repr,
)
def test_workers_out_of_range(workers, words, make):
    delegate = DictionaryStash({"a": 1})
    with raises(InvalidArgumentError, "workers", repr(workers), *words):
        make(delegate, workers=workers)
    assert list(delegate) == [("a", 1)]


@pytest.mark.parametrize("make", [make_default, make_factory])
@pytest.mark.parametrize("size", [-1, 1.5, "many", True, None], ids=repr)
def test_chunk_size_out_of_range(size, make):
    delegate = DictionaryStash({"a": 1})
    with raises(InvalidArgumentError, "chunk_size must be a whole number of at least 0", repr(size)):
        make(delegate, chunk_size=size)
    assert list(delegate) == [("a", 1)]


@pytest.mark.parametrize("method", ["thread", "", 3])
def test_an_unknown_start_method(method):
    with raises(InvalidArgumentError, "start_method must be one of", "'spawn'", "None", repr(method)):
        make_default(DictionaryStash(), start_method=method)


@pytest.mark.parametrize("name, wrong", [("workers", 1.5), ("chunk_size", -1)])
def test_a_number_that_is_set_later(name, wrong):
    stash = make_default(DictionaryStash())
    with raises(InvalidArgumentError, name, repr(wrong)):
        setattr(stash, name, wrong)


# patterns

PATTERNS = [
    "", "name.dat", "{}.dat", "{key}.dat", "{name", "name}", "{name}{name}.dat", "{name}-{other}.dat", "{{name}}.dat",
    "{name!r}.dat", "{name:>10}.dat", "{name.x}", "%s.dat", "$name.dat", "*.dat", "sub/{name}.dat", "{name}/x",
    "/{name}", "../{name}.dat", "..\\{name}", ".{name}.dat", "{name}\0", "x" * 51 + "{name}", "é" * 50 + "{name}.dat",
    "\ud800{name}", None, 3, b"{name}", ["{name}"], True,
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=ascii)
def test_an_unknown_pattern(pattern, tmp_path):
    with raises(InvalidArgumentError, f"pattern {pattern!r}", "a file name with '{name}' once in it", "'{name}.dat'"):
        DirectoryStash(tmp_path / "data", pattern)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "pattern", ["{name}", "{name}.dat", "data-{name}.pkl", "{name}~", "é{name}", "x" * 50 + "{name}"]
)
def test_a_pattern_that_fits_takes_every_key(pattern, tmp_path):
    stash = DirectoryStash(tmp_path, pattern)
    for key in ("a", "x" * 200, "x" * 1024, "/" * 66, "é" * 512):
        stash.dump(key, key)
        assert stash[key] == key
    assert len(list(stash.keys())) == 5


@pytest.mark.parametrize("name", ["a/b", "{x}", "{name}", "../x", ".x", "x" * 60])
def test_a_bad_name_of_an_increment_stash(name, tmp_path):
    with raises(InvalidArgumentError, "pattern", name):
        IncrementKeyDirectoryStash(tmp_path, name)


@pytest.mark.parametrize("durability", ["", "Fsync", None, True, "sync"])
def test_an_unknown_durability(durability, tmp_path):
    for make in (
        lambda: DirectoryStash(tmp_path, durability=durability),
        lambda: SqliteStash(tmp_path / "data.db", durability=durability),
        lambda: PersistedWork(tmp_path / "work.dat", None, durability=durability),
    ):
        with raises(InvalidArgumentError, "'rename' or 'fsync'", repr(durability)):
            make()


@pytest.mark.parametrize("table", ["", "a b", "x;drop", "1a", 'a"b', "é", "x" * 49, None, 3, "a\n"])
def test_an_unknown_table(table, tmp_path):
    with raises(InvalidArgumentError, "table must be", "letters, digits and underscores", repr(table)):
        SqliteStash(tmp_path / "data.db", table=table)


# used after deallocate()


def test_a_work_after_deallocate(tmp_path):
    work = work_at(tmp_path / "work.dat")
    assert work() == "computed"
    before = content(tmp_path)
    work.deallocate()
    work.deallocate()
    for use in (work, lambda: work.set(1), work.is_set, work.clear):
        with raises(
            DeallocatedError, "work", str(tmp_path / "work.dat"), "was deallocated", "make a new object"
        ) as caught:
            use()
        assert isinstance(caught.value, RuntimeError)
    assert content(tmp_path) == before
    assert work_at(tmp_path / "work.dat")() == "computed"


def test_an_owner_after_deallocate(tmp_path):
    class Owner(PersistableContainer):
        @property
        @persisted("_v", path=tmp_path / "v.dat")
        def v(self):
            return [1]

        @persisted("_w")
        def w(self):
            return [2]

        @persisted_property
        def x(self):
            return [3]

    owner = Owner()
    assert (owner.v, owner.w(), owner.x) == ([1], [2], [3])
    before = content(tmp_path)
    owner.deallocate()
    for use in (lambda: owner.v, lambda: owner.w(), lambda: owner.x):
        with raises(DeallocatedError, "Owner was deallocated", "make a new object"):
            use()
    assert content(tmp_path) == before
    assert Owner().v == [1]


# what the tree promises


def test_every_error_is_of_the_tree_and_is_also_what_one_would_catch():
    builtins = {
        InvalidKeyError: ValueError,
        InvalidArgumentError: ValueError,
        InvalidDelegateError: TypeError,
        EncodeError: TypeError,
        CorruptValueError: ValueError,
        CodecMismatchError: ValueError,
        StorageError: OSError,
        DeallocatedError: RuntimeError,
        OwnerError: TypeError,
    }
    for ours, builtin in builtins.items():
        assert issubclass(ours, ZPersistError)
        assert issubclass(ours, builtin)
