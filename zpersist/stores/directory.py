"""Each value in a file of its own, in one directory."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from attrs import define, field, setters

from zpersist.codecs import Codec, PickleCodec, as_codec, check_codec
from zpersist.damage import QUARANTINE, Damage, Repair, is_damaged, is_lost
from zpersist.errors import InvalidArgumentError, MisplacedValueError, ZPersistError
from zpersist.files.atomic import (
    READ_FLAGS,
    Buffer,
    Durability,
    check_durability,
    close_quietly,
    place_new,
    storage_error,
    sync_directory,
    write_file,
)
from zpersist.files.envelope import WrongTagError, misplaced, pack, read_file, read_open
from zpersist.files.layout import HOUSE, Layout, check_fan_out, check_pattern
from zpersist.files.locks import Claims, KeyLocks, directory_lock
from zpersist.files.paths import as_path
from zpersist.files.quarantine import put_away
from zpersist.files.sweep import sweep
from zpersist.keys import check_str_key
from zpersist.sameness import is_same
from zpersist.stash import COMPANIONS, MISSING, Missing, Stash, native, pairs_of

__all__ = ["DirectoryStash"]

V = TypeVar("V")


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
    fan_out :
        Over how many sub-directories the files are spread: 16, 256 or 4096; 0: none.  For file systems that get slow
        with very many files in one directory; a directory stays as it was begun (see :meth:`take_over`).

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
    #: Whether all of a value lies in its file.
    _movable: ClassVar[bool] = True
    #: Whether all writes are made with the directory locked.
    _locked: ClassVar[bool] = False

    path: Path = field(converter=as_path, on_setattr=setters.frozen)
    pattern: str = field(default="{name}.dat", validator=check_pattern)
    codec: Codec = field(factory=PickleCodec, kw_only=True, converter=as_codec, validator=check_codec)
    durability: Durability = field(default="rename", kw_only=True, converter=check_durability)
    mmap: bool = field(default=True, kw_only=True)
    fan_out: int = field(default=0, kw_only=True, validator=check_fan_out)
    _root: str = field(init=False, repr=False)
    _layout: Layout = field(init=False, repr=False)
    _place: str = field(init=False, repr=False)
    _locks: KeyLocks = field(init=False, repr=False)
    _swept: bool = field(init=False, repr=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._root = os.path.abspath(self.path)
        self._layout = Layout(self._root, self.pattern, self.fan_out, self.durability, locked=self._locked)
        # Whoever comes by a symbolic link meets the others there.
        real = os.path.realpath(self._root)
        self._locks = KeyLocks.beside(real, directory=True)
        # What is beside the values of another stash belongs to that.
        folder, _, beside = real.partition(f"/{HOUSE}/")
        self._place = f"{folder}\0files {beside} {self.pattern}"

    def key_to_path(self, name: str) -> Path:
        """Return the file in which the value of a key lies, or would lie."""
        return Path(self._file(name))

    def _file(self, name: str) -> str:
        return self._layout.path(check_str_key(name))

    def _fetch(self, name: str) -> V | Missing:
        path = self._file(name)
        try:
            codec = self.codec.bound(self._place, name)
            return read_file(path, codec, mapped=self.mmap, tag=self._layout.tag(path, name))  # type: ignore[no-any-return]
        except FileNotFoundError:
            self._layout.settle()
            return MISSING
        except WrongTagError as err:
            raise self._misplaced(path, name, err) from err

    def _misplaced(self, path: str, name: str, err: WrongTagError) -> MisplacedValueError:
        return misplaced(f"{path}, in place of the value of {name!r},", err.args[0])

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key; the old one is there until the new one is whole."""
        path = self._file(name)
        self._put(path, self._parts(path, name, inst), self._replace)

    def _parts(self, path: str, name: str, inst: V) -> list[Buffer]:
        return pack(self.codec.bound(self._place, name), inst, path, tag=self._layout.tag(path, name))

    @native
    def dump_many(self, items: Mapping[str, V] | Iterable[tuple[str, V]]) -> None:
        """Keep many values; with ``durability="fsync"`` directories are synced once, in the end."""
        if self.durability == "rename":
            super().dump_many(items)
            return
        folders: dict[str, None] = {}
        try:
            for name, inst in pairs_of(items):
                path = self._file(name)
                folders[os.path.dirname(path)] = None
                self._put(path, self._parts(path, name, inst), self._replace, durability="content")
        finally:
            for folder in folders:
                if os.path.isdir(folder):
                    sync_directory(folder)

    def _put(
        self,
        path: str,
        parts: list[Buffer],
        place: Callable[[str, str], None],
        durability: Literal["content"] | None = None,
    ) -> None:
        layout = self._layout
        if not self._swept:
            layout.settle(make=True)
            self._swept = True
            sweep(layout.workshop or self._root)

        def place_in(temporary: str, path: str) -> None:
            try:
                place(temporary, path)
            except FileNotFoundError:
                layout.make(os.path.dirname(path))
                place(temporary, path)

        write = partial(write_file, path, parts, durability=durability or self.durability, workshop=layout.workshop)
        try:
            write(place=place_in if self.fan_out else place)
        except FileNotFoundError:
            layout.make(os.path.dirname(path))
            write(place=place)

    @contextmanager
    def _changing(self, *, shared: bool) -> Iterator[None]:
        with directory_lock(self._root, shared=shared):
            self._layout.look_again()
            yield

    def _replace(self, temporary: str, path: str) -> None:
        with self._changing(shared=True):
            os.replace(temporary, path)

    def _place_new(self, temporary: str, path: str) -> None:
        with self._changing(shared=True):
            place_new(temporary, path)

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        path = self._file(name)
        try:
            with directory_lock(self._root, shared=True):
                os.unlink(path)
        except FileNotFoundError:
            self._layout.settle()
            return False
        except OSError as err:
            raise storage_error(err, "can not delete", path) from err
        if self.durability == "fsync":
            sync_directory(os.path.dirname(path))
        return True

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        path = self._file(name)
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except FileNotFoundError:
            self._layout.settle()
            return False
        except OSError as err:
            raise storage_error(err, "can not look for", path) from err

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, in no order, reading the directory on the way."""
        return self._layout.keys()

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        return not self.exists(name) and self._write_if(name, inst, self._file(name), self._place_new)

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
                if self._write_if(name, value, path, self._place_new if fd is None else self._replace_if(fd)):
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
            return read_open(
                fd, path, self.codec.bound(self._place, name), mapped=self.mmap, tag=self._layout.tag(path, name)
            )
        except WrongTagError as err:
            raise self._misplaced(path, name, err) from err

    def _replace_if(self, fd: int) -> Callable[[str, str], None]:
        # The open descriptor keeps the number of its file from being given to another one.
        read = os.fstat(fd)

        def place(temporary: str, path: str) -> None:
            with self._changing(shared=False):
                try:
                    now = os.stat(path)
                except FileNotFoundError:
                    raise _Changed from None
                if (now.st_dev, now.st_ino) != (read.st_dev, read.st_ino):
                    raise _Changed
                os.replace(temporary, path)

        return place

    def take_over(self, other: DirectoryStash[V]) -> int:
        """Move all values of another directory of the same file system here, without reading them.

        One that was cut short is done again; a value is always in one of the two.

        Parameters
        ----------
        other :
            Its codec must be the one of this stash: of the same class and parameters, secrets too.

        Returns
        -------
        int
            How many were moved.

        Raises
        ------
        InvalidArgumentError
            The other stash is of another kind, or its codec has other parameters, or there is a value here already
            under a key; all others were moved.
        CorruptValueError
            Of a file of the other stash the key can't be read (see :meth:`verify`); all others were moved.
        StorageError
            The operating system refused; from another file system, :func:`~zpersist.migrate` copies.
        """
        alike = type(other) is type(self) and is_same(other.codec, self.codec)
        if not self._movable or not alike or _is_one_place(self._root, other._root):
            raise InvalidArgumentError(
                f"what {self!r} takes over must be another DirectoryStash of the same codec, with the same parameters "
                f"and secrets, not {other!r}; zpersist.migrate() copies any stash"
            )
        if not is_same(other.codec.bound(other._place, ""), self.codec.bound(self._place, "")):
            raise InvalidArgumentError(
                f"what {self.codec!r} seals is read in its own place, and under its own pattern, only: copy it by "
                f"zpersist.migrate(), or seal it with scope= and keep the pattern"
            )
        self._layout.settle(make=True)
        self._layout.make(self._root)
        # In one order, so that two that take over from each other never wait for each other.
        locks = [(os.path.realpath(other._root), False)]
        if not self.fan_out:
            locks = sorted([*locks, (os.path.realpath(self._root), True)])
        moved, stays = 0, []
        for name in other.keys():
            with ExitStack() as locked:
                # Nobody writes it anew between its two names.
                for root, shared in locks:
                    locked.enter_context(directory_lock(root, shared=shared))
                done = self._layout.move_in(other._file(name), self._file(name))
            if done:
                moved += 1
            elif done is not None:
                stays.append(name)
        if stays:
            raise InvalidArgumentError(
                f"{moved} values were moved from {other._root}, but of {len(stays)} keys there is a value in "
                f"{self._root} already, such as {min(stays)!r}: delete it here or there"
            )
        for error in other._keyless():
            raise error
        return moved

    # damage

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every file whole; what is laid aside is moved to ``.zpersist/quarantine``."""
        yield from super().verify(progress=progress, repair=repair)
        for path, error in tuple(self._layout.unreadable()):
            repaired = (
                repair is not None and is_lost(error) and self._put_away(path, repair, self._layout.is_unreadable)
            )
            yield Damage(None, error, repaired)

    def _keyless(self) -> Iterator[ZPersistError]:
        return (error for _, error in self._layout.unreadable())

    def _verify_one(self, name: str) -> None:
        path = self._file(name)
        self._verify_file(path, name)

    def _verify_file(self, path: str, name: str) -> None:
        codec, tag = self.codec.bound(self._place, name), self._layout.tag(path, name)
        try:
            read_file(path, codec, mapped=False, tag=tag)
        except FileNotFoundError:
            return
        except WrongTagError as err:
            raise self._misplaced(path, name, err) from err

    def _repair(self, name: str, repair: Repair) -> bool:
        def is_lost_in(path: str) -> bool:
            return is_damaged(lambda: self._verify_file(path, name), Path(path).read_bytes)

        return self._put_away(self._file(name), repair, is_lost_in)

    def _put_away(self, path: str, repair: Repair, is_damaged: Callable[[str], bool]) -> bool:
        folder = f"{self._root}/{HOUSE}/{QUARANTINE}"
        return put_away(path, repair, is_damaged, root=self._root, folder=folder, durability=self.durability)

    def _cleared(self) -> None:
        # A file whose key can't be read is not among the keys.
        for path, _ in tuple(self._layout.unreadable()):
            with suppress(FileNotFoundError):
                os.unlink(path)
        sweep(self._layout.workshop or self._root)
        # What was laid aside stays.
        for companion in COMPANIONS:
            shutil.rmtree(f"{self._root}/{HOUSE}/{companion}", ignore_errors=True)

    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return self._locks.hold(f"{purpose} {check_str_key(name)}")

    def _claims(self) -> Claims | None:
        return self._locks.claims("fill")

    def _companion(self, purpose: str) -> Stash[Any]:
        return DirectoryStash(f"{self._root}/{HOUSE}/{purpose}", codec=self.codec, durability=self.durability)


def _is_one_place(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
