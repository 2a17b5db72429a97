"""Many processes fill a stash whose codec keeps data only; failures are kept as data."""

from __future__ import annotations

import pytest

from tests.codecs.samples import TYPES, Point
from zpersist import (
    DirectoryStash,
    Failure,
    JsonCodec,
    MsgpackCodec,
    RestrictedPickleCodec,
    SqliteStash,
    ZPersistError,
    fill,
)


def make(number):
    return (number, Point(1 // (number % 3)))


@pytest.mark.parametrize("kind", [DirectoryStash, SqliteStash])
@pytest.mark.parametrize("codec", [JsonCodec(types=TYPES), MsgpackCodec(types=TYPES), RestrictedPickleCodec([Point])])
def test_fill(tmp_path, kind, codec):
    with kind(tmp_path / "data", codec=codec) as stash:
        fill(stash, make, range(1, 7), workers=2, on_error="store")
        values = dict(stash)
        assert len(values) == 6
        good = {key: value for key, value in values.items() if not isinstance(value, Failure)}
        bad = [value for value in values.values() if isinstance(value, Failure)]
        assert [type(value.exception) for value in bad] == [ZPersistError] * 2
        assert all("ZeroDivisionError" in str(value.exception) for value in bad)
        assert all("1 // (number % 3)" in value.traceback_str for value in bad)
        assert {value[0]: value[1].x for value in good.values()} == {1: 1, 2: 0, 4: 1, 5: 0}
