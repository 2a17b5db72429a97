"""RestrictedPickleCodec: what is allowed comes back, all else is refused when it is written, and when it is read."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import decimal
import functools
import operator
import os
import pickle
import pickletools
import re
import signal
import sys
import uuid
from datetime import date, datetime, timedelta, timezone
from pathlib import Path, PosixPath

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.codecs import samples
from tests.codecs.exact import told
from tests.codecs.samples import TYPES, Color, Level, Pair, Point, Slotted
from zpersist import (
    DecodeError,
    DirectoryStash,
    EncodeError,
    Failure,
    InvalidArgumentError,
    PickleCodec,
    RestrictedPickleCodec,
    ZPersistError,
)
from zpersist.codecs.restricted import DEFAULT_TYPES

SETTINGS = settings(
    derandomize=True, database=None, deadline=None, max_examples=300, suppress_health_check=list(HealthCheck)
)
BUILTIN = [
    date,
    datetime,
    samples.time,
    timedelta,
    timezone,
    decimal.Decimal,
    samples.Fraction,
    uuid.UUID,
    uuid.SafeUUID,
]
WIDE = RestrictedPickleCodec([*TYPES, *BUILTIN, type(Path()), samples.PurePosixPath, samples.PureWindowsPath])
BARE = RestrictedPickleCodec()


class Outer:
    class Inner:
        pass

    @staticmethod
    def function():
        return 1


def function(value):
    return value


def test_plain_values_need_nothing():
    value = [
        None,
        True,
        1,
        10**40,
        1.5,
        "\ud800",
        b"x",
        bytearray(b"y"),
        (1,),
        {1: {2}},
        frozenset([3]),
        1j,
        range(5),
        slice(1, 2),
    ]
    assert told_or_repr(BARE.loads(BARE.dumps(value))) == told_or_repr(value)
    assert DEFAULT_TYPES == (complex, range, slice)
    loop = []
    loop.append(loop)
    again = BARE.loads(BARE.dumps(loop))
    assert again[0] is again
    shared = [1]
    one, other = BARE.loads(BARE.dumps([shared, shared]))
    assert one is other


def told_or_repr(value):
    return [(type(item), item) if type(item) is slice else told(item) for item in value]


def needs_more(value):
    """Whether a value has what can't be allowed: zones are loaded by a method of their class."""
    return any(arg == "getattr" for _, arg, _ in pickletools.genops(PickleCodec().dumps(value)))


def test_allowed_values_come_back():
    @given(samples.values.filter(lambda value: not needs_more(value)))
    @settings(SETTINGS)
    def property_(value):
        again = WIDE.loads(WIDE.dumps(value))
        assert told(again) == told(value)
        body, buffers = WIDE.dump_parts(value)
        assert told(WIDE.load_parts(body, buffers)) == told(value)

    property_()


class Named:
    """Pickled by a name of its module."""

    def __reduce__(self):
        return "named"


named = Named()

