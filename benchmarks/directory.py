"""A directory of 10,000 small dicts: ``DirectoryStash`` against the one of zensols.persist.

*Bare calls* is the floor: the same pickles, written and replaced by calls of ``os`` alone, with no key checked and
no checksum.  A step is done for all keys by one contestant, then by the next; microseconds an operation, and for
``keys()`` a key.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

from interleave import (
    LATER,
    OURS,
    SEED,
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

BARE = "bare calls"
NEW, OVER, LOAD, PRESENT, ABSENT, KEYS, DELETE = (
    "dump, new",
    "dump, over existing",
    "load",
    "exists, present",
    "exists, absent",
    "keys()",
    "delete",
)
GOALS = {
    (NEW, SEED): 1 / 1.4,
    (OVER, SEED): 1 / 1.4,
    (LOAD, SEED): 1.0,
    (PRESENT, SEED): 3.0,
    (ABSENT, SEED): 3.0,
    (KEYS, SEED): 10.0,
}


def small_dict(i: int) -> dict[str, object]:
    """Return a value of the kind that is kept by the thousand; its pickle has about 200 bytes."""
    return {
        "id": i,
        "name": f"document number {i}",
        "tags": ("noun", "verb", "adjective"),
        "weights": [i * 0.5, 0.25, 0.125, 1e-3],
        "seen": i % 2 == 0,
        "parent": None,
    }


class Content:
    """The keys and values of a run."""

    def __init__(self, size: int) -> None:
        self.keys = [f"document-{i:06}" for i in range(size)]
        self.absent = [f"nothing-{i:06}" for i in range(size)]
        self.values = [small_dict(i) for i in range(size)]
        self.others = [small_dict(i + size) for i in range(size)]


def stash_steps(stash: object, content: Content) -> Iterator[tuple[str, Measured]]:
    yield NEW, each(stash.dump, content.keys, content.values)
    yield LOAD, each(stash.load, content.keys)
    yield PRESENT, each(stash.exists, content.keys)
    yield ABSENT, each(stash.exists, content.absent)
    yield KEYS, timed(lambda: list(stash.keys()), len(content.keys))
    yield LATER, {}
    yield OVER, each(stash.dump, content.keys, content.others)
    yield DELETE, each(stash.delete, content.keys)


def bare_steps(folder: Path, content: Content) -> Iterator[tuple[str, Measured]]:
    folder.mkdir()
    serial = iter(range(1 << 62))

    def dump(key: str, value: object) -> None:
        temporary = f"{folder}/{next(serial)}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, pickle.dumps(value, 5))
        os.close(fd)
        os.replace(temporary, f"{folder}/{key}.dat")

    def load(key: str) -> object:
        fd = os.open(f"{folder}/{key}.dat", os.O_RDONLY | os.O_CLOEXEC)
        data = os.read(fd, 1 << 16)
        os.close(fd)
        return pickle.loads(data)

    yield NEW, each(dump, content.keys, content.values)
    yield LOAD, each(load, content.keys)
    yield PRESENT, each(lambda key: os.path.isfile(f"{folder}/{key}.dat"), content.keys)
    yield ABSENT, each(lambda key: os.path.isfile(f"{folder}/{key}.dat"), content.absent)
    yield KEYS, timed(lambda: [name[:-4] for name in os.listdir(folder)], len(content.keys))
    yield LATER, {}
    yield OVER, each(dump, content.keys, content.others)
    yield DELETE, each(lambda key: os.unlink(f"{folder}/{key}.dat"), content.keys)


def measure(place: str, content: Content, rounds: int) -> None:
    def ours(folder: Path) -> Iterator[tuple[str, Measured]]:
        from zpersist import DirectoryStash

        return stash_steps(DirectoryStash(folder), content)

    def seed(folder: Path) -> Iterator[tuple[str, Measured]]:
        from zensols.persist import DirectoryStash

        return stash_steps(DirectoryStash(folder), content)

    def bare(folder: Path) -> Iterator[tuple[str, Measured]]:
        return bare_steps(folder, content)

    runners = installed({OURS: ours, SEED: seed, BARE: bare}, {SEED: SEED})
    figures = take_turns(runners, rounds, place)
    print(f"{len(content.keys):,} small dicts on {file_system(place)}, {rounds} rounds:\n")
    for quantity in ("wall", "cpu"):
        print_versus(figures, quantity, "µs", 1e6, GOALS)


def main() -> None:
    options = arguments(__doc__, rounds=11, places=True)
    print_machine("zensols.util")
    content = Content(200 if options.quick else 10_000)
    for place in options.places:
        measure(place, content, options.rounds)


if __name__ == "__main__":
    main()
