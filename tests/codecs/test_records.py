"""Registered classes: no code of theirs runs that the pages do not name, and what becomes of fields that change."""

from __future__ import annotations

import dataclasses
import enum
import json
from functools import cached_property
from typing import NamedTuple

import attrs
import msgpack
import pytest

from zpersist import DecodeError, EncodeError, InvalidArgumentError, JsonCodec, MsgpackCodec
from zpersist.codecs.records import ObjectRecord

KINDS = [JsonCodec, MsgpackCodec]
both = pytest.mark.parametrize("codec", KINDS)
CALLED: list[str] = []


def for_codec(codec, tree):
    return json.dumps(tree).encode() if codec is JsonCodec else msgpack.packb(tree)


def call(name):
    """Return a method that notes that it was called, and fails."""

    def method(self, *args, **options):
        CALLED.append(name)
        raise RuntimeError("the class was called")

    return method


NEVER = (
    *("__new__", "__init__", "__post_init__", "__attrs_post_init__", "__setattr__", "__getattribute__", "__getattr__"),
    *("__repr__", "__str__", "__format__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__"),
    *("__eq__", "__hash__", "__lt__", "__bool__", "__len__", "__iter__", "__call__", "__class_getitem__", "__dir__"),
    *(
        "__instancecheck__",
        "__sizeof__",
        "__int__",
        "__index__",
        "__float__",
        "__bytes__",
        "__fspath__",
        "__contains__",
    ),
)


def loud(kind):
    """Return a class all of whose methods fail."""
    for name in NEVER:
        if not (name == "__getattribute__" and issubclass(kind, enum.Enum)) and name != "__new__":
            setattr(kind, name, call(f"{kind.__name__}.{name}"))
    return kind


def made(kind, **fields):
    value = object.__new__(kind)
    for name, item in fields.items():
        object.__setattr__(value, name, item)
    return value


@loud
@dataclasses.dataclass
class Data:
    x: object
    y: object


@loud
@attrs.define
class Slotted:
    x: object
    y: object


@loud
class Pair(NamedTuple):
    x: object
    y: object


@loud
class Mode(enum.Enum):
    ON = 1


class Bits(enum.IntFlag):
    LOW = 1
    HIGH = 1 << 70
    TOP = 1 << 100


LOUD = [Data, Slotted, Pair, Mode, Bits]
get = object.__getattribute__


@pytest.fixture(autouse=True)
def nothing_called():
    CALLED.clear()
    yield
    assert CALLED == []


@both
def test_a_value_is_kept_without_a_call(codec):
    codec = codec(types=LOUD)
    for kind in (Data, Slotted):
        again = codec.loads(codec.dumps([made(kind, x=Mode.ON, y=[tuple.__new__(Pair, (1, Bits.LOW))])]))[0]
        assert type(again) is kind
        assert get(again, "x") is Mode.ON
        (pair,) = get(again, "y")
        assert type(pair) is Pair
        assert tuple.__getitem__(pair, 1) is Bits.LOW


def of(name, parts):
    return {"$object": [f"{__name__}:{name}", parts]}


