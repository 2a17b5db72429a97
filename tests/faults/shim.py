"""Faults from outside: a library that is loaded before all others (``shim.c``), and a process that has it.

That process, the *server*, is started once.  It runs functions of modules for the tests, and forks for each fault:
starting an interpreter for each would take a hundred times as long.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import mmap
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# As in shim.c.
KILL, FAIL, SHORT, TEAR = 1, 2, 3, 4
OPEN, WRITE, SYNC, NAME, REMOVE, CUT, GROW = 1, 2, 4, 8, 16, 32, 64
ALL = OPEN | WRITE | SYNC | NAME | REMOVE | CUT | GROW


class Mode(NamedTuple):
    """What happens to a call; ``lasting``: to all that follow, too."""

    action: int
    code: int = 0
    lasting: bool = False
    kinds: int = ALL


#: What takes room on a disk is refused when there is none; deleting is not.
ROOMY = OPEN | WRITE | SYNC | NAME | GROW

MODES = {
    "killed": Mode(KILL),
    "killed in a write": Mode(TEAR, kinds=WRITE),
    "EIO once": Mode(FAIL, errno.EIO),
    "EIO for ever": Mode(FAIL, errno.EIO, lasting=True),
    "ENOSPC once": Mode(FAIL, errno.ENOSPC, kinds=ROOMY),
    "ENOSPC for ever": Mode(FAIL, errno.ENOSPC, lasting=True, kinds=ROOMY),
    "short write": Mode(SHORT, kinds=WRITE),
    "short write, then ENOSPC": Mode(SHORT, errno.ENOSPC, lasting=True, kinds=WRITE),
}
DEADLY = (KILL, TEAR)


class _Report(ctypes.Structure):
    _fields_ = [("count", ctypes.c_long), ("hits", ctypes.c_long), ("first", ctypes.c_char * 8192)]


class Report:
    """What became of an armed process; readable also after its death."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, ctypes.sizeof(_Report))
        self._report = _Report.from_buffer(self._memory)

    @property
    def pointer(self) -> Any:
        """Where the library tells."""
        return ctypes.byref(self._report)

    def clear(self) -> None:
        """Forget what was told."""
        ctypes.memset(ctypes.addressof(self._report), 0, ctypes.sizeof(_Report))

    @property
    def count(self) -> int:
        """How many calls were counted."""
        return self._report.count

    @property
    def first(self) -> str:
        """Return the first call that suffered, empty if there was none."""
        return self._report.first.decode("utf-8", "replace")


@contextmanager
def armed(folder: str, at: int, mode: Mode, report: Report) -> Iterator[None]:
    """Have the ``at``-th call on something below a folder suffer, in this process."""
    library = ctypes.CDLL(None)
    library.shim_arm(
        os.fsencode(folder), ctypes.c_long(at), mode.action, mode.code, mode.lasting, mode.kinds, report.pointer
    )
    try:
        yield
    finally:
        library.shim_disarm()


class Entry(NamedTuple):
    """A call that has changed something; as in ``shim.c``."""

    call: str
    flags: int
    at: int
    size: int
    name: str
    data: bytes


_ENTRY = struct.Struct("16s5q")


class Trace:
    """What the calls of this process change below a folder, as they come."""

    def __init__(self, folder: str) -> None:
        self._log = tempfile.TemporaryFile()
        self._library = ctypes.CDLL(None)
        self._library.shim_trace(os.fsencode(folder), self._log.fileno())

    def note(self, call: str) -> None:
        """Put in a call of one's own."""
        os.write(self._log.fileno(), _ENTRY.pack(call.encode(), 0, 0, 0, 0, 0))

    def stop(self) -> list[Entry]:
        """Trace no more; return what there was."""
        self._library.shim_trace(b"", -1)
        with self._log as log:
            log.seek(0)
            return list(_entries(log))


def _entries(log: Any) -> Iterator[Entry]:
    while head := log.read(_ENTRY.size):
        call, flags, at, length, size, name = _ENTRY.unpack(head)
        yield Entry(call.rstrip(b"\0").decode(), flags, at, size, os.fsdecode(log.read(name)), log.read(length))


def in_a_fork(run: Callable[[], Any]) -> tuple[int, Any]:
    """Run a function in a child; return how that ended (minus the signal's number), and what it returned."""
    source, sink = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 and later warn of a fork while there are threads; the child here uses none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(source)
            with os.fdopen(sink, "wb") as stream:
                pickle.dump(run(), stream)
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(sink)
    with os.fdopen(source, "rb") as stream:
        told = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, pickle.loads(told) if code == 0 else None


# the server


def compiler() -> list[str] | None:
    """Return the command of a C compiler, or ``None``; in CI it has to be there."""
    if found := shutil.which("gcc") or shutil.which("cc"):
        return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    if os.environ.get("CI"):
        raise AssertionError("no C compiler: in CI the faults from outside must run (pip install ziglang)")
    return None


class Server:
    """Runs functions in a process that has the library."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zpersist-shim-")
        library = f"{self._folder.name}/shim.so"
        options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library]
        subprocess.run([*(compiler() or ()), *options, str(HERE / "shim.c"), "-ldl"], check=True)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.faults.shim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": library, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of a module there, and return what it returns."""
        assert self._process.stdin
        assert self._process.stdout
        pickle.dump((function.__module__, function.__qualname__, arguments), self._process.stdin)
        self._process.stdin.flush()
        well, result = pickle.load(self._process.stdout)
        assert well, result
        return result

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._folder.cleanup()


def serve() -> None:
    """Be the server."""
    # What a test prints must not get between the answers.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            try:
                module, name, arguments = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                answer = True, getattr(importlib.import_module(module), name)(*arguments)
            except BaseException:
                answer = False, traceback.format_exc()
            pickle.dump(answer, answers)
            answers.flush()


if __name__ == "__main__":
    serve()
