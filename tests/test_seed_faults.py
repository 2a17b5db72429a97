"""The demonstrated faults B1 to B31 of zensols.persist, which zpersist succeeds: here none of them is possible.

The first line of each test says what the seed did.  Kills are real kills, races are started together.
"""

from __future__ import annotations

import asyncio
import builtins
import copy
import dbm
import gc
import importlib
import io
import json
import logging
import os
import pickle
import resource as limits
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

import zpersist
from zpersist import (
    CacheFactoryStash,
    CacheStash,
    CodecMismatchError,
    CorruptValueError,
    Deallocatable,
    DelegateStash,
    DictionaryStash,
    DillCodec,
    DirectoryCompositeStash,
    DirectoryStash,
    EncodeError,
    FactoryStash,
    Failure,
    FailureFilterStash,
    FormatVersionError,
    IncrementKeyDirectoryStash,
    InvalidArgumentError,
    InvalidKeyError,
    KeyLimitStash,
    KeySubsetStash,
    LRUCacheStash,
    MultiProcessDefaultStash,
    MultiProcessFactoryStash,
    MultiProcessRobustStash,
    MultiProcessStash,
    NoopStash,
    OneShotFactoryStash,
    PersistableContainer,
    PersistedWork,
    PreemptiveStash,
    ProtectiveStash,
    ReadOnlyDelegateStash,
    ReadOnlyStash,
    ShelveStash,
    SortedStash,
    SqliteStash,
    Stash,
    StorageError,
    UnionStash,
    WorkerDiedError,
    WorkNameError,
    ZipStash,
    dealloc,
    persisted,
    persisted_property,
    shelve,
)

UNPICKLABLE = lambda: 0  # noqa: E731 - no pickle can name it
BIG = [*range(50_000)]


# Processes of our own: each runs one function of this module and is spoken to by lines.


