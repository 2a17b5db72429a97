"""After a power cut nothing wrong is read; with ``durability="fsync"`` nothing is lost that was acknowledged.

The cut may come after any call, and leave any state that the model of ``crash_states.py`` allows.  Writers that are
broken on purpose, each in the way of a program that is in use somewhere, go through the same and must be found out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.crash_states import DIRECTORY, Acknowledged, Disk, Event, Recorder
from tests.faults.shim import in_a_fork
from tests.faults.stores import STORES, Blob, Store, names_in
from zpersist import CorruptValueError
from zpersist.files import atomic
from zpersist.files import layout as layout_module
from zpersist.files.atomic import TEMPORARY_PREFIX, sync_directory, write_file
from zpersist.stores import composite as composite_module
from zpersist.stores import directory as directory_module
from zpersist.stores import group as group_module
from zpersist.stores.group import GroupStash
from zpersist.work import level as level_module

ABSENT = "nothing is there"
DAMAGED = "damaged"
KEYS = ("1", "2", "3")

Effect = dict[str, Any]


class Step(NamedTuple):
    """Something that is done, and what each key holds after it."""

    act: Callable[[Any], object]
    effect: Effect


def dump(key, value):
    return Step(lambda s: s.dump(key, value), {key: value})


def update(key, value):
    return Step(lambda s: s.update(key, lambda old: value), {key: value})


def scripts(store: Store) -> dict[str, tuple[Effect, list[Step]]]:
    """Return what is there before, and what is done one after the other."""
    one, two, old = store.value("one"), store.value(["two"]), store.value("old")
    large = store.value(Blob(b"n" * 70_000))
    there = {"1": old, "2": old}
    many = {"1": one, "2": one, "3": one}
    found = {
        "first": ({}, [dump("1", one), dump("1", two)]),
        "dump": (there, [dump("1", one), dump("1", two)]),
        "large": (there, [dump("1", large)]),
        "many": (there, [Step(lambda s: s.dump_many(many), many)]),
        "delete": (there, [Step(lambda s: s.delete("1"), {"1": ABSENT}), dump("3", one)]),
        "again": (there, [Step(lambda s: s.delete("1"), {"1": ABSENT}), dump("1", one)]),
        "clear": (there, [Step(lambda s: s.clear(), {"1": ABSENT, "2": ABSENT})]),
    }
    if "add" in store.extra:
        found["add"] = there, [Step(lambda s: s.add("3", one), {"3": one}), Step(lambda s: s.add("3", two), {})]
    if "update" in store.extra:
        found["update"] = there, [update("1", one), update("3", one)]
    if "append" in store.extra:
        found["append"] = there, [Step(lambda s: s.dump(one), {"3": one})]
    if "compute" in store.extra:
        found["compute"] = there, [Step(lambda s: s.compute("3", one), {"3": one})]
    return found


class Examination:
    """One script on one store, and every state in which a power cut may leave it."""

    def __init__(self, kind: str, durability: str, name: str, folder: Path) -> None:
        self._store = STORES[kind]
        self._make = partial(self._store.make, durability=durability)
        self._safe = durability == "fsync"
        self._before, self._steps = scripts(self._store)[name]
        self._folder = folder
        self._place = folder / "here"

    def _record(self) -> list[Event]:
        """Do it all, and return what it did to files."""
        recorder = Recorder(str(self._place), self._files)
        with recorder.listening(), self._make(self._place) as stash:
            for step in self._steps:
                step.act(stash)
                recorder.events.append(Acknowledged())
        return recorder.events

    def _prepare(self) -> None:
        self._place.mkdir()
        with self._make(self._place) as stash:
            stash.dump_many(self._before)

    def _in_a_fork(self, run: Callable[[], Any]) -> Any:
        # The files of a process that lives are none of the leftovers.
        code, result = in_a_fork(run)
        assert code == 0
        return result

    def run(self) -> tuple[list[str], int]:
        """Return what is wrong in which state, and how many states there are."""
        self._in_a_fork(self._prepare)
        here = {str(self._place / name): self._place / name for name in sorted(names_in(self._place))}
        self._files = {path: number for number, path in enumerate(here)}
        contents = {self._files[path]: file.read_bytes() for path, file in here.items() if file.is_file()}
        names = {path: self._files[path] if file.is_file() else DIRECTORY for path, file in here.items()}
        disk = Disk(str(self._place), names, contents)
        events = self._in_a_fork(self._record)
        seen: set[Any] = set()
        wrong: list[str] = []
        done = 0
        for number, event in enumerate([None, *events]):
            if event is not None:
                disk.take(event)
            done += isinstance(event, Acknowledged)
            for state in disk.states():
                # Which temporary files are there makes no difference; without syncs no acknowledgement does.
                key = done * self._safe, frozenset(file for file in state if TEMPORARY_PREFIX not in file[0])
                if key not in seen:
                    seen.add(key)
                    wrong += [f"after call {number} ({event}): {what}"[:2000] for what in self._wrong(state, done)]
        return wrong, len(seen)

    def _wrong(self, state: frozenset[tuple[str, bytes | None]], done: int) -> Iterator[str]:
        shutil.rmtree(self._place)
        self._place.mkdir()
        for path, data in sorted(state):
            if data is None:
                os.mkdir(path)
        for path, data in state:
            if data is not None:
                Path(path).write_bytes(data)
        found = self._read()
        for key in KEYS:
            if not any(found[key] == value for value in self._allowed(key, done)):
                yield f"{key!r} is {found[key]!r}; {self._layout()}"
        with self._make(self._place) as stash:
            stash.dump("9", self._store.value("9"))
            if stash["9"] != self._store.value("9"):
                yield "it does not work any more"
        if left := [name for name in names_in(self._place) if name.endswith(".tmp")]:
            # A directory is swept when something is written to it.
            if not any(part in name for name in left for part in ("comp/",)):
                yield f"left behind: {left}"

    def _layout(self) -> dict[str, int]:
        return {name: (self._place / name).stat().st_size for name in names_in(self._place)}

    def _read(self) -> dict[str, Any]:
        found = {}
        with self._make(self._place) as stash:
            for key in KEYS:
                try:
                    found[key] = stash.get(key, ABSENT)
                except CorruptValueError:
                    found[key] = DAMAGED
            listed = set(stash.keys())
        assert {key for key in KEYS if found[key] != ABSENT and found[key] != DAMAGED} <= listed
        return found

    def _allowed(self, key: str, done: int) -> list[Any]:
        history = [self._before.get(key, ABSENT)]
        acknowledged = 0
        for number, step in enumerate(self._steps[: done + 1]):
            if key in step.effect:
                history.append(step.effect[key])
                acknowledged = len(history) - 1 if number < done else acknowledged
        return history[acknowledged:] if self._safe else [*history, ABSENT, DAMAGED]


FILES = [kind for kind, store in STORES.items() if not store.database]
CASES = [(kind, name) for kind in FILES for name in scripts(STORES[kind])]


@pytest.mark.parametrize("kind, name", CASES)
def test_what_is_acknowledged_survives_a_power_cut(kind, name, scratch):
    wrong, states = Examination(kind, "fsync", name, scratch).run()
    assert not wrong, "\n".join(wrong[:5])
    assert states >= 2


@pytest.mark.parametrize("kind, name", [case for case in CASES if case != ("composite", "many")])
def test_without_syncs_nothing_wrong_is_read(kind, name, scratch):
    # Many objects in many files that are not synced have too many states; each of them is dumped as one is.
    wrong, states = Examination(kind, "rename", name, scratch).run()
    assert not wrong, "\n".join(wrong[:5])
    assert states >= 2


# it can fail: writers that are broken on purpose


def in_place(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Write over the old value, and sync it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.writev(fd, parts)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(os.path.dirname(path))


def without_sync(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Replace, and believe that it is on the disk."""
    write_file(path, parts, place=place)


