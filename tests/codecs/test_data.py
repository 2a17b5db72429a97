"""JsonCodec and MsgpackCodec: what is kept comes back exactly, what can't be kept is refused, and bytes do nothing."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import functools
import inspect
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgpack
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.codecs import samples
from tests.codecs.exact import told
from tests.codecs.samples import SAMPLES, TYPES, Color, Hashed, Open, Pair, Point, Right, Slotted
from zpersist import (
    DecodeError,
    EncodeError,
    Failure,
    InvalidArgumentError,
    JsonCodec,
    MsgpackCodec,
    PickleCodec,
    ZPersistError,
)
from zpersist.codecs import hashes, kinds
from zpersist.codecs.hashes import MAX_EQUAL_HASHES
from zpersist.codecs.kinds import KINDS, TEXTUAL
from zpersist.codecs.plain import MAX_DEPTH

ROOT = Path(__file__).parents[2]
SETTINGS = settings(
    derandomize=True, database=None, deadline=None, max_examples=300, suppress_health_check=list(HealthCheck)
)
CODECS = [JsonCodec(types=TYPES), MsgpackCodec(types=TYPES)]
JSON, MSGPACK = CODECS
both = pytest.mark.parametrize("codec", CODECS, ids=["json", "msgpack"])


def pack(tree):
    """Return a tree as both formats, made without the codecs."""
    return json.dumps(tree).encode(), msgpack.packb(tree)


def for_codec(codec, tree):
    return pack(tree)[codec is MSGPACK]


# What is kept.


def comes_back(codec, value):
    before = told(value)
    data = codec.dumps(value)
    again = codec.loads(data)
    assert told(value) == before
    assert told(again) == before
    assert codec.loads(memoryview(data)) is None or told(codec.loads(bytearray(data))) == before


@both
@pytest.mark.parametrize("value", SAMPLES, ids=lambda value: ascii(type(value).__name__))
def test_samples_come_back(codec, value):
    comes_back(codec, value)
    comes_back(codec, [value, {"a": value, "b": (value,)}])
    try:
        hash(value)
    except TypeError:
        return
    comes_back(codec, {value: 1, "x": [value]})
    comes_back(codec, {value})


@both
def test_values_come_back(codec):
    holds(samples.values, lambda value: comes_back(codec, value), 500)


class Lossy(JsonCodec):
    """A codec that makes a value before it is kept poorer by a function."""

    id = "lossy"

    def __init__(self, poorer):
        super().__init__(types=TYPES)
        self.poorer = poorer

    def dumps(self, value):
        return super().dumps(self.poorer(value))


class AsText:
    """What is often written in place of a codec."""

    def dumps(self, value):
        return json.dumps(value, default=str).encode()

    def loads(self, data):
        return json.loads(bytes(data))


def everywhere(change):
    def walk(value):
        if type(value) in (list, tuple, set, frozenset):
            return change(type(value)(map(walk, value)))
        if type(value) is dict:
            return change({walk(key): walk(item) for key, item in value.items()})
        return change(value)

    return walk


LOSSY = {
    "json with default=str": AsText(),
    "tuples become lists": Lossy(lambda value: list(value) if type(value) is tuple else value),
    "-0.0 becomes 0.0": Lossy(everywhere(lambda value: value + 0.0 if type(value) is float else value)),
    "True becomes 1": Lossy(everywhere(lambda value: int(value) if type(value) is bool else value)),
    "1.0 becomes 1": Lossy(everywhere(lambda v: int(v) if type(v) is float and v == v // 1 and abs(v) < 9 else v)),
    "all nan are one": Lossy(everywhere(lambda v: math.nan if type(v) is float and math.isnan(v) else v)),
    "fold is lost": Lossy(everywhere(lambda v: v.replace(fold=0) if type(v) is datetime else v)),
    "keys are sorted": Lossy(lambda v: dict(sorted(v.items(), key=repr)) if type(v) is dict else v),
    "a bytearray becomes bytes": Lossy(everywhere(lambda v: bytes(v) if type(v) is bytearray else v)),
    "enums become values": Lossy(everywhere(lambda v: v.value if isinstance(v, enum.Enum) else v)),
    "surrogates become characters": Lossy(
        everywhere(lambda v: v.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if type(v) is str else v)
    ),
    "decimals lose zeros": Lossy(everywhere(lambda v: v.normalize() if type(v) is Decimal and v.is_finite() else v)),
}


@pytest.mark.parametrize("name", LOSSY)
def test_a_codec_that_loses_something_is_found_out(name):
    codec = LOSSY[name]

    @given(samples.values | st.sampled_from(SAMPLES))
    @settings(SETTINGS, max_examples=3000, phases=[Phase.generate])
    def property_(value):
        comes_back(codec, value)

    # It is found out by a value that comes back as another one, not only by one that is refused.
    with pytest.raises((AssertionError, TypeError, ExceptionGroup)):
        property_()
    with pytest.raises(AssertionError):
        for value in [[()], *SAMPLES]:
            comes_back(codec, value)


def test_plain_values_are_plain_json():
    value = {"a": [1, 2.5, "x", None], "é": {"b": True}, "$x": 1, "y": "$set"}
    assert JSON.dumps(value) == json.dumps(value, ensure_ascii=False).encode()
    assert json.loads(JSON.dumps(value)) == value
    assert msgpack.unpackb(MSGPACK.dumps({**value, "b": b"x"})) == {**value, "b": b"x"}


#: What format 1 is: these bytes must be read for ever.
GOLDEN = {
    b'{"a": [1, 2.5, "x", null, true]}': {"a": [1, 2.5, "x", None, True]},
    b'{"$dict": [[1, "a"], ["1", "b"], [{"$tuple": [1, 2]}, "c"]]}': {1: "a", "1": "b", (1, 2): "c"},
    b'{"$dict": [["$set", [1]]]}': {"$set": [1]},
    b'{"$int": "0x10000000000000000"}': 2**64,
    b'{"$int": "-0x8000000000000001"}': -(2**63) - 1,
    b'[{"$float": "nan"}, {"$float": "-inf"}, {"$float": "fff8000000000000"}]': [
        math.nan,
        -math.inf,
        samples.nan(0xFFF8 << 48),
    ],
    b'{"$bytes": "AP8="}': b"\0\xff",
    b'{"$bytearray": {"$bytes": "AA=="}}': bytearray(1),
    b'{"$str": {"$bytes": "7aCA"}}': "\ud800",
    b'{"$set": [1]}': {1},
    b'{"$frozenset": [{"$frozenset": []}]}': frozenset([frozenset()]),
    b'{"$complex": [1.0, {"$float": "inf"}]}': complex(1, math.inf),
    b'{"$decimal": "1.50"}': Decimal("1.50"),
    b'{"$fraction": [-1, 3]}': Fraction(-1, 3),
    b'{"$range": [0, 5, 2]}': range(0, 5, 2),
    b'{"$date": "2024-02-29"}': date(2024, 2, 29),
    b'{"$time": ["02:00:00", 1, null]}': samples.time(2, fold=1),
    b'{"$datetime": "2024-01-01T00:00:00.000001"}': datetime(2024, 1, 1, microsecond=1),
    b'{"$datetime": ["2024-01-01T00:00:00", 0, {"$zone": "Europe/Berlin"}]}': datetime(
        2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")
    ),
    b'{"$timezone": [{"$timedelta": [0, 3600, 0]}, "X"]}': timezone(timedelta(hours=1), "X"),
    b'{"$uuid": "00000000-0000-0000-0000-000000000001"}': UUID(int=1),
    b'{"$path": ["PureWindowsPath", "C:\\\\x"]}': PureWindowsPath("C:\\x"),
    b'{"$enum": ["tests.codecs.samples:Color", "RED"]}': Color.RED,
    b'{"$enum": ["tests.codecs.samples:Right", "BOTH"]}': Right.BOTH,
    b'{"$object": ["tests.codecs.samples:Pair", {"left": 1, "right": null}]}': Pair(1),
    b'{"$object": ["tests.codecs.samples:Point", {"x": 1, "y": 0, "norm": 1.5}]}': Point(1),
}


@pytest.mark.parametrize("data", GOLDEN, ids=lambda data: data.decode()[:30])
def test_the_format_stays(data):
    assert told(JSON.loads(data)) == told(GOLDEN[data])
    assert JSON.dumps(GOLDEN[data]) == data
    assert told(MSGPACK.loads(MSGPACK.dumps(GOLDEN[data]))) == told(GOLDEN[data])


def test_the_format_of_msgpack_stays():
    value = {"a": [b"x", math.inf], 1: 2**64}
    data = bytes.fromhex(
        "81a52464696374 92 92a16192c40178cb7ff0000000000000 92 01 81a424696e74b330783130303030303030303030303030303030"
    )
    assert MSGPACK.loads(data) == value
    assert MSGPACK.dumps(value) == data


@both
def test_decimals_do_not_depend_on_the_context(codec):
    values = [Decimal("1E+50"), Decimal("1" * 60), Decimal("NaN"), Decimal("-0E-7")]
    with decimal.localcontext(decimal.Context(prec=2, capitals=0, traps=[])):
        data = codec.dumps(values)
        assert told(codec.loads(data)) == told(values)
        with pytest.raises(DecodeError):
            codec.loads(for_codec(codec, {"$decimal": "no number"}))
    assert told(codec.loads(data)) == told(values)
    assert data == codec.dumps(values)


@both
def test_integers_do_not_depend_on_the_limit_of_digits(codec):
    before = sys.get_int_max_str_digits()
    value = [10**10_000, -(7**9999)]
    try:
        for limit in (640, 4300, 0):
            sys.set_int_max_str_digits(limit)
            assert codec.loads(codec.dumps(value)) == value
            with pytest.raises(DecodeError):
                JSON.loads(b"1" * 4301)
    finally:
        sys.set_int_max_str_digits(before)


# Registered classes.


@both
def test_fields_are_set_without_init(codec):
    value = Open(3)
    object.__setattr__(value, "limit", 100)
    assert value.value == "3"
    object.__setattr__(value, "value", 7)
    again = codec.loads(codec.dumps(value))
    assert (again.value, again.limit) == (7, 100)
    assert hash(codec.loads(codec.dumps(Hashed(1)))) == hash(Hashed(1))
    point = Point(1)
    assert point.twice == 3.0
    again = codec.loads(codec.dumps(point))
    assert "twice" not in vars(again)
    assert again.twice == 3.0
    alias = codec.loads(codec.dumps(Color.VERT))
    assert alias is Color.GREEN


def local_class():
    @dataclasses.dataclass
    class Point:
        x: int

    Point.__module__, Point.__qualname__ = samples.__name__, "Point"
    return Point


@both
def test_only_registered_classes_are_kept_and_made(codec):
    bare = type(codec)()
    with pytest.raises(EncodeError, match=r"value\['a'\]\[0\] is a Point.*register its class: \w+\(types=\[Point\]\)"):
        bare.dumps({"a": [Point(1)]})
    with pytest.raises(DecodeError, match=r"tests.codecs.samples:Point.*types="):
        bare.loads(codec.dumps([Point(1)]))
    with pytest.raises(DecodeError, match="samples:Color"):
        bare.loads(codec.dumps(Color.RED))
    # A class of the same name is another class.
    with pytest.raises(EncodeError):
        codec.dumps(local_class()(1))
    # So is a subclass, and a base.
    only = type(codec)(types=[samples.Child])
    with pytest.raises(EncodeError):
        only.dumps(Point(1))
    with pytest.raises(EncodeError):
        type(codec)(types=[Point]).dumps(samples.Child(1))


def obj(name, fields):
    return {"$object": [f"tests.codecs.samples:{name}", fields]}


WRONG_FIELDS = [
    obj("Point", {"x": 1, "y": 1}),
    obj("Point", {"x": 1, "y": 1, "norm": 1, "z": 1}),
    obj("Point", {"x": 1, "y": 1, "norm": 1, "__class__": 1}),
    obj("Point", {}),
    obj("Point", [1, 2, 3]),
    obj("Pair", {"right": 1}),
    obj("Pair", [1, 2]),
    obj("Slotted", {"_private": 1}),
    obj("Color", {"name": 1}),
    obj("Point2", {"x": 1}),
    {"$object": ["os:system", {"command": "x"}]},
    {"$object": ["tests.codecs.samples:Point.__init__", {}]},
    {"$object": [1, 2]},
    {"$object": "tests.codecs.samples:Point"},
    {"$object": []},
    {"$object": [["tests.codecs.samples:Point"], {}]},
    {"$enum": ["tests.codecs.samples:Color", "BLUE"]},
    {"$enum": ["tests.codecs.samples:Color", "__class__"]},
    {"$enum": ["tests.codecs.samples:Color", 1]},
    {"$enum": ["tests.codecs.samples:Level", 1]},
    {"$enum": ["tests.codecs.samples:Right", 8]},
    {"$enum": ["tests.codecs.samples:Right", True]},
    {"$enum": ["tests.codecs.samples:Point", "x"]},
]


@both
@pytest.mark.parametrize("tree", WRONG_FIELDS, ids=repr)
def test_wrong_fields_are_refused(codec, tree):
    with pytest.raises(DecodeError):
        codec.loads(for_codec(codec, tree))


class Wide:
    __slots__ = ("secret",)


@dataclasses.dataclass
class HasMore(Wide):
    a: int


@dataclasses.dataclass
class IsDict(dict):
    a: int = 1


@dataclasses.dataclass
class IsError(Exception):
    a: int = 1


@attrs.define
class Plain:
    a: int = 1


@pytest.mark.parametrize(
    "types",
    [
        [int],
        [1],
        ["os:system"],
        "Point",
        5,
        [HasMore],
        [IsDict],
        [IsError],
        [object],
        [os.system],
        [Point, local_class()],
        [Exception],
        [type],
    ],
    ids=repr,
)
def test_types_that_can_not_be_registered(types):
    with pytest.raises(InvalidArgumentError):
        JsonCodec(types=types)


def test_a_class_may_be_registered_twice():
    assert JsonCodec(types=[Point, Point]).loads(JSON.dumps(Point(1))) == Point(1)


@both
def test_state_beside_the_fields_is_refused(codec):
    point = Point(1)
    point.extra = 1
    with pytest.raises(EncodeError, match="'extra' is no field"):
        codec.dumps([point])
    unset = Slotted(1)
    del unset.other
    with pytest.raises(EncodeError, match=r"value\[0\] is a Slotted.*'other' is not set"):
        codec.dumps([unset])
    with pytest.raises(EncodeError, match="3 items"):
        codec.dumps(tuple.__new__(Pair, (1, 2, 3)))


# What is refused.


class Text(str):
    __slots__ = ()


class Zone(tzinfo):
    def utcoffset(self, moment):
        return timedelta(0)


class OtherFailure(Failure):
    pass


#: An empty file of a time zone, of version 1.
TZIF = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb", 0, 0, 0) + b"UTC\0"


class Unregistered(enum.IntEnum):
    A = 1


REFUSED = {
    "function": (lambda: None),
    "builtin": print,
    "class": int,
    "module": os,
    "object": object(),
    "iterator": iter([1]),
    "slice": slice(1),
    "ellipsis": ...,
    "not implemented": NotImplemented,
    "view": memoryview(b"x"),
    "keys": {}.keys(),
    "OrderedDict": OrderedDict(a=1),
    "defaultdict": defaultdict(list),
    "Counter": Counter("a"),
    "str subclass": Text("x"),
    "IntEnum": Unregistered.A,
    "exception": ValueError("x"),
    "named tuple": namedtuple("N", "a")(1),
    "dataclass": HasMore(1),
    "path subclass": type("P", (type(Path()),), {})("x"),
    "zone": datetime(2024, 1, 1, tzinfo=Zone()),
    "attrs": Plain(),
    "zone without name": ZoneInfo.from_file(io.BytesIO(TZIF)),
    "zone of a false name": ZoneInfo.from_file(io.BytesIO(TZIF), key="Europe/Berlin"),
    "failure subclass": OtherFailure(ValueError("x")),
    "partial": functools.partial(int),
    "type of None": type(None),
    "huge fraction": Fraction(1, 3**100_000),
    "generator": (_ for _ in ()),
    "window path": PureWindowsPath("./c:x"),
}


@both
@pytest.mark.parametrize("name", REFUSED)
def test_refused(codec, name):
    value = REFUSED[name]
    if name == "window path" and str(value) == ".\\c:x":
        comes_back(codec, value)  # since Python 3.12 its text tells it
        return
    for place, whole in {"value": value, "value[0]": [value], "value['a'][1]": {"a": (1, value)}}.items():
        with pytest.raises(EncodeError) as caught:
            codec.dumps(whole)
        assert isinstance(caught.value, TypeError)
        assert str(caught.value).startswith((f"{place} is a ", f"{place}.tzinfo is a "))


@both
def test_the_error_says_where_and_what_to_do(codec):
    def said(value):
        with pytest.raises(EncodeError) as caught:
            codec.dumps(value)
        return str(caught.value)

    assert said({"a": [0, 1, 2, Point(print)]}).startswith("value['a'][3].x is a builtin_function_or_method, which ")
    assert said({1: {print: 1}}).startswith("value[1][a builtin_function_or_method] (the key) is a builtin")
    assert said([{(1, print): 1}]).startswith("value[0][a tuple] (the key)[1] is a")
    assert said({10**5000: print}).startswith("value[a int] is a")
    assert said({"x" * 100_000: print}).startswith(f"value['{'x' * 40}'…] is a")
    assert said({print}).startswith("value{…} is a builtin")
    assert said([datetime(2024, 1, 1, tzinfo=Zone())]).startswith("value[0].tzinfo is a Zone")
    assert "make a dict of it" in said([OrderedDict()])
    assert "PickleCodec()" in said(print)
    assert len(said(functools.reduce(lambda inner, _: [inner], range(100), print))) < 300


@both
def test_cycles_are_refused(codec):
    loop = []
    loop.append(loop)
    with pytest.raises(EncodeError, match="^value holds itself"):
        codec.dumps(loop)
    ring = {"a": [datetime.min, (1, {"b": None})]}
    ring["a"][1][1]["b"] = ring
    with pytest.raises(EncodeError, match=r"^value\[0\]\['a'\]\[1\]\[1\] holds itself"):
        codec.dumps([ring])
    point = Point(1)
    point.y = [point]
    with pytest.raises(EncodeError, match=r"holds itself"):
        codec.dumps(point)
    point = Slotted([])
    point._private.append({2: point})
    with pytest.raises(EncodeError, match="holds itself"):
        codec.dumps({1: point})


WRAPS = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "dict": lambda inner: {"a": inner},
    "any dict": lambda inner: {1: inner},
    "object": lambda inner: Point(inner),
    "frozenset": lambda inner: frozenset([inner]),
}


@both
@pytest.mark.parametrize("name", WRAPS)
def test_depth_has_a_limit_that_does_not_depend_on_the_stack(codec, name):
    wrap = WRAPS[name]
    value = functools.reduce(lambda inner, _: wrap(inner), range(MAX_DEPTH), datetime(2024, 1, 1, tzinfo=UTC))
    comes_back(codec, value)
    with pytest.raises(EncodeError, match=f"deeper than {MAX_DEPTH} containers"):
        codec.dumps(wrap(value))
    deep = functools.reduce(lambda inner, _: [inner], range(200_000), None)
    with pytest.raises(EncodeError, match="deeper than"):
        codec.dumps(deep)


@both
def test_no_room_on_the_stack_is_an_error_of_the_codec(codec):
    deep = functools.reduce(lambda inner, _: (inner,), range(100), None)
    data = codec.dumps(deep)

    def call(what, argument):
        try:
            what(argument)
        except (EncodeError, DecodeError) as err:
            return err
        except RecursionError:
            # There was no room for the call itself.
            return None
        return argument

    # What happens is one of these; a crash, or a value cut short, it is not.
    for what, argument in ((codec.dumps, deep), (codec.loads, data)):
        for room in range(0, 300, 25):
            limit = sys.getrecursionlimit()
            depth = len(inspect.stack(0))
            try:
                sys.setrecursionlimit(depth + 10 + room)
                result = call(what, argument)
            finally:
                sys.setrecursionlimit(limit)
            assert result is None or result is argument or isinstance(result, ZPersistError)


# Bytes from anybody.

TAGS = sorted({kind.tag for kind in (*KINDS, *TEXTUAL)} | {"$enum", "$object", "$nothing", "$"})
NAMES = [f"{kind.__module__}:{kind.__qualname__}" for kind in TYPES] + ["os:system", "builtins:eval"]
odd_texts = st.sampled_from(
    [
        "nan",
        "0x1",
        "0xé",
        "-0x0",
        "1E+999999999999999999",
        "sNaN",
        "1_0",
        "٣",
        "2024-01-01",
        "2024-W01-1",
        "00:00",
        "24:00",
        "2024-01-01T00:00:00+01:00",
        "AAA=",
        "A",
        "7ff0000000000001",
        "../../etc/passwd",
        "Europe/Berlin",
        "PosixPath",
        "WindowsPath",
        "a//b",
        "",
        "RED",
        "BOTH",
        *NAMES,
        "9" * 5000,
        "0x" + "f" * 5000,
        "1" * 400 + "e" + "9" * 30,
    ]
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), odd_texts, st.text(max_size=5)
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*TAGS, "a", "x", "y", "left"]), inner, max_size=2),
        st.builds(lambda tag, payload: {tag: payload}, st.sampled_from(TAGS), inner),
        st.builds(lambda tag, payload: {tag: payload}, st.sampled_from(TAGS), st.lists(inner, max_size=3)),
        st.builds(lambda name, fields: {"$object": [name, fields]}, st.sampled_from(NAMES), inner),
    ),
    max_leaves=15,
)


def holds(strategy, check, examples):
    """Check the values of a strategy."""

    @given(strategy)
    @settings(SETTINGS, max_examples=examples)
    def property_(value):
        check(value)

    property_()


def does_nothing(codec, data):
    """Load bytes: a value that can be kept comes out, or a DecodeError."""
    try:
        value = codec.loads(data)
    except DecodeError:
        return False
    try:
        again = codec.dumps(value)
    except EncodeError as err:
        assert "deeper" in str(err)
        return True
    assert told(codec.loads(again)) == told(value)
    return True


@both
def test_no_bytes_raise_anything_else(codec):
    holds(st.binary(max_size=200), lambda data: does_nothing(codec, data), 1000)


@both
def test_no_tree_raises_anything_else(codec):
    holds(trees, lambda tree: does_nothing(codec, for_codec(codec, tree)), 1500)


@both
def test_no_damage_raises_anything_else(codec):
    @given(samples.values, st.data())
    @settings(SETTINGS, max_examples=500)
    def damage(value, data):
        good = bytearray(codec.dumps(value))
        place = data.draw(st.integers(0, len(good)))
        match data.draw(st.integers(0, 2)):
            case 0 if place < len(good):
                good[place] ^= 1 << data.draw(st.integers(0, 7))
            case 1:
                del good[place:]
            case _:
                good[place:place] = data.draw(st.binary(min_size=1, max_size=3))
        does_nothing(codec, bytes(good))

    damage()


class Leaking(JsonCodec):
    """A codec that lets out whatever putting a value together raises."""

    def loads(self, data):
        return self._from_bytes(data)


def test_an_exception_that_leaks_is_found_out():
    codec = Leaking(types=TYPES)
    with pytest.raises((ValueError, ExceptionGroup)) as caught:
        holds(st.binary(max_size=200), lambda data: does_nothing(codec, data), 300)
    assert not isinstance(caught.value, DecodeError)


HOSTILE_JSON = [
    b"",
    b" ",
    b"nul",
    b"{",
    b"[1,]",
    b"{'a': 1}",
    b'{"a": 1, "a": 2}',
    b'{"$set": [], "$set": []}',
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e400",
    b"-1e400",
    b"1" * 400 + b".5",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"$tuple": [' * 50_000,
    b'{"$tuple": [' * 5000 + b"]}" * 5000,
    b'"\xff"',
    b"\xff\xfe1\x00",
    "[1]".encode("utf-16"),
    "[1]".encode("utf-32"),
    b"\xef\xbb\xbf[1]",
    b'"\xed\xa0\x80"',
    b'"\n"',
    b"[1] [2]",
    b"01",
    b"0x10",
    b"\0",
    b'{"$set": [[]]}',
    b'{"$set": [{}]}',
    b'{"$set": [1, 1]}',
    b'{"$set": [1, true]}',
    b'{"$set": [1, 1.0]}',
    b'{"$dict": [[1, 1], [1.0, 2]]}',
    b'{"$dict": [[[], 1]]}',
    b'{"$dict": [[1]]}',
    b'{"$dict": {"a": 1}}',
    b'{"$dict": ["ab"]}',
    b'{"$int": "0x"}',
    b'{"$int": "0X1"}',
    b'{"$int": "1"}',
    b'{"$int": "0x01"}',
    b'{"$int": 1}',
    b'{"$int": "0x1_0"}',
    b'{"$float": "1.0"}',
    b'{"$float": "0000000000000000"}',
    b'{"$float": "7ff8000000000000"}',
    b'{"$float": "NaN"}',
    b'{"$float": ""}',
    b'{"$bytes": "A"}',
    b'{"$bytes": "AA==AA=="}',
    b'{"$bytes": "AA=\\n="}',
    b'{"$bytes": [1]}',
    b'{"$str": "x"}',
    b'{"$str": {"$bytes": "/w=="}}',
    b'{"$bytearray": 1000000000000}',
    b'{"$decimal": "1_0"}',
    b'{"$decimal": " 1"}',
    b'{"$decimal": "\\u0663"}',
    b'{"$decimal": "1e5"}',
    b'{"$decimal": 1.5}',
    b'{"$fraction": [1, 0]}',
    b'{"$fraction": [2, 4]}',
    b'{"$fraction": [1, -3]}',
    b'{"$fraction": ["1", 3]}',
    b'{"$range": [1, 2, 0]}',
    b'{"$range": [1, 2]}',
    b'{"$range": [1.0, 2, 1]}',
    b'{"$date": "2024-1-1"}',
    b'{"$date": "2024-W01-1"}',
    b'{"$date": "20240101"}',
    b'{"$date": ["2024-01-01", 0, null]}',
    b'{"$datetime": "2024-01-01T00:00:00Z"}',
    b'{"$datetime": "2024-01-01"}',
    b'{"$datetime": ["2024-01-01T00:00:00", 2, null]}',
    b'{"$datetime": ["2024-01-01T00:00:00", 0, null]}',
    b'{"$datetime": ["2024-01-01T00:00:00", 0, 1]}',
    b'{"$datetime": ["2024-01-01T00:00:00", true, null]}',
    b'{"$time": "25:00:00"}',
    b'{"$time": "00:00"}',
    b'{"$timedelta": [1e9, 0, 0]}',
    b'{"$timedelta": [0, 86400, 0]}',
    b'{"$timedelta": [999999999999, 0, 0]}',
    b'{"$timezone": []}',
    b'{"$timezone": [1]}',
    b'{"$timezone": [{"$timedelta": [1, 0, 0]}]}',
    b'{"$zone": "../../../etc/passwd"}',
    b'{"$zone": "/etc/localtime"}',
    b'{"$zone": "No/Where"}',
    b'{"$zone": ""}',
    b'{"$zone": "."}',
    b'{"$zone": "a\\u0000b"}',
    b'{"$uuid": "{00000000-0000-0000-0000-000000000000}"}',
    b'{"$uuid": ["00000000-0000-0000-0000-000000000000", 5]}',
    b'{"$path": ["PurePath", "x"]}',
    b'{"$path": ["Path", "x"]}',
    b'{"$path": ["WindowsPath", "x"]}',
    b'{"$path": ["PosixPath", "a//b"]}',
    b'{"$path": [["PosixPath"], "a"]}',
    b'{"$failure": ["x"]}',
    b'{"$failure": [1, 2, 3, 4]}',
    b'{"$tuple": {"a": 1}}',
    b'{"$tuple": "ab"}',
    b'{"$complex": [1, 2]}',
    b'{"$nothing": 1}',
    b'{"$": 1}',
    b'{"$__class__": 1}',
    b'{"$enum": []}',
    b'{"$object": null}',
]


@pytest.mark.parametrize("data", HOSTILE_JSON, ids=lambda data: repr(data[:40]))
def test_hostile_json(data):
    with pytest.raises(DecodeError):
        JSON.loads(data)


HOSTILE_MSGPACK = [
    b"",
    b"\xc1",
    b"\x01\x02",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 100_000,
    b"\x91" * 5000 + b"\xc0",
    b"\x81\xa1a" * 5000 + b"\xc0",
    b"\x81\x01\x02",
    b"\x81\x91\x01\x02",
    b"\x81\xc0\x01",
    b"\x82\xa1a\x01\xa1a\x02",
    b"\xd4\x05\x00",
    b"\xc7\x03\x05abc",
    b"\xc7\x01\xffa",
    b"\xa1\xff",
    b"\xa3\xed\xa0\x80",
    b"\x81\xa7$nothing\x01",
    b"\x81\xa4$set\x92\x01\x01",
    b"\x81\xa4$set\x91\x90",
    b"\xd9",
    b"\xca\x00",
    b"\x81\xa4$int\xa20x",
    b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xc7\x0c\xff" + b"\x7f" * 12,
]


@pytest.mark.parametrize("data", HOSTILE_MSGPACK, ids=lambda data: repr(data[:20]))
def test_hostile_msgpack(data):
    with pytest.raises(DecodeError):
        MSGPACK.loads(data)


@both
def test_keys_of_equal_hash_have_a_limit(codec):
    prime = sys.hash_info.modulus
    equal = [prime * number for number in range(1, MAX_EQUAL_HASHES + 2)]
    assert len(set(map(hash, equal))) == 1
    comes_back(codec, dict.fromkeys(equal[1:], 0))
    comes_back(codec, set(equal[1:]))
    comes_back(codec, equal)
    for value in (dict.fromkeys(equal), set(equal), {(0, number) for number in equal}):
        with pytest.raises(EncodeError, match="same hash"):
            codec.dumps(value)
    items = [{"$int": hex(number)} if number >= 2**64 else number for number in equal]
    for tree in ({"$set": items}, {"$frozenset": items}, {"$dict": [[item, 0] for item in items]}):
        with pytest.raises(DecodeError, match="same hash"):
            codec.loads(for_codec(codec, tree))


@dataclasses.dataclass(frozen=True)
class Counts:
    """Has one hash for all, and counts its comparisons."""

    number: int
    inside: object = None
    times = 0

    def __hash__(self):
        return 7 if self.inside is None else hash(self.inside)

    def __eq__(self, other):
        Counts.times += 1
        return (self.number, self.inside) == (other.number, other.inside)


def nested(level, width, last, holder=None):
    """Return a tree of sets in sets, all of one hash, and how many leaves it has."""
    if level == 0:
        return {"$object": [f"{__name__}:Counts", {"number": last, "inside": None}]}, 1
    parts = [nested(level - 1, width, width + last if n == width - 1 else n, holder) for n in range(width)]
    tree = {"$frozenset": [part for part, _ in parts]}
    if holder == "tuple":
        tree = {"$tuple": [1, tree]}
    elif holder == "record":
        tree = {"$object": [f"{__name__}:Counts", {"number": 0, "inside": tree}]}
    return tree, sum(leaves for _, leaves in parts)


@both
@pytest.mark.parametrize("holder", [None, "tuple", "record"])
@pytest.mark.parametrize(("level", "width"), [(1, 100), (2, 9), (3, 4), (6, 2), (2, 40), (3, 14), (7, 2), (4, 12)])
def test_sets_in_sets_of_equal_hash_have_a_limit(codec, holder, level, width):
    tree, leaves = nested(level, width, 0, holder)
    data, codec = for_codec(codec, tree), type(codec)(types=[Counts])
    Counts.times = 0
    if width**level > MAX_EQUAL_HASHES:
        with pytest.raises(DecodeError, match="same hash"):
            codec.loads(data)
        assert Counts.times <= 3 * level * leaves * MAX_EQUAL_HASHES
        return
    value = codec.loads(data)
    assert Counts.times <= 3 * level * leaves * MAX_EQUAL_HASHES
    comes_back(codec, value)
    with pytest.raises(EncodeError, match="same hash"):
        codec.dumps({frozenset([value, *map(Counts, range(20))]), *(frozenset([value, Counts(n)]) for n in range(20))})


def test_that_they_would_take_long(monkeypatch):
    monkeypatch.setattr(kinds, "check_hashes", lambda keys: None)
    tree, leaves = nested(3, 14, 0)
    Counts.times = 0
    JsonCodec(types=[Counts]).loads(for_codec(JsonCodec(), tree))
    assert Counts.times > 3 * leaves * MAX_EQUAL_HASHES


@both
def test_keys_that_happen_to_have_equal_hashes_are_kept(codec):
    assert hash(-1) == hash(-2)
    grid = [(x, y, z) for x in range(-3, 3) for y in range(-3, 3) for z in range(-3, 3)]
    for value in (
        set(grid),
        [{-1: n, -2: [n]} for n in range(1000)],
        {frozenset([frozenset([-1, -2]), frozenset([-2, 5]), frozenset([-1, 5])]), -1, -2},
        {1 << n for n in range(64, 5000)},
        {Decimal(-1), Fraction(-2), Decimal("0.5")},
    ):
        comes_back(codec, value)


def of_one_hash(bits):
    number = 1 << bits
    return number - number % sys.hash_info.modulus + 5


@both
def test_long_numbers_are_not_compared_with_decimals(codec):
    short, long = of_one_hash(4000), of_one_hash(5000)
    fraction = Fraction(of_one_hash(5000) * 3 - sys.hash_info.modulus * 1, 3)
    assert hash(Decimal(5)) == hash(long) == hash(short)
    comes_back(codec, {Decimal(5), short})
    comes_back(codec, {Decimal(6), long})
    comes_back(codec, {5, long})
    for wrap in (lambda key: key, lambda key: (key, 1), lambda key: frozenset([key])):
        with pytest.raises(EncodeError, match="same hash as a Decimal"):
            codec.dumps({wrap(Decimal(5)), wrap(long)})
        tree = {"$dict": [[{"$tuple": [{"$decimal": "5"}]}, 0], [{"$tuple": [{"$int": hex(long)}]}, 0]]}
        with pytest.raises(DecodeError, match="same hash as a Decimal"):
            codec.loads(for_codec(codec, tree))
    if hash(fraction) == 5:
        with pytest.raises(EncodeError, match="same hash as a Decimal"):
            codec.dumps({Decimal(5), fraction})
    assert hashes.MAX_BITS == 4096


@both
def test_ranges_of_long_numbers_are_refused(codec):
    comes_back(codec, range(-(1 << 65_000), 1 << 65_000, 1 << 30_000))
    big = 1 << 65_537
    for value, tree in (
        (range(big), [0, {"$int": hex(big)}, 1]),
        (range(-big, 0), [{"$int": hex(-big)}, 0, 1]),
        (range(0, 5, big), [0, 5, {"$int": hex(big)}]),
    ):
        with pytest.raises(EncodeError, match="a range of numbers of at most 65536 bits"):
            codec.dumps(value)
        with pytest.raises(DecodeError, match="a range of numbers of at most 65536 bits"):
            codec.loads(for_codec(codec, {"$range": tree}))


LIMITED = """
import resource, sys
from zpersist import DecodeError, JsonCodec, MsgpackCodec
import msgpack, zoneinfo
size = 1 << 20
lies = (b"\\xdd" + (size - 6000).to_bytes(4, "big")) * 1000
lies += bytes(size - len(lies))
codec = MsgpackCodec()
codec.loads(codec.dumps([1]))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    if sys.argv[1] == "codec":
        codec.loads(lies)
    else:
        msgpack.unpackb(lies)
