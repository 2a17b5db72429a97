"""LMDB: what grows, what is shared in a process, what forks, and what is damaged."""

from __future__ import annotations

import errno
import faulthandler
import gc
import itertools
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest

from zpersist import (
    CacheStash,
    CodecMismatchError,
    CorruptValueError,
    DictionaryStash,
    FactoryStash,
    FormatVersionError,
    InvalidArgumentError,
    LmdbStash,
    LRUCacheStash,
    MultiProcessFactoryStash,
    OutcomeUnknownError,
    ReadOnlyStash,
    StorageError,
    ZPersistError,
    fill,
)
from zpersist.files import envelope
from zpersist.stores import environment, lmdbfile, longkeys, pages
from zpersist.stores.environment import Environment
from zpersist.testing.reading import in_child, in_threads

from ..disk import on_a_small_disk

ROOT = Path(__file__).parents[2]
SMALL = 1 << 16
fork = multiprocessing.get_context("fork")


def small(path, **options):
    return LmdbStash(path / "data.lmdb", map_size=SMALL, **options)


def opened(stash):
    """Return LMDB's environment of a stash, or None."""
    return stash._table._opened


def elsewhere_do(path, code):
    """Run code on a stash of the same file in another process."""
    program = f"from zpersist import LmdbStash\nwith LmdbStash({str(path)!r}, map_size=1<<16) as s:\n    {code}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return run.stdout.strip()


def descriptors_of(path):
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if os.path.islink(link) and str(path) in os.readlink(link))


# keys


