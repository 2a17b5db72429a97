"""What the golden files hold, and how they are opened.

``python -m tests.golden.stores`` writes those of the present format into a directory of its own, if there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zpersist import (
    CompressedCodec,
    DillCodec,
    DirectoryCompositeStash,
    DirectoryStash,
    EncryptedCodec,
    IncrementKeyDirectoryStash,
    JsonCodec,
    MsgpackCodec,
    PersistedWork,
    PickleCodec,
    RestrictedPickleCodec,
    ShelveStash,
    SignedCodec,
    SqliteStash,
)
from zpersist.files.envelope import FORMAT_VERSION

FOLDER = Path(__file__).parent
KEY = bytes(range(32))

DATA: dict[str, Any] = {
    "plain": {"a": [1, 2.5, None, True], "b": "text", "c": (1, 2), "d": {3, 4}, "e": b"bytes"},
    "large": bytes(range(256)) * 20,
    "a/b": "escaped",
    "long " * 100: "a key that lies in its file",
    "ключ": "not ASCII",
}
#: Laid beside the pickle, in two buffers.
VIEWS = {"views": [memoryview(bytes(range(256)) * 257), 1, memoryview(bytes(70_000))]}

STORES: dict[str, Callable[[Path], Any]] = {
    "directory": lambda path: DirectoryStash(path / "directory"),
    "spread": lambda path: DirectoryStash(path / "spread", fan_out=16),
    "sqlite": lambda path: SqliteStash(path / "data.db"),
    "shelve": lambda path: ShelveStash(path / "shelf"),
    "dill": lambda path: DirectoryStash(path / "dill", codec=DillCodec()),
    "json": lambda path: DirectoryStash(path / "json", codec=JsonCodec()),
    "msgpack": lambda path: DirectoryStash(path / "msgpack", codec=MsgpackCodec()),
    "restricted": lambda path: DirectoryStash(path / "restricted", codec=RestrictedPickleCodec([])),
    "zlib": lambda path: DirectoryStash(path / "zlib", codec=CompressedCodec(method="zlib")),
    "zstd": lambda path: DirectoryStash(path / "zstd", codec=CompressedCodec()),
    "lz4": lambda path: DirectoryStash(path / "lz4", codec=CompressedCodec(method="lz4")),
    "hmac": lambda path: DirectoryStash(path / "hmac", codec=SignedCodec(PickleCodec(), KEY, scope="golden")),
    "blake2b": lambda path: DirectoryStash(
        path / "blake2b", codec=SignedCodec(JsonCodec(), KEY, algorithm="blake2b", scope="golden")
    ),
    "encrypted": lambda path: DirectoryStash(path / "encrypted", codec=EncryptedCodec(None, KEY, scope="golden")),
}


def composite(path: Path) -> DirectoryCompositeStash[Any]:
    """Return a stash of objects whose parts lie apart."""
    return DirectoryCompositeStash(path / "composite", ({"left"}, {"right"}), "parts")


def increment(path: Path) -> IncrementKeyDirectoryStash[Any]:
    """Return a stash whose keys are numbers."""
    return IncrementKeyDirectoryStash(path / "increment")


def work(path: Path) -> PersistedWork:
    """Return a work in a file, of a version."""
    return PersistedWork(path / "work.dat", None, version="2")


def write(path: Path) -> None:
    """Write all of it."""
    for make in STORES.values():
        with make(path) as stash:
            stash.dump_many(DATA)
    DirectoryStash(path / "directory").dump_many(VIEWS)
    composite(path)["a"] = SimpleNamespace(name="a", parts={"left": [1], "right": {"x": 2}})
    increment(path).dump("first")
    increment(path).dump("second")
    work(path).set({"result": 1})


if __name__ == "__main__":
    folder = FOLDER / f"format-{FORMAT_VERSION}"
    if folder.exists():
        sys.exit(f"{folder} is there, and is never written again")
    write(folder)
