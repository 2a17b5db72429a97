"""Codecs that sign and encrypt: only what was sealed for the place is read, and nothing is decoded before."""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpersist import (
    Codec,
    CodecMismatchError,
    CompressedCodec,
    CorruptValueError,
    DictionaryStash,
    DirectoryStash,
    EncodeError,
    EncryptedCodec,
    InvalidArgumentError,
    PersistedWork,
    PickleCodec,
    SealError,
    ShelveStash,
    SignedCodec,
    SqliteStash,
    fill,
)
from zpersist.codecs.sealed import SealedCodec
from zpersist.testing import StashSuite

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
SEALED = {
    "hmac": lambda key=KEY, **options: SignedCodec(PickleCodec(), key, **options),
    "blake2b": lambda key=KEY, **options: SignedCodec(PickleCodec(), key, algorithm="blake2b", **options),
    "encrypted": lambda key=KEY, **options: EncryptedCodec(PickleCodec(), key, **options),
    "compressed": lambda key=KEY, **options: SignedCodec(CompressedCodec(method="zlib"), key, **options),
    "within": lambda key=KEY, **options: CompressedCodec(SignedCodec(None, key, **options), "zlib"),
    "both": lambda key=KEY, **options: EncryptedCodec(SignedCodec(None, key, **options), key, **options),
}
STORES = {
    "directory": lambda path, codec: DirectoryStash(path / "data", codec=codec),
    "sqlite": lambda path, codec: SqliteStash(path / "data.db", codec=codec),
    "shelve": lambda path, codec: ShelveStash(path / "shelf", codec=codec),
}


class Canary:
    """Fires when it is unpickled."""

    fired = 0

    def __reduce__(self):
        return _fire, ()


def _fire():
    Canary.fired += 1


class TestSigned(StashSuite):
    encodes = True

    def make(self, path):
        return DirectoryStash(path / "data", codec=SEALED["hmac"]())

    reopen = make


class TestEncryptedSqlite(StashSuite):
    encodes = True

    def make(self, path):
        return SqliteStash(path / "data.db", codec=SEALED["both"]())

    reopen = make


class TestCompressedShelve(StashSuite):
    encodes = True

    def make(self, path):
        return ShelveStash(path / "shelf", codec=SEALED["within"]())

    reopen = make


@pytest.fixture(params=SEALED)
def sealed(request):
    return SEALED[request.param]


@pytest.mark.parametrize("value", [None, {"a": [1, 2.5, "x"]}, b"\0" * 100_000], ids=["none", "dict", "bytes"])
def test_round_trip(sealed, value):
    codec = sealed()
    assert codec.loads(codec.dumps(value)) == value
    place = codec.bound("/a", "k")
    assert place.loads(memoryview(place.dumps(value))) == value
    assert pickle.loads(pickle.dumps(codec)).loads(codec.dumps(value)) == value


