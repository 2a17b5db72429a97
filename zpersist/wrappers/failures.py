"""Only the items that are no failures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field

from zpersist.chunking import chunks
from zpersist.codecs.json import JsonCodec
from zpersist.damage import Damage, Repair
from zpersist.failure import Failure
from zpersist.files.atomic import make_directory, storage_error, write_file
from zpersist.files.envelope import pack, read_file
from zpersist.files.paths import as_path
from zpersist.forklock import ForkLock
from zpersist.stash import MISSING, Missing, Stash
from zpersist.wrappers.delegate import DelegateStash, check_stash
from zpersist.wrappers.prime import PrimeableStash

__all__ = ["FailureFilterStash"]

V = TypeVar("V")

# How often something was written through the stashes of this process on each file.
_writes: Counter[str] = Counter()
_guard = ForkLock()


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
    *Concurrency*: that of the delegate, for the threads of one process; what others write to it is not seen before
    ``clear()``, or before the file is deleted.
    *Durability*, *Trust*: those of the delegate; the file is JSON.

    Examples
    --------
    >>> results = DictionaryStash({"a": 1, "b": Failure(ValueError("no"))})
    >>> list(FailureFilterStash(results, "good.dat"))
    [('a', 1)]
    """

    delegate: Stash[V] = field(validator=check_stash)
    key_path: Path = field(converter=as_path)
    _keys: tuple[int, dict[str, None]] | None = field(init=False, repr=False, default=None)
    _file: str = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._file = os.path.abspath(self.key_path)

    def _valid(self) -> dict[str, None]:
        now = _writes[self._file]
        kept = self._keys
        if kept is not None and kept[0] == now:
            return kept[1]
        try:
            keys = dict.fromkeys(read_file(self._file, JsonCodec()))
        except FileNotFoundError:
            keys = dict.fromkeys(self._find_out())
            self._save(keys, now)
        # Looked at only as long as nothing has been written since.
        self._keys = now, keys
        return keys

    def _find_out(self) -> Iterator[str]:
        # By keys that were taken at once: items() of a stash in memory fails if others write meanwhile.
        for names in chunks(list(self.delegate.keys()), 100):
            values: dict[str, Any] = self.delegate.load_many(names)
            yield from (name for name in names if name in values and not isinstance(values[name], Failure))

    def _save(self, keys: dict[str, None], found_out: int) -> None:
        with _guard:
            if _writes[self._file] == found_out:
                make_directory(os.path.dirname(self._file))
                write_file(self._file, pack(JsonCodec(), list(keys), self._file))

    def _forget(self) -> None:
        with _guard:
            _writes[self._file] += 1
            try:
                os.unlink(self._file)
            except FileNotFoundError:
                pass
            except OSError as err:
                raise storage_error(err, "can not delete", self._file) from err

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # Before, for a process that is killed meanwhile; after, for a list that is found out meanwhile.
        self._forget()
        try:
            yield
        finally:
            self._forget()

    def _fetch(self, name: str) -> V | Missing:
        self._ready()
        value = self.delegate._fetch(name) if name in self._valid() else MISSING
        return MISSING if isinstance(value, Failure) else value

    def exists(self, name: str) -> bool:
        """Return whether a key is there and its value is no failure."""
        self._ready()
        return name in self._valid()

    def keys(self) -> Iterable[str]:
        """Return the keys whose values are no failures."""
        self._ready()
        return self._valid().keys()

    def dump(self, name: str, inst: V) -> None:
        """Keep a value in the delegate."""
        with self._writing():
            self.delegate.dump(name, inst)

    def delete(self, name: str) -> bool:
        """Remove a key, and return whether it was there and no failure."""
        there = self.exists(name)
        with self._writing():
            # Of several that delete it at once, only one has removed it.
            return self.delegate.delete(name) is not False and there

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every value of the delegate whole, also the failures, and yield what is damaged."""
        if repair is not None:
            # As before a write; what comes after is in _outdated().
            self._forget()
        yield from super().verify(progress=progress, repair=repair)

    def _stored(self) -> Stash[V]:
        # What is hidden is stored.
        return self.delegate._stored()

    def _outdated(self) -> None:
        super()._outdated()
        self._forget()

    def _cleared(self) -> None:
        super()._cleared()
        self._forget()

    def __getstate__(self) -> dict[str, object]:
        # Another process counts other writes.
        return {**self.__dict__, "_keys": None}
