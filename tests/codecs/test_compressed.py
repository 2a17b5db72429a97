"""A codec that compresses: what comes back, and what is refused before it takes memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpersist import CompressedCodec, DecodeError, DirectoryStash, EncodeError, InvalidArgumentError, PickleCodec
from zpersist.testing import StashSuite

METHODS = ("zstd", "lz4", "zlib")


class TestCompressed(StashSuite):
    encodes = True

    def make(self, path):
        return DirectoryStash(path / "data", codec=CompressedCodec())

    reopen = make


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [None, 1, 9])
def test_round_trip(tmp_path, method, level):
    codec = CompressedCodec(PickleCodec(), method, level=level)
    value = {"text": "abc" * 10_000, "n": 1}
    assert codec.loads(codec.dumps(value)) == value
    assert pickle.loads(pickle.dumps(codec)).loads(codec.dumps(value)) == value
    stash = DirectoryStash(tmp_path, codec=codec)
    stash["a"] = value
    assert stash["a"] == value
    assert stash.key_to_path("a").stat().st_size < 2000
    # Any level is read.
    assert CompressedCodec(method=method).loads(codec.dumps(value)) == value


@pytest.mark.parametrize("method", METHODS)
@given(data=st.binary(), cut=st.integers(1, 30), flip=st.integers(0, 10_000))
def test_damage_never_passes(method, data, cut, flip):
    codec = CompressedCodec(method=method)
    good = codec.dumps(data)
    with pytest.raises(DecodeError):
        codec.loads(good[:-cut])
    with pytest.raises(DecodeError):
        codec.loads(good[:8] + data)
    bad = bytearray(good)
    bad[flip % len(bad)] ^= 1 + flip % 255
    try:
        assert codec.loads(bad) is not None
    except DecodeError:
        return


BOMB = """
import sys
from pathlib import Path
from zpersist import CompressedCodec, DecodeError

def most():
    # In KiB; what the resource module says includes the parent's.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])

method, options = sys.argv[1], eval(sys.argv[2])
codec = CompressedCodec(method=method, **options)
data = open(sys.argv[3], "rb").read()
before = most()
try:
    codec.loads(data)
except DecodeError as err:
    print(err)
else:
    print("was inflated")
print(most() - before)
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("told", ["all of it", "less"])
def test_a_small_input_that_inflates_to_a_gigabyte(tmp_path, method, told):
    made = CompressedCodec(method=method)._method
    if method == "zlib":
        deflate = zlib.compressobj(9)
        parts = [deflate.compress(bytes(1 << 20)) for _ in range(1024)] + [deflate.flush()]
        bomb = b"".join(parts)
    elif method == "zstd":
        import zstandard

        stream = zstandard.ZstdCompressor(level=1).compressobj()
        bomb = b"".join([stream.compress(bytes(1 << 20)) for _ in range(1024)] + [stream.flush()])
    else:
        import lz4.frame

        stream = lz4.frame.LZ4FrameCompressor()
        parts = [stream.begin()] + [stream.compress(bytes(1 << 20)) for _ in range(1024)] + [stream.flush()]
        bomb = b"".join(parts)
    assert len(bomb) < 5 << 20
    assert made.levels
    size = 1 << 30 if told == "all of it" else 1000
    file = tmp_path / "bomb"
    file.write_bytes(size.to_bytes(8, "little") + bomb)
    command = [sys.executable, "-c", BOMB, method, "{}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    words, grown = done.stdout.splitlines()
    assert "inflate" in words
    assert words != "was inflated"
    assert int(grown) < 64 << 10
    assert Path(file).stat().st_size < 5 << 20


def test_a_limit_that_does_not_hold_is_found_out(tmp_path):
    bomb = zlib.compress(bytes(1 << 28), 9)
    file = tmp_path / "bomb"
    file.write_bytes((1 << 28).to_bytes(8, "little") + bomb)
    command = [sys.executable, "-c", BOMB, "zlib", "{'max_bytes': 1 << 30}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path)})
    assert int(done.stdout.split()[-1]) > 64 << 10


#: Inflates as much as is allowed; what comes out is no pickle.
FULL = """
import sys, zlib
from pathlib import Path
from zpersist import CompressedCodec, DecodeError

def most():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])

def joined(data, most):
    out = zlib.decompressobj().decompress(data, most)
    return out, True

method, way, size = sys.argv[1], sys.argv[2], 64 << 20
codec = CompressedCodec(method=method, max_bytes=size)
data = size.to_bytes(8, "little") + codec._method.deflate(bytes(size), 1)
small = CompressedCodec(method=method)
small.loads(small.dumps([1]))
if way == "joined":
    codec._method = codec._method._replace(inflate=joined)
# What was used to make it does not count.
Path("/proc/self/clear_refs").write_text("5")
before = most()
try:
    codec.loads(data)
except DecodeError as err:
    assert "can't be loaded" in str(err), err
print(most() - before)
"""


def grown(method, way):
    command = [sys.executable, "-c", FULL, method, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    return int(done.stdout) / (64 << 10)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_inflated_is_held_once(method):
    # A bytearray has room for an eighth more than it holds; and a block or two.
    assert 0.9 < grown(method, "ours") < 1.25


def test_what_is_held_twice_is_found_out():
    assert grown("zlib", "joined") > 1.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 18) - 100, 1 << 18, (1 << 18) + 100, 1_000_000])
@pytest.mark.parametrize("fill", ["zeros", "random", "text"])
def test_blocks_of_any_size_come_back(method, size, fill):
    value = {"zeros": bytes, "random": os.urandom, "text": lambda n: (b"text and more " * (n // 14 + 1))[:n]}[fill](
        size
    )
    codec = CompressedCodec(method=method)
    data = codec.dumps(value)
    assert codec.loads(data) == value
    for bad in (data[:-1], data[: len(data) // 2], data[:9]):
        with pytest.raises(DecodeError):
            codec.loads(bad)
    if method != "zstd":
        for more in (b"x", data[8:]):
            with pytest.raises(DecodeError):
                codec.loads(data + more)


@pytest.mark.parametrize("method", METHODS)
def test_a_value_that_is_too_large_is_not_written(tmp_path, method):
    stash = DirectoryStash(tmp_path, codec=CompressedCodec(method=method, max_bytes=1000))
    with pytest.raises(EncodeError, match="more than max_bytes=1000 of the CompressedCodec"):
        stash["a"] = bytes(1000)
    assert "a" not in stash
    stash["a"] = bytes(900)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CompressedCodec(method="bz2"), "method must be one of 'zstd', 'lz4', 'zlib', not 'bz2'"),
        (lambda: CompressedCodec(level=20), "level of zstd must be 1 to 19, not 20"),
        (lambda: CompressedCodec(method="zlib", level=True), "level of zlib must be 0 to 9, not True"),
        (lambda: CompressedCodec(max_bytes=0), "max_bytes must be a whole number of at least 1, not 0"),
        (lambda: CompressedCodec(3, "zlib"), "codec of CompressedCodec must be a codec"),
    ],
)
def test_bad_parameters(make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        make()


def test_another_method_does_not_read_it(tmp_path):
    from zpersist import CodecMismatchError

    DirectoryStash(tmp_path, codec=CompressedCodec(method="zlib"))["a"] = 1
    with pytest.raises(CodecMismatchError, match="was written by the codec 'zlib:pickle', 'zstd:pickle' is configured"):
        DirectoryStash(tmp_path, codec=CompressedCodec())["a"]
