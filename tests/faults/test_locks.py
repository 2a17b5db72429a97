"""Locks exclude, are given back, and die with their holder: among threads and among processes that are really killed.

Each test runs for both kinds of locks: ranges of one file (Linux), and a file for each name (elsewhere).
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.test_writes import forked
from zpersist import DirectoryStash, StorageError
from zpersist.files.locks import KeyLocks, directory_lock
from zpersist.testing.suite import in_threads

#: Longer than anything takes; reached only by a lock that is never given back.
LONG = 30

RANGES = [pytest.param(True, id="ranges"), pytest.param(False, id="files")]


@pytest.fixture(params=RANGES)
def locks(request, tmp_path):
    """Return locks, the same ones each time it is called."""
    return lambda path=tmp_path / "lock": KeyLocks(str(path), ranges=request.param)


def descriptors():
    return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []


@pytest.fixture(autouse=True)
def no_descriptor_is_left(tmp_path):
    # What is imported and opened by the first use is none of a lock's.
    for ranges in (True, False):
        with KeyLocks(str(tmp_path / "first"), ranges=ranges).hold("first"):
            pass
    before = descriptors()
    yield
    assert descriptors() == before


def is_free(locks, name="a"):
    try:
        locks.acquire(name, timeout=0).release()
    except TimeoutError:
        return False
    return True


class Child:
    """A process that does something, says so, and waits until it is told to go on or is killed."""

    def __init__(self, run):
        self._said, say = os.pipe()
        wait, self._go = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 and later warn of a fork while there are threads; the child here uses none.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._said)
                os.close(self._go)

                def pause():
                    os.write(say, b".")
                    os.read(wait, 1)

                run(pause)
                code = 0
            finally:
                os._exit(code)
        os.close(say)
        os.close(wait)

    def await_pause(self):
        assert os.read(self._said, 1) == b".", "the child ended before it paused"

    def go_on(self):
        os.write(self._go, b".")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.end()

    def end(self):
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._said)
        os.close(self._go)
        return code


@contextmanager
def child(run):
    """Run a function in a child until it pauses; let it go on at the end, and see that it ends well."""
    process = Child(run)
    process.await_pause()
    yield process
    process.go_on()
    assert process.end() == 0


def holding(locks, name="a"):
    def run(pause):
        with locks.hold(name):
            pause()

    return run


# exclusion


def test_threads_exclude_each_other(locks):
    inside = most = 0

    def use(number):
        nonlocal inside, most
        # Some share the object, some have one of their own.
        mine = shared if number % 2 else locks()
        for _ in range(25):
            with mine.hold("a"):
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0.0001)
                inside -= 1

    shared = locks()
    in_threads(4, use)
    assert (inside, most) == (0, 1)


def test_processes_exclude_each_other(locks, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(pause):
        pause()
        for _ in range(50):
            with locks().hold("a"):
                number = int(counter.read_text())
                os.sched_yield()
                counter.write_text(str(number + 1))

    children = [Child(count) for _ in range(3)]
    for process in children:
        process.await_pause()
    for process in children:
        process.go_on()
    assert [process.end() for process in children] == [0, 0, 0]
    assert counter.read_text() == "150"


def test_without_a_lock_the_same_count_goes_wrong(tmp_path):
    # What the test above relies on: that processes that meet are found out.
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(pause):
        number = int(counter.read_text())
        pause()
        counter.write_text(str(number + 1))

    children = [Child(count) for _ in range(3)]
    for process in children:
        process.await_pause()
    for process in children:
        process.go_on()
    assert [process.end() for process in children] == [0, 0, 0]
    assert counter.read_text() == "1"


def test_a_process_that_holds_shuts_out_others(locks):
    with child(holding(locks())):
        assert not is_free(locks())
        assert not any(in_threads(3, lambda _: is_free(locks())))
    assert is_free(locks())


def test_one_who_waits_gets_it_when_it_is_given_back(locks):
    handle = locks().acquire("a")
    got = []

    def wait(pause):
        pause()
        with locks().hold("a", timeout=LONG):
            pass

    process = Child(wait)
    process.await_pause()
    thread = threading.Thread(target=lambda: got.append(locks().acquire("a", LONG)))
    thread.start()
    process.go_on()
    threading.Event().wait(0.05)
    assert not got
    handle.release()
    thread.join(LONG)
    assert len(got) == 1
    got[0].release()
    assert process.end() == 0


def test_names_do_not_exclude_each_other(locks):
    names = ["a", "b", "A", "", "a/b", "\0", "\ud800", "x" * 5000, "\U0001f600"]
    handles = [locks().acquire(name, timeout=0) for name in names]
    with child(holding(locks(), "another")):
        assert [is_free(locks(), name) for name in names] == [False] * len(names)
    assert [is_free(locks(), name) for name in ("another", "c")] == [True, True]
    for handle in handles:
        handle.release()
    assert all(is_free(locks(), name) for name in names)


def test_files_do_not_exclude_each_other(locks, tmp_path):
    with locks().hold("a"):
        assert is_free(locks(tmp_path / "other"))


def test_a_thread_may_hold_it_again(locks):
    mine = locks()
    with mine.hold("a"), mine.hold("b"), mine.hold("a"), locks().hold("a"), mine.hold("b"):
        assert not is_free(mine)
        assert not is_free(mine, "b")
        assert in_threads(1, lambda _: is_free(mine)) == [False]
    assert is_free(mine)
    assert is_free(mine, "b")


def test_the_innermost_does_not_give_it_back(locks):
    mine = locks()
    with mine.hold("a"):
        with mine.hold("a"):
            pass
        assert not is_free(mine)
        with suppress(ZeroDivisionError), mine.hold("a"):
            raise ZeroDivisionError
        assert not is_free(mine)
    assert is_free(mine)


def test_an_exception_gives_it_back(locks):
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), locks().hold("a"):
            raise ZeroDivisionError
        assert is_free(locks())


def test_given_back_twice_is_given_back_once(locks):
    handle = locks().acquire("a")
    handle.release()
    with locks().hold("a"):
        handle.release()
        assert not is_free(locks())


# waiting


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_timeout(locks, timeout, tmp_path):
    with child(holding(locks())):
        for wait in (lambda: locks().acquire("a", timeout), lambda: locks().hold("a", timeout).__enter__()):
            with pytest.raises(TimeoutError) as caught:
                wait()
            assert "'a'" in str(caught.value)
            assert str(tmp_path) in str(caught.value)
    with locks().hold("a", timeout):
        pass


def test_one_who_gave_up_does_not_hold_it(locks):
    mine = locks()
    with child(holding(locks())):
        with pytest.raises(TimeoutError), mine.hold("a", 0):
            raise AssertionError
    with mine.hold("a", 0):
        assert not is_free(locks())


class Enough(BaseException):
    pass


@pytest.mark.parametrize("timeout", [-1, LONG])
def test_an_interrupt_while_waiting(locks, timeout):
    def enough(number, frame):
        raise Enough

    before = signal.signal(signal.SIGALRM, enough)
    try:
        with child(holding(locks())):
            with pytest.raises(Enough):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with locks().hold("a", timeout):
                    raise AssertionError
            assert not is_free(locks())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert is_free(locks())


# death


def test_the_death_of_the_holder_frees_it(locks):
    for _ in range(5):
        process = Child(holding(locks()))
        process.await_pause()
        assert not is_free(locks())
        assert process.kill() == -signal.SIGKILL
        assert is_free(locks())


def test_the_death_of_the_holder_lets_in_one_who_waits(locks):
    holder = Child(holding(locks()))
    holder.await_pause()

    def wait(pause):
        pause()
        with locks().hold("a", LONG):
            pass

    waiting = [Child(wait) for _ in range(3)]
    for process in waiting:
        process.await_pause()
        process.go_on()
    got = []
    thread = threading.Thread(target=lambda: got.append(locks().acquire("a", LONG)))
    thread.start()
    assert holder.kill() == -signal.SIGKILL
    thread.join(LONG)
    assert len(got) == 1
    got[0].release()
    assert [process.end() for process in waiting] == [0, 0, 0]


def test_the_death_of_one_who_waits_harms_nobody(locks):
    with locks().hold("a"):

        def wait(pause):
            pause()
            locks().acquire("a")

        process = Child(wait)
        process.await_pause()
        process.go_on()
        threading.Event().wait(0.02)
        assert process.kill() == -signal.SIGKILL
        assert not is_free(locks())
    assert is_free(locks())


# forks


def test_a_forked_child_does_not_hold_what_its_parent_holds(locks):
    with locks().hold("a"):

        def see():
            assert not is_free(locks())
            with pytest.raises(TimeoutError), locks().hold("a", 0):
                pass

        assert forked(see) == 0


def test_a_forked_child_does_not_give_back_what_its_parent_holds(locks):
    mine = locks()

    def fork_inside():
        with mine.hold("a"):
            pid = os.fork()
            if pid:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert not in_threads(1, lambda _: is_free(mine))[0]
                assert forked(lambda: is_free(mine) and os._exit(9)) == 0
                return
        # The child came out of the with statement as if it were its own.
        os._exit(0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert forked(fork_inside) == 0
        handle = mine.acquire("a")
        assert forked(handle.release) == 0
    assert not is_free(mine)
    handle.release()


def test_a_forked_child_does_not_keep_it_when_the_parent_gives_it_back(locks):
    handle = locks().acquire("a")
    with child(lambda pause: pause()):
        handle.release()
        assert is_free(locks())


def test_a_forked_child_does_not_keep_it_when_the_parent_dies(locks, tmp_path):
    with locks().hold("b"):
        pass
    pids = tmp_path / "pids"

    def fork_and_hold(pause):
        with locks().hold("a"):
            read, write = os.pipe()
            grandchild = os.fork()
            if not grandchild:
                # Alive, with all it has inherited, until this test kills it.
                os.write(write, b".")
                signal.pause()
                os._exit(0)
            os.read(read, 1)
            pids.write_text(str(grandchild))
            pause()

    process = Child(fork_and_hold)
    process.await_pause()
    grandchild = int(pids.read_text())
    try:
        assert not is_free(locks())
        assert process.kill() == -signal.SIGKILL
        assert is_free(locks())
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_program_that_is_started_does_not_keep_it(locks):
    handle = locks().acquire("a")
    program = [sys.executable, "-c", "import sys; print('on', flush=True); sys.stdin.read()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as process:
        assert process.stdout.readline() == b"on\n"
        handle.release()
        assert is_free(locks())
        process.stdin.close()
    assert process.returncode == 0


def test_locks_of_a_thread_are_not_kept_by_a_child_forked_by_another(locks):
    ready, done = threading.Event(), threading.Event()

    def hold():
        with locks().hold("a"):
            ready.set()
            done.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait(LONG)
    with child(lambda pause: pause()):
        assert not is_free(locks())
        done.set()
        thread.join(LONG)
        assert is_free(locks())


# the lock file


def inodes(path):
    return {file.name: file.stat().st_ino for file in path.iterdir() if file.is_file()}


def test_a_lock_file_is_never_unlinked(locks, tmp_path):
    with locks().hold("a"):
        before = inodes(tmp_path)
    assert before
    process = Child(holding(locks()))
    process.await_pause()
    process.kill()
    for _ in range(3):
        with locks().hold("a"), suppress(TimeoutError), locks().hold("a", 0):
            pass
        is_free(locks())
    in_threads(3, lambda _: is_free(locks()))
    assert inodes(tmp_path) == before


def test_ranges_of_one_file_serve_all_names(tmp_path):
    locks = KeyLocks(str(tmp_path / "lock"), ranges=True)
    handles = [locks.acquire(str(number)) for number in range(100)]
    assert not is_free(locks, "50")
    for handle in handles:
        handle.release()
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("lock")] == ["lock"]
    assert (tmp_path / "lock").stat().st_size == 0


def test_nothing_is_written_to_a_lock_file_and_it_is_private(locks, tmp_path):
    with locks(tmp_path / "new" / "newer" / "lock").hold("a"):
        pass
    made = list((tmp_path / "new").rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "new", *made] if path.is_dir()} == {0o700}
    assert all(path.stat().st_size == 0 for path in made if path.is_file())


def test_a_lock_file_that_can_not_be_made(locks, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "lock", tmp_path / "x" / ("long" * 100)):
        with pytest.raises(StorageError) as caught:
            locks(path).acquire("a")
        assert str(path) in str(caught.value) or str(tmp_path / "file") in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_in_the_place_of_the_lock_file(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(StorageError) as caught:
        KeyLocks(str(tmp_path / "lock"), ranges=True).acquire("a")
    assert caught.value.errno == errno.EISDIR
    assert str(tmp_path / "lock") in str(caught.value)


def give_up_privileges():
    """Become one to whom permissions apply; the superuser stays who he is, and gives up his power over files."""
    if os.geteuid() == 0:
        import ctypes

        # capset(2): the lowest bits are CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER.
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("ranges", RANGES)
def test_where_the_place_beside_can_not_be_written_to(ranges, tmp_path):
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o500)

    def use():
        give_up_privileges()
        beside = KeyLocks.beside(str(folder))
        locks = KeyLocks(beside.path, fallback=f"{folder}/.lock", ranges=ranges)
        with locks.hold("a", 0), child(lambda pause: pause()):
            assert not is_free(locks)
        assert {path.parent for path in tmp_path.rglob("*lock*")} == {folder}
        folder.chmod(0o500)
        for file in folder.iterdir():
            file.chmod(0)
        with pytest.raises(StorageError) as caught:
            KeyLocks(beside.path, fallback=f"{folder}/.another", ranges=ranges).acquire("a")
        assert caught.value.errno == errno.EACCES

    try:
        assert forked(use) == 0
    finally:
        folder.parent.chmod(0o700)
        folder.chmod(0o700)


def test_no_descriptor_is_left_by_many(locks):
    before = descriptors()
    for number in range(50):
        with locks().hold(str(number)):
            pass
        with locks().hold("held"), suppress(TimeoutError):
            locks().acquire("held", 0)
    assert descriptors() == before


# a directory


def directory_is_free(path, shared):
    """Whether a process of its own can lock a directory at once."""
    import fcntl

    def take():
        fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os._exit(9)

    return {0: True, 9: False}[forked(take)]


@pytest.mark.parametrize("shared", [True, False])
def test_a_directory_is_locked(shared, tmp_path):
    with directory_lock(str(tmp_path), shared=shared):
        assert directory_is_free(tmp_path, shared=True) == shared
        assert not directory_is_free(tmp_path, shared=False)
    assert directory_is_free(tmp_path, shared=False)


def test_several_share_a_directory(tmp_path):
    def share(pause):
        with directory_lock(str(tmp_path), shared=True):
            pause()

    with child(share), child(share), directory_lock(str(tmp_path), shared=True):
        assert not directory_is_free(tmp_path, shared=False)
    assert directory_is_free(tmp_path, shared=False)


def test_threads_exclude_each_other_from_a_directory(tmp_path):
    inside = most = 0

    def use(_):
        nonlocal inside, most
        for _ in range(25):
            with directory_lock(str(tmp_path), shared=False):
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0.0001)
                inside -= 1

    in_threads(4, use)
    assert most == 1


def test_death_frees_a_directory(tmp_path):
    def hold(pause):
        with directory_lock(str(tmp_path), shared=False):
            pause()

    process = Child(hold)
    process.await_pause()
    assert not directory_is_free(tmp_path, shared=True)
    assert process.kill() == -signal.SIGKILL
    assert directory_is_free(tmp_path, shared=False)


def test_a_forked_child_does_not_keep_a_directory(tmp_path):
    lock = directory_lock(str(tmp_path), shared=False)
    lock.__enter__()
    with child(lambda pause: pause()):
        assert not directory_is_free(tmp_path, shared=True)
        assert forked(lambda: lock.__exit__(None, None, None)) == 0
        assert not directory_is_free(tmp_path, shared=True)
        lock.__exit__(None, None, None)
        assert directory_is_free(tmp_path, shared=False)


def test_a_forked_child_does_not_keep_a_directory_when_the_parent_dies(tmp_path):
    pids = tmp_path / "pids"
    folder = tmp_path / "folder"
    folder.mkdir()

    def fork_and_hold(pause):
        with directory_lock(str(folder), shared=False):
            read, write = os.pipe()
            grandchild = os.fork()
            if not grandchild:
                os.write(write, b".")
                signal.pause()
                os._exit(0)
            os.read(read, 1)
            pids.write_text(str(grandchild))
            pause()

    process = Child(fork_and_hold)
    process.await_pause()
    try:
        assert process.kill() == -signal.SIGKILL
        assert directory_is_free(folder, shared=False)
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)


def test_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError), directory_lock(str(tmp_path / "missing"), shared=True):
        raise AssertionError
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught, directory_lock(str(tmp_path / "file"), shared=True):
        raise AssertionError
    assert caught.value.errno == errno.ENOTDIR
    assert str(tmp_path / "file") in str(caught.value)


def test_nothing_lies_in_a_locked_directory(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with directory_lock(str(folder), shared=False):
        assert list(folder.iterdir()) == []
    assert list(folder.iterdir()) == []


# as a stash uses them


def test_writers_are_not_shut_out_by_one_who_computes(tmp_path):
    stash = DirectoryStash(tmp_path / "data")
    stash.dump("a", 1)

    def hold(pause):
        with stash._flight("a"):
            pause()

    with child(hold):
        stash.dump("a", 2)
        assert stash["a"] == 2
        with stash._flight("b"):
            pass


def test_a_lock_is_found_by_a_relative_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absolute, relative = DirectoryStash(tmp_path / "data"), DirectoryStash(Path("data"))
    assert absolute._locks.path == relative._locks.path
