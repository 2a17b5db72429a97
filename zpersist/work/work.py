"""One result: computed once, kept on the instance, on the class, and in a file or a stash."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from zpersist.codecs import Codec, PickleCodec, as_codec, check_codec
from zpersist.errors import DeallocatedError, InvalidArgumentError
from zpersist.files.atomic import Durability, check_durability
from zpersist.files.paths import as_path
from zpersist.forklock import ForkLock
from zpersist.stash import MISSING, Stash
from zpersist.work.attach import class_registry, own_attributes, reference_to
from zpersist.work.dealloc import Deallocatable
from zpersist.work.level import FileLevel, Level, StashLevel

__all__ = ["Cell", "PersistedWork"]


# Held for the moment of a store, unlike the lock of a cell, which is held as long as anybody computes.
_storing = ForkLock()


class Cell:
    """A place for one value in memory; an unset ``value`` means that there is none."""

    __slots__ = ("epoch", "lock", "tasks", "value")

    value: Any

    def __init__(self) -> None:
        self.lock = ForkLock()
        self.tasks: dict[Any, Any] = {}
        #: Counts what makes a computation that has begun before void.
        self.epoch = 0

    def get(self) -> Any:
        """Return the value, or ``MISSING``."""
        return getattr(self, "value", MISSING)

    def put(self, value: Any) -> None:
        """Keep a value, in place of the one that is there."""
        with _storing:
            self.value = value

    def begin(self, value: Any) -> None:
        """Keep a value if there is none, whether anybody computes or not."""
        with _storing:
            if not hasattr(self, "value"):
                self.value = value

    def clear(self) -> None:
        """Forget the value, and what is being computed."""
        self.epoch += 1
        self.tasks.clear()
        if hasattr(self, "value"):
            del self.value


def _nobody() -> None:
    """Stand in for the reference to the owner of a work that has none yet."""


def refuse_one_pass(what: str, value: object) -> None:
    """Raise if a result can be used only once."""
    once = (types.AsyncGeneratorType, types.CoroutineType)
    if isinstance(value, once) or (isinstance(value, Iterator) and not isinstance(value, io.IOBase)):
        close = getattr(value, "close", None)
        if close is not None:
            close()
        raise InvalidArgumentError(
            f"{what} returned a {type(value).__name__}, which can be used only once; return a list: list(...)"
        )


def _default_key(name: str, owner: object) -> str:
    if owner is None:
        return name
    cls = owner if isinstance(owner, type) else type(owner)
    return f"{cls.__module__}.{cls.__qualname__}.{name}"


def _check_together(work: PersistedWork, stash: object, key: object, codec: object, version: object) -> None:
    """Raise if parameters of a work contradict each other."""
    path = work.path
    if stash is not None and not isinstance(stash, Stash):
        raise InvalidArgumentError(f"stash must be a stash, not {stash!r}")
    if path is not None and stash is not None:
        raise InvalidArgumentError(f"a work has a file or a stash, not both; give the name as a str, not {path!r}")
    if stash is None and key is not None:
        raise InvalidArgumentError(f"key {key!r} is of no use without a stash; give stash=")
    if codec is not None and path is None:
        raise InvalidArgumentError(f"codec {codec!r} is of no use without a file; a stash has its own")
    if codec is not None:
        check_codec(work, None, as_codec(codec))
    if not isinstance(version, str):
        raise InvalidArgumentError(f"version must be a str, not {version!r}; use str(version)")
    if version and path is None and stash is None:
        raise InvalidArgumentError(f"version {version!r} is of no use without a file or a stash")


class PersistedWork(Deallocatable):
    """A result that is computed once and then found on the instance, on the class, or in a file or stash.

    Usually made in ``__init__`` of its owner, under the name that :func:`~zpersist.persisted` is given.

    Parameters
    ----------
    path :
        A :class:`~pathlib.Path`: keep the result in this file, shared by all instances and processes; a relative
        one is taken from the working directory at construction.  A ``str``: a name, keep it in memory only (or in
        ``stash``).
    owner :
        The object to which the result belongs.
    cache_global :
        Keep the result on the class of the owner, shared by all its instances.
    transient :
        Leave the result out when the owner is pickled.
    initial_value :
        A result to start with, in memory; ``None`` is one.
    mkdir :
        Make the directory of the file if it is missing.
    deallocate_recursive :
        By ``deallocate()``, deallocate also what lists, tuples, sets and dicts in the result hold.
    recover_empty :
        Compute again if the file is empty or damaged, or the value in the stash; otherwise that is an error.
    stash :
        Keep the result in a stash.
    key :
        The key in the stash; default: the name, with the class of the owner in front.
    codec :
        Turns the result into the bytes of the file and back; default: :class:`~zpersist.PickleCodec`.
    durability :
        Of the file: ``"rename"`` or ``"fsync"``; see :class:`~zpersist.DirectoryStash`.
    version :
        A result that was kept under another version is computed again.  Change it when the method changes.
    mmap :
        Map large buffers of the file and hand out read-only views; otherwise load private copies.

    Raises
    ------
    InvalidArgumentError
        By the constructor: the parameters contradict each other.
    CorruptValueError
        By a read: the file is empty or damaged, or the value in the stash, and ``recover_empty`` is not set.
    EncodeError, StorageError
        The result can't be kept; what was kept before is untouched.
    DeallocatedError
        It was used after ``deallocate()``.

    Notes
    -----
    *Concurrency*: among threads and processes one computes, the others wait; the death of the one that computes
    lets another one in.  What another one sets meanwhile stays, and is what the one that computes gets.
    *Durability*: see ``durability``.
    *Trust*: that of the codec, for everybody who may write the file.

    Examples
    --------
    >>> class Corpus:
    ...     def __init__(self, root):
    ...         self.root = root
    ...         self._size = PersistedWork(Path("size.dat"), self)
    ...     @property
    ...     @persisted("_size")
    ...     def size(self):
    ...         print("counting")
    ...         return len(self.root)
    >>> Corpus("abc").size, Corpus("another").size
    counting
    (3, 3)
    """

    def __init__(
        self,
        path: Path | str,
        owner: object,
        cache_global: bool = False,
        transient: bool = False,
        initial_value: Any = MISSING,
        mkdir: bool = False,
        deallocate_recursive: bool = False,
        recover_empty: bool = False,
        *,
        stash: Stash[Any] | None = None,
        key: str | None = None,
        codec: Codec | str | None = None,
        durability: Durability = "rename",
        version: str = "",
        mmap: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(path, (str, Path)) or not str(path):
            raise InvalidArgumentError(f"path of a work must be a Path (a file) or a str (a name), not {path!r}")
        self.path = as_path(path) if isinstance(path, Path) else None
        self.name = str(path)
        self.cache_global = cache_global
        self.transient = transient
        self.deallocate_recursive = deallocate_recursive
        self.initial_value = initial_value
        self.worker: Any = None
        self.function: Any = None
        self.mirror: str | None = None
        self._level: Level | None = None
        check_durability(durability)
        _check_together(self, stash, key, codec, version)
        if stash is not None:
            where = _default_key(self.name, owner) if key is None else key
            self._level = StashLevel(stash, where, version, recover=recover_empty)
        elif self.path is not None:
            self._level = FileLevel(
                self.path,
                codec=PickleCodec() if codec is None else as_codec(codec),
                mkdir=mkdir,
                recover=recover_empty,
                version=version,
                durability=durability,
                mmap=mmap,
            )
        self._ref: Any = _nobody
        self._cell = Cell()
        if owner is not None:
            self.owner = owner
        if initial_value is not MISSING:
            self._cell.begin(initial_value)

    # owner

    @property
    def owner(self) -> Any:
        """The object to which the result belongs; ``None`` if it has none, or it is dead."""
        return self._ref()

    @owner.setter
    def owner(self, owner: object) -> None:
        self._ref = reference_to(owner)
        if not isinstance(owner, type):
            own_attributes(type(owner), PersistedWork)
        if not self.cache_global:
            return
        cls = owner if isinstance(owner, type) else type(owner)
        level = self._level
        where = level.path if isinstance(level, FileLevel) else self.name
        shared: Cell = class_registry(cls).setdefault("cells", {}).setdefault(where, Cell())
        own = self._cell.get()
        if own is not MISSING:
            shared.begin(own)
        self._cell = shared

    def _owned_by(self, owner: object) -> PersistedWork:
        if self._ref() is owner:
            return self
        if self._ref is _nobody:
            self.owner = owner
            return self
        # The owner is a copy: it got a reference to a work that is another one's.
        twin: PersistedWork = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _cell=Cell())
        twin.owner = owner
        if self.mirror is not None:
            value = vars(owner).get(self.mirror, MISSING)
            if value is not MISSING:
                twin._cell.begin(value)
        if self.initial_value is not MISSING:
            twin._cell.begin(self.initial_value)
        return twin

    # the result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result, computed with these arguments if it is nowhere yet; later arguments have no effect."""
        try:
            return self._cell.value
        except AttributeError:
            return self._make(args, kwargs)

    def _alive(self) -> Cell:
        cell = self._cell
        if cell is _DEALLOCATED:
            raise DeallocatedError(f"{self} was deallocated; make a new object to compute it again")
        return cell

    def _make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cell = self._alive()
        with cell.lock:
            value = cell.get()
            if value is MISSING:
                value = self._load_or_compute(args, kwargs)
                cell.put(value)
            return value

    def _load_or_compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        level = self._level
        if level is None:
            return self._compute(args, kwargs)
        value = level.load()
        if value is not MISSING:
            return value
        level.check()
        with level.flight():
            value = level.load()
            return level.offer(self._compute(args, kwargs)) if value is MISSING else value

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = (self.__do_work__ if self.worker is None else self.worker)(*args, **kwargs)
        refuse_one_pass(str(self), value)
        return value

    def __do_work__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the result; to be overridden where no ``worker`` is set."""
        raise InvalidArgumentError(
            f"{self} has nothing to compute it: decorate a method with @persisted({self.name!r}), set .worker to a "
            f"function, or override __do_work__"
        )

    def set(self, obj: Any) -> None:
        """Keep a result at every level, in place of the one that is there."""
        cell = self._alive()
        refuse_one_pass(str(self), obj)
        with cell.lock:
            if self._level is not None:
                self._level.dump(obj)
            cell.clear()
            cell.put(obj)
            self._unmirror()

    def is_set(self) -> bool:
        """Return whether there is a result at any level."""
        return self._alive().get() is not MISSING or (self._level is not None and self._level.exists())

    def clear(self) -> None:
        """Forget the result at every level: it is computed again when it is next asked for."""
        cell = self._alive()
        with cell.lock:
            if self._level is not None:
                self._level.clear()
            cell.clear()
            self._unmirror()

    def clear_global(self) -> None:
        """Forget the result that is kept on the class."""
        if self.cache_global:
            cell = self._alive()
            with cell.lock:
                cell.clear()

    def deallocate(self) -> None:
        """Deallocate the result (if it can be) and forget it; the file stays, and so does a result on the class."""
        cell = self._cell
        if cell is _DEALLOCATED:
            return
        with cell.lock:
            value = cell.get()
            self._unmirror()
            self._cell = _DEALLOCATED
            if not self.cache_global:
                cell.clear()
        super().deallocate()
        if not self.cache_global and value is not MISSING:
            self._try_deallocate(value, self.deallocate_recursive)

    # a property keeps the value also as an attribute of its owner, where it is found without a call

    def mirrored(self, owner: object) -> Any:
        """Return the result, and keep it as an attribute of its owner."""
        cell = self._alive()
        with cell.lock:
            value = self(owner)
            if self.mirror is not None:
                vars(owner)[self.mirror] = value
            return value

    def _unmirror(self) -> None:
        owner = self._ref()
        if self.mirror is not None and owner is not None:
            vars(owner).pop(self.mirror, None)

    # for readers and travellers

    def write(self, indent: int = 0, include_content: bool = False, writer: TextIO | None = None) -> None:
        """Write what this work is and whether it is set.

        Parameters
        ----------
        indent :
            Blanks before each line.
        include_content :
            Write also the result.
        writer :
            Where to; default: the standard output.
        """
        out = sys.stdout if writer is None else writer
        value = self._cell.get()
        out.write(f"{' ' * indent}{self}:\n")
        lines = {"global": self.cache_global, "transient": self.transient, "set": value is not MISSING}
        if value is not MISSING:
            lines["type"] = type(value)  # type: ignore[assignment]
            if include_content:
                lines["content"] = value
        for name, what in lines.items():
            out.write(f"{' ' * indent}  {name}: {what}\n")

    def __getstate__(self) -> dict[str, Any]:
        state = {
            name: value for name, value in self.__dict__.items() if name not in ("_cell", "_ref", "function", "worker")
        }
        value = self._cell.get()
        if value is not MISSING and not self.transient:
            state["value"] = value
        if self._cell is _DEALLOCATED:
            state["deallocated"] = True
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        cell = _DEALLOCATED if state.pop("deallocated", False) else Cell()
        value = state.pop("value", MISSING)
        if value is not MISSING:
            cell.value = value
        self.__dict__.update(state, _cell=cell, _ref=_nobody, worker=None, function=None, initial_value=MISSING)

    def _deallocate_str(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"work {self.name!r} of {type(self.owner).__qualname__}"

    def __repr__(self) -> str:
        return f"<{self}>"


_DEALLOCATED = Cell()
