"""What zpersist keeps of zensols.persist: the semantics on which code written for it relies."""

from __future__ import annotations

import inspect
import io
import itertools
import logging
import os
import pickle
import re
import sys
import threading
import traceback
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

import zpersist
from zpersist import (
    CacheFactoryStash,
    CacheStash,
    CloseableStash,
    Deallocatable,
    DelegateDefaults,
    DelegateStash,
    DictionaryStash,
    DirectoryCompositeStash,
    DirectoryStash,
    FactoryStash,
    Failure,
    FailureFilterStash,
    FileTextUtil,
    IncrementKeyDirectoryStash,
    KeyLimitStash,
    KeySubsetStash,
    LRUCacheStash,
    MissingDataKeysError,
    MultiProcessDefaultStash,
    MultiProcessFactoryStash,
    MultiProcessRobustStash,
    MultiProcessStash,
    NoopStash,
    NotPickleable,
    OneShotFactoryStash,
    PersistableContainer,
    PersistableContainerMetadata,
    PersistableError,
    PersistedWork,
    PreemptiveStash,
    PrimablePreemptiveStash,
    Primeable,
    PrimeableStash,
    ProtectiveStash,
    ReadOnlyDelegateStash,
    ReadOnlyStash,
    ShelveStash,
    SortedStash,
    Stash,
    UnionStash,
    ZipStash,
    chunks,
    dealloc,
    dealloc_recursive,
    persisted,
    resource,
    shelve,
)


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    """Let relative paths, as the seed's users write them, lie in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)


def again(value):
    """Return what comes out of a pickle of the value."""
    return pickle.loads(pickle.dumps(value))


# Names and paths (FileTextUtil)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Annual Report: Sales & Costs", "annual-report-sales-costs"),
        ("~Draft (2nd)", "draft-2nd"),
        ("already-fine", "already-fine"),
        ("trailing!!!", "trailing"),
        ("__init__.py", "init-py"),
        ("a", "a"),
    ],
)
def test_normalize_text(text, name):
    """Runs of special characters become one, and none is left at either end."""
    assert FileTextUtil.normalize_text(text) == name
    assert zpersist.normalize_text(text) == name


def test_normalize_text_by_its_parameters():
    """What stands for special characters, case, and what is special can be chosen, by position."""
    assert FileTextUtil.normalize_text("One Two.Three", "_") == "one_two_three"
    assert FileTextUtil.normalize_text("One Two.Three", "_", False) == "One_Two_Three"
    assert FileTextUtil.normalize_text("One Two.Three", "+", True, re.compile("[aeiou]")) == "n+ tw+.thr+"
    assert FileTextUtil.normalize_text("na\u00efve\u0007", "-", True, None, True) == "nave"


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/opt/My Tools/Run.sh", ("/", "opt", "my-tools", "run-sh")),
        ("Some Dir/x.y.z", ("some-dir", "x-y-z")),
        ("~/Data Sets/a.csv", ("~", "data-sets", "a-csv")),
    ],
)
def test_normalize_path(path, parts):
    """Each part of a path is normalized; the root and the home are kept, and the result is a Path."""
    normal = FileTextUtil.normalize_path(Path(path))
    assert isinstance(normal, Path)
    assert normal.parts == parts


def test_byte_format_and_unique_names():
    """Sizes and names of files for people."""
    assert FileTextUtil.byte_format(1536) == "1.5KiB"
    assert FileTextUtil.byte_format(10) == "10.0B"
    assert FileTextUtil.unique_tracked_name("Log", False, False, "txt") == "log.txt"
    name = FileTextUtil.unique_tracked_name("log", include_user=False, extension="txt")
    assert name.startswith("log-")
    assert name.endswith(".txt")


# Works


class InFile(PersistableContainer):
    """Has a work in a file that is named in the constructor."""

    def __init__(self, n):
        self.n = n
        self._twice = PersistedWork(Path("twice.dat"), owner=self)

    @property
    @persisted("_twice")
    def twice(self):
        return self.n * 2


class ByDecorator:
    """Has a work in a file that is named in the decorator."""

    made_in: Path

    def __init__(self, n):
        self.n = n


def by_decorator():
    """Return a class whose work lies in a file named by the decorator, from where the test runs."""

    class Holder(ByDecorator):
        @property
        @persisted("counter", Path("counter.dat"))
        def twice(self):
            return self.n * 2

    return Holder


class InMemory(PersistableContainer):
    """Has a work in memory, that the decorator makes."""

    def __init__(self, n):
        self.n = n

    @property
    @persisted("_more")
    def more(self):
        self.n += 10
        return self.n


def on_class():
    """Return a class that has a work on the class."""

    class OnClass:
        def __init__(self, n):
            self.n = n

        @property
        @persisted("_more", cache_global=True)
        def more(self):
            self.n += 10
            return self.n

    return OnClass


class OnClassPickled(PersistableContainer):
    """Has a work on the class, and is pickled."""

    def __init__(self, n):
        self.n = n

    @property
    @persisted("_more", cache_global=True)
    def more(self):
        self.n += 10
        return self.n


class Transient(PersistableContainer):
    """Has a work whose result does not travel."""

    def __init__(self, n):
        self.n = n

    @property
    @persisted("_more", transient=True)
    def more(self):
        self.n += 10
        return self.n


class TransientThatIsChanged(Transient):
    """Changes itself when it arrives."""

    def __setstate__(self, state):
        super().__setstate__(state)
        self.n = 40


class Unpicklable:
    """Can't be pickled."""

    def __getstate__(self):
        raise ValueError("it shall not travel")


class TransientUnpicklable(PersistableContainer):
    """Has a transient result that can't be pickled."""

    @property
    @persisted("_made", transient=True)
    def made(self):
        return Unpicklable()


class TransientAttribute(PersistableContainer):
    """Has an attribute that does not travel."""

    _PERSITABLE_TRANSIENT_ATTRIBUTES = {"connection"}

    def __init__(self):
        self.connection = Unpicklable()
        self.name = "x"


class CorrectlySpelt(PersistableContainer):
    """Uses the names as they should be spelt."""

    _PERSISTABLE_TRANSIENT_ATTRIBUTES = {"connection"}
    _PERSISTABLE_REMOVE_ATTRIBUTES = {"scratch"}

    def __init__(self):
        self.connection = Unpicklable()
        self.scratch = Unpicklable()


class MadeBeforeItTravels(PersistableContainer):
    """Has its results computed before it is pickled."""

    _PERSITABLE_PROPERTIES = ("squares",)
    _PERSITABLE_METHODS = ("prepare",)
    _PERSITABLE_REMOVE_ATTRIBUTES = {"source"}

    def __init__(self):
        self.source = range(4)
        self.prepared = False

    @property
    @persisted("_squares")
    def squares(self):
        return [number**2 for number in self.source]

    def prepare(self):
        self.prepared = True


def test_a_path_is_a_file_and_a_str_is_memory_only():
    """A Path means a file; a str is a name, and no file of that name is ever looked at."""
    Path("named.dat").write_bytes(b"garbage")

    class Holder:
        def __init__(self):
            self._file = PersistedWork(Path("file.dat"), self)
            self._name = PersistedWork("named.dat", self)

        @persisted("_file")
        def file(self):
            return "in a file"

        @persisted("_name")
        def name(self):
            return "in memory"

    holder = Holder()
    assert (holder.file(), holder.name()) == ("in a file", "in memory")
    assert Path("file.dat").is_file()
    assert Path("named.dat").read_bytes() == b"garbage"
    assert {path.name for path in Path().iterdir() if not path.name.startswith(".")} == {"file.dat", "named.dat"}


def test_a_file_is_shared_by_all_instances_whatever_their_state():
    """An instance with another state reads the result that is there, until it clears it."""
    assert not Path("twice.dat").exists()
    assert InFile(10).twice == 20
    assert Path("twice.dat").exists()
    assert InFile(5).twice == 20
    other = InFile(8)
    other._twice.clear()
    assert not Path("twice.dat").exists()
    assert other.twice == 16
    assert InFile(1).twice == 16


def test_the_decorator_makes_the_work_on_the_first_call():
    """Without a work of that name the first call makes one, and it is found as an attribute from then on."""
    kind = by_decorator()
    holder = kind(10)
    assert not hasattr(holder, "counter")
    assert holder.twice == 20
    assert isinstance(holder.counter, PersistedWork)
    assert Path("counter.dat").exists()
    assert kind(5).twice == 20
    other = kind(8)
    assert other.twice == 20
    other.counter.clear()
    assert other.twice == 16


def test_the_path_of_the_decorator_may_be_a_str():
    """A str given as path of the decorator is a path."""

    class Holder:
        @persisted("_v", "v.dat")
        def v(self):
            return 1

    assert Holder().v() == 1
    assert Path("v.dat").is_file()