DATA = of("Data", {"x": 1, "y": 2})
MODE = {"$enum": [f"{__name__}:Mode", "ON"]}
WRONG = [
    of("Data", DATA),
    of("Data", MODE),
    of("Data", {"x": DATA}),
    of("Data", {"x": 1, "y": 2, "z": DATA}),
    of("Data", [DATA]),
    of("Slotted", DATA),
    of("Pair", DATA),
    {"$object": [DATA, {}]},
    {"$object": [MODE, {}]},
    {"$object": DATA},
    {"$enum": [f"{__name__}:Mode", DATA]},
    {"$enum": [f"{__name__}:Mode", MODE]},
    {"$enum": [f"{__name__}:Bits", DATA]},
    {"$enum": [f"{__name__}:Bits", of("Pair", {"x": 1, "y": 2})]},
    {"$enum": [DATA, 1]},
    *({tag: DATA} for tag in ("$str", "$int", "$tuple", "$set", "$decimal", "$fraction", "$range", "$complex")),
    *({tag: DATA} for tag in ("$date", "$datetime", "$time", "$timedelta", "$timezone", "$zone", "$uuid", "$path")),
    *({tag: [DATA, DATA]} for tag in ("$fraction", "$complex", "$uuid", "$path", "$timezone")),
    *({tag: [DATA, DATA, DATA]} for tag in ("$range", "$datetime", "$time", "$timedelta")),
    {"$datetime": ["2024-01-01T00:00:00", 0, DATA]},
    {"$datetime": ["2024-01-01T00:00:00", DATA, None]},
    {"$failure": [DATA, DATA, DATA, DATA]},
    {"$dict": [[{"$nothing": DATA}, 1]]},
    {"$dict": DATA},
    {"$nothing": DATA},
]


@both
@pytest.mark.parametrize("tree", WRONG, ids=lambda tree: str(tree)[:60])
def test_no_error_shows_an_instance(codec, tree):
    with pytest.raises(DecodeError):
        codec(types=LOUD).loads(for_codec(codec, tree))


@both
def test_no_error_of_a_write_shows_an_instance(codec):
    codec = codec(types=LOUD)
    for bad in (made(Data, x=1), made(Data, x=1, y=2, z=3), made(Slotted, x=1), made(Data, x=1, y=object())):
        with pytest.raises(EncodeError):
            codec.dumps([bad])
    with pytest.raises(EncodeError, match="no member of its class"):
        codec.dumps(made(Mode, _name_="OFF", _value_=2))


class Showing(ObjectRecord):
    """Shows what it got."""

    def _filled(self, payload):
        raise ValueError(f"{payload!r} is wrong")


def test_a_record_that_shows_an_instance_is_found_out():
    codec = JsonCodec(types=LOUD)
    codec._records[f"{__name__}:Pair"] = Showing(Data, {})
    with pytest.raises(DecodeError):
        codec.loads(json.dumps(of("Pair", DATA)).encode())
    assert CALLED == ["Data.__repr__"]
    CALLED.clear()


# What is no field, and is one of another kind.


@dataclasses.dataclass
class Guarded:
    x: int

    @property
    def x(self):
        CALLED.append("get")
        return 1

    @x.setter
    def x(self, value):
        CALLED.append("set")


class Descriptor:
    def __get__(self, instance, owner):
        CALLED.append("get")
        return 1

    def __set__(self, instance, value):
        CALLED.append("set")


@attrs.define(slots=False, init=False)
class Described:
    x: int = attrs.field()


Described.x = Descriptor()


@both
@pytest.mark.parametrize("kind", [Guarded, Described])
def test_a_field_that_runs_code_is_refused(codec, kind):
    with pytest.raises(InvalidArgumentError, match=f"field 'x' of .*{kind.__name__} is a (property|Descriptor) too"):
        codec(types=[kind])


def test_that_it_would_have_run():
    value = object.__new__(Guarded)
    object.__setattr__(value, "x", 1)
    assert CALLED == ["set"]
    CALLED.clear()


@attrs.define
class Circle:
    radius: float

    @cached_property
    def area(self):
        return 3 * self.radius**2


@attrs.define
class Ring(Circle):
    hole: float = 0.0

    @cached_property
    def __secret(self):
        return 1

    @cached_property
    def width(self):
        return self.radius - self.hole


class Loose(Circle):
    __slots__ = ("other",)


@attrs.define
class Mixed(Loose):
    pass


@both
def test_what_is_computed_in_slots_is_computed_again(codec):
    for value in (Circle(2.0), Ring(2.0, 1.0)):
        kind = type(value)
        before = codec(types=[kind]).dumps(value)
        assert value.area == 12.0
        if kind is Ring:
            assert value.width == 1.0
        # It is not stored.
        assert codec(types=[kind]).dumps(value) == before
        again = codec(types=[kind]).loads(before)
        assert again == value
        with pytest.raises(AttributeError):
            get(again, "area")
        assert again.area == 12.0
    with pytest.raises(InvalidArgumentError, match=r"slots \['other'\] that are no fields"):
        codec(types=[Mixed])


