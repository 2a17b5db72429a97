"""SQLite among other users of the same file, of this process and of others, and across forks."""

from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from zpersist import SqliteStash
from zpersist.testing.reading import in_child, in_threads


def elsewhere_do(path, code):
    """Run code on a stash of the same file in another process."""
    program = f"from zpersist import SqliteStash\nwith SqliteStash({str(path)!r}) as s:\n    {code}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return run.stdout.strip()


def test_a_second_stash_on_the_file_does_not_cost_the_first_its_locks(tmp_path):
    path = tmp_path / "data.db"
    one = SqliteStash(path)
    one["a"] = 1
    two = SqliteStash(path, table="two")
    two["b"] = 1
    elsewhere_do(path, "s['q'] = 1")
    one["acknowledged"] = 1
    assert elsewhere_do(path, "print(s.get('acknowledged'))") == "1"
    elsewhere_do(path, "s['theirs'] = 2")
    assert one.get("theirs") == 2
    one.close()
    two.close()
    assert elsewhere_do(path, "print(sorted(s.keys()))") == "['a', 'acknowledged', 'q', 'theirs']"


STRESS = """
import sys
from zpersist import SqliteStash
path, number = sys.argv[1:]
for turn in range(12):
    with SqliteStash(path) as one, SqliteStash(path, table="two") as two:
        for i in range(2):
            one[f"{number}-{turn}-{i}"] = i
            two[f"{number}-{turn}-{i}"] = i
"""


def test_nothing_is_lost_when_many_open_and_close_it(tmp_path):
    path = tmp_path / "data.db"
    command = [sys.executable, "-c", STRESS, str(path)]
    running = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE) for number in range(4)]
    for process in running:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err.decode()
    with SqliteStash(path) as one, SqliteStash(path, table="two") as two:
        assert [len(one), len(two)] == [96, 96]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_fork_waits_for_no_one_who_waits_for_it(tmp_path):
    stashes = [SqliteStash(tmp_path / f"{number}.db") for number in range(2)]
    for stash in stashes:
        stash["k"] = 1
    for one, other in (stashes, stashes[::-1]):
        begun = threading.Event()

        def fn(value, other=other, begun=begun):
            begun.set()
            time.sleep(0.1)
            return value + other["k"]

        thread = threading.Thread(target=one.update, args=("k", fn))
        thread.start()
        begun.wait()
        assert in_child(lambda: None) == 0
        thread.join()


def test_a_child_forked_in_an_update_can_write(tmp_path):
    stash = SqliteStash(tmp_path / "data.db", timeout=20)
    stash["a"] = 1

    def child():
        stash["child"] = 1

    def fn(value):
        assert in_child(child) == 0
        return value + 1

    assert stash.update("a", fn) == 2
    assert dict(stash) == {"a": 2, "child": 1}


def test_what_the_function_of_an_update_raises_is_its_own(tmp_path):
    stash = SqliteStash(tmp_path / "data.db")

    def fn(value):
        raise sqlite3.OperationalError("mine")

    with pytest.raises(sqlite3.OperationalError, match="mine"):
        stash.update("a", fn)
    assert not stash


def test_an_update_sees_what_came_between(tmp_path):
    stash = SqliteStash(tmp_path / "data.db")
    values = []

    def fn(value):
        values.append(value)
        if len(values) < 3:
            stash.dump("a", [len(values)])
        return [*value, "mine"]

    assert stash.update("a", fn, []) == [2, "mine"]
    assert values == [[], [1], [2]]
    assert stash["a"] == [2, "mine"]


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, 3_000_000])
def test_a_long_timeout_is_not_none(tmp_path, timeout):
    stash = SqliteStash(tmp_path / "data.db", timeout=timeout)
    stash["a"] = 1
    db = sqlite3.connect(tmp_path / "data.db", isolation_level=None, check_same_thread=False)
    db.execute("BEGIN IMMEDIATE")

    def end():
        time.sleep(0.2)
        db.execute("COMMIT")

    thread = threading.Thread(target=end)
    thread.start()
    stash["a"] = 2
    thread.join()
    db.close()
    assert stash["a"] == 2


def test_threads_make_the_database_once(tmp_path):
    os.umask(0o022)
    for number in range(10):
        path = tmp_path / f"{number}.db"
        in_threads(6, lambda i, path=path: SqliteStash(path).dump(str(i), i))
        assert len(SqliteStash(path)) == 6
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_stash_that_is_dropped_is_closed(tmp_path):
    stash = SqliteStash(tmp_path / "data.db")
    stash["a"] = 1

    def still_open():
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return any(os.readlink(link).startswith(str(tmp_path)) for link in links if os.path.islink(link))

    assert still_open()
    del stash
    gc.collect()
    assert not still_open()
