"""Filling a stash with processes: what is kept when something goes wrong, and what the next run does."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zpersist import (
    CacheStash,
    DictionaryStash,
    DirectoryStash,
    EncodeError,
    Failure,
    InvalidArgumentError,
    MultiProcessFactoryStash,
    MultiProcessRobustStash,
    MultiProcessStash,
    ReadOnlyStash,
    ShelveStash,
    SqliteStash,
    WorkerDiedError,
)

fork = multiprocessing.get_context("fork")


def note(name):
    fd = os.open("computed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{name}\n".encode())
    os.close(fd)


def noted():
    """Return what was computed since the last time."""
    path = Path("computed")
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(names, key=int)


class Squares(ReadOnlyStash):
    """A factory that can be made to fail: by a file that names the number and what should happen."""

    def __init__(self, n=20):
        self.n = n

    def load(self, name):
        note(name)
        trouble = Path(f"trouble-{name}")
        if trouble.exists():
            what = trouble.read_text()
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "exit":
                os._exit(3)
            if what == "wait":
                Path("waiting").touch()
                while trouble.exists():
                    threading.Event().wait(0.01)
            else:
                raise ValueError(f"item {name}")
        return None if name == "0" else int(name) ** 2

    def keys(self):
        return map(str, range(self.n))


class Chunked(MultiProcessStash):
    """The same by hooks: its keys are not known before."""

    n = 20

    def _create_data(self):
        return range(self.n)

    def _process(self, chunk):
        assert type(chunk) is list
        for number in chunk:
            yield f"k{number}", Squares().load(str(number))


class Sums(MultiProcessStash):
    def _create_data(self):
        return iter(range(9))

    def _process(self, chunk):
        yield str(min(chunk)), chunk


DELEGATES = {
    "directory": lambda: DirectoryStash("data"),
    "sqlite": lambda: SqliteStash("data.db"),
    "shelve": lambda: ShelveStash("data"),
    "cached": lambda: CacheStash(DirectoryStash("data")),
}

EXPECTED = {str(n): None if n == 0 else n * n for n in range(20)}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("delegate", [*DELEGATES, "dictionary"])
def test_fills(elsewhere, delegate, method):
    make = {**DELEGATES, "dictionary": DictionaryStash}[delegate]
    with MultiProcessFactoryStash(make(), Squares(), workers=2, start_method=method) as stash:
        assert dict(stash) == EXPECTED
        assert noted() == sorted(EXPECTED, key=int)
        assert len(stash) == 20
        assert noted() == []


@pytest.mark.parametrize("size", [0, 1, 3, 100])
@pytest.mark.parametrize("workers", [1, 2])
def test_hooks(elsewhere, size, workers):
    stash = Chunked(DirectoryStash("data"), chunk_size=size, workers=workers)
    assert "k7" in stash
    assert dict(stash) == {f"k{key}": value for key, value in EXPECTED.items()}
    assert len(noted()) == 20
    again = Chunked(DirectoryStash("data"), chunk_size=size, workers=workers)
    assert len(again) == 20
    assert noted() == []
    again.clear()
    assert len(again) == 20
    assert len(noted()) == 20


def test_chunks_are_what_was_asked_for(elsewhere):
    stash = Sums(DirectoryStash("data"), chunk_size=4, workers=2)
    assert dict(stash) == {"0": [0, 1, 2, 3], "4": [4, 5, 6, 7], "8": [8]}
    assert all(type(chunk) is list for chunk in stash.values())


def test_workers_do_the_work(elsewhere):
    class Pids(MultiProcessStash):
        def _create_data(self):
            return range(4)

        def _process(self, chunk):
            yield from ((str(number), os.getpid()) for number in chunk)

    pids = set(Pids(DirectoryStash("data"), workers=2, chunk_size=1).values())
    assert os.getpid() not in pids
    assert set(Pids(DirectoryStash("one"), workers=1).values()) == {os.getpid()}


# something goes wrong


@pytest.mark.parametrize("delegate", DELEGATES)
def test_an_exception_keeps_what_is_finished_and_the_next_run_does_the_rest(elsewhere, delegate):
    Path("trouble-7").write_text("raise")
    for _ in range(2):
        with MultiProcessFactoryStash(DELEGATES[delegate](), Squares(), workers=2, chunk_size=5) as stash:
            with pytest.raises(ValueError, match="item 7"):
                len(stash)
            there = set(stash.delegate.keys())
            assert {"0", "4", "5", "6"} <= there
            assert "7" not in there
    noted()
    os.unlink("trouble-7")
    with MultiProcessFactoryStash(DELEGATES[delegate](), Squares(), workers=2, chunk_size=5) as stash:
        assert dict(stash) == EXPECTED
        assert noted() == sorted(EXPECTED.keys() - there, key=int)


def test_hooks_resume_by_chunks(elsewhere):
    Path("trouble-7").write_text("raise")
    with pytest.raises(ValueError, match="item 7"):
        Chunked(DirectoryStash("data"), workers=2, chunk_size=2).prime()
    finished = {int(path.name[1:-4]) for path in Path("data").glob("k*.dat")}
    assert 6 in finished
    noted()
    os.unlink("trouble-7")
    stash = Chunked(DirectoryStash("data"), workers=2, chunk_size=2)
    assert len(stash) == 20
    # Of the chunk (6, 7) the first was there; all other chunks that had been finished are not done again.
    again = set(map(int, noted()))
    assert again & finished <= {6}
    assert again | finished == set(range(20))


@pytest.mark.parametrize("what", ["kill", "exit"])
@pytest.mark.parametrize("kind", [MultiProcessFactoryStash, MultiProcessRobustStash])
@pytest.mark.parametrize("delegate", [*DELEGATES, "dictionary"])
def test_a_poison_item_is_found_and_all_others_finish(elsewhere, what, kind, delegate):
    Path("trouble-7").write_text(what)
    make = {**DELEGATES, "dictionary": DictionaryStash}[delegate]
    stash = kind(make(), Squares(), workers=2)
    if kind is MultiProcessFactoryStash:
        with pytest.raises(WorkerDiedError, match="'7' killed its worker 3 times .*all others are done"):
            stash.prime()
        assert dict(stash.delegate) == {key: value for key, value in EXPECTED.items() if key != "7"}
    else:
        assert isinstance(stash["7"], Failure)
        assert isinstance(stash["7"].exception, WorkerDiedError)
        assert {key: value for key, value in stash if key != "7"} == {k: v for k, v in EXPECTED.items() if k != "7"}
    done = noted()
    assert done.count("7") == 3
    assert stash.summary.deaths == 3
    os.unlink("trouble-7")
    stash = kind(stash.delegate, Squares(), workers=2)
    assert dict(stash) == EXPECTED
    assert noted() == ["7"]
    stash.close()


def alive(marker):
    """Return the processes that still run with a marker in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"MARKER={marker}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from tests.parallel.test_multiprocess import *
