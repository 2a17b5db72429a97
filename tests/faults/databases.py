"""Databases are written to, and every call of theirs is traced; what a power cut may leave is read by fresh processes.

:func:`record` runs in the server of :mod:`tests.faults.shim`.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.blocks import ACKNOWLEDGED, MAPPED, Blocks, Script, State, lay_out, snapshot
from tests.faults.crash_states import Acknowledged, Event, Wrote
from tests.faults.shim import FAIL, SYNC, Entry, Mode, Report, Trace, armed, in_a_fork
from tests.faults.stores import STORES
from zpersist import ZPersistError
from zpersist.stores import lmdbfile
from zpersist.stores.connection import _COLUMNS, Connection

DATABASES = [kind for kind, store in STORES.items() if store.database]
KEYS = [str(number) for number in range(1, 7)]

Contents = dict[str, Any]


class Step(NamedTuple):
    """Something that is done in one step, and what there is after it."""

    act: Callable[[Any], object]
    after: Callable[[Contents], Contents]


def dump(key: str, value: Any) -> Step:
    return Step(lambda s: s.dump(key, value), lambda there: there | {key: value})


def dump_many(values: Contents) -> Step:
    return Step(lambda s: s.dump_many(values), lambda there: there | values)


def update(key: str, value: Any) -> Step:
    return Step(lambda s: s.update(key, lambda old: value), lambda there: there | {key: value})


def delete(key: str) -> Step:
    return Step(lambda s: s.delete(key), lambda there: {name: there[name] for name in there if name != key})


CLEAR = Step(lambda s: s.clear(), lambda there: {})
CLOSE = Step(lambda s: s.close(), lambda there: there)


def hasten(stash: Any) -> None:
    """Let SQLite bring its log into the database every few pages, and so begin the log anew, again and again."""
    if hasattr(stash, "_db"):
        stash._db.read("PRAGMA wal_autocheckpoint=6")


HASTEN = Step(hasten, lambda there: there)


def sized(number: int) -> list[Any]:
    """Return a value of some size: in a page, over several pages, tiny."""
    return [number, "x" * (number * 1777 % 9000)]


def turns(count: int) -> list[Step]:
    """Return many small steps, that use pages again."""
    return [
        delete(KEYS[number % 6]) if number % 4 == 3 else dump(KEYS[number * 5 % 6], sized(number))
        for number in range(count)
    ]


THERE = {"1": "old", "2": "o" * 6000}

#: What is there before, and what is done one after the other.
SCRIPTS: dict[str, tuple[Contents, list[Step]]] = {
    "first": ({}, [dump("1", "one"), dump("2", sized(3)), delete("1")]),
    "dump": (THERE, [dump("1", "one"), dump("3", "n" * 20_000), update("1", "two"), delete("2"), dump("2", "again")]),
    "many": (THERE, [dump_many({key: sized(int(key)) for key in KEYS}), CLEAR, dump_many({"1": "n", "5": "n" * 9000})]),
    "reopened": (THERE, [dump("1", "one"), CLOSE, dump("2", "two"), delete("1"), CLOSE, dump("3", sized(5))]),
    "turns": (THERE, [HASTEN, *turns(14)]),
}


# where it is broken: stores in ways that programs in use are


def unsafe(db: Any) -> None:
    """Open as some do for speed."""
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")


def unsynced(db: Any) -> None:
    """Keep a log, and never sync."""
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")


def mostly_synced(db: Any) -> None:
    """Sync the log only before it is brought into the database."""
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")


def opened_by(prepare: Callable[[Any], None]) -> Callable[[pytest.MonkeyPatch], None]:
    def instead(connection: Connection, db: Any) -> None:
        prepare(db)
        db.execute(f'CREATE TABLE IF NOT EXISTS "{connection.table}" {_COLUMNS}')

    return lambda patch: patch.setattr(Connection, "_prepare", instead)


def without_sync(patch: pytest.MonkeyPatch) -> None:
    """Open LMDB with ``sync=False``."""
    real = lmdbfile.lmdb.open
    patch.setattr(lmdbfile.lmdb, "open", lambda *names, **options: real(*names, **{**options, "sync": False}))


def without_last_sync(patch: pytest.MonkeyPatch) -> None:
    """Leave the page that makes a transaction valid to the next one."""
    from zpersist.stores.environment import Environment

    patch.setattr(Environment, "sync", lambda env: None)


def made_in_place(patch: pytest.MonkeyPatch) -> None:
    """Let LMDB write its first pages into the file."""
    patch.setattr(lmdbfile, "_make_environment", lambda file, map_size: os.mknod(file, 0o600))


#: Which store, how durable, with which script; what is broken, and what shows it.
BROKEN: dict[str, tuple[str, str, str, Callable[[pytest.MonkeyPatch], None], str]] = {
    "sqlite without a journal": ("sqlite", "rename", "turns", opened_by(unsafe), "raises CorruptValueError"),
    "sqlite without syncs": ("sqlite", "rename", "turns", opened_by(unsynced), "raises CorruptValueError"),
    "sqlite that syncs later": ("sqlite", "fsync", "turns", opened_by(mostly_synced), "not one of"),
    "lmdb without syncs": ("lmdb", "rename", "turns", without_sync, "raises CorruptValueError"),
    "lmdb that syncs later": ("lmdb", "fsync", "turns", without_last_sync, "not one of"),
    "lmdb made in place": ("lmdb", "fsync", "first", made_in_place, "raises CorruptValueError"),
}


class Record(NamedTuple):
    """What was done to a disk."""

    before: State
    trace: list[Entry]
    #: What was last in the files that are written as memory.
    mapped: dict[str, bytes]


def record(kind: str, durability: str, name: str, folder: str, broken: str) -> Record:
    """Do what a script says, and return what that did to the disk."""
    place = Path(folder)
    before, steps = SCRIPTS[name]

    def prepare() -> State:
        with STORES[kind].make(place, durability=durability) as stash:
            stash.dump_many(before)
        return snapshot(place)

    def act() -> tuple[list[Entry], dict[str, bytes]]:
        with pytest.MonkeyPatch.context() as patch:
            if broken:
                BROKEN[broken][3](patch)
            trace = Trace(folder)
            with STORES[kind].make(place, durability=durability) as stash:
                for step in steps:
                    step.act(stash)
                    trace.note(ACKNOWLEDGED)
                mapped = {path: data for path, data in snapshot(place).items() if data and path.endswith(MAPPED)}
            return trace.stop(), mapped

    place.mkdir()
    there: State = in_a_fork(prepare)[1] if before else {}
    code, told = in_a_fork(act)
    assert code == 0, "it failed without any fault"
    return Record(there, *told)


def told(event: Event | None) -> str:
    """Return an event in a few words."""
    if isinstance(event, Wrote) and event.data is not None:
        return f"{len(event.data)} bytes at {event.offset} of file {event.file}"
    return str(event)


class Examination:
    """What a power cut may leave after any call, and what is found then."""

    def __init__(self, kind: str, durability: str, name: str, record: Record, folder: Path) -> None:
        self._kind, self._durability, self._place = kind, durability, folder
        self._record = record
        self._safe = durability == "fsync"
        there, steps = SCRIPTS[name]
        self._after = [there]
        for step in steps:
            self._after.append(step.after(self._after[-1]))

    def run(self, seed: int, count: int) -> tuple[list[str], int]:
        """Return what is wrong in the first states in which anything is, and how many states there were."""
        chance = random.Random(seed)
        script = Script(self._record.before)
        disk = Blocks(str(self._place), script, self._record.mapped)
        wrong: list[str] = []
        seen: set[Any] = set()
        done = 0
        for number, event in enumerate([None, *script.events(self._record.trace)]):
            if event is not None:
                disk.take(event)
            done += isinstance(event, Acknowledged)
            for state in disk.states(chance, count):
                key = done, tuple(state.items())
                if key not in seen:
                    seen.add(key)
                    wrong += [f"after call {number}, {told(event)}: {what}" for what in self._wrong(state, done)]
            if wrong:
                break
        return wrong, len(seen)

    def _wrong(self, state: State, done: int) -> Iterator[str]:
        shutil.rmtree(self._place)
        lay_out(self._place, state)
        layout = {Path(path).name: len(data) for path, data in state.items() if data is not None}
        code, found = in_a_fork(self._look)
        if code:
            yield f"who reads it ends with {code}; {layout}"
        elif isinstance(found, str):
            yield f"{found}; {layout}"
        else:
            # One after the other; and one that is under way may have happened.
            allowed = self._after[done if self._safe else 0 : done + 2]
            if found not in allowed:
                yield f"there is {str(found)[:200]}, not one of {len(allowed)} states; {layout}"

    def _look(self) -> Contents | str:
        try:
            with STORES[self._kind].make(self._place, durability=self._durability) as stash:
                found = {key: stash[key] for key in stash.keys()}
                stash.dump("9", "new")
                if {key: stash[key] for key in stash.keys()} != found | {"9": "new"}:
                    return "it does not work any more"
            return "\n".join(self._inspected()) or found
        except Exception as err:
            return f"reading raises {err!r}"

    def _inspected(self) -> list[str]:
        if self._kind == "lmdb":
            from lmdb.verify import verify

            return [str(problem) for problem in verify(str(self._place / "data.lmdb"), subdir=False)]
        db = sqlite3.connect(self._place / "data.db")
        return [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]


def write_on(folder: str, broken: bool) -> list[str]:
    """Write to LMDB after a sync has failed; return what came of a write, a read, and both after ``close()``."""
    stash = STORES["lmdb"].make(Path(folder), durability="fsync")
    stash.dump("1", "old")
    told = []

    def attempt(value: str) -> None:
        try:
            stash.dump("1", value)
        except ZPersistError as err:
            told.append(f"{type(err).__name__} {getattr(err, 'errno', None)}")
        told.append(stash["1"])

    with armed(folder, 1, Mode(FAIL, errno.EIO, kinds=SYNC), Report()):
        attempt("new")
        if broken:
            stash._table._env._doubtful = False
        attempt("next")
    stash.close()
    attempt("last")
    return told
