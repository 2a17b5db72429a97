"""What codecs and checks cost: a signed, encrypted or compressed value beside a plain one, and checksums of 64 MB.

The values have about 4 KiB: a dict of lists and strings, and plain bytes, of which there is least to decode.  *without
checksums* is zpersist with its checksum function exchanged for one that returns 0.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

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

from zpersist import (
    Codec,
    CompressedCodec,
    DirectoryStash,
    EncryptedCodec,
    JsonCodec,
    MsgpackCodec,
    PickleCodec,
    RestrictedPickleCodec,
    SignedCodec,
    SqliteStash,
)
from zpersist.files import envelope

KEY = bytes(range(32))
SIGNED, BLAKE, ENCRYPTED, ZSTD, JSON, MSGPACK, RESTRICTED, UNCHECKED = (
    "signed",
    "signed, BLAKE2b",
    "encrypted",
    "zstd",
    "JSON",
    "msgpack",
    "restricted",
    "without checksums",
)
CODECS: dict[str, Codec] = {
    OURS: PickleCodec(),
    SIGNED: SignedCodec(PickleCodec(), KEY),
    BLAKE: SignedCodec(PickleCodec(), KEY, algorithm="blake2b"),
    ENCRYPTED: EncryptedCodec(PickleCodec(), KEY),
    ZSTD: CompressedCodec(),
    JSON: JsonCodec(),
    MSGPACK: MsgpackCodec(),
    RESTRICTED: RestrictedPickleCodec([]),
}
STORES = {
    "directory": lambda folder, codec: DirectoryStash(folder / "data", codec=codec),
    "SQLite": lambda folder, codec: SqliteStash(folder / "data.db", codec=codec),
}
LARGE, OVER = "dump 64 MB", "dump 64 MB over 64 MB"


def record(chance: random.Random) -> dict[str, Any]:
    """Return something of about 4 KiB when it is pickled."""
    words = [f"{chance.getrandbits(40):x}" for _ in range(150)]
    return {"words": words, "counts": [chance.getrandbits(20) for _ in range(200)], "scores": [chance.random()] * 100}


def contestant(name: str, count: int) -> Contestant:
    chance = random.Random(1)
    values = {
        "dict": [record(chance) for _ in range(count)],
        "bytes": [chance.randbytes(4096) for _ in range(count)],
    }

    def steps(folder: Path) -> Iterator[tuple[str, Measured]]:
        for store, make in STORES.items():
            for kind, content in values.items():
                (folder / store / kind).mkdir(parents=True)
                stash: Any = make(folder / store / kind, CODECS[name])
                keys = [f"key-{number}" for number in range(count)]
                yield f"dump, {kind}, {store}", each(stash.dump, keys, content)
                yield f"load, {kind}, {store}", each(stash.load, keys)
                stash.close()

    return steps


class NoHash:
    """A checksum that is none."""

    def __init__(self, data: Any = b"") -> None:
        pass

    def update(self, data: Any) -> None:
        """Look at nothing."""

    def intdigest(self) -> int:
        return 0


def large(folder: Path, size: int, *, checked: bool) -> Iterator[tuple[str, Measured]]:
    import numpy

    model = [numpy.arange(size // 8, dtype="i8") for _ in range(8)]
    stash: DirectoryStash[Any] = DirectoryStash(folder)
    stash["warm"] = 1
    real = envelope.xxh3_64
    if not checked:
        vars(envelope)["xxh3_64"] = NoHash
    try:
        first = timed(partial(stash.dump, "model", model))
        second = timed(partial(stash.dump, "model", model))
    finally:
        vars(envelope)["xxh3_64"] = real
    yield LARGE, first
    yield OVER, second


def main() -> None:
    options = arguments(__doc__, rounds=11, places=True)
    print_machine("xxhash", "cryptography", "zstandard", "msgpack")
    count = 20 if options.quick else 2_000
    runners = {name: contestant(name, count) for name in CODECS}
    for place in options.places[:1]:
        figures = take_turns(runners, options.rounds, place)
        print(f"{count:,} values of 4 KiB on {file_system(place)}, {options.rounds} rounds:\n")
        print_versus(figures, "wall", "µs", 1e6)
        for store in STORES:
            for kind in ("dict", "bytes"):
                for name in (SIGNED, BLAKE):
                    ratio = figures.ratio(f"load, {kind}, {store}", name, "wall")
                    verdict = "met" if ratio <= 1.3 else "**missed**"
                    print(f"* load, {kind}, {store}: {name} takes {ratio:.2f} times the time (goal: 1.3, {verdict})")
        print()
        size = 1_000_000 if options.quick else 64_000_000 // 8
        checks = {
            OURS: partial(large, size=size, checked=True),
            UNCHECKED: partial(large, size=size, checked=False),
        }
        figures = take_turns(checks, options.rounds, place)
        print(f"{size * 8 / 1e6:.0f} MB of arrays on {file_system(place)}, {options.rounds} rounds:\n")
        print_versus(figures, "wall", "ms", 1e3, {(step, UNCHECKED): 1 / 1.05 for step in (LARGE, OVER)})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