REFUSED = {
    "class": int,
    "other class": samples.Child,
    "builtin": len,
    "system": os.system,
    "method": [].append,
    "bound": Point(1).__init__,
    "instance": samples.Child(1),
    "in a list": [1, {"a": (samples.Child(1),)}],
    "ellipsis": ...,
    "type of None": type(None),
    "pattern": re.compile("x"),
    "partial": functools.partial(print),
    "getter": operator.itemgetter(1),
    "flag by name": re.IGNORECASE,
    "signal": signal.SIGINT,
    "defaultdict": collections.defaultdict(list),
    "singleton": named,
    "iterator": iter([1]),
    "exception": ValueError("x"),
    "array": np.array([1]),
    "scalar": np.float64(1),
    "object": object(),
    "nested": Outer.Inner(),
    "static": Outer.function,
    "namedtuple": collections.namedtuple("N", "a")(1),
    "lambda": lambda: 1,
    "module": os,
    "file": sys.stdout,
    "generator": (_ for _ in ()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_not_be_loaded_is_not_written(name):
    codec = RestrictedPickleCodec([Point, Outer])
    for value in (REFUSED[name], [REFUSED[name]]):
        with pytest.raises(EncodeError):
            codec.dumps(value)
        with pytest.raises(EncodeError):
            codec.dump_parts(value)


class Unchecked(RestrictedPickleCodec):
    """A codec that writes whatever pickle can."""

    def dumps(self, value):
        return pickle.dumps(value, 5)


def written_is_loaded(codec, value):
    """Whatever is written can be loaded again."""
    try:
        data = codec.dumps(value)
    except EncodeError:
        return
    codec.loads(data)


objects = st.recursive(
    st.sampled_from([value for name, value in REFUSED.items() if name not in ("lambda", "module", "file", "generator")])
    | samples.leaves,
    lambda inner: st.lists(inner, max_size=3) | st.builds(Point, inner) | st.builds(Slotted, inner),
    max_leaves=5,
)


def test_what_is_written_can_be_loaded():
    given(objects)(SETTINGS(lambda value: written_is_loaded(RestrictedPickleCodec([Point, Slotted, len]), value)))()


def test_a_codec_that_writes_too_much_is_found_out():
    with pytest.raises((DecodeError, ExceptionGroup)):
        given(objects)(SETTINGS(lambda value: written_is_loaded(Unchecked([Point, Slotted, len]), value)))()


def test_names_are_exact():
    outer, inner = RestrictedPickleCodec([Outer]), RestrictedPickleCodec([Outer.Inner])
    assert type(inner.loads(inner.dumps(Outer.Inner()))) is Outer.Inner
    with pytest.raises(DecodeError, match=r"Outer\.Inner.*not allowed"):
        outer.loads(inner.dumps(Outer.Inner()))
    with pytest.raises(DecodeError, match=r"Outer\.function"):
        outer.loads(pickle.dumps(Outer.function))
    allowed = RestrictedPickleCodec([function, len, Outer.function])
    assert allowed.loads(allowed.dumps([function, len, Outer.function])) == [function, len, Outer.function]
    for data in (b"ctests.codecs.test_restricted\nOuter.__dict__\n.", b"cbuiltins\nlen.__self__\n."):
        with pytest.raises(DecodeError, match="not allowed"):
            allowed.loads(data)


def local():
    class Local:
        pass

    return Local


@pytest.mark.parametrize(
    "allowed",
    [
        "os.system",
        ["os.system"],
        [os],
        5,
        [1],
        [local()],
        [lambda: 1],
        [Failure],
        [type("Sub", (Failure,), {})],
        [None],
        [functools.partial(print)],
        [[].append],
    ],
)
def test_what_can_not_be_allowed(allowed):
    with pytest.raises(InvalidArgumentError):
        RestrictedPickleCodec(allowed)


def test_a_class_that_was_replaced_is_another_class(monkeypatch):
    codec = RestrictedPickleCodec([Outer])
    data = codec.dumps(Outer())
    monkeypatch.setattr(sys.modules[__name__], "Outer", type("Outer", (), {"__module__": __name__}))
    with pytest.raises(EncodeError):
        codec.dumps(Outer())
    assert type(codec.loads(data)) is codec.allowed[0]


def test_numbers_of_extensions_are_refused():
    codec = RestrictedPickleCodec([Point])
    value = Point(1)
    before = codec.dumps(value)
    copyreg.add_extension(Point.__module__, "Point", 240)
    copyreg.add_extension("os", "system", 241)
    try:
        assert pickle.loads(b"\x82\xf1.") is os.system  # now it is remembered by its number
        with pytest.raises(EncodeError, match="add_extension"):
            codec.dumps(value)
        for data in (b"\x82\xf1.", b"\x83\xf1\x00.", b"\x84\xf1\x00\x00\x00.", b"\x82\xf0.", b"\x80\x05]\x82\xf1a."):
            with pytest.raises(DecodeError, match="number"):
                codec.loads(data)
        assert codec.loads(before) == value
    finally:
        copyreg.remove_extension(Point.__module__, "Point", 240)
        copyreg.remove_extension("os", "system", 241)
    with pytest.raises(DecodeError):
        codec.loads(b"\x82\xf1.")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N",
        b"N.N.",
        b"N.\0",
        b"\x80\x06N.",
        b"(",
        b"0.",
        b"2.",
        b"Pid\n.",
        b"K\x01Q.",
        b"\x97.",
        b"\x98.",
        b"R.",
        b"b.",
        b"\x81.",
        b"\x92.",
        b"ios\nsystem\n.",
        b"(cos\nsystem\no.",
        b"h\x05.",
        b"\x8e" + b"\xff" * 8,
        b"\xff",
        b"\x93.",
        b"\x95" + b"\xff" * 8,
        b"I1" + b"0" * 5000 + b"\n.",
        b"(d.(",
        b"]}\x86\x93.",
    ],
    ids=repr,
)
def test_broken_pickles_are_refused(data):
    with pytest.raises(DecodeError):
        WIDE.loads(data)


