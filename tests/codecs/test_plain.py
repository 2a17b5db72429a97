"""Pickles that zpersist did not write, and codecs by name."""

from __future__ import annotations

import pickle
import sqlite3
import sys

import pytest

from zpersist import (
    Codec,
    CorruptValueError,
    DecodeError,
    DillCodec,
    DirectoryStash,
    InvalidArgumentError,
    PersistedWork,
    PickleCodec,
    ShelveStash,
    SqliteStash,
)

VALUES = [1, None, {"a": [1, 2, (3,)]}, "text", b"\0" * 100_000, list(range(20_000))]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=[type(value).__name__ for value in VALUES])
def test_foreign_pickles(tmp_path, value, protocol):
    (tmp_path / "old.dat").write_bytes(pickle.dumps(value, protocol))
    strict, plain = DirectoryStash(tmp_path), DirectoryStash(tmp_path, codec=PickleCodec(plain=True))
    with pytest.raises(CorruptValueError, match="is damaged, or is not zpersist's"):
        strict["old"]
    assert plain["old"] == value
    assert dict(plain) == {"old": value}
    assert plain.update("old", lambda old: [old]) == [value]
    # What is written has its checksum.
    assert strict["old"] == [value]


def test_a_foreign_work(tmp_path):
    path = tmp_path / "work.dat"
    path.write_bytes(pickle.dumps([1]))
    assert PersistedWork(path, None, codec=PickleCodec(plain=True))() == [1]
    # One with a version is none that somebody else wrote.
    with pytest.raises(CorruptValueError):
        PersistedWork(path, None, codec=PickleCodec(plain=True), version="2")()


def test_a_foreign_row(tmp_path):
    stash = SqliteStash(tmp_path / "data.db", codec=PickleCodec(plain=True))
    stash["a"] = 1
    db = sqlite3.connect(tmp_path / "data.db")
    db.execute("UPDATE stash SET value=?", (pickle.dumps({"old": 1}),))
    db.commit()
    db.close()
    assert stash["a"] == {"old": 1}
    with pytest.raises(CorruptValueError):
        SqliteStash(tmp_path / "data.db")["a"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-20], lambda data: data + b"more"])
def test_a_value_of_ours_that_is_damaged_does_not_pass_for_a_foreign_one(tmp_path, damage):
    stash = DirectoryStash(tmp_path, codec=PickleCodec(plain=True))
    stash["a"] = {"a": 1}
    path = stash.key_to_path("a")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((CorruptValueError, DecodeError)):
        stash["a"]


@pytest.mark.parametrize("data", [b"", b"\x80", b"text", b"\x80\x05", pickle.dumps([1])[:-1], pickle.dumps([1]) + b"x"])
def test_what_is_no_pickle(tmp_path, data):
    (tmp_path / "a.dat").write_bytes(data)
    with pytest.raises((CorruptValueError, DecodeError)):
        DirectoryStash(tmp_path, codec=PickleCodec(plain=True))["a"]


def test_repr():
    assert repr(PickleCodec()) == "PickleCodec()"
    assert repr(PickleCodec(plain=True)) == "PickleCodec(plain=True)"


class Shouting(Codec):
    """Keeps text in capitals."""

    id = "shouting"

    def dumps(self, value):
        return str(value).upper().encode()

    def loads(self, data):
        return bytes(data).decode()


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Install a package that registers codecs."""
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[zpersist.codecs]\nshouting = {__name__}:Shouting\nnothing = builtins:dict\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Shouting.__module__])


@pytest.mark.parametrize(
    "make",
    [
        lambda path, codec: DirectoryStash(path / "data", codec=codec),
        lambda path, codec: SqliteStash(path / "data.db", codec=codec),
        lambda path, codec: ShelveStash(path / "shelf", codec=codec),
    ],
)
def test_a_codec_by_name(tmp_path, registered, make):
    with make(tmp_path, "shouting") as stash:
        stash["a"] = "hello"
        assert stash["a"] == "HELLO"
        assert isinstance(stash.codec, Shouting)


def test_a_codec_of_ours_by_name(tmp_path):
    assert isinstance(DirectoryStash(tmp_path, codec="dill").codec, DillCodec)
    work = PersistedWork(tmp_path / "work.dat", None, codec="dill")
    work.set(lambda: 1)
    assert PersistedWork(tmp_path / "work.dat", None, codec="dill")()() == 1


def test_a_name_that_is_no_codec(tmp_path, registered):
    with pytest.raises(
        InvalidArgumentError,
        match="no codec 'jsn', but dill, json, msgpack, nothing, pickle, shouting; is its",
    ):
        DirectoryStash(tmp_path, codec="jsn")
    with pytest.raises(InvalidArgumentError, match="what is registered as the codec 'nothing' makes {}, which is none"):
        DirectoryStash(tmp_path, codec="nothing")
