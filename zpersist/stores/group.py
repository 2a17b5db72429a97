"""The files of one group of a composite: each has a place, and beside it one where a new one waits."""

from __future__ import annotations

import logging
import os
from typing import Any

from attrs import define, field

from zpersist.errors import CorruptValueError
from zpersist.files.atomic import storage_error, sync_directory
from zpersist.files.envelope import read_file
from zpersist.stores.directory import DirectoryStash

__all__ = ["GroupStash"]

logger = logging.getLogger(__name__)

Written = tuple[str, dict[str, Any]]


@define(slots=False, eq=False)
class GroupStash(DirectoryStash[Written]):
    """The values of one group: with each the token of the dump that wrote it.

    To be used with the directory of the objects locked.
    """

    group_name: str = field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        # All groups belong to one composite.
        self._place = f"{os.path.dirname(self._root)}\0group {self.group_name} {self.pattern}"

    def waiting(self, name: str) -> str:
        """Return the file in which a new group lies until its object has been replaced; no key has such a name."""
        folder, file = os.path.split(self._file(name))
        return f"{folder}/.+{file}"

    def of_dump(self, name: str, token: str | None) -> dict[str, Any] | None:
        """Return the values that a dump wrote, whether they wait or not; ``None`` if they are not there."""
        written = self.load(name)
        if written is None or written[0] != token:
            written = self._load_waiting(name)
        return None if written is None or written[0] != token else written[1]

    def _load_waiting(self, name: str) -> Written | None:
        path, tag = self.waiting(name), self._layout.tag(self._file(name), name)
        try:
            codec = self.codec.bound(self._place, name)
            return read_file(path, codec, mapped=self.mmap, tag=tag)  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None

    def settle(self, name: str, token: str | None) -> None:
        """Put what waits in its place, if that dump wrote it: something else is going to wait."""
        try:
            written = self._load_waiting(name)
        except CorruptValueError as err:
            logger.warning("%s; it is written over", err)
            return
        if written is not None and written[0] == token:
            try:
                os.replace(self.waiting(name), self._file(name))
            except OSError as err:
                raise storage_error(err, "can not write (what was there is untouched)", self._file(name)) from err
            if self.durability == "fsync":
                sync_directory(os.path.dirname(self._file(name)))

    def put_in_place(self, name: str) -> None:
        """Put what waits in its place; if that fails it is found where it is."""
        try:
            os.replace(self.waiting(name), self._file(name))
        except OSError as err:
            logger.warning("%s stays there, where it is found as well: %s", self.waiting(name), err)
            return
        if self.durability == "fsync":
            # Else the next one that waits could be on the disk before this one is in its place.
            sync_directory(os.path.dirname(self._file(name)))

    def delete(self, name: str) -> bool:
        """Delete what there is of an object that is gone; what can't be deleted is in nobody's way."""
        there = False
        for path in (self._file(name), self.waiting(name)):
            try:
                os.unlink(path)
                there = True
            except FileNotFoundError:
                pass
            except OSError as err:
                logger.warning("%s can not be deleted; it belongs to no object any more: %s", path, err)
        return there
