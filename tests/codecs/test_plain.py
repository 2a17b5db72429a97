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


BROKEN = {
    "absent": ("no_such_module:Codec", "ModuleNotFoundError: No module named 'no_such_module'"),
    "lacking": ("zpersist_lacking:Codec", "ModuleNotFoundError: No module named 'what_it_needs'"),
    "nameless": ("zpersist_whole:Other", "AttributeError: module 'zpersist_whole' has no attribute 'Other'"),
    "failing": ("zpersist_whole:fails", "RuntimeError: no codec today"),
    "demanding": ("zpersist_whole:demands", "TypeError: demands() missing 1 required positional argument: 'key'"),
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Install a package whose codecs can't be made."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("zpersist_lacking", "zpersist_whole"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "zpersist_lacking.py").write_text("import what_it_needs")
    (tmp_path / "zpersist_whole.py").write_text(
        f"""from pathlib import Path
Path({str(tmp_path / "imported")!r}).touch()
def fails(): raise RuntimeError("no codec today")
def demands(key): pass
"""
    )
    points = "\n".join(f"{name} = {value}" for name, (value, _) in BROKEN.items())
    distribution(tmp_path, "broken-codecs", "2.5", points)
    return tmp_path


def distribution(folder, name, version, points):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[zpersist.codecs]\n{points}\n")


@pytest.mark.parametrize("name", BROKEN)
def test_a_registered_codec_that_can_not_be_made(broken, name):
    value, cause = BROKEN[name]
    with pytest.raises(InvalidArgumentError) as caught:
        DirectoryStash(broken / "data", codec=name)
    text = str(caught.value)
    assert f"the codec {name!r}, which is registered as {value} by broken-codecs 2.5, can't be made ({cause})" in text
    assert caught.value.__cause__ is not None


def test_names_are_listed_without_an_import(broken):
    with pytest.raises(
        InvalidArgumentError, match="absent, demanding, dill, failing, json, lacking, msgpack, nameless"
    ):
        DirectoryStash(broken / "data", codec="jsn")
    assert not (broken / "imported").exists()
    with pytest.raises(InvalidArgumentError):
        DirectoryStash(broken / "data", codec="failing")
    assert (broken / "imported").exists()


def test_one_name_for_two_codecs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    distribution(tmp_path, "one", "1.0", f"double = {__name__}:Shouting")
    distribution(tmp_path, "two", "2.0", f"double = {__name__}:Shouting")
    # They don't differ.
    assert isinstance(DirectoryStash(tmp_path / "data", codec="double").codec, Shouting)
    distribution(tmp_path, "three", "3.0", "double = zpersist.codecs.json:JsonCodec")
    with pytest.raises(
        InvalidArgumentError, match=r"'double' is registered as .* and .*: uninstall all but one"
    ) as caught:
        DirectoryStash(tmp_path / "data", codec="double")
    assert "JsonCodec by three 3.0" in str(caught.value)
