"""Every store passes the conformance suite."""

from __future__ import annotations

import pickle
import sqlite3
import struct
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote
from zipfile import ZipFile

import lmdb

from zpersist import (
    DictionaryStash,
    DillCodec,
    DirectoryCompositeStash,
    DirectoryStash,
    IncrementKeyDirectoryStash,
    LmdbStash,
    LRUCacheStash,
    NoopStash,
    ShelveStash,
    SqliteStash,
    ZipStash,
)
from zpersist.testing import ReadStashSuite, StashSuite

NUMBERS = tuple(str(number) for number in range(1, 40))


class TestDictionaryStash(StashSuite):
    def make(self, path):
        return DictionaryStash()


class TestLRUCacheStash(StashSuite):
    def make(self, path):
        return LRUCacheStash(1000)


class TestDirectoryStash(StashSuite):
    encodes = True

    def make(self, path):
        return DirectoryStash(path / "data")

    reopen = make

    def raw(self, path):
        found = {}
        for file in (path / "data").iterdir():
            stem = file.name.removesuffix(".dat")
            with file.open("rb") as stream:
                value = pickle.load(stream)
            if "%~" in stem:
                # The key lies between the codec's name and the trailer of 48 bytes.
                data = file.read_bytes()
                length = int.from_bytes(data[-18:-16], "little")
                found[data[-48 - length : -48].decode()] = value
            else:
                found[unquote(stem)] = value
        return found


class TestDirectoryStashWithFsync(StashSuite):
    encodes = True

    def make(self, path):
        return DirectoryStash(path / "data", "x-{name}", durability="fsync", mmap=False)

    reopen = make


class TestDirectoryStashWithDill(StashSuite):
    def make(self, path):
        return DirectoryStash(path / "data", codec=DillCodec())

    reopen = make


class TestIncrementKeyDirectoryStash(StashSuite):
    keys = NUMBERS
    encodes = True

    def make(self, path):
        return IncrementKeyDirectoryStash(path / "data", name="some-name")

    reopen = make


class TestDirectoryCompositeStash(StashSuite):
    values = tuple(
        SimpleNamespace(name=f"object {number}", data={"ids": [number], "vectors": [0.5], "names": ["a"] * 20})
        for number in range(4)
    )
    atomic = False
    can_be_subclassed = False

    def make(self, path):
        return DirectoryCompositeStash(path / "data", ({"ids"}, {"vectors", "names"}), "data")

    reopen = make


class TestShelveStash(StashSuite):
    encodes = True

    def make(self, path):
        return ShelveStash(path / "shelf")

    reopen = make


class TestShelveStashKeptOpen(StashSuite):
    encodes = True

    def make(self, path):
        return ShelveStash(path / "shelf", auto_close=False)

    reopen = make

    # Another process waits until this one has closed the shelf: that is what keeping it open means.
    test_processes = None
    test_updates_of_processes = None
    test_read_after_fork = None
    test_pickled = None


class TestSqliteStash(StashSuite):
    encodes = True

    def make(self, path):
        return SqliteStash(path / "data.db")

    reopen = make

    def raw(self, path):
        db = sqlite3.connect(path / "data.db")
        try:
            return {key: pickle.loads(value) for key, value in db.execute("SELECT key, value FROM stash")}
        finally:
            db.close()


class TestSqliteStashWithFsync(StashSuite):
    encodes = True

    def make(self, path):
        return SqliteStash(path / "data.db", table="other", durability="fsync")

    reopen = make


class TestLmdbStash(StashSuite):
    encodes = True

    def make(self, path):
        return LmdbStash(path / "data.lmdb")

    reopen = make

    def raw(self, path):
        found = {}
        with lmdb.open(str(path / "data.lmdb"), subdir=False, max_dbs=8) as env:
            names = env.open_db(b"stash"), env.open_db(b"stash:long")
            with env.begin() as txn:
                found.update((key.decode(), pickle.loads(value)) for key, value in txn.cursor(names[0]))
                for start, record in txn.cursor(names[1]):
                    while len(record) > 10 and record[2:10].count(0) >= 4:
                        rest, size = struct.unpack_from("<HQ", record)
                        key, value = record[10 : 10 + rest], record[10 + rest : 10 + rest + size]
                        found[(start + key).decode()] = pickle.loads(value)
                        record = record[10 + rest + size :]
                        if record.endswith(b"ZPRST\n") and record.startswith(b"zpersist-long-keys"):
                            break
        return found


class TestLmdbStashThatGrows(StashSuite):
    encodes = True

    def make(self, path):
        return LmdbStash(path / "data.lmdb", database="other", durability="fsync", map_size=1 << 16)

    reopen = make


class TestZipStash(ReadStashSuite):
    keys = ("plain", "a/b", "deep/er/file.txt", "ключ", "with space", "x" * 200)
    values = (b"", b"bytes", b"\0" * 70_000, b"text")

    def filled(self, path, data: dict[str, Any]):
        with ZipFile(path / "archive.zip", "w") as archive:
            archive.writestr("outside", b"not below the root")
            archive.mkdir("root")
            for key, value in data.items():
                archive.writestr(f"root/{key}", value)
        return ZipStash(path / "archive.zip", root="root")


class TestZipStashText(ReadStashSuite):
    keys = ("plain", "a/b", "deep/er/file.txt")
    values = ("", "text", "ключ")

    def filled(self, path, data: dict[str, Any]):
        with ZipFile(path / "archive.zip", "w") as archive:
            for key, value in data.items():
                archive.writestr(key, value)
        return ZipStash(path / "archive.zip", encoding="utf-8")


def test_noop_stash_keeps_nothing():
    stash = NoopStash()
    stash.dump("a", 1)
    assert stash.add("a", 1)
    assert stash.update("a", lambda value: (value, 2), default=1) == (1, 2)
    assert (stash.load("a"), stash.get("a", 3), "a" in stash, len(stash), bool(stash)) == (None, 3, False, 0, False)
    assert list(stash.keys()) == list(stash.items()) == []
    assert stash.delete("a") is False
