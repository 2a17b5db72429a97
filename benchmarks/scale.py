"""A directory of a million keys beside one of a thousand: what a look and a load cost, spread and flat.

The files are made once, and then read in turn, each time other keys in an order of their own.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from interleave import (
    OURS,
    Contestant,
    Measured,
    arguments,
    each,
    file_system,
    print_machine,
    print_versus,
    take_turns,
    timed,
)

from zpersist import DirectoryStash

FEW, FLAT = "a thousand keys", "a million keys, flat"
LOAD, PRESENT, ABSENT, KEYS, LENGTH = "load", "exists, present", "exists, absent", "keys(), per key", "len(), per key"


def filled(path: Path, count: int, fan_out: int) -> DirectoryStash[int]:
    stash: DirectoryStash[int] = DirectoryStash(path, fan_out=fan_out)
    stash.dump_many((f"key-{number:07}", number) for number in range(count))
    return stash


def contestant(stash: DirectoryStash[int], count: int, looks: int, seed: int) -> Contestant:
    chance = random.Random(seed)

    def steps(folder: Path) -> Iterator[tuple[str, Measured]]:
        keys = [f"key-{chance.randrange(count):07}" for _ in range(looks)]
        absent = [f"nothing-{key}" for key in keys]
        yield PRESENT, each(stash.exists, keys)
        yield LOAD, each(stash.load, keys)
        yield ABSENT, each(stash.exists, absent)
        yield KEYS, timed(lambda: sum(1 for _ in stash.keys()), count)
        yield LENGTH, timed(partial(len, stash), count)

    return steps


def main() -> None:
    options = arguments(__doc__, rounds=5, places=True)
    print_machine()
    many, few, looks = (20_000, 1_000, 200) if options.quick else (1_000_000, 1_000, 20_000)
    for place in options.places[:1]:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            made = {
                OURS: (filled(Path(folder) / "spread", many, 256), many),
                FEW: (filled(Path(folder) / "few", few, 256), few),
                FLAT: (filled(Path(folder) / "flat", many, 0), many),
            }
            runners = {
                name: contestant(stash, count, looks, seed) for seed, (name, (stash, count)) in enumerate(made.items())
            }
            figures = take_turns(runners, options.rounds, place)
        print(f"{many:,} keys, fan_out=256, on {file_system(place)}, {options.rounds} rounds:\n")
        print_versus(figures, "wall", "µs", 1e6, {(step, FEW): 1 / 1.5 for step in (LOAD, PRESENT, ABSENT)})


if __name__ == "__main__":
    main()