def test_no_bytes_raise_anything_else():
    good = pickle.dumps([Point(1), Color.RED, (1, 2.5, "x"), {1: b"y"}, datetime(2024, 1, 1), Level.LOW, Pair(1)])

    @given(st.binary(max_size=60), st.integers(0, len(good)), st.booleans())
    @settings(SETTINGS, max_examples=500)
    def property_(data, place, splice):
        # The number of a place to remember something at makes pickle take that much memory: it is left out.
        data = data.translate(None, b"rqj")
        try:
            WIDE.loads(good[:place] + data + good[place + len(data) :] if splice else data)
        except (DecodeError, MemoryError):
            pass

    property_()


# Arrays.

ARRAYS = {
    "ints": np.arange(6).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "text": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b""]),
    "truth": np.array([True]),
    "none": np.zeros((0, 3)),
    "many axes": np.zeros((2, 0, 3)),
    "no axis": np.array(5),
    "steps": np.arange(10)[::-2],
    "swapped": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "big-endian": np.arange(3, dtype=">i4"),
    "half": np.array([1], np.float16),
    "complex": np.array([1j]),
    "void": np.zeros(2, "V8"),
    "times": np.array(["2024-01-01", "NaT"], "M8[ns]"),
    "spans": np.array([5], "m8[25s]"),
    "span": np.timedelta64(5, "D"),
    "day": np.datetime64("2024-01-01"),
    "float32": np.float32(1.5),
    "float64": np.float64("nan"),
    "bool": np.bool_(True),
    "str": np.str_("x"),
    "large": np.arange(100_000),
}
NUMPY = RestrictedPickleCodec(numpy=True)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back(name):
    value = ARRAYS[name]
    for again in (NUMPY.loads(NUMPY.dumps([value]))[0], NUMPY.load_parts(*NUMPY.dump_parts([value]))[0]):
        assert type(again) is type(value)
        assert (again.dtype.str, again.shape, again.tobytes()) == (value.dtype.str, value.shape, value.tobytes())
        if type(value) is np.ndarray and value.flags.c_contiguous:
            assert again.flags.c_contiguous
        if name == "columns":
            assert again.flags.f_contiguous


