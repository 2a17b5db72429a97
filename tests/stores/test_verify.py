"""Finding damaged values, and putting them out of the way."""

from __future__ import annotations

import dbm
import sqlite3
from types import SimpleNamespace

import lmdb
import pytest

from zpersist import (
    CacheStash,
    CodecMismatchError,
    CorruptValueError,
    Damage,
    DecodeError,
    DictionaryStash,
    DillCodec,
    DirectoryCompositeStash,
    DirectoryStash,
    FactoryStash,
    FormatVersionError,
    InvalidArgumentError,
    LmdbStash,
    MisplacedValueError,
    PickleCodec,
    ReadOnlyDelegateStash,
    ReadOnlyError,
    SealError,
    ShelveStash,
    SignedCodec,
    SqliteStash,
    UnionStash,
    UnsupportedOperationError,
)
from zpersist import damage as damage_module
from zpersist.stash import COMPANIONS

LONG = "long " * 100


def flip(data):
    """Change a bit in the middle."""
    changed = bytearray(data)
    changed[len(changed) // 3] ^= 4
    return bytes(changed)


class Files:
    def __init__(self, path, **options):
        self.stash = DirectoryStash(path / "data", **options)

    def change(self, key, how):
        path = self.stash.key_to_path(key)
        path.write_bytes(how(path.read_bytes()))

    def laid_aside(self):
        return sorted(path.name for path in (self.stash.path / ".zpersist" / "quarantine").iterdir())


class Rows:
    def __init__(self, path, **options):
        self.stash = SqliteStash(path / "data.db", **options)

    def change(self, key, how):
        db = sqlite3.connect(self.stash.path)
        ((data,),) = db.execute("SELECT value FROM stash WHERE key=?", (key,))
        db.execute("UPDATE stash SET value=? WHERE key=?", (how(data), key))
        db.commit()
        db.close()

    def laid_aside(self):
        db = sqlite3.connect(self.stash.path)
        names = [key for (key,) in db.execute("SELECT key FROM stash__quarantine ORDER BY key")]
        db.close()
        return names


class Pages:
    def __init__(self, path, **options):
        self.stash = LmdbStash(path / "data.lmdb", **options)

    def _open(self, name, change):
        self.stash.close()
        env = lmdb.open(str(self.stash.path), subdir=False, max_dbs=8, lock=False)
        with env.begin(write=True, db=env.open_db(name)) as txn:
            done = change(txn)
        env.close()
        return done

    def change(self, key, how):
        self._open(b"stash", lambda txn: txn.put(key.encode(), how(txn.get(key.encode()))))

    def laid_aside(self):
        return self._open(b"stash__quarantine", lambda txn: sorted(key.decode() for key, _ in txn.cursor()))


class Shelf:
    def __init__(self, path, **options):
        self.stash = ShelveStash(path / "shelf", **options)

    def change(self, key, how):
        with dbm.open(str(self.stash.path), "w") as db:
            db[key.encode()] = how(db[key.encode()])

    def laid_aside(self):
        with dbm.open(str(self.stash.path.parent / ".zpersist/shelves/shelf/quarantine"), "r") as db:
            return sorted(key.decode() for key in db.keys())


KINDS = {
    "directory": Files,
    "spread": lambda path, **options: Files(path, fan_out=16, **options),
    "sqlite": Rows,
    "lmdb": Pages,
    "shelve": Shelf,
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.mark.parametrize("repair", [None, "drop", "quarantine"])
def test_what_is_damaged_is_found_and_repaired(tmp_path, kind, repair):
    store = kind(tmp_path)
    store.stash.dump_many({"a": 1, "b": [2], "c": {"d": 3}})
    assert list(store.stash.verify()) == []
    store.change("b", flip)
    (damage,) = store.stash.verify(repair=repair)
    assert isinstance(damage, Damage)
    assert damage.key == "b"
    assert isinstance(damage.error, CorruptValueError)
    assert damage.repaired is (repair is not None)
    assert sorted(store.stash.keys()) == (["a", "b", "c"] if repair is None else ["a", "c"])
    assert (store.stash["a"], store.stash["c"]) == (1, {"d": 3})
    if repair == "quarantine":
        assert [name.removesuffix(".dat") for name in store.laid_aside()] == ["b"]
        for number in range(1, 3):
            store.stash["b"] = 4
            store.change("b", flip)
            assert [damage.repaired for damage in store.stash.verify(repair=repair)] == [True]
            assert len(store.laid_aside()) == number + 1
        store.stash.clear()
        assert list(store.stash.verify(repair=repair)) == []
    store.stash.close()


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:40], lambda data: b"x"]
)
def test_kinds_of_damage(tmp_path, kind, damage):
    store = kind(tmp_path)
    store.stash["a"] = list(range(100))
    store.change("a", damage)
    assert [found.key for found in store.stash.verify(repair="drop")] == ["a"]
    assert len(store.stash) == 0
    store.stash.close()


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_what_another_one_may_read_is_told_and_left(tmp_path, kind, repair):
    from zpersist.files import envelope

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope, "FORMAT_VERSION", 2)
        store = kind(tmp_path)
        store.stash["newer"] = 1
        store.stash.close()
    store = kind(tmp_path, codec=DillCodec())
    store.stash["dill"] = 1
    store.stash.close()
    store = kind(tmp_path)
    found = {damage.key: damage for damage in store.stash.verify(repair=repair)}
    assert {key: type(damage.error) for key, damage in found.items()} == {
        "newer": FormatVersionError,
        "dill": CodecMismatchError,
    }
    assert not any(damage.repaired for damage in found.values())
    assert sorted(store.stash.keys()) == ["dill", "newer"]
    store.stash.close()


