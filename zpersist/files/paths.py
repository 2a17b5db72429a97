"""Paths as parameters."""

from __future__ import annotations

import os
from pathlib import Path

from zpersist.errors import InvalidArgumentError

__all__ = ["as_path", "identity_of"]


def as_path(path: object) -> Path:
    """Return ``path`` as a :class:`~pathlib.Path`, or raise if it is none that a file can have."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise InvalidArgumentError(f"path must be a path or a str that is not empty, not {path!r}")
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as err:
        raise InvalidArgumentError(f"path {path!r} has a lone surrogate at {err.start}, not valid Unicode") from err
    if b"\0" in raw:
        raise InvalidArgumentError(f"path {path!r} has a null character in it; no file can have such a name")
    return Path(os.fsdecode(raw))


def identity_of(file: str) -> tuple[int, int] | None:
    """Return what tells a file from one that has taken its place."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino
