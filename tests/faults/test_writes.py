"""What was there is never harmed: whatever fails, and whoever dies, a reader finds the old value or the new one.

The sweeps let the first call to the operating system fail, then the second, and so on until none is left to fail.
Writers that are broken on purpose go through the same sweeps, and each must be found out.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pickle
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zpersist import (
    DirectoryStash,
    EncodeError,
    OutcomeUnknownError,
    PersistedWork,
    SqliteStash,
    StorageError,
    ZPersistError,
    persisted,
)
from zpersist.files import atomic
from zpersist.files.atomic import write_file
from zpersist.stores import directory as directory_module
from zpersist.work import level as level_module

from ..disk import on_a_small_disk
from .stores import Blob

ROOT = Path(__file__).parents[2]
ABSENT = "nothing is there"


# processes


def forked(run: Callable[[], object]) -> int:
    """Run a function in a forked child, and return how that ended: 0, 1 if it raised, minus the signal's number."""
    with warnings.catch_warnings():
        # Python 3.12 and later warn of a fork while there are threads; the child here uses none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# values and cases


SMALL = {"which": "old", "n": [1, 2, 3]}, {"which": "new", "n": None}
LARGE = [Blob(b"o" * 70_000), Blob(b"p" * 90_000)], [Blob(b"n" * 80_000), "new"]
LONG = "long " * 100


class Case(NamedTuple):
    """Something that is done where something is."""

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    read: Callable[[Path], Any]
    old: Any
    new: Any


def directory(path, **options):
    return DirectoryStash(path / "data", **options)


def sqlite(path, **options):
    return SqliteStash(path / "data.db", **options)


def use(make, do):
    """Return a function that does something with a new stash and closes it."""

    def run(path):
        with make(path) as stash:
            return do(stash)

    return run


def read_by(make, key, bystander=True):
    def read(path):
        with make(path) as stash:
            found = stash.get(key, ABSENT)
            keys = set(stash.keys())
            assert (key in keys) == stash.exists(key) == (found is not ABSENT), "keys() and exists() say the same"
            assert keys <= {key, "bystander"}, f"nobody dumped {keys}"
            if bystander:
                assert stash["bystander"] == "unharmed"
            return found

    return read


def on_stash(make, values, do, *, key="a", there=True, made=True, new=None):
    """Return the case of doing something with a key of a stash; ``there``: it has a value, ``made``: so has another."""
    old, other = values

    def prepare(path):
        with make(path, durability="rename") as stash:
            if made:
                stash.dump("bystander", "unharmed")
            if there:
                stash.dump(key, old)

    return Case(
        prepare, use(make, do), read_by(make, key, made), old if there else ABSENT, other if new is None else new
    )


def work_at(path, **options):
    return PersistedWork(path / "work.dat", None, **options)


def read_work(path):
    found = work_at(path)() if (path / "work.dat").exists() else ABSENT
    assert work_at(path).is_set() == (found is not ABSENT)
    return found


def on_work(values, *, there=True, computes=False, **options):
    old, new = values

    def act(path):
        work = work_at(path, **options)
        if computes:
            work.worker = lambda: new
            return work()
        return work.set(new)

    return Case(lambda path: there and work_at(path).set(old), act, read_work, old if there else ABSENT, new)


def stash_cases(make, durability):
    """Return everything that writes, on one kind of stash."""
    make = partial(make, durability=durability)
    small, large = SMALL, LARGE
    return {
        "dump": on_stash(make, small, lambda s: s.dump("a", small[1])),
        "dump large": on_stash(make, large, lambda s: s.dump("a", large[1])),
        "dump long key": on_stash(make, small, lambda s: s.dump(LONG, small[1]), key=LONG),
        "dump new": on_stash(make, small, lambda s: s.dump("a", small[1]), there=False),
        "dump first": on_stash(make, small, lambda s: s.dump("a", small[1]), there=False, made=False),
        "dump many": on_stash(make, small, lambda s: s.dump_many({"bystander": "unharmed", "a": small[1]})),
        "add": on_stash(make, small, lambda s: s.add("a", small[1]), there=False),
        "add refused": on_stash(make, small, lambda s: s.add("a", small[1]), new=small[0]),
        "update": on_stash(make, small, lambda s: s.update("a", lambda old: small[1])),
        "update new": on_stash(make, small, lambda s: s.update("a", lambda old: small[1]), there=False),
        "delete": on_stash(make, small, lambda s: s.delete("a"), new=ABSENT),
    }


def work_cases(durability):
    return {
        "set": on_work(SMALL, durability=durability),
        "set large": on_work(LARGE, durability=durability),
        "compute": on_work(SMALL, there=False, computes=True, durability=durability),
        "clear": Case(
            lambda path: work_at(path).set(1),
            lambda path: work_at(path, durability=durability).clear(),
            read_work,
            1,
            ABSENT,
        ),
    }


FILES = {
    f"{kind} {durability} {name}": case
    for durability in ("rename", "fsync")
    for kind, cases in (("directory", stash_cases(directory, durability)), ("work", work_cases(durability)))
    for name, case in cases.items()
}
DATABASE = {f"sqlite {name}": case for name, case in stash_cases(sqlite, "rename").items()}
DUMP = FILES["directory rename dump"]


# faults

WATCHED = ("open", "mknod", "write", "writev", "fsync", "replace", "link", "unlink", "close", "mkdir", "scandir")


def _believed(fd):
    """Stand in for ``fsync``, which takes long: what it does is seen only after a power cut."""


@contextmanager
def watched(trip, names=WATCHED):
    """Have ``trip(name, real, *args)`` called in place of functions of :mod:`os`, in this thread."""
    thread = threading.get_ident()

    def stand_in(name, real, *args, **options):
        if threading.get_ident() != thread:
            return real(*args, **options)
        return trip(name, _believed if name == "fsync" else real, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(os, name, partial(stand_in, name, getattr(os, name)))
        if "place" in (write_file.__kwdefaults__ or {}):
            # Bound when the function was made.
            patch.setitem(write_file.__kwdefaults__, "place", lambda *paths: os.replace(*paths))
        yield


def passed(name, real, *args, **options):
    """Let a call pass."""
    return real(*args, **options)


def only_read(name, args):
    """Whether a call closes what was not opened to write values: a directory, a file that is read, a lock."""
    return name == "close" and fcntl.fcntl(args[0], fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY


class Fault:
    """Lets the ``at``-th call fail, and if it is ``lasting`` all that follow."""

    def __init__(self, at, code=errno.EIO, *, lasting=False, spared=only_read):
        self.at, self.code, self.lasting, self.spared = at, code, lasting, spared
        self.count = 0
        self.hit = None

    def __call__(self, name, real, *args, **options):
        # Of what fails for ever, deleting is left out: where nothing can be deleted nothing can be tidied up.
        if self.spared(name, args) or (self.lasting and name == "unlink"):
            return real(*args, **options)
        self.count += 1
        if self.count == self.at or (self.lasting and self.count > self.at):
            self.hit = self.hit or name
            self.fail(name, real, *args, **options)
        return real(*args, **options)

    def fail(self, name, real, *args, **options):
        if name == "close":
            # The descriptor is gone also when close() says that something went wrong (close(2)).
            real(*args)
        raise OSError(self.code, os.strerror(self.code))


class Kill(Fault):
    """Kills the process before the ``at``-th call."""

    def __init__(self, at):
        super().__init__(at, spared=lambda name, args: False)

    def fail(self, name, real, *args, **options):
        os.kill(os.getpid(), signal.SIGKILL)


def names_in(path):
    return {str(file.relative_to(path)) for file in path.rglob("*")}


def usual_names(case, path):
    """Return the names of all files that are there when nothing fails."""
    path.mkdir()
    case.prepare(path)
    names = names_in(path)
    case.act(path)
    assert case.read(path) == case.new
    return names | names_in(path)


def judge(case, path, error, usual, *, alive=True, tidy=True):
    """Yield what is wrong after something failed (``error``), nothing did (``None``), or its process died.

    ``tidy``: nothing may be left behind.
    """
    try:
        found = case.read(path)
    except (Exception, AssertionError) as err:
        yield f"reading raises {err!r}"
        return
    is_old, is_new = found == case.old, found == case.new
    if not is_old and not is_new:
        yield f"neither old nor new: {found!r}"
    if error is not None and not isinstance(error, ZPersistError):
        yield f"{error!r} is not one of our errors"
    if alive and error is None and not is_new:
        yield "no error was raised, and the old value is there"
    if error is not None and not isinstance(error, OutcomeUnknownError) and not is_old:
        yield f"{error!r} was raised, and the new value is there"
    extra = names_in(path) - usual
    if len(extra) > (0 if alive and tidy else 1):
        yield f"left behind: {sorted(extra)}"
    try:
        with watched(passed):
            case.act(path)
        if case.read(path) != case.new:
            yield "doing it again has no effect"
    except (Exception, AssertionError) as err:
        yield f"doing it again raises {err!r}"


def fault_sweep(case, folder, code, lasting, spared=only_read):
    """Return what is wrong after the first, the second, … call failed, and how many calls there are."""
    usual = usual_names(case, folder / "usual")
    wrong = []
    for at in itertools.count(1):
        path = folder / str(at)
        path.mkdir()
        case.prepare(path)
        fault, error = Fault(at, code, lasting=lasting, spared=spared), None
        with watched(fault):
            try:
                case.act(path)
            except Exception as err:
                error = err
        if fault.hit is None:
            assert error is None
            return wrong, at - 1
        # What can't be deleted is left behind.
        found = judge(case, path, error, usual, tidy=fault.hit != "unlink")
        wrong += [f"call {at} ({fault.hit}): {what}" for what in found]
        shutil.rmtree(path)


def kill_sweep(case, folder):
    """Return what is wrong after a process was killed at its first, second, … call, and how many calls there are."""
    usual = usual_names(case, folder / "usual")
    wrong = []
    for at in itertools.count(1):
        path = folder / str(at)
        path.mkdir()
        case.prepare(path)

        def act(at=at, path=path):
            with watched(Kill(at)):
                case.act(path)

        code = forked(act)
        if code == 0:
            return wrong, at - 1
        assert code == -signal.SIGKILL
        wrong += [f"call {at}: {what}" for what in judge(case, path, None, usual, alive=False)]
        shutil.rmtree(path)


MODES = {
    f"{errno.errorcode[code]} {'for ever' if lasting else 'once'}": (code, lasting)
    for code in (errno.EIO, errno.ENOSPC)
    for lasting in (False, True)
}


@pytest.mark.parametrize(
    "name, mode", [(name, mode) for name in FILES for mode in MODES if "fsync" not in name or "EIO" in mode]
)
def test_every_call_fails(name, mode, tmp_path):
    wrong, calls = fault_sweep(FILES[name], tmp_path, *MODES[mode])
    assert wrong == []
    assert calls >= (0 if name.endswith(("refused", "rename delete", "rename clear")) else 2)


@pytest.mark.parametrize("name", DATABASE)
def test_every_call_of_a_database_fails(name, tmp_path):
    # SQLite's own calls are not made from Python: they are swept below.
    wrong, calls = fault_sweep(DATABASE[name], tmp_path, errno.EIO, True)
    assert wrong == []
    assert calls >= 1


@pytest.mark.parametrize(
    "name", ["directory dump", "directory add", "directory update", "directory delete", "work compute"]
)
def test_a_close_that_fails_does_not_belie_what_was_done(name, tmp_path):
    # Also of descriptors that nothing was written through: directories, locks, files that were read.
    case = FILES[name.replace(" ", " rename ")]
    wrong, _ = fault_sweep(case, tmp_path, errno.EIO, False, lambda name, args: name != "close")
    assert wrong == []


@pytest.mark.parametrize("name", ["directory rename dump", "directory rename add", "work rename set"])
def test_where_nothing_can_be_deleted_either_the_error_is_still_one_of_ours(name, tmp_path):
    case = FILES[name]
    for at in itertools.count(1):
        path = tmp_path / str(at)
        path.mkdir()
        case.prepare(path)
        fault = Fault(at, lasting=False)

        def trip(name, real, *args, fault=fault, **options):
            if name == "unlink":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return fault(name, real, *args, **options)

        with watched(trip):
            try:
                case.act(path)
            except ZPersistError:
                pass
        assert case.read(path) in (case.old, case.new)
        case.act(path)
        assert case.read(path) == case.new
        if fault.hit is None:
            break


@pytest.mark.parametrize("name", FILES)
def test_killed_at_every_call(name, tmp_path):
    wrong, calls = kill_sweep(FILES[name], tmp_path)
    assert wrong == []
    assert calls >= (0 if name.endswith(("add refused", "clear")) else 2)


@pytest.mark.parametrize("name", DATABASE)
def test_a_database_is_killed_at_every_call(name, tmp_path):
    wrong, calls = kill_sweep(DATABASE[name], tmp_path)
    assert wrong == []
    # It makes the file; all else SQLite does itself.
    assert calls >= 1


def part_of(parts, most):
    """Return the first bytes of what os.write() or os.writev() is given."""
    return parts[:most] if isinstance(parts, (bytes, bytearray, memoryview)) else [parts[0][:most]]


@pytest.mark.parametrize(
    "name, most",
    [
        ("directory fsync dump", 1),
        ("directory rename dump long key", 7),
        ("directory rename dump large", 997),
        ("work rename set large", 60_001),
    ],
)
def test_short_writes(name, most, tmp_path):
    case = FILES[name]
    case.prepare(tmp_path)
    turns = 0

    def trip(name, real, fd, parts):
        nonlocal turns
        turns += 1
        return real(fd, part_of(parts, most))

    with watched(trip, ("write", "writev")):
        case.act(tmp_path)
    assert case.read(tmp_path) == case.new
    assert turns > 2


@pytest.mark.parametrize("name", ["directory rename dump", "directory rename dump large"])
def test_an_error_after_short_writes(name, tmp_path):
    case = FILES[name]
    case.prepare(tmp_path)
    usual = names_in(tmp_path)
    turns = 0

    def trip(name, real, fd, parts):
        nonlocal turns
        turns += 1
        if turns == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, part_of(parts, 1))

    with watched(trip, ("write", "writev")), pytest.raises(StorageError) as caught:
        case.act(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert turns == 3
    assert case.read(tmp_path) == case.old
    assert names_in(tmp_path) == usual


def test_an_interrupt_leaves_the_old_value_and_nothing_else(tmp_path):
    for at in itertools.count(1):
        path = tmp_path / str(at)
        path.mkdir()
        DUMP.prepare(path)
        usual = names_in(path)
        count = 0

        def trip(name, real, *args, at=at, **options):
            nonlocal count
            count += 1
            if count == at:
                if name == "close":
                    real(*args)
                raise KeyboardInterrupt
            return real(*args, **options)

        with watched(trip), suppress(KeyboardInterrupt):
            DUMP.act(path)
        assert DUMP.read(path) in (DUMP.old, DUMP.new)
        assert names_in(path) == usual
        if count < at:
            break


# what dead writers leave


def dies(act):
    """Return a function that does something and is killed before anything is put in its place."""

    def die():
        def trip(name, real, *args, **options):
            if name in ("replace", "link"):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        with watched(trip):
            act()

    return die


@pytest.mark.parametrize("name", ["directory rename dump large", "directory rename add", "work rename set"])
def test_the_leftovers_of_dead_writers_go(name, tmp_path):
    case = FILES[name]
    die = dies(lambda: case.act(tmp_path))
    # All in processes of their own: this one writes here for the first time when it tidies up.
    assert forked(lambda: case.prepare(tmp_path)) == 0
    usual = names_in(tmp_path)
    for _ in range(3):
        assert forked(die) == -signal.SIGKILL
    left = names_in(tmp_path) - usual
    assert left
    case.act(tmp_path)
    assert not names_in(tmp_path) & left
    assert case.read(tmp_path) == case.new


@pytest.mark.parametrize("name", ["directory rename dump", "work rename set"])
def test_killed_while_leftovers_are_swept(name, tmp_path):
    case = FILES[name]
    for at in itertools.count(1):
        path = tmp_path / str(at)
        path.mkdir()
        assert forked(lambda path=path: case.prepare(path)) == 0
        usual = names_in(path)

        def leave(path=path):
            # Two writers at once, each in the middle of it.
            assert forked(dies(lambda: case.act(path))) == -signal.SIGKILL

        assert forked(dies(lambda path=path, leave=leave: (leave(), case.act(path)))) == -signal.SIGKILL
        assert names_in(path) - usual

        def act(at=at, path=path):
            with watched(Kill(at)):
                case.act(path)

        code = forked(act)
        assert case.read(path) in (case.old, case.new)
        assert forked(lambda path=path: case.act(path)) == 0
        assert case.read(path) == case.new
        assert names_in(path) == usual
        if code == 0:
            assert at > 5
            break


def test_the_file_of_a_writer_who_lives_stays(tmp_path):
    case = FILES["directory rename dump large"]
    case.prepare(tmp_path)
    usual = names_in(tmp_path)

    def trip(name, real, *args, **options):
        if name == "replace":
            (left,) = names_in(tmp_path) - usual

            def tidy():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(os, "replace", real)
                    directory(tmp_path).dump("b", 1)
                    directory(tmp_path).clear()

            assert forked(tidy) == 0
            assert names_in(tmp_path) == {"data", left}
        return real(*args, **options)

    with watched(trip):
        case.act(tmp_path)
    assert directory(tmp_path)["a"] == case.new


# SQLite, whose calls are its own


class Believing(sqlite3.Connection):
    """Does not sync, as :func:`_believed`."""

    def execute(self, sql, *values):
        return super().execute("PRAGMA synchronous=OFF" if sql.startswith("PRAGMA synchronous") else sql, *values)


@pytest.fixture(autouse=True)
def databases_do_not_sync(monkeypatch):
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Believing))


