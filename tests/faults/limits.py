"""Something runs out while a store is used: room, files, descriptors, the length of a file, the right to write.

Run in a process of its own, on a small disk of its own.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.faults.stores import STORES, contents, names_in
from zpersist import CorruptValueError, StorageError


@contextmanager
def no_room(disk: Path) -> Iterator[None]:
    """Fill the disk."""
    with filled(disk, lambda stream: os.write(stream, bytes(4096))):
        yield


@contextmanager
def no_files(disk: Path) -> Iterator[None]:
    """Use up the numbers of files."""
    folder = disk / "ballast"
    folder.mkdir()
    with suppress(OSError):
        while True:
            (folder / str(len(os.listdir(folder)))).touch()
    try:
        yield
    finally:
        subprocess.run(["rm", "-r", folder], check=True)


@contextmanager
def filled(disk: Path, put: Callable[[int], object]) -> Iterator[None]:
    """Put something into a file until there is no room."""
    ballast = disk / "ballast"
    stream = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while True:
            put(stream)
    os.close(stream)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def short_files(disk: Path) -> Iterator[None]:
    """Let no file grow."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@contextmanager
def no_descriptors(disk: Path) -> Iterator[None]:
    """Take all descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    try:
        yield
    finally:
        for fd in taken:
            os.close(fd)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Let nothing be written."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


class Limit(NamedTuple):
    """What runs out, and what the error may say."""

    impose: Callable[[Path], object]
    errors: tuple[int, ...]
    #: Whether what is there can be read meanwhile, by one who opens the store only then.
    readable: bool = True


LIMITS = {
    "no room": Limit(no_room, (errno.ENOSPC,)),
    "no files": Limit(no_files, (errno.ENOSPC,)),
    "short files": Limit(short_files, (errno.EFBIG, errno.EIO)),
    "no descriptors": Limit(no_descriptors, (errno.EMFILE, errno.EIO), readable=False),
    "read only": Limit(read_only, (errno.EROFS, errno.EACCES)),
}


def suffer(kind: str, limit: str, disk: Path) -> None:
    """Use a store on a disk while something has run out; raise if anything is wrong."""
    store, (impose, errors, readable) = STORES[kind], LIMITS[limit]
    old, new = store.value("old"), store.value("n" * 9000)
    before = {"1": old, "2": old}
    with store.make(disk) as stash:
        stash.dump_many(before)
        stash.dump("3", new)
        stash.delete("3")
    usual = names_in(disk)
    for opened in (False, True):
        stash = store.make(disk)
        if opened:
            assert stash.get("1") == old
        if limit == "read only":
            # What is open for writing can't be made read only.
            stash.close()
        with impose(disk):
            refused = 0
            for act in (
                lambda stash=stash: stash.dump("1", new),
                lambda stash=stash: [stash.dump(str(number), new) for number in range(3, 50)],
                lambda stash=stash: "add" in store.extra and stash.add("3", new),
                lambda stash=stash: "update" in store.extra and stash.update("1", lambda value: new),
            ):
                try:
                    act()
                except StorageError as err:
                    refused += 1
                    assert err.errno in errors, f"{errno.errorcode.get(err.errno or 0)}: {err!r}"
            # A database that is open has its files.
            free = (store.database and opened and limit in ("no files", "no descriptors")) or (
                store.keeps_files and limit == "no files"
            )
            assert refused >= 2 or free, f"only {refused} were refused"
            if readable and refused == (4 if "add" in store.extra else 2) and not store.database:
                assert contents(store.make(disk)) == before
        if not free:
            with store.make(disk) as fresh:
                found = contents(fresh)
                if store.keeps_files:
                    # In what was deleted before there is room for some.
                    assert found.keys() >= before.keys(), "what was there is gone"
                    assert all(value in (old, new) for value in found.values()), "what was there is harmed"
                else:
                    assert found == before, "what was there is harmed"
        stash.dump("1", new)
        assert stash.get("1") == new, "it does not work when there is room again"
        with store.make(disk) as fresh:
            assert fresh.get("1") == new
            for key in set(fresh.keys()) - set(before):
                fresh.delete(key)
        stash.dump("1", old)
        stash.close()
        assert not names_in(disk) - usual, f"left behind: {names_in(disk) - usual}"


FULL_DEVICE = os.makedev(1, 7)


def on_devices(kind: str, disk: Path) -> None:
    """Put ``/dev/full`` in the place of every file of a store, and use it; raise if anything is wrong."""
    store = STORES[kind]
    disk.mkdir()
    with store.make(disk) as stash:
        stash.dump_many({"1": store.value("old"), "2": store.value("old")})
    files = [path for path in disk.rglob("*") if path.is_file() and path.stat().st_size]
    for file in files:
        file.unlink()
        os.mknod(file, stat.S_IFCHR | 0o600, FULL_DEVICE)
    stash = store.make(disk)
    for read in (stash.get, lambda key: stash[key]):
        try:
            read("1")
        except (CorruptValueError, StorageError):
            continue
        raise AssertionError("something was read")
    refused = True
    try:
        stash.dump("1", store.value("new"))
        refused = False
    except (CorruptValueError, StorageError):
        pass
    assert refused or stash.get("1") == store.value("new"), "what was dumped is not there"
    if store.database or kind == "work":
        # The user has said which file it is.
        assert refused, "a device was replaced"
        with suppress(StorageError):
            stash.delete("1")
        assert all(stat.S_ISCHR(file.lstat().st_mode) for file in files), "a device was replaced"


if __name__ == "__main__":
    suffer(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