def test_the_work_that_is_there_wins_over_the_parameters_of_the_decorator():
    """The decorator's parameters have no effect where the instance has the work already."""

    class Holder:
        def __init__(self):
            self._v = PersistedWork("v", self)

        @persisted("_v", Path("unused.dat"), cache_global=True, transient=True)
        def v(self):
            return object()

    one, other = Holder(), Holder()
    assert one.v() is one.v()
    assert one.v() is not other.v()
    assert list(Path().iterdir()) == []


def test_results_are_looked_up_on_the_instance_then_the_class_then_the_file():
    """Each level hides the next one, and only when all are empty is the body run."""

    def holder(number):
        class Holder:
            def __init__(self):
                self._v = PersistedWork(Path("v.dat"), self, cache_global=True)

            @property
            @persisted("_v")
            def v(self):
                return number

        return Holder

    first = holder(1)
    one = first()
    assert one.v == 1
    # Another class writes another result into the file.
    Path("v.dat").unlink()
    assert holder(2)().v == 2
    # On the instance, and for a new instance on the class.
    assert one.v == 1
    assert first().v == 1
    # Nothing on the class: the file.
    new = first()
    new._v.clear_global()
    assert new.v == 2
    # Nothing anywhere: the body.
    new._v.clear()
    assert first().v == 1


def test_a_result_on_the_instance_stays_there():
    """A result in memory belongs to one instance; it is kept until it is cleared."""
    one = InMemory(100)
    assert one.more == 110
    assert isinstance(one._more, PersistedWork)
    one.n = 10
    assert one.more == 110
    one._more.clear()
    assert one.more == 20
    assert InMemory(3).more == 13


def test_a_result_on_the_class_is_that_of_all_instances():
    """The first instance computes for all; another class has its own."""
    kind, other = on_class(), on_class()
    assert kind(100).more == 110
    second = kind(10)
    second.n = 1
    assert [second.more, second.more] == [110, 110]
    assert other(5).more == 15

    class Below(kind):
        pass

    assert Below(7).more == 17
    assert kind(0).more == 110


def test_set_replaces_the_result():
    """What is set is what is read, and the body is not run."""
    one = InMemory(5)
    assert one.more == 15
    one._more.set(20)
    assert one.more == 20
    one = InFile(5)
    one._twice.set("set")
    assert one.twice == "set"
    assert one._twice.is_set()


def test_the_first_call_gives_its_arguments_and_later_ones_are_ignored():
    """Arguments take no part in what is kept."""

    class Holder:
        @persisted("counter", Path("method.dat"))
        def twice(self, n=0):
            return n * 2

    assert Holder().twice(10) == 20
    assert Holder().twice(5) == 20
    holder = Holder()
    assert holder.twice() == 20
    holder.counter.clear()
    assert holder.twice(n=8) == 16


def test_a_function_can_be_attached_to_an_object_at_run_time():
    """``types.MethodType(persisted(name)(function), object)`` is a method with a work."""

    class Counter:
        def __init__(self):
            self.n = 0

        @persisted("_count")
        def count(self):
            self.n += 1
            return self.n

    counter = Counter()
    assert [counter.count(), counter.count()] == [1, 1]
    calls = []
    counter.next = types.MethodType(persisted("_next")(lambda self: calls.append(1) or self.count() + 1), counter)
    assert [counter.next(), counter.next()] == [2, 2]
    assert len(calls) == 1
    Counter.shown = property(counter.next)
    assert [counter.shown, counter.shown] == [2, 2]
    assert len(calls) == 1


def test_the_body_may_be_a_worker_or_an_override():
    """A work is a callable: its ``worker``, or an overridden ``__do_work__``, gives the result."""
    calls = []
    work = PersistedWork("v", None)
    work.worker = lambda n: calls.append(n) or n * 2
    assert [work(4), work(5)] == [8, 8]
    assert calls == [4]

    class Doubled(PersistedWork):
        def __do_work__(self, n):
            return n * 2

    owner = InMemory(1)
    assert Doubled(Path("d.dat"), owner)(21) == 42
    assert Doubled(Path("d.dat"), owner)(1) == 42


def test_an_initial_value_is_the_result():
    """The body never runs."""

    class Holder:
        def __init__(self):
            self._v = PersistedWork("v", self, initial_value=7)

        @persisted("_v")
        def v(self):
            raise AssertionError

    assert Holder().v() == 7


def test_the_directory_is_made_only_if_asked_for():
    """A missing parent is an error, unless ``mkdir`` is given; the body is not run in vain."""
    runs = []

    class Holder:
        def __init__(self, mkdir):
            self._v = PersistedWork(Path("a/b/v.dat"), self, mkdir=mkdir)

        @persisted("_v")
        def v(self):
            runs.append(1)
            return 1

    with pytest.raises(PersistableError, match="mkdir"):
        Holder(False).v()
    assert runs == []
    assert Holder(True).v() == 1
    assert Holder(False).v() == 1


def test_recover_empty_takes_an_empty_file_for_none():
    """Otherwise it is an error."""
    Path("v.dat").touch()

    class Holder:
        def __init__(self, recover):
            self._v = PersistedWork(Path("v.dat"), self, recover_empty=recover)

        @persisted("_v")
        def v(self):
            return 1

    with pytest.raises(PersistableError, match=r"v\.dat"):
        Holder(False).v()
    assert Holder(True).v() == 1
    assert Holder(False).v() == 1


def test_the_example_of_the_seeds_page(capsys):
    """The example on the seed's page does what the page says."""

    class SomeClass(PersistableContainer):
        def __init__(self, n):
            self.n = n
            self._counter = PersistedWork(Path("counter.dat"), self, mkdir=True)

        @property
        @persisted("_counter")
        def count(self):
            print("returning count value")
            return self.n * 2

        @property
        @persisted("_notsaved")
        def notsaved(self):
            print("returning unsaved value")
            return self.n * 3

    inst = SomeClass(5)
    assert [inst.count, inst.count] == [10, 10]
    assert capsys.readouterr().out == "returning count value\n"
    assert [inst.notsaved, inst.notsaved] == [15, 15]
    assert capsys.readouterr().out == "returning unsaved value\n"
    inst = SomeClass(10)
    assert inst.count == 10
    assert capsys.readouterr().out == ""
    assert inst.notsaved == 30
    assert capsys.readouterr().out == "returning unsaved value\n"


def test_what_a_work_writes_about_itself():
    """``write`` says what the work is; the content only if asked."""
    one = InMemory(5)
    assert one.more == 15
    out = io.StringIO()
    one._more.write(2, writer=out)
    assert "global: False" in out.getvalue()
    assert "transient: False" in out.getvalue()
    assert "15" not in out.getvalue()
    one._more.write(include_content=True, writer=out)
    assert "15" in out.getvalue()


# Pickling


def test_results_travel_with_a_container():
    """A container is pickled with its results, also those that lie in a file, and works go on working."""
    in_file = InFile(5)
    assert in_file.twice == 10
    Path("twice.dat").unlink()
    twin = again(in_file)
    assert type(twin) is InFile
    assert twin.twice == 10
    assert not Path("twice.dat").exists()

    in_memory = InMemory(2)
    assert in_memory.more == 12
    twin = again(in_memory)
    twin.n = 100
    assert twin.more == 12
    twin._more.clear()
    assert (twin.more, in_memory.more) == (110, 12)


def test_a_container_without_results_computes_its_own():
    """Nothing was computed before it travelled."""
    twin = again(InFile(7))
    assert twin.twice == 14


def test_a_result_on_the_class_is_there_after_pickling():
    """The result on the class is that of the unpickled instance too."""
    one = OnClassPickled(2)
    assert one.more == 12
    twin = again(one)
    assert type(twin) is OnClassPickled
    assert twin.more == 12
    one._more.clear()


def test_owners_are_bound_anew():
    """A work that arrives belongs to the object that it arrives in."""
    twin = again(InFile(5))
    assert twin._twice.owner is twin


def test_a_transient_result_stays_behind():
    """It is computed again, from the state of the object that arrived; the sender keeps its own."""
    one = Transient(10)
    one.n = 2
    assert one.more == 12
    twins = again(one), again(one)
    for number, twin in enumerate(twins):
        twin.n = number
    assert [twin.more for twin in twins] == [10, 11]
    assert one.more == 12


def test_a_transient_result_need_not_be_picklable():
    """What can't be pickled stays behind without an error."""
    one = TransientUnpicklable()
    assert isinstance(one.made, Unpicklable)
    with pytest.raises(ValueError, match="travel"):
        again(one.made)
    twin = again(one)
    assert isinstance(twin.made, Unpicklable)
    assert twin.made is twin.made
    assert twin.made is not one.made