def test_large_arrays_are_mapped(tmp_path):
    stash = DirectoryStash(tmp_path / "data", codec=NUMPY)
    stash["a"] = {"x": ARRAYS["large"]}
    again = stash["a"]["x"]
    assert not again.flags.writeable
    assert np.array_equal(again, ARRAYS["large"])
    assert DirectoryStash(tmp_path / "data", codec=NUMPY, mmap=False)["a"]["x"].flags.writeable
    body, buffers = NUMPY.dump_parts(ARRAYS["large"])
    assert len(body) < 200
    assert np.shares_memory(np.frombuffer(buffers[0], np.uint8), ARRAYS["large"])


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.zeros(2, [("a", "f8")]),
        np.ma.array([1]),
        np.dtype("f8"),
        np.zeros(1, "V0"),
        np.array,
        np.add,
    ],
)
def test_arrays_of_other_things_are_refused(value):
    with pytest.raises(EncodeError):
        NUMPY.dumps(value)


class Call:
    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        from zpersist.codecs.arrays import make_array

        return make_array, self.args


@pytest.mark.parametrize(
    "args",
    [
        (b"\x41" * 8, "|O", (1,), "C"),
        (b"\x41" * 8, "O", (1,), "C"),
        (b"\x41" * 8, "O8", (1,), "C"),
        (b"12345678", "i4,O", (1,), "C"),
        (b"12345678", "(2,)i4", (1,), "C"),
        (b"12345678", [("a", "O")], (1,), "C"),
        (b"12345678", "<i8", (2,), "C"),
        (b"1", "<i8", (1,), "C"),
        (b"12345678", "<i8", (-1,), "C"),
        (b"12345678", "<i8", 1, "C"),
        (b"12345678", "<i8", (1,), "K"),
        (b"12345678", "i8", (1,), "C"),
        (b"12345678", np.float64, (1,), "C"),
        (5, "<i8", (1,), "C"),
        (b"", "|V0", (10**9, 10**9), "C"),
        (b"12345678", "<i8", (True,), "C"),
        (b"", "<i8", (2**62, 2**62, 0), "C"),
        (b"", "<i8", (1,) * 100 + (0,), "C"),
        (b"12345678", "<U99999999999", (1,), "C"),
    ],
    ids=repr,
)
def test_arrays_that_lie_are_refused(args):
    data = pickle.dumps(Call(*args))
    with pytest.raises(DecodeError):
        NUMPY.loads(data)


def test_arrays_need_to_be_asked_for():
    with pytest.raises(DecodeError, match="make_array"):
        BARE.loads(NUMPY.dumps(np.array([1])))
    assert BARE.numpy is False
    # NumPy's own functions, which trust what they are told, are not reached.
    for value in (np.array([1]), np.float64(1), np.dtype("f8")):
        for protocol in range(6):
            with pytest.raises(DecodeError, match="not allowed"):
                NUMPY.loads(pickle.dumps(value, protocol))


# Failures, and the codec as an object.


def test_a_failure_comes_back_with_a_stand_in():
    failure = Failure(KeyError("x"), thrower=("a", 1))
    again = BARE.loads(BARE.dumps([failure]))[0]
    assert (type(again), type(again.exception), str(again.exception)) == (Failure, ZPersistError, "KeyError: 'x'")
    assert (str(again), again.thrower) == ("'x'", "('a', 1)")
    # A failure as pickle keeps it loads a pickle of its own, in which anything may be.
    with pytest.raises(DecodeError, match=r"zpersist\.failure\.Failure"):
        BARE.loads(pickle.dumps(failure))


def test_the_codec_can_be_pickled():
    codec = RestrictedPickleCodec([Point], numpy=True)
    again = pickle.loads(pickle.dumps(codec))
    assert (again.allowed, again.numpy) == ((Point,), True)
    assert again.loads(again.dumps(Point(1))) == Point(1)
    assert repr(BARE) == "RestrictedPickleCodec(allowed=(), numpy=False)"


def test_a_value_that_fails_to_be_pickled_is_an_error_of_the_codec():
    @dataclasses.dataclass
    class Bad:
        def __reduce__(self):
            raise ZeroDivisionError

    deep = functools.reduce(lambda inner, _: [inner], range(100_000), None)
    for value in (Bad(), deep):
        with pytest.raises(EncodeError):
            BARE.dumps(value)


