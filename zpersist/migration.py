"""From one stash into another: all values, each once, and none of them changed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from zpersist.chunking import chunks
from zpersist.errors import InvalidDelegateError, MigrationError
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
    on; and they are never replaced.

    Parameters
    ----------
    source :
        Where the values are; it is not changed.
    target :
        Where they are to be.
    progress :
        Show a progress bar.
    verify :
        Read all values from both, and compare them: also those of earlier runs.

    Returns
    -------
    Migration
        How many values were copied.

    Raises
    ------
    MigrationError
        Values of ``target`` are not those of ``source``; all others were copied.
    CorruptValueError
        A value of ``source`` is damaged (see :meth:`Stash.verify`); those before it were copied.
    DecodeError
        A value of ``source`` can't be made again; those before it were copied.
    EncodeError
        The codec of ``target`` can't keep a value.

    Notes
    -----
    *Concurrency*: others may read both meanwhile.  What others write may be copied, or be told as a difference.
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
    total = len(source) * (2 if verify else 1) if progress else None
    copied = there = 0
    with Progress(progress, "migrate", total) as bar:
        for names in chunks(source.keys(), _BATCH):
            missing = [name for name in names if not target.exists(name)]
            there += len(names) - len(missing)
            target.dump_many(_pairs(source, missing))
            copied += len(missing)
            bar.show(copied + there, 0, 0)
        if verify:
            _compare(source, target, bar, copied + there)
    return Migration(copied, there)


def _pairs(stash: Stash[V], names: list[str]) -> Iterator[tuple[str, V]]:
    for name in names:
        value = stash._fetch(name)
        # Else it was deleted meanwhile.
        if value is not MISSING:
            yield name, value


def _compare(source: Stash[Any], target: Stash[Any], bar: Progress, done: int) -> None:
    wrong: list[str] = []
    for number, (name, value) in enumerate(source.items(), 1):
        if not is_same(value, target._fetch(name)):
            wrong.append(name)
        bar.show(done + number, 0, len(wrong))
    if wrong:
        names = ", ".join(map(repr, wrong[:_NAMED])) + (f" and {len(wrong) - _NAMED} more" if wrong[_NAMED:] else "")
        raise MigrationError(
            f"{len(wrong)} values of {target!r} are not those of {source!r}: {names}; if the source is right, "
            f"delete them from the target, and migrate again",
            wrong,
        )
