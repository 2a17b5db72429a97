"""The stores that are tortured: to add one, add a line to :data:`STORES`, and its name to ``SHARED``."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from zpersist import (
    DirectoryCompositeStash,
    DirectoryStash,
    IncrementKeyDirectoryStash,
    LmdbStash,
    PersistedWork,
    ShelveStash,
    SqliteStash,
)
from zpersist.stash import CloseableStash


class Blob:
    """A value whose bytes lie beside the pickle, when there are many of them."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        # What was read maps its file, and is handed over to other processes as bytes.
        return Blob, (pickle.PickleBuffer(self.data),) if protocol >= 5 else (bytes(self.data),)

    def __eq__(self, other):
        return isinstance(other, Blob) and bytes(self.data) == bytes(other.data)

    def __repr__(self):
        return f"Blob({len(self.data)} x {bytes(self.data[:1])!r})"

    __hash__ = None


class Works(CloseableStash[Any]):
    """A directory of works in files, as a stash: ``dump`` is ``set``, ``delete`` is ``clear``."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder, self._options = folder, options

    def _work(self, name: str) -> PersistedWork:
        return PersistedWork(self._folder / f"{name}.dat", None, mkdir=True, **self._options)

    def load(self, name: str) -> Any:
        # To is_set() what is damaged is not set; that it is there has to be told.
        return self._work(name)() if (self._folder / f"{name}.dat").exists() else None

    def dump(self, name: str, inst: Any) -> None:
        self._work(name).set(inst)

    def compute(self, name: str, inst: Any) -> Any:
        """Have the value computed, if there is none."""
        work = self._work(name)
        work.worker = lambda: inst
        return work()

    def delete(self, name: str) -> bool:
        there = self.exists(name)
        self._work(name).clear()
        return there

    def exists(self, name: str) -> bool:
        return self._work(name).is_set()

    def keys(self) -> Iterator[str]:
        return (path.stem for path in self._folder.glob("[!.]*.dat"))

    def close(self) -> None:
        """Nothing is open."""


def split(value: Any) -> SimpleNamespace:
    """Return an object of which two parts lie apart."""
    return SimpleNamespace(name=value, parts={"left": [value, "left"], "right": [value, "right"]})


class Store(NamedTuple):
    """A store, and what is particular to it."""

    #: Returns the stash below a folder.
    make: Callable[..., Any]
    #: Makes a value of a plain one.
    value: Callable[[Any], Any] = lambda plain: plain
    #: Whether ``dump_many``, ``delete_many`` and ``clear`` are one step.
    one_step: bool = False
    #: Whether a library reads and writes its files, and keeps them open.
    database: bool = False
    #: Whether its files stay when it is closed, so that it needs no new one, and whether there is room within them.
    keeps_files: bool = False
    #: What it has beside the operations of all.
    extra: frozenset[str] = frozenset({"add", "update"})


STORES = {
    "directory": Store(lambda folder, **options: DirectoryStash(folder / "data", **options)),
    "spread": Store(lambda folder, **options: DirectoryStash(folder / "data", fan_out=16, **options)),
    "increment": Store(
        lambda folder, **options: IncrementKeyDirectoryStash(folder / "data", **options),
        extra=frozenset({"add", "update", "append"}),
    ),
    "composite": Store(
        lambda folder, **options: DirectoryCompositeStash(folder / "data", ({"left"}, {"right"}), "parts", **options),
        value=split,
        extra=frozenset(),
    ),
    "work": Store(lambda folder, **options: Works(folder / "data", **options), extra=frozenset({"compute"})),
    "sqlite": Store(lambda folder, **options: SqliteStash(folder / "data.db", **options), one_step=True, database=True),
    "lmdb": Store(
        lambda folder, **options: LmdbStash(folder / "data.lmdb", **options),
        one_step=True,
        database=True,
        keeps_files=True,
    ),
}

#: Those that may lose what they have when a process is killed while it writes; nothing else may be read from them.
LOSSY = {"shelve": Store(lambda folder: ShelveStash(folder / "data"))}

#: Those of which each key is one register among processes.
SHARED = ["directory", "spread", "sqlite", "lmdb"]


def contents(stash: Any) -> dict[str, Any]:
    """Return all that a stash holds, found in every way there is; they have to agree."""
    found = {key: stash[key] for key in stash.keys()}
    for key in ("1", "2", "3", "9"):
        there = key in found
        assert stash.exists(key) == there, f"exists({key!r}) and keys() disagree"
        assert (stash.get(key, stash) is not stash) == there, f"get({key!r}) and keys() disagree"
    return found


def names_in(folder: Path) -> set[str]:
    """Return the names of all files below a folder."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}
