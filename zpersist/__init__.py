"""Compute once. Keep it anywhere. Stack it.

``@persisted`` keeps what a method returns; stashes keep values by key, and stack; ``MultiProcessStash`` fills a
stash with many processes.  Names are imported when they are first used (PEP 562), so that ``import zpersist`` costs
next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zpersist.chunking import chunks as chunks
    from zpersist.codecs.base import Codec as Codec
    from zpersist.codecs.compressed import CompressedCodec as CompressedCodec
    from zpersist.codecs.dill import DillCodec as DillCodec
    from zpersist.codecs.encrypted import EncryptedCodec as EncryptedCodec
    from zpersist.codecs.json import JsonCodec as JsonCodec
    from zpersist.codecs.msgpack import MsgpackCodec as MsgpackCodec
    from zpersist.codecs.pickle import PickleCodec as PickleCodec
    from zpersist.codecs.restricted import RestrictedPickleCodec as RestrictedPickleCodec
    from zpersist.codecs.signed import SignedCodec as SignedCodec
    from zpersist.damage import Damage as Damage
    from zpersist.errors import (
        CodecError as CodecError,
    )
    from zpersist.errors import (
        CodecMismatchError as CodecMismatchError,
    )
    from zpersist.errors import (
        CorruptValueError as CorruptValueError,
    )
    from zpersist.errors import (
        DeallocatedError as DeallocatedError,
    )
    from zpersist.errors import (
        DecodeError as DecodeError,
    )
    from zpersist.errors import (
        EncodeError as EncodeError,
    )
    from zpersist.errors import (
        FormatVersionError as FormatVersionError,
    )
    from zpersist.errors import (
        InvalidArgumentError as InvalidArgumentError,
    )
    from zpersist.errors import (
        InvalidDelegateError as InvalidDelegateError,
    )
    from zpersist.errors import (
        InvalidKeyError as InvalidKeyError,
    )
    from zpersist.errors import (
        ItemTimeoutError as ItemTimeoutError,
    )
    from zpersist.errors import (
        MigrationError as MigrationError,
    )
    from zpersist.errors import (
        MisplacedValueError as MisplacedValueError,
    )
    from zpersist.errors import (
        MissingDataKeysError as MissingDataKeysError,
    )
    from zpersist.errors import (
        MissingKeyError as MissingKeyError,
    )
    from zpersist.errors import (
        NotPickleableError as NotPickleableError,
    )
    from zpersist.errors import (
        OutcomeUnknownError as OutcomeUnknownError,
    )
    from zpersist.errors import (
        OwnerError as OwnerError,
    )
    from zpersist.errors import (
        PersistableError as PersistableError,
    )
    from zpersist.errors import (
        ReadOnlyError as ReadOnlyError,
    )
    from zpersist.errors import (
        SealError as SealError,
    )
    from zpersist.errors import (
        StorageError as StorageError,
    )
    from zpersist.errors import (
        UnsupportedOperationError as UnsupportedOperationError,
    )
    from zpersist.errors import (
        WorkerDiedError as WorkerDiedError,
    )
    from zpersist.errors import (
        WorkNameError as WorkNameError,
    )
    from zpersist.errors import (
        ZPersistError as ZPersistError,
    )
    from zpersist.failure import Failure as Failure
    from zpersist.migration import Migration as Migration
    from zpersist.migration import migrate as migrate
    from zpersist.parallel.factory import (
        MultiProcessDefaultStash as MultiProcessDefaultStash,
    )
    from zpersist.parallel.factory import (
        MultiProcessFactoryStash as MultiProcessFactoryStash,
    )
    from zpersist.parallel.factory import (
        MultiProcessRobustStash as MultiProcessRobustStash,
    )
    from zpersist.parallel.fill import fill as fill
    from zpersist.parallel.multiprocess import MultiProcessStash as MultiProcessStash
    from zpersist.parallel.run import Summary as Summary
    from zpersist.readonly import ReadOnlyStash as ReadOnlyStash
    from zpersist.stash import (
        CloseableStash as CloseableStash,
    )
    from zpersist.stash import (
        Stash as Stash,
    )
    from zpersist.stores.composite import DirectoryCompositeStash as DirectoryCompositeStash
    from zpersist.stores.directory import DirectoryStash as DirectoryStash
    from zpersist.stores.increment import IncrementKeyDirectoryStash as IncrementKeyDirectoryStash
    from zpersist.stores.lmdb import LmdbStash as LmdbStash
    from zpersist.stores.memory import DictionaryStash as DictionaryStash
    from zpersist.stores.memory import LRUCacheStash as LRUCacheStash
    from zpersist.stores.noop import NoopStash as NoopStash
    from zpersist.stores.shelve import ShelveStash as ShelveStash
    from zpersist.stores.shelve import shelve as shelve
    from zpersist.stores.sqlite import SqliteStash as SqliteStash
    from zpersist.stores.zip import ZipStash as ZipStash
    from zpersist.work.container import (
        PersistableContainer as PersistableContainer,
    )
    from zpersist.work.container import (
        PersistableContainerMetadata as PersistableContainerMetadata,
    )
    from zpersist.work.dealloc import (
        Deallocatable as Deallocatable,
    )
    from zpersist.work.dealloc import (
        dealloc as dealloc,
    )
    from zpersist.work.dealloc import (
        dealloc_recursive as dealloc_recursive,
    )
    from zpersist.work.decorator import persisted as persisted
    from zpersist.work.notpickleable import NotPickleable as NotPickleable
    from zpersist.work.property import persisted_property as persisted_property
    from zpersist.work.resource import resource as resource
    from zpersist.work.text import (
        FileTextUtil as FileTextUtil,
    )
    from zpersist.work.text import (
        byte_format as byte_format,
    )
    from zpersist.work.text import (
        normalize_path as normalize_path,
    )
    from zpersist.work.text import (
        normalize_text as normalize_text,
    )
    from zpersist.work.text import (
        unique_tracked_name as unique_tracked_name,
    )
    from zpersist.work.work import PersistedWork as PersistedWork
    from zpersist.wrappers.cache import CacheStash as CacheStash
    from zpersist.wrappers.delegate import (
        DelegateDefaults as DelegateDefaults,
    )
    from zpersist.wrappers.delegate import (
        DelegateStash as DelegateStash,
    )
    from zpersist.wrappers.delegate import (
        ReadOnlyDelegateStash as ReadOnlyDelegateStash,
    )
    from zpersist.wrappers.factory import (
        CacheFactoryStash as CacheFactoryStash,
    )
    from zpersist.wrappers.factory import (
        FactoryStash as FactoryStash,
    )
    from zpersist.wrappers.failures import FailureFilterStash as FailureFilterStash
    from zpersist.wrappers.limit import KeyLimitStash as KeyLimitStash
    from zpersist.wrappers.oneshot import OneShotFactoryStash as OneShotFactoryStash
    from zpersist.wrappers.prime import (
        PreemptiveStash as PreemptiveStash,
    )
    from zpersist.wrappers.prime import (
        PrimablePreemptiveStash as PrimablePreemptiveStash,
    )
    from zpersist.wrappers.prime import (
        Primeable as Primeable,
    )
    from zpersist.wrappers.prime import (
        PrimeableStash as PrimeableStash,
    )
    from zpersist.wrappers.protect import ProtectiveStash as ProtectiveStash
    from zpersist.wrappers.sorted import SortedStash as SortedStash
    from zpersist.wrappers.subset import KeySubsetStash as KeySubsetStash
    from zpersist.wrappers.union import UnionStash as UnionStash

__version__ = "0.1.0"

__all__ = [
    "CacheFactoryStash",
    "CacheStash",
    "CloseableStash",
    "Codec",
    "CodecError",
    "CodecMismatchError",
    "CompressedCodec",
    "CorruptValueError",
    "Damage",
    "Deallocatable",
    "DeallocatedError",
    "DecodeError",
    "DelegateDefaults",
    "DelegateStash",
    "DictionaryStash",
    "DillCodec",
    "DirectoryCompositeStash",
    "DirectoryStash",
    "EncodeError",
    "EncryptedCodec",
    "FactoryStash",
    "Failure",
    "FailureFilterStash",
    "FileTextUtil",
    "FormatVersionError",
    "IncrementKeyDirectoryStash",
    "InvalidArgumentError",
    "InvalidDelegateError",
    "InvalidKeyError",
    "ItemTimeoutError",
    "JsonCodec",
    "KeyLimitStash",
    "KeySubsetStash",
    "LRUCacheStash",
    "LmdbStash",
    "Migration",
    "MigrationError",
    "MisplacedValueError",
    "MissingDataKeysError",
    "MissingKeyError",
    "MsgpackCodec",
    "MultiProcessDefaultStash",
    "MultiProcessFactoryStash",
    "MultiProcessRobustStash",
    "MultiProcessStash",
    "NoopStash",
    "NotPickleable",
    "NotPickleableError",
    "OneShotFactoryStash",
    "OutcomeUnknownError",
    "OwnerError",
    "PersistableContainer",
    "PersistableContainerMetadata",
    "PersistableError",
    "PersistedWork",
    "PickleCodec",
    "PreemptiveStash",
    "PrimablePreemptiveStash",
    "Primeable",
    "PrimeableStash",
    "ProtectiveStash",
    "ReadOnlyDelegateStash",
    "ReadOnlyError",
    "ReadOnlyStash",
    "RestrictedPickleCodec",
    "SealError",
    "ShelveStash",
    "SignedCodec",
    "SortedStash",
    "SqliteStash",
    "Stash",
    "StorageError",
    "Summary",
    "UnionStash",
    "UnsupportedOperationError",
    "WorkNameError",
    "WorkerDiedError",
    "ZPersistError",
    "ZipStash",
    "byte_format",
    "chunks",
    "dealloc",
    "dealloc_recursive",
    "fill",
    "migrate",
    "normalize_path",
    "normalize_text",
    "persisted",
    "persisted_property",
    "resource",
    "shelve",
    "unique_tracked_name",
]

# Where each name lives; held against the imports above by a test.
_HOMES = {
    "chunking": "chunks",
    "codecs.base": "Codec",
    "codecs.compressed": "CompressedCodec",
    "codecs.dill": "DillCodec",
    "codecs.encrypted": "EncryptedCodec",
    "codecs.json": "JsonCodec",
    "codecs.msgpack": "MsgpackCodec",
    "codecs.pickle": "PickleCodec",
    "codecs.restricted": "RestrictedPickleCodec",
    "codecs.signed": "SignedCodec",
    "damage": "Damage",
    "errors": (
        "CodecError CodecMismatchError CorruptValueError DeallocatedError DecodeError EncodeError "
        "FormatVersionError InvalidArgumentError InvalidDelegateError InvalidKeyError ItemTimeoutError MigrationError "
        "MisplacedValueError MissingDataKeysError MissingKeyError NotPickleableError OutcomeUnknownError OwnerError "
        "PersistableError ReadOnlyError SealError StorageError UnsupportedOperationError WorkNameError "
        "WorkerDiedError ZPersistError"
    ),
    "failure": "Failure",
    "migration": "Migration migrate",
    "parallel.factory": "MultiProcessDefaultStash MultiProcessFactoryStash MultiProcessRobustStash",
    "parallel.fill": "fill",
    "parallel.multiprocess": "MultiProcessStash",
    "parallel.run": "Summary",
    "readonly": "ReadOnlyStash",
    "stash": "CloseableStash Stash",
    "stores.composite": "DirectoryCompositeStash",
    "stores.directory": "DirectoryStash",
    "stores.increment": "IncrementKeyDirectoryStash",
    "stores.lmdb": "LmdbStash",
    "stores.memory": "DictionaryStash LRUCacheStash",
    "stores.noop": "NoopStash",
    "stores.shelve": "ShelveStash shelve",
    "stores.sqlite": "SqliteStash",
    "stores.zip": "ZipStash",
    "work.container": "PersistableContainer PersistableContainerMetadata",
    "work.dealloc": "Deallocatable dealloc dealloc_recursive",
    "work.decorator": "persisted",
    "work.notpickleable": "NotPickleable",
    "work.property": "persisted_property",
    "work.resource": "resource",
    "work.text": "FileTextUtil byte_format normalize_path normalize_text unique_tracked_name",
    "work.work": "PersistedWork",
    "wrappers.cache": "CacheStash",
    "wrappers.delegate": "DelegateDefaults DelegateStash ReadOnlyDelegateStash",
    "wrappers.factory": "CacheFactoryStash FactoryStash",
    "wrappers.failures": "FailureFilterStash",
    "wrappers.limit": "KeyLimitStash",
    "wrappers.oneshot": "OneShotFactoryStash",
    "wrappers.prime": "PreemptiveStash PrimablePreemptiveStash Primeable PrimeableStash",
    "wrappers.protect": "ProtectiveStash",
    "wrappers.sorted": "SortedStash",
    "wrappers.subset": "KeySubsetStash",
    "wrappers.union": "UnionStash",
}

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