except Exception as err:
    print(type(err).__name__)
except MemoryError as err:
    print(type(err).__name__)
"""


@pytest.mark.parametrize(("reader", "raised"), [("codec", "DecodeError"), ("msgpack alone", "MemoryError")])
def test_lists_that_lie_about_their_length_take_no_memory(reader, raised):
    command = [sys.executable, "-c", LIMITED, reader]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout.strip() == raised, done.stderr


WATCHED = """
import sys
from tests.codecs.test_data import *
from zpersist import DecodeError, DirectoryStash
texts = [(codec, codec.dumps(value)) for codec in CODECS for value in SAMPLES]
texts += [(codec, for_codec(codec, tree)) for codec in CODECS for tree in WRONG_FIELDS]
texts += [(JSON, data) for data in HOSTILE_JSON if b"zone" not in data] + [(MSGPACK, data) for data in HOSTILE_MSGPACK]
import decimal, traceback, linecache
for codec, data in texts:
    try: codec.loads(data)
    except DecodeError: pass
seen, on = set(), []
def watch(event, args):
    if on and event.split(".")[0] in {"import", "exec", "compile", "os", "subprocess", "pickle", "open", "code"}:
        seen.add((event, str(args)[:80]))
sys.addaudithook(watch)
on.append(1)
for codec, data in texts:
    try: codec.loads(data)
    except DecodeError: pass
