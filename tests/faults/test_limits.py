"""Where something has run out a clear error says so, nothing is harmed, and all works again when there is some.

Every store with every limit; the errors are the kernel's own.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from tests.disk import on_a_small_disk
from tests.faults.limits import FULL_DEVICE, LIMITS, on_devices
from tests.faults.shim import ROOT
from tests.faults.stores import STORES
from zpersist.work.level import FileLevel


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


@pytest.fixture
def full_device(tmp_path):
    """Have devices that are full, and may be replaced."""
    if sys.platform != "linux":
        pytest.skip("there is no /dev/full")
    try:
        os.mknod(tmp_path / "full", stat.S_IFCHR | 0o600, FULL_DEVICE)
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "full").write_bytes(b"x")
    except PermissionError:
        pytest.skip("NO DEVICES: only root can make them, and not everywhere")


@pytest.mark.parametrize("kind", STORES)
def test_a_full_device_is_in_the_place_of_the_files(kind, full_device, tmp_path):
    on_devices(kind, tmp_path / "disk")


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


def test_who_replaces_a_device_is_found_out(full_device, tmp_path, monkeypatch):
    monkeypatch.setattr(FileLevel, "_refuse_device", lambda level: None)
    with pytest.raises(AssertionError, match="a device was replaced"):
        on_devices("work", tmp_path / "disk")
