"""The function form, and what is asked of workers: policies, limits, order, logs."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from zpersist import (
    DictionaryStash,
    DirectoryStash,
    EncodeError,
    Failure,
    InvalidArgumentError,
    InvalidDelegateError,
    ItemTimeoutError,
    MultiProcessFactoryStash,
    MultiProcessStash,
    NoopStash,
    ReadOnlyStash,
    SqliteStash,
    StorageError,
    UnsupportedOperationError,
    WorkerDiedError,
    fill,
)
from zpersist.testing.reading import in_child

STORES = {
    "directory": lambda: DirectoryStash("data"),
    "sqlite": lambda: SqliteStash("data.db"),
    "dictionary": DictionaryStash,
}


class Sink(NoopStash):
    """Takes everything, from all processes, and keeps nothing."""

    shared = True

    def exists(self, name):
        return True


def square(n):
    return n * n


def tell(name):
    """Write down, for all processes to see, that something was done."""
    fd = os.open("told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{name}\n".encode())
    os.close(fd)


def told():
    path = Path("told")
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("store", STORES)
def test_a_closure_fills(elsewhere, store, method):
    stash, base = STORES[store](), 7
    summary = fill(stash, lambda n: n + base, range(50), workers=2, start_method=method)
    assert dict(stash) == {str(n): n + 7 for n in range(50)}
    assert [summary.done, summary.there, summary.failures] == [50, 0, {}]
    again = fill(stash, lambda n: n + base, range(60), workers=2, start_method=method)
    assert [again.done, again.there] == [10, 50]
    assert "50 were there" in str(again)
    stash.close()


def test_what_a_forked_worker_needs_is_not_copied(elsewhere):
    class Data:
        def __reduce__(self):
            raise TypeError("never pickled")

    data, lock = Data(), threading.Lock()
    stash = DirectoryStash("data")
    fill(stash, lambda n: (id(data), lock.locked()), range(10), workers=2, start_method="fork")
    assert set(stash.values()) == {(id(data), False)}


def test_keys(elsewhere):
    stash = DirectoryStash("data")
    fill(stash, lambda path: path.name, [Path("a/b"), Path("c")], key=str, workers=2)
    assert dict(stash) == {"a/b": "b", "c": "c"}
    with pytest.raises(InvalidArgumentError, match=r"item PosixPath\('d'\) is of type PosixPath.*give key="):
        fill(stash, square, [Path("d")], workers=1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("on_error", ["skip", "store"])
def test_what_fails_does_not_stop_the_others(elsewhere, on_error, store, workers):
    def inverse(n):
        return 1 / (n - 5)

    stash = STORES[store]()
    summary = fill(stash, inverse, range(20), workers=workers, on_error=on_error)
    assert summary.done == 19
    assert list(summary.failures) == ["5"]
    assert "ZeroDivisionError: division by zero" in summary.failures["5"].traceback_str
    if on_error == "store":
        assert isinstance(stash["5"], Failure)
        assert len(stash) == 20
    else:
        assert "5" not in stash
        assert len(stash) == 19
    stash.close()


class Fragile(ReadOnlyStash):
    def load(self, name):
        tell(name)
        if Path(f"bad-{name}").exists():
            raise ValueError(f"bad {name}")
        return int(name)

    def keys(self):
        return map(str, range(12))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("on_error", ["skip", "store"])
def test_failures_are_listed_and_tried_again(elsewhere, on_error, workers):
    for name in ("3", "8"):
        Path(f"bad-{name}").touch()
    stash = MultiProcessFactoryStash(DirectoryStash("data"), Fragile(), on_error=on_error, workers=workers)
    assert stash.failures() == {}
    stash.prime()
    failures = stash.failures()
    assert sorted(failures) == ["3", "8"]
    assert "ValueError: bad 3" in failures["3"].traceback_str
    assert len(told()) == 12
    # Another program knows them too, and tries nothing to tell them.
    other = MultiProcessFactoryStash(DirectoryStash("data"), Fragile(), on_error=on_error, workers=workers)
    assert sorted(other.failures()) == ["3", "8"]
    assert len(told()) == 12
    os.unlink("bad-3")
    os.unlink("told")
    assert other.retry_failures() == {"3", "8"}
    assert sorted(set(told())) == ["3", "8"]
    assert sorted(other.failures()) == ["8"]
    assert other["3"] == 3
    os.unlink("bad-8")
    assert other.retry_failures() == {"8"}
    assert other.failures() == {}
    assert dict(other) == {str(n): n for n in range(12)}


class Hooks(MultiProcessStash):
    def _create_data(self):
        return range(12)

    def _process(self, chunk):
        for n in chunk:
            tell(n)
            if Path(f"bad-{n}").exists():
                raise ValueError(f"bad {n}")
            yield f"k{n}", n


@pytest.mark.parametrize("workers", [1, 2])
def test_hooks_do_not_keep_a_failure_that_is_mended(elsewhere, workers):
    Path("bad-7").touch()
    stash = Hooks(DirectoryStash("data"), on_error="store", workers=workers, chunk_size=6)
    assert len(stash) == 12
    assert isinstance(stash["7"], Failure)
    os.unlink("bad-7")
    again = Hooks(DirectoryStash("data"), on_error="store", workers=workers, chunk_size=6)
    assert sorted(again.keys()) == sorted(f"k{n}" for n in range(12))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_is_tried_again_if_asked(elsewhere, workers):
    stash = DirectoryStash("data")
    bad = {3, 5}

    def make(n):
        tell(n)
        if n in bad:
            raise ValueError(n)
        return n

    assert len(fill(stash, make, range(8), workers=workers, on_error="store").failures) == 2
    assert fill(stash, make, range(8), workers=workers, on_error="store").there == 8
    bad.remove(3)
    os.unlink("told")
    summary = fill(stash, make, range(8), workers=workers, on_error="store", retry_failed=True)
    assert [summary.done, summary.there, list(summary.failures)] == [1, 6, ["5"]]
    assert sorted(told()) == ["3", "5"]
    assert stash["3"] == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_that_can_not_be_told(elsewhere, workers, capfd):
    names = {n: f"name {n}" for n in range(6) if n != 4}
    stash = DirectoryStash("data")
    summary = fill(stash, square, range(6), key=names.__getitem__, workers=workers, on_error="skip")
    assert list(summary.failures) == ["4"]
    assert isinstance(summary.failures["4"].exception, KeyError)
    assert len(stash) == 5
    with pytest.raises(InvalidArgumentError, match=r"item \(1, 2\) is of type tuple.*give key="):
        fill(stash, sum, [(1, 2)], workers=workers)
    assert capfd.readouterr().err == ""


def test_one_core_is_no_reason_to_die(elsewhere, monkeypatch):
    monkeypatch.setattr("zpersist.parallel.multiprocess.available_cores", lambda: 1)
    work = partial(die, how="kill", poison=3, times=None)
    assert list(fill(DirectoryStash("data"), work, range(10), on_error="skip").failures) == ["3"]


def test_progress_in_a_log(elsewhere, capsys, monkeypatch):
    monkeypatch.setattr("zpersist.progress._PAUSE", 0.0)
    stash = DirectoryStash("data")
    fill(stash, square, range(10), workers=2, progress=True)
    fill(stash, lambda n: 1 / (n - 15), range(20), workers=2, progress=True, on_error="skip")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("fill: ") for line in lines)
    assert "20/20" in lines[-1]
    assert "failed=1" in lines[-1]


def test_an_unknown_option(elsewhere):
    with pytest.raises(TypeError, match=r"fill\(\) has no option 'workerz'; it has chunk_size, .*workers"):
        fill(DictionaryStash(), square, range(3), workerz=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_hooks_find_the_item_that_fails(elsewhere, workers):
    Path("bad-7").touch()
    stash = Hooks(DirectoryStash("data"), on_error="skip", workers=workers, chunk_size=6)
    assert sorted(stash.values()) == [n for n in range(12) if n != 7]
    assert list(stash.failures()) == ["7"]
    os.unlink("bad-7")
    os.unlink("told")
    again = Hooks(DirectoryStash("data"), on_error="skip", workers=workers, chunk_size=6)
    assert sorted(again.values()) == list(range(12))
    assert told() == ["7"]
    assert again.failures() == {}


def test_equal_items_are_all_done(elsewhere):
    class Ones(MultiProcessStash):
        def _create_data(self):
            return [1] * 20

        def _process(self, chunk):
            for number in chunk:
                yield os.urandom(8).hex(), number

    for workers in (1, 2):
        for size in (0, 1, 5):
            assert len(Ones(DirectoryStash(f"data-{workers}-{size}"), workers=workers, chunk_size=size)) == 20


@pytest.mark.parametrize("store", STORES)
def test_a_result_that_can_not_be_pickled(elsewhere, store):
    def make(n):
        return (lambda: n) if n == 4 else n

    stash = STORES[store]()
    with pytest.raises(EncodeError, match="can't be pickled"):
        fill(stash, make, range(10), workers=2)
    summary = fill(stash, make, range(10), workers=2, on_error="skip")
    assert list(summary.failures) == ["4"]
    assert isinstance(summary.failures["4"].exception, EncodeError)
    assert dict(stash) == {str(n): n for n in range(10) if n != 4}
    stash.close()


class Awkward(Exception):
    """An exception that can be pickled and not unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_an_exception_that_can_not_travel(elsewhere):
    def fail(n):
        if n == 3:
            raise Awkward(1, 2)
        return n

    with pytest.raises(Awkward, match="1 and 2"):
        fill(DirectoryStash("data"), fail, range(10), workers=2)


