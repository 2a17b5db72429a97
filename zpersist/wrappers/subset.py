"""Only some keys of a stash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from attrs import define, field

from zpersist.errors import InvalidArgumentError, ZPersistError
from zpersist.files.atomic import storage_error
from zpersist.stash import MISSING, Missing, Stash
from zpersist.wrappers.delegate import ReadOnlyDelegateStash, check_stash

__all__ = ["KeySubsetStash"]

V = TypeVar("V")


def _as_keys(keys: object) -> tuple[str, ...]:
    if isinstance(keys, Path):
        try:
            lines = keys.read_text(encoding="utf-8").splitlines()
        except OSError as err:
            raise storage_error(err, "can not read the subset of keys", keys) from err
        return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise InvalidArgumentError(f"key_subset must be a set of keys or the Path of a file of lines, not {keys!r}")
    return tuple(dict.fromkeys(keys))


@define(slots=False, eq=False)
class KeySubsetStash(ReadOnlyDelegateStash[V]):
    """Shows those keys of its delegate that are in a subset; read only.

    Parameters
    ----------
    delegate :
        The stash this one stands on.
    key_subset :
        The keys, or the :class:`~pathlib.Path` of a file with one key a line.
    dynamic_subset :
        Go by the delegate's keys, not by the subset, when keys are listed: faster if the subset is much larger.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: those of the delegate.  A key of the subset that the delegate does not
    have is not there.

    Examples
    --------
    >>> stash = KeySubsetStash(DictionaryStash({"a": 1, "b": 2}), {"a", "x"})
    >>> list(stash), "b" in stash, stash.get("b", 0)
    ([('a', 1)], False, 0)
    """

    delegate: Stash[V] = field(validator=check_stash)
    key_subset: tuple[str, ...] = field(converter=_as_keys)
    dynamic_subset: bool = field(default=False)
    _members: frozenset[str] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._members = frozenset(self.key_subset)

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether keys come in code-point order: if they are taken from a delegate that is ordered."""
        return self.dynamic_subset and self.delegate.ordered

    def _fetch(self, name: str) -> V | Missing:
        return self.delegate._fetch(name) if name in self._members else MISSING

    def exists(self, name: str) -> bool:
        """Return whether a key is in the subset and in the delegate."""
        return name in self._members and self.delegate.exists(name)

    def _keyless(self) -> Iterator[ZPersistError]:
        # Of a subset that goes by itself all keys are known.
        return self.delegate._keyless() if self.dynamic_subset else iter(())

    def keys(self) -> Iterator[str]:
        """Iterate over the keys that are in both, in the order of the subset (of the delegate, if dynamic)."""
        if self.dynamic_subset:
            return (name for name in self.delegate.keys() if name in self._members)
        return (name for name in self.key_subset if self.delegate.exists(name))