@contextmanager
def at_each_step(trip):
    """Have a function called at each step of SQLite's virtual machine."""
    real = sqlite3.connect

    def connect(*args, **options):
        db = real(*args, **options)
        db.set_progress_handler(trip, 1)
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        yield


class Steps:
    """Counts steps, and kills the process at one of them."""

    def __init__(self, at=0):
        self.at = at
        self.count = 0

    def __call__(self):
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0


def step_sweep(case, folder, each):
    """Return what is wrong after a process was killed at every so many steps of SQLite's, and how many steps."""
    usual = usual_names(case, folder / "usual")
    shutil.rmtree(folder / "usual")
    (folder / "usual").mkdir()
    case.prepare(folder / "usual")
    steps = Steps()
    with at_each_step(steps):
        case.act(folder / "usual")
    wrong = []
    for at in range(1, steps.count + 1, each):
        path = folder / str(at)
        path.mkdir()
        case.prepare(path)

        def act(at=at, path=path):
            with at_each_step(Steps(at)):
                case.act(path)

        assert forked(act) == -signal.SIGKILL
        wrong += [f"step {at}: {what}" for what in judge(case, path, None, usual, alive=False)]
        shutil.rmtree(path)
    return wrong, steps.count


@pytest.mark.parametrize("name", ["sqlite dump", "sqlite dump many", "sqlite update", "sqlite dump first"])
def test_a_database_is_killed_at_some_steps(name, tmp_path):
    wrong, steps = step_sweep(DATABASE[name], tmp_path, 13)
    assert wrong == []
    assert steps > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", DATABASE)
