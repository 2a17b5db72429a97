"""Putting a damaged file out of the way, and only that."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from zpersist.damage import Repair
from zpersist.files.atomic import Durability, make_directory, storage_error
from zpersist.files.locks import directory_lock

__all__ = ["put_away"]


def put_away(
    path: str, repair: Repair, is_damaged: Callable[[str], bool], *, root: str, folder: str, durability: Durability
) -> bool:
    """Delete a damaged file, or lay it aside, and return whether that was done.

    Parameters
    ----------
    path :
        The file.
    repair :
        What to do.
    is_damaged :
        Is asked while nobody can put a whole one in its place.
    root :
        The directory that those lock who write.
    folder :
        Where it is laid aside, under its own name, or with a number behind if there is such a one already.
    durability :
        Of the folder.
    """
    with directory_lock(root, shared=False):
        if not is_damaged(path):
            return False
        try:
            if repair == "quarantine":
                make_directory(folder, durability=durability)
                _link_beside(path, f"{folder}/{os.path.basename(path)}")
            os.unlink(path)
        except OSError as err:
            raise storage_error(err, f"can not {repair}", path) from err
    return True


def _link_beside(path: str, target: str) -> None:
    for number in count():
        with suppress(FileExistsError):
            os.link(path, f"{target}.{number}" if number else target)
            return
