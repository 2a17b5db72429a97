"""Where something has run out a clear error says so, nothing is harmed, and all works again when there is some.

Every store with every limit; the errors are the kernel's own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.disk import on_a_small_disk
from tests.faults.limits import LIMITS
from tests.faults.shim import ROOT
from tests.faults.stores import STORES


def suffer(program, kind, limit, disk):
    """Run a program with a disk of its own; return how that ended."""
    disk.mkdir()
    size = f"{'8m' if STORES[kind].database else '64k'},nr_inodes=60"
    command = on_a_small_disk([sys.executable, "-W", "error", *program, kind, limit, str(disk)], disk, size)
    if command is None:
        assert not (os.environ.get("CI") and os.geteuid() == 0), "in CI root can mount"
        pytest.skip("NO LIMITS: that needs mount namespaces")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("kind", STORES)
def test_something_runs_out(kind, limit, tmp_path):
    done = suffer(["-m", "tests.faults.limits"], kind, limit, tmp_path / "disk")
    assert done.returncode == 0, done.stderr


BROKEN = """
import sys
from pathlib import Path
from zpersist.stores import directory
def in_place(path, parts, *, durability="rename", place=None, workshop=None):
    with open(path, "wb", buffering=0) as stream:
        for part in parts:
            assert stream.write(part) == len(part)
directory.write_file = in_place
from tests.faults.limits import suffer
suffer(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.parametrize("limit", ["no room", "short files"])
def test_a_writer_in_place_is_found_out(limit, tmp_path):
    done = suffer(["-c", BROKEN], "directory", limit, tmp_path / "disk")
    assert done.returncode != 0
    assert "Error" in done.stderr
