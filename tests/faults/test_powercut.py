"""After a real power cut nothing is lost that was acknowledged; what could not be written back is no success.

These need root and loop devices.  A missing sync of the *directory* shows in few of such cuts: it is held by
``test_crash_states.py``, which finds it always.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.shim import ROOT
from tests.faults.stores import STORES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CUTS = 10


def in_a_namespace(*call):
    """Run a function of ``powercut.py`` where it may mount; return what it returns."""
    if not hasattr(os, "geteuid") or os.geteuid() or not Path("/dev/loop-control").exists():
        pytest.skip("NO POWER IS CUT: that needs root and loop devices")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode and not os.environ.get("CI"):
        pytest.skip("NO POWER IS CUT: that needs mount namespaces")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-m", "tests.faults.powercut", json.dumps(call)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", STORES)
def test_what_is_acknowledged_survives_power_cuts(kind, scratch):
    print("seed 1")
    told = in_a_namespace("cut", kind, "fsync", str(scratch), CUTS, 1)
    assert told["wrong"] == [[]] * CUTS
    assert told["turns"][0] > 3, "it was cut while it wrote"
    assert told["turns"] == sorted(set(told["turns"])), "it went on between the cuts"


# LMDB syncs nearly all without being asked: its controls are in test_databases.py.
@pytest.mark.parametrize("kind", [kind for kind in STORES if kind != "lmdb"])
def test_without_syncs_something_is_lost(kind, scratch):
    # The judge above can fail: these are not promised to survive.
    told = in_a_namespace("cut", kind, "rename", str(scratch), CUTS, 1)
    assert any(told["wrong"])


@pytest.mark.parametrize("kind", [kind for kind in STORES if kind != "composite"])
def test_what_the_kernel_could_not_write_back_is_no_success(kind, scratch):
    told = in_a_namespace("fill", kind, str(scratch))
    assert told["errors"], "the disk was full"
    assert told["kept"] >= 3
    assert told["missing"] == []
    assert told["again"] == [], "a failed fsync is never tried again"
    if not STORES[kind].database:
        assert told["failed"], "it was fsync that failed"
