"""What a second attack and a second newcomer found: each lost something, hung, or told the wrong story."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from zpersist import (
    DictionaryStash,
    DirectoryStash,
    Failure,
    InvalidArgumentError,
    InvalidDelegateError,
    InvalidKeyError,
    ItemTimeoutError,
    MissingKeyError,
    MultiProcessFactoryStash,
    MultiProcessStash,
    ReadOnlyStash,
    SqliteStash,
    Stash,
    WorkerDiedError,
    fill,
)
from zpersist.parallel.known import Journal
from zpersist.parallel.line import Line, receive, send

from .programs import tell

fork = multiprocessing.get_context("fork")
STORES = {"directory": lambda: DirectoryStash("data"), "sqlite": lambda: SqliteStash("data.db")}


@pytest.fixture(params=STORES)
def make(request):
    return STORES[request.param]


class Items(ReadOnlyStash):
    """Numbers, one of which may fail."""

    def __init__(self, count, fails=None):
        self.count = count
        self.fails = fails

    def load(self, name):
        if self.fails is not None:
            self.fails(int(name))
        return int(name)

    def keys(self):
        return [str(n) for n in range(self.count)]


def raises(*bad):
    def fails(n):
        if n in bad:
            raise ValueError(f"bad {n}")

    return fails


def in_children(*functions):
    children = [fork.Process(target=function) for function in functions]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
        child.close()


# failures


def test_failures_among_more_keys_than_are_listed(elsewhere, monkeypatch):
    monkeypatch.setattr("zpersist.parallel.known._MOST", 50)
    for workers in (1, 2):
        stash = SqliteStash(f"{workers}.db")
        for _ in range(3):
            summary = fill(stash, lambda n: raises(7)(n) or n, range(100), workers=workers, on_error="store")
            assert len(stash) == 100
            assert isinstance(stash["7"], Failure)
        assert summary.there == 100


def test_a_failure_of_another_parent_stays(elsewhere, make):
    def fails(n):
        if n == 0:
            raise ValueError("bad")
        time.sleep(0.4)

    def one(delay):
        time.sleep(delay)
        stash = MultiProcessFactoryStash(make(), Items(2, fails), workers=2, on_error="store", chunk_size=2)
        assert len(stash) == 2
        assert list(stash.failures()) == ["0"]
        os._exit(0)

    in_children(partial(one, 0), partial(one, 0.15))
    assert isinstance(make()["0"], Failure)


def test_skipped_then_stored_with_a_death_in_between(elsewhere, make):
    def fails(n):
        raises(0)(n)
        if n == 5 and not Path("once").exists():
            Path("once").touch()
            os._exit(1)

    options = {"workers": 2, "chunk_size": 10}
    assert len(MultiProcessFactoryStash(make(), Items(1, fails), on_error="skip", **options)) == 0
    stash = MultiProcessFactoryStash(make(), Items(10, fails), on_error="store", **options)
    assert len(stash) == 10
    assert list(stash.failures()) == list(stash.summary.failures) == ["0"]
    assert stash.summary.done == 9


def test_a_failure_that_another_parent_has_mended_is_none(elsewhere, make):
    MultiProcessFactoryStash(make(), Items(3, raises(1)), on_error="skip").prime()
    stash = MultiProcessFactoryStash(make(), Items(3, raises(1)), on_error="skip")
    assert list(stash.failures()) == ["1"]
    make()["1"] = "made"
    assert stash.failures() == {}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_a_failure_does_not_take_the_place_of_a_value(elsewhere, workers, shared):
    class Crawl(MultiProcessStash):
        broken = True

        def _create_data(self):
            return ["home", "about"]

        def _process(self, chunk):
            for item in chunk:
                if item == "about" and self.broken:
                    time.sleep(0.1)
                    raise ValueError("not now")
                yield item, item
                yield ("about", "seen on home") if item == "home" else ("about2", item)

    delegate = DirectoryStash("data") if shared else DictionaryStash()
    stash = Crawl(delegate, on_error="store", chunk_size=1, workers=workers)
    assert stash["about"] == "seen on home"
    assert list(stash.failures()) == ["about"]
    Crawl.broken = False
    stash.retry_failures()
    assert dict(stash).keys() == {"home", "about", "about2"}
    assert not any(isinstance(value, Failure) for value in stash.values())
    assert stash.failures() == {}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_raised_is_listed(elsewhere, make, workers):
    stash = MultiProcessFactoryStash(make(), Items(6, raises(3)), workers=workers)
    with pytest.raises(ValueError, match="bad 3"):
        len(stash)
    again = MultiProcessFactoryStash(make(), Items(6), workers=workers)
    assert list(again.failures()) == ["3"]
    assert again.retry_failures() == {"3"}
    assert len(again) == 6
    assert again.failures() == {}


def test_items_that_begin_alike_are_not_taken_for_one(elsewhere):
    items = [[0] * 500 + [n] for n in range(6)]

    def key(item):
        raise ValueError(f"no key for {item[-1]}")

    summary = fill(DirectoryStash("data"), len, items, key=key, workers=2, on_error="skip")
    assert len(summary.failures) == 6


def test_an_item_that_can_not_be_shown(elsewhere):
    class Shy:
        def __repr__(self):
            raise RuntimeError("no")

    items = [*range(10), Shy()]
    summary = fill(DirectoryStash("data"), lambda n: n + 0, items, key=str, workers=2, on_error="skip", chunk_size=3)
    assert summary.done == 10
    assert len(summary.failures) == 1
    assert "Shy object" in next(iter(summary.failures))


class TwoArguments(Exception):  # noqa: N818
    def __init__(self, text, number):
        super().__init__(text)
        self.number = number


def test_an_exception_keeps_its_class(elsewhere):
    def fails(n):
        raise TwoArguments("bad", n)

    for workers in (1, 2):
        with pytest.raises(TwoArguments, match="bad") as caught:
            fill(DirectoryStash("data"), fails, [1], workers=workers)
        assert caught.value.number == 1
        assert "while fill made '1'" in caught.value.__notes__
    twin = pickle.loads(pickle.dumps(Failure(TwoArguments("bad", 2))))
    assert isinstance(twin.exception, TwoArguments)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_an_error_of_hooks_says_which_items(elsewhere, workers, size):
    class Numbers(MultiProcessStash):
        def _create_data(self):
            return range(20)

        def _process(self, chunk):
            for n in chunk:
                yield str(n), raises(7)(n) or n

    with pytest.raises(ValueError, match="bad 7") as caught:
        Numbers(DirectoryStash("data"), workers=workers, chunk_size=size).prime()
    (note,) = (note for note in caught.value.__notes__ if note.startswith("while Numbers made"))
    assert (" or one of" in note) is (size != 1)


# keys


@pytest.mark.parametrize("bad", ["", "x" * 2000, 5, None, "\ud800"], ids=["empty", "long", "int", "none", "surrogate"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_that_is_none_is_the_failure_of_its_item(elsewhere, bad, shared, workers):
    if not shared and bad == 5:
        # In memory any hashable object is a key.
        return
    delegate = DirectoryStash("data") if shared else DictionaryStash()
    options = {"key": lambda n: bad if n == 4 else str(n), "workers": workers, "chunk_size": 3}
    for on_error in ("skip", "store"):
        summary = fill(delegate, lambda n: n, range(10), on_error=on_error, **options)
        assert len(delegate) == 9
        assert [type(failure.exception) for failure in summary.failures.values()] == [InvalidKeyError]
    with pytest.raises(InvalidKeyError) as caught:
        fill(delegate, lambda n: n, range(10), **options)
    assert not shared or any("fill made of '4'" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("on_error", ["raise", "skip", "store"])
def test_a_key_function_that_was_forgotten(elsewhere, workers, on_error):
    stash = DirectoryStash("data")
    with pytest.raises(InvalidArgumentError, match="is of type PosixPath, not str or int: give key=, a function"):
        fill(stash, str, [Path("a"), Path("b")], workers=workers, on_error=on_error)
    assert len(stash) == 0


def test_numbers_of_numpy_are_numbers(elsewhere):
    numpy = pytest.importorskip("numpy")
    stash = DirectoryStash("data")
    fill(stash, int, numpy.arange(4), workers=2)
    assert sorted(stash.keys()) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("stash", ["data", {}, Items(3)], ids=["str", "dict", "read only"])
def test_what_can_not_be_filled(stash):
    with pytest.raises(InvalidDelegateError, match="stash must be a stash that keeps values, such as a DirectoryStash"):
        fill(stash, str, [])


# reading while it is filled


@pytest.fixture(params=["factory", "hooks"])
def filling(request, elsewhere):
    class Hooks(MultiProcessStash):
        def _create_data(self):
            return range(40)

        def _process(self, chunk):
            for n in chunk:
                yield str(n), n

    if request.param == "hooks":
        return Hooks(DirectoryStash("data"), workers=2, chunk_size=1)
    return MultiProcessFactoryStash(DirectoryStash("data"), Items(40), workers=2, chunk_size=1)


@pytest.mark.parametrize(
    "read",
    [
        lambda stash: len(stash) == 40,
        lambda stash: stash.exists("39"),
        lambda stash: stash["39"] == 39,
        lambda stash: len(list(stash)) == 40,
        lambda stash: len(list(stash.keys())) == 40,
        lambda stash: len(dict(stash.items(order="completed"))) == 40,
    ],
)
def test_another_read_within_an_iteration_sees_all(filling, read):
    iterator = iter(filling.items(order="completed"))
    first = next(iterator)
    assert read(filling)
    assert len({first, *iterator}) == 40
    assert dict(DirectoryStash("data")) == {str(n): n for n in range(40)}


def test_two_iterations_of_one_thread(filling):
    orders = ["completed", "completed"]
    if isinstance(filling, MultiProcessFactoryStash):
        orders = ["completed", "input"]
    pairs = list(zip(*(filling.items(order=order) for order in orders), strict=True))
    assert len(pairs) == 40
    assert {pair for pair, _ in pairs} == {pair for _, pair in pairs} == {(str(n), n) for n in range(40)}


def test_an_order_that_is_none_is_refused_also_within_an_iteration(filling):
    iterator = iter(filling.items(order="completed"))
    next(iterator)
    with pytest.raises(InvalidArgumentError, match="order must be"):
        filling.items(order="nonsense")
    iterator.close()


def test_an_error_of_the_rest_is_told_to_both(elsewhere):
    stash = MultiProcessFactoryStash(DirectoryStash("data"), Items(40, raises(30)), workers=2, chunk_size=1)
    iterator = iter(stash.items(order="input"))
    next(iterator)
    with pytest.raises(ValueError, match="bad 30"):
        len(stash)
    with pytest.raises(ValueError, match="bad 30"):
        list(iterator)


def test_the_input_may_read_what_it_fills(elsewhere):
    stash = None

    class Chain(MultiProcessStash):
        def _create_data(self):
            for n in range(5):
                # What is there so far: to wait for the rest would be to wait for oneself.
                assert stash.get("x") is None
                yield n

        def _process(self, chunk):
            for n in chunk:
                yield str(n), n

    stash = Chain(DirectoryStash("data"), workers=2)
    assert len(list(stash.items(order="completed"))) == 5


# lines


def test_a_line():
    ours, theirs = multiprocessing.Pipe()
    line = Line(ours.fileno())
    large = os.urandom(5_000_000)
    assert list(line.messages()) == []
    line.send(b"")
    line.send(large)
    assert line.is_full
    got = []
    thread = threading.Thread(target=lambda: got.extend(receive(theirs.fileno(), lambda: None) for _ in range(2)))
    thread.start()
    while line.is_full:
        line.flush()
    thread.join()
    assert got == [b"", large]
    thread = threading.Thread(target=lambda: [send(theirs.fileno(), data) for data in (b"a", b"", large)])
    thread.start()
    back = []
    while len(back) < 3:
        back += line.messages()
    thread.join()
    assert back == [b"a", b"", large]
    # Half a message is none.
    os.write(theirs.fileno(), (100).to_bytes(8, "little") + b"half")
    assert list(line.messages()) == []
    theirs.close()
    with pytest.raises(EOFError):
        list(line.messages())
    line.send(b"nobody is there")
    assert not line.is_full
    ours.close()


def test_nobody_waits_for_a_worker_that_dies_while_it_is_sent_something(elsewhere):
    def work(item):
        n, _ = item
        pid = os.getpid()
        if n == 3 and not Path("once").exists():
            Path("once").touch()
            # One child holds the pipe open, the other one kills the worker soon after.
            if not os.fork():
                time.sleep(5)
                os._exit(0)
            if not os.fork():
                time.sleep(0.05)
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
        return n

    def items():
        for n in range(8):
            if n == 4:
                time.sleep(0.3)
            yield n, bytes(3_000_000)

    summary = fill(DirectoryStash("data"), work, items(), key=lambda item: str(item[0]), workers=1, timeout=60)
    assert summary.done + summary.there == 8


def test_workers_that_are_killed_while_they_send(elsewhere):
    def work(n):
        if n % 3 == 0 and not Path(f"once-{n}").exists():
            Path(f"once-{n}").touch()
            pid = os.getpid()

            def kill():
                time.sleep(0.01)
                os.kill(pid, signal.SIGKILL)

            threading.Thread(target=kill).start()
        return bytes(40_000_000)

    stash = DictionaryStash()
    summary = fill(stash, work, range(9), workers=2, on_error="skip", chunk_size=1, retries=100)
    assert summary.failures == {}
    assert {len(value) for value in stash.values()} == {40_000_000}
    assert len(stash) == 9


# what happens beside the items


class Odd:
    """Something whose pickling or unpickling does something else."""

    def __init__(self, n, trouble, at="dumps"):
        self.n, self.trouble, self.at = n, trouble, at

    def __reduce__(self):
        if self.at == "dumps":
            self.trouble()
        return (_unpickled, (self.n, self.trouble)) if self.at == "loads" else (Odd, (self.n, None, ""))


class OddError(Exception):
    def __init__(self, trouble):
        super().__init__("odd")
        self.trouble = trouble

    def __reduce__(self):
        self.trouble()
        return OddError, (None,)


def _unpickled(n, trouble):
    trouble()


def _exit():
    os._exit(3)


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _hang():
    time.sleep(100)


def _fail():
    raise ValueError("can't be made again")


@pytest.mark.parametrize("trouble", [_exit, _kill])
@pytest.mark.parametrize("what", ["value", "error"])
@pytest.mark.parametrize("store", ["directory", "sqlite", "memory"])
def test_a_death_while_something_is_pickled_is_one_of_its_item(elsewhere, trouble, what, store):
    def work(n):
        if n == 50:
            if what == "error":
                raise OddError(trouble)
            return Odd(n, trouble)
        return n

    stash = DictionaryStash() if store == "memory" else STORES[store]()
    summary = fill(stash, work, range(100), workers=2, on_error="skip")
    assert list(summary.failures) == ["50"]
    assert "'50' killed its worker 3 times" in summary.failures["50"].message
    assert summary.done == len(stash) == 99


def test_timeout_holds_while_something_is_pickled(elsewhere):
    def work(n):
        if n == 3:
            raise OddError(_hang)
        return n

    summary = fill(DirectoryStash("data"), work, range(10), workers=2, on_error="skip", timeout=0.3)
    assert summary.done == 9
    assert isinstance(summary.failures["3"].exception, ItemTimeoutError)


class Slow:
    """A value that takes some time to be pickled."""

    def __init__(self, n):
        self.n = n

    def __getstate__(self):
        time.sleep(0.03)
        return {"n": self.n}


def test_timeout_does_not_count_the_pickling_of_all_for_the_last(elsewhere):
    stash = DictionaryStash()
    summary = fill(stash, Slow, range(24), workers=2, timeout=0.25, chunk_size=12, on_error="skip")
    assert summary.failures == {}
    assert len(stash) == 24


@pytest.mark.parametrize("on_error", ["raise", "skip", "store"])
def test_a_timeout_is_raised_as_one(elsewhere, on_error):
    def work(n):
        if n == 3:
            time.sleep(60)
        return n

    stash = DirectoryStash("data")
    if on_error == "raise":
        with pytest.raises(ItemTimeoutError, match="'3': it took longer than 0.3 s.*a longer timeout="):
            fill(stash, work, range(6), workers=2, timeout=0.3)
        assert len(stash) == 5
    else:
        summary = fill(stash, work, range(6), workers=2, timeout=0.3, on_error=on_error)
        assert isinstance(summary.failures["3"].exception, ItemTimeoutError)


@pytest.mark.parametrize("on_error", ["raise", "skip", "store"])
def test_a_value_that_can_not_be_made_again_here(elsewhere, on_error):
    stash = DictionaryStash()

    def work(n):
        return Odd(n, _fail, "loads") if n == 7 else n

    if on_error == "raise":
        with pytest.raises(ValueError, match="has come from a worker, and can't be made again here"):
            fill(stash, work, range(20), workers=2)
        return
    summary = fill(stash, work, range(20), workers=2, on_error=on_error)
    assert list(summary.failures) == ["7"]
    assert len(stash) == (20 if on_error == "store" else 19)


class Extra:
    def __reduce__(self):
        return _unpickled, (1, _fail)


@pytest.mark.parametrize("executor", [None, partial(ProcessPoolExecutor, 2)])
def test_a_record_with_something_that_can_not_be_made_again(elsewhere, caplog, executor):
    def work(n):
        logging.getLogger("extra").warning("hello %s", n, extra={"odd": Extra(), "number": n})
        return n

    with caplog.at_level("WARNING"):
        assert fill(DirectoryStash("data"), work, range(20), workers=2, executor=executor).done == 20
    records = [record for record in caplog.records if record.name == "extra"]
    assert sorted(record.number for record in records) == list(range(20))
    assert not any(hasattr(record, "odd") for record in records)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_value_is_let_go_before_the_next_is_made(elsewhere, size):
    numpy = pytest.importorskip("numpy")

    def work(n):
        return numpy.ones(10_000_000)

    options = {"workers": 2, "max_memory": 150_000_000, "on_error": "skip", "chunk_size": size}
    assert fill(DirectoryStash("data"), work, range(4), **options).failures == {}


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("retries", [1, 3])
def test_no_memory_to_send_a_value(elsewhere, size, retries):
    def work(n):
        return bytes(80_000_000) if n == 20 else n

    stash = DictionaryStash()
    options = {"workers": 2, "on_error": "skip", "max_memory": 150_000_000}
    summary = fill(stash, work, range(40), chunk_size=size, retries=retries, **options)
    assert list(summary.failures) == ["20"]
    assert isinstance(summary.failures["20"].exception, MemoryError)
    assert len(stash) == 39


def test_no_memory_for_an_item(elsewhere):
    items = [b"x"] * 10 + [b"y" * 200_000_000] + [b"z"] * 10
    options = {"workers": 2, "on_error": "skip", "chunk_size": 1, "max_memory": 1 << 27}
    summary = fill(DirectoryStash("data"), lambda t: 1, enumerate(items), key=lambda t: str(t[0]), **options)
    assert list(summary.failures) == ["10"]
    assert "MemoryError" in summary.failures["10"].message
    assert summary.done == 20


def test_a_program_that_does_not_wait_for_its_children(elsewhere):
    def one():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        assert fill(DirectoryStash("data"), lambda n: n, range(50), workers=2).done == 50
        os._exit(0)

    in_children(one)


def test_those_that_shared_a_fate_are_not_given_up(elsewhere):
    def work(n):
        time.sleep(0.01)
        if n == 5:
            os._exit(1)
        return n

    make = partial(ProcessPoolExecutor, 2)
    summary = fill(DirectoryStash("data"), work, range(20), workers=2, executor=make, retries=1, on_error="skip")
    assert list(summary.failures) == ["5"]
    assert summary.done == 19


class NoRoomBeside(Stash):
    """A stash without a place for bookkeeping."""

    shared = True

    def __init__(self, path):
        self.inner = DirectoryStash(path)

    def load(self, name):
        return self.inner.load(name)

    def dump(self, name, inst):
        self.inner.dump(name, inst)

    def keys(self):
        return self.inner.keys()

    def delete(self, name):
        return self.inner.delete(name)


def test_no_probe_is_left(elsewhere):
    def begin():
        try:
            os.close(os.open("first", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            time.sleep(0.3)

    def work(n):
        time.sleep(0.05)
        return n

    for stash in (NoRoomBeside("one"), DirectoryStash("two")):
        Path("first").unlink(missing_ok=True)
        with ProcessPoolExecutor(2) as executor:
            fill(stash, work, range(16), workers=2, chunk_size=1, executor=executor, initializer=begin)
        assert sorted(stash.keys(), key=int) == [str(n) for n in range(16)]
    assert not list(Path("two").rglob("*probe*"))


def test_an_executor_has_its_own_start_method(elsewhere):
    with pytest.raises(InvalidArgumentError, match="start_method is for processes of this machine"):
        fill(DirectoryStash("data"), str, [1], executor=partial(ProcessPoolExecutor, 2), start_method="spawn")


def test_a_factory_of_executors_that_are_shut_down(elsewhere):
    executor = ProcessPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(WorkerDiedError, match="takes no work .*make a new one at each call"):
        fill(DirectoryStash("data"), str, [1], executor=lambda: executor)


@pytest.mark.parametrize("progress", ["pipe"])
def test_the_bar_counts_what_was_there(elsewhere, progress, capsys):
    for _ in range(2):
        fill(DirectoryStash("data"), str, range(30), workers=2, progress=True)
        assert "30/30" in capsys.readouterr().err.splitlines()[-1]


# several parents


class Told(MultiProcessStash):
    def _create_data(self):
        return [str(n) for n in range(40)]

    def _process(self, chunk):
        for item in chunk:
            tell(".", item)
            time.sleep(0.01)
            yield item, item


def test_parents_with_other_chunk_sizes_share_the_work(elsewhere, make):
    def one(delay, workers):
        time.sleep(delay)
        assert len(Told(make(), workers=workers)) == 40
        os._exit(0)

    in_children(partial(one, 0, 2), partial(one, 0.08, 4), partial(one, 0.12, 3))
    assert sorted(Path("told").read_text().split(), key=int) == [str(n) for n in range(40)]


def test_notes_of_several_lengths():
    stash = DictionaryStash()
    journal = Journal(stash)
    items = [f"item {n}" for n in range(30)]
    journal.note(0, items[:4])
    journal.note(2, items[2:10])
    journal.note(0, items[:1])
    journal.note(20, items[20:22])
    again = Journal(stash)
    assert again.is_done(0, items) == [n < 10 or n in (20, 21) for n in range(30)]
    assert again.is_done(3, items[3:12]) == [True] * 7 + [False] * 2
    changed = [*items[:5], "changed", *items[6:]]
    assert again.is_done(0, changed)[4:7] == [True, False, True]
    with pytest.raises(MissingKeyError):
        stash["absent"]
