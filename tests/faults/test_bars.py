"""A bar that can't be drawn ends nothing: neither a filling nor a search for damage nor a migration."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.faults.shim import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/full")

#: Where the bar goes.
STREAMS = {
    "a full device": "open('/dev/full', 'w')",
    "a full terminal": "Terminal(open('/dev/full', 'wb', buffering=0))",
    "a closed stream": "closed",
    "nowhere": "None",
}

PROGRAM = """
import io, sys
from pathlib import Path

class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True

closed = open("/dev/null", "w")
closed.close()

from zpersist import DirectoryStash, SqliteStash, fill, migrate
from zpersist import progress
if sys.argv[3] == "broken":
    progress._Stream = lambda stream: stream
sys.stderr = eval(sys.argv[2])
folder = Path(sys.argv[1])
stash = DirectoryStash(folder / "values")
try:
    assert fill(stash, lambda n: n * n, range(20), workers=2, progress=True).done == 20
    assert list(stash.verify(progress=True)) == []
    with SqliteStash(folder / "data.db") as other:
        migrate(stash, other, progress=True)
        assert len(other) == 20
except BaseException as err:
    print(repr(err))
    raise
print("through")
"""


def told(stream, folder, how):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), STREAMS[stream], how]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60).stdout


@pytest.mark.parametrize("stream", STREAMS)
def test_a_bar_that_can_not_be_drawn_ends_nothing(stream, tmp_path):
    assert told(stream, tmp_path, "as it is") == "through\n"


@pytest.mark.parametrize("stream", ["a full device", "a full terminal", "a closed stream"])
def test_a_bar_that_minds_is_found_out(stream, tmp_path):
    assert "Error" in told(stream, tmp_path, "broken")