def test_a_database_is_killed_at_every_step(name, tmp_path):
    wrong, steps = step_sweep(DATABASE[name], tmp_path, 1)
    assert wrong == []
    assert steps > 30


def size_sweep(case, folder, step, how):
    """Return what is wrong after no file could grow beyond 0, 1, 2, … times ``step`` bytes, and how often that hurt.

    The kernel refuses the write that would go beyond, or kills the process that asks for it.
    """
    wrong, hurt = [], 0
    for limit in itertools.count(0, step):
        path = folder / str(limit)
        path.mkdir()
        case.prepare(path)
        told = folder / f"{limit}.told"

        def act(limit=limit, path=path, told=told):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "kill" else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            error = None
            try:
                case.act(path)
            except Exception as err:
                error = err
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            told.write_bytes(pickle.dumps(error))

        code = forked(act)
        assert code in (0, -signal.SIGXFSZ)
        died = code != 0
        error = None if died else pickle.loads(told.read_bytes())
        hurt += died or error is not None
        usual = {"data", "data/a.dat", "data/bystander.dat", "data.db", ".data.db.lock"}
        wrong += [f"{limit} bytes: {what}" for what in judge(case, path, error, usual, alive=not died)]
        shutil.rmtree(path)
        if not died and error is None and limit > 100_000:
            return wrong, hurt


SIZED = {
    "sqlite dump": on_stash(sqlite, ("x" * 9000, "y" * 30_000), lambda s: s.dump("a", "y" * 30_000)),
    "sqlite add": on_stash(sqlite, ("", "y" * 30_000), lambda s: s.add("a", "y" * 30_000), there=False),
    "sqlite first": on_stash(sqlite, ("", "y"), lambda s: s.dump("a", "y"), there=False, made=False),
    "sqlite update": on_stash(sqlite, ("x" * 9000, "y" * 30_000), lambda s: s.update("a", lambda old: "y" * 30_000)),
    "directory dump": on_stash(directory, LARGE, lambda s: s.dump("a", LARGE[1])),
}


