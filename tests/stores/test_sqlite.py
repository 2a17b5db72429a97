"""SQLite among other users of the same file, of this process and of others, and across forks."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from zpersist import (
    CodecMismatchError,
    CorruptValueError,
    InvalidArgumentError,
    SqliteStash,
    Stash,
    StorageError,
)
from zpersist.stores.connection import Connection
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


# what others have written


def written_by_others(path, key, value=b"x"):
    """Write a cell into the table of a stash as somebody else might."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"INSERT INTO stash VALUES ({key}, ?)", (value,))
        db.commit()


STRAYS = {
    "invalid UTF-8": ("CAST(x'78ff' AS TEXT)", b"x\xff"),
    "a surrogate": ("CAST(x'eda080' AS TEXT)", b"\xed\xa0\x80"),
    "bytes": ("x'ff00'", b"\xff\0"),
    "bytes that are text": ("x'61'", b"a"),
    "nothing": ("''", b""),
    "too long": ("printf('%01025d', 0)", b"0" * 1025),
}


def check_strays(path, key, raw, repair):
    with SqliteStash(path) as stash:
        stash.dump_many({"a": 1, "z": [2]})
        written_by_others(path, key)
        for use in (stash.keys, lambda: stash.scan(reverse=True), stash.items):
            with pytest.raises(CorruptValueError) as caught:
                list(use())
            assert str(path) in str(caught.value)
            assert repr(raw)[:60] in str(caught.value) or repr(raw.decode())[:60] in str(caught.value)
        (damage,) = stash.verify(repair=repair)
        assert damage.key is None
        assert str(path) in str(damage.error)
        assert repr(raw)[:60] in str(damage.error)
        assert damage.repaired is (repair is not None)
        assert stash.load_many("az") == {"a": 1, "z": [2]}
        if repair is None:
            return
        assert list(stash.verify()) == []
        assert dict(stash) == {"a": 1, "z": [2]}
    with closing(sqlite3.connect(path)) as db:
        if repair == "quarantine":
            (row,) = db.execute("SELECT * FROM stash__quarantine")
            assert row == (f"no key {raw[:80]!r}", b"x")


@pytest.mark.parametrize("repair", [None, "drop", "quarantine"])
@pytest.mark.parametrize("kind", STRAYS)
def test_what_is_no_key_is_told_and_put_out_of_the_way(tmp_path, kind, repair):
    check_strays(tmp_path / "data.db", *STRAYS[kind], repair)


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
@pytest.mark.parametrize("row", ["x'ff', NULL", "NULL, x'78'", "NULL, NULL"])
def test_a_row_that_lacks_its_key_or_value_is_put_out_of_the_way(tmp_path, row, repair):
    path = tmp_path / "data.db"
    with SqliteStash(path) as stash:
        stash["a"] = 1
    with closing(sqlite3.connect(path)) as db:
        # As a flipped bit leaves it, that SQLite does not look for.
        ((sql,),) = db.execute("SELECT sql FROM sqlite_master WHERE name='stash'")
        schema = "UPDATE sqlite_master SET sql=? WHERE name='stash'"
        db.execute("PRAGMA writable_schema=ON")
        db.execute(schema, (sql.replace(" NOT NULL", ""),))
        db.commit()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"INSERT INTO stash VALUES ({row})")
        db.execute("PRAGMA writable_schema=ON")
        db.execute(schema, (sql,))
        db.commit()
    with SqliteStash(path) as stash:
        assert [(damage.key, damage.repaired) for damage in stash.verify()] == [(None, False)]
        assert [(damage.key, damage.repaired) for damage in stash.verify(repair=repair)] == [(None, True)]
        assert list(stash.verify()) == []
        assert (dict(stash), len(stash)) == ({"a": 1}, 1)
        assert len(list(stash._companion("quarantine").keys())) == (repair == "quarantine")


def test_who_looks_at_keys_only_finds_no_strays(tmp_path, monkeypatch):
    monkeypatch.setattr(SqliteStash, "_cell_names", lambda self, stray: iter(["a", "z"]))
    with pytest.raises(ValueError, match="not enough values"):
        check_strays(tmp_path / "data.db", *STRAYS["bytes"], None)


def test_of_what_is_no_key_a_pickle_of_others_stays(tmp_path):
    path = tmp_path / "data.db"
    with SqliteStash(path) as stash:
        stash["a"] = 1
        written_by_others(path, "x'ff'", pickle.dumps({"theirs": 1}))
        assert [damage.repaired for damage in stash.verify(repair="drop")] == [False]
        assert len(stash) == 2
        assert [damage.key for damage in stash.verify(progress=True)] == [None]


def test_tables_that_differ_in_capitals_are_not_mixed(tmp_path):
    path = tmp_path / "data.db"
    with SqliteStash(path, table="Words") as stash, SqliteStash(path, table="words") as other:
        stash["a"] = 1
        for use in (lambda: other.dump("b", 2), lambda: other["a"], lambda: len(other)):
            with pytest.raises(StorageError, match="'words' would be 'Words', which is there") as caught:
                use()
            assert caught.value.filename == str(path)
        assert dict(stash) == {"a": 1}
        SqliteStash(path, table="Words")["c"] = 3
        assert dict(stash) == {"a": 1, "c": 3}


