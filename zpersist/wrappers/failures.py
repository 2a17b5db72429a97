"""Only the items that are no failures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field

from zpersist.codecs import PickleCodec
from zpersist.failure import Failure
from zpersist.files.atomic import make_directory, write_file
from zpersist.files.envelope import pack, read_file
from zpersist.files.paths import as_path
from zpersist.stash import MISSING, Missing, Stash
from zpersist.wrappers.delegate import DelegateStash, check_stash
from zpersist.wrappers.prime import PrimeableStash

__all__ = ["FailureFilterStash"]

V = TypeVar("V")


@define(slots=False, eq=False)
class FailureFilterStash(PrimeableStash[V], DelegateStash[V]):
    """Hides the keys whose values are :class:`~zpersist.Failure`.

    Which keys these are is found out once, by loading everything, and kept in a file; whatever is written through
    this stash makes it be found out again.

    Parameters
    ----------
    delegate :
        The stash this one stands on.
    key_path :
        The file that keeps the keys which are shown.

    Notes
    -----
    *Concurrency*: that of the delegate; what others write to it is not seen before ``clear()``, or before the
    file is deleted.
    *Durability*, *Trust*: those of the delegate; the file is a pickle.

    Examples
    --------
    >>> results = DictionaryStash({"a": 1, "b": Failure(ValueError("no"))})
    >>> list(FailureFilterStash(results, "good.dat"))
    [('a', 1)]
    """

    delegate: Stash[V] = field(validator=check_stash)
    key_path: Path = field(converter=as_path)
    _keys: dict[str, None] | None = field(init=False, repr=False, default=None)
    _file: str = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._file = os.path.abspath(self.key_path)

    def _valid(self) -> dict[str, None]:
        if self._keys is None:
            try:
                names = read_file(self._file, PickleCodec())
            except FileNotFoundError:
                items: Iterable[tuple[str, Any]] = self.delegate.items()
                names = [name for name, value in items if not isinstance(value, Failure)]
                make_directory(os.path.dirname(self._file))
                write_file(self._file, pack(PickleCodec(), names, self._file))
            self._keys = dict.fromkeys(names)
        return self._keys

    def _forget(self) -> None:
        self._keys = None
        if os.path.exists(self._file):
            os.unlink(self._file)

    def _fetch(self, name: str) -> V | Missing:
        self.prime()
        return self.delegate._fetch(name) if name in self._valid() else MISSING

    def exists(self, name: str) -> bool:
        """Return whether a key is there and its value is no failure."""
        self.prime()
        return name in self._valid()

    def keys(self) -> Iterable[str]:
        """Return the keys whose values are no failures."""
        self.prime()
        return self._valid().keys()

    def dump(self, name: str, inst: V) -> None:
        """Keep a value in the delegate."""
        self.delegate.dump(name, inst)
        self._forget()

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there and no failure."""
        there = self.exists(name)
        self.delegate.delete(name)
        self._forget()
        return there

    def _cleared(self) -> None:
        super()._cleared()
        self._forget()
