"""Small dicts in SQLite: ``SqliteStash`` against ``diskcache.Cache``, at 10,000 and at 200,000 keys.

``diskcache`` has no ``dump_many``; beside it stand its ``set`` one by one, and inside ``transact()``.  *sqlite3 alone*
is the floor: the statement that a load, an ``exists`` or a ``dump`` can't do without, on an equal table, with nothing
checked and nothing unpickled.  Keys are read in random order, at most 20,000 of them.  Microseconds an operation.
"""

from __future__ import annotations

import pickle
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from directory import small_dict
from interleave import (
    OURS,
    Contestant,
    Goals,
    Measured,
    arguments,
    each,
    file_system,
    installed,
    print_machine,
    print_versus,
    take_turns,
    timed,
)

CACHE, TRANSACT, FLOOR = "diskcache", "diskcache, transact()", "sqlite3 alone"
DUMP, LOAD, PRESENT, ABSENT, DUMP_MANY, LOAD_MANY, KEYS = (
    "dump",
    "load",
    "exists, present",
    "exists, absent",
    "dump_many",
    "load_many",
    "keys()",
)
GOALS: Goals = {
    (DUMP, CACHE): 1.5,
    (LOAD, CACHE): 1.5,
    (DUMP_MANY, CACHE): 4.0,
    (DUMP_MANY, TRANSACT): 4.0,
    (KEYS, CACHE): 1.5,
}
MOST_READ = 20_000


class Content:
    """The keys and values of a run, and the keys in the order in which they are read."""

    def __init__(self, size: int) -> None:
        self.keys = [f"document-{i:06}" for i in range(size)]
        self.values = [small_dict(i) for i in range(size)]
        chosen = random.Random(size)
        chosen_keys = chosen.sample(self.keys, min(size, MOST_READ))
        self.read, self.absent = chosen_keys, [f"nothing-{key}" for key in chosen_keys]
        # They are not dumped in the order of the keys either.
        pairs = list(zip(self.keys, self.values, strict=True))
        chosen.shuffle(pairs)
        self.keys, self.values = [key for key, _ in pairs], [value for _, value in pairs]

    def items(self) -> Iterator[tuple[str, object]]:
        return zip(self.keys, self.values, strict=True)


def ours(folder: Path, content: Content) -> Iterator[tuple[str, Measured]]:
    from zpersist import SqliteStash

    with SqliteStash(folder / "single.db") as stash, SqliteStash(folder / "many.db") as many:
        yield DUMP, each(stash.dump, content.keys, content.values)
        yield LOAD, each(stash.load, content.read)
        yield PRESENT, each(stash.exists, content.read)
        yield ABSENT, each(stash.exists, content.absent)
        yield DUMP_MANY, timed(lambda: many.dump_many(content.items()), len(content.keys))
        yield LOAD_MANY, timed(lambda: stash.load_many(content.read), len(content.read))
        yield KEYS, timed(lambda: list(stash.keys()), len(content.keys))


def cache_one_by_one(folder: Path, content: Content) -> Iterator[tuple[str, Measured]]:
    from diskcache import Cache

    with Cache(folder) as cache:
        dumped = each(cache.set, content.keys, content.values)
        yield DUMP, dumped
        yield LOAD, each(cache.get, content.read)
        yield PRESENT, each(cache.__contains__, content.read)
        yield ABSENT, each(cache.__contains__, content.absent)
        yield DUMP_MANY, dumped
        yield LOAD_MANY, timed(lambda: {key: cache.get(key) for key in content.read}, len(content.read))
        yield KEYS, timed(lambda: list(cache), len(content.keys))


def cache_in_transaction(folder: Path, content: Content) -> Iterator[tuple[str, Measured]]:
    from diskcache import Cache

    with Cache(folder) as cache:

        def dump_many() -> None:
            with cache.transact():
                for key, value in content.items():
                    cache.set(key, value)

        def load_many() -> dict[str, object]:
            with cache.transact():
                return {key: cache.get(key) for key in content.read}

        for step in (DUMP, LOAD, PRESENT, ABSENT):
            yield step, {}
        yield DUMP_MANY, timed(dump_many, len(content.keys))
        yield LOAD_MANY, timed(load_many, len(content.read))


def bare(folder: Path, content: Content) -> Iterator[tuple[str, Measured]]:
    folder.mkdir()
    db = sqlite3.connect(folder / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA mmap_size=268435456")
    db.execute("PRAGMA cache_size=-65536")
    db.execute("PRAGMA wal_autocheckpoint=4000")
    db.execute("CREATE TABLE stash (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL)")
    rows = [(key, pickle.dumps(value, 5)) for key, value in content.items()]
    insert = "INSERT INTO stash VALUES (?, ?)"

    def select(key: str) -> object:
        return db.execute("SELECT value FROM stash WHERE key=?", (key,)).fetchone()

    def probe(key: str) -> object:
        return db.execute("SELECT 1 FROM stash WHERE key=?", (key,)).fetchone()

    def in_one_transaction() -> None:
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM stash")
        db.executemany(insert, rows)
        db.execute("COMMIT")

    yield DUMP, each(lambda row: db.execute(insert, row), rows)
    yield LOAD, each(select, content.read)
    yield PRESENT, each(probe, content.read)
    yield ABSENT, each(probe, content.absent)
    db.execute("DELETE FROM stash")
    yield DUMP_MANY, timed(in_one_transaction, len(rows))
    db.close()


def contestants(content: Content) -> dict[str, Contestant]:
    runners = {OURS: ours, CACHE: cache_one_by_one, TRANSACT: cache_in_transaction, FLOOR: bare}
    return {name: lambda folder, run=run: run(folder, content) for name, run in runners.items()}


def main() -> None:
    options = arguments(__doc__, rounds=5, quick=1, places=True)
    print_machine("diskcache")
    print(f"SQLite {sqlite3.sqlite_version}\n")
    for size in (300, 3_000) if options.quick else (10_000, 200_000):
        content = Content(size)
        runners = installed(contestants(content), {CACHE: "diskcache", TRANSACT: "diskcache"})
        for place in options.places:
            figures = take_turns(runners, options.rounds, place)
            print(f"{size:,} keys on {file_system(place)}, {options.rounds} rounds:\n")
            for quantity in ("wall", "cpu"):
                print_versus(figures, quantity, "µs", 1e6, GOALS)


if __name__ == "__main__":
    main()
