"""Removing what dead writers left behind.

A temporary file has the number of its process in its name, and a mark of the place where that number means something:
the boot and the PID namespace.  The file of a dead process of this place is removed at once, that of another place
(another host or container that shares the directory) when it is a day old.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache

from zpersist.files.atomic import TEMPORARY_PREFIX, place_of_process

__all__ = ["sweep", "sweep_once"]

_DAY = 86_400.0


def sweep(folder: str) -> int:
    """Remove the temporary files of dead writers from a directory, and return how many there were."""
    removed = 0
    with suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX) and _is_left(entry):
                with suppress(FileNotFoundError):
                    os.unlink(entry.path)
                    removed += 1
    return removed


@cache
def sweep_once(folder: str) -> None:
    """Sweep a directory the first time this process writes there."""
    sweep(folder)


def _is_left(entry: os.DirEntry[str]) -> bool:
    parts = entry.name.removeprefix(TEMPORARY_PREFIX).split("-")
    if len(parts) != 4 or not entry.name.endswith(".tmp"):
        return False
    place, process = parts[:2]
    if place == place_of_process():
        return not _lives(int(process, 16))
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
    except FileNotFoundError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True
