"""``persisted_property``: a property whose hit costs what an attribute costs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, cast, overload

from zpersist.codecs import Codec
from zpersist.errors import InvalidArgumentError
from zpersist.files.atomic import Durability
from zpersist.stash import MISSING, Stash
from zpersist.work.attach import own_attribute
from zpersist.work.decorator import Spec, check_function, is_overridden, make_spec
from zpersist.work.work import PersistedWork

__all__ = ["persisted_property"]

T = TypeVar("T")
R = TypeVar("R")


class persisted_property(Generic[T]):  # noqa: N801 - used as a decorator
    """A property that is computed once and from then on is an attribute of its instance.

    As :func:`functools.cached_property`, but one computes while other threads (with a file, other processes)
    wait, and the result may be kept on the class, in a file or in a stash.  Used bare or with parameters.

    The work is found under ``name``; its ``clear()`` makes the property be computed again.

    Parameters
    ----------
    fn :
        The method.
    name :
        The attribute under which the owner has the work; default: ``_persisted_<property>``.
    path, cache_global, transient, mkdir, deallocate_recursive, recover_empty, initial_value, stash, key, codec,\
 durability, version, mmap :
        As for :class:`~zpersist.PersistedWork`.  A result that is ``cache_global`` or ``transient`` is no attribute
        of the instance: a hit then costs what ``@property @persisted`` costs.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: see :class:`~zpersist.PersistedWork`.

    Examples
    --------
    >>> class Corpus:
    ...     @persisted_property
    ...     def words(self):
    ...         print("splitting")
    ...         return "to be or not to be".split()
    >>> corpus = Corpus()
    >>> len(corpus.words), len(corpus.words)
    splitting
    (6, 6)
    >>> corpus._persisted_words.clear()
    >>> len(corpus.words)
    splitting
    6
    """

    def __init__(
        self,
        fn: Callable[[Any], T] | None = None,
        *,
        name: str | None = None,
        path: Path | str | None = None,
        cache_global: bool = False,
        transient: bool = False,
        mkdir: bool = False,
        deallocate_recursive: bool = False,
        recover_empty: bool = False,
        initial_value: Any = MISSING,
        stash: Stash[Any] | None = None,
        key: str | None = None,
        codec: Codec | str | None = None,
        durability: Durability = "rename",
        version: str = "",
        mmap: bool = True,
    ) -> None:
        if stash is not None and not isinstance(stash, Stash):
            raise InvalidArgumentError(f"stash must be a stash, not {stash!r}")
        self._name = name
        self._path = None if path is None else Path(path).absolute()
        self._options = {
            "cache_global": cache_global,
            "transient": transient,
            "mkdir": mkdir,
            "deallocate_recursive": deallocate_recursive,
            "recover_empty": recover_empty,
            "initial_value": initial_value,
            "stash": stash,
            "key": key,
            "codec": codec,
            "durability": durability,
            "version": version,
            "mmap": mmap,
        }
        self._mirrors = not (cache_global or transient)
        self._spec: Spec | None = None
        if fn is not None:
            self(fn)

    def __call__(self, fn: Callable[[Any], R]) -> persisted_property[R]:
        """Take the method, when used with parameters."""
        if inspect.iscoroutinefunction(fn):
            raise InvalidArgumentError(f"{fn.__qualname__} is a coroutine; use @property and @persisted")
        check_function(fn)
        self.fn: Callable[[Any], Any] = fn
        self.__doc__ = fn.__doc__
        return cast("persisted_property[R]", self)

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name
        work_name = f"_persisted_{name}" if self._name is None else self._name
        self._spec = make_spec(work_name, self._path, name, **self._options)
        own_attribute(owner, self._spec.name, PersistedWork)

    @overload
    def __get__(self, owner: None, cls: type) -> Self: ...
    @overload
    def __get__(self, owner: object, cls: type | None = None) -> T: ...
    def __get__(self, owner: Any, cls: type | None = None) -> Self | T:
        if owner is None:
            return self
        if self._spec is None:
            raise InvalidArgumentError("a persisted_property must be made in the body of a class")
        if is_overridden(self.fn, owner):
            # Reached by super(): the owner's own property keeps what it makes of it.
            return self.fn(owner)  # type: ignore[no-any-return]
        work = self._spec.work_of(owner)
        if work.worker is not self.fn:
            work.worker = work.function = self.fn
        if self._mirrors and isinstance(getattr(owner, "__dict__", None), dict):
            work.mirror = self._attribute
            return work.mirrored(owner)  # type: ignore[no-any-return]
        return work(owner)  # type: ignore[no-any-return]