if sys.argv[1:]:
    import pickle
    pickle.loads(pickle.dumps(DirectoryStash))
on.clear()
print(sorted(seen))
"""


def test_loading_imports_and_runs_nothing():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet, loud = (
        subprocess.run([sys.executable, "-c", WATCHED, *more], capture_output=True, text=True, env=env, cwd=ROOT)
        for more in ([], ["pickle"])
    )
    assert quiet.stdout.strip() == "[]", quiet.stderr + quiet.stdout
    assert "pickle.find_class" in loud.stdout


# Failures, and codecs as objects.


@both
def test_a_failure_comes_back_with_a_stand_in(codec):
    try:
        {}["x"]
    except KeyError:
        failure = Failure(thrower=("a", 1))
    again = codec.loads(codec.dumps({"k": failure}))["k"]
    assert type(again) is Failure
    assert str(again) == str(failure) == "'x'"
    assert type(again.exception) is ZPersistError
    assert str(again.exception) == "KeyError: 'x'"
    assert again.traceback_str == failure.traceback_str
    assert again.thrower == "('a', 1)"
    with pytest.raises(ZPersistError, match="KeyError: 'x'"):
        again.rethrow()
    # What stands for it stays the same, however often it travels.
    third = codec.loads(codec.dumps(again))
    assert vars(third) | {"exception": 0} == vars(again) | {"exception": 0}
    assert str(third.exception) == "KeyError: 'x'"
    own = codec.loads(codec.dumps(Failure(ZPersistError("boom"))))
    assert (str(own.exception), str(own), own.thrower) == ("ZPersistError: boom", "boom", None)
    failure.extra = 1
    with pytest.raises(EncodeError, match="extra"):
        codec.dumps(failure)
    assert pickle.loads(pickle.dumps(again)).message == again.message


@both
def test_a_codec_can_be_pickled(codec):
    again = pickle.loads(pickle.dumps(codec))
    assert again.types == codec.types
    assert told(again.loads(again.dumps(Point(1)))) == told(Point(1))
    assert repr(type(codec)()) == f"{type(codec).__name__}(types=())"


def test_what_one_codec_wrote_the_other_refuses():
    value = {"a": [1, {2}]}
    with pytest.raises(DecodeError):
        JSON.loads(MSGPACK.dumps(value))
    with pytest.raises(DecodeError):
        MSGPACK.loads(JSON.dumps(value))
    for codec in CODECS:
        with pytest.raises(DecodeError):
            codec.loads(PickleCodec().dumps(value))
        with pytest.raises(DecodeError, match="no buffers"):
            codec.load_parts(b"1", [memoryview(b"x")])


def test_without_msgpack_the_error_names_the_extra():
    code = "import sys; sys.modules['msgpack'] = None; from zpersist import *; JsonCodec(); MsgpackCodec()"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "ImportError: MsgpackCodec needs msgpack: pip install 'zpersist[msgpack]'" in done.stderr
