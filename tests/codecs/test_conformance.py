"""A stash with any of the codecs passes the suite of the stash."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

from tests.codecs.samples import TYPES, Color, Pair, Point
from zpersist import DirectoryStash, JsonCodec, MsgpackCodec, RestrictedPickleCodec, ShelveStash, SqliteStash
from zpersist.testing import StashSuite
from zpersist.testing.reading import VALUES

MORE = (Point(1, (2, {3})), Color.RED, Pair(1), datetime(2024, 1, 1, tzinfo=UTC), Decimal("1.50"), {1: 2}, {"$set": 1})


class Suite(StashSuite):
    values = (*VALUES[:-2], *MORE, *VALUES[-2:])
    encodes = True
    codec: object

    def make(self, path: Path):
        return DirectoryStash(path / "data", codec=self.codec)

    reopen = make


class InSqlite(Suite):
    def make(self, path: Path):
        return SqliteStash(path / "data.db", codec=self.codec)

    reopen = make


JSON = JsonCodec(types=TYPES)
MSGPACK = MsgpackCodec(types=TYPES)
PICKLE = RestrictedPickleCodec([Point, Color, Pair, datetime, timezone, timedelta, Decimal])


class TestJsonInDirectory(Suite):
    codec = JSON


class TestJsonInSqlite(InSqlite):
    codec = JSON


class TestMsgpackInDirectory(Suite):
    codec = MSGPACK


class TestMsgpackInSqlite(InSqlite):
    codec = MSGPACK


class TestMsgpackInShelf(Suite):
    codec = MSGPACK

    def make(self, path: Path):
        return ShelveStash(path / "shelf", codec=self.codec)

    reopen = make


class TestRestrictedPickleInDirectory(Suite):
    codec = PICKLE


class TestRestrictedPickleInSqlite(InSqlite):
    codec = PICKLE


# They would be collected as tests of their own.
del Suite, InSqlite, StashSuite
