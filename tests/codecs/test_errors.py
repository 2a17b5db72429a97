"""What codecs raise: it names the key and the place, once, and one value never ends what looks at many."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from zpersist import (
    Codec,
    CompressedCodec,
    CorruptValueError,
    DecodeError,
    DillCodec,
    DirectoryStash,
    EncodeError,
    InvalidArgumentError,
    JsonCodec,
    LmdbStash,
    MsgpackCodec,
    PersistedWork,
    PickleCodec,
    RestrictedPickleCodec,
    SealError,
    ShelveStash,
    SignedCodec,
    SqliteStash,
)
from zpersist.codecs.told import told
from zpersist.files.coding import decode
from zpersist.files.envelope import unpack

STORES = {
    "directory": lambda path, codec: DirectoryStash(path / "data", codec=codec),
    "sqlite": lambda path, codec: SqliteStash(path / "data.db", codec=codec),
    "shelve": lambda path, codec: ShelveStash(path / "shelf", codec=codec),
    "lmdb": lambda path, codec: LmdbStash(path / "data.lmdb", codec=codec),
}
stores = pytest.mark.parametrize("store", STORES)


class Odd(Codec):
    """Writes an exception, and raises it when it reads."""

    id = "odd"

    def dumps(self, value):
        return pickle.dumps(value)

    def loads(self, data):
        value = pickle.loads(data)
        if isinstance(value, BaseException):
            raise value
        return value


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("it does not tell")

    __repr__ = __str__


class OddRepr:
    def __repr__(self):
        raise RuntimeError("it is not shown")


ODD = [
    KeyError("k"),
    KeyError(OddRepr()),
    RuntimeError("boom"),
    Silent(),
    Silent("x"),
    OSError(5, "no such thing"),
    FileNotFoundError("its own"),
    RecursionError(),
    StopIteration(),
    AssertionError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ImportError("no module"),
    TimeoutError(),
]


@stores
@pytest.mark.parametrize("wrap", [lambda codec: codec, lambda codec: SignedCodec(codec, bytes(32))])
def test_a_codec_that_raises_something_odd(tmp_path, store, wrap):
    with STORES[store](tmp_path, wrap(Odd())) as stash:
        for number, err in enumerate(ODD):
            stash[f"odd {number}"] = err
            stash[f"good {number}"] = number
        for number in range(len(ODD)):
            with pytest.raises(
                DecodeError, match=r"can't be read: the codec '\S*odd' \(\w+\) has failed \(\w+"
            ) as caught:
                stash[f"odd {number}"]
            assert f"odd {number}" in str(caught.value).replace("%20", " ")
            assert str(tmp_path) in str(caught.value)
            assert type(caught.value.__cause__) is type(ODD[number])
            assert stash[f"good {number}"] == number
        damaged = list(stash.verify(repair="drop"))
        assert sorted(one.key for one in damaged) == sorted(f"odd {number}" for number in range(len(ODD)))
        # Nobody can say that it is lost.
        assert not any(one.repaired for one in damaged)
        assert len(stash) == 2 * len(ODD)


@stores
@pytest.mark.parametrize("err", [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_is_not_the_fault_of_a_value_passes(tmp_path, store, err):
    with STORES[store](tmp_path, Odd()) as stash:
        stash["a"] = err()
        with pytest.raises(err):
            stash["a"]
        with pytest.raises(err):
            list(stash.verify())


def test_without_the_one_place_it_would_end():
    """The error is one that gets through where nobody looks."""
    with pytest.raises(KeyError):
        Odd().loads(Odd().dumps(KeyError("k")))
    with pytest.raises(DecodeError):
        decode(Odd(), Odd().dumps(KeyError("k")), (), "here")


class Texting(Codec):
    id = "texting"

    def __init__(self, result):
        self.result = result

    def dumps(self, value):
        return self.result

    def loads(self, data):
        return bytes(data)


@stores
@pytest.mark.parametrize("result", ["text", None, 3, [b"x"]], ids=repr)
@pytest.mark.parametrize(
    "wrap",
    [lambda codec: codec, lambda codec: SignedCodec(codec, bytes(32)), lambda codec: CompressedCodec(codec, "zlib")],
    ids=["bare", "signed", "compressed"],
)
def test_a_codec_that_makes_no_bytes(tmp_path, store, result, wrap):
    with STORES[store](tmp_path, wrap(Texting(result))) as stash:
        words = rf"can't be written: the codec 'texting' \(Texting\) has made a {type(result).__name__} of a value"
        for write in (stash.dump, stash.add):
            with pytest.raises(EncodeError, match=words):
                write("a", 1)
        assert list(stash.keys()) == []


@stores
@pytest.mark.parametrize("result", [bytearray(b"x"), memoryview(b"x")], ids=["bytearray", "view"])
def test_other_kinds_of_bytes(tmp_path, store, result):
    with STORES[store](tmp_path, Texting(result)) as stash:
        stash["a"] = 1
        assert stash["a"] == b"x"


class Apart(Codec):
    """Lays a buffer apart as it is."""

    id = "apart"

    def dumps(self, value):
        return bytes(value)

    def loads(self, data):
        return bytes(data)

    def dump_parts(self, value):
        return b"body", [value]

    def load_parts(self, body, buffers):
        return b"".join(buffers)


@pytest.mark.parametrize(
    "buffer",
    [memoryview(np.arange(9.0)), memoryview(np.ones((3, 4))), b"bytes", memoryview(b""), memoryview(np.ones(0))],
)
def test_a_buffer_of_numbers_is_kept_by_its_bytes(tmp_path, buffer):
    stash = DirectoryStash(tmp_path, codec=Apart())
    stash["a"] = buffer
    assert stash["a"] == bytes(buffer)


@pytest.mark.parametrize("buffer", [memoryview(np.arange(9.0))[::2], "text", None], ids=["steps", "text", "none"])
def test_a_buffer_that_is_none(tmp_path, buffer):
    with pytest.raises(EncodeError, match=r"the codec 'apart' \(Apart\) has laid apart a \w+ that is not one block"):
        DirectoryStash(tmp_path, codec=Apart())["a"] = buffer
    assert not list(tmp_path.glob("*.dat"))


# Where it was.


@stores
@pytest.mark.parametrize("codec", [PickleCodec(), DillCodec(), JsonCodec(), MsgpackCodec(), RestrictedPickleCodec()])
def test_an_error_names_key_and_place_once(tmp_path, store, codec):
    with STORES[store](tmp_path, codec) as stash:
        with pytest.raises(EncodeError) as caught:
            stash["my key"] = (n for n in ())
        text = str(caught.value)
        assert text.count("can't be written: ") == 1
        assert text.replace("%20", " ").count("my key") == 1
        if store == "directory":
            assert text.startswith(f"{stash.key_to_path('my key')} can't be written: ")
        assert not hasattr(caught.value, "__notes__")


@stores
def test_an_error_of_a_read_names_key_and_place_once(tmp_path, store):
    with STORES[store](tmp_path, SignedCodec("json", bytes(32))) as stash:
        stash["my key"] = 1
    with STORES[store](tmp_path, SignedCodec("json", bytes(range(32)))) as stash:
        for read in (stash.load, stash.get, lambda name: list(stash)):
            with pytest.raises(SealError) as caught:
                read("my key")
            text = str(caught.value)
            assert text.count("can't be read: ") == 1
            assert text.replace("%20", " ").count("my key") == 1
            assert text.count(str(tmp_path)) == 1


def test_an_error_of_a_work_names_its_file(tmp_path):
    with pytest.raises(EncodeError, match=rf"^{tmp_path}/work.dat can't be written: a function"):
        PersistedWork(tmp_path / "work.dat", None).set(lambda: 1)


class Same(Codec):
    """Raises always the same error."""

    id = "same"
    error = DecodeError("no")

    def dumps(self, value):
        return b""

    def loads(self, data):
        raise self.error


def test_an_error_that_comes_by_again_is_told_once(tmp_path):
    stash = DirectoryStash(tmp_path, codec=Same())
    stash["a"] = 1
    for _ in range(3):
        with pytest.raises(DecodeError) as caught:
            stash["a"]
    assert str(caught.value) == f"{tmp_path}/a.dat can't be read: no"


@pytest.mark.parametrize("data", ["x" * 100_000, 3, None, OddRepr()])
def test_what_is_no_bytes_is_not_shown(data):
    with pytest.raises(
        CorruptValueError, match=f"'a' in here is damaged: there is a {type(data).__name__} in place of bytes"
    ):
        unpack(data, PickleCodec(), "a", "here")


@pytest.mark.parametrize("err", ODD, ids=lambda err: type(err).__name__)
def test_an_exception_is_told_without_a_call(err):
    assert told(err).startswith(type(err).__name__)
    assert len(told(RuntimeError("x" * 10_000))) < 600


# Pickles that claim more than there is.

CLAIMS = [
    b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x3fabc.",
    b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x3fabc.",
    b"\x80\x05\x8d\xff\xff\xff\xff\xff\xff\xff\x3fabc.",
    b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x3f]\x94.",
    b"\x80\x05]p1152921504606846976\n.",
    b"\x80\x05]p99999999999999999999999\n.",
]


@pytest.mark.parametrize("data", CLAIMS, ids=lambda data: ascii(data[:4]))
@pytest.mark.parametrize(
    "codec",
    [PickleCodec(), PickleCodec(plain=True), DillCodec(), RestrictedPickleCodec()],
    ids=lambda codec: repr(codec),
)
def test_a_pickle_that_claims_to_be_larger_is_no_lack_of_memory(tmp_path, codec, data):
    with pytest.raises(DecodeError):
        codec.loads(data)
    with pytest.raises(DecodeError):
        codec.load_parts(memoryview(data), [])


def test_that_such_a_pickle_asks_for_too_much():
    raised = set()
    for data in CLAIMS:
        with pytest.raises((MemoryError, ValueError, OverflowError, EOFError, pickle.UnpicklingError)) as caught:
            pickle.loads(data)
        raised.add(caught.type)
    assert MemoryError in raised


@pytest.mark.parametrize("codec", [PickleCodec(), DillCodec()])
def test_a_true_lack_of_memory_stays_one(codec):
    class Hungry:
        def __reduce__(self):
            return bytearray, (1 << 62,)

    with pytest.raises(MemoryError):
        codec.loads(pickle.dumps(Hungry()))


# What to do instead.

MAIN = """
import sys
from zpersist import PickleCodec
def make():
    class Local: pass
    return Local()