def test_an_item_that_can_not_travel(elsewhere):
    with pytest.raises(EncodeError, match="an item can't travel to a worker"):
        fill(DirectoryStash("data"), square, [lambda: 0], key=lambda item: "a", workers=2)


# deaths


def die(n, how, poison, times):
    """Die at one item, so many times."""
    if n == poison:
        tell(n)
        if times is None or told().count(str(poison)) <= times:
            if how == "exit":
                os._exit(3)
            if how == "fault":
                import ctypes

                ctypes.string_at(0)
            os.kill(os.getpid(), signal.SIGKILL)
    return n * n


@pytest.mark.parametrize("how", ["kill", "exit", "fault"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_one_death_costs_nothing(elsewhere, how, method):
    stash = DirectoryStash("data")
    work = partial(die, how=how, poison=37, times=1)
    summary = fill(stash, work, range(200), workers=2, start_method=method)
    assert [summary.done, summary.deaths] == [200, 1]
    assert len(stash) == 200
    assert told() == ["37"] * 2


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("how", ["kill", "exit"])
def test_poison_is_found_and_stored(elsewhere, how, store):
    stash = STORES[store]()
    work = partial(die, how=how, poison=37, times=None)
    summary = fill(stash, work, range(200), workers=2, on_error="store", retries=2)
    assert list(summary.failures) == ["37"]
    assert isinstance(stash["37"].exception, WorkerDiedError)
    assert "killed its worker 2 times" in str(stash["37"])
    assert len(stash) == 200
    assert told() == ["37"] * 2
    stash.close()


def test_poison_among_hooks(elsewhere):
    class Poisoned(Hooks):
        def _process(self, chunk):
            for n in chunk:
                yield f"k{n}", die(n, "kill", 7, None)

    stash = Poisoned(DirectoryStash("data"), workers=2, on_error="skip", chunk_size=6)
    assert sorted(stash.keys()) == sorted(f"k{n}" for n in range(12) if n != 7)
    assert list(stash.failures()) == ["7"]


def test_a_late_item_is_ended(elsewhere):
    def slow(n):
        if n == 3:
            tell(n)
            sum(range(10**12))
        return n

    stash = DirectoryStash("data")
    summary = fill(stash, slow, range(20), workers=2, timeout=0.3, on_error="store")
    assert isinstance(stash["3"].exception, ItemTimeoutError)
    assert isinstance(stash["3"].exception, TimeoutError)
    assert "took longer than 0.3 s" in str(stash["3"])
    assert summary.done == 19
    assert told() == ["3"]
    stash.clear()
    with pytest.raises(WorkerDiedError, match=r"'3': it took longer than 0.3 s"):
        fill(stash, slow, range(20), workers=1, timeout=0.3)
    assert sorted(map(int, stash.keys())) == [n for n in range(20) if n != 3]


def test_workers_are_replaced(elsewhere):
    stash = DirectoryStash("data")
    fill(stash, lambda n: os.getpid(), range(40), workers=2, max_tasks_per_worker=5, chunk_size=5)
    pids = list(stash.values())
    assert len(set(pids)) >= 8
    assert max(map(pids.count, pids)) <= 5


def test_memory_is_limited(elsewhere):
    def take(n):
        return len(bytearray(400_000_000)) if n == 3 else n

    stash = DirectoryStash("data")
    summary = fill(stash, take, range(10), workers=2, max_memory=1 << 27, on_error="skip")
    assert isinstance(summary.failures["3"].exception, MemoryError)
    assert summary.done == 9
    assert fill(stash, take, range(10), workers=2, max_memory=1 << 30).done == 1


def test_an_initializer_runs_once_in_each_worker(elsewhere):
    state = {}

    def prepare():
        tell(os.getpid())
        state["model"] = os.getpid()

    stash = DirectoryStash("data")
    fill(stash, lambda n: state["model"], range(50), workers=2, initializer=prepare, chunk_size=1)
    assert len(told()) == len(set(told())) == 2
    assert {str(pid) for pid in stash.values()} <= set(told())
    assert "model" not in state

    def broken():
        raise LookupError("no model")

    with pytest.raises(WorkerDiedError, match="could not begin: LookupError: no model"):
        fill(stash, square, range(60, 70), workers=2, initializer=broken)


# order, logs, threads


class Slow(ReadOnlyStash):
    """The first one takes longest."""

    def __init__(self, n=30):
        self.n = n

    def load(self, name):
        tell(name)
        time.sleep(0.2 if name == "0" else 0.001)
        return int(name)

    def keys(self):
        return map(str, range(self.n))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_items_as_they_are_completed(elsewhere, workers, shared):
    delegate = DirectoryStash("data") if shared else DictionaryStash()
    delegate.dump("5", 5)
    stash = MultiProcessFactoryStash(delegate, Slow(), workers=workers)
    iterator = stash.items(order="completed")
    assert next(iterator) == ("5", 5)
    assert told() == []
    rest = list(iterator)
    assert sorted(rest) == sorted((str(n), n) for n in range(30) if n != 5)
    if workers == 2:
        assert rest[0][0] != "0"
    assert sorted(stash.items(order="completed")) == sorted([("5", 5), *rest])
    assert len(told()) == 29


@pytest.mark.parametrize("workers", [1, 2])
def test_items_in_the_order_of_the_input(elsewhere, workers):
    delegate = DirectoryStash("data")
    for n in (0, 7, 8, 29):
        delegate.dump(str(n), n)
    stash = MultiProcessFactoryStash(delegate, Slow(), workers=workers)
    assert list(stash.items(order="input", window=4)) == [(str(n), n) for n in range(30)]
    assert list(stash.items(order="input")) == [(str(n), n) for n in range(30)]
    assert len(told()) == 26


def test_the_window_bounds_how_far_workers_are_ahead(elsewhere):
    stash = MultiProcessFactoryStash(DirectoryStash("data"), Slow(200), workers=2)
    iterator = stash.items(order="input", window=10)
    assert next(iterator) == ("0", 0)
    assert len(told()) <= 11


def test_an_iteration_that_is_left_off_keeps_what_was_made(elsewhere):
    stash = MultiProcessFactoryStash(DirectoryStash("data"), Slow(200), workers=2)
    for key, _ in stash.items(order="completed"):
        if key == "20":
            break
    assert 20 <= len(stash.delegate) < 200
    assert len(stash) == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_it_may_be_read_within_an_iteration(elsewhere, workers):
    stash = MultiProcessFactoryStash(DirectoryStash("data"), Slow(), workers=workers)
    for key, value in stash.items(order="completed"):
        assert stash[key] == value
        assert key in stash
    assert len(stash) == 30
    assert len(told()) == 30


@pytest.mark.parametrize("workers", [1, 2])
def test_a_filling_within_a_filling_of_the_same_place(elsewhere, workers):
    def outer(n):
        fill(DirectoryStash("data"), lambda m: -m, range(100, 110), workers=2)
        return n

    assert fill(DirectoryStash("data"), outer, range(10), workers=workers).done == 10
    assert len(DirectoryStash("data")) == 20


def test_what_is_lost_of_an_endless_input_is_tried_again(elsewhere):
    class Enough(Exception):
        pass

    def numbers():
        for n in range(100_000):
            if told().count("5") == 3 and os.path.exists("data/2000.dat"):
                raise Enough
            yield n

    stash = DirectoryStash("data")
    with pytest.raises(Enough):
        fill(stash, partial(die, how="kill", poison=5, times=None), numbers(), workers=2, on_error="store")
    assert isinstance(stash["5"].exception, WorkerDiedError)


def test_the_order_of_hooks(elsewhere):
    stash = Hooks(DirectoryStash("data"), workers=2, chunk_size=3)
    with pytest.raises(UnsupportedOperationError, match="order='completed'"):
        stash.items(order="input")
    with pytest.raises(InvalidArgumentError, match="'stored', 'completed' or 'input', not 'random'"):
        stash.items(order="random")
    assert sorted(stash.items(order="completed")) == sorted((f"k{n}", n) for n in range(12))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_log_records_come_to_the_parent(elsewhere, caplog, method):
    def speak(n):
        logging.getLogger("some.where").info("item %s", n)
        try:
            raise LookupError("why")
        except LookupError:
            logging.getLogger("some.where").exception("trouble with %s", n)
        return n

    with caplog.at_level(logging.INFO):
        fill(DirectoryStash("data"), speak, range(5), workers=2, start_method=method)
    messages = [record.getMessage() for record in caplog.records if record.name == "some.where"]
    assert sorted(messages) == sorted([*(f"item {n}" for n in range(5)), *(f"trouble with {n}" for n in range(5))])
    assert "LookupError: why" in caplog.text


def test_native_threads_are_limited(elsewhere, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for method in ("fork", "spawn"):
        stash = DirectoryStash(method)
        fill(stash, lambda n: os.environ.get("OMP_NUM_THREADS"), range(4), workers=2, start_method=method, threads=3)
        assert set(stash.values()) == {"3"}
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    stash = DirectoryStash("told so")
    fill(stash, lambda n: os.environ["OMP_NUM_THREADS"], range(4), workers=2, threads=3)
    assert set(stash.values()) == {"5"}


def test_native_threads_of_what_is_loaded_are_limited(elsewhere, monkeypatch):
    numpy = pytest.importorskip("numpy")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    numpy.ones((9, 9)) @ numpy.ones((9, 9))

    def counts(n=0):
        return [library["num_threads"] for library in threadpoolctl.threadpool_info()]

    with threadpoolctl.threadpool_limits(2):
        stash = DirectoryStash("data")
        fill(stash, counts, range(4), workers=2, threads=1, start_method="fork")
        assert all(set(found) == {1} for found in stash.values())
        assert set(counts()) == {2}


def test_within_a_worker_it_works_alone(elsewhere, caplog):
    def nested(n):
        inner = DirectoryStash(f"inner-{n}")
        fill(inner, lambda m: os.getpid(), range(4), workers=2)
        assert set(inner.values()) == {os.getpid()}
        return n

    with caplog.at_level(logging.INFO):
        assert fill(DirectoryStash("data"), nested, range(4), workers=2).done == 4
    assert "works in one process, for it runs in a worker already" in caplog.text


def test_a_thread_that_reads_waits_for_the_one_that_fills(elsewhere):
    stash = MultiProcessFactoryStash(DirectoryStash("data"), Slow(20), workers=1)
    thread = threading.Thread(target=lambda: len(stash))
    thread.start()
    while not told():
        time.sleep(0.001)
    assert len(stash) == 20
    thread.join()
    assert len(told()) == 20


def test_a_delegate_that_workers_can_not_reach(elsewhere):
    class Pretends(DictionaryStash):
        shared = True

    for options in ({}, {"executor": partial(ProcessPoolExecutor, 2)}):
        with pytest.raises(InvalidDelegateError, match="does not arrive here: workers must reach the same place"):
            fill(Pretends(), square, range(100), workers=2, **options)


def test_a_million_items_cost_little_memory(elsewhere):
    def child():
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert fill(Sink(), len, (f"key-{n}" for n in range(1_000_000)), workers=2).done == 1_000_000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000

    assert in_child(child) == 0


def test_large_results_do_not_travel_through_the_parent(elsewhere, monkeypatch):
    from zpersist.parallel import pool

    sizes = []

    class Loud(pool.PoolEngine):
        def _receive(self, member, events):
            got = len(events)
            more = super()._receive(member, events)
            sizes.extend(len(repr(event.report)) for event in events[got:])
            return more

    monkeypatch.setattr("zpersist.parallel.multiprocess.PoolEngine", Loud)
    fill(DirectoryStash("data"), lambda n: bytes(4_000_000), range(8), workers=2)
    assert sizes
    assert max(sizes) < 1000
    sizes.clear()
    fill(DictionaryStash(), lambda n: bytes(4_000_000), range(2), workers=2)
    assert max(sizes) > 4_000_000


def test_a_full_disk_stops_it(elsewhere):
    class Full(DirectoryStash):
        def dump(self, name, inst):
            if name == "30":
                raise StorageError(28, "No space left on device", "data")
            super().dump(name, inst)

    for on_error in ("raise", "skip", "store"):
        with pytest.raises(StorageError, match="No space left"):
            fill(Full("data"), square, range(100), workers=2, on_error=on_error)
    assert fill(DirectoryStash("data"), square, range(100), workers=2).failures == {}
    assert len(DirectoryStash("data")) == 100


# executors


@pytest.mark.parametrize("store", STORES)
def test_an_executor(elsewhere, store):
    stash = STORES[store]()
    with ProcessPoolExecutor(2) as executor:
        assert fill(stash, lambda n: n * n, range(100), workers=2, executor=executor).done == 100
    assert dict(stash) == {str(n): n * n for n in range(100)}
    stash.close()


def test_an_executor_that_breaks_is_made_again(elsewhere):
    work = partial(die, how="kill", poison=37, times=None)
    make = partial(ProcessPoolExecutor, 2)
    stash = DirectoryStash("data")
    summary = fill(stash, work, range(100), workers=2, executor=make, on_error="store")
    assert list(summary.failures) == ["37"]
    assert len(stash) == 100
    assert told().count("37") <= 6
    other = DirectoryStash("other")
    with ProcessPoolExecutor(2) as executor, pytest.raises(WorkerDiedError, match="executor=lambda"):
        fill(other, work, range(100), workers=2, executor=executor)


def test_a_pool_of_threads(elsewhere, caplog):
    handlers = logging.getLogger().handlers[:]
    with ThreadPoolExecutor(2) as executor:
        assert fill(DirectoryStash("data"), square, range(100), workers=2, executor=executor).done == 100
    assert logging.getLogger().handlers == handlers
    assert fill(DirectoryStash("more"), lambda n: os.getpid(), range(20), workers=2).done == 20


# parameters


@pytest.mark.parametrize(
    "options, words",
    [
        ({"on_error": "ignore"}, "on_error must be 'raise', 'skip' or 'store', not 'ignore'"),
        ({"retries": 0}, "retries must be a whole number of at least 1, not 0"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0 or None, not 0"),
        ({"timeout": "1"}, "timeout must be"),
        ({"max_tasks_per_worker": 0}, "max_tasks_per_worker must be a whole number of at least 1, not 0"),
        ({"max_memory": 1}, "max_memory must be a whole number of bytes, at least 64 MiB"),
        ({"threads": -1}, "threads must be a whole number of at least 0, not -1"),
        ({"initializer": 3}, "initializer must be a function or None, not 3"),
        ({"executor": 3}, "executor must be a concurrent.futures.Executor, or a function that makes one, not 3"),
        ({"executor": ProcessPoolExecutor}, "executor must be"),
        ({"executor": lambda: 3}, "executor must be or make a concurrent.futures.Executor, not 3"),
        ({"executor": partial(ThreadPoolExecutor, 2), "timeout": 1}, "timeout is for processes of this machine"),
        ({"workers": 0.0}, "workers=0.0"),
        ({"chunk_size": -1}, "chunk_size must be a whole number of at least 0, not -1"),
    ],
)
def test_bad_parameters(elsewhere, options, words):
    with pytest.raises(InvalidArgumentError, match=words.replace("(", r"\(")):
        fill(DirectoryStash("data"), square, range(3), **options)
    assert not os.path.exists("data")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((3, square, range(3)), "stash must be a stash that keeps values, such as a DirectoryStash, not 3"),
        ((DictionaryStash(), 3, range(3)), "worker must be a function, not 3"),
        ((DictionaryStash(), square, 3), "items must be iterable, not 3"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InvalidArgumentError, match=words):
        fill(*arguments)
