"""From one stash into another: all values, each once, and none of them changed on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView
from typing import Any, NamedTuple, TypeVar

from zpersist.chunking import chunks
from zpersist.damage import is_lost
from zpersist.errors import InvalidDelegateError, MigrationError, MisplacedValueError, ZPersistError
from zpersist.progress import Progress
from zpersist.sameness import is_same
from zpersist.stash import MISSING, Stash

__all__ = ["Migration", "migrate"]

V = TypeVar("V")

#: So many keys are looked for at once.
_BATCH = 100

#: The most keys that an error names.
_NAMED = 5


class Migration(NamedTuple):
    """What was done.

    Parameters
    ----------
    copied :
        How many values were copied.
    there :
        How many were there already, by an earlier run.
    """

    copied: int
    there: int


def migrate(source: Stash[V], target: Stash[V], *, progress: bool = False, verify: bool = True) -> Migration:
    """Copy all values of a stash into another one, of whatever kind and codec.

    Values that are under their keys in ``target`` already are not copied again, so that a run that was cut short goes
    on; and they are not replaced.  Of both, only what is stored counts: not what a cache still has, nor what a factory
    could make, which is not asked (fill the stash before); but also what is hidden, as by a
    :class:`~zpersist.KeyLimitStash`.

    Parameters
    ----------
    source :
        Where the values are; it is not changed.
    target :
        Where they are to be: a store, or what stands on one.
    progress :
        Show a progress bar.
    verify :
        Read all values from both, those of ``target`` from its store, and compare them: also those of earlier runs.

    Returns
    -------
    Migration
        How many values were copied.

    Raises
    ------
    InvalidDelegateError
        One of them is no stash, or ``target`` keeps nothing: it, or what it stands on, is read only, or a
        :class:`~zpersist.NoopStash`.  Nothing was read.
    MigrationError
        Values of ``target`` are not those of ``source``, or are damaged; all others were copied.
    CorruptValueError
        A value of ``source`` is damaged, or its key (see :meth:`Stash.verify`); what was copied before stays.
    DecodeError
        A value of ``source`` can't be made again; what was copied before stays.
    EncodeError
        The codec of ``target`` can't keep a value; what was copied before stays.

    Notes
    -----
    *Concurrency*: others may read both meanwhile.  Several migrations into one store never replace what one of them has
    put there.  What others write to ``source`` may be copied, or be told as a difference; what they write to
    ``target`` under a key that is just being copied may be replaced.
    *Durability*: that of ``target``.
    *Trust*: that of both codecs.

    Two values are the same if they are of one type and equal, or, of those that can't tell (arrays, objects without
    ``__eq__``), if the parts are by which they are pickled.

    Examples
    --------
    >>> files, table = DirectoryStash("flat"), SqliteStash("table.db")
    >>> files.dump_many({"a": 1, "b": [2]})
    >>> migrate(files, table)
    Migration(copied=2, there=0)
    >>> migrate(files, table)
    Migration(copied=0, there=2)
    """
    for name, stash in (("source", source), ("target", target)):
        if not isinstance(stash, Stash):
            raise InvalidDelegateError(f"{name} must be a stash, not {stash!r}")
    if not target._keeps:
        raise InvalidDelegateError(
            f"target {target!r} keeps nothing: it, or what it stands on, is read only, or a NoopStash; give a store"
        )
    origin, stored = source._stored(), target._stored()
    total = len(origin) * (2 if verify else 1) if progress else None
    copied = there = 0
    try:
        with Progress(progress, "migrate", total) as bar:
            for names in chunks(_keys(origin), _BATCH):
                # Else another migration could put a value there between our look and our writing.
                with target._flight("all", "migrate"):
                    new, old = _copy(origin, stored, names)
                copied, there = copied + new, there + old
                bar.show(copied + there, 0, 0)
            for error in origin._keyless():
                raise error
            if verify:
                _compare(origin, stored, bar, copied + there)
    finally:
        # What is above the store has not seen this.
        target._outdated()
    return Migration(copied, there)


def _keys(stash: Stash[Any]) -> Iterable[str]:
    keys = stash.keys()
    # A live view can't be iterated over while others write.
    return tuple(keys) if isinstance(keys, KeysView) else keys


def _copy(source: Stash[V], target: Stash[V], names: list[str]) -> tuple[int, int]:
    """Copy what is missing, and return how many values were copied, and how many were there."""
    missing = [name for name in names if not target.exists(name)]
    copied = 0

    def pairs() -> Iterator[tuple[str, V]]:
        nonlocal copied
        for name in missing:
            value = source._fetch(name)
            # Else it was deleted meanwhile.
            if value is not MISSING:
                copied += 1
                yield name, value

    target.dump_many(pairs())
    return copied, len(names) - len(missing)


def _is_kept(target: Stash[Any], name: str, value: object) -> bool:
    try:
        kept = target._fetch(name)
    except ZPersistError as err:
        if is_lost(err) or isinstance(err, MisplacedValueError):
            return False
        raise
    return is_same(value, kept)


def _compare(source: Stash[Any], target: Stash[Any], bar: Progress, done: int) -> None:
    wrong: list[str] = []
    for number, (name, value) in enumerate(source.items(), 1):
        if not _is_kept(target, name, value):
            wrong.append(name)
        bar.show(done + number, 0, len(wrong))
    if wrong:
        names = ", ".join(map(repr, wrong[:_NAMED])) + (f" and {len(wrong) - _NAMED} more" if wrong[_NAMED:] else "")
        raise MigrationError(
            f"{len(wrong)} values of {target!r} are not those of {source!r}: {names}; if the source is right, "
            f"delete them from the target, and migrate again",
            wrong,
        )
