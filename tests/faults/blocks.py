"""What a power cut may leave of a database: its calls are traced, and states of the disk they allow are drawn.

What was written to a file is on the disk when the file has been synced; before, each block of it may be as it was after
any of the writes to it, and so may be the length.  A block is written as a whole: SQLite and LMDB count on that for a
few bytes in one sector.  Names are as in ``crash_states.py``.  There are too many such states to try all of them, so
that some are drawn by chance, beside the two extremes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.faults.crash_states import (
    DIRECTORY,
    Acknowledged,
    Event,
    Named,
    SyncedDirectory,
    SyncedFile,
    Wrote,
    apply_names,
)
from tests.faults.shim import Entry

#: What is mapped and written to as memory, which no call tells; those who open a database make it anew.
MAPPED = ("-shm", "-lock")

ACKNOWLEDGED = "acknowledged"

State = dict[str, bytes | None]


def snapshot(folder: Path) -> State:
    """Return what lies below a folder: paths with what is in the files, ``None`` for directories."""
    return {str(path): None if path.is_dir() else path.read_bytes() for path in sorted(folder.rglob("*"))}


def lay_out(folder: Path, state: State) -> None:
    """Make what is below a folder be so."""
    folder.mkdir()
    for path, data in sorted(state.items()):
        if data is None:
            os.mkdir(path)
        else:
            Path(path).write_bytes(data)


class Script:
    """Turns traced calls into events."""

    def __init__(self, before: State) -> None:
        self.names = {path: DIRECTORY if data is None else number for number, (path, data) in enumerate(before.items())}
        self.contents = {self.names[path]: data for path, data in before.items() if data is not None}
        self._now = dict(self.names)
        self._serial = len(before)

    def events(self, trace: Iterable[Entry]) -> Iterator[Event]:
        """Yield what the calls did."""
        for entry in trace:
            if entry.call == ACKNOWLEDGED:
                yield Acknowledged()
            elif not entry.name.endswith(" (deleted)"):
                yield from self._event(entry)

    def _event(self, entry: Entry) -> Iterator[Event]:
        call, path = entry.call.removesuffix("64"), entry.name
        match call:
            case "open" | "openat" | "mknod":
                if path not in self._now and (call == "mknod" or entry.flags & os.O_CREAT):
                    self._serial += 1
                    yield self._made(path, self._serial)
                assert not entry.flags & os.O_TRUNC, f"no database does that: {entry}"
            case "mkdir":
                yield self._made(path, DIRECTORY)
            case "unlink" | "rmdir":
                del self._now[path]
                yield Named(((path, None),))
            case "rename":
                here = os.fsdecode(entry.data)
                self._now[path] = self._now.pop(here)
                yield Named(((here, None), (path, self._now[path])))
            case "write" | "pwrite" | "writev" | "pwritev":
                # Of those it would have to be known that each write is synced.
                assert not entry.flags & (os.O_DSYNC | os.O_SYNC | os.O_APPEND), f"no database does that: {entry}"
                yield Wrote(self._now[path], entry.at, entry.data)
            case "truncate" | "ftruncate":
                yield Wrote(self._now[path], entry.size, None)
            case "posix_fallocate":
                assert path.endswith(MAPPED), f"no database does that: {entry}"
            case "fsync" | "fdatasync":
                if self._now.get(path, DIRECTORY) == DIRECTORY:
                    yield SyncedDirectory(path)
                else:
                    yield SyncedFile(self._now[path])
            case _:
                raise AssertionError(f"no database does that: {entry}")

    def _made(self, path: str, file: int) -> Named:
        self._now[path] = file
        return Named(((path, file),))


class Blocks:
    """What is surely on the disk, and what may be."""

    def __init__(self, folder: str, script: Script, mapped: dict[str, bytes]) -> None:
        self._folder = folder
        self._names = dict(script.names)
        self._pending_names: list[Named] = []
        #: What a file may hold: what it holds for sure, and then what it held after each write since.
        self._versions: dict[int, list[bytes]] = {file: [data] for file, data in script.contents.items()}
        self._mapped = mapped

    def take(self, event: Event) -> None:
        """Have a call happen."""
        match event:
            case Wrote():
                versions = self._versions.setdefault(event.file, [b""])
                versions.append(_written(versions[-1], event))
            case Named():
                self._pending_names.append(event)
            case SyncedFile():
                self._versions[event.file] = self._versions.get(event.file, [b""])[-1:]
            case SyncedDirectory():
                synced = [change for change in self._pending_names if os.path.dirname(change.names[0][0]) == event.path]
                for change in synced:
                    self._pending_names.remove(change)
                    apply_names(self._names, change)
            case Acknowledged():
                pass

    def states(self, chance: random.Random, count: int) -> Iterator[State]:
        """Yield what is there if all or nothing has reached the disk, and so many other states."""
        yield self._state(self._pending_names, lambda versions: versions[-1], chance)
        yield self._state([], lambda versions: versions[0], chance)
        if self._pending_names or any(len(versions) > 1 for versions in self._versions.values()):
            for _ in range(count):
                block = chance.choice((512, 4096))
                share = chance.choice((0.1, 0.5, 0.9, 1.0))
                names = [change for change in self._pending_names if chance.random() < share]
                yield self._state(names, lambda versions: _mixed(versions, block, share, chance), chance)

    def _state(self, changes: Iterable[Named], choose: Callable[[list[bytes]], bytes], chance: random.Random) -> State:
        names = dict(self._names)
        for change in changes:
            apply_names(names, change)
        found: State = {}
        for path, file in sorted(names.items()):
            # A directory comes before what is in it.
            folder = os.path.dirname(path)
            if folder != self._folder and folder not in found:
                continue
            if file == DIRECTORY:
                found[path] = None
            elif path.endswith(MAPPED):
                last = self._mapped.get(path, b"")
                found[path] = chance.choice((b"", bytes(len(last)), last))
            else:
                found[path] = choose(self._versions.get(file, [b""]))
        return found


def _written(data: bytes, write: Wrote) -> bytes:
    changed = bytearray(data)
    if write.data is None:
        del changed[write.offset :]
        end = write.offset
    else:
        end = write.offset + len(write.data)
    changed.extend(bytes(max(0, end - len(changed))))
    if write.data:
        changed[write.offset : end] = write.data
    return bytes(changed)


def _mixed(versions: list[bytes], block: int, share: float, chance: random.Random) -> bytes:
    """Return each block as it was after one of the writes to it: mostly the last one, if the share is large."""
    length = len(chance.choice(versions))
    mixed = bytearray()
    for start in range(0, length, block):
        parts = [data[start : start + block] for data in versions]
        part = parts[-1] if chance.random() < share else chance.choice(list(dict.fromkeys(parts)))
        mixed += part.ljust(block, b"\0")
    return bytes(mixed[:length])
