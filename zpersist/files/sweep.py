"""Removing what dead writers left behind.

A temporary file has the number of its process in its name, and a mark of the place where that number means something:
the boot and the PID namespace.  The file of a dead process of this place is removed at once, that of another place
(another host or container that shares the directory) when it is a day old.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress

from zpersist.files.atomic import TEMPORARY_PREFIX, place_of_process

__all__ = ["sweep"]

_DAY = 86_400.0
_NAME = re.compile(
    rf"{re.escape(TEMPORARY_PREFIX)}(?P<place>[0-9a-f]+)-(?P<process>[0-9a-f]{{1,8}})-[0-9a-f]+-[0-9a-f]+\.tmp"
)


def sweep(folder: str) -> int:
    """Remove the temporary files of dead writers from a directory, and return how many there were.

    What can't be removed stays: nobody waits for it.
    """
    removed = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if _is_left(entry):
                    os.unlink(entry.path)
                    removed += 1
    return removed


def _is_left(entry: os.DirEntry[str]) -> bool:
    match = _NAME.fullmatch(entry.name)
    if match is None or not entry.is_file(follow_symlinks=False):
        return False
    if match["place"] == place_of_process():
        return not _lives(int(match["process"], 16))
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True
