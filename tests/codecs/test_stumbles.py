"""What newcomers stumbled over."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from zpersist import (
    CompressedCodec,
    CorruptValueError,
    DecodeError,
    DirectoryStash,
    EncodeError,
    EncryptedCodec,
    Failure,
    InvalidArgumentError,
    JsonCodec,
    PickleCodec,
    RestrictedPickleCodec,
    SignedCodec,
)
from zpersist.damage import is_pickle

SECRET = b"my-secret-key-of-32-bytes-or-so!"


@pytest.mark.parametrize("method", ["zlib", "lz4", "zstd"])
@pytest.mark.parametrize("level", [None, 9])
def test_large_values_of_all_kinds_are_inflated_whole(method, level):
    codec = CompressedCodec(PickleCodec(), method, level=level)
    text = " ".join(map(str, range(150_000)))
    for value in (
        *(np.arange(size // 8).tobytes() for size in (1 << 20, (1 << 20) + 8, 3 << 20, 5_000_000)),
        *((text * 3)[:size].encode() for size in (900_000, 1_048_576, 2_400_000)),
        bytes(3 << 20),
        np.random.default_rng(1).bytes(3 << 20),
    ):
        assert codec.loads(codec.dumps(value)) == value


@pytest.mark.parametrize("missing", ["cryptography", "lmdb", "msgpack", "zstandard", "numpy"])
def test_all_names_can_be_imported_without_extras(missing):
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom zpersist import *\nprint(DirectoryStash.__name__)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert told.stdout == "DirectoryStash\n", told.stderr


def test_an_encrypting_codec_without_its_package_names_the_extra():
    program = (
        "import sys; sys.modules['cryptography'] = None\nfrom zpersist import *\n"
        "try: EncryptedCodec(None, bytes(32))\nexcept ImportError as err: print(err)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "zpersist[encrypted]" in told.stdout, told.stderr


def test_several_pickles_in_a_file_are_left(tmp_path):
    one, two = pickle.dumps([1] * 30), pickle.dumps({"a": 2})
    files = {"one": one, "two": one + two, "line": one + b"\n", "both": one + two + b"\r\n"}
    for name, data in files.items():
        (tmp_path / f"{name}.dat").write_bytes(data)
    (tmp_path / "cut.dat").write_bytes(one + two[:-3])
    for codec in (PickleCodec(), PickleCodec(plain=True)):
        gone = {damage.key for damage in DirectoryStash(tmp_path, codec=codec).verify(repair="drop") if damage.repaired}
        assert gone <= {"cut"}
    assert {path.stem for path in tmp_path.glob("*.dat")} == set(files)


@pytest.mark.parametrize("data", [b"", b"\n", b" \n", b"x"])
def test_what_is_no_pickle(data):
    assert not is_pickle(data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SignedCodec(SECRET, PickleCodec()),
        lambda: EncryptedCodec(SECRET, PickleCodec()),
        lambda: SignedCodec(SECRET.decode(), PickleCodec()),
        lambda: SignedCodec(None, [SECRET.decode()]),
        lambda: SignedCodec(None, SECRET, scope=SECRET),
    ],
)
def test_no_error_shows_the_secret(make):
    with pytest.raises(InvalidArgumentError) as info:
        make()
    assert "secret-key" not in str(info.value)
    assert info.value.__suppress_context__ or info.value.__context__ is None


@pytest.mark.parametrize(("key", "says"), [([], "here is none"), ([SECRET, "x"], "not a str"), ("x", "not a str")])
def test_what_is_wrong_with_a_list_of_secrets_is_told(key, says):
    with pytest.raises(InvalidArgumentError, match=says):
        SignedCodec(None, key)


@pytest.mark.parametrize(
    ("codec", "data", "leads"),
    [
        (PickleCodec(), pickle.dumps(print), True),
        (PickleCodec(), pickle.dumps(print) + b"\n", True),
        (PickleCodec(), b'{"a": 1}', False),
        (PickleCodec(plain=True), b'{"a": 1}', False),
        (JsonCodec(), pickle.dumps(print), False),
        (SignedCodec(None, SECRET), pickle.dumps(print), False),
        (RestrictedPickleCodec(), pickle.dumps(print), False),
    ],
)
@pytest.mark.parametrize("size", [0, 200_000])
def test_only_who_reads_pickles_is_led_to_those_of_others(tmp_path, codec, data, leads, size):
    if size and data.startswith(b"\x80"):
        data = pickle.dumps(["x" * size, print])
    (tmp_path / "a.dat").write_bytes(data)
    with pytest.raises(CorruptValueError) as info:
        DirectoryStash(tmp_path, codec=codec).load("a")
    assert ("plain=True" in str(info.value)) is leads


@pytest.mark.parametrize("fan_out", [16.0, 256.0, "16", True])
def test_a_fan_out_that_is_no_whole_number(tmp_path, fan_out):
    with pytest.raises(InvalidArgumentError, match="fan_out must be one of 0, 16, 256, 4096"):
        DirectoryStash(tmp_path, fan_out=fan_out)


def test_a_failure_that_was_kept_says_what_happened():
    for codec in (JsonCodec(), PickleCodec()):
        for failure in (Failure(ValueError("bad 3")), Failure(ValueError("bad"), message="worse")):
            again = codec.loads(codec.dumps(failure))
            assert repr(again) == repr(failure)
            assert repr(codec.loads(codec.dumps(again))) == repr(failure)


def test_remedies_that_work():
    with pytest.raises(EncodeError, match="can't be found under this name"):
        RestrictedPickleCodec().dumps(lambda: 1)
    with pytest.raises(EncodeError, match="no subclasses of them"):
        RestrictedPickleCodec(numpy=True).dumps(np.ma.array([1]))
    with pytest.raises(DecodeError, match="give a larger one"):
        codec = CompressedCodec(method="zlib")
        CompressedCodec(method="zlib", max_bytes=10).loads(codec.dumps(bytes(1000)))
