"""Each value in a file of its own, in one directory."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field, setters

from zpersist.codecs import Codec, PickleCodec, as_codec, check_codec
from zpersist.errors import CorruptValueError, InvalidArgumentError
from zpersist.files.atomic import (
    READ_FLAGS,
    Buffer,
    Durability,
    check_durability,
    close_quietly,
    make_directory,
    storage_error,
    sync_directory,
    write_file,
)
from zpersist.files.envelope import WrongTagError, open_frame, pack, read_file, read_open
from zpersist.files.locks import Claims, KeyLocks, directory_lock
from zpersist.files.paths import as_path
from zpersist.files.sweep import sweep
from zpersist.keys import SURELY_PLAIN, check_str_key, from_file_name, is_digested, to_file_name
from zpersist.stash import MISSING, Missing, Stash, native

__all__ = ["DirectoryStash"]

V = TypeVar("V")

logger = logging.getLogger(__name__)

_PLACE = "{name}"
_HOUSE = ".zpersist"


def _check_pattern(stash: object, attribute: object, pattern: object) -> None:
    fits = isinstance(pattern, str) and pattern.count(_PLACE) == 1 and pattern.isprintable()
    rest = str(pattern).replace(_PLACE, "")
    if not fits or set(rest) & set("{}/\\\0") or str(pattern).startswith(".") or len(rest) > 50:
        raise InvalidArgumentError(
            f"pattern {pattern!r} must be a file name with '{{name}}' once in it, such as '{{name}}.dat': "
            f"no other braces, no slash, no dot in front, at most 50 characters beside the name"
        )


class _Changed(Exception):  # noqa: N818 - a signal, not an error
    """Somebody else wrote between our reading and our writing."""


@define(slots=False, eq=False)
class DirectoryStash(Stash[V]):
    """Keeps each value in a file of its own: ``vocab`` lies in ``vocab.dat``.

    Keys that are no plain file names are escaped reversibly and never leave the directory; files that are not
    the stash's are left alone.  The directory is made by the first write, for this user only.

    Parameters
    ----------
    path :
        The directory.  A relative one is taken from the working directory at construction.
    pattern :
        The names of the files, with ``{name}`` where the key stands.
    codec :
        Turns values into bytes and back; also the name of one, such as ``"dill"``.
    durability :
        ``"rename"``: a value is whole or absent, and the last ones may be lost in a power cut; ``"fsync"``: a
        value is on the disk when ``dump`` returns.
    mmap :
        Map large buffers (arrays) and hand out read-only views; otherwise load private, writable copies.

    Raises
    ------
    CorruptValueError
        By a read: the file is empty, cut or damaged.
    CodecMismatchError
        By a read: another codec wrote the file.
    StorageError
        The operating system refused; what was there is untouched.

    Notes
    -----
    *Concurrency*: each operation is atomic among threads and processes of one host, on a local file system.
    *Durability*: a killed process harms nothing; for a power cut see ``durability``.
    *Trust*: that of the codec, for everybody who may write to the directory.

    Examples
    --------
    >>> stash = DirectoryStash("cache")
    >>> stash.dump("vocab", {"a", "b"})
    >>> [path.name for path in stash.path.iterdir()]
    ['vocab.dat']
    >>> stash.load("vocab") == {"a", "b"}, stash.load("other")
    (True, None)
    """

    shared = True
    durable = True

    path: Path = field(converter=as_path, on_setattr=setters.frozen)
    pattern: str = field(default="{name}.dat", validator=_check_pattern)
    codec: Codec = field(factory=PickleCodec, kw_only=True, converter=as_codec, validator=check_codec)
    durability: Durability = field(default="rename", kw_only=True, converter=check_durability)
    mmap: bool = field(default=True, kw_only=True)
    _root: str = field(init=False, repr=False)
    _prefix: str = field(init=False, repr=False)
    _suffix: str = field(init=False, repr=False)
    _locks: KeyLocks = field(init=False, repr=False)
    _swept: bool = field(init=False, repr=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._root = os.path.abspath(self.path)
        self._prefix, self._suffix = self.pattern.split(_PLACE)
        self._locks = KeyLocks.beside(self._root, directory=True)

    def key_to_path(self, name: str) -> Path:
        """Return the file in which the value of a key lies, or would lie."""
        return Path(self._file(name))

    def _file(self, name: str) -> str:
        return f"{self._root}/{self._prefix}{to_file_name(check_str_key(name))}{self._suffix}"

    def _fetch(self, name: str) -> V | Missing:
        path = self._file(name)
        try:
            codec = self.codec.bound(self._root, name)
            return read_file(path, codec, mapped=self.mmap, tag=self._tag(path, name))  # type: ignore[no-any-return]
        except FileNotFoundError:
            return MISSING
        except WrongTagError as err:
            raise self._misplaced(path, name, err) from err

    def _tag(self, path: str, name: str) -> str:
        return name if is_digested(path[: len(path) - len(self._suffix)]) else ""

    def _misplaced(self, path: str, name: str, err: WrongTagError) -> CorruptValueError:
        return CorruptValueError(f"{path} is damaged: it holds the value of {err} in place of {name!r}; delete it")

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key; the old one is there until the new one is whole."""
        path = self._file(name)
        self._put(path, self._parts(path, name, inst), self._replace)

    def _parts(self, path: str, name: str, inst: V) -> list[Buffer]:
        return pack(self.codec.bound(self._root, name), inst, path, tag=self._tag(path, name))

    def _put(self, path: str, parts: list[Buffer], place: Callable[[str, str], None]) -> None:
        if not self._swept:
            self._swept = True
            sweep(self._root)
        try:
            write_file(path, parts, durability=self.durability, place=place)
        except FileNotFoundError:
            make_directory(self._root, durability=self.durability)
            write_file(path, parts, durability=self.durability, place=place)

    def _replace(self, temporary: str, path: str) -> None:
        with directory_lock(self._root, shared=True):
            os.replace(temporary, path)

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        path = self._file(name)
        try:
            with directory_lock(self._root, shared=True):
                os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as err:
            raise storage_error(err, "can not delete", path) from err
        if self.durability == "fsync":
            sync_directory(self._root)
        return True

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        path = self._file(name)
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except FileNotFoundError:
            return False
        except OSError as err:
            raise storage_error(err, "can not look for", path) from err

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, in no order, reading the directory on the way."""
        # Most names are told by one match; a method call for each would take twice the time.
        plain = re.compile(f"{re.escape(self._prefix)}({SURELY_PLAIN}){re.escape(self._suffix)}").fullmatch
        try:
            entries = os.scandir(self._root)
        except FileNotFoundError:
            return
        except OSError as err:
            raise storage_error(err, "can not list", self._root) from err
        with entries:
            for entry in entries:
                match = plain(entry.name)
                key = match[1] if match else self._unusual_key(entry.name)
                if key is not None and entry.is_file():
                    yield key

    def _unusual_key(self, file_name: str) -> str | None:
        prefix, suffix = self._prefix, self._suffix
        if file_name.startswith(".") or not (file_name.startswith(prefix) and file_name.endswith(suffix)):
            return None
        stem = file_name[len(prefix) : len(file_name) - len(suffix)]
        return self._key_in_file(file_name) if is_digested(stem) else from_file_name(stem)

    def _key_in_file(self, file_name: str) -> str | None:
        path = f"{self._root}/{file_name}"
        try:
            fd = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise storage_error(err, "can not read", path) from err
        try:
            key = open_frame(fd, os.fstat(fd).st_size, path).tag
        except CorruptValueError as err:
            logger.warning("a key can't be listed, for it lies in its file: %s", err)
            return None
        except IsADirectoryError:
            return None
        except OSError as err:
            raise storage_error(err, "can not read", path) from err
        finally:
            close_quietly(fd)
        return key if key and os.path.basename(self._file(key)) == file_name else None

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        return not self.exists(name) and self._write_if(name, inst, self._file(name), _link)

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it; the function is called again if another one was faster."""
        path = self._file(name)
        while True:
            try:
                fd: int | None = os.open(path, READ_FLAGS)
            except FileNotFoundError:
                fd = None
            except OSError as err:
                raise storage_error(err, "can not read", path) from err
            try:
                value = fn(default if fd is None else self._read_open(fd, path, name))
                if self._write_if(name, value, path, _link if fd is None else self._replace_if(fd)):
                    return value
            finally:
                if fd is not None:
                    close_quietly(fd)

    def _write_if(self, name: str, inst: V, path: str, place: Callable[[str, str], None]) -> bool:
        """Write, unless somebody else has written; return whether it was written."""
        parts = self._parts(path, name, inst)
        try:
            self._put(path, parts, place)
        except (FileExistsError, _Changed):
            if os.path.islink(path) and not os.path.exists(path):
                missing = FileNotFoundError(errno.ENOENT, "it is a symbolic link to nothing; delete it")
                raise storage_error(missing, "can not write", path) from None
            return False
        return True

    def _read_open(self, fd: int, path: str, name: str) -> Any:
        try:
            return read_open(fd, path, self.codec.bound(self._root, name), mapped=self.mmap, tag=self._tag(path, name))
        except WrongTagError as err:
            raise self._misplaced(path, name, err) from err

    def _replace_if(self, fd: int) -> Callable[[str, str], None]:
        # The open descriptor keeps the number of its file from being given to another one.
        read = os.fstat(fd)

        def place(temporary: str, path: str) -> None:
            with directory_lock(self._root, shared=False):
                try:
                    now = os.stat(path)
                except FileNotFoundError:
                    raise _Changed from None
                if (now.st_dev, now.st_ino) != (read.st_dev, read.st_ino):
                    raise _Changed
                os.replace(temporary, path)

        return place

    def _cleared(self) -> None:
        # A file whose key can't be read is not among the keys.
        folder = Path(self._root)
        for path in folder.iterdir() if folder.is_dir() else ():
            name = path.name.removesuffix(self._suffix)
            if path.name.startswith(self._prefix) and is_digested(name) and path.is_file():
                path.unlink(missing_ok=True)
        sweep(self._root)
        shutil.rmtree(f"{self._root}/{_HOUSE}", ignore_errors=True)

    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return self._locks.hold(f"{purpose} {check_str_key(name)}")

    def _claims(self) -> Claims | None:
        return self._locks.claims("fill")

    def _companion(self, purpose: str) -> Stash[Any]:
        return DirectoryStash(f"{self._root}/{_HOUSE}/{purpose}", codec=self.codec, durability=self.durability)


def _link(temporary: str, path: str) -> None:
    os.link(temporary, path)
    # The value is in its place whatever comes now; a second name that can't be removed is swept later.
    for _ in range(2):
        with suppress(OSError):
            os.unlink(temporary)
            return
