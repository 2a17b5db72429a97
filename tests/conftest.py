"""What holds for every test: nothing is left behind."""

from __future__ import annotations

import os
import threading

import pytest


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = [
        thread
        for thread in threading.enumerate()
        if thread not in before and thread.is_alive() and not thread.name.startswith(("asyncio_", "execnet"))
    ]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()], "a thread was left running"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Run a test in a directory of its own, and return it."""
    monkeypatch.chdir(tmp_path)
    assert os.getcwd() == str(tmp_path)
    return tmp_path