def damage_of(stash, repair):
    (damage,) = stash.verify(repair=repair)
    assert type(damage.error) is MisplacedValueError
    return damage


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_a_whole_value_under_another_key_is_told_and_left(tmp_path, kind, repair):
    store = kind(tmp_path)
    store.stash.dump_many({"alpha": "precious", LONG: "too", "other": 0})
    whole = {}
    store.change(LONG, lambda data: whole.setdefault("data", data))
    store.change("other", lambda data: whole["data"])
    damage = damage_of(store.stash, repair)
    assert (damage.key, damage.repaired) == ("other", False)
    with pytest.raises(MisplacedValueError, match=r"is the value of 'long .*, and was moved; move it back to its key"):
        store.stash["other"]
    kept = []
    store.change("other", lambda data: kept.append(data) or data)
    assert kept == [whole["data"]]
    store.stash["other"] = 1
    assert list(store.stash.verify()) == []
    store.stash.close()


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
@pytest.mark.parametrize("fan_out", [0, 16])
@pytest.mark.parametrize(("one", "other"), [("a", LONG), (LONG, LONG + "b")])
def test_a_file_that_was_renamed_is_told_and_left(tmp_path, repair, fan_out, one, other):
    stash = DirectoryStash(tmp_path, fan_out=fan_out)
    stash[one] = "precious"
    path = stash.key_to_path(other)
    path.parent.mkdir(exist_ok=True)
    stash.key_to_path(one).rename(path)
    damage = damage_of(stash, repair)
    assert (damage.key, damage.repaired) == (None, False)
    assert "move it back to its key" in str(damage.error)
    path.rename(stash.key_to_path(one))
    assert dict(stash) == {one: "precious"}


def test_who_takes_a_value_of_another_key_for_lost_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(damage_module, "is_lost", lambda err: isinstance(err, CorruptValueError))
    with pytest.raises(AssertionError):
        test_a_whole_value_under_another_key_is_told_and_left(tmp_path, Files, "drop")


def test_a_wrong_key_is_no_reason_to_delete_all(tmp_path, kind):
    store = kind(tmp_path, codec=SignedCodec(None, bytes(32)))
    store.stash.dump_many({"a": 1, "b": 2})
    store.stash.close()
    other = kind(tmp_path, codec=SignedCodec(None, bytes(range(32))))
    found = list(other.stash.verify(repair="drop"))
    assert [type(damage.error) for damage in found] == [SealError, SealError]
    assert len(other.stash) == 2
    other.stash.close()


def test_a_class_that_is_gone_is_no_damage(tmp_path):
    stash = DirectoryStash(tmp_path)
    stash["a"] = SimpleNamespace(x=1)
    path = stash.key_to_path("a")
    from zpersist.files.envelope import pack

    class Pickled:
        id = "pickle"

        def dump_parts(self, value):
            return PickleCodec().dumps(value).replace(b"SimpleNamespace", b"SimpleNamespacf"), ()

    path.write_bytes(b"".join(pack(Pickled(), SimpleNamespace(x=1), "")))
    (damage,) = stash.verify(repair="drop")
    assert isinstance(damage.error, DecodeError)
    assert "a" in stash


def test_buffers_that_are_mapped_are_read_whole(tmp_path):
    numpy = pytest.importorskip("numpy")
    stash = DirectoryStash(tmp_path)
    stash["array"] = numpy.arange(100_000)
    path = stash.key_to_path("array")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    # A load maps them, and looks at none of them.
    assert len(stash["array"]) == 100_000
    (damage,) = stash.verify()
    assert "checksum of its buffers" in str(damage.error)


@pytest.mark.parametrize("repair", [None, "drop", "quarantine"])
def test_a_key_that_can_not_be_read(tmp_path, repair):
    stash = DirectoryStash(tmp_path)
    stash.dump_many({"a": 1, LONG: 2, LONG + "b": 3})
    path = stash.key_to_path(LONG)
    path.write_bytes(path.read_bytes()[:-3])
    (damage,) = stash.verify(repair=repair)
    assert damage.key is None
    assert str(path) in str(damage.error)
    assert path.exists() is (repair is None)
    assert sorted(stash.keys()) == ["a", LONG + "b"]


