"""Every exception zpersist raises, and nothing else.

.. code-block:: text

    ZPersistError (also known as PersistableError)
    ├── MissingKeyError (KeyError)             stash[name] and there is none
    ├── InvalidKeyError (ValueError)           a key no stash can keep
    ├── InvalidArgumentError (ValueError)      a parameter out of range, of the wrong kind
    │   ├── InvalidDelegateError (TypeError)   a delegate that is no stash
    │   └── WorkNameError                      a work's name that clashes with another attribute
    ├── UnsupportedOperationError (NotImplementedError)   this kind of stash can't do that
    │   └── ReadOnlyError                      a write to a strict read-only stash
    ├── OwnerError (TypeError)                 an owner on which no work can live
    ├── NotPickleableError (TypeError)         an object that refuses to be pickled
    ├── CodecError
    │   ├── EncodeError (TypeError)            a value the codec can't write
    │   ├── DecodeError (ValueError)           intact bytes the codec can't read back
    │   └── CodecMismatchError (ValueError)    written by another codec than the one configured
    ├── CorruptValueError (ValueError)         empty, cut, flipped, or not ours
    │   ├── FormatVersionError                 written by a newer zpersist
    │   ├── MisplacedValueError                whole, but the value of another key
    │   └── SealError                          not signed or encrypted by who has the key
    ├── StorageError (OSError)                 the disk, the database or the permission said no
    │   └── OutcomeUnknownError                it can't be known whether the write happened
    ├── MissingDataKeysError                   a composite lacks some of its data
    ├── MigrationError (RuntimeError)          values of the target are not those of the source
    ├── DeallocatedError (RuntimeError)        a work used after deallocate()
    └── WorkerDiedError (RuntimeError)         a worker process was killed or crashed
        └── ItemTimeoutError (TimeoutError)    it was killed, for an item took too long

Every leaf is also the builtin exception a caller would catch without knowing zpersist.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "CodecError",
    "CodecMismatchError",
    "CorruptValueError",
    "DeallocatedError",
    "DecodeError",
    "EncodeError",
    "FormatVersionError",
    "InvalidArgumentError",
    "InvalidDelegateError",
    "InvalidKeyError",
    "ItemTimeoutError",
    "MigrationError",
    "MisplacedValueError",
    "MissingDataKeysError",
    "MissingKeyError",
    "NotPickleableError",
    "OutcomeUnknownError",
    "OwnerError",
    "PersistableError",
    "ReadOnlyError",
    "SealError",
    "StorageError",
    "UnsupportedOperationError",
    "WorkNameError",
    "WorkerDiedError",
    "ZPersistError",
]


class ZPersistError(Exception):
    """The root of all errors that zpersist raises."""


PersistableError = ZPersistError


class MissingKeyError(ZPersistError, KeyError):
    """There is nothing under this key.

    Parameters
    ----------
    key :
        The key that was asked for.
    where :
        The stash that was asked.
    """

    def __init__(self, key: object, where: str = "stash") -> None:
        super().__init__(key, where)
        self.key = key
        self.where = where

    def __str__(self) -> str:
        return f"{self.key!r} is not in {self.where}"


class InvalidKeyError(ZPersistError, ValueError):
    """A key that no stash can keep: empty, too long, not a ``str``, not Unicode."""


class InvalidArgumentError(ZPersistError, ValueError):
    """A parameter that is out of range or of the wrong kind."""


class InvalidDelegateError(InvalidArgumentError, TypeError):
    """Something that is no stash where a stash is needed."""


class WorkNameError(InvalidArgumentError):
    """The name of a work is already the name of something else."""


class UnsupportedOperationError(ZPersistError, NotImplementedError):
    """What this kind of stash can't do."""


class ReadOnlyError(UnsupportedOperationError):
    """A write to a read-only stash whose ``strict`` is set."""


class OwnerError(ZPersistError, TypeError):
    """An object on which no persisted work can live."""


class NotPickleableError(ZPersistError, TypeError):
    """An object whose class refuses to be pickled."""


class CodecError(ZPersistError):
    """A value and its codec don't fit."""


class EncodeError(CodecError, TypeError):
    """A value that the codec can't turn into bytes."""


class DecodeError(CodecError, ValueError):
    """Bytes that arrived as they were written, and still can't be decoded."""


class CodecMismatchError(CodecError, ValueError):
    """A value that another codec wrote than the one configured."""


class CorruptValueError(ZPersistError, ValueError):
    """Stored bytes that are empty, cut, flipped, or that zpersist did not write."""


class FormatVersionError(CorruptValueError):
    """A value in a newer format than this version of zpersist reads."""


class MisplacedValueError(CorruptValueError):
    """A value that lies under another key than the one that was written with it: somebody has moved it."""


class SealError(CorruptValueError):
    """Stored bytes that nobody who has the key sealed for this place."""


class StorageError(ZPersistError, OSError):
    """The operating system or the database refused; ``errno`` and ``filename`` say what and where."""


class OutcomeUnknownError(StorageError):
    """It can't be known whether the write happened: read before you write again."""


class MissingDataKeysError(ZPersistError):
    """A composite value lacks some of the keys its groups name.

    Parameters
    ----------
    keys :
        The keys that are missing (or that no group names).
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = set(keys)
        super().__init__(self.keys)

    def __str__(self) -> str:
        return f"data and groups differ in the keys {sorted(self.keys)}: every key must be in exactly one group"


class MigrationError(ZPersistError, RuntimeError):
    """Values that are not in the target as they are in the source.

    Parameters
    ----------
    message :
        The text.
    keys :
        Their keys.
    """

    def __init__(self, message: str, keys: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class DeallocatedError(ZPersistError, RuntimeError):
    """A work or object was used after ``deallocate()``."""


class WorkerDiedError(ZPersistError, RuntimeError):
    """A worker process was killed or crashed; what had been finished is kept."""


class ItemTimeoutError(WorkerDiedError, TimeoutError):
    """An item took longer than it may, and its worker was killed."""
