"""What an attack on files, seals and repairs found: each lost something, or took what it should not."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from zpersist import (
    CacheStash,
    Codec,
    CompressedCodec,
    CorruptValueError,
    DecodeError,
    DirectoryCompositeStash,
    DirectoryStash,
    EncodeError,
    EncryptedCodec,
    InvalidArgumentError,
    JsonCodec,
    LmdbStash,
    MsgpackCodec,
    PickleCodec,
    ReadOnlyError,
    RestrictedPickleCodec,
    SealError,
    ShelveStash,
    SignedCodec,
    SqliteStash,
    UnionStash,
)
from zpersist.damage import is_pickle
from zpersist.files.envelope import pack

KEY = bytes(range(32))

fork = multiprocessing.get_context("fork")


@dataclass
class Point:
    x: int


def signed(**options):
    return SignedCodec(PickleCodec(), KEY, **options)


# taking over


def test_a_directory_does_not_take_over_itself(tmp_path):
    stash = DirectoryStash(tmp_path / "real")
    stash.dump_many({"a": 1, "b": 2})
    os.symlink(tmp_path / "real", tmp_path / "link")
    for one, other in (("link", "real"), ("real", "link"), ("real", "real")):
        with pytest.raises(InvalidArgumentError, match="must be another DirectoryStash"):
            DirectoryStash(tmp_path / one).take_over(DirectoryStash(tmp_path / other))
    assert dict(stash) == {"a": 1, "b": 2}


def test_what_is_sealed_for_its_place_is_not_taken_over(tmp_path):
    source = DirectoryStash(tmp_path / "one", codec=signed())
    source["a"] = 1
    with pytest.raises(InvalidArgumentError, match=r"is read in its own place, .* only: copy it by zpersist"):
        DirectoryStash(tmp_path / "two", codec=signed()).take_over(source)
    assert source["a"] == 1
    scoped = [DirectoryStash(tmp_path / name, codec=signed(scope="x")) for name in ("three", "four")]
    scoped[0]["a"] = 2
    assert scoped[1].take_over(scoped[0]) == 1
    assert scoped[1]["a"] == 2


@pytest.mark.parametrize("codec", [PickleCodec(plain=True), JsonCodec()])
def test_a_source_of_another_codec_is_not_taken_over(tmp_path, codec):
    source = DirectoryStash(tmp_path / "one", codec=codec)
    source["a"] = 1
    with pytest.raises(InvalidArgumentError, match="of the same codec"):
        DirectoryStash(tmp_path / "two").take_over(source)


class Unknown(Codec):
    """A codec of a user, with state that nobody can compare."""

    id = "unknown"

    def __init__(self):
        self.state = (part for part in ())

    def dumps(self, value):
        return pickle.dumps(value)

    def loads(self, data):
        return pickle.loads(data)


DIFFERENT = {
    "secret": lambda: SignedCodec(PickleCodec(), os.urandom(32), scope="x"),
    "more secrets": iter([signed(scope="x"), SignedCodec(PickleCodec(), [KEY, KEY], scope="x")]).__next__,
    "inside": lambda: CompressedCodec(SignedCodec(PickleCodec(), os.urandom(32), scope="x"), "zlib"),
    "cipher": lambda: EncryptedCodec(PickleCodec(), os.urandom(32), scope="x"),
    "size": iter([CompressedCodec(None, "zlib"), CompressedCodec(None, "zlib", max_bytes=10)]).__next__,
    "types": iter([JsonCodec(types=[Point]), JsonCodec()]).__next__,
    "unknown": Unknown,
}


@pytest.mark.parametrize("codec", DIFFERENT)
def test_what_could_not_be_read_in_its_new_place_is_not_taken_over(tmp_path, codec):
    make = DIFFERENT[codec]
    one, two = (DirectoryStash(tmp_path / name, codec=make()) for name in ("one", "two"))
    one["a"] = [1]
    with pytest.raises(InvalidArgumentError, match="of the same codec, with the same parameters and secrets"):
        two.take_over(one)
    assert one["a"] == [1]
    assert not two.exists("a")
    again = DirectoryStash(tmp_path / "two", codec=one.codec)
    assert again.take_over(one) == 1
    assert again["a"] == [1]


@pytest.mark.parametrize(
    ("make", "sealed"),
    [
        (lambda: signed(scope="x"), True),
        (lambda: EncryptedCodec(JsonCodec(types=[Point]), [KEY, bytes(32)], scope="x"), True),
        (lambda: CompressedCodec(signed(scope="x"), "zlib"), True),
        (lambda: RestrictedPickleCodec(allowed=[Point]), False),
    ],
)
def test_what_is_alike_is_taken_over_if_the_pattern_is_the_same(tmp_path, make, sealed):
    one = DirectoryStash(tmp_path / "one", codec=make())
    one["a"] = [1]
    if sealed:
        with pytest.raises(InvalidArgumentError, match="under its own pattern, only"):
            DirectoryStash(tmp_path / "two", "{name}.bin", codec=make()).take_over(one)
    two = DirectoryStash(tmp_path / "three", fan_out=16, codec=make())
    assert two.take_over(one) == 1
    assert two["a"] == [1]


def test_a_value_without_a_key_that_can_be_read_is_told_when_all_others_were_taken_over(tmp_path):
    one, two = (DirectoryStash(tmp_path / name) for name in ("one", "two"))
    one.dump_many({"a": 1, "long" * 100: 2})
    path = one.key_to_path("long" * 100)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptValueError, match=re.escape(str(path))):
        two.take_over(one)
    assert dict(two) == {"a": 1}
    assert path.exists()


def test_two_that_take_over_from_each_other_do_not_wait_for_each_other(tmp_path):
    stashes = [DirectoryStash(tmp_path / name) for name in ("one", "two")]
    stashes[0].dump_many({str(n): n for n in range(200)})
    stashes[1].dump_many({str(n): n for n in range(200, 400)})
    children = [fork.Process(target=one.take_over, args=(other,)) for one, other in (stashes, stashes[::-1])]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
        child.close()
    assert {**dict(stashes[0]), **dict(stashes[1])} == {str(n): n for n in range(400)}


def test_composites_are_not_taken_over(tmp_path):
    one, two = (DirectoryCompositeStash(tmp_path / name, ({"x"},), "data") for name in ("one", "two"))
    one["a"] = SimpleNamespace(data={"x": 1})
    for target in (two, DirectoryStash(tmp_path / "three")):
        with pytest.raises(InvalidArgumentError, match="must be another DirectoryStash"):
            target.take_over(one)
    assert one["a"].data == {"x": 1}


# clearing


@pytest.mark.parametrize(
    "make",
    [
        lambda path, name: SqliteStash(path / "data.db", table=name),
        lambda path, name: LmdbStash(path / "data.lmdb", database=name),
    ],
)
def test_a_stash_clears_no_other_one(tmp_path, make):
    stashes = [make(tmp_path, name) for name in ("words", "words__en", "words__journal2", "word")]
    for stash in stashes:
        stash["a"] = 1
    stashes[0]._companion("journal")["x"] = 1
    stashes[0].clear()
    assert [len(stash) for stash in stashes] == [0, 1, 1, 1]
    assert len(stashes[0]._companion("journal")) == 0
    for stash in stashes:
        stash.close()


# repairing


def test_old_pickles_are_no_damage(tmp_path):
    stash = DirectoryStash(tmp_path)
    (tmp_path / "old.dat").write_bytes(pickle.dumps({"a": [1, 2]}))
    (tmp_path / "cut.dat").write_bytes(pickle.dumps({"a": [1, 2]})[:-4])
    for repair in ("drop", "quarantine"):
        found = {damage.key: damage.repaired for damage in stash.verify(repair=repair)}
        assert found["old"] is False
    assert list(stash.keys()) == ["old"]
    plain = DirectoryStash(tmp_path, codec=PickleCodec(plain=True))
    assert plain["old"] == {"a": [1, 2]}
    (tmp_path / "cut.dat").write_bytes(pickle.dumps({"a": [1, 2]})[:-4])
    with pytest.raises(CorruptValueError, match=r"cut\.dat is damaged: it is neither a value of zpersist nor a whole"):
        plain["cut"]
    assert [damage.repaired for damage in plain.verify(repair="drop")] == [True]


@pytest.mark.parametrize("protocol", range(6))
def test_whole_pickles_are_told_without_running_them(protocol):
    class Runs:
        def __reduce__(self):
            return os._exit, (1,)

    for value in (1, {"a": (1, 2)}, Runs()):
        data = pickle.dumps(value, protocol)
        assert is_pickle(data)
        assert not is_pickle(data[:-1])
        assert not is_pickle(data + b".")
    for data in (b"", b".x", b"text", b"\x80"):
        assert not is_pickle(data)


def test_a_union_is_not_repaired(tmp_path):
    with pytest.raises(ReadOnlyError):
        UnionStash((DirectoryStash(tmp_path),)).verify(repair="quarantine")


def test_a_cache_does_not_keep_what_was_put_away(tmp_path):
    below = DirectoryStash(tmp_path)
    cache = CacheStash(below)
    cache["a"] = 1
    assert cache["a"] == 1
    below.key_to_path("a").write_bytes(b"cut")
    assert [damage.repaired for damage in cache.verify(repair="drop")] == [True]
    assert cache.load("a") is None


# seals


class Canary:
    fired = 0

    def __reduce__(self):
        return _fire, ()


def _fire():
    Canary.fired += 1


def test_the_companions_of_a_sealed_shelf_are_sealed(tmp_path):
    stash = ShelveStash(tmp_path / "shelf", codec=signed())
    ShelveStash(tmp_path / ".zpersist/shelves/shelf/journal")["at-0"] = Canary()
    Canary.fired = 0
    with pytest.raises(ValueError, match="was written by the codec 'pickle'"):
        stash._companion("journal")["at-0"]
    assert Canary.fired == 0


def test_a_scope_stands_for_the_place_and_for_nothing_else(tmp_path):
    codec = signed(scope="x")
    stash = DirectoryStash(tmp_path / "data", codec=codec)
    other = DirectoryStash(tmp_path / "data", "{name}.other", codec=codec)
    stash["a"], other["a"], stash._companion("failures")["a"] = 1, 2, 3
    for source in (other.key_to_path("a"), stash._companion("failures").key_to_path("a")):
        shutil.copy(source, stash.key_to_path("a"))
        with pytest.raises(SealError):
            stash["a"]
    moved = DirectoryStash(tmp_path / "data", codec=codec)
    moved["a"] = 1
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert DirectoryStash(tmp_path / "copy", codec=codec)["a"] == 1


def test_groups_of_a_sealed_composite_are_not_exchanged(tmp_path):
    stash = DirectoryCompositeStash(tmp_path, ({"x"}, {"y"}), "data", codec=signed(scope="s"))
    stash["a"] = SimpleNamespace(data={"x": 1, "y": 2})
    shutil.copy(tmp_path / "comp" / "x" / "a.dat", tmp_path / "comp" / "y" / "a.dat")
    with pytest.raises(SealError):
        stash["a"]


# files


def test_groups_whose_names_join_alike_are_apart(tmp_path):
    stash = DirectoryCompositeStash(tmp_path / "data", ({"a", "b-c"}, {"a-b", "c"}, {"../out"}), "data")
    whole = {"a": 1, "b-c": 2, "a-b": 3, "c": 4, "../out": 5}
    stash["k"] = SimpleNamespace(data=dict(whole))
    stash["k"] = SimpleNamespace(data={"a": 6, "b-c": 7})
    assert stash["k"].data == whole | {"a": 6, "b-c": 7}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir() if path.is_dir()) == ["comp", "inst"]


@pytest.mark.parametrize("length", [2**63, 2**40, 10_000])
def test_a_trailer_that_lies_is_damage(tmp_path, length):
    stash = DirectoryStash(tmp_path)
    stash["a"] = memoryview(bytes(100_000))
    path = stash.key_to_path("a")
    data = bytearray(path.read_bytes())
    from xxhash import xxh3_64_intdigest

    index = 16 + len("pickle")
    start = len(data) - 48 - index
    data[-48:-40] = length.to_bytes(8, "little")
    data[-14:-6] = xxh3_64_intdigest(bytes(data[start:-14])).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(CorruptValueError):
        stash["a"]
    assert [damage.key for damage in stash.verify()] == ["a"]


def test_an_index_without_names_is_damage(tmp_path):
    class Odd:
        id = "pickle"

        def dump_parts(self, value):
            return b"N.", ()

    stash = DirectoryStash(tmp_path)
    data = b"".join(pack(Odd(), None, "", tag="xx")).replace(b"picklexx", b"pickle\xff\xfe")
    from xxhash import xxh3_64_intdigest

    body = data[:-14]
    stash.key_to_path("a").write_bytes(body + xxh3_64_intdigest(body[2:]).to_bytes(8, "little") + data[-6:])
    with pytest.raises(CorruptValueError, match="names in its index"):
        stash["a"]


def test_a_pipe_in_the_place_of_the_mark(tmp_path):
    (tmp_path / ".zpersist").mkdir()
    os.mkfifo(tmp_path / ".zpersist" / "fan_out")
    with pytest.raises(CorruptValueError, match="fan_out is damaged"):
        DirectoryStash(tmp_path).load("a")


def test_a_file_in_a_wrong_sub_directory_is_none(tmp_path):
    stash = DirectoryStash(tmp_path / "data", fan_out=16)
    stash["a"] = 1
    here = stash.key_to_path("a")
    wrong = here.parent.parent / ("0" if here.parent.name != "0" else "1")
    wrong.mkdir(exist_ok=True)
    shutil.copy(here, wrong / "a.dat")
    (tmp_path / "other").mkdir()
    shutil.copy(here, tmp_path / "other" / "z.dat")
    os.symlink(tmp_path / "other", stash.path / ("e" if here.parent.name != "e" else "d"))
    assert list(stash.keys()) == ["a"]
    assert len(stash) == 1
    stash.clear()
    assert (tmp_path / "other" / "z.dat").exists()


def test_views_that_would_not_come_back_are_refused(tmp_path):
    numpy = pytest.importorskip("numpy")
    stash = DirectoryStash(tmp_path)
    for view in (
        memoryview(numpy.asfortranarray(numpy.arange(12).reshape(3, 4))),
        memoryview(numpy.arange(12, dtype=">i4")),
        memoryview(numpy.zeros(3, dtype="c16")),
        memoryview(numpy.zeros((0, 3))),
    ):
        with pytest.raises(EncodeError, match="would not come back as it is; keep its tobytes"):
            stash["a"] = view
    assert len(stash) == 0


@pytest.mark.parametrize("codec", [JsonCodec(), MsgpackCodec()], ids=["json", "msgpack"])
def test_a_zone_that_is_none_imports_nothing(codec, tmp_path, monkeypatch):
    package = tmp_path / "tzdata" / "zoneinfo" / "Run"
    package.mkdir(parents=True)
    for folder in (package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    from zoneinfo import ZoneInfo

    good = codec.dumps(ZoneInfo("Europe/Rome"))
    with pytest.raises(DecodeError):
        codec.loads(good.replace(b"Europe/Rome", b"Run/Me_1234"))
    assert not (tmp_path / "ran").exists()
    assert codec.loads(good).key == "Europe/Rome"


@pytest.mark.parametrize("kind", [SqliteStash, LmdbStash])
def test_two_paths_to_one_database_are_one_place(tmp_path, kind):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "db").symlink_to("real/db")
    stashes = [
        kind(tmp_path / path, codec=SignedCodec(PickleCodec(), b"k" * 32)) for path in ("real/db", "link/db", "db")
    ]
    with stashes[0] as one, stashes[1] as other, stashes[2] as third:
        one["a"] = 1
        assert other["a"] == third["a"] == 1
        lock = one._locks.acquire("key a")
        for stash in (other, third):
            with pytest.raises(TimeoutError):
                stash._locks.acquire("key a", timeout=0)
        lock.release()