def keys_at_the_limit():
    chance = random.Random(5)
    for char in ("a", "é", "\U0001f600", "\ud7ff", "\ue000", "\U0010ffff"):
        width = len(char.encode())
        for size in (508, 509, 510, 511, 512, 513, 1023, 1024):
            key = char * (size // width)
            key += "z" * (size - len(key.encode()))
            yield key
            yield key[:-1] + "\0"
            # Alike in what LMDB takes as a key, and different after it.
            for _ in range(3):
                cut = chance.randrange(len(key))
                yield key[:cut] + chance.choice("a\0é\U0001f600")
    yield from ("a", "b", "\0", "\U0010ffff", "a" * 511 + "\0", "a" * 510 + "é", "a" * 509 + "\U0001f600" * 2)


def check_order(stash):
    keys = sorted({key for key in keys_at_the_limit() if len(key.encode()) <= 1024})
    chance = random.Random(6)
    mixed = keys[:]
    chance.shuffle(mixed)
    half = len(mixed) // 2
    for key in mixed[:half]:
        stash.dump(key, [key])
    stash.dump_many((key, [key]) for key in mixed[half:])
    assert list(stash.keys()) == keys
    assert list(stash) == [(key, [key]) for key in keys]
    assert len(stash) == len(keys)
    assert all(stash[key] == [key] and stash.exists(key) for key in keys)
    assert stash.load_many(keys) == {key: [key] for key in keys}
    for bound in (*keys, *(key[: len(key) // 2] for key in keys), *(key[:511] + "b" for key in keys)):
        after, before = [key for key in keys if key > bound], [key for key in keys if key < bound][::-1]
        assert list(stash.scan(after=bound)) == after
        assert list(stash.scan(after=bound, limit=3)) == after[:3]
        assert list(stash.scan(after=bound, reverse=True)) == before
        assert list(stash.scan(after=bound, reverse=True, limit=3)) == before[:3]
        if bound:
            assert list(stash.scan(bound)) == [key for key in keys if key.startswith(bound)]
            assert list(stash.scan(bound, reverse=True)) == [key for key in keys[::-1] if key.startswith(bound)]
    for key in keys:
        assert not stash.add(key, 1)
        assert stash.update(key, lambda old: [*old, 1]) == [key, 1]
    for number, key in enumerate(mixed):
        assert stash.delete(key) if number % 2 else stash.delete_many([key, key]) == 1
        assert not stash.exists(key)
        assert not stash.delete(key)
        assert len(stash) == len(keys) - number - 1
        assert stash.add(key, 2)
        assert stash.delete(key)
    assert not stash


@pytest.mark.parametrize("page", [1000, 1, 7])
def test_keys_at_the_limit_of_lmdb_are_in_exact_order(tmp_path, monkeypatch, page):
    from zpersist.stores import lmdb as module

    monkeypatch.setattr(module, "_BATCH", page)
    monkeypatch.setattr(module, "_BATCH_OF_VALUES", page)
    with LmdbStash(on_memory(tmp_path) / "data.lmdb") as stash:
        check_order(stash)


def test_a_wrong_order_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "merge", lambda short, long, key, reverse: [*short, *long])
    with LmdbStash(on_memory(tmp_path) / "data.lmdb") as stash, pytest.raises(AssertionError):
        check_order(stash)


def on_memory(path):
    """Return a place where nothing waits for a disk, if there is one."""
    if not os.access("/dev/shm", os.W_OK):
        return path
    import tempfile

    folder = tempfile.TemporaryDirectory(dir="/dev/shm")
    _folders.append(folder)
    return Path(folder.name)


_folders = []


@pytest.fixture(autouse=True)
def no_folder_is_left():
    yield
    while _folders:
        _folders.pop().cleanup()


def test_iterating_while_writing_in_the_same_thread(tmp_path):
    with small(tmp_path) as stash:
        stash.dump_many((f"{number:05}", number) for number in range(2500))
        for number, key in enumerate(stash.keys()):
            if number % 500 == 0:
                stash.delete(key)
                stash[f"x{key}"] = "x" * 30_000
        for number, (key, _) in enumerate(stash.items()):
            if number % 500 == 0:
                stash.delete(key)
        assert len(stash) == 2500 - 5
        # A reader that stays would keep all old pages.
        assert " -" in opened(stash).readers().splitlines()[1]


def test_a_fork_in_the_middle_of_an_iteration(tmp_path):
    with small(tmp_path) as stash:
        stash.dump_many((f"{number:04}", number) for number in range(2500))
        keys = iter(stash.keys())
        first = [next(keys) for _ in range(1500)]

        def child():
            assert len([*first, *keys]) == 2500
            stash["child"] = 1

        assert in_child(child) == 0
        assert [*first, *keys] == [*(f"{number:04}" for number in range(2500)), "child"]


def test_the_error_names_both_codecs(tmp_path):
    with small(tmp_path) as stash, small(tmp_path, codec="json") as other:
        stash["a"], other["b"] = 1, 2
        with pytest.raises(CodecMismatchError, match="'a' in .* by the codec 'pickle', 'json' is configured"):
            other["a"]
        with pytest.raises(CodecMismatchError, match="'b' in .* by the codec 'json', 'pickle' is configured"):
            stash["b"]


# growth


def grow_alone(path):
    with small(path) as stash:
        for number in range(300):
            stash.dump(str(number), bytes([number % 251]) * 20_000)
        stash.dump("large", bytes(9_000_000))
        stash.dump_many((f"many {number}", bytes(3000)) for number in range(3000))
        assert len(stash) == 3301
        assert all(stash[str(number)] == bytes([number % 251]) * 20_000 for number in range(300))
        assert len(stash["large"]) == 9_000_000
        assert opened(stash).info()["map_size"] > 20_000_000


def test_it_grows_far_beyond_its_first_size(tmp_path):
    grow_alone(tmp_path)


def refuse(self, err):
    raise lmdbfile.translate(err, self.file) from err


def test_what_does_not_grow_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(Environment, "mend", refuse)
    with pytest.raises(StorageError):
        grow_alone(tmp_path)


def grow_together(path):
    stash = small(path)

    def write(number):
        with small(path) as mine:
            for turn in range(100):
                mine.dump(f"{number} {turn}", bytes([number]) * 20_000)
                assert mine[
                    f"{(number + 1) % 4} {turn - 50}"
                    if f"{(number + 1) % 4} {turn - 50}" in mine
                    else f"{number} {turn}"
                ]

    children = [fork.Process(target=write, args=(number,)) for number in range(4)]
    for child in children:
        child.start()
    codes = []
    for child in children:
        child.join()
        codes.append(child.exitcode)
        child.close()
    found = {key: set(value) for key, value in stash}
    stash.close()
    return codes, found


def test_four_processes_grow_it_at_once(tmp_path):
    codes, found = grow_together(on_memory(tmp_path))
    assert codes == [0, 0, 0, 0]
    assert found == {f"{number} {turn}": {number} for number in range(4) for turn in range(100)}


def test_threads_grow_it_at_once(tmp_path):
    with small(on_memory(tmp_path)) as stash, small(tmp_path, database="other") as other:

        def write(number):
            for turn in range(60):
                (stash, other)[turn % 2].dump(f"{number} {turn}", bytes(20_000))
                assert all(
                    len(value) == 20_000 for value in (stash, other)[number % 2].load_many(["0 0", "1 1"]).values()
                )

        in_threads(6, write)
        assert [len(stash), len(other)] == [180, 180]


GROWN = "s.dump_many((str(n), bytes(20_000)) for n in range(200))"


def test_what_another_process_has_grown_is_read_and_written(tmp_path):
    with small(tmp_path) as stash:
        stash["a"] = 1
        elsewhere_do(stash.path, GROWN)
        assert stash["a"] == 1
        assert len(stash["199"]) == 20_000
        elsewhere_do(stash.path, GROWN.replace("str(n)", "'x' + str(n)"))
        stash["b"] = 2
        assert len(stash) == 402


def test_not_to_adopt_the_size_of_another_process_is_found(tmp_path, monkeypatch):
    with small(tmp_path) as stash:
        stash["a"] = 1
        elsewhere_do(stash.path, GROWN)
        monkeypatch.setattr(Environment, "mend", refuse)
        with pytest.raises(StorageError):
            stash["a"]


def test_no_address_space(tmp_path):
    with small(tmp_path) as stash:
        stash["a"] = 1

        def child():
            stash["a"]
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20),) * 2)
            with pytest.raises(StorageError) as caught:
                for number in range(10_000):
                    stash[str(number)] = bytes(500_000)
            assert caught.value.errno == errno.ENOMEM
            assert stash["a"] == 1
            stash["b"] = 2

        assert in_child(child) == 0
        assert stash["b"] == 2


# one environment a process


