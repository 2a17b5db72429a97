"""Shelves: what is stored is what is checked, and what lies beside one is nobody else's."""

from __future__ import annotations

import dbm
import os
import pickle
import shelve as standard

import pytest

from zpersist import (
    CacheStash,
    CorruptValueError,
    OneShotFactoryStash,
    SealError,
    ShelveStash,
    SignedCodec,
)

KEY = bytes(32)


def change(stash, key, how):
    """Change the bytes of a value in the database, whoever has it open."""
    with stash._opened() as db:
        db[key.encode()] = how(db[key.encode()])


def flip(data):
    return bytes((data[0] ^ 4,)) + data[1:]


@pytest.fixture(params=[True, False], ids=["taking turns", "kept open"])
def shelf(request, tmp_path):
    with ShelveStash(tmp_path / "shelf", auto_close=request.param) as stash:
        yield stash


def test_what_is_stored_is_checked_not_what_is_in_memory(shelf):
    shelf.dump_many({"a": [1], "b": [2]})
    assert shelf["a"] == [1]
    assert list(shelf.verify()) == []
    change(shelf, "a", flip)
    (damage,) = shelf.verify()
    assert (damage.key, type(damage.error), damage.repaired) == ("a", CorruptValueError, False)


def test_what_is_in_memory_may_differ_from_what_is_stored(tmp_path):
    with ShelveStash(tmp_path / "shelf", auto_close=False) as stash:
        stash["a"] = [1]
        stash["a"].append(lambda: "nobody can keep this")
        assert list(stash.verify()) == []
        stash["a"][1:] = [2]
    # It was not forgotten by that.
    assert ShelveStash(stash.path)["a"] == [1, 2]


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_what_was_repaired_is_gone_from_memory_too(shelf, repair):
    shelf.dump_many({"a": [1], "b": [2]})
    assert shelf["a"] == [1]
    change(shelf, "a", flip)
    (damage,) = shelf.verify(repair=repair)
    assert (damage.key, damage.repaired) == ("a", True)
    assert (shelf.load("a"), dict(shelf)) == (None, {"b": [2]})
    shelf.close()
    assert dict(ShelveStash(shelf.path)) == {"b": [2]}


def test_the_bytes_that_are_laid_aside_are_those_that_were_stored(shelf):
    kept = []
    for number in range(3):
        shelf["a"] = number
        change(shelf, "a", lambda data: kept.append(flip(data)) or kept[-1])
        assert [damage.repaired for damage in shelf.verify(repair="quarantine")] == [True]
    shelf.clear()
    with shelf._companion("quarantine")._opened() as db:
        assert [db[name] for name in (b"a", b"a.1", b"a.2")] == kept


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_what_the_standard_library_wrote_is_told_and_left(tmp_path, repair):
    with standard.open(str(tmp_path / "shelf")) as shelf:
        shelf["a"] = [1]
    stash = ShelveStash(tmp_path / "shelf")
    assert [(damage.key, damage.repaired) for damage in stash.verify(repair=repair)] == [("a", False)]
    with standard.open(str(tmp_path / "shelf"), "r") as shelf:
        assert shelf["a"] == [1]


def test_keys_that_only_the_standard_library_takes(tmp_path):
    with standard.open(str(tmp_path / "shelf")) as shelf:
        shelf.update({"": 1, "x" * 2000: 2, "good": 3})
    stash = ShelveStash(tmp_path / "shelf")
    found = list(stash.verify(repair="drop"))
    assert [damage.key for damage in found] == ["good", None, None]
    assert not any(damage.repaired for damage in found)
    assert len(stash) == 3


NO_KEYS = {"no text": b"\xff\xfe", "nothing": b"", "too long": b"x" * 2000}


