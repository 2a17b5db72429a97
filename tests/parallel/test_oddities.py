"""What an attack found: each of these lost something, hung, or told the wrong story."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from zpersist import (
    DecodeError,
    DictionaryStash,
    DirectoryStash,
    EncodeError,
    Failure,
    InvalidArgumentError,
    ItemTimeoutError,
    MultiProcessFactoryStash,
    MultiProcessStash,
    ReadOnlyStash,
    SqliteStash,
    WorkerDiedError,
    fill,
)

fork = multiprocessing.get_context("fork")


class Numbers(ReadOnlyStash):
    def __init__(self, n=50):
        self.n = n

    def load(self, name):
        return int(name)

    def keys(self):
        return [str(i) for i in range(self.n)]


class Hooks(MultiProcessStash):
    items_ = range(6)

    def _create_data(self):
        return list(self.items_)

    def _process(self, chunk):
        for item in chunk:
            yield str(item), item


# reading while it is filled


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("make", [lambda: DirectoryStash("data"), DictionaryStash])
def test_the_order_of_the_input_after_an_iteration_that_was_left_off(elsewhere, workers, make):
    delegate = make()
    stash = MultiProcessFactoryStash(delegate, Numbers(), workers=workers)
    iterator = stash.items(order="input", window=5)
    for _ in range(20):
        next(iterator)
    iterator.close()
    stash = MultiProcessFactoryStash(delegate, Numbers(), workers=workers)
    assert [key for key, _ in stash.items(order="input", window=5)] == [str(i) for i in range(50)]
    assert len(stash) == 50


@pytest.mark.parametrize("window", [0, -1, True, 1.5, None])
def test_a_window_that_is_none(window):
    stash = MultiProcessFactoryStash(DictionaryStash(), Numbers())
    with pytest.raises(InvalidArgumentError, match="window must be a whole number of at least 1"):
        stash.items(order="input", window=window)
    assert len(stash) == 50


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("make", [lambda: DirectoryStash("data"), DictionaryStash])
def test_hooks_as_they_are_completed(elsewhere, workers, make):
    stash = Hooks(make(), workers=workers, chunk_size=1)
    assert sorted(stash.items(order="completed")) == [(str(i), i) for i in range(6)]


def test_what_is_filled_by_the_loop_itself_is_yielded_too(elsewhere):
    delegate = DirectoryStash("data")
    delegate.dump("0", 0)
    stash = MultiProcessFactoryStash(delegate, Numbers(6))
    got = []
    for key, _ in stash.items(order="completed"):
        got.append(key)
        assert stash.exists("5")
    assert sorted(got) == [str(i) for i in range(6)]


def test_what_another_one_makes_is_yielded_too(elsewhere):
    class Slow(Hooks):
        items_ = range(60)

        def _process(self, chunk):
            for item in chunk:
                time.sleep(0.005)
                yield str(item), item

    def read():
        stash = Slow(SqliteStash("data.db"), workers=2, chunk_size=2)
        os._exit(0 if len(list(stash.items(order="completed"))) == 60 else 1)

    parents = [fork.Process(target=read) for _ in range(2)]
    for parent in parents:
        parent.start()
    for parent in parents:
        parent.join()
        assert parent.exitcode == 0
        parent.close()


def test_an_iteration_that_another_thread_ends(elsewhere):
    stash = MultiProcessFactoryStash(DirectoryStash("data"), Numbers(300), workers=2, start_method="fork")
    for end in (list, lambda iterator: iterator.close()):
        iterator = stash.items(order="completed")
        next(iterator)
        problems = []

        def finish(end=end, iterator=iterator, problems=problems):
            try:
                end(iterator)
            except BaseException as err:
                problems.append(err)

        thread = threading.Thread(target=finish)
        thread.start()
        thread.join()
        assert problems == []
        stash.clear()
        stash.factory = Numbers(300)


# deaths


def test_a_dead_worker_whose_child_lives(elsewhere):
    def work(n):
        if n == 3:
            if not os.fork():
                time.sleep(10)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    summary = fill(DirectoryStash("data"), work, range(6), workers=2, on_error="skip", retries=1)
    assert list(summary.failures) == ["3"]


def test_a_late_item_whose_child_lives(elsewhere):
    def work(n):
        if n == 3:
            if not os.fork():
                time.sleep(10)
                os._exit(0)
            time.sleep(60)
        return n

    summary = fill(DirectoryStash("data"), work, range(6), workers=2, on_error="skip", timeout=0.3)
    assert isinstance(summary.failures["3"].exception, ItemTimeoutError)


def test_a_worker_that_is_ended_before_it_begins(elsewhere):
    def begin():
        if not os.path.exists("once"):
            Path("once").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2)

    assert fill(DirectoryStash("data"), int, range(10), workers=2, initializer=begin).done == 10


def test_a_child_of_a_worker_is_ended_in_silence(elsewhere, capfd):
    def work(n):
        pid = os.fork()
        if not pid:
            time.sleep(30)
            os._exit(0)
        # What comes in the moment of the fork, Python forgets.
        time.sleep(0.2)
        os.kill(pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    stash = DirectoryStash("data")
    fill(stash, work, range(4), workers=2)
    assert set(stash.values()) == {-signal.SIGTERM}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("on_error", ["skip", "store"])
def test_a_death_after_a_failure(elsewhere, on_error):
    class Trouble(ReadOnlyStash):
        def load(self, name):
            if name == "0":
                time.sleep(0.02)
            if name == "1" and (on_error == "store" or not os.path.exists("failed")):
                Path("failed").touch()
                raise ValueError("one")
            if name == "2" and not os.path.exists("died"):
                Path("died").touch()
                os._exit(9)
            return int(name)

        def keys(self):
            return ["0", "1", "2"]

    stash = MultiProcessFactoryStash(DirectoryStash("data"), Trouble(), workers=2, chunk_size=3, on_error=on_error)
    stash.prime()
    failed = isinstance(stash.delegate.get("1"), Failure) or "1" not in stash.delegate
    assert (list(stash.failures()) == ["1"]) is failed
    assert (list(stash.summary.failures) == ["1"]) is failed
    assert stash.summary.done == (2 if failed else 3)


# errors


class Travelling:
    """An item that is sent as a call."""

    def __init__(self, function, *arguments):
        self.way = function, arguments

    def __reduce__(self):
        if self.way[0] is None:
            raise ValueError("not this one")
        return self.way


def _end_worker():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("on_error", ["raise", "skip", "store"])
@pytest.mark.parametrize("size", [0, 7])
@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ((None,), EncodeError, "an item can't travel to a worker"),
        ((int, "x"), DecodeError, "an item can't be made again in a worker"),
        ((_end_worker,), WorkerDiedError, "'37' killed its worker 3 times"),
    ],
    ids=["unsendable", "unreadable", "deadly"],
)
def test_an_item_that_does_not_arrive(elsewhere, on_error, size, way, error, words):
    items = [Travelling(*way) if n == 37 else n for n in range(60)]
    options = {"key": lambda n: str(n) if isinstance(n, int) else "37", "workers": 2, "chunk_size": size}
    stash = DirectoryStash("data")
    if on_error == "raise":
        with pytest.raises(error, match=words):
            fill(stash, lambda n: n, items, **options)
        assert "37" not in stash
    else:
        summary = fill(stash, lambda n: n, items, on_error=on_error, **options)
        assert summary.done == 59
        assert list(summary.failures) == ["37"]
        assert isinstance(summary.failures["37"].exception, error)
        assert words in summary.failures["37"].message
        assert isinstance(stash.get("37"), Failure) is (on_error == "store")


def test_an_item_that_can_not_be_noted(elsewhere):
    class Locked(Hooks):
        items_ = (threading.Lock(),)

        def _process(self, chunk):
            yield "a", 1

    with pytest.raises(EncodeError, match="an item can't be noted as done: .*give its name"):
        Locked(DirectoryStash("data"), workers=1).prime()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("on_error", ["skip", "store"])
@pytest.mark.parametrize("item", ["long " * 300, "", "\ud800"], ids=["long", "empty", "surrogate"])
def test_an_item_whose_name_is_no_key(elsewhere, workers, on_error, item):
    class Lines(Hooks):
        items_ = ("good", item, "also good")

        def _process(self, chunk):
            for line in chunk:
                if not line.endswith("good"):
                    raise ValueError("bad line")
                yield line, len(line)

    stash = Lines(DirectoryStash("data"), workers=workers, chunk_size=1, on_error=on_error)
    stash.prime()
    assert {"good", "also good"} <= set(stash.keys())
    (failure,) = stash.failures().values()
    assert str(failure) == "bad line"


@pytest.mark.parametrize("make", [lambda: DirectoryStash("data"), DictionaryStash])
@pytest.mark.parametrize("size", [1, 3])
def test_a_value_of_hooks_that_can_not_be_pickled(elsewhere, make, size):
    class Locks(Hooks):
        items_ = ("good", "bad", "also good")

        def _process(self, chunk):
            for item in chunk:
                yield item, (threading.Lock() if item == "bad" else 1)

    stash = Locks(make(), workers=2, chunk_size=size, on_error="skip", start_method="fork")
    assert sorted(stash.keys()) == ["also good", "good"]
    assert isinstance(stash.failures()["bad"].exception, EncodeError)


def test_no_memory_to_keep_a_value(elsewhere):
    class Large:
        def __reduce__(self):
            raise MemoryError

    def work(n):
        return Large() if n == 1 else n

    summary = fill(SqliteStash("data.db"), work, range(4), workers=2, on_error="skip")
    assert list(summary.failures) == ["1"]
    assert summary.done == 3


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Mute(Exception):
    def __str__(self):
        raise LookupError("no text")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [Frozen(3), Mute()], ids=["frozen", "mute"])
def test_an_awkward_exception(elsewhere, workers, error):
    def work(n):
        if n == 1:
            raise error
        return n

    summary = fill(DirectoryStash("data"), work, range(4), workers=workers, on_error="skip")
    assert [summary.done, list(summary.failures)] == [3, ["1"]]
    assert not isinstance(summary.failures["1"].exception, WorkerDiedError)


def test_an_exception_that_only_the_worker_can_import(elsewhere):
    os.mkdir("plug")
    Path("plug/plugmod.py").write_text("class E(Exception):\n    pass\n")

    def work(n):
        if n == 2:
            sys.path.insert(0, "plug")
            import plugmod

            raise plugmod.E("from far away")
        return n

    summary = fill(DirectoryStash("data"), work, range(6), workers=2, on_error="skip", start_method="fork")
    assert summary.done == 5
    assert "from far away" in str(summary.failures["2"].exception)


@pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_an_initializer_that_fails_in_an_executor(elsewhere, make):
    def begin():
        raise RuntimeError("model file is missing")

    with (
        make(2) as executor,
        pytest.raises(WorkerDiedError, match="could not begin: RuntimeError.*model file is missing"),
    ):
        fill(DirectoryStash("data"), str, range(20), workers=2, executor=executor, initializer=begin, on_error="skip")


def test_a_function_of_a_program_without_a_file(elsewhere):
    code = (
        "from zpersist import *\n"
        "def work(n): return n * n\n"
        "print(fill(DirectoryStash('data'), work, range(10), workers=2, start_method='spawn').done)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "10\n", run.stderr


# logs


def test_records_with_something_that_can_not_travel(elsewhere, caplog):
    def work(n):
        logging.getLogger("odd").warning("hi %s", n, extra={"lock": threading.Lock()})
        return n

    assert fill(DirectoryStash("data"), work, range(3), workers=2).done == 3
    assert sorted(record.getMessage() for record in caplog.records if record.name == "odd") == ["hi 0", "hi 1", "hi 2"]


def test_handlers_of_named_loggers_get_each_record_once(elsewhere):
    class Keep(logging.Handler):
        def __init__(self):
            super().__init__()
            self.got = []

        def emit(self, record):
            self.got.append(record.getMessage())
            Path(f"emitted-{os.getpid()}").touch()

    own, named = logging.getLogger("own.one"), logging.getLogger("named.one")
    keepers = Keep(), Keep()
    own.addHandler(keepers[0])
    named.addHandler(keepers[1])
    own.propagate = False
    try:
        for logger in (own, named):
            logger.setLevel(logging.INFO)

        def work(n):
            own.info("own %s", n)
            named.info("named %s", n)
            return n

        fill(DirectoryStash("data"), work, range(2), workers=2)
    finally:
        own.removeHandler(keepers[0])
        named.removeHandler(keepers[1])
        own.propagate = True
    assert [sorted(keeper.got) for keeper in keepers] == [["own 0", "own 1"], ["named 0", "named 1"]]
    assert len(list(Path().glob("emitted-*"))) == 1
