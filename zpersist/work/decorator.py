"""``@persisted``: a method that is run once."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from attrs import frozen

from zpersist.codecs import Codec
from zpersist.errors import InvalidArgumentError, WorkNameError
from zpersist.files.atomic import Durability
from zpersist.forklock import ForkLock
from zpersist.stash import MISSING, Stash
from zpersist.work.attach import WORK_NAME, find_work, keep_work, own_attribute
from zpersist.work.work import PersistedWork

__all__ = ["Spec", "persisted"]

F = TypeVar("F")
C = TypeVar("C", bound=Callable[..., Any])
Function = Callable[..., Any]

_making = ForkLock()


class _Ownerless:
    """The owner of what a static method or a plain function returns."""


@frozen
class Spec:
    """The parameters of the work that a decorator makes."""

    name: str
    path: Path | None = None
    cache_global: bool = False
    transient: bool = False
    allocation_track: bool = True
    mkdir: bool = False
    deallocate_recursive: bool = False
    recover_empty: bool = False
    initial_value: Any = MISSING
    stash: Stash[Any] | None = None
    key: str | None = None
    codec: Codec | str | None = None
    durability: Durability = "rename"
    version: str = ""
    mmap: bool = True

    def make(self, owner: object) -> PersistedWork:
        """Return a new work for an owner."""
        work: PersistedWork = PersistedWork(
            self.name if self.path is None else self.path,
            owner,
            self.cache_global,
            self.transient,
            self.initial_value,
            self.mkdir,
            self.deallocate_recursive,
            self.recover_empty,
            stash=self.stash,
            key=self.key,
            codec=self.codec,
            durability=self.durability,
            version=self.version,
            mmap=self.mmap,
        )
        if not self.allocation_track:
            work._mark_deallocated()
        return work

    def work_of(self, owner: Any) -> PersistedWork:
        """Return the work of an owner, made if there is none."""
        work = find_work(owner, self.name, PersistedWork)
        if work is None:
            with _making:
                work = find_work(owner, self.name, PersistedWork)
                if work is None:
                    work = self.make(owner)
                    keep_work(owner, self.name, work)
        if not isinstance(owner, type):
            own_attribute(type(owner), self.name, PersistedWork)
        return work


def make_spec(name: str, path: Path | str | None, fn_name: str, **options: Any) -> Spec:
    """Check what a decorator was given."""
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidArgumentError(f"the name of a work must be that of an attribute, not {name!r}")
    if name == fn_name:
        raise WorkNameError(f"the work of {fn_name}() can't have the name of the method; use '_{name}'")
    if options.get("stash") is not None and not isinstance(options["stash"], Stash):
        raise InvalidArgumentError(f"stash must be a stash, not {options['stash']!r}")
    if path is not None:
        # Fixed here, so that the file does not follow the working directory.
        path = Path(path).absolute()
    return Spec(name, path, **options)


@overload
def persisted(name: C) -> C: ...
@overload
def persisted(
    name: str | None = None,
    path: Path | str | None = None,
    cache_global: bool = False,
    transient: bool = False,
    allocation_track: bool = True,
    mkdir: bool = False,
    deallocate_recursive: bool = False,
    recover_empty: bool = False,
    *,
    initial_value: Any = MISSING,
    stash: Stash[Any] | None = None,
    key: str | None = None,
    codec: Codec | str | None = None,
    durability: Durability = "rename",
    version: str = "",
    mmap: bool = True,
) -> Callable[[F], F]: ...
def persisted(
    name: Any = None,
    path: Path | str | None = None,
    cache_global: bool = False,
    transient: bool = False,
    allocation_track: bool = True,
    mkdir: bool = False,
    deallocate_recursive: bool = False,
    recover_empty: bool = False,
    *,
    initial_value: Any = MISSING,
    stash: Stash[Any] | None = None,
    key: str | None = None,
    codec: Codec | str | None = None,
    durability: Durability = "rename",
    version: str = "",
    mmap: bool = True,
) -> Any:
    """Run a method once, and keep what it returns.

    Used bare, or with the name of the owner's :class:`~zpersist.PersistedWork` (made on the first call, with the
    other parameters, if the owner has none).  Goes right above the method, below ``@property`` and
    ``@classmethod``.  What is kept belongs to the instance; of a class method to the class, each subclass having
    its own; of a static method to the method.

    **Arguments take no part**: those of the first call are used, later ones have no effect.

    Parameters
    ----------
    name :
        The attribute under which the owner has the work; default: ``_persisted_<method>``.
    path :
        The file in which to keep the result; a relative one is taken from the working directory at decoration.
    cache_global, transient, mkdir, deallocate_recursive, recover_empty, initial_value, stash, key, codec, durability,\
 version, mmap :
        As for :class:`~zpersist.PersistedWork`.
    allocation_track :
        Track the work as :class:`~zpersist.Deallocatable`.

    Returns
    -------
    Callable
        The method, with its signature and its type, and the function ``work(owner)``, which returns the work.

    Raises
    ------
    WorkNameError
        The name is that of the method, or of something else.
    InvalidArgumentError
        The method is a generator.
    OwnerError
        No work can live on the owner.

    Notes
    -----
    *Concurrency*: among threads, and with a file among processes, one computes and the others wait; all who await
    a coroutine in one event loop share one computation.
    *Durability*, *Trust*: see :class:`~zpersist.PersistedWork`.

    Examples
    --------
    >>> class Corpus:
    ...     @property
    ...     @persisted("_words")
    ...     def words(self):
    ...         print("splitting")
    ...         return "to be or not to be".split()
    >>> corpus = Corpus()
    >>> len(corpus.words), len(corpus.words)
    splitting
    (6, 6)
    >>> corpus._words.clear()
    """
    options = {
        "cache_global": cache_global,
        "transient": transient,
        "allocation_track": allocation_track,
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

    def decorate(fn: Any, work_name: str | None) -> Any:
        if isinstance(fn, (staticmethod, classmethod)):
            inner = decorate_function(fn.__func__, work_name, isinstance(fn, staticmethod))
            return type(fn)(inner)
        if not callable(fn) or inspect.isclass(fn):
            raise InvalidArgumentError(f"@persisted goes right above a method (below @property), not on {fn!r}")
        return decorate_function(fn, work_name, False)

    def decorate_function(fn: Function, work_name: str | None, ownerless: bool) -> Function:
        fn_name = getattr(fn, "__name__", "function")
        plain = fn_name if fn_name.isidentifier() else "function"
        spec = make_spec(f"_persisted_{plain}" if work_name is None else work_name, path, fn_name, **options)
        return _wrap(fn, spec, ownerless or not inspect.signature(fn).parameters)

    if name is None or isinstance(name, str):
        return lambda fn: decorate(fn, name)
    return decorate(name, None)


def check_function(fn: Function, ownerless: bool = False) -> None:
    """Raise for a generator, warn about arguments that would have no effect."""
    what = getattr(fn, "__qualname__", repr(fn))
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidArgumentError(
            f"{what} is a generator, whose result can be used only once; return a list of what it yields"
        )
    needed = [
        param.name
        for param in list(inspect.signature(fn).parameters.values())[0 if ownerless else 1 :]
        if param.default is param.empty and param.kind not in (param.VAR_POSITIONAL, param.VAR_KEYWORD)
    ]
    if needed:
        warnings.warn_explicit(
            f"@persisted on {what}: the arguments {', '.join(needed)} are used by the first call only; whatever "
            f"later calls give, they get its result",
            UserWarning,
            fn.__code__.co_filename,
            fn.__code__.co_firstlineno,
            fn.__module__,
        )


def _wrap(fn: Function, spec: Spec, ownerless: bool) -> Function:
    check_function(fn, ownerless)
    if ownerless:
        wrapped = _wrap_ownerless(fn, spec)
    elif inspect.iscoroutinefunction(fn):
        wrapped = _wrap_coroutine(fn, spec)
    elif len(inspect.signature(fn).parameters) == 1 and _in_class_body(fn):
        wrapped = _wrap_property(fn, spec)
    else:
        wrapped = _wrap_method(fn, spec)
    if not ownerless:
        wrapped.work = spec.work_of  # type: ignore[attr-defined]
        setattr(wrapped, WORK_NAME, spec.name)
    return wrapped


def _in_class_body(fn: Function) -> bool:
    where, _, _ = getattr(fn, "__qualname__", "").rpartition(".")
    return bool(where) and not where.endswith("<locals>")


def is_overridden(fn: Function, owner: object) -> bool:
    """Return whether the class of an owner has another attribute in the place of a method that it inherits."""
    cls = owner if isinstance(owner, type) else type(owner)
    # A method whose owner is a class may be one of its metaclass.
    kinds: tuple[type, ...] = (cls, type(cls)) if cls is owner else (cls,)
    name = getattr(fn, "__name__", "")
    places = [base for kind in kinds for base in kind.__mro__ if name in base.__dict__]
    for base in places:
        if _leads_to(base.__dict__[name], fn):
            return base is not places[0]
    # A foreign decorator may hide the method; the class in whose body it stands has the start of its name.
    home = getattr(fn, "__module__", ""), getattr(fn, "__qualname__", "").rpartition(".")[0]
    for base in places:
        if (base.__module__, base.__qualname__) == home:
            return base is not places[0]
    return False


def _leads_to(attribute: Any, fn: Function) -> bool:
    """Return whether an attribute of a class can be seen to be a method, whatever stands around it."""
    for inner in ("fget", "fn", "func", "__func__"):
        attribute = getattr(attribute, inner, attribute)
    # What lies below @persisted may be wrapped itself.
    return callable(attribute) and inspect.unwrap(attribute, stop=lambda found: found is fn) is fn


def _claim(work: PersistedWork, fn: Function, owner: object) -> bool:
    """Make a work that of a function; ``False`` if the function is one that its owner's class overrides."""
    if is_overridden(fn, owner):
        return False
    if work.function is fn:
        return True
    if work.function is None:
        work.function = fn
        work.worker = fn
        return True
    raise WorkNameError(
        f"{type(owner).__qualname__}: {work.function.__name__} and {fn.__name__} both use the work {work.name!r}; "
        f"give each its own name"
    )