@pytest.mark.parametrize("repair", [None, "drop", "quarantine"])
@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_key_is_told_and_put_out_of_the_way(shelf, key, repair):
    raw = NO_KEYS[key]
    shelf.dump_many({"a": 1, "b": [2]})
    with shelf._opened() as db:
        db[raw] = b"foreign"
    for use in (shelf.keys, shelf.items, shelf.scan):
        with pytest.raises(CorruptValueError, match="is no key; verify.repair='quarantine'. lays it aside") as caught:
            list(use())
        assert str(shelf.path) in str(caught.value)
        assert repr(raw)[:60] in str(caught.value)
    (damage,) = shelf.verify(repair=repair)
    assert (damage.key, damage.repaired) == (None, repair is not None)
    assert repr(raw)[:60] in str(damage.error)
    assert shelf.load_many("ab") == {"a": 1, "b": [2]}
    assert (len(shelf), bool(shelf)) == (3 if repair is None else 2, True)
    if repair is not None:
        assert list(shelf.verify(progress=True)) == []
        assert dict(shelf) == {"a": 1, "b": [2]}
    if repair == "quarantine":
        with shelf._companion("quarantine")._opened() as db:
            assert [(name, db[name]) for name in db.keys()] == [(f"no key {raw[:80]!r}".encode(), b"foreign")]


def test_what_is_sealed_is_read_by_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    codec = SignedCodec(None, KEY)
    stash, other = (ShelveStash(tmp_path / name / "shelf", codec=codec) for name in ("real", "link"))
    stash["a"] = 1
    stash._companion("journal")["b"] = 2
    assert (other["a"], other._companion("journal")["b"]) == (1, 2)


# beside a shelf


@pytest.mark.parametrize("purpose", ["journal", "failures", "quarantine"])
def test_shelves_of_such_names_are_their_users(tmp_path, purpose):
    stash, other = ShelveStash(tmp_path / "shelf"), ShelveStash(tmp_path / f"shelf.{purpose}")
    other["state"] = "mine"
    stash._companion(purpose)["state"] = "begun"
    stash._companion(purpose)["a"] = 1
    assert dict(other) == {"state": "mine"}
    stash.clear()
    assert dict(other) == {"state": "mine"}
    other._companion(purpose)["b"] = 2
    assert "b" not in stash._companion(purpose)


def test_a_shelf_that_is_filled_leaves_that_of_another_one(tmp_path):
    other = ShelveStash(tmp_path / "shelf.journal")
    other["state"] = "begun"
    stash = OneShotFactoryStash(ShelveStash(tmp_path / "shelf"), [("a", 1)])
    assert dict(stash) == {"a": 1}
    stash.clear()
    assert dict(other) == {"state": "begun"}


def test_what_is_beside_goes_by_clear_but_for_what_was_laid_aside(tmp_path):
    stash = ShelveStash(tmp_path / "shelf")
    for purpose in ("journal", "failures", "quarantine"):
        stash._companion(purpose)["a"] = purpose
    stash.clear()
    assert [len(stash._companion(purpose)) for purpose in ("journal", "failures", "quarantine")] == [0, 0, 1]
    assert {name for name in os.listdir(tmp_path) if not name.startswith(".")} == set()


def test_a_long_name_has_room_beside_it(tmp_path):
    name = "n" * 240
    stash = ShelveStash(tmp_path / name)
    stash._companion("journal")["a"] = 1
    assert stash._companion("journal")["a"] == 1


def test_a_record_from_beside_is_no_value(tmp_path):
    # A scope stands for the place of the shelf, and for nothing in it.
    codec = SignedCodec(None, KEY, scope="x")
    stash = ShelveStash(tmp_path / "shelf", codec=codec)
    stash._companion("journal")["a"] = "record"
    stash["a"] = "value"
    with stash._companion("journal")._opened() as db:
        record = db[b"a"]
    change(stash, "a", lambda data: record)
    with pytest.raises(SealError):
        stash["a"]


def test_a_shelf_that_was_copied_goes_on_with_its_scope(tmp_path):
    codec = SignedCodec(None, KEY, scope="x")
    stash = ShelveStash(tmp_path / "one" / "shelf", codec=codec)
    stash["a"] = 1
    stash._companion("journal")["b"] = 2
    os.rename(tmp_path / "one", tmp_path / "two")
    moved = ShelveStash(tmp_path / "two" / "shelf", codec=codec)
    assert (moved["a"], moved._companion("journal")["b"]) == (1, 2)


def test_a_shelf_travels(shelf):
    shelf["a"] = [1]
    shelf.close()
    twin = pickle.loads(pickle.dumps(shelf))
    assert (twin["a"], twin.auto_close, twin.is_open) == ([1], shelf.auto_close, not shelf.auto_close)
    twin.close()
    assert CacheStash(shelf)["a"] == [1]
    assert dbm.whichdb(str(shelf.path))