class Child:
    """A process that runs a function of this module."""

    def __init__(self, role, *args, cwd=None, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import {__name__} as here; here.{role.__name__}(*{args!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        )

    def hear(self):
        """Wait for the child's next line."""
        line = self.process.stdout.readline()
        assert line, f"the child said nothing more and ended with {self.process.wait()}"
        return line.rstrip("\n")

    def tell(self, line="go"):
        """Say a line to the child."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def rest(self):
        """Wait for the end of the child, and return what it still said."""
        said = self.process.stdout.read().splitlines()
        self.process.wait()
        return said

    def kill(self):
        """Kill the child as the system does when memory runs out."""
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL

    def end(self):
        """Leave nothing of the child behind."""
        if self.process.poll() is None:
            self.process.kill()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def child():
    """Start processes, and end them after the test."""
    with ExitStack() as ends:

        def start(role, *args, **options):
            one = Child(role, *args, **options)
            ends.callback(one.end)
            return one

        yield start


def say(what):
    """Say a line to the parent (in a child)."""
    print(what, flush=True)


def hear():
    """Wait for a line of the parent (in a child)."""
    return sys.stdin.readline().rstrip("\n")


def together(children):
    """Let children that are ready go on at once."""
    for one in children:
        assert one.hear() == "ready"
    for one in children:
        one.tell()


def note(path, line):
    """Add a line to a file, as one step among processes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def notes(path):
    """Return the lines that were noted."""
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def run_threads(count, function):
    """Run a function in threads that start at once, and return what they returned."""
    barrier, results = threading.Barrier(count), []

    def run(number):
        barrier.wait()
        results.append(function(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Owner:
    """Has a work in a file, made by a function that the test gives."""

    def __init__(self, path, body, **options):
        self.body = body
        self._v = PersistedWork(path, self, **options)

    @property
    @persisted("_v")
    def v(self):
        return self.body()


def refuse():
    """Stand for a body that must not be run."""
    raise AssertionError("it is computed again")


def fail():
    """Stand for a body that fails."""
    raise ValueError("no")


def die():
    """End this process at once, as a kill does."""
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly:
    """Kills the process that pickles it."""

    def __reduce__(self):
        die()


def temporaries(folder):
    """Return the temporary files in a directory."""
    return [path.name for path in Path(folder).iterdir() if path.name.endswith(".tmp")]


# B1


def test_b01_a_failed_body_leaves_no_file(tmp_path):
    """A body that raised left an empty file, and from then on every instance got 'Can not read'."""
    path = tmp_path / "v.dat"
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            Owner(path, fail).v
        assert not path.exists()
    assert Owner(path, lambda: 10).v == 10
    assert Owner(path, refuse).v == 10


def test_b01_a_failed_body_of_a_decorated_method_leaves_no_file(tmp_path):
    """The same with ``persisted(name, path)``: the first ValueError made the method unusable for good."""
    broken = True

    class Holder:
        @persisted("_v", tmp_path / "v.dat")
        def v(self):
            return fail() if broken else 10

    with pytest.raises(ValueError, match="no"):
        Holder().v()
    assert list(tmp_path.glob("v.dat")) == []
    broken = False
    assert Holder().v() == 10


def role_die_in_body(path):
    Owner(Path(path), die).v


def test_b01_a_kill_in_the_body_leaves_no_file(tmp_path, child):
    """A process killed in the body left an empty file as well."""
    path = tmp_path / "v.dat"
    killed = child(role_die_in_body, str(path))
    assert killed.process.wait() == -signal.SIGKILL
    assert not path.exists()
    assert Owner(path, lambda: 10).v == 10


# B2


def test_b02_an_unpicklable_result_leaves_no_file(tmp_path):
    """A result that could not be pickled left a truncated file, for which recover_empty did not help."""
    path = tmp_path / "v.dat"
    with pytest.raises(EncodeError, match="DillCodec"):
        Owner(path, lambda: [*BIG, UNPICKLABLE]).v
    assert not path.exists()
    assert temporaries(tmp_path) == []
    assert Owner(path, lambda: 10).v == 10


def test_b02_an_unpicklable_set_keeps_the_old_result(tmp_path):
    """Writing over a good file truncated it first, so that a failure left neither the old nor the new."""
    path = tmp_path / "v.dat"
    owner = Owner(path, lambda: 10)
    assert owner.v == 10
    with pytest.raises(EncodeError):
        owner._v.set([*BIG, UNPICKLABLE])
    assert owner.v == 10
    assert Owner(path, refuse).v == 10


def role_die_in_pickling(path):
    Owner(Path(path), lambda: [*BIG, Deadly()]).v


def role_die_in_writing(path, size, over):
    # The kernel kills a process that writes past this limit: in the middle of the write.
    limits.setrlimit(limits.RLIMIT_CORE, (0, 0))
    limits.setrlimit(limits.RLIMIT_FSIZE, (size // 2, size // 2))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    owner = Owner(Path(path), lambda: bytes(size))
    if over:
        owner._v.set(bytes(size))
    owner.v


def test_b02_a_kill_while_pickling_leaves_no_file(tmp_path, child):
    """A process killed in pickle.dump left a truncated file: 'Can not read', or pickle's own error."""
    path = tmp_path / "v.dat"
    killed = child(role_die_in_pickling, str(path))
    assert killed.process.wait() == -signal.SIGKILL
    assert not path.exists()
    assert Owner(path, lambda: 10).v == 10


@pytest.mark.parametrize("over", [False, True])
def test_b02_a_kill_in_the_middle_of_the_write_harms_nothing(tmp_path, child, over):
    """A process killed while it wrote left a truncated file, also in place of a good one."""
    path = tmp_path / "v.dat"
    if over:
        Owner(path, lambda: 9).v
    killed = child(role_die_in_writing, str(path), 1 << 20, over)
    assert killed.process.wait() == -signal.SIGXFSZ
    assert path.exists() == over
    assert Owner(path, lambda: 10).v == (9 if over else 10)


@pytest.mark.parametrize("kind", ["work", "stash"])
def test_b02_what_a_killed_writer_left_is_swept(tmp_path, child, kind):
    """Half a file of a killed writer stayed for ever."""
    folder = tmp_path / "store"
    folder.mkdir()
    killed = child(role_die_in_writing, str(folder / "v.dat"), 1 << 20, False)
    assert killed.process.wait() == -signal.SIGXFSZ
    if kind == "work":
        assert Owner(folder / "v.dat", lambda: 10).v == 10
    else:
        stash = DirectoryStash(folder)
        stash.dump("v", 10)
        assert list(stash) == [("v", 10)]
        stash.clear()
    assert temporaries(folder) == []


def role_write_past_the_limit(path):
    limits.setrlimit(limits.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    owner = Owner(Path(path), lambda: bytes(1 << 20))
    for write in (lambda: owner._v.set(bytes(1 << 20)), lambda: DirectoryStash(Path(path).parent).dump("v", BIG)):
        try:
            write()
        except StorageError as err:
            say(err.filename)
    say(owner.v)


def test_b02_a_write_that_the_disk_refuses_harms_nothing(tmp_path, child):
    """A full disk truncated the good file."""
    path = tmp_path / "v.dat"
    Owner(path, lambda: 9).v
    refused = child(role_write_past_the_limit, str(path))
    assert refused.rest() == [str(path), str(path), "9"]
    assert temporaries(tmp_path) == []
    assert Owner(path, refuse).v == 9


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "longer"])
def test_b02_damage_is_named_and_recover_empty_helps(tmp_path, damage):
    """recover_empty knew files of 0 bytes only; other damage gave pickle's own errors, or went unnoticed."""
    path = tmp_path / "v.dat"
    Owner(path, lambda: BIG).v
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "empty": b"",
            "cut": data[:middle],
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "longer": data + b"\n",
        }[damage]
    )
    with pytest.raises(CorruptValueError) as caught:
        Owner(path, refuse).v
    assert str(path) in str(caught.value)
    assert "recover_empty" in str(caught.value)
    assert Owner(path, lambda: 11, recover_empty=True).v == 11
    assert Owner(path, refuse).v == 11


# B3


@pytest.mark.parametrize("kind", ["directory", "increment", "sqlite", "shelve", "cache"])
def test_b03_a_value_that_can_not_be_pickled_leaves_the_old_one(tmp_path, kind):
    """DirectoryStash.dump of an unpicklable value destroyed the good one, and the key stayed listed."""
    stash = {
        "directory": lambda: DirectoryStash(tmp_path / "s"),
        "increment": lambda: IncrementKeyDirectoryStash(tmp_path / "s"),
        "sqlite": lambda: SqliteStash(tmp_path / "s.db"),
        "shelve": lambda: ShelveStash(tmp_path / "s"),
        "cache": lambda: CacheStash(DirectoryStash(tmp_path / "s")),
    }[kind]()
    with stash:
        stash.dump("1", "good")
        with pytest.raises(EncodeError):
            stash.dump("1", [*BIG, UNPICKLABLE])
        with pytest.raises(EncodeError):
            stash.dump("2", UNPICKLABLE)
        assert list(stash) == [("1", "good")]
        assert "2" not in stash


def test_b03_a_composite_keeps_the_old_object_whole(tmp_path):
    """The same for the parts of a composite: those before the unpicklable one were new, the others old."""
    stash = DirectoryCompositeStash(tmp_path, ({"a"}, {"b"}), "data")
    stash.dump("1", SimpleNamespace(data={"a": 1, "b": 2}))
    with pytest.raises(EncodeError):
        stash.dump("1", SimpleNamespace(data={"a": 10, "b": UNPICKLABLE}))
    assert stash.load("1").data == {"a": 1, "b": 2}


def test_b03_a_composite_keeps_nothing_of_a_first_dump_that_failed(tmp_path):
    """The parts written before the failure stayed."""
    stash = DirectoryCompositeStash(tmp_path, ({"a"}, {"b"}), "data")
    with pytest.raises(EncodeError):
        stash.dump("1", SimpleNamespace(data={"a": 10, "b": UNPICKLABLE}))
    assert stash.load("1") is None
    assert list(stash.keys()) == []
    assert not stash.exists("1")


# B4


def role_compute_once(path, log):
    def body():
        note(log, "computed")
        hear()
        return 10

    say("ready")
    hear()
    say("calling")
    say(Owner(Path(path), body).v)


def test_b04_processes_that_start_together_compute_once(tmp_path, child):
    """Of two processes with one file one computed, the other died with 'Can not read'."""
    log = str(tmp_path / "log")
    children = [child(role_compute_once, str(tmp_path / "v.dat"), log) for _ in range(4)]
    together(children)
    assert [one.hear() for one in children] == ["calling"] * 4
    for one in children:
        one.tell()
    assert [one.rest() for one in children] == [["10"]] * 4
    assert notes(log) == ["computed"]


def role_compute_slowly(path):
    def body():
        say("inside")
        hear()
        return os.getpid()

    say("calling")
    say(Owner(Path(path), body).v)


def test_b04_a_process_that_comes_later_waits_for_the_first(tmp_path, child):
    """A process that came while another one computed found the empty file and died."""
    first = child(role_compute_slowly, str(tmp_path / "v.dat"))
    assert [first.hear(), first.hear()] == ["calling", "inside"]
    second = child(role_compute_slowly, str(tmp_path / "v.dat"))
    assert second.hear() == "calling"
    first.tell()
    assert second.rest() == first.rest() == [str(first.process.pid)]


def test_b04_the_death_of_the_one_that_computes_lets_the_next_one_in(tmp_path, child):
    """A process killed while it computed left the file that all others then stumbled over."""
    first = child(role_compute_slowly, str(tmp_path / "v.dat"))
    assert [first.hear(), first.hear()] == ["calling", "inside"]
    second = child(role_compute_slowly, str(tmp_path / "v.dat"))
    assert second.hear() == "calling"
    first.kill()
    assert second.hear() == "inside"
    second.tell()
    assert second.rest() == [str(second.process.pid)]


@pytest.mark.parametrize("where", ["file", "memory", "stash", "class", "property"])
def test_b04_threads_compute_once(tmp_path, where):
    """Of 8 threads 4 got 'Can not read'; in memory the body ran 8 times and gave out 8 objects."""
    calling, runs = threading.Semaphore(0), []

    class Holder:
        def __init__(self):
            options = {"stash": {"stash": DirectoryStash(tmp_path / "s")}, "class": {"cache_global": True}}
            self._v = PersistedWork(tmp_path / "v.dat" if where == "file" else "v", self, **options.get(where, {}))

        def body(self):
            for _ in range(8):
                calling.acquire()
            runs.append(1)
            return [1, 2] if where in ("file", "stash") else object()

        v = persisted_property(name="_v")(body) if where == "property" else property(persisted("_v")(body))

    holder = Holder()

    def read(_):
        calling.release()
        return holder.v

    found = run_threads(8, read)
    assert len(runs) == 1
    assert len(found) == 8
    assert len({id(value) for value in found}) == 1


@pytest.mark.parametrize("where", ["file", "class"])
def test_b04_threads_with_an_owner_each_compute_once(tmp_path, where):
    """Threads with instances of their own over one file got in each other's way."""
    runs = []

    class Holder:
        def __init__(self):
            self._v = PersistedWork(tmp_path / "v.dat", self) if where == "file" else PersistedWork("v", self, True)

        @property
        @persisted("_v")
        def v(self):
            runs.append(1)
            return BIG

    assert run_threads(8, lambda _: Holder().v == BIG) == [True] * 8
    assert len(runs) == 1


def role_write_for_ever(path):
    stash = DirectoryStash(path)
    stash.dump("v", [0] * 5000)
    say("ready")
    number = 0
    while True:
        number += 1
        stash.dump("v", [number] * 5000)


def test_b04_a_reader_never_sees_half_a_value(tmp_path, child):
    """A reader of a DirectoryStash that was written to got 12 good and 3,838 torn values."""
    writer = child(role_write_for_ever, str(tmp_path / "s"))
    assert writer.hear() == "ready"
    stash = DirectoryStash(tmp_path / "s")
    seen = set()
    reads = 0
    while reads < 300 or len(seen) < 2:
        value = stash["v"]
        assert len(value) == 5000
        assert len(set(value)) == 1
        seen.add(value[0])
        reads += 1
    writer.kill()
    assert len(set(stash["v"])) == 1
    assert list(stash.keys()) == ["v"]


# B5


class Logged(ReadOnlyStash):
    """Notes which items it makes, and fails (or worse) at one of them, as long as there is no file ``repaired``."""

    def __init__(self, folder, count=20, bad=None, how="raise"):
        self.log = f"{folder}/log"
        self.repaired = f"{folder}/repaired"
        self.count, self.bad, self.how = count, bad, how

    def load(self, name):
        if name == self.bad and not os.path.exists(self.repaired):
            self.stumble(name)
        note(self.log, name)
        return int(name) ** 2

    def stumble(self, name):
        if self.how == "exit":
            os._exit(3)
        if self.how == "kill":
            die()
        if self.how == "kill parent":
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
        raise ValueError(f"no {name}")

    def exists(self, name):
        return name.isdecimal() and int(name) < self.count

    def keys(self):
        return map(str, range(self.count))


class Squares(MultiProcessStash):
    """Makes what a :class:`Logged` makes, by chunks."""

    source: Logged

    def _create_data(self):
        return list(self.source.keys())

    def _process(self, chunk):
        for name in chunk:
            yield name, self.source.load(name)


ALL = {str(number): number**2 for number in range(20)}


class LiveKeys(Stash):
    """A user's own stash: the methods that it takes and no more, and its keys are a live view."""

    def __init__(self):
        self.kept = {}

    def load(self, name):
        return self.kept.get(name)

    def dump(self, name, inst):
        self.kept[name] = inst

    def delete(self, name):
        return self.kept.pop(name, self) is not self

    def keys(self):
        return self.kept.keys()


DELEGATES = ["memory", "lru", "directory", "sqlite", "shelve", "wrapped", "own"]


@pytest.fixture
def delegate(request, tmp_path):
    """Return a stash of a kind to be filled."""
    stash = {
        "memory": DictionaryStash,
        "lru": lambda: LRUCacheStash(100),
        "directory": lambda: DirectoryStash(tmp_path / "s"),
        "sqlite": lambda: SqliteStash(tmp_path / "s.db"),
        "shelve": lambda: ShelveStash(tmp_path / "s"),
        "wrapped": lambda: CacheStash(DirectoryStash(tmp_path / "s")),
        "own": LiveKeys,
    }[request.param]()
    with stash:
        yield stash


def squares(delegate, source, **options):
    """Return a MultiProcessStash over a source."""
    stash = Squares(delegate, **{"chunk_size": 5, "workers": 2, **options})
    stash.source = source
    return stash


@pytest.mark.parametrize("delegate", DELEGATES, indirect=True)
def test_b05_the_next_run_makes_exactly_what_is_missing(tmp_path, delegate):
    """After a failed item 17 of 20 were taken for all: the next run said ``len`` 17 without any error."""
    factory = Logged(tmp_path, bad="7")
    # The second time the cause is not repaired: an error again, and never a length.
    for _ in range(2):
        with pytest.raises(ValueError, match="no 7"):
            len(MultiProcessFactoryStash(delegate, factory, chunk_size=5, workers=2))
        missing = ALL.keys() - set(delegate.keys())
        assert "7" in missing
    Path(factory.repaired).touch()
    before = len(notes(factory.log))
    stash = MultiProcessFactoryStash(delegate, factory, chunk_size=5, workers=2)
    assert len(stash) == 20
    assert stash["9"] == 81
    assert dict(stash) == ALL
    assert sorted(notes(factory.log)[before:]) == sorted(missing)
    # And then there is nothing left to do.
    assert len(MultiProcessFactoryStash(delegate, factory, workers=2)) == 20
    assert len(notes(factory.log)) == before + len(missing)


def test_b05_what_a_chunk_finished_before_the_error_is_kept(tmp_path):
    """The rest of the chunk in which an item failed was lost."""
    delegate = DirectoryStash(tmp_path / "s")
    with pytest.raises(ValueError, match="no 7"):
        len(MultiProcessFactoryStash(delegate, Logged(tmp_path, bad="7"), chunk_size=5, workers=1))
    assert dict(delegate) == {str(number): number**2 for number in range(7)}


@pytest.mark.parametrize("delegate", DELEGATES, indirect=True)
def test_b05_a_stash_of_chunks_is_not_complete_after_an_error(tmp_path, delegate):
    """A MultiProcessStash whose ``_process`` failed was taken for complete by the next run."""
    source = Logged(tmp_path, bad="7")
    first = squares(delegate, source)
    for stash in (first, first, squares(delegate, source)):
        with pytest.raises(ValueError, match="no 7"):
            len(stash)
    Path(source.repaired).touch()
    assert dict(squares(delegate, source)) == ALL
    before = len(notes(source.log))
    assert len(squares(delegate, source)) == 20
    assert len(notes(source.log)) == before


def role_fill(folder, kind, bad, how, workers):
    say("ready")
    hear()
    source = Logged(folder, bad=bad, how=how)
    delegate = DirectoryStash(f"{folder}/s")
    if kind == "factory":
        stash = MultiProcessFactoryStash(delegate, source, chunk_size=5, workers=workers)
    elif kind == "chunks":
        stash = squares(delegate, source, workers=workers)
    else:
        stash = OneShotFactoryStash(delegate, lambda: ((name, source.load(name)) for name in source.keys()))
    say(len(stash))


@pytest.mark.parametrize("kind", ["factory", "chunks", "oneshot"])
def test_b05_a_killed_run_is_not_complete(tmp_path, child, kind):
    """What a killed run had made until then was taken for all there is."""
    killed = child(role_fill, str(tmp_path), kind, "7", "kill", 1)
    together([killed])
    assert killed.process.wait() == -signal.SIGKILL
    missing = ALL.keys() - set(DirectoryStash(tmp_path / "s").keys())
    before = len(notes(tmp_path / "log"))
    again = child(role_fill, str(tmp_path), kind, None, "", 1)
    together([again])
    assert again.rest() == ["20"]
    assert dict(DirectoryStash(tmp_path / "s")) == ALL
    if kind == "factory":
        assert sorted(notes(tmp_path / "log")[before:]) == sorted(missing)
        assert missing < ALL.keys()


def test_b05_a_killed_parent_is_resumed_and_leaves_no_worker(tmp_path, child):
    """A parent that was killed left workers behind, and a partial result for the whole."""
    killed = child(role_fill, str(tmp_path), "factory", "7", "kill parent", 2)
    together([killed])
    # Also the workers have its output open: it ends when the last of them has ended.
    assert killed.process.stdout.read() == ""
    assert killed.process.wait() == -signal.SIGKILL
    missing = ALL.keys() - set(DirectoryStash(tmp_path / "s").keys())
    assert "7" in missing
    before = len(notes(tmp_path / "log"))
    again = child(role_fill, str(tmp_path), "factory", None, "", 2)
    together([again])
    assert again.rest() == ["20"]
    assert sorted(notes(tmp_path / "log")[before:]) == sorted(missing)


@pytest.mark.parametrize("kind", ["factory", "chunks", "oneshot"])
def test_b05_parents_that_start_together_share_the_work(tmp_path, child, kind):
    """Two parents started together computed 40 items for 20; one started later saw 8 of 20."""
    parents = [child(role_fill, str(tmp_path), kind, None, "", 2) for _ in range(2)]
    together(parents)
    assert [one.rest() for one in parents] == [["20"], ["20"]]
    assert sorted(notes(tmp_path / "log")) == sorted(ALL)


def role_fill_slowly(folder):
    def pairs():
        for number in range(20):
            if number == 8:
                say("at 8")
                hear()
            yield str(number), number**2

    say("calling")
    say(len(OneShotFactoryStash(DirectoryStash(f"{folder}/s"), pairs)))


def role_read_what_is_being_filled(folder):
    say("calling")
    say(len(OneShotFactoryStash(DirectoryStash(f"{folder}/s"), refuse)))


def test_b05_a_reader_that_comes_later_waits_for_all(tmp_path, child):
    """A second parent that came while the first one worked saw what was there: 8 of 20."""
    first = child(role_fill_slowly, str(tmp_path))
    assert [first.hear(), first.hear()] == ["calling", "at 8"]
    second = child(role_read_what_is_being_filled, str(tmp_path))
    assert second.hear() == "calling"
    first.tell()
    assert first.rest() == second.rest() == ["20"]


@pytest.mark.parametrize("delegate", DELEGATES, indirect=True)
def test_b05_a_oneshot_that_failed_is_run_again(delegate):
    """A worker that failed half-way left what was taken for everything."""

    def broken():
        yield "a", 1
        fail()

    first = OneShotFactoryStash(delegate, broken)
    for stash in (first, first, OneShotFactoryStash(delegate, broken)):
        with pytest.raises(ValueError, match="no"):
            len(stash)
    stash = OneShotFactoryStash(delegate, [("a", 1), ("b", 2)])
    assert dict(stash) == {"a": 1, "b": 2}
    assert dict(OneShotFactoryStash(delegate, refuse)) == {"a": 1, "b": 2}


def test_b05_a_factory_stash_is_as_long_after_the_first_access_as_before():
    """The length of a FactoryStash of 5 was 5 before the first access and 1 after it."""
    stash = FactoryStash(DictionaryStash(), DictionaryStash({name: name.upper() for name in "abcde"}))
    assert len(stash) == 5
    assert stash["c"] == "C"
    assert len(stash) == 5
    assert dict(stash) == {name: name.upper() for name in "abcde"}


# B6


@pytest.mark.parametrize("kind", [MultiProcessFactoryStash, MultiProcessRobustStash])
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_b06_a_worker_that_dies_is_an_error_and_no_hang(tmp_path, kind, how):
    """A worker that was killed, or ran out of memory, made the parent wait for ever."""
    delegate = DirectoryStash(tmp_path / "s")
    factory = Logged(tmp_path, bad="7", how=how)
    stash = kind(delegate, factory, chunk_size=5, workers=2)
    if kind is MultiProcessFactoryStash:
        with pytest.raises(WorkerDiedError, match="'7' killed its worker 3 times.*all others are done"):
            len(stash)
        assert ALL.keys() - set(delegate.keys()) == {"7"}
    else:
        assert isinstance(stash["7"].exception, WorkerDiedError)
        assert len(stash) == 20
    Path(factory.repaired).touch()
    before = len(notes(factory.log))
    assert dict(kind(delegate, factory, chunk_size=5, workers=2)) == ALL
    assert notes(factory.log)[before:] == ["7"]


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_b06_the_other_workers_end_in_silence(tmp_path, capfd, how):
    """A broken pool left the user with tracebacks of processes that had done nothing wrong."""
    factory = Logged(tmp_path, bad="7", how=how)
    for number in range(5):
        with pytest.raises((ValueError, WorkerDiedError)):
            len(MultiProcessFactoryStash(DirectoryStash(tmp_path / f"s{number}"), factory, workers=2))
    assert capfd.readouterr().err == ""


# B7


def test_b07_a_cache_gives_what_was_dumped_last():
    """After load 1, dump 2, a CacheStash loaded 1."""
    delegate = DictionaryStash({"a": 1})
    stash = CacheStash(delegate)
    assert stash.load("a") == 1
    stash.dump("a", 2)
    assert stash.load("a") == stash["a"] == stash.get("a") == 2
    assert delegate["a"] == 2
    stash["a"] = 3
    stash.dump_many({"b": 4})
    assert dict(stash) == {"a": 3, "b": 4}
    assert stash.update("a", lambda value: value + 1) == 4
    assert stash["a"] == delegate["a"] == 4


def test_b07_a_cache_does_not_remember_what_is_missing():
    """A miss was cached as None: a value dumped to the delegate later stayed None; 1,000 misses were 1,000 entries."""
    delegate = DictionaryStash()
    stash = CacheStash(delegate)
    for number in range(1000):
        assert stash.load(f"key{number}") is None
        assert stash.get(f"key{number}", 0) == 0
    assert len(stash.cache_stash) == 0
    delegate.dump("key1", 1)
    assert stash.load("key1") == 1


def test_b07_a_cache_can_be_bounded():
    """What a CacheStash kept had no bound."""
    stash = CacheStash(DictionaryStash({str(number): number for number in range(100)}), LRUCacheStash(3))
    assert sum(value for _, value in stash) == sum(range(100))
    assert all(stash[str(number)] == number for number in range(100))
    assert len(stash.cache_stash) == 3
    assert len(stash) == 100


def test_b07_a_failed_dump_leaves_no_stale_value(tmp_path):
    """Cache and delegate went apart when a dump failed."""
    stash = CacheStash(DirectoryStash(tmp_path))
    stash.dump("a", 1)
    with pytest.raises(EncodeError):
        stash.dump("a", UNPICKLABLE)
    assert stash["a"] == stash.delegate["a"] == 1


# B8


def test_b08_files_whose_names_differ_never_share_a_value(tmp_path):
    """Works on ``x-1.dat`` and ``x_1.dat`` were one: the second gave the first one's value, its file was never made."""

    class Holder:
        def __init__(self):
            self._a = PersistedWork(tmp_path / "x-1.dat", self)
            self._b = PersistedWork(tmp_path / "x_1.dat", self)
            self._c = PersistedWork(tmp_path / "X 1.dat", self, cache_global=True)
            self._d = PersistedWork(tmp_path / "x.1.dat", self, cache_global=True)

        @persisted("_a")
        def a(self):
            return "AAA"

        @persisted("_b")
        def b(self):
            return "BBB"

        @persisted("_c")
        def c(self):
            return "CCC"

        @persisted("_d")
        def d(self):
            return "DDD"

    for holder in (Holder(), Holder()):
        assert [holder.a(), holder.b(), holder.c(), holder.d()] == ["AAA", "BBB", "CCC", "DDD"]
    assert {path.name for path in tmp_path.glob("*.dat")} == {"x-1.dat", "x_1.dat", "X 1.dat", "x.1.dat"}


# B9


def plain_owner():
    """Return a class with a work."""

    class PlainOwner:
        def __init__(self, n):
            self.n = n
            self._v = PersistedWork("v", self)

        @property
        @persisted("_v")
        def v(self):
            return self.n

    return PlainOwner


def late_owner():
    """Return a class whose work is made when it is first needed."""

    class LateOwner:
        def __init__(self, n):
            self.n = n

        @property
        @persisted("_v")
        def v(self):
            return self.n

    return LateOwner


def contained_owner():
    """Return a container with a work."""

    class ContainedOwner(PersistableContainer):
        def __init__(self, n):
            super().__init__()
            self.n = n
            self._v = PersistedWork("v", self)

        @property
        @persisted("_v")
        def v(self):
            return self.n

    return ContainedOwner


def slotted_owner():
    """Return a class with a work in a slot."""

    class SlottedOwner:
        __slots__ = ("__weakref__", "_v", "n")

        def __init__(self, n):
            self.n = n
            self._v = PersistedWork("v", self)

        @property
        @persisted("_v")
        def v(self):
            return self.n

    return SlottedOwner


def property_owner():
    """Return a class with a persisted_property."""

    class PropertyOwner:
        def __init__(self, n):
            self.n = n
            self._v = PersistedWork("v", self)

        @persisted_property(name="_v")
        def v(self):
            return self.n

    return PropertyOwner


OWNERS = [plain_owner, contained_owner, slotted_owner, property_owner]


@pytest.mark.parametrize("kind", [*OWNERS, late_owner])
def test_b09_a_copy_has_a_work_of_its_own(kind):
    """copy.copy moved the work: clearing the copy's changed what the original gave."""
    a = kind()(9)
    assert a.v == 9
    b = copy.copy(a)
    assert a._v is not b._v
    assert a._v.owner is a
    assert b._v.owner is b
    b._v.clear()
    b.n = 18
    assert (a.v, b.v) == (9, 18)
    a._v.clear()
    a.n = 1
    assert (a.v, b.v) == (1, 18)


@pytest.mark.parametrize("kind", OWNERS)
def test_b09_a_copy_made_before_the_first_use_has_a_work_of_its_own(kind):
    """The copy shared the work, whichever was used first."""
    a = kind()(9)
    b = copy.copy(a)
    b.n = 18
    b._v.set(5)
    assert (a.v, b.v) == (9, 5)
    b._v.clear()
    assert (a.v, b.v) == (9, 18)


@pytest.mark.parametrize("kind", [*OWNERS, late_owner])
def test_b09_a_deep_copy_has_a_work_of_its_own(kind):
    """A deep copy of an owner lost the owner of its work."""
    a = kind()(9)
    assert a.v == 9
    b = copy.deepcopy(a)
    assert b.v == 9
    b._v.set(5)
    assert (a.v, b.v) == (9, 5)


# B10


def namesake(value):
    """Return a class of one name, whose instances all give one value."""

    class Namesake:
        runs = 0

        @property
        @persisted("_g", cache_global=True)
        def g(self):
            type(self).runs += 1
            return value

    return Namesake


class Weighty:
    """Something that can be seen to die."""


def test_b10_classes_of_one_name_share_nothing():
    """Two classes with the same name in a module shared the result: 'from A', 'from A'."""
    first, second = namesake("from A"), namesake("from B")
    assert (first().g, second().g, first().g) == ("from A", "from B", "from A")
    assert (first.runs, second.runs) == (1, 1)


def test_b10_what_is_set_is_seen_by_all_instances():
    """``p._g.set("new")`` left the other instances at the original."""
    kind = namesake("original")
    p, q = kind(), kind()
    assert (p.g, q.g) == ("original", "original")
    p._g.set("new")
    assert (p.g, q.g, kind().g) == ("new", "new", "new")
    q._g.clear()
    assert (p.g, q.g) == ("original", "original")
    assert kind.runs == 2


def test_b10_the_result_dies_with_its_class_or_by_clear_global():
    """Nothing that was kept globally was ever freed."""
    kind = namesake(None)
    holder = kind()
    assert holder.g is None
    holder._g.set(Weighty())
    kept = weakref.ref(holder.g)
    gc.collect()
    assert kept() is not None
    holder._g.clear_global()
    gc.collect()
    assert kept() is None

    holder._g.set(Weighty())
    kept = weakref.ref(holder.g)
    del holder, kind
    gc.collect()
    assert kept() is None


# B11


def test_b11_none_is_kept_under_the_key_that_is_given(tmp_path):
    """``dump("5", None)`` stored ``{"1": "5"}``."""
    stash = IncrementKeyDirectoryStash(tmp_path, name="run")
    stash.dump("5", None)
    assert dict(stash) == {"5": None}
    stash.dump(None)
    assert dict(stash) == {"5": None, "6": None}
    assert stash.get_last_key() == "6"


def test_b11_writers_never_overwrite_each_other(tmp_path):
    """Two writers used the same number, and the first one's value was lost."""
    one, other = IncrementKeyDirectoryStash(tmp_path), IncrementKeyDirectoryStash(tmp_path)
    for number in range(3):
        one.dump(f"A{number}")
        other.dump(f"B{number}")
    assert dict(one) == dict(other) == {"1": "A0", "2": "B0", "3": "A1", "4": "B1", "5": "A2", "6": "B2"}
    assert one.load() == other.load() == "B2"


def role_count_up(path, name):
    stash = IncrementKeyDirectoryStash(path)
    say("ready")
    hear()
    for number in range(25):
        stash.dump(f"{name}{number}")


def test_b11_processes_that_write_together_lose_nothing(tmp_path, child):
    """The same among processes."""
    writers = [child(role_count_up, str(tmp_path), name) for name in "ABC"]
    together(writers)
    assert [one.rest() for one in writers] == [[], [], []]
    stash = IncrementKeyDirectoryStash(tmp_path)
    assert sorted(stash.keys(), key=int) == [str(number) for number in range(1, 76)]
    assert sorted(stash.values()) == sorted(f"{name}{number}" for name in "ABC" for number in range(25))


# B12


def test_b12_delete_of_a_composite_leaves_nothing(tmp_path):
    """``delete`` left the files of the groups."""
    stash = DirectoryCompositeStash(tmp_path, ({"a"}, {"b", "c"}), "data")
    stash.dump("1", SimpleNamespace(data={"a": 1, "b": 2, "c": 3}))
    assert len(list(tmp_path.rglob("*.dat"))) == 3
    assert stash.delete("1") is True
    assert list(tmp_path.rglob("*.dat")) == []
    assert stash.delete("1") is False


def test_b12_an_object_loaded_in_part_can_be_dumped_again(tmp_path):
    """Dumping an object that had been loaded with load_keys raised MissingDataKeysError."""
    groups = ({"a"}, {"b", "c"})
    whole = DirectoryCompositeStash(tmp_path, groups, "data")
    whole.dump("1", SimpleNamespace(name="x", data={"a": 1, "b": 2, "c": 3}))
    part = DirectoryCompositeStash(tmp_path, groups, "data", load_keys={"a"})
    inst = part.load("1")
    assert inst.data == {"a": 1}
    inst.name, inst.data["a"] = "y", 10
    part.dump("1", inst)
    again = whole.load("1")
    assert (again.name, again.data) == ("y", {"a": 10, "b": 2, "c": 3})


def test_b12_an_object_loaded_with_a_part_of_a_group_can_be_dumped_again(tmp_path):
    """The same where load_keys names only some keys of a group."""
    groups = ({"a"}, {"b", "c"})
    whole = DirectoryCompositeStash(tmp_path, groups, "data")
    whole.dump("1", SimpleNamespace(data={"a": 1, "b": 2, "c": 3}))
    part = DirectoryCompositeStash(tmp_path, groups, "data", load_keys={"b"})
    inst = part.load("1")
    assert inst.data == {"b": 2}
    inst.data["b"] = 20
    part.dump("1", inst)
    assert whole.load("1").data == {"a": 1, "b": 20, "c": 3}


# B13 to B15


def dbm_kinds():
    """Return the kinds of DBM that this Python has."""
    kinds = []
    for name in ("dbm.dumb", "dbm.ndbm", "dbm.gnu", "dbm.sqlite3"):
        try:
            kinds.append(importlib.import_module(name))
        except ImportError:
            continue
    return kinds


EVERY_DBM = pytest.mark.parametrize("kind", dbm_kinds(), ids=lambda kind: kind.__name__)


def shelf(path, kind, **options):
    """Return a stash on a database of a kind."""
    kind.open(str(path), "c").close()
    assert dbm.whichdb(str(path)) == kind.__name__
    return ShelveStash(path, **options)


def open_files():
    """Return how many files this process has open."""
    return len(os.listdir("/dev/fd"))


@EVERY_DBM
@pytest.mark.parametrize("auto_close", [True, False])
def test_b13_a_bad_value_or_key_does_not_poison_a_shelf(tmp_path, kind, auto_close):
    """One unpicklable value, or an int key, made every later call raise 'invalid operation on closed shelf'."""
    stash = shelf(tmp_path / "shelf", kind, auto_close=auto_close)
    stash.dump("a", 1)
    with pytest.raises(EncodeError):
        stash.dump("b", UNPICKLABLE)
    with pytest.raises(InvalidKeyError):
        stash.dump(5, 5)
    assert (stash.load("a"), list(stash.keys()), "b" in stash) == (1, ["a"], False)
    stash.dump("b", 2)
    stash.close()
    assert dict(ShelveStash(tmp_path / "shelf")) == {"a": 1, "b": 2}


@EVERY_DBM
def test_b13_a_value_that_became_unpicklable_harms_no_other(tmp_path, kind):
    """A loaded value that had been changed into an unpicklable one did the same at close(), which said nothing."""
    stash = shelf(tmp_path / "shelf", kind, auto_close=False)
    for name in "abc":
        stash.dump(name, [name])
    stash.load("a").append("more")
    stash.load("b").append(UNPICKLABLE)
    stash.load("c").append("more")
    with pytest.raises(EncodeError):
        stash.close()
    assert not stash.is_open
    assert dict(stash) == {"a": ["a", "more"], "b": ["b"], "c": ["c", "more"]}
    stash.close()


@EVERY_DBM
def test_b14_auto_close_closes_after_everything(tmp_path, kind):
    """``delete()`` left the database open, close() on a closed one opened it, is_open stayed true."""
    stash = shelf(tmp_path / "shelf", kind)
    before = open_files()
    for use in (
        lambda: stash.dump("a", 1),
        lambda: stash.load("a"),
        lambda: stash.exists("a"),
        lambda: list(stash.keys()),
        lambda: list(stash.items()),
        lambda: len(stash),
        lambda: bool(stash),
        lambda: stash.add("b", 1),
        lambda: stash.update("b", lambda value: value + 1),
        lambda: stash.delete("b"),
        lambda: stash.delete("none"),
        stash.close,
        stash.clear,
        stash.close,
    ):
        use()
        assert stash.is_open is False
        assert open_files() == before


def test_b14_a_shelf_that_stays_open_is_open_until_it_is_closed(tmp_path):
    """is_open told nothing."""
    before = open_files()
    stash = ShelveStash(tmp_path / "shelf", auto_close=False)
    assert not stash.is_open
    stash.close()
    assert list(tmp_path.iterdir()) == []
    stash.dump("a", 1)
    stash.delete("a")
    assert stash.is_open
    stash.close()
    assert not stash.is_open
    assert open_files() == before


@EVERY_DBM
def test_b15_clear_removes_the_whole_database(tmp_path, kind):
    """With dbm.dumb ``clear()`` removed one of three files: in 5 of 9 runs the keys were still there."""
    for _ in range(3):
        stash = shelf(tmp_path / "shelf", kind)
        stash.dump("a", 1)
        stash.clear()
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
        assert list(stash.keys()) == []
        stash.clear()


def role_get_extension():
    say(tempfile.gettempdir())
    ShelveStash.get_extension()


def test_b15_get_extension_leaves_nothing_behind(tmp_path, child):
    """get_extension() left two files in the temporary directory."""
    assert child(role_get_extension, TMPDIR=str(tmp_path)).rest() == [str(tmp_path)]
    assert list(tmp_path.iterdir()) == []


# B16


HOSTILE = [
    "../../outside",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "~",
    "~root",
    ".hidden",
    "CON",
    "nul.txt",
    "a.",
    " a ",
    "a\nb",
    "a\0b",
    "%2e%2e",
    "a%2Fb",
    "ключ",
    "🔑" * 60,
    "k" * 300,
    "k" * 1024,
    "Key",
    "key",
    "*?[",
    "{name}",
    "-rf",
]


def stores(folder):
    """Return the stores that keep values beyond the process."""
    return {
        "directory": DirectoryStash(folder / "d"),
        "pattern": DirectoryStash(folder / "d", pattern="x-{name}.bin"),
        "increment": IncrementKeyDirectoryStash(folder / "d"),
        "sqlite": SqliteStash(folder / "s.db"),
        "shelve": ShelveStash(folder / "shelf"),
    }


@pytest.mark.parametrize("kind", ["directory", "pattern", "increment", "sqlite", "shelve"])
def test_b16_no_key_leads_out_of_the_store(tmp_path, kind):
    """``dump("../../outside")`` and ``dump("/abs")`` wrote outside, ``"a/b"`` and long keys failed."""
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    outside = str(tmp_path / "victim.dat")
    keys = [*HOSTILE, outside.removesuffix(".dat"), outside]
    with stores(root)[kind] as stash:
        for number, key in enumerate(keys):
            assert stash.exists(key) is False
            stash.dump(key, number)
        assert [stash.load(key) for key in keys] == list(range(len(keys)))
        if kind != "increment":
            assert sorted(stash.keys()) == sorted(keys)
            assert len(stash) == len(keys)
        assert [path for path in tmp_path.rglob("*") if path.is_file() and root not in path.parents] == []
        assert all(stash.delete(key) for key in keys)
        assert list(stash.keys()) == []


def test_b16_no_file_of_others_is_seen_or_deleted(tmp_path):
    """``delete("../../victim")`` unlinked a foreign file, and exists() called it a key."""
    victim = tmp_path / "victim.dat"
    victim.write_bytes(b"precious")
    stash = DirectoryStash(tmp_path / "a" / "b")
    stash.dump("x", 1)
    for key in ("../../victim", str(victim), str(victim.with_suffix(""))):
        assert stash.exists(key) is False
        assert stash.load(key) is None
        assert stash.delete(key) is False
    stash.dump("../../victim", 2)
    assert stash.key_to_path("../../victim").parent == stash.path
    stash.clear()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["directory", "pattern", "increment", "sqlite", "shelve"])
def test_b16_what_can_be_no_key_is_refused(tmp_path, kind):
    """The key ``""`` was stored and never listed; one that was too long gave an OSError."""
    with stores(tmp_path)[kind] as stash:
        for key in ("", "k" * 1025, "ü" * 513, "\ud800"):
            for use in (lambda key=key: stash.dump(key, 1), lambda key=key: stash.load(key)):
                with pytest.raises(InvalidKeyError):
                    use()
        assert list(stash.keys()) == []


# B17


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("place", ["stash", "work", "recover", "filter", "composite", "increment"])
def test_b17_a_foreign_pickle_is_never_run(tmp_path, place):
    """pickle.load on whatever lay in the directory executed its code."""
    marker, path = tmp_path / "PWNED", tmp_path / "s" / "v.dat"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Evil(marker)))

    def in_composite():
        stash = DirectoryCompositeStash(tmp_path / "c", ({"a"},), "data")
        stash.dump("v", SimpleNamespace(data={"a": 1}))
        (tmp_path / "c" / "comp" / "a" / "v.dat").write_bytes(path.read_bytes())
        stash.load("v")

    def in_increment():
        (tmp_path / "s" / "data-1.dat").write_bytes(path.read_bytes())
        IncrementKeyDirectoryStash(tmp_path / "s").load()

    if place == "recover":
        assert Owner(path, lambda: 1, recover_empty=True).v == 1
    else:
        with pytest.raises(CorruptValueError):
            {
                "stash": lambda: list(DirectoryStash(tmp_path / "s")),
                "work": lambda: Owner(path, refuse).v,
                "filter": lambda: list(FailureFilterStash(DictionaryStash(), path)),
                "composite": in_composite,
                "increment": in_increment,
            }[place]()
    assert not marker.exists()