def _call(fn: Function, spec: Spec, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    work = spec.work_of(owner)
    if not _claim(work, fn, owner):
        return fn(owner, *args, **kwargs)
    return work(owner, *args, **kwargs)


# The hits of the two wrappers below are the hot path of the package: a look-up, two comparisons, no call.


def _wrap_property(fn: Function, spec: Spec) -> Function:
    name = spec.name

    @wraps(fn)
    def wrapped(self: Any) -> Any:
        try:
            work = self.__dict__[name]
            if work._ref() is self and work.function is fn:
                return work._cell.value
        except (KeyError, AttributeError):
            pass
        return _call(fn, spec, self, (), {})

    return wrapped


def _wrap_method(fn: Function, spec: Spec) -> Function:
    name = spec.name

    @wraps(fn)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            work = self.__dict__[name]
            if work._ref() is self and work.function is fn:
                return work._cell.value
        except (KeyError, AttributeError):
            pass
        return _call(fn, spec, self, args, kwargs)

    return wrapped


def _wrap_coroutine(fn: Function, spec: Spec) -> Function:
    @wraps(fn)
    async def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        from zpersist.work.flight import await_work

        work = spec.work_of(self)
        if not _claim(work, fn, self):
            return await fn(self, *args, **kwargs)
        return await await_work(work, lambda: fn(self, *args, **kwargs))

    return wrapped


def _wrap_ownerless(fn: Function, spec: Spec) -> Function:
    holder = _Ownerless()
    wrapped: Any

    if inspect.iscoroutinefunction(fn):

        @wraps(fn)
        async def wrapped_coroutine(*args: Any, **kwargs: Any) -> Any:
            from zpersist.work.flight import await_work

            return await await_work(spec.work_of(holder), lambda: fn(*args, **kwargs))

        wrapped = wrapped_coroutine
    else:

        @wraps(fn)
        def wrapped_function(*args: Any, **kwargs: Any) -> Any:
            work = spec.work_of(holder)
            work.worker = fn
            return work(*args, **kwargs)

        wrapped = wrapped_function
    wrapped.work = lambda owner=None: spec.work_of(holder)
    return cast(Function, wrapped)