def test_a_class_may_override_setstate():
    """``super().__setstate__`` does its work, and what the class then changes holds."""
    one = TransientThatIsChanged(2)
    assert one.more == 12
    assert again(one).more == 50


def test_transient_attributes_arrive_as_none():
    """They are None in the pickle; the object itself is not touched."""
    one = TransientAttribute()
    twin = again(one)
    assert twin.connection is None
    assert twin.name == "x"
    assert isinstance(one.connection, Unpicklable)


def test_the_names_may_be_spelt_correctly():
    """``_PERSISTABLE_…`` is honoured as ``_PERSITABLE_…`` is."""
    twin = again(CorrectlySpelt())
    assert vars(twin) == {"connection": None}


def test_properties_and_methods_are_called_before_pickling():
    """What they compute travels, although what it was computed from does not."""
    twin = again(MadeBeforeItTravels())
    assert not hasattr(twin, "source")
    assert twin.squares == [0, 1, 4, 9]
    assert twin.prepared is True


def test_metadata_tells_the_works_of_a_container():
    """``_get_persistable_metadata`` lists works by name, and clears them; so does ``_clear_persistable_state``."""
    one = InFile(5)
    one.extra = PersistedWork("extra", one, initial_value=1)
    metadata = one._get_persistable_metadata()
    assert isinstance(metadata, PersistableContainerMetadata)
    assert metadata.persisted == {"_twice": one._twice, "extra": one.extra}
    assert one.twice == 10
    metadata.clear()
    assert not Path("twice.dat").exists()
    assert not one.extra.is_set()
    one.n = 6
    assert one.twice == 12
    one._clear_persistable_state()
    assert not one._twice.is_set()


def test_not_pickleable_refuses():
    """An instance of NotPickleable can't be pickled, and says so."""

    class Connection(NotPickleable):
        pass

    with pytest.raises(PersistableError, match="Connection"):
        pickle.dumps(Connection())


# Deallocation


class Freed(Deallocatable):
    """Counts how many there are."""

    alive = 0

    def __init__(self):
        super().__init__()
        Freed.alive += 1

    def deallocate(self):
        super().deallocate()
        Freed.alive -= 1


@pytest.fixture
def tracking():
    """Track allocations, as the seed's users switch it on."""
    Deallocatable.ALLOCATION_TRACKING = True
    Freed.alive = 0
    try:
        assert Deallocatable._num_deallocations() == 0
        yield
        assert Deallocatable._num_deallocations() == 0
    finally:
        Deallocatable.ALLOCATION_TRACKING = False
        Deallocatable._ALLOCATIONS.clear()


@pytest.mark.usefixtures("tracking")
def test_allocations_are_tracked_until_they_are_deallocated():
    """``_ALLOCATIONS`` holds pairs of the object and the stack that made it."""
    inst = Freed()
    assert Freed.alive == Deallocatable._num_deallocations() == 1
    ((obj, stack),) = Deallocatable._ALLOCATIONS.values()
    assert obj is inst
    assert "test_allocations_are_tracked" in stack
    with pytest.raises(PersistableError, match="1 "):
        Deallocatable.assert_dealloc()
    inst.deallocate()
    assert Freed.alive == Deallocatable._num_deallocations() == 0
    Deallocatable.assert_dealloc()


@pytest.mark.usefixtures("tracking")
def test_dealloc_deallocates_also_after_return():
    """``with dealloc(object)`` gives the object, and deallocates it however the block ends."""

    def use(result=None):
        with dealloc(Freed()) as inst:
            assert Freed.alive == Deallocatable._num_deallocations() == 1
            assert next(iter(Deallocatable._ALLOCATIONS.values()))[0] is inst
            return inst if result is None else result

    assert isinstance(use(), Freed)
    assert Freed.alive == 0
    assert use(1) == 1
    assert Freed.alive == 0
    with pytest.raises(KeyError), dealloc(Freed):
        raise KeyError
    assert Freed.alive == 0


def test_without_tracking_nothing_is_remembered():
    """Tracking is off, unless it is switched on."""
    Freed.alive = 0
    inst = Freed()
    assert Deallocatable._num_deallocations() == 0
    inst.deallocate()
    assert Freed.alive == 0


@pytest.mark.usefixtures("tracking")
def test_a_container_deallocates_its_works():
    """The result is deallocated with the container; recursively if the work says so."""

    class Holder(PersistableContainer):
        def __init__(self):
            super().__init__()
            self._one = PersistedWork("one", self)
            self._many = PersistedWork("many", self, deallocate_recursive=True)

        @persisted("_one")
        def one(self):
            return Freed()

        @persisted("_many")
        def many(self):
            return [Freed(), {"k": (Freed(),)}, {Freed()}]

    holder = Holder()
    holder.one()
    holder.many()
    assert Freed.alive == 5 - 1
    holder.deallocate()
    assert Freed.alive == 0


@pytest.mark.usefixtures("tracking")
def test_deallocatable_helpers():
    """``_try_deallocate``, ``_deallocate_attribute`` and ``dealloc_recursive``."""

    class Holder(Deallocatable):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.plain = Freed(), Freed(), 1

    holder = Holder()
    assert Deallocatable._try_deallocate(1) is False
    assert holder._deallocate_attribute("one") is True
    assert not hasattr(holder, "one")
    assert holder._deallocate_attributes(["two", "plain", "none"]) == 1
    assert Freed.alive == 0
    many = [Freed(), Freed()]
    assert Deallocatable._try_deallocate(many) is False
    with dealloc_recursive():
        Deallocatable._try_deallocate(many)
    assert Freed.alive == 0
    holder.deallocate()


def test_a_work_can_be_left_untracked():
    """``allocation_track=False`` takes the work out of what is tracked."""

    class Holder:
        @persisted("_a", allocation_track=False)
        def a(self):
            return 1

        @persisted("_b")
        def b(self):
            return 1

    holder = Holder()
    Deallocatable.ALLOCATION_TRACKING = True
    try:
        holder.a()
        assert Deallocatable._num_deallocations() == 0
        holder.b()
        assert Deallocatable._num_deallocations() == 1
        holder._b.deallocate()
        assert Deallocatable._num_deallocations() == 0
    finally:
        Deallocatable.ALLOCATION_TRACKING = False
        Deallocatable._ALLOCATIONS.clear()


def test_resource_is_made_given_and_destroyed():
    """A method gets the resource as its first argument; it is destroyed however the method ends."""
    log = []

    class Store:
        def connect(self):
            log.append("made")
            return "connection"

        def disconnect(self, connection):
            log.append(f"destroyed {connection}")

        @resource("connect", "disconnect")
        def use(self, connection, n, fails=False):
            """Use it."""
            if fails:
                raise ValueError(connection)
            return connection, n

    assert Store().use(3) == ("connection", 3)
    with pytest.raises(ValueError, match="connection"):
        Store().use(3, fails=True)
    assert log == ["made", "destroyed connection"] * 2
    assert Store.use.__doc__ == "Use it."


# The contract


class Numbers(ReadOnlyStash):
    """Has int keys, each its own value; written as the seed's users write such a stash."""

    def __init__(self, n, end=None):
        super().__init__()
        self.n, self.end = n, end
        self.loaded = self.keyed = 0

    def load(self, name):
        self.loaded += 1
        if self.exists(name):
            return name
        return None

    def keys(self):
        self.keyed += 1
        return range(self.n) if self.end is None else range(self.n, self.end)

    def exists(self, name):
        return int(name) in (range(self.n) if self.end is None else range(self.n, self.end))


class Four(Stash):
    """Has only the four methods a stash must have."""

    def __init__(self):
        self.kept = {}

    def load(self, name):
        return self.kept.get(name)

    def dump(self, name, inst):
        self.kept[name] = inst

    def delete(self, name):
        return self.kept.pop(name, self) is not self

    def keys(self):
        return list(self.kept)


WRITABLE = {
    "own": lambda: Four(),
    "dictionary": lambda: DictionaryStash(),
    "lru": lambda: LRUCacheStash(10),
    "directory": lambda: DirectoryStash(Path("d")),
    "shelve": lambda: ShelveStash(Path("s")),
    "delegate": lambda: DelegateStash(Four()),
    "cache": lambda: CacheStash(Four()),
    "protective": lambda: ProtectiveStash(Four(), False),
    "sorted": lambda: SortedStash(Four()),
    "preemptive": lambda: PreemptiveStash(Four()),
    "factory": lambda: FactoryStash(Four(), DictionaryStash()),
    "sqlite": lambda: zpersist.SqliteStash(Path("s.db")),
}