def test_b17_every_changed_byte_is_noticed(tmp_path):
    """There was no checksum: a flipped bit gave another value, or pickle's own errors."""
    stash = DirectoryStash(tmp_path)
    stash.dump("v", {"a": 1, "b": "text"})
    path = stash.key_to_path("v")
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        with pytest.raises((CorruptValueError, CodecMismatchError)):
            stash.load("v")
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptValueError, match=r"v\.dat"):
            stash.load("v")


def test_b17_format_version_and_codec_are_told(tmp_path, monkeypatch):
    """There was no format version, and nothing said what had written a file."""
    stash = DirectoryStash(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("zpersist.files.envelope.FORMAT_VERSION", 2)
        stash.dump("newer", 1)
    with pytest.raises(FormatVersionError, match="upgrade"):
        stash.load("newer")
    DirectoryStash(tmp_path, codec=DillCodec()).dump("dill", 1)
    with pytest.raises(CodecMismatchError, match="'dill'"):
        stash.load("dill")


def test_b17_what_is_made_is_private(tmp_path):
    """Directories and files were made with the modes of the umask, so that others might write pickles there."""
    os.umask(os.umask(0o22))
    stash = DirectoryStash(tmp_path / "a" / "b")
    stash.dump("v", 1)
    Owner(tmp_path / "c" / "v.dat", lambda: 1, mkdir=True).v
    with SqliteStash(tmp_path / "e" / "s.db") as db:
        db.dump("v", 1)
    for folder in ("a", "a/b", "c", "e"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700, folder
    for file in ("a/b/v.dat", "c/v.dat", "e/s.db"):
        assert (tmp_path / file).stat().st_mode & 0o077 == 0, file


# B18


@pytest.mark.parametrize("result", [None, False, 0, "", ()])
@pytest.mark.parametrize("where", ["memory", "class", "file", "stash", "property"])
def test_b18_none_is_a_result(tmp_path, where, result):
    """A body that gave None ran 5 times in 5 reads, although is_set() was true."""
    runs = []

    class Holder:
        def __init__(self):
            options = {"class": {"cache_global": True}, "stash": {"stash": DirectoryStash(tmp_path)}}.get(where, {})
            self._v = PersistedWork(tmp_path / "v.dat" if where == "file" else "v", self, **options)

        def body(self):
            runs.append(1)
            return result

        v = persisted_property(name="_v")(body) if where == "property" else property(persisted("_v")(body))

    holder = Holder()
    assert not holder._v.is_set()
    assert [holder.v for _ in range(5)] == [result] * 5
    assert len(runs) == 1
    assert holder._v.is_set()
    if where not in ("memory", "property"):
        assert Holder().v == result
        assert len(runs) == 1


def test_b18_none_may_be_set_and_be_the_first_value():
    """``set(None)`` and ``initial_value=None`` were no values."""
    owner = Owner("v", refuse)
    owner._v.set(None)
    assert owner.v is None
    owner = Owner("v", refuse, initial_value=None)
    assert owner.v is None


class AnyKind:
    """Makes each kind of stash that holds ``filled``, and remembers what is to be closed."""

    def __init__(self, folder, ends):
        self.folder, self.ends = folder, ends

    def make(self, name, filled):
        store = DictionaryStash(dict(filled))
        kinds = {
            "dictionary": lambda: store,
            "lru": lambda: self.fill(LRUCacheStash(10), filled),
            "directory": lambda: self.fill(DirectoryStash(self.folder / "d"), filled),
            "increment": lambda: self.fill(IncrementKeyDirectoryStash(self.folder / "i"), filled),
            "sqlite": lambda: self.fill(SqliteStash(self.folder / "s.db"), filled),
            "shelve": lambda: self.fill(ShelveStash(self.folder / "shelf"), filled),
            "delegate": lambda: DelegateStash(store),
            "preemptive": lambda: PreemptiveStash(store),
            "cache": lambda: CacheStash(store),
            "protective": lambda: ProtectiveStash(store),
            "sorted": lambda: SortedStash(store),
            "limit": lambda: KeyLimitStash(store, 10),
            "factory": lambda: FactoryStash(DictionaryStash(), store),
            "cache factory": lambda: CacheFactoryStash(DictionaryStash(), store),
            "oneshot": lambda: OneShotFactoryStash(DictionaryStash(), list(filled.items())),
            "multi": lambda: MultiProcessFactoryStash(DictionaryStash(), store),
            "robust": lambda: MultiProcessRobustStash(DictionaryStash(), store),
            "failures": lambda: FailureFilterStash(store, self.folder / "keys.dat"),
            "union": lambda: UnionStash((store, DictionaryStash({"0": "other"}))),
            "subset": lambda: KeySubsetStash(store, [*filled, "0"]),
            "read only": lambda: ReadOnlyDelegateStash(store),
        }
        stash = kinds[name]()
        self.ends.callback(stash.close)
        return stash

    @staticmethod
    def fill(stash, filled):
        stash.dump_many(filled)
        return stash


@pytest.fixture
def any_kind(tmp_path):
    """Make a stash of any kind."""
    with ExitStack() as ends:
        yield AnyKind(tmp_path, ends).make


READ_ONLY = ["union", "subset", "read only"]
KINDS = [
    *("dictionary lru directory increment sqlite shelve delegate preemptive cache protective sorted limit".split()),
    *("factory", "cache factory", "oneshot", "multi", "robust", "failures"),
    *READ_ONLY,
]


@pytest.mark.parametrize("kind", KINDS)
def test_b18_a_kept_none_is_a_value_in_every_way(any_kind, kind):
    """A kept None was in the stash, but ``[]``, ``list()`` and ``items()`` raised KeyError."""
    stash = any_kind(kind, {"1": None, "2": 2})
    assert "1" in stash
    assert stash.exists("1")
    assert stash["1"] is None
    assert stash.get("1", "default") is None
    assert stash.get("3", "default") == "default"
    assert stash.load("1") is None
    pairs = {name: value for name, value in stash if name != "0"}
    assert pairs == {"1": None, "2": 2}
    assert {name: value for name, value in stash.items() if name != "0"} == pairs
    assert None in list(stash.values())
    assert stash.load_many(["1", "3"]) == {"1": None}
    assert stash.mapping["1"] is None


class Nothing(ReadOnlyStash):
    """Makes None, and notes it."""

    def __init__(self):
        self.runs = []

    def load(self, name):
        self.runs.append(name)

    def exists(self, name):
        return name in ("a", "b")

    def keys(self):
        return ("a", "b")


def test_b18_a_factory_that_makes_none_makes_it_once(tmp_path):
    """A FactoryStash ran a factory that gives None 4 times of 4, although the None had been dumped."""
    for delegate in (DictionaryStash(), DirectoryStash(tmp_path)):
        factory = Nothing()
        stash = FactoryStash(delegate, factory)
        assert [stash.load("a"), stash["a"], stash.get("a", 1), dict(stash)["a"]] == [None] * 4
        assert sorted(factory.runs) == ["a", "b"]
        again = FactoryStash(delegate, factory, dump_factory_nones=False)
        assert again["a"] is None
        assert sorted(factory.runs) == ["a", "b"]
    factory = Nothing()
    stash = FactoryStash(DictionaryStash(), factory, dump_factory_nones=False)
    assert [stash["a"], stash["a"]] == [None, None]
    assert factory.runs == ["a", "a"]


# B19


@pytest.fixture
def with_one(request, any_kind, tmp_path):
    """Return a stash of a kind, with one value under the key 1."""
    kind = request.param
    if kind == "noop":
        yield NoopStash()
    elif kind == "composite":
        stash = DirectoryCompositeStash(tmp_path, ({"a"},), "data")
        stash.dump("1", SimpleNamespace(data={"a": 1}))
        yield stash
    elif kind == "zip":
        with ZipStash(archive(tmp_path / "x.zip", ["1"])) as stash:
            yield stash
    else:
        yield any_kind(kind, {"1": 1})


EVERY_KIND = [*KINDS, "noop", "zip", "composite"]


@pytest.mark.parametrize("with_one", EVERY_KIND, indirect=True)
def test_b19_deleting_what_is_missing_returns_false(with_one):
    """Deleting what is not there raised KeyError, warned, or did nothing."""
    there = set(with_one.keys())
    assert with_one.delete("missing") is False
    assert with_one.delete_many(["missing", "also"]) == 0
    with pytest.raises(KeyError):
        with_one["missing"]
    assert set(with_one.keys()) == there


@pytest.mark.parametrize(
    "with_one",
    [kind for kind in EVERY_KIND if kind not in (*READ_ONLY, "noop", "zip", "factory", "cache factory")],
    indirect=True,
)
def test_b19_deleting_what_is_there_returns_true_once(with_one):
    """``delete`` did not say what it had done."""
    with_one.load("1")
    assert with_one.delete("1") is True
    assert with_one.delete("1") is False
    with pytest.raises(KeyError):
        del with_one["1"]


@pytest.mark.parametrize("with_one", EVERY_KIND, indirect=True)
def test_b19_none_is_no_key(with_one):
    """``delete(None)`` raised KeyError, deleted nothing, or deleted everything."""
    there = set(with_one.keys())
    with pytest.raises(InvalidKeyError, match=r"clear\(\)"):
        with_one.delete(None)
    assert set(with_one.keys()) == there


@pytest.mark.parametrize("with_one", EVERY_KIND, indirect=True)
def test_b19_a_key_must_be_given(with_one):
    """``delete()`` was a TypeError with one stash and cleared another one."""
    there = set(with_one.keys())
    with pytest.raises(TypeError):
        with_one.delete()
    assert set(with_one.keys()) == there


# B20


def test_b20_a_union_lists_each_key_once():
    """A union listed duplicates, counted them, and gave values that its items did not have."""
    stash = UnionStash((DictionaryStash({"k": 1, "x": 2}), DictionaryStash({"k": 10, "y": 3})))
    assert list(stash.keys()) == ["k", "x", "y"]
    assert len(stash) == 3
    assert list(stash.values()) == [1, 2, 3]
    assert list(stash) == list(stash.items()) == [("k", 1), ("x", 2), ("y", 3)]
    assert list(stash.key_groups(2)) == [["k", "x"], ["y"]]


def test_b20_a_union_honours_a_default():
    """``get(key, default)`` of a union ignored the default."""
    stash = UnionStash((DictionaryStash({"k": None}), DictionaryStash({"k": 10})))
    assert stash.get("none", "default") == "default"
    assert stash.get("k", "default") is None
    assert stash["k"] is None


# B21


def subsets(folder):
    """Return a subset in each way it can be given."""
    path = folder / "keys.txt"
    path.write_text("b\n\n a \nunknown\n")
    return {"set": {"a", "b", "unknown"}, "list": ["b", "a", "unknown"], "file": path}


@pytest.mark.parametrize("how", ["set", "list", "file"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("where", ["dictionary", "directory"])
def test_b21_a_subset_is_the_same_each_time_it_is_asked(tmp_path, how, dynamic, where):
    """A subset from a file was exhausted after one pass; a dynamic one was a union, and a TypeError on a directory."""
    delegate = DictionaryStash() if where == "dictionary" else DirectoryStash(tmp_path / "s")
    delegate.dump_many({"a": 1, "b": 2, "c": 3})
    stash = KeySubsetStash(delegate, subsets(tmp_path)[how], dynamic)
    for _ in range(3):
        assert sorted(stash.keys()) == ["a", "b"]
        assert sorted(stash) == [("a", 1), ("b", 2)]
        assert len(stash) == 2
    assert stash.get("c", "default") == "default"
    assert stash.get("unknown", "default") == "default"
    assert "c" not in stash
    assert "unknown" not in stash
    with pytest.raises(KeyError):
        stash["c"]
    assert stash.load_many(["a", "c", "unknown"]) == {"a": 1}


# B22


def test_b22_a_limited_stash_is_as_if_there_were_no_other_keys():
    """``"c" in k`` was false, but ``k["c"]`` gave its value."""
    stash = KeyLimitStash(DictionaryStash({"a": 1, "b": 2, "c": 3}), limit=2)
    assert list(stash.keys()) == ["a", "b"]
    assert list(stash) == [("a", 1), ("b", 2)]
    assert (len(stash), bool(stash)) == (2, True)
    assert "c" not in stash
    assert stash.load("c") is None
    assert stash.get("c", "default") == "default"
    with pytest.raises(KeyError):
        stash["c"]
    assert stash.load_many(["a", "c"]) == {"a": 1}
    assert "c" not in stash.mapping
    assert stash.delete("c") is False
    assert list(stash.scan()) == ["a", "b"]
    stash.clear()
    assert dict(stash.delegate) == {"c": 3}


def test_b22_a_limit_of_nothing_shows_nothing():
    """The same with a limit of 0."""
    stash = KeyLimitStash(DictionaryStash({"a": 1}), 0)
    assert list(stash) == []
    assert not stash
    assert stash.load("a") is None


@pytest.mark.parametrize(
    "use",
    [
        lambda stash: stash.load("a"),
        lambda stash: stash["a"],
        lambda stash: stash.get("a"),
        lambda stash: stash.load_many(["a"]),
        lambda stash: stash.mapping["a"],
        lambda stash: stash.dump("a", 1),
        lambda stash: stash.update("a", lambda value: value),
    ],
)
def test_b22_whatever_reads_a_value_by_its_key_uses_it(use):
    """``[]`` and ``get`` did not count as use: a value that was just read was forgotten."""
    stash = LRUCacheStash(2)
    stash.dump("a", 1)
    stash.dump("b", 2)
    use(stash)
    stash.dump("c", 3)
    assert list(stash.keys()) == ["a", "c"]


def test_b22_listing_is_no_use():
    """Going over the items must neither refresh nor upset an LRUCacheStash."""
    stash = LRUCacheStash(2)
    stash.dump("a", 1)
    stash.dump("b", 2)
    assert list(stash) == list(stash.items()) == [("a", 1), ("b", 2)]
    assert (list(stash.values()), "a" in stash, stash.exists("a")) == ([1, 2], True, True)
    stash.dump("c", 3)
    assert list(stash.keys()) == ["b", "c"]


# B23


FIRST_QUESTIONS = {
    "exists": lambda stash: stash.exists("2") is True,
    "in": lambda stash: "2" in stash and "none" not in stash,
    "[]": lambda stash: stash["2"] == 4,
    "load": lambda stash: stash.load("2") == 4,
    "get": lambda stash: stash.get("2", 0) == 4,
    "keys": lambda stash: set(stash.keys()) == {"1", "2"},
    "len": lambda stash: len(stash) == 2,
    "bool": lambda stash: bool(stash),
    "items": lambda stash: dict(stash.items()) == {"1": 1, "2": 4},
    "iter": lambda stash: dict(iter(stash)) == {"1": 1, "2": 4},
    "values": lambda stash: sorted(stash.values()) == [1, 4],
    "load_many": lambda stash: stash.load_many(["2"]) == {"2": 4},
    "scan": lambda stash: list(stash.scan()) == ["1", "2"],
    "key_groups": lambda stash: [sorted(group) for group in stash.key_groups(5)] == [["1", "2"]],
    "mapping": lambda stash: stash.mapping["2"] == 4 and len(stash.mapping) == 2,
    "add": lambda stash: stash.add("2", 0) is False,
    "update": lambda stash: stash.update("2", lambda value: value + 1, 0) == 5,
}


@pytest.mark.parametrize("kind", ["oneshot", "multi", "robust", "factory", "sorted over oneshot", "cache over oneshot"])
@pytest.mark.parametrize("question", FIRST_QUESTIONS)
def test_b23_whatever_is_asked_first_is_answered_as_if_all_were_there(kind, question):
    """``"2" in oneshot`` was false, and true after keys(); ``"4" in factory`` was false although ``["4"]`` worked."""
    source = {"1": 1, "2": 4}
    stash = {
        "oneshot": lambda: OneShotFactoryStash(DictionaryStash(), source.items),
        "multi": lambda: MultiProcessFactoryStash(DictionaryStash(), DictionaryStash(source)),
        "robust": lambda: MultiProcessRobustStash(DictionaryStash(), DictionaryStash(source)),
        "factory": lambda: FactoryStash(DictionaryStash(), DictionaryStash(source)),
        "sorted over oneshot": lambda: SortedStash(OneShotFactoryStash(DictionaryStash(), source.items)),
        "cache over oneshot": lambda: CacheStash(OneShotFactoryStash(DictionaryStash(), source.items)),
    }[kind]()
    assert FIRST_QUESTIONS[question](stash)


# B24


def archive(path, names):
    """Make a ZIP archive whose files contain their names."""
    with zipfile.ZipFile(path, "w") as out:
        for name in names:
            out.writestr(name, name)
    return path


def test_b24_a_changed_path_shows_the_other_archive(tmp_path):
    """Setting ``path`` left the keys of the old archive."""
    one, other = archive(tmp_path / "1.zip", ["a", "b"]), archive(tmp_path / "2.zip", ["c"])
    with ZipStash(one, encoding="ascii") as stash:
        assert dict(stash) == {"a": "a", "b": "b"}
        stash.path = other
        assert dict(stash) == {"c": "c"}
        assert "a" not in stash


def test_b24_a_root_is_a_folder_and_no_prefix(tmp_path):
    """root='one' also took ``oneself/c``, and called it ``elf/c``."""
    path = archive(tmp_path / "x.zip", ["one/a", "one/deep/b", "oneself/c", "one.txt", "other/one/d"])
    with ZipStash(path, root="one", encoding="ascii") as stash:
        assert dict(stash) == {"a": "one/a", "deep/b": "one/deep/b"}
        assert stash.exists("elf/c") is False
        assert stash.load("elf/c") is None
        stash.root = "oneself"
        assert dict(stash) == {"c": "oneself/c"}


# B25


def role_list_archive(path):
    with ZipStash(path) as stash:
        say(json.dumps(list(stash.keys())))


def test_b25_the_order_of_an_archive_does_not_depend_on_hashes(tmp_path, child):
    """The order of a ZipStash changed with PYTHONHASHSEED."""
    names = list("dfbcaehg")
    path = archive(tmp_path / "x.zip", names)
    runs = [child(role_list_archive, str(path), PYTHONHASHSEED=str(seed)) for seed in range(1, 4)]
    assert [json.loads(run.hear()) for run in runs] == [names] * 3


def test_b25_an_order_can_be_had_from_any_stash(tmp_path):
    """A DirectoryStash gave ``behgdfac`` for ``abcdefgh``, and there was no order to ask for."""
    with SqliteStash(tmp_path / "s.db") as db:
        for stash in (DirectoryStash(tmp_path / "d"), db, DictionaryStash()):
            for name in "behgdfac":
                stash.dump(name, name)
            assert list(stash.scan()) == list("abcdefgh")
            assert list(stash.scan(after="c", limit=2)) == ["d", "e"]
            assert list(stash.scan(reverse=True, limit=3)) == ["h", "g", "f"]
            assert list(SortedStash(stash).keys()) == list("abcdefgh")
            assert not stash.ordered or list(stash.keys()) == list("abcdefgh")


def test_b25_what_is_listed_can_be_read(tmp_path):
    """``UP.DAT`` was listed as the key ``UP``, and reading it raised KeyError."""
    stash = DirectoryStash(tmp_path)
    stash.dump("up", 1)
    for foreign in ("UP.DAT", "Up.Dat", "x.dat.bak", "dat", ".dat", "%zz.dat", "a%2fb.dat", "notes.txt"):
        (tmp_path / foreign).write_text("foreign")
    (tmp_path / "folder.dat").mkdir()
    assert list(stash.keys()) == ["up"]
    assert list(stash) == [("up", 1)]
    for foreign in ("UP", "Up", "zz", "a/b", "notes", "x"):
        assert stash.exists(foreign) is False
        assert stash.load(foreign) is None
    assert stash.exists("folder") is False
    with pytest.raises(StorageError, match="folder"):
        stash.load("folder")


@pytest.mark.parametrize("kind", ["directory", "increment", "sqlite", "shelve"])
def test_b25_a_key_comes_back_as_it_was_given_or_not_at_all(tmp_path, kind):
    """Int keys came back as str."""
    with stores(tmp_path)[kind] as stash:
        with pytest.raises(InvalidKeyError, match=r"str\(key\)"):
            stash.dump(5, "five")
        assert list(stash.keys()) == []
    memory = DictionaryStash()
    memory.dump(5, "five")
    assert list(memory.keys()) == [5]


# B26


def test_b26_clear_over_a_live_view_of_keys():
    """The inherited clear() over a live view of keys raised RuntimeError."""
    stash = LiveKeys()
    stash.dump_many({"a": 1, "b": None})
    assert list(stash) == [("a", 1), ("b", None)]
    stash.clear()
    assert list(stash) == []


def test_b26_a_composite_loads_none_where_there_is_nothing(tmp_path):
    """load() of a missing key raised with a composite, where all others give None."""
    stash = DirectoryCompositeStash(tmp_path / "s", ({"a"},), "data")
    assert stash.load("none") is None
    assert stash.get("none", 1) == 1
    assert not (tmp_path / "s").exists()
    stash.dump("1", SimpleNamespace(data={"a": 1}))
    assert stash.load("none") is None
    with pytest.raises(KeyError):
        stash["none"]


# B27


def test_b27_ignored_arguments_are_told_at_decoration():
    """``f(10), f(5), f()`` gave 20, 20, 20, and nothing said so."""
    with pytest.warns(UserWarning, match=r"@persisted on .*double.*\bn, m\b") as caught:

        class Holder:
            @persisted("_double")
            def double(self, n, m, factor=2, *args, **more):
                return n * factor

    assert len(caught) == 1
    holder = Holder()
    assert [holder.double(10, 0), holder.double(5, 0), holder.double()] == [20, 20, 20]
    holder._double.clear()
    assert holder.double(8, 0) == 16


def test_b27_the_warning_names_the_line_of_the_decorator():
    """There was no warning; one that names the library's own line would help nobody."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        class Holder:
            @persisted("_named")
            def named(self, n):
                return n

            @persisted
            def bare(self, n):
                return n

            @persisted
            @staticmethod
            def static(n):
                return n

    assert [(Path(one.filename).name, one.category) for one in caught] == [(Path(__file__).name, UserWarning)] * 3


def test_b27_a_method_without_arguments_is_not_warned_about():
    """A warning for every decorated method would be read by nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Holder:
            @property
            @persisted("_a")
            def a(self):
                return 1

            @persisted("_b")
            def b(self, n=1):
                return n

            @classmethod
            @persisted("_c")
            def c(cls):
                return 1

            @staticmethod
            @persisted
            def d():
                return 1

    assert [Holder().a, Holder().b(), Holder.c(), Holder.d()] == [1] * 4


@pytest.mark.parametrize("where", ["file", "stash"])
def test_b27_a_new_version_computes_again(tmp_path, where):
    """After the body had changed, an old file still gave the 'old code'."""
    options = {"stash": DirectoryStash(tmp_path)} if where == "stash" else {}
    path = "v" if where == "stash" else tmp_path / "v.dat"
    assert Owner(path, lambda: "old code", **options).v == "old code"
    assert Owner(path, lambda: "new code", **options).v == "old code"
    assert Owner(path, lambda: "new code", version="2", **options).v == "new code"
    assert Owner(path, refuse, version="2", **options).v == "new code"


def test_b27_two_methods_can_not_share_a_work():
    """Two methods with one name shared a value silently."""

    class Holder:
        @persisted("_v")
        def a(self):
            return "a"

        @persisted("_v")
        def b(self):
            return "b"

    holder = Holder()
    assert holder.a() == "a"
    with pytest.raises(WorkNameError, match=r"a and b both use the work '_v'"):
        holder.b()
    other = Holder()
    assert other.b() == "b"


def test_b27_an_override_and_what_it_overrides_have_a_value_each():
    """An override with the name of the work that it overrides got the parent's value, or gave it its own."""

    class Parent:
        @property
        @persisted("_v")
        def v(self):
            return 1

    class Below(Parent):
        @property
        @persisted("_v")
        def v(self):
            return super().v + 1

    one = Below()
    assert [one.v, one.v, Parent().v] == [2, 2, 1]


def test_b27_the_name_of_the_method_is_refused_at_decoration():
    """A work named as its method: AttributeError 'method' has no 'worker'; as its property: RecursionError."""
    with pytest.raises(WorkNameError, match="_value"):

        class Method:
            @persisted("value")
            def value(self):
                return 1

    with pytest.raises(WorkNameError, match="_value"):

        class Property:
            @property
            @persisted("value")
            def value(self):
                return 1


def test_b27_the_name_of_another_attribute_is_told():
    """A work named as another attribute failed with an AttributeError about a worker."""

    class Holder:
        def __init__(self):
            self.root = "here"

        @persisted("root")
        def value(self):
            return 1

    with pytest.raises(WorkNameError, match="'here'"):
        Holder().value()


# B28


class Bare:
    """Has slots, and none for the work."""

    __slots__ = ("n",)

    def __init__(self, n):
        self.n = n

    @property
    @persisted("_v")
    def v(self):
        self.n += 1
        return self.n


@dataclass(frozen=True)
class Frozen:
    """A frozen data class."""

    n: list

    @property
    @persisted("_v")
    def v(self):
        self.n.append(1)
        return len(self.n)


@dataclass(frozen=True, slots=True)
class FrozenSlotted:
    """A frozen data class with slots."""

    n: list

    @property
    @persisted("_v")
    def v(self):
        self.n.append(1)
        return len(self.n)


@attrs.frozen
class AttrsFrozen:
    """A frozen attrs class with slots."""

    n: list

    @property
    @persisted("_v")
    def v(self):
        self.n.append(1)
        return len(self.n)


@attrs.define
class AttrsSlotted:
    """An attrs class with slots."""

    n: list

    @property
    @persisted("_v")
    def v(self):
        self.n.append(1)
        return len(self.n)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bare(0),
        lambda: slotted_owner()(1),
        lambda: Frozen([]),
        lambda: FrozenSlotted([]),
        lambda: AttrsFrozen([]),
        lambda: AttrsSlotted([]),
    ],
    ids="slots slot-for-it frozen frozen-slots attrs-frozen attrs-slots".split(),
)
def test_b28_owners_of_every_make(make):
    """``__slots__`` raised AttributeError, a frozen data class FrozenInstanceError."""
    one, other = make(), make()
    assert [one.v, one.v, other.v, one.v, other.v] == [1] * 5


def test_b28_works_of_slotted_owners_die_with_them():
    """A side table must not keep what it serves alive, nor give a dead one's value to a new one."""

    class Slotted:
        __slots__ = ("__weakref__", "value")

        @property
        @persisted("_v")
        def v(self):
            return self.value

    owner = Slotted()
    owner.value = Weighty()
    kept = weakref.ref(owner.v)
    assert owner.v is kept()
    del owner
    gc.collect()
    assert kept() is None
    for number in range(200):
        owner = Slotted()
        owner.value = number
        assert owner.v == number


def test_b28_static_and_class_methods():
    """A static method raised IndexError or AttributeError; a class method gave the parent's value to a subclass."""

    class Parent:
        runs = 0

        @classmethod
        @persisted("_c")
        def c(cls):
            Parent.runs += 1
            return cls.__name__

        @staticmethod
        @persisted("_s")
        def s():
            Parent.runs += 1
            return "static"

        @persisted("_above")
        @staticmethod
        def above(n=1):
            Parent.runs += 1
            return n

    class Kid(Parent):
        pass

    assert [Parent.c(), Kid.c(), Parent().c(), Kid().c()] == ["Parent", "Kid", "Parent", "Kid"]
    assert Parent.runs == 2
    assert [Parent.s(), Kid.s(), Parent().s()] == ["static"] * 3
    assert [Parent.above(7), Parent.above(8), Kid().above()] == [7] * 3
    assert Parent.runs == 4


def test_b28_coroutines_can_be_awaited_again_and_share_one_computation(tmp_path):
    """The second await raised RuntimeError 'cannot reuse already awaited coroutine'."""

    class Holder:
        def __init__(self, path):
            self.runs = 0
            self._v = PersistedWork(path, self)

        @persisted("_v")
        async def v(self):
            self.runs += 1
            await asyncio.sleep(0)
            return "done"

    async def main(holder):
        assert await asyncio.gather(*(holder.v() for _ in range(5))) == ["done"] * 5
        assert await holder.v() == "done"
        return holder.runs

    for path in ("v", tmp_path / "v.dat"):
        holder = Holder(path)
        assert asyncio.run(main(holder)) == 1
        assert asyncio.run(main(holder)) == 1
    assert asyncio.run(main(Holder(tmp_path / "v.dat"))) == 0


def test_b28_a_generator_is_refused_with_a_remedy():
    """A generator gave [1] to the first reader and [] to all others."""
    with pytest.raises(InvalidArgumentError, match="list"):

        class Holder:
            @persisted("_v")
            def v(self):
                yield 1

    class Sneaky:
        @persisted("_v")
        def v(self):
            return (number for number in range(3))

    with pytest.raises(InvalidArgumentError, match="list"):
        Sneaky().v()


def test_b28_a_decorated_method_keeps_its_name():
    """``__name__`` of a decorated method was 'wrapped', and it had no ``__wrapped__``."""

    class Holder:
        @persisted("_v")
        def value(self) -> int:
            """Say it."""
            return 1

        @staticmethod
        @persisted
        def static():
            return 1

        @persisted("_a")
        async def later(self):
            return 1

    assert Holder.value.__name__ == "value"
    assert Holder.value.__qualname__.endswith("Holder.value")
    assert Holder.value.__doc__ == "Say it."
    assert Holder.value.__module__ == __name__
    assert Holder.value.__annotations__ == {"return": "int"}
    assert Holder.value.__wrapped__(None) == 1
    assert (Holder.static.__name__, Holder.later.__name__) == ("static", "later")
    assert asyncio.iscoroutinefunction(Holder.later)


def test_b28_relative_paths_do_not_follow_the_working_directory(tmp_path, monkeypatch):
    """A relative path was another file after every chdir()."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    monkeypatch.chdir(one)

    class Holder:
        @persisted("_v", Path("decorated.dat"))
        def v(self):
            return 1

    owner = Owner(Path("work.dat"), lambda: 1)
    stash = DirectoryStash("stash")
    composite = DirectoryCompositeStash("composite", ({"a"},), "data")
    shelf = ShelveStash("shelf")
    filtered = FailureFilterStash(DictionaryStash({"a": 1}), "filter.dat")
    counting = IncrementKeyDirectoryStash("counting")
    with SqliteStash("s.db") as db:
        monkeypatch.chdir(other)
        Holder().v()
        owner.v
        stash.dump("a", 1)
        composite.dump("a", SimpleNamespace(data={"a": 1}))
        shelf.dump("a", 1)
        db.dump("a", 1)
        assert list(filtered) == [("a", 1)]
        counting.dump(1)
    assert list(other.iterdir()) == []
    expected = {"decorated.dat", "work.dat", "stash", "composite", "filter.dat", "counting", "s.db"}
    assert expected <= {path.name for path in one.iterdir()}
    assert dict(DirectoryStash(one / "stash")) == {"a": 1}
    assert dict(ShelveStash(one / "shelf")) == {"a": 1}


def test_b28_a_relative_archive_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    """The same for an archive that is opened later."""
    archive(tmp_path / "x.zip", ["a"])
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with ZipStash("x.zip") as stash:
        monkeypatch.chdir(tmp_path / "other")
        assert list(stash.keys()) == ["a"]


def test_b28_the_path_that_a_stash_tells_is_where_it_writes(tmp_path, monkeypatch):
    """``key_to_path()`` has to name the file in which the value lies."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    stash = DirectoryStash("stash")
    stash.dump("a", 1)
    monkeypatch.chdir(tmp_path / "other")
    assert stash.key_to_path("a").is_file()


# B29


class Removing(PersistableContainer):
    """Leaves attributes out of its pickle, one of which it may not have."""

    _PERSITABLE_REMOVE_ATTRIBUTES = {"connection", "absent"}

    def __init__(self):
        super().__init__()
        self.name = "x"
        self.connection = threading.Lock()


def test_b29_attributes_are_removed_also_while_debugging(caplog):
    """Pickling with _PERSITABLE_REMOVE_ATTRIBUTES raised UnboundLocalError when debug logging was on."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("zpersist").setLevel(logging.DEBUG)
    try:
        twin = pickle.loads(pickle.dumps(Removing()))
    finally:
        logging.getLogger("zpersist").setLevel(logging.NOTSET)
    assert vars(twin) == {"name": "x"}


def test_b29_an_absent_attribute_is_no_error():
    """An attribute to be removed that the instance did not have raised KeyError."""
    removing = Removing()
    assert not hasattr(removing, "absent")
    assert not hasattr(pickle.loads(pickle.dumps(removing)), "connection")
    assert removing.connection.locked() is False


def test_b29_metadata_can_be_written_recursively():
    """``metadata.write(recursive=True)`` raised TypeError."""
    kind = contained_owner()
    outer = kind(1)
    outer.inner = kind(2)
    assert (outer.v, outer.inner.v) == (1, 2)
    out = io.StringIO()
    outer._get_persistable_metadata().write(include_content=True, recursive=True, writer=out)
    assert out.getvalue().count("content: 2") >= 1
    assert out.getvalue().count("transient: False") == 2


def test_b29_a_work_without_its_container_can_be_unpickled_and_used():
    """An unpickled PersistedWork without a container raised TypeError when it was called."""
    owner = plain_owner()(9)
    assert owner.v == 9
    work = pickle.loads(pickle.dumps(owner._v))
    assert work() == 9
    assert work.is_set()
    assert work.owner is None
    work.clear()
    with pytest.raises(InvalidArgumentError, match="worker"):
        work()
    work.worker = lambda: 10
    assert work() == 10
    assert "v" in str(work)


# B30


class Stubborn(Deallocatable):
    """Fails to be deallocated."""

    def deallocate(self):
        super().deallocate()
        raise OSError("stuck")


def test_b30_tracking_is_switched_off_whatever_happens():
    """Tracking stayed on when deallocate() raised."""
    assert Deallocatable.ALLOCATION_TRACKING is False
    with pytest.raises(OSError, match="stuck"), dealloc(Stubborn, track=True):
        assert Deallocatable.ALLOCATION_TRACKING is True
        assert Deallocatable._num_deallocations() == 1
    assert Deallocatable.ALLOCATION_TRACKING is False
    assert Deallocatable._num_deallocations() == 0
    with pytest.raises(ValueError, match="no"), dealloc(fail, track=True):
        pass
    assert Deallocatable.ALLOCATION_TRACKING is False


class ClosesNothing(LiveKeys):
    """A user's stash that knows no close()."""


def test_b30_everything_can_be_closed():
    """DelegateStash.close() over a stash without close() raised AttributeError."""
    with DelegateStash(CacheStash(ClosesNothing())) as stash:
        stash.dump("a", 1)
    stash.close()
    UnionStash((DelegateStash(ClosesNothing()), NoopStash())).close()
    FactoryStash(ClosesNothing(), ClosesNothing()).close()


def test_b30_a_number_of_workers_that_leaves_none_is_refused():
    """``workers=-2`` on 2 cores was a ValueError of the pool, when it was too late."""
    cores = zpersist.parallel.guard.available_cores()
    for workers in (-cores, -cores - 1, -1000, 0.0, 1.5, -0.5, True, "2", None):
        with pytest.raises(InvalidArgumentError, match="workers"):
            squares(DictionaryStash(), None, workers=workers)
    for chunk_size in (-1, 1.5, True, None):
        with pytest.raises(InvalidArgumentError, match="chunk_size"):
            squares(DictionaryStash(), None, chunk_size=chunk_size)


def test_b30_a_delegate_in_memory_is_filled_by_many_processes(tmp_path):
    """With an in-memory delegate and 2 workers there were 0 results, and no error."""
    delegate = DictionaryStash()
    assert dict(squares(delegate, Logged(tmp_path))) == ALL
    assert delegate.data == ALL


# B31


def role_import_everything():
    names = {
        "time": importlib.import_module("time"),
        "tempfile": tempfile,
        "copy": copy,
        "sys": sys,
        "os": os,
        "logging": logging,
        "pickle": pickle,
        "Path": Path,
        "Any": object(),
        "Iterable": Iterable,
        "Iterator": Iterator,
        "OrderedDict": OrderedDict,
    }
    scope = dict(names)
    exec("from zpersist import *", scope)
    say(json.dumps(sorted(name for name in names if scope[name] is not names[name])))
    say(json.dumps(sorted(name for name in vars(builtins) if name in scope and not name.startswith("__"))))
    say(json.dumps(sorted(scope.keys() - names.keys() - {"__builtins__"})))
    say(eval("list(zip([1], [2]))", scope))


def test_b31_a_star_import_brings_the_public_names_and_nothing_else(child):
    """``from zensols.persist import *`` brought 88 names and overwrote ``time``, ``copy``, and the builtin ``zip``."""
    importer = child(role_import_everything)
    overwritten, builtin, brought = (json.loads(importer.hear()) for _ in range(3))
    assert overwritten == []
    assert builtin == []
    assert brought == sorted(zpersist.__all__)
    assert importer.rest() == ["[(1, 2)]"]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_b31_many_processes_need_no_configuration(tmp_path, child, start_method):
    """MultiProcessStash was unusable without a configuration factory: the child made the stash anew from a file."""
    run = child(role_fill_by, str(tmp_path), start_method)
    assert json.loads(run.hear()) == ALL
    assert json.loads(run.hear()) == sorted(ALL)


def role_fill_by(folder, start_method):
    stash = squares(DirectoryStash(f"{folder}/s"), Logged(folder), start_method=start_method)
    say(json.dumps(dict(sorted(stash, key=lambda pair: int(pair[0])))))
    say(json.dumps(sorted(notes(f"{folder}/log"))))


@pytest.mark.parametrize("delegate", DELEGATES, indirect=True)
def test_b31_what_failed_is_tried_again_in_the_next_run(tmp_path, delegate):
    """Failures were kept as values: 0 were retried in the next run, until reprocess_failures() was called."""
    factory = Logged(tmp_path, bad="7")

    def run(**options):
        return MultiProcessRobustStash(delegate, factory, chunk_size=5, workers=2, **options)

    first = run()
    assert len(first) == 20
    assert [(name, str(failure)) for name, failure in first.iterfails()] == [("7", "no 7")]
    assert isinstance(first["7"], Failure)
    Path(factory.repaired).touch()
    before = len(notes(factory.log))
    assert isinstance(run(retry_failed=False)["7"], Failure)
    assert dict(run()) == ALL
    assert notes(factory.log)[before:] == ["7"]
    assert dict(run()) == ALL
    assert len(notes(factory.log)) == before + 1


def test_b31_one_process_is_enough():
    """Trying a stash of many processes in one took a configuration as well."""

    class Lengths(MultiProcessDefaultStash):
        def _create_data(self):
            return ["one", "three"]

        def _process(self, chunk):
            return ((word, len(word)) for word in chunk)

    assert dict(Lengths(DictionaryStash())) == {"one": 3, "three": 5}


def test_b31_the_shelve_scope_needs_no_configuration(tmp_path):
    """Importing the name ``shelve`` from the package gave the module of that name."""
    with shelve(tmp_path / "shelf") as stash:
        stash.dump("a", 1)
    with shelve(tmp_path / "shelf") as stash:
        assert dict(stash) == {"a": 1}
