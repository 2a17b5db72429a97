"""Paths as parameters."""

from __future__ import annotations

import os
from pathlib import Path

from zpersist.errors import InvalidArgumentError

__all__ = ["as_path"]


def as_path(path: object) -> Path:
    """Return ``path`` as a :class:`~pathlib.Path`, or raise if it is no path or is empty."""
    if isinstance(path, (str, os.PathLike)) and os.fspath(path):
        return Path(path)
    raise InvalidArgumentError(f"path must be a path or a str that is not empty, not {path!r}")
