"""A directory whose keys count up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

from attrs import define

from zpersist.stash import MISSING, Missing, native
from zpersist.stores.directory import DirectoryStash

__all__ = ["IncrementKeyDirectoryStash"]

V = TypeVar("V")


@define(slots=False, eq=False, init=False)
class IncrementKeyDirectoryStash(DirectoryStash[V]):
    """Keeps values in the files ``<name>-1.dat``, ``<name>-2.dat``, … and knows the last one.

    ``dump(value)`` keeps a value under the next key, ``load()`` returns the last one.  Keys that are no whole
    numbers can be used, and are not listed.

    Parameters
    ----------
    path :
        The directory.
    name :
        The start of the files' names.
    options :
        Those of :class:`~zpersist.DirectoryStash`.

    Notes
    -----
    *Concurrency*: as :class:`~zpersist.DirectoryStash`; writers never get the same key.
    *Durability*: as :class:`~zpersist.DirectoryStash`.
    *Trust*: as :class:`~zpersist.DirectoryStash`.

    Examples
    --------
    >>> runs = IncrementKeyDirectoryStash("runs", name="run")
    >>> runs.dump({"loss": 0.5}); runs.dump({"loss": 0.4})
    >>> runs.get_last_key(), runs.load()
    ('2', {'loss': 0.4})
    """

    def __init__(self, path: Any, name: str = "data", **options: Any) -> None:
        self.__attrs_init__(path, f"{name}-{{name}}.dat", **options)

    def get_last_key(self, inc: bool = False) -> str:
        """Return the highest key, ``"0"`` if there is none; with ``inc`` the one after it."""
        last = max(map(int, self.keys()), default=0)
        return str(last + 1 if inc else last)

    def append(self, inst: V) -> str:
        """Keep a value under the next key, and return that key."""
        while not self.add(key := self.get_last_key(inc=True), inst):
            pass
        return key

    def dump(self, name: str | V, inst: V | Missing = MISSING) -> None:
        """Keep a value: ``dump(value)`` under the next key, ``dump(key, value)`` under a given one."""
        if inst is MISSING:
            self.append(cast(V, name))
        else:
            super().dump(cast(str, name), inst)

    # Given beside load(), which only adds a default: else it would follow from that by two looks at the file.
    _fetch = DirectoryStash._fetch

    def load(self, name: str | None = None) -> V | None:
        """Return the value of a key, by default of the last one."""
        if name is not None:
            return super().load(name)
        before = None
        while (last := self.get_last_key()) != before:
            value = DirectoryStash._fetch(self, last)
            if value is not MISSING:
                return value
            # Deleted since it was listed, so that another one is the last; or there is none.
            before = last
        return None

    def keys(self) -> Iterator[str]:
        """Iterate over the keys that are whole numbers, in no order."""
        return (key for key in super().keys() if key.isascii() and key.isdecimal() and str(int(key)) == key)

    @native
    def add(self, name: str, inst: V) -> bool:
        """Keep a value only if there is none."""
        return DirectoryStash.add(self, name, inst)

    update = DirectoryStash.update
