"""``@persisted`` and ``persisted_property``: levels, owners, names, copies, pickles."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import types
import warnings
import weakref
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path

import attrs
import pytest

from zpersist import (
    CorruptValueError,
    Deallocatable,
    DeallocatedError,
    DictionaryStash,
    DillCodec,
    DirectoryStash,
    InvalidArgumentError,
    OwnerError,
    PersistableContainer,
    PersistedWork,
    PickleCodec,
    SealError,
    ShelveStash,
    SignedCodec,
    SqliteStash,
    StorageError,
    WorkNameError,
    dealloc,
    dealloc_recursive,
    persisted,
    persisted_property,
    resource,
)

calls: list[object] = []


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


class Plain:
    def __init__(self, n):
        self.n = n

    @property
    @persisted("_v")
    def v(self):
        """Twice n."""
        calls.append(self.n)
        return self.n * 2

    @property
    @persisted("_none")
    def none(self):
        calls.append("none")

    @property
    @persisted
    def bare(self):
        calls.append("bare")
        return 0

    @persisted("_g", cache_global=True)
    def shared(self):
        calls.append("shared")
        return [self.n]


class Slotted:
    __slots__ = ("n",)
    __init__ = Plain.__init__
    v = Plain.v


class SlottedWithRoom:
    __slots__ = ("_v", "n")
    __init__ = Plain.__init__
    v = Plain.v


class SlottedWeak:
    __slots__ = ("__weakref__", "n")
    __init__ = Plain.__init__
    v = Plain.v


@dataclass(frozen=True)
class Frozen:
    n: int
    v = Plain.v


@dataclass(frozen=True, slots=True)
class FrozenSlotted:
    n: int
    v = Plain.v


@attrs.define
class Attrs:
    n: int
    v = Plain.v


@attrs.frozen
class AttrsFrozen:
    n: int
    v = Plain.v


class Container(PersistableContainer):
    def __init__(self, n):
        self.n = n

    v = Plain.v


OWNERS = [
    Plain,
    Slotted,
    SlottedWithRoom,
    SlottedWeak,
    Frozen,
    FrozenSlotted,
    Attrs,
    AttrsFrozen,
    Container,
]


# results


@pytest.mark.parametrize("kind", OWNERS)
def test_computed_once_on_every_kind_of_owner(kind):
    one, other = kind(1), kind(5)
    assert [one.v, one.v, other.v, other.v, one.v] == [2, 2, 10, 10, 2]
    assert calls == [1, 5]


@pytest.mark.parametrize("kind", OWNERS)
def test_owners_are_not_kept_alive(kind):
    marks = [kind(number) for number in range(300)]
    assert [owner.v for owner in marks] == [2 * number for number in range(300)]
    del marks
    gc.collect()
    from zpersist.work.attach import _beside

    # The dead are swept when there are twice as many as there once were living.
    for number in range(600):
        assert kind(number).v == 2 * number
    assert len(_beside._entries) < 150


def test_an_owner_is_freed_at_once_and_without_the_collector():
    owner = Plain(1)
    assert owner.v == 2
    dead = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert dead() is None
    finally:
        gc.enable()


def test_none_is_a_result():
    owner = Plain(1)
    assert [owner.none, owner.none, owner._none.is_set()] == [None, None, True]
    assert calls == ["none"]


def test_bare():
    owner = Plain(1)
    assert [owner.bare, owner.bare] == [0, 0]
    owner._persisted_bare.clear()
    assert owner.bare == 0
    assert calls == ["bare", "bare"]


def test_metadata_is_kept():
    assert Plain.v.fget.__name__ == "v"
    assert Plain.v.fget.__doc__ == "Twice n."
    assert Plain.shared.__wrapped__(Plain(3)) == [3]


# class level


def test_class_level_is_shared_by_instances_and_not_by_subclasses():
    class Base(Plain):
        pass

    class Sub(Base):
        pass

    one, other, sub = Base(1), Base(2), Sub(3)
    assert one.shared() is other.shared()
    assert sub.shared() == [3]
    one._g.set("new")
    assert [one.shared(), other.shared(), Base(9).shared(), sub.shared()] == ["new", "new", "new", [3]]
    other._g.clear_global()
    assert one.shared() == [1]


def test_two_classes_of_one_name_share_nothing():
    def make(text):
        class Same:
            @persisted("_g", cache_global=True)
            def value(self):
                return text

        return Same

    assert [make("a")().value(), make("b")().value()] == ["a", "b"]


class WithClassMethods:
    @classmethod
    @persisted("_made")
    def inner(cls):
        calls.append(cls.__name__)
        return cls.__name__

    @persisted("_made_too")
    @classmethod
    def outer(cls):
        calls.append(cls.__name__)
        return cls.__name__

    @staticmethod
    @persisted
    def static():
        calls.append("static")
        return "static"

    @persisted
    @staticmethod
    def static_too(x=1):
        calls.append("static too")
        return x


class SubWithClassMethods(WithClassMethods):
    pass


def test_class_and_static_methods():
    for kind in (WithClassMethods, SubWithClassMethods):
        for _ in range(2):
            assert [kind.inner(), kind().inner(), kind.outer()] == [kind.__name__] * 3
            assert [kind.static(), kind().static(), kind.static_too()] == ["static", "static", 1]
    assert sorted(map(str, calls)) == sorted(
        ["WithClassMethods"] * 2 + ["SubWithClassMethods"] * 2 + ["static", "static too"]
    )
    WithClassMethods.inner.work(WithClassMethods).clear()
    WithClassMethods.static.work().clear()
    calls.clear()
    assert [SubWithClassMethods.inner(), WithClassMethods.inner(), WithClassMethods.static()] == [
        "SubWithClassMethods",
        "WithClassMethods",
        "static",
    ]
    assert calls == ["WithClassMethods", "static"]
    WithClassMethods.outer.work(WithClassMethods).clear()


def test_a_static_method_with_arguments_below_staticmethod_says_what_to_do():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Wrong:
            @staticmethod
            @persisted("_x")
            def static(x):
                return x

    with pytest.raises(OwnerError, match="put @persisted above @staticmethod"):
        Wrong.static(3)


# files and stashes


class InFile:
    def __init__(self, n, **options):
        self.n = n
        self._v = PersistedWork(Path("v.dat"), self, **options)

    @property
    @persisted("_v")
    def v(self):
        calls.append(self.n)
        return self.n * 2


def test_a_file_is_shared_by_instances_and_processes(elsewhere):
    assert [InFile(5).v, InFile(9).v] == [10, 10]
    with open("v.dat", "rb") as stream:
        assert pickle.load(stream) == 10
    code = "from tests.work.test_persisted import InFile; print(InFile(1).v)"
    root = str(Path(__file__).parents[2])
    out = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True)
    assert out.stdout == b"10\n", out.stderr


def test_clear_and_set_reach_every_level(elsewhere):
    owner = InFile(5)
    assert owner.v == 10
    owner._v.clear()
    assert not owner._v.is_set()
    assert not os.path.exists("v.dat")
    owner._v.set(None)
    assert owner.v is None
    assert InFile(7).v is None
    assert calls == [5]


def test_a_file_does_not_follow_the_working_directory(elsewhere, monkeypatch):
    owner = InFile(5)
    (elsewhere / "other").mkdir()
    monkeypatch.chdir(elsewhere / "other")
    assert owner.v == 10
    assert (elsewhere / "v.dat").exists()
    assert not (elsewhere / "other" / "v.dat").exists()


def test_works_of_different_files_share_nothing(elsewhere):
    class Two:
        def __init__(self):
            self._a = PersistedWork(Path("x-1.dat"), self, cache_global=True)
            self._b = PersistedWork(Path("x_1.dat"), self, cache_global=True)

        @persisted("_a")
        def a(self):
            return "AAA"

        @persisted("_b")
        def b(self):
            return "BBB"

    assert [Two().a(), Two().b(), Two().a()] == ["AAA", "BBB", "AAA"]
    assert sorted(name for name in os.listdir() if name[0] != ".") == ["x-1.dat", "x_1.dat"]


def test_missing_directory(elsewhere):
    class In:
        @persisted("_v", path="missing/v.dat")
        def v(self):
            calls.append(1)
            return 1

        @persisted("_w", path="made/v.dat", mkdir=True)
        def w(self):
            return 1

    with pytest.raises(StorageError, match="mkdir=True"):
        In().v()
    assert calls == []
    assert In().w() == 1


def test_version(elsewhere):
    def make(version, text):
        class In:
            @persisted("_v", path="v.dat", version=version)
            def v(self):
                return text

        return In()

    assert [make("1", "old").v(), make("1", "new").v(), make("2", "new").v(), make("2", "x").v()] == [
        "old",
        "old",
        "new",
        "new",
    ]


def test_damage_is_an_error_or_is_computed_again(elsewhere, caplog):
    assert InFile(5).v == 10
    Path("v.dat").write_bytes(b"")
    with pytest.raises(CorruptValueError, match=r"v\.dat is damaged: it is empty.*recover_empty=True"):
        InFile(6).v
    assert InFile(6, recover_empty=True).v == 12
    assert caplog.text.count("it is computed again") == 1
    assert InFile(7).v == 12


@pytest.mark.parametrize("make", [lambda: DictionaryStash(), lambda: DirectoryStash("d"), lambda: SqliteStash("s.db")])
def test_any_stash_can_be_the_level(make, elsewhere):
    with make() as stash:

        class In:
            @persisted("_v", stash=stash, key="some key")
            def v(self):
                calls.append(1)
                return None

        assert [In().v(), In().v()] == [None, None]
        assert calls == [1]
        assert list(stash) == [("some key", None)]
        one = In()
        assert one.v() is None
        one._v.clear()
        assert list(stash) == []


def test_two_classes_share_no_key_of_a_stash():
    stash = DictionaryStash()

    def make(text):
        class In:
            @persisted("_v", stash=stash)
            def v(self):
                return text

        In.__qualname__ = text
        return In()

    assert [make("One").v(), make("Two").v()] == ["One", "Two"]
    assert sorted(stash.keys()) == [f"{__name__}.One._v", f"{__name__}.Two._v"]


def test_is_set_looks_at_version_and_damage(elsewhere):
    assert InFile(1).v == 2
    assert InFile(1)._v.is_set()
    assert not InFile(1, version="2")._v.is_set()
    Path("v.dat").write_bytes(b"damaged")
    assert not InFile(1)._v.is_set()


def test_codec_of_a_work(elsewhere):
    class In:
        @persisted("_v", path="v.dat", codec=DillCodec())
        def v(self):
            return lambda x: x + 1

    assert In().v()(1) == In().v()(1) == 2


def test_initial_value():
    class In:
        def __init__(self, value):
            self._v = PersistedWork("v", self, initial_value=value)

        @persisted("_v")
        def v(self):
            raise AssertionError

    assert [In(None).v(), In(0).v()] == [None, 0]


def test_an_initial_value_on_the_class_is_that_of_the_first_instance_only():
    class In:
        @property
        @persisted("_n", cache_global=True, initial_value=0)
        def n(self):
            return "computed"

    one = In()
    assert one.n == 0
    one._n.set(5)
    assert [one.n, In().n, one.n, copy.copy(one).n, one.n] == [5] * 5
    one._n.set(None)
    assert [In().n, one.n] == [None, None]
    one._n.clear()
    assert [one.n, In().n] == ["computed", "computed"]


def test_an_unset_result_on_the_class_begins_with_the_initial_value():
    class In:
        def __init__(self, **options):
            self._n = PersistedWork("n", self, cache_global=True, **options)

        @persisted("_n")
        def n(self):
            return "computed"

    first = In()
    assert [In(initial_value=1).n(), In(initial_value=2).n(), first.n()] == [1, 1, 1]
    first._n.clear_global()
    assert [In(initial_value=2).n(), first.n()] == [2, 2]


def test_do_work_and_worker():
    class Own(PersistedWork):
        def __do_work__(self, *args):
            return "own", *args

    assert Own("x", None)(1) == ("own", 1)
    work = PersistedWork("x", None)
    with pytest.raises(InvalidArgumentError, match="nothing to compute"):
        work()
    work.worker = lambda: 3
    assert [work(), work.is_set()] == [3, True]


def test_contradictions():
    with pytest.raises(InvalidArgumentError, match="a file or a stash"):
        PersistedWork(Path("x"), None, stash=DictionaryStash())
    with pytest.raises(InvalidArgumentError, match="without a stash"):
        PersistedWork("x", None, key="k")
    with pytest.raises(InvalidArgumentError, match="must be a stash"):
        PersistedWork("x", None, stash={})
    with pytest.raises(InvalidArgumentError, match="must be a Path"):
        PersistedWork(3, None)
    with pytest.raises(InvalidArgumentError, match="durability"):
        PersistedWork("x", None, durability="maybe")
    with pytest.raises(InvalidArgumentError, match="without a file"):
        PersistedWork("x", None, codec=DillCodec())
    with pytest.raises(InvalidArgumentError, match="without a file or a stash"):
        PersistedWork("x", None, version="1")


# names


def test_names_that_clash():
    with pytest.raises(WorkNameError, match="can't have the name of the method"):

        class Same:
            @persisted("v")
            def v(self):
                return 1

    class Twice:
        @persisted("_x")
        def a(self):
            return "a"

        @persisted("_x")
        def b(self):
            return "b"

    owner = Twice()
    assert owner.a() == "a"
    with pytest.raises(WorkNameError, match="a and b both use"):
        owner.b()

    class Taken:
        def __init__(self):
            self._x = 3

        @persisted("_x")
        def v(self):
            return 1

    with pytest.raises(WorkNameError, match="give the work another name"):
        Taken().v()


def test_an_overridden_method_is_reached_by_super():
    class Base:
        @property
        @persisted("_v")
        def v(self):
            calls.append("base")
            return 1

    class Sub(Base):
        @property
        @persisted("_v")
        def v(self):
            calls.append("sub")
            return super().v + 1

    owner = Sub()
    assert [owner.v, owner.v] == [2, 2]
    assert calls == ["sub", "base"]


def test_arguments_are_warned_of():
    with pytest.warns(UserWarning, match="the arguments n are used by the first call only") as caught:

        class In:
            @persisted("_v")
            def v(self, n, m=1):
                return n

    assert caught[0].filename == __file__
    owner = In()
    assert [owner.v(3), owner.v(4), owner.v()] == [3, 3, 3]


def test_what_can_be_used_once_is_refused():
    with pytest.raises(InvalidArgumentError, match="return a list"):

        class In:
            @persisted("_v")
            def v(self):
                yield 1

    class Returns:
        @persisted("_v")
        def v(self):
            return (n for n in range(3))

    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match=r"list\(\.\.\.\)"):
            Returns().v()
    with pytest.raises(InvalidArgumentError, match="goes right above"):
        persisted("_x")(property(lambda self: 1))


def test_attached_at_run_time():
    owner = types.SimpleNamespace(n=1)
    owner.get = types.MethodType(persisted("_m")(lambda self: calls.append(1) or self.n), owner)
    assert [owner.get(), owner.get()] == [1, 1]
    assert calls == [1]


# copies and pickles


@pytest.mark.parametrize("kind", [Plain, Container, Attrs, Slotted, SlottedWithRoom, Frozen])
def test_a_copy_has_works_of_its_own(kind):
    one = kind(5)
    assert one.v == 10
    other = copy.copy(one)
    assert other.v == 10
    if hasattr(one, "_v"):
        assert other._v is not one._v
        assert one._v.owner is one
        assert other._v.owner is other
        other._v.clear()
        object.__setattr__(other, "n", 9)
        assert [other.v, one.v, other.v] == [18, 10, 18]


def test_a_copy_has_its_own_work_before_it_is_read():
    one = Plain(5)
    assert one.v == 10
    other = copy.copy(one)
    other.n = 9
    other._v.clear()
    assert [other.v, one.v] == [18, 10]
    assert calls == [5, 9]


@pytest.mark.parametrize("kind", [Plain, Container, Attrs, Frozen])
def test_deep_copies_and_pickles(kind):
    one = kind(5)
    assert one.v == 10
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        object.__setattr__(other, "n", 9)
        # A slotted owner has its works beside it, where neither pickle nor copy looks.
        assert other.v == (10 if isinstance(getattr(one, "__dict__", None), dict) else 18)
        if hasattr(other, "_v"):
            other._v.clear()
            assert [other.v, one.v] == [18, 10]


class Rich(PersistableContainer):
    _PERSISTABLE_TRANSIENT_ATTRIBUTES = {"connection"}
    _PERSITABLE_TRANSIENT_ATTRIBUTES = {"socket"}
    _PERSITABLE_REMOVE_ATTRIBUTES = {"secret", "absent"}
    _PERSITABLE_PROPERTIES = {"before"}
    _PERSISTABLE_METHODS = {"called"}

    def __init__(self):
        self.connection = self.socket = self.secret = lambda: None
        self.n = 1

    @property
    @persisted("_before")
    def before(self):
        return self.n + 1

    @persisted("_called")
    def called(self):
        return self.n + 2

    @property
    @persisted("_left", transient=True)
    def left(self):
        calls.append("left")
        return self.n


def test_container(capsys):
    one = Rich()
    assert one.left == 1
    other = pickle.loads(pickle.dumps(one))
    assert [other.connection, other.socket, hasattr(other, "secret")] == [None, None, False]
    assert one.secret() is None
    other.n = 10
    assert [other.before, other.called(), other.left] == [2, 3, 10]
    assert calls == ["left", "left"]
    metadata = other._get_persistable_metadata()
    assert sorted(metadata.persisted) == ["_before", "_called", "_left"]
    other.inner = one
    metadata.write(include_content=True, recursive=True)
    assert "work '_before' of Rich" in capsys.readouterr().out
    metadata.clear()
    assert other.before == 11
    other._clear_persistable_state()
    assert not other._before.is_set()


def test_deallocate(elsewhere):
    class Model(Deallocatable):
        freed = 0

        def deallocate(self):
            super().deallocate()
            Model.freed += 1

    class Owner(PersistableContainer):
        @property
        @persisted("_model", deallocate_recursive=True)
        def model(self):
            return [Model(), {"a": Model()}]

    owner = Owner()
    assert len(owner.model) == 2
    work = owner._model
    owner.deallocate()
    owner.deallocate()
    assert Model.freed == 2
    for use in (lambda: owner.model, work, work.clear, work.is_set, lambda: work.set(1)):
        with pytest.raises(DeallocatedError, match="was deallocated"):
            use()


def test_dealloc_scopes(capsys):
    class Model(Deallocatable):
        def deallocate(self):
            super().deallocate()
            calls.append("freed")

    with dealloc(Model) as model, dealloc_recursive():
        assert isinstance(model, Model)
    assert calls == ["freed"]

    class Fails(Deallocatable):
        def deallocate(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), dealloc(Fails, track=True):
        pass
    assert Deallocatable.ALLOCATION_TRACKING is False
    with pytest.raises(InvalidArgumentError, match="no deallocate"):
        dealloc(lambda: 3, track=True)
    assert Deallocatable.ALLOCATION_TRACKING is False
    Deallocatable._ALLOCATIONS.clear()


def test_resource():
    class Store:
        def connect(self):
            calls.append("open")
            return "connection"

        def disconnect(self, connection):
            calls.append("close")

        @resource("connect", "disconnect")
        def use(self, connection, factor):
            return connection * factor

    assert Store().use(2) == "connectionconnection"
    with pytest.raises(TypeError):
        Store().use("x")
    assert calls == ["open", "close"] * 2


# persisted_property


class Properties(PersistableContainer):
    def __init__(self, n):
        self.n = n

    @persisted_property
    def v(self):
        """Twice n."""
        calls.append(self.n)
        return self.n * 2

    @persisted_property(path="property.dat")
    def in_file(self):
        calls.append("file")
        return self.n

    @persisted_property(cache_global=True, name="_shared")
    def shared(self):
        calls.append("shared")
        return self.n

    @persisted_property(transient=True)
    def left(self):
        return self.n


def test_property():
    one, other = Properties(1), Properties(5)
    assert [one.v, one.v, other.v, vars(one)["v"]] == [2, 2, 10, 2]
    assert calls == [1, 5]
    one._persisted_v.clear()
    one.n = 3
    assert [one.v, one.v, other.v] == [6, 6, 10]
    one._persisted_v.set(None)
    assert [one.v, one._persisted_v.is_set()] == [None, True]
    assert Properties.v.__doc__ == "Twice n."


def test_property_on_the_class():
    one, other = Properties(1), Properties(2)
    assert [one.shared, other.shared] == [1, 1]
    one._shared.set(7)
    assert [one.shared, other.shared, Properties(3).shared] == [7, 7, 7]
    one._shared.clear_global()


def test_property_copies_and_pickles():
    one = Properties(5)
    assert [one.v, one.left] == [10, 5]
    for other in (copy.copy(one), pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        other.n = 9
        assert [other.v, other.left] == [10, 9]
        other._persisted_v.clear()
        assert [other.v, one.v, one._persisted_v.owner] == [18, 10, one]
    one.deallocate()
    with pytest.raises(DeallocatedError):
        one.v


def test_property_on_slotted_owners():
    class Slim:
        __slots__ = ("n",)
        __init__ = Plain.__init__

        @persisted_property
        def v(self):
            calls.append(1)
            return self.n

    owner = Slim(3)
    assert [owner.v, owner.v] == [3, 3]
    assert calls == [1]


def test_property_of_a_coroutine_says_what_to_do():
    with pytest.raises(InvalidArgumentError, match="use @property and @persisted"):

        @persisted_property
        async def v(self):
            return 1


# what an overriding method and super() have to do with each other


class Base:
    @persisted_property
    def v(self):
        return "base"

    @property
    @persisted("_w")
    def w(self):
        calls.append("base")
        return "base"

    def base(self):
        return Base.v.__get__(self), Base.w.fget(self)


class Sub(Base):
    @persisted_property
    def v(self):
        return f"sub+{super().v}"

    @property
    @persisted("_w")
    def w(self):
        calls.append("sub")
        return f"sub+{super().w}"


class PlainSub(Base):
    def v(self):
        return f"plain+{super().v}"


@pytest.mark.parametrize("base_first", [True, False])
def test_overridden_and_overriding_have_nothing_in_common(base_first):
    owner = Sub()
    for _ in range(2):
        if base_first:
            assert owner.base() == ("base", "base")
        assert [owner.v, owner.w] == ["sub+base", "sub+base"]
        assert owner.base() == ("base", "base")
    assert calls.count("sub") == 1
    twin = copy.deepcopy(owner)
    assert [twin.base(), twin.w] == [("base", "base"), "sub+base"]
    assert [PlainSub().v(), PlainSub().v()] == ["plain+base"] * 2


# what other decorators make of it


def opaque(fn):
    return lambda *args: fn(*args)


def named(fn):
    @wraps(fn)
    def inner(*args):
        return fn(*args)

    return inner


class Holder:
    """A descriptor that does not say what it holds."""

    def __init__(self, fn):
        self._held = fn

    def __get__(self, owner, cls=None):
        return self if owner is None else self._held(owner)


AROUND = {
    "function": lambda fn: property(opaque(fn)),
    "function over a property": lambda fn: property(opaque(property(fn).fget)),
    "function that says what it wraps": lambda fn: property(named(fn)),
    "cached property": cached_property,
    "descriptor": Holder,
}


def make_class(around, base, result="computed", **options):
    """Return a class with a method ``v`` in its body, and a foreign decorator around it."""

    class In(base):
        def v(self):
            calls.append(result)
            return result if base is object else f"{result}+{super().v}"

    method = In.v
    method.__qualname__, In.__qualname__ = f"{result}.v", result
    descriptor = around(persisted("_v", **options)(method))
    if isinstance(descriptor, cached_property):
        descriptor.__set_name__(In, "v")
    In.v = descriptor
    return In


@pytest.mark.parametrize("name", AROUND)
def test_a_foreign_decorator_does_not_switch_it_off(elsewhere, name):
    kind = make_class(AROUND[name], object, path="v.dat")
    sub = type("Sub", (kind,), {})
    one = kind()
    assert [one.v, one.v, kind().v, sub().v] == ["computed"] * 4
    assert calls == ["computed"]
    assert Path("v.dat").exists()


def test_an_abstract_method_does_not_switch_off_the_hidden_one_that_defines_it():
    class Abstract:
        @property
        def v(self):
            raise NotImplementedError

    class In(Abstract):
        @property
        @opaque
        @persisted("_v")
        def v(self):
            calls.append(1)
            return 1

    one = In()
    assert [one.v, one.v] == [1, 1]
    assert calls == [1]


@pytest.mark.parametrize("name", AROUND)
def test_overridden_and_overriding_have_nothing_in_common_below_foreign_decorators(name):
    base = make_class(AROUND[name], object, "base")
    kind = make_class(AROUND[name], base, "sub")
    one = kind()
    assert [one.v, one.v, base().v] == ["sub+base", "sub+base", "base"]
    assert calls == ["sub", "base", "base"]

    class Plain(base):
        @property
        def v(self):
            return f"plain+{super().v}"

    other = Plain()
    assert [other.v, "_v" in vars(other) and other._v.is_set()] == ["plain+base", False]


def test_classes_of_one_name_override_each_other():
    def make(base):
        class In(base):
            @property
            @persisted("_v")
            def v(self):
                return [] if base is object else [*super().v, base.__name__]

        return In

    one = make(make(make(object)))()
    assert [one.v, one.v is one.v] == [["In", "In"], True]


def test_a_wrapped_method_below_is_persisted():
    class In:
        @property
        @persisted("_v")
        @named
        def v(self):
            calls.append("v")
            return 1

        @persisted_property
        @named
        def p(self):
            calls.append("p")
            return 2

    one = In()
    assert [one.v, one.v, one.p, one.p, one._v.is_set()] == [1, 1, 2, 2, True]
    assert calls == ["v", "p"]


def test_a_method_of_a_metaclass_that_another_one_overrides():
    class Meta(type):
        @persisted("_v")
        def v(cls):
            return "meta"

    class SubMeta(Meta):
        @persisted("_v")
        def v(cls):
            return f"sub+{super().v()}"

    class In(metaclass=SubMeta):
        pass

    assert [In.v(), In.v()] == ["sub+meta", "sub+meta"]


def test_deleting_the_work_of_a_property_computes_again():
    owner = Properties(1)
    assert owner.v == 2
    owner.n = 3
    del owner._persisted_v
    assert owner.v == 6
    owner._persisted_v.clear()


@dataclass(slots=True)
class SlottedProperty:
    n: int

    @persisted_property
    def v(self):
        calls.append(self.n)
        return self.n

    @property
    @persisted("_w")
    def w(self):
        return self.n


def test_works_of_slotted_owners_can_be_reached():
    owner, other = SlottedProperty(1), SlottedProperty(2)
    assert [owner.v, owner.w, other.v, other.w] == [1, 1, 2, 2]
    owner.n = 5
    owner._persisted_v.clear()
    owner._w.clear()
    assert [owner.v, owner.w, other.v, other.w] == [5, 5, 2, 2]


def test_every_iterator_is_refused():
    class Returns:
        @persisted("_v")
        def v(self):
            return map(str, [1, 2])

    with pytest.raises(InvalidArgumentError, match="can be used only once"):
        Returns().v()


def test_a_copy_keeps_the_initial_value():
    class In:
        def __init__(self):
            self._v = PersistedWork("v", self, initial_value=5)

        @persisted("_v")
        def v(self):
            return "computed"

    assert [copy.copy(In()).v(), copy.deepcopy(In()).v()] == [5, 5]


def test_a_class_that_can_not_be_hashed():
    class Meta(type):
        def __eq__(cls, other):
            return True

        __hash__ = None

    class In(metaclass=Meta):
        @persisted("_v", cache_global=True)
        def v(self):
            return 1

    assert [In().v(), In().v()] == [1, 1]


# what is found in a file or stash


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_is_a_result(elsewhere, protocol):
    Path("v.dat").write_bytes(pickle.dumps({"a": [1, 2]}, protocol))
    work = PersistedWork(Path("v.dat"), None, codec=PickleCodec(plain=True))
    assert work.is_set()
    assert work() == {"a": [1, 2]}


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps([1, 2])[:-1], pickle.dumps([1]) + b"x", b"garbage."])
def test_what_is_no_pickle_is_no_result(elsewhere, data):
    Path("v.dat").write_bytes(data)
    work = PersistedWork(Path("v.dat"), None, codec=PickleCodec(plain=True))
    assert not work.is_set()
    with pytest.raises(CorruptValueError):
        work()


def test_a_plain_pickle_is_none_for_those_who_do_not_ask_for_it(elsewhere):
    Path("v.dat").write_bytes(pickle.dumps(1))
    assert not PersistedWork(Path("v.dat"), None).is_set()
    # What has a version is ours.
    assert not PersistedWork(Path("v.dat"), None, codec=PickleCodec(plain=True), version="1").is_set()
    work = PersistedWork(Path("v.dat"), None, codec=PickleCodec(plain=True))
    work.set(2)
    assert PersistedWork(Path("v.dat"), None, codec=PickleCodec(plain=True)).is_set()


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 100, "cut"])
def test_what_is_computed_again_is_not_to_be_deleted(elsewhere, caplog, data):
    work = PersistedWork(Path("v.dat"), None)
    work.set([1] * 100)
    good = Path("v.dat").read_bytes()
    Path("v.dat").write_bytes(good[10:] if data == "cut" else data)
    with pytest.raises(CorruptValueError, match="delete it, or restore it from a copy.*recover_empty=True"):
        PersistedWork(Path("v.dat"), None)()
    again = PersistedWork(Path("v.dat"), None, recover_empty=True)
    again.worker = lambda: 5
    assert again() == 5
    (record,) = caplog.records
    text = record.getMessage()
    assert "v.dat is damaged" in text
    assert text.endswith(": it is computed again, for recover_empty is set")
    assert "delete" not in text


@pytest.mark.parametrize("make", [lambda: DirectoryStash("d"), lambda: SqliteStash("s.db"), lambda: ShelveStash("s")])
def test_damage_in_a_stash_is_an_error_or_is_computed_again(elsewhere, caplog, make):
    def work(**options):
        work = PersistedWork("v", None, stash=stash, key="v", **options)
        work.worker = lambda: 5
        return work

    with make() as stash:
        work().set(1)
        foreign = "x" * 100
        if isinstance(stash, DirectoryStash):
            stash.key_to_path("v").write_text(foreign)
        elif isinstance(stash, SqliteStash):
            stash._run("UPDATE stash SET value=?", (foreign.encode(),))
        else:
            with stash._opened() as db:
                db["v"] = foreign
        with pytest.raises(CorruptValueError, match="delete it.*; with recover_empty=True it is computed again"):
            work()()
        assert work(recover_empty=True)() == 5
        assert caplog.text.count("it is computed again") == 1
        assert stash["v"] == 5
        assert work()() == 5


def test_a_stash_that_is_damaged_as_a_whole_is_not_computed_for(elsewhere):
    Path("s.db").write_bytes(b"no database" * 1000)
    with SqliteStash("s.db") as stash:
        work = PersistedWork("v", None, stash=stash, recover_empty=True)
        work.worker = lambda: pytest.fail("it was computed")
        with pytest.raises(CorruptValueError, match=r"s\.db"):
            work()


KEY, OTHER = bytes(32), bytes(range(32))


@pytest.mark.parametrize("recover", [False, True])
def test_what_another_one_sealed_is_told_with_its_place(elsewhere, recover):
    PersistedWork(Path("v.dat"), None, codec=SignedCodec(None, KEY)).set(1)
    stash = DirectoryStash("d", codec=SignedCodec(None, KEY))
    stash["v"] = 1
    sealed = SignedCodec(None, OTHER)
    for work, place in (
        (PersistedWork(Path("v.dat"), None, codec=sealed, recover_empty=recover), "v.dat"),
        (PersistedWork("v", None, stash=DirectoryStash("d", codec=sealed), key="v", recover_empty=recover), "v.dat"),
    ):
        with pytest.raises(SealError, match=rf"{place} can.t be read: the signature is none.*scope=.*migrate\(\)"):
            work()
    assert PersistedWork(Path("v.dat"), None, codec=SignedCodec(None, KEY))() == 1


def test_a_sealed_work_that_was_moved(elsewhere):
    PersistedWork(Path("v.dat"), None, codec=SignedCodec(None, KEY)).set(1)
    old = os.path.abspath("v.dat")
    os.mkdir("new")
    os.rename("v.dat", "new/v.dat")
    with pytest.raises(SealError, match="what was moved is read with its old path as scope="):
        PersistedWork(Path("new/v.dat"), None, codec=SignedCodec(None, KEY))()
    assert PersistedWork(Path("new/v.dat"), None, codec=SignedCodec(None, KEY, scope=old))() == 1


def test_a_sealed_work_is_not_taken_for_another_one_of_the_same_scope(elsewhere):
    codec = SignedCodec(None, KEY, scope="corpus")
    PersistedWork(Path("price.dat"), None, codec=codec).set(10)
    PersistedWork(Path("admin.dat"), None, codec=codec).set(False)
    shutil.copy("price.dat", "admin.dat")
    with pytest.raises(SealError):
        PersistedWork(Path("admin.dat"), None, codec=codec)()
    os.mkdir("new")
    shutil.move("price.dat", "new/price.dat")
    assert PersistedWork(Path("new/price.dat"), None, codec=codec)() == 10