@pytest.mark.parametrize("kind", sorted(SEALED.keys() - {"within"}))
def test_every_bit_of_a_record(kind):
    codec = SEALED[kind]().bound("/a", "k")
    data = bytearray(codec.dumps([os.urandom(1000), Canary()]))
    assert len(data) >= 1024
    Canary.fired = 0
    for at in range(len(data) * 8):
        data[at // 8] ^= 1 << at % 8
        with pytest.raises((SealError, ValueError)):
            codec.loads(bytes(data))
        data[at // 8] ^= 1 << at % 8
    assert Canary.fired == 0
    codec.loads(bytes(data))
    assert Canary.fired == 1


def test_a_record_that_is_short(sealed):
    codec = sealed()
    data = codec.dumps([1])
    for cut in range(len(data)):
        with pytest.raises((SealError, ValueError)):
            codec.loads(data[:cut])


def test_a_seal_holds_for_one_place_and_key(sealed):
    codec = sealed()
    data = codec.bound("/a", "k").dumps(1)
    for place, key in (("/a", "l"), ("/b", "k"), ("", ""), ("/ak", ""), ("/a", ""), ("/", "ak")):
        with pytest.raises(SealError):
            codec.bound(place, key).loads(data)


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_no_two_places_are_confused(one, other):
    codec = SEALED["hmac"]()
    assert (codec.context(*one) == codec.context(*other)) is (one == other)


class Glued(SignedCodec):
    """Puts the names together without their lengths."""

    def context(self, place, key):
        return (place + key).encode("utf-8", "surrogateescape")


def test_names_that_are_only_glued_are_found_out():
    codec = Glued(None, KEY)
    data = codec.bound("/a", "bc").dumps(1)
    assert codec.bound("/ab", "c").loads(data) == 1


@pytest.mark.parametrize("store", STORES)
def test_in_a_store(tmp_path, sealed, store):
    stash = STORES[store](tmp_path, sealed())
    stash["a"] = [1]
    stash.dump("long " * 100, 2)
    assert stash.add("b", 3)
    if store != "shelve":
        assert stash.update("b", lambda n: n + 1) == 4
    stash.close()
    again = STORES[store](tmp_path, sealed())
    assert again["a"] == [1]
    assert again["long " * 100] == 2
    again.close()
    other = STORES[store](tmp_path, sealed(OTHER))
    with pytest.raises(SealError) as caught:
        other["a"]
    place = str(tmp_path / "data" / "a.dat") if store == "directory" else f"'a' in {tmp_path}"
    assert str(caught.value).startswith(place)
    assert str(caught.value).count("can't be read: ") == 1
    other.close()


def test_a_value_that_was_copied_to_another_key_or_stash(tmp_path, sealed):
    stash, other = (DirectoryStash(tmp_path / name, codec=sealed()) for name in "ab")
    stash["one"], stash["two"], other["one"] = 1, 2, 3
    shutil.copy(stash.key_to_path("one"), stash.key_to_path("two"))
    shutil.copy(stash.key_to_path("one"), other.key_to_path("one"))
    for broken, key in ((stash, "two"), (other, "one")):
        with pytest.raises(SealError):
            broken[key]
    assert stash["one"] == 1


def test_a_row_that_was_copied(tmp_path, sealed):
    stash = SqliteStash(tmp_path / "data.db", codec=sealed())
    other = SqliteStash(tmp_path / "data.db", table="other", codec=sealed())
    stash["a"], other["a"] = 1, 2
    db = sqlite3.connect(tmp_path / "data.db")
    db.execute("UPDATE other SET value=(SELECT value FROM stash)")
    db.commit()
    db.close()
    with pytest.raises(SealError):
        other["a"]
    assert stash["a"] == 1


def test_what_is_not_sealed_is_refused(tmp_path, sealed):
    Canary.fired = 0
    DirectoryStash(tmp_path / "data")["a"] = Canary()
    stash = DirectoryStash(tmp_path / "data", codec=sealed())
    with pytest.raises(CodecMismatchError, match="was written by the codec 'pickle'"):
        stash["a"]
    stash.key_to_path("b").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(CorruptValueError):
        stash["b"]
    assert Canary.fired == 0


def test_data_that_is_moved_needs_a_scope(tmp_path, sealed):
    for options in ({}, {"scope": "numbers"}):
        DirectoryStash(tmp_path / "data", codec=sealed(**options))["a"] = 1
        shutil.move(tmp_path / "data", tmp_path / "moved")
        moved = DirectoryStash(tmp_path / "moved", codec=sealed(**options))
        if options:
            assert moved["a"] == 1
            with pytest.raises(SealError):
                DirectoryStash(tmp_path / "moved", codec=sealed(scope="letters"))["a"]
        else:
            with pytest.raises(SealError):
                moved["a"]
            shutil.rmtree(tmp_path / "moved")


def test_keys_are_replaced(tmp_path, sealed):
    path = tmp_path / "data"
    DirectoryStash(path, codec=sealed([KEY]))["old"] = 1
    both = DirectoryStash(path, codec=sealed([KEY, OTHER]))
    both["new"] = 2
    assert (both["old"], both["new"]) == (1, 2)
    newest = DirectoryStash(path, codec=sealed([OTHER]))
    assert newest["new"] == 2
    with pytest.raises(SealError):
        newest["old"]


def test_a_work(tmp_path, sealed):
    def work(codec, version="1", **options):
        return PersistedWork(tmp_path / "work.dat", None, codec=codec, version=version, **options)

    work(sealed()).set([1])
    assert work(sealed())() == [1]
    for recover in (False, True):
        with pytest.raises(SealError):
            # To compute again would write over what somebody with the right key can read.
            work(sealed(OTHER), recover_empty=recover)()


def test_an_old_version_does_not_pass_for_a_new_one(tmp_path):
    path = tmp_path / "work.dat"
    work = PersistedWork(path, None, codec=SEALED["hmac"](), version="1")
    work.set([1])
    data = path.read_bytes()
    from zpersist.files.envelope import pack

    class Same:
        id = work._level._bound.id

        def dump_parts(self, value):
            return data[: -48 - len(self.id) - 1], ()

    path.write_bytes(b"".join(pack(Same(), None, "", tag="2")))
    with pytest.raises(SealError):
        PersistedWork(path, None, codec=SEALED["hmac"](), version="2")()


def test_companions_are_sealed_too(tmp_path, sealed):
    def fails(n):
        if n == 3:
            raise ValueError("three")
        return n

    stash = DirectoryStash(tmp_path / "data", codec=sealed())
    assert list(fill(stash, fails, range(6), workers=2, on_error="skip").failures) == ["3"]
    beside = list((tmp_path / "data" / ".zpersist").rglob("*.dat"))
    assert beside
    for path in beside:
        assert stash.codec.id.encode() in path.read_bytes()[-200:]


@pytest.mark.parametrize("store", ["directory", "sqlite"])
def test_buffers_are_part_of_the_seal(tmp_path, sealed, store):
    numpy = pytest.importorskip("numpy")
    stash = STORES[store](tmp_path, sealed())
    stash["a"] = numpy.arange(100_000)
    loaded = stash["a"]
    assert (loaded == numpy.arange(100_000)).all()
    if store == "directory":
        path = stash.key_to_path("a")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        # The checksum tells it before the seal does.
        with pytest.raises(CorruptValueError):
            stash["a"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SignedCodec(None, b"short"), "has 5 bytes, and must have 16 to 256; secrets.token_bytes"),
        (lambda: SignedCodec(None, "x" * 32), "must be bytes, or a list of them with the newest last, not a str"),
        (lambda: SignedCodec(None, []), "must be bytes"),
        (lambda: SignedCodec(None, [KEY, None]), "must be bytes"),
        (lambda: SignedCodec(None, bytes(65), algorithm="blake2b"), "65 bytes, and must have 16 to 64"),
        (lambda: SignedCodec(None, KEY, algorithm="md5"), "algorithm must be one of hmac-sha256, blake2b, not 'md5'"),
        (lambda: SignedCodec(dict, KEY), "codec of SignedCodec must be a codec"),
        (lambda: SignedCodec(None, KEY, scope=1), "scope must be a str or None, not of type int"),
        (lambda: SignedCodec(None, KEY, scope="a\ud800"), r"scope must have .* no half of a character"),
        (lambda: EncryptedCodec(None, KEY, scope="\ud83d\ude00"), r"scope must have .* no half of a character"),
        (lambda: SignedCodec(None, KEY, scope="a\0b"), "scope must have no zero character"),
        (lambda: EncryptedCodec(None, bytes(20)), "has 20 bytes, and must have 16 or 24 or 32"),
    ],
)
def test_bad_parameters(make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        make()


@pytest.mark.parametrize("size", [16, 31, 32, 63, 64, 65, 100, 256])
@given(context=st.binary(max_size=100), data=st.binary(max_size=300))
def test_signatures_are_those_of_the_standard_library(size, context, data):
    key = os.urandom(size)
    signed = SignedCodec(None, key).seal(data, context)
    assert signed == hmac.digest(key, context + data, "sha256") + data
    assert SignedCodec(None, [key, KEY]).unseal(signed, context) == data
    if size <= 64:
        signed = SignedCodec(None, key, algorithm="blake2b").seal(data, context)
        assert signed == hashlib.blake2b(context + data, key=key, digest_size=32).digest() + data


def test_many_threads_sign_with_one_codec():
    codec = SEALED["hmac"]().bound("/a", "k")
    values = [os.urandom(5000) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda value: codec.loads(codec.dumps(value)), values)) == values