if __name__ == "__main__":
    print(len({make}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "make",
    [
        'MultiProcessFactoryStash(DirectoryStash("data"), Squares(), workers=2, chunk_size=5)',
        'Chunked(DirectoryStash("data"), workers=2, chunk_size=1)',
        'MultiProcessFactoryStash(DirectoryStash("data"), Squares(), workers=2, chunk_size=5, start_method="spawn")',
    ],
)
def test_a_parent_that_is_stopped_leaves_no_orphans_and_goes_on(elsewhere, number, make):
    program = Path("program.py")
    program.write_text(PROGRAM.format(root=str(Path(__file__).parents[2]), make=make))
    Path("trouble-12").write_text("wait")
    marker = f"zpersist-{os.getpid()}-{number}"
    command = [sys.executable, str(program)]
    env = {**os.environ, "MARKER": marker}
    parent = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not os.path.exists("waiting"):
        assert parent.poll() is None, parent.stderr.read().decode()
        threading.Event().wait(0.01)
    parent.send_signal(number)
    _, err = parent.communicate()
    assert parent.returncode != 0
    if number == signal.SIGINT:
        what = "chunks" if "Chunked" in make else "items"
        assert err.decode().strip().splitlines()[-2:] == [
            "KeyboardInterrupt",
            f"{what} that were finished are kept: the next run goes on from there",
        ]
    for _ in range(500):
        if not alive(marker):
            break
        threading.Event().wait(0.01)
    assert alive(marker) == []
    os.unlink("trouble-12")
    before = {path.name for path in Path("data").glob("*.dat")}
    assert before
    noted()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "20\n", done.stderr
    # Of work whose keys aren't known before, the parent notes which chunks are finished: those it was just told of.
    again = set(noted()) & ({name.strip("k.dat") for name in before} - {"12"})
    assert len(again) <= (4 if "Chunked" in make else 0)


def test_two_parents_compute_once(elsewhere):
    barrier = fork.Barrier(2)

    def fill():
        barrier.wait()
        assert len(MultiProcessFactoryStash(DirectoryStash("data"), Squares(), workers=2)) == 20

    # Not daemons, for they have children of their own.
    parents = [fork.Process(target=fill) for _ in range(2)]
    for parent in parents:
        parent.start()
    for parent in parents:
        parent.join()
        assert parent.exitcode == 0
        parent.close()
    assert len(noted()) == 20


# failures


def test_failures_are_values_and_are_tried_again(elsewhere):
    for number in (3, 5):
        Path(f"trouble-{number}").write_text("raise")

    def make():
        return MultiProcessRobustStash(DirectoryStash("data"), Squares(), workers=2, chunk_size=2)

    stash = make()
    assert len(stash) == 20
    assert dict(stash.iterfails()).keys() == {"3", "5"}
    assert isinstance(stash["3"], Failure)
    assert str(stash["3"]) == "item 3"
    assert "ValueError: item 3" in stash["3"].traceback_str
    with pytest.raises(ValueError, match="item 3"):
        stash["3"].rethrow()
    noted()
    os.unlink("trouble-3")
    # The next run tries the failed ones, and only those.
    assert make()["3"] == 9
    assert noted() == ["3", "5"]
    os.unlink("trouble-5")
    stash = make()
    stash.retry_failed = False
    assert isinstance(stash["5"], Failure)
    assert noted() == []
    assert stash.reprocess_failures() == {"5"}
    assert noted() == ["5"]
    assert dict(stash) == EXPECTED
    assert dict(make()) == EXPECTED
    assert noted() == ["5"] * 0


def test_without_protection_it_raises(elsewhere):
    Path("trouble-3").write_text("raise")
    stash = MultiProcessRobustStash(DirectoryStash("data"), Squares(), protect_work=False, workers=2)
    with pytest.raises(ValueError, match="item 3"):
        stash.prime()


def test_what_is_deleted_is_made_again(elsewhere):
    stash = MultiProcessRobustStash(DirectoryStash("data"), Squares(), workers=2)
    assert len(stash) == 20
    for key in ("3", "5"):
        stash.delegate.key_to_path(key).unlink()
    assert len(stash.delegate) == 18
    noted()
    stash.invalidate()
    assert len(stash) == 20
    assert noted() == ["3", "5"]
    always = MultiProcessFactoryStash(DirectoryStash("data"), Squares(), "always")
    assert len(always) == 20
    always.delegate.delete("4")
    assert always["4"] == 16


class CannotBeUnpickled(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


UNGUARDED = """
import sys, threading
from zpersist import DirectoryStash, MultiProcessStash

class Squares(MultiProcessStash):
    def _create_data(self):
        return range(4)
    def _process(self, chunk):
        for n in chunk:
            yield str(n), n * n

if "thread" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(len(Squares(DirectoryStash("squares"), workers=2, start_method=None if "thread" in sys.argv else "spawn")))
"""


@pytest.mark.parametrize("how", ["spawn", "thread"])
def test_a_script_without_a_guard_is_told_so(elsewhere, how):
    Path("script.py").write_text(UNGUARDED)
    run = subprocess.run([sys.executable, "script.py", how], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert "if __name__ == '__main__':" in run.stderr
    assert "WorkerDiedError" in run.stderr


@pytest.mark.parametrize("wrong, words", [(None, "it returned None"), ([3], "not 3"), (["ab"], "not 'ab'")])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_process_must_yield(elsewhere, workers, wrong, words):
    class Wrong(Chunked):
        def _process(self, chunk):
            return wrong

    stash = Wrong(DirectoryStash("data"), workers=workers, start_method="fork")
    with pytest.raises(InvalidArgumentError, match=rf"Wrong\._process must yield \(key, value\) pairs, {words}"):
        stash.prime()


def test_an_error_names_the_key(elsewhere):
    Path("trouble-3").write_text("raise")
    for workers in (1, 2):
        stash = MultiProcessFactoryStash(DirectoryStash("data"), Squares(), workers=workers)
        with pytest.raises(ValueError, match="item 3") as caught:
            stash.prime()
        assert "while MultiProcessFactoryStash made '3'" in caught.value.__notes__


def test_failure():
    with pytest.raises(InvalidArgumentError, match="no exception"):
        Failure()
    try:
        raise CannotBeUnpickled("one", "two")
    except CannotBeUnpickled:
        failure = Failure(thrower=object())
    twin = pickle.loads(pickle.dumps(failure))
    assert [str(twin), twin.traceback_str] == ["one two", failure.traceback_str]
    with pytest.raises(CannotBeUnpickled, match="one two"):
        twin.rethrow()


# parameters


@pytest.mark.parametrize("workers", [0.0, 1.5, -0.5, -10_000, True, "2", None])
def test_workers_out_of_range(workers):
    with pytest.raises(InvalidArgumentError, match="workers"):
        MultiProcessFactoryStash(DictionaryStash(), DictionaryStash(), workers=workers)


@pytest.mark.parametrize("size", [-1, 1.5, True, "2", None])
def test_chunk_size_out_of_range(size):
    with pytest.raises(InvalidArgumentError, match="chunk_size"):
        MultiProcessFactoryStash(DictionaryStash(), DictionaryStash(), chunk_size=size)


def test_other_parameters():
    with pytest.raises(InvalidArgumentError, match="start_method"):
        MultiProcessFactoryStash(DictionaryStash(), DictionaryStash(), start_method="teleport")
    with pytest.raises(InvalidArgumentError, match="enable_preemptive"):
        MultiProcessFactoryStash(DictionaryStash(), DictionaryStash(), "sometimes")


@pytest.mark.parametrize(("workers", "count"), [(0, None), (1, 1), (3, 3), (1.0, None), (0.01, 1)])
def test_worker_counts(workers, count):
    from zpersist.parallel.guard import available_cores

    stash = MultiProcessFactoryStash(DictionaryStash(), DictionaryStash(), workers=workers)
    assert stash._worker_count() == (available_cores() if count is None else count)


def test_a_stash_that_can_not_travel(elsewhere):
    class Local(Squares):
        pass

    stash = MultiProcessFactoryStash(DirectoryStash("data"), Local(), workers=2, start_method="spawn")
    assert len(stash) == 20
    lock = threading.Lock()
    stash = MultiProcessFactoryStash(DirectoryStash("more"), Local(), workers=2, start_method="spawn")
    stash.factory.lock = lock
    with pytest.raises(EncodeError, match="start_method='fork'"):
        stash.prime()
    stash = MultiProcessFactoryStash(DirectoryStash("more"), stash.factory, workers=2, start_method="fork")
    assert len(stash) == 20


def test_forking_is_not_chosen_in_a_process_with_threads(elsewhere):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert len(MultiProcessFactoryStash(DirectoryStash("data"), Squares(), workers=2)) == 20
    finally:
        stop.set()
        thread.join()


def test_progress(elsewhere, capsys):
    stash = MultiProcessFactoryStash(DirectoryStash("data"), Squares(), workers=2, chunk_size=5, progress=True)
    assert len(stash) == 20
    assert "20/20" in capsys.readouterr().err


def test_an_endless_source_is_taken_bit_by_bit(elsewhere):
    taken = []

    class Endless(MultiProcessStash):
        def _create_data(self):
            for number in range(10_000):
                taken.append(number)
                yield number

        def _process(self, chunk):
            if 50 in chunk:
                raise ZeroDivisionError
            yield from ((str(number), number) for number in chunk)

    delegate = DictionaryStash()
    with pytest.raises(ZeroDivisionError):
        len(Endless(delegate, workers=2, chunk_size=5))
    # What is kept, the chunk that failed, and no more than the chunk that was not given out any more.
    assert len(taken) <= len(delegate) + 2 * 5