def without_sync_of_the_file(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Replace, and sync the name only."""
    write_file(path, parts, place=place)
    sync_directory(os.path.dirname(path))


def without_sync_of_the_directory(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Sync the file only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "sync_directory", lambda folder: None)
        write_file(path, parts, durability=durability, place=place)


def unlink_first(path, parts, *, durability="rename", place=os.replace, workshop=None):
    """Delete the old value, then put the new one in its place."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    write_file(path, parts, durability=durability, place=place)


BROKEN = {
    in_place: "'1' is 'damaged'",
    without_sync: "'1' is 'old'",
    without_sync_of_the_file: "'1' is 'damaged'",
    without_sync_of_the_directory: "'1' is 'old'",
    unlink_first: "'1' is 'nothing is there'",
}


@pytest.mark.parametrize("kind", ["directory", "work"])
@pytest.mark.parametrize("writer", BROKEN)
def test_a_broken_writer_is_found_out(writer, kind, scratch, monkeypatch):
    monkeypatch.setattr(directory_module, "write_file", writer)
    monkeypatch.setattr(level_module, "write_file", writer)
    wrong, _ = Examination(kind, "fsync", "dump", scratch).run()
    assert BROKEN[writer] in "\n".join(wrong)


BROKEN_COMPOSITES = {
    "at once": (GroupStash, "waiting", lambda group, name: group._file(name), "dump", "'1' is 'damaged'"),
    "unsynced places": (group_module, "sync_directory", lambda folder: None, "dump", "'1' is 'damaged'"),
    "unsynced delete": (composite_module, "sync_directory", lambda folder: None, "delete", "'1' is 'damaged'"),
}


@pytest.mark.parametrize("name", BROKEN_COMPOSITES)
def test_a_broken_composite_is_found_out(name, scratch, monkeypatch):
    where, attribute, instead, script, says = BROKEN_COMPOSITES[name]
    monkeypatch.setattr(where, attribute, instead)
    wrong, _ = Examination("composite", "fsync", script, scratch).run()
    assert says in "\n".join(wrong)


def test_new_directories_that_are_not_synced_are_found_out(scratch, monkeypatch):
    make = layout_module.make_directory
    monkeypatch.setattr(layout_module, "make_directory", lambda path, durability: make(path))
    wrong, _ = Examination("directory", "fsync", "first", scratch).run()
    assert "'1' is 'nothing is there'; {}" in "\n".join(wrong)
