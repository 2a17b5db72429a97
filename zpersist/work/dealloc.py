"""Giving back what an object holds, at a time of one's choice."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

from zpersist.errors import InvalidArgumentError, ZPersistError

__all__ = ["Deallocatable", "dealloc", "dealloc_recursive"]


class Deallocatable:
    """An object that gives back what it holds by :meth:`deallocate`, and can be tracked until it does.

    Examples
    --------
    >>> class Model(Deallocatable):
    ...     def deallocate(self):
    ...         super().deallocate()
    ...         print("freed")
    >>> with dealloc(Model()) as model:
    ...     pass
    freed
    """

    #: Print the stack on each deallocation.
    PRINT_TRACE: ClassVar[bool] = False
    #: Remember what was made and not deallocated yet, with the stack that made it.
    ALLOCATION_TRACKING: ClassVar[bool] = False

    _ALLOCATIONS: ClassVar[dict[int, tuple[Any, str]]] = {}
    _RECURSIVE: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        if Deallocatable.ALLOCATION_TRACKING or self.ALLOCATION_TRACKING:
            self._ALLOCATIONS[id(self)] = self, "".join(traceback.format_stack())

    def deallocate(self) -> None:
        """Give back what this object holds; a subclass calls ``super().deallocate()``."""
        if self.PRINT_TRACE:
            traceback.print_stack()
        self._mark_deallocated()

    def _mark_deallocated(self, key: int | None = None) -> None:
        """Stop tracking this object (or the one whose ``id`` is given)."""
        self._ALLOCATIONS.pop(id(self) if key is None else key, None)

    @classmethod
    def _num_deallocations(cls) -> int:
        """Return how many tracked objects are not deallocated yet."""
        return len(cls._ALLOCATIONS)

    @staticmethod
    def _try_deallocate(obj: object, recursive: bool = False) -> bool:
        """Deallocate an object if it can be, recursively also what lists, tuples, sets and dicts hold."""
        if isinstance(obj, Deallocatable):
            obj.deallocate()
            return True
        if not (recursive or Deallocatable._RECURSIVE):
            return False
        if isinstance(obj, dict):
            obj = tuple(obj.values())
        if isinstance(obj, (tuple, list, set, frozenset)):
            for item in tuple(obj):
                Deallocatable._try_deallocate(item, recursive)
            return True
        return False

    def _deallocate_attribute(self, attrib: str) -> bool:
        """Deallocate and delete an attribute, and return whether it could be deallocated."""
        if not hasattr(self, attrib):
            return False
        done = self._try_deallocate(getattr(self, attrib))
        delattr(self, attrib)
        return done

    def _deallocate_attributes(self, attribs: Iterable[str]) -> int:
        """Deallocate and delete attributes, and return how many could be deallocated."""
        return sum(self._deallocate_attribute(attrib) for attrib in attribs)

    @classmethod
    def _print_undeallocated(cls, include_stack: bool = False, only_counts: bool = False, fail: bool = False) -> None:
        """Print what is tracked and not deallocated yet; with ``fail``, raise if there is anything."""
        tracked = tuple(cls._ALLOCATIONS.items())
        if tracked:
            sys.stdout.write(f"total allocations: {len(tracked)}\n")
        if only_counts:
            counts = Counter(type(obj).__qualname__ for _, (obj, _) in tracked)
            sys.stdout.writelines(f"{name}: {count}\n" for name, count in sorted(counts.items()))
        else:
            for key, (obj, stack) in tracked:
                name = getattr(obj, "name", None)
                sys.stdout.write(f"{key} -> {type(obj)}{'' if name is None else f' ({name})'}\n")
                if include_stack:
                    sys.stdout.write(f"{stack}\n")
        if fail:
            cls.assert_dealloc()

    @classmethod
    def _deallocate_all(cls) -> None:
        """Deallocate all that is tracked."""
        tracked = tuple(cls._ALLOCATIONS.values())
        cls._ALLOCATIONS.clear()
        for obj, _ in tracked:
            obj.deallocate()

    @classmethod
    def assert_dealloc(cls) -> None:
        """Raise if anything that is tracked was not deallocated."""
        if cls._ALLOCATIONS:
            raise ZPersistError(f"{len(cls._ALLOCATIONS)} tracked objects were not deallocated")


class dealloc_recursive:  # noqa: N801 - a public name of zensols.persist
    """Deallocate recursively, through lists, tuples, sets and dicts, within a ``with``."""

    def __enter__(self) -> None:
        self._before = Deallocatable._RECURSIVE
        Deallocatable._RECURSIVE = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Deallocatable._RECURSIVE = self._before


T = TypeVar("T")


class dealloc(Generic[T]):  # noqa: N801 - a public name of zensols.persist
    """Deallocate an object at the end of a ``with``, whatever happens in it.

    Parameters
    ----------
    inst :
        The object, or a function that makes it (so that what it makes is tracked too).
    track :
        Track allocations within the ``with``, and print what was not deallocated.
    include_stack :
        Print also where it was made.
    """

    def __init__(self, inst: T | Callable[[], T], track: bool = False, include_stack: bool = False) -> None:
        self.track = track
        self.include_stack = include_stack
        self._before = Deallocatable.ALLOCATION_TRACKING
        if track:
            Deallocatable.ALLOCATION_TRACKING = True
        try:
            made: Any = inst() if callable(inst) and not isinstance(inst, Deallocatable) else inst
            if not callable(getattr(made, "deallocate", None)):
                raise InvalidArgumentError(f"{made!r} has no deallocate() method")
        except BaseException:
            Deallocatable.ALLOCATION_TRACKING = self._before
            raise
        self.inst: T = made

    def __enter__(self) -> T:
        return self.inst

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inst: Any = self.inst
        try:
            inst.deallocate()
            if self.track:
                Deallocatable._print_undeallocated(self.include_stack)
        finally:
            Deallocatable.ALLOCATION_TRACKING = self._before
