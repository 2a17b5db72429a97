"""Which file of a directory is whose: flat, or spread over sub-directories.

A directory that is spread says so in ``.zpersist/fan_out``, so that nobody takes it for an empty flat one.  Its
temporary files lie in ``.zpersist/tmp``: the leftovers of dead writers are found without reading all of it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import nullcontext, suppress

from xxhash import xxh3_64_intdigest

from zpersist.errors import CorruptValueError, InvalidArgumentError, StorageError
from zpersist.files.atomic import (
    READ_FLAGS,
    Durability,
    close_quietly,
    make_directory,
    place_new,
    storage_error,
    sync_directory,
    write_file,
)
from zpersist.files.envelope import misplaced, open_frame
from zpersist.files.locks import directory_lock
from zpersist.keys import SURELY_PLAIN, from_file_name, is_digested, to_file_name

__all__ = ["HOUSE", "PLACE", "Layout", "check_fan_out", "check_pattern"]

logger = logging.getLogger(__name__)

#: Where the key stands in a pattern.
PLACE = "{name}"

#: The sub-directory for what is no value.
HOUSE = ".zpersist"
_WORKSHOP = "tmp"

#: How many sub-directories there may be, and how many hexadecimal digits their names have then.
_WIDTHS = {0: 0, 16: 1, 256: 2, 4096: 3}


def check_pattern(stash: object, attribute: object, pattern: object) -> None:
    """Raise unless ``pattern`` is a file name with a place for the key (a validator for attrs)."""
    fits = isinstance(pattern, str) and pattern.count(PLACE) == 1 and pattern.isprintable()
    rest = str(pattern).replace(PLACE, "")
    if not fits or set(rest) & set("{}/\\\0") or str(pattern).startswith(".") or len(rest) > 50:
        raise InvalidArgumentError(
            f"pattern {pattern!r} must be a file name with '{{name}}' once in it, such as '{{name}}.dat': "
            f"no other braces, no slash, no dot in front, at most 50 characters beside the name"
        )


def check_fan_out(stash: object, attribute: object, fan_out: object) -> None:
    """Raise unless ``fan_out`` is a number of sub-directories (a validator for attrs)."""
    if type(fan_out) is not int or fan_out not in _WIDTHS:
        raise InvalidArgumentError(f"fan_out must be one of {', '.join(map(str, _WIDTHS))}, not {fan_out!r}")


class Layout:
    """The files of the values in a directory.

    Parameters
    ----------
    root :
        The directory.
    pattern :
        The names of the files, with ``{name}`` where the key stands.
    fan_out :
        Over how many sub-directories they are spread; 0: over none.
    durability :
        Of what is made here.
    locked :
        Whether whoever writes has the directory locked.
    """

    def __init__(self, root: str, pattern: str, fan_out: int, durability: Durability, *, locked: bool = False) -> None:
        self.root = root
        self.prefix, self.suffix = pattern.split(PLACE)
        self._fan_out = fan_out
        self._width = _WIDTHS[fan_out]
        self._durability = durability
        self._locked = locked
        self._settled = False
        #: Where temporary files are made; ``None``: beside what they are to be.
        self.workshop = f"{root}/{HOUSE}/{_WORKSHOP}" if fan_out else None

    def path(self, name: str) -> str:
        """Return the file of a key."""
        file_name = f"{self.prefix}{to_file_name(name)}{self.suffix}"
        if not self._width:
            return f"{self.root}/{file_name}"
        return f"{self.root}/{self._house_number(name)}/{file_name}"

    def _house_number(self, name: str) -> str:
        return f"{xxh3_64_intdigest(name.encode('utf-8')) % self._fan_out:0{self._width}x}"

    def tag(self, path: str, name: str) -> str:
        """Return the key, if the name of its file holds only its start and it has to lie in the file."""
        return name if is_digested(path[: len(path) - len(self.suffix)]) else ""

    # whose a file is

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, reading the directory on the way."""
        self.settle()
        # Most names are told by one match; a method call for each would take twice the time.
        plain = re.compile(f"{re.escape(self.prefix)}({SURELY_PLAIN}){re.escape(self.suffix)}").fullmatch
        for entry in self._entries():
            match = plain(entry.name)
            key = match[1] if match else self._unusual_key(entry)
            if key is not None and entry.is_file() and (not self._width or entry.path == self.path(key)):
                yield key

    def unreadable(self) -> Iterator[tuple[str, CorruptValueError]]:
        """Iterate over the files of values whose keys can't be read, with the reasons."""
        for entry in self._entries():
            if self._is_ours(entry.name) and is_digested(self._stem(entry.name)) and entry.is_file():
                try:
                    self._check_tag_in(entry.path)
                except CorruptValueError as err:
                    yield entry.path, err

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        if not self._width:
            yield from _scanned(self.root)
            return
        for entry in _scanned(self.root):
            if re.fullmatch(f"[0-9a-f]{{{self._width}}}", entry.name) and entry.is_dir(follow_symlinks=False):
                yield from _scanned(entry.path)

    def _is_ours(self, file_name: str) -> bool:
        return file_name[0] != "." and file_name.startswith(self.prefix) and file_name.endswith(self.suffix)

    def _stem(self, file_name: str) -> str:
        return file_name[len(self.prefix) : len(file_name) - len(self.suffix)]

    def _unusual_key(self, entry: os.DirEntry[str]) -> str | None:
        if not self._is_ours(entry.name):
            return None
        stem = self._stem(entry.name)
        if not is_digested(stem):
            return from_file_name(stem)
        try:
            return self._check_tag_in(entry.path)
        except CorruptValueError as err:
            logger.warning("a key can't be listed, for it lies in its file: %s", err)
            return None

    def is_unreadable(self, path: str) -> bool:
        """Return whether the key of a file, that should lie in it, can't be read."""
        try:
            self._check_tag_in(path)
        except CorruptValueError:
            return True
        return False

    def _check_tag_in(self, path: str) -> str | None:
        key = self._tag_in(path)
        if key is not None and (not key or os.path.basename(self.path(key)) != os.path.basename(path)):
            raise misplaced(f"{path}, whose name is not that of the key in it,", key)
        return key

    def _tag_in(self, path: str) -> str | None:
        try:
            fd = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise storage_error(err, "can not read", path) from err
        try:
            found = os.fstat(fd)
            return open_frame(fd, found.st_size, path).tag if stat.S_ISREG(found.st_mode) else None
        except OSError as err:
            raise storage_error(err, "can not read", path) from err
        finally:
            close_quietly(fd)

    # how the directory is spread

    def settle(self, *, make: bool = False) -> None:
        """See that the directory is spread as this says; once, but a flat one before each change.

        Parameters
        ----------
        make :
            Something is to be written: make what is missing.

        Raises
        ------
        InvalidArgumentError
            It is spread in another way.
        """
        # Nothing tells of a flat directory that it is one, so another program may have spread it since.
        if self._settled and (self._fan_out or not make):
            return
        there = self._told()
        if there is None and self._fan_out:
            self._refuse_flat()
            if not make:
                return
            there = self._tell()
        if there is not None and there != self._fan_out:
            raise InvalidArgumentError(
                f"{self.root} is spread over {there} sub-directories: open it with fan_out={there}, not {self._fan_out}"
            )
        self._settled = True

    def look_again(self) -> None:
        """See that a flat directory is flat still; with it locked, so that nobody spreads it at the same moment."""
        if not self._fan_out:
            self.settle(make=True)

    def _refuse_flat(self) -> None:
        if any(self._is_ours(entry.name) and entry.is_file() for entry in _scanned(self.root)):
            raise InvalidArgumentError(
                f"{self.root} holds files that are not spread over sub-directories: open it without fan_out=, or "
                f"let another directory take them over, DirectoryStash(other, fan_out={self._fan_out}).take_over(…)"
            )

    def _told(self) -> int | None:
        path = f"{self.root}/{HOUSE}/fan_out"
        try:
            fd = os.open(path, READ_FLAGS)
            try:
                return int(os.read(fd, 100))
            finally:
                close_quietly(fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as err:
            raise storage_error(err, "can not read", path) from err
        except ValueError as err:
            raise CorruptValueError(f"{path} is damaged; write the number of sub-directories into it") from err

    def _tell(self) -> int | None:
        make_directory(f"{self.root}/{HOUSE}/{_WORKSHOP}", durability=self._durability)
        with nullcontext() if self._locked else directory_lock(self.root, shared=False), suppress(FileExistsError):
            # A flat value may have come since we looked.
            self._refuse_flat()
            write_file(
                f"{self.root}/{HOUSE}/fan_out",
                [f"{self._fan_out}\n".encode()],
                # Without it nothing can be read: it must not be cut by the same power cut as the last values.
                durability="fsync",
                place=place_new,
                workshop=self.workshop,
            )
        return self._told()

    def make(self, folder: str) -> None:
        """Make the directory, and those below that writing needs."""
        if self.workshop is not None and not os.path.isdir(self.workshop):
            # All of it is new, or somebody has removed it.
            self._settled = False
            self.settle(make=True)
            make_directory(self.workshop, durability=self._durability)
        make_directory(folder, durability=self._durability)

    def move_in(self, source: str, path: str) -> bool | None:
        """Move a file of another directory to its place here, and return whether the place was free.

        ``None``: the file is gone meanwhile.

        Raises
        ------
        StorageError
            The operating system refused.
        """
        self.settle(make=True)
        try:
            try:
                self._link_in(source, path)
            except FileExistsError:
                # A move that was cut short has left both names.
                if not os.path.samefile(source, path):
                    return False
            except FileNotFoundError:
                if os.path.exists(source):
                    raise
                return None
            if self._durability == "fsync":
                sync_directory(os.path.dirname(path))
            os.unlink(source)
        except OSError as err:
            if isinstance(err, StorageError):
                raise
            other = "; zpersist.migrate() copies to another file system" if err.errno == errno.EXDEV else ""
            raise storage_error(err, f"can not move {source} to its new place{other}", path) from err
        return True

    def _link_in(self, source: str, path: str) -> None:
        try:
            os.link(source, path)
        except FileNotFoundError:
            if not os.path.exists(source):
                raise
            self.make(os.path.dirname(path))
            os.link(source, path)


def _scanned(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    except OSError as err:
        raise storage_error(err, "can not list", folder) from err
    with entries:
        yield from entries