# Flags of any size.


@both
def test_flags_of_more_than_64_bits(codec):
    codec = codec(types=[Bits])
    for number in (0, 3, 1 << 64, 1 << 70 | 1, 1 << 70 | 1 << 100, 1 << 8000):
        value = Bits(number)
        again = codec.loads(codec.dumps({"a": value}))["a"]
        assert type(again) is Bits
        assert int.__index__(again) == number
    with pytest.raises(EncodeError, match="more than 8192 bits"):
        codec.dumps(Bits(1 << 9000))


@both
def test_large_numbers_of_flags_take_no_time(codec):
    big = {"$int": hex(1 << 1_000_000)}
    with pytest.raises(DecodeError, match="more than 8192 bits"):
        codec(types=[Bits]).loads(for_codec(codec, {"$enum": [f"{__name__}:Bits", big]}))


class Plainly(enum.Flag):
    R = 1
    W = 2
    X = 4


class Keeps(enum.Flag, boundary=enum.KEEP):
    R = 1


class Strict(enum.IntFlag, boundary=enum.STRICT):
    R = 1
    W = 2


class Conforms(enum.IntFlag, boundary=enum.CONFORM):
    R = 1
    W = 2


@both
@pytest.mark.parametrize("kind", [Bits, Plainly, Keeps, Strict, Conforms])
def test_combinations_that_bytes_name_do_not_stay(codec, kind):
    kept = codec(types=[kind])
    before = dict(kind._value2member_map_)
    for number in (*range(30), 1 << 70, 1 << 70 | 1, -1, -2, -8, -(1 << 70)):
        try:
            value = kept.loads(for_codec(codec, {"$enum": [f"{__name__}:{kind.__name__}", for_number(number)]}))
        except DecodeError:
            assert kind is not Bits or number < 0
            continue
        assert type(value) is kind
        assert value.value == number
        assert kept.loads(kept.dumps(value)) == value == kind(number)
        if issubclass(kind, int):
            kind._value2member_map_.clear()
            kind._value2member_map_.update(before)
            again = kept.loads(kept.dumps(value))
            assert again == value
            assert hash(again) == hash(value)
            assert kind._value2member_map_ == before
    stay = set(kind._value2member_map_) - set(before)
    assert stay <= (set() if issubclass(kind, int) else {0, 3, 5, 6, 7})


def for_number(number):
    return number if -(2**63) <= number < 2**64 else {"$int": hex(number)}


def test_that_python_keeps_what_is_made():
    class Kept(enum.IntFlag):
        R = 1

    Kept(1 << 50)
    assert 1 << 50 in Kept._value2member_map_


@both
def test_flags_that_could_not_be_read_everywhere_are_not_written(codec):
    with pytest.raises(EncodeError, match="has no combination of the value 0x8"):
        codec(types=[Keeps]).dumps(Keeps(8))


class Computed(NamedTuple):
    a: int
    b: int = 2


class Sums(Computed):
    @cached_property
    def sum(self):
        return self.a + self.b


class OnlyFields(tuple):
    """Looks like a named tuple, and is none."""

    _fields = ("a",)


@both
def test_a_named_tuple_with_something_computed(codec):
    value = Sums(1)
    before = codec(types=[Sums]).dumps(value)
    assert value.sum == 3
    assert codec(types=[Sums]).dumps(value) == before
    again = codec(types=[Sums]).loads(before)
    assert (type(again), again, again.__dict__) == (Sums, (1, 2), {})
    value.more = 1
    with pytest.raises(EncodeError, match="attribute 'more' is no field and would be lost"):
        codec(types=[Sums]).dumps(value)


