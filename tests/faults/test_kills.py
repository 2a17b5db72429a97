"""Writers are killed at random moments, hundreds of times: what they acknowledged is there, and what they left goes."""

from __future__ import annotations

import pytest

from tests.faults.kills import kill_often
from tests.faults.stores import LOSSY, STORES
from zpersist.files.atomic import TEMPORARY_PREFIX


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("kind", [*STORES, *LOSSY])
def test_killed_at_random(kind, count, preloaded, scratch):
    print(f"seed {count}")
    told = preloaded.run(kill_often, kind, str(scratch), count, count)
    assert told.wrong == []
    assert told.written > count // 3, "most writers came to write something"
    assert len(told.deaths) > count // 3, "many died in the middle of something"
    if kind in STORES and not STORES[kind].database:
        swept = [death for death in told.deaths if death.startswith("unlink ") and TEMPORARY_PREFIX in death]
        print(f"{len(swept)} died while they tidied up")
        assert len(swept) >= count // 50, "some died while they tidied up"


# it can fail: stores that are broken on purpose


@pytest.mark.parametrize(
    "kind, count, says",
    [
        ("in place", 40, "CorruptValueError"),
        ("late", 40, ", not ["),
        ("unswept", 60, "left behind"),
        ("another value", 40, "'2' is ["),
    ],
)
def test_a_broken_store_is_found_out(kind, count, says, preloaded, scratch):
    told = preloaded.run(kill_often, kind, str(scratch), count, 1)
    assert says in "\n".join(told.wrong)