@pytest.mark.parametrize("how", ["kill", "refuse"])
@pytest.mark.parametrize("name", ["sqlite dump", "sqlite update", "directory dump"])
def test_files_that_can_not_grow(name, how, tmp_path):
    wrong, hurt = size_sweep(SIZED[name], tmp_path, 7000, how)
    assert wrong == []
    assert hurt >= 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "refuse"])
@pytest.mark.parametrize("name", SIZED)
def test_files_that_can_not_grow_by_small_steps(name, how, tmp_path):
    wrong, hurt = size_sweep(SIZED[name], tmp_path, 511, how)
    assert wrong == []
    assert hurt >= 20


# a full disk


def fill(kind, path):
    """Fill a small disk, and see that nothing is harmed; run in a process of its own, where ``path`` is that disk."""
    path = Path(path)
    make = {"directory": directory, "sqlite": sqlite}[kind]
    with make(path) as stash:
        stash.dump("old", "o" * 3000)
        ballast = path / "ballast"
        ballast.write_bytes(bytes(100 * 1024))
        kept = 0
        try:
            for kept in itertools.count():
                stash.dump(str(kept), str(kept) * 3000)
        except StorageError as err:
            assert err.errno == errno.ENOSPC, err
            assert "disk" in str(err) or "space" in str(err)
        assert kept >= 2
        for fresh in (stash, make(path)):
            assert fresh["old"] == "o" * 3000
            assert [fresh[str(number)] for number in range(kept)] == [str(number) * 3000 for number in range(kept)]
            assert sorted(fresh.keys()) == sorted(["old", *map(str, range(kept))])
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                stash.dump("old", "O" * 60_000)
            assert caught.value.errno == errno.ENOSPC
            assert stash["old"] == "o" * 3000
        assert not [name for name in names_in(path) if name.endswith(".tmp")]
        ballast.unlink()
        stash.dump("old", "O" * 6000)
        stash.dump("another", "a" * 6000)
        assert make(path)["old"] == "O" * 6000
    assert make(path)["another"] == "a" * 6000


def fill_by_work(path):
    """Do the same with the file of a work."""
    path = Path(path)
    work_at(path).set("o" * 3000)
    ballast = path / "ballast"
    with pytest.raises(OSError) as filled, ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    assert filled.value.errno == errno.ENOSPC
    for value in ("n" * 6000, [Blob(b"n" * 70_000)] * 2):
        work = work_at(path)
        with pytest.raises(StorageError) as caught:
            work.set(value)
        assert caught.value.errno == errno.ENOSPC
        assert "untouched" in str(caught.value)
        assert work() == work_at(path)() == "o" * 3000
        assert names_in(path) <= {"ballast", "work.dat", ".work.dat.lock"}
    ballast.unlink()
    work.set("n" * 6000)
    assert work_at(path)() == "n" * 6000


def fill_step_by_step(path, what):
    """Leave 0, 4, 8, … KiB free, do everything there is to do in what is left, and see that ``what`` is right."""
    path = Path(path)
    cases = {name: case for name, case in (FILES | DATABASE).items() if "fsync" not in name and "large" not in name}
    wrong = []
    for name, case in cases.items():
        for free in (*range(0, 48, 4), *range(48, 100, 16)):
            folder = path / "here"
            folder.mkdir()
            case.prepare(folder)
            disk = os.statvfs(path)
            ballast = path / "ballast"
            ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - free * 1024))
            usual, error = names_in(folder), None
            try:
                case.act(folder)
            except Exception as err:
                error = err
            ballast.unlink()
            usual |= names_in(folder) if error is None else {"data", ".work.dat.lock", "data.db", ".data.db.lock"}
            label = f"{name}, {free} KiB free"
            if what == "errno" and error is not None and getattr(error, "errno", None) != errno.ENOSPC:
                wrong.append(f"{label}: {error!r}")
            if what == "values":
                wrong += [f"{label}: {what}" for what in judge(case, folder, error, usual)]
            shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def run_on_a_small_disk(call, disk):
    """Run a function of this module with a disk of 256 KiB; ``None`` if that is refused."""
    code = f"from tests.faults.test_writes import *; {call}"
    command = on_a_small_disk([sys.executable, "-W", "error", "-c", code], disk)
    if command is None:
        return None
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


