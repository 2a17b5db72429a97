"""Writers are killed, hundreds of times one after the other, and what is there is looked at each time.

Each writer is a fresh process, which therefore first tidies up after the one before it.  Some are killed after a while,
some in a call that makes or changes something, and some while they tidy up: so :func:`kill_often` runs in the server of
:mod:`tests.faults.shim`.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.shim import ALL, KILL, REMOVE, Mode, Report, armed
from tests.faults.stores import LOSSY, STORES, Store, names_in
from tests.faults.writers import ABSENT, KEYS, Diary, value_of, write
from zpersist import DirectoryStash, ShelveStash, SqliteStash, ZPersistError
from zpersist.files.atomic import TEMPORARY_PREFIX
from zpersist.stores import directory as directory_module

#: One of so many calls kills.
MOST_CALLS = 60


class Kills(NamedTuple):
    """What became of writers."""

    #: What is wrong after the first kill after which anything is.
    wrong: list[str]
    #: How many writers came to begin something.
    written: int
    #: The calls in which writers died.
    deaths: list[str]


# where it is broken


class InPlace(DirectoryStash[Any]):
    """Cuts the old value off, then writes the new one."""

    def _put(self, path: str, parts: Any, place: Any) -> None:
        if not self.path.exists():
            super()._put(path, parts, place)
            return
        with open(path, "wb", buffering=0) as stream:
            for part in parts:
                time.sleep(0.0001)
                stream.write(part)


class Late(SqliteStash[Any]):
    """Keeps what it is given for a while, and says that it is on the disk."""

    def _fetch(self, name: str) -> Any:
        waiting = self.__dict__.setdefault("waiting", {})
        return waiting[name] if name in waiting else super()._fetch(name)

    def dump(self, name: str, inst: Any) -> None:
        waiting = self.__dict__.setdefault("waiting", {})
        waiting[name] = inst
        if len(waiting) == len(KEYS):
            super().dump_many(waiting)
            waiting.clear()

    def close(self) -> None:
        super().dump_many(self.__dict__.pop("waiting", {}))
        super().close()


class Mixed(ShelveStash[Any]):
    """Gives the value of another key."""

    def _fetch(self, name: str) -> Any:
        return super()._fetch(KEYS[0] if name == KEYS[1] else name)


#: Stores that are broken on purpose, by the store in whose place they are put.
BROKEN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "in place": ("directory", lambda folder: InPlace(folder / "data")),
    "late": ("work", lambda folder: Late(folder / "data.db")),
    "unswept": ("directory", lambda folder: DirectoryStash(folder / "data")),
    "another value": ("shelve", lambda folder: Mixed(folder / "data")),
}


class Killer:
    """Kills the writers of one store."""

    def __init__(self, store: Store, make: Callable[[Path], Any], folder: Path, seed: int, *, lossy: bool) -> None:
        self._store, self._make, self._folder, self._lossy = store, make, folder, lossy
        self._chance = random.Random(seed)
        self._diary, self._report = Diary(), Report()
        self._turn = 1
        self.written = 0
        self.deaths: list[str] = []

    def kill(self, number: int) -> None:
        """Start a writer, and kill it."""
        left = [name for name in names_in(self._folder) if TEMPORARY_PREFIX in name]
        at = seconds = 0
        mode, within = Mode(KILL), f"{self._folder}/"
        match number % 4:
            case 0 | 3:
                seconds = self._chance.uniform(0.001, 0.012)
            case 1:
                at, mode = self._chance.randrange(1, MOST_CALLS), Mode(KILL, kinds=ALL)
            case 2 if left:
                # In the middle of tidying up: there may be other things to remove before.
                within += self._chance.choice(left).partition(TEMPORARY_PREFIX)[0] + TEMPORARY_PREFIX
                beside = sum(f"{self._folder}/{name}".startswith(within) for name in left)
                at, mode = self._chance.randrange(1, beside + 1), Mode(KILL, kinds=REMOVE)
            case 2:
                at = self._chance.randrange(1, MOST_CALLS)
        self._report.clear()
        self._run(at, mode, within, seconds)
        if self._report.first:
            self.deaths.append(self._report.first)
        before, self._turn = self._turn, max(max(self._diary[key]) for key in KEYS) + 1
        self.written += self._turn > before

    def _run(self, at: int, mode: Mode, within: str, seconds: float) -> None:
        child = os.fork()
        if child == 0:
            try:
                with armed(within, at, mode, self._report) if at else nullcontext():
                    write(self._store, self._make, self._folder, self._diary, self._turn)
            except ZPersistError:
                if not self._lossy:
                    raise
            except BaseException:
                os.write(2, traceback.format_exc().encode())
                raise
            finally:
                os._exit(1)
        if not at:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 1 and self._lossy:
            # It could not be opened any more.
            for path in self._folder.iterdir():
                path.unlink()
        else:
            assert code == -signal.SIGKILL, "it ended by itself"

    def look(self, number: int) -> list[str]:
        """Return what is wrong with what is there."""
        wrong: list[str] = []
        with self._make(self._folder) as stash:
            for key in KEYS:
                wrong += self._wrong(stash, key)
            # Leaves what the dead have left to the next writer, three times of four.
            if number % 4 == 3 and not self._lossy:
                stash.dump("9", self._store.value("9"))
                if stash.get("9") != self._store.value("9"):
                    wrong.append("it does not work any more")
                if left := [name for name in names_in(self._folder) if name.endswith(".tmp")]:
                    wrong.append(f"left behind: {left}")
        return wrong

    def _wrong(self, stash: Any, key: str) -> list[str]:
        begun, finished = self._diary[key]
        allowed = [value_of(self._store, turn) if turn else ABSENT for turn in (begun, finished)]
        try:
            found = stash.get(key, ABSENT)
        except ZPersistError as err:
            found = ABSENT if self._lossy else repr(err)
        except Exception as err:
            found = repr(err)
        if self._lossy:
            # No value but one that was written under this key, and no foreign error.
            turn = found[0] if isinstance(found, list) else 0
            known = found == ABSENT or (KEYS[turn % len(KEYS)] == key and found == value_of(self._store, turn))
            return [] if known and turn <= begun else [f"{key!r} is {str(found)[:80]}"]
        if found not in allowed:
            return [f"{key!r} is {str(found)[:80]}, not {str(allowed)[:160]}"]
        # From now on what was found is what is there.
        turn = begun if found == allowed[0] else finished
        self._diary.begin(key, turn)
        self._diary.finish(key, turn)
        return []


def kill_often(kind: str, folder: str, count: int, seed: int) -> Kills:
    """Kill writers of a store, or of one that is broken on purpose, so often."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "unswept":
            patch.setattr(directory_module, "sweep", lambda folder: 0)
        stores = STORES | LOSSY
        name, make = BROKEN[kind] if kind in BROKEN else (kind, stores[kind].make)
        killer = Killer(stores[name], make, Path(folder), seed, lossy=name in LOSSY)
        for number in range(count):
            killer.kill(number)
            if wrong := killer.look(number):
                return Kills([f"kill {number}: {what}" for what in wrong], killer.written, killer.deaths)
    return Kills([], killer.written, killer.deaths)
