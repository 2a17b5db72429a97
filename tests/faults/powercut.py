"""Real file systems on small images: the power is cut, or the disk below has no room left for what the kernel holds.

To be run by root, in a mount namespace of its own (``unshare -m``).  What a process has written and not synced is in
the memory of the kernel and not in the image; so a copy of the image is the disk after a power cut, and to mount it
replays the journal as after a real one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.stores import STORES
from tests.faults.writers import ABSENT, KEYS, Diary, value_of, write
from zpersist import StorageError

MIB = 1 << 20


def run(*command: object) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """Have an image mounted within the ``with``."""
    place.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", "-o", "loop", image, place)
    try:
        yield place
    finally:
        run("umount", "--lazy", place)


def make_image(image: Path, size: int) -> None:
    """Make an image with an empty file system; what was never written takes no room."""
    with image.open("wb") as stream:
        stream.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)


def judged(kind: str, folder: Path, begun: dict[str, tuple[int, int]], durability: str) -> list[str]:
    """Return what is wrong on a disk, given what was begun and finished last of each key."""
    store, wrong = STORES[kind], []
    with store.make(folder, durability=durability) as stash:
        for key in KEYS:
            allowed = [value_of(store, turn) if turn else ABSENT for turn in begun[key]]
            try:
                found = stash.get(key, ABSENT)
            except Exception as err:
                found = repr(err)
            if found not in allowed:
                wrong.append(f"{key!r} is {str(found)[:80]}, not {str(allowed)[:160]}")
        stash.dump("9", store.value("9"))
        if stash.get("9") != store.value("9"):
            wrong.append("it does not work any more")
    return wrong


def cut(kind: str, durability: str, folder: str, count: int, seed: int) -> dict[str, Any]:
    """Cut the power so often while a writer writes; return what was wrong after each cut."""
    store, chance, diary, top = STORES[kind], random.Random(seed), Diary(), Path(folder)
    image, after = top / "image", top / "after"
    make_image(image, 32 * MIB)
    wrong, turns = [], []
    with mounted(image, top / "disk") as disk:
        writer = os.fork()
        if writer == 0:
            try:
                write(store, lambda path: store.make(path, durability=durability), disk, diary, 1)
            finally:
                os._exit(1)
        try:
            for _ in range(count):
                while max(max(diary[key]) for key in KEYS) <= (turns[-1] if turns else 3):
                    time.sleep(0.001)
                time.sleep(chance.uniform(0.05, 0.25))
                os.kill(writer, signal.SIGSTOP)
                os.waitpid(writer, os.WUNTRACED)
                shutil.copy(image, after)
                begun = {key: diary[key] for key in KEYS}
                os.kill(writer, signal.SIGCONT)
                turns.append(max(max(pair) for pair in begun.values()))
                with mounted(after, top / "after-disk") as found:
                    wrong.append(judged(kind, found, begun, durability))
        finally:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
    return {"wrong": wrong, "turns": turns}


def fill(kind: str, folder: str) -> dict[str, Any]:
    """Write until the disk below the file system is full; return what was said and what is there after all."""
    store, top = STORES[kind], Path(folder)
    small = top / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", small)
    image = small / "image"
    make_image(image, 64 * MIB)
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        try:
            real(fd)
        except OSError:
            synced.append((name, False))
            raise
        synced.append((name, True))

    os.fsync = fsync
    kept, errors = [], []
    with mounted(image, top / "disk") as disk:
        stash = store.make(disk, durability="fsync")
        for turn in range(40):
            try:
                stash.dump(str(turn), value_of_size(turn))
                kept.append(turn)
            except StorageError as err:
                errors.append(f"{type(err).__name__} {err.errno}")
        # A process that goes on as if nothing had happened: it may close, or be gone.
        del stash
    run("mount", "-o", "remount,size=100m", small)
    missing = []
    with mounted(image, top / "disk") as disk, store.make(disk, durability="fsync") as stash:
        for turn in kept:
            try:
                if stash.get(str(turn)) != value_of_size(turn):
                    missing.append(f"{turn} is another value")
            except Exception as err:
                missing.append(f"{turn}: {err!r}")
    run("umount", "--lazy", small)
    failed = [name for name, well in synced if not well]
    again = [name for number, (name, well) in enumerate(synced) if (name, False) in synced[:number] and ".tmp" in name]
    return {"kept": len(kept), "errors": errors, "missing": missing, "failed": failed, "again": again}


def value_of_size(turn: int) -> bytes:
    """Return a value of 256 KiB."""
    return random.Random(turn).randbytes(MIB // 4)


if __name__ == "__main__":
    function, *arguments = json.loads(sys.argv[1])
    print(json.dumps({"cut": cut, "fill": fill}[function](*arguments)))
