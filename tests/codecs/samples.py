"""Values of every kind that a data-only codec keeps, and classes that are registered for it."""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from collections import namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

import attrs
from hypothesis import strategies as st


class Color(enum.Enum):
    RED = "r"
    GREEN = ("g", 2)
    VERT = ("g", 2)  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


class Word(enum.StrEnum):
    ONE = "1"


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0
    norm: float = dataclasses.field(init=False, default=0.0)
    unit: dataclasses.InitVar[int] = 1

    def __post_init__(self, unit):
        self.norm = 1.5

    @cached_property
    def twice(self):
        return self.norm * 2


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    __hidden: int = 3


@dataclasses.dataclass
class Child(Point):
    more: Any = None


@attrs.define
class Slotted:
    _private: Any
    other: Any = attrs.field(default=1, init=False)


@attrs.define(slots=False)
class Open:
    value: Any = attrs.field(converter=str)
    limit: int = attrs.field(default=1, validator=attrs.validators.le(5))

    def __attrs_post_init__(self):
        self.limit += 1


@attrs.frozen(cache_hash=True)
class Hashed:
    a: Any


@attrs.define(slots=False, frozen=True, cache_hash=True)
class OpenHashed:
    a: Any
    b: Any


class Pair(NamedTuple):
    left: Any
    right: Any = None


Old = namedtuple("Old", "class_ _1 b", rename=True)

TYPES = [Color, Level, Right, Word, Point, Frozen, Child, Slotted, Open, Hashed, OpenHashed, Pair, Old]


def nan(bits):
    return struct.unpack(">d", bits.to_bytes(8, "big"))[0]


SAMPLES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    2**64 - 1,
    2**64,
    -(10**40),
    0.0,
    -0.0,
    1.0,
    5e-324,
    1.7976931348623157e308,
    math.inf,
    -math.inf,
    math.nan,
    -math.nan,
    nan(0x7FF8000000000001),
    "",
    "x",
    "é\U0001f600\0\x7f",
    "\ud800",
    "\ud83d\ude00",
    "a\udc80",
    "$int",
    "\u2028",
    b"",
    b"\x00\xff",
    bytearray(b"x"),
    bytearray(),
    [],
    [[]],
    [1, 1.0, True, "1", None],
    (),
    (1,),
    ((), []),
    {},
    {"": 1},
    {"$set": [1]},
    {"$nothing": 1},
    {"$set": 1, "b": 2},
    {"a": {"$tuple": [1]}},
    {"$": 0},
    {1: "a", "1": "b", (1, 2): "c", None: "d", b"x": "e", 1.5: "f", frozenset([1]): "g"},
    {True: 1},
    {1.0: 2},
    {"b": 1, "a": 2},
    {2: 1, 1: 2},
    {"\ud800": 1},
    {"é": 1},
    set(),
    {1, "1", (1,), None},
    frozenset(),
    frozenset([frozenset([1])]),
    {math.nan},
    {Level.LOW, Color.RED},
    complex(1, -0.0),
    complex(math.nan, math.inf),
    Decimal("1.50"),
    Decimal("-0"),
    Decimal("sNaN123"),
    Decimal("-NaN"),
    Decimal("Infinity"),
    Decimal("1E+999999"),
    Decimal("1." + "3" * 100),
    Fraction(1, 3),
    Fraction(-7),
    Fraction(10**30, 7),
    range(0),
    range(5),
    range(10**30, 0, -7),
    date.min,
    date.max,
    time(1, 2, 3, 4),
    time(0),
    time(2, fold=1),
    time(1, tzinfo=UTC),
    datetime.min,
    datetime.max,
    datetime(2024, 2, 29, 1, 2, 3, 4),
    datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    datetime(2024, 1, 1, fold=1),
    datetime(2024, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    timedelta(0),
    timedelta(-1, 5, 6),
    timedelta.max,
    timedelta.min,
    UTC,
    timezone(timedelta(0), "UTC"),
    timezone(timedelta(seconds=-1)),
    timezone(timedelta(hours=5), "X Y"),
    ZoneInfo("UTC"),
    ZoneInfo("America/Port-au-Prince"),
    UUID(int=0),
    UUID(int=2**128 - 1, is_safe=SafeUUID.safe),
    UUID(int=1, is_safe=SafeUUID.unsafe),
    Path("a/b"),
    Path(),
    Path("/x/../y"),
    PurePosixPath("//x"),
    PureWindowsPath("C:\\x/y"),
    PureWindowsPath("\\\\h\\s\\x"),
    Path("a\udc80"),
    Path("$set"),
    Color.RED,
    Color.GREEN,
    Level.LOW,
    Right.READ,
    Right.BOTH,
    Right(0),
    Word.ONE,
    Point(1, [2]),
    Point((1, {2}), Point(1)),
    Frozen({1: 2}),
    Child(1, 2),
    Slotted(1),
    Open(3),
    Hashed((1, 2)),
    OpenHashed(1, 2),
    {Hashed(1): 1},
    {Pair(1): Frozen(2)},
    Pair(1),
    Pair((), Pair(2)),
    Old(1, 2, 3),
    (1, Pair(1)),
    {"a": [1, 2.5, "x", None], "b": {"c": (True, {"d"})}},
    [{"$bytes": ""}, {"$object": ["os:system", {}]}],
]

texts = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(["$set", "$", "\ud83d\ude00"])
floats = st.floats() | st.integers(0, 2**64 - 1).map(nan)
zones = st.none() | st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), timezone(timedelta(minutes=-7), "N")])
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    floats,
    texts,
    st.binary(max_size=8),
)
leaves = st.one_of(
    atoms,
    atoms,
    st.sampled_from(SAMPLES),
    st.binary(max_size=8).map(bytearray),
    st.builds(complex, floats, floats),
    st.decimals(allow_nan=True),
    st.fractions(),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.uuids(),
    st.datetimes(timezones=zones),
    st.sampled_from([*Color, *Level, *Word, Right(0), Right(3)]),
    st.builds(range, st.integers(), st.integers(), st.integers(1)),
)


def _hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


keys = st.one_of(atoms, leaves.filter(_hashable), st.tuples(atoms, atoms), st.frozensets(atoms, max_size=3))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(texts, inner, max_size=3),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(Slotted, inner),
        st.builds(Pair, inner, inner),
        st.builds(Frozen, inner),
        st.builds(Child, inner, inner, inner),
        st.builds(OpenHashed, inner, inner),
    ),
    max_leaves=12,
)