def test_two_stashes_on_one_path(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    one, other = small(tmp_path), small(tmp_path / "link", database="other")
    one["a"], other["a"] = 1, 2
    assert opened(one) is opened(other)
    twin = small(tmp_path)
    assert twin["a"] == 1
    one.close()
    one.close()
    assert [twin["a"], other["a"]] == [1, 2]
    other.close()
    assert opened(twin) is not None
    twin.close()
    assert descriptors_of(tmp_path) == []
    assert [one["a"], other["a"]] == [1, 2]
    one.close()
    other.close()


def test_many_databases(tmp_path):
    stashes = [small(tmp_path, database=f"number{number}") for number in range(100)]
    for number, stash in enumerate(stashes):
        stash["a"] = number
    assert [stash["a"] for stash in stashes] == list(range(100))
    more = [small(tmp_path, database=f"more{number}") for number in range(100)]
    with pytest.raises(StorageError) as caught:
        for stash in more:
            stash["a"] = 1
    assert caught.value.errno == errno.EMFILE
    assert "256 databases of the file are open" in str(caught.value)
    assert "keep more stashes in another file" in str(caught.value)
    assert [stash["a"] for stash in stashes] == list(range(100))
    for stash in stashes + more:
        stash.close()
    assert descriptors_of(tmp_path) == []


def test_no_descriptor_is_left_by_cycles(tmp_path):
    path = on_memory(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        with small(path) as one, small(path, database="two") as two:
            one[str(number)] = two[str(number)] = number
    assert len(one) == 50
    assert len(os.listdir("/proc/self/fd")) > before, "what is open is seen here"
    one.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_stash_that_is_dropped_is_closed(tmp_path):
    stash, other = small(tmp_path), small(tmp_path, database="other")
    stash["a"] = other["a"] = 1
    assert descriptors_of(tmp_path)
    other.close()
    assert descriptors_of(tmp_path)
    del stash
    gc.collect()
    assert descriptors_of(tmp_path) == []


def test_a_file_that_is_deleted_and_made_again_is_another_one(tmp_path):
    old = small(tmp_path)
    old["a"] = 1
    for file in tmp_path.iterdir():
        file.unlink()
    new = small(tmp_path)
    assert "a" not in new
    new["b"] = 2
    assert elsewhere_do(new.path, "print(s['b'])") == "2"
    assert dict(old) == {"b": 2}
    old.close()
    new.close()


def test_threads_make_the_environment_once(tmp_path):
    os.umask(0o022)
    path = on_memory(tmp_path)
    for number in range(10):
        in_threads(6, lambda i, file=path / f"{number}": LmdbStash(file).dump(str(i), i))
        with LmdbStash(path / f"{number}") as stash:
            assert len(stash) == 6
        assert os.stat(path / f"{number}").st_mode & 0o777 == 0o600
        assert os.stat(path / f"{number}-lock").st_mode & 0o777 == 0o600


def test_readers_do_not_wait_for_a_writer(tmp_path):
    with small(tmp_path) as stash:
        stash["a"] = 1
        with stash._table._env.writing:
            assert in_threads(2, lambda _: (stash["a"], "b" in stash, list(stash.keys()))) == [(1, False, ["a"])] * 2


def test_closing_while_others_read_and_write(tmp_path):
    path = on_memory(tmp_path)
    stash = small(path)
    done = threading.Event()

    def run(number):
        if number == 0:
            for _ in range(300):
                stash.close()
            done.set()
        for turn in itertools.count():
            if done.is_set() and turn > 50:
                return
            stash[f"{number} {turn % 50}"] = turn
            assert stash[f"{number} {turn % 50}"] == turn

    in_threads(4, run)
    stash.close()


# forks


def fork_while_writing(path):
    """Return how children end that are forked while a thread writes, and what they find open."""
    stash = small(path)
    stash["a"] = 1
    stop = threading.Event()

    def write():
        for number in itertools.count():
            if stop.is_set():
                return
            stash[f"w{number % 100}"] = bytes(1000)

    open_in_child = fork.SimpleQueue()

    def child(number):
        open_in_child.put(descriptors_of(path))
        assert stash["a"] == 1
        stash[f"c{number}"] = number
        assert stash.update("n", lambda n: n + 1, 0) > 0
        stash.close()

    thread = threading.Thread(target=write)
    thread.start()
    codes = [in_child(lambda number=number: child(number)) for number in range(15)]
    stop.set()
    thread.join()
    found = [open_in_child.get() for code in codes if code == 0 or not open_in_child.empty()]
    made = [stash.get(f"c{number}") for number in range(15)]
    count = stash.get("n")
    stash.close()
    return codes, found, made, count


def test_fork_while_another_thread_writes(tmp_path):
    codes, found, made, count = fork_while_writing(on_memory(tmp_path))
    assert codes == [0] * 15
    assert found == [[]] * 15, "a child inherits nothing that is open"
    assert made == list(range(15))
    assert count == 15


def test_a_fork_gets_its_turn_among_those_who_write_all_the_time(tmp_path):
    path = on_memory(tmp_path)
    stashes = [LmdbStash(path / f"{number}.lmdb") for number in range(3)]
    done = threading.Event()

    def run(number):
        if number == 0:
            try:
                assert [in_child(lambda: stashes[1].dump("child", 1)) for _ in range(5)] == [0] * 5
            finally:
                done.set()
        while not done.is_set():
            # Each needs two, in one order and in the other.
            one, other = (stashes, stashes[::-1])[number % 2][:2]
            one["a"] = number
            one.update("b", lambda old, other=other: other.get("a"))

    in_threads(4, run)
    for stash in stashes:
        stash.close()


def test_an_inherited_environment_is_found(tmp_path):
    path = on_memory(tmp_path)
    stash = small(path)
    stash["a"] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "close", lambda self: None)
        assert in_child(lambda: os._exit(len(descriptors_of(path)))) > 0
    stash.close()


def test_a_child_forked_in_an_update_can_write(tmp_path):
    with small(tmp_path) as stash:
        stash["a"] = 1

        def fn(value):
            assert in_child(lambda: stash.dump("child", 1)) == 0
            return value + 1

        assert stash.update("a", fn) == 2
        assert dict(stash) == {"a": 2, "child": 1}


def test_an_update_sees_what_came_between(tmp_path):
    with small(tmp_path) as stash:
        for key in ("a", "long " * 200):
            values = []

            def fn(value, key=key, values=values):
                values.append(value)
                if len(values) < 3:
                    stash.dump(key, [len(values)])
                return [*value, "mine"]

            assert stash.update(key, fn, []) == [2, "mine"]
            assert values == [[], [1], [2]]
            assert stash[key] == [2, "mine"]


# signals


def interrupted(stash, use, by):
    """Use a stash, and do something in a signal handler when its transaction has begun; return what that raised."""
    caught = []

    def handler(number, frame):
        try:
            by()
        except StorageError as err:
            caught.append(err)

    signals = iter([signal.SIGUSR1])

    class Interrupted:
        """A transaction, and a signal that comes before its end."""

        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            if name in ("get", "put", "cursor"):
                for number in signals:
                    os.kill(os.getpid(), number)
            return getattr(self.real, name)

    table = stash._table
    begin = table._begin

    def begin_interrupted(*options):
        return Interrupted(begin(*options))

    table._begin = begin_interrupted
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        use()
    finally:
        signal.signal(signal.SIGUSR1, before)
        if table._begin is begin_interrupted:
            table._begin = begin
    assert next(signals, None) is None, "it has come"
    return caught


def test_a_signal_handler_that_writes_in_the_middle_of_a_write(tmp_path):
    with small(tmp_path) as stash, small(tmp_path, database="other") as other:
        stash["a"] = other["a"] = 1
        for by in (lambda: stash.dump("b", 2), lambda: other.dump("b", 2), lambda: stash.delete("a")):
            (err,) = interrupted(stash, lambda: stash.dump("c", 3), by)
            assert err.errno == errno.EBUSY
            assert "signal handler" in str(err)
        assert dict(stash) == {"a": 1, "c": 3}
        assert dict(other) == {"a": 1}


def fork_here():
    if os.fork() == 0:
        os._exit(0)
    os.wait()


@pytest.mark.parametrize("use", ["dump", "dump_many", "load"])
@pytest.mark.parametrize("what", ["read", "close", "fork", "grow"])
def test_a_signal_handler_in_the_middle_of_a_transaction(tmp_path, use, what):
    with small(tmp_path) as stash:
        stash["a"] = 1
        uses = {
            "dump": lambda: stash.dump("b", 2),
            "dump_many": lambda: stash.dump_many({"b": 2}),
            "load": lambda: stash.load("a"),
        }
        by = {
            "read": lambda: stash["a"],
            "close": stash.close,
            "fork": fork_here,
            "grow": lambda: stash.dump("large", bytes(1_000_000)),
        }
        caught = interrupted(stash, uses[use], by[what])
        assert [err.errno for err in caught] == ([errno.EBUSY] if what == "grow" and use != "load" else [])
        assert stash["a"] == 1
        assert stash.get("b") == (None if use == "load" else 2)
        stash["c"] = 3


# deaths


def hold_reader(path):
    """Start a process that takes the only slot for readers, and return it."""
    hold = (
        "import lmdb, sys\nenv = lmdb.open(sys.argv[1], subdir=False, max_readers=1)\ntxn = env.begin()\n"
        "print('reads', flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"reads\n"
    return process


def test_no_slot_for_a_reader(tmp_path):
    with small(tmp_path) as stash:
        stash["a"] = 1
    # Nobody has it open: who comes first decides how many slots there are.
    os.unlink(f"{stash.path}-lock")
    holder = hold_reader(stash.path)
    for use in (lambda: stash.dump("b", 2), lambda: stash["a"]):
        with pytest.raises(StorageError, match="READERS_FULL") as caught:
            use()
        assert caught.value.errno == errno.EAGAIN
        assert caught.value.filename == str(stash.path)
    holder.kill()
    holder.communicate()
    stash["b"] = 2
    assert dict(stash) == {"a": 1, "b": 2}, "the slot of the dead one is free"
    stash.close()


def write_to_what_is_gone(path):
    with small(path) as stash:
        stash["a"] = 1
        stash.path.unlink()
        stash["b"] = 2
        assert elsewhere_do(stash.path, "print(dict(s))") == "{'b': 2}"
        assert dict(stash) == {"b": 2}
        with LmdbStash(path / "new.lmdb") as new:
            new["new"] = 1
        os.replace(path / "new.lmdb", stash.path)
        stash.dump_many({"c": 3})
        assert elsewhere_do(stash.path, "print(dict(s))") == "{'c': 3, 'new': 1}"


def test_nothing_is_written_to_a_file_that_nobody_finds(tmp_path):
    write_to_what_is_gone(tmp_path)


def test_who_does_not_look_writes_to_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(Environment, "is_in_place", lambda self: True)
    with pytest.raises(AssertionError):
        write_to_what_is_gone(tmp_path)


def test_a_stale_reader_is_cleared(tmp_path):
    path = tmp_path / "data.lmdb"
    keeper = LmdbStash(path)
    keeper["a"] = 1
    keeper.close()
    hold = (
        "import lmdb, sys\nenv = lmdb.open(sys.argv[1], subdir=False)\ntxn = env.begin()\n"
        "print('reads', flush=True)\nsys.stdin.read()"
    )
    run = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    living, dead = (subprocess.Popen([sys.executable, "-c", hold, str(path)], **run) for _ in range(2))
    for process in (living, dead):
        assert process.stdout.readline() == b"reads\n"
    dead.kill()
    dead.communicate()
    look = "import lmdb, sys\nprint(lmdb.open(sys.argv[1], subdir=False).readers())"
    seen = subprocess.run([sys.executable, "-c", look, str(path)], capture_output=True, text=True, check=True).stdout
    assert f" {dead.pid} " in f"{seen} ", "nobody has looked after it yet"
    with LmdbStash(path) as stash:
        assert stash["a"] == 1
        readers = opened(stash).readers()
    assert f"{dead.pid} " not in readers
    assert f"{living.pid} " in readers
    living.communicate()


def test_a_lock_file_in_use_keeps_its_size(tmp_path):
    path = tmp_path / "data.lmdb"
    hold = "import lmdb, sys\nenv = lmdb.open(sys.argv[1], subdir=False)\nprint(1, flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", hold, str(path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"1\n"
    size = os.stat(f"{path}-lock").st_size
    with LmdbStash(path) as stash:
        stash["a"] = 1
        assert os.stat(f"{path}-lock").st_size == size
        assert opened(stash).info()["max_readers"] < lmdbfile.MAX_READERS
    other.communicate()
    assert other.returncode == 0


WRITER = """
import os, sys
from zpersist import LmdbStash
path, start, early = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "early"
stash = LmdbStash(path, map_size=1 << 16)
for number in range(start, start + 100_000):
    if early:
        os.write(1, f"{number}\\n".encode())
    if number % 10 == 0:
        stash.dump_many({f"{number} {i}": [number, i] for i in range(50)})
    else:
        stash[str(number)] = [number] * (number % 3000)
    if not early:
        os.write(1, f"{number}\\n".encode())
"""


def kill_writers(path, times, seed, when="late"):
    """Yield what is wrong after each of many writers was killed."""
    chance = random.Random(seed)
    file, start = str(path / "data.lmdb"), 1
    for _ in range(times):
        command = [sys.executable, "-c", WRITER, file, str(start), when]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        head = writer.stdout.readline()
        threading.Event().wait(chance.uniform(0, 0.03))
        writer.kill()
        lines = (head + writer.communicate()[0]).decode().split("\n")
        acknowledged = [int(line) for line in lines[:-1]]
        with LmdbStash(file) as stash:
            for number in acknowledged:
                wanted = (
                    {f"{number} {i}": [number, i] for i in range(50)}
                    if number % 10 == 0
                    else {str(number): [number] * (number % 3000)}
                )
                if stash.load_many(wanted) != wanted:
                    yield f"{number} was acknowledged, and is not there"
            after = acknowledged[-1] + 1
            part = sum(1 for _ in stash.scan(f"{after} "))
            if part not in (0, 50):
                yield f"{part} of 50 that are one transaction"
            for key, value in stash:
                if value[:1] not in ([], [int(key.split()[0])]):
                    yield f"{key} is torn"
            stash.clear()
        start = after + 1
    from lmdb.verify import verify

    yield from verify(file, subdir=False)


def test_killed_writers(tmp_path):
    assert list(kill_writers(tmp_path, 8, 1)) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_killed_writers(tmp_path):
    assert list(kill_writers(on_memory(tmp_path), 200, 2)) == []


def test_a_writer_that_says_so_too_early_is_found(tmp_path):
    assert next(kill_writers(on_memory(tmp_path), 100, 3, "early"), None) is not None


# refusals


def fill_disk(path):
    """Fill a small disk, and see that what was there stays."""
    path = Path(path)
    (path / "filler").write_bytes(bytes(100_000))
    with LmdbStash(path / "data.lmdb", map_size=SMALL) as stash:
        stash["a"] = "old"
        kept = 0
        while kept < 1000:
            try:
                stash[str(kept)] = os.urandom(7000)
            except StorageError as err:
                assert err.errno == errno.ENOSPC, err
                assert "make room" in str(err)
                assert not isinstance(err, OutcomeUnknownError)
                break
            kept += 1
        assert 5 < kept < 100
        for _ in range(3):
            with pytest.raises(StorageError):
                stash["a"] = os.urandom(20_000)
        assert stash["a"] == "old"
        assert len(stash) == kept + 1
        assert all(len(stash[str(number)]) == 7000 for number in range(kept))
    with open(path / "filler", "ab", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(512))
    other = LmdbStash(path / "other.lmdb")
    with pytest.raises(StorageError) as caught:
        other["a"] = 1
    assert caught.value.errno == errno.ENOSPC, caught.value
    with LmdbStash(path / "data.lmdb") as stash:
        assert stash["a"] == "old", "what is there can be read"
    (path / "filler").unlink()
    with LmdbStash(path / "data.lmdb") as stash, other:
        stash["a"] = "new"
        other["a"] = 1
        assert [stash["a"], other["a"], len(stash)] == ["new", 1, kept + 1]


def test_a_full_disk(tmp_path):
    code = f"from tests.stores.test_lmdb import *; fill_disk({str(tmp_path)!r})"
    command = on_a_small_disk([sys.executable, "-W", "error", "-c", code], tmp_path, "512k")
    if command is None:
        pytest.skip("no disk can be mounted here")
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr


def test_a_file_that_may_not_grow(tmp_path):
    with small(tmp_path) as stash:
        stash["a"] = "old"

        def child():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
            with pytest.raises(StorageError) as caught:
                for number in range(100):
                    stash[str(number)] = bytes(20_000)
            assert caught.value.errno in (errno.EFBIG, errno.EIO)
            assert not isinstance(caught.value, OutcomeUnknownError)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            stash["b"] = bytes(900_000)

        assert in_child(child) == 0
        assert [stash["a"], len(stash["b"])] == ["old", 900_000]
        assert all(len(value) == 20_000 for key, value in stash if key not in "ab")


def test_a_directory_that_can_not_be_written_to(tmp_path):
    folder = tmp_path / "folder"
    with LmdbStash(folder / "data.lmdb") as stash:
        stash["a"] = 1

    def child():
        os.setgid(1000)
        os.setuid(1000)
        for path in (folder / "data.lmdb", folder / "new.lmdb"):
            with pytest.raises(StorageError) as caught:
                LmdbStash(path)["a"]
            assert caught.value.errno == errno.EACCES, caught.value
            assert "permission" in str(caught.value)

    for parent in (tmp_path, *tmp_path.parents):
        if not os.stat(parent).st_mode & 0o001:
            parent.chmod(0o711)
            break
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.chmod(folder / "data.lmdb", 0o444)
        assert in_child(child) == 0
    else:
        with pytest.raises(StorageError):
            LmdbStash(folder / "new.lmdb")["a"]
    folder.chmod(0o755)
    with LmdbStash(folder / "data.lmdb") as stash:
        assert stash["a"] == 1


def test_a_directory_in_place_of_the_file(tmp_path):
    with pytest.raises(StorageError) as caught:
        LmdbStash(tmp_path)["a"]
    assert caught.value.errno == errno.EISDIR


@pytest.mark.parametrize(
    "options",
    [
        {"database": ""},
        {"database": "a:b"},
        {"database": "é"},
        {"database": b"a"},
        {"map_size": 0},
        {"map_size": True},
        {"map_size": 1e9},
        {"map_size": 1 << 60},
        {"durability": "most"},
        {"codec": object},
    ],
)
def test_options_that_make_no_sense(tmp_path, options):
    with pytest.raises(InvalidArgumentError):
        LmdbStash(tmp_path / "data.lmdb", **options)


def test_without_lmdb_the_error_says_what_to_install():
    code = """
import sys
sys.modules["lmdb"] = None
from zpersist import *
try:
    LmdbStash("data.lmdb")
except ImportError as err:
    print(err)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'zpersist[lmdb]'" in done.stdout


# durability


class StandIn:
    """LMDB's environment, with one method exchanged."""

    def __init__(self, real, **instead):
        self._real = real
        self._instead = instead

    def __getattr__(self, name):
        return self._instead[name] if name in self._instead else getattr(self._real, name)


def test_how_it_syncs(tmp_path):
    calls = []
    for durability in ("rename", "fsync"):
        with small(tmp_path, durability=durability) as stash:
            stash["a"] = 1
            assert [opened(stash).flags()[name] for name in ("sync", "metasync", "writemap")] == [True, False, False]
            real = opened(stash)
            stash._table._env._lmdb = StandIn(
                real, sync=lambda force, real=real: calls.append(force) or real.sync(force)
            )
            stash["a"] = 2
            calls.append(durability)
    assert calls == ["rename", True, "fsync"]


def test_a_sync_that_fails(tmp_path):
    with small(tmp_path, durability="fsync") as stash:
        stash["a"] = 1

        def fail(force):
            err = lmdb.DiskError("mdb_env_sync: Input/output error")
            err.code = errno.EIO
            raise err

        real = opened(stash)
        stash._table._env._lmdb = StandIn(real, sync=fail)
        with pytest.raises(OutcomeUnknownError) as caught:
            stash["a"] = 2
        assert caught.value.errno == errno.EIO
        assert caught.value.filename == str(stash.path)
        stash._table._env._lmdb = real


# damage


def written(path):
    """Return the bytes of an environment in which all kinds of pages are."""
    chance = random.Random(7)
    with small(path) as stash:
        for _ in range(6):
            stash.dump_many((f"k{chance.randrange(900):04}", bytes(chance.randrange(300))) for _ in range(150))
            stash.delete_many(f"k{chance.randrange(900):04}" for _ in range(60))
        stash["large"] = bytes(range(256)) * 60
        stash["long " * 150] = "long"
        content = dict(stash)
    return (path / "data.lmdb").read_bytes(), content


USE = """
import sys
from zpersist import CorruptValueError, LmdbStash, StorageError
with LmdbStash(sys.argv[1]) as stash:
    try:
        data = dict(stash)
        assert set(map(len, map(repr, data.values())))
        stash["k0001"] = "new"
        stash["large"] = "x" * 20_000
        stash.delete_many(list(stash.keys())[::2])
        print("read", len(data), sep="")
    except (CorruptValueError, StorageError) as err:
        assert sys.argv[1] in str(err)
        print("refused")
"""


def use_damaged(path, data, number):
    """Use a damaged file in another process, and return how that ended."""
    file = path / f"damaged{number}.lmdb"
    file.write_bytes(data)
    done = subprocess.run([sys.executable, "-c", USE, str(file)], capture_output=True, text=True)
    return done.stdout.split()[0] if done.returncode == 0 else f"{done.returncode} {done.stderr[-300:]}"


def lengths(data, count):
    chance = random.Random(8)
    return [
        *(len(data) * number // count for number in range(1, count)),
        *(chance.randrange(len(data)) for _ in range(5)),
    ]


def test_a_file_that_was_cut(tmp_path):
    data, content = written(tmp_path)
    for number, length in enumerate([*lengths(data, 12), 1, 4095, 4096, 8191, 8192, len(data) - 1]):
        ended = use_damaged(tmp_path, data[:length], number)
        # What was at the end may be free pages.
        assert ended == "refused" or (ended == f"read{len(content)}" and length > 0.9 * len(data)), (length, ended)


def test_a_cut_file_kills_who_does_not_look(tmp_path, monkeypatch):
    data, _ = written(tmp_path)
    path = tmp_path / "cut.lmdb"
    path.write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(lmdbfile, "_check_length", lambda file, opened: None)

    def read():
        faulthandler.disable()
        list(LmdbStash(path))

    assert in_child(read) == -signal.SIGBUS


def test_what_was_given_back_before_it_was_written_is_not_missed(tmp_path):
    # A file that is shorter than its last page tells is whole if none of its trees has the page.
    data, content = written(tmp_path)
    path = tmp_path / "data.lmdb"
    used = -1
    with lmdb.open(str(path), subdir=False, max_dbs=8) as env:
        db = env.open_db(b"stash")
        with env.begin(write=True) as txn:
            txn.put(b"big", bytes(400_000), db=db)
        with env.begin(write=True) as txn:
            txn.delete(b"big", db=db)
        used = (env.info()["last_pgno"] + 1) * 4096
    assert path.stat().st_size == used
    os.truncate(path, used - 8192)
    with LmdbStash(path) as stash:
        assert dict(stash) == content
        stash["more"] = bytes(600_000)
        assert len(stash["more"]) == 600_000


def test_a_foreign_file(tmp_path):
    chance = random.Random(9)
    for number, data in enumerate([b"x", b"SQLite format 3\0" * 1000, chance.randbytes(100_000), bytes(70_000)]):
        path = tmp_path / str(number)
        path.write_bytes(data)
        with pytest.raises(CorruptValueError) as caught:
            LmdbStash(path)["a"]
        assert str(path) in str(caught.value)
        assert path.read_bytes() == data
    (tmp_path / "a-lock").write_bytes(chance.randbytes(40_000))
    with LmdbStash(tmp_path / "a") as stash:
        # Nobody else has it open, so the lock file is begun anew.
        stash["a"] = 1
        assert stash["a"] == 1


def written_by_others(path, key, value=b"x", database=b"stash"):
    """Write a cell into the database of a stash as somebody else might, while it is closed."""
    with lmdb.open(str(path), subdir=False, max_dbs=8) as env, env.begin(write=True) as txn:
        txn.put(key, value, db=env.open_db(database, txn=txn))


# In the database of short keys, and in that of the records of long ones.
STRAYS = {
    "invalid UTF-8": (b"x\xff", b"stash"),
    "a surrogate": (b"\xed\xa0\x80", b"stash"),
    "a record that is none": (b"y" * 511, b"stash:long"),
    "a record of short keys": (b"y", b"stash:long"),
}


def check_strays(path, key, database, repair):
    long = "long " * 150
    with small(path) as stash:
        stash.dump_many({"a": 1, "z": [2], long: 3})
    written_by_others(stash.path, key, b"x", database)
    for use in (stash.keys, lambda: stash.scan(reverse=True), stash.items):
        with pytest.raises(CorruptValueError) as caught:
            list(use())
        assert str(stash.path) in str(caught.value)
        assert repr(key) in str(caught.value)
    (damage,) = stash.verify(repair=repair)
    assert damage.key is None
    assert str(stash.path) in str(damage.error)
    assert repr(key) in str(damage.error)
    assert damage.repaired is (repair is not None)
    assert stash.load_many(["a", "z", long]) == {"a": 1, "z": [2], long: 3}
    if repair is not None:
        assert list(stash.verify(progress=True)) == []
        assert dict(stash) == {"a": 1, "z": [2], long: 3}
    stash.close()
    with lmdb.open(str(stash.path), subdir=False, max_dbs=8) as env, env.begin() as txn:
        if repair == "quarantine":
            db = env.open_db(b"stash__quarantine", txn=txn, create=False)
            assert list(txn.cursor(db)) == [(f"no key {key[:80]!r}".encode(), b"x")]


@pytest.mark.parametrize("repair", [None, "drop", "quarantine"])
@pytest.mark.parametrize("kind", STRAYS)
def test_what_is_no_key_is_told_and_put_out_of_the_way(tmp_path, kind, repair):
    check_strays(tmp_path, *STRAYS[kind], repair)


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_records_of_long_keys_that_others_can_read_are_told_and_left(tmp_path, monkeypatch, repair):
    with small(tmp_path) as stash:
        stash["a"] = 1
        with monkeypatch.context() as newer:
            newer.setattr(envelope, "FORMAT_VERSION", 2)
            stash["k" * 600] = "newer"
        with monkeypatch.context() as other:
            other.setattr(longkeys._RecordCodec, "id", "another")
            stash["l" * 600] = "another"
        stash._table.put(b"b", b"damaged")
        found = [(damage.key, type(damage.error), damage.repaired) for damage in stash.verify(repair=repair)]
        assert found == [
            ("b", CorruptValueError, True),
            (None, FormatVersionError, False),
            (None, CodecMismatchError, False),
        ]
        monkeypatch.setattr(envelope, "FORMAT_VERSION", 2)
        assert stash["k" * 600] == "newer"
        monkeypatch.setattr(longkeys._RecordCodec, "id", "another")
        assert stash["l" * 600] == "another"


def test_who_looks_at_keys_only_finds_no_strays(tmp_path, monkeypatch):
    monkeypatch.setattr(LmdbStash, "_cell_names", lambda self, stray: iter(["a", "z"]))
    with pytest.raises(ValueError, match="not enough values"):
        check_strays(tmp_path, *STRAYS["invalid UTF-8"], None)


def test_of_what_is_no_key_a_pickle_of_others_stays(tmp_path):
    with small(tmp_path) as stash:
        stash["a"] = 1
    written_by_others(stash.path, b"\xff", pickle.dumps({"theirs": 1}))
    assert [damage.repaired for damage in stash.verify(repair="drop")] == [False]
    assert len(stash) == 2
    stash.close()


@pytest.mark.parametrize("length", [1000, 1014, 1015, 1024])
def test_a_long_key_is_laid_aside_again_and_again(tmp_path, length):
    key = "k" * length
    with small(tmp_path) as stash:
        for number in range(3):
            stash._table.put(key.encode(), b"damaged")
            assert [damage.repaired for damage in stash.verify(repair="quarantine")] == [True]
            laid_aside = list(stash._companion("quarantine").keys())
            assert len(laid_aside) == number + 1
            assert all(name.startswith(key[:1000]) for name in laid_aside)


@pytest.mark.parametrize("flag", ["dupsort", "integerkey", "reverse_key"])
def test_databases_of_another_kind(tmp_path, flag):
    path = tmp_path / "data.lmdb"
    with lmdb.open(str(path), subdir=False, max_dbs=8) as env:
        env.open_db(b"stash", **{flag: True})
    with LmdbStash(path) as stash:
        for use in (lambda: stash.dump("a", 1), lambda: stash["a"]):
            with pytest.raises(StorageError, match=flag) as caught:
                use()
            assert caught.value.errno == errno.EINVAL
    with LmdbStash(path, database="other") as stash:
        stash["a"] = 1
        assert stash["a"] == 1


def test_the_name_of_the_database_is_a_key_of_others(tmp_path):
    path = tmp_path / "data.lmdb"
    with lmdb.open(str(path), subdir=False, max_dbs=8) as env, env.begin(write=True) as txn:
        txn.put(b"stash", b"theirs")
    with pytest.raises(StorageError, match="has this name") as caught:
        LmdbStash(path)["a"]
    assert caught.value.filename == str(path)


def test_the_directory_of_an_environment_of_others(tmp_path):
    with lmdb.open(str(tmp_path / "env")):
        pass
    for path in (tmp_path / "env", tmp_path / "env" / "data.mdb"):
        with pytest.raises(StorageError, match=r"a directory that lmdb.open\(\) made") as caught:
            LmdbStash(path)["a"]
        assert caught.value.filename == str(path)
    assert sorted(os.listdir(tmp_path / "env")) == ["data.mdb", "lock.mdb"]


def test_an_environment_that_the_program_has_open(tmp_path):
    path = tmp_path / "data.lmdb"
    with lmdb.open(str(path), subdir=False), pytest.raises(StorageError, match="close that environment") as caught:
        LmdbStash(path)["a"]
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("version", [2, 9])
def test_a_file_of_another_version(tmp_path, version):
    data, _ = written(tmp_path)
    changed = bytearray(data)
    for page in (0, 4096):
        changed[page + 20 : page + 24] = version.to_bytes(4, "little")
    path = tmp_path / "other.lmdb"
    path.write_bytes(changed)
    with pytest.raises(StorageError, match=f"data format v{version}") as caught:
        LmdbStash(path)["a"]
    assert caught.value.filename == str(path)
    assert path.read_bytes() == changed


def test_a_flipped_byte_in_a_value_is_noticed(tmp_path):
    data, content = written(tmp_path)
    at = data.rindex(bytes(range(256)) * 4) + 700
    flipped = bytearray(data)
    flipped[at] ^= 1
    path = tmp_path / "flipped.lmdb"
    path.write_bytes(flipped)
    with LmdbStash(path) as stash:
        with pytest.raises(CorruptValueError):
            stash["large"]
        assert stash["long " * 150] == "long"
    long = bytearray(data)
    for at in find_all(data, b"zpersist-long-keys"):
        long[at - 3] ^= 1
    path = tmp_path / "long.lmdb"
    path.write_bytes(long)
    with LmdbStash(path) as stash:
        assert stash["large"] == content["large"]
        for use in (lambda: stash["long " * 150], lambda: list(stash), lambda: len(stash)):
            with pytest.raises(CorruptValueError):
                use()


def find_all(data, part):
    at = data.find(part)
    while at >= 0:
        yield at
        at = data.find(part, at + 1)


def test_a_value_under_another_key_is_noticed(tmp_path):
    with small(tmp_path) as stash:
        stash["a"] = 1
    with lmdb.open(str(stash.path), subdir=False, max_dbs=8) as env:
        db = env.open_db(b"stash")
        with env.begin(write=True, db=db) as txn:
            txn.put(b"b", txn.get(b"a"))
            txn.put(b"c", b"what is this?")
    for key in "bc":
        with pytest.raises(CorruptValueError):
            stash[key]
    assert stash["a"] == 1
    stash.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_damage_raises_one_of_our_errors_or_ends_the_process(tmp_path):
    # The page says that LMDB can end the process; what it must not do is to give a wrong value.
    data, content = written(tmp_path)
    chance = random.Random(10)
    ended = 0
    for number in range(300):
        bad = bytearray(data)
        for _ in range(chance.randrange(1, 20)):
            bad[chance.randrange(8192, len(bad))] ^= 1 << chance.randrange(8)
        path = tmp_path / f"{number}.lmdb"
        path.write_bytes(bad)

        def read(path=path):
            faulthandler.disable()
            with LmdbStash(path) as stash:
                for key in content:
                    with suppress(ZPersistError):
                        found = stash.get(key)
                        assert found is None or found == content[key]

        code = in_child(read)
        assert code == 0 or code < 0
        ended += code < 0
        path.unlink()
    assert ended < 150, "most damage is told by an error"
    print(f"{ended} of 300 ended the process")


# with others


class Squares(ReadOnlyStash):
    def load(self, name):
        with open("told", "a") as told:
            told.write(f"{name}\n")
        return int(name) ** 2

    def keys(self):
        return map(str, range(30))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_many_processes_fill_it(elsewhere, method):
    with small(Path()) as stash:
        base = 7
        summary = fill(stash, lambda n: n + base, range(200), workers=3, start_method=method)
        assert [summary.done, summary.there, summary.failures] == [200, 0, {}]
        assert dict(stash) == {str(n): n + 7 for n in range(200)}
        assert fill(stash, lambda n: n, range(210), workers=2, start_method=method).done == 10
    with MultiProcessFactoryStash(
        small(Path(), database="squares"), Squares(), workers=2, start_method=method
    ) as squares:
        assert dict(squares) == {str(n): n * n for n in range(30)}
        assert sorted(Path("told").read_text().split()) == sorted(map(str, range(30)))
        squares.clear()
        assert len(squares) == 30


def test_one_makes_a_value_and_the_others_wait(elsewhere):
    stash = FactoryStash(small(Path()), Squares())
    assert in_threads(6, lambda _: stash["5"]) == [25] * 6
    children = [fork.Process(target=stash.load, args=("6",)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
        child.close()
    assert stash["6"] == 36
    assert sorted(Path("told").read_text().split()) == ["5", "6"]
    stash.close()


def test_behind_a_cache(tmp_path):
    with small(tmp_path) as store:
        store.dump_many({"a": None, "b": 2})
        cache = CacheStash(store, LRUCacheStash(5))
        assert [cache["a"], cache["b"], cache.get("c", 3)] == [None, 2, 3]
        cache["c"] = 4
        assert store["c"] == 4
        cache = CacheStash(store, DictionaryStash())
        assert dict(cache) == {"a": None, "b": 2, "c": 4}


def test_clearing_takes_the_notes_with_it(tmp_path):
    with small(tmp_path) as stash, small(tmp_path, database="stash2") as other:
        stash["a"] = other["a"] = 1
        for purpose in ("journal", "failures"):
            stash._companion(purpose)["n"] = 1
            stash._companion(purpose)["long " * 150] = 1
        stash.clear()
        assert [len(stash), len(stash._companion("journal")), len(stash._companion("failures"))] == [0, 0, 0]
        assert dict(other) == {"a": 1}
    assert descriptors_of(tmp_path) == []


def test_the_environments_of_closed_stashes_are_forgotten(tmp_path):
    stash = small(tmp_path)
    stash["a"] = 1
    assert any(str(tmp_path) in file for file in environment._environments)
    del stash
    gc.collect()
    assert not any(str(tmp_path) in file for file in environment._environments)