def test_a_composite(tmp_path):
    numpy = pytest.importorskip("numpy")
    stash = DirectoryCompositeStash(tmp_path, ({"ids"}, {"vectors"}), "data")
    stash["a"] = SimpleNamespace(data={"ids": [1], "vectors": numpy.arange(100_000)})
    assert list(stash.verify()) == []
    (path,) = (tmp_path / "comp" / "vectors").glob("*.dat")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (damage,) = stash.verify()
    assert str(path) in str(damage.error)


class Counting(FactoryStash):
    """A stash that would make what is missing."""


def test_wrappers_ask_those_below(tmp_path):
    store = Files(tmp_path)
    store.stash.dump_many({"a": 1, "b": 2})
    store.change("a", flip)
    other = DictionaryStash({"c": 3})
    for stash in (
        CacheStash(store.stash),
        FactoryStash(store.stash, DictionaryStash({"d": 4})),
        UnionStash((other, store.stash)),
        ReadOnlyDelegateStash(store.stash),
    ):
        assert [damage.key for damage in stash.verify()] == ["a"]
    assert sorted(store.stash.keys()) == ["a", "b"]
    with pytest.raises(ReadOnlyError, match=r"verify\(repair='drop'\) on ReadOnlyDelegateStash, which is read only"):
        ReadOnlyDelegateStash(store.stash).verify(repair="drop")
    assert [damage.repaired for damage in CacheStash(store.stash).verify(repair="drop")] == [True]
    assert list(DictionaryStash({"a": 1}).verify(repair="quarantine")) == []


class Broken(DictionaryStash):
    """A store of a user that has a damaged value."""

    def _fetch(self, name):
        if self.data.get(name) == "damaged":
            raise CorruptValueError("damaged")
        return super()._fetch(name)


def test_a_store_that_has_no_place_to_lay_things_aside():
    stash = Broken({"a": 1, "b": "damaged"})
    with pytest.raises(UnsupportedOperationError, match="Broken can't lay a damaged value aside; repair='drop'"):
        list(stash.verify(repair="quarantine"))
    assert stash.data == {"a": 1, "b": "damaged"}
    assert [damage.repaired for damage in stash.verify(repair="drop")] == [True]
    assert stash.data == {"a": 1}


@pytest.mark.parametrize("repair", ["delete", True, 1, ""])
def test_what_is_no_repair(tmp_path, kind, repair):
    with pytest.raises(InvalidArgumentError, match="repair must be 'drop', 'quarantine' or None, not"):
        list(kind(tmp_path).stash.verify(repair=repair))


def test_a_value_that_was_mended_meanwhile_stays(tmp_path, kind):
    store = kind(tmp_path)
    store.stash.dump_many({"a": 1, "b": 2})
    store.change("a", flip)
    real = store.stash._repair

    def slow(name, repair):
        store.stash["a"] = "mended"
        return real(name, repair)

    store.stash._repair = slow
    assert [damage.repaired for damage in store.stash.verify(repair="drop")] == [False]
    assert store.stash["a"] == "mended"
    store.stash.close()


LONGEST = {
    "table": lambda path, name: SqliteStash(path / "data.db", table=name),
    "database": lambda path, name: LmdbStash(path / "data.lmdb", database=name),
}


@pytest.mark.parametrize(("what", "most"), [("table", 48), ("database", 200)])
def test_the_longest_name_has_room_for_what_is_beside(tmp_path, what, most):
    make, name = LONGEST[what], "t" * most
    with make(tmp_path, name) as stash:
        stash["a"] = 1
        stash._cell_set("a", b"damaged")
        assert [damage.repaired for damage in stash.verify(repair="quarantine")] == [True]
        with make(tmp_path, f"{name}__quarantine") as aside:
            assert list(aside.keys()) == ["a"]
            for purpose in COMPANIONS:
                stash._companion(purpose)["b"] = 2
            stash.clear()
            assert [len(stash._companion(purpose)) for purpose in COMPANIONS] == [0, 0]
            assert list(aside.keys()) == ["a"]
    for wrong in ("t" * (most + 1), f"{name}t__quarantine", f"{name}__quarantine__quarantine", f"{name}__notes"):
        with pytest.raises(InvalidArgumentError, match=f"{what} must be .*, at most {most} "):
            make(tmp_path, wrong)


def test_progress(tmp_path, capsys):
    stash = DirectoryStash(tmp_path)
    stash.dump_many({str(n): n for n in range(20)})
    assert list(stash.verify(progress=True)) == []
    assert "verify DirectoryStash: 100%" in capsys.readouterr().err
