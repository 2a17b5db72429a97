"""What stores have in common that keep a value in one cell of a database."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from attrs import define, field, setters

from zpersist.codecs import Codec, PickleCodec, as_codec, check_codec
from zpersist.damage import (
    QUARANTINE,
    Damage,
    Repair,
    check_repair,
    is_damaged,
    is_lost,
    is_pickle,
    named_aside,
    no_key,
    verified,
)
from zpersist.errors import CorruptValueError, InvalidArgumentError, ZPersistError
from zpersist.files.atomic import Durability, check_durability
from zpersist.files.envelope import pack, unpack
from zpersist.files.locks import Claims, KeyLocks
from zpersist.files.paths import as_path
from zpersist.forklock import ForkLock
from zpersist.keys import MAX_KEY_BYTES, check_str_key, key_in
from zpersist.stash import COMPANIONS, MISSING, CloseableStash, Missing, native

__all__ = ["CellStash", "Stray", "check_part"]

V = TypeVar("V")

_making = ForkLock()


def check_part(kind: str, part: object, most: int) -> None:
    """Raise unless ``part`` can be the name of a part of a file; a companion's may be longer by its ending."""
    stem = str(part)
    for purpose in (*COMPANIONS, QUARANTINE):
        stem = stem.removesuffix(f"__{purpose}")
    if not (isinstance(part, str) and part.isascii() and part.isidentifier() and len(stem) <= most):
        raise InvalidArgumentError(
            f"{kind} must be ASCII letters, digits and underscores, at most {most} and no digit in front, not {part!r}"
        )


class Stray(NamedTuple):
    """A cell that no key leads to.

    Parameters
    ----------
    place :
        Where it is, for the store that found it.
    key :
        What stands in the place of the key; no bytes if there is nothing.
    error :
        What reading it raises.
    """

    place: Any
    key: bytes
    error: ZPersistError


