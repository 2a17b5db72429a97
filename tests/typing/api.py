"""Checked by mypy --strict, never run: the types that users rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

from zpersist import (
    CacheStash,
    DictionaryStash,
    DirectoryStash,
    FactoryStash,
    PersistedWork,
    ReadOnlyStash,
    SqliteStash,
    Stash,
    persisted,
    persisted_property,
)


class Corpus:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._vocabulary = PersistedWork(root / "vocabulary.dat", self)

    @property
    @persisted("_vocabulary")
    def vocabulary(self) -> frozenset[str]:
        return frozenset()

    @persisted
    def bare(self, factor: int = 2) -> int:
        return factor

    @persisted("_later", cache_global=True)
    async def later(self) -> str:
        return ""

    @classmethod
    @persisted("_made")
    def made(cls) -> list[int]:
        return []

    @staticmethod
    @persisted
    def static() -> float:
        return 0.0

    @persisted_property
    def quick(self) -> dict[str, int]:
        return {}

    @persisted_property(path="slow.dat")
    def slow(self) -> bytes:
        return b""


async def works(corpus: Corpus) -> None:
    assert_type(corpus.vocabulary, frozenset[str])
    assert_type(corpus.bare(factor=3), int)
    assert_type(await corpus.later(), str)
    assert_type(Corpus.made(), list[int])
    assert_type(Corpus.static(), float)
    assert_type(corpus.quick, dict[str, int])
    assert_type(corpus.slow, bytes)


class Squares(ReadOnlyStash[int]):
    def load(self, name: str) -> int | None:
        return int(name) ** 2

    def keys(self) -> list[str]:
        return ["1", "2"]


def stashes() -> None:
    directory: DirectoryStash[int] = DirectoryStash("data")
    stack = CacheStash(FactoryStash(directory, Squares()))
    assert_type(stack, CacheStash[int])
    assert_type(stack["1"], int)
    assert_type(stack.load("1"), int | None)
    assert_type(stack.get("1", "nothing"), int | str | None)
    assert_type([value for _, value in stack], list[int])
    assert_type(dict(stack.mapping), dict[str, int])
    assert_type(DictionaryStash({"a": 1}).update("a", lambda value: value + 1), int)
    with SqliteStash[Any]("data.db") as database:
        assert_type(database, SqliteStash[Any])
    anything: Stash[Any] = stack
    anything.dump("a", "b")
