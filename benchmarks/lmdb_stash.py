"""Small dicts in LMDB: ``LmdbStash`` against ``zict.LMDB`` with pickle, and our ``SqliteStash``.

``zict`` opens LMDB with ``sync=False, writemap=True``: it never waits for the disk, and after a power cut the file
may be unreadable; on a full disk a map that is written to kills the process. ``LmdbStash`` waits for the disk once a
transaction. So ``zict`` is here twice: as it is, and *safe*, with the flags of ``LmdbStash`` and in front of the
pickle a checksum of it and the key: it then promises about the same of a value. Compare the code of the two in
memory, and see on the disk what the promise costs. *lmdb alone* is the floor: a transaction for each operation with
the flags of ``LmdbStash``, nothing checked and nothing unpickled; *without sync* the same with ``sync=False``. Keys
are read in random order, at most 20,000 of them. Microseconds an operation.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

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
from sqlite import ABSENT, DUMP, DUMP_MANY, KEYS, LOAD, LOAD_MANY, PRESENT, Content

ZICT, SAFE, FLOOR = "zict.LMDB + pickle", "zict.LMDB + pickle, safe", "lmdb alone"
UNSYNCED, SQLITE = "lmdb alone, without sync", "SqliteStash"
GOALS: Goals = {
    (step, peer): goal for step, goal in ((DUMP, 1.0), (LOAD, 1.0), (DUMP_MANY, 2.0)) for peer in (ZICT, SAFE)
}
#: On a disk a single dump is a wait for it.
MOST_SYNCED = 2_000
MAP = 1 << 30


def stashes(kind: str, folder: Path, content: Content, most: int) -> Iterator[tuple[str, Measured]]:
    from zpersist import LmdbStash, SqliteStash

    make = {OURS: LmdbStash, SQLITE: SqliteStash}[kind]
    with make(folder / "single") as stash, make(folder / "many") as many:
        yield DUMP, each(stash.dump, content.keys[:most], content.values[:most])
        yield DUMP_MANY, timed(lambda: many.dump_many(content.items()), len(content.keys))
        yield LOAD, each(many.load, content.read)
        yield LOAD_MANY, timed(lambda: many.load_many(content.read), len(content.read))
        yield PRESENT, each(many.exists, content.read)
        yield ABSENT, each(many.exists, content.absent)
        yield KEYS, timed(lambda: list(many.keys()), len(content.keys))


def zict_lmdb(safe: bool, folder: Path, content: Content, most: int) -> Iterator[tuple[str, Measured]]:
    import lmdb
    from xxhash import xxh3_64_digest
    from zict import LMDB

    folder.mkdir()
    single, many = LMDB(folder / "single"), LMDB(folder / "many")
    if safe:
        for store, name in ((single, "single"), (many, "many")):
            store.db.close()
            store.db = lmdb.open(str(folder / name), map_size=MAP, metasync=False)

    def pack(key: str, value: object) -> bytes:
        data = pickle.dumps(value, 5)
        return xxh3_64_digest(key.encode() + data) + data if safe else data

    def dump(key: str, value: object) -> None:
        single[key] = pack(key, value)

    def load(key: str) -> object:
        data = many[key]
        if safe:
            data, checksum = data[8:], data[:8]
            if checksum != xxh3_64_digest(key.encode() + data):
                raise ValueError(key)
        return pickle.loads(data)

    yield DUMP, each(dump, content.keys[:most], content.values[:most])
    pairs = ((key, pack(key, value)) for key, value in content.items())
    yield DUMP_MANY, timed(lambda: many.update(pairs), len(content.keys))
    yield LOAD, each(load, content.read)
    yield LOAD_MANY, timed(lambda: {key: load(key) for key in content.read}, len(content.read))
    yield PRESENT, each(many.__contains__, content.read)
    yield ABSENT, each(many.__contains__, content.absent)
    yield KEYS, timed(lambda: list(many), len(content.keys))
    single.close()
    many.close()


def bare(sync: bool, folder: Path, content: Content, most: int) -> Iterator[tuple[str, Measured]]:
    import lmdb

    folder.mkdir()
    options = {"subdir": False, "map_size": MAP, "metasync": False, "sync": sync, "max_spare_txns": 1}
    single, many = (lmdb.open(str(folder / name), **options) for name in ("single", "many"))
    rows = [(key.encode(), pickle.dumps(value, 5)) for key, value in content.items()]

    def put(key: bytes, data: bytes) -> None:
        with single.begin(write=True) as txn:
            txn.put(key, data)

    def put_many() -> None:
        with many.begin(write=True) as txn:
            txn.cursor().putmulti(rows)

    def get(key: bytes) -> object:
        with many.begin() as txn:
            return txn.get(key)

    def get_many() -> object:
        with many.begin() as txn:
            return [txn.get(key) for key in read]

    def probe(key: bytes) -> bool:
        with many.begin() as txn:
            return bool(txn.cursor().set_key(key))

    def keys() -> object:
        with many.begin() as txn:
            return list(txn.cursor().iternext(values=False))

    read, absent = [key.encode() for key in content.read], [key.encode() for key in content.absent]
    yield DUMP, each(put, *zip(*rows[:most], strict=True))
    yield DUMP_MANY, timed(put_many, len(rows))
    yield LOAD, each(get, read)
    yield LOAD_MANY, timed(get_many, len(read))
    yield PRESENT, each(probe, read)
    yield ABSENT, each(probe, absent)
    yield KEYS, timed(keys, len(rows))
    single.close()
    many.close()


def contestants(content: Content, most: int) -> dict[str, Contestant]:
    runners = {
        OURS: partial(stashes, OURS),
        ZICT: partial(zict_lmdb, False),
        SAFE: partial(zict_lmdb, True),
        FLOOR: partial(bare, True),
        UNSYNCED: partial(bare, False),
        SQLITE: partial(stashes, SQLITE),
    }
    return {name: lambda folder, run=run: run(folder, content, most) for name, run in runners.items()}


def main() -> None:
    options = arguments(__doc__, rounds=5, quick=1, places=True)
    print_machine("lmdb", "zict")
    for size in (300, 3_000) if options.quick else (10_000, 200_000):
        content = Content(size)
        for place in options.places:
            kind = file_system(place)
            most = size if kind == "tmpfs" else MOST_SYNCED
            runners = installed(
                contestants(content, most), {ZICT: "zict", SAFE: "zict", FLOOR: "lmdb", UNSYNCED: "lmdb"}
            )
            figures = take_turns(runners, options.rounds, place)
            print(f"{size:,} keys on {kind}, {options.rounds} rounds:\n")
            for quantity in ("wall", "cpu"):
                print_versus(figures, quantity, "µs", 1e6, GOALS)


if __name__ == "__main__":
    main()
