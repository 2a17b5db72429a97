"""What a worker does with a list of items."""

from __future__ import annotations

import pytest

from zpersist import DirectoryStash, SqliteStash
from zpersist.parallel import job as job_module
from zpersist.parallel.fill import _FunctionStash
from zpersist.parallel.job import Job
from zpersist.parallel.stashwork import StashWork


class Watched(list):
    """A mark that remembers all that was written to it."""

    def __init__(self):
        super().__init__([-1.0, 0.0])
        self.seen = []

    def __setitem__(self, at, value):
        super().__setitem__(at, value)
        self.seen.append((at, value))


def job_of(function, delegate, **options):
    return Job(StashWork(_FunctionStash(delegate, function, (), str)), delegate, "raise", **options)


@pytest.fixture
def takes(monkeypatch):
    """Have items take the seconds that they are told to, by a clock of the test's own."""
    clock = [100.0]
    monkeypatch.setattr(job_module, "now", lambda: clock[0])

    def take(seconds):
        clock[0] += seconds

    return take


@pytest.mark.parametrize("timed", [False, True])
def test_items_that_become_long_are_handed_back(elsewhere, takes, timed):
    def work(n):
        takes(1e-6 if n < 500 else 0.02)

    report = job_of(work, SqliteStash("data.db"), timed=timed).do(list(range(1000)), False)
    # After the budget, or the few that seemed to be instant.
    assert report.done == 503 if timed else 503 <= report.done <= 511


def test_each_item_is_marked_and_timed_if_somebody_watches(elsewhere, takes):
    for timed in (False, True):
        mark = Watched()
        job_of(lambda n: n, DirectoryStash("data"), timed=timed, mark=mark).do(list(range(100)), False)
        places = [value for at, value in mark.seen if at == 0]
        times = [value for at, value in mark.seen if at == 1]
        assert places == list(range(100))
        assert (len(times) == 100) is timed


def test_what_is_written_at_once_is_not_kept_waiting(elsewhere, takes):
    delegate = SqliteStash("data.db")
    there = []

    def work(n):
        there.append(len(delegate))
        takes(0.004)
        return n

    job_of(work, delegate).do(list(range(10)), False)
    assert len(delegate) == 10
    # What takes some time is there soon after.
    assert all(at - count <= 4 for at, count in enumerate(there))