@pytest.mark.parametrize("call", ["fill('directory', {})", "fill('sqlite', {})", "fill_by_work({})"])
def test_a_full_disk(call, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = run_on_a_small_disk(call.format(repr(str(disk))), disk)
    if done is not None:
        assert done.returncode == 0, done.stderr
        return
    # No disk can be mounted here: files that can't grow are the next best.
    names = ["sqlite dump"] if "sqlite" in call else ["directory dump"]
    for name in names:
        wrong, hurt = size_sweep(SIZED[name], disk, 3000, "refuse")
        assert wrong == []
        assert hurt >= 5


@pytest.mark.parametrize("what", ["values", "errno"])
def test_a_disk_with_little_room(what, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = run_on_a_small_disk(f"fill_step_by_step({str(disk)!r}, {what!r})", disk)
    if done is not None:
        assert done.returncode == 0, done.stderr
        return
    for name in SIZED:
        wrong, hurt = size_sweep(SIZED[name], disk, 3000, "refuse")
        assert wrong == []
        assert hurt >= 2
        shutil.rmtree(disk)
        disk.mkdir()


# no more descriptors


def test_many_mapped_values_under_few_descriptors(tmp_path):
    data = {str(number): [Blob(bytes([number % 251]) * 66_000)] for number in range(300)}
    directory(tmp_path).dump_many(data)

    def load():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        loaded = dict(directory(tmp_path).items())
        assert loaded == data
        works = [PersistedWork(tmp_path / "data" / f"{key}.dat", None) for key in data]
        assert [work() for work in works] == list(data.values())

    assert forked(load) == 0


def without_descriptors(case, path, free):
    """Do something where only ``free`` descriptors can be opened, and return the error."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for _ in range(free):
        os.close(taken.pop())
    error = None
    try:
        case.act(path)
    except Exception as err:
        error = err
    for fd in taken:
        os.close(fd)
    return error


def reading(make, do):
    """Return the case of only reading."""
    return on_stash(make, SMALL, do, new=SMALL[0])


READS = {
    f"{kind} {name}": reading(make, do)
    for kind, make in (("directory", directory), ("sqlite", sqlite))
    for name, do in {
        "load": lambda s: s.load("a"),
        "keys": lambda s: list(s.keys()),
        "items": lambda s: list(s.items()),
        "load_many": lambda s: s.load_many(["a", "bystander"]),
    }.items()
}
HUNGRY = READS | DATABASE | {name: case for name, case in FILES.items() if "rename" in name}


@pytest.mark.parametrize("name", HUNGRY)
def test_no_more_descriptors(name, tmp_path):
    case = HUNGRY[name]
    usual = usual_names(case, tmp_path / "usual")

    def sweep():
        for free in itertools.count():
            path = tmp_path / str(free)
            path.mkdir()
            case.prepare(path)
            error = without_descriptors(case, path, free)
            assert error is None or isinstance(error, StorageError), f"{free} left: {error!r}"
            assert list(judge(case, path, error, usual)) == [], f"{free} left"
            if error is None:
                return

    assert forked(sweep) == 0


def test_the_error_about_descriptors_says_so(tmp_path):
    DUMP.prepare(tmp_path)

    def use_none():
        for do in (DUMP, READS["directory load"], FILES["work rename set"]):
            error = without_descriptors(do, tmp_path, 0)
            assert isinstance(error, StorageError)
            assert error.errno == errno.EMFILE
            assert str(tmp_path) in str(error)

    assert forked(use_none) == 0


# what reads may run into

READ_CALLS = ("open", "read", "pread", "preadv", "scandir")
READ_CASES = READS | {
    "directory load large": on_stash(directory, LARGE, lambda s: s.load("a"), new=LARGE[0]),
    "directory load private": on_stash(partial(directory, mmap=False), LARGE, lambda s: s.load("a"), new=LARGE[0]),
    "directory keys long": on_stash(directory, SMALL, lambda s: list(s.keys()), key=LONG, new=SMALL[0]),
    "directory update": FILES["directory rename update"],
    "work get": Case(lambda path: work_at(path).set(1), lambda path: work_at(path)(), read_work, 1, 1),
}


@pytest.mark.parametrize("name", [name for name in READ_CASES if not name.startswith("sqlite")])
def test_reads_that_fail(name, tmp_path):
    case = READ_CASES[name]
    for at in itertools.count(1):
        case.prepare(tmp_path)
        fault, error = Fault(at, spared=lambda name, args: False), None
        with watched(fault, READ_CALLS):
            try:
                case.act(tmp_path)
            except Exception as err:
                error = err
        if fault.hit is None:
            assert error is None
            assert at > 1
            break
        if fault.hit == "scandir" and name == "directory update":
            # Nobody waits for leftovers to be swept.
            assert error is None
            continue
        assert isinstance(error, StorageError), f"call {at} ({fault.hit}): {error!r}"
        assert error.errno == errno.EIO
        assert case.read(tmp_path) == case.old


@pytest.mark.parametrize("mmap", [True, False])
def test_short_reads(mmap, tmp_path):
    # The kernel gives at most 2 GiB at once.
    value = [Blob(bytes(range(251)) * 300), "x" * 300_000, Blob(b"second" * 20_000)]
    stash = directory(tmp_path, mmap=mmap)
    stash.dump("a", value)
    turns = 0

    def trip(name, real, fd, what, offset):
        nonlocal turns
        turns += 1
        return real(fd, min(what, 20_011) if name == "pread" else [memoryview(what[0])[:20_011]], offset)

    with watched(trip, ("pread", "preadv")):
        assert stash["a"] == value
    assert turns > 2


# the body of a method


class Method:
    def __init__(self, how):
        self.how = how

    @property
    @persisted("_v", path="method.dat")
    def v(self):
        if self.how == "raise":
            raise ZeroDivisionError
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return (lambda: None) if self.how == "unpicklable" else os.getpid()


@pytest.fixture
def method(elsewhere):
    """Return a class whose work lies in a file of this test."""

    class Here(Method):
        v = property(persisted("_v", path=elsewhere / "method.dat")(Method.v.fget.__wrapped__))

    return Here


@pytest.mark.parametrize("how", ["raise", "unpicklable", "die"])
def test_a_body_that_fails_leaves_nothing(how, method, elsewhere):
    def fail():
        owner = method(how)
        for _ in range(2):
            with pytest.raises(EncodeError if how == "unpicklable" else ZeroDivisionError):
                owner.v
            assert not owner._v.is_set()
        assert not (elsewhere / "method.dat").exists()
        owner.how = "well"
        assert owner.v == os.getpid()
        owner._v.clear()

    assert forked(fail) == (-signal.SIGKILL if how == "die" else 0)
    assert not [name for name in names_in(elsewhere) if not name.endswith(".lock")]

    def compute():
        assert method("well").v == os.getpid()

    assert forked(compute) == 0
    found = method("raise").v
    assert found not in (os.getpid(), None)


@pytest.mark.parametrize("how", ["raise", "unpicklable"])
def test_a_body_that_fails_leaves_what_was_there(how, method, elsewhere):
    first = method("well")
    assert first.v == os.getpid()
    before = (elsewhere / "method.dat").read_bytes()
    # A result of another version is computed again: the old file is there meanwhile.
    second = method(how)
    second._v = PersistedWork(elsewhere / "method.dat", second, version="2")
    with pytest.raises(EncodeError if how == "unpicklable" else ZeroDivisionError):
        second.v
    assert (elsewhere / "method.dat").read_bytes() == before
    assert method("raise").v == os.getpid()


# durability


class Log:
    """Writes down which calls were made, and on what."""

    def __init__(self, fails=lambda name, what: False):
        self.calls = []
        self.fails = fails

    def __call__(self, name, real, *args, **options):
        what = args[0]
        if name in ("fsync", "close"):
            try:
                what = os.readlink(f"/proc/self/fd/{args[0]}") if os.path.isdir("/proc/self/fd") else ""
            except OSError:
                what = ""
            is_dir = stat.S_ISDIR(os.fstat(args[0]).st_mode)
            self.calls.append((f"{name} {'directory' if is_dir else 'file'}", what))
        else:
            self.calls.append((name, os.fspath(args[1 if name in ("replace", "link") else 0])))
        if self.fails(*self.calls[-1]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **options)

    def of(self, *names):
        return [name for name, _ in self.calls if name in names]


SYNC = ("fsync", "replace", "link", "unlink", "mkdir")
FSYNC = {name: case for name, case in FILES.items() if " fsync " in name and "refused" not in name}
CHANGE = ("replace", "link", "unlink")


@pytest.mark.parametrize("name", FSYNC)
def test_the_order_of_syncs(name, tmp_path):
    case, log = FSYNC[name], Log()
    case.prepare(tmp_path)
    with watched(log, SYNC):
        case.act(tmp_path)
    calls = [name for name, _ in log.calls if name not in ("mkdir",)]
    changes = [position for position, call in enumerate(calls) if call in CHANGE]
    assert calls[-1] == "fsync directory", "the name is on the disk when it returns"
    if not name.endswith(("delete", "clear")):
        assert "fsync file" in calls[: changes[0]], "the content is on the disk before its name"


@pytest.mark.parametrize("name", [name for name in FILES if " rename " in name])
def test_without_fsync_there_is_none(name, tmp_path):
    log = Log()
    FILES[name].prepare(tmp_path)
    with watched(log, SYNC):
        FILES[name].act(tmp_path)
    assert log.of("fsync file", "fsync directory") == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the names of descriptors")
@pytest.mark.parametrize("kind", ["directory", "work", "sqlite"])
def test_new_directories_are_on_the_disk_too(kind, tmp_path):
    # The name of a new directory lies in its parent: without a sync of that the whole directory may be lost.
    log = Log()
    deep = tmp_path / "new" / "newer"
    with watched(log, SYNC):
        if kind == "directory":
            directory(deep, durability="fsync").dump("a", 1)
        elif kind == "sqlite":
            # That in which the database lies SQLite syncs itself.
            with sqlite(deep, durability="fsync") as stash:
                stash.dump("a", 1)
        else:
            PersistedWork(deep / "work.dat", None, mkdir=True, durability="fsync").set(1)
    made = [what for name, what in log.calls if name == "mkdir"]
    synced = {what for name, what in log.calls if name == "fsync directory"}
    assert str(deep) in made
    assert {os.path.dirname(folder) for folder in made} <= synced


@pytest.mark.parametrize("name", FSYNC)
def test_a_directory_that_can_not_be_synced(name, tmp_path):
    case = FSYNC[name]
    case.prepare(tmp_path)
    log = Log(lambda call, what: call == "fsync directory")
    with watched(log, SYNC), pytest.raises(OutcomeUnknownError) as caught:
        case.act(tmp_path)
    assert caught.value.errno == errno.EIO
    assert "synced" in str(caught.value)
    assert len(log.of("fsync directory")) == 1, "a failed fsync is never tried again"
    assert case.read(tmp_path) in (case.old, case.new)


@pytest.mark.parametrize("name", [name for name in FSYNC if not name.endswith(("delete", "clear"))])
def test_a_file_that_can_not_be_synced(name, tmp_path):
    case = FSYNC[name]
    usual = usual_names(case, tmp_path / "usual")
    path = tmp_path / "here"
    path.mkdir()
    case.prepare(path)
    log = Log(lambda call, what: call == "fsync file")
    with watched(log, SYNC), pytest.raises(StorageError) as caught:
        case.act(path)
    assert not isinstance(caught.value, OutcomeUnknownError)
    assert caught.value.errno == errno.EIO
    assert len(log.of("fsync file")) == 1, "a failed fsync is never tried again"
    assert log.of("replace", "link") == [], "what could not be synced is not put in place"
    assert case.read(path) == case.old
    assert names_in(path) <= usual


@pytest.mark.parametrize("durability, level", [("rename", 1), ("fsync", 2)])
def test_how_a_database_syncs(durability, level, tmp_path):
    levels = []
    real = sqlite3.connect

    class Told(sqlite3.Connection):
        def close(self):
            levels.append(
                (self.execute("PRAGMA synchronous").fetchone(), self.execute("PRAGMA journal_mode").fetchone())
            )
            super().close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(real, factory=Told))
        with sqlite(tmp_path, durability=durability) as stash:
            stash.dump("a", 1)
    assert levels == [((level,), ("wal",))]


# killed at any moment


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [directory, sqlite], ids=["directory", "sqlite"])
def test_killed_at_any_moment(make, seed, tmp_path):
    chance = random.Random(seed)
    values = [f"{number}" * 5000 for number in range(10)]
    with make(tmp_path) as stash:
        stash.dump_many(dict.fromkeys("abc", values[0]))

    def write():
        with make(tmp_path) as stash:
            for turn in itertools.count():
                key = "abc"[turn % 3]
                stash.dump(key, values[turn % 10])
                stash.update(key, lambda old: values[(values.index(old) + 1) % 10])

    for _ in range(100):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            with suppress(BaseException):
                write()
            os._exit(1)
        threading.Event().wait(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with make(tmp_path) as stash:
            assert sorted(stash.keys()) == ["a", "b", "c"]
            assert all(value in values for value in stash.values())
            stash.dump("a", values[0])
            assert stash["a"] == values[0]


# the sweeps can fail: writers that are broken on purpose


def in_place(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Cut the old value off, then write the new one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for part in parts:
            os.write(fd, part)
    except OSError as err:
        raise StorageError(err.errno, "can not write", path) from err
    finally:
        os.close(fd)


def unlink_first(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Delete the old value, then put the new one in its place."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    write_file(path, parts, durability=durability, place=place)


def says_nothing(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Take no notice of errors."""
    with suppress(StorageError):
        write_file(path, parts, durability=durability, place=place)


def leaves_rubbish(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Forget the temporary file."""
    try:
        fd = os.open(f"{path}.{os.urandom(4).hex()}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for part in parts:
                os.write(fd, part)
        finally:
            name = os.readlink(f"/proc/self/fd/{fd}")
            os.close(fd)
        place(name, path)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise StorageError(err.errno, "can not write", path) from err


def foreign_error(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Let the errors of the operating system through."""
    try:
        write_file(path, parts, durability=durability, place=place)
    except StorageError as err:
        raise err.__cause__ or err from None


def broken(patch, writer):
    patch.setattr(directory_module, "write_file", writer)
    patch.setattr(level_module, "write_file", writer)


FOUND_BY_FAULTS = {
    in_place: "reading raises CorruptValueError",
    unlink_first: "neither old nor new: 'nothing is there'",
    says_nothing: "no error was raised, and the old value is there",
    leaves_rubbish: "left behind",
    foreign_error: "is not one of our errors",
}
FOUND_BY_KILLS = {
    in_place: "reading raises CorruptValueError",
    unlink_first: "neither old nor new: 'nothing is there'",
}
OVER = ["directory rename dump", "work rename set"]


@pytest.mark.parametrize("name", OVER)
@pytest.mark.parametrize("writer", FOUND_BY_FAULTS)
def test_faults_find_a_broken_writer(writer, name, tmp_path, monkeypatch):
    broken(monkeypatch, writer)
    wrong, _ = fault_sweep(FILES[name], tmp_path, errno.ENOSPC, True)
    assert FOUND_BY_FAULTS[writer] in "\n".join(wrong)


@pytest.mark.parametrize("name", OVER)
@pytest.mark.parametrize("writer", FOUND_BY_KILLS)
def test_kills_find_a_broken_writer(writer, name, tmp_path, monkeypatch):
    broken(monkeypatch, writer)
    wrong, _ = kill_sweep(FILES[name], tmp_path)
    assert FOUND_BY_KILLS[writer] in "\n".join(wrong)


def test_files_that_can_not_grow_find_a_broken_writer(tmp_path, monkeypatch):
    broken(monkeypatch, in_place)
    wrong, _ = size_sweep(SIZED["directory dump"], tmp_path, 50_000, "kill")
    assert "CorruptValueError" in "\n".join(wrong)


def test_a_broken_database_is_found(tmp_path):
    class Torn(SqliteStash):
        """Deletes the old value in one transaction, and keeps the new one in the next."""

        def dump(self, name, inst):
            self.delete(name)
            super().dump(name, inst)

    case = on_stash(lambda path, **options: Torn(path / "data.db", **options), SMALL, lambda s: s.dump("a", SMALL[1]))
    wrong, _ = step_sweep(case, tmp_path, 5)
    assert "neither old nor new" in "\n".join(wrong)


def test_no_retry_of_fsync_is_really_watched(tmp_path):
    class Twice(Log):
        def __call__(self, name, real, *args, **options):
            if name == "fsync":
                with suppress(OSError):
                    return super().__call__(name, real, *args, **options)
            return super().__call__(name, real, *args, **options)

    case = FSYNC["directory fsync dump"]
    case.prepare(tmp_path)
    log = Twice(lambda call, what: call == "fsync file")
    with watched(log, SYNC), pytest.raises(StorageError):
        case.act(tmp_path)
    assert len(log.of("fsync file")) == 2


def test_the_place_of_temporary_files_is_that_of_the_value(tmp_path):
    seen = []

    def trip(name, real, *args, **options):
        if name == "open" and args[1] & os.O_CREAT:
            seen.append(os.path.dirname(args[0]))
        return real(*args, **options)

    with watched(trip):
        directory(tmp_path).dump("a", 1)
        work_at(tmp_path).set(1)
    assert set(seen) == {str(tmp_path / "data"), str(tmp_path)}
    assert atomic.TEMPORARY_PREFIX.startswith("."), "no pattern may begin with a dot: a key never has such a name"