@define(slots=False, eq=False)
class CellStash(CloseableStash[V]):
    """A stash in one part of a database file: a table, a database.

    A store gives what begins with ``_cell``, on keys that have been checked, :attr:`_part`, and what is done to many.
    """

    shared = True
    durable = True
    ordered = True
    _batches = True

    #: What a part of the file is called.
    _kind = "part"

    path: Path = field(converter=as_path, on_setattr=setters.frozen)
    codec: Codec = field(factory=PickleCodec, kw_only=True, converter=as_codec, validator=check_codec)
    durability: Durability = field(default="rename", kw_only=True, converter=check_durability)
    _file: str = field(init=False, repr=False)
    _place: str = field(init=False, repr=False)
    _locks: KeyLocks = field(init=False, repr=False)
    _companions: dict[str, CellStash[Any]] = field(init=False, repr=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._file = os.path.abspath(self.path)
        # Whoever comes by a symbolic link meets the others there.
        real = os.path.realpath(self._file)
        self._place = f"{real}\0{self._kind} {self._part}"
        self._locks = KeyLocks.beside(real)
        self._connect()

    @property
    @abstractmethod
    def _part(self) -> str:
        """The name of the part of the file."""

    @abstractmethod
    def _connect(self) -> None:
        """Make what leads to the database, and open nothing yet."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Give back what leads to the database; the next use opens it again."""

    @abstractmethod
    def _sibling(self, part: str) -> CellStash[Any]:
        """Return a stash of the same options on another part of the file."""

    @abstractmethod
    def _cell(self, name: str) -> bytes | None:
        """Return what is in a cell."""

    @abstractmethod
    def _cell_is_there(self, name: str) -> bool:
        """Return whether there is a cell."""

    @abstractmethod
    def _cell_set(self, name: str, data: bytes) -> None:
        """Make or change a cell."""

    @abstractmethod
    def _cell_add(self, name: str, data: bytes) -> bool:
        """Make a cell unless it is there, and return whether it was made."""

    @abstractmethod
    def _cell_swap(self, name: str, old: bytes, new: bytes) -> bool:
        """Change a cell if its content is still the same, and return whether it was."""

    @abstractmethod
    def _cell_drop(self, name: str, old: bytes) -> bool:
        """Remove a cell if its content is still the same, and return whether it was."""

    @abstractmethod
    def _cell_names(self, stray: Callable[[Stray], object]) -> Iterator[str]:
        """Iterate over all keys in any order, and tell the function of the cells that have none."""

    @abstractmethod
    def _cell_of(self, stray: Stray) -> bytes | None:
        """Return what is in a cell that has no key."""

    @abstractmethod
    def _cell_drop_stray(self, stray: Stray, old: bytes) -> bool:
        """Remove a cell that has no key if its content is still the same, and return whether it was."""

    def close(self) -> None:
        """Give back what is held open; the next use opens it again."""
        for beside in tuple(self._companions.values()):
            beside.close()
        self._disconnect()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_companions": {}}

    # values

    def _encode(self, name: str, inst: V) -> bytes:
        (data,) = pack(self.codec.bound(self._place, name), inst, name, tag=name, out_of_band=False, place=self._file)
        return bytes(data)

    def _decode(self, name: str, data: bytes) -> V:
        return unpack(data, self.codec.bound(self._place, name), name, self._file)  # type: ignore[no-any-return]

    def _fetch(self, name: str) -> V | Missing:
        data = self._cell(check_str_key(name))
        return MISSING if data is None else self._decode(name, data)

    def dump(self, name: str, inst: V) -> None:
        """Keep a value under a key."""
        self._cell_set(check_str_key(name), self._encode(name, inst))

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        return self._cell_is_there(check_str_key(name))

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        return self._cell_add(check_str_key(name), self._encode(name, inst))

    @native
    def update(self, name: str, fn: Callable[[Any], V], default: Any = None) -> V:
        """Replace a value by what a function makes of it; the function is called again if another one was faster."""
        check_str_key(name)
        while True:
            # No transaction is open meanwhile: the function may take long, fork, or use another stash.
            old = self._cell(name)
            value = fn(default if old is None else self._decode(name, old))
            data = self._encode(name, value)
            if self._cell_add(name, data) if old is None else self._cell_swap(name, old, data):
                return value

    def keys(self) -> Iterator[str]:
        """Iterate over the keys in code-point order, a thousand at a time."""
        return self.scan()

    # damage

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every value, and find the cells that have no key."""
        check_repair(repair)
        return self._verified(progress, repair)

    def _verified(self, progress: bool, repair: Repair | None) -> Iterator[Damage]:
        strays: list[Stray] = []
        yield from verified(self, progress=progress, repair=repair, names=self._cell_names(strays.append))
        for stray in strays:
            repaired = repair is not None and is_lost(stray.error) and self._clear_away(stray, repair)
            yield Damage(None, stray.error, repaired)

    def _no_key(self, key: bytes | str | None) -> CorruptValueError:
        return no_key(f"in {self._kind} {self._part!r}", key, self._file)

    def _key(self, key: bytes | str) -> str:
        """Return the key that stands in the file so, or raise."""
        name = key_in(key)
        if name is None:
            raise self._no_key(key)
        return name

    def _repair(self, name: str, repair: Repair) -> bool:
        data = self._cell(name)
        if data is None or not is_damaged(lambda: self._decode(name, data), lambda: data):
            return False
        if repair == "quarantine":
            self._lay_aside(name, data)
        return self._cell_drop(name, data)

    def _clear_away(self, stray: Stray, repair: Repair) -> bool:
        data = self._cell_of(stray)
        # As of a value that can't be read: a whole pickle is somebody's.
        if data is None or is_pickle(data):
            return False
        if repair == "quarantine":
            self._lay_aside(named_aside(stray.key), data)
        return self._cell_drop_stray(stray, data)

    def _lay_aside(self, name: str, data: bytes) -> None:
        # Under its own name, or with a number behind if there is such a one already.
        quarantine: CellStash[Any] = self._companion(QUARANTINE)
        room = name.encode()[: MAX_KEY_BYTES - 10].decode(errors="ignore")
        names = (f"{room}.{number}" if number else name for number in count())
        next(place for place in names if quarantine._cell_add(place, data))

    # beside the values

    def _flight(self, name: str, purpose: str = "key") -> AbstractContextManager[None]:
        return self._locks.hold(f"{self._part} {purpose} {check_str_key(name)}")

    def _beside(self, purpose: str) -> str:
        return f"{self._part}__{purpose}"

    def _claims(self) -> Claims | None:
        return self._locks.claims(f"{self._part}:fill")

    def _companion(self, purpose: str) -> CellStash[Any]:
        with _making:
            if purpose not in self._companions:
                self._companions[purpose] = self._sibling(self._beside(purpose))
            return self._companions[purpose]
