"""Values in a DBM database, in the format of the standard library's shelve."""

from __future__ import annotations

import dbm
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from attrs import define, field, setters

from zpersist.codecs import Codec, PickleCodec, as_codec, check_codec
from zpersist.damage import (
    QUARANTINE,
    Damage,
    Repair,
    check_repair,
    is_damaged,
    is_pickle,
    named_aside,
    no_key,
    verified,
)
from zpersist.errors import CorruptValueError
from zpersist.files.envelope import pack, unpack
from zpersist.files.layout import HOUSE
from zpersist.files.locks import Claims
from zpersist.files.paths import as_path
from zpersist.keys import check_str_key, key_in
from zpersist.stash import COMPANIONS, MISSING, CloseableStash, Missing, Stash, native
from zpersist.stores.dbmfile import DbmFile, extension_here

__all__ = ["ShelveStash", "shelve"]

V = TypeVar("V")

# Holds what is beside the shelves of a directory; not beside them by its name, which may be that of a user's shelf.
_BESIDE = f"/{HOUSE}/shelves/"


@define(slots=False, eq=False)
class ShelveStash(CloseableStash[V]):
    """Keeps values in a DBM database, whichever kind this Python has.

    For code written for shelves; :class:`~zpersist.SqliteStash` is faster, and safe when a process is killed.
    A database is made by the first use, also by a read.

    Parameters
    ----------
    path :
        The database, without the extension that the kind of DBM gives it.
    writeback :
        With ``auto_close=False``: values that were loaded or dumped and changed since are written on ``close()``.
    auto_close :
        Open and close the database in each operation, so that processes may take turns.  Otherwise it stays
        open, and other processes wait, until ``close()``.
    codec :
        Turns values into bytes and back; also the name of one, such as ``"dill"``.
    timeout :
        The most seconds to wait for another process that has the database open.

    Raises
    ------
    CorruptValueError
        The database or the value is damaged.
    StorageError
        The operating system or the DBM refused, or another process has the database open for too long.

    Notes
    -----
    *Concurrency*: threads and processes of one host take turns.
    *Durability*: a process killed while it writes may damage the database, as DBM does; a damaged value is told
    by its checksum.
    *Trust*: that of the codec, for everybody who may write to the files.

    Examples
    --------
    >>> with ShelveStash("shelf") as stash:
    ...     stash.dump("a", [1])
    ...     stash.load("a")
    [1]
    """

    shared = True
    durable = True

    path: Path = field(converter=as_path, on_setattr=setters.frozen)
    writeback: bool = field(default=True)
    auto_close: bool = field(default=True)
    codec: Codec = field(factory=PickleCodec, kw_only=True, converter=as_codec, validator=check_codec)
    timeout: float = field(default=60.0, kw_only=True)
    _file: str = field(init=False, repr=False)
    _place: str = field(init=False, repr=False)
    _db: DbmFile = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._file = os.path.abspath(self.path)
        # Whoever comes by a symbolic link meets the others there.
        real = os.path.realpath(self._file)
        folder, is_beside, name = real.partition(_BESIDE)
        shelf, _, purpose = name.rpartition("/")
        self._place = f"{folder}/{shelf}\0shelf {purpose}" if is_beside else f"{real}\0shelf"
        self._db = DbmFile(self._file)

    @classmethod
    def get_extension(cls) -> str | None:
        """Return the extension this Python's DBM gives to its files, ``None`` if it gives none."""
        return extension_here()[1:] or None

    @property
    def real_path(self) -> Path:
        """The path with the extension of this Python's DBM."""
        return self.path.with_name(self.path.name + extension_here())

    @property
    def is_open(self) -> bool:
        """Whether the database is open, and other processes wait."""
        return self._db.is_open

    def _opened(self) -> AbstractContextManager[Any]:
        return self._db.opened(stays=not self.auto_close, timeout=self.timeout)

    def close(self) -> None:
        """Write back what was changed, and close the database; the next use opens it again.

        Raises
        ------
        EncodeError
            A changed value can't be written; all others are, and the database is closed.
        """
        with self._db.lock:
            if not self.is_open:
                return
            live, self._db.live = self._db.live, {}
            with ExitStack() as stack:
                stack.callback(self._db.close)
                if live:
                    stack.enter_context(self._opened())
                for name, (data, value) in live.items():
                    stack.callback(self._write_back, name, data, value)

    def _write_back(self, name: str, old: bytes, value: V) -> None:
        data = self._encode(name, value)
        if data != old:
            self._db.put(name, data)

    # values

    def _encode(self, name: str, inst: V) -> bytes:
        (data,) = pack(self.codec.bound(self._place, name), inst, name, tag=name, out_of_band=False, place=self._file)
        return bytes(data)

    def _decode(self, name: str, data: bytes) -> V:
        return unpack(data, self.codec.bound(self._place, name), name, self._file)  # type: ignore[no-any-return]

    def _remember(self, name: str, data: bytes, inst: V) -> None:
        if self.writeback and not self.auto_close:
            self._db.live[name] = data, inst

    def _fetch(self, name: str) -> V | Missing:
        check_str_key(name)
        with self._opened():
            if self.writeback and name in self._db.live:
                return self._db.live[name][1]  # type: ignore[no-any-return]
            data = self._db.get(name)
            if data is None:
                return MISSING
            self._remember(name, data, value := self._decode(name, data))
            return value

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key."""
        check_str_key(name)
        data = self._encode(name, inst)
        with self._opened():
            self._db.put(name, data)
            self._db.live.pop(name, None)
            self._remember(name, data, inst)

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there."""
        check_str_key(name)
        with self._opened():
            self._db.live.pop(name, None)
            return self._db.delete(name.encode())

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        check_str_key(name)
        with self._opened() as db, self._db.driving():
            return name.encode() in db

    def keys(self) -> Iterator[str]:
        """Iterate over the keys as they are at this moment, in no order."""
        with self._opened():
            listed = self._db.listed()
        return iter([self._key(key) for key in listed])

    def _key(self, key: bytes) -> str:
        name = key_in(key)
        if name is None:
            raise self._no_key(key)
        return name

    def _no_key(self, key: bytes) -> CorruptValueError:
        return no_key("in it", key, self._file)

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        with self._opened():
            if self.exists(name):
                return False
            self.dump(name, inst)
            return True

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it; the database is open and locked meanwhile."""
        with self._opened():
            lives = name in self._db.live
            value = self._fetch(name)
            try:
                value = fn(default if value is MISSING else value)
                self.dump(name, value)
            except BaseException:
                # What fn has changed before it failed is not written back.
                if not lives:
                    self._db.live.pop(name, None)
                raise
            return value

    @native
    def clear(self) -> None:
        """Delete everything, and the files of the database."""
        with self._db.lock:
            with self._opened():
                self._db.live.clear()
                self._db.delete_files()
            self._cleared()

    def _stored(self) -> Stash[V]:
        twin = copy(self)  # of the same open database
        twin.writeback = False
        return twin

    # damage

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every value, and find what stands in the place of a key and is none."""
        check_repair(repair)
        return self._verified(progress, repair)

    def _verified(self, progress: bool, repair: Repair | None) -> Iterator[Damage]:
        with self._opened():
            listed = self._db.listed()
        names = filter(None, map(key_in, listed))
        yield from verified(self, progress=progress, repair=repair, names=names)
        for key in listed:
            if key_in(key) is None:
                yield Damage(None, self._no_key(key), repair is not None and self._clear_away(key, repair))

    def _verify_one(self, name: str) -> None:
        check_str_key(name)
        with self._opened():
            if (data := self._db.get_listed(name.encode())) is not None:
                self._decode(name, data)

    def _repair(self, name: str, repair: Repair) -> bool:
        with self._opened():
            data = self._db.get_listed(name.encode())
            if data is None or not is_damaged(lambda: self._decode(name, data), lambda: data):
                return False
            if repair == "quarantine":
                self._lay_aside(name, data)
            return self.delete(name)

    def _clear_away(self, key: bytes, repair: Repair) -> bool:
        with self._opened():
            data = self._db.get_listed(key)
            # As of a value that can't be read: a whole pickle is somebody's.
            if data is None or is_pickle(data):
                return False
            if repair == "quarantine":
                self._lay_aside(named_aside(key), data)
            return self._db.delete(key)

    def _lay_aside(self, name: str, data: bytes) -> None:
        beside = self._companion(QUARANTINE)
        with beside._opened():
            beside._db.put_beside(name, data)

    @native
    def __len__(self) -> int:
        with self._opened():
            return len(self._db.listed())

    @native
    def __bool__(self) -> bool:
        return len(self) > 0

    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return self._db.locks.hold(f"{purpose} {check_str_key(name)}")

    def _claims(self) -> Claims | None:
        return self._db.locks.claims("fill")

    def _beside(self, purpose: str) -> str:
        folder, name = os.path.split(os.path.realpath(self._file))
        return f"{folder}{_BESIDE}{name}/{purpose}"

    def _companion(self, purpose: str) -> ShelveStash[Any]:
        return ShelveStash(self._beside(purpose), codec=self.codec, timeout=self.timeout)

    def _cleared(self) -> None:
        for purpose in COMPANIONS:
            if dbm.whichdb(self._beside(purpose)) is not None:
                self._companion(purpose).clear()


class shelve:  # noqa: N801 - a public name of zensols.persist
    """Open a shelf for the length of a ``with``.

    Parameters
    ----------
    args, kwargs :
        Those of :class:`ShelveStash`.

    Examples
    --------
    >>> with shelve("shelf") as stash:
    ...     stash.dump("cool", [1, 2])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stash: ShelveStash[Any] = ShelveStash(*args, **{"auto_close": False, **kwargs})

    def __enter__(self) -> ShelveStash[Any]:
        with self.stash._opened():
            return self.stash

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stash.close()