COLUMNS = "key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL"


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("CREATE TABLE stash (key TEXT PRIMARY KEY NOT NULL COLLATE NOCASE, value BLOB NOT NULL)", "NOCASE"),
        ("CREATE TABLE stash (key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL)", "key BLOB"),
        ("CREATE TABLE stash (id)", r"\(id\)"),
        ("CREATE VIEW stash AS SELECT 'a' AS key, 1 AS value", "VIEW"),
        (f"PRAGMA encoding='UTF-16'; CREATE TABLE other ({COLUMNS})", "UTF-16"),
    ],
)
def test_what_others_have_made_is_refused(tmp_path, sql, what):
    path = tmp_path / "data.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(sql)
    stash = SqliteStash(path)
    for use in (lambda: stash.dump("a", 1), lambda: stash.exists("a")):
        with pytest.raises(StorageError, match=what) as caught:
            use()
        assert caught.value.errno == errno.EINVAL
        assert caught.value.filename == str(path)


def test_a_table_of_ours_that_was_dumped_and_read_again(tmp_path):
    with SqliteStash(tmp_path / "old.db") as stash:
        stash["a"] = 1
    with closing(sqlite3.connect(tmp_path / "old.db")) as old, closing(sqlite3.connect(tmp_path / "new.db")) as new:
        new.executescript("\n".join(old.iterdump()))
        new.execute("VACUUM")
    with SqliteStash(tmp_path / "new.db") as stash:
        assert dict(stash) == {"a": 1}


@pytest.mark.parametrize("table", ["sqlite_a", "SQLITE_sequence"])
def test_tables_of_sqlite_itself(tmp_path, table):
    with pytest.raises(InvalidArgumentError, match="sqlite_"):
        SqliteStash(tmp_path / "data.db", table=table)


def test_the_error_names_both_codecs(tmp_path):
    with SqliteStash(tmp_path / "data.db") as stash, SqliteStash(tmp_path / "data.db", codec="json") as other:
        stash["a"], other["b"] = 1, 2
        with pytest.raises(CodecMismatchError, match="'a' in .* by the codec 'pickle', 'json' is configured"):
            other["a"]
        with pytest.raises(CodecMismatchError, match="'b' in .* by the codec 'json', 'pickle' is configured"):
            stash["b"]


# order


def test_bounds_that_are_no_keys(tmp_path):
    with SqliteStash(tmp_path / "data.db") as stash:
        keys = ["\0", "a", "a\0b", "a\ud7ff", "a\ue000", "k" * 1024, "\ud7ff", "\ue000", "\uffff", "\U0001f600"]
        stash.dump_many(dict.fromkeys(keys))
        bounds = ["", "a", "\ud7ff", "\ud800", "\udfff\udc00", "a\ud800", "a\udfffz", "\ue000", "\U0010ffff", *keys]
        for prefix in bounds:
            for after in (None, *bounds):
                for reverse in (False, True):
                    wanted = list(Stash.scan(stash, prefix, after=after, reverse=reverse))
                    assert list(stash.scan(prefix, after=after, reverse=reverse)) == wanted
                    assert list(stash.scan(prefix, after=after, reverse=reverse, limit=2)) == wanted[:2]


def test_a_fork_in_the_middle_of_an_iteration(tmp_path):
    with SqliteStash(tmp_path / "data.db") as stash:
        stash.dump_many((f"{number:04}", number) for number in range(2500))
        keys = iter(stash.keys())
        first = [next(keys) for _ in range(1500)]

        def child():
            assert len([*first, *keys]) == 2500
            stash["child"] = 1

        assert in_child(child) == 0
        assert [*first, *keys] == [*(f"{number:04}" for number in range(2500)), "child"]


# a file that goes away


def write_after(path, change):
    with SqliteStash(path) as stash:
        stash["a"] = 1
        change(path)
        for use in (
            lambda: stash.dump("b", 2),
            lambda: stash.dump_many({"b": 2}),
            lambda: stash.add("b", 2),
            lambda: stash.delete("a"),
            stash.clear,
        ):
            with pytest.raises(StorageError, match="deleted or replaced") as caught:
                use()
            assert caught.value.errno == errno.ESTALE
        assert stash["a"] == 1


def delete(path):
    path.unlink()


def replace(path):
    with SqliteStash(path.with_name("new")) as stash:
        stash["new"] = 1
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize("change", [delete, replace])
def test_nothing_is_written_to_a_file_that_nobody_finds(tmp_path, change):
    path = tmp_path / "data.db"
    write_after(path, change)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    with SqliteStash(path) as stash:
        assert dict(stash) == ({} if change is delete else {"new": 1})
        stash["b"] = 2
    assert elsewhere_do(path, "print(s['b'])") == "2"


def test_who_does_not_look_writes_to_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(Connection, "_check_may_write", lambda self: None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        write_after(tmp_path / "data.db", delete)


# signals


def test_a_signal_handler_that_writes_in_the_middle_of_a_write(tmp_path):
    caught = []
    with SqliteStash(tmp_path / "data.db") as stash:
        stash["a"] = 1

        def handler(number, frame):
            try:
                stash["b"] = 2
            except StorageError as err:
                caught.append(err)

        real = stash._db._db

        class Interrupted:
            """The connection, and a signal that comes when a transaction has begun."""

            def __getattr__(self, name):
                return getattr(real, name)

            def execute(self, sql, *values):
                cursor = real.execute(sql, *values)
                if sql == "BEGIN IMMEDIATE":
                    os.kill(os.getpid(), signal.SIGUSR1)
                return cursor

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            stash._db._db = Interrupted()
            stash.dump_many({"c": 3})
        finally:
            stash._db._db = real
            signal.signal(signal.SIGUSR1, before)
        assert [err.errno for err in caught] == [errno.EBUSY]
        assert "signal handler" in str(caught[0])
        assert dict(stash) == {"a": 1, "c": 3}