@pytest.mark.parametrize("kind", WRITABLE)
def test_the_contract(kind):
    """Iteration gives pairs, ``[]`` raises KeyError, ``load`` gives None, ``get`` the default."""
    with WRITABLE[kind]() as stash:
        assert (len(stash), list(stash), list(stash.keys())) == (0, [], [])
        assert stash.load("a") is None
        assert stash.get("a") is None
        assert stash.get("a", 2) == 2
        assert not stash.exists("a")
        with pytest.raises(KeyError) as caught:
            stash["a"]
        assert str(caught.value).startswith("'a'")
        stash.dump("a", 1)
        stash["b"] = 2
        assert "a" in stash
        assert stash.exists("b")
        assert (stash["a"], stash.load("a"), stash.get("a"), stash.get("a", 5)) == (1, 1, 1, 1)
        assert sorted(stash) == sorted(stash.items()) == [("a", 1), ("b", 2)]
        assert sorted(stash.values()) == [1, 2]
        assert len(stash) == 2
        assert [len(group) for group in stash.key_groups(1)] == [1, 1]
        del stash["a"]
        stash.delete("b")
        assert len(stash) == 0
        stash["c"] = 3
        stash.clear()
        assert list(stash.keys()) == []


def test_a_missing_key_leaves_no_trace():
    """Asking for what is not there makes no file, and no directory."""
    stash = DirectoryStash(Path("d"))
    assert stash.load("a") is None
    assert stash.get("a", 1) == 1
    assert "a" not in stash
    with pytest.raises(KeyError):
        stash["a"]
    assert list(stash) == []
    assert not Path("d").exists()


def test_key_groups_have_at_most_so_many_keys():
    """Only the last group is shorter."""
    stash = Numbers(5)
    assert list(stash.key_groups(3)) == [[0, 1, 2], [3, 4]]
    assert list(stash.key_groups(2)) == [[0, 1], [2, 3], [4]]
    assert list(stash.key_groups(4)) == [[0, 1, 2, 3], [4]]
    assert list(stash.key_groups(5)) == list(stash.key_groups(6)) == [[0, 1, 2, 3, 4]]
    assert list(Numbers(0).key_groups(3)) == []


