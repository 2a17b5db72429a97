"""The files in a ZIP archive."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrs import define, field

from zpersist.errors import CorruptValueError, DecodeError, InvalidArgumentError, ZPersistError
from zpersist.files.atomic import storage_error
from zpersist.files.paths import as_path
from zpersist.forklock import ForkLock
from zpersist.readonly import ReadOnlyStash
from zpersist.stash import MISSING, CloseableStash, Missing

__all__ = ["ZipStash"]


def _absolute(path: object) -> Path:
    return as_path(path).absolute()


def _check_root(stash: object, attribute: Any, root: Any) -> None:
    if root is not None and (not isinstance(root, str) or not root or root.startswith("/") or root.endswith("/")):
        raise InvalidArgumentError(f"Roots can not start or end with a slash, nor be empty: {root!r}")


@define(slots=False, eq=False)
class ZipStash(ReadOnlyStash[bytes | str], CloseableStash[bytes | str]):
    """The files in a ZIP archive, by their names in it; read only.

    Parameters
    ----------
    path :
        The archive.  A relative one is taken from the working directory at construction; another one may be set.
    root :
        Only what lies below this folder of the archive, named from there.
    encoding :
        Give text in this encoding; default: give bytes.

    Raises
    ------
    CorruptValueError
        By any operation: the archive, or the file in it, is damaged.
    StorageError
        The operating system refused, or there is no such file.

    Notes
    -----
    *Concurrency*: any number of readers; the archive is read once, changes to it are not seen before ``close()``.
    *Durability*: nothing is written.
    *Trust*: names are keys only, nothing is extracted to the disk.

    Examples
    --------
    >>> import zipfile
    >>> with zipfile.ZipFile("texts.zip", "w") as archive:
    ...     archive.writestr("en/hello", "world")
    >>> with ZipStash("texts.zip", root="en", encoding="utf-8") as stash:
    ...     list(stash)
    [('hello', 'world')]
    """

    shared = True
    durable = True

    path: Path = field(converter=_absolute)
    root: str | None = field(default=None, validator=_check_root)
    encoding: str | None = field(default=None)
    _lock: ForkLock = field(init=False, repr=False, factory=ForkLock)
    _opened: tuple[int, Path, zipfile.ZipFile] | None = field(init=False, repr=False, default=None)

    def _archive(self) -> zipfile.ZipFile:
        with self._lock:
            if self._opened is not None:
                pid, path, archive = self._opened
                if pid == os.getpid() and path == self.path:
                    return archive
                self.close()
            try:
                archive = zipfile.ZipFile(self.path)
            except MemoryError:
                raise
            except Exception as err:
                raise self._refused(err, f"{self.path} is damaged, or no ZIP archive") from err
            self._opened = os.getpid(), self.path, archive
            return archive

    def _refused(self, err: Exception, damaged: str) -> ZPersistError:
        # For odd bytes zipfile and the decompressors raise all kinds of exceptions; bzip2, and a seek to a place before
        # the start, an OSError.
        if isinstance(err, OSError) and err.errno not in (None, errno.EINVAL):
            return storage_error(err, "can not read the archive", self.path)
        return CorruptValueError(f"{damaged}: {str(err) or type(err).__name__}")

    def _member(self, name: str) -> str:
        return name if self.root is None else f"{self.root}/{name}"

    def _fetch(self, name: str) -> bytes | str | Missing:
        with self._lock:
            if not self.exists(name):
                return MISSING
            archive = self._archive()
            try:
                data = archive.read(self._member(name))
            except MemoryError:
                raise
            except Exception as err:
                raise self._refused(err, f"{name!r} in {self.path} is damaged, or can't be unpacked here") from err
        try:
            return data if self.encoding is None else data.decode(self.encoding)
        except UnicodeDecodeError as err:
            raise DecodeError(f"{name!r} in {self.path} is not {self.encoding}: {err}") from err

    def exists(self, name: str) -> bool:
        """Return whether the archive has such a file."""
        if not name or str(name).endswith("/"):
            return False
        try:
            self._archive().getinfo(self._member(name))
        except KeyError:
            return False
        return True

    def keys(self) -> Iterable[str]:
        """Return the names of the files, in the order of the archive."""
        start = "" if self.root is None else f"{self.root}/"
        names = dict.fromkeys(self._archive().namelist())
        return [name[len(start) :] for name in names if name.startswith(start) and not name.endswith("/")]

    def close(self) -> None:
        """Close the archive; the next use opens it again."""
        with self._lock:
            if self._opened is not None and self._opened[0] == os.getpid():
                self._opened[2].close()
            self._opened = None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=ForkLock(), _opened=None)
