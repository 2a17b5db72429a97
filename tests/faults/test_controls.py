"""The tests of two promises can fail: what computes without a lock, and what leaks, is found out."""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.work.test_flight import Slow, ended, noted, run
from zpersist import DirectoryStash
from zpersist.testing import StashSuite
from zpersist.work.level import FileLevel


def test_two_who_compute_at_once_are_found_out(elsewhere, monkeypatch):
    monkeypatch.setattr(FileLevel, "flight", lambda level: nullcontext())
    Path("hold").touch()
    children = [run(lambda: Slow().v) for _ in range(2)]
    # With the lock there would never be two.
    while len(noted()) < 2:
        threading.Event().wait(0.005)
    os.unlink("hold")
    assert [ended(child) for child in children] == [0, 0]


class Leaks(DirectoryStash):
    """Opens something with each value, and closes it never."""

    opened = []

    def load(self, name):
        self.opened.append(os.open(self.path, os.O_RDONLY))
        return super().load(name)


def test_a_leak_is_found_out(tmp_path):
    class Suite(StashSuite):
        def make(self, path):
            return Leaks(path / "data")

    try:
        with pytest.raises(AssertionError):
            Suite().test_no_descriptor_is_left(tmp_path)
    finally:
        while Leaks.opened:
            os.close(Leaks.opened.pop())