class Thing: pass
thing = Thing()
del Thing
values = {"lambda": lambda: 1, "local": make(), "gone": thing}
PickleCodec().dumps([values[sys.argv[1]]])
"""


def local():
    class Local:
        pass

    return Local


DILL = "functions, lambdas and local classes can be kept by codec=DillCodec()"


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (lambda: 1, DILL),
        ([lambda: 1], DILL),
        (local(), DILL),
        ({"a": local()()}, DILL),
        (threading.local(), "leave it out, or try codec=DillCodec()"),
        ((n for n in ()), "leave it out, or try codec=DillCodec()"),
        (memoryview(b"abcd")[::2], "keep its tobytes(.*); a view on one block of numbers can be kept$"),
        ([memoryview(b"abcd")[::2], 1], "keep its tobytes(.*); a view on one block of numbers can be kept$"),
        ([memoryview(b"abcd"), lambda: 1], DILL),
    ],
)
def test_pickle_says_what_to_do(value, remedy):
    for write in (PickleCodec().dumps, PickleCodec().dump_parts):
        with pytest.raises(EncodeError, match=remedy.replace("()", r"\(\)")):
            write(value)


@pytest.mark.parametrize(
    ("name", "remedy"), [("lambda", DILL), ("local", DILL), ("gone", "define its class in a module")]
)
def test_pickle_says_what_to_do_in_a_script(name, remedy):
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", MAIN, name], capture_output=True, text=True, env=env)
    assert f"; {remedy}" in done.stderr, done.stderr


def test_that_the_remedies_are_right():
    codec = DillCodec()
    assert codec.loads(codec.dumps([lambda: 7]))[0]() == 7
    assert type(codec.loads(codec.dumps({"a": local()()}))["a"]).__name__ == "Local"
    with pytest.raises(EncodeError, match=r"keep the tobytes\(\) of views, or use codec=PickleCodec\(\)"):
        codec.dumps(memoryview(b"x"))
    assert PickleCodec().loads(PickleCodec().dumps(memoryview(b"x"))) == b"x"
    assert codec.loads(codec.dumps(memoryview(b"abcd")[::2].tobytes())) == b"ac"
    with pytest.raises(EncodeError, match="leave it out"):
        codec.dumps(n for n in ())


@pytest.mark.parametrize("kind", [1, "", "é"])
def test_an_id_that_is_none(tmp_path, kind):
    class Named(Texting):
        id = kind

    with pytest.raises(InvalidArgumentError, match="must have an id"):
        DirectoryStash(tmp_path, codec=Named(b""))
