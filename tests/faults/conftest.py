"""What the tests of faults share: a quick disk, and the server with the preloaded library."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.faults.shim import Server, compiler


@pytest.fixture(scope="session")
def preloaded():
    """Return the server of :mod:`tests.faults.shim`."""
    if sys.platform != "linux" or compiler() is None:
        pytest.skip("NO FAULTS FROM OUTSIDE: they need Linux and a C compiler; those of test_writes.py do run")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def scratch(tmp_path):
    """Return a directory in memory, where there is one: what a sync does there is seen only after a power cut."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="zpersist-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)
