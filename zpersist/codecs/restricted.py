"""Pickles that can name nothing but what was allowed."""

from __future__ import annotations

import copyreg
import functools
import io
import operator
import os
import pickle
import pickletools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from attrs import define, field

from zpersist.codecs.base import Codec
from zpersist.codecs.claims import check_claims
from zpersist.codecs.failures import failure_to_texts, texts_to_failure
from zpersist.codecs.pickle import OUT_OF_BAND_BYTES
from zpersist.codecs.told import told
from zpersist.errors import DecodeError, EncodeError, InvalidArgumentError
from zpersist.failure import Failure

__all__ = ["DEFAULT_TYPES", "RestrictedPickleCodec"]

#: What is allowed without being named.  Sets, dicts, bytes and other containers need no name in a pickle.
DEFAULT_TYPES: tuple[type, ...] = (complex, range, slice)

Name = tuple[str, str]


def _name_of(thing: Any) -> Name:
    """Return the name by which pickle calls a class or a function."""
    name = getattr(thing, "__qualname__", thing.__name__)
    # Public in its module, if not in the documentation: how the pickler itself finds the module.
    return pickle.whichmodule(thing, name), name  # type: ignore[attr-defined]


def _as_allowed(allowed: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(allowed, (str, bytes)) or not isinstance(allowed, Iterable):
        raise InvalidArgumentError(f"allowed must be a list of classes and functions, such as [Point], not {allowed!r}")
    return tuple(allowed)


def _check_allowed(codec: object, attribute: object, allowed: tuple[Any, ...]) -> None:
    for thing in allowed:
        if not isinstance(thing, type) and not isinstance(thing, (FunctionType, BuiltinFunctionType)):
            if isinstance(thing, str):
                raise InvalidArgumentError(
                    f"allowed must have the classes and functions themselves, no name: {thing!r}"
                )
            kind = "module" if isinstance(thing, ModuleType) else type(thing).__qualname__
            raise InvalidArgumentError(f"allowed must have classes and functions, not the {kind} {thing!r}")
        if isinstance(thing, type) and issubclass(thing, Failure):
            raise InvalidArgumentError(
                "allowed must not have Failure: it loads a pickle of its own; leave it out, for failures are kept "
                "without it, with a stand-in for the exception"
            )
        if any(thing is one for one in _GIVES_ALL):
            raise InvalidArgumentError(f"allowed must not have {thing!r}: to allow it is to allow everything")
        module, name = _name_of(thing)
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not thing:
            raise InvalidArgumentError(
                f"allowed has {thing!r}, which can't be found as {module}.{name}: "
                f"define it in a module, not in a function"
            )


#: What gives everything: to allow it is to allow all.  There are more; this is against a slip, not an attack.
_GIVES_ALL = (
    getattr,
    eval,
    exec,
    compile,
    open,
    __import__,
    import_module,
    os.system,
    operator.attrgetter,
    operator.methodcaller,
    functools.partial,
    functools.reduce,
)


def _remedy(name: Name) -> str:
    if name == ("builtins", "getattr"):
        return "a bound method, or what else is found by getattr, can't be; leave it out, or keep the object"
    if name[0].partition(".")[0] == "numpy":
        return "RestrictedPickleCodec(numpy=True) keeps plain arrays and scalars, no subclasses of them, no records"
    if "<" in name[1]:
        return "it can't be allowed, for it can't be found under this name; leave it out, or define it in a module"
    return "give it in RestrictedPickleCodec(allowed=[…]), or leave it out"


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: Any, names: Mapping[Name, Any], buffers: Iterable[memoryview]) -> None:
        self._file = io.BytesIO(data)
        self._names = names
        super().__init__(self._file, buffers=buffers)

    def find_class(self, module: str, name: str) -> Any:
        """Return what is allowed under just this name."""
        try:
            return self._names[module, name]
        except KeyError:
            raise DecodeError(
                f"the pickle names {f'{module}.{name}'[:200]!r}, which is not allowed: if you trust who wrote it, "
                f"give it in RestrictedPickleCodec(allowed=[…])"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse: no pickle of ours has persistent ids."""
        raise DecodeError("the pickle has a persistent id")

    def whole(self) -> Any:
        """Return the value, which must be all there is."""
        value = self.load()
        if self._file.read(1):
            raise DecodeError("there is something behind the end of the pickle")
        return value


class _Pickler(pickle.Pickler):
    """Every object but None, numbers, texts, bytes and exact containers passes ``reducer_override``."""

    def __init__(
        self,
        file: io.BytesIO,
        names: Mapping[Name, Any],
        special: Callable[[Any], tuple[Any, ...] | None],
        callback: Callable[[pickle.PickleBuffer], bool] | None,
    ) -> None:
        super().__init__(file, 5, buffer_callback=callback)
        self._names = names
        self._special = special

    def reducer_override(self, obj: Any) -> Any:
        """Return how an object is pickled, after a check of the name if it goes by one."""
        kind = type(obj)
        if kind is FunctionType or issubclass(kind, type):
            self._check(obj, _name_of(obj))
            return NotImplemented
        reduced: Any = self._special(obj)
        if reduced is None:
            by_table = copyreg.dispatch_table.get(kind)
            reduced = obj.__reduce_ex__(5) if by_table is None else by_table(obj)
        if isinstance(reduced, str):
            self._check(obj, (pickle.whichmodule(obj, reduced), reduced))  # type: ignore[attr-defined]
        return reduced

    def _check(self, thing: Any, name: Name) -> None:
        if name not in self._names or self._names[name] is not thing:
            raise EncodeError(f"the value needs {'.'.join(name)}, which is not allowed: {_remedy(name)}")
        if name in copyreg._extension_registry:  # type: ignore[attr-defined]
            raise EncodeError(
                f"{'.'.join(name)} has a number in copyreg.add_extension, and numbers are refused: remove it there"
            )


def _refuse_extensions(data: Any) -> None:
    """Refuse opcodes that name things by numbers: what was once found by a number is not looked up again.

    Numbers are given by :func:`copyreg.add_extension`.  Where nobody does there is nothing to be looked for.
    """
    if not copyreg._inverted_registry and not copyreg._extension_cache:  # type: ignore[attr-defined]
        return
    for opcode, _, _ in pickletools.genops(bytes(data)):
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            raise DecodeError("the pickle names something by a number of copyreg.add_extension")


@define(slots=False, eq=False)
class RestrictedPickleCodec(Codec):
    """Keeps objects of the allowed classes by :mod:`pickle`, and loads no pickle that names anything else.

    What is allowed is found by its exact module and name, among the given objects only: nothing is imported, and no
    attribute of it can be reached by a dotted name.  Numbers, texts, bytes, the builtin containers, ``complex``,
    ``range`` and ``slice`` need not be allowed.  A :class:`~zpersist.Failure` is kept with a stand-in for its
    exception.  Large buffers lie apart, as with :class:`~zpersist.PickleCodec`.

    Parameters
    ----------
    allowed :
        Classes and functions that a pickle may name, as objects, such as ``[Point, datetime, timezone, timedelta]``.
    numpy :
        Keep NumPy arrays and scalars of numbers, truth, bytes, text and times (default: no).  Needs NumPy:
        ``pip install 'zpersist[numpy]'``.

    Raises
    ------
    InvalidArgumentError
        Something in ``allowed`` is no class or function, or can't be found under its name.
    EncodeError
        By :meth:`dumps`: the value can't be pickled, or could not be loaded again, for it needs what is not allowed.
    DecodeError
        By :meth:`loads`: the pickle is broken, or names what is not allowed.

    Notes
    -----
    *Trust*: a second line of defence, not a sandbox.  A pickle from somebody else can't reach what is not allowed.
    It can call what is allowed with any arguments, and set any attributes on what these calls return, and on the
    allowed classes and functions themselves; ``__init__``, ``__setstate__`` and other methods of an allowed class
    run.  It can also take all memory.  So allow little, and no function that runs, imports, opens or gets what its
    arguments say; for bytes from strangers use :class:`~zpersist.JsonCodec`.

    The way is that of "Restricting Globals" in the documentation of :mod:`pickle`.

    Examples
    --------
    >>> from datetime import date
    >>> codec = RestrictedPickleCodec([date])
    >>> codec.loads(codec.dumps({"a": (1, date(2024, 2, 29))}))
    {'a': (1, datetime.date(2024, 2, 29))}
    >>> import os
    >>> codec.dumps(os.system)
    Traceback (most recent call last):
    zpersist.errors.EncodeError: the value needs posix.system, which is not allowed: ...
    """

    id = "restricted-pickle"

    allowed: tuple[Any, ...] = field(default=(), converter=_as_allowed, validator=_check_allowed)
    numpy: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        # The names of our own functions are part of what is stored: they must stay.
        things = (*DEFAULT_TYPES, *self.allowed, texts_to_failure)
        self._names: dict[Name, Any] = {_name_of(thing): thing for thing in things}
        self._array: Callable[[object], tuple[Any, ...] | None] | None = None
        if self.numpy:
            from zpersist.codecs.arrays import make_array, make_scalar, take_apart

            self._names |= {_name_of(thing): thing for thing in (make_array, make_scalar)}
            self._array = take_apart

    def __getstate__(self) -> dict[str, object]:
        return {"allowed": self.allowed, "numpy": self.numpy}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.allowed, self.numpy = state["allowed"], state["numpy"]
        self.__attrs_post_init__()

    def dumps(self, value: object) -> bytes:
        """Return the pickle of the value, all in one."""
        return self._pickle(value, None)

    def dump_parts(self, value: object) -> tuple[bytes, Sequence[memoryview]]:
        """Return the pickle of the value and its large buffers."""
        buffers: list[memoryview] = []

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if len(view) < OUT_OF_BAND_BYTES:
                return True
            buffers.append(view)
            return False

        return self._pickle(value, keep_in_band), buffers

    def loads(self, data: bytes | bytearray | memoryview) -> Any:
        """Return the value of a pickle."""
        return self.load_parts(data, ())

    def load_parts(self, body: bytes | bytearray | memoryview, buffers: Iterable[memoryview]) -> Any:
        """Return the value of a pickle whose large buffers are given."""
        try:
            _refuse_extensions(body)
            return _Unpickler(body, self._names, buffers).whole()
        except MemoryError:
            check_claims(body)
            raise
        except DecodeError:
            raise
        except Exception as err:
            raise DecodeError(f"the pickle can't be loaded ({told(err)})") from err

    def _pickle(self, value: object, callback: Callable[[pickle.PickleBuffer], bool] | None) -> bytes:
        file = io.BytesIO()
        try:
            _Pickler(file, self._names, self._special, callback).dump(value)
        except (MemoryError, EncodeError):
            raise
        except Exception as err:
            raise EncodeError(f"a {type(value).__qualname__} can't be pickled ({told(err)}); leave it out") from err
        return file.getvalue()

    def _special(self, value: object) -> tuple[Any, ...] | None:
        if type(value) is Failure:
            return texts_to_failure, tuple(failure_to_texts(value))
        return None if self._array is None else self._array(value)