@both
def test_a_tuple_that_only_has_names_of_fields_is_no_named_tuple(codec):
    with pytest.raises(InvalidArgumentError, match="types must be"):
        codec(types=[OnlyFields])
    with pytest.raises(EncodeError, match="make a tuple of it"):
        codec().dumps(OnlyFields((1,)))


def test_what_was_written_as_a_plain_number_is_read():
    data = json.dumps({"$enum": [f"{__name__}:Bits", 1 << 70 | 1]}).encode()
    assert int.__index__(JsonCodec(types=[Bits]).loads(data)) == 1 << 70 | 1


# Classes whose fields change.


def _attribute(default=attrs.NOTHING):
    return default if type(default) is type(attrs.field()) else attrs.field(default=default)


def version(fields, kind="data"):
    """Return a class of the same name with other fields."""
    if kind == "data":
        made = dataclasses.make_dataclass("Changed", fields)
    elif kind == "attrs":
        made = attrs.make_class("Changed", {name: _attribute(*more) for name, _, *more in fields})
    else:
        made = NamedTuple("Changed", [field[:2] for field in fields])
        made._field_defaults.update({name: more[0] for name, _, *more in fields if more})
    made.__module__, made.__qualname__ = __name__, "Changed"
    return made


OLD = [("x", int), ("y", int)]
NEW = [*OLD, ("z", int, 7)]


@both
@pytest.mark.parametrize("kind", ["data", "attrs", "tuple"])
def test_a_field_with_a_default_is_added(codec, kind):
    old, new = version(OLD, kind), version(NEW, kind)
    data = codec(types=[old]).dumps(old(1, 2))
    again = codec(types=[new]).loads(data)
    assert (again.x, again.y, again.z) == (1, 2, 7)
    # It is written with it from now on.
    assert codec(types=[new]).loads(codec(types=[new]).dumps(again)) == again


@both
@pytest.mark.parametrize("kind", ["data", "attrs", "tuple"])
def test_a_field_without_a_default_is_added_or_one_is_removed(codec, kind):
    old, more = version(OLD, kind), version([*OLD, ("z", int)], kind)
    with pytest.raises(DecodeError, match=r"no field 'z' of .*Changed, which has no default"):
        codec(types=[more]).loads(codec(types=[old]).dumps(old(1, 2)))
    with pytest.raises(DecodeError, match=r"Changed has no field 'z' \(any more\)"):
        codec(types=[old]).loads(codec(types=[more]).dumps(more(1, 2, 3)))


@both
def test_a_default_is_made_anew_for_each(codec):
    old = version(OLD)
    for new in (
        version([*OLD, ("z", list, dataclasses.field(default_factory=list))]),
        version([*OLD, ("z", list, attrs.field(factory=list))], "attrs"),
    ):
        one, other = codec(types=[new]).loads(codec(types=[old]).dumps([old(1, 2), old(3, 4)]))
        assert one.z == other.z == []
        assert one.z is not other.z


@both
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("data", dataclasses.field(init=False, default=7)),
        ("attrs", attrs.field(init=False, default=7)),
        ("attrs", attrs.field(default="7", converter=int)),
        ("attrs", attrs.field(default=attrs.Factory(lambda self: self.x, takes_self=True))),
    ],
)
def test_a_default_that_would_have_been_computed_is_not_taken(codec, kind, field):
    old, new = version(OLD), version([*OLD, ("z", int, field)], kind)
    with pytest.raises(DecodeError, match="no field 'z'"):
        codec(types=[new]).loads(codec(types=[old]).dumps(old(1, 2)))


@both
def test_a_default_that_can_not_be_made(codec):
    def fails():
        raise RuntimeError("no default today")

    old, new = version(OLD), version([*OLD, ("z", list, dataclasses.field(default_factory=fails))])
    with pytest.raises(DecodeError, match="RuntimeError: no default today"):
        codec(types=[new]).loads(codec(types=[old]).dumps(old(1, 2)))