def test_chunks():
    """Any iterable is cut into lists; the last one may be shorter, and nothing gives nothing."""
    assert list(chunks(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(chunks(iter("abcd"), 3)) == [["a", "b", "c"], ["d"]]
    assert list(chunks((), 3)) == []
    assert list(chunks("a", 3)) == [["a"]]
    twice = chunks([1, 2, 3], 2)
    assert list(twice) == list(twice) == [[1, 2], [3]]
    assert [[item for _, item in chunk] for chunk in chunks("abc", 2, True)] == [["a", "b"], ["c"]]


INT_LAYERS = {
    "read only": lambda: Numbers(5),
    "dictionary": lambda: DictionaryStash({number: number for number in range(5)}),
    "cache": lambda: CacheStash(delegate=Numbers(5)),
    "delegate": lambda: DelegateStash(Numbers(5)),
    "read only delegate": lambda: ReadOnlyDelegateStash(Numbers(5)),
    "factory": lambda: FactoryStash(DictionaryStash(), Numbers(5)),
    "cache factory": lambda: CacheFactoryStash(DictionaryStash(), Numbers(5)),
    "union": lambda: UnionStash((Numbers(3), Numbers(3, 5))),
    "sorted": lambda: SortedStash(Numbers(5)),
    "limit": lambda: KeyLimitStash(Numbers(10), 5),
    "subset": lambda: KeySubsetStash(Numbers(10), range(5), False),
    "preemptive": lambda: PreemptiveStash(Numbers(5)),
    "oneshot": lambda: OneShotFactoryStash(DictionaryStash(), [(number, number) for number in range(5)]),
    "protective": lambda: ProtectiveStash(Numbers(5), True),
    "multi": lambda: MultiProcessFactoryStash(DictionaryStash(), Numbers(5), chunk_size=2),
}


@pytest.mark.parametrize("layer", INT_LAYERS)
def test_int_keys_go_through_generic_layers(layer):
    """Keys in memory need not be ``str``."""
    stash = INT_LAYERS[layer]()
    assert list(stash) == [(number, number) for number in range(5)]
    assert (stash[0], stash.load(4), stash.get(4), stash.get(5), stash.get(6, "nada")) == (0, 4, 4, None, "nada")
    assert stash.exists(4)
    assert not stash.exists(5)
    assert (0 in stash, 5 in stash, len(stash)) == (True, False, 5)
    with pytest.raises(KeyError):
        stash[5]


# Read only


def test_a_read_only_stash_needs_two_methods_and_ignores_writes():
    """Writes are ignored in silence."""
    stash = Numbers(3)
    stash.dump(7, 7)
    stash[8] = 8
    stash.delete(0)
    stash.clear()
    assert list(stash) == [(0, 0), (1, 1), (2, 2)]


def test_del_on_a_read_only_stash_is_ignored_too():
    """``del`` is a write as any other: it must not say that a key is missing which is there."""
    stash = Numbers(3)
    del stash[0]
    assert stash[0] == 0


def test_add_on_a_read_only_stash_is_ignored_too():
    """``add`` keeps nothing and says so."""
    assert Numbers(3).add(7, 7) is False
    assert UnionStash((DictionaryStash(), DictionaryStash())).add("a", 1) is False


def test_clear_of_a_read_only_stash_does_not_ask_for_its_keys():
    """They may be many, dear to find, or without end."""

    class Endless(ReadOnlyStash):
        def load(self, name):
            return name

        def keys(self):
            raise AssertionError("asked for keys")

    Endless().clear()


@pytest.mark.parametrize(
    "write",
    [
        lambda stash: stash.dump("a", 1),
        lambda stash: stash.delete("a"),
        lambda stash: stash.clear(),
        lambda stash: stash.__setitem__("a", 1),
        lambda stash: stash.__delitem__("a"),
    ],
    ids="dump delete clear setitem delitem".split(),
)
@pytest.mark.parametrize(
    "make",
    [lambda: Numbers(0), lambda: ReadOnlyDelegateStash(DictionaryStash()), lambda: UnionStash((DictionaryStash(),))],
    ids="own delegate union".split(),
)
def test_a_strict_read_only_stash_refuses_writes(make, write):
    """``strict = True`` makes each write an error, also when there is nothing that it could change."""
    stash = make()
    assert stash.strict is False
    stash.strict = True
    with pytest.raises(PersistableError, match="read only"):
        write(stash)


def test_a_read_only_delegate_protects_what_it_stands_on():
    """Writes do not reach the delegate."""
    store = DictionaryStash({"a": 1})
    stash = ReadOnlyDelegateStash(store)
    stash.dump("a", 2)
    stash.dump_many({"b": 2})
    stash.delete("a")
    stash.delete_many(["a"])
    stash.clear()
    assert store.data == {"a": 1}
    assert stash["a"] == 1


# Delegates


def test_a_delegate_stash_passes_everything_on():
    """What is done to it is done to its delegate."""
    store = DictionaryStash()
    stash = DelegateStash(store)
    stash.dump("a", 1)
    assert store.data == {"a": 1}
    assert stash.delegate is store
    assert isinstance(stash, CloseableStash)
    stash.delete("a")
    assert store.data == {}


def test_without_a_delegate_nothing_is_kept():
    """``DelegateStash()`` is a no-op, as the seed's page says."""
    stash = DelegateStash()
    stash.dump("a", 1)
    assert stash.load("a") is None
    assert list(stash) == []
    assert isinstance(stash.delegate, NoopStash)


def test_what_is_no_stash_is_refused_as_delegate(monkeypatch):
    """Unless ``DelegateDefaults.CLASS_CHECK`` is switched off."""
    for wrong in ({}, DictionaryStash, None, "stash"):
        with pytest.raises(PersistableError):
            DelegateStash(wrong)
    with pytest.raises(PersistableError):
        CacheStash(DictionaryStash(), {})
    with pytest.raises(PersistableError):
        UnionStash((DictionaryStash(), {}))
    monkeypatch.setattr(DelegateDefaults, "CLASS_CHECK", False)
    assert DelegateStash({}).delegate == {}


def test_noop_keeps_nothing():
    """Everything succeeds, and nothing is there."""
    stash = NoopStash()
    stash.dump("a", 1)
    stash.clear()
    assert (stash.load("a"), stash.get("a", 3), "a" in stash, len(stash), stash.delete("a")) == (
        None,
        3,
        False,
        0,
        False,
    )


def test_a_limit_shows_the_first_keys():
    """``KeyLimitStash(delegate, limit)``, without a limit all."""
    store = DictionaryStash(dict(zip("abcd", range(4), strict=True)))
    assert list(KeyLimitStash(store, 2)) == [("a", 0), ("b", 1)]
    assert len(KeyLimitStash(store)) == 4
    assert len(KeyLimitStash(store, limit=100)) == 4


def test_a_subset_is_a_set_of_keys_or_a_file_of_lines():
    """``KeySubsetStash(delegate, key_subset, dynamic_subset)`` is read only."""
    store = DictionaryStash(dict(zip("abcd", range(4), strict=True)))
    Path("keys.txt").write_text("c\na\n")
    for subset in ({"a", "c"}, Path("keys.txt")):
        for dynamic in (False, True):
            stash = KeySubsetStash(store, subset, dynamic)
            assert sorted(stash) == [("a", 0), ("c", 2)]
            stash.dump("a", 9)
            assert store["a"] == 0


def test_a_preemptive_stash_knows_whether_there_is_data():
    """``has_data`` lists a key and loads nothing; it is remembered, and forgotten by clear()."""
    source = Numbers(3)
    stash = PreemptiveStash(source)
    assert (source.keyed, source.loaded) == (0, 0)
    assert stash.has_data
    assert source.keyed > 0
    assert source.loaded == 0
    asked = source.keyed
    assert stash.has_data
    assert source.keyed == asked
    assert list(stash) == [(0, 0), (1, 1), (2, 2)]
    assert source.loaded == 3

    store = DictionaryStash()
    stash = PreemptiveStash(store)
    assert not stash.has_data
    stash.dump("a", 1)
    assert stash.has_data
    stash.clear()
    assert not stash.has_data


class Primed(PrimeableStash, DelegateStash):
    """Counts how often it is primed."""

    primed = 0

    def prime(self):
        super().prime()
        self.primed += 1


@pytest.mark.parametrize(
    "read",
    [
        lambda stash: list(stash.keys()),
        lambda stash: stash.load("a"),
        lambda stash: stash.get("a"),
        lambda stash: stash["a"],
        lambda stash: len(stash),
        lambda stash: list(stash),
        lambda stash: stash.exists("a"),
    ],
    ids="keys load get getitem len iter exists".split(),
)
def test_a_stash_is_primed_before_it_is_read(read):
    """prime() comes first, also that of a delegate which can be primed."""
    inner = Primed(DictionaryStash({"a": 1}))
    stash = Primed(inner)
    assert isinstance(stash, Primeable)
    read(stash)
    assert stash.primed > 0
    assert inner.primed > 0


def test_prime_reaches_a_primeable_delegate():
    """Calling prime() by hand reaches the delegate as well."""
    inner = Primed(DictionaryStash())
    Primed(inner).prime()
    assert inner.primed == 1
    assert issubclass(PrimablePreemptiveStash, (PrimeableStash, PreemptiveStash))


class Refusing(DictionaryStash):
    """Refuses one value."""

    def dump(self, name, inst):
        if inst == "bad":
            raise ValueError(f"not under {name}")
        super().dump(name, inst)


def test_a_protective_stash_keeps_the_exception_as_the_value(caplog):
    """``ProtectiveStash(delegate, log_errors)``: dump does not raise."""
    for log_errors in (False, True):
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            stash = ProtectiveStash(Refusing(), log_errors)
            stash.dump("a", "good")
            stash.dump("b", "bad")
        assert stash["a"] == "good"
        assert type(stash["b"]) is ValueError
        assert str(stash["b"]) == "not under b"
        assert bool(caplog.records) == log_errors


# Factories


class Making(ReadOnlyStash):
    """Makes another value each time, for any key, and lists none."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def load(self, name):
        self.made += 1
        return f"{name}-{self.made}"

    def keys(self):
        return ()


def test_a_factory_stash_keeps_what_the_factory_makes():
    """The value made first is the one that is given ever after, by ``[]``, ``get`` and ``load``."""
    factory = Making()
    stash = FactoryStash(DictionaryStash(), factory)
    assert stash.load("first") == "first-1"
    assert stash["first"] == stash.get("first") == "first-1"
    assert stash.load("second") == "second-2"
    assert (stash["first"], stash["second"]) == ("first-1", "second-2")
    assert factory.made == 2


def test_a_factory_without_keys_makes_by_index_and_get_too():
    """A factory that lists no keys can still be asked for any by ``[]``."""
    stash = FactoryStash(DictionaryStash(), Making())
    assert stash["first"] == "first-1"
    assert stash["first"] == "first-1"


def test_over_a_factory_without_keys_those_of_the_delegate_are_listed():
    """They are what there is; and they compare as a set."""
    stash = FactoryStash(DictionaryStash(), Making())
    assert stash.load("first") == "first-1"
    assert stash.load("second") == "second-2"
    assert len(stash) == 2
    assert stash.keys() == {"first", "second"}


def test_a_factory_stash_in_a_directory():
    """Values are made once, whatever the factory would make later, and the directory is made by the first one."""

    class Prefixed(ReadOnlyStash):
        prefix = ""

        def load(self, name):
            return f"{self.prefix}{name}"

        def keys(self):
            return map(str, range(3))

    factory = Prefixed()
    stash = FactoryStash(DirectoryStash(Path("made")), factory)
    assert not Path("made").exists()
    assert set(stash) == {("0", "0"), ("1", "1"), ("2", "2")}
    assert Path("made").is_dir()
    factory.prefix = "x"
    assert set(stash) == {("0", "0"), ("1", "1"), ("2", "2")}
    assert set(factory) == {("0", "x0"), ("1", "x1"), ("2", "x2")}


def test_clear_of_a_factory_stash_spares_a_read_only_factory():
    """A factory that can be written to is cleared with it; a read-only one only if that is forced."""
    written = DictionaryStash({"a": 1})
    stash = FactoryStash(DictionaryStash(), written)
    assert dict(stash) == {"a": 1}
    stash.clear()
    assert (len(written), len(stash)) == (0, 0)

    class Cleared(Making):
        cleared = False

        def clear(self):
            self.cleared = True

    for force in (False, True):
        factory = Cleared()
        FactoryStash(DictionaryStash(), factory, force_clear_factory=force).clear()
        assert factory.cleared is force


def test_a_cache_factory_stash_has_the_keys_of_its_factory():
    """Whatever else lies in the delegate; None is not kept."""
    stash = CacheFactoryStash(DictionaryStash({99: 99}), Numbers(3))
    assert list(stash) == [(0, 0), (1, 1), (2, 2)]
    assert not stash.exists(99)
    assert stash.dump_factory_nones is False


def test_a_oneshot_stash_is_filled_once():
    """By an iterable of pairs, a function that returns one, an attribute set later, or a property of a subclass."""
    pairs = [("2", "b"), ("1", "a")]
    calls = []

    def worker():
        calls.append(1)
        return iter(pairs)

    stash = OneShotFactoryStash(DictionaryStash())
    stash.worker = worker
    assert list(stash) == pairs
    assert stash["1"] == "a"
    assert len(stash) == 2
    assert len(calls) == 1

    stash = OneShotFactoryStash(DictionaryStash())
    stash.worker = tuple(pairs)
    assert list(stash.keys()) == ["2", "1"]

    class Below(OneShotFactoryStash):
        def _get_worker_type(self):
            return "a"

        @property
        def worker(self):
            return pairs

        @worker.setter
        def worker(self, value):
            pass

    assert dict(Below(DictionaryStash())) == dict(pairs)

    filled = OneShotFactoryStash(DictionaryStash({"x": 1}), worker)
    assert dict(filled) == {"x": 1}
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (None, ["10", "100", "2", "3", "32"]),
        (int, ["2", "3", "10", "32", "100"]),
        (float, ["2", "3", "10", "32", "100"]),
    ],
)
@pytest.mark.parametrize("where", ["memory", "directory"])
def test_a_sorted_stash_gives_keys_values_and_items_in_order(sort, order, where):
    """By ``sort_function``, over a stash that is filled when it is first read."""
    delegate = DictionaryStash() if where == "memory" else DirectoryStash(Path("d"))
    filled = OneShotFactoryStash(delegate)
    filled.worker = [(name, f"v{name}") for name in ("2", "100", "10", "32", "3")]
    if where == "memory":
        assert list(filled.keys()) == ["2", "100", "10", "32", "3"]
    stash = SortedStash(filled, sort_function=sort)
    assert list(stash.keys()) == order
    assert list(stash.values()) == [f"v{name}" for name in order]
    assert list(stash) == list(stash.items()) == [(name, f"v{name}") for name in order]


# Stores


def test_a_dictionary_stash_gives_a_live_view_of_its_keys():
    """``len(stash.keys())`` and comparing with a set work, and the view follows."""
    stash = DictionaryStash()
    keys = stash.keys()
    assert len(keys) == 0
    stash.dump("a", 1)
    assert len(keys) == 1
    assert keys == {"a"}
    assert "a" in keys
    stash.delete("a")
    assert len(keys) == 0


def test_a_dictionary_stash_stands_on_the_dictionary_it_is_given():
    """``.data`` is that dictionary; ``[]`` is the dictionary's, None allowed."""
    data = {"a": None}
    stash = DictionaryStash(data)
    assert stash.data is data
    assert stash["a"] is None
    stash["b"] = 2
    assert data == {"a": None, "b": 2}


def test_an_lru_stash_forgets_the_oldest():
    """Its data is an OrderedDict; the value that was used longest ago goes first."""
    stash = LRUCacheStash(2)
    for _ in range(2):
        assert type(stash.data) is OrderedDict
        assert len(stash.data) == 0
        stash.dump("a", 1)
        assert (list(stash.keys()), list(stash.values())) == (["a"], [1])
        with pytest.raises(KeyError, match=r"^'b'"):
            stash["b"]
        stash.dump("b", 2)
        assert stash.load("a") == 1
        assert stash.load("b") == 2
        stash.dump("c", 3)
        assert sorted(stash) == [("b", 2), ("c", 3)]
        assert stash.get("a") is None
        with pytest.raises(KeyError, match=r"^'a'"):
            stash["a"]
        stash.clear()


def test_a_cache_reads_through_and_remembers():
    """What was read lies in ``cache_stash``; deleting forgets it there, and leaves a read-only delegate alone."""
    source = Numbers(5)
    stash = CacheStash(delegate=source)
    pairs = [(number, number) for number in range(5)]
    assert list(stash) == pairs
    assert stash.cache_stash.data == dict(pairs)
    loaded = source.loaded
    assert list(stash) == pairs
    assert source.loaded == loaded
    stash.delete(3)
    assert stash.cache_stash.data == {0: 0, 1: 1, 2: 2, 4: 4}
    assert list(stash) == pairs
    assert sorted(stash.cache_stash) == pairs
    stash.clear()
    assert stash.cache_stash.data == {}
    assert len(stash) == 5


def test_a_cache_deletes_in_both():
    """Where the delegate can be written to, delete() and clear() reach it."""
    store = DictionaryStash({"a": 1, "b": 2})
    stash = CacheStash(store, DictionaryStash())
    assert stash["a"] == 1
    assert stash.delete("a") is True
    assert store.data == {"b": 2}
    stash.clear()
    assert store.data == {}


def test_each_value_lies_in_a_file_of_its_literal_name():
    """A person finds ``tmp5`` in ``tmp5.dat``; a pickle module reads it."""
    stash = DirectoryStash(Path("d"))
    for name in ("tmp5", "a-b_c.d", "with blank", "10", "UPPER"):
        assert not Path(f"d/{name}.dat").exists()
        stash.dump(name, [name])
        assert Path(f"d/{name}.dat").is_file()
        assert stash.key_to_path(name).samefile(f"d/{name}.dat")
        with open(f"d/{name}.dat", "rb") as file:
            assert pickle.load(file) == [name]
        stash.delete(name)
        assert not Path(f"d/{name}.dat").exists()


def test_a_directory_has_nothing_in_it_but_values():
    """Users count, list and unlink the files themselves."""
    stash = DirectoryStash(Path("d"))
    stash.dump_many({"a": 1, "b": 2})
    assert sorted(path.name for path in Path("d").iterdir()) == ["a.dat", "b.dat"]
    Path("d/a.dat").unlink()
    assert dict(stash) == {"b": 2}
    assert "a" not in stash


def test_files_that_do_not_fit_the_pattern_are_none_of_the_stashs():
    """``DirectoryStash(path, pattern)``: several stashes may share a directory."""
    one, other = DirectoryStash(Path("d"), "one-{name}.dat"), DirectoryStash(Path("d"), "{name}.other")
    one.dump("a", 1)
    other.dump("b", 2)
    Path("d/readme.txt").write_text("foreign")
    assert dict(one) == {"a": 1}
    assert dict(other) == {"b": 2}
    one.clear()
    assert sorted(path.name for path in Path("d").iterdir()) == ["b.other", "readme.txt"]


def test_an_increment_stash_counts_its_keys_up():
    """``dump(value)`` takes the next key, ``load()`` gives the last value, keys that are no numbers are not listed."""
    stash = IncrementKeyDirectoryStash(Path("ids"), name="some-name")
    assert len(stash) == 0
    assert stash.load() is None
    stash.dump("no-number", "data")
    assert Path("ids/some-name-no-number.dat").exists()
    assert stash.get_last_key() == "0"
    assert len(stash) == 0
    stash.dump("new")
    assert stash.get_last_key() == "1"
    assert Path("ids/some-name-1.dat").exists()
    assert stash.load() == stash.load("1") == "new"

    stash = IncrementKeyDirectoryStash(Path("ids"), name="some-name")
    assert (stash.get_last_key(), stash.load()) == ("1", "new")
    stash.dump("newer")
    assert (len(stash), len(list(stash.values())), len(list(stash.keys()))) == (2, 2, 2)
    assert (stash.get_last_key(), stash.load()) == ("2", "newer")
    assert stash.get_last_key(True) == "3"
    assert IncrementKeyDirectoryStash(Path("more")).get_last_key() == "0"


def test_a_union_joins_stashes():
    """The first that has a key gives its value, and it is read only."""
    stash = UnionStash((Numbers(3), Numbers(3, 5)))
    assert len(stash) == 5
    assert list(stash) == [(number, number) for number in range(5)]
    assert list(stash.key_groups(3)) == [[0, 1, 2], [3, 4]]
    first = UnionStash((DictionaryStash({"a": 1}), DictionaryStash({"a": 2, "b": 3})))
    assert (first["a"], first["b"]) == (1, 3)
    first.dump("c", 1)
    assert "c" not in first


# The composite


class Item:
    """Has a dictionary that is split."""

    def __init__(self, data):
        self.name = "item"
        self.agg = data


class Composite(DirectoryCompositeStash):
    """Splits that dictionary; written as the seed's users write such a stash."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, attribute_name="agg", **kwargs)


GROUPS = ({"apple", "orange"}, {"dog", "cat"})
DATA = {"apple": 1, "orange": 2, "dog": "rover", "cat": "fuzzy"}


def test_a_composite_says_how_it_splits():
    """The names that code written for the seed touches."""
    stash = Composite(Path("c"), groups=GROUPS)
    assert stash.path == Path("c") / Composite.INSTANCE_DIRECTORY_NAME
    assert stash._stash_by_attribute.keys() == DATA.keys()
    assert {part.group_name for part in stash._stash_by_attribute.values()} == {"apple-orange", "cat-dog"}
    assert stash._stash_by_group.keys() == {"apple-orange", "cat-dog"}
    assert dict(stash._to_composite(DATA)[1]) == {
        "apple-orange": {"apple": 1, "orange": 2},
        "cat-dog": {"dog": "rover", "cat": "fuzzy"},
    }
    assert not Path("c").exists()


def test_a_composite_lies_in_directories_by_group():
    """The rest of the object in ``inst``, each group in ``comp``."""
    assert (Composite.INSTANCE_DIRECTORY_NAME, Composite.COMPOSITE_DIRECTORY_NAME) == ("inst", "comp")
    stash = Composite(Path("c"), GROUPS)
    item = Item(dict(DATA))
    stash.dump("1", item)
    files = {str(path) for path in Path("c").rglob("*.dat")}
    assert files == {"c/inst/1.dat", "c/comp/apple-orange/1.dat", "c/comp/cat-dog/1.dat"}
    assert item.agg == DATA
    assert list(stash.keys()) == ["1"]
    assert stash.load("1") is not item
    assert (stash["1"].name, stash["1"].agg) == ("item", DATA)


@pytest.mark.parametrize("order", [list(DATA), list(reversed(DATA)), ["dog", "apple", "cat", "orange"]])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_composite_keeps_the_dictionary_as_it_was(order, kind):
    """Its type and its order are kept."""
    stash = Composite(Path("c"), GROUPS)
    data = kind((key, DATA[key]) for key in order)
    stash.dump("1", Item(data))
    found = stash.load("1").agg
    assert found == data
    assert type(found) is kind
    assert list(found) == order


def test_a_composite_misses_a_part():
    """A group whose file is gone is an error, unless it is not wanted."""
    Composite(Path("c"), GROUPS).dump("1", Item(dict(DATA)))
    Path("c/comp/cat-dog/1.dat").unlink()
    with pytest.raises(PersistableError, match="cat-dog"):
        Composite(Path("c"), GROUPS).load("1")
    assert Composite(Path("c"), GROUPS, load_keys={"apple"}).load("1").agg == {"apple": 1}


def test_a_composite_refuses_data_that_does_not_fit_its_groups():
    """MissingDataKeysError names the keys; groups with a key in common are refused."""
    stash = Composite(Path("c"), GROUPS)
    for data, keys in (
        ({key: DATA[key] for key in ("apple", "orange", "cat")}, {"dog"}),
        ({**DATA, "bird": 1}, {"bird"}),
        ({"apple": 1, "orange": 2}, {"dog", "cat"}),
    ):
        with pytest.raises(MissingDataKeysError) as caught:
            stash.dump("1", Item(data))
        assert caught.value.keys == keys
    assert list(stash.keys()) == []
    with pytest.raises(PersistableError, match="cat"):
        Composite(Path("c"), ({"dog", "cat"}, {"cat"}))


# Shelves


def shelf_file(name):
    """Return the file in which a shelf of that name lies."""
    extension = ShelveStash.get_extension()
    return Path(name if extension is None else f"{name}.{extension}")


def test_a_shelf_is_made_by_the_first_load_and_removed_by_clear():
    """Also a read makes the database; with the file goes everything."""
    file = shelf_file("shelf")
    stash = ShelveStash(Path("shelf"))
    assert stash.real_path == file
    assert not file.exists()
    assert stash.load("a") is None
    assert file.exists()
    stash.dump("a", "value")
    assert stash.load("a") == "value"
    stash.delete("a")
    assert not stash.exists("a")
    stash.clear()
    assert not file.exists()


def test_the_shelve_scope():
    """``with shelve(path)`` opens a shelf and closes it."""
    file = shelf_file("scope")
    with shelve(Path("scope")) as stash:
        assert not stash.exists("cool")
        assert stash.is_open
    assert not stash.is_open
    assert file.exists()
    with shelve(Path("scope")) as stash:
        stash.dump("cool", [1, 2])
        stash.load("cool").append(3)
    with shelve(Path("scope")) as stash:
        assert stash.load("cool") == [1, 2, 3]


# Archives


@pytest.fixture
def archive():
    """Make an archive with directories in it."""
    with zipfile.ZipFile("x.zip", "w") as out:
        out.writestr("top/", "")
        for name in ("top/one/a.txt", "top/one/b.txt", "top/two/a.txt"):
            out.writestr(name, f"text of {name} \u00e9")
    return "x.zip"


def test_an_archive_shows_its_files(archive):
    """File entries only; bytes, or str if an encoding is given; the path may be a str."""
    with ZipStash(archive) as stash:
        assert list(stash.keys()) == ["top/one/a.txt", "top/one/b.txt", "top/two/a.txt"]
        assert stash["top/one/a.txt"] == "text of top/one/a.txt \u00e9".encode()
        assert stash.exists("top/two/a.txt")
        assert not stash.exists("a.txt")
        assert not stash.exists("top/")
        assert stash.load("a.txt") is None
        stash.dump("new", b"")
        assert len(stash) == 3
    with ZipStash(Path(archive), encoding="utf-8") as stash:
        text = "text of top/two/a.txt \u00e9"
        assert stash.load("top/two/a.txt") == stash.get("top/two/a.txt") == stash["top/two/a.txt"] == text


def test_an_archive_can_be_seen_from_a_root(archive):
    """Only what is below, named from there."""
    with ZipStash(archive, root="top/one", encoding="utf-8") as stash:
        assert sorted(stash.keys()) == ["a.txt", "b.txt"]
        assert stash.exists("a.txt")
        assert not stash.exists("top/two/a.txt")
        assert stash["b.txt"] == "text of top/one/b.txt \u00e9"


@pytest.mark.parametrize("root", ["/top", "top/", "/", ""])
def test_a_root_neither_starts_nor_ends_with_a_slash(archive, root):
    """It is refused with the seed's words."""
    with pytest.raises(PersistableError, match=r"^Roots can not start"):
        ZipStash(archive, root=root)


# Failures


def failure(explicitly):
    """Return the failure of an exception that is being handled."""
    try:
        raise PersistableError("Test error")
    except PersistableError as err:
        return Failure(err) if explicitly else Failure()


@pytest.mark.parametrize("explicitly", [False, True])
def test_a_failure_tells_what_happened(explicitly):
    """Its text is the exception's, and it has the traceback."""
    one = failure(explicitly)
    assert str(one) == "Test error"
    assert repr(one).endswith("Error: Test error")
    assert one.traceback_str.startswith("Traceback (most recent call last):\n")
    assert "in failure" in one.traceback_str
    assert one.traceback_str.rstrip().endswith("Error: Test error")
    assert isinstance(one.exception, PersistableError)


def test_a_failure_can_be_raised_again():
    """With its traceback, as often as one likes."""
    one = failure(False)
    for _ in range(2):
        with pytest.raises(PersistableError, match="^Test error") as caught:
            one.rethrow()
        assert "in failure" in "".join(traceback.format_exception(caught.value))
    with pytest.raises(PersistableError, match="^Test error"):
        again(one).rethrow()


def test_a_failure_travels_as_text():
    """It says the same after pickling, also if the thrower or the exception can't be pickled."""
    one = failure(False)
    twin = again(one)
    assert (str(twin), repr(twin), twin.traceback_str) == (str(one), repr(one), one.traceback_str)
    written = [io.StringIO(), io.StringIO()]
    one.write(writer=written[0])
    twin.write(writer=written[1])
    assert written[0].getvalue() == written[1].getvalue()
    assert one.traceback_str in written[0].getvalue()

    stuck = Failure(ValueError(threading.Lock()), thrower=threading.Lock(), message="stuck")
    twin = again(stuck)
    assert str(twin) == "stuck"
    assert twin.traceback_str == stuck.traceback_str
    with pytest.raises(PersistableError):
        twin.rethrow()


def test_a_failure_filter_hides_failures():
    """``FailureFilterStash(delegate, key_path)`` keeps the good keys in a file."""
    store = DictionaryStash({"a": 1, "b": failure(True), "c": 3})
    stash = FailureFilterStash(store, Path("deep/good.dat"))
    assert list(stash) == [("a", 1), ("c", 3)]
    assert (len(stash), "b" in stash, stash.load("b"), stash.get("b", 0)) == (2, False, None, 0)
    assert Path("deep/good.dat").is_file()
    store.dump("d", 4)
    assert len(FailureFilterStash(store, Path("deep/good.dat"))) == 2
    stash.dump("e", 5)
    assert sorted(stash.keys()) == ["a", "c", "d", "e"]


# Many processes


class InProcess(ReadOnlyStash):
    """Says which process loaded an item; fails for some."""

    def __init__(self, n, fails=()):
        super().__init__()
        self.n, self.fails = n, set(fails)

    def load(self, name):
        if name in self.fails:
            raise ValueError(f"Key '{name}' is in fail list")
        with open("log", "a") as log:
            log.write(f"{name}\n")
        return {"name": name, "pid": os.getpid()}

    def keys(self):
        return map(str, range(self.n))


def logged():
    """Return what was loaded since the last time."""
    names = Path("log").read_text().split() if Path("log").exists() else []
    Path("log").unlink(missing_ok=True)
    return sorted(names)


class ByChunk(MultiProcessStash):
    """Makes one value of each chunk."""

    n = 9

    def _create_data(self):
        self.created_in = os.getpid()
        return range(self.n)

    def _process(self, chunk):
        yield str(min(chunk)), {"pid": os.getpid(), "items": chunk}


def test_chunks_are_processed_by_other_processes():
    """``_create_data`` runs here, ``_process`` there, on lists of at most ``chunk_size``."""
    stash = ByChunk(DirectoryStash(Path("d")), chunk_size=4, workers=2)
    assert not Path("d").exists()
    assert len(stash) == 3
    assert stash.created_in == os.getpid()
    assert set(stash.keys()) == {"0", "4", "8"}
    values = list(stash.values())
    assert sorted(itertools.chain.from_iterable(value["items"] for value in values)) == list(range(9))
    assert sorted(len(value["items"]) for value in values) == [1, 4, 4]
    assert all(type(value["items"]) is list for value in values)
    assert os.getpid() not in {value["pid"] for value in values}


def test_chunk_size_0_is_an_even_split():
    """As many chunks as workers; one worker is this process."""
    stash = ByChunk(DictionaryStash(), workers=2)
    assert sorted(len(value["items"]) for value in stash.values()) == [4, 5]
    stash = ByChunk(DictionaryStash(), workers=1)
    assert [(value["pid"], value["items"]) for value in stash.values()] == [(os.getpid(), list(range(9)))]


def test_data_that_is_there_is_not_made_again():
    """A delegate that has data is not filled; of a filled one nothing is made twice."""
    stash = ByChunk(DictionaryStash({"there": 1}), workers=2)
    assert dict(stash) == {"there": 1}
    delegate = DirectoryStash(Path("d"))
    first = dict(ByChunk(delegate, chunk_size=3, workers=2))
    assert dict(ByChunk(delegate, chunk_size=3, workers=2)) == first


def test_the_default_stash_works_in_this_process():
    """MultiProcessDefaultStash is for trying things out, and may be told otherwise."""

    class Here(MultiProcessDefaultStash):
        def _create_data(self):
            return range(3)

        def _process(self, chunk):
            return ((str(number), os.getpid()) for number in chunk)

    assert set(Here(DictionaryStash()).values()) == {os.getpid()}


@pytest.mark.parametrize("kind", [MultiProcessFactoryStash, MultiProcessRobustStash])
def test_many_processes_load_what_the_factory_lists(kind):
    """The factory's keys are split, its ``load`` runs in the workers, and the directory has the values only."""
    stash = kind(DirectoryStash(Path("d")), InProcess(10), chunk_size=5, workers=2)
    assert isinstance(stash.factory, InProcess)
    assert not Path("d").exists()
    assert len(stash) == 10
    assert len(list(Path("d").iterdir())) == 10
    assert {name: value["name"] for name, value in stash} == {str(number): str(number) for number in range(10)}
    assert os.getpid() not in {value["pid"] for value in stash.values()}
    assert logged() == sorted(str(number) for number in range(10))


def unlinked():
    """Fill a directory, unlink three values, and return how a new stash is made over it."""

    def make():
        return MultiProcessRobustStash(DirectoryStash(Path("d")), InProcess(10), chunk_size=2, workers=2)

    stash = make()
    stash.prime()
    logged()
    for name in "356":
        Path(f"d/{name}.dat").unlink()
    assert len(stash.delegate) == len(list(Path("d").iterdir())) == 7
    return stash, make


@pytest.mark.parametrize(
    "use",
    [
        lambda stash: len(stash),
        lambda stash: stash.load("5")["name"] == "5",
        lambda stash: "5" in stash,
        lambda stash: stash.invalidate(),
        lambda stash: stash.prime(),
    ],
    ids="len load exists invalidate prime".split(),
)
def test_only_what_is_missing_is_made(use):
    """Files that are gone are made again by the next run, and no others."""
    _, make = unlinked()
    stash = make()
    use(stash)
    assert len(stash) == len(list(Path("d").iterdir())) == 10
    assert logged() == ["3", "5", "6"]


def test_invalidate_looks_again():
    """A stash that has been filled looks again only when it is told to, or always if it is told so at first."""
    stash, _ = unlinked()
    assert len(stash) == 7
    stash.invalidate()
    assert len(stash) == 10
    Path("d/1.dat").unlink()
    always = MultiProcessFactoryStash(DirectoryStash(Path("d")), InProcess(10), "always")
    assert len(always) == 10
    Path("d/1.dat").unlink()
    assert len(always) == 10


def test_failed_items_are_failures():
    """MultiProcessRobustStash keeps a Failure for each, and lists them."""
    stash = MultiProcessRobustStash(DirectoryStash(Path("d")), InProcess(10, "35"), chunk_size=2, workers=2)
    assert len(stash) == 10
    for name in "35":
        assert isinstance(stash[name], Failure)
        assert str(stash[name]) == f"Key '{name}' is in fail list"
        with pytest.raises(ValueError, match="in fail list"):
            stash[name].rethrow()
    assert {name for name, _ in stash.iterfails()} == {"3", "5"}
    assert all(isinstance(value, Failure) for _, value in stash.iterfails())


def test_failures_can_be_processed_again():
    """``reprocess_failures`` returns their keys, and afterwards there are none."""
    stash = MultiProcessRobustStash(DirectoryStash(Path("d")), InProcess(10, "35"), chunk_size=2, workers=2)
    assert len(list(stash.iterfails())) == 2
    logged()
    stash.factory.fails.clear()
    assert stash.reprocess_failures() == {"3", "5"}
    assert list(stash.iterfails()) == []
    assert stash["3"]["name"] == "3"
    assert logged() == ["3", "5"]


def test_without_protection_a_failed_item_is_an_error():
    """``protect_work=False`` raises what the factory raised."""
    delegate = DirectoryStash(Path("d"))
    stash = MultiProcessRobustStash(delegate, InProcess(10, "35"), chunk_size=2, workers=2, protect_work=False)
    with pytest.raises(ValueError, match=r"^Key '[35]' is in fail list"):
        stash.prime()


# Names and positions


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (
            PersistedWork,
            "path owner cache_global transient initial_value mkdir deallocate_recursive recover_empty",
        ),
        (
            persisted,
            "name path cache_global transient allocation_track mkdir deallocate_recursive recover_empty",
        ),
        (FileTextUtil.normalize_text, "name replace_char lower regex remove_non_printable"),
        (FileTextUtil.normalize_path, "path replace_char lower regex remove_non_printable"),
        (FileTextUtil.byte_format, "num"),
        (FileTextUtil.unique_tracked_name, "prefix include_user include_time extension"),
        (resource, "create_method_name destroy_method_name"),
        (dealloc, "inst track include_stack"),
        (chunks, "iterable size enum"),
        (DelegateStash, "delegate"),
        (ReadOnlyDelegateStash, "delegate"),
        (PreemptiveStash, "delegate"),
        (OneShotFactoryStash, "delegate"),
        (KeyLimitStash, "delegate limit"),
        (KeySubsetStash, "delegate key_subset dynamic_subset"),
        (ProtectiveStash, "delegate log_errors"),
        (FactoryStash, "delegate factory enable_preemptive dump_factory_nones force_clear_factory"),
        (CacheFactoryStash, "delegate factory enable_preemptive dump_factory_nones force_clear_factory"),
        (SortedStash, "delegate sort_function"),
        (LRUCacheStash, "maxsize"),
        (CacheStash, "delegate cache_stash"),
        (DirectoryStash, "path pattern"),
        (IncrementKeyDirectoryStash, "path"),
        (UnionStash, "stashes"),
        (DirectoryCompositeStash, "path groups attribute_name load_keys"),
        (ShelveStash, "path writeback auto_close"),
        (ZipStash, "path root encoding"),
        (FailureFilterStash, "delegate key_path"),
        (MultiProcessStash, "delegate"),
        (MultiProcessFactoryStash, "delegate factory enable_preemptive"),
        (MultiProcessRobustStash, "delegate factory enable_preemptive"),
        (Stash.load, "self name"),
        (Stash.dump, "self name inst"),
        (Stash.delete, "self name"),
        (Stash.exists, "self name"),
        (Stash.get, "self name default"),
        (Stash.key_groups, "self n"),
        (IncrementKeyDirectoryStash.get_last_key, "self inc"),
        (Failure, "exception thrower"),
    ],
    ids=lambda what: getattr(what, "__qualname__", ""),
)
def test_parameters_have_the_seeds_names_and_places(what, names):
    """Code written for the seed gives them by name and by position."""
    parameters = inspect.signature(what).parameters.values()
    by_position = [param.name for param in parameters if param.kind is param.POSITIONAL_OR_KEYWORD]
    assert by_position[: len(names.split())] == names.split()


