"""What a power cut may leave: every state of the disk that the calls of a writer allow, laid out and read.

The model is that of ALICE (Pillai and others, OSDI 2014), at its most forgetful.  What was written to a file is on the
disk when the file has been synced; before, any part of it may be.  A name that was made, replaced or removed is on the
disk when its directory has been synced; before, each such change may or may not be there, whatever came after it.  What
one call does to names of one directory is done together.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from zpersist.files.atomic import TEMPORARY_PREFIX, write_file

DIRECTORY = -1

#: Of more changes of names than the one, and more files than the other, not all subsets are tried.
MANY, FEW = 6, 3


class Wrote(NamedTuple):
    """Bytes were written to a file; ``None``: it was cut to that length."""

    file: int
    offset: int
    data: bytes | None


class Named(NamedTuple):
    """Names of one directory were changed together: which file each leads to now, ``None`` for none."""

    names: tuple[tuple[str, int | None], ...]


class SyncedFile(NamedTuple):
    """A file was synced."""

    file: int


class SyncedDirectory(NamedTuple):
    """A directory was synced."""

    path: str


class Acknowledged(NamedTuple):
    """An operation returned."""


Event = Wrote | Named | SyncedFile | SyncedDirectory | Acknowledged


class Recorder:
    """Writes down what the functions of :mod:`os` do to files below a folder."""

    def __init__(self, folder: str, files: dict[str, int]) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self._names = dict(files)
        self._serial = itertools.count(len(files))
        self._descriptors: dict[int, list[int]] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen as long as the ``with`` lasts."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "writev", "fsync", "link", "unlink", "mkdir"):
                listener = getattr(self, f"_{name}")
                patch.setattr(os, name, lambda *a, _l=listener, _r=getattr(os, name), **o: _l(_r, *a, **o))
            real = os.replace
            patch.setattr(os, "replace", lambda *paths: self._replace(real, *paths))
            # Bound when the function was made.
            patch.setitem(write_file.__kwdefaults__, "place", lambda *paths: os.replace(*paths))
            yield

    def _mine(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder)

    def _open(self, real: Any, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        there = os.path.lexists(path)
        fd: int = real(path, flags, *rest, **options)
        if not self._mine(path) or stat.S_ISDIR(os.fstat(fd).st_mode) or flags & os.O_ACCMODE == os.O_RDONLY:
            return fd
        path = os.fspath(path)
        if not there:
            self._names[path] = next(self._serial)
            self.events.append(Named(((path, self._names[path]),)))
        elif flags & os.O_TRUNC:
            self.events.append(Wrote(self._names[path], 0, None))
        self._descriptors[fd] = [self._names[path], 0]
        return fd

    def _write(self, real: Any, fd: int, data: Any) -> int:
        return self._written(fd, real(fd, data), bytes(data))

    def _writev(self, real: Any, fd: int, parts: Any) -> int:
        return self._written(fd, real(fd, parts), b"".join(map(bytes, parts)))

    def _written(self, fd: int, count: int, data: bytes) -> int:
        if fd in self._descriptors:
            file, offset = self._descriptors[fd]
            self.events.append(Wrote(file, offset, data[:count]))
            self._descriptors[fd][1] += count
        return count

    def _fsync(self, real: Any, fd: int) -> None:
        real(fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self.events.append(SyncedDirectory(os.readlink(f"/proc/self/fd/{fd}")))
        elif fd in self._descriptors:
            self.events.append(SyncedFile(self._descriptors[fd][0]))

    def _replace(self, real: Any, here: Any, there: Any) -> None:
        real(here, there)
        if self._mine(there):
            here, there = os.fspath(here), os.fspath(there)
            self._names[there] = self._names.pop(here)
            names = (here, None), (there, self._names[there])
            if os.path.dirname(here) == os.path.dirname(there):
                self.events.append(Named(names))
            else:
                self.events += [Named((name,)) for name in names]

    def _link(self, real: Any, here: Any, there: Any) -> None:
        real(here, there)
        self._names[there] = self._names[here]
        self.events.append(Named(((there, self._names[there]),)))

    def _unlink(self, real: Any, path: Any, **options: Any) -> None:
        real(path, **options)
        if self._mine(path):
            self._names.pop(os.fspath(path))
            self.events.append(Named(((os.fspath(path), None),)))

    def _mkdir(self, real: Any, path: Any, *mode: int) -> None:
        real(path, *mode)
        if self._mine(path):
            self.events.append(Named(((os.fspath(path), DIRECTORY),)))


class Disk:
    """What is surely on the disk, and what may be."""

    def __init__(self, folder: str, names: dict[str, int], contents: dict[int, bytes]) -> None:
        self._folder = folder
        self._names = dict(names)
        self._pending_names: list[Named] = []
        self._contents = dict(contents)
        self._pending: dict[int, list[Wrote]] = {}

    def take(self, event: Event) -> None:
        """Have a call happen."""
        match event:
            case Wrote():
                self._pending.setdefault(event.file, []).append(event)
            case Named():
                self._pending_names.append(event)
            case SyncedFile():
                self._contents[event.file] = self._written(event.file, self._pending.pop(event.file, []))
            case SyncedDirectory():
                synced = [change for change in self._pending_names if self._folder_of(change) == event.path]
                for change in synced:
                    self._pending_names.remove(change)
                    apply_names(self._names, change)
            case Acknowledged():
                pass

    def _folder_of(self, change: Named) -> str:
        return os.path.dirname(change.names[0][0])

    def _written(self, file: int, writes: list[Wrote]) -> bytes:
        data = bytearray(self._contents.get(file, b""))
        for write in writes:
            if write.data is None:
                del data[write.offset :]
            else:
                data.extend(bytes(max(0, write.offset - len(data))))
                data[write.offset : write.offset + len(write.data)] = write.data
        return bytes(data)

    def _versions(self, file: int) -> set[bytes]:
        """Return what a file may hold: of what was not synced all, nothing, a first part, the rest, or zeros."""
        writes = self._pending.get(file, [])
        found = {self._written(file, writes[:count]) for count in range(len(writes) + 1)}
        for number, write in enumerate(writes):
            if write.data:
                half = write._replace(data=write.data[: len(write.data) // 2])
                zeros = write._replace(data=bytes(len(write.data)))
                found.add(self._written(file, [*writes[:number], half]))
                found.add(self._written(file, [*writes[:number], zeros]))
                found.add(self._written(file, [*writes[:number], zeros, half]))
                found.add(self._written(file, [*writes[:number], zeros, *writes[number + 1 :]]))
        return found

    def states(self) -> Iterator[frozenset[tuple[str, bytes | None]]]:
        """Yield what may be there after a power cut: paths with what is in the files, ``None`` for directories."""
        for kept in _subsets(self._pending_names):
            names = dict(self._names)
            for change in kept:
                apply_names(names, change)
            reached = {path: file for path, file in names.items() if self._is_reached(path, names)}
            for contents in self._choices(reached):
                yield frozenset((path, contents[file]) for path, file in reached.items())

    def _choices(self, reached: dict[str, int]) -> Iterator[dict[int, bytes | None]]:
        """Yield what may be in files: of each all or nothing of what was not synced, and of one any part."""
        # What is in temporary files is never looked at: any version of it will do.
        open_files = {
            file for path, file in reached.items() if self._pending.get(file) and TEMPORARY_PREFIX not in path
        }
        sure = {file: self._contents.get(file, b"") if file != DIRECTORY else None for file in reached.values()}
        whole = {file: self._written(file, self._pending[file]) for file in open_files}
        most = len(open_files)
        for count in range(most + 1) if most <= FEW else (0, 1, most - 1, most):
            for chosen in itertools.combinations(sorted(open_files), count):
                base = sure | {file: whole[file] for file in chosen}
                yield base
                for file in chosen:
                    yield from (base | {file: version} for version in self._versions(file))

    def _is_reached(self, path: str, names: dict[str, int]) -> bool:
        while (path := os.path.dirname(path)) != self._folder:
            if path not in names:
                return False
        return True


def _subsets(changes: list[Named]) -> Iterator[list[Named]]:
    """Yield every subset; of many changes the first so many, and those that lack, or have, at most two."""
    if len(changes) <= MANY:
        for kept in itertools.product((False, True), repeat=len(changes)):
            yield list(itertools.compress(changes, kept))
        return
    yield from (changes[:count] for count in range(len(changes) + 1))
    for count in (1, 2):
        for few in itertools.combinations(range(len(changes)), count):
            yield [changes[number] for number in few]
            yield [change for number, change in enumerate(changes) if number not in few]


def apply_names(names: dict[str, int], change: Named) -> None:
    """Have names changed."""
    for path, file in change.names:
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file