def test_paths_and_identifiers_of_the_standard_library():
    codec = RestrictedPickleCodec([PosixPath, uuid.UUID])
    value = {"p": Path("a/b"), "u": uuid.UUID(int=1)}
    assert codec.loads(codec.dumps(value)) == value


SCALARS = [
    *(np.bytes_(data) for data in (b"", b"a", b"a\0", b"\0", b"\0\0a\0\0", b"a\0b")),
    *(np.str_(text) for text in ("", "a", "a\0", "\0", "é\U0001f600\0", "\ud800", "a\udc80\0")),
    *(np.void(data) for data in (b"a", b"a\0", b"\0")),
]


@pytest.mark.parametrize("value", SCALARS, ids=lambda value: ascii(value.tobytes()))
def test_scalars_keep_the_zeros_at_their_end(value):
    again = NUMPY.loads(NUMPY.dumps([value]))[0]
    assert type(again) is type(value)
    assert again.dtype == value.dtype
    assert again.tobytes() == value.tobytes()
    if isinstance(value, (bytes, str)):
        # As an item of an array it loses them, and NumPy compares without them.
        kept, lost = ((b"" if isinstance(one, bytes) else "").join([one]) for one in (again, np.array([value])[0]))
        whole = (b"" if isinstance(value, bytes) else "").join([value])
        assert kept == whole
        assert (lost == whole) is (whole[-1:] not in ("\0", b"\0"))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a", "|S2"),
        (b"abc", "|S2"),
        (b"abcd", "<U2"),
        (b"\0\0\x11\0", "<U1"),
        (b"\xff\xff\xff\xff", "<U1"),
        (b"a", "|S"),
        (b"a", "|S1x"),
        (b"a", 1),
        (b"a", ("|S1",)),
        (1, "|S1"),
        ("a", "|S1"),
        (None, "<U0"),
        (10**9, "|S1000000000"),
        (10**8, "|S100000000"),
    ],
    ids=repr,
)
def test_scalars_that_lie(data, text):
    from zpersist.codecs.arrays import make_scalar

    class Reduced:
        def __reduce__(self):
            return make_scalar, (data, text)

    with pytest.raises(DecodeError):
        NUMPY.loads(pickle.dumps(Reduced(), 5))


def test_a_scalar_of_the_other_byte_order():
    from zpersist.codecs.arrays import make_scalar

    assert make_scalar("ab".encode("utf-32-be"), ">U2") == "ab"
    assert type(make_scalar("ab".encode("utf-32-be"), ">U2")) is np.str_


def test_what_it_does_not_prevent():
    """A pickle can change an allowed class: the page of codecs says so, for this is no sandbox."""
    name = f"c{__name__}\nOuter\n".encode()
    data = name + b"(N}(X\x04\x00\x00\x00moreK\x05utb."
    codec = RestrictedPickleCodec([Outer])
    try:
        assert codec.loads(data) is Outer
        assert Outer.more == 5
    finally:
        del Outer.more


@pytest.mark.parametrize("thing", [getattr, eval, exec, compile, open, __import__, functools.partial, os.system])
def test_what_gives_everything_can_not_be_allowed(thing):
    with pytest.raises(InvalidArgumentError, match="to allow it is to allow everything"):
        RestrictedPickleCodec([dict, thing])


class Bound:
    def method(self):
        return 1


def test_no_error_advises_to_allow_everything():
    with pytest.raises(EncodeError, match="found by getattr, can't be; leave it out") as caught:
        RestrictedPickleCodec([Bound]).dumps(Bound().method)
    assert "give it in" not in str(caught.value)
    numpy = pytest.importorskip("numpy")
    with pytest.raises(EncodeError, match=r"RestrictedPickleCodec\(numpy=True\) keeps plain arrays"):
        RestrictedPickleCodec([]).dumps(numpy.arange(3))