class Zeros(Codec):
    """Makes as many zeros as the value says; nobody has touched their memory."""

    id = "zeros"

    def dumps(self, value):
        return bytes(value)

    def loads(self, data):
        return len(data)


@pytest.mark.parametrize("more", [0, 1, 1000])
def test_what_is_too_long_to_be_encrypted(tmp_path, more):
    limit = 2**31 - 1 - 16
    stash = DirectoryStash(tmp_path, codec=EncryptedCodec(Zeros(), KEY))
    with pytest.raises(EncodeError, match=f"can't be written: {limit + 1 + more} bytes are more than .*, {limit}: "):
        stash["a"] = limit + 1 + more
    assert list(stash.keys()) == []


def test_that_the_cipher_has_a_limit():
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    with pytest.raises(OverflowError):
        AESGCM(KEY).encrypt(bytes(12), bytes(2**31), None)


def test_a_key_is_never_shown(sealed):
    codec = sealed(KEY)
    for text in (repr(codec), str(codec), repr(DirectoryStash("x", codec=codec)), repr(codec.bound("/a", "k"))):
        assert KEY.hex() not in text
        assert repr(KEY) not in text
    assert "1 keys" in repr(codec)
    with pytest.raises(InvalidArgumentError) as caught:
        SignedCodec(None, "a secret that is no bytes")
    assert "a secret" not in str(caught.value)


class Trusting(SignedCodec):
    """Decodes whatever comes."""

    def unseal(self, data, context):
        return memoryview(data)[32:]


def test_a_codec_that_does_not_look_is_found_out():
    assert issubclass(Trusting, SealedCodec)
    codec = Trusting(None, KEY).bound("/a", "k")
    data = bytearray(codec.dumps([1]))
    data[0] ^= 1
    assert codec.loads(data) == [1]


def test_a_dictionary_stash_needs_none():
    assert not hasattr(DictionaryStash(), "codec")