def test_calls_as_the_seeds_users_write_them():
    """Positional arguments of section 6b."""
    store = DictionaryStash()
    assert FactoryStash(store, Numbers(3)).delegate is store
    assert ProtectiveStash(store, True).log_errors is True
    assert len(UnionStash((Numbers(2), Numbers(2, 4))).stashes) == 2
    assert CacheStash(delegate=store).cache_stash.data == {}

    class Holder:
        @persisted("_v", Path("v.dat"), False, True, False, True, True, True)
        def v(self):
            return 1

    holder = Holder()
    assert holder.v() == 1
    assert Path("v.dat").is_file()
    work = holder._v
    assert (work.cache_global, work.transient, work.deallocate_recursive) == (False, True, True)
    assert work.path == Path("v.dat").absolute()


def test_names_that_other_packages_import():
    """What the seed's own sister packages import is there, and the base error is one of ours."""
    for name in (
        "persisted",
        "PersistedWork",
        "PersistableContainer",
        "Deallocatable",
        "Primeable",
        "PersistableError",
    ):
        assert hasattr(zpersist, name)
    assert issubclass(PersistableError, Exception)
    assert issubclass(MissingDataKeysError, PersistableError)
    assert DelegateDefaults.CLASS_CHECK is True
    assert not any(name.startswith("_") for name in zpersist.__all__)
    assert sys.modules["zpersist"] is zpersist


def test_failure_takes_a_message_by_name():
    """``Failure(exception, thrower=…, message=…)``."""
    one = Failure(ValueError("x"), thrower="me", message="told")
    assert (str(one), repr(one), one.thrower, one.message) == ("told", "ValueError: told", "me", "told")
